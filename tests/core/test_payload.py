"""JSON text to checked dataclasses: what is taken, what is refused, and where the error points."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import time
import tracemalloc
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmproxy.core import payload
from llmproxy.core.errors import InvalidRequest
from llmproxy.core.limits import Limits
from tests.strategies import AWKWARD, json_values, texts


def refusal(function, *args, **kwargs):
    """Give the message and the path of the InvalidRequest that a call must raise."""
    with pytest.raises(InvalidRequest) as caught:
        function(*args, **kwargs)
    assert type(caught.value) is InvalidRequest
    return caught.value.message, caught.value.param


# ---- text to values

TEXTS = {
    "an object": (b'{"a": [1, 2.5, true, null, "x"]}', {"a": [1, 2.5, True, None, "x"]}),
    "white space around": (b" \r\n\t[] ", []),
    "a byte order mark, as Windows tools write it": (b"\xef\xbb\xbf{}", {}),
    "a doubled key: the last counts": (b'{"a": 1, "a": 2}', {"a": 2}),
    "an escaped pair is one character": (rb'"\ud83c\udf0a"', "🌊"),
    "a high half alone (B18)": (rb'"a\ud83cb"', "a\ufffdb"),
    "a low half alone (B18)": (rb'"\udf0a"', "\ufffd"),
    "halves in the wrong order (B18)": (rb'"\udf0a\ud83c"', "\ufffd\ufffd"),
    "a half at the end, in capitals (B18)": (rb'"x\uD83C"', "x\ufffd"),
    "halves in keys and deep down (B18)": (
        rb'{"\ud800": [{"a": "\ud800"}]}',
        {"\ufffd": [{"a": "\ufffd"}]},
    ),
    "an escaped backslash before u is no escape": (rb'"\\ud800"', r"\ud800"),
    "a byte order mark as text beside a half": (rb'"\ufeff\ud800\ufeff"', "\ufeff\ufffd\ufeff"),
    "NUL and U+2028": ('"\\u0000\u2028"'.encode(), "\0\u2028"),
    "a long integer": (b"9" * 400, int("9" * 400)),
    "a long negative integer": (b"-" + b"9" * 400, -int("9" * 400)),
    "the largest double": (b"1.7976931348623157e308", 1.7976931348623157e308),
    "a number too small to tell from 0": (b"1e-999", 0.0),
}


@pytest.mark.parametrize("text, value", TEXTS.values(), ids=TEXTS)
def test_text_reads_as(text, value):
    assert payload.parse(text) == value


BAD_TEXTS = {
    "nothing": (b"", "the body is empty"),
    "half": (b'{"a":\n ', "the body is not JSON: Expecting value at line 2 column 2"),
    "two values": (b"{} {}", "the body is not JSON: Extra data at line 1 column 4"),
    "single quotes": (
        b"{'a': 1}",
        "the body is not JSON: Expecting property name enclosed in double quotes"
        " at line 1 column 2",
    ),
    "a raw control character": (
        b'"a\nb"',
        "the body is not JSON: Invalid control character at line 1 column 3",
    ),
    "a string without an end": (
        b'{"a":\n "b',
        "the body is not JSON: Unterminated string starting at line 2 column 2",
    ),
    "two byte order marks": (
        b"\xef\xbb\xbf\xef\xbb\xbf{}",
        "the body is not JSON: Unexpected UTF-8 BOM (decode using utf-8-sig) at line 1 column 1",
    ),
    "latin-1": (b'"caf\xe9"', "the body is not UTF-8 (byte 4)"),
    "a surrogate in UTF-8's form": (b'"\xed\xa0\x80"', "the body is not UTF-8 (byte 1)"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "the body is not UTF-8 (byte 0)"),
    "NaN": (b"[NaN]", "NaN is not JSON"),
    "Infinity": (b"-Infinity", "-Infinity is not JSON"),
    "a double too large": (b"1e999", "a number is too large"),
    "an integer too long": (b"1" * 401, "a number has more than 400 digits"),
    "lists too deep": (b"[" * 101 + b"]" * 101, "the body nests deeper than 100 levels"),
    "objects too deep": (
        b'{"a":' * 101 + b"1" + b"}" * 101,
        "the body nests deeper than 100 levels",
    ),
    "far too deep": (b"[" * 200_000, "the body nests deeper than 100 levels"),
}


@pytest.mark.parametrize("text, message", BAD_TEXTS.values(), ids=BAD_TEXTS)
def test_text_is_refused(text, message):
    assert refusal(payload.parse, text) == (message, None)


def test_as_deep_as_the_limit_is_read():
    assert payload.parse(b"[" * 100 + b"]" * 100) is not None
    limits = Limits(json_depth=2)
    assert payload.parse(b'[{"a": 1}]', limits) == [{"a": 1}]
    assert refusal(payload.parse, b'[{"a": []}]', limits) == (
        "the body nests deeper than 2 levels",
        None,
    )


def test_limits_above_pythons_own_are_refused_all_the_same():
    for levels in (401, 700, 10_000, 1_000_000):
        deep = b"[" * levels + rb'"\ud800"' + b"]" * levels
        limits = Limits(json_depth=10_000_000, json_values=10_000_000)
        assert refusal(payload.parse, deep, limits) == (
            "the body nests deeper than 400 levels",
            None,
        )
    assert refusal(payload.parse, b"1" * 5_000, Limits(int_digits=10_000)) == (
        "a number has more than 4300 digits",
        None,
    )


def test_the_deepest_value_that_is_read_can_be_used():
    deep = b"[" * 400 + rb'"\ud800"' + b"]" * 400
    value = payload.parse(deep, Limits(json_depth=10_000))
    assert payload.encode(payload.with_double_numbers(value)) == deep.replace(
        rb"\ud800", "\ufffd".encode()
    )


def test_a_value_is_measured_in_bytes_and_levels():
    assert payload.measure("x" * 1_000, 10**6) == (1_060, 0)
    assert payload.measure({"ab": ["x" * 1_000, 1, None]}, 10**6) == (5 * 60 + 1_002, 2)
    assert payload.measure([], 10**6) == (60, 1)
    assert payload.measure((b"xy", ()), 10**6) == (3 * 60 + 2, 2)


def test_a_value_that_contains_itself_is_measured_to_the_end_of_what_may_be():
    value: dict[str, Any] = {}
    value["self"] = value
    assert payload.measure(value, 10**9)[1] == payload.MAX_DEPTH + 1
    many: list[Any] = []
    many.extend([many] * 1_000)
    assert payload.measure(many, 10**6)[0] > 10**6


@pytest.mark.parametrize(
    "text",
    [
        b"[" + b"{}," * 3_000_000 + b"1]",  # 3 kB of gzip
        b"[" + b'"",' * 3_000_000 + b"1]",
        b"[" + b"1," * 3_000_000 + b"1]",
        b"{" + b'"":0,' * 3_000_000 + b'"":1}',
        b"[" * 3_000_000,
        b'["",' + b"[],[" * 1_000_000,
    ],
)
def test_many_values_are_refused_before_one_is_made(text):
    tracemalloc.start()
    try:
        message = refusal(payload.parse, text)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert message == ("the body has more than 500000 JSON values (limit json_values)", None)
    assert peak < 4 * len(text)


@pytest.mark.parametrize("word", [",", ":", "[{", r"\"", r"\\", r"\",", r"\\,", r"\\\",", "☃,"])
def test_punctuation_inside_of_strings_does_not_count(word):
    many = word * 1_000
    limits = Limits(json_values=4)
    text = f'["{many}", "{many}", 3]'.encode()
    assert len(payload.parse(text, limits)) == 3
    text = f'["{many}", "{many}", 3, 4, 5]'.encode()
    assert "more than 4 JSON values" in refusal(payload.parse, text, limits)[0]


@given(json_values())
def test_a_value_is_not_refused_for_fewer_values_than_the_limit(value):
    def count(value: Any) -> int:
        if isinstance(value, dict):
            return 1 + sum(1 + count(member) for member in value.values())
        return 1 + (sum(map(count, value)) if isinstance(value, list) else 0)

    assert payload.parse(payload.encode(value), Limits(json_values=2 * count(value))) == value


def test_hostile_numbers_cost_nothing():
    began = time.process_time()
    refusal(payload.parse, b"[" + b"9" * 4_000_000 + b"]")
    refusal(payload.parse, b"[" + b"9" * 4_000_000 + b"e1]")
    assert time.process_time() - began < 1


@given(json_values())
def test_any_value_encoded_reads_back(value):
    text = payload.encode(value)
    assert payload.parse(text) == value
    assert b"\n" not in text and b"\r" not in text  # one line, as SSE needs it


@given(json_values(), st.booleans())
def test_json_of_other_writers_reads_the_same(value, ensure_ascii):
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=2)
    assert payload.parse(text.encode()) == value


def check_read_or_refused(data):
    """Garbage raises InvalidRequest and nothing else; what was read can be written."""
    try:
        value = payload.parse(data)
    except InvalidRequest:
        return
    payload.encode(value)


@given(st.one_of(st.binary(), st.from_regex(rb'[\[\]{}",:0-9.eE+\-\\ud8truefalsn ]{0,40}')))
def test_any_bytes_are_read_or_refused(data):
    check_read_or_refused(data)


@pytest.mark.slow
@given(st.binary(max_size=200), json_values(60))
@settings(max_examples=600, deadline=None)
def test_any_bytes_within_any_json_are_read_or_refused(noise, value):
    text = payload.encode(value)
    for at in (0, len(text) // 2, len(text)):
        check_read_or_refused(text[:at] + noise + text[at:])


# ---- values to text


@given(texts())
def test_a_string_is_encoded_as_json_alone_would(text):
    assert payload.encode_string(text) == json.dumps(text, ensure_ascii=False)


def test_values_are_encoded_compact_and_unescaped():
    value = {"a": [1, 2.5, None, True], "b": "渐\u2028\0"}
    assert payload.encode(value) == '{"a":[1,2.5,null,true],"b":"渐\u2028\\u0000"}'.encode()


@pytest.mark.parametrize("value", [math.nan, math.inf, "\ud800", ["\udfff"], {"\ud800": 1}])
def test_what_no_client_could_read_is_not_encoded(value):
    with pytest.raises(ValueError):
        payload.encode(value)


# ---- values to shapes


@dataclass(frozen=True)
class Text:
    text: str
    type: Literal["text"] = "text"


@dataclass(frozen=True)
class Picture:
    type: Literal["picture", "photo"]
    url: str | None = None


@dataclass(frozen=True)
class Sheet:
    """A field of every kind that a shape may have."""

    name: str
    parts: list[Text | Picture] = ()
    content: str | list[Text] | None = None
    count: int | None = None
    share: float | None = None
    is_open: bool | None = None
    mode: Literal["auto", "none"] | Text | None = None
    sort: Literal["only"] = "only"
    weights: dict[str, float] | None = None
    inner: Sheet | None = None
    anything: Any = None


def load(**fields):
    return payload.load(Sheet, fields)


def test_every_kind_of_field_is_read():
    sheet = load(
        name="a",
        parts=[{"text": "hi"}, {"type": "photo", "url": "u"}],
        content=[{"type": "text", "text": "x"}],
        count=3,
        share=1,
        is_open=False,
        mode="none",
        weights={"50256": -100},
        inner={"name": "b", "mode": {"text": "t"}},
        anything={"a": [None]},
    )
    assert sheet == Sheet(
        name="a",
        parts=(Text("hi"), Picture("photo", "u")),
        content=(Text("x"),),
        count=3,
        share=1,
        is_open=False,
        mode="none",
        weights={"50256": -100},
        inner=Sheet("b", mode=Text("t")),
        anything={"a": [None]},
    )


def test_numbers_keep_their_kind_and_whole_floats_count():
    assert repr(load(name="", share=1).share) == "1"
    assert repr(load(name="", share=1.0).share) == "1.0"
    assert repr(load(name="", count=100.0).count) == "100"


MISMATCHES = {
    "the whole": ([], "expected an object, got a list", None),
    "required": ({}, "this field is required", "name"),
    "null for what may not be": ({"name": None}, "expected a string, got null", "name"),
    "a number for a string": ({"name": 1}, "expected a string, got a number", "name"),
    "a string for a number": (
        {"name": "", "share": "1"},
        "expected a number, got a string",
        "share",
    ),
    "a boolean is no number": (
        {"name": "", "share": True},
        "expected a number, got a boolean",
        "share",
    ),
    "a boolean is no integer": (
        {"name": "", "count": False},
        "expected a number, got a boolean",
        "count",
    ),
    "a fraction is no integer": (
        {"name": "", "count": 1.5},
        "expected an integer, got a number",
        "count",
    ),
    "an integer beyond a double": (
        {"name": "", "share": 10**399},
        "a number is too large",
        "share",
    ),
    "a number is no boolean": (
        {"name": "", "is_open": 1},
        "expected a boolean, got a number",
        "is_open",
    ),
    "a list for a string or list": (
        {"name": "", "content": {}},
        "expected a string or a list, got an object",
        "content",
    ),
    "deep in a list": (
        {"name": "", "parts": [{"text": "a"}, {"text": 1}]},
        "expected a string, got a number",
        "parts[1].text",
    ),
    "no object in a list of them": (
        {"name": "", "parts": ["a"]},
        "expected an object, got a string",
        "parts[0]",
    ),
    "an unknown word": (
        {"name": "", "mode": "sometimes"},
        "expected one of 'auto', 'none', got 'sometimes'",
        "mode",
    ),
    "a long unknown word is cut": (
        {"name": "", "sort": "x" * 1000},
        f"expected 'only', got {'x' * 40!r}",
        "sort",
    ),
    "no word at all": ({"name": "", "sort": 1}, "expected 'only', got a number", "sort"),
    "an unknown tag": (
        {"name": "", "parts": [{"type": "film"}]},
        "expected one of 'photo', 'picture', 'text', got 'film'",
        "parts[0].type",
    ),
    "a tag of another kind": (
        {"name": "", "parts": [{"type": []}]},
        "expected one of 'photo', 'picture', 'text', got a list",
        "parts[0].type",
    ),
    "within a dictionary": (
        {"name": "", "weights": {"a.b": "x"}},
        "expected a number, got a string",
        "weights.a.b",
    ),
    "in a shape within itself": (
        {"name": "", "inner": {"name": "", "inner": {}}},
        "this field is required",
        "inner.inner.name",
    ),
}


@pytest.mark.parametrize("value, message, param", MISMATCHES.values(), ids=MISMATCHES)
def test_a_mismatch_is_named_by_its_path(value, message, param):
    assert refusal(payload.load, Sheet, value) == (message, param)


@dataclass(frozen=True)
class Circle:
    kind: Literal["circle"]


@dataclass(frozen=True)
class Square:
    kind: Literal["square"]


@dataclass(frozen=True)
class Drawing:
    shape: Circle | Square


def test_a_tag_without_a_default_is_required():
    assert payload.load(Drawing, {"shape": {"kind": "square"}}) == Drawing(Square("square"))
    assert refusal(payload.load, Drawing, {"shape": {}}) == ("this field is required", "shape.kind")
    assert refusal(payload.load, Drawing, {"shape": {"kind": None}}) == (
        "expected one of 'circle', 'square', got null",
        "shape.kind",
    )


@pytest.mark.parametrize("tag", [{}, {"type": None}, {"type": ""}])
def test_an_empty_tag_is_the_default(tag):
    part = {"text": "x", **tag}
    assert payload.load(Sheet, {"name": "a", "parts": [part]}).parts == (Text("x"),)


def test_unknown_fields_are_reported_once_with_open_positions():
    unknown: list[str] = []
    value = {
        "extra": 1,
        "name": "a",
        "parts": [{"text": "x", "mark": 1}, {"text": "y", "mark": 2, "cache": None}],
        "inner": {"name": "b", "extra": {"deep": 1}},
        "weights": {"a": 1},
        "anything": {"whatever": 1},
    }
    sheet = payload.load(Sheet, value, unknown)
    assert sheet.parts == (Text("x"), Text("y"))
    assert unknown == ["parts[*].mark", "parts[*].cache", "inner.extra", "extra"]


def test_shapes_are_hashable_and_their_defaults_apply():
    assert load(name="a") == Sheet("a")
    assert hash(load(name="a", parts=[{"text": "x"}])) == hash(Sheet("a", (Text("x"),)))


@given(json_values(20))
def test_any_value_loads_or_is_refused(value):
    for body in (value, {"name": "a", "parts": value, "inner": value, "mode": value}):
        try:
            assert isinstance(payload.load(Sheet, body), Sheet)
        except InvalidRequest as error:
            assert error.message


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_text_passes_through(text):
    assert payload.load(Text, payload.parse(payload.encode({"text": text}))) == Text(text)


def test_an_annotation_that_it_can_not_check_is_our_bug():
    @dataclass
    class Odd:
        when: set

    with pytest.raises(TypeError, match="payload can't check"):
        payload.load(Odd, {"when": 1})


# ---- values without some of their members

MARKS = (
    "mark",
    "text[*].mark",
    "messages[*].text[*].mark",
    "messages[*].text[*].text[*].mark",
    "inner.mark",
    "inner.text[*].mark",
)
without_marks = payload.without(*MARKS)

WITHOUT = {
    "at the top": ({"a": 1, "mark": 2}, {"a": 1}),
    "null is a member too": ({"mark": None}, {}),
    "in an object": ({"inner": {"mark": {}, "b": 1}, "c": 2}, {"inner": {"b": 1}, "c": 2}),
    "in each item of a list": ({"text": [{"mark": 1}, {"b": 1}]}, {"text": [{}, {"b": 1}]}),
    "in lists within lists": (
        {"messages": [{"text": "x"}, {"text": [{"mark": 1, "text": [{"mark": 1, "b": 2}]}]}]},
        {"messages": [{"text": "x"}, {"text": [{"text": [{"b": 2}]}]}]},
    ),
    "at two depths of one value": ({"mark": 1, "inner": {"mark": 1}}, {"inner": {}}),
}


@pytest.mark.parametrize("value, left", WITHOUT.values(), ids=WITHOUT)
def test_members_are_taken_out(value, left):
    assert without_marks(value) == left


@pytest.mark.parametrize(
    "value",
    [
        None,
        "mark",
        ["mark"],
        [{"mark": 1}],
        {"marks": 1},
        {"text": "mark", "inner": ["mark"], "messages": {"mark": 1}},
        {"text": {"mark": 1}, "messages": [[{"mark": 1}], "mark", None, {"mark": 1}]},
        {"inner": {"inner": {"mark": 1}}},
    ],
)
def test_what_no_path_names_is_given_back_itself(value):
    assert without_marks(value) is value


def test_a_list_alone_and_lists_of_lists_have_paths_too():
    assert payload.without("[*].mark")([{"mark": 1}, 2]) == [{}, 2]
    assert payload.without("a[*][*].mark")({"a": [[{"mark": 1}], []]}) == {"a": [[{}], []]}


def test_what_stays_is_shared_and_in_its_order():
    value = {"z": {}, "text": [{"b": 1}, {"y": 1, "mark": 1, "a": []}], "a": []}
    left = without_marks(value)
    assert payload.encode(left) == b'{"z":{},"text":[{"b":1},{"y":1,"a":[]}],"a":[]}'
    assert left["z"] is value["z"]
    assert left["text"][0] is value["text"][0]
    assert left["text"][1]["a"] is value["text"][1]["a"]


MARKED = st.recursive(
    st.none() | texts(),
    lambda children: st.one_of(
        st.lists(children, max_size=3),
        st.dictionaries(st.sampled_from(["mark", "text", "messages", "inner", "b"]), children),
    ),
    max_leaves=20,
)


def slowly_without(value: Any, path: str = "") -> Any:
    """The same by the definition, with every path spelt out."""
    if isinstance(value, list):
        return [slowly_without(item, f"{path}[*]") for item in value]
    if isinstance(value, dict):
        named = {key: f"{path}.{key}".removeprefix(".") for key in value}
        return {k: slowly_without(v, named[k]) for k, v in value.items() if named[k] not in MARKS}
    return value


@given(MARKED)
def test_nothing_but_the_named_members_differs(value):
    before = copy.deepcopy(value)
    left = without_marks(value)
    assert json.dumps(left) == json.dumps(slowly_without(value))
    assert json.dumps(value) == json.dumps(before)
    assert (left is value) == (left == value)


def test_a_long_chat_costs_next_to_nothing():
    """About a millisecond for 1,000 messages of two blocks each."""
    block = {"type": "text", "text": [{"type": "text", "text": "x"}]}
    chat = {"messages": [{"role": "user", "text": [dict(block), dict(block)]} for _ in range(1000)]}
    took = []
    for _ in range(5):
        began = time.process_time()
        assert without_marks(chat) is chat
        took.append(time.process_time() - began)
    assert min(took) < 0.02


def test_a_shape_is_a_frozen_dataclass():
    @payload.shape
    class Point:
        x: int
        label: str = "here"

    point = payload.load(Point, {"x": 1})
    assert (point.x, point.label) == (1, "here")
    assert point == Point(x=1, label="here") != Point(x=2)
    assert hash(point) == hash(Point(x=1))
    assert repr(point).endswith("Point(x=1, label='here')")
    assert dataclasses.replace(point, x=3) == Point(x=3)
    for change in (lambda: setattr(point, "x", 2), lambda: delattr(point, "x")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            change()
