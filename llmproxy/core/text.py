"""Text for a terminal: escaped, so that foreign text can't control it, and coloured."""

from __future__ import annotations

import re
from typing import Literal

Colour = Literal["red", "green", "yellow", "blue", "dim", "bold"]


_CODES = {"red": 31, "green": 32, "yellow": 33, "blue": 34, "dim": 2, "bold": 1}


def printable(text: str, *, lines: bool = False) -> str:
    """Escape what is not printable; with `lines`, new lines and tabs are kept."""
    if text.isprintable():
        return text
    kept = "\n\t" if lines else ""
    return "".join(c if c.isprintable() or c in kept else repr(c)[1:-1] for c in text)


_COLOUR = re.compile(r"(\x1b\[\d{1,2}m)")  # as `painted` makes them


def visible(text: str) -> str:
    """Escape what is not printable, except new lines, tabs and colours.

    Columns are measured in text that is `printable` already; this is for whatever else is
    printed, so that no command forgets it.
    """
    if text.isprintable():
        return text
    pieces = _COLOUR.split(text)
    pieces[::2] = [printable(piece, lines=True) for piece in pieces[::2]]
    return "".join(pieces)


_NOT_ASCII = re.compile(r"[^\n -~]")


def ascii_json(text: str) -> str:
    """Escape what is not printable ASCII in JSON, or in lines of it: the values stay the same."""
    return text if text.isascii() and text.isprintable() else _NOT_ASCII.sub(_json_escape, text)


def _json_escape(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def painted(text: str, colour: Colour, colours: bool) -> str:
    """Colour a text, if colours are on."""
    return f"\x1b[{_CODES[colour]}m{text}\x1b[0m" if colours else text
