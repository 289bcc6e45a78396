"""Our tables in logs.db with their migrations, and the errors of a database.

Imports nothing of llm, so that a list of the log is printed without it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from itertools import chain
from pathlib import Path

_REPLIES = (
    """
    create table proxy_replies (
        turn_id text primary key,
        reply_key text not null,
        text_key text,
        question_key text not null,
        history_key text not null,
        is_continued integer not null default 0  -- a finished turn continues it
    ) without rowid
    """,
    # Most specific match first; ties go to replies that nothing has continued yet.
    "create index proxy_replies_keys on proxy_replies"
    " (reply_key, question_key, history_key, is_continued, turn_id desc)",
    "create index proxy_replies_text on proxy_replies (text_key) where text_key is not null",
    """
    create table proxy_calls (
        tool_call_id text not null, turn_id text not null, primary key (tool_call_id, turn_id)
    ) without rowid
    """,
)

META = "create table if not exists proxy_meta (name text primary key, value integer not null)"
MIGRATIONS = (
    (
        """
        create table proxy_exchanges (
            number integer primary key autoincrement,  -- in the order of first writing
            id text not null unique,  -- the turn's too, if any
            received text not null,
            dialect text not null,
            path text not null,
            client text not null,
            stream integer not null,
            model_asked text,
            model_used text,
            thread_id text,
            status text not null,
            http_status integer,
            finish_reason text,
            stop_sequence text,
            error text,
            ttft_ms real,
            first_text_ms real,
            duration_ms real,
            event_count integer not null,
            input_tokens integer,
            output_tokens integer,
            cached_tokens integer,
            cache_write_tokens integer,
            reasoning_tokens integer,
            ignored text not null,  -- a JSON list
            first_words text not null,
            owner text,
            message_hash text references messages (hash),  -- the last one of the request
            timeline text,  -- JSON, see timeline.py
            headers text not null,  -- JSON
            query text not null,
            body text not null  -- JSON, see request_store.py
        )
        """,
        "create table proxy_contents (hash text primary key, text text not null)",
        # All columns that a list can be filtered by, so that rows need not be read for it.
        "create index proxy_exchanges_listed on proxy_exchanges"
        " (received, status, dialect, client, model_asked, model_used)",
        "create index proxy_exchanges_thread on proxy_exchanges (thread_id)",
        "create index proxy_exchanges_running on proxy_exchanges (owner) where status = 'running'",
        "insert into proxy_meta (name, value) values ('prunes', 0)",
    ),
    (
        "alter table proxy_exchanges add column previous_id text",  # what it continues
        "alter table proxy_exchanges add column link text",
        "alter table proxy_exchanges add column recalled integer not null default 0",
        "alter table proxy_exchanges add column replay_key text",
        "alter table proxy_exchanges add column replay_of text",
        "alter table proxy_exchanges add column origin text",
        "create index proxy_exchanges_replay on proxy_exchanges (replay_key)"
        " where replay_key is not null",
        "create index proxy_exchanges_previous on proxy_exchanges (previous_id)"
        " where previous_id is not null",
        *_REPLIES,
    ),
    (
        """
        create table proxy_runs (
            id text primary key,
            name text not null unique,
            began text not null,
            ended text,  -- null until all of it is measured
            settings text not null  -- JSON, see runs.py
        )
        """,
        "alter table proxy_exchanges add column run_id text references proxy_runs (id)",
        "alter table proxy_exchanges add column recorded_id text",  # what it repeats
        "alter table proxy_exchanges add column repeat integer",
        "alter table proxy_exchanges add column setup_ms real",
        "create index proxy_exchanges_run on proxy_exchanges (run_id) where run_id is not null",
        "create index proxy_exchanges_recorded on proxy_exchanges (recorded_id)"
        " where recorded_id is not null",
    ),
    (
        "alter table proxy_exchanges add column queue_ms real",
        "alter table proxy_exchanges add column is_first_run integer not null default 0",
        "alter table proxy_exchanges add column output_tokens_estimate integer",
    ),
    (
        "alter table proxy_exchanges add column tokens_per_second real",
        "alter table proxy_exchanges add column error_status integer",
        "alter table proxy_exchanges add column error_code text",
        "alter table proxy_exchanges add column error_param text",
        "alter table proxy_exchanges add column retry_after_s real",
    ),
    (
        "alter table proxy_exchanges add column error_kind text",
        "alter table proxy_exchanges add column overhead_ms real",
    ),
    (
        "alter table proxy_exchanges add column last_message text not null default ''",
        "alter table proxy_exchanges add column reply_words text not null default ''",
    ),
    ("alter table proxy_exchanges add column cache_write_1h_tokens integer",),
    ("alter table proxy_exchanges add column host text",),
    (
        "alter table proxy_exchanges add column upstream text",
        "alter table proxy_exchanges add column refused_by text",
        "alter table proxy_exchanges add column upstream_request_id text",
    ),
)
SCHEMA_VERSION = len(MIGRATIONS)


class StoreError(Exception):
    """The database can't be written now; nothing of the failed call was written."""


class Locked(StoreError):
    """Another connection holds the write lock."""


class Unusable(StoreError):
    """The database is not writable, full, broken or not SQLite; the connection is unusable."""


def check_version(version: int, path: Path) -> None:
    """Check that our tables are not a newer llmproxy's.

    Raises:
        Unusable: they are.
    """
    if version > SCHEMA_VERSION:
        raise Unusable(
            f"{path} was written by a newer llmproxy (schema {version}, this one knows"
            f" {SCHEMA_VERSION}): upgrade llmproxy"
        )


def complete_older_tables(connection: sqlite3.Connection) -> None:
    """Let a connection that may not write read an older llmproxy's tables as if they were migrated.

    Temporary views and tables take the place of those that lack columns, or that are missing.
    """
    from . import token_rate  # imports llm, 0.3 s

    with closing(sqlite3.connect(":memory:")) as migrated:
        migrated.execute(META)
        for statement in chain.from_iterable(MIGRATIONS):
            migrated.execute(statement)
        tables = migrated.execute(
            "select name, sql from sqlite_master where type = 'table' and name like 'proxy%'"
        ).fetchall()
        for table, sql in tables:
            columns = "select name, dflt_value from pragma_table_info(?)"
            there = {row[0] for row in connection.execute(columns, (table,))}
            added = {
                name: default or "null"
                for name, default in migrated.execute(columns, (table,))
                if name not in there
            }
            if not there:
                connection.execute(sql.replace("CREATE TABLE", "CREATE TEMP TABLE", 1))
                continue
            rows = f"main.{table}"
            if added.pop("tokens_per_second", None):  # from columns that may be added, too
                token_rate.add_rate_function(connection)
                rows = f"({_with_columns(rows, added)})"
                added = {"tokens_per_second": token_rate.RATE}
            if added:
                connection.execute(f"create temp view {table} as {_with_columns(rows, added)}")


def _with_columns(rows: str, added: Mapping[str, str]) -> str:
    columns = "".join(f", {value} as {name}" for name, value in added.items())
    return f"select *{columns} from {rows}"


def wal_of(path: Path) -> Path:
    """Return the path of a database's write-ahead log, which is beside a symlink's target."""
    return Path(f"{os.path.realpath(path)}-wal")


_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_ROW_ERRORS = (
    sqlite3.DataError,
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Translate errors of the database or its file to Locked or Unusable."""
    try:
        yield
    except _ROW_ERRORS:
        raise
    except (sqlite3.Error, OSError) as exc:
        code = getattr(exc, "sqlite_errorcode", 0) & 0xFF  # the primary code of an extended one
        kind = Locked if code in _BUSY else Unusable
        # An OSError's own text has the path too, and its number.
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else exc
        raise kind(f"{path}: {reason}") from exc


def is_no_database(error: StoreError) -> bool:
    """Check whether a file could not be used because it is something other than a database."""
    return getattr(error.__cause__, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB
