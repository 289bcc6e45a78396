"""Benchmark runs in the log: which recorded requests were sent to which models, and how.

The responses are exchanges with the run's `run_id`; their `recorded_id` is the exchange whose
request was sent again.
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
from ..recorder.damage import Damage
from ..recorder.database import Locked, translated
from ..recorder.ids import find_id
from ..recorder.listing import LogListing
from ..recorder.process_lock import ProcessLock
from ..recorder.reader import run_facts
from ..recorder.store import Store, retry_while_locked
from ..recorder.summary import timestamp

LAST = "last"
"""Stands for the latest run; no run can have this name."""

LOCK_S = 5.0  # a user waits; other writers' locks are short
PAUSE_S = 0.05


@dataclass(frozen=True)
class Benchmark:
    """A benchmark run.

    id: a lower-case ULID. name: unique, chosen by the user or made from the time.
    began, ended: UTC; `ended` is None until everything is measured.
    settings: the plan's fields as JSON values.
    """

    id: str
    name: str
    began: datetime
    ended: datetime | None
    settings: Mapping[str, Any]


def save_run(path: Path, run: Benchmark) -> None:
    """Write a new or changed run; create logs.db if it does not exist.

    Raises:
        StoreError: the log can't be written.
        sqlite3.IntegrityError: another run has this name.
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
def claim_run(path: Path, run: Benchmark) -> Iterator[None]:
    """Hold a run's lock: two processes would send each request twice.

    Raises:
        InvalidRequest: another process holds it.
        Unusable: no file can be written beside the log.
    """
    # As with the writer's lock: if this process is killed, the next one removes it.
    lock = ProcessLock(path, run.id)
    try:
        with translated(path):
            lock.claim()
    except Locked as exc:
        raise InvalidRequest(f"the run {run.name!r} is already running in another process") from exc
    try:
        yield
    finally:
        lock.release()


def wait_for_leftovers(path: Path, wait_s: float) -> bool:
    """Wait until a writer has imported the spools of dead processes; return whether it has.

    A writer does so when it starts.
    """
    lock = ProcessLock(path, "")
    until = time.monotonic() + wait_s
    while any(lock.spool_path(id).exists() for id in lock.dead()):
        if time.monotonic() > until:
            return False
        time.sleep(PAUSE_S)
    return True


def find_run(log: LogListing, name: str) -> Benchmark:
    """Return a run by its name, its id or the beginning of that, or the latest one.

    An imported run has exchanges only: its name is its id, and it has no settings. So has one
    whose row is damaged (`log --verify` names it).

    Raises:
        NotFound: there is none; the message lists the runs.
        InvalidRequest: several ids begin with the name.
        Unusable: the file can no longer be read.
    """
    rows = log.rows(
        f"select * from ({_RUNS}) where name = :name or :name = '{LAST}'"
        " order by began desc limit 1",
        {"name": name},
    )
    if not rows and (id := find_id(log.rows, f"select id, id as meant from ({_RUNS})", name)):
        rows = log.rows(f"select * from ({_RUNS}) where id = :id", {"id": id})
    if rows:
        (row,) = rows
        return Benchmark(row["id"], str(row["name"]), **run_facts(row, Damage()))
    names = list_run_names(log)
    hint = f"its runs are {', '.join(names)}" if names else "`llmproxy bench` creates one"
    raise NotFound(f"the log has no run {name!r}; {hint}")


def list_run_names(log: LogListing) -> list[str]:
    """Return the names of all runs, the newest last; ids for imported ones.

    Raises:
        Unusable: the file can no longer be read.
    """
    rows = log.rows(f"select name from ({_RUNS}) order by began", {})
    return [str(row["name"]) for row in rows]


_RUNS = """
    select id, name, began, ended, settings from proxy_runs
    union all
    select run_id, run_id, min(received), max(received), '{}' from proxy_exchanges
    where run_id is not null and run_id not in (select id from proxy_runs) group by run_id
"""
