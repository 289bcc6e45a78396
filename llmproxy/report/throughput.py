"""Compute what all models of a run did together."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from .data import Measured, Study


@dataclass(frozen=True)
class Throughput:
    """What all models together did in a run, while any request was running.

    requests_per_second, tokens_per_second: of successful responses and their output tokens;
        is_estimated: some of these are our own estimate.
    concurrency: requests that ran at a time, on average; most: at any time.
    """

    requests_per_second: float
    tokens_per_second: float
    is_estimated: bool
    concurrency: float
    most: int


def throughput_of(study: Study) -> Throughput | None:
    """Count what ran at any time; times without any request, as between two parts, don't count."""
    if not study.is_run or study.settings.get("concurrency") in (None, 1):
        return None
    changes = []
    for answer in study.answers:
        exchange = answer.exchange
        if answer.repeat and exchange.duration_ms is not None:
            begin_ms = exchange.received.timestamp() * 1000
            took_ms = exchange.duration_ms + (exchange.setup_ms or 0.0)
            changes += [(begin_ms, 1), (begin_ms + took_ms, -1)]
    changes.sort()
    running = most = 0
    busy_ms = request_ms = 0.0
    for (at, change), (until, _) in pairwise(changes):
        running += change
        most = max(most, running)
        busy_ms += (until - at) if running else 0.0
        request_ms += (until - at) * running
    if not busy_ms:
        return None
    good = [each for each in study.answers if each.counts and each.exchange.status == "ok"]
    counts = [_output_tokens(answer) for answer in good]
    return Throughput(
        requests_per_second=len(good) * 1000 / busy_ms,
        tokens_per_second=sum(count or 0 for count in counts) * 1000 / busy_ms,
        is_estimated=any(answer.exchange.output_tokens_estimate is not None for answer in good),
        concurrency=request_ms / busy_ms,
        most=most,
    )


def _output_tokens(answer: Measured) -> int | None:
    counted = answer.exchange.usage.output_tokens
    return answer.exchange.output_tokens_estimate if counted is None else counted
