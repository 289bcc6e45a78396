"""Lay out titles, sentences and grids of numbers for a terminal.

Names come from clients and servers: they are escaped.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence

from ..core.text import painted, printable
from .conclusions import Name, Sentence, Strong
from .numbers import MINUS, NO_BREAK, shortened

MIN_COLUMNS = 24  # of a screen: a name and the widest of the columns
MIN_NAME_COLUMNS = 12
SENTENCE_NAME_COLUMNS = 32  # a sentence names several models
NOTHING = "-"


class TextLayout:
    """Lays out text for one screen."""

    def __init__(self, width: int, colours: bool) -> None:
        self._width = width
        self._colours = colours

    def title(self, text: str) -> str:
        """Return a title."""
        return painted(text, "bold", self._colours)

    def wrapped(self, text: str) -> list[str]:
        """Escape a text and break it into lines, of which the further ones are indented."""
        return self._wrapped(printable(text))

    def sentence(self, start: str, sentence: Sentence) -> list[str]:
        """Render a sentence with its names escaped, broken into lines as by `wrapped`."""
        return self._wrapped(start + _plain(sentence))

    def _wrapped(self, text: str) -> list[str]:
        # A no-break space keeps a number and its unit on one line.
        lines = textwrap.wrap(text, self._width, subsequent_indent="  ")
        return [_ascii(line) for line in lines]

    def grid(
        self, title: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]
    ) -> list[str]:
        """Lay out a table with a row per model, without empty columns; [] if all are empty."""
        cells = {
            heading: [_ascii(cell) for cell in column]
            for heading, *column in zip(columns, *rows.values(), strict=True)
            if any(cell != NOTHING for cell in column)
        }
        if not cells:
            return []
        widths = [max(map(len, (heading, *column))) + 2 for heading, column in cells.items()]
        columns_left = max(self._width - sum(widths), MIN_NAME_COLUMNS)
        names = [shortened(printable(name), columns_left) for name in rows]
        columns_left = min(columns_left, max(map(len, (title, *names))))
        table = list(
            zip(
                (title, *names), zip(*([h, *c] for h, c in cells.items()), strict=True), strict=True
            )
        )
        lines = []
        for start, end in self._blocks(widths, columns_left):
            for number, (name, row) in enumerate(table):
                shown = zip(row[start:end], widths[start:end], strict=True)
                line = shortened(name, columns_left).ljust(columns_left) + "".join(
                    cell.rjust(width) for cell, width in shown
                )
                lines.append(line if number else self.title(line))
        return lines

    def _blocks(self, widths: Sequence[int], columns_left: int) -> Iterator[tuple[int, int]]:
        """Yield which columns fit beside each other; what doesn't fit follows below."""
        start, taken = 0, columns_left
        for index, width in enumerate(widths):
            if index > start and taken + width > self._width:
                yield start, index
                start, taken = index, columns_left
            taken += width
        yield start, len(widths)


def _plain(sentence: Sentence) -> str:
    return "".join(map(_plain_part, sentence))


def _plain_part(part: str | Name | Strong) -> str:
    match part:
        case str():
            return part
        case Name(text):
            return shortened(printable(text), SENTENCE_NAME_COLUMNS)
        case Strong(parts):
            return _plain(parts)


def _ascii(text: str) -> str:
    """Replace typographic spaces and minus signs: terminals are copied from."""
    return text.replace(NO_BREAK, " ").replace(MINUS, "-")
