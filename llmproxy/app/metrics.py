"""The server's metrics in Prometheus' text format: counters, histograms and gauges.

Spec: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from ..recorder.summary import ExchangeSummary

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

TTFT_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
DURATION_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
RATE_BUCKETS = (1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)
MAX_UPSTREAM_MODELS = 100  # labels: a client can ask some servers for any name

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Single:
    """A metric without labels; `name` is without the prefix."""

    name: str
    help: str
    value: float
    kind: Literal["gauge", "counter"] = "gauge"


@dataclass
class _Histogram:
    """Counts of values by bucket; the last count is of those above all buckets."""

    buckets: Sequence[float]
    counts: list[int] = field(default_factory=list)
    sum: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.buckets) + 1)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.buckets, value)] += 1
        self.sum += value


class Metrics:
    """Counters of exchanges that have ended.

    Models are labelled with llm's ids, a limited set; names that clients make up are not
    used. An upstream's models are whatever clients ask it for: only those that have answered are
    labels, `MAX_UPSTREAM_MODELS` of them; the others have the upstream's name. Requests that
    reached no model have an empty label. Replays used no model: they have a
    counter of their own and are in nothing else.

    refused: counts of what was refused and is no exchange, by status and kind of error.
    """

    def __init__(self, refused: Mapping[tuple[int, str], int] = MappingProxyType({})) -> None:
        self._refused = refused
        self._upstream_models: set[str] = set()
        self._requests: Counter[Labels] = Counter()
        self._replays: Counter[Labels] = Counter()
        self._tokens: Counter[Labels] = Counter()
        self._ttft: dict[Labels, _Histogram] = {}
        self._duration: dict[Labels, _Histogram] = {}
        self._queue: dict[Labels, _Histogram] = {}
        self._rate: dict[Labels, _Histogram] = {}

    def count(self, entry: ExchangeSummary) -> None:
        """Count an exchange that has ended."""
        model = self._model(entry)
        labels: Labels = (("dialect", entry.dialect), ("model", model))
        code = "" if entry.http_status is None else f"{entry.http_status}"
        ending = (*labels, ("status", entry.status), ("code", code))
        if entry.replay_of is not None:
            self._replays[ending] += 1
            return
        self._requests[ending] += 1
        usage = entry.usage
        for kind, tokens in (
            ("input", usage.input_tokens),
            ("output", usage.output_tokens),
            ("cached", usage.cached_tokens),
            ("reasoning", usage.reasoning_tokens),
        ):
            if tokens:
                self._tokens[(*labels, ("type", kind))] += tokens
        for histograms, buckets, ms in (
            (self._ttft, TTFT_BUCKETS_S, entry.ttft_ms),
            (self._duration, DURATION_BUCKETS_S, entry.duration_ms),
            (self._queue, TTFT_BUCKETS_S, entry.queue_ms),
        ):
            if ms is not None:
                histograms.setdefault(labels, _Histogram(buckets)).observe(ms / 1000)
        if entry.tokens_per_second is not None:
            counted_by = "estimate" if entry.is_rate_estimated else "provider"
            key = (*labels, ("counted_by", counted_by))
            self._rate.setdefault(key, _Histogram(RATE_BUCKETS)).observe(entry.tokens_per_second)

    def _model(self, entry: ExchangeSummary) -> str:
        model, known = entry.model_used or "", self._upstream_models
        if entry.upstream is None or model in known:
            return model
        if entry.status != "ok" or len(known) >= MAX_UPSTREAM_MODELS:
            return entry.upstream
        known.add(model)
        return model

    def render(self, singles: Iterable[Single] = ()) -> str:
        """Return all metrics and the given single ones in Prometheus' text format."""
        lines: list[str] = []
        lines += _counter("requests", "requests without replays, by status", self._requests)
        lines += _counter("replays", "requests answered by a recording", self._replays)
        refused: dict[Labels, int] = {
            (("code", f"{code}"), ("reason", kind)): count
            for (code, kind), count in self._refused.items()
        }
        lines += _counter("refused", "requests refused before any model was asked", refused)
        lines += _counter("tokens", "tokens, as counted by the providers", self._tokens)
        ttft = "from a request to the first event of its response, including time in the queue"
        lines += _histogram("time_to_first_event_seconds", ttft, self._ttft)
        lines += _histogram("duration_seconds", "from a request to its end", self._duration)
        lines += _histogram("queue_seconds", "time that requests waited in the queue", self._queue)
        rate = "tokens per second of a response, as docs/log.md defines it"
        lines += _histogram("tokens_per_second", rate, self._rate)
        for single in singles:
            lines += _head(single.name, single.help, single.kind)
            lines.append(f"llmproxy_{single.name} {_number(single.value)}")
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
    return f"{value:.15g}"  # with all digits of a count
