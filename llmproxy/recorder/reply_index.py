"""Recorded replies by what clients send again of them: the SQL of the log's memory.

`proxy_replies` has a turn's keys (chain.py says what they are of), `proxy_calls` the ids
of its tool calls. The writer writes both with the turn; a database that an older llmproxy
wrote gains them when it is opened. Finding a reply again only reads.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llm.logs import LogStore
from llm.parts import Message

from ..core.fingerprints import HistoryHasher, MatchLevel, Reply, reply_of

__all__ = ["SCHEMA", "Candidate", "Excerpt", "Replies", "insert_keys", "insert_missing_keys"]

SCHEMA = (
    """
    create table proxy_replies (
        turn_id text primary key,
        reply_key text not null,
        text_key text,
        question_key text not null,
        history_key text not null,
        is_continued integer not null default 0  -- a finished turn goes on from it
    ) without rowid
    """,
    # The narrowest first, and of those that are alike the ones that wait to be continued.
    "create index proxy_replies_keys on proxy_replies"
    " (reply_key, question_key, history_key, is_continued, turn_id desc)",
    "create index proxy_replies_text on proxy_replies (text_key) where text_key is not null",
    """
    create table proxy_calls (
        tool_call_id text not null, turn_id text not null, primary key (tool_call_id, turn_id)
    ) without rowid
    """,
)

MAX_CANDIDATES = 32  # looked at of those that are alike: more say nothing new
MAX_SAID = 2_000  # replies held in memory; each some kilobytes
RECENT_TURNS = 32  # what a sub-agent or a side request quotes was said just before


def insert_keys(connection: sqlite3.Connection, turn_id: str, reply: Reply) -> None:
    """Have a turn's reply known by its keys."""
    connection.execute(
        "insert or replace into proxy_replies"
        " (turn_id, reply_key, text_key, question_key, history_key) values (?, ?, ?, ?, ?)",
        (turn_id, reply.key, reply.text_key, reply.question_key, reply.history_key),
    )
    connection.executemany(
        "insert or ignore into proxy_calls (tool_call_id, turn_id) values (?, ?)",
        [(id, turn_id) for id in reply.tool_call_ids],
    )


def insert_missing_keys(connection: sqlite3.Connection, log: LogStore) -> None:
    """Give the turns of our exchanges the keys that an older llmproxy did not know of."""
    chains = _Chains(connection, log)
    turns = connection.execute(
        "select turns.id, parent_message_hash, tip_message_hash"
        " from turns join proxy_exchanges using (id) order by turns.id"
    ).fetchall()
    # To the ends of what turns were asked: most go on from another one's.
    walks: dict[str | None, HistoryHasher] = {None: HistoryHasher()}
    for turn_id, parent, tip in turns:
        said = chains.between(parent, tip)
        start, asked = chains.since(walks.keys(), parent)
        if asked and asked[-1].role == "assistant":  # words that the reply goes on from
            reply = reply_of(chains.whole(parent), said)
        else:
            walk = walks[start].copy()
            for message in asked:
                walk.add(message)
            walks[parent] = walk
            parts = [part for message in said for part in message.parts]
            reply = walk.reply(0, Message("assistant", parts))
        if reply is not None:
            insert_keys(connection, turn_id, reply)


class _Chains:
    """Conversations read message by message, those that turns share once."""

    def __init__(self, connection: sqlite3.Connection, log: LogStore) -> None:
        self._connection = connection
        self._log = log
        self._known: dict[str, tuple[str | None, Message]] = {}

    def whole(self, tip: str | None) -> list[Message]:
        return self.between(None, tip)

    def between(self, start: str | None, tip: str | None) -> list[Message]:
        """The messages after `start`, up to and with `tip`."""
        return self.since({start, None}, tip)[1]

    def since(
        self, starts: Container[str | None], tip: str | None
    ) -> tuple[str | None, list[Message]]:
        """The last of `starts` on the way to `tip`, and the messages after it."""
        messages = []
        while tip not in starts:
            assert tip is not None, "the beginning is a start"
            if tip not in self._known:
                self._known[tip] = self._read(tip)
            tip, message = self._known[tip]
            messages.append(message)
        return tip, messages[::-1]

    def _read(self, hash: str) -> tuple[str | None, Message]:
        parent, role, metadata = self._connection.execute(
            "select parent_hash, role, provider_metadata from messages where hash = ?", (hash,)
        ).fetchone()
        parts = self._log._load_parts([hash]).get(hash, [])
        return parent, Message(role, parts, json.loads(metadata) if metadata else None)


@dataclass(frozen=True)
class Candidate:
    """A turn whose reply may be the one that a client sent again."""

    turn_id: str
    thread_id: str
    model: str
    client: str
    is_finished: bool
    is_continued: bool
    parent_hash: str | None = None
    tip_hash: str | None = None


_SAME: Mapping[MatchLevel, str] = {
    "history": "proxy_replies where reply_key = :key and question_key = :question"
    " and history_key = :history",
    "question": "proxy_replies where reply_key = :key and question_key = :question",
    "words": "proxy_replies where reply_key = :key",
    "calls": "proxy_calls join proxy_replies using (turn_id)"
    " where tool_call_id in (select value from json_each(:ids))",
    "text": "proxy_replies where text_key = :text",
}
_FIND = {
    how: f"""
        select turn_id, turns.thread_id, turns.model, client, status = 'ok', is_continued,
            parent_message_hash, tip_message_hash
        from (
            select distinct turn_id, is_continued from {source}
            order by is_continued, turn_id desc limit :limit
        ) join turns on turns.id = turn_id join proxy_exchanges using (id)
        order by is_continued, turn_id desc
    """
    for how, source in _SAME.items()
}


@dataclass(frozen=True)
class Excerpt:
    """What a turn's reply said that another conversation may begin with."""

    turn_id: str
    thread_id: str
    type: str
    text: str | None
    payload: dict[str, Any]


class Replies:
    """Recorded replies in an open database that has the tables."""

    def __init__(self, connection: sqlite3.Connection, log: LogStore) -> None:
        self._connection = connection
        self._log = log
        # Hashes never come to mean anything else.
        self._said: dict[tuple[str | None, str | None], list[Message]] = {}

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    def find(self, how: MatchLevel, reply: Reply) -> list[Candidate]:
        """Turns whose reply is the same; those that nothing goes on from first, then the newest."""
        values = {
            "key": reply.key,
            "text": reply.text_key,
            "question": reply.question_key,
            "history": reply.history_key,
            "ids": json.dumps(reply.tool_call_ids),
            "limit": MAX_CANDIDATES,
        }
        return [Candidate(*row) for row in self._connection.execute(_FIND[how], values)]

    def which_of(self, turn_ids: Iterable[str]) -> set[str]:
        """Say which of these turns are there."""
        rows = self._connection.execute(
            "select id from turns where id in (select value from json_each(?))",
            (json.dumps(list(turn_ids)),),
        )
        return {id for (id,) in rows}

    def before(self, turn_id: str) -> set[tuple[str, str]]:
        """Keys and question keys of the replies that a turn's own history went on from."""
        rows = self._connection.execute(
            """
            with recursive before (id) as (
                select previous_id from proxy_exchanges where id = ? and link = 'reply'
                union all
                select previous_id from proxy_exchanges join before using (id)
                where link = 'reply'
            )
            select reply_key, question_key from before join proxy_replies on turn_id = id
            """,
            (turn_id,),
        )
        return {(key, question_key) for key, question_key in rows}

    def messages(self, turn: Candidate) -> list[Message]:
        """What a turn was asked, whole."""
        return _Chains(self._connection, self._log).whole(turn.parent_hash)

    def reply(self, turn: Candidate) -> list[Message]:
        """What a turn said, as it was recorded."""
        ends = turn.parent_hash, turn.tip_hash
        if ends not in self._said:
            if len(self._said) >= MAX_SAID:
                self._said.clear()
            self._said[ends] = _Chains(self._connection, self._log).between(*ends)
        return self._said[ends]

    def quotable(self) -> list[Excerpt]:
        """The parts of what was said last, the newest first."""
        rows = self._connection.execute(
            """
            select turns.id, turns.thread_id, type, text, payload from (
                select id from proxy_exchanges where status = 'ok' and run_id is null
                order by number desc limit ?
            ) join turns using (id) join parts on message_hash = tip_message_hash
            where type in ('text', 'tool_call') order by turns.id desc, position
            """,
            (RECENT_TURNS,),
        )
        return [
            Excerpt(turn_id, thread_id, type_, text, json.loads(payload or "{}"))
            for turn_id, thread_id, type_, text, payload in rows
        ]
