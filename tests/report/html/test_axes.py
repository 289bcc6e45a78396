import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.report.html import axes

ANY = st.lists(st.floats() | st.floats(0, 1e6) | st.just(7.0), max_size=20)


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([100, 1900], ["0", "0.5 s", "1 s", "1.5 s"]),
        ([100, 100_000], ["100 ms", "300 ms", "1 s", "3 s", "10 s", "30 s", "100 s"]),
        ([1, 30], ["1 ms", "2 ms", "5 ms", "10 ms", "20 ms"]),
        ([0, 0], ["0", "0.5 ms", "1 ms"]),
        ([5, 5, 5], ["0", "2 ms", "4 ms", "6 ms"]),
        ([900, 1000], ["0.9 s", "0.95 s", "1 s"]),
        ([], ["0", "0.5 ms", "1 ms"]),
        ([1e-5, 1e9], ["1 s", "10 s", "100 s", "1,000 s", "10,000 s", "100,000 s", "1,000,000 s"]),
        ([998, 1000], ["0.998 s", "0.999 s", "1 s"]),
    ],
)
def test_ticks_are_round_and_logarithmic_where_values_are_far_apart(values, ticks):
    assert [label for _, label in axes.time_axis(values, 0, 100).marks] == ticks


def test_zero_lies_at_the_beginning_of_a_logarithmic_axis():
    axis = axes.time_axis([0, 1, 1000], 10, 90)
    assert axis.at(0) == 10
    assert axis.at(1) < axis.at(30) < axis.at(1000) < 90


def test_plain_numbers_have_no_unit_and_may_run_upwards():
    axis = axes.plain_axis([0.8, 1.0], 200, 0)
    assert [label for _, label in axis.marks] == ["0.8", "0.9", "1"]
    assert axis.at(1.0) < axis.at(0.8)
    assert [label for _, label in axes.plain_axis([0, 7000], 0, 1).marks][-1] == "6,000"


@given(ANY, st.sampled_from([True, False]))
def test_any_values_lie_on_the_axis_in_their_order(values, is_time):
    drawn = axes.drawable(values)
    axis = (axes.time_axis if is_time else axes.plain_axis)(drawn, 0, 100)
    places = [axis.at(value) for value in sorted(drawn)]
    assert places == sorted(places)
    for place in [*places, *(place for place, _ in axis.marks)]:
        assert math.isfinite(place) and -0.001 <= place <= 100.001
    assert len(axis.marks) <= 7
