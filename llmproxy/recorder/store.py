"""Write exchanges to logs.db; the schema of our tables and its migrations.

Turns are written as llm's own LogStore does (llm_turns.py, llm_rows.py), so that `llm logs`,
its search and Datasette show them like any other. The rest of an exchange is in our own
tables, whose names begin with `proxy_`.

A `Store` is one connection, used by one thread. It never waits long and never retries:
`Locked` and `Unusable` tell the writer what to do; any other error was caused by the row.
Content that is known to be stored is not hashed, looked up or written again.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Self, TypeVar

from ..core.fingerprints import Reply, reply_of
from . import reply_index, timeline, token_rate
from .damage import decode
from .database import (
    META,
    MIGRATIONS,
    SCHEMA_VERSION,
    Locked,
    check_version,
    translated,
    wal_of,
)
from .exchange import Exchange
from .llm_turns import TurnLog, TurnRecord
from .process_lock import ProcessLock
from .request_store import Deduplicated, deduplicate, dumps
from .summary import SUMMARY_COLUMNS, ExchangeSummary, columns, storable, summary_of
from .user_files import user_file

T = TypeVar("T")

BUSY_TIMEOUT_MS = 100  # short, since the writer has its own, growing pauses
RETRY_PAUSE_S = 0.02  # between two attempts of `retry_while_locked`
# The `llm` command fails at once if it meets our lock (it upgrades a read transaction),
# so a group of exchanges ends with the one that exceeds this.
LOCK_S = 0.05
NOT_LOGGED = "its end was not recorded, because the log could not be written"
MAX_KNOWN = 25_000  # messages and blobs; about 300 bytes of memory each

_FILL_VERSION_5 = (
    f"update proxy_exchanges set tokens_per_second = {token_rate.RATE}",
    # They have no times, and llm shows 0 as a time.
    "update turns set duration_ms = null"
    " where id in (select id from proxy_exchanges where origin = 'llama-stack')",
)


# Imported turns arrive in any order, so after each one the facts that depend on the order are
# computed again. In tests/transfer/test_export.py, these fail without the statement:
#   tip, is_continued: test_any_order_any_split_and_any_kill_lead_to_the_same_rows
#   name and time: the same, and test_an_interrupted_exchange_is_completed_whichever_comes_first
#   forked_from: test_an_exported_log_is_the_same_after_import
_SETTLE_THREAD = (
    # A thread's tip is its last finished turn, or its last turn if none is finished.
    """
    update threads set tip_message_hash = (
        select tip_message_hash from turns left join proxy_exchanges using (id)
        where turns.thread_id = :thread
        order by coalesce(status, 'ok') = 'ok' desc, turns.id desc limit 1
    ) where id = :thread
    """,
    # A thread has the name and the time of its first turn.
    """
    update threads set name = :name, datetime_utc = :started
    where id = :thread
        and :id = (select id from turns where thread_id = :thread order by id limit 1)
    """,
    # A thread forks from the thread of the turn that its first turn continues. Threads that
    # continue this turn may have come before it.
    """
    update threads set forked_from = coalesce((
        select before.thread_id from turns join proxy_exchanges using (id)
        join turns as before on before.id = coalesce(recorded_id, previous_id)
        where turns.thread_id = threads.id and before.thread_id != threads.id
        order by turns.id limit 1
    ), forked_from)
    where id in (
        select :thread
        union select thread_id from proxy_exchanges where previous_id = :id
        union select thread_id from proxy_exchanges where recorded_id = :id
    )
    """,
    # The same is true for finished turns that continue this one's reply.
    """
    update proxy_replies set is_continued = 1 where turn_id = :id and exists (
        select 1 from proxy_exchanges join turns using (id)
        where previous_id = :id and link = 'reply' and status = 'ok'
    )
    """,
)


# Whether a thread has another finished turn after the previous one. llm's own turns can only be
# compared by their ids, which are times; ours have numbers, since clocks can be set back.
_OVERTAKEN = """
    select 1 from turns left join proxy_exchanges using (id)
    left join proxy_replies on turn_id = turns.id
    where turns.thread_id = :thread and turns.id != :id and case
        when number is null then turns.id > :previous
        else status = 'ok' and turn_id is not null
            and number > (select number from proxy_exchanges where id = :previous)
    end limit 1
"""


def logs_on() -> bool:
    """Check whether llm's logging is on (`llm logs on`); cheap enough to call per exchange."""
    try:
        # Nearly always there is none, for which os.path.exists raises and catches an error.
        return not os.access(user_file("logs-off"), os.F_OK)
    except OSError:  # llm.user_dir creates the folder, which may be impossible
        return True


class Store:
    """An open logs.db, created and migrated if needed; a new file is readable by its owner only.

    owner: this process's lock, which marks its running exchanges; not needed to write
        finished exchanges.

    All migrations, llm's too, run in one transaction: run one by one, as llm does, two
    processes that open an empty file break each other's.

    Raises:
        Locked: another connection is writing; try again.
        Unusable: the file can't be created, is not a database, or a newer llmproxy's.
    """

    def __init__(self, path: Path, owner: ProcessLock | None = None) -> None:
        self.path = path
        self._name = os.fspath(path)  # it is looked at with each group: 3 µs less than a Path
        self._owner = owner
        self._known: dict[Any, str] = {}  # by fingerprint
        self._begun: set[str] = set()
        with translated(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _create(path)
            if owner is not None:
                owner.claim()
            # Read before connecting: a file that is replaced in between then counts as
            # replaced.
            self._identity = identity(path)
            self._conn = sqlite3.connect(path, timeout=BUSY_TIMEOUT_MS / 1000, isolation_level=None)
            self._conn.text_factory = decode
            try:
                self._conn.execute("PRAGMA journal_mode = wal")
                # A commit then survives the process, though not a power cut, and the
                # lock is not held while the disk flushes.
                self._conn.execute("PRAGMA synchronous = normal")
                with self._transaction():
                    self._log = TurnLog(self._conn)
                    self._migrate()
                    self._prunes = self._meta("prunes")
                # Exists since the transaction began, and stays while this is open.
                self._wal_identity = identity(wal_of(path))
            except BaseException:
                self._conn.close()
                raise

    def _migrate(self) -> None:
        self._conn.execute(META)
        version = self._meta("schema")
        check_version(version, self.path)
        for statement in chain.from_iterable(MIGRATIONS[version:]):
            self._conn.execute(statement)
        if version == 1:
            reply_index.insert_missing_keys(self._conn, self._log)
        if 0 < version < 5:
            token_rate.add_rate_function(self._conn)
            for statement in _FILL_VERSION_5:
                self._conn.execute(statement)
        self._conn.execute(
            "insert or replace into proxy_meta (name, value) values ('schema', ?)",
            (SCHEMA_VERSION,),
        )

    def _meta(self, name: str) -> int:
        row = self._conn.execute("select value from proxy_meta where name = ?", (name,)).fetchone()
        return int(row[0]) if row else 0

    def is_current(self) -> bool:
        """Check whether the path still leads to the file that is open here."""
        return identity(self._name) == self._identity

    def write(self, exchanges: Sequence[Exchange], *, are_imported: bool = False) -> int:
        """Write the first of `exchanges`, as many as one short lock allows; return how many.

        Either all of these are written or none. An exchange is written when it begins and
        again when it has ended. Writing it once more changes nothing, and neither does its
        beginning after its end.

        are_imported: keep them in the threads in which they were recorded.

        Raises:
            Locked, Unusable: nothing was written, because of the database.
            Exception: whatever a row that can't be stored raises; nothing was written.
        """
        ended = {exchange.id for exchange in exchanges if exchange.status != "running"}
        with translated(self.path):
            rows = [
                # If the end is in the same group, no row is needed for the beginning.
                None if exchange.status == "running" and exchange.id in ended
                else self._row(exchange)
                for exchange in exchanges
            ]  # fmt: skip
            self._log.seen.clear()
            with self._transaction():
                self._forget_what_was_pruned()
                count = self._write_rows(rows, are_imported)
            self._remember(self._log.seen)
            self._log.seen.clear()
            for row in filter(None, rows[:count]):
                if row.body is not None:
                    self._remember(row.body.seen)
                if row.exchange.status == "running":
                    self._begun.add(row.exchange.id)
                else:
                    self._begun.discard(row.exchange.id)
        return count

    def _write_rows(self, rows: Sequence[_Row | None], are_imported: bool) -> int:
        until = time.monotonic() + LOCK_S
        for count, row in enumerate(rows, 1):
            if row is not None:
                self._write_row(row, are_imported)
            if time.monotonic() > until:
                return count
        return len(rows)

    def _row(self, exchange: Exchange) -> _Row:
        """Prepare all that can be done outside the lock."""
        request = exchange.request
        values = columns(exchange)
        values["owner"] = exchange.owner or (self._owner and self._owner.id)
        # A timeline refers to the turn's messages.
        values["timeline"] = (
            dumps(timeline.encode(exchange.events))
            if exchange.events and exchange.turn is not None
            else None
        )
        values["message_hash"] = None
        values["replay_key"] = exchange.replay_key
        body = None
        if exchange.id not in self._begun:
            body = deduplicate(request.body, self._known)
            values["headers"] = dumps(dict(request.headers))
            values["query"] = request.query
            values["body"] = body.text
        turn = exchange.turn
        if turn is None:
            return _Row(exchange, values, body)
        # Clients can't continue a benchmark's responses.
        is_reply = exchange.thread_id is not None and exchange.run_id is None
        known = exchange.fingerprinted
        hasher, digests = (known.hasher, known.digests) if known else (None, None)
        reply = reply_of(turn.messages, turn.reply, hasher) if is_reply else None
        return _Row(exchange, values, body, TurnRecord(turn, self._known, digests), reply)

    def _write_row(self, row: _Row, is_imported: bool) -> None:
        exchange, values = row.exchange, row.values
        stored = self._conn.execute(
            "select status from proxy_exchanges where id = ?", (exchange.id,)
        ).fetchone()
        if stored and (exchange.status == "running" or stored[0] not in ("running", "interrupted")):
            return
        if row.record is not None and exchange.thread_id is None:
            # A failure without output is not a turn.
            values["message_hash"] = self._log.ensure_chain(row.record.prompt.messages)
        elif row.record is not None:
            values["thread_id"], values["message_hash"] = self._write_turn(
                exchange, row.record, is_imported
            )
            if row.reply is not None:
                reply_index.insert_keys(self._conn, exchange.id, row.reply)
        if row.body is not None and row.body.blobs:
            self._conn.executemany(
                "insert or ignore into proxy_contents (hash, text) values (?, ?)",
                row.body.blobs.items(),
            )
        if stored:
            self._execute(_UPDATE if row.body is not None else _UPDATE_BEGUN, values)
        elif row.body is not None:
            self._execute(_INSERT, values)
        if is_imported and row.record is not None and exchange.thread_id is not None:
            settled = {
                "id": exchange.id,
                "thread": exchange.thread_id,
                "name": row.record.thread_name,
                "started": row.record.datetime_utc(),
            }
            for statement in _SETTLE_THREAD:
                self._conn.execute(statement, settled)

    def _execute(self, statement: str, values: Mapping[str, Any]) -> None:
        try:
            self._conn.execute(statement, values)
        except UnicodeEncodeError:  # rare, and looking for it costs a fifth of the row
            self._conn.execute(statement, storable(values))

    def _write_turn(
        self, exchange: Exchange, record: TurnRecord, is_imported: bool
    ) -> tuple[str, str | None]:
        """Write a turn to llm's tables; return its thread and its last request message's hash."""
        thread_id, forked_from = self._thread_of(exchange, is_imported)
        parent = self._log.log_turn(
            record, thread_id, is_finished=exchange.status == "ok", forked_from=forked_from
        )
        if exchange.link == "reply" and exchange.status == "ok":
            self._conn.execute(
                "update proxy_replies set is_continued = 1 where turn_id = ?",
                (exchange.previous_id,),
            )
        if record.prompt_to_index is not None:
            self._conn.execute(
                "insert into turn_search (turn_id, prompt, response) values (?, ?, '')"
                " on conflict (turn_id) do update set prompt = excluded.prompt",
                (exchange.id, record.prompt_to_index),
            )
        return thread_id, parent

    def _thread_of(self, exchange: Exchange, is_imported: bool) -> tuple[str, str | None]:
        """Decide a turn's thread, and the thread that it forks from, if any.

        A turn continues the thread of the previous turn, unless another finished turn with
        visible output (llm's own included) has done so before; the transaction makes sure
        that nothing is written meanwhile. An imported turn stays in its thread, whose fork
        is settled afterwards. A benchmark's turn has a thread of its own, which forks from
        that of the recorded turn.
        """
        assert exchange.thread_id is not None, "it is a turn"
        before_id = exchange.recorded_id or exchange.previous_id
        if before_id is None or is_imported:
            return exchange.thread_id, None
        before = self._conn.execute(
            "select thread_id from turns where id = ?", (before_id,)
        ).fetchone()
        if before is None:  # pruned meanwhile
            return exchange.thread_id, None
        if exchange.link == "reply":
            overtaken = self._conn.execute(
                _OVERTAKEN,
                {"thread": before[0], "previous": exchange.previous_id, "id": exchange.id},
            ).fetchone()
            if overtaken is None:
                return before[0], None
        return exchange.thread_id, before[0]

    def _remember(self, seen: Mapping[Any, str]) -> None:
        """Remember what is stored; to be called after the COMMIT."""
        self._known.update(seen)
        if len(self._known) > MAX_KNOWN:
            for old in list(self._known)[: -MAX_KNOWN // 2]:
                del self._known[old]

    def _forget_what_was_pruned(self) -> None:
        prunes = self._meta("prunes")
        if prunes != self._prunes:
            self._prunes = prunes
            self._known.clear()
            raise Locked(
                f"{self.path}: was being pruned"
            )  # what the prepared rows refer to may be gone

    def write_run(self, id: str, values: Mapping[str, Any]) -> None:
        """Insert or update a benchmark's run; `values` are its columns.

        Raises:
            Locked, Unusable: as `write`.
            sqlite3.IntegrityError: another run has its name.
        """
        names = ", ".join(values)
        changes = ", ".join(f"{name} = excluded.{name}" for name in values)
        with translated(self.path), self._transaction():
            self._conn.execute(
                f"insert into proxy_runs (id, {names})"
                f" values (:id, {', '.join(f':{name}' for name in values)})"
                f" on conflict (id) do update set {changes}",
                {"id": id, **values},
            )

    def interrupt_orphans(self) -> list[ExchangeSummary]:
        """Mark as interrupted what is running in no process any more; return these.

        Exchanges of other processes that are alive stay as they are.

        Raises:
            Locked, Unusable: as `write`.
        """
        with translated(self.path), self._transaction():
            # Inside the transaction: a process claims its lock before it begins an exchange.
            owners = self._conn.execute(
                "select distinct owner from proxy_exchanges where status = 'running'"
            ).fetchall()
            interrupted = []
            for (id,) in owners:
                if id is None or self._owner is None or not self._owner.is_alive(id):
                    cursor = self._conn.execute(
                        "update proxy_exchanges set status = 'interrupted'"
                        " where status = 'running' and owner is ?"
                        f" returning {', '.join(SUMMARY_COLUMNS)}",
                        (id,),
                    )
                    cursor.row_factory = sqlite3.Row
                    interrupted += [summary_of(row) for row in cursor]
            return interrupted

    def interrupt(self, ids: Iterable[str]) -> list[str]:
        """Mark exchanges as interrupted whose end could not be logged; return which were running.

        Raises:
            Locked, Unusable: as `write`.
        """
        with translated(self.path), self._transaction():
            marked = [
                id
                for id in ids
                if self._conn.execute(
                    "update proxy_exchanges set status = 'interrupted', error = ?"
                    " where id = ? and status = 'running'",
                    (NOT_LOGGED, id),
                ).rowcount
            ]
        self._begun.difference_update(marked)
        return marked

    def flush(self) -> None:
        """Move the write-ahead log into the file and empty it, unless a reader prevents it.

        If logs.db is replaced by another file, the other then has all that was written, and no
        `-wal` file that SQLite would apply to the new one, should llmproxy be killed.
        """
        with translated(self.path):
            self._conn.execute("PRAGMA wal_checkpoint(truncate)")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection.

        If the file was moved or replaced, it is completed first, and its write-ahead log is
        deleted, which SQLite would apply to the file that is now at the path.
        """
        if self.is_current():
            self._conn.close()
            return
        with suppress(sqlite3.Error):
            self._conn.execute("PRAGMA wal_checkpoint(truncate)")
        self._conn.close()
        with suppress(OSError), _folder_lock(self.path.parent):
            if identity(wal_of(self.path)) == self._wal_identity is not None:
                _delete_companions(self.path)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._conn.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._conn.execute("COMMIT")
        except BaseException:
            if self._conn.in_transaction:  # a full disk ends it by itself
                self._conn.execute("ROLLBACK")
            raise


@dataclass(frozen=True)
class _Row:
    """An exchange ready to be written; `body` is None if it was written when it began."""

    exchange: Exchange
    values: dict[str, Any]
    body: Deduplicated | None
    record: TurnRecord | None = None
    reply: Reply | None = None


_REQUEST_COLUMNS = "headers", "query", "body"
_COLUMNS = (
    *SUMMARY_COLUMNS, "timeline", "message_hash", "replay_key", *_REQUEST_COLUMNS
)  # fmt: skip
# What a row has since its exchange began. Each index with a column that is written is written
# too, so leaving these out takes a third less time.
_SINCE_BEGUN = frozenset(
    ("id", "received", "dialect", "path", "client", "stream", "model_asked", "replay_key", "owner")
).union(_REQUEST_COLUMNS)


def _update(names: Iterable[str]) -> str:
    changes = ", ".join(f"{name} = :{name}" for name in names)
    return f"update proxy_exchanges set {changes} where id = :id"


_UPDATE = _update(name for name in _COLUMNS if name != "id")
_UPDATE_BEGUN = _update(name for name in _COLUMNS if name not in _SINCE_BEGUN)
_INSERT = (
    f"insert into proxy_exchanges ({', '.join(_COLUMNS)})"
    f" values ({', '.join(f':{name}' for name in _COLUMNS)})"
)


def _create(path: Path) -> None:
    if path.exists():  # not opened: closing it would drop SQLite's own locks on it
        return
    # A symlink may lead to no file: SQLite would create its target, for all to read.
    path = Path(os.path.realpath(path))
    with _folder_lock(path.parent):
        if path.exists():
            return
        # Readers of a deleted file still write to these; a new file that shared its index
        # with them could not be read (SQLITE_IOERR_SHORT_READ).
        _delete_companions(path)
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def _delete_companions(path: Path) -> None:
    for suffix in ("-shm", "-wal"):
        Path(f"{os.path.realpath(path)}{suffix}").unlink(missing_ok=True)


@contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    """Let only one llmproxy at a time run the block."""
    try:
        import fcntl
    except ImportError:  # Windows, where an open file can't be deleted
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def identity(path: Path | str) -> tuple[int, int] | None:
    """Identify the file at a path, to notice that it was replaced; None if there is none."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def retry_while_locked(action: Callable[[], T], timeout_s: float) -> T:
    """Run an action, again and again while another connection holds the write lock.

    For commands that a person waits for; the writer thread has its own pauses.

    Raises:
        Locked: `timeout_s` seconds were not enough.
    """
    until = time.monotonic() + timeout_s
    while True:
        try:
            return action()
        except Locked:
            if time.monotonic() > until:
                raise
            time.sleep(RETRY_PAUSE_S)
