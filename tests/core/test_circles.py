"""Circles are found, each once, whatever leads to them."""

from hypothesis import given
from hypothesis import strategies as st

from llmproxy.core.circles import find_circles


def test_a_chain_has_no_circle():
    assert find_circles({"c": "b", "b": "a", "a": None, "d": "gone"}) == []


def test_what_follows_itself_is_a_circle():
    assert find_circles({"b": "a", "a": "a"}) == [["a"]]


def test_each_circle_is_found_once():
    before = {"x": "a", "a": "b", "b": "c", "c": "a", "y": "c", "d": "e", "e": "d"}
    assert find_circles(before) == [["a", "b", "c"], ["d", "e"]]


@given(st.dictionaries(st.sampled_from("abcdef"), st.sampled_from("abcdefg") | st.none()))
def test_without_its_circles_everything_has_an_end(before):
    circles = find_circles(before)
    for circle in circles:
        assert [before[id] for id in circle] == circle[1:] + circle[:1]
    cut = before | {circle[0]: None for circle in circles}
    for id in before:
        for _ in range(len(before) + 1):
            id = cut.get(id)
        assert id is None
