"""The spool: a file of exchanges that logs.db can't take now, one line of JSON each.

Each process has its own, beside logs.db. Its writer writes it to the database when that is
possible again; if the process is gone, the next one that starts does. Writing a line twice
changes nothing, so a process may be killed at any moment.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from .exchange import Exchange, encode, from_json
from .process_lock import ProcessLock

MAX_SPOOL_BYTES = 2**30  # some thousand long requests; the user has been warned by then


class Spool:
    """This process's spool; created with its first exchange, readable by the user only."""

    def __init__(self, owner: ProcessLock) -> None:
        self.owner = owner
        self.path = owner.spool_path()
        self._is_made = False

    def append(self, exchange: Exchange) -> None:
        """Append an exchange; if that fails, the file stays as it was.

        Raises:
            OSError: the file can't be written, or is full.
            Exception: whatever an exchange without a JSON form raises.
        """
        owned = replace(exchange, owner=exchange.owner or self.owner.id)
        line = encode(owned)
        self._claim()
        self._is_made = True
        file = os.open(self.path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
        try:
            size = os.fstat(file).st_size
            if size + len(line) > MAX_SPOOL_BYTES:
                raise OSError(f"{self.path} is full")
            try:
                written = os.write(file, line)
                if written < len(line):
                    raise OSError(f"only {written} bytes of {len(line)} were written")
            except OSError:
                os.truncate(file, size)
                raise
        finally:
            os.close(file)

    def is_possible(self) -> bool:
        """Check whether a spool can be created."""
        try:
            self._claim()
        except OSError:
            return False
        return True

    def _claim(self) -> None:
        """Take our process lock, or another process would treat the file as left behind."""
        try:
            self.owner.claim()
        except sqlite3.Error as exc:
            raise OSError(str(exc)) from exc

    def is_empty(self) -> bool:
        """Check whether there are no exchanges to write."""
        return not self._is_made or not self.path.exists()

    def size(self) -> int:
        """Return its size in bytes."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def clear(self) -> None:
        """Delete the file, whose exchanges have been written."""
        self.path.unlink(missing_ok=True)
        self._is_made = False


def read(path: Path) -> Iterator[Exchange | None]:
    """Yield a spool's exchanges in order, and None for a line that is not an exchange.

    The last line is incomplete if the process was killed while writing it; then no client
    was told that it is written.

    Raises:
        OSError: the file can't be read.
    """
    with path.open("rb") as lines:
        for line in lines:
            try:
                yield from_json(json.loads(line))
            except (ValueError, TypeError, KeyError, RecursionError):
                yield None
