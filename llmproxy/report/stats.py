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

    By itself the bootstrap is too sure of few values: at 95 % it misses the median in 12 of
    100 cases where they are 7, in 6 to 10 where they are 8 to 15, and of 30 still in nearly
    6. So the interval is never narrower than the exact one, whose ends are two of the
    values: each value lies below the median as a coin falls, however they are distributed.
    Of 6 to 8 values it is from the least to the most, of 9 to 11 from the second to the last
    but one, of 12 to 14 from the third. So it misses in 5 of 100 at most, and in 1 or 2
    where one value further in would be just too many (7, 8, 11). From hundreds of values on
    both are nearly the same.

    None where the values are too few for any such claim: even all of them together
    enclose the median only with probability 1-2^(1-n), so for 95 % it takes six.

    Of two models' times for the same requests, give their differences pair by pair:
    what the requests differ in is then no noise.

    Spec: B. Efron and R. Tibshirani, An Introduction to the Bootstrap (1993), 13.3;
        H. A. David and H. N. Nagaraja, Order Statistics (2003), 7.1
    """
    ordered = sorted(values)
    exact = _exact_interval(ordered, confidence)
    if exact is None:
        return None
    medians = _resampled_medians(ordered, random.Random(seed), resamples)
    return _hull(_percentiles(medians, confidence), exact)


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

    Of two samples that spread alike the bootstrap is sure enough, but not where a small one
    spreads further than the other, and so alone decides: 7 values that spread five times as
    far as 50 others seem to differ from them in 11 of 100 cases. So the interval is never
    narrower than the exact one of either median (see `median_interval`) would be if the
    other median were known. In simulations with 6 to 50 values of many distributions, one
    sample up to five times as wide as the other, it was then wrong in 1 to 5 of 100, or
    hardly more: 17 of two far clusters each, in nearly 6.
    """
    ordered, others = sorted(first), sorted(second)
    exact, other_exact = (_exact_interval(of, confidence) for of in (ordered, others))
    if exact is None or other_exact is None:
        return None
    source = random.Random(seed)
    medians = _resampled_medians(ordered, source, resamples)
    other_medians = _resampled_medians(others, source, resamples)
    differences = [one - other for one, other in zip(medians, other_medians, strict=True)]
    middle, other_middle = _sorted_quantile(ordered, 0.5), _sorted_quantile(others, 0.5)
    difference = middle - other_middle
    wide = Interval(
        difference - max(middle - exact.low, other_exact.high - other_middle),
        difference + max(exact.high - middle, other_middle - other_exact.low),
    )
    return _hull(_percentiles(differences, confidence), wide)


def _exact_interval(ordered: Sequence[float], confidence: float) -> Interval | None:
    """The narrowest pair of values, as far from either end, that is sure enough."""
    if not 0 < confidence < 1:
        raise ValueError("a confidence is between 0 and 1")
    count = len(ordered)
    # The k-th value and the k-th from the end enclose the median where k to n-k values lie
    # below it. How probable that is, is summed up from the middle outwards: as whole
    # numbers the chances are huge, and from the ends they are too small for a float.
    below = count // 2
    chance = math.comb(count, below) / 2**count
    enclosed = chance if count % 2 == 0 else 2 * chance
    while below > 0 and enclosed < confidence:
        chance = chance * below / (count - below + 1)
        below -= 1
        enclosed += 2 * chance
    return Interval(ordered[below - 1], ordered[count - below]) if below > 0 else None


def _resampled_medians(
    ordered: Sequence[float], source: random.Random, resamples: int
) -> list[float]:
    """Medians of samples drawn with replacement, without drawing the samples.

    A value is drawn by a uniform number from 0 to 1, and the larger number draws no smaller
    value. So the median is what the middle one of n uniform numbers draws, and that one is
    Beta distributed. Of an even number it takes the one below too: the largest of upper-1
    uniform numbers from 0 to the middle one.
    """
    count = len(ordered)
    upper = count // 2 + 1
    medians = []
    for _ in range(resamples):
        at = source.betavariate(upper, count - upper + 1)
        median = ordered[min(int(at * count), count - 1)]  # `at` can be rounded to 1
        if count % 2 == 0:
            at *= source.random() ** (1 / (upper - 1))
            median = (ordered[min(int(at * count), count - 1)] + median) / 2
        medians.append(median)
    return medians


def _percentiles(medians: Sequence[float], confidence: float) -> Interval:
    ordered = sorted(medians)
    tail = (1 - confidence) / 2
    return Interval(_sorted_quantile(ordered, tail), _sorted_quantile(ordered, 1 - tail))


def _hull(one: Interval, other: Interval) -> Interval:
    return Interval(min(one.low, other.low), max(one.high, other.high))


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
