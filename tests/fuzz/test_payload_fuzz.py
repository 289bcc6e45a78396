"""Any bytes are JSON that an answer could repeat, or an InvalidRequest: never another error."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmproxy.core import payload
from llmproxy.core.errors import InvalidRequest
from llmproxy.core.limits import Limits
from tests.fuzz.corpus import cases
from tests.fuzz.json_text import texts_like_json

LIMITS = Limits(json_depth=100, int_digits=400)
OUR_LIMITS = ("nests deeper", "digits", "too large", "is not JSON", "not UTF-8")


def depth(value):
    level, count = [value], 0
    while level := [each for each in level if isinstance(each, dict | list)]:
        count += 1
        level = [c for v in level for c in (v.values() if isinstance(v, dict) else v)]
    return count


def check(text):
    try:
        value = payload.parse(text, LIMITS)
    except InvalidRequest as refused:
        assert refused.message.isprintable()
        try:
            json.loads(text.decode("utf-8"))
        except (ValueError, RecursionError):
            return  # json refuses it too
        assert any(words in refused.message for words in OUR_LIMITS)
        return
    again = payload.encode(value)  # neither NaN nor a lone surrogate
    assert payload.parse(again, LIMITS) == value
    assert depth(value) <= LIMITS.json_depth
    if b"\\u" not in text:
        assert json.loads(text.decode("utf-8-sig")) == value


@given(texts_like_json() | st.binary(max_size=40))
def test_any_text_is_read_or_refused(text):
    check(text)


@pytest.mark.slow
@given(texts_like_json() | st.binary(max_size=40))
@settings(max_examples=600)
def test_very_many_texts_are_read_or_refused(text):
    check(text)


@pytest.mark.parametrize("text", cases("payload"))
def test_case_of_the_corpus(text):
    check(text)
