"""Statistics against numpy and scipy, and against what they are to mean."""

import math
import random
import time

import numpy
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.study import stats
from llmproxy.study.stats import Gaps, Interval, Summary

NUMBERS = st.floats(-1e9, 1e9) | st.integers(-5, 5).map(float)
SAMPLES = st.lists(NUMBERS, min_size=1, max_size=60)
SHARES = st.floats(0, 1)


@given(SAMPLES, SHARES)
def test_quantiles_are_numpys(values, q):
    expected = float(numpy.quantile(values, q))
    assert stats.quantile(values, q) == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert min(values) <= stats.quantile(values, q) <= max(values)


@given(SAMPLES, SHARES, SHARES)
def test_a_larger_share_has_no_smaller_quantile(values, q, other):
    low, high = sorted([q, other])
    assert stats.quantile(values, low) <= stats.quantile(values, high)


@given(SAMPLES, st.randoms())
def test_a_summary_is_numpys_and_order_has_no_meaning(values, source):
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
    with pytest.raises(ValueError, match="^a quantile takes values, and a share from 0 to 1$"):
        stats.quantile(values, q)


# ---- intervals


def lognormal(count, seed, factor=1.0):
    source = random.Random(seed)
    return [factor * source.lognormvariate(5, 0.5) for _ in range(count)]


@pytest.mark.parametrize("count", [6, 7, 20, 101, 400])
def test_an_interval_of_the_median_is_scipys(count):
    """By another generator, so alike to the width of an interval that chance leaves."""
    values = lognormal(count, seed=count)
    ours = stats.median_interval(values, seed=1, resamples=4000)
    theirs = scipy.stats.bootstrap(
        (values,),
        numpy.median,
        method="percentile",
        n_resamples=4000,
        rng=numpy.random.default_rng(1),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.12 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.12 * width)


def test_an_interval_of_a_difference_is_scipys():
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


def test_an_interval_holds_the_true_median_about_as_often_as_it_says():
    true = math.exp(5)
    hits = 0
    for seed in range(200):
        interval = stats.median_interval(lognormal(30, seed), seed=seed, resamples=300)
        hits += interval.low <= true <= interval.high
    assert 0.9 <= hits / 200 <= 0.99


def test_a_model_of_the_same_speed_is_seldom_called_faster():
    wrong = 0
    for seed in range(200):
        samples = lognormal(25, seed), lognormal(25, seed + 1000)
        interval = stats.difference_interval(*samples, seed=seed, resamples=300)
        wrong += interval.is_below_zero or interval.is_above_zero
    assert wrong / 200 <= 0.09


def test_a_faster_model_is_called_so_and_a_slower_one_not():
    fast, slow = lognormal(40, seed=1), lognormal(40, seed=2, factor=2)
    interval = stats.difference_interval(fast, slow, seed=3)
    assert (interval.is_below_zero, interval.is_above_zero) == (True, False)
    interval = stats.difference_interval(slow, fast, seed=3)
    assert (interval.is_below_zero, interval.is_above_zero) == (False, True)


def test_the_seed_says_the_interval():
    values = lognormal(50, seed=1)
    one, same, other = (stats.median_interval(values, seed=seed) for seed in (1, 1, 2))
    assert one == same != other
    assert stats.difference_interval(values, values[:20], seed=1) == stats.difference_interval(
        values, values[:20], seed=1
    )


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
    with pytest.raises(ValueError, match="^a confidence is between 0 and 1$"):
        stats.median_interval([1] * 99, seed=1, confidence=confidence)


def test_a_thousand_resamples_of_a_thousand_values_are_quick():
    values = lognormal(1000, seed=1)
    began = time.process_time()
    stats.median_interval(values, seed=1)
    assert time.process_time() - began < 2  # 0.3 s on a busy machine


# ---- streams


@pytest.mark.parametrize(
    "tokens, ttft_ms, duration_ms, rate",
    [
        (101, 500, 2500, 50),
        (2, 0, 1000, 1),
        (1, 500, 2500, None),
        (0, 500, 2500, None),
        (None, 500, 2500, None),
        (101, None, 2500, None),
        (101, 500, None, None),
        (101, 500, 500, None),
        (101, 500, 400, None),
        (101, math.nan, 400, None),
        (101, 0, 5e-324, None),
    ],
)
def test_tokens_per_second_count_from_the_first_one_on(tokens, ttft_ms, duration_ms, rate):
    assert stats.tokens_per_second(tokens, ttft_ms, duration_ms) == rate


def test_gaps_are_between_events():
    assert stats.gaps([100, 110, 110, 150]) == Gaps(10, 37, 40)
    assert stats.gaps([100, 130]) == Gaps(30, 30, 30)
    assert stats.gaps([100]) is None
    assert stats.gaps([]) is None


@given(st.lists(st.floats(0, 1e7), min_size=2, max_size=50).map(sorted))
def test_gaps_are_numpys(times):
    between = numpy.diff(times)
    expected = [*numpy.quantile(between, [0.5, 0.95]), between.max()]
    assert list(vars(stats.gaps(times)).values()) == pytest.approx(expected, abs=1e-6)
