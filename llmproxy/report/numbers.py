"""Format numbers for people: times, rates, counts, money, intervals. For text and pages alike.

A number and its unit are joined by a no-break space; negative numbers have a minus sign.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime

from .stats import Interval

NO_BREAK = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"


def number(value: float) -> str:
    """Format a number to three significant digits; a dash if it is not finite."""
    if not math.isfinite(value):
        return "–"
    if abs(value) >= 1e9:
        return _signed(f"{value:.3g}")
    if value == int(value) or abs(value) >= 100:
        return _signed(f"{value:,.0f}")
    return _signed(f"{value:,.1f}" if abs(value) >= 10 else f"{value:.2f}")


def _signed(digits: str) -> str:
    is_zero = not digits.strip("-0.,")  # rounded: there is no "-0.0"
    return digits.replace("-", "" if is_zero else MINUS)


def seconds(ms: float) -> str:
    """Format a time: milliseconds below one second, else seconds."""
    if not math.isfinite(ms):
        return "–"
    return f"{_places(ms, _is_long(ms))}{NO_BREAK}{'s' if _is_long(ms) else 'ms'}"


def _is_long(ms: float) -> bool:
    return abs(ms) >= 999.5


def _places(ms: float, in_seconds: bool) -> str:
    """Format a time without its unit: hundredths of seconds, whole milliseconds from ten on."""
    if not in_seconds:
        return _signed(f"{ms:.0f}" if abs(ms) >= 10 or ms == 0 else f"{ms:.1f}")
    value = ms / 1000
    if abs(value) >= 1e6:
        return f"{value:.3g}"
    return _signed(f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}")


def amount(value: float, *, is_time: bool) -> str:
    """Format a time in milliseconds, or a rate in tokens per second."""
    return seconds(value) if is_time else f"{number(value)}/s"


def between(interval: Interval, *, is_time: bool) -> str:
    """Format an interval, both ends in one unit."""
    low, high = interval.low, interval.high
    if not is_time or not (math.isfinite(low) and math.isfinite(high)):
        return f"{number(low)} to {number(high)}"
    in_seconds = _is_long(max(abs(low), abs(high)))
    unit = "s" if in_seconds else "ms"
    return f"{_places(low, in_seconds)} to {_places(high, in_seconds)}{NO_BREAK}{unit}"


def shares_between(interval: Interval) -> str:
    """Format an interval of shares from 0 to 1."""
    return f"{interval.low:.2f} to {interval.high:.2f}"


def money(sum_of: float) -> str:
    """Format a sum without a currency: two places, or as many as a small sum needs."""
    if not math.isfinite(sum_of):
        return number(sum_of)
    if sum_of == 0 or abs(sum_of) >= 1:
        return f"{sum_of:,.2f}"
    return f"{sum_of:.2g}" if abs(sum_of) < 0.01 else f"{sum_of:.4f}"


def count_of(count: int, one: str, many: str | None = None) -> str:
    """Format how many there are of a thing: "1 answer", "1,200 answers"."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def shortened(name: str, chars: int) -> str:
    """Shorten a name in the middle: names of models differ at their ends."""
    if len(name) <= chars:
        return name
    tail = chars // 2
    return f"{name[: chars - tail - 1]}…{name[-tail:]}"


def period(
    began: datetime | None, ended: datetime | None, stamp: Callable[[datetime, bool], str]
) -> str:
    """Format from when to when, in UTC, or since when; empty if there is no beginning.

    stamp: formats a time, with or without its day.
    """
    if began is None:
        return ""
    began = began.astimezone(UTC)
    if ended is None:
        return f"since {stamp(began, True)} UTC"
    ended = ended.astimezone(UTC)
    return f"{stamp(began, True)} to {stamp(ended, ended.date() != began.date())} UTC"
