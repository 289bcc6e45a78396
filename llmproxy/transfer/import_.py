"""Import exchanges from files without creating duplicates.

Exchanges are known by their ids. In whichever order they are imported, even if an import is
killed and run again, threads, forks and tips are the same in the end.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

from ..core.circles import find_circles
from ..core.errors import InvalidRequest
from ..recorder.exchange import Exchange, Status
from ..recorder.reader import Filter, LogReader, check_llm
from ..recorder.store import Store, retry_while_locked
from .export import Unreadable
from .jsonl import decode

MAX_LINE_BYTES = 2**29  # a body with a few photos is in it twice, and escaped
GROUP = 16  # exchanges in memory at once; a transaction ends sooner if they are long
TIMEOUT_S = 60.0  # the user waits, and other writers' locks are short
COPY_BYTES = 2**20  # of a pipe, read at once


ReadRecording = Callable[[bytes, str], Exchange | None]
"""Reads another project's recording of an exchange: the file's bytes, and its name without the
ending. Returns None for a recording of something other than a chat."""


@dataclass(frozen=True)
class Imported:
    """The numbers of exchanges that were imported, or would be.

    new: imported. there: were in the log already. skipped: recordings of something other
        than a chat.
    """

    new: int
    there: int
    skipped: int


def import_files(
    paths: Sequence[Path],
    database: Path,
    *,
    read_recording: ReadRecording | None = None,
    dry_run: bool = False,
) -> Imported:
    """Import the exchanges of files into a logs.db.

    All files are checked before anything is written. An exchange that is in the log already
    stays as it is, unless it was interrupted there and is complete in the file. A file may be
    a pipe; since files are read twice, its content is buffered, on disk if it is large.

    read_recording: reads a file that is a single recording; without it only JSON lines are read.
    dry_run: only check and count.

    Raises:
        Unreadable: a file can't be read, or is damaged or in another format; nothing was written.
        Unusable: it is not a database, or a newer llm's or llmproxy's; nothing was written.
        Locked: another program was writing for a minute; what was imported so far stays.
    """
    if database.exists():
        check_llm(database)
    with ExitStack() as stack:
        sources = [_Source(path, stack) for path in paths]
        statuses: dict[str, Status] = {}
        previous: dict[str, str | None] = {}
        count = skipped = 0
        for exchange in _read(sources, read_recording):
            if exchange is None:
                skipped += 1
                continue
            count += 1
            if _is_more_complete(exchange.status, statuses.get(exchange.id)):
                statuses[exchange.id] = exchange.status
                previous[exchange.id] = exchange.previous_id
        _check_order(previous, database)
        if dry_run:
            new = _count_new(statuses, database)
        else:
            read = (exchange for exchange in _read(sources, read_recording) if exchange is not None)
            new = _write(read, database)
    return Imported(new, count - new, skipped)


class _Source:
    """A file that can be read twice, even if it is a pipe."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.path = path
        self._held: BinaryIO | None = None
        with _readable(path):
            if path.exists() and not path.is_file() and not path.is_dir():
                self._held = stack.enter_context(tempfile.TemporaryFile())
                with path.open("rb") as pipe:
                    shutil.copyfileobj(pipe, self._held, COPY_BYTES)

    def open(self) -> AbstractContextManager[BinaryIO]:
        if self._held is None:
            return self.path.open("rb")
        self._held.seek(0)
        return nullcontext(self._held)


@contextmanager
def _readable(path: Path, place: str = "") -> Iterator[None]:
    """Raise errors in a file as Unreadable, with its name and the place."""
    try:
        yield
    except InvalidRequest as exc:
        where = ", ".join(filter(None, (str(path), place, exc.param)))
        raise Unreadable(f"{where}: {exc.message}") from exc
    except OSError as exc:
        raise Unreadable(f"{path}: {exc.strerror}") from exc


def _read(
    sources: Iterable[_Source], read_recording: ReadRecording | None
) -> Iterator[Exchange | None]:
    """Yield the files' exchanges, and None for recordings of something else."""
    for source in sources:
        with _readable(source.path), source.open() as file:
            first = file.readline(MAX_LINE_BYTES)
            if _begins_a_recording(first, source.path) and read_recording is not None:
                yield read_recording(first + file.read(MAX_LINE_BYTES), source.path.stem)
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
    """Recognize a recording by its content: one JSON object, usually on many lines."""
    if line.startswith(b"SQLite format 3\0"):
        raise InvalidRequest("a database; use `export` to read exchanges from it")
    start = line.lstrip()[:64]
    if start.rstrip() == b"{" or path.suffix == ".json" and not start.startswith(b'{"id":'):
        return True
    return start.startswith((b'{"request":', b'{"test_id":'))


def _check_order(previous: Mapping[str, str | None], database: Path) -> None:
    """Check that no exchange would continue itself, through others of the files or the log.

    The order of the ids does not show it: clocks can be set back.

    Raises:
        Unreadable: one would.
    """
    recorded: dict[str, str | None] = {}
    if database.exists():
        with LogReader(database) as reader:
            rows = reader.rows(_PREVIOUS, {"ids": json.dumps(list(set(previous.values())))})
        recorded = {row["id"]: row["previous_id"] for row in rows}
    for circle in find_circles({**recorded, **previous}):
        for id in circle:
            if id in previous:
                raise Unreadable(
                    f"exchange {id}, previous_id: {previous[id]} can't come before it, because it"
                    " continues it, directly or through others"
                )


_PREVIOUS = """
    with recursive before (id) as (
        select value from json_each(:ids) where value is not null
        union
        select previous_id from before join proxy_exchanges using (id)
        where previous_id is not null
    )
    select id, previous_id from before join proxy_exchanges using (id)
"""


def _write(exchanges: Iterable[Exchange], database: Path) -> int:
    """Write the exchanges that the log lacks, group by group; return how many."""
    new: set[str] = set()
    open_store = partial(Store, database)
    with retry_while_locked(open_store, TIMEOUT_S) as store, LogReader(database) as reader:
        left = iter(exchanges)
        while group := list(islice(left, GROUP)):
            recorded = _statuses(reader, [exchange.id for exchange in group])
            todo: dict[str, Exchange] = {}
            for exchange in group:
                if _is_more_complete(exchange.status, recorded.get(exchange.id)):
                    recorded[exchange.id] = exchange.status
                    todo[exchange.id] = exchange
            _write_group(store, list(todo.values()))
            new.update(todo)
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
