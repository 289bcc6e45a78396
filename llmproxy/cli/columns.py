"""Lay out rows of columns: aligned and cut to a terminal's width, or joined for a pipe.

Returns text and prints nothing. The text of a cell must be printable (`core.text.printable`).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

from ..core.text import Colour, painted

GAP = "  "
CUT = "…"
MAX_COLUMN = 30  # characters of a column between the first and the last
MIN_TEXT = 16  # characters of the last column, for which less important ones are left out

Span = tuple[str, Colour | None]
Cell = tuple[Span, ...]


def cell(text: str, colour: Colour | None = None) -> Cell:
    """Return a cell of one colour; an empty one has no spans."""
    return ((text, colour),) if text else ()


def joined(row: Sequence[Cell], *, colours: bool = False) -> str:
    """Join the cells that are not empty, for a pipe or a file."""
    return GAP.join(_painted(one, colours) for one in row if one)


class Aligner:
    """Aligns rows of one list, which may come in batches; columns only grow.

    width: returns the terminal's, which may change meanwhile. omit: columns that a narrow
        terminal goes without, the first ones first.
    """

    def __init__(
        self, width: Callable[[], int], omit: Sequence[int] = (), *, colours: bool = False
    ) -> None:
        self._terminal_width = width
        self._omit = omit
        self._colours = colours
        self._width = 0
        self._columns: list[int] = []

    def lines(self, rows: Sequence[Sequence[Cell]]) -> list[str]:
        """Format rows of equally many cells, one line each, no longer than the width."""
        self._width = self._terminal_width()
        for row in rows:
            self._columns += [0] * (len(row) - len(self._columns))
            for index, one in enumerate(row):
                limit = MAX_COLUMN if 0 < index < len(row) - 1 else self._width
                self._columns[index] = max(self._columns[index], min(_width_of(one), limit))
        shown = self._shown()
        return [self._line(row, shown) for row in rows]

    def _shown(self) -> list[int]:
        """Choose the columns that leave some space for the last one."""
        shown = [index for index, width in enumerate(self._columns) if width]
        for index in self._omit:
            before = sum(self._columns[i] + len(GAP) for i in shown[:-1])
            if before + min(MIN_TEXT, self._columns[shown[-1]] if shown else 0) <= self._width:
                break
            if index in shown:
                shown.remove(index)
        return shown

    def _line(self, row: Sequence[Cell], shown: Sequence[int]) -> str:
        spans: list[Span] = []
        for index in shown:
            one = cut(row[index], self._columns[index])
            space = " " * (self._columns[index] - _width_of(one))
            spans += [*one, (space + GAP, None)]
        return _painted(cut(_without_trailing_space(spans), self._width), self._colours).rstrip()


def _without_trailing_space(spans: list[Span]) -> Cell:
    while spans and not spans[-1][0].strip():
        spans.pop()
    return tuple(spans)


def _painted(spans: Cell, colours: bool) -> str:
    return "".join(painted(text, colour, colours) if colour else text for text, colour in spans)


def cut(spans: Cell, width: int) -> Cell:
    """Cut a cell to a width in columns of the terminal, and mark the place."""
    if _width_of(spans) <= width:
        return spans
    kept: list[Span] = []
    left = width - len(CUT)
    for text, colour in spans:
        size = 0
        for character in text:
            wide = display_width(character)
            if wide > left:
                return (*kept, (text[:size] + CUT, colour)) if width > 0 else ()
            left -= wide
            size += 1
        kept.append((text, colour))
    return tuple(kept)


def display_width(text: str) -> int:
    """Return how many columns of a terminal a printable text takes."""
    return len(text) if text.isascii() else sum(map(_columns_of, text))


def _columns_of(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _width_of(spans: Cell) -> int:
    return sum(display_width(text) for text, _ in spans)
