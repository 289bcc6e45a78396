"""Find, compare and validate JSON values; jsonschema is the oracle."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.report.json_schema import NotJSON, Validity, canonical, json_value, validate
from tests.examples import many_examples
from tests.strategies import json_values


@pytest.mark.parametrize(
    "text, value",
    [
        ('{"a": 1}', {"a": 1}),
        (" [1, 2]\n", [1, 2]),
        ('```json\n{"a": 1}\n```', {"a": 1}),
        ("```\n1\n```\n", 1),
        ('```JSON \n{\n "a": "```"\n}\n  ```', {"a": "```"}),
        ("null", None),
    ],
)
def test_a_value_is_found_alone_or_in_a_fence(text, value):
    assert json_value(text) == value


@pytest.mark.parametrize(
    "text", ["", "Yes.", "Here: {}", "{} {}", "NaN", "```json\n{}", "{'a': 1}"]
)
def test_a_text_that_is_more_or_less_than_a_value_is_none(text):
    with pytest.raises(NotJSON):
        json_value(text)


@pytest.mark.parametrize(
    "one, other, is_same",
    [
        ("1", "1.0", True),
        ("1", "1e0", True),
        ("-0", "0", True),
        ("-0.0", "0", True),
        ("0.1", "0.10000000000000001", True),
        ("9007199254740993", "9007199254740992.0", True),
        ("1", "true", False),
        ("0", "false", False),
        ("1", '"1"', False),
        ("null", "0", False),
        ('{"a": 1, "b": [2.0]}', '{"b": [2], "a": 1}', True),
        ("[1, 2]", "[2, 1]", False),
        ('{"a": null}', "{}", False),
        ('"\\u00e9"', '"é"', True),
        ("9" * 350, "9" * 350, True),
        ("9" * 350, "9" * 349 + "8", False),
    ],
)
def test_numbers_are_doubles_and_members_have_no_order(one, other, is_same):
    assert (canonical(json_value(one)) == canonical(json_value(other))) is is_same


@given(json_values())
def test_a_value_is_the_same_written_otherwise(value):
    text = json.dumps(value, sort_keys=True, indent=1)
    assert canonical(json_value(text)) == canonical(value)


# ---- schemas

PERSON = {
    "$defs": {
        "Pet": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
        "a/b~c": {"const": 7},
    },
    "title": "Person",
    "type": "object",
    "properties": {
        "age": {"type": "integer"},
        "kind": {"enum": ["a", 1, None]},
        "pets": {"type": "array", "items": {"$ref": "#/$defs/Pet"}},
        "nick": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "odd": {"$ref": "#/$defs/a~1b~0c"},
    },
    "required": ["age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "value, problem",
    [
        ({"age": 3, "kind": 1.0, "pets": [{"name": "x", "y": 1}], "nick": None, "odd": 7.0}, None),
        ({"age": 3.0}, None),
        ({"age": 3.5}, "age is not of type integer"),
        ({"age": True}, "age is not of type integer"),
        ({}, "age is missing"),
        ([], "the value is not of type object"),
        ({"age": 3, "kind": True}, "kind is not one of the allowed values"),
        ({"age": 3, "pets": [{"name": "x"}, {}]}, "pets[1].name is missing"),
        ({"age": 3, "nick": 4}, "nick matches none of the allowed schemas"),
        ({"age": 3, "odd": 8}, "odd is not the only allowed value"),
        ({"age": 3, "x": 8}, "x is not allowed"),
    ],
)
def test_values_are_validated(value, problem):
    import jsonschema

    assert validate(PERSON, value) == Validity(problem, ())
    assert jsonschema.Draft202012Validator(PERSON).is_valid(value) is (problem is None)


def test_unknown_keywords_are_listed():
    schema = {
        "minimum": 9,
        "x-ours": 1,
        "allOf": [{"items": {"pattern": "x"}}],
        "description": "…",
        "$ref": "https://example.com/schema",
        "type": "file",
    }
    verdict = validate(schema, 3)
    assert verdict == Validity(None, ("minimum", "x-ours", "allOf", "$ref", "type"))
    assert verdict.is_valid


@pytest.mark.parametrize(
    "keyword, argument",
    [
        ("type", 1),
        ("type", []),
        ("enum", "x"),
        ("required", "x"),
        ("properties", []),
        ("anyOf", {}),
        ("anyOf", []),
        ("$ref", "#/nowhere"),
        ("$ref", "#/x/9"),
        ("$ref", 5),
        ("items", [{}]),
    ],
)
def test_malformed_keywords_are_skipped(keyword, argument):
    assert validate({keyword: argument, "default": 1}, {"a": 1}).unchecked == (keyword,)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]},
        {"anyOf": [{"$ref": "#"}, {"const": 2}, {"$ref": "#"}]},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {
            "$defs": {
                f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(50)
            } | {"d50": False},
            "$ref": "#/$defs/d0",
        },
    ],
)  # fmt: skip
def test_a_schema_without_end_is_given_up(schema):
    (skipped,) = validate(schema, 1).unchecked
    assert skipped == "anything beyond 100000 steps or 200 levels"


SCALARS = st.sampled_from([None, True, False, 0, 1, 1.0, 2.5, "", "a", "b"])
TYPES = st.sampled_from("object array string boolean null number integer".split())


@st.composite
def schemas(draw, depth=3):
    """A schema of the keywords that are looked at."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.booleans())
    schema = {}
    if draw(st.booleans()):
        schema["type"] = draw(TYPES | st.lists(TYPES, min_size=1, max_size=3, unique=True))
    if draw(st.integers(0, 4)) == 0:
        schema["enum"] = draw(st.lists(SCALARS, min_size=1, max_size=4))
    if draw(st.integers(0, 6)) == 0:
        schema["const"] = draw(SCALARS)
    if draw(st.integers(0, 4)) == 0:
        schema["required"] = draw(st.lists(st.sampled_from("ab"), max_size=2, unique=True))
    if depth:
        inner = schemas(depth - 1)
        if draw(st.booleans()):
            schema["properties"] = draw(st.dictionaries(st.sampled_from("ab"), inner, max_size=2))
        if draw(st.integers(0, 3)) == 0:
            schema["additionalProperties"] = draw(inner)
        if draw(st.booleans()):
            schema["items"] = draw(inner)
        if draw(st.integers(0, 3)) == 0:
            schema["anyOf"] = draw(st.lists(inner, min_size=1, max_size=3))
        if draw(st.integers(0, 9)) == 0:
            schema["$ref"] = "#/$defs/x"
    return schema


VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(schemas(), schemas(depth=0), VALUES)
@many_examples(300)
def test_results_match_jsonschema(schema, definition, value):
    import jsonschema

    if isinstance(schema, dict):
        schema = {"$defs": {"x": definition}, **schema}
    expected = jsonschema.Draft202012Validator(schema).is_valid(value)
    verdict = validate(schema, value)
    assert (verdict.is_valid, verdict.unchecked) == (expected, ())


@given(json_values(), json_values())
def test_any_schema_is_accepted(schema, value):
    validate(schema, value)
    validate({"$ref": schema, "properties": schema, "items": schema}, value)
