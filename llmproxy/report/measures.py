"""The measures by which models are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Literal

from .data import Measured

Measure = Literal["ttft_ms", "first_output_ms", "duration_ms", "tokens_per_second"]

MEASURES: Mapping[Measure, Callable[[Measured], float | None]] = {
    "ttft_ms": attrgetter("ttft_ms"),
    "first_output_ms": attrgetter("first_output_ms"),
    "duration_ms": attrgetter("duration_ms"),
    "tokens_per_second": attrgetter("exchange.tokens_per_second"),
}
"""What models are compared by; None if it was not measured."""
