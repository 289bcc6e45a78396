"""Numbers as people read them."""

from datetime import UTC, datetime, timedelta

import pytest

from llmproxy.report import numbers
from llmproxy.report.stats import Interval

INF = float("inf")


def test_a_long_name_loses_its_middle():
    assert numbers.shortened("anthropic/claude-haiku-4.5", 12) == "anthr…ku-4.5"


@pytest.mark.parametrize(
    ("ms", "shown"),
    [
        (0, "0 ms"),
        (0.26, "0.3 ms"),
        (9.96, "10.0 ms"),
        (326.4, "326 ms"),
        (999.7, "1.00 s"),
        (1042, "1.04 s"),
        (-1042, "−1.04 s"),
        (-0.04, "0.0 ms"),
        (-0.06, "−0.1 ms"),
        (123_456, "123 s"),
        (float("nan"), "–"),
        (float("inf"), "never"),
    ],
)
def test_times_have_the_unit_that_is_read_best(ms, shown):
    assert numbers.seconds(ms).replace(numbers.NO_BREAK, " ") == shown


def test_both_ends_of_an_interval_have_one_unit():
    shown = numbers.between(Interval(-30, 1200), "ttft_ms")
    assert shown.replace(numbers.NO_BREAK, " ") == "−0.03 to 1.20 s"
    assert numbers.between(Interval(2, 3.14159), "tokens_per_second") == "2 to 3.14"
    assert numbers.between(Interval(-0.125, 1), "similarity") == "−0.12 to 1.00"


@pytest.mark.parametrize(
    ("low", "high", "measure", "shown"),
    [
        (10.8, 11.2, "ttft_ms", "10.8 to 11.2 ms"),
        (0.09, 0.12, "ttft_ms", "0.09 to 0.12 ms"),
        (-0.02, 0.04, "ttft_ms", "−0.02 to 0.04 ms"),
        (120_001, 120_002, "duration_ms", "120.001 to 120.002 s"),
        (0.9951, 0.9979, "similarity", "0.995 to 0.998"),
        (100.2, 100.4, "tokens_per_second", "100.2 to 100.4"),
        (11, 11, "ttft_ms", "11 to 11 ms"),
        (11, 11 + 1e-9, "ttft_ms", "11 to 11 ms"),
    ],
)
def test_ends_of_an_interval_that_differ_look_different(low, high, measure, shown):
    found = numbers.between(Interval(low, high), measure)
    assert found.replace(numbers.NO_BREAK, " ") == shown


@pytest.mark.parametrize(
    ("low", "high", "shown", "of_difference"),
    [
        (20, INF, "20 ms or more", "20 ms or more"),
        (-INF, 20, "20 ms or less", "20 ms or less"),
        (-INF, INF, "any", "any"),
        (INF, INF, "never", "first: none"),
        (-INF, -INF, None, "second: none"),
    ],
)
def test_an_interval_without_an_end_has_the_other(low, high, shown, of_difference):
    interval = Interval(low, high)
    if shown is not None:  # no time is as early as that
        assert numbers.between(interval, "ttft_ms").replace(numbers.NO_BREAK, " ") == shown
    found = numbers.difference_between(interval, "ttft_ms")
    assert found.replace(numbers.NO_BREAK, " ") == of_difference


def test_a_difference_from_a_failure_names_it():
    shown = [numbers.difference(value, "ttft_ms") for value in (INF, -INF, -20)]
    assert shown == ["first: none", "second: none", f"−20{numbers.NO_BREAK}ms"]


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        (0, "0.00"),
        (12.345, "12.35"),
        (1_234_567_890_123, "1,234,567,890,123.00"),
        (0.5, "0.5000"),
        (0.0042, "0.0042"),
        (0.000051, "0.000051"),
        (-0.000051, "−0.000051"),
        (0.00000123, "0.0000012"),
    ],
)
def test_money_shows_what_there_is_of_it(amount, shown):
    assert numbers.money(amount) == shown


def test_numbers_show_three_digits():
    shown = [numbers.number(value) for value in (3, 3.14159, 31.4159, 31415.9, -2.5, 1e12)]
    assert shown == ["3", "3.14", "31.4", "31,416", "−2.50", "1e+12"]


def test_a_rate_is_tokens_per_second():
    assert numbers.amount(31.4159, "tokens_per_second") == "31.4/s"
    assert numbers.amount(326.4, "duration_ms").replace(numbers.NO_BREAK, " ") == "326 ms"
    assert numbers.amount(0.5, "similarity") == "0.50"


def test_counts_have_a_plural():
    assert [numbers.count_of(n, "answer") for n in (0, 1, 1200)] == [
        "0 answers",
        "1 answer",
        "1,200 answers",
    ]
    assert numbers.count_of(2, "reply", "replies") == "2 replies"


def test_a_period_names_the_second_day_only_if_it_is_another():
    def stamp(at, day, seconds):
        return f"{at:%d %H:%M}" if day else f"{at:%H:%M}"

    began = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    hour, day = timedelta(hours=1), timedelta(days=1)
    assert numbers.period(None, None, stamp) == ""
    assert numbers.period(began, None, stamp) == "since 02 03:04 UTC"
    assert numbers.period(began, began + hour, stamp) == "02 03:04 to 04:04 UTC"
    assert numbers.period(began, began + day, stamp) == "02 03:04 to 03 03:04 UTC"


def test_a_period_within_a_minute_has_seconds_and_one_within_a_second_no_end():
    def stamp(at, day, seconds):
        return f"{at:%d %H:%M}"[0 if day else 3 :] + (f"{at::%S}" if seconds else "")

    began = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    ended = began + timedelta(seconds=7)
    assert numbers.period(began, ended, stamp) == "02 03:04:00 to 03:04:07 UTC"
    assert numbers.period(began, began + timedelta(microseconds=7), stamp) == "02 03:04:00 UTC"
    assert numbers.period(began, began + timedelta(minutes=1), stamp) == "02 03:04 to 03:05 UTC"


@pytest.mark.usefixtures("in_berlin")
def test_a_period_is_in_local_time_and_names_both_offsets_if_they_differ():
    def stamp(at, day, seconds):
        return f"{at:%d %H:%M}" if day else f"{at:%H:%M}"

    began = datetime(2026, 10, 24, 21, 30, tzinfo=UTC)
    hour, day = timedelta(hours=1), timedelta(days=1)
    assert numbers.period(began, began + hour, stamp) == "24 23:30 to 25 00:30 UTC+02:00"
    assert numbers.period(began, began + day, stamp) == "24 23:30 UTC+02:00 to 25 22:30 UTC+01:00"
    assert numbers.period(began, None, stamp) == "since 24 23:30 UTC+02:00"


def test_long_times_have_larger_units():
    shown = {
        1_500: "1.50 s",
        125_000: "2 min 5 s",
        3_599_400: "59 min 59 s",
        5_400_000: "1 h 30 min",
    }
    for ms, text in shown.items():
        assert numbers.duration(ms).replace(numbers.NO_BREAK, " ") == text
    assert numbers.duration(4 * 86_400_000).replace(numbers.NO_BREAK, " ") == "4 days"
