"""Who writes: several processes may share one logs.db, and each must know who is still there.

An owner keeps a file beside logs.db locked for as long as its process lives, whatever
ends it. The lock is SQLite's, on an empty database: it works alike on every system, and
a child process does not inherit it.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

__all__ = ["ProcessLock"]

# A neighbour that looks whether we live holds our lock for an instant.
CLAIM_TIMEOUT_S = 2.0


class ProcessLock:
    """This process, as its neighbours on the same logs.db know it.

    id: in no other process's use, and made of letters and digits.
    """

    def __init__(self, database: Path, id: str) -> None:
        self.id = id
        self._database = database
        self._lock: sqlite3.Connection | None = None

    def spool_path(self, id: str | None = None) -> Path:
        """Say where an owner's exchanges are when logs.db can't take them; this one's if None."""
        return self._beside(id or self.id, "jsonl")

    def claim(self) -> None:
        """Take the lock, or keep it; make it anew where somebody has deleted its file.

        Raises:
            OSError, sqlite3.Error: no file can be made or locked there.
        """
        path = self._beside(self.id, "lock")
        if self._lock is not None and not path.exists():
            self._lock.close()
            self._lock = None
        while self._lock is None:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            made = path.stat().st_ino
            lock = _locked(path, CLAIM_TIMEOUT_S)
            # Between the two a neighbour may have taken it for a dead one's and removed it.
            if path.exists() and path.stat().st_ino == made:
                self._lock = lock
            else:
                lock.close()

    def release(self) -> None:
        """Give the lock back, and take its file away."""
        if self._lock is not None:
            self._beside(self.id, "lock").unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def dead(self) -> list[str]:
        """Name the owners that are gone and have left their lock or their spool behind."""
        start = f"{self._database.name}-llmproxy-"
        names = [path.stem for path in self._database.parent.iterdir()]
        ids = {name.removeprefix(start) for name in names if name.startswith(start)}
        return sorted(id for id in ids if not self.is_alive(id))

    def is_alive(self, id: str) -> bool:
        """Say whether an owner's process is there; this one's is."""
        path = self._beside(id, "lock")
        if id == self.id:
            return True
        if not path.exists():
            return False
        try:
            _locked(path, 0).close()
        except sqlite3.OperationalError:
            return True
        return False

    def forget(self, id: str) -> None:
        """Take away what a dead owner left; its spool has been taken in."""
        self._beside(id, "lock").unlink(missing_ok=True)
        self.spool_path(id).unlink(missing_ok=True)

    def _beside(self, id: str, ending: str) -> Path:
        return self._database.with_name(f"{self._database.name}-llmproxy-{id}.{ending}")


def _locked(path: Path, timeout_s: float) -> sqlite3.Connection:
    # Closed by whichever thread is the last.
    connection = sqlite3.connect(
        path, timeout=timeout_s, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA journal_mode = off")  # it would stand beside the lock
        connection.execute("BEGIN EXCLUSIVE")
    except BaseException:
        connection.close()
        raise
    return connection
