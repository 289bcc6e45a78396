"""Answers compared: texts, JSON, tool calls, schemas."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm.parts import Message, ReasoningPart, TextPart, ToolCallPart

from llmproxy.report.agreement import MAX_WORDS, Agreement, agreement, similarity
from llmproxy.report.json_schema import Validity


def said(*parts):
    return [Message("assistant", [TextPart(p) if isinstance(p, str) else p for p in parts])]


def call(name, arguments, id=None, **options):
    return ToolCallPart(name, arguments, id, **options)


def test_the_same_text_is_the_same_whatever_was_thought():
    first = said(ReasoningPart("Hm."), "One ", "answer.\n")
    second = [*said("One answer."), *said(ReasoningPart("Ah!"))]
    assert agreement(first, second) == Agreement(True, 1.0, None, None, None)


def test_another_text_is_alike_by_its_words():
    assert agreement(said("The cat sat."), said("The dog sat.")) == Agreement(
        False, 0.75, None, None, None
    )
    assert agreement(said("One"), said()) == Agreement(False, 0.0, None, None, None)
    assert agreement([], said()) == Agreement(True, None, None, None, None)


def test_json_is_compared_as_values():
    first = said('{"a": 1, "b": [true]}')
    same = agreement(first, said('```json\n{"b": [true], "a": 1.0}\n```'))
    assert (same.exact_text, same.same_json) == (False, True)
    assert agreement(first, said('{"a": 1}')).same_json is False
    assert agreement(first, said("It is 1.")).same_json is False
    assert agreement(said("It is 1."), first).same_json is None


def test_tool_calls_are_the_same_in_any_order_and_under_any_id():
    look, find = call("look", {"at": 1, "how": "x"}, "1"), call("find", {}, "2")
    first = said("Let me see.", look, find)
    second = said(call("find", {}, "7"), call("look", {"how": "x", "at": 1.0}, "8"))
    assert agreement(first, second).same_tool_calls is True


@pytest.mark.parametrize(
    "others",
    [
        [],
        [call("look", {"at": 1}), call("look", {"at": 1}), call("look", {"at": 1})],
        [call("look", {"at": 1})],
        [call("look", {"at": 1}), call("look", {"at": 2})],
        [call("look", {"at": 1}), call("find", {"at": 1})],
        [call("look", {"at": 1}), call("look", {"at": "1"})],
        [call("look", {"at": 1}), call("look", {"at": True})],
    ],
)
def test_other_calls_or_another_number_of_them_are_not_the_same(others):
    first = said(call("look", {"at": 1}), call("look", {"at": 1}))
    assert agreement(first, said(*others)).same_tool_calls is False
    assert agreement(said(*others), first).same_tool_calls is False


def test_what_the_providers_own_tools_did_is_not_compared():
    first = said(call("web_search", {"q": "x"}, server_executed=True), "Yes.")
    assert agreement(first, said("Yes.")) == Agreement(True, 1.0, None, None, None)


def test_the_second_reply_is_validated():
    schema = {"type": "object", "required": ["a"], "minProperties": 1}
    first = said("nothing")
    assert agreement(first, said('{"a": 1}'), schema).schema == Validity(None, ("minProperties",))
    assert agreement(first, said("{}"), schema).schema == Validity("a is missing", ())
    problem = agreement(first, said("{"), schema).schema.problem
    assert problem.startswith("the reply is not JSON: Expecting property name")
    assert agreement(first, said(""), schema).schema.problem == "the reply is empty"


# ---- similarity


@pytest.mark.parametrize(
    "one, other, share",
    [
        ("", "", 1),
        (" \n", "", 1),
        ("a", "", 0),
        ("a b c", "a b c", 1),
        ("a  b\nc", "a b c", 1),
        ("a b c d", "a c", 4 / 6),
        ("a b", "b a", 0.5),
        ("Hi!", "Hi.", 0.5),
        ("今日は晴れ", "今日は雨", 6 / 9),
        ("größer café_1", "größer cafe_1", 0.5),
    ],
)
def test_similarity_by_hand(one, other, share):
    assert similarity(one, other) == pytest.approx(share)
    assert similarity(other, one) == pytest.approx(share)


def by_table(first, second):
    """The length of the longest common subsequence, by the table of the textbooks."""
    row = [0] * (len(first) + 1)
    for word in second:
        before = row
        row = [0]
        for index, other in enumerate(first):
            row.append(before[index] + 1 if word == other else max(before[index + 1], row[index]))
    return row[-1]


WORDS = st.lists(st.sampled_from("abcd"), max_size=80)


@given(WORDS, WORDS)
def test_similarity_is_that_of_the_longest_common_subsequence(first, second):
    share = similarity(" ".join(first), " ".join(second))
    total = len(first) + len(second)
    assert share == (2 * by_table(first, second) / total if total else 1)


@given(st.text(), st.text())
def test_similarity_is_symmetric_and_a_share(one, other):
    assert 0 <= similarity(one, other) == similarity(other, one) <= 1
    assert similarity(one, one) == 1


def test_long_texts_are_compared_by_their_beginning_and_in_time():
    one, other = "a b " * MAX_WORDS, "b b a " * MAX_WORDS
    began = time.process_time()
    share = similarity(one, other)
    assert time.process_time() - began < 2
    assert share == similarity(one[: 2 * MAX_WORDS], other[: 2 * MAX_WORDS])
