"""A cache that is bounded by the bytes of its content, and an estimate of messages' bytes.

A number of entries is no bound: one reply may have a hundred bytes, or a hundred megabytes.
"""

from __future__ import annotations

import marshal
from collections import OrderedDict
from collections.abc import Iterable
from sys import getsizeof
from typing import Any, Generic, TypeVar

from llm.parts import Message, Part, ReasoningPart, TextPart

from .attachments import find_attachments
from .message_facts import facts_of

Key = TypeVar("Key")
Value = TypeVar("Value")

# Of the objects around content, measured with CPython 3.11; tests/test_caches.py measures again.
MESSAGE_BYTES = 550  # with its facts
PART_BYTES = 200
ATTACHMENT_BYTES = 250


class ByteCache(Generic[Key, Value]):
    """The values that were used last, up to `max_bytes` together; larger ones are not kept."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.size_bytes = 0
        self._kept: OrderedDict[Key, tuple[Value, int]] = OrderedDict()

    def get(self, key: Key) -> Value | None:
        """Return a value, None if it is not kept."""
        entry = self._kept.get(key)
        if entry is None:
            return None
        self._kept.move_to_end(key)
        return entry[0]

    def put(self, key: Key, value: Value, size_bytes: int) -> None:
        """Keep a value of this size, in place of those that were not used for the longest time."""
        if size_bytes > self.max_bytes:
            return
        _, before = self._kept.pop(key, (None, 0))
        self.size_bytes += size_bytes - before
        self._kept[key] = value, size_bytes
        while self.size_bytes > self.max_bytes:
            _, (_, freed) = self._kept.popitem(last=False)
            self.size_bytes -= freed

    def items(self) -> list[tuple[Key, Value]]:
        """Return what is kept, the one that was used last at the end."""
        return [(key, value) for key, (value, _) in self._kept.items()]

    def clear(self) -> None:
        """Keep nothing."""
        self._kept.clear()
        self.size_bytes = 0


def message_bytes(messages: Iterable[Message]) -> int:
    """Estimate the memory of messages: that of their objects, texts and attachments."""
    size = 0
    for message in messages:
        facts = facts_of(message)
        if facts is None:
            size += _message_bytes(message)
        elif "bytes" in facts:
            size += facts["bytes"]
        else:
            facts["bytes"] = one = _message_bytes(message)
            size += one
    return size


def _message_bytes(message: Message) -> int:
    size = MESSAGE_BYTES
    is_text = True
    for part in message.parts:
        # Nearly always, and in a fifth of the time.
        if type(part) in _TEXTS and not part.provider_metadata:  # type: ignore[attr-defined]
            size += PART_BYTES + getsizeof(part.text)  # type: ignore[attr-defined]
        else:
            size += _part_bytes(part)
            is_text = False
    if message.provider_metadata:
        size += value_bytes(message.provider_metadata)
    return size if is_text else size + _attachment_bytes(message)


_TEXTS = frozenset({TextPart, ReasoningPart})


def _part_bytes(part: Part) -> int:
    return PART_BYTES + sum(
        value_bytes(value) for name in _CONTENTS if (value := getattr(part, name, None))
    )


_CONTENTS = "text", "name", "tool_call_id", "output", "exception", "arguments", "provider_metadata"


def value_bytes(value: Any) -> int:
    """Estimate the memory of a JSON value: a `{}` in a list takes 25 times that of its text."""
    if type(value) is str:
        return getsizeof(value)
    try:
        marshal.dumps(value, 2)
    except ValueError:  # an object of a plugin, or a circle
        return getsizeof(repr(value))
    return json_bytes(value)


def json_bytes(value: Any) -> int:
    """Return `value_bytes` of what was parsed from JSON, which needs not be checked."""
    size, todo = 0, [value]
    while todo:
        one = todo.pop()
        size += getsizeof(one)
        if type(one) is dict:
            size += sum(map(getsizeof, one))
            todo += one.values()
        elif isinstance(one, list | tuple | set | frozenset):
            todo += one
    return size


def _attachment_bytes(message: Message) -> int:
    return sum(
        ATTACHMENT_BYTES + len(one.content or b"") + len(one.url or "")
        for one in find_attachments(message)
    )
