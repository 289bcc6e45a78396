"""Compute tokens per second: how fast a response was once it had begun.

This is the only definition. The column `tokens_per_second` holds its result, and whatever
shows a rate reads it from there.

The tokens are the provider's count, else our estimate. Counted reasoning that was not streamed,
or only as a summary, is left out. The tokens are spread over the events by their characters,
the only measure that events have.

Only the events are timed: neither the wait for the first one nor that for the counts behind
the last one is time of tokens. Events that were read at once (`READ_MS`) are one arrival, and the
first arrival only starts the clock: the time in which its tokens were generated is unknown. So the
rate is the tokens of all later arrivals, per second from the first arrival to the last.

The clock starts anew after the result of a server's tool and after reasoning that is left out,
which the model does not write at this rate, or not at all.

There is no rate if too little was seen to tell: fewer than `MIN_LATER` later arrivals or
`MIN_TOKENS` tokens in them, or less than `MIN_SPAN_MS` from the first to the last. Nor if most
events were read at once, since then it would be the speed of reading.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator

from ..core.usage import Usage
from . import timeline
from .damage import UNREADABLE

# Between two events; a plugin takes 0.1 to 0.3 ms to parse one of many that have come already.
READ_MS = 1.0
MIN_LATER = 2  # with one, an answer in two pieces would have a rate
MIN_TOKENS = 2.0  # with less, rounding decides
MIN_SPAN_MS = 50.0  # a busy machine delays an event by some ms

PlainTick = tuple[float, str, int, int]
"""A `timeline.Tick`, or the same as a plain tuple."""

_REASONING = frozenset({"reasoning"})
_GENERATED = _REASONING | {"text", "tool_call_name", "tool_call_args"}


def tokens_per_second(
    ticks: Iterable[PlainTick], usage: Usage, estimate: int | None = None
) -> float | None:
    """Return a response's rate, or None if its events and counts don't tell.

    ticks: is iterated twice.
    usage: the provider's counts. estimate: our estimate of all that was streamed, used only if
        the provider counted no output.
    """
    found = _streamed(ticks, usage, estimate)
    if found is None:
        return None
    tokens, kinds = found
    count = chars = later_chars = times = 0
    span_ms = 0.0
    for arrived_chars, arrived_times, after_ms, is_first in _arrivals(ticks, kinds):
        chars += arrived_chars
        if not is_first:
            count += 1
            later_chars += arrived_chars
            times += arrived_times
            span_ms += after_ms
    if count < MIN_LATER or span_ms < MIN_SPAN_MS or times * READ_MS > span_ms:
        return None
    tokens *= later_chars / chars
    return tokens * 1000 / span_ms if tokens >= MIN_TOKENS else None


def _streamed(
    ticks: Iterable[PlainTick], usage: Usage, estimate: int | None
) -> tuple[float, Collection[str]] | None:
    """Return how many tokens were streamed, and in events of which kinds; None if unknown."""
    chars: dict[str, int] = {}
    for _, kind, _, length in ticks:
        chars[kind] = chars.get(kind, 0) + length
    tokens, reasoning, kinds = usage.output_tokens, usage.reasoning_tokens, _GENERATED
    if tokens is None:
        return None if estimate is None else (estimate, kinds)
    if reasoning is None and "redacted" in chars:
        return None  # nobody knows how many of the tokens it was
    # No tokenizer makes more tokens of a text than it has characters, except of rare scripts.
    # Fewer characters are a summary of the reasoning, or nothing at all.
    if reasoning and chars.get("reasoning", 0) < reasoning:
        tokens, kinds = tokens - reasoning, kinds - _REASONING
    if tokens < 0 or sum(chars.get(kind, 0) for kind in kinds) < tokens:
        return None  # it counts something that was not streamed
    return tokens, kinds


def _arrivals(
    ticks: Iterable[PlainTick], kinds: Collection[str]
) -> Iterator[tuple[int, int, float, bool]]:
    """Group the events of these kinds by time; where another kind came between, the next is first.

    An event without text only has metadata, and may be late.

    Yields the characters of the events that came together, their number of different times, the
    time since the arrival before (ms), and whether the clock starts with it.
    """
    chars, times, last_ms, before_ms, is_first = 0, 0, 0.0, 0.0, True
    for at_ms, kind, _, length in ticks:
        ends = kind not in kinds
        if chars and (ends or length and at_ms - last_ms > READ_MS):
            yield chars, times, last_ms - before_ms, is_first
            chars, times, before_ms, is_first = 0, 0, last_ms, False
        if ends:
            is_first = True
        elif length:
            times += not chars or at_ms > last_ms
            chars += length
            last_ms = at_ms
    if chars:
        yield chars, times, last_ms - before_ms, is_first


# ---- rows of older versions

RATE = "rate_of(cast(timeline as blob), output_tokens, reasoning_tokens, output_tokens_estimate)"
"""SQL for the rate of a row that has no column for it; null if its timeline can't be read."""


def add_rate_function(connection: sqlite3.Connection) -> None:
    """Let a connection run `RATE`."""
    connection.create_function("rate_of", 4, _rate_of)


def _rate_of(
    encoded: bytes | None, output: int | None, reasoning: int | None, estimate: int | None
) -> float | None:
    if encoded is None:
        return None
    try:
        ticks = timeline.ticks(json.loads(encoded))
        usage = Usage(output_tokens=output, reasoning_tokens=reasoning)
        return tokens_per_second(ticks, usage, estimate)
    except UNREADABLE:
        return None
