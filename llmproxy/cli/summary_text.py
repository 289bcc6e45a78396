"""Format exchanges for a terminal, one per line.

Returns text and prints nothing. Text from clients and models is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from ..core.text import Colour, printable
from ..core.usage import Usage
from ..recorder.summary import ExchangeSummary
from ..report.numbers import amount
from .columns import Cell, cell, joined

STATUS_COLOURS: dict[str, Colour] = {
    "ok": "green",
    "error": "red",
    "cancelled": "yellow",
    "interrupted": "yellow",
    "running": "blue",
}

OMITTED = (3, 8, 7, 6, 2, 4, 1)
"""Columns of `summary_row` that a narrow terminal goes without, the first ones first: API,
speed, tokens, first event, client, model, time."""


def summary_row(entry: ExchangeSummary) -> list[Cell]:
    """Format an exchange as columns.

    Its ID (for `log ID`), time, client, API, model, status, time to the first event, tokens in
    and out, tokens per second, and the first words of the prompt or the error.
    """
    columns = [
        entry.id,
        local_time(entry.received) if entry.is_timed else "-",
        entry.client,
        entry.dialect,
        model_of(entry),
        status_of(entry),
        "" if entry.ttft_ms is None else _first_event(entry),
        tokens_in_and_out(entry.usage),
        speed_of(entry),
        printable(_damaged(entry.damage)) if entry.damage else "",
        entry.error or entry.first_words,
    ]
    row = [cell(printable(column)) for column in columns]
    row[5] = cell(columns[5], STATUS_COLOURS[entry.status])
    row[-2] = cell(columns[-2], "red")
    return row


def summary_line(entry: ExchangeSummary, *, id: bool = True) -> str:
    """Format an exchange as one line, for a pipe or a file: `summary_row` without empty columns."""
    return joined(summary_row(entry)[0 if id else 1 :])


def local_time(at: datetime) -> str:
    """Format a time in the terminal's zone, with its year if that is not this year."""
    local = at.astimezone()
    year = "" if local.year == datetime.now().year else f"{local.year:04}-"
    return f"{year}{local:%m-%d %H:%M:%S}"


def _damaged(damage: Iterable[str]) -> str:
    return f"damaged: {', '.join(damage)}"


def damage_lines(damaged: Mapping[str, Iterable[str]]) -> list[str]:
    """Name the exchanges that can't be read completely, by their ids; empty if all can be."""
    lines = [printable(f"{id} is {_damaged(names)}") for id, names in damaged.items()]
    return [*lines, "`log --verify` may say more"] if lines else []


def status_of(entry: ExchangeSummary) -> str:
    """Format the outcome, with its HTTP status if that says more."""
    status = "replayed" if entry.replay_of and entry.status == "ok" else entry.status
    if entry.status == "ok" or entry.http_status is None:
        return status
    return f"{status} {entry.http_status}"


def model_of(entry: ExchangeSummary) -> str:
    """Name the model that was asked for, and the one that answered."""
    asked, used = entry.model_asked, entry.model_used
    if asked and used and asked != used:
        return f"{asked}→{used}"
    return used or asked or "-"


def _first_event(entry: ExchangeSummary) -> str:
    """Format the time to the first event, and what it includes besides generating."""
    assert entry.ttft_ms is not None
    parts = [] if entry.queue_ms is None else [f"{seconds_of(entry.queue_ms)} of it waiting"]
    if entry.is_first_run:
        parts.append("first run")
    return seconds_of(entry.ttft_ms) + (f" ({', '.join(parts)})" if parts else "")


def seconds_of(ms: float) -> str:
    """Format a time in seconds, so that all times of a list have one unit."""
    seconds = max(ms, 0.0) / 1000  # of two clocks, the later one may read less
    return f"{seconds:.2f}s" if seconds >= 0.01 else f"{seconds:.4f}s"


def tokens_in_and_out(usage: Usage) -> str:
    """Format the provider's token counts, "?" for a missing one; empty if it reported none."""
    if usage.input_tokens is None and usage.output_tokens is None:
        return ""
    into, out = (
        "?" if count is None else f"{count:,}"
        for count in (usage.input_tokens, usage.output_tokens)
    )
    return f"{into}→{out} tokens"


def speed_of(entry: ExchangeSummary) -> str:
    """Format tokens per second; `~` marks a rate by our own token estimate."""
    if entry.tokens_per_second is None:
        return ""
    about = "~" if entry.is_rate_estimated else ""
    return f"{about}{amount(entry.tokens_per_second, 'tokens_per_second')}"
