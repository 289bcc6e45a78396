"""Show other processes on the same logs.db that this one is alive.

Each process keeps a file beside logs.db locked until it ends, however it ends. The lock is
SQLite's, on an empty database: it works the same on every system, and child processes don't
inherit it.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

# Another process holds our lock for a moment when it checks whether we are alive.
CLAIM_TIMEOUT_S = 2.0


class ProcessLock:
    """The lock of one process that writes to a logs.db.

    id: unique among processes; letters and digits.
    """

    def __init__(self, database: Path, id: str) -> None:
        self.id = id
        self._database = database
        self._lock: sqlite3.Connection | None = None

    def spool_path(self, id: str | None = None) -> Path:
        """Return the path of a process's spool; this one's if `id` is None."""
        return self._beside(id or self.id, "jsonl")

    def claim(self) -> None:
        """Take the lock if it isn't held yet, or if its file has been deleted.

        Raises:
            OSError, sqlite3.Error: the file can't be created or locked.
        """
        path = self._beside(self.id, "lock")
        if self._lock is not None and not path.exists():
            self._lock.close()
            self._lock = None
        while self._lock is None:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            made = path.stat().st_ino
            lock = _locked(path, CLAIM_TIMEOUT_S)
            # In between, another process may have removed the file as left behind.
            if path.exists() and path.stat().st_ino == made:
                self._lock = lock
            else:
                lock.close()

    def release(self) -> None:
        """Release the lock and delete its file."""
        if self._lock is not None:
            self._beside(self.id, "lock").unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def dead(self) -> list[str]:
        """Return the ids of processes that are gone but left a lock file or a spool behind."""
        start = f"{self._database.name}-llmproxy-"
        names = [path.stem for path in self._database.parent.iterdir()]
        ids = {name.removeprefix(start) for name in names if name.startswith(start)}
        return sorted(id for id in ids if not self.is_alive(id))

    def is_alive(self, id: str) -> bool:
        """Check whether a process is alive; this one is."""
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

    def was_killed(self, id: str) -> bool:
        """Check whether a process that is gone had no time to delete its lock file."""
        return self._beside(id, "lock").exists()

    def forget(self, id: str) -> None:
        """Delete the files of a process that is gone, whose spool has been written."""
        self._beside(id, "lock").unlink(missing_ok=True)
        self.spool_path(id).unlink(missing_ok=True)

    def _beside(self, id: str, ending: str) -> Path:
        return self._database.with_name(f"{self._database.name}-llmproxy-{id}.{ending}")


def _locked(path: Path, timeout_s: float) -> sqlite3.Connection:
    # May be closed by another thread than the one that opened it.
    connection = sqlite3.connect(
        path, timeout=timeout_s, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA journal_mode = off")  # it would be another file
        connection.execute("BEGIN EXCLUSIVE")
    except BaseException:
        connection.close()
        raise
    return connection
