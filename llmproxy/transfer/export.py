"""Exchanges on their way between databases: out to files, and in without doubles.

A file has a line for each exchange (lines.py), or is a Llama Stack recording. What is
taken in is checked whole before any of it is written. An exchange is known by its id, so
that nothing comes in twice; and in whichever order they come, threads, forks and tips are
the same in the end, also where an import was killed and run again.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, TypeVar

import llm

from ..core import chat
from ..core.errors import InvalidRequest, NotFound
from ..core.fingerprints import request_key
from ..recorder.exchange import Exchange, Status, Turn, begun
from ..recorder.reader import Filter, History, check_llm
from ..recorder.store import Locked, Store
from .anonymize import filled
from .jsonl import decode, encode
from .llama_stack.read import Recording, parse_recording
from .llama_stack.write import render_recording

T = TypeVar("T")

__all__ = [
    "Exported",
    "Imported",
    "Unreadable",
    "exchange_of",
    "export_lines",
    "export_recordings",
    "export_to",
    "import_files",
]

MAX_LINE_BYTES = 2**29  # a body of a few photos stands in it twice, and escaped
GROUP = 16  # exchanges in memory at once; a lock ends sooner where they are long
TIMEOUT_S = 60.0  # a person waits for it, and a busy writer's locks are short
PAUSE_S = 0.02  # between two tries while another one writes
MAX_HELD_BYTES = 2**20  # of what comes by a pipe; more of it goes to the disk


class Unreadable(Exception):
    """What can't be moved: says which file or log, the place in it, and why."""


# ---- out


@dataclass(frozen=True)
class Exported:
    """How many exchanges were written, and how many were not.

    running: they have not ended. skipped: Llama Stack has no form for them.
    replaced: their requests came again, and a recording has one answer: the last.
    """

    exchanges: int
    running: int = 0
    skipped: int = 0
    replaced: int = 0


def export_lines(
    history: History,
    file: BinaryIO,
    only: Filter,
    *,
    last: int | None = None,
    redact: bool = False,
) -> Exported:
    """Write exchanges in the order in which they were received, at most the `last` ones.

    redact: text becomes filler of the same length (filler.py).

    Raises:
        Unreadable: one of them is damaged.
        StoreError, OSError: the log can't be read any more, or the file not written.
    """
    running = written = 0
    for exchange in _exchanges(history, only, last):
        if exchange.status == "running":
            running += 1
            continue
        file.write(encode(filled(exchange) if redact else exchange))
        written += 1
    return Exported(written, running)


def export_to(
    history: History,
    path: Path,
    only: Filter,
    *,
    last: int | None = None,
    redact: bool = False,
) -> Exported:
    """Write a file as `export_lines` does, for its owner alone; it is there only when whole.

    Raises:
        Unreadable: the file is the log itself; and as `export_lines`.
    """
    if path.exists() and history.path.exists() and path.samefile(history.path):
        raise Unreadable(f"{path}: is the log itself")
    with _written_whole(path) as file:
        return export_lines(history, file, only, last=last, redact=redact)


def export_recordings(
    history: History,
    folder: Path,
    only: Filter,
    *,
    last: int | None = None,
    redact: bool = False,
) -> Exported:
    """Write chats that came to their end as Llama Stack's recordings, a file each.

    The folder is made where there is none.

    Raises:
        Unreadable, StoreError, OSError: as `export_lines`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names: set[str] = set()
    count = running = skipped = 0
    for exchange in _exchanges(history, only, last):
        if exchange.status == "running":
            running += 1
            continue
        try:
            name, text = render_recording(filled(exchange) if redact else exchange)
        except InvalidRequest:
            skipped += 1
            continue
        with _written_whole(folder / name) as file:
            file.write(text.encode())
        names.add(name)
        count += 1
    return Exported(len(names), running, skipped, count - len(names))


def _exchanges(history: History, only: Filter, last: int | None) -> Iterator[Exchange]:
    for id in history.ids(only, last=last):
        try:
            yield history.exchange(id)
        except NotFound:
            pass  # forgotten meanwhile
        except (KeyError, ValueError, TypeError) as exc:
            raise Unreadable(
                f"{history.path}: exchange {id} is damaged; log --verify may say more"
            ) from exc


@contextmanager
def _written_whole(path: Path) -> Iterator[BinaryIO]:
    """Write beside a path, and put it there at the end; a pipe or a device is written as it is."""
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            yield file
        return
    path = path.resolve()  # a link stays one
    handle, beside = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".part", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            yield file
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise


# ---- in


@dataclass(frozen=True)
class Imported:
    """How many exchanges came in, or would: new ones, those that were there, those left out.

    skipped: Llama Stack's recordings of something else than a chat.
    """

    new: int
    there: int
    skipped: int


def import_files(paths: Sequence[Path], database: Path, *, dry_run: bool = False) -> Imported:
    """Take in the exchanges of files, and Llama Stack's recordings, into a logs.db.

    An exchange that is there is left as it is, unless it was found interrupted and comes
    in whole. A file may be a pipe: it is read twice, and so held on disk meanwhile.

    dry_run: only check, and count.

    Raises:
        Unreadable: a file is damaged, foreign, or not readable; nothing is written.
        Unusable: the database is none, or of a newer llm or llmproxy; nothing is written.
        Locked: another program did not let us write for a minute; what is in stays.
    """
    if database.exists():
        check_llm(database)
    with ExitStack() as stack:
        sources = [_Source(path, stack) for path in paths]
        statuses: dict[str, Status] = {}
        count = skipped = 0
        for exchange in _read(sources):
            if exchange is None:
                skipped += 1
                continue
            count += 1
            if _says_more(exchange.status, statuses.get(exchange.id)):
                statuses[exchange.id] = exchange.status
        if dry_run:
            new = _count_new(statuses, database)
        else:
            read = (exchange for exchange in _read(sources) if exchange is not None)
            new = _write(read, database)
    return Imported(new, count - new, skipped)


class _Source:
    """A file that can be read twice, also if it is a pipe."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.path = path
        self._held: BinaryIO | None = None
        with _readable(path):
            if path.exists() and not path.is_file() and not path.is_dir():
                self._held = stack.enter_context(tempfile.TemporaryFile())
                with path.open("rb") as pipe:
                    shutil.copyfileobj(pipe, self._held, MAX_HELD_BYTES)

    def open(self) -> AbstractContextManager[BinaryIO]:
        if self._held is None:
            return self.path.open("rb")
        self._held.seek(0)
        return nullcontext(self._held)


@contextmanager
def _readable(path: Path, place: str = "") -> Iterator[None]:
    """Raise what is wrong with a file, or in it, with its name."""
    try:
        yield
    except InvalidRequest as exc:
        where = ", ".join(filter(None, (str(path), place, exc.param)))
        raise Unreadable(f"{where}: {exc.message}") from exc
    except OSError as exc:
        raise Unreadable(f"{path}: {exc.strerror}") from exc


def _read(sources: Iterable[_Source]) -> Iterator[Exchange | None]:
    """Give what the files have, None for what is no exchange."""
    for source in sources:
        with _readable(source.path), source.open() as file:
            first = file.readline(MAX_LINE_BYTES)
            if _begins_a_recording(first, source.path):
                data = first + file.read(MAX_LINE_BYTES)
                yield exchange_of(parse_recording(data, source.path.stem))
                continue
            for number, line in enumerate(chain([first], _lines(file)), 1):
                if line.isspace() or not line:
                    continue
                with _readable(source.path, f"line {number}"):
                    exchange = decode(line)
                yield exchange


def _lines(file: BinaryIO) -> Iterator[bytes]:
    while line := file.readline(MAX_LINE_BYTES):
        yield line


def _begins_a_recording(line: bytes, path: Path) -> bool:
    """Tell by what is in it: a recording is one JSON object, mostly on many lines."""
    if line.startswith(b"SQLite format 3\0"):
        raise InvalidRequest("a database; export what is to be moved from it")
    start = line.lstrip()[:64]
    if start.rstrip() == b"{" or path.suffix == ".json" and not start.startswith(b'{"id":'):
        return True
    return start.startswith((b'{"request":', b'{"test_id":'))


# Recordings have no times; this is how their own dates are normalised, alike everywhere.
RECORDED = datetime(1970, 1, 1, tzinfo=UTC)


def exchange_of(recording: Recording) -> Exchange | None:
    """Make an exchange of a Llama Stack recording, None where it is no chat.

    It has no times, and its id comes of its key alone. What the recording's `test_id` was
    is lost.
    """
    request = recording.request
    if request is None or recording.dialect is None:
        return None
    id = _id_of(recording.key)
    events = [(0.0, event) for event in recording.events if not isinstance(event, chat.Finish)]
    answer = chat.collect(recording.events)
    finish = None if recording.error else answer.finish
    turn = Turn(
        id=id,
        thread_id=id,
        model=request.model or "",
        messages=request.messages,
        reply=answer.messages,
        started=RECORDED,
        duration_ms=0,
        resolved_model=answer.finish.model,
        options=dict(request.options) or None,
        tools=request.tools,
        schema=request.schema,
        usage=llm.Usage(answer.finish.usage.input_tokens, answer.finish.usage.output_tokens),
        response_json=answer.finish.response_json,
    )
    exchange = begun(
        id,
        RECORDED,
        dialect=recording.dialect,
        path=recording.path,
        query="",
        client="llama-stack",
        headers=(),
        body=recording.body,
        stream=request.stream,
        model=request.model,
        messages=request.messages,
        replay_key=request_key(request),
    ).ended(
        "error" if recording.error else "ok",
        http_status=recording.error.status if recording.error else 200,
        duration_ms=0,
        turn=turn,
        events=events,
        finish=finish,
        error=recording.error.message if recording.error else None,
        ignored=request.ignored,
    )
    return replace(
        exchange, ttft_ms=None, first_text_ms=None, duration_ms=None, origin="llama-stack"
    )


def _id_of(key: str) -> str:
    """Give a recording's ULID: of 1970, so that it is older than all that was recorded here."""
    digest = hashlib.sha256(f"llama-stack/{key}".encode()).digest()[:10]
    # ULIDs have Crockford's digits, base32 its own.
    letters = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", "0123456789abcdefghjkmnpqrstvwxyz")
    return "0" * 10 + base64.b32encode(digest).decode().translate(letters)


def _write(exchanges: Iterable[Exchange], database: Path) -> int:
    """Write what is not there, group by group; say how much that was."""
    new: set[str] = set()
    store = _patiently(partial(Store, database))
    try:
        history = History(database)
        try:
            left = iter(exchanges)
            while group := list(islice(left, GROUP)):
                there = _statuses(history, [exchange.id for exchange in group])
                todo: dict[str, Exchange] = {}
                for exchange in group:
                    if _says_more(exchange.status, there.get(exchange.id)):
                        there[exchange.id] = exchange.status
                        todo[exchange.id] = exchange
                _write_group(store, list(todo.values()))
                new.update(todo)
        finally:
            history.close()
    finally:
        store.close()
    return len(new)


def _write_group(store: Store, exchanges: list[Exchange]) -> None:
    while exchanges:
        written = _patiently(partial(store.write, exchanges, are_imported=True))
        exchanges = exchanges[written:]


def _count_new(statuses: Mapping[str, Status], database: Path) -> int:
    if not database.exists():
        return len(statuses)
    history = History(database)
    try:
        there = _statuses(history, list(statuses))
    finally:
        history.close()
    return sum(_says_more(status, there.get(id)) for id, status in statuses.items())


def _statuses(history: History, ids: Sequence[str]) -> dict[str, Status]:
    return {entry.id: entry.status for entry in history.entries(Filter(ids=tuple(ids)))}


def _says_more(status: Status, there: Status | None) -> bool:
    """Of what was killed, another log may have the end (its spool had it)."""
    return there is None or there in ("running", "interrupted") and status != "interrupted"


def _patiently(action: Callable[[], T]) -> T:
    """Try until nobody else writes."""
    until = time.monotonic() + TIMEOUT_S
    while True:
        try:
            return action()
        except Locked:
            if time.monotonic() > until:
                raise
            time.sleep(PAUSE_S)
