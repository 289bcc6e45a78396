"""Large JSON is read and written in pieces, with the results and errors of json itself."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmproxy.core import json_pieces, payload
from llmproxy.core.errors import InvalidRequest
from llmproxy.core.limits import Limits
from tests.strategies import json_values


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(json_pieces, "PIECE", 16)
    monkeypatch.setattr(json_pieces, "BYTES_PIECE", 5)


def whole(monkeypatch, read, *arguments: Any) -> Any:
    """Give what json alone makes of it."""
    with monkeypatch.context() as changed:
        changed.setattr(json_pieces, "PIECE", 10**9)
        changed.setattr(json_pieces, "BYTES_PIECE", 10**9)
        return outcome(read, *arguments)


def outcome(read, *arguments: Any) -> Any:
    try:
        value = read(*arguments)
    except InvalidRequest as error:
        return error.message, error.param
    # Values that are equal may have members in another order, or other types: 1 and 1.0.
    return json.dumps(value), repr(value)


texts = st.one_of(
    json_values().map(json.dumps),
    json_values().map(lambda value: json.dumps(value, indent=3, ensure_ascii=False)),
    st.lists(json_values(), min_size=3).map(lambda value: json.dumps(value, indent=1)),
)
mistakes = st.sampled_from(
    [*'[]{}",:\\ue+-.0 \n\t\x00', "NaN", "-Infinity", "1e999", "1" * 401, r"\ud800", "1,", "\ufeff"]
)


def test_text_that_nests_deeper_than_python_is_refused(monkeypatch):
    """Where recursion ends differs between Pythons, and in them between C and Python code."""
    text = b'{"a":' * 5_000
    too_deep = ("the body nests deeper than 100 levels", None)
    assert outcome(payload.parse, text) in (too_deep, whole(monkeypatch, payload.parse, text))


@given(texts, st.data())
def test_any_text_with_mistakes_reads_as_json_reads_it(text, data):
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + data.draw(mistakes) + text[at + data.draw(st.integers(0, 2)) :]
    with pytest.MonkeyPatch.context() as monkeypatch:
        encoded = text.encode("utf-8", "surrogatepass")
        assert outcome(payload.parse, encoded) == whole(monkeypatch, payload.parse, encoded)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " " * 40,
        '{"a": 1, "b": {"a": 2, "c": "..............................."}, "a": 3}',
        f"[1.5, {'9' * 399}.5e-300, 2]",
        f"[{'9' * 401}.5e-300]",
        f"[{'9' * 401}]",
        f"[1.{'0' * 40}e+{'0' * 40}1, -{'0' * 0}1]",
        f"[true, {' ' * 40} false, null, NaN]",
        "[-Infinity, 1, 2, 3, 4, 5, 6, 7]",
        "1, 2, 3, 4, 5, 6, 7, 8, 9, 10",
        "[1, 2, 3, 4, 5, 6, 7, 8, 9, 10,]",
        "[1, 2, 3, 4, 5, 6, 7, 8, 9, 10,           ]",
        '{"a": 1, "b": 2, "c": 3, "d": 4,}',
        '{"a": 1, "b": 2, "c": 3, "d" 4}',
        '{"a": 1, "b": 2, "c": 3, "d": }',
        '{"a": 1, "b": 2, "c": 3, 4: 4}',
        '{"a": 1, "b": 2, "c": 3 "d": 4}',
        '{"a": "' + "x" * 40,
        '["' + "x" * 40 + r"\u12",
        '["' + "x" * 40 + r"\ud83c\udf0a" + "x" * 40 + r"\q" + '"]',
        '["' + r"\ud83c\udf0a" * 10 + r"\ud83c" + '"]',
        '["' + "x" * 40 + '\n"]',
        "[" * 101 + "]" * 101,
        "[" * 100 + "]" * 100,
        "[" * 200_000,
    ],
)
def test_text_reads_as_json_reads_it(monkeypatch, text):
    encoded = text.encode()
    assert outcome(payload.parse, encoded) == whole(monkeypatch, payload.parse, encoded)


@pytest.mark.parametrize("levels", [399, 400, 401])
def test_the_deepest_value_may_be_long_at_every_level(monkeypatch, levels):
    long = "x" * 40
    text = (f'["{long}",' * levels + "1" + f',"{long}"]' * levels).encode()
    limits = Limits(json_depth=levels)
    read = outcome(payload.parse, text, limits)
    assert read == whole(monkeypatch, payload.parse, text, limits)
    assert (read == ("the body nests deeper than 400 levels", None)) == (levels == 401)


@given(st.binary(max_size=40), st.text(max_size=40))
@example(b"\xf0\x9f\x98\x80\x80", "")
@example(b"\xef\xbb\xbfabc\xff", "")
@example(b"abcd\xf0\x9f", "")
@example(b"", "\ufeff\ufeffabc")
def test_bytes_decode_as_python_decodes_them(noise, text):
    def decoded(data: bytes, decode) -> Any:
        try:
            return decode(data)
        except UnicodeDecodeError as error:
            return error.start, error.end, error.reason

    for data in (noise, text.encode() + noise, noise + text.encode()):
        expected = decoded(data, lambda data: data.decode("utf-8-sig"))
        assert decoded(data, json_pieces.decode) == expected


@given(st.binary(max_size=40))
def test_marks_are_counted(data):
    assert json_pieces.count(data, b",") == data.count(b",")


@given(json_values() | st.text())
def test_a_value_is_written_as_json_writes_it(value):
    for ensure_ascii in (False, True):
        encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, separators=(",", ":"))
        assert json_pieces.encode(encoder, value) == encoder.encode(value)


@given(st.text(alphabet='\\\\",:[{x', max_size=60), st.integers(1, 8))
def test_values_are_counted_in_pieces_as_at_once(text, most):
    """The text is as hostile as it gets, and need not be JSON."""

    def refused(piece: int) -> bool:
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(json_pieces, "PIECE", piece)
            try:
                payload.check_count(text.encode(), most, "the body")
            except InvalidRequest:
                return True
        return False

    assert refused(4) == refused(10**9)


def members(count: int) -> str:
    return json.dumps({"x": {f"name-{i}": {"a": ["v"]} for i in range(count)}})


def test_no_call_into_c_is_given_more_than_a_piece(monkeypatch):
    """What is counted: the characters that each call of json's scanner passes."""
    monkeypatch.setattr(json_pieces, "PIECE", 1_000)
    passed = []

    class Counting(json_pieces.PiecewiseDecoder):
        def __init__(self, **hooks: Any) -> None:
            super().__init__(**hooks)
            scan = self._scan

            def counted(text: str, at: int) -> tuple[Any, int]:
                passed.append(len(text) - at)
                return scan(text, at)

            self._scan = counted

    text = members(5_000)
    assert json.loads(text, cls=Counting) == json.loads(text)
    assert max(passed) <= 1_000
    assert sum(passed) < 1_000 * len(passed)
    assert len(passed) < 3 * 5_000 + len(text) / 100  # each value once, and again at an edge
    assert sys.getrecursionlimit() >= 1_000


@given(st.dictionaries(st.text(max_size=3), json_values() | st.lists(json_values()), max_size=5))
def test_the_places_of_items_are_those_of_the_list(value):
    decoder = json_pieces.ItemDecoder()
    text = json.dumps(value)
    decoder.decode(text)
    assert [items for items, _, _ in decoder.lists] == [
        member for member in value.values() if isinstance(member, list)
    ]
    for items, start, ends in decoder.lists:
        places = zip([start, *ends], ends, strict=False)
        assert [json.loads(text[at:end].lstrip(", ")) for at, end in places] == items
