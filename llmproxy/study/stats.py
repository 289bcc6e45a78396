"""Numbers about many measurements: quantiles, intervals of medians, rates, gaps.

Plain arithmetic on lists, each definition in its docstring. What was measured, and
when a measurement counts, is for who calls to say.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

__all__ = [
    "Gaps",
    "Interval",
    "Summary",
    "difference_interval",
    "gaps",
    "median",
    "median_interval",
    "quantile",
    "summary",
    "tokens_per_second",
]

RESAMPLES = 1000  # the interval's ends then wander by some hundredths of its width
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """Where a number lies with the confidence that was asked for; both ends belong to it."""

    low: float
    high: float

    @property
    def is_below_zero(self) -> bool:
        """Of a difference: the first is smaller, and by more than chance."""
        return self.high < 0

    @property
    def is_above_zero(self) -> bool:
        """Of a difference: the first is larger, and by more than chance."""
        return self.low > 0


@dataclass(frozen=True)
class Summary:
    """Many values in a few, all in the values' own unit."""

    count: int
    mean: float
    least: float
    p50: float
    p95: float
    p99: float
    most: float


@dataclass(frozen=True)
class Gaps:
    """How evenly a stream came: the times between its events, in milliseconds."""

    p50_ms: float
    p95_ms: float
    longest_ms: float


def quantile(values: Sequence[float], q: float) -> float:
    """Give the value below which the share `q` (0 to 1) of the values lies.

    Between two values it is interpolated linearly: of n sorted values x[0]…x[n-1], the
    one at the place (n-1)·q. So does numpy by default (Hyndman and Fan's type 7). The
    order of the values has no meaning.

    Raises:
        ValueError: no values, or q outside 0…1.
    """
    return _sorted_quantile(sorted(values), q)


def _sorted_quantile(values: Sequence[float], q: float) -> float:
    if not values or not 0 <= q <= 1:
        raise ValueError("a quantile takes values, and a share from 0 to 1")
    place = (len(values) - 1) * q
    below = int(place)
    low, high = values[below], values[min(below + 1, len(values) - 1)]
    share = place - below
    # From the nearer end, as numpy does: no rounding then leaves the two values' range.
    if share >= 0.5:
        return high - (high - low) * (1 - share)
    return low + (high - low) * share


def median(values: Sequence[float]) -> float:
    """Give the middle value, of an even number the mean of the two in the middle.

    Raises:
        ValueError: no values.
    """
    return quantile(values, 0.5)


def summary(values: Sequence[float]) -> Summary | None:
    """Give count, arithmetic mean, extremes and quantiles; None of no values."""
    if not values:
        return None
    ordered = sorted(values)
    return Summary(
        count=len(ordered),
        mean=fmean(ordered),
        least=ordered[0],
        p50=_sorted_quantile(ordered, 0.5),
        p95=_sorted_quantile(ordered, 0.95),
        p99=_sorted_quantile(ordered, 0.99),
        most=ordered[-1],
    )


# ---- intervals


def median_interval(
    values: Sequence[float],
    *,
    seed: int,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> Interval | None:
    """Say where the median of what the values are a sample of lies.

    The percentile bootstrap: draw as many values with replacement, take their median,
    `resamples` times; the interval is between the quantiles (1-confidence)/2 and
    (1+confidence)/2 of these medians. The same seed gives the same interval.

    None where the values are too few for any such claim: even all of them together
    enclose the median only with probability 1-2^(1-n), so for 95 % it takes six.

    Of two models' times for the same requests, give their differences pair by pair:
    what the requests differ in is then no noise.
    """
    if not _are_enough(values, confidence):
        return None
    return _percentiles(_resampled_medians(values, random.Random(seed), resamples), confidence)


def difference_interval(
    first: Sequence[float],
    second: Sequence[float],
    *,
    seed: int,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> Interval | None:
    """Say where the difference of two medians lies: the first's less the second's.

    Both samples are drawn from anew, each by itself, as `median_interval` does. Of times,
    the first is faster only where the interval `is_below_zero`. None where either has too
    few values.
    """
    if not (_are_enough(first, confidence) and _are_enough(second, confidence)):
        return None
    source = random.Random(seed)
    medians = _resampled_medians(first, source, resamples)
    others = _resampled_medians(second, source, resamples)
    differences = [one - other for one, other in zip(medians, others, strict=True)]
    return _percentiles(differences, confidence)


def _are_enough(values: Sequence[float], confidence: float) -> bool:
    if not 0 < confidence < 1:
        raise ValueError("a confidence is between 0 and 1")
    # n values have the median outside of them where all lie on one side of it: 2·(1/2)^n.
    return len(values) > 0 and 1 - 2.0 ** (1 - len(values)) >= confidence


def _resampled_medians(
    values: Sequence[float], source: random.Random, resamples: int
) -> list[float]:
    count = len(values)
    middle = count // 2
    medians = []
    for _ in range(resamples):
        drawn = sorted(source.choices(values, k=count))
        medians.append(drawn[middle] if count % 2 else (drawn[middle - 1] + drawn[middle]) / 2)
    return medians


def _percentiles(medians: Sequence[float], confidence: float) -> Interval:
    ordered = sorted(medians)
    tail = (1 - confidence) / 2
    return Interval(_sorted_quantile(ordered, tail), _sorted_quantile(ordered, 1 - tail))


# ---- streams


def tokens_per_second(
    output_tokens: int | None, ttft_ms: float | None, duration_ms: float | None
) -> float | None:
    """Say how fast an answer came once it had begun: tokens per second after the first.

    (output_tokens - 1) / (duration - ttft), tokens as the provider counts them. None
    where a number is missing, there is no second token, or all came at once: a whole
    answer in one event has no rate. Tokens of reasoning that was not streamed were made
    before the first event: the caller leaves them out, or the rate is too high.
    """
    if output_tokens is None or ttft_ms is None or duration_ms is None:
        return None
    if output_tokens < 2 or not duration_ms > ttft_ms:
        return None
    rate = (output_tokens - 1) * 1000 / (duration_ms - ttft_ms)
    return rate if math.isfinite(rate) else None


def gaps(times_ms: Sequence[float]) -> Gaps | None:
    """Say how long a stream was silent between its events; None of fewer than two.

    times_ms: when each event came, in their order. Events that came together have a gap
    of 0 between them; the wait for the first one is none.
    """
    if len(times_ms) < 2:
        return None
    between = sorted(b - a for a, b in zip(times_ms, times_ms[1:], strict=False))
    return Gaps(_sorted_quantile(between, 0.5), _sorted_quantile(between, 0.95), between[-1])
