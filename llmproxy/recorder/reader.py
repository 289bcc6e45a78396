"""Read exchanges from logs.db: list them, read one completely, follow new ones.

The file is opened read-only, which works while a proxy writes to it, and where nothing can be
written: in a folder of somebody else, on a stick, in a backup. llm's migrations are left to
writers; only an older llmproxy's tables are migrated first, if that is possible.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import string
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import llm
import sqlite_utils
from llm.logs import LogStore, UncondenseError  # type: ignore[attr-defined]  # it raises it
from llm.migrations import MIGRATIONS
from llm.parts import Message

from ..core.errors import NotFound
from ..core.field_types import find_wrong_field
from . import timeline
from .damage import COUNT, EPOCH, OPTIONAL_TEXT, TEXT, UNREADABLE, Damage, Kind, decode, utc
from .exchange import Exchange, ExchangeSummary, RawRequest, Status, Turn
from .ids import find_exchanges, find_thread
from .llm_turns import find_messages, message_chain, read_chain, read_messages
from .request_store import restore
from .store import (
    SCHEMA_VERSION,
    SUMMARY_COLUMNS,
    Store,
    StoreError,
    Unusable,
    check_version,
    complete_older_tables,
    storable,
    summary_of,
    timestamp,
    translated,
)


@dataclass(frozen=True)
class Filter:
    """Selects exchanges; fields that are None select all.

    since, until: limits of `received`, `until` excluded.
    model: the requested name, or llm's id of the model that answered.
    thread_id, ids: exact ids; `LogReader.resolve` finds those that a user means.
    search: words that must all occur in what the request ends with (a prompt, a tool's result)
        or in the text of the reply; without words it selects all.
    run: a benchmark's name or id. is_traffic: only responses of models to clients, without
        benchmarks, replays and embeddings.

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
            "ids": ids,
            "run": self.run,
            "is_traffic": self.is_traffic or None,
        }
        given = {name: value for name, value in values.items() if value is not None}
        conditions = [_CONDITIONS[name] for name in given]
        if words := (self.search or "").replace("\0", " ").split():
            given["words"] = json.dumps(list(map(_lower, words)))
            is_indexed = all(map(_is_indexed, words))
            if is_indexed:
                given["indexed"] = " ".join(map(_quoted, words))
            conditions.append(_SEARCHED.format(index=_INDEX if is_indexed else ""))
        return " and ".join(conditions) or "true", storable(given)


# llm's index finds whole words in the prompts and replies of turns. It has no words of scripts
# that are written without spaces, no results of tools, and nothing of exchanges without a turn:
# so their text is searched too.
_INDEX = (
    "select turn_id from turn_search_fts join turn_search"
    " on turn_search.id = turn_search_fts.rowid where turn_search_fts match :indexed union"
)
_HAS_WORDS = """
    not exists (select 1 from json_each(:words) where not instr(lower(
        coalesce((select prompt || ' ' || response from turn_search where turn_id = {id}), {words})
        || ' ' || coalesce((
            with recursive new (hash, role) as (
                select hash, role from messages where hash = {hash}
                union
                select before.hash, before.role from messages as before
                join messages on messages.parent_hash = before.hash
                join new on new.hash = messages.hash
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
# Replays have no turn: they are found with what they replay, or by their own first words.
_SEARCHED = f"""
    id in (with found as ({{index}}
        select turns.id as turn_id from turns
        where {_HAS_WORDS.format(id="turns.id", hash="turns.parent_message_hash", words="''")}
        union
        select other.id from proxy_exchanges as other
        where +other.thread_id is null  -- by number: the index of threads has all that have none
            and other.number in (
                select number from proxy_exchanges where status != 'ok' or replay_of is not null
            )
            and {
    _HAS_WORDS.format(id="other.id", hash="other.message_hash", words="other.first_words")
}
        )
        select turn_id from found
        union select id from proxy_exchanges where replay_of in (select turn_id from found)
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
    "is_traffic": "run_id is null and replay_of is null"
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
        self._open()

    def _open(self) -> None:
        with translated(self.path):
            self._conn, self._log, self._version = open_for_reading(self.path)
            if 0 < self._version < SCHEMA_VERSION:
                self._conn.close()
                with suppress(StoreError):  # it can only be read, or is locked
                    Store(self.path).close()
                self._conn, self._log, self._version = open_for_reading(self.path)
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
        condition, values = filter.where()
        return self.rows(
            f"select {', '.join(columns)} from proxy_exchanges where number in"
            f" (select number from proxy_exchanges where {condition}"
            " order by received desc, number desc limit :last) order by received, number",
            values | {"last": -1 if last is None else last},
        )

    def exchange(self, id: str) -> Exchange:
        """Read one exchange completely.

        id: in any form, as `resolve` takes it. Its turn is None if llm's tables have neither
            a turn nor messages of it. What can't be read has its default, and is named in
            `damage`; of a damaged body or message, the rest is returned.

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

    def _row(self, id: str) -> sqlite3.Row:
        (found,) = find_exchanges(self.rows, [id])
        for row in self.rows("select * from proxy_exchanges where id = :id", {"id": found}):
            return row
        raise NotFound(f"the log has no exchange {id}")  # pruned meanwhile

    def _exchange(self, row: sqlite3.Row, *, is_whole: bool = True) -> tuple[Exchange, int]:
        (entry,) = self.summaries([row])
        damage = Damage(entry.damage)
        with translated(self.path):
            turn, earlier = self._turn(row, entry, damage, is_whole)
            has_reply = turn is not None and not {"turn", "reply"}.intersection(damage.names)
            request = RawRequest(
                damage.read("headers", lambda: headers_of(row["headers"]), {}),
                damage.value("query", row["query"], TEXT),
                self._body(row["body"], damage) if is_whole else None,
            )
            exchange = Exchange(
                **{field.name: getattr(entry, field.name) for field in fields(ExchangeSummary)}
                | {"damage": ()},
                request=request,
                turn=turn,
                replay_key=damage.value("replay_key", row["replay_key"], OPTIONAL_TEXT),
                events=events_of(row, turn.reply, damage) if turn and has_reply else [],
            )
        return replace(exchange, damage=damage.names), earlier

    def _body(self, text: str, damage: Damage) -> Any:
        """Restore a request's body; if it is damaged, as much of it as can be."""
        try:
            if type(text) is str:
                return restore(text, self._blob)
        except UNREADABLE:
            pass
        damage.add("body")
        with suppress(*UNREADABLE):
            return restore(text, self._blob_or_note)
        return text if isinstance(text, str) else None

    def _blob(self, hash: str) -> str:
        row = self._conn.execute(
            "select text from proxy_contents where hash = ?", (hash,)
        ).fetchone()
        if row is None or type(row["text"]) is not str:
            raise KeyError(hash)
        return row["text"]

    def _blob_or_note(self, hash: str) -> str:
        with suppress(*UNREADABLE):
            text = self._blob(hash)
            json.loads(text)
            return text
        return json.dumps([f"({hash} is missing)"])  # a list, since it may be one's items

    def _turn(
        self, row: sqlite3.Row, entry: ExchangeSummary, damage: Damage, is_whole: bool
    ) -> tuple[Turn | None, int]:
        turn = self._conn.execute(
            "select turns.*, schemas.content as schema_json from turns"
            " left join schemas on schemas.id = turns.schema_id where turns.id = ?",
            (row["id"],),
        ).fetchone()
        tip = row["message_hash"] if turn is None else turn["parent_message_hash"]
        messages, earlier = self._request_messages(tip, damage, is_whole)
        if turn is not None:
            return self._turn_of(turn, entry, messages, damage), earlier
        if tip is None:
            return None, 0
        return Turn(
            id=entry.id,
            thread_id=entry.id,
            model=entry.model_used or "",
            messages=messages,
            reply=[],
            started=entry.received,
            duration_ms=None if entry.duration_ms is None else int(entry.duration_ms),
        ), earlier

    def _request_messages(
        self, tip: str | None, damage: Damage, is_whole: bool
    ) -> tuple[list[Message], int]:
        """Return the messages up to `tip`, or only the last of them, and how many precede these."""
        chain, is_complete = message_chain(self._log, tip)
        replies = [count for count, link in enumerate(chain, 1) if link.role == "assistant"]
        earlier = 0 if is_whole or not replies else replies[-1]
        messages, are_sound = read_messages(self._log, [link.hash for link in chain[earlier:]])
        if not are_sound or not is_complete:
            damage.add("messages")
        return messages, earlier

    def _turn_of(
        self, row: sqlite3.Row, entry: ExchangeSummary, messages: list[Message], damage: Damage
    ) -> Turn:
        reply = read_chain(self._log, row["tip_message_hash"], after=row["parent_message_hash"])
        if not reply.is_whole:
            damage.add("reply")
        response_json = None
        is_readable = self._asks_models or '"m.' not in str(row["response_json"])
        if is_readable and not {"messages", "reply"}.intersection(damage.names):
            with suppress(UncondenseError):
                response_json = damage.read(
                    "turns.response_json", lambda: self._log.turn_response_json(row["id"]), None
                )
        facts = turn_facts(row, entry.received, damage)
        if not entry.is_timed:
            facts["duration_ms"] = None  # older versions wrote 0
        return Turn(
            id=row["id"],
            messages=messages,
            reply=reply.messages,
            tools=damage.read("tools", lambda: read_tools(self._conn, row["id"]), ()),
            response_json=response_json,
            **facts,
        )

    def messages(self, hashes: Sequence[str]) -> dict[str, Message]:
        """Read messages by their hashes; missing ones are left out, damaged ones have only text.

        Raises:
            Unusable: the file can't be read any more.
        """
        with translated(self.path):
            return find_messages(self._log, hashes)[0]

    def follow(self, filter: Filter = Filter()) -> Follower:
        """Start to watch for exchanges that begin or end from now on."""
        return Follower(self, filter)

    def rows(self, sql: str, values: Mapping[str, Any]) -> list[sqlite3.Row]:
        """Run a query; returns no rows if no llmproxy has written to the log yet.

        Raises:
            Unusable: the file can't be read any more.
        """
        with translated(self.path):
            if self._log.is_frozen and self._state != _state(self.path):
                self._conn.close()
                self._open()
            if self._version == 0:
                self._version = _version(self._conn, self.path)
            if self._version == 0:
                return []
            return self._conn.execute(sql, storable(values)).fetchall()


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
        return self._reader.summaries(row for row in changed if row["is_selected"])


def turn_facts(row: sqlite3.Row, received: datetime, damage: Damage) -> dict[str, Any]:
    """Return the fields of a turn that are columns of llm's `turns`, and its schema.

    received: stands for the time at which it started, if that can't be read.
    """

    def value(name: str, kind: Kind) -> Any:
        return damage.value(f"turns.{name}", row[name], kind)

    def parsed(name: str) -> Any:
        text = row[name]
        return (
            None if text is None else damage.read(f"turns.{name}", lambda: parse_object(text), None)
        )

    return {
        "thread_id": value("thread_id", TEXT),
        "model": value("model", TEXT),
        "started": damage.read("turns.datetime_utc", lambda: utc(row["datetime_utc"]), received),
        "duration_ms": value("duration_ms", COUNT),
        "resolved_model": value("resolved_model", OPTIONAL_TEXT),
        "options": parsed("options_json"),
        "schema": parsed("schema_json"),
        "usage": llm.Usage(
            value("input_tokens", COUNT), value("output_tokens", COUNT), parsed("token_details")
        ),
    }


def run_facts(row: sqlite3.Row, damage: Damage) -> dict[str, Any]:
    """Return the times and the settings of a benchmark's run, from its columns."""
    return {
        "began": damage.read("began", lambda: utc(row["began"]), EPOCH),
        "ended": damage.read("ended", lambda: row["ended"] and utc(row["ended"]), None),
        "settings": damage.read("settings", lambda: parse_object(row["settings"]), {}),
    }


def read_tools(connection: sqlite3.Connection, turn_id: str) -> tuple[llm.Tool, ...]:
    """Read the tools of a turn.

    Raises:
        ValueError, TypeError: one of them is damaged or missing.
    """
    rows = connection.execute(
        "select name, description, input_schema, plugin from turn_tools"
        " left join tools on tools.id = tool_id where turn_id = ? order by turn_tools.rowid",
        (turn_id,),
    )
    return tuple(
        llm.Tool(name, description, parse_json(schema), plugin=plugin)
        for name, description, schema, plugin in rows
    )


def events_of(
    row: sqlite3.Row, reply: Sequence[Message], damage: Damage
) -> list[timeline.TimedEvent]:
    """Decode the timeline of an exchange with this reply; no events if that can't be done."""
    if row["timeline"] is None:
        if row["event_count"] and row["thread_id"] is not None:
            damage.add("timeline")
        return []
    return damage.read("timeline", lambda: timeline.decode(parse_json(row["timeline"]), reply), [])


def parse_json(text: str) -> Any:
    """Parse a column of JSON.

    Raises:
        ValueError, TypeError: it has something else.
    """
    if type(text) is not str:
        raise ValueError("it is no text, or not UTF-8")
    return json.loads(text)


def parse_object(text: str) -> dict[str, Any]:
    """Parse a column that holds a JSON object.

    Raises:
        ValueError, TypeError: it has something else.
    """
    value = parse_json(text)
    if not isinstance(value, dict):
        raise TypeError("it is no JSON object")
    return value


def headers_of(text: str) -> dict[str, str]:
    """Parse the column `headers`.

    Raises:
        ValueError, TypeError: it has something else.
    """
    value = parse_object(text)
    if not all(isinstance(one, str) for one in value.values()):
        raise TypeError("they are no headers")
    return value


def open_for_reading(path: Path) -> tuple[sqlite3.Connection, ReadOnlyLog, int]:
    """Open a logs.db read-only, for use by one thread at a time.

    Returns the connection, llm's store on it, and the version of our tables: 0 if no
    llmproxy has written to it yet. An older version's can be read as if they were migrated.

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
) -> tuple[sqlite3.Connection, ReadOnlyLog, int]:
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
        return connection, ReadOnlyLog(connection, is_frozen), version
    except BaseException:
        connection.close()
        raise


def _state(path: Path) -> tuple[object, ...]:
    """Describe a log's files, to notice changes."""
    files = (path, Path(f"{path}-wal"))
    stats = [file.stat() if file.exists() else None for file in files]
    return tuple(stat and (stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats)


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
    if row is None or not isinstance(row[0], int):
        raise Unusable(f"{path}: the version of its tables is missing from proxy_meta")
    check_version(row[0], path)
    return row[0]


class ReadOnlyLog(LogStore):
    """llm's LogStore without its migrations, which would write.

    is_frozen: the connection does not notice changes of the file.
    """

    def __init__(self, connection: sqlite3.Connection, is_frozen: bool) -> None:
        self.db = sqlite_utils.Database(connection, execute_plugins=False)
        self.is_frozen = is_frozen
