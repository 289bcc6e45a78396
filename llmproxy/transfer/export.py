"""Exchanges on their way between databases: out to files, and in without doubles.

A file has a line for each exchange (lines.py), or is a Llama Stack recording. What is
taken in is checked whole before any of it is written. An exchange is known by its id, so
that nothing comes in twice; and in whichever order they come, threads, forks and tips are
the same in the end, also where an import was killed and run again.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..core.errors import NotFound
from ..recorder.exchange import Exchange, encode
from ..recorder.reader import Filter, LogReader
from .anonymize import anonymize

__all__ = [
    "Exported",
    "Unreadable",
    "export_lines",
    "export_to",
]


class Unreadable(Exception):
    """What can't be moved: says which file or log, the place in it, and why."""


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
    history: LogReader,
    file: BinaryIO,
    only: Filter,
    *,
    last: int | None = None,
    anonymized: bool = False,
) -> Exported:
    """Write exchanges in the order in which they were received, at most the `last` ones.

    anonymized: with placeholder text of the same length for everything that was said.

    Raises:
        Unreadable: one of them is damaged.
        StoreError, OSError: the log can't be read any more, or the file not written.
    """
    running = written = 0
    for exchange in exchanges(history, only, last):
        if exchange.status == "running":
            running += 1
            continue
        file.write(encode(anonymize(exchange) if anonymized else exchange))
        written += 1
    return Exported(written, running)


def export_to(
    history: LogReader,
    path: Path,
    only: Filter,
    *,
    last: int | None = None,
    anonymized: bool = False,
) -> Exported:
    """Write a file as `export_lines` does, for its owner alone; it is there only when whole.

    Raises:
        Unreadable: the file is the log itself; and as `export_lines`.
    """
    if path.exists() and history.path.exists() and path.samefile(history.path):
        raise Unreadable(f"{path}: is the log itself")
    with written_whole(path) as file:
        return export_lines(history, file, only, last=last, anonymized=anonymized)


def exchanges(history: LogReader, only: Filter, last: int | None) -> Iterator[Exchange]:
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
def written_whole(path: Path) -> Iterator[BinaryIO]:
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
