"""The spool: exchanges on disk while logs.db can't take them, a line of JSON each.

It stands beside logs.db, one for each owner, and is taken in by its owner when the
database is back, or by whoever starts after the owner is gone. Taking in a line again
changes nothing, so that no moment to be killed in is a wrong one.
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

__all__ = ["Spool", "read"]

MAX_SPOOL_BYTES = 2**30  # whole requests: some thousand long ones; a person has been warned


class Spool:
    """This owner's spool; made with its first exchange, for its owner alone."""

    def __init__(self, owner: ProcessLock) -> None:
        self.owner = owner
        self.path = owner.spool_path()

    def append(self, exchange: Exchange) -> None:
        """Write an exchange behind the others, or not at all.

        Raises:
            OSError: there can be no file, or no more of it.
            Exception: whatever an exchange that has no JSON raises.
        """
        owned = replace(exchange, owner=exchange.owner or self.owner.id)
        line = encode(owned)
        self._claim()
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
        """Say whether there can be a file at all."""
        try:
            self._claim()
        except OSError:
            return False
        return True

    def _claim(self) -> None:
        """Be known as alive, or a neighbour would take the file for a dead one's."""
        try:
            self.owner.claim()
        except sqlite3.Error as exc:
            raise OSError(str(exc)) from exc

    def is_empty(self) -> bool:
        """Say whether there is nothing to take in."""
        return not self.path.exists()

    def size(self) -> int:
        """How many bytes wait in it."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def clear(self) -> None:
        """Forget what was taken in."""
        self.path.unlink(missing_ok=True)


def read(path: Path) -> Iterator[Exchange | None]:
    """Give a spool's exchanges in order, and None for a line that is none.

    The last line is none where its writer was killed over it; nobody had been told that
    it was written.

    Raises:
        OSError: it can't be read.
    """
    with path.open("rb") as lines:
        for line in lines:
            try:
                yield from_json(json.loads(line))
            except (ValueError, TypeError, KeyError, RecursionError):
                yield None
