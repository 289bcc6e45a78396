"""A member of a JSON object, found and replaced in its text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given

from llmproxy.core.json_member import replace_string, string_members
from tests.strategies import json_values, texts


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b'{"model":"a"}', ["a"]),
        (b'\xef\xbb\xbf { "x" : {"model":"b"}, "model" :\n"a" }', ["a"]),
        (b'{"x":"\\"model\\":\\"b\\"","model":"a","model":"c"}', ["a", "c"]),
        (b'{"mod\\u0065l":"a\\u0062"}', ["ab"]),
        (b'{"model":1,"x":["model","b"]}', []),
        (b'[{"model":"a"}]', []),
        (b'"model":"a"', []),
        (b'{"model":"a', []),
        (b"\xff\xfe{\x00", []),
        (b"", []),
    ],
)
def test_only_the_outermost_objects_own_strings_are_found(text, found):
    assert [member.value for member in string_members(text, "model")] == found


@given(json_values(), texts(), texts())
def test_a_replaced_value_leaves_all_else_as_it_is(value, before, after):
    text = json.dumps({"x": value, "model": before, "y": [value]}, indent=1).encode()
    replaced = replace_string(text, "model", after)
    assert json.loads(replaced) == {"x": value, "model": after, "y": [value]}
