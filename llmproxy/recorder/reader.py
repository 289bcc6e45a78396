"""Read exchanges from logs.db: list them, read one completely, follow new ones.

The file is opened read-only, which works while a proxy writes to it. llm's migrations are
left to writers; only an older llmproxy's tables are migrated first.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import llm
import sqlite_utils
from llm.logs import LogStore, UncondenseError  # type: ignore[attr-defined]  # it raises it
from llm.migrations import MIGRATIONS
from llm.parts import Message

from ..core.errors import NotFound
from . import timeline
from .exchange import Exchange, ExchangeSummary, RawRequest, Status, Turn
from .llm_turns import message_chain, read_chain, read_messages
from .request_store import restore
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


@dataclass(frozen=True)
class Filter:
    """Selects exchanges; fields that are None select all.

    since, until: limits of `received`, `until` excluded.
    model: the requested name, or llm's id of the model that answered.
    thread_id: a thread, or an exchange, which stands for its thread.
    search: words that must all occur in prompt or response, as in llm's search.
    run: a benchmark's name or id. is_traffic: only responses of models to clients, without
        benchmarks and replays.
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
        """Return the SQL condition on proxy_exchanges, and its parameters."""
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


# An exchange that failed belongs to the thread of the turn that it would have continued.
THREAD_OF = (
    "coalesce((select turns.thread_id from turns where turns.id = :thread_id),"
    " (select turns.thread_id from turns join proxy_exchanges as failed"
    " on turns.id = failed.previous_id where failed.id = :thread_id), :thread_id)"
)
"""SQL for the thread that `:thread_id` stands for: a thread, or one of its exchanges."""

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


def _quoted(text: str) -> str:
    """Quote each word, since FTS5 has a query syntax."""
    return " ".join('"' + word.replace('"', '""') + '"' for word in text.split())


class LogReader:
    """Reads a logs.db; may be used by one thread at a time.

    asks_models: let llm look up a model, and thus load its plugins, if that is needed to
        restore a provider's raw response; otherwise such a response is left out.

    Raises:
        Unusable: there is no file, or it is not a database, or a newer llmproxy's.
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._conn.close()

    def entries(
        self, filter: Filter = Filter(), *, last: int | None = None
    ) -> list[ExchangeSummary]:
        """List exchanges in the order in which they were received, at most the `last` ones.

        Raises:
            Unusable: the file can't be read any more.
        """
        return [summary_of(row) for row in self._listed(SUMMARY_COLUMNS, filter, last)]

    def ids(self, filter: Filter = Filter(), *, last: int | None = None) -> list[str]:
        """List the ids of exchanges, as `entries` does.

        Raises:
            Unusable: the file can't be read any more.
        """
        return [row["id"] for row in self._listed(["id"], filter, last)]

    def _listed(
        self, columns: Iterable[str], filter: Filter, last: int | None
    ) -> list[sqlite3.Row]:
        condition, values = filter.where()
        return self.rows(
            f"select {', '.join(columns)} from proxy_exchanges where number in"
            f" (select number from proxy_exchanges where {condition}"
            " order by received desc, number desc limit :last) order by received, number",
            values | {"last": -1 if last is None else last},
        )

    def exchange(self, id: str) -> Exchange:
        """Read one exchange completely.

        Its turn is None if llm's tables have neither a turn nor messages of it.

        Raises:
            NotFound: there is no exchange with this id.
            Unusable: the file can't be read any more.
        """
        return self._exchange(self._row(id))[0]

    def response(self, id: str) -> tuple[Exchange, int]:
        """Read one exchange with its response, but only the end of its request.

        The turn's messages are those after the last reply before it; the number returned
        is that of the messages before these. The request's body is None. Much faster if
        conversations are long.

        Raises:
            NotFound: there is no exchange with this id.
            Unusable: the file can't be read any more.
        """
        return self._exchange(self._row(id), is_whole=False)

    def _row(self, id: str) -> sqlite3.Row:
        # Clients see ids with their dialect's prefix, as chatcmpl-… or msg_…
        values = {"id": re.sub(r"\A[a-z]+[-_](?=\w{26}\Z)", "", id)}
        rows = self.rows("select * from proxy_exchanges where id = :id", values)
        if not rows:
            threads = self.rows("select 1 from threads where id = :id", values)
            hint = f"; it is a conversation: log --thread {id}" if threads else ""
            raise NotFound(f"the log has no exchange {id}{hint}")
        return rows[0]

    def _exchange(self, row: sqlite3.Row, *, is_whole: bool = True) -> tuple[Exchange, int]:
        entry = summary_of(row)
        with translated(self.path):
            turn, earlier = self._turn(row, is_whole)
            body = restore(row["body"], self._blob) if is_whole else None
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

    def _blob(self, hash: str) -> str:
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
        messages, earlier = self._request_messages(tip, is_whole)
        if turn is not None:
            return self._turn_of(turn, messages), earlier
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

    def _request_messages(self, tip: str | None, is_whole: bool) -> tuple[list[Message], int]:
        """Return the messages up to `tip`, or only the last of them, and how many precede these."""
        if is_whole:
            return read_chain(self._log, tip), 0
        chain = message_chain(self._log, tip)
        replies = [count for count, link in enumerate(chain, 1) if link.role == "assistant"]
        earlier = replies[-1] if replies else 0
        hashes = [link.hash for link in chain[earlier:]]
        messages = read_messages(self._log, hashes)
        return [messages[hash] for hash in hashes], earlier

    def _turn_of(self, row: sqlite3.Row, messages: list[Message]) -> Turn:
        reply = read_chain(self._log, row["tip_message_hash"], after=row["parent_message_hash"])
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

    def messages(self, hashes: Sequence[str]) -> dict[str, Message]:
        """Read messages by their hashes; missing ones are left out.

        Raises:
            Unusable: the file can't be read any more.
        """
        with translated(self.path):
            return read_messages(self._log, hashes)

    def follow(self, filter: Filter = Filter()) -> Follower:
        """Start to watch for exchanges that begin or end from now on."""
        return Follower(self, filter)

    def rows(self, sql: str, values: Mapping[str, Any]) -> list[sqlite3.Row]:
        """Run a query; returns no rows if no llmproxy has written to the log yet.

        Raises:
            Unusable: the file can't be read any more.
        """
        with translated(self.path):
            if self._version == 0:
                self._version = _version(self._conn, self.path)
            return [] if self._version == 0 else self._conn.execute(sql, values).fetchall()


class Follower:
    """Follows a log: returns each exchange when it begins, and again when it has ended."""

    def __init__(self, reader: LogReader, filter: Filter) -> None:
        self._reader = reader
        self._filter = filter
        newest = reader.rows("select max(number) as number from proxy_exchanges", {})
        running = reader.rows("select number from proxy_exchanges where status = 'running'", {})
        self._last: int = (newest[0]["number"] if newest else None) or 0
        self._running: set[int] = {row["number"] for row in running}

    def poll(self) -> list[ExchangeSummary]:
        """Return what is new since the last call, in the order of beginning.

        Raises:
            Unusable: the file can't be read any more.
        """
        condition, values = self._filter.where()
        rows = self._reader.rows(
            f"select number, {', '.join(SUMMARY_COLUMNS)}, {condition} as is_selected"
            " from proxy_exchanges where number in"
            " (select number from proxy_exchanges where number > :followed"
            " union select value from json_each(:running)) order by number",
            values | {"followed": self._last, "running": json.dumps(list(self._running))},
        )
        changed = [row for row in rows if row["number"] > self._last or row["status"] != "running"]
        for row in changed:
            if row["status"] == "running":
                self._running.add(row["number"])
            else:
                self._running.discard(row["number"])
            self._last = max(self._last, row["number"])
        return [summary_of(row) for row in changed if row["is_selected"]]


def _json(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def open_for_reading(path: Path) -> tuple[sqlite3.Connection, LogStore, int]:
    """Open a logs.db read-only, for use by one thread at a time.

    Returns the connection, llm's store on it, and the version of our tables: 0 if no
    llmproxy has written to it yet.

    Raises:
        sqlite3.Error: there is no file, or it is not a database.
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
    """Check that a logs.db was not migrated by a newer llm, so that this one may write to it.

    Raises:
        Unusable: it was, or it is a newer llmproxy's, or not a database.
    """
    with translated(path):
        connection, _, _ = open_for_reading(path)
        with closing(connection):
            if not connection.execute("pragma table_info(_llm_migrations)").fetchall():
                return
            applied = {
                row["name"] for row in connection.execute("select name from _llm_migrations")
            }
    unknown = sorted(applied - {migration.__name__ for migration in MIGRATIONS})
    if unknown:
        raise Unusable(
            f"{path} was written by a newer llm (this one does not know {unknown[0]}): upgrade llm"
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
