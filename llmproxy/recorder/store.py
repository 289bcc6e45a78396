"""logs.db: the only SQL of the house.

Turns are written through llm's own `LogStore`, so that `llm logs`, its search and
Datasette show them like any other. LogStore is given a small record made of plain
data, never a `llm.Response`: logging one of those can run a model or open a URL.

A `Store` is one connection of one thread. It never waits long and never retries:
`Locked` and `Unusable` tell the writer what to do. Any other error is the row's own.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llm
import sqlite_utils
from llm.logs import LogStore
from llm.parts import Message, TextPart

from .exchange import Turn

__all__ = ["Locked", "Store", "StoreError", "Unusable", "logs_on"]

BUSY_TIMEOUT_MS = 100  # the writer makes its own, growing pauses
# The `llm` command fails at once where it meets our lock (it upgrades a read
# transaction), so a group ends with the turn that passes this.
LOCK_S = 0.05


class StoreError(Exception):
    """The database can't take anything now; what was being written can be written again."""


class Locked(StoreError):
    """Another connection holds the write lock."""


class Unusable(StoreError):
    """Not writable, full, broken, or not SQLite: this connection is of no more use."""


def logs_on() -> bool:
    """Say whether `llm logs off` has not been said; cheap enough to ask for each exchange."""
    try:
        folder: Path = llm.user_dir()
        return not (folder / "logs-off").exists()
    except OSError:  # user_dir makes the folder, which may be impossible
        return True


class Store:
    """An open logs.db, made and migrated where needed; a new file is for its owner alone.

    llm's migrations run in one transaction of ours: as llm runs them, one by one, two
    processes that open an empty file spoil each other's.

    Raises:
        Locked: another connection is writing; try again.
        Unusable: there can be no database at this path, or what is there is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _translated(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _create(path)
            # Looked at before the connection is made: a file that is replaced in
            # between then counts as replaced.
            self._identity = _identity(path)
            self._conn = sqlite3.connect(path, timeout=BUSY_TIMEOUT_MS / 1000, isolation_level=None)
            try:
                self._log = self._migrated()
            except BaseException:
                self._conn.close()
                raise

    def _migrated(self) -> LogStore:
        self._conn.execute("PRAGMA journal_mode = wal")
        # A commit then outlives the process, though not a power cut, and the lock is
        # not held while the disk flushes.
        self._conn.execute("PRAGMA synchronous = normal")
        with self._transaction():
            database = sqlite_utils.Database(self._conn, execute_plugins=False)
            return LogStore(database)

    def is_current(self) -> bool:
        """Say whether the path still leads to the file that is open here."""
        return _identity(self.path) == self._identity

    def write(self, turns: Sequence[Turn]) -> int:
        """Write the first of `turns`, as many as one short lock allows, and say how many.

        All of them or none. A turn that is written again replaces itself.

        Raises:
            Locked, Unusable: none of them is written; the database is the cause.
            Exception: whatever a row that can't be stored raises; none is written.
        """
        with _translated(self.path), self._transaction():
            until = time.monotonic() + LOCK_S
            for count, turn in enumerate(turns, 1):
                self._write_turn(turn)
                if time.monotonic() > until:
                    return count
        return len(turns)

    def _write_turn(self, turn: Turn) -> None:
        self._log.log(_Response(turn))
        *_, last = (message for message in turn.messages if message.role != "system")
        # llm indexes a prompt only where the user has the very last word; Claude Code
        # sends system messages after it.
        if turn.messages[-1] is not last and last.role == "user":
            self._conn.execute(
                "insert into turn_search (turn_id, prompt, response) values (?, ?, '')"
                " on conflict (turn_id) do update set prompt = excluded.prompt",
                (turn.id, _last_text([last], "user")),
            )

    def flush(self) -> None:
        """Move the write-ahead log into the file and empty it, if no reader is in the way.

        A `-wal` file that is left beside a logs.db put in its place is played into that.
        """
        with _translated(self.path):
            self._conn.execute("PRAGMA wal_checkpoint(truncate)")

    def close(self) -> None:
        """Close the connection; what was written stays."""
        self._conn.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._conn.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._conn.execute("COMMIT")
        except BaseException:
            if self._conn.in_transaction:  # a full disk has ended it by itself
                self._conn.execute("ROLLBACK")
            raise


def _create(path: Path) -> None:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        pass  # and is not opened: closing it would drop SQLite's own locks on it


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_OF_THE_ROW = (
    sqlite3.DataError,
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except _OF_THE_ROW:
        raise
    except (sqlite3.Error, OSError) as exc:
        code = getattr(exc, "sqlite_errorcode", 0) & 0xFF  # the primary code of an extended one
        kind = Locked if code in _BUSY else Unusable
        raise kind(f"{path}: {exc}") from exc


@dataclass(frozen=True)
class _Model:
    model_id: str


@dataclass(frozen=True)
class _Conversation:
    id: str


@dataclass(frozen=True)
class _Prompt:
    """What `LogStore.log` reads of a `llm.Prompt`; `prompt` and `system` name the thread."""

    messages: list[Message]
    prompt: str
    system: str
    options: dict[str, Any]
    tools: tuple[llm.Tool, ...]
    schema: dict[str, Any] | None
    fragments: tuple[str, ...] = ()
    system_fragments: tuple[str, ...] = ()
    tool_results: tuple[llm.ToolResult, ...] = ()  # there: which toolbox ran; ours never did


class _Response:
    """What `LogStore.log` reads of a `llm.Response`, of a turn."""

    def __init__(self, turn: Turn) -> None:
        self.id = turn.id
        self.conversation = _Conversation(turn.thread_id)
        self.model = _Model(turn.model)
        self.resolved_model = turn.resolved_model
        self.prompt = _Prompt(
            messages=turn.messages,
            prompt=_last_text(turn.messages, "user"),
            system=_last_text(turn.messages, "system"),
            options=_plain(turn.options or {}),
            tools=turn.tools,
            schema=turn.schema,
        )
        self.response_json = _plain(turn.response_json)
        self.input_tokens = turn.usage.input
        self.output_tokens = turn.usage.output
        self.token_details = turn.usage.details
        self._turn = turn

    def _messages_now(self) -> list[Message]:
        return self._turn.reply

    def duration_ms(self) -> int:
        return self._turn.duration_ms

    def datetime_utc(self) -> str:
        return self._turn.started.isoformat()


def _plain(payload: Any) -> Any:
    """What a plugin leaves for the log may hold its SDK's objects: those become text."""
    return json.loads(json.dumps(payload, default=str))


def _last_text(messages: Sequence[Message], role: str) -> str:
    """The last text that is not blank; agents put reminders before a person's own words."""
    texts = (
        part.text
        for message in reversed(messages)
        if message.role == role
        for part in reversed(message.parts)
        if isinstance(part, TextPart) and part.text.strip()
    )
    return next(texts, "")
