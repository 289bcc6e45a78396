"""Requests that were refused and so are no exchange: a wrong key, a foreign Host, a wrong path.

Each is counted. A few a minute are reported with their reason; of a flood, only how many.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from ..core.errors import ProxyError
from ..core.known_keys import KnownKeys
from ..recorder.redact import Redactor
from ..transport.http11 import Request

WINDOW_S = 60.0  # in which at most MAX_REPORTED are reported, and each kind once
MAX_REPORTED = 10
UNREPORTED_PATHS = ("/favicon.ico",)  # browsers ask for it beside every page


@dataclass(frozen=True)
class Refusal:
    """A refused request, or several that were not reported one by one.

    status: of the response; None for several. what: method and path; "" for several, or if the
    bytes were no request. reason: for people, without keys.
    """

    received: datetime
    client: str
    status: int | None
    what: str
    reason: str


class Refusals:
    """Counts refusals and reports them; to be used in the event loop.

    report: called with those that are reported.
    """

    def __init__(self, report: Callable[[Refusal], None], keys: KnownKeys) -> None:
        self.counts: Counter[tuple[int, str]] = Counter()  # by status and kind of error
        self._report = report
        self._keys = keys
        self._reported: set[tuple[int, str, str]] = set()  # in this window
        self._skipped: Counter[int] = Counter()

    def add(self, error: ProxyError, status: int, head: Request | None, client: str) -> str:
        """Count and report a refusal; return its reason, without keys."""
        self.counts[status, error.kind] += 1
        redactor = Redactor(self._keys)
        reason = redactor.line(error.full_message)
        if head is not None and head.path in UNREPORTED_PATHS:
            return reason
        what = "" if head is None else f"{head.method[:20]} {redactor.line(head.path[:200])}"
        kind = (status, client, what)
        if kind in self._reported or len(self._reported) >= MAX_REPORTED:
            self._skipped[status] += 1
            return reason
        if not self._reported:
            asyncio.get_running_loop().call_later(WINDOW_S, self._end_window)
        self._reported.add(kind)
        self._report(Refusal(datetime.now(UTC), redactor.line(client), status, what, reason))
        return reason

    def _end_window(self) -> None:
        skipped, self._skipped = self._skipped, Counter()
        self._reported.clear()
        if skipped:
            by_status = ", ".join(f"{count:,} × {status}" for status, count in skipped.items())
            reason = f"{skipped.total():,} more in the last minute: {by_status}"
            self._report(Refusal(datetime.now(UTC), "-", None, "", reason))
