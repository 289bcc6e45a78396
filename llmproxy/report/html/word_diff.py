"""Compare two texts word by word.

The words that stay are a longest common subsequence, as in `agreement.similarity`. Short matches
between long changes are then dropped, for readability.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from itertools import groupby, islice

MAX_WORDS = 4000  # of each text: takes two megabytes and hundredths of a second

_WORD = re.compile(r"\s+|\w+|[^\w\s]")


@dataclass(frozen=True)
class Change:
    """A stretch of the two texts: either `kept`, or `removed` and `added`."""

    kept: str = ""
    removed: str = ""
    added: str = ""


def differences(first: str, second: str) -> list[Change] | None:
    """Return the changes from the first text to the second; None if one is too long.

    All `kept` and `removed` joined are the first text, all `kept` and `added` the second.
    """
    words, others = (
        [match[0] for match in islice(_WORD.finditer(text), MAX_WORDS + 1)]
        for text in (first, second)
    )
    if max(len(words), len(others)) > MAX_WORDS:
        return None
    return _readable(_changes(words, others))


def _changes(words: Sequence[str], others: Sequence[str]) -> list[Change]:
    """Walk the table of common lengths from its end; its bits are those of `agreement`."""
    rows = _rows(words, others)
    changes: list[Change] = []
    at, other = len(words), len(others)
    while at and other:
        if rows[other - 1] >> (at - 1) & 1:
            at -= 1
            changes.append(Change(removed=words[at]))
        elif other > 1 and not rows[other - 2] >> (at - 1) & 1:
            other -= 1
            changes.append(Change(added=others[other]))
        else:
            at, other = at - 1, other - 1
            changes.append(Change(kept=words[at]))
    changes += (Change(removed=word) for word in reversed(words[:at]))
    changes += (Change(added=word) for word in reversed(others[:other]))
    return _joined(reversed(changes))


def _rows(words: Sequence[str], others: Sequence[str]) -> list[int]:
    """Return a row of the table for each word of the second: a 0 where the length grows."""
    places: dict[str, int] = {}
    for index, word in enumerate(words):
        places[word] = places.get(word, 0) | 1 << index
    all_ones = (1 << len(words)) - 1
    row, rows = all_ones, []
    for word in others:
        matched = row & places.get(word, 0)
        row = (row + matched | row - matched) & all_ones
        rows.append(row)
    return rows


def _joined(changes: Iterable[Change]) -> list[Change]:
    """Join neighbours of one kind, so that kept and changed ones alternate."""
    return [
        Change(*("".join(texts) for texts in zip(*map(astuple, neighbours), strict=True)))
        for _, neighbours in groupby(changes, lambda change: bool(change.kept))
    ]


def _readable(changes: list[Change]) -> list[Change]:
    """Drop matches between two changes that are both longer."""
    while True:
        kept = [
            change
            if not change.kept
            or index in (0, len(changes) - 1)
            or len(change.kept) > min(_length(changes[index - 1]), _length(changes[index + 1]))
            else Change(removed=change.kept, added=change.kept)
            for index, change in enumerate(changes)
        ]
        joined = _joined(kept)
        if len(joined) == len(changes):
            return changes
        changes = joined


def _length(change: Change) -> int:
    return max(len(change.removed), len(change.added))
