"""Compute statistics of measurements: quantiles, their intervals, tests, gaps.

Plain arithmetic on lists, defined in the docstrings. Callers decide what counts. A value may be
infinite: a time that was never reached, because the response failed, is later than any. Order
statistics and tests by ranks need no more than that.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist, fmean

RESAMPLES = 1000  # the ends of an interval then vary by some hundredths of its width
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """The interval in which a number lies with the requested confidence, ends included."""

    low: float
    high: float

    @property
    def is_below_zero(self) -> bool:
        """Of a difference: whether the first is smaller beyond chance."""
        return self.high < 0

    @property
    def is_above_zero(self) -> bool:
        """Of a difference: whether the first is larger beyond chance."""
        return self.low > 0


@dataclass(frozen=True)
class Summary:
    """A summary of values, in their unit.

    count: of all values; late: of the infinite ones among them. p50 is that of all; mean, least
    and most are those of the finite values.
    """

    count: int
    mean: float
    least: float
    p50: float
    most: float
    late: int = 0


@dataclass(frozen=True)
class Tail:
    """A quantile far from the middle, with its exact interval."""

    value: float
    interval: Interval


def quantile(values: Sequence[float], q: float) -> float:
    """Return the value below which the share `q` (0 to 1) of the values lies.

    Interpolates linearly between two values: of n sorted values x[0]…x[n-1], takes the one at
    position (n-1)·q, as numpy does by default (Hyndman and Fan's type 7).

    Raises:
        ValueError: no values, or q outside 0…1.
    """
    return _sorted_quantile(sorted(values), q)


def _sorted_quantile(values: Sequence[float], q: float) -> float:
    if not values or not 0 <= q <= 1:
        raise ValueError("a quantile needs values and a share from 0 to 1")
    place = (len(values) - 1) * q
    below = int(place)
    return _interpolated(values[below], values[min(below + 1, len(values) - 1)], place - below)


def _interpolated(low: float, high: float, share: float) -> float:
    """Return the value at a share of the way; all of the way to an infinite end is infinite."""
    if share == 0 or low == high:
        return low
    if math.isinf(low) or math.isinf(high):
        return low + high if low != -high else 0.0
    # From the nearer end, as numpy does, so that rounding can't leave the range.
    if share >= 0.5:
        return high - (high - low) * (1 - share)
    return low + (high - low) * share


def median(values: Sequence[float]) -> float:
    """Return the middle value, or the mean of the two middle ones.

    Raises:
        ValueError: no values.
    """
    return quantile(values, 0.5)


def summary(values: Sequence[float]) -> Summary | None:
    """Return count, arithmetic mean, extremes and median; None without finite values."""
    ordered = sorted(values)
    finite = [value for value in ordered if math.isfinite(value)]
    if not finite:
        return None
    return Summary(
        count=len(ordered),
        mean=fmean(finite),
        least=finite[0],
        p50=_sorted_quantile(ordered, 0.5),
        most=finite[-1],
        late=len(ordered) - len(finite),
    )


def difference(first: float, second: float) -> float:
    """Return first minus second; 0 if both are infinite, since neither is then the later one."""
    return 0.0 if first == second else first - second


# ---- intervals


def median_interval(
    values: Sequence[float],
    *,
    seed: int,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> Interval | None:
    """Return the confidence interval of the median of the population the values come from.

    The percentile bootstrap: draw as many values with replacement and take their median,
    `resamples` times; the interval is between the quantiles (1-confidence)/2 and
    (1+confidence)/2 of these medians. The same seed gives the same interval.

    With few values the bootstrap alone is overconfident: at 95 % it misses the median in 12 of
    100 cases with 7 values, in 6 to 10 with 8 to 15, and in nearly 6 with 30. So the interval is
    never narrower than the exact one, whose ends are two of the values: each value is below the
    median with probability 1/2, whatever the distribution. With 6 to 8 values it reaches from
    the least to the most, with 9 to 11 from the second to the last but one, with 12 to 14 from
    the third. So it misses in at most 5 of 100 cases, and in 1 or 2 where the next narrower one
    would just miss too often (7, 8, 11). With hundreds of values both are nearly the same.

    None if there are too few values for any such claim: even all of them together enclose the
    median only with probability 1-2^(1-n), so 95 % takes six.

    To compare two models on the same requests, pass the differences pair by pair: then
    differences between the requests add no variance.

    Spec: B. Efron and R. Tibshirani, An Introduction to the Bootstrap (1993), 13.3;
        H. A. David and H. N. Nagaraja, Order Statistics (2003), 7.1
    """
    ordered = sorted(values)
    exact = _exact_interval(ordered, 0.5, confidence)
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
    """Return the confidence interval of the difference of two medians, first minus second.

    Both samples are resampled independently, as in `median_interval`. Of times, the first is
    faster only if the interval `is_below_zero`. None if either sample has too few values.

    If two samples have a similar spread, the bootstrap is good enough, but not if a small one
    spreads further than the other and so decides alone: 7 values that spread five times as far
    as 50 others seem to differ from them in 11 of 100 cases. So the interval is never narrower
    than the exact one of either median (see `median_interval`) would be if the other median were
    known. In simulations with 6 to 50 values of many distributions, one sample up to five times
    as wide as the other, it was then wrong in 1 to 5 of 100 cases, or hardly more: in nearly 6
    with 17 values in two distant clusters each.
    """
    ordered, others = sorted(first), sorted(second)
    exact, other_exact = (_exact_interval(of, 0.5, confidence) for of in (ordered, others))
    if exact is None or other_exact is None:
        return None
    source = random.Random(seed)
    medians = _resampled_medians(ordered, source, resamples)
    other_medians = _resampled_medians(others, source, resamples)
    differences = list(map(difference, medians, other_medians))
    middle, other_middle = _sorted_quantile(ordered, 0.5), _sorted_quantile(others, 0.5)
    known = Interval(difference(exact.low, other_middle), difference(exact.high, other_middle))
    other_known = Interval(
        difference(middle, other_exact.high), difference(middle, other_exact.low)
    )
    return _hull(_percentiles(differences, confidence), _hull(known, other_known))


def tail(
    values: Sequence[float], q: float, *, independent: int, confidence: float = CONFIDENCE
) -> Tail | None:
    """Return a quantile from the median upwards with its exact interval.

    The interval has two of the values as its ends, chosen by the binomial distribution of how
    many values lie below the quantile. No distribution of the values is assumed.

    independent: how many of the values are, at least: repeats of one request are alike. The
    interval is that of so few values, each of them repeated; with as many as there are values
    it is the usual one.

    None if they are too few: all of them may lie below the quantile, with probability q^n, so
    that p95 takes 59 at 95 %, and p99 299.

    Spec: H. A. David and H. N. Nagaraja, Order Statistics (2003), 7.1
    """
    ordered = sorted(values)
    ranks = _exact_ranks(independent, q, confidence)
    if ranks is None:
        return None
    low = (ranks[0] - 1) * len(ordered) // independent
    high = -(-ranks[1] * len(ordered) // independent) - 1
    return Tail(_sorted_quantile(ordered, q), Interval(ordered[low], ordered[high]))


def _exact_interval(ordered: Sequence[float], q: float, confidence: float) -> Interval | None:
    ranks = _exact_ranks(len(ordered), q, confidence)
    return None if ranks is None else Interval(ordered[ranks[0] - 1], ordered[ranks[1] - 1])


def _exact_ranks(count: int, q: float, confidence: float) -> tuple[int, int] | None:
    """Return the ranks, from 1, of two of `count` values that enclose the quantile q.

    Each side misses with half of the error at most. If even the largest value is below the
    quantile more often than that, the lower side has what is left. q is at least 0.5, where the
    upper side is the one that can miss so often.
    """
    if not 0 < confidence < 1:
        raise ValueError("a confidence must be between 0 and 1")
    error = 1 - confidence
    above = _tail_ranks(count, q, error / 2)
    upper_miss = q**count if above == 0 else 0.0
    below = _tail_ranks(count, 1 - q, min(error / 2, error - upper_miss))
    return (below, count + 1 - max(above, 1)) if below > 0 else None


def _tail_ranks(count: int, q: float, allowed: float) -> int:
    """Return how many ranks from an end the quantile is beyond with at most that probability.

    Rank r from the top is below the quantile if fewer than r values are above it, each of them
    with probability 1-q.
    """
    missed = 0.0
    # The probability that exactly `rank` values are above: a float can't hold the first ones
    # of a large sample, but their logarithms.
    log_chance = count * math.log(q)
    for rank in range(count):
        missed += math.exp(log_chance)
        if missed > allowed:
            return rank
        log_chance += math.log((count - rank) / (rank + 1) * (1 - q) / q)
    return count


def _resampled_medians(
    ordered: Sequence[float], source: random.Random, resamples: int
) -> list[float]:
    """Return medians of samples drawn with replacement, without drawing the samples.

    A uniform number from 0 to 1 draws a value, and a larger number never draws a smaller value.
    So the median is what the middle one of n uniform numbers draws, which is Beta distributed.
    For an even n the one below is needed too: the largest of upper-1 uniform numbers between 0
    and the middle one.
    """
    count = len(ordered)
    upper = count // 2 + 1
    medians = []
    for _ in range(resamples):
        at = source.betavariate(upper, count - upper + 1)
        median = ordered[min(int(at * count), count - 1)]  # `at` can be rounded to 1
        if count % 2 == 0:
            at *= source.random() ** (1 / (upper - 1))
            median = _interpolated(ordered[min(int(at * count), count - 1)], median, 0.5)
        medians.append(median)
    return medians


def _percentiles(medians: Sequence[float], confidence: float) -> Interval:
    ordered = sorted(medians)
    tail = (1 - confidence) / 2
    return Interval(_sorted_quantile(ordered, tail), _sorted_quantile(ordered, 1 - tail))


def _hull(one: Interval, other: Interval) -> Interval:
    return Interval(min(one.low, other.low), max(one.high, other.high))


# ---- tests


def sign_test(differences: Sequence[float]) -> float:
    """Return the p-value of the hypothesis that the median of the differences is 0.

    Exact and two-sided, with no assumption but that the differences are independent: how many
    lie on one side has a binomial distribution. Differences of 0 count as lying on neither side,
    so that it agrees with the exact interval of the median: p is at most 0.05 if and only if
    the interval at 95 % is on one side of 0.

    Spec: W. J. Conover, Practical Nonparametric Statistics (1999), 3.4
    """
    count = len(differences)
    most = max(sum(value > 0 for value in differences), sum(value < 0 for value in differences))
    chances = (math.comb(count, above) for above in range(most, count + 1))
    return min(2 * sum(chances) / (1 << count), 1.0)


def rank_sum_test(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the p-value of the hypothesis that neither sample tends to larger values.

    The two-sided Wilcoxon-Mann-Whitney test: by the normal approximation of the rank sum, with
    corrections for ties and continuity, which is slightly cautious from six values each on.

    Spec: W. J. Conover, Practical Nonparametric Statistics (1999), 5.1
    """
    counts = Counter([*first, *second])
    ranks, before = {}, 0
    for value in sorted(counts):
        ranks[value] = before + (counts[value] + 1) / 2
        before += counts[value]
    n, m, total = len(first), len(second), len(first) + len(second)
    ties = sum(count**3 - count for count in counts.values()) / (total * (total - 1))
    spread = math.sqrt(n * m / 12 * (total + 1 - ties))
    away = abs(sum(ranks[value] for value in first) - n * (total + 1) / 2) - 0.5
    return 1.0 if spread == 0 or away <= 0 else 2 * NormalDist().cdf(-away / spread)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values corrected for their number, in their order.

    If every hypothesis whose corrected p-value is at most 0.05 is rejected, the probability of
    rejecting any true one is at most 0.05, however they depend on each other.

    Spec: S. Holm, A Simple Sequentially Rejective Multiple Test Procedure (1979)
    """
    corrected = [1.0] * len(p_values)
    least = 0.0
    for done, place in enumerate(sorted(range(len(p_values)), key=lambda at: p_values[at])):
        least = max(least, min((len(p_values) - done) * p_values[place], 1.0))
        corrected[place] = least
    return corrected


# ---- streams


def gaps(times_ms: Sequence[float]) -> list[float]:
    """Return the silences between a stream's events; none if it has fewer than two.

    times_ms: when each event came, in order. Events that came together have a gap of 0; the
    wait for the first one does not count.
    """
    return [later - earlier for earlier, later in pairwise(times_ms)]
