"""A study as text for a terminal, as JSON and as CSV.

Pure text: whoever prints says whether there are colours, and how wide the screen is.
Names of models, titles and errors are a client's or a server's words: they never drive the
terminal, and no spreadsheet runs them.
"""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from itertools import groupby
from typing import Any

from ..core.text import painted, printable
from .data import Measured, Study
from .figures import (
    ENOUGH,
    MEASURES,
    AgreementFigures,
    Comparison,
    Estimate,
    Figures,
    Measure,
    ModelFigures,
    Share,
)

MIN_COLUMNS = 80  # of a screen: narrower, numbers would have to go
MIN_NAME_COLUMNS = 12
SENTENCE_NAME_COLUMNS = 32  # a sentence has up to three names of models
NOTHING = "-"

_WORDS: Mapping[Measure, str] = {
    "ttft_ms": "to the first event",
    "first_text_ms": "to the first text",
    "duration_ms": "with the whole answer",
    "tokens_per_second": "in tokens per second",
}


def table(study: Study, figures: Figures, *, width: int, colours: bool = False) -> list[str]:
    """Say a study in lines of at most `width` columns (no fewer than MIN_COLUMNS)."""
    page = _Page(max(width, MIN_COLUMNS), colours)
    models = figures.models
    sections = [
        _heading(study, figures, page),
        _answers(models, page),
        _times("first event", models, lambda model: model.ttft_ms, page),
        _times("first text", models, lambda model: model.first_text_ms, page),
        _times("whole answer", models, lambda model: model.duration_ms, page),
        _times("set-up, in no other time", models, lambda model: model.setup_ms, page),
        _times("wait for a turn, in no other time", models, lambda model: model.queue_ms, page),
        _gaps(models, page),
        _tokens(models, page),
        _costs(models, page),
        _counts("finish reasons", {m.model: m.finish_reasons for m in models}, page),
        _counts("errors", {m.model: m.errors for m in models}, page),
        _agreement("as recorded", {m.model: m.agreement for m in models}, page),
        _agreement(
            "as one another",
            {f"{b.first}, {b.second}": b.agreement for b in figures.between},
            page,
        ),
        _sentences(study, figures, page),
    ]
    return [line for section in sections if section for line in ("", *section)][1:]


class _Page:
    """How text is laid out on one screen."""

    def __init__(self, width: int, colours: bool) -> None:
        self._width = width
        self._colours = colours

    def title(self, text: str) -> str:
        return painted(text, "bold", self._colours)

    def wrapped(self, text: str, *, indent: str = "") -> list[str]:
        """Escape a text and break it into lines, the further ones set in."""
        return textwrap.wrap(
            printable(text), self._width, initial_indent=indent, subsequent_indent=indent + "  "
        )

    def grid(
        self, title: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]
    ) -> list[str]:
        """A table of a row for each model; columns without any number are left out.

        Nothing where no column is left.
        """
        cells = {
            heading: column
            for heading, *column in zip(columns, *rows.values(), strict=True)
            if any(cell != NOTHING for cell in column)
        }
        if not cells:
            return []
        widths = [max(map(len, (heading, *column))) + 2 for heading, column in cells.items()]
        room = max(self._width - sum(widths), MIN_NAME_COLUMNS)
        names = [_shortened(printable(name), room) for name in rows]
        room = min(room, max(map(len, (title, *names))))
        lines = []
        for name, row in zip(
            (title, *names), zip(*([h, *c] for h, c in cells.items()), strict=True), strict=True
        ):
            numbers = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
            lines.append(_shortened(name, room).ljust(room) + "".join(numbers))
        return [self.title(lines[0]), *lines[1:]]


def _shortened(name: str, room: int) -> str:
    """Leave out the middle: names of models differ at their ends."""
    if len(name) <= room:
        return name
    kept = room - 1
    return f"{name[: kept // 2]}…{name[len(name) - (kept - kept // 2) :]}"


def _heading(study: Study, figures: Figures, page: _Page) -> list[str]:
    done = sum(model.requests for model in figures.models)
    planned = "" if study.planned is None else f" of {study.planned:,}"
    facts = [
        _counted(len(study.samples), "request"),
        f"{done:,}{planned} {'answer' if (study.planned or done) == 1 else 'answers'}",
        _when(study.began, study.ended),
    ]
    first, *more = page.wrapped(f"{study.title}: {', '.join(fact for fact in facts if fact)}")
    settings = [f"{name} {_setting(value)}" for name, value in study.settings.items()]
    return [page.title(first), *more, *page.wrapped(", ".join(settings))]


def _counted(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def _when(began: datetime | None, ended: datetime | None) -> str:
    if began is None:
        return ""
    if ended is None:
        return f"since {began:%Y-%m-%d %H:%M:%S} UTC"
    end = f"{ended:%H:%M:%S}" if began.date() == ended.date() else f"{ended:%Y-%m-%d %H:%M:%S}"
    return f"{began:%Y-%m-%d %H:%M:%S} to {end} UTC"


def _setting(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or NOTHING
    return NOTHING if value is None else str(value)


# ---- tables


def _answers(models: Sequence[ModelFigures], page: _Page) -> list[str]:
    rows = {
        m.model: [
            f"{m.requests:,}",
            f"{m.ok:,}",
            f"{m.requests - m.ok:,}",
            f"{m.warmups:,}" if any(model.warmups for model in models) else NOTHING,
            *(_median(getattr(m, measure), measure) for measure in _IN_SHORT),
        ]
        for m in models
    }
    columns = ["asked", "ok", "errors", "warm-ups", *_IN_SHORT.values()]
    lines = page.grid("in short, by p50", columns, rows)
    for m in models:
        if m.first_runs:
            lines += page.wrapped(
                f"{m.model}: first run of its process {m.first_runs:,} of {m.ok:,} times, in which"
                " the model may have been loaded"
            )
    return lines


_IN_SHORT: Mapping[Measure, str] = {
    "ttft_ms": "first event",
    "duration_ms": "whole",
    "tokens_per_second": "tokens",
}


def _median(estimate: Estimate | None, measure: Measure) -> str:
    if estimate is None:
        return NOTHING
    return "~" * estimate.is_estimated + _amount(measure, estimate.summary.p50)


def _times(
    title: str,
    models: Sequence[ModelFigures],
    estimate_of: Callable[[ModelFigures], Estimate | None],
    page: _Page,
) -> list[str]:
    rows = {model.model: _time_cells(estimate_of(model)) for model in models}
    return page.grid(title, ["answers", "p50", "p50, 95 %", "p95", "p99"], rows)


def _time_cells(estimate: Estimate | None) -> list[str]:
    if estimate is None:
        return [NOTHING] * 5
    summary, interval = estimate.summary, estimate.interval
    return [
        f"{summary.count:,}",
        _amount("ttft_ms", summary.p50),
        "too few" if interval is None else _amount("ttft_ms", interval.low, interval.high),
        _amount("ttft_ms", summary.p95),
        _amount("ttft_ms", summary.p99),
    ]


def _amount(measure: Measure, *values: float) -> str:
    """A number with its unit, or two that something is between."""
    most = max(map(abs, values))
    if measure == "tokens_per_second":
        scale, digits, unit = 1, 1, "/s"
    elif most >= 10_000:
        scale, digits, unit = 1000, 1, " s"
    else:
        scale, digits, unit = 1, 0 if most >= 100 else 1, " ms"
    return " to ".join(f"{value / scale:z,.{digits}f}" for value in values) + unit


def _gaps(models: Sequence[ModelFigures], page: _Page) -> list[str]:
    rows = {
        m.model: [NOTHING] * 3
        if m.gaps is None
        else [_amount("ttft_ms", ms) for ms in (m.gaps.p50_ms, m.gaps.p95_ms, m.gaps.longest_ms)]
        for m in models
    }
    return page.grid("gaps between events", ["p50", "p95", "longest"], rows)


def _tokens(models: Sequence[ModelFigures], page: _Page) -> list[str]:
    rows = {m.model: [_token_sum(m, f"{name}_tokens") for name in _TOKENS] for m in models}
    lines = page.grid("tokens in all", [*_TOKENS.values()], rows)
    for m in models:
        told = m.tokens["output_tokens"].count if "output_tokens" in m.tokens else 0
        if told < m.ok:
            lines += page.wrapped(
                f"{m.model}: only {told:,} of {m.ok:,} answers told their tokens;"
                " ~ marks rates by our estimate"
            )
    return lines


_TOKENS = {
    "input": "in",
    "output": "out",
    "reasoning": "reasoning",
    "cached": "cached",
    "cache_write": "written",
}


def _token_sum(model: ModelFigures, name: str) -> str:
    if name not in model.tokens:
        return NOTHING
    return f"{round(model.tokens[name].mean * model.tokens[name].count):,}"


def _costs(models: Sequence[ModelFigures], page: _Page) -> list[str]:
    rows = {
        m.model: [NOTHING] * 3
        if m.cost is None
        else [
            f"{m.ok - m.cost.unknown:,}/{m.ok:,}",
            _money(m.cost.total),
            _money(m.cost.per_answer),
        ]
        for m in models
    }
    return page.grid("cost", ["answers", "in all", "each"], rows)


def _money(amount: float | None) -> str:
    if amount is None:
        return NOTHING
    return f"{amount:,.2f}" if amount >= 1 else f"{amount:.3g}"


def _counts(title: str, counts: Mapping[str, Mapping[str, int]], page: _Page) -> list[str]:
    lines = []
    for model, of_model in counts.items():
        words = ", ".join(f"{word} {count:,}" for word, count in of_model.items())
        lines += page.wrapped(f"{model}: {words}") if words else []
    return [page.title(title), *lines] if lines else []


def _agreement(
    title: str, agreements: Mapping[str, AgreementFigures | None], page: _Page
) -> list[str]:
    rows = {
        name: [NOTHING] * 6
        if found is None
        else [
            _share(found.exact_text),
            NOTHING if found.similarity is None else f"{found.similarity.summary.p50:.2f}",
            _likeness(found.similarity),
            _share(found.same_json),
            _share(found.same_tool_calls),
            _share(found.schema_valid),
        ]
        for name, found in agreements.items()
    }
    columns = ["text", "alike", "alike, 95 %", "JSON", "calls", "fits schema"]
    return page.grid(title, columns, rows)


def _share(share: Share | None) -> str:
    return NOTHING if share is None else f"{share.count:,}/{share.of:,}"


def _likeness(estimate: Estimate | None) -> str:
    if estimate is None:
        return NOTHING
    if estimate.interval is None:
        return "too few"
    return f"{estimate.interval.low:.2f} to {estimate.interval.high:.2f}"


# ---- sentences


def _sentences(study: Study, figures: Figures, page: _Page) -> list[str]:
    lines = []
    for _, group in groupby(figures.comparisons, key=lambda found: (found.first, found.second)):
        comparisons = list(group)
        if all(found.interval is None for found in comparisons):
            lines += page.wrapped(_too_few(comparisons[0], figures, "faster"))
            continue
        for found in comparisons:
            lines += page.wrapped(_sentence(found, figures))
    if not lines:
        return []
    if not study.is_run:
        lines += page.wrapped("The models were asked different things: that may be the difference.")
    return [page.title("comparison"), *lines]


def _sentence(found: Comparison, figures: Figures) -> str:
    words, answered = _WORDS[found.measure], _answered(found, figures)
    first, second = _name(found.first), _name(found.second)
    if found.interval is None:
        return _too_few(found, figures, f"faster {words}")
    low, high = found.interval.low, found.interval.high
    if found.faster is None:
        between = _amount(found.measure, low, high)
        return (
            f"no difference {words} between {first} and {second} that chance could not make"
            f" ({first} less {second}, 95 %: {between}, {answered})"
        )
    faster, slower = (first, second) if found.faster == found.first else (second, first)
    between = _amount(found.measure, *sorted((abs(low), abs(high))))
    return (
        f"{faster} is faster {words} than {slower} by"
        f" {_amount(found.measure, abs(found.difference))} (95 %: {between}, {answered})"
    )


def _too_few(found: Comparison, figures: Figures, what: str) -> str:
    had = f"both answered {found.pairs:,}" if found.pairs else f"{_answered(found, figures)} came"
    return (
        f"too few requests to say whether {_name(found.first)} or {_name(found.second)} is {what}"
        f" ({ENOUGH} are needed, {had})"
    )


def _name(model: str) -> str:
    return _shortened(printable(model), SENTENCE_NAME_COLUMNS)


def _answered(found: Comparison, figures: Figures) -> str:
    if found.pairs:
        return _counted(found.pairs, "request")
    estimates = {model.model: getattr(model, found.measure) for model in figures.models}
    counts = (estimates[model].summary.count for model in (found.first, found.second))
    return " and ".join(f"{count:,}" for count in counts) + " requests"


# ---- JSON and CSV


def report_json(study: Study, figures: Figures) -> dict[str, Any]:
    """Give a study as JSON values: its figures, and each answer in short, warm-ups too."""
    return {
        "title": study.title,
        "is_run": study.is_run,
        "began": _stamp(study.began),
        "ended": _stamp(study.ended),
        "settings": dict(study.settings),
        "planned": study.planned,
        "models": [asdict(model) for model in figures.models],
        "comparisons": [asdict(found) for found in figures.comparisons],
        "between": [asdict(between) for between in figures.between],
        "samples": [
            {"id": sample.id, "received": _stamp(sample.received), "client": sample.client}
            for sample in study.samples
        ],
        "answers": [_answer(answer) for answer in study.answers],
    }


def report_csv(study: Study) -> str:
    """Give each answer as a row below a line of names, as RFC 4180 has it.

    A text that a spreadsheet would take for a formula has an apostrophe before it, and
    what does not print is escaped; numbers are numbers.
    """
    rows = [_answer(answer) for answer in study.answers]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(_COLUMNS)
    writer.writerows([_cell(value) for value in row.values()] for row in rows)
    return text.getvalue()


def _answer(answer: Measured) -> dict[str, Any]:
    return {
        "id": answer.id,
        "sample": answer.sample,
        "model": answer.model,
        "repeat": answer.repeat,
        "received": _stamp(answer.received),
        "status": answer.status,
        "error_kind": answer.error_kind,
        "error": answer.error,
        "finish_reason": answer.finish_reason,
        "setup_ms": answer.setup_ms,
        "queue_ms": answer.queue_ms,
        "is_first_run": answer.is_first_run,
        **{measure: measured(answer) for measure, measured in MEASURES.items()},
        **asdict(answer.usage),
        "output_tokens_estimate": answer.output_tokens_estimate,
    }


def _stamp(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()


_COLUMNS = tuple(_answer(Measured(id="", model="", sample="", received=datetime.min, status="ok")))


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    # https://owasp.org/www-community/attacks/CSV_Injection
    return printable(f"'{value}" if value.startswith(_FORMULA) else value)


_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
