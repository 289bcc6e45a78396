"""Find JSON values in replies, compare them, and validate them against a schema.

llm has no validator, and this one is not complete: it checks the keywords that describe the
shape of a reply, and lists those that it did not check.

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

MAX_STEPS = 100_000  # of one check: a few lines of schema can require any number of steps
MAX_DEPTH = 200  # of nested schemas: twice the limit for values; Python can do that

_FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*)\n[ \t]*```", re.DOTALL | re.IGNORECASE)


class NotJSON(ValueError):
    """The text is not a JSON value."""


def json_value(text: str) -> Any:
    """Parse a text as one JSON value, in a Markdown fence or not.

    Models often fence JSON. With other text around the fence, the reply is prose.

    Raises:
        NotJSON: the text is not a JSON value.
    """
    fenced = _FENCED.fullmatch(text.strip())
    try:
        data = (fenced[1] if fenced else text).encode("utf-8", "replace")
        return payload.parse(data, name="the reply")
    except InvalidRequest as exc:
        raise NotJSON(exc.message) from None


def canonical(value: Any) -> str:
    """Encode a JSON value so that equal values give equal texts.

    Numbers are doubles, as for JSON readers (RFC 8259 6): 1, 1.0 and 1e0 are the same, -0 is 0.
    The order of an object's members does not matter, that of a list does.
    """
    return json.dumps(payload.with_double_numbers(value), sort_keys=True)


# ---- schemas


@dataclass(frozen=True)
class Validity:
    """Whether a value is valid for a schema.

    problem: the first thing that is wrong, with its path, if any.
    unchecked: keywords met that this check does not know. A value without a problem may still
        violate these.
    """

    problem: str | None
    unchecked: tuple[str, ...]

    @property
    def is_valid(self) -> bool:
        """Whether everything that was checked is right."""
        return self.problem is None


def validate(schema: Any, value: Any) -> Validity:
    """Validate a JSON value against a schema.

    Checks `type`, `enum`, `const`, `properties`, `required`, `additionalProperties`,
    `items`, `anyOf`, and `$ref` within the schema, where Pydantic puts every nested model.
    All other restrictions are listed in `unchecked`: limits of numbers and lengths, patterns,
    `oneOf`, `allOf`, `not` and so on.
    """
    check = _Check(schema)
    problem = next(check.problems(schema, value, "", 0), None)
    return Validity(problem, tuple(check.unchecked))


# Keywords that restrict nothing; `format` is among them by default (2020-12, validation, 7.2.1).
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
    """One validation of one value, with the keywords that it can't check."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._steps = 0
        self.unchecked: dict[str, None] = {}

    def problems(self, schema: Any, value: Any, path: str, depth: int) -> Iterator[str]:
        self._steps += 1
        if self._steps > MAX_STEPS or depth > MAX_DEPTH:
            self._skip(f"anything beyond {MAX_STEPS} steps or {MAX_DEPTH} levels")
            return
        if schema is False:
            yield f"{path or 'the value'} is not allowed"
        if not isinstance(schema, dict):
            return
        for keyword, argument in schema.items():
            check = _KEYWORDS.get(keyword)
            if check is not None:
                yield from check(self, schema, argument, value, path, depth + 1)
            elif keyword not in _ANNOTATIONS:
                self._skip(keyword)

    def _skip(self, keyword: str) -> None:
        self.unchecked[keyword] = None

    def _type(self, schema: Any, wanted: Any, value: Any, path: str, depth: int) -> Iterator[str]:
        types = wanted if isinstance(wanted, list) else [wanted]
        if not any(isinstance(name, str) and name in _TYPES for name in types):
            self._skip("type")
        elif not any(_TYPES[name](value) for name in types if name in _TYPES):
            yield f"{path or 'the value'} is not of type {' or '.join(map(str, types))}"

    def _enum(self, schema: Any, allowed: Any, value: Any, path: str, depth: int) -> Iterator[str]:
        if not isinstance(allowed, list):
            self._skip("enum")
        elif canonical(value) not in map(canonical, allowed):
            yield f"{path or 'the value'} is not one of the allowed values"

    def _const(self, schema: Any, wanted: Any, value: Any, path: str, depth: int) -> Iterator[str]:
        if canonical(value) != canonical(wanted):
            yield f"{path or 'the value'} is not the only allowed value"

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
        self, schema: Any, schemas: Any, value: Any, path: str, depth: int
    ) -> Iterator[str]:
        if not isinstance(schemas, dict):
            self._skip("properties")
        elif isinstance(value, dict):
            for name, subschema in schemas.items():
                if name in value:
                    yield from self.problems(subschema, value[name], _join(path, name), depth)

    def _additional(
        self, schema: Any, subschema: Any, value: Any, path: str, depth: int
    ) -> Iterator[str]:
        if "patternProperties" in schema:  # they decide which names are additional
            self._skip("additionalProperties")
        elif isinstance(value, dict):
            known = schema.get("properties")
            for name in value:
                if not (isinstance(known, dict) and name in known):
                    yield from self.problems(subschema, value[name], _join(path, name), depth)

    def _items(
        self, schema: Any, subschema: Any, value: Any, path: str, depth: int
    ) -> Iterator[str]:
        # In older drafts, a list of schemas means `prefixItems`.
        if "prefixItems" in schema or isinstance(subschema, list):
            self._skip("items")
        elif isinstance(value, list):
            for index, item in enumerate(value):
                yield from self.problems(subschema, item, f"{path}[{index}]", depth)

    def _any_of(
        self, schema: Any, schemas: Any, value: Any, path: str, depth: int
    ) -> Iterator[str]:
        if not isinstance(schemas, list) or not schemas:
            self._skip("anyOf")
        elif all(next(self.problems(subschema, value, path, depth), None) for subschema in schemas):
            yield f"{path or 'the value'} matches none of the allowed schemas"

    def _ref(self, schema: Any, place: Any, value: Any, path: str, depth: int) -> Iterator[str]:
        try:
            subschema = self._at(place)
        except (LookupError, TypeError, ValueError):
            self._skip("$ref")
        else:
            yield from self.problems(subschema, value, path, depth)

    def _at(self, place: Any) -> Any:
        """Follow a JSON pointer in a fragment (RFC 6901 6) from the schema's root."""
        if not isinstance(place, str) or not (place == "#" or place.startswith("#/")):
            raise ValueError("not a reference within the schema")
        target = self._root
        for token in place.split("/")[1:]:
            name = unquote(token).replace("~1", "/").replace("~0", "~")
            target = target[int(name)] if isinstance(target, list) else target[name]
        return target


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
