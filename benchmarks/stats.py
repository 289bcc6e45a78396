"""Summaries of measured values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """The median of the rounds, the least and the most."""

    median: float
    least: float
    most: float

    @property
    def spread_percent(self) -> float:
        """Half of the range, in percent of the median."""
        return 50 * (self.most - self.least) / abs(self.median) if self.median else 0.0


def summarize(values: Sequence[float]) -> Summary | None:
    """Summarize the values of all rounds; None if there are none."""
    known = sorted(value for value in values if not math.isnan(value))
    if not known:
        return None
    return Summary(percentile(known, 50), known[0], known[-1])


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile, interpolated between the two nearest values; NaN if there are none."""
    if not values:
        return math.nan
    ranked = sorted(values)
    position = (len(ranked) - 1) * percent / 100
    below = math.floor(position)
    above = math.ceil(position)
    return ranked[below] + (ranked[above] - ranked[below]) * (position - below)
