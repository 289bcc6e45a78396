"""Read rows that are damaged: edited by hand, cut by a full disk, half deleted.

A reader never stops at such a row. It gives what can be read, defaults for the rest, and the
names of what could not be read, which `ExchangeSummary.damage` holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

T = TypeVar("T")
Default = TypeVar("Default")

# Raised by code that is given something else than what was stored.
UNREADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
)


class Undecodable(str):
    """Text that is not UTF-8; each wrong byte was replaced by U+FFFD."""

    __slots__ = ()


def decode(data: bytes) -> str:
    """Decode a text of the database; the `text_factory` of a connection."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return Undecodable(data.decode(errors="replace"))


def text_of(value: object) -> str:
    """Return the text of a column that was edited to hold another type; "" for a number or NULL."""
    if isinstance(value, bytes):
        value = decode(value)
    return str(value) if isinstance(value, str) else ""


@dataclass(frozen=True)
class Kind:
    """The values that a column can have, and the default that stands for any other.

    words: the only texts that it can have; None for any. is_flag: it stands for a bool.
    """

    types: tuple[type, ...]
    default: Any
    words: tuple[str, ...] | None = None
    is_flag: bool = False


def kind_of(annotation: Any) -> Kind:
    """Return the kind of column for a field's type: a plain one or a Literal, or either or None."""
    is_union = get_origin(annotation) in (Union, UnionType)
    types = get_args(annotation) if is_union else (annotation,)
    (type_,) = [member for member in types if member is not type(None)]
    absent = (type(None),) if type(None) in types else ()
    if type_ in _DEFAULTS:
        stored = {bool: (int,), float: (int, float)}.get(type_, (type_,))
        default = None if absent else _DEFAULTS[type_]
        return Kind((*stored, *absent), default, is_flag=type_ is bool)
    words = get_args(type_)
    return Kind((str, *absent), None if absent else words[-1], words)


_DEFAULTS: Mapping[type, Any] = {str: "", bool: False, int: 0, float: 0.0}
COUNT = kind_of(int | None)
TEXT = kind_of(str)
OPTIONAL_TEXT = kind_of(str | None)


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MAX_TIME = datetime(9999, 1, 1, tzinfo=UTC)  # later ones are not times in every time zone


def utc(text: str) -> datetime:
    """Parse the time of a row; llm's oldest ones have no time zone, and are UTC.

    Raises:
        ValueError, TypeError: it is not the time of a request.
    """
    at = datetime.fromisoformat(text)
    at = at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
    if not EPOCH <= at < MAX_TIME:
        raise ValueError("no request came at that time")
    return at


class Damage:
    """Collects the names of what could not be read, each once."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names = dict.fromkeys(names)

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in the order in which they were added."""
        return tuple(self._names)

    def add(self, name: str) -> None:
        """Add the name of something that could not be read."""
        self._names[name] = None

    def read(self, name: str, read: Callable[[], T], default: Default) -> T | Default:
        """Return what `read` returns; if it can't, add the name and return the default."""
        try:
            return read()
        except UNREADABLE:
            self.add(name)
            return default

    def value(self, name: str, value: Any, kind: Kind) -> Any:
        """Return the value of a column; if its kind can't have it, add the name.

        Of text that is not UTF-8, or that was stored as bytes, the rest is returned.
        """
        if isinstance(value, kind.types) and type(value) is not Undecodable:
            is_known = kind.words is None or value is None or value in kind.words
            if is_known and (type(value) is not float or math.isfinite(value)):
                return bool(value) if kind.is_flag else value
        self.add(name)
        if kind.words is None and str in kind.types and isinstance(value, str | bytes):
            return text_of(value)
        return kind.default
