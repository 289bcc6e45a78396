"""Foreign words and numbers as they stand in a page: the one place where they are escaped.

`text` makes of any string what is safe between tags and in quoted attributes, and what
encodes as UTF-8; all markup round it is ours.
"""

from __future__ import annotations

import math
import re
from html import escape

from ..stats import Interval

NO_BREAK = "\N{NO-BREAK SPACE}"
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


def shortened(words: str, chars: int) -> str:
    """Leave out the middle of what is longer: models' names differ at their ends."""
    if len(words) <= chars:
        return words
    tail = chars // 2
    return f"{words[: chars - tail - 1]}…{words[-tail:]}"


# ---- numbers


def number(value: float) -> str:
    """Write a number so that three of its digits are read; a dash for what is none."""
    if not math.isfinite(value):
        return "–"
    if abs(value) >= 1e9:
        return _signed(f"{value:.3g}")
    if value == int(value) or abs(value) >= 100:
        return _signed(f"{value:,.0f}")
    return _signed(f"{value:,.1f}" if abs(value) >= 10 else f"{value:.2f}")


def _signed(digits: str) -> str:
    return digits.replace("-", "−")


def seconds(ms: float) -> str:
    """Write a time: milliseconds below one second, and seconds from there on."""
    if not math.isfinite(ms):
        return "–"
    return f"{_places(ms, _is_long(ms))}{NO_BREAK}{'s' if _is_long(ms) else 'ms'}"


def _is_long(ms: float) -> bool:
    return abs(ms) >= 999.5


def _places(ms: float, in_seconds: bool) -> str:
    """Write one time's digits: hundredths of seconds, whole milliseconds from ten on."""
    if not in_seconds:
        return _signed(f"{ms:.0f}" if abs(ms) >= 10 or ms == 0 else f"{ms:.1f}")
    value = ms / 1000
    if abs(value) >= 1e6:
        return f"{value:.3g}"
    return _signed(f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}")


def between(interval: Interval, *, is_time: bool) -> str:
    """Write where a number lies, both ends in one unit."""
    low, high = interval.low, interval.high
    if not is_time or not (math.isfinite(low) and math.isfinite(high)):
        return f"{number(low)} to {number(high)}"
    in_seconds = _is_long(max(abs(low), abs(high)))
    unit = "s" if in_seconds else "ms"
    return f"{_places(low, in_seconds)} to {_places(high, in_seconds)}{NO_BREAK}{unit}"


def shares_between(interval: Interval) -> str:
    """Write where a share from 0 to 1 lies."""
    return f"{interval.low:.2f} to {interval.high:.2f}"


def money(amount: float) -> str:
    """Write a sum in nobody's currency, two places or as many as say anything."""
    if not math.isfinite(amount) or amount == 0 or abs(amount) >= 1:
        return number(amount) if not math.isfinite(amount) else f"{amount:,.2f}"
    return f"{amount:.2g}" if abs(amount) < 0.0001 else f"{amount:.4f}"


def count_of(count: int, one: str, many: str | None = None) -> str:
    """Write how many there are of a thing: "1 answer", "1,200 answers"."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
