"""Foreign words and numbers as they stand in a page: the one place where they are escaped.

`text` makes of any string what is safe between tags and in quoted attributes, and what
encodes as UTF-8; all markup round it is ours.
"""

from __future__ import annotations

import re
from html import escape

from ..numbers import shortened

MAX_NAME_CHARS = 120  # of a model's, client's or tool's name: longer ones are nobody's

# What a page must not hold, or what shows as nothing or as something else: C0 and C1 but
# for tab and line feed, lone surrogates, noncharacters, marks that turn the reading direction
# or end a line, and Unicode's invisible twins of ASCII, in which prompts are smuggled.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff"
    "\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff\U000e0000-\U000e007f]"
    "|["
    + "".join(f"{chr(plane << 16 | 0xFFFE)}{chr(plane << 16 | 0xFFFF)}" for plane in range(1, 17))
    + "]"
)


def text(words: str) -> str:
    """Escape a string for the page; line ends become line feeds, the unseen is named."""
    return escape(_UNSEEN.sub(_named, words.replace("\r\n", "\n")), quote=True)


def _named(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)  # Control Pictures have a glyph for each of C0
    return f"⟨U+{code:04X}⟩"


def name(words: str) -> str:
    """Escape a name, cut where it is longer than any; its direction is its own affair."""
    return f"<bdi>{text(shortened(words, MAX_NAME_CHARS))}</bdi>"
