"""logs.db as it is read: lists of exchanges, one of them whole, and what comes in.

The file is opened read-only, also beside a running proxy, and llm's migrations are left
to who writes. Only an older llmproxy's tables are brought up to date first.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

import llm
import sqlite_utils
from llm.logs import LogStore, UncondenseError  # type: ignore[attr-defined]  # it raises it
from llm.migrations import MIGRATIONS
from llm.parts import Message

from ..core.errors import NotFound
from . import timeline
from .exchange import Exchange, ExchangeSummary, RawRequest, Status, Turn, with_remote_attachments
from .request_store import unfold
from .store import (
    SCHEMA_VERSION,
    SUMMARY_COLUMNS,
    Store,
    Unusable,
    check_version,
    summary_of,
    timestamp,
    translated,
)

__all__ = ["THREAD_OF", "Filter", "Follower", "LogReader", "check_llm", "open_for_reading"]


@dataclass(frozen=True)
class Filter:
    """Which exchanges are meant; what is None narrows nothing.

    since, until: of `received`, the second one's instant excluded.
    model: the name asked for or llm's id of what answered.
    thread_id: a thread's, or the id of an exchange, which means the thread that it is in.
    search: words that prompt or answer have, all of them, as llm's search finds them.
    run: a benchmark's name or id. is_traffic: what models answered clients, no benchmark's
        and nothing that was only played again.
    """

    since: datetime | None = None
    until: datetime | None = None
    model: str | None = None
    client: str | None = None
    dialect: str | None = None
    status: Status | None = None
    thread_id: str | None = None
    search: str | None = None
    ids: tuple[str, ...] | None = None
    run: str | None = None
    is_traffic: bool = False

    def where(self) -> tuple[str, dict[str, Any]]:
        """Give the SQL condition on proxy_exchanges, and its parameters."""
        ids = None if self.ids is None else json.dumps(self.ids)
        values = {
            "since": self.since and timestamp(self.since),
            "until": self.until and timestamp(self.until),
            "model": self.model,
            "client": self.client,
            "dialect": self.dialect,
            "status": self.status,
            "thread_id": self.thread_id,
            "search": None if self.search is None else _quoted(self.search),
            "ids": ids,
            "run": self.run,
            "is_traffic": self.is_traffic or None,
        }
        given = {name: value for name, value in values.items() if value is not None}
        return " and ".join(_CONDITIONS[name] for name in given) or "true", given


# An exchange that failed is in the thread of the turn that it would have gone on from.
THREAD_OF = (
    "coalesce((select turns.thread_id from turns where turns.id = :thread_id),"
    " (select turns.thread_id from turns join proxy_exchanges as failed"
    " on turns.id = failed.previous_id where failed.id = :thread_id), :thread_id)"
)
"""SQL for the thread that `:thread_id` means: a thread, or one of its exchanges."""

_CONDITIONS = {
    "since": "received >= :since",
    "until": "received < :until",
    "model": ":model in (model_asked, model_used)",
    "client": "client = :client",
    "dialect": "dialect = :dialect",
    "status": "status = :status",
    "thread_id": f"thread_id = {THREAD_OF}",
    "search": "id in (select turn_id from turn_search_fts join turn_search"
    " on turn_search.id = turn_search_fts.rowid where turn_search_fts match :search)",
    "ids": "id in (select value from json_each(:ids))",
    "run": "run_id in (select id from proxy_runs where name = :run union select :run)",
    "is_traffic": "run_id is null and replay_of is null",
}


def _quoted(words: str) -> str:
    """Take each word as it is: FTS5 has a language of its own."""
    return " ".join('"' + word.replace('"', '""') + '"' for word in words.split())


class LogReader:
    """A logs.db open for reading, by one thread at a time.

    asks_models: let llm look a model up, and so load its plugins, where it needs that to
        put a provider's raw answer together again; otherwise that one is left out.

    Raises:
        Unusable: there is none, it is no database, or a newer llmproxy's.
    """

    def __init__(self, path: Path, *, asks_models: bool = True) -> None:
        self.path = path
        self._asks_models = asks_models
        with translated(path):
            self._conn, self._log, self._version = open_for_reading(path)
            if 0 < self._version < SCHEMA_VERSION:
                self._conn.close()
                Store(path).close()
                self._conn, self._log, self._version = open_for_reading(path)

    def close(self) -> None:
        """Close the file."""
        self._conn.close()

    def entries(self, only: Filter = Filter(), *, last: int | None = None) -> list[ExchangeSummary]:
        """List exchanges in the order in which they were received, at most the `last` ones.

        Raises:
            Unusable: the file can't be read any more.
        """
        return [summary_of(row) for row in self._listed(SUMMARY_COLUMNS, only, last)]

    def ids(self, only: Filter = Filter(), *, last: int | None = None) -> list[str]:
        """List the ids of exchanges, as `entries` does.

        Raises:
            Unusable: the file can't be read any more.
        """
        return [row["id"] for row in self._listed(["id"], only, last)]

    def _listed(self, columns: Iterable[str], only: Filter, last: int | None) -> list[sqlite3.Row]:
        condition, values = only.where()
        return self.rows(
            f"select {', '.join(columns)} from proxy_exchanges where number in"
            f" (select number from proxy_exchanges where {condition}"
            " order by received desc, number desc limit :last) order by received, number",
            values | {"last": -1 if last is None else last},
        )

    def exchange(self, id: str) -> Exchange:
        """Read one exchange whole.

        Its turn is None where llm's tables have neither a turn nor messages of it.

        Raises:
            NotFound: there is none of this id.
            Unusable: the file can't be read any more.
        """
        return self._exchange(self._row(id))[0]

    def answer(self, id: str) -> tuple[Exchange, int]:
        """Read one exchange with its answer, but of what was asked only the end.

        Its turn's messages are those since the last answer before it, with how many
        there are before them; the request's body is None. Much faster where conversations
        are long.

        Raises:
            NotFound: there is none of this id.
            Unusable: the file can't be read any more.
        """
        return self._exchange(self._row(id), is_whole=False)

    def _row(self, id: str) -> sqlite3.Row:
        # Clients see ids with their dialect's prefix, as chatcmpl-… or msg_…
        values = {"id": re.sub(r"\A[a-z]+[-_](?=\w{26}\Z)", "", id)}
        rows = self.rows("select * from proxy_exchanges where id = :id", values)
        if not rows:
            is_thread = self.rows("select 1 from threads where id = :id", values)
            hint = f"; it is a conversation: log --thread {id}" if is_thread else ""
            raise NotFound(f"the log has no exchange {id}{hint}")
        return rows[0]

    def _exchange(self, row: sqlite3.Row, *, is_whole: bool = True) -> tuple[Exchange, int]:
        entry = summary_of(row)
        with translated(self.path):
            turn, earlier = self._turn(row, is_whole)
            body = unfold(row["body"], self._content) if is_whole else None
            exchange = Exchange(
                **{field.name: getattr(entry, field.name) for field in fields(ExchangeSummary)},
                request=RawRequest(json.loads(row["headers"]), row["query"], body),
                turn=turn,
                replay_key=row["replay_key"],
                events=timeline.decode(json.loads(row["timeline"]), turn.reply)
                if turn and row["timeline"]
                else [],
            )
        return exchange, earlier

    def _content(self, hash: str) -> str:
        row = self._conn.execute(
            "select text from proxy_contents where hash = ?", (hash,)
        ).fetchone()
        return str(row["text"])

    def _turn(self, row: sqlite3.Row, is_whole: bool) -> tuple[Turn | None, int]:
        turn = self._conn.execute(
            "select turns.*, schemas.content as schema_json from turns"
            " left join schemas on schemas.id = turns.schema_id where turns.id = ?",
            (row["id"],),
        ).fetchone()
        tip = row["message_hash"] if turn is None else turn["parent_message_hash"]
        messages, earlier = self._asked(tip, is_whole)
        if turn is not None:
            return self._answered_turn(turn, messages), earlier
        if tip is None:
            return None, 0
        return Turn(
            id=row["id"],
            thread_id=row["id"],
            model=row["model_used"],
            messages=messages,
            reply=[],
            started=datetime.fromisoformat(row["received"]),
            duration_ms=int(row["duration_ms"] or 0),
        ), earlier

    def _asked(self, tip: str | None, is_whole: bool) -> tuple[list[Message], int]:
        """The messages up to and with `tip`, or the last of them, and how many are before."""
        if is_whole:
            return self._chain(tip), 0
        chain = self._conn.execute(_CHAIN, {"tip": tip, "after": None}).fetchall()
        answers = [place for place, row in enumerate(chain, 1) if row["role"] == "assistant"]
        earlier = answers[-1] if answers else 0
        hashes = [row["hash"] for row in chain[earlier:]]
        messages = self.messages(hashes)
        return [messages[hash] for hash in hashes], earlier

    def _answered_turn(self, row: sqlite3.Row, messages: list[Message]) -> Turn:
        reply = self._chain(row["tip_message_hash"], after=row["parent_message_hash"])
        tools = self._conn.execute(
            "select tools.* from turn_tools join tools on tools.id = turn_tools.tool_id"
            " where turn_id = ? order by turn_tools.rowid",
            (row["id"],),
        )
        response_json = None
        if self._asks_models or '"m.' not in (row["response_json"] or ""):
            with suppress(UncondenseError):
                response_json = self._log.turn_response_json(row["id"])
        return Turn(
            id=row["id"],
            thread_id=row["thread_id"],
            model=row["model"],
            messages=messages,
            reply=reply,
            started=datetime.fromisoformat(row["datetime_utc"]),
            duration_ms=row["duration_ms"],
            resolved_model=row["resolved_model"],
            options=_json(row["options_json"]),
            tools=tuple(
                llm.Tool(
                    tool["name"],
                    tool["description"],
                    json.loads(tool["input_schema"]),
                    plugin=tool["plugin"],
                )
                for tool in tools
            ),
            schema=_json(row["schema_json"]),
            usage=llm.Usage(row["input_tokens"], row["output_tokens"], _json(row["token_details"])),
            response_json=response_json,
        )

    def _chain(self, tip: str | None, *, after: str | None = None) -> list[Message]:
        """The messages up to and with `tip`, at once: llm asks for them one by one."""
        rows = self._conn.execute(_CHAIN, {"tip": tip, "after": after})
        hashes = [row["hash"] for row in rows]
        messages = self.messages(hashes)
        return [messages[hash] for hash in hashes]

    def messages(self, hashes: Sequence[str]) -> dict[str, Message]:
        """Read messages by their hashes; those that are not there are left out.

        Raises:
            Unusable: the file can't be read any more.
        """
        rows = self.rows(
            "select hash, role, provider_metadata from messages"
            " where hash in (select value from json_each(:hashes))",
            {"hashes": json.dumps(hashes)},
        )
        with translated(self.path):
            parts = self._log._load_parts([row["hash"] for row in rows])
        messages = [
            Message(row["role"], parts.get(row["hash"], []), _json(row["provider_metadata"]))
            for row in rows
        ]
        return dict(
            zip((row["hash"] for row in rows), with_remote_attachments(messages), strict=True)
        )

    def follow(self, only: Filter = Filter()) -> Follower:
        """Begin to watch for exchanges that begin or change from now on."""
        return Follower(self, only)

    def rows(self, sql: str, values: Mapping[str, Any]) -> list[sqlite3.Row]:
        """Ask for rows; there are none where no llmproxy has written yet.

        Raises:
            Unusable: the file can't be read any more.
        """
        with translated(self.path):
            if self._version == 0:
                self._version = _version(self._conn, self.path)
            return [] if self._version == 0 else self._conn.execute(sql, values).fetchall()


class Follower:
    """What comes into a log: each exchange when it begins, and again when it has ended."""

    def __init__(self, history: LogReader, only: Filter) -> None:
        self._history = history
        self._only = only
        newest = history.rows("select max(number) as number from proxy_exchanges", {})
        running = history.rows("select number from proxy_exchanges where status = 'running'", {})
        self._last: int = (newest[0]["number"] if newest else None) or 0
        self._running: set[int] = {row["number"] for row in running}

    def poll(self) -> list[ExchangeSummary]:
        """Give what is new since the last time, in the order of its beginning.

        Raises:
            Unusable: the file can't be read any more.
        """
        condition, values = self._only.where()
        rows = self._history.rows(
            f"select number, {', '.join(SUMMARY_COLUMNS)}, {condition} as is_meant"
            " from proxy_exchanges where number in"
            " (select number from proxy_exchanges where number > :followed"
            " union select value from json_each(:running)) order by number",
            values | {"followed": self._last, "running": json.dumps(list(self._running))},
        )
        news = [row for row in rows if row["number"] > self._last or row["status"] != "running"]
        for row in news:
            if row["status"] == "running":
                self._running.add(row["number"])
            else:
                self._running.discard(row["number"])
            self._last = max(self._last, row["number"])
        return [summary_of(row) for row in news if row["is_meant"]]


_CHAIN = """
    with recursive chain (hash, depth) as (
        select :tip, 0 where :tip is not :after
        union all
        select parent_hash, depth + 1 from chain join messages using (hash)
        where parent_hash is not :after
    )
    select hash, role from chain left join messages using (hash)
    where hash is not null order by depth desc
"""


def _json(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def open_for_reading(path: Path) -> tuple[sqlite3.Connection, LogStore, int]:
    """Open a logs.db read-only, for any thread, one at a time.

    Gives the connection, llm's store over it, and the version of our tables: 0 where no
    llmproxy has written yet.

    Raises:
        sqlite3.Error: there is none, or it is no database.
        Unusable: it is a newer llmproxy's.
    """
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        connection.row_factory = sqlite3.Row
        return connection, _ReadOnlyLog(connection), _version(connection, path)
    except BaseException:
        connection.close()
        raise


def check_llm(path: Path) -> None:
    """Refuse a logs.db that this llm should not write: a newer one has made tables in it.

    Raises:
        Unusable: that, or it is a newer llmproxy's, or no database.
    """
    with translated(path):
        connection, _, _ = open_for_reading(path)
        try:
            if not connection.execute("pragma table_info(_llm_migrations)").fetchall():
                return
            made = {row["name"] for row in connection.execute("select name from _llm_migrations")}
        finally:
            connection.close()
    unknown = sorted(made - {migration.__name__ for migration in MIGRATIONS})
    if unknown:
        raise Unusable(
            f"{path} is a newer llm's (this one does not know {unknown[0]}): install that"
        )


def _version(connection: sqlite3.Connection, path: Path) -> int:
    if not connection.execute("pragma table_info(proxy_meta)").fetchall():
        return 0
    row = connection.execute("select value from proxy_meta where name = 'schema'").fetchone()
    check_version(row[0], path)
    return int(row[0])


class _ReadOnlyLog(LogStore):
    """llm's LogStore without its migrations, which would write."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.db = sqlite_utils.Database(connection, execute_plugins=False)
