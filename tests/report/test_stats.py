"""Statistics against numpy and scipy, and against what they are to mean."""

import math
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.report import stats
from llmproxy.report.stats import Gaps, Interval, Summary

NUMBERS = st.floats(-1e9, 1e9) | st.integers(-5, 5).map(float)
SAMPLES = st.lists(NUMBERS, min_size=1, max_size=60)
SHARES = st.floats(0, 1)


@given(SAMPLES, SHARES)
def test_quantiles_are_numpys(values, q):
    import numpy

    expected = float(numpy.quantile(values, q))
    assert stats.quantile(values, q) == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert min(values) <= stats.quantile(values, q) <= max(values)


@given(SAMPLES, SHARES, SHARES)
def test_a_larger_share_has_no_smaller_quantile(values, q, other):
    low, high = sorted([q, other])
    assert stats.quantile(values, low) <= stats.quantile(values, high)


@given(SAMPLES, st.randoms())
def test_a_summary_is_numpys_and_order_has_no_meaning(values, source):
    import numpy

    summary = stats.summary(values)
    expected = [len(values), numpy.mean(values), min(values)]
    expected += [*numpy.quantile(values, [0.5, 0.95, 0.99]), max(values)]
    assert list(vars(summary).values()) == pytest.approx(expected, rel=1e-9, abs=1e-6)
    assert stats.median(values) == summary.p50
    shuffled = source.sample(values, len(values))
    assert stats.summary(shuffled) == summary


def test_numbers_by_hand():
    assert stats.median([3, 1, 2]) == 2
    assert stats.median([4, 1, 2, 3]) == 2.5
    assert stats.quantile([10, 20, 30, 40, 50], 0.95) == pytest.approx(48)
    assert stats.summary([5]) == Summary(1, 5, 5, 5, 5, 5, 5)
    assert stats.summary([]) is None


@pytest.mark.parametrize("values, q", [([], 0.5), ([1], -0.1), ([1], 1.1), ([1], math.nan)])
def test_what_has_no_quantile_is_refused(values, q):
    with pytest.raises(ValueError, match="^a quantile needs values and a share from 0 to 1$"):
        stats.quantile(values, q)


# ---- intervals


def lognormal(count, seed, factor=1.0):
    source = random.Random(seed)
    return [factor * source.lognormvariate(5, 0.5) for _ in range(count)]


def bootstrapped(values):
    import numpy
    import scipy.stats

    return scipy.stats.bootstrap(
        (values,),
        numpy.median,
        method="percentile",
        n_resamples=4000,
        rng=numpy.random.default_rng(1),
    ).confidence_interval


@pytest.mark.parametrize("count", [6, 7, 20, 101, 400])
def test_resampled_medians_lie_where_scipys_do(count):
    """By another generator, so alike to the width of an interval that chance leaves.

    Looked at from inside, since few values' interval is the exact one and hides them.
    """
    values = lognormal(count, seed=count)
    medians = stats._resampled_medians(sorted(values), random.Random(1), 4000)
    ours, theirs = stats._percentiles(medians, 0.95), bootstrapped(values)
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.12 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.12 * width)


@pytest.mark.parametrize("count", [1, 2, 3, 6, 7, 30, 31])
def test_medians_are_drawn_as_if_samples_were(count):
    """Against medians of samples that are drawn indeed: any two tell apart at 1 %."""
    import numpy

    values, source = sorted(lognormal(count, seed=count)), random.Random(1)
    drawn = [numpy.median(source.choices(values, k=count)) for _ in range(4000)]
    ours = stats._resampled_medians(values, source, 4000)
    assert set(ours) <= {(one + other) / 2 for one in values for other in values}
    places = sorted({*drawn, *ours})
    below = [numpy.searchsorted(sorted(medians), places, "right") for medians in (drawn, ours)]
    assert max(abs(below[0] - below[1])) / 4000 < 1.63 * math.sqrt(2 / 4000)  # Smirnov's bound


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("count", [*range(8, 40), 101, 400, 3000])
def test_an_interval_is_no_narrower_than_scipys_exact_one(count, confidence):
    import scipy.stats

    values = lognormal(count, seed=count)
    exact = scipy.stats.quantile_test(values).confidence_interval(confidence_level=confidence)
    assert stats._exact_interval(sorted(values), confidence) == Interval(exact.low, exact.high)
    ours = stats.median_interval(values, seed=1, confidence=confidence, resamples=100)
    assert ours.low <= exact.low < exact.high <= ours.high


@pytest.mark.parametrize("count", [6, 7, 20, 101, 400])
def test_an_interval_of_the_median_is_the_wider_of_scipys(count):
    import scipy.stats

    values = lognormal(count, seed=count)
    ours = stats.median_interval(values, seed=1, resamples=4000)
    theirs, exact = bootstrapped(values), scipy.stats.quantile_test(values).confidence_interval()
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(min(theirs.low, exact.low), abs=0.12 * width)
    assert ours.high == pytest.approx(max(theirs.high, exact.high), abs=0.12 * width)


def test_an_interval_of_a_difference_is_scipys():
    import numpy
    import scipy.stats

    first, second = lognormal(80, seed=1), lognormal(50, seed=2, factor=1.3)
    ours = stats.difference_interval(first, second, seed=1, resamples=4000)
    theirs = scipy.stats.bootstrap(
        (first, second),
        lambda x, y, axis: numpy.median(x, axis=axis) - numpy.median(y, axis=axis),
        method="percentile",
        n_resamples=4000,
        rng=numpy.random.default_rng(1),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.08 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.08 * width)


@pytest.mark.parametrize("count", [7, 8, 13, 15])
def test_an_interval_misses_the_median_no_oftener_than_it_says(count):
    """The bootstrap alone missed that of 7 values in 12 of 100 cases, of 15 in 8."""
    true, source, missed = math.exp(5), random.Random(count), 0
    for seed in range(1000):
        values = [source.lognormvariate(5, 0.5) for _ in range(count)]
        interval = stats.median_interval(values, seed=seed, resamples=100)
        missed += not interval.low <= true <= interval.high
    assert 0 < missed / 1000 <= 0.05


@pytest.mark.parametrize(
    "count, other_count, spread", [(6, 6, 1), (25, 25, 1), (7, 50, 5), (13, 13, 5)]
)
def test_models_of_the_same_speed_are_seldom_told_apart(count, other_count, spread):
    """The bootstrap alone told 7 that spread five times as far from 50 in 11 of 100 cases."""
    source, wrong = random.Random(count), 0
    for seed in range(1000):
        first = [source.gauss(100, spread) for _ in range(count)]
        second = [source.gauss(100, 1) for _ in range(other_count)]
        interval = stats.difference_interval(first, second, seed=seed, resamples=100)
        wrong += interval.is_below_zero or interval.is_above_zero
    assert 0 < wrong / 1000 <= 0.05


def test_a_faster_model_is_called_so_and_a_slower_one_not():
    fast, slow = lognormal(40, seed=1), lognormal(40, seed=2, factor=2)
    interval = stats.difference_interval(fast, slow, seed=3)
    assert (interval.is_below_zero, interval.is_above_zero) == (True, False)
    interval = stats.difference_interval(slow, fast, seed=3)
    assert (interval.is_below_zero, interval.is_above_zero) == (False, True)


def test_the_seed_says_the_interval():
    values, others = lognormal(400, seed=1), lognormal(300, seed=2)
    assert stats.median_interval(values, seed=1) == stats.median_interval(values, seed=1)
    one, same, other = (stats.difference_interval(values, others, seed=seed) for seed in (1, 1, 2))
    assert one == same != other


def test_too_few_values_claim_nothing():
    """Five values, all on one side of the median: that happens once in sixteen times."""
    assert stats.median_interval([1, 2, 3, 4, 5], seed=1) is None
    assert stats.median_interval([1, 2, 3, 4, 5], seed=1, confidence=0.9) is not None
    assert stats.median_interval([], seed=1) is None
    assert stats.difference_interval([1] * 5, [9] * 50, seed=1) is None
    assert stats.difference_interval([1] * 6, [9] * 6, seed=1) == Interval(-8, -8)


@given(st.lists(NUMBERS, min_size=6, max_size=20), st.integers(0, 9))
def test_an_interval_is_of_the_values(values, seed):
    interval = stats.median_interval(values, seed=seed, resamples=50)
    assert min(values) <= interval.low <= interval.high <= max(values)


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_a_confidence_is_a_share(confidence):
    with pytest.raises(ValueError, match="^a confidence must be between 0 and 1$"):
        stats.median_interval([1] * 99, seed=1, confidence=confidence)


def test_ten_intervals_of_many_values_are_quick():
    values = lognormal(10_000, seed=1)
    began = time.process_time()
    for seed in range(10):
        stats.median_interval(values, seed=seed)
    assert time.process_time() - began < 2  # 0.1 s; 10 s when each sample was drawn


# ---- streams


def test_gaps_are_between_events():
    assert stats.gaps([100, 110, 110, 150]) == Gaps(10, 37, 40)
    assert stats.gaps([100, 130]) == Gaps(30, 30, 30)
    assert stats.gaps([100]) is None
    assert stats.gaps([]) is None


@given(st.lists(st.floats(0, 1e7), min_size=2, max_size=50).map(sorted))
def test_gaps_are_numpys(times):
    import numpy

    between = numpy.diff(times)
    expected = [*numpy.quantile(between, [0.5, 0.95]), between.max()]
    assert list(vars(stats.gaps(times)).values()) == pytest.approx(expected, abs=1e-6)
