"""Dataclass fields are checked against their annotations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from llmproxy.core.field_types import find_wrong_field


@dataclass
class Sample:
    flag: bool = True
    count: Annotated[int, "with a reason"] = 1
    share: float = 0.5
    name: str | None = None
    kind: Literal["a", 1] | None = None
    names: Sequence[str] = ()
    pairs: Sequence[tuple[str, int]] = ()
    ids: tuple[str, ...] | None = None
    call: Callable[[str], None] = print
    secret: str = field(default="", repr=False)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"share": 1, "kind": 1, "names": ["a"], "ids": ("a", "b")},
        {"kind": "a", "pairs": [("a", 1), ["b", 2]], "call": len},
    ],
)
def test_values_that_fit(fields: dict[str, Any]):
    assert find_wrong_field(Sample(**fields)) is None


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"flag": 1}, "flag: expected bool, not 1"),
        ({"count": True}, "count: expected int, not True"),
        ({"share": True}, "share: expected float, not True"),
        ({"name": 3}, "name: expected str or None, not 3"),
        ({"kind": True}, "kind: expected 'a' or 1 or None, not True"),  # True == 1
        ({"names": "abc"}, "names: expected Sequence[str], not 'abc'"),
        ({"names": {"a": 1}}, "names: expected Sequence[str], not {'a': 1}"),
        ({"pairs": [("a", 1, 2)]}, "pairs[0]: expected tuple[str, int], not ('a', 1, 2)"),
        ({"ids": ["a"]}, "ids: expected tuple[str, ...] or None, not ['a']"),
        ({"call": "print"}, "call: expected Callable[[str], None], not 'print'"),
        ({"secret": 12345}, "secret: expected str, not int"),
        ({"flag": 1, "count": ""}, "flag: expected bool, not 1"),  # the first of two
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(fields: dict[str, Any], wrong: str):
    assert find_wrong_field(Sample(**fields)) == wrong
