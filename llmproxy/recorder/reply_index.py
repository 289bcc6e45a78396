"""The index of recorded replies by their fingerprints, and the SQL that looks them up.

`proxy_replies` holds the fingerprints of a turn's reply (see core/fingerprints), `proxy_calls`
the ids of its tool calls. The writer writes both with the turn; a database written by an older
llmproxy gets them when it is opened. Lookups only read.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections import deque
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from llm.logs import LogStore
from llm.parts import Message

from ..core.byte_cache import ByteCache, message_bytes
from ..core.fingerprints import HistoryHasher, MatchLevel, Reply, digest_of, reply_of
from .damage import UNREADABLE
from .llm_turns import read_chain, read_messages

MAX_CANDIDATES = 32  # per lookup; more of the same replies give no new information
MAX_EARLIER = 1_000  # replies before a turn that are read: enough to tell two conversations apart
MAX_CACHED_BYTES = 8 * 2**20  # of replies in memory: those of the conversations at work
MAX_JUDGED_BYTES = 4 * 2**20  # of what is known about ten thousand replies
# Of the objects around content, and of their places in a cache.
CACHED_BYTES = 500
JUDGED_BYTES = 400
ORIGINAL_BYTES = 600
DIGEST_BYTES = 100
MAX_NEW = 1_000  # exchanges since the last question; with more, all is asked anew
MAX_NEWS = 1_000  # questions of which the keys that had appeared are kept
MAX_APPEARED = 20_000  # keys of replies, 130 bytes each
RECENT_TURNS = 32  # a sub-agent or a side request quotes a turn from just before
MAX_EXCERPTS = 512  # parts of these turns
MAX_EXCERPT_CHARS = 200_000  # of one part: longer ones are not a task
PROGRESS_STEPS = 10_000  # of SQLite between two looks at the time, about a millisecond


def insert_keys(connection: sqlite3.Connection, turn_id: str, reply: Reply) -> None:
    """Insert the fingerprints of a turn's reply."""
    connection.execute(
        "insert or replace into proxy_replies"
        " (turn_id, reply_key, text_key, question_key, history_key) values (?, ?, ?, ?, ?)",
        (turn_id, reply.key, reply.text_key, reply.question_key, reply.history_key),
    )
    if reply.tool_call_ids:
        connection.executemany(
            "insert or ignore into proxy_calls (tool_call_id, turn_id) values (?, ?)",
            [(id, turn_id) for id in reply.tool_call_ids],
        )


def insert_missing_keys(connection: sqlite3.Connection, log: LogStore) -> None:
    """Insert the fingerprints of turns that an older llmproxy wrote without them."""
    turns = connection.execute(
        "select turns.id, parent_message_hash, tip_message_hash"
        " from turns join proxy_exchanges using (id) order by turns.id"
    ).fetchall()
    # By the last message of turns' requests: most turns continue another one.
    hashers: dict[str | None, HistoryHasher] = {None: HistoryHasher()}
    for turn_id, parent, tip in turns:
        reply_messages, is_whole = read_chain(log, tip, after=parent)
        start, asked = _messages_since(log, hashers.keys(), parent)
        if asked is None or not is_whole:
            continue
        if asked and asked[-1].role == "assistant":  # a prefill that the reply continues
            reply = reply_of(read_chain(log, parent).messages, reply_messages)
        else:
            hasher = hashers[start].copy()
            for message in asked:
                hasher.add(message)
            hashers[parent] = hasher
            parts = [part for message in reply_messages for part in message.parts]
            reply = hasher.reply(0, Message("assistant", parts))
        if reply is not None:
            insert_keys(connection, turn_id, reply)


def _messages_since(
    log: LogStore, starts: Container[str | None], tip: str | None
) -> tuple[str | None, list[Message] | None]:
    """Return the last of `starts` on the way to `tip`, and the messages after it.

    Returns None instead of the messages if one of them is damaged or missing, or if they follow
    one another in a circle.
    """
    hashes: dict[str, None] = {}
    while tip not in starts:
        assert tip is not None, "None is one of the starts"
        hashes[tip] = None
        row = log.db.execute("select parent_hash from messages where hash = ?", (tip,)).fetchone()
        if row is None or row[0] in hashes:
            return None, None
        (tip,) = row
    messages, is_whole = read_messages(log, list(hashes)[::-1])
    return tip, messages if is_whole else None


@dataclass(frozen=True)
class Candidate:
    """A turn whose reply may be the one that a client sent back."""

    turn_id: str
    thread_id: str
    model: str
    client: str
    is_finished: bool
    is_continued: bool
    parent_hash: str | None = None
    tip_hash: str | None = None


_SOURCES: Mapping[MatchLevel, str] = {
    "history": "proxy_replies where reply_key = :key and question_key = :question"
    " and history_key = :history",
    "question": "proxy_replies where reply_key = :key and question_key = :question",
    "words": "proxy_replies where reply_key = :key",
    "calls": "proxy_calls join proxy_replies using (turn_id)"
    " where tool_call_id in (select value from json_each(:ids))",
    "text": "proxy_replies where text_key = :text",
}
_FIND = {
    level: f"""
        select turn_id, turns.thread_id, turns.model, client, status = 'ok', is_continued,
            parent_message_hash, tip_message_hash
        from (
            select distinct turn_id, is_continued from {source}
            order by is_continued, turn_id desc limit :limit
        ) join turns on turns.id = turn_id join proxy_exchanges using (id)
        order by is_continued, turn_id desc
    """
    for level, source in _SOURCES.items()
}


@dataclass(frozen=True)
class Excerpt:
    """A part of a turn's reply that another conversation may begin with.

    text: of a text. arguments: of a tool call.
    """

    turn_id: str
    thread_id: str
    text: str | None
    arguments: Mapping[str, Any]


class OutOfTime(Exception):
    """A lookup took longer than it may."""


@contextmanager
def _in_time() -> Iterator[None]:
    """Raise OutOfTime if SQLite was interrupted by `Replies.stop_at`."""
    try:
        yield
    except sqlite3.OperationalError as exc:
        if exc.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
            raise OutOfTime from exc
        raise


class Moment(NamedTuple):
    """A question to the log; `of` is another object whenever all that was found is forgotten."""

    of: object
    question: int


class Original(NamedTuple):
    """What is recalled for a reply: messages, perhaps none, and the digest of each.

    since: the count of questions when it was found.
    """

    messages: list[Message]
    digests: list[bytes]
    since: int = 0


_RUNNING = "select id from proxy_exchanges where status = 'running'"
_NEWER = "select number, id, status from proxy_exchanges where number > ? order by number limit ?"
_KEYS_OF = (
    "select reply_key, text_key from proxy_replies"
    " where turn_id in (select value from json_each(?)) and reply_key is not null"
)


class KnownKeys(NamedTuple):
    """The fingerprints, of those that were asked for, that the log has."""

    reply_keys: set[str]
    text_keys: set[str]
    tool_call_ids: set[str]


class Replies:
    """The recorded replies of an open database that has the tables.

    Each method that reads raises OutOfTime if the time set by `stop_at` is over.
    """

    def __init__(self, connection: sqlite3.Connection, log: LogStore) -> None:
        self._connection = connection
        self._log = log
        # By content hashes, so entries never become wrong.
        self._cached = ByteCache[tuple[str | None, str | None], list[Message]](MAX_CACHED_BYTES)
        # What was found, with the count of questions at that time. It holds until a reply of the
        # same key or text appears.
        self._judged = ByteCache[str, tuple[int, bool, bool]](MAX_JUDGED_BYTES)
        self._originals = ByteCache[tuple[bytes, str], Original](MAX_CACHED_BYTES)
        self._appeared: dict[str | None, int] = {}
        self._questions = 0
        self._moment = Moment(object(), 0)
        self._news: deque[tuple[int, set[str | None]]] = deque()  # what appeared, by question
        self._oldest_news = 0  # the question whose news were dropped last
        self._number = -1  # of the newest exchange that was seen
        self._running: set[str] = set()
        self._prunes = -1

    def stop_at(self, until: float) -> None:
        """Let all further reading end at a time, by time.monotonic()."""
        self._connection.set_progress_handler(lambda: time.monotonic() > until, PROGRESS_STEPS)

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    @_in_time()
    def known(self, replies: Sequence[Reply]) -> KnownKeys:
        """Return the fingerprints of replies that the log has.

        What was asked before is remembered; all the rest is looked up in three queries. First
        `look_for_new_replies` must have been called.
        """
        known = KnownKeys(set(), set(), set())
        unsure = []
        for reply in replies:
            judged = self._judged.get(reply.history_key)
            if judged is None or reply.tool_call_ids:
                unsure.append(reply)
                continue
            since, has_key, has_text = judged
            if not has_key and self._has_appeared(reply.key, since):
                unsure.append(reply)
            elif not has_text and self._has_appeared(reply.text_key, since):
                unsure.append(reply)
            else:
                known.reply_keys.update([reply.key] if has_key else ())
                known.text_keys.update([reply.text_key] if has_text and reply.text_key else ())
        if unsure:
            self._look_up(unsure, known)
        return known

    def _look_up(self, replies: Sequence[Reply], known: KnownKeys) -> None:
        keys = self._existing("proxy_replies", "reply_key", {one.key for one in replies})
        texts = self._existing("proxy_replies", "text_key", {one.text_key for one in replies})
        known.reply_keys.update(keys)
        known.text_keys.update(texts)
        known.tool_call_ids.update(
            self._existing(
                "proxy_calls", "tool_call_id", {id for one in replies for id in one.tool_call_ids}
            )
        )
        for reply in replies:
            judged = self._questions, reply.key in keys, reply.text_key in texts
            self._judged.put(reply.history_key, judged, JUDGED_BYTES)

    def original(self, reply: Reply, chain: bytes, model: str) -> Original | None:
        """Return what was remembered of a reply by `remember`, if it still holds.

        chain: the hash of all messages up to the reply, as the client sent them.
        """
        entry = self._originals.get((chain, model))
        return None if entry is None or self._has_appeared(reply.key, entry.since) else entry

    def remember(self, chain: bytes, model: str, messages: list[Message]) -> Original:
        """Remember and return what is recalled for a reply, which may be nothing."""
        original = Original(messages, [*map(digest_of, messages)], self._questions)
        size = ORIGINAL_BYTES + DIGEST_BYTES * len(messages) + message_bytes(messages)
        self._originals.put((chain, model), original, size)
        return original

    def _has_appeared(self, key: str | None, since: int) -> bool:
        return self._appeared.get(key, -1) > since

    def appeared_since(self, moment: Moment) -> set[str | None] | None:
        """Return the keys and texts' keys of replies that have appeared since a moment.

        None if that is no longer known.
        """
        if moment.of != self._moment.of or moment.question < self._oldest_news:
            return None
        found: set[str | None] = set()
        for count, keys in reversed(self._news):
            if count <= moment.question:
                break
            found |= keys
        return found

    @property
    def moment(self) -> Moment:
        """When new replies were looked for last."""
        return self._moment

    @_in_time()
    def look_for_new_replies(self) -> None:
        """Note the keys of replies that any process has written since the last question."""
        self._questions += 1
        self._moment = Moment(self._moment.of, self._questions)
        execute = self._connection.execute
        (prunes,) = execute("select max(value) from proxy_meta where name = 'prunes'").fetchone()
        # First those that run: what ends between the two queries is looked at again.
        running = {id for (id,) in execute(_RUNNING)}
        rows = execute(_NEWER, (self._number, MAX_NEW + 1)).fetchall()
        is_too_much = len(rows) > MAX_NEW or len(self._appeared) > MAX_APPEARED
        if self._number < 0 or prunes != self._prunes or is_too_much:
            self._forget()
            (newest,) = execute("select max(number) from proxy_exchanges").fetchone()
            self._number, self._prunes, self._running = newest or 0, prunes, running
            return
        new = self._running.union(id for _, id, _ in rows)
        self._running = running.union(id for _, id, status in rows if status == "running")
        if rows:
            self._number = rows[-1][0]
        if new:
            found = {key for keys in execute(_KEYS_OF, (json.dumps([*new]),)) for key in keys}
            self._appeared.update(dict.fromkeys(found, self._questions))
            self._news.append((self._questions, found))
            if len(self._news) > MAX_NEWS:
                self._oldest_news, _ = self._news.popleft()

    def _forget(self) -> None:
        self._moment = Moment(object(), self._questions)
        self._news.clear()
        self._oldest_news = 0
        self._judged.clear()
        self._originals.clear()
        self._appeared.clear()

    def _existing(self, table: str, column: str, values: Iterable[str | None]) -> set[str]:
        rows = self._connection.execute(
            "select value from json_each(?) as wanted"
            f" where exists (select 1 from {table} where {column} = wanted.value)",
            (json.dumps([value for value in values if value is not None]),),
        )
        return {value for (value,) in rows}

    @_in_time()
    def candidates(self, level: MatchLevel, reply: Reply) -> list[Candidate]:
        """Return turns with the same reply: first those not continued yet, then the newest."""
        values = {
            "key": reply.key,
            "text": reply.text_key,
            "question": reply.question_key,
            "history": reply.history_key,
            "ids": json.dumps(reply.tool_call_ids),
            "limit": MAX_CANDIDATES,
        }
        return [Candidate(*row) for row in self._connection.execute(_FIND[level], values)]

    @_in_time()
    def existing_turns(self, turn_ids: Iterable[str]) -> set[str]:
        """Return those of the turn ids that the log has."""
        rows = self._connection.execute(
            "select id from turns where id in (select value from json_each(?))",
            (json.dumps(list(turn_ids)),),
        )
        return {id for (id,) in rows}

    @_in_time()
    def earlier_replies(self, turn_id: str) -> set[tuple[str, str]]:
        """Return key and question key of the newest replies before a turn in its conversation.

        It ends where turns continue one another in a circle, which only an edited or
        imported log has.
        """
        rows = self._connection.execute(
            """
            with recursive before (id) as (
                select previous_id from proxy_exchanges where id = ? and link = 'reply'
                union
                select previous_id from proxy_exchanges join before using (id)
                where link = 'reply'
                limit ?
            )
            select reply_key, question_key from before join proxy_replies on turn_id = id
            """,
            (turn_id, MAX_EARLIER),
        )
        return {(key, question_key) for key, question_key in rows}

    @_in_time()
    def messages(self, turn: Candidate) -> list[Message]:
        """Return all messages of a turn's request that can be read."""
        return read_chain(self._log, turn.parent_hash).messages

    @_in_time()
    def reply(self, turn: Candidate) -> list[Message]:
        """Return a turn's reply as it was recorded, or no messages if it is damaged."""
        ends = turn.parent_hash, turn.tip_hash
        reply = self._cached.get(ends)
        if reply is None:
            chain = read_chain(self._log, turn.tip_hash, after=turn.parent_hash)
            reply = chain.messages if chain.is_whole else []
            if reply:  # entries without a size would have no bound
                self._cached.put(ends, reply, CACHED_BYTES + message_bytes(reply))
        return reply

    @_in_time()
    def recent_excerpts(self) -> list[Excerpt]:
        """Return the parts of the most recent replies, newest first, except very long ones."""
        rows = self._connection.execute(
            """
            select turns.id, turns.thread_id, text, payload from (
                select id from proxy_exchanges where status = 'ok' and run_id is null
                order by number desc limit ?
            ) join turns using (id) join parts on message_hash = tip_message_hash
            where type in ('text', 'tool_call')
                and length(coalesce(text, '')) + length(coalesce(payload, '')) <= ?
            order by turns.id desc, position limit ?
            """,
            (RECENT_TURNS, MAX_EXCERPT_CHARS, MAX_EXCERPTS),
        )
        excerpts = []
        for turn_id, thread_id, text, payload in rows:
            with suppress(*UNREADABLE):
                arguments = dict(json.loads(payload or "{}").get("arguments", {}))
                excerpts.append(Excerpt(turn_id, thread_id, text and str(text), arguments))
        return excerpts
