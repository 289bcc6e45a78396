"""Compute the axes of charts: the position of a value, and the labelled ticks.

Values are times in milliseconds or plain numbers, none below zero; `bounded` and `drawable` make
any float fit for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

LOG_FROM = 20  # ratio of most to least: a linear axis would squeeze half of the values
MAX_TICKS = 7  # of a logarithmic axis: room for that many labels
LEAST, MOST = 1e-6, 1e15  # a nanosecond counts as 0; 30,000 years are enough
MAX_SPAN = 1e6  # of a logarithmic axis: smaller values are drawn at its start

Ticks = list[tuple[float, str]]


@dataclass(frozen=True)
class Axis:
    """The position of values, and the labelled positions."""

    at: Callable[[float], float]
    marks: Sequence[tuple[float, str]]


def bounded(value: float) -> float:
    """Limit a value to what can be drawn; NaN and negative values become 0."""
    return min(value, MOST) if math.isfinite(value) and value > LEAST else 0.0


def drawable(values: Sequence[float]) -> list[float]:
    """Limit values to what can be drawn, without those that are not finite."""
    return [bounded(value) for value in values if math.isfinite(value)]


def time_axis(
    values: Sequence[float], start: float, end: float, *, log: bool | None = None
) -> Axis:
    """Make an axis of times from `start` to `end`, with units at the ticks.

    log: by default, logarithmic if the values span a factor of LOG_FROM.
    """
    positive = [value for value in values if value > 0]
    if log is None:
        log = bool(positive) and max(positive) > LOG_FROM * min(positive)
    if not log:
        return _linear(values, start, end, _time_ticks)
    most = max(positive)
    low, high = max(min(positive), most / MAX_SPAN) / 1.15, most * 1.1
    span = math.log(high / low)

    def at(value: float) -> float:
        return start + (end - start) * math.log(max(value, low) / low) / span

    return Axis(at, [(at(value), label) for value, label in _log_ticks(low, high)])


def plain_axis(values: Sequence[float], start: float, end: float) -> Axis:
    """Make an axis of plain numbers from `start` to `end`."""
    return _linear(values, start, end, _plain_ticks)


def _linear(
    values: Sequence[float], start: float, end: float, ticks: Callable[[float, float], Ticks]
) -> Axis:
    """Make a linear axis that begins at zero, unless all values are far from it."""
    least, most = min(values, default=0.0), max(values, default=0.0)
    low = max(least - (most - least) * 0.3, 0.0) if least > 0.6 * most else 0.0
    if most <= low:  # all the same
        low, most = 0.0, most * 1.5 or 1.0
    high = most + (most - low) * 0.04

    def at(value: float) -> float:
        return start + (end - start) * (value - low) / (high - low)

    return Axis(at, [(at(value), label) for value, label in ticks(low, high)])


def _time_ticks(low: float, high: float) -> Ticks:
    unit, scale = ("s", 1000) if high >= 1000 else ("ms", 1)
    return [
        (value, f"{_round(value / scale)} {unit}" if value else "0") for value in _steps(low, high)
    ]


def _plain_ticks(low: float, high: float) -> Ticks:
    return [(value, _round(value)) for value in _steps(low, high)]


def _steps(low: float, high: float) -> list[float]:
    """Return the round numbers that divide a range into two to five parts."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((power * nice for nice in (1, 2, 2.5, 5, 10) if power * nice >= rough), rough)
    first = math.ceil(low / step)
    values = (step * (first + index) for index in range(6))
    return [value for value in values if low <= value <= high]


def _log_ticks(low: float, high: float) -> Ticks:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values: list[float] = []
    for nice in ((1, 2, 5), (1, 3), (1,)):
        values = [10.0**power * each for power in powers for each in nice]
        values = [value for value in values if low <= value <= high]
        if len(values) <= MAX_TICKS:
            break
    return [
        (value, f"{_round(value / 1000)} s" if value >= 1000 else f"{_round(value)} ms")
        for value in values[:: math.ceil(len(values) / MAX_TICKS) or 1]
    ]


def _round(value: float) -> str:
    return f"{value:,.0f}" if 1e3 <= value < 1e9 else f"{value:.6g}"
