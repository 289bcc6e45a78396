"""Delete exchanges of a certain age from a log, once a day while a server runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ..core.threads import in_daemon_thread
from .database import StoreError
from .listing import Filter
from .prune import prune

DAY_S = 24 * 3600.0

_log = logging.getLogger("llmproxy")


async def delete_daily(path: Path, keep: timedelta, warn: Callable[[str], None]) -> None:
    """Delete what is older than `keep`, now and once a day, until cancelled.

    It happens in a thread, as `prune` does it: the log's writer spools meanwhile.

    What was deleted is logged to the logger "llmproxy", as information.

    warn: called with the reason why nothing could be deleted.
    """
    while True:
        await in_daemon_thread(lambda: _delete(path, keep, warn), "llmproxy-retention")
        await asyncio.sleep(DAY_S)


def _delete(path: Path, keep: timedelta, warn: Callable[[str], None]) -> None:
    if not path.exists():
        return
    try:
        pruned = prune(path, Filter(until=oldest_kept(keep)))
    except StoreError as exc:
        warn(f"old exchanges could not be deleted (--keep): {exc}")
        return
    if pruned.exchanges:
        _log.info(
            "deleted exchanges before %s (--keep): %s", f"{oldest_kept(keep):%Y-%m-%d}", pruned
        )


def oldest_kept(keep: timedelta) -> datetime:
    """Return the time before which nothing is kept; the calendar's first day at the earliest."""
    try:
        return datetime.now(UTC) - keep
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)
