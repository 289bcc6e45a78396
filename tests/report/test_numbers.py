"""Numbers as people read them."""

from datetime import UTC, datetime, timedelta

import pytest

from llmproxy.report import numbers
from llmproxy.report.stats import Interval


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
        (float("inf"), "–"),
    ],
)
def test_times_have_the_unit_that_is_read_best(ms, shown):
    assert numbers.seconds(ms).replace(numbers.NO_BREAK, " ") == shown


def test_both_ends_of_an_interval_have_one_unit():
    shown = numbers.between(Interval(-30, 1200), is_time=True)
    assert shown.replace(numbers.NO_BREAK, " ") == "−0.03 to 1.20 s"
    assert numbers.between(Interval(float("nan"), 2), is_time=True) == "– to 2"


@pytest.mark.parametrize(
    ("amount", "shown"),
    [(0, "0.00"), (12.345, "12.35"), (0.0042, "0.0042"), (0.00000123, "1.2e-06")],
)
def test_money_shows_what_there_is_of_it(amount, shown):
    assert numbers.money(amount) == shown


def test_numbers_show_three_digits():
    shown = [numbers.number(value) for value in (3, 3.14159, 31.4159, 31415.9, -2.5, 1e12)]
    assert shown == ["3", "3.14", "31.4", "31,416", "−2.50", "1e+12"]


def test_a_rate_is_tokens_per_second():
    assert numbers.amount(31.4159, is_time=False) == "31.4/s"
    assert numbers.amount(326.4, is_time=True).replace(numbers.NO_BREAK, " ") == "326 ms"


def test_counts_have_a_plural():
    assert [numbers.count_of(n, "answer") for n in (0, 1, 1200)] == [
        "0 answers",
        "1 answer",
        "1,200 answers",
    ]
    assert numbers.count_of(2, "reply", "replies") == "2 replies"


def test_a_period_names_the_second_day_only_if_it_is_another():
    def stamp(at, day):
        return f"{at:%d %H:%M}" if day else f"{at:%H:%M}"

    began = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    hour, day = timedelta(hours=1), timedelta(days=1)
    assert numbers.period(None, None, stamp) == ""
    assert numbers.period(began, None, stamp) == "since 02 03:04 UTC"
    assert numbers.period(began, began + hour, stamp) == "02 03:04 to 04:04 UTC"
    assert numbers.period(began, began + day, stamp) == "02 03:04 to 03 03:04 UTC"
