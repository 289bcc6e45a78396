"""Find a string member of a JSON object in its text, without parsing what stands around it.

A request that is passed on byte for byte needs its model's name, and nothing else, before it is
sent; and a name that is to be another one is replaced where it stands.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

# Strings whole, so that no bracket or quote in one counts; the rest of JSON has no structure.
# One that doesn't end goes to the end of the text, so that each byte is read once.
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[{}\[\]]', re.DOTALL)
_AFTER_NAME = re.compile(rb'[ \t\r\n]*:[ \t\r\n]*("(?:[^"\\]|\\.)*+")?', re.DOTALL)
_BEGINNING = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*\{")
MAX_NAME_BYTES = 100  # of a member whose name is written with escapes


class StringMember(NamedTuple):
    """A member's value, and the place of its text with the quotes."""

    value: str
    start: int
    end: int


def string_members(text: bytes, name: str) -> Iterator[StringMember]:
    """Yield the members of this name of the outermost object whose values are strings, in order.

    The text is read as far as the iterator is. Text that is no JSON may yield anything, but never
    raises.
    """
    beginning = _BEGINNING.match(text)
    if beginning is None:
        return
    plain, depth, at = json.dumps(name).encode(), 1, beginning.end()
    while depth and (found := _TOKEN.search(text, at)):
        token, at = found[0], found.end()
        if token in b"{[":
            depth += 1
        elif token in b"}]":
            depth -= 1
        elif depth == 1 and (after := _AFTER_NAME.match(text, at)):
            at = after.end()
            if after[1] is not None and (token == plain or _reads(token) == name):
                value = _decoded(after[1])
                if value is not None:
                    yield StringMember(value, after.start(1), after.end(1))


def replace_string(text: bytes, name: str, value: str) -> bytes:
    """Return the text with another value for each such member; all else stays as it is."""
    pieces, at = [], 0
    encoded = json.dumps(value, ensure_ascii=False).encode()
    for member in string_members(text, name):
        pieces += [text[at : member.start], encoded]
        at = member.end
    return b"".join([*pieces, text[at:]])


def _reads(token: bytes) -> str | None:
    return _decoded(token) if b"\\" in token and len(token) <= MAX_NAME_BYTES else None


def _decoded(token: bytes) -> str | None:
    try:
        value = json.loads(token)
    except ValueError:
        return None
    return value if isinstance(value, str) else None
