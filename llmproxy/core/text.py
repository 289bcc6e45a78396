"""Text for a terminal: escaped, so that foreign text can't control it, and coloured."""

from __future__ import annotations

from typing import Literal

Colour = Literal["red", "green", "yellow", "blue", "dim", "bold"]


_CODES = {"red": 31, "green": 32, "yellow": 33, "blue": 34, "dim": 2, "bold": 1}


def printable(text: str, *, lines: bool = False) -> str:
    """Escape what is not printable; with `lines`, new lines and tabs are kept."""
    if text.isprintable():
        return text
    kept = "\n\t" if lines else ""
    return "".join(c if c.isprintable() or c in kept else repr(c)[1:-1] for c in text)


def painted(text: str, colour: Colour, colours: bool) -> str:
    """Colour a text, if colours are on."""
    return f"\x1b[{_CODES[colour]}m{text}\x1b[0m" if colours else text
