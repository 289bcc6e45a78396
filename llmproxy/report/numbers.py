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
MAX_MORE_PLACES = 3  # that tell the ends of an interval apart


def number(value: float, more: int = 0) -> str:
    """Format a number to three significant digits, or `more`; a dash if it is not finite."""
    if not math.isfinite(value):
        return "–"
    if abs(value) >= 1e9:
        return _signed(f"{value:.3g}")
    if value == int(value):
        return _signed(f"{value:,.0f}")
    places = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return _signed(f"{value:,.{places + more}f}")


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


def _places(ms: float, in_seconds: bool, more: int = 0) -> str:
    """Format a time without its unit: hundredths of seconds, whole milliseconds from ten on.

    more: further decimal places.
    """
    if not in_seconds:
        places = 0 if abs(ms) >= 10 or ms == 0 else 1
        return _signed(f"{ms:.{places + more}f}")
    value = ms / 1000
    if abs(value) >= 1e6:
        return f"{value:.3g}"
    return _signed(f"{value:,.{(0 if abs(value) >= 100 else 2) + more}f}")


def is_time(measure: str) -> bool:
    """Return whether a measure is a time in milliseconds, of which less is better."""
    return measure.endswith("_ms")


def amount(value: float, measure: str) -> str:
    """Format a time in milliseconds, a similarity from 0 to 1, or a rate in tokens per second."""
    if is_time(measure):
        return seconds(value)
    return _signed(f"{value:.2f}") if measure == SIMILARITY else f"{number(value)}/s"


def difference(value: float, measure: str) -> str:
    """Format first minus second; infinite if one has no median, having failed too often."""
    if is_time(measure) and math.isinf(value):
        return f"{'first' if value > 0 else 'second'}: none"
    return amount(value, measure)


def between(interval: Interval, measure: str) -> str:
    """Format an interval, both ends in one unit; without an end that is infinite.

    Ends that differ look different: they get more digits if needed.
    """
    low, high = interval.low, interval.high
    if measure == SIMILARITY:
        return _ends(low, high, lambda value, more: _signed(f"{value:.{2 + more}f}"))
    if not is_time(measure):
        return _ends(low, high, number)
    if low == math.inf:
        return seconds(low)
    if math.isinf(low):
        return "any" if math.isinf(high) else f"{seconds(high)} or less"
    if math.isinf(high):
        return f"{seconds(low)} or more"
    in_seconds = _is_long(max(abs(low), abs(high)))
    unit = "s" if in_seconds else "ms"
    ends = _ends(low, high, lambda value, more: _places(value, in_seconds, more))
    return f"{ends}{NO_BREAK}{unit}"


def _ends(low: float, high: float, write: Callable[[float, int], str]) -> str:
    """Format two numbers by `write`, which takes each and how many places more to give."""
    for more in range(MAX_MORE_PLACES + 1):
        ends = write(low, more), write(high, more)
        if low == high or ends[0] != ends[1]:
            return " to ".join(ends)
    return f"{write(low, 0)} to {write(high, 0)}"


def difference_between(interval: Interval, measure: str) -> str:
    """Format an interval of first minus second."""
    if interval.low == interval.high and math.isinf(interval.low):
        return difference(interval.low, measure)
    return between(interval, measure)


def percent(share: float) -> str:
    """Format a share from 0 to 1."""
    return f"{share * 100:.0f}{NO_BREAK}%"


def money(sum_of: float, currency: str = "") -> str:
    """Format a sum: two places, or as many as a small sum needs, never with an exponent.

    currency: put after it; empty if it is not known.
    """
    return f"{_money(sum_of)}{NO_BREAK}{currency}" if currency else _money(sum_of)


def _money(sum_of: float) -> str:
    if not math.isfinite(sum_of):
        return number(sum_of)
    if sum_of == 0 or abs(sum_of) >= 1:
        return _signed(f"{sum_of:,.2f}")
    places = 1 - math.floor(math.log10(abs(sum_of)))  # two significant digits
    return _signed(f"{sum_of:.{max(places, 4)}f}")


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
    began: datetime | None, ended: datetime | None, stamp: Callable[[datetime, bool, bool], str]
) -> str:
    """Format from when to when in local time, or since when; empty if there is no beginning.

    stamp: formats a local time, with or without its day, with or without its seconds, which are
        asked for if both are in one minute.
    """
    if began is None:
        return ""
    began = began.astimezone()
    if ended is None:
        return f"since {stamp(began, True, False)} {zone(began)}"
    ended = ended.astimezone()
    changed = "" if zone(began) == zone(ended) else f" {zone(began)}"
    in_seconds = f"{began:%Y%m%d%H%M}" == f"{ended:%Y%m%d%H%M}"
    first = stamp(began, True, in_seconds)
    if first == stamp(ended, True, in_seconds) and not changed:
        return f"{first} {zone(ended)}"
    is_other_day = ended.date() != began.date()
    return f"{first}{changed} to {stamp(ended, is_other_day, in_seconds)} {zone(ended)}"


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
