"""Check at run time that a dataclass's fields are known and of the types of their annotations.

For settings: a string where a list of strings is expected would be taken letter by letter.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import Field, fields
from functools import cache, wraps
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")

MAX_SHOWN = 80  # characters of a wrong value


def name_unknown_fields(cls: type[T]) -> type[T]:
    """Make a dataclass's TypeError for an unknown field suggest the field that was meant.

    All other arguments are passed on unchanged.
    """
    build = cls.__init__
    names = [field.name for field in fields(cls)]  # type: ignore[arg-type]  # a dataclass

    @wraps(build)
    def init(self: T, /, *values: Any, **named: Any) -> None:
        for name in named:
            if name not in names:
                alike = closest(name, names)
                hint = f"; did you mean {alike!r}?" if alike else ""
                raise TypeError(f"{cls.__name__} has no field {name!r}{hint}")
        build(self, *values, **named)

    cls.__init__ = init  # type: ignore[assignment]
    return cls


def closest(name: str, names: Iterable[str]) -> str | None:
    """Return the known name that is most like a mistyped one; None if none is."""
    import difflib  # 2 ms; needed for mistakes only

    return next(iter(difflib.get_close_matches(name, list(names), n=1)), None)


def find_wrong_field(instance: Any) -> str | None:
    """Return what is wrong with the first field of a wrong type, or None.

    A string is no sequence of strings, a bool no number, and NaN is refused. The value is
    shown unless its field is kept out of the `repr`.
    """
    for field, hint in _hints(type(instance)):  # type: ignore[arg-type]  # mypy doubts types
        value = getattr(instance, field.name)
        if not _fits(value, hint):
            place, wrong, expected = _wrong_item(field.name, value, hint)
            shown = _shown(wrong) if field.repr else type(wrong).__name__
            return f"{place}: expected {_expected(expected)}, not {shown}"
    return None


def _wrong_item(place: str, value: Any, hint: Any) -> tuple[str, Any, Any]:
    """Return the first wrong item of a sequence of items, with its place and the hint for it.

    What is no such sequence is wrong itself.
    """
    kinds = get_args(hint)
    is_sequence = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    if get_origin(hint) is not Sequence or not is_sequence:
        return place, value, hint
    i, item = next((i, one) for i, one in enumerate(value) if not _fits(one, kinds[0]))
    return f"{place}[{i}]", item, kinds[0]


@cache
def _hints(cls: Any) -> list[tuple[Field[Any], Any]]:
    hints = get_type_hints(cls)
    return [(field, hints[field.name]) for field in fields(cls)]


def _fits(value: object, hint: Any) -> bool:
    origin, kinds = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, Union):
        return any(_fits(value, kind) for kind in kinds)
    if origin is Literal:
        return any(value == kind and type(value) is type(kind) for kind in kinds)
    if origin is Callable:
        return callable(value)
    if origin is tuple and kinds[1:] != (...,):
        # A list too: JSON and TOML have no tuples.
        is_tuple = isinstance(value, tuple | list) and len(value) == len(kinds)
        return is_tuple and all(map(_fits, cast(Sequence[Any], value), kinds))
    if origin in (tuple, Sequence):
        is_sequence = isinstance(value, origin) and not isinstance(value, str | bytes)
        return is_sequence and all(_fits(item, kinds[0]) for item in cast(Sequence[Any], value))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and value == value
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _expected(hint: Any) -> str:
    """Name a type as its annotation does, without modules."""
    kinds = get_args(hint)
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, kinds))
    if get_origin(hint) in (types.UnionType, Union):
        return " or ".join(map(_expected, kinds))
    if hint is types.NoneType:
        return "None"
    return re.sub(r"\b(\w+\.)+", "", str(hint)) if kinds else str(hint.__name__)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
