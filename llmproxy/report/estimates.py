"""Estimate a quantity from the responses to some requests: its median, interval and tails."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from .data import Measured
from .stats import Interval, Summary, Tail, median, median_interval, summary, tail

SEED = 0  # so that the same responses give the same figures
ENOUGH = 6  # requests for an interval at 95 %, see `stats.median_interval`

ENOUGH_P95, ENOUGH_P99 = 59, 299  # requests for a p95 or p99, see `stats.tail`


@dataclass(frozen=True)
class Estimate:
    """A summary of values, and the 95 % interval of their median.

    interval: of the medians per request, since responses to one request are alike, and many of
        them say little about others. None if there are fewer than ENOUGH requests.
    p95, p99: of all values, with their exact 95 % intervals. None if there are fewer than
        ENOUGH_P95 or ENOUGH_P99 requests.
    is_estimated: some values are based on our own token estimate.
    """

    summary: Summary
    interval: Interval | None
    p95: Tail | None = None
    p99: Tail | None = None
    is_estimated: bool = False


@dataclass(frozen=True)
class Share:
    """How many of how many."""

    count: int
    of: int

    def __str__(self) -> str:
        return f"{self.count:,}/{self.of:,}"


Values = Mapping[str, Sequence[float]]
"""The values of each request."""


def by_sample(answers: Iterable[Measured], measure: Callable[[Measured], float | None]) -> Values:
    """Return the measured values of each request that has any."""
    values: dict[str, list[float]] = {}
    for answer in answers:
        if (value := measure(answer)) is not None:
            values.setdefault(answer.sample, []).append(value)
    return values


def medians_by_sample(values: Values) -> dict[str, float]:
    return {sample: median(of_sample) for sample, of_sample in values.items()}


def estimate_of(values: Values) -> Estimate | None:
    every = [value for of_sample in values.values() for value in of_sample]
    whole = summary(every)
    if whole is None:
        return None
    interval = interval_of([*medians_by_sample(values).values()])
    p95, p99 = (tail(every, q, independent=len(values)) for q in (0.95, 0.99))
    return Estimate(whole, interval, p95, p99)


def interval_of(values: Sequence[float]) -> Interval | None:
    return median_interval(values, seed=SEED)


def known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
