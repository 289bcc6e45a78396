"""Arguments as they are streamed: every reader takes them, and what they say stays."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jiter import from_json

from llmproxy.core import chat, payload
from llmproxy.core.argument_text import MAX_DEPTH, ArgumentText
from tests.examples import many_examples
from tests.strategies import ARGUMENT_ODDITIES, argument_texts


def written(*chunks: str) -> str:
    text = ArgumentText()
    return "".join([*map(text.feed, chunks), text.end()])


def nested(levels: int, inside: str = "") -> str:
    return "[" * levels + inside + "]" * levels


READ = {
    "a lone first half": (r'{"a": "x\ud800y"}', {"a": "x\ufffdy"}),
    "a lone second half": (r'{"a": "\uDFFF\u0041"}', {"a": "\ufffdA"}),
    "two first halves, the second of a pair": (r'{"a": "\ud83d\ud83d\ude00"}', {"a": "\ufffd😀"}),
    "a first half before another escape": (r'{"a": "\ud83d\n\ud83d"}', {"a": "\ufffd\n\ufffd"}),
    "a half in a name": (r'{"\udc00": 1}', {"\ufffd": 1}),
    "a pair": (r'{"a": "\ud83d\ude00"}', {"a": "😀"}),
    "a backslash before what looks like one": (r'{"a": "\\ud800"}', {"a": r"\ud800"}),
    "no numbers": (
        '{"a": NaN, "b": [-Infinity,Infinity]}',
        {"a": "NaN", "b": ["-Infinity", "Infinity"]},
    ),
    "beyond a double": ('{"a": -1e999, "b": 1E308}', {"a": "-1e999", "b": 1e308}),
    "too many digits": ('{"a": ' + "9" * 401 + "}", {"a": "9" * 401}),
    "a long fraction": ('{"a": 0.' + "3" * 500 + "}", {"a": 1 / 3}),
    "a backslash before a letter": (
        r'{"a": "C:\Users\new", "b": "\d+\u12"}',
        {"a": "C:\\Users\new", "b": r"\d+\u12"},
    ),
    "a line break in a string": ('{"a":\n"x\ny\t\x01"}', {"a": "x\ny\t\x01"}),
    "as deep as can be sent back": (
        '{"a": ' + nested(MAX_DEPTH - 1) + "}",
        {"a": json.loads(nested(MAX_DEPTH - 1))},
    ),
    "too deep": ('{"a": ' + nested(MAX_DEPTH, '"]\\n"') + ', "b": 1}', None),
    "far too deep": ('{"a": ' + nested(5000, r'"\ud800"') + "}", None),
}


@pytest.mark.parametrize("text, value", READ.values(), ids=READ)
def test_what_a_reader_refuses_or_cannot_send_back_is_written_otherwise(text, value):
    read = chat.parse_arguments(text)
    assert read == value or value is None
    assert from_json(written(text).encode()) == json.loads(written(*text)) == read
    assert json.loads(json.dumps(read, allow_nan=False, ensure_ascii=False).encode()) == read


def test_a_value_that_is_too_deep_becomes_its_text():
    value = chat.parse_arguments('{"a": ' + nested(MAX_DEPTH, '"]\\n"') + ', "b": 1}')
    assert value["b"] == 1
    value = value["a"]
    for _ in range(MAX_DEPTH - 2):
        [value] = value
    assert value == ['["]\\n"]']


@pytest.mark.parametrize(
    "text",
    [
        '{"a": ',
        '{"a" 1}',
        "{'a': 1}",
        '{"a": True}',
        '{"a": 01',
        '{}{"a": NaN}',
        '{"a": "\\',
        "[NaN]",
    ],
)
def test_what_is_broken_otherwise_stays_as_it_was(text):
    assert chat.parse_arguments(text) == {"_raw": text}


@given(argument_texts() | st.sampled_from(ARGUMENT_ODDITIES), st.data())
@many_examples(300)
def test_any_cut_is_written_alike_and_json_stays_the_same(text, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert written(*chunks) == written(*text) == written(text)
    if text.strip().startswith("{"):
        try:
            value = payload.parse(text.encode())
        except payload.InvalidRequest:
            return
        if payload.measure(value, 2**20)[1] <= MAX_DEPTH:
            assert payload.parse(written(text).encode()) == chat.parse_arguments(text) == value
