"""Statistics against numpy and scipy, and against what they are to mean."""

import itertools
import math
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.report import stats
from llmproxy.report.stats import Interval, Summary, Tail

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
    expected = [len(values), numpy.mean(values), min(values), numpy.median(values), max(values), 0]
    assert list(vars(summary).values()) == pytest.approx(expected, rel=1e-9, abs=1e-6)
    assert stats.median(values) == summary.p50
    shuffled = source.sample(values, len(values))
    assert stats.summary(shuffled) == summary


def test_numbers_by_hand():
    assert stats.median([3, 1, 2]) == 2
    assert stats.median([4, 1, 2, 3]) == 2.5
    assert stats.quantile([10, 20, 30, 40, 50], 0.95) == pytest.approx(48)
    assert stats.summary([5]) == Summary(1, 5, 5, 5, 5)
    assert stats.summary([]) is None


def test_a_value_that_was_never_reached_is_later_than_any():
    late = math.inf
    assert stats.summary([1, late, 3, 2]) == Summary(4, 2, 1, 2.5, 3, late=1)
    assert stats.summary([late]) is None
    assert [stats.quantile([1, 2, late], q) for q in (0.5, 0.51, 1)] == [2, late, late]
    assert stats.median([-late, late]) == 0, "it is as often the one as the other"
    assert stats.difference(late, 5) == late and stats.difference(late, late) == 0


@given(SAMPLES, SHARES, st.integers(0, 59))
def test_a_failure_makes_no_quantile_earlier(values, q, place):
    failed = [*values]
    failed[place % len(values)] = math.inf
    assert stats.quantile(failed, q) >= stats.quantile(values, q)
    if len(values) > 5:
        ours, its = (stats.median_interval(of, seed=1, resamples=50) for of in (values, failed))
        assert its.low >= ours.low and its.high >= ours.high


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
    assert stats._exact_interval(sorted(values), 0.5, confidence) == Interval(exact.low, exact.high)
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


@pytest.mark.parametrize("q, least", [(0.95, 59), (0.99, 299)])
def test_a_tail_takes_enough_values_for_one_of_them_to_be_beyond(q, least):
    """1 - 0.95^59 is the first above 0.95, as is 1 - 0.99^299."""
    values = lognormal(least, seed=1)
    assert stats.tail(values[1:], q, independent=least - 1) is None
    found = stats.tail(values, q, independent=least)
    assert found.value == stats.quantile(values, q)
    assert found.interval.low < found.value < found.interval.high == max(values)


@pytest.mark.parametrize("q, count", [(0.95, 72), (0.95, 200), (0.95, 3000), (0.99, 400)])
def test_the_interval_of_a_tail_is_scipys(q, count):
    """From 72 values on for p95, with 2.5 % on each side; scipy gives none below that."""
    import scipy.stats

    values = lognormal(count, seed=count)
    exact = scipy.stats.quantile_test(values, p=q).confidence_interval()
    assert stats.tail(values, q, independent=count).interval == Interval(exact.low, exact.high)


@pytest.mark.parametrize("count, repeats", [(59, 1), (65, 1), (80, 1), (150, 1), (60, 3)])
def test_the_interval_of_a_tail_misses_no_oftener_than_it_says(count, repeats):
    """Also if every request is asked three times, and takes each time as long."""
    source, missed = random.Random(count), 0
    for _ in range(2000):
        values = [source.random() for _ in range(count)] * repeats
        found = stats.tail(values, 0.95, independent=count)
        missed += not found.interval.low <= 0.95 <= found.interval.high
    assert 0 < missed / 2000 <= 0.06  # 5 % at most, and chance


def test_repeats_of_few_requests_are_no_tail():
    assert stats.tail([1.0] * 300, 0.95, independent=20) is None
    values = [float(i) for i in range(60)]
    once = stats.tail(values, 0.95, independent=60).interval
    assert stats.tail([*values, *values, *values], 0.95, independent=60).interval == once
    assert stats.tail([*values, *values[:7]], 0.95, independent=60).interval.high == 59


def test_a_tail_of_failures_is_never():
    values = [*[1.0] * 90, *[math.inf] * 10]
    assert stats.tail(values, 0.95, independent=100) == Tail(math.inf, Interval(1, math.inf))


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


# ---- tests


@given(st.lists(st.integers(-3, 9).map(float), min_size=1, max_size=40))
def test_signs_are_tested_as_by_scipy(differences):
    import scipy.stats

    above, below = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    expected = scipy.stats.binomtest(max(above, below), len(differences), alternative="greater")
    assert stats.sign_test(differences) == pytest.approx(min(2 * expected.pvalue, 1))


@given(st.lists(st.sampled_from([-math.inf, -2.0, -1.0, 0.0, 1.0, math.inf]), min_size=6))
def test_the_sign_test_agrees_with_the_exact_interval(differences):
    interval = stats._exact_interval(sorted(differences), 0.5, 0.95)
    is_on_one_side = interval.is_below_zero or interval.is_above_zero
    assert (stats.sign_test(differences) <= 0.05) == is_on_one_side


@given(*[st.lists(st.integers(0, 9).map(float) | st.just(math.inf), min_size=6)] * 2)
def test_rank_sums_are_tested_as_by_scipy(first, second):
    import scipy.stats

    ours = stats.rank_sum_test(first, second)
    if len({*first, *second}) == 1:
        assert ours == 1
    else:
        expected = scipy.stats.mannwhitneyu(first, second, method="asymptotic").pvalue
        assert ours == pytest.approx(expected)


def closed(p_values):
    """Correct as Holm proved it right: by every set of hypotheses that a claim is in."""
    places = range(len(p_values))
    sets = [s for n in places for s in itertools.combinations(places, n + 1)]
    return [
        max(min(len(s) * min(p_values[at] for at in s), 1.0) for s in sets if place in s)
        for place in places
    ]


@given(st.lists(SHARES, max_size=7))
def test_claims_are_corrected_as_by_closed_testing(p_values):
    assert stats.holm(p_values) == pytest.approx(closed(p_values))


def test_claims_are_corrected_by_hand():
    """4 × 0.005, 3 × 0.01, 2 × 0.03, and 0.04 with the one before it."""
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([]) == []


# ---- streams


def test_gaps_are_between_events():
    assert stats.gaps([100, 110, 110, 150]) == [10, 0, 40]
    assert stats.gaps([100]) == stats.gaps([]) == []
