"""Escape other people's text for a page; nothing else in the page does.

`text` makes any string safe between tags and in quoted attributes, and encodable as UTF-8.
"""

from __future__ import annotations

import re
from html import escape

from ..numbers import shortened

# The page can load nothing, even if other people's text should get through as markup.
_NOTHING = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action"
POLICY = f"{_NOTHING} 'none'"
FORM_POLICY = f"{_NOTHING} 'self'"  # of a page with a search form

MAX_NAME_CHARS = 120  # of a model's, client's or tool's name: real ones are shorter

# Characters that a page must not contain, that are invisible or that look like others: C0 and C1
# except tab and line feed, lone surrogates, noncharacters, marks that change the reading
# direction or end a line, and Unicode's invisible tags, which are used to smuggle prompts.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff"
    "\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff\U000e0000-\U000e007f]"
    "|["
    + "".join(f"{chr(plane << 16 | 0xFFFE)}{chr(plane << 16 | 0xFFFF)}" for plane in range(1, 17))
    + "]"
)


def text(string: str) -> str:
    """Escape a string: line ends become line feeds, invisible characters become visible."""
    return escape(_UNSEEN.sub(_visible, string.replace("\r\n", "\n")), quote=True)


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)  # Control Pictures has a glyph for each of C0
    return f"⟨U+{code:04X}⟩"


def name(string: str) -> str:
    """Escape a name, shortened if too long, with its own reading direction."""
    return f"<bdi>{text(shortened(string, MAX_NAME_CHARS))}</bdi>"
