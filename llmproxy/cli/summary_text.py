"""Format exchanges for a terminal, one per line.

Returns text and prints nothing. Text from clients and models is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ..core.text import Colour, printable
from ..core.usage import Usage
from ..recorder.summary import ExchangeSummary
from ..report.numbers import amount, count_of
from .columns import GAP, Aligner, Cell, Span, cell, cut, joined

if TYPE_CHECKING:  # it imports the server
    from ..app.refusals import Refusal

STATUS_COLOURS: dict[str, Colour] = {
    "ok": "green",
    "error": "red",
    "cancelled": "yellow",
    "interrupted": "yellow",
    "running": "blue",
}

OMITTED = (3, 9, 2, 8, 7)
"""Columns of `summary_row` that a narrow terminal goes without, the first ones first: API,
speed, client, tokens, first event. One without room for the others shows a `brief_row`, all of
whose columns are among them: a wider terminal never shows less."""
TEXTS = 2  # columns at the end that share the rest of the line

BRIEF_OMITTED = (0, 6)  # columns of `brief_row`, as in OMITTED: the ID, the second text
BRIEF_TEXT = 8  # characters of each text, for which they go; at 80, errors too have an ID
STATUS_WIDTH = 11  # interrupted, refused 404
MODEL_WIDTH = 12

USUAL = (None, "stop", "tool_calls")  # finish reasons that a line doesn't mention
NAMED = 2  # ignored fields; more are counted
NAME_CHARS = 30  # of one of them


def summary_row(entry: ExchangeSummary) -> list[Cell]:
    """Format an exchange as columns.

    Its ID (for `log ID`), time, client, API, model, status, how long it took, the time to the
    first event, tokens in and out, tokens per second, the last message, and the beginning of the
    reply, or the error. Notes stand before the last: damage, another origin, an unusual finish,
    ignored fields.
    """
    columns = [
        entry.id,
        local_time(entry.received) if entry.is_timed else "-",
        entry.client,
        entry.dialect,
        model_of(entry),
        status_of(entry),
        "",
        "",
        tokens_in_and_out(entry.usage),
        speed_of(entry),
        entry.last_message or entry.first_words,
        entry.error or entry.reply_words,
    ]
    row = [cell(printable(column)) for column in columns]
    if entry.is_timed:
        row[6:8] = _times(entry)
    elapsed = f" {_seconds_since(entry.received)}s" if entry.status == "running" else ""
    row[5] = cell(columns[5] + elapsed, STATUS_COLOURS[entry.status])
    if notes := _notes(entry):
        note: Span = printable(notes), "red" if entry.damage else "yellow"
        row[-1] = (note, (GAP, None), *row[-1]) if row[-1] else (note,)
    return row


def refusal_row(refusal: Refusal) -> list[Cell]:
    """Format a refused request in the columns of an exchange; it has no ID."""
    status = "refused" if refusal.status is None else f"refused {refusal.status}"
    row = [cell("-"), cell(local_time(refusal.received)), cell(printable(refusal.client))]
    row += [(), (), cell(status, "yellow"), (), (), (), ()]
    return [*row, cell(printable(refusal.what)), cell(printable(refusal.reason))]


def brief_row(row: Sequence[Cell]) -> list[Cell]:
    """Shorten a row of `summary_row` for a narrow terminal, the most important columns first.

    ID, time of the day, total time, status, model, and both texts, that of an error first.
    """
    texts = [row[11], row[10]] if row[5][:1] and row[5][0][1] == "red" else [row[10], row[11]]
    of_day = re.search(r"\d\d:\d\d:\d\d", _text(row[1]))
    total = _text(row[6]).removeprefix("total ").partition(" ")[0]
    status = row[5]
    if _text(status).startswith("running "):
        total = _text(status).removeprefix("running ")
        status = cell("running", STATUS_COLOURS["running"])
    return [
        row[0],
        cell(of_day[0] if of_day else _text(row[1])),
        cell(total),
        cut(status, STATUS_WIDTH),
        cut(row[4], MODEL_WIDTH),
        *texts,
    ]


def _text(one: Cell) -> str:
    return "".join(text for text, _ in one)


class ExchangeAligner:
    """Aligns rows of `summary_row` to a terminal, which may be resized meanwhile.

    keeps_ids: show the first column however narrow it is: it has the branches of a tree.
    """

    def __init__(
        self, width: Callable[[], int], *, keeps_ids: bool = False, colours: bool = False
    ) -> None:
        omitted = BRIEF_OMITTED[1:] if keeps_ids else BRIEF_OMITTED
        self._brief = Aligner(
            width, omitted, texts=TEXTS, min_text=BRIEF_TEXT, ids=True, colours=colours
        )
        self._whole = Aligner(width, OMITTED, texts=TEXTS, ids=True, colours=colours)

    def lines(self, rows: Sequence[Sequence[Cell]]) -> list[str]:
        """Format rows, one line each, no longer than the width."""
        brief = [*map(brief_row, rows)]
        self._whole.measure(rows)
        self._brief.measure(brief)
        return self._whole.lines(rows) if self._whole.fits else self._brief.lines(brief)


def summary_line(entry: ExchangeSummary) -> str:
    """Format an exchange as one line, for a pipe or a file: `summary_row` without empty columns."""
    return joined(summary_row(entry))


def local_time(at: datetime) -> str:
    """Format a time with its zone's offset (+01), and its year if that is not this year.

    All commands show times of the local zone: people compare them with their clock, and
    `--since 18:30` means that one too.
    """
    local = at.astimezone()
    year = "" if local.year == datetime.now().year else f"{local.year:04}-"
    offset = f"{local:%z}"
    return f"{year}{local:%m-%d %H:%M:%S}{offset[:3] if offset.endswith('00') else offset}"


def _seconds_since(at: datetime) -> int:
    return max(int((datetime.now(UTC) - at).total_seconds()), 0)


def _notes(entry: ExchangeSummary) -> str:
    """Name what a reader of the line should know: damage, an unusual finish, ignored fields."""
    notes = [_damaged(entry.damage)] if entry.damage else []
    notes += [f"from {place}" for place in (entry.origin, entry.host) if place is not None]
    if entry.finish_reason not in USUAL:
        notes.append(f"finish {entry.finish_reason}")
    if ignored := entry.ignored_by_choice:
        more = f" and {len(ignored) - NAMED} more" if len(ignored) > NAMED else ""
        names = ", ".join(name[:NAME_CHARS] for name in ignored[:NAMED])
        notes.append(f"ignored {names}{more}")
    return "; ".join(notes)


def _damaged(damage: Iterable[str]) -> str:
    return f"damaged: {', '.join(damage)}"


def damage_lines(damaged: Mapping[str, Iterable[str]], unnamed: int = 0) -> list[str]:
    """Name the exchanges that can't be read completely, by their ids; empty if all can be.

    unnamed: the number of those without an id, of which nothing can be read.
    """
    lines = [printable(f"{id} is {_damaged(names)}") for id, names in damaged.items()]
    if unnamed:
        lines.append(f"left out {count_of(unnamed, 'exchange')} whose id can't be read")
    return [*lines, "`log --verify` may say more"] if lines else []


def status_of(entry: ExchangeSummary) -> str:
    """Format the outcome, with its HTTP status if that says more.

    An error after a stream has begun is "error in stream": the status 200 was sent before.
    """
    status = "replayed" if entry.replay_of and entry.status == "ok" else entry.status
    if status != "error" or entry.http_status is None:
        return status
    return f"error {entry.http_status}" if entry.http_status >= 400 else "error in stream"


def model_of(entry: ExchangeSummary) -> str:
    """Name the model that was asked for, and the one that answered."""
    asked, used = entry.model_asked, entry.model_used
    if asked and used and asked != used:
        return f"{asked}→{used}"
    return used or asked or "-"


def _times(entry: ExchangeSummary) -> tuple[Cell, Cell]:
    """Format the whole time and the time to the first event, the last with what it includes."""
    total = () if entry.duration_ms is None else cell(f"total {seconds_of(entry.duration_ms)}")
    first = () if entry.ttft_ms is None else cell(f"first {seconds_of(entry.ttft_ms)}")
    notes: Cell = ()
    if entry.queue_ms is not None:
        notes += cell(f" (waited {seconds_of(entry.queue_ms)})")
    if entry.is_first_run:
        notes += cell(" (first run)")
    return (total, first + notes) if first else (total and total + notes, ())


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
