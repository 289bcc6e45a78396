"""Benchmarks in the log: a run is what asked recorded requests of models again, and how.

What the models answered are exchanges with its `run_id`; `recorded_id` is what each asked
again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ..core.errors import InvalidRequest, NotFound
from ..recorder.process_lock import ProcessLock
from ..recorder.reader import LogReader
from ..recorder.store import Locked, Store, retry_while_locked, timestamp, translated

__all__ = [
    "LAST",
    "Benchmark",
    "claimed",
    "find_run",
    "run_names",
    "save_run",
    "wait_for_leftovers",
]

LAST = "last"
"""The word for the run that began last, which is no run's name."""

LOCK_S = 5.0  # a person waits; other writers' locks are short
PAUSE_S = 0.05


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's run.

    id: a lower-case ULID; name: the user's own, or made of the time; no two have one.
    began, ended: UTC; `ended` is None until all of it is measured.
    settings: by the names of the command's flags, as JSON values.
    """

    id: str
    name: str
    began: datetime
    ended: datetime | None
    settings: Mapping[str, Any]


def save_run(path: Path, run: Benchmark) -> None:
    """Write a run, or what has changed of it; a logs.db that is not there yet is made.

    Raises:
        StoreError: the log can't be written.
        sqlite3.IntegrityError: another run has its name.
    """
    values = {
        "name": run.name,
        "began": timestamp(run.began),
        "ended": run.ended and timestamp(run.ended),
        "settings": json.dumps(run.settings),
    }

    def write() -> None:
        with Store(path) as store:
            store.write_run(run.id, values)

    retry_while_locked(write, LOCK_S)


@contextmanager
def claimed(path: Path, run: Benchmark) -> Iterator[None]:
    """Have a run for this process alone: two would ask everything twice.

    Raises:
        InvalidRequest: another process has it.
        Unusable: nothing can be written beside the log.
    """
    # As who writes has it: where this process is killed, the next one takes the lock away.
    owner = ProcessLock(path, run.id)
    try:
        with translated(path):
            owner.claim()
    except Locked as exc:
        raise InvalidRequest(f"the run {run.name!r} is under way in another process") from exc
    try:
        yield
    finally:
        owner.release()


def wait_for_leftovers(path: Path, wait_s: float) -> bool:
    """Wait until a writer has taken in what dead processes could not write; say whether it has.

    A writer does so when it starts.
    """
    owner = ProcessLock(path, "")
    until = time.monotonic() + wait_s
    while any(owner.spool_path(id).exists() for id in owner.dead()):
        if time.monotonic() > until:
            return False
        time.sleep(PAUSE_S)
    return True


def find_run(history: LogReader, name: str) -> Benchmark:
    """Read a run by its name or id, or the last one.

    Of a run that was imported there are exchanges alone: its name is its id then, and it has
    no settings.

    Raises:
        NotFound: there is none; the message says which there are.
        Unusable: the file can't be read any more.
    """
    which = "true" if name == LAST else ":name in (id, name)"
    rows = history.rows(
        f"select * from ({_RUNS}) where {which} order by began desc limit 1", {"name": name}
    )
    if rows:
        (row,) = rows
        return Benchmark(
            row["id"],
            row["name"],
            datetime.fromisoformat(row["began"]),
            row["ended"] and datetime.fromisoformat(row["ended"]),
            json.loads(row["settings"]),
        )
    names = run_names(history)
    there = f"there are {', '.join(names)}" if names else "`bench` makes one"
    raise NotFound(f"the log has no run {name!r}; {there}")


def run_names(history: LogReader) -> list[str]:
    """The names of all runs, the newest last; of one that was imported its id.

    Raises:
        Unusable: the file can't be read any more.
    """
    rows = history.rows(f"select name from ({_RUNS}) order by began", {})
    return [row["name"] for row in rows]


_RUNS = """
    select id, name, began, ended, settings from proxy_runs
    union all
    select run_id, run_id, min(received), max(received), '{}' from proxy_exchanges
    where run_id is not null and run_id not in (select id from proxy_runs) group by run_id
"""
