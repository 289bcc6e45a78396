"""List the exchanges of logs.db that a filter selects, and follow new ones.

The file is opened read-only, which works while a proxy writes to it, and where nothing can be
written: in a folder of somebody else, on a stick, in a backup. llm's migrations are left to
writers; only an older llmproxy's tables are migrated first, if that is possible.

Imports nothing of llm, so that a list of the log is printed without it.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from ..core.field_types import find_wrong_field, name_unknown_fields
from .damage import decode
from .database import (
    SCHEMA_VERSION,
    StoreError,
    Unusable,
    check_version,
    complete_older_tables,
    translated,
    wal_of,
)
from .ids import find_exchanges, find_thread
from .summary import SUMMARY_COLUMNS, ExchangeSummary, Status, storable, summary_of, timestamp
from .text_search import indexed_words, lower_ascii, search_condition

# Exchanges among which words are looked for before all are searched.
SEARCHED_FIRST = 1_000, 10_000, 100_000


@name_unknown_fields
@dataclass(frozen=True)
class Filter:
    """Selects exchanges; fields that are None select all.

    since, until: limits of `received`, `until` excluded.
    model: the requested name, or llm's id of the model that answered.
    client: its name in the log. dialect: the API (`openai_chat` …). status: how it ended.
    thread_id, ids: exact ids; `LogReader.resolve` finds those that a user means.
    search: words that must all occur in what the request ends with (a prompt, a tool's result)
        or in the text of the reply; without words it selects all.
    run: a benchmark's name or id. is_traffic: only responses of models to clients, without
        benchmarks, replays and embeddings, and without what no model was found for.
    has_run: only what benchmarks sent, or, if False, only what clients sent.
    host: the name that `import --host` gave to where it was recorded.
    upstream: the name of the upstream that answered.

    Raises:
        ValueError: a field of another type, or an unknown status: it would select nothing.
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
    host: str | None = None
    upstream: str | None = None
    has_run: bool | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        wrong = find_wrong_field(self)
        if wrong:
            raise ValueError(f"filter {wrong}")

    def where(self, among: str = "") -> tuple[str, dict[str, Any]]:
        """Return the SQL condition on proxy_exchanges, and its parameters.

        among: a condition that all wanted exchanges meet; text is only searched in those.
        """
        ids = None if self.ids is None else json.dumps(self.ids)
        values = {
            "since": self.since and timestamp(self.since),
            "until": self.until and timestamp(self.until),
            "model": self.model,
            "client": self.client,
            "dialect": self.dialect,
            "status": self.status,
            "thread_id": self.thread_id,
            "ids": ids,
            "run": self.run,
            "is_traffic": self.is_traffic or None,
            "host": self.host,
            "upstream": self.upstream,
            "has_run": self.has_run,
        }
        given = {name: value for name, value in values.items() if value is not None}
        conditions = [_CONDITIONS[name] for name in given] + [f"({among})"] * bool(among)
        if words := (self.search or "").replace("\0", " ").split():
            words = list(map(lower_ascii, words))
            longest: str = max(words, key=len)
            given |= {"words": json.dumps(words), "longest": longest}
            indexed = indexed_words(" ".join(words))
            is_indexed = indexed is not None
            if indexed is not None:
                given["indexed"] = indexed
            conditions.append(search_condition(" and ".join(conditions), is_indexed))
        return " and ".join(conditions) or "true", storable(given)


_CONDITIONS = {
    "since": "received >= :since",
    "until": "received < :until",
    "model": ":model in (model_asked, model_used)",
    "client": "client = :client",
    "dialect": "dialect = :dialect",
    "status": "status = :status",
    "thread_id": "thread_id = :thread_id",
    "host": "host = :host",
    "upstream": "upstream = :upstream",
    "has_run": "(run_id is not null) = :has_run",
    "ids": "id in (select value from json_each(:ids))",
    "run": "run_id in (select id from proxy_runs where name = :run union select :run)",
    # Without a model, a 404 is that of a name, a 422 of a request that no recording answers.
    "is_traffic": "run_id is null and replay_of is null"
    " and (model_used is not null or ifnull(http_status, 0) not in (404, 422))"
    " and rtrim(path, '/') not like '%/embed' and rtrim(path, '/') not like '%/embeddings'",
}


class LogListing:
    """Lists what is in a logs.db; may be used by one thread at a time.

    writes_nothing: as `open_for_reading` takes it; an older llmproxy's tables stay as they are.

    Raises:
        Unusable: there is no file, or it is not a database, or a newer llmproxy's.
    """

    def __init__(self, path: Path, *, writes_nothing: bool = False) -> None:
        self.path = path
        self._writes_nothing = writes_nothing
        self._open()

    def _open(self) -> None:
        with translated(self.path):
            opened = open_for_reading(self.path, writes_nothing=self._writes_nothing)
            if 0 < opened[2] < SCHEMA_VERSION and not self._writes_nothing:
                from .store import Store  # imports llm, 0.3 s

                opened[0].close()
                with suppress(StoreError):  # it can only be read, or is locked
                    Store(self.path).close()
                opened = open_for_reading(self.path)
            self._conn, self._is_frozen, self._version = opened
        self._state = _state(self.path)

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
        return self.summaries(self._listed(SUMMARY_COLUMNS, filter, last))

    def summaries(self, rows: Iterable[sqlite3.Row]) -> list[ExchangeSummary]:
        """Make summaries from rows with their columns.

        A row that is damaged, or whose turn was deleted, names what it lacks in `damage`.

        Raises:
            Unusable: the file can't be read any more.
        """
        entries = [summary_of(row) for row in rows]
        ids = [entry.id for entry in entries if entry.thread_id is not None]
        turns = self.rows(
            "select id from turns where id in (select value from json_each(:ids))",
            {"ids": json.dumps(ids)},
        )
        gone = set(ids).difference(row["id"] for row in turns)
        return [
            replace(entry, thread_id=None, damage=(*entry.damage, "turn"))
            if entry.id in gone
            else entry
            for entry in entries
        ]

    def ids(self, filter: Filter = Filter(), *, last: int | None = None) -> list[str]:
        """List the ids of exchanges, as `entries` does; "" for one that isn't text.

        Raises:
            Unusable: the file can't be read any more.
        """
        listed = (row["id"] for row in self._listed(["id"], filter, last))
        return [id if type(id) is str else "" for id in listed]  # Undecodable is a str, too

    def _listed(
        self, columns: Iterable[str], filter: Filter, last: int | None
    ) -> list[sqlite3.Row]:
        for among, start in self._recent(filter, last):
            condition, values = filter.where(among)
            rows = self.rows(
                f"select {', '.join(columns)} from proxy_exchanges where number in"
                f" (select number from proxy_exchanges where {condition}"
                " order by received desc, number desc limit :last) order by received, number",
                values | {"last": -1 if last is None else last, "start": start},
            )
            if len(rows) == last:
                break
        return rows

    def _recent(self, filter: Filter, last: int | None) -> Iterator[tuple[str, str | None]]:
        """Yield where to look for the `last` exchanges: a condition, and its parameter `start`.

        Without an index of all text, words are looked for among the newest exchanges first:
        in a log of a million, a word that many have is found in 50 ms instead of 10 s.
        """
        if not filter.search or last is None:
            yield "", None
            return
        ((most,),) = self.rows("select max(number) from proxy_exchanges", {}) or ((None,),)
        for count in SEARCHED_FIRST:
            if 5 * count > (most or 0):  # nearly all; what is missed costs both
                break
            newest = "select received from proxy_exchanges order by received desc limit 1"
            for (start,) in self.rows(f"{newest} offset :count", {"count": count}):
                yield "received >= :start", start
        yield "", None

    def resolve(self, filter: Filter) -> Filter:
        """Return a filter with the ids that the user means by its ids and its thread.

        They may be in any form in which we show them, or their beginnings. Any exchange or
        turn stands for its thread.

        Raises:
            NotFound: some do not exist; the message names them.
            InvalidRequest: one is the beginning of several.
            Unusable: the file can't be read any more.
        """
        ids, thread_id = filter.ids, filter.thread_id
        return replace(
            filter,
            ids=None if ids is None else find_exchanges(self.rows, ids),
            thread_id=None if thread_id is None else find_thread(self.rows, thread_id),
        )

    def follow(self, filter: Filter = Filter()) -> Follower:
        """Start to watch for exchanges that begin or end from now on."""
        return Follower(self, filter)

    @contextmanager
    def until(self, is_over: Callable[[], bool], steps: int) -> Iterator[None]:
        """Interrupt queries (`Unusable`) once `is_over`, which is asked every so many steps."""
        self._conn.set_progress_handler(is_over, steps)
        try:
            yield
        finally:
            self._conn.set_progress_handler(None, steps)

    def rows(self, sql: str, values: Mapping[str, Any]) -> list[sqlite3.Row]:
        """Run a query; returns no rows if no llmproxy has written to the log yet.

        Raises:
            Unusable: the file can't be read any more.
        """
        with translated(self.path):
            if self._is_frozen and self._state != _state(self.path):
                self._conn.close()
                self._open()
            if self._version == 0:
                self._version = _version(self._conn, self.path)
            if self._version == 0:
                return []
            return self._conn.execute(sql, storable(values)).fetchall()


class Follower:
    """Follows a log: returns each exchange when it begins, and again when it has ended."""

    def __init__(self, reader: LogListing, filter: Filter) -> None:
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
        new = "number > :followed or number in (select value from json_each(:running))"
        condition, values = self._filter.where(new)
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
        return self._reader.summaries(row for row in changed if row["is_selected"])


def open_for_reading(
    path: Path, *, writes_nothing: bool = False
) -> tuple[sqlite3.Connection, bool, int]:
    """Open a logs.db to read it, for use by one thread at a time.

    Nothing can be written by the connection. Yet it is opened as one that may: only then does
    SQLite remove its files beside the log, `-wal` and `-shm`, when the last one is closed.

    writes_nothing: don't even let SQLite make these files, if nobody else is using the log. A
        change by a program that starts to use it later may be noticed only by the next query.

    Returns the connection, whether it does not notice changes of the file, and the version of
    our tables: 0 if no llmproxy has written to it yet. An older version's can be read as if they
    were migrated.

    Raises:
        sqlite3.Error: it is not a database, or can't be read.
        Unusable: there is no file, or it is a newer llmproxy's.
    """
    if not path.exists():
        raise Unusable(f"{path}: nothing is recorded yet; the file does not exist")
    has_wal = _size(wal_of(path)) > 0
    if writes_nothing and not has_wal and not _is_in_use(path):
        return _opened(path, "mode=ro&immutable=1")
    try:
        return _opened(path, "mode=rw", is_frozen=False)
    except sqlite3.OperationalError as exc:
        if exc.sqlite_errorcode & 0xFF not in _NOT_WRITABLE:
            raise
    # SQLite wants to create files beside it, but can't.
    if has_wal:
        # This reads the write-ahead log without an index in a file, or a lock.
        none = "win32-none" if os.name == "nt" else "unix-none"
        return _opened(path, f"mode=ro&vfs={none}", "pragma locking_mode = exclusive")
    return _opened(path, "mode=ro&immutable=1")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _is_in_use(path: Path) -> bool:
    """Check whether another program may write to a log: whatever has it open makes a `-wal`.

    A file in SQLite's older mode is always taken for one, since it has no such sign.
    """
    with path.open("rb") as file:
        is_in_wal_mode = file.read(20)[18:] == b"\2\2"
    return not is_in_wal_mode or wal_of(path).exists()


_NOT_WRITABLE = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)


def _opened(
    path: Path, options: str, *statements: str, is_frozen: bool = True
) -> tuple[sqlite3.Connection, bool, int]:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?{options}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        for statement in statements:
            connection.execute(statement)
        connection.row_factory = sqlite3.Row
        connection.text_factory = decode
        version = _version(connection, path)
        if 0 < version < SCHEMA_VERSION:
            complete_older_tables(connection)
        connection.execute("pragma query_only = on")
        return connection, is_frozen, version
    except BaseException:
        connection.close()
        raise


def _state(path: Path) -> tuple[object, ...]:
    """Describe a log's files, to notice changes."""
    files = (path, wal_of(path))
    stats = [file.stat() if file.exists() else None for file in files]
    return tuple(stat and (stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats)


def _version(connection: sqlite3.Connection, path: Path) -> int:
    if not connection.execute("pragma table_info(proxy_meta)").fetchall():
        return 0
    row = connection.execute("select value from proxy_meta where name = 'schema'").fetchone()
    if row is None or not isinstance(row[0], int):
        raise Unusable(f"{path}: the version of its tables is missing from proxy_meta")
    check_version(row[0], path)
    return row[0]
