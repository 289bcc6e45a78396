"""Remember how the last bodies of long conversations began, so that only what is new is parsed.

Clients send the whole conversation with each request. If the conversation in a body begins with
the text of an earlier one, it has the same first items: their values are taken over, and so is
what a dialect made of them. A text is compared, never just its hash, and whatever is unusual
about a body is left to `payload.parse`, with its errors.

What is taken over is shared between requests: nobody may edit a message of a request, its parts,
or a value in them. Plugins, which may, are given copies (`backends.engine.prompt`).
"""

from __future__ import annotations

import codecs
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from . import json_pieces, payload
from .byte_cache import ByteCache, json_bytes, message_bytes
from .errors import InvalidRequest
from .limits import Limits

MAX_KNOWN_BYTES = 32 * 2**20  # ten conversations of a megabyte of text
KEY_ITEMS = 4  # by these first items of it, a body takes the place of an earlier one
KEY_BYTES = 2_000  # at the beginning and the end of these
COPIES = 1.25  # of an item's value: a dialect and the normal form share most of it
MESSAGE_COPIES = 2  # with what was recalled for them, and what they become for a model
ITEM_BYTES = 1_000  # of the other objects made of an item, beside its messages


class SharedItems(list[Any]):
    """Items of a conversation, most of which were in an earlier one.

    hashed: ends and hashes of the first of them, run by run, to be used and added to.
    """

    def __init__(self, items: Iterable[Any], hashed: list[tuple[int, bytes]]) -> None:
        super().__init__(items)
        self.hashed = hashed


class ItemParser(Protocol):
    """Makes messages of the items of a conversation, and can go on where another one was."""

    def add(self, item: Any, path: str) -> None:
        """Add the next item."""

    def made(self) -> tuple[list[Any], ...]:
        """Return all lists that it adds to, the messages first; what is in them stays the same."""

    def facts(self) -> tuple[Any, ...] | None:
        """Return all else that it must know to go on; None if it can't go on here."""

    def go_on(self, facts: tuple[Any, ...]) -> None:
        """Go on where another parser had these facts; the lists are already as they were."""


class _State(NamedTuple):
    """A parser's state: the lengths of its lists, and its facts."""

    lengths: tuple[int, ...]
    facts: tuple[Any, ...] | None


@dataclass
class ItemMemory:
    """What was made of the items of a conversation.

    loaded, unknown: of each, the result of `payload.load`, and the paths that it found
    undeclared. states: of the dialect's parser, after each. before: all that the parser had made
    before the first, as text. made: its lists after the last state. hashed: states of the
    request's key after the last messages. normal: each item in the normal form of the body;
    hashed_normal: as in `SharedItems`.
    """

    loaded: list[Any] = field(default_factory=list)
    unknown: list[tuple[str, ...]] = field(default_factory=list)
    states: list[_State] = field(default_factory=list)
    before: str = ""
    made: list[list[Any]] = field(default_factory=list)
    hashed: list[Any] = field(default_factory=list)
    normal: list[Any] = field(default_factory=list)
    hashed_normal: list[tuple[int, bytes]] = field(default_factory=list)

    def first(self, count: int) -> ItemMemory:
        """Return that of the first items, which can be added to."""
        return ItemMemory(
            self.loaded[:count],
            self.unknown[:count],
            self.states[:count],
            self.before,
            [*self.made],
            [*self.hashed],
            self.normal[:count],
            [run for run in self.hashed_normal if run[0] <= count],
        )

    def items(self, items: list[Any], convert: Callable[[Any], Any]) -> list[Any]:
        """Return a conversation's items to be loaded, `convert` applied to those not known."""
        known = len(self.loaded)
        converted = [*items[:known], *map(convert, items[known:])]
        return payload.RememberedList(converted, self.loaded, self.unknown)


def add_items(
    parser: ItemParser, items: Sequence[Any], name: str, memory: ItemMemory | None
) -> None:
    """Let a parser parse the items of a conversation, from where it was remembered.

    name: of the member that is the conversation. memory: is added to; None to parse all.
    """
    start = 0
    if memory is not None:
        start = _go_on(parser, memory)
    for i in range(start, len(items)):
        parser.add(items[i], f"{name}[{i}]")
        if memory is not None:
            memory.states.append(_State(tuple(map(len, parser.made())), parser.facts()))
    if memory is not None:
        memory.made[:] = [[*one] for one in parser.made()]


def _go_on(parser: ItemParser, memory: ItemMemory) -> int:
    """Let a parser go on after as many items as possible; return the next one's index.

    It must have made the same of what comes before the items: instructions are messages too.
    """
    made, states = parser.made(), memory.states
    before = repr((made, parser.facts()))  # strict: 1, 1.0 and true are equal
    if memory.before != before:
        memory.before = before
        states.clear()
    while states and states[-1].facts is None:
        states.pop()
    if not states:
        return 0
    lengths, facts = states[-1]
    assert facts is not None
    for one, known, length in zip(made, memory.made, lengths, strict=True):
        one[:] = known[:length]
    parser.go_on(facts)
    return len(states)


@dataclass(frozen=True)
class Known:
    """The conversation of a parsed body.

    text: of its items, as UTF-8. ends: of each in it. marks: that `payload.count_values` counts
        up to each end. sizes: of the items up to each, in bytes of memory. limits: under which it
        was parsed.
    """

    text: bytes
    ends: list[int]
    marks: list[int]
    sizes: list[int]
    items: list[Any]
    limits: tuple[int, ...]
    memory: ItemMemory = field(default_factory=ItemMemory)

    def count_shared(self, text: bytes, start: int) -> int:
        """Return how many items are the same in a body whose conversation starts there."""
        if text.startswith(self.text, start):
            return len(self.ends)
        at, shared = 0, 0
        for end in self.ends:
            if not text.startswith(self.text[at:end], start + at):
                break
            at, shared = end, shared + 1
        return shared


@dataclass(frozen=True)
class Body:
    """A body's value, and what is known of the items of its conversation.

    name: of the member that is the conversation. memory: of its first items, taken over; a
        dialect adds the others. known: what to remember of it, if it was parsed without an error.
    """

    value: Any
    name: str = ""
    memory: ItemMemory | None = None
    known: Known | None = None

    def normalized(self, normalize: Callable[[Any], Any]) -> Any:
        """Return `normalize` of the value: a function that looks at each item by itself."""
        memory, name = self.memory, self.name
        if memory is None:
            return normalize(self.value)
        known = len(memory.normal)
        body = normalize(self.value | {name: self.value[name][known:]})
        memory.normal.extend(body[name])
        return body | {name: SharedItems(memory.normal, memory.hashed_normal)}


class KnownBodies:
    """The bodies that were parsed last; can be used by several threads.

    lock: entered for each look at them.
    """

    def __init__(self, lock: AbstractContextManager[Any], max_bytes: int = MAX_KNOWN_BYTES) -> None:
        self._known = ByteCache[tuple[str, bytes], tuple[str, Known]](max_bytes)
        self._lock = lock

    def parse(self, text: bytes, limits: Limits, dialect: str, name: str) -> Body:
        """Parse a body as `payload.parse` does.

        dialect: whose conversations it may continue. name: of the member that is one.

        Raises:
            InvalidRequest: as `payload.parse`.
        """
        if len(text) <= json_pieces.PIECE:
            return Body(payload.parse(text, limits))
        try:
            return self._parse(text, limits, dialect, name)
        except (ValueError, RecursionError, InvalidRequest):
            return Body(payload.parse(text, limits))

    def remember(self, body: Body, dialect: str) -> None:
        """Remember a body whose conversation a dialect has parsed."""
        known = body.known
        if known is None or len(known.memory.states) != len(known.items):
            return
        end = known.ends[min(len(known.ends), KEY_ITEMS) - 1]
        # Whether another conversation takes its place is no matter of right or wrong, and hashing
        # an image of 5 MB takes 5 ms.
        parts = end, known.text[: min(end, KEY_BYTES)], known.text[max(end - KEY_BYTES, 0) : end]
        first = b"%d %b%b" % parts
        messages, *others = known.memory.made
        size = round(
            sys.getsizeof(first)
            + sys.getsizeof(known.text)
            + known.sizes[-1] * COPIES
            + message_bytes(messages) * MESSAGE_COPIES
            + json_bytes(others)
            + ITEM_BYTES * len(known.items)
        )
        with self._lock:
            self._known.put((dialect, first), (dialect, known), size)

    def _find(
        self, text: bytes, limits: tuple[int, ...], dialect: str, name: str
    ) -> tuple[Known | None, int, int]:
        """Return what has most of a body's first items, their number, and where they start."""
        # Perhaps another list, but never one inside of a string, whose quotes are escaped.
        found = re.search(rb'"%b"[ \t\r\n]*:[ \t\r\n]*\[' % name.encode(), text)
        if found is None:
            return None, 0, 0
        start = found.end()
        with self._lock:
            kept = self._known.items()
        best: tuple[Known | None, int] = (None, 0)
        for _, (whose, known) in reversed(kept):
            if whose == dialect and known.limits == limits:
                shared = known.count_shared(text, start)
                if shared > best[1]:
                    best = known, shared
                if shared == len(known.ends):
                    break
        return *best, start

    def _parse(self, text: bytes, limits: Limits, dialect: str, name: str) -> Body:
        rules = limits.json_depth, limits.int_digits, sys.get_int_max_str_digits()
        text = text.removeprefix(codecs.BOM_UTF8)
        if text.startswith(codecs.BOM_UTF8):
            raise ValueError("a second mark is not JSON")
        known, shared, start = self._find(text, rules, dialect, name)
        if known is None:
            payload.check_count(text, limits.json_values, "the body")
            if payload.has_surrogates(text):
                raise ValueError("they are to be joined")
            decoded = json_pieces.decode(text)
            value, lists = payload.parse_items(decoded, limits)
            return _body(value, name, lists, decoded, text, rules)
        # In place of the known items stands what no client may send.
        mark, end = object(), start + known.ends[shared - 1]
        rest = b"%bNaN%b" % (text[:start], text[end:])
        marks = known.marks[shared - 1] + payload.count_marks(rest)
        if marks > limits.json_values or payload.has_surrogates(rest):
            raise ValueError("it is to be read with care")
        decoded = json_pieces.decode(rest)
        value, lists = payload.parse_items(decoded, limits, mark)
        items = value.get(name) if isinstance(value, dict) else None
        if not isinstance(items, list) or not items or items[0] is not mark:
            raise ValueError("another list counts")
        items[:1] = known.items[:shared]
        return _body(value, name, lists, decoded, text[start:], rules, known, shared)


def _body(
    value: Any,
    name: str,
    lists: Sequence[tuple[list[Any], int, list[int]]],
    decoded: str,
    text: bytes,
    rules: tuple[int, ...],
    before: Known | None = None,
    shared: int = 0,
) -> Body:
    """Return a body with what is to be remembered of it.

    lists: those that are members of it, with their places in `decoded`. before: whose first
        `shared` items it has; then `decoded` has one value in their place. text: of the whole
        body, or with `before` from the first item on.
    """
    items = value.get(name) if isinstance(value, dict) else None
    place = next((one for one in lists if one[0] is items), None)
    if not isinstance(items, list) or place is None:
        return Body(value)
    _, at, found = place
    ends, marks, sizes, memory = [0], [0], [0], ItemMemory()
    if before is None:
        text = text[len(decoded[:at].encode()) :]
    else:
        ends += before.ends[:shared]
        marks += before.marks[:shared]
        sizes += before.sizes[:shared]
        memory = before.memory.first(shared)
        at, *found = found
    is_ascii = decoded.isascii()
    for item, end in zip(items[shared:], found, strict=True):
        length = end - at if is_ascii else len(decoded[at:end].encode())
        ends.append(ends[-1] + length)
        marks.append(marks[-1] + payload.count_marks_between(decoded, at, end))
        sizes.append(sizes[-1] + json_bytes(item))
        at = end
    body = Body(value, name, memory if before is not None else None)
    # A short conversation of a large body, with many tools, say, is as soon parsed as found.
    is_long = ends[-1] > json_pieces.PIECE
    if not is_long or not all(type(item) is dict for item in items[shared:]):
        return body
    known = Known(text[: ends[-1]], ends[1:], marks[1:], sizes[1:], [*items], rules, memory)
    return replace(body, memory=memory, known=known)
