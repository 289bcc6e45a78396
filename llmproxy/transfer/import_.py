"""Import exchanges from files without creating duplicates.

Exchanges are known by their ids. In whichever order they are imported, even if an import is
killed and run again, threads, forks and tips are the same in the end.
"""

from __future__ import annotations

import codecs
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..core.errors import InvalidRequest
from ..recorder.exchange import Exchange
from ..recorder.listing import Filter
from ..recorder.reader import LogReader, check_llm
from ..recorder.store import Store, retry_while_locked
from ..recorder.summary import Status
from .export import SQLITE_MAGIC, Unreadable
from .jsonl import MAX_LINE_BYTES, begins_an_export, decode, read_lines

HEAD_BYTES = 100  # of a file, by which its kind is known
GROUP = 16  # exchanges in memory at once; a transaction ends sooner if they are long
TIMEOUT_S = 60.0  # the user waits, and other writers' locks are short
COPY_BYTES = 2**20  # of a pipe, read at once
MAX_NAMED = 20  # lines of a file: all of another program's file can be unreadable


ReadRecording = Callable[[bytes, str], Exchange | None]
"""Reads another project's recording of an exchange: the file's bytes, and its name without the
ending. Returns None for a recording of something other than a chat."""


@dataclass(frozen=True)
class Imported:
    """The numbers of exchanges that were imported, or would be.

    new: imported. there: were in the log already. skipped: recordings of something other
        than a chat. unreadable: files and lines that can't be read.
    failures: the unreadable ones with their places and reasons, at most MAX_NAMED of a file.
    """

    new: int
    there: int
    skipped: int
    unreadable: int = 0
    failures: tuple[str, ...] = ()


def import_files(
    paths: Sequence[Path],
    database: Path,
    *,
    read_recording: ReadRecording | None = None,
    strict: bool = False,
    dry_run: bool = False,
    host: str | None = None,
) -> Imported:
    """Import the exchanges of files into a logs.db; files and lines that can't be read are named.

    An exchange that is in the log already stays as it is, unless it was interrupted there and
    is complete in the file. One that would continue itself, through others of the files or the
    log, counts as one that can't be read. A file may be a pipe; its content is buffered, on
    disk if it is large, since files are read twice if they are checked first.

    read_recording: reads a file that is a single recording; without it only JSON lines are read.
    strict: check all files first, and import nothing if anything can't be read.
    dry_run: only check and count.
    host: a name for where the exchanges were recorded, kept with each that has none yet.

    Raises:
        Unreadable: with `strict`, something can't be read; nothing was written.
        Unusable: it is not a database, or a newer llm's or llmproxy's; nothing was written.
        Locked: another program was writing for a minute; what was imported so far stays.
    """
    if database.exists():
        check_llm(database)
    with ExitStack() as stack:
        sources = [_Source(path, stack) for path in paths]
        recorded = stack.enter_context(LogReader(database)) if database.exists() else None
        reading = _Reading(sources, read_recording, _Order(recorded))
        if strict or dry_run:
            statuses: dict[str, Status] = {}
            for exchange in reading:
                if _is_more_complete(exchange.status, statuses.get(exchange.id)):
                    statuses[exchange.id] = exchange.status
            if strict and reading.failures:
                more = f" (and {reading.unreadable - 1:,} more)" * (reading.unreadable > 1)
                raise Unreadable(f"{reading.failures[0]}{more}; nothing was imported")
        if dry_run:
            new = _count_new(statuses, database)
        else:
            reading = _Reading(sources, read_recording, _Order(recorded))
            new = _write((_from_host(one, host) for one in reading), database)
    there = reading.count - new
    return Imported(new, there, reading.skipped, reading.unreadable, tuple(reading.failures))


def _from_host(exchange: Exchange, host: str | None) -> Exchange:
    return replace(exchange, host=host) if host and exchange.host is None else exchange


class _Source:
    """A file that can be read twice, even if it is a pipe."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.path = path
        self._held: BinaryIO | None = None
        self._failure: OSError | None = None
        try:
            if path.exists() and not path.is_file() and not path.is_dir():
                self._held = stack.enter_context(tempfile.TemporaryFile())
                with path.open("rb") as pipe:
                    shutil.copyfileobj(pipe, self._held, COPY_BYTES)
        except OSError as exc:
            self._failure = exc

    def open(self) -> AbstractContextManager[BinaryIO]:
        """Open it from its beginning.

        Raises:
            OSError: it can't be read.
        """
        if self._failure is not None:
            raise self._failure
        if self._held is None:
            return self.path.open("rb")
        self._held.seek(0)
        return nullcontext(self._held)


class _Reading:
    """The exchanges of files, one after another, without what can't be read.

    count, skipped, unreadable, failures: as in `Imported`, of what was read so far; `count` is
        the number of exchanges.
    """

    def __init__(
        self, sources: Sequence[_Source], read_recording: ReadRecording | None, order: _Order
    ) -> None:
        self._sources = sources
        self._read_recording = read_recording
        self._order = order
        self.count = 0
        self.skipped = 0
        self.unreadable = 0
        self.failures: list[str] = []

    def __iter__(self) -> Iterator[Exchange]:
        for source in self._sources:
            unreadable = 0
            for result in _read(source, self._read_recording, self._order):
                match result:
                    case Exchange():
                        self.count += 1
                        yield result
                    case None:
                        self.skipped += 1
                    case Unreadable():
                        unreadable += 1
                        if unreadable <= MAX_NAMED:
                            self.failures.append(str(result))
            self.unreadable += unreadable
            if unreadable > MAX_NAMED:
                self.failures.append(f"{source.path}: {unreadable - MAX_NAMED:,} more lines")


class _Link(NamedTuple):
    """The exchange that another one continues, and the status of the latter; None if unknown."""

    previous_id: str | None
    status: Status | None


class _Order:
    """Checks of exchanges, one after another, that none would continue itself.

    The order of the ids does not show it: clocks can be set back. Every exchange of the log is
    looked up once, and the way to the beginning of a conversation is shortened when it was gone,
    so the work grows with the number of exchanges, in whichever order they come.
    """

    def __init__(self, recorded: LogReader | None) -> None:
        self._recorded = recorded
        self._links: dict[str, _Link] = {}
        self._shortcuts: dict[str, str] = {}  # from an exchange to one that it continues

    def add(self, exchange: Exchange) -> None:
        """Add an exchange, unless it is there already and stays as it is.

        Raises:
            InvalidRequest: it would continue itself, directly or through others.
        """
        id, previous = exchange.id, exchange.previous_id
        known = self._link(id)
        if not _is_more_complete(exchange.status, known.status):
            return
        if previous is not None and previous != known.previous_id:
            if known.previous_id is not None:
                why = f"it is another one than in the interrupted exchange: {known.previous_id}"
                raise InvalidRequest(why, param="previous_id")
            if self._first(previous) == id:
                why = f"{previous} can't come before {id}, because it continues it"
                raise InvalidRequest(f"{why}, directly or through others", param="previous_id")
        self._links[id] = _Link(previous or known.previous_id, exchange.status)

    def _first(self, id: str) -> str:
        """Return the first exchange before another, as far as it is known."""
        passed: dict[str, None] = {}
        while (before := self._shortcuts.get(id) or self._link(id).previous_id) is not None:
            passed[id] = None
            if before in passed:  # a circle that the log has, since it was edited
                break
            id = before
        self._shortcuts |= dict.fromkeys(passed.keys() - {id}, id)
        return id

    def _link(self, id: str) -> _Link:
        link = self._links.get(id)
        if link is None:
            found = self._recorded.entries(Filter(ids=(id,))) if self._recorded else []
            link = _Link(found[0].previous_id, found[0].status) if found else _Link(None, None)
            self._links[id] = link
        return link


def _read(
    source: _Source, read_recording: ReadRecording | None, order: _Order
) -> Iterator[Exchange | Unreadable | None]:
    """Yield a file's exchanges, what can't be read, and None for a recording of something else."""
    try:
        with source.open() as file:
            head = file.read(HEAD_BYTES)
            file.seek(0)
            if _begins_a_recording(head, source.path) and read_recording is not None:
                data = file.read(MAX_LINE_BYTES).removeprefix(codecs.BOM_UTF8)
                recording = read_recording(data, source.path.stem)
                if recording is not None:
                    order.add(recording)
                yield recording
                return
            for number, line in read_lines(file):
                try:
                    exchange = decode(line, number)
                    order.add(exchange)
                except InvalidRequest as exc:
                    yield _unreadable(exc, source.path, f"line {number}")
                else:
                    yield exchange
    except InvalidRequest as exc:
        yield _unreadable(exc, source.path)
    except OSError as exc:
        yield Unreadable(f"{source.path}: {exc.strerror}")


def _unreadable(error: InvalidRequest, *places: Path | str) -> Unreadable:
    where = ", ".join(filter(None, (*map(str, places), error.param)))
    return Unreadable(f"{where}: {error.message}")


def _begins_a_recording(head: bytes, path: Path) -> bool:
    """Recognize a recording by its content: one JSON object, usually on many lines."""
    if head.startswith(SQLITE_MAGIC):
        raise InvalidRequest("a database; use `export` to read exchanges from it")
    if begins_an_export(head):
        return False
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if start.partition(b"\n")[0].rstrip() == b"{" or path.suffix == ".json":
        return True
    return start.startswith((b'{"request":', b'{"test_id":'))


def _write(exchanges: Iterable[Exchange], database: Path) -> int:
    """Write the exchanges that the log lacks, group by group; return how many."""
    new: set[str] = set()
    left = iter(exchanges)
    group = list(islice(left, GROUP))
    if not group:
        return 0  # and create no log
    open_store = partial(Store, database)
    with retry_while_locked(open_store, TIMEOUT_S) as store, LogReader(database) as reader:
        while group:
            recorded = _statuses(reader, [exchange.id for exchange in group])
            todo: dict[str, Exchange] = {}
            for exchange in group:
                if _is_more_complete(exchange.status, recorded.get(exchange.id)):
                    recorded[exchange.id] = exchange.status
                    todo[exchange.id] = exchange
            _write_group(store, list(todo.values()))
            new.update(todo)
            group = list(islice(left, GROUP))
    return len(new)


def _write_group(store: Store, exchanges: list[Exchange]) -> None:
    while exchanges:
        write = partial(store.write, exchanges, are_imported=True)
        exchanges = exchanges[retry_while_locked(write, TIMEOUT_S) :]


def _count_new(statuses: Mapping[str, Status], database: Path) -> int:
    if not database.exists():
        return len(statuses)
    with LogReader(database) as reader:
        recorded = _statuses(reader, list(statuses))
    return sum(_is_more_complete(status, recorded.get(id)) for id, status in statuses.items())


def _statuses(reader: LogReader, ids: Sequence[str]) -> dict[str, Status]:
    return {entry.id: entry.status for entry in reader.entries(Filter(ids=tuple(ids)))}


def _is_more_complete(status: Status, recorded: Status | None) -> bool:
    """Another log may have the end of an exchange that was interrupted here (in its spool)."""
    return recorded is None or recorded in ("running", "interrupted") and status != "interrupted"
