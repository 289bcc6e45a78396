"""Export exchanges to files, one line of JSON per exchange."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from ..core.errors import NotFound
from ..recorder.exchange import Exchange, encode
from ..recorder.listing import Filter
from ..recorder.reader import LogReader
from .anonymize import anonymize
from .jsonl import indent

SQLITE_MAGIC = b"SQLite format 3\0"
MAX_PREFIX_CHARS = 40  # of a temporary file's name, which may have 255 bytes


class Unreadable(Exception):
    """A file or a log can't be read; the message has the place in it, and the reason."""


@dataclass(frozen=True)
class Exported:
    """The numbers of exchanges that were written, and of those that were not.

    running: those that have not ended. skipped: those that Llama Stack has no format for.
    replaced: those whose request was repeated, since a recording has only the last response.
    damaged: the ids of those that can't be read completely, with the names of what can't be;
        the rest of them was written, but not as Llama Stack recordings.
    unnamed: those whose id can't be read, and so nothing of them.
    """

    exchanges: int
    running: int = 0
    skipped: int = 0
    replaced: int = 0
    damaged: Mapping[str, Sequence[str]] = field(default_factory=dict)
    unnamed: int = 0


def export_jsonl(
    reader: LogReader,
    file: BinaryIO,
    filter: Filter,
    *,
    last: int | None = None,
    anonymized: bool = False,
    indented: bool = False,
) -> Exported:
    """Write exchanges in the order in which they were received, at most the `last` ones.

    The same exchanges always give the same bytes, also of a log that they were imported into.

    anonymized: replace everything that was said with placeholder text of the same length.
    indented: write a member on each line, to be reviewed, instead of an exchange.

    Raises:
        StoreError, OSError: the log can't be read any more, or the file can't be written.
    """
    running = written = 0
    damaged = {}
    ids = reader.ids(filter, last=last)
    for exchange in exchanges(reader, ids):
        if exchange.status == "running":
            running += 1
            continue
        if exchange.damage:
            damaged[exchange.id] = exchange.damage
        line = encode(anonymize(exchange) if anonymized else exchange)
        file.write(indent(line) if indented else line)
        written += 1
    return Exported(written, running, damaged=damaged, unnamed=ids.count(""))


def export_file(
    reader: LogReader,
    path: Path,
    filter: Filter,
    *,
    last: int | None = None,
    anonymized: bool = False,
    indented: bool = False,
) -> Exported:
    """Write exchanges to a file, which is readable by the user only and appears when complete.

    Whatever goes wrong, a file that exists stays as it was. It also does if nothing would be
    written to it.

    Raises:
        NotFound: there is nothing to write, and the file has content.
        Unreadable: the file is a database, or as `export_jsonl`.
    """
    _check_is_replaceable(path, reader.path)
    with written_whole(path) as file:
        exported = export_jsonl(
            reader, file, filter, last=last, anonymized=anonymized, indented=indented
        )
        if not exported.exchanges and path.is_file() and path.stat().st_size:
            raise NotFound(f"no exchange that has ended matches; {path} was left as it is")
    return exported


def _check_is_replaceable(path: Path, log: Path) -> None:
    """Refuse a log and the files beside it: another word order would replace them."""
    if not path.is_file():
        return
    for name in (log, *(Path(f"{log}{ending}") for ending in ("-wal", "-shm"))):
        if name.exists() and path.samefile(name):
            raise Unreadable(f"{path}: is the log itself")
    with path.open("rb") as file:
        if file.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC:
            raise Unreadable(f"{path}: is a database")


def exchanges(reader: LogReader, ids: Iterable[str]) -> Iterator[Exchange]:
    """Read exchanges, without those that are gone or have no id.

    Raises:
        StoreError: the log can't be read any more.
    """
    for id in filter(None, ids):
        try:
            yield reader.exchange(id)
        except NotFound:
            pass  # pruned meanwhile


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Write to a temporary file that replaces `path` at the end; pipes are written directly.

    Raises:
        OSError: the file can't be written, with its name; it stays as it was.
    """
    try:
        if path.exists() and not path.is_file():
            with path.open("wb") as file:
                yield file
        else:
            yield from _replacing(path.resolve())  # so that a link stays a link
    except OSError as exc:
        exc.filename = str(path)
        raise


def _replacing(path: Path) -> Iterator[BinaryIO]:
    handle, beside = tempfile.mkstemp(
        prefix=f"{path.name[:MAX_PREFIX_CHARS]}.", suffix=".part", dir=path.parent
    )
    try:
        with open(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(handle)  # or a crash soon after could leave an empty file in its place
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise
