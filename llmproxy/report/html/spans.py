"""Draw when exchanges waited and when they streamed, from their recorded times.

All rows of a conversation have one axis. Long pauses between exchanges, in which a person thought
or a tool ran, are drawn short, and their lengths are written at the head.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from ...recorder.summary import ExchangeSummary
from .. import numbers
from . import markup

WIDTH = 1000  # units of the axis
HEIGHT = 12
LEAST_WIDTH = 4  # of a bar: a short one must be seen
PAUSE_WIDTH = 24  # of a pause that is drawn short
LONG_PAUSE = 0.15  # of all the time in which something ran
LEAST_PAUSE_MS = 1_000
MAX_NAMED = 6  # pauses whose lengths are written
MAX_TICKS = 200  # events that are drawn

FAILED = "Failed after"  # the name of a part in which an exchange failed


@dataclass(frozen=True)
class Span:
    """When an exchange ran, in milliseconds from the start of the first.

    queued, first: when its queue ended and its first event came; None if it was not so.
    """

    start: float
    end: float
    queued: float | None = None
    first: float | None = None


def span_of(entry: ExchangeSummary, origin: datetime) -> Span | None:
    """Return the span of an exchange, None if its times are not known."""
    if not entry.is_timed or entry.duration_ms is None:
        return None
    start = (entry.received - origin).total_seconds() * 1000
    return Span(
        start,
        start + entry.duration_ms,
        None if entry.queue_ms is None else start + entry.queue_ms,
        None if entry.ttft_ms is None else start + entry.ttft_ms,
    )


class Timeline:
    """The axis of some spans, on which long pauses are short."""

    def __init__(self, spans: Sequence[Span]) -> None:
        busy = _merged(spans)
        total = sum(end - start for start, end in busy)
        long_ms = max(total * LONG_PAUSE, LEAST_PAUSE_MS)
        groups: list[list[float]] = []
        self.pauses: list[tuple[float, float]] = []  # where each is drawn, and its length
        for start, end in busy:
            if groups and start - groups[-1][1] <= long_ms:
                groups[-1][1] = end
            else:
                groups.append([start, end])
        self._groups = groups
        shown_ms = sum(end - start for start, end in groups) or 1.0
        gaps = max(len(groups) - 1, 0)
        pause = min(PAUSE_WIDTH, WIDTH / 2 / gaps) if gaps else 0.0
        self._scale = (WIDTH - pause * gaps) / shown_ms
        self._offsets: list[float] = []
        place = 0.0
        for index, (start, end) in enumerate(groups):
            if index:
                self.pauses.append((place, start - groups[index - 1][1]))
                place += pause
            self._offsets.append(place)
            place += (end - start) * self._scale
        self._pause = pause
        self.shown_ms = shown_ms

    def at(self, ms: float) -> float:
        """Return where a time is drawn."""
        if not self._groups:
            return 0.0
        index = max(bisect_right([start for start, _ in self._groups], ms) - 1, 0)
        start, end = self._groups[index]
        place = self._offsets[index] + (min(max(ms, start), end) - start) * self._scale
        return min(max(place, 0.0), float(WIDTH))

    def row(self, span: Span, label: str, *, is_failed: bool) -> str:
        """Draw one exchange: the queue, the wait for the first event, the stream.

        is_failed: the last part, in which it failed, is marked.
        """
        first = span.end if span.first is None else span.first
        queued = span.start if span.queued is None else min(span.queued, first)
        parts = [
            ("queue", span.start, queued),
            ("wait", queued, first),
            ("stream", first, span.end),
        ]
        if span.first is None:
            parts.pop()
        if is_failed:
            parts[-1] = ("failed", *parts[-1][1:])
        bars = "".join(
            _bar(kind, self.at(start), self.at(end))
            for kind, start, end in parts
            if end > start or kind == "failed"  # also if it failed at its first event
        )
        if not bars:
            bars = _bar("wait", self.at(span.start), self.at(span.end))
        return _svg(label, self._pauses() + bars)

    def head(self) -> str:
        """Say how long everything took, and how long the pauses were."""
        named = [numbers.duration(ms) for _, ms in self.pauses[:MAX_NAMED]]
        more = len(self.pauses) - len(named)
        pauses = ", ".join(named) + (f" and {more} more" if more > 0 else "")
        busy = numbers.duration(self.shown_ms)
        return f"{busy} of requests" + (f"; drawn short: pauses of {pauses}" if pauses else "")

    def _pauses(self) -> str:
        return "".join(
            f'<rect class="pause" x="{_n(x)}" y="0" width="{_n(self._pause)}" height="{HEIGHT}"/>'
            for x, _ in self.pauses
        )


def waterfall(entry: ExchangeSummary, ticks_ms: Sequence[float]) -> str:
    """Draw one exchange over its whole width, with a line for each of its events."""
    span = span_of(entry, entry.received)
    if span is None or span.end <= 0:
        return ""
    line = Timeline([span])
    shown = ticks_ms[:: max(-(-len(ticks_ms) // MAX_TICKS), 1)]
    events = "".join(
        f'<rect class="tick" x="{_n(line.at(at))}" y="2" width="1.5" height="{HEIGHT - 4}"/>'
        for at in shown
    )
    svg = line.row(span, "; ".join(map(" ".join, phases(entry))), is_failed=is_failed(entry))
    return svg.replace("</svg>", f"{events}</svg>")


def is_failed(entry: ExchangeSummary) -> bool:
    """Return whether an exchange failed; one that its client ended did not."""
    return entry.status in ("error", "interrupted")


def phases(entry: ExchangeSummary) -> Iterable[tuple[str, str]]:
    """Yield the parts of an exchange's time with their lengths: queue, wait, stream.

    The last one is named by `FAILED` if it failed.
    """
    queued = entry.queue_ms or 0.0
    if entry.queue_ms is not None:
        yield "Queue", numbers.seconds(queued)
    if entry.duration_ms is None:
        return
    failed = FAILED if is_failed(entry) else None
    if entry.ttft_ms is None:
        yield failed or "Waiting", numbers.seconds(max(entry.duration_ms - queued, 0.0))
        return
    yield "Waiting", numbers.seconds(max(entry.ttft_ms - queued, 0.0))
    yield failed or "Streaming", numbers.seconds(max(entry.duration_ms - entry.ttft_ms, 0.0))


def _merged(spans: Sequence[Span]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for span in sorted(spans, key=lambda one: one.start):
        if merged and span.start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], span.end)
        else:
            merged.append((span.start, span.end))
    return merged


def _bar(kind: str, start: float, end: float) -> str:
    width = max(end - start, LEAST_WIDTH)
    x = min(start, WIDTH - width)
    return f'<rect class="{kind}" x="{_n(x)}" y="1" width="{_n(width)}" height="{HEIGHT - 2}"/>'


def _svg(label: str, body: str) -> str:
    return (
        f'<svg class="span" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img"'
        f' aria-label="{markup.text(label)}">{body}</svg>'
    )


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
