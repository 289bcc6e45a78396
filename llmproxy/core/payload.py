"""Parse JSON text, check it against declared shapes, and encode values as JSON text.

A payload is checked by declaring it: `load(CreateMessageRequest, parse(body))` reads the
annotations of a dataclass, which `@shape` declares, and returns an instance, or raises an
InvalidRequest that names the field by its path. Undeclared fields are accepted and reported, so
that nothing is dropped silently.

Supported annotations: str, int, float, bool, None, Any, Literal, dict[str, X], list[X] (read
as a tuple), dataclasses, and unions of these; dataclasses in a union are distinguished by the
one field that is a Literal in each of them. If it has a default in one of them, that counts
where the field is absent, null or "".

Spec: https://www.rfc-editor.org/rfc/rfc8259
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, FrozenInstanceError, dataclass, fields, is_dataclass
from functools import cache, lru_cache
from itertools import chain
from types import NoneType, UnionType
from typing import (
    Any,
    Literal,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from . import json_pieces
from .errors import InvalidRequest, UpstreamError
from .limits import Limits

T = TypeVar("T")

# A path is linked from its end, (parent, key), so that reading costs one tuple and only an
# error builds the text.
Path = tuple[Any, str | int] | None
Loader = Callable[[Any, Path, list[str]], Any]

# Whatever `json_depth` allows: Python stops at 1,000 calls, and some walks through a value
# take two per level. json itself reads ten times as much since 3.12.
MAX_DEPTH = 400
VALUE_BYTES = 60  # memory of a value besides its text

encode_string = json.encoder.encode_basestring
"""Render a str as a JSON string, quotes included, non-ASCII left as it is."""

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def encode(value: Any, *, in_pieces: bool = False) -> bytes:
    """Encode plain values as compact UTF-8 JSON.

    in_pieces: give other threads their turn meanwhile; somewhat slower.

    Raises:
        ValueError: NaN, an infinity or a lone surrogate, none of which `parse` accepts.
    """
    return (json_pieces.encode(_ENCODER, value) if in_pieces else _ENCODER.encode(value)).encode()


# Two escaped halves make one character; a lone half makes a str that neither UTF-8 nor SQLite
# accepts, and can only come from an escape.
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


def has_surrogates(text: bytes) -> bool:
    """Return whether a JSON text has escapes of surrogates.

    It is searched at the speed of memory, since few texts have any.
    """
    if b"\\" not in text:  # as base64: 0.3 ms for 7 MB instead of 10
        return False
    may = b"\\ud" in text or b"\\uD" in text
    return may and _SURROGATE_ESCAPE.search(text) is not None


def parse(
    text: bytes, limits: Limits = Limits(), name: str = "the body", *, first_line: int = 1
) -> Any:
    """Parse a client's JSON: strict UTF-8, bounded depth, count and numbers, no lone surrogates.

    Lone surrogates become U+FFFD. NaN and numbers beyond a double are refused,
    since no response could repeat them. Of a repeated key the last counts, as in every JSON
    reader in the field.

    name: of the text, in errors: "it" where they begin with a file's name.
    first_line: the number of its first line in that file.

    Raises:
        InvalidRequest: text that is not such JSON, with line and column.
    """
    depth = min(limits.json_depth, MAX_DEPTH)
    if not text or text.isspace():
        raise InvalidRequest(f"{name} is empty")
    try:
        # A value takes a byte at least, and a level a bracket. Without what is not needed then,
        # a stream's event takes 3 µs instead of 9.
        if len(text) > limits.json_values:
            check_count(text, limits.json_values, name)
        decoded = json_pieces.decode(text)
        if decoded.startswith("\ufeff"):  # a second one; `json.loads` says the same
            raise json.JSONDecodeError("Unexpected UTF-8 BOM (decode using utf-8-sig)", decoded, 0)
        value = _decoder(_int_digits(limits), len(text)).decode(decoded)
        if len(text) > json_pieces.PIECE or text.count(b"{") + text.count(b"[") > depth:
            check_depth(value, depth, name)
        return without_surrogates(value) if has_surrogates(text) else value
    except UnicodeDecodeError as exc:
        line = first_line + text.count(b"\n", 0, exc.start)
        byte = exc.start - (text.rfind(b"\n", 0, exc.start) + 1)
        where = f"line {line}, byte {byte}" if line > 1 else f"byte {byte}"
        raise InvalidRequest(f"{name} is not UTF-8 ({where})") from None
    except json.JSONDecodeError as exc:
        what = exc.msg.removesuffix(" at")  # "Invalid control character at"
        where = f"line {first_line - 1 + exc.lineno} column {exc.colno}"
        raise InvalidRequest(f"{name} is not JSON: {what} at {where}") from None
    except RecursionError:  # not in every Python, and not at the same depth
        raise _too_deep(depth, name) from None


def _int_digits(limits: Limits) -> int:
    # Python's own limit, 0 for none, holds even if ours is set higher.
    return min(limits.int_digits, sys.get_int_max_str_digits() or limits.int_digits)


def _decoder(int_digits: int, size: int) -> json.JSONDecoder:
    if size <= json_pieces.PIECE:
        return _small_decoder(int_digits)
    return json_pieces.PiecewiseDecoder(**_hooks(int_digits))


@lru_cache(maxsize=8)
def _small_decoder(int_digits: int) -> json.JSONDecoder:
    return json.JSONDecoder(**_hooks(int_digits))


def _hooks(int_digits: int) -> dict[str, Any]:
    """Return what json calls to make numbers."""

    def integer(digits: str) -> int:
        if len(digits.removeprefix("-")) > int_digits:
            raise InvalidRequest(f"a number has more than {int_digits} digits")
        return int(digits)

    def real(digits: str) -> float:
        value = float(digits)
        if math.isinf(value):
            raise InvalidRequest("a number is too large")
        return value

    def constant(name: str) -> None:
        raise InvalidRequest(f"{name} is not JSON")

    return {"parse_int": integer, "parse_float": real, "parse_constant": constant}


def parse_items(
    text: str, limits: Limits, mark: object = None
) -> tuple[Any, list[tuple[list[Any], int, list[int]]]]:
    """Parse a body whose values were counted, and that has no escapes of surrogates.

    mark: becomes the value of a NaN, if that occurs once.

    Returns it with the lists that are its members: each with the places of its first item and
    of the ends of all.

    Raises:
        InvalidRequest, ValueError, RecursionError: it is wrong; `parse` tells how.
    """
    hooks = _hooks(_int_digits(limits))
    constants: list[str] = []
    if mark is not None:

        def constant(name: str) -> object:
            constants.append(name)
            return mark

        hooks["parse_constant"] = constant
    decoder = json_pieces.ItemDecoder(**hooks)
    value = decoder.decode(text)
    if len(constants) > 1:
        raise ValueError(f"{constants} are not JSON")
    check_depth(value, min(limits.json_depth, MAX_DEPTH), "the body")
    return value, decoder.lists


def parse_upstream(text: str, what: str) -> Any:
    """Parse the JSON of another server, as `parse` does a client's.

    what: names the text in the error: "a chunk".

    Raises:
        UpstreamError: it is not JSON, or exceeds a limit.
    """
    try:
        return parse(text.encode(), name="it")
    except InvalidRequest as exc:
        # The message gets its subject here, not for each text: most texts are valid.
        names_it = exc.message.startswith("it ")
        message = exc.message.removeprefix("it") if names_it else f": {exc.message}"
        raise UpstreamError(f"{what} of the upstream{message}") from exc


def load_upstream(shape: type[T], value: Any, unknown: list[str]) -> T:
    """Check a JSON value of another server, as `load` does a client's.

    Raises:
        UpstreamError: a value that does not fit.
    """
    try:
        return load(shape, value, unknown)
    except InvalidRequest as exc:
        where = f" at {exc.param}" if exc.param else ""
        raise UpstreamError(f"the upstream's answer{where}: {exc.message}") from exc


def check_count(text: bytes, most: int, name: str) -> None:
    """Check the number of values before any is made: 3 bytes of text can take 200 of memory."""
    if count_values(text, most) > most:
        raise InvalidRequest(f"{name} has more than {most} JSON values (limit json_values)")


def count_values(text: bytes, most: int) -> int:
    """Count the values and names in JSON text, at least those that matter beyond `most`.

    Counted are commas, colons and opening brackets, one of which is before every value and
    name but the first; those inside of strings too if there are few.
    """
    if (marks := count_marks(text)) <= most:
        return marks
    marks, at, is_inside = 0, 0, False
    while at < len(text) and marks <= most:
        end = at + json_pieces.PIECE
        if text[end - 1 : end] == b"\\":  # not between a backslash and what it escapes
            end = _BACKSLASHES.match(text, end).end() + 1  # type: ignore[union-attr]  # may be none
        piece = text[at:end].replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = piece.split(b'"')
        marks += count_marks(b"".join(parts[is_inside::2]))
        is_inside ^= len(parts) % 2 == 0
        at = end
    return marks


_BACKSLASHES = re.compile(rb"\\*")


def count_marks(text: bytes) -> int:
    """Count what stands before values and names, and the same inside of strings."""
    return sum([json_pieces.count(text, mark) for mark in (b",", b":", b"[", b"{")])


def count_marks_between(text: str, start: int, end: int) -> int:
    """Count as `count_marks`, in a part of a text."""
    return sum([json_pieces.count(text, mark, start, end) for mark in ",:[{"])


def check_depth(value: Any, depth: int, name: str) -> None:
    """Check how deep a JSON value nests: level by level, without recursion.

    Raises:
        InvalidRequest: deeper than `depth`.
    """
    level = [value] if isinstance(value, dict | list) else []
    remaining = depth
    while level:
        if not remaining:
            raise _too_deep(depth, name)
        remaining -= 1
        level = [
            child
            for container in level
            for child in (container.values() if isinstance(container, dict) else container)
            if isinstance(child, dict | list)
        ]


def measure(value: Any, most_bytes: int) -> tuple[int, int]:
    """Return about how many bytes of memory a JSON value takes, and its depth.

    Counting ends beyond `most_bytes` or `MAX_DEPTH`, so that a value may contain itself.
    """
    size, depth, level = VALUE_BYTES, 0, [value]
    while level and size <= most_bytes and depth <= MAX_DEPTH:
        size += sum(len(v) for v in level if isinstance(v, str | bytes))
        objects = [v for v in level if isinstance(v, dict)]
        size += sum(len(name) for v in objects for name in v if isinstance(name, str))
        lists = [v for v in level if isinstance(v, list | tuple)]
        size += VALUE_BYTES * (sum(map(len, objects)) + sum(map(len, lists)))
        if size > most_bytes:
            break
        depth += bool(objects or lists)
        level = [member for v in objects for member in v.values()]
        level += [item for v in lists for item in v]
    return size, depth


def _too_deep(depth: int, name: str) -> InvalidRequest:
    return InvalidRequest(f"{name} nests deeper than {depth} levels")


def without_surrogates(value: Any) -> Any:
    """Join surrogate pairs in a value's strings; lone surrogates become U+FFFD."""
    match value:
        case str():
            return join_surrogates(value)
        case list():
            return [without_surrogates(item) for item in value]
        case dict():
            return {join_surrogates(name): without_surrogates(item) for name, item in value.items()}
    return value


def join_surrogates(text: str) -> str:
    """Join surrogate pairs in a text; lone surrogates become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def with_double_numbers(value: Any) -> Any:
    """Return a JSON value with its numbers as doubles, and without -0.

    JSON readers take them so (RFC 8259 6): 1, 1.0 and 1e0 are the same number. An integer
    beyond a double is left as it is.
    """
    match value:
        case bool():
            return value
        case int() | float():
            try:
                return float(value) + 0.0
            except OverflowError:
                return value
        case dict():
            return {name: with_double_numbers(member) for name, member in value.items()}
        case list():
            return [with_double_numbers(item) for item in value]
    return value


def without(*paths: str) -> Callable[[Any], Any]:
    """Return a function that removes the members at these paths from a JSON value.

    paths: names joined by dots, `[*]` for each item of a list:
        `messages[*].content[*].cache_control`.

    A path that does not fit the value is ignored. The value is never edited: what changes is
    copied, everything else is shared, and a value without such members is returned itself.
    """
    return _remover([path.replace("[*]", ".[*]").removeprefix(".").split(".") for path in paths])


def _remover(places: Iterable[list[str]]) -> Callable[[Any], Any]:
    removed: list[str] = []
    below: dict[str, list[list[str]]] = {}
    for name, *rest in places:
        if rest:
            below.setdefault(name, []).append(rest)
        else:
            removed.append(name)
    items = below.pop("[*]", None)
    from_item = _remover(items) if items else None
    from_member = [(name, _remover(rests)) for name, rests in below.items()]

    # One call per value on the way: a chat has thousands of blocks.
    def remove(value: Any) -> Any:
        left = value
        if type(value) is dict:
            for name in removed:
                if name in left:
                    left = {key: member for key, member in left.items() if key != name}
            for name, remove_below in from_member:
                if name in value:
                    member = value[name]
                    if (kept := remove_below(member)) is not member:
                        left = left | {name: kept}
        elif from_item is not None and type(value) is list:
            for i, item in enumerate(value):
                if (kept := from_item(item)) is not item:
                    if left is value:
                        left = value.copy()
                    left[i] = kept
        return left

    return remove


@dataclass_transform(frozen_default=True, kw_only_default=True)
def shape(cls: type[T]) -> type[T]:
    """Declare an object of a JSON text: a frozen dataclass, made of keyword arguments.

    `dataclass(frozen=True)` writes six methods for each class and compiles them. For a hundred
    classes that is a tenth of the server's start; here all share the same methods.
    """
    cls.__init__ = _init  # type: ignore[method-assign]
    cls.__setattr__ = cls.__delattr__ = _refuse_change  # type: ignore[method-assign]
    cls.__eq__ = _equals  # type: ignore[method-assign]
    cls.__hash__ = _hash  # type: ignore[method-assign]
    cls.__repr__ = _repr  # type: ignore[method-assign]
    return dataclass(init=False, repr=False, eq=False, match_args=False)(cls)


def _init(self: Any, **values: Any) -> None:
    vars(self).update(values)  # defaults are attributes of the class


def _refuse_change(self: Any, name: str, value: Any = None) -> None:
    raise FrozenInstanceError(f"cannot change field {name!r}")


def _values(self: Any) -> tuple[Any, ...]:
    return tuple(getattr(self, field.name) for field in fields(self))


def _equals(self: Any, other: object) -> bool:
    return _values(self) == _values(other) if type(other) is type(self) else NotImplemented


def _hash(self: Any) -> int:
    return hash(_values(self))


def _repr(self: Any) -> str:
    shown = (f"{field.name}={getattr(self, field.name)!r}" for field in fields(self))
    return f"{type(self).__qualname__}({', '.join(shown)})"


def load(shape: type[T], value: Any, unknown: list[str] | None = None) -> T:
    """Check a parsed JSON value against a dataclass and return an instance of it.

    unknown: receives the paths of undeclared fields, each once, in order, without list
        positions (`tools[*].strict`).

    Raises:
        InvalidRequest: a value that does not fit; `param` is its path
            (`messages[2].content[0].text`).
    """
    found: list[str] = []
    instance: T = _loader(shape)(value, None, found)
    if unknown is not None:
        unknown.extend(dict.fromkeys(found))
    return instance


def _render_path(path: Path, *, positions: bool) -> str:
    keys: list[str] = []
    while path is not None:
        path, key = path
        keys.append(f".{key}" if isinstance(key, str) else f"[{key if positions else '*'}]")
    return "".join(reversed(keys)).removeprefix(".")


def _mismatch(expected: str, value: Any, path: Path) -> InvalidRequest:
    kind = type(value)
    # A bool is an int in Python, not in JSON.
    got = next((name for type_, name in _JSON_NAMES.items() if type_ is kind), kind.__name__)
    return InvalidRequest(
        f"expected {expected}, got {got}", param=_render_path(path, positions=True) or None
    )


def _missing(path: Path) -> InvalidRequest:
    return InvalidRequest("this field is required", param=_render_path(path, positions=True))


_JSON_NAMES: Mapping[type, str] = {
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    dict: "an object",
    list: "a list",
    NoneType: "null",
}


def _loader(annotation: Any) -> Loader:
    """Return the function that checks and converts a value of this annotation."""
    return _compiled(annotation)


@cache
def _compiled(annotation: Any) -> Loader:
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return lambda value, path, unknown: value
    if annotation is int:
        return _load_integer
    if annotation is float:
        return _load_number
    if annotation in (str, bool, NoneType):
        return _exactly(annotation)
    if origin is Literal:
        return _one_of(args)
    if origin is list:
        return _list_of(_loader(args[0]))
    if origin is dict or annotation is dict:
        return _dict_of(_loader(args[1] if args else Any))
    if origin in (Union, UnionType):
        return _union_of(args)
    if is_dataclass(annotation):
        return _instance_of(annotation)
    raise TypeError(f"payload can't check {annotation!r}")


def _exactly(kind: type) -> Loader:
    expected = _JSON_NAMES[kind]

    def load_value(value: Any, path: Path, unknown: list[str]) -> Any:
        if type(value) is not kind:
            raise _mismatch(expected, value, path)
        return value

    return load_value


def _load_integer(value: Any, path: Path, unknown: list[str]) -> int:
    # Some JSON writers make 100.0 of 100.
    if type(value) is float and value.is_integer():
        return int(value)
    if type(value) is not int:
        raise _mismatch("an integer", value, path)
    return value


def _load_number(value: Any, path: Path, unknown: list[str]) -> float:
    if type(value) not in (int, float):
        raise _mismatch("a number", value, path)
    if not abs(value) <= sys.float_info.max:  # nor NaN, of a value that was not parsed here
        raise InvalidRequest("a number is too large", param=_render_path(path, positions=True))
    return value  # type: ignore[no-any-return]  # an int stays one: 1 must not become 1.0


def _one_of(words: tuple[str, ...]) -> Loader:
    # Sorted: annotations that differ only in order are equal, and compiled once.
    allowed = sorted(words)
    expected = "one of " + ", ".join(map(repr, allowed)) if len(allowed) > 1 else repr(allowed[0])

    def load_value(value: Any, path: Path, unknown: list[str]) -> Any:
        if not isinstance(value, str) or value not in allowed:
            # A string is shown: a misspelt role is found at once.
            if isinstance(value, str):
                raise InvalidRequest(
                    f"expected {expected}, got {value[:40]!r}",
                    param=_render_path(path, positions=True),
                )
            raise _mismatch(expected, value, path)
        return value

    return load_value


class RememberedList(list[Any]):
    """A list whose first items were loaded before, as the same shape.

    loaded, unknown: what each item became, and its undeclared paths; the others' are added.
    """

    def __init__(
        self, items: Iterable[Any], loaded: list[Any], unknown: list[tuple[str, ...]]
    ) -> None:
        super().__init__(items)
        self.loaded = loaded
        self.unknown = unknown

    def load(self, load_item: Loader, path: Path, unknown: list[str]) -> tuple[Any, ...]:
        """Load the other items, and return all."""
        for i in range(len(self.loaded), len(self)):
            found: list[str] = []
            self.loaded.append(load_item(self[i], (path, i), found))
            self.unknown.append(tuple(found))
        unknown.extend(chain.from_iterable(self.unknown))
        return tuple(self.loaded)


def _list_of(load_item: Loader) -> Loader:
    def load_value(value: Any, path: Path, unknown: list[str]) -> Any:
        if type(value) is not list:
            if type(value) is not RememberedList:
                raise _mismatch("a list", value, path)
            return value.load(load_item, path, unknown)
        return tuple([load_item(item, (path, i), unknown) for i, item in enumerate(value)])

    return load_value


def _dict_of(load_item: Loader) -> Loader:
    def load_value(value: Any, path: Path, unknown: list[str]) -> Any:
        if type(value) is not dict:
            raise _mismatch("an object", value, path)
        return {key: load_item(item, (path, key), unknown) for key, item in value.items()}

    return load_value


def _union_of(members: tuple[Any, ...]) -> Loader:
    """Choose by the value's JSON type, among dataclasses by their tag."""
    by_kind: dict[type, Loader] = {}
    shapes = [member for member in members if is_dataclass(member)]
    for member in members:
        if is_dataclass(member):
            continue
        origin = get_origin(member) or member
        kinds = {float: (int, float), int: (int, float), Literal: (str,)}.get(origin, (origin,))
        by_kind.update(dict.fromkeys(kinds, _loader(member)))
    if shapes:
        by_kind[dict] = _tagged(shapes) if len(shapes) > 1 else _loader(shapes[0])
    expected = " or ".join(dict.fromkeys(_JSON_NAMES[k] for k in by_kind if k is not NoneType))
    if list in by_kind:
        by_kind[RememberedList] = by_kind[list]

    def load_value(value: Any, path: Path, unknown: list[str]) -> Any:
        loader = by_kind.get(type(value))
        if loader is None:
            raise _mismatch(expected, value, path)
        return loader(value, path, unknown)

    return load_value


def _tagged(shapes: list[Any]) -> Loader:
    tags = [_tag(shape) for shape in shapes]
    names = {field.name for field, _ in tags}
    assert len(names) == 1, f"{shapes} do not share one tag"
    name = names.pop()
    by_tag = {
        word: _loader(shape)
        for shape, (_, words) in zip(shapes, tags, strict=True)
        for word in words
    }
    default = next((field.default for field, _ in tags if field.default is not MISSING), None)
    check = _one_of(tuple(by_tag))

    def load_value(value: Any, path: Path, unknown: list[str]) -> Any:
        if default is None and name not in value:
            raise _missing((path, name))
        if default is not None and name in value and value[name] in (None, ""):
            # Clients that fill a class of their own send back an empty type.
            value = {key: member for key, member in value.items() if key != name}
        tag = check(value.get(name, default), (path, name), unknown)
        return by_tag[tag](value, path, unknown)

    return load_value


def _tag(shape: Any) -> tuple[Field[Any], tuple[str, ...]]:
    hints = get_type_hints(shape)
    field = next(f for f in fields(shape) if get_origin(hints[f.name]) is Literal)
    return field, get_args(hints[field.name])


def _instance_of(shape: Any) -> Loader:
    hints = get_type_hints(shape)
    # Filled on first use: a class may contain itself.
    readers: list[tuple[str, Loader, bool, bool]] = []
    names = frozenset(f.name for f in fields(shape))
    defaults = {f.name: f.default for f in fields(shape)}

    def load_value(value: Any, path: Path, unknown: list[str]) -> Any:
        if type(value) is not dict:
            raise _mismatch("an object", value, path)
        if not readers:
            readers.extend(
                (f.name, _loader(hints[f.name]), _required(f), _is_tag(f, hints[f.name]))
                for f in fields(shape)
            )
        known: dict[str, Any] = {}
        for name, loader, required, is_tag in readers:
            if is_tag and name in value and value[name] in (None, ""):
                known[name] = defaults[name]  # some clients send their types so
            elif name in value:
                known[name] = loader(value[name], (path, name), unknown)
            elif required:
                raise _missing((path, name))
        if len(known) < len(value):
            unknown.extend(
                _render_path((path, key), positions=False) for key in value if key not in names
            )
        return shape(**known)

    return load_value


def _required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _is_tag(field: Field[Any], annotation: Any) -> bool:
    """Whether a field can have one word only, which may be left out."""
    return get_origin(annotation) is Literal and get_args(annotation) == (field.default,)
