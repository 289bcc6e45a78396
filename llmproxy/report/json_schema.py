"""JSON values that models write: found in a text, compared, held against a schema.

llm brings no validator at run time, and the one here is no whole one: it looks at the
keywords that say an answer's shape, and lists those that it did not look at.

Spec: https://json-schema.org/draft/2020-12/json-schema-validation
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from ..core import payload
from ..core.errors import InvalidRequest

MAX_STEPS = 100_000  # of one check: a schema of a few lines can ask for any number of them
MAX_DEPTH = 200  # of schemas within schemas: twice what a value may nest, and Python can

_FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*)\n[ \t]*```", re.DOTALL | re.IGNORECASE)


class NoValue(ValueError):
    """A text that is not one JSON value."""


def json_value(text: str) -> Any:
    """Read a text as one JSON value, also where it stands in a Markdown fence and alone.

    Models fence what they were asked for as JSON; a text round the fence makes it prose.

    Raises:
        NoValue: the text is anything else.
    """
    fenced = _FENCED.fullmatch(text.strip())
    try:
        return payload.parse((fenced[1] if fenced else text).encode("utf-8", "replace"))
    except InvalidRequest as exc:
        raise NoValue(exc.message) from None


def canonical(value: Any) -> str:
    """Write a JSON value so that equal ones are equal texts.

    Numbers are doubles, as JSON readers take them (RFC 8259 6): 1, 1.0 and 1e0 are the
    same, -0 is 0. The order of an object's members has no meaning, that of a list has.
    """
    return json.dumps(payload.with_double_numbers(value), sort_keys=True)


# ---- schemas


@dataclass(frozen=True)
class Verdict:
    """Whether a value is what a schema asks for.

    problem: the first thing that is not, with its path; None where nothing was found.
    not_looked_at: keywords on the way there that this check does not know. A value
        without a problem is valid only as far as they have nothing against it.
    """

    problem: str | None
    not_looked_at: tuple[str, ...]

    @property
    def is_valid(self) -> bool:
        """Nothing that was looked at is wrong."""
        return self.problem is None


def held_against(schema: Any, value: Any) -> Verdict:
    """Hold a JSON value against a schema.

    Looked at: `type`, `enum`, `const`, `properties`, `required`, `additionalProperties`,
    `items`, `anyOf`, and `$ref` to a place within the schema, since Pydantic puts every
    nested model there. All else that may restrict a value is in `not_looked_at`: numbers'
    and lengths' limits, patterns, `oneOf`, `allOf`, `not` and so on.
    """
    check = _Check(schema)
    problem = next(check.problems(schema, value, "", 0), None)
    return Verdict(problem, tuple(check.not_looked_at))


# They restrict nothing; `format` is among them by default (2020-12, validation, 7.2.1).
_ANNOTATIONS = frozenset(
    "$schema $id $anchor $comment $defs definitions title description default deprecated"
    " examples readOnly writeOnly format contentEncoding contentMediaType contentSchema".split()
)

_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    # 6.1.1: any number without a fraction, so 1.0 is one.
    "integer": lambda value: (
        not isinstance(value, bool)
        and (isinstance(value, int) or (isinstance(value, float) and value.is_integer()))
    ),
}


class _Check:
    """One check of one value; what it met and does not know."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._steps = 0
        self.not_looked_at: dict[str, None] = {}

    def problems(self, schema: Any, value: Any, path: str, depth: int) -> Iterator[str]:
        self._steps += 1
        if self._steps > MAX_STEPS or depth > MAX_DEPTH:
            self._skip(f"what more than {MAX_STEPS} steps or {MAX_DEPTH} levels lead to")
            return
        if schema is False:
            yield f"{path or 'the value'} is not allowed"
        if not isinstance(schema, dict):
            return
        for keyword, argument in schema.items():
            look = _KEYWORDS.get(keyword)
            if look is not None:
                yield from look(self, schema, argument, value, path, depth + 1)
            elif keyword not in _ANNOTATIONS:
                self._skip(keyword)

    def _skip(self, keyword: str) -> None:
        self.not_looked_at[keyword] = None

    def _type(self, schema: Any, wanted: Any, value: Any, path: str, depth: int) -> Iterator[str]:
        words = wanted if isinstance(wanted, list) else [wanted]
        if not any(isinstance(word, str) and word in _TYPES for word in words):
            self._skip("type")
        elif not any(_TYPES[word](value) for word in words if word in _TYPES):
            yield f"{path or 'the value'} is not of type {' or '.join(map(str, words))}"

    def _enum(self, schema: Any, allowed: Any, value: Any, path: str, depth: int) -> Iterator[str]:
        if not isinstance(allowed, list):
            self._skip("enum")
        elif canonical(value) not in map(canonical, allowed):
            yield f"{path or 'the value'} is none of the values allowed"

    def _const(self, schema: Any, wanted: Any, value: Any, path: str, depth: int) -> Iterator[str]:
        if canonical(value) != canonical(wanted):
            yield f"{path or 'the value'} is not the one value allowed"

    def _required(
        self, schema: Any, names: Any, value: Any, path: str, depth: int
    ) -> Iterator[str]:
        if not isinstance(names, list):
            self._skip("required")
        elif isinstance(value, dict):
            for name in names:
                if isinstance(name, str) and name not in value:
                    yield f"{_join(path, name)} is missing"

    def _properties(
        self, schema: Any, shapes: Any, value: Any, path: str, depth: int
    ) -> Iterator[str]:
        if not isinstance(shapes, dict):
            self._skip("properties")
        elif isinstance(value, dict):
            for name, shape in shapes.items():
                if name in value:
                    yield from self.problems(shape, value[name], _join(path, name), depth)

    def _additional(
        self, schema: Any, shape: Any, value: Any, path: str, depth: int
    ) -> Iterator[str]:
        if "patternProperties" in schema:  # which names are additional hangs on that
            self._skip("additionalProperties")
        elif isinstance(value, dict):
            known = schema.get("properties")
            for name in value:
                if not (isinstance(known, dict) and name in known):
                    yield from self.problems(shape, value[name], _join(path, name), depth)

    def _items(self, schema: Any, shape: Any, value: Any, path: str, depth: int) -> Iterator[str]:
        # A list of shapes is `prefixItems` as older drafts have it.
        if "prefixItems" in schema or isinstance(shape, list):
            self._skip("items")
        elif isinstance(value, list):
            for index, item in enumerate(value):
                yield from self.problems(shape, item, f"{path}[{index}]", depth)

    def _any_of(self, schema: Any, shapes: Any, value: Any, path: str, depth: int) -> Iterator[str]:
        if not isinstance(shapes, list) or not shapes:
            self._skip("anyOf")
        elif all(next(self.problems(shape, value, path, depth), None) for shape in shapes):
            yield f"{path or 'the value'} is none of the shapes allowed"

    def _ref(self, schema: Any, place: Any, value: Any, path: str, depth: int) -> Iterator[str]:
        try:
            shape = self._at(place)
        except (LookupError, TypeError, ValueError):
            self._skip("$ref")
        else:
            yield from self.problems(shape, value, path, depth)

    def _at(self, place: Any) -> Any:
        """Follow a JSON pointer in a fragment (RFC 6901 6) from the schema's root."""
        if not isinstance(place, str) or not (place == "#" or place.startswith("#/")):
            raise ValueError("no place within the schema")
        found = self._root
        for word in place.split("/")[1:]:
            name = unquote(word).replace("~1", "/").replace("~0", "~")
            found = found[int(name)] if isinstance(found, list) else found[name]
        return found


_KEYWORDS: Mapping[str, Callable[[_Check, Any, Any, Any, str, int], Iterator[str]]] = {
    "$ref": _Check._ref,
    "type": _Check._type,
    "enum": _Check._enum,
    "const": _Check._const,
    "required": _Check._required,
    "properties": _Check._properties,
    "additionalProperties": _Check._additional,
    "items": _Check._items,
    "anyOf": _Check._any_of,
}


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
