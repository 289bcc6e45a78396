"""Export exchanges to files, one line of JSON per exchange."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from ..core.errors import NotFound
from ..recorder.exchange import Exchange, encode
from ..recorder.reader import Filter, LogReader
from .anonymize import anonymize


class Unreadable(Exception):
    """A file or a log can't be read; the message has the place in it, and the reason."""


@dataclass(frozen=True)
class Exported:
    """The numbers of exchanges that were written, and of those that were not.

    running: those that have not ended. skipped: those that Llama Stack has no format for.
    replaced: those whose request was repeated, since a recording has only the last response.
    damaged: the ids of those that can't be read completely, with the names of what can't be;
        the rest of them was written, but not as Llama Stack recordings.
    """

    exchanges: int
    running: int = 0
    skipped: int = 0
    replaced: int = 0
    damaged: Mapping[str, Sequence[str]] = field(default_factory=dict)


def export_jsonl(
    reader: LogReader,
    file: BinaryIO,
    filter: Filter,
    *,
    last: int | None = None,
    anonymized: bool = False,
) -> Exported:
    """Write exchanges in the order in which they were received, at most the `last` ones.

    anonymized: replace everything that was said with placeholder text of the same length.

    Raises:
        StoreError, OSError: the log can't be read any more, or the file can't be written.
    """
    running = written = 0
    damaged = {}
    for exchange in exchanges(reader, filter, last):
        if exchange.status == "running":
            running += 1
            continue
        if exchange.damage:
            damaged[exchange.id] = exchange.damage
        file.write(encode(anonymize(exchange) if anonymized else exchange))
        written += 1
    return Exported(written, running, damaged=damaged)


def export_file(
    reader: LogReader,
    path: Path,
    filter: Filter,
    *,
    last: int | None = None,
    anonymized: bool = False,
) -> Exported:
    """Write exchanges to a file, which is readable by the user only and appears when complete.

    Raises:
        Unreadable: the file is the log itself, or as `export_jsonl`.
    """
    if path.exists() and reader.path.exists() and path.samefile(reader.path):
        raise Unreadable(f"{path}: is the log itself")
    with written_whole(path) as file:
        return export_jsonl(reader, file, filter, last=last, anonymized=anonymized)


def exchanges(reader: LogReader, filter: Filter, last: int | None) -> Iterator[Exchange]:
    """Read the exchanges that the filter selects, at most the `last` ones.

    Raises:
        StoreError: the log can't be read any more.
    """
    for id in reader.ids(filter, last=last):
        try:
            yield reader.exchange(id)
        except NotFound:
            pass  # pruned meanwhile


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Write to a temporary file that replaces `path` at the end; pipes are written directly."""
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            yield file
        return
    path = path.resolve()  # so that a link stays a link
    handle, beside = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".part", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            yield file
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise
