"""Remember how the last bodies of long conversations began, so that only what is new is parsed.

Clients send the whole conversation with each request. A body that begins with the text of an
earlier one has the same first messages: their values are taken over, and so is what a dialect
made of them. A text is compared, never just its hash, and whatever is unusual about a body is
left to `payload.parse`, with its errors.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from llm.parts import Message

from . import json_pieces, payload
from .byte_cache import ByteCache, json_bytes, message_bytes
from .errors import InvalidRequest
from .limits import Limits

MAX_KNOWN_BYTES = 32 * 2**20  # ten conversations of a megabyte of text
LIST = "messages"  # the member of a body that is a conversation
KEY_ITEMS = 4  # by these first items of it, a body takes the place of an earlier one
COPIES = 1.25  # of an item's value: a dialect and the normal form share most of it
ITEM_BYTES = 1_000  # of the other objects made of an item, beside its messages


@dataclass(frozen=True)
class ItemMemory:
    """What was made of the items of a list.

    loaded, unknown: of each, the result of `payload.load`, and the paths that it found
    undeclared. states: a dialect's own, after each. messages, paths, ignored: what it made of
    all, as far as the last state. hashed: states of the request's key after the last messages.
    normal: each item in the normal form of the body.
    """

    loaded: list[Any] = field(default_factory=list)
    unknown: list[tuple[str, ...]] = field(default_factory=list)
    states: list[Any] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    hashed: list[Any] = field(default_factory=list)
    normal: list[Any] = field(default_factory=list)

    def first(self, count: int) -> ItemMemory:
        """Return that of the first items, which can be added to."""
        return ItemMemory(
            self.loaded[:count],
            self.unknown[:count],
            self.states[:count],
            [*self.messages],
            [*self.paths],
            [*self.ignored],
            [*self.hashed],
            self.normal[:count],
        )


@dataclass(frozen=True)
class Known:
    """A parsed body, as far as the last item of its conversation.

    text: up to the end of that. start: of the first item. ends: of each. marks: that
        `payload.count_values` counts up to each end. sizes: of the items up to each, in bytes
        of memory. limits: under which it was parsed.
    """

    text: str
    start: int
    ends: list[int]
    marks: list[int]
    sizes: list[int]
    items: list[Any]
    limits: tuple[int, ...]
    memory: ItemMemory = field(default_factory=ItemMemory)

    def count_shared(self, text: str) -> int:
        """Return how many items of another body are the same, as are their places."""
        if text.startswith(self.text):
            return len(self.ends)
        at, shared = 0, 0
        for end in self.ends:
            if text[at:end] != self.text[at:end]:
                break
            at, shared = end, shared + 1
        return shared


@dataclass(frozen=True)
class Body:
    """A body's value, and what is known of the items of its conversation.

    memory: of the first items, taken over; a dialect adds the others. known: what to remember
        of it, if it was parsed without an error.
    """

    value: Any
    memory: ItemMemory | None = None
    known: Known | None = None

    def normalized(self, normalize: Callable[[Any], Any]) -> Any:
        """Return `normalize` of the value: a function that looks at each item by itself."""
        memory = self.memory
        if memory is None:
            return normalize(self.value)
        known = len(memory.normal)
        body = normalize(self.value | {LIST: self.value[LIST][known:]})
        memory.normal.extend(body[LIST])
        return body | {LIST: [*memory.normal]}


class KnownBodies:
    """The bodies that were parsed last; can be used by several threads.

    lock: entered for each look at them.
    """

    def __init__(self, lock: AbstractContextManager[Any], max_bytes: int = MAX_KNOWN_BYTES) -> None:
        self._known = ByteCache[tuple[str, str], tuple[str, Known]](max_bytes)
        self._lock = lock

    def parse(self, text: bytes, limits: Limits, dialect: str) -> Body:
        """Parse a body as `payload.parse` does.

        dialect: whose conversations it may continue.

        Raises:
            InvalidRequest: as `payload.parse`.
        """
        if len(text) <= json_pieces.PIECE:
            return Body(payload.parse(text, limits))
        try:
            return self._parse(text, limits, dialect)
        except (ValueError, RecursionError, InvalidRequest):
            return Body(payload.parse(text, limits))

    def remember(self, body: Body, dialect: str) -> None:
        """Remember a body whose conversation a dialect has parsed."""
        known = body.known
        if known is None or len(known.memory.states) != len(known.items):
            return
        first = known.text[: known.ends[min(len(known.ends), KEY_ITEMS) - 1]]
        size = round(
            sys.getsizeof(first)
            + sys.getsizeof(known.text)
            + known.sizes[-1] * COPIES
            + message_bytes(known.memory.messages)
            + ITEM_BYTES * len(known.items)
        )
        with self._lock:
            self._known.put((dialect, first), (dialect, known), size)

    def _find(self, text: str, limits: tuple[int, ...], dialect: str) -> tuple[Known | None, int]:
        with self._lock:
            kept = self._known.items()
        best: tuple[Known | None, int] = (None, 0)
        for (_, first), (whose, known) in reversed(kept):
            head = first[: known.ends[0]]
            if whose == dialect and known.limits == limits and text.startswith(head):
                shared = known.count_shared(text)
                if shared > best[1]:
                    best = known, shared
                if shared == len(known.ends):
                    break
        return best

    def _parse(self, text: bytes, limits: Limits, dialect: str) -> Body:
        rules = limits.json_depth, limits.int_digits, sys.get_int_max_str_digits()
        decoded = json_pieces.decode(text)
        known, shared = self._find(decoded, rules, dialect)
        if known is None:
            payload.check_count(text, limits.json_values, "the body")
            if payload.has_surrogates(text):
                raise ValueError("they are to be joined")
            value, lists = payload.parse_items(decoded, limits)
            return self._body(value, lists, decoded, rules)
        # In place of the known items stands what no client may send.
        end, mark = known.ends[shared - 1], object()
        rest = decoded[end:]
        encoded = rest.encode()
        marks = known.marks[shared - 1] + payload.count_marks(encoded)
        if marks > limits.json_values or payload.has_surrogates(encoded):
            raise ValueError("it is to be read with care")
        head = f"{decoded[: known.start]}NaN"
        value, lists = payload.parse_items(head + rest, limits, mark)
        items = value.get(LIST) if isinstance(value, dict) else None
        if not isinstance(items, list) or not items or items[0] is not mark:
            raise ValueError("another list counts")
        items[:1] = known.items[:shared]
        return self._body(value, lists, decoded, rules, known, shared, len(head))

    def _body(
        self,
        value: Any,
        lists: Sequence[tuple[list[Any], int, list[int]]],
        text: str,
        rules: tuple[int, ...],
        before: Known | None = None,
        shared: int = 0,
        head: int = 0,
    ) -> Body:
        """Return a body with what is to be remembered of it.

        lists: those that are members of it, with their places. before: whose first `shared`
            items it has. head: the length of what stood in place of these.
        """
        items = value.get(LIST) if isinstance(value, dict) else None
        place = next((one for one in lists if one[0] is items), None)
        if not isinstance(items, list) or place is None:
            return Body(value)
        _, start, new_ends = place
        ends, marks, sizes = [], [], []
        memory = ItemMemory()
        if before is not None:
            offset = before.ends[shared - 1] - head
            new_ends = [end + offset for end in new_ends[1:]]
            start, ends, marks = before.start, before.ends[:shared], before.marks[:shared]
            sizes = before.sizes[:shared]
            memory = before.memory.first(shared)
        at = ends[-1] if ends else 0
        count = marks[-1] if marks else 0
        size = sizes[-1] if sizes else 0
        for item, end in zip(items[shared:], new_ends, strict=True):
            count += payload.count_marks_between(text, at, end)
            size += json_bytes(item)
            at = end
            ends.append(end)
            marks.append(count)
            sizes.append(size)
        # A short conversation of a large body, with many tools, say, is as soon parsed as found.
        is_long = bool(ends) and ends[-1] > json_pieces.PIECE
        if not is_long or not all(type(item) is dict for item in items[shared:]):
            return Body(value, memory if before is not None else None)
        known = Known(text[: ends[-1]], start, ends, marks, sizes, [*items], rules, memory)
        return Body(value, memory, known)
