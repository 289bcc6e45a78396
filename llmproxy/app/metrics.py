"""What a server has done, for Prometheus: counters, histograms and the gauges it is given.

Spec: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..recorder.exchange import ExchangeSummary

__all__ = ["METRICS_TYPE", "Gauge", "Metrics"]

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

TTFT_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
DURATION_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Gauge:
    """Something that goes up and down: its name without the prefix, what it is, how much."""

    name: str
    help: str
    value: float


@dataclass
class _Histogram:
    """Values by the first bucket that holds them; the last place is for those beyond."""

    buckets: Sequence[float]
    counts: list[int] = field(default_factory=list)
    sum: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.buckets) + 1)

    def observe(self, value: float) -> None:
        place = next((i for i, most in enumerate(self.buckets) if value <= most), -1)
        self.counts[place] += 1
        self.sum += value


class Metrics:
    """Counts exchanges that are over.

    Models are known by llm's ids, of which there are so many; what clients write is not
    counted by its name. Requests that no model answered have none.
    """

    def __init__(self) -> None:
        self._requests: Counter[Labels] = Counter()
        self._tokens: Counter[Labels] = Counter()
        self._ttft: dict[Labels, _Histogram] = {}
        self._duration: dict[Labels, _Histogram] = {}
        self._queue: dict[Labels, _Histogram] = {}

    def count(self, entry: ExchangeSummary) -> None:
        """Count an exchange that has ended."""
        model = entry.model_used or ""
        which: Labels = (("dialect", entry.dialect), ("model", model))
        code = "" if entry.http_status is None else f"{entry.http_status}"
        self._requests[(*which, ("status", entry.status), ("code", code))] += 1
        for kind in ("input", "output", "cached", "reasoning"):
            tokens = getattr(entry.usage, f"{kind}_tokens")
            if tokens:
                self._tokens[(*which, ("type", kind))] += tokens
        for histograms, buckets, ms in (
            (self._ttft, TTFT_BUCKETS_S, entry.ttft_ms),
            (self._duration, DURATION_BUCKETS_S, entry.duration_ms),
            (self._queue, TTFT_BUCKETS_S, entry.queue_ms),
        ):
            if ms is not None:
                histograms.setdefault(which, _Histogram(buckets)).observe(ms / 1000)

    def render(self, gauges: Iterable[Gauge] = ()) -> str:
        """Write all of it, in Prometheus' text format."""
        lines: list[str] = []
        lines += _counter("requests", "requests by how they ended", self._requests)
        lines += _counter("tokens", "tokens as the providers count", self._tokens)
        first = "from a request to the first event of its answer, waiting for a turn included"
        lines += _histogram("time_to_first_event_seconds", first, self._ttft)
        lines += _histogram("duration_seconds", "from a request to its end", self._duration)
        lines += _histogram("queue_seconds", "that requests waited for a turn", self._queue)
        for gauge in gauges:
            lines += _head(gauge.name, gauge.help, "gauge")
            lines.append(f"llmproxy_{gauge.name} {_number(gauge.value)}")
        return "\n".join(lines) + "\n"


def _counter(name: str, help: str, counts: Mapping[Labels, int]) -> Iterator[str]:
    yield from _head(f"{name}_total", help, "counter")
    for labels, count in counts.items():
        yield f"llmproxy_{name}_total{_labels(labels)} {count}"


def _histogram(name: str, help: str, histograms: Mapping[Labels, _Histogram]) -> Iterator[str]:
    yield from _head(name, help, "histogram")
    for labels, histogram in histograms.items():
        below = 0
        ends = [*map(_number, histogram.buckets), "+Inf"]
        for end, count in zip(ends, histogram.counts, strict=True):
            below += count
            yield f"llmproxy_{name}_bucket{_labels((*labels, ('le', end)))} {below}"
        yield f"llmproxy_{name}_sum{_labels(labels)} {histogram.sum:.6f}"
        yield f"llmproxy_{name}_count{_labels(labels)} {below}"


def _head(name: str, help: str, kind: str) -> list[str]:
    return [f"# HELP llmproxy_{name} {help}", f"# TYPE llmproxy_{name} {kind}"]


def _labels(labels: Labels) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels) + "}"


def _escaped(value: str) -> str:
    value = value.encode(errors="replace").decode()
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return f"{value:g}"
