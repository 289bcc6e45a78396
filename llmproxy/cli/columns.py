"""Lay out rows of columns: aligned and cut to a terminal's width, or joined for a pipe.

Returns text and prints nothing. The text of a cell must be printable (`core.text.printable`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence

from ..core.text import Colour, painted
from ..recorder.ids import SHORT_ID_CHARS

GAP = "  "
CUT = "…"
EMOJI_STYLE = "\ufe0f"
_JAMO_BELOW = "".join(map(chr, range(0x1160, 0x1200)))  # in one block with the one before
MAX_COLUMN = 30  # characters of a column between the first and the last
MIN_TEXT = 16  # characters of a text at the end, for which less important columns are left out
MIN_SHOWN = 4  # characters of the last column, below which it is left out: "hel…"
LONG_ID_WIDTH = 140  # of a terminal, from which on ids are shown whole if all columns are

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
        terminal goes without, the first ones first. texts: how many columns at the end share
        what the others leave, so that one is not cut away for another's sake. min_text: the
        width of each, for which columns of `omit` go. ids: whether the first column has ids, of
        which a narrow terminal shows the beginning.
    """

    def __init__(
        self,
        width: Callable[[], int],
        omit: Sequence[int] = (),
        *,
        texts: int = 1,
        min_text: int = MIN_TEXT,
        ids: bool = False,
        colours: bool = False,
    ) -> None:
        self._terminal_width = width
        self._min_text = min_text
        self._omit = omit
        self._texts = texts
        self._has_ids = ids
        self._colours = colours
        self._width = 0
        self._columns: list[int] = []
        self._short_ids = self._long_ids = 0

    def lines(self, rows: Sequence[Sequence[Cell]]) -> list[str]:
        """Format rows of equally many cells, one line each, no longer than the width."""
        self.measure(rows)
        if rows and self._has_ids and not self._has_room_for_ids():
            rows = [(_shortened_id(row[0]), *row[1:]) for row in rows]
        widths = self._widths(self._shown())
        return [self._line(row, widths) for row in rows]

    def measure(self, rows: Sequence[Sequence[Cell]]) -> None:
        """Let the columns grow for these rows, with ids as a narrow terminal shows them."""
        self._width = self._terminal_width()
        for row in rows:
            self._columns += [0] * (len(row) - len(self._columns))
            for index, one in enumerate(row):
                is_text = index >= len(row) - self._texts
                limit = MAX_COLUMN if index and not is_text else self._width
                wide = min(_width_of(one), limit) if is_text else _width_of(_cut_parts(one, limit))
                self._columns[index] = max(self._columns[index], wide)
        if self._has_ids and rows:
            self._long_ids = max(self._long_ids, *(_width_of(row[0]) for row in rows))
            short = (_width_of(_shortened_id(row[0])) for row in rows)
            self._short_ids = max(self._short_ids, *short)
            self._columns[0] = min(self._short_ids, self._width)

    def _has_room_for_ids(self) -> bool:
        """Widen the first column for whole ids if no other column has to go for it."""
        everything = [index for index, width in enumerate(self._columns) if width]
        more = self._long_ids - self._short_ids
        if self._width < LONG_ID_WIDTH or self._taken(everything) + more > self._width:
            return False
        self._columns[0] = self._long_ids
        return True

    @property
    def fits(self) -> bool:
        """Whether the columns that are never left out have room beside the texts."""
        shown = [index for index in range(len(self._columns)) if self._columns[index]]
        return self._taken([index for index in shown if index not in self._omit]) <= self._width

    def _shown(self) -> list[int]:
        """Choose the columns that leave some space for the texts, and have some themselves."""
        shown = [index for index, width in enumerate(self._columns) if width]
        for index in self._omit:
            if self._taken(shown) <= self._width:
                break
            if index in shown:
                shown.remove(index)
        while len(shown) > 1 and not self._has_room_for_last(shown):
            shown.pop()
        return shown

    def _taken(self, shown: Sequence[int]) -> int:
        """Return the width of these columns if the texts are as short as they may become."""
        first_text = len(self._columns) - self._texts
        widths = (
            min(self._columns[index], self._min_text)
            if index >= first_text
            else self._columns[index]
            for index in shown
        )
        return sum(widths) + len(GAP) * (len(shown) - 1)

    def _has_room_for_last(self, shown: Sequence[int]) -> bool:
        *before, width = self._widths(shown).values()
        start = sum(before) + len(GAP) * len(before)
        return min(width, self._width - start) >= min(self._columns[shown[-1]], MIN_SHOWN)

    def _widths(self, shown: Sequence[int]) -> dict[int, int]:
        """Return the width of each column: the texts share what the others leave, the longest
        gets what the shorter ones don't need.
        """
        widths = {index: self._columns[index] for index in shown}
        first_text = len(self._columns) - self._texts
        texts = sorted((i for i in shown if i >= first_text), key=widths.__getitem__)
        others = sum(widths[i] for i in shown if i < first_text)
        left = self._width - others - len(GAP) * (len(shown) - 1)
        for index in texts:
            widths[index] = max(min(widths[index], left // len(texts)), 1)
            left -= widths[index]
            texts = texts[1:]
        return widths

    def _line(self, row: Sequence[Cell], widths: Mapping[int, int]) -> str:
        spans: list[Span] = []
        for index, width in widths.items():
            one = _cut_parts(row[index], width)
            space = " " * (width - _width_of(one))
            spans += [*one, (space + GAP, None)]
        return _painted(cut(_without_trailing_space(spans), self._width), self._colours).rstrip()


def _shortened_id(id: Cell) -> Cell:
    """Cut a ULID, the last of its cell's spans, to a beginning that is hardly ever ambiguous."""
    return (*id[:-1], *((text[:SHORT_ID_CHARS], colour) for text, colour in id[-1:]))


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


def _cut_parts(one: Cell, width: int) -> Cell:
    """Cut a cell so that a note and the text after it both keep some of the width.

    Spans in brackets at its end are left out whole: `2.5s (waited 1.2s)`.
    """
    if (GAP, None) not in one:
        while len(one) > 1 and _width_of(one) > width and one[-1][0].startswith(" ("):
            one = one[:-1]
        return cut(one, width)
    if _width_of(one) <= width or width < 2 * MIN_SHOWN + len(GAP):
        return cut(one, width)
    at = one.index((GAP, None))
    note, text = one[:at], one[at + 1 :]
    left = width - len(GAP)
    note = cut(note, max(left // 2, left - _width_of(text)))
    return (*note, (GAP, None), *cut(text, left - _width_of(note)))


def display_width(text: str) -> int:
    """Return how many columns of a terminal a printable text takes."""
    return len(text) if text.isascii() else sum(map(_columns_of, text))


def _columns_of(character: str) -> int:
    if character == EMOJI_STYLE:  # makes a sign before it wide: ❤️
        return 1
    if unicodedata.category(character) in ("Mn", "Me") or character in _JAMO_BELOW:
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _width_of(spans: Cell) -> int:
    return sum(display_width(text) for text, _ in spans)


def folded(text: str, width: int, indent: int = 0) -> str:
    """Break the lines of a text at blanks so that none is wider; a longer word stays whole.

    indent: of further lines, and taken from the width of the first.
    """
    return "\n".join(_folded(line, width - indent, " " * indent) for line in text.split("\n"))


def _folded(line: str, width: int, indent: str) -> str:
    if display_width(line) <= width:
        return line
    lines, left = [""], width
    for piece in re.findall(r"\s*\S+|\s+$", line):
        wide = display_width(piece)
        if wide > left and lines[-1]:
            piece = piece.lstrip()
            lines.append("")
            wide, left = display_width(piece), width
        lines[-1] += piece
        left -= wide
    return f"\n{indent}".join(lines)
