"""Format numbers for people: times, rates, counts, money, intervals. For text and pages alike.

A number and its unit are joined by a no-break space; negative numbers have a minus sign.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it imports statistics, 5 ms
    from .stats import Interval

NO_BREAK = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"
SIMILARITY = "similarity"  # a measure, beside times and rates


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
    """Format a time: milliseconds below one second, else seconds; infinity is "never"."""
    if not math.isfinite(ms):
        return "never" if ms > 0 else "–"
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


def is_time(measure: str) -> bool:
    """Return whether a measure is a time in milliseconds, of which less is better."""
    return measure.endswith("_ms")


def amount(value: float, measure: str) -> str:
    """Format a time in milliseconds, a similarity from 0 to 1, or a rate in tokens per second."""
    if is_time(measure):
        return seconds(value)
    return _signed(f"{value:.2f}") if measure == SIMILARITY else f"{number(value)}/s"


def difference(value: float, measure: str) -> str:
    """Format first minus second; infinite if one of them failed."""
    if is_time(measure) and math.isinf(value):
        return f"{'first' if value > 0 else 'second'} fails"
    return amount(value, measure)


def between(interval: Interval, measure: str) -> str:
    """Format an interval, both ends in one unit; without an end that is infinite."""
    low, high = interval.low, interval.high
    if measure == SIMILARITY:
        return f"{_signed(f'{low:.2f}')} to {_signed(f'{high:.2f}')}"
    if not is_time(measure):
        return f"{number(low)} to {number(high)}"
    if low == math.inf:
        return seconds(low)
    if math.isinf(low):
        return "any" if math.isinf(high) else f"{seconds(high)} or less"
    if math.isinf(high):
        return f"{seconds(low)} or more"
    in_seconds = _is_long(max(abs(low), abs(high)))
    unit = "s" if in_seconds else "ms"
    return f"{_places(low, in_seconds)} to {_places(high, in_seconds)}{NO_BREAK}{unit}"


def difference_between(interval: Interval, measure: str) -> str:
    """Format an interval of first minus second."""
    if interval.low == interval.high and math.isinf(interval.low):
        return difference(interval.low, measure)
    return between(interval, measure)


def percent(share: float) -> str:
    """Format a share from 0 to 1."""
    return f"{share * 100:.0f}{NO_BREAK}%"


def money(sum_of: float, currency: str = "") -> str:
    """Format a sum: two places, or as many as a small sum needs.

    currency: put after it; empty if it is not known.
    """
    return f"{_money(sum_of)}{NO_BREAK}{currency}" if currency else _money(sum_of)


def _money(sum_of: float) -> str:
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
    """Format from when to when in local time, or since when; empty if there is no beginning.

    stamp: formats a local time, with or without its day.
    """
    if began is None:
        return ""
    began = began.astimezone()
    if ended is None:
        return f"since {stamp(began, True)} {zone(began)}"
    ended = ended.astimezone()
    changed = "" if zone(began) == zone(ended) else f" {zone(began)}"
    is_other_day = ended.date() != began.date()
    return f"{stamp(began, True)}{changed} to {stamp(ended, is_other_day)} {zone(ended)}"


def setting(value: object) -> str:
    """Format a setting of a study; times become local ones."""
    match value:
        case datetime():
            return f"{value.astimezone():%Y-%m-%d %H:%M:%S}"
        case list() | tuple():
            return " ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)


def zone(local: datetime) -> str:
    """Format the time zone of a local time by its offset, as abbreviations are ambiguous."""
    offset = f"{local:%z}"
    return f"UTC{offset[:3]}:{offset[3:5]}" if local.utcoffset() else "UTC"


def duration(ms: float) -> str:
    """Format how long something took: as `seconds`, from two minutes on in larger units."""
    if not math.isfinite(ms) or ms < 119_500:
        return seconds(ms)
    minutes, rest = divmod(round(ms / 1000), 60)
    if minutes < 60:
        return f"{minutes}{NO_BREAK}min {rest}{NO_BREAK}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}{NO_BREAK}h {minutes}{NO_BREAK}min"
    return f"{hours // 24:,}{NO_BREAK}days"
