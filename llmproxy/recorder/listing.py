"""List the exchanges of logs.db that a filter selects, and follow new ones.

The file is opened read-only, which works while a proxy writes to it, and where nothing can be
written: in a folder of somebody else, on a stick, in a backup. llm's migrations are left to
writers; only an older llmproxy's tables are migrated first, if that is possible.

Imports nothing of llm, so that a list of the log is printed without it.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import string
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from ..core.field_types import find_wrong_field
from .damage import decode
from .database import (
    SCHEMA_VERSION,
    StoreError,
    Unusable,
    check_version,
    complete_older_tables,
    translated,
)
from .ids import find_exchanges, find_thread
from .summary import SUMMARY_COLUMNS, ExchangeSummary, Status, storable, summary_of, timestamp

# Exchanges among which words are looked for before all are searched.
SEARCHED_FIRST = 1_000, 10_000, 100_000


@dataclass(frozen=True)
class Filter:
    """Selects exchanges; fields that are None select all.

    since, until: limits of `received`, `until` excluded.
    model: the requested name, or llm's id of the model that answered.
    thread_id, ids: exact ids; `LogReader.resolve` finds those that a user means.
    search: words that must all occur in what the request ends with (a prompt, a tool's result)
        or in the text of the reply; without words it selects all.
    run: a benchmark's name or id. is_traffic: only responses of models to clients, without
        benchmarks, replays and embeddings, and without what no model was found for.

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
        }
        given = {name: value for name, value in values.items() if value is not None}
        conditions = [_CONDITIONS[name] for name in given] + [f"({among})"] * bool(among)
        if words := (self.search or "").replace("\0", " ").split():
            words = list(map(_lower, words))
            longest: str = max(words, key=len)
            given |= {"words": json.dumps(words), "longest": longest}
            is_indexed = all(map(_is_indexed, words))
            if is_indexed:
                given["indexed"] = " ".join(map(_quoted, words))
            conditions.append(_searched(" and ".join(conditions), is_indexed))
        return " and ".join(conditions) or "true", storable(given)


def _searched(among: str, is_indexed: bool) -> str:
    """Return the condition that an exchange has the words.

    among: where it is looked for; "" for everywhere.
    """
    if not among:
        return _SEARCHED.format(
            candidates=_LIKELY,
            index=f"{_INDEX} union" if is_indexed else "",
            others="failed cross join proxy_exchanges as other on other.number = failed.number",
            replays="failed",
            among="true",
        )
    return _SEARCHED.format(
        candidates=_CANDIDATES.format(among=among),
        index=f"{_INDEX}{_INDEXED_CANDIDATES} union" if is_indexed else "",
        others="candidates cross join proxy_exchanges as other on other.id = candidates.id",
        replays="proxy_exchanges",
        among=among,
    )


# llm's index finds whole words in the prompts and replies of turns. It has no words of scripts
# that are written without spaces, no results of tools, and nothing of exchanges without a turn:
# so their text is searched too.
_INDEX = (
    "select turn_id from turn_search_fts join turn_search"
    " on turn_search.id = turn_search_fts.rowid where turn_search_fts match :indexed"
)
# A common word is in every turn: only those since the first candidate are looked at.
_INDEXED_CANDIDATES = (
    " and turn_search_fts.rowid >= (select min(turn_search.id)"
    " from candidates cross join turn_search on turn_id = candidates.id)"
)
# Replays have no turn: they are found with what they replay, or by their own first words.
_CANDIDATES = """
    candidates as materialized (
        select id from proxy_exchanges where {among}
        union
        select replay_of from proxy_exchanges where replay_of is not null and {among}
    ),
"""
# Of all turns, those that have the longest word. Reading each table as it lies takes a third of
# the time of looking for the text of each turn: 1.7 s with a million, instead of 5.2.
_LIKELY = """
    candidates as materialized (
        select turn_id as id from turn_search
        where instr(lower(prompt || ' ' || response), :longest)
        union
        select turns.id from turns where parent_message_hash in (
            with recursive said (hash, role) as (
                select hash, role from parts cross join messages on hash = message_hash
                where instr(lower(case type
                    when 'text' then text
                    when 'tool_result' then
                        iif(json_valid(payload), json_extract(payload, '$.output'), '')
                end), :longest) and role in ('user', 'tool')
                union
                select later.hash, later.role
                from said join messages as later on later.parent_hash = said.hash
                where said.role != 'assistant'
            )
            select hash from said
        )
    ),
    failed as materialized (
        select number, id, thread_id, replay_of from proxy_exchanges
        where status != 'ok' or replay_of is not null
    ),
"""
_HAS_WORDS = """
    not exists (select 1 from json_each(:words) where not instr(lower(
        coalesce((select prompt || ' ' || response from turn_search where turn_id = {id}), {words})
        || ' ' || coalesce((
            with recursive new (hash, parent_hash, role) as (
                select hash, parent_hash, role from messages where hash = {hash}
                union
                select before.hash, before.parent_hash, before.role
                from new join messages as before on before.hash = new.parent_hash
                where before.role != 'assistant'
            )
            select group_concat(case type
                when 'text' then text
                when 'tool_result' then
                    iif(json_valid(payload), json_extract(payload, '$.output'), '')
            end, ' ')
            from new join parts on parts.message_hash = new.hash
            where new.role in ('user', 'tool')
        ), '')
    ), value))
"""
_TURN_HAS_WORDS = _HAS_WORDS.format(id="turns.id", hash="turns.parent_message_hash", words="''")
_OTHER_HAS_WORDS = _HAS_WORDS.format(
    id="other.id", hash="other.message_hash", words="other.first_words"
)
_SEARCHED = f"""
    id in (with {{candidates}} found as (
        {{index}}
        select turns.id as turn_id from candidates cross join turns on turns.id = candidates.id
        where {_TURN_HAS_WORDS}
        union
        select other.id from {{others}}
        where +other.thread_id is null and (other.status != 'ok' or other.replay_of is not null)
            and {_OTHER_HAS_WORDS}
        )
        select turn_id from found
        union
        select id from {{replays}}
        where +thread_id is null and replay_of in (select turn_id from found) and {{among}}
    )
"""

_CONDITIONS = {
    "since": "received >= :since",
    "until": "received < :until",
    "model": ":model in (model_asked, model_used)",
    "client": "client = :client",
    "dialect": "dialect = :dialect",
    "status": "status = :status",
    "thread_id": "thread_id = :thread_id",
    "ids": "id in (select value from json_each(:ids))",
    "run": "run_id in (select id from proxy_runs where name = :run union select :run)",
    # A 404 without a model is that of a name, or of a request that no recording answers.
    "is_traffic": "run_id is null and replay_of is null"
    " and (model_used is not null or http_status is not 404)"
    " and rtrim(path, '/') not like '%/embed' and rtrim(path, '/') not like '%/embeddings'",
}


def _quoted(word: str) -> str:
    """Quote a word, since FTS5 has a query syntax."""
    return '"' + _storable(word).replace('"', '""') + '"'


def _storable(text: str) -> str:
    """Replace lone surrogates, which a command's arguments can have."""
    return text.encode(errors="replace").decode()


def _lower(word: str) -> str:
    """Lower a word as SQLite does, which leaves all but ASCII as it is."""
    return _storable(word).translate(_ASCII_LOWER)


_ASCII_LOWER = {ord(letter): letter.lower() for letter in string.ascii_uppercase}


def _is_indexed(word: str) -> bool:
    """Check whether FTS5 finds a word where it stands: not within a longer run of letters."""
    return any(map(str.isalnum, word)) and not _UNSPACED.search(word)


# Thai, Lao, Burmese, Khmer, kana, Chinese characters; Korean has spaces, but glues on particles.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\u9fff\ua960-\ua97f"
    "\uac00-\ud7ff\uf900-\ufaff\uff66-\uffdc\U0001b000-\U0001b16f\U00020000-\U0003ffff]"
)


class LogListing:
    """Lists what is in a logs.db; may be used by one thread at a time.

    Raises:
        Unusable: there is no file, or it is not a database, or a newer llmproxy's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open()

    def _open(self) -> None:
        with translated(self.path):
            self._conn, self._is_frozen, self._version = open_for_reading(self.path)
            if 0 < self._version < SCHEMA_VERSION:
                from .store import Store  # imports llm, 0.3 s

                self._conn.close()
                with suppress(StoreError):  # it can only be read, or is locked
                    Store(self.path).close()
                self._conn, self._is_frozen, self._version = open_for_reading(self.path)
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
        """List the ids of exchanges, as `entries` does.

        Raises:
            Unusable: the file can't be read any more.
        """
        return [row["id"] for row in self._listed(["id"], filter, last)]

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


def open_for_reading(path: Path) -> tuple[sqlite3.Connection, bool, int]:
    """Open a logs.db read-only, for use by one thread at a time.

    Returns the connection, whether it does not notice changes of the file, and the version of
    our tables: 0 if no llmproxy has written to it yet. An older version's can be read as if they
    were migrated.

    Raises:
        sqlite3.Error: it is not a database, or can't be read.
        Unusable: there is no file, or it is a newer llmproxy's.
    """
    if not path.exists():
        raise Unusable(f"{path}: nothing is recorded yet; the file does not exist")
    try:
        return _opened(path, "mode=ro", is_frozen=False)
    except sqlite3.OperationalError as exc:
        if exc.sqlite_errorcode & 0xFF not in _NOT_WRITABLE:
            raise
    # SQLite wants to create files beside it, but can't.
    wal = Path(f"{path}-wal")
    if wal.exists() and wal.stat().st_size:
        # This reads the write-ahead log without an index in a file, or a lock.
        none = "win32-none" if os.name == "nt" else "unix-none"
        return _opened(path, f"mode=ro&vfs={none}", "pragma locking_mode = exclusive")
    return _opened(path, "mode=ro&immutable=1")


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
        return connection, is_frozen, version
    except BaseException:
        connection.close()
        raise


def _state(path: Path) -> tuple[object, ...]:
    """Describe a log's files, to notice changes."""
    files = (path, Path(f"{path}-wal"))
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
