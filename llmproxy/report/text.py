"""Format a study as text for a terminal, as JSON and as CSV.

Returns text and prints nothing. Names of models, titles and errors come from clients and servers:
they are escaped for the terminal, and kept from running as formulas in a spreadsheet.
"""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from ..core.text import painted, printable
from ..recorder.summary import ExchangeSummary
from .conclusions import Name, Sentence, Strong, conclusions
from .data import Measured, Study
from .figures import (
    MEASURES,
    AgreementFigures,
    Comparison,
    Estimate,
    Figures,
    Measure,
    ModelFigures,
    Share,
)
from .numbers import (
    MINUS,
    NO_BREAK,
    SIMILARITY,
    amount,
    between,
    count_of,
    difference,
    money,
    percent,
    period,
    seconds,
    setting,
    shortened,
)
from .stats import Interval

MIN_COLUMNS = 24  # of a screen: a name and the widest of the columns
MIN_NAME_COLUMNS = 12
SENTENCE_NAME_COLUMNS = 32  # a sentence names several models
NOTHING = "-"

_MEASURE_COLUMNS: Mapping[Measure, str] = {
    "ttft_ms": "first event",
    "first_output_ms": "first output",
    "duration_ms": "whole",
    "tokens_per_second": "tokens",
}


def table(study: Study, figures: Figures, *, width: int, colours: bool = False) -> list[str]:
    """Format a study as lines of at most `width` columns, or MIN_COLUMNS if that is more."""
    page = _Page(max(width, MIN_COLUMNS), colours)
    models = figures.models
    sections = [
        _heading(study, figures, page),
        _answers(models, page),
        _times("first event", models, lambda model: model.ttft_ms, page),
        _cache(models, page),
        _times("first output", models, lambda model: model.first_output_ms, page),
        _times("whole response", models, lambda model: model.duration_ms, page),
        _times("connecting (not in other times)", models, lambda model: model.setup_ms, page),
        _times("waiting (not in other times)", models, lambda model: model.queue_ms, page),
        _gaps(models, page),
        _tokens(models, page),
        _costs(models, page),
        _counts("finish reasons", {m.model: m.finish_reasons for m in models}, page),
        _counts("errors", {m.model: m.errors for m in models}, page),
        _agreement("agreement with recorded", {m.model: m.agreement for m in models}, page),
        _agreement(
            "agreement of two",
            {f"{b.first}, {b.second}": b.agreement for b in figures.between},
            page,
        ),
        _differences(figures, page),
        _conclusions(study, figures, page),
    ]
    return [line for section in sections if section for line in ("", *section)][1:]


class _Page:
    """Lays out text for one screen."""

    def __init__(self, width: int, colours: bool) -> None:
        self._width = width
        self._colours = colours

    def title(self, text: str) -> str:
        return painted(text, "bold", self._colours)

    def wrapped(self, text: str) -> list[str]:
        """Escape a text and break it into lines, of which the further ones are indented."""
        return self._wrapped(printable(text))

    def sentence(self, start: str, sentence: Sentence) -> list[str]:
        """Render a sentence with its names escaped, broken into lines as by `wrapped`."""
        return self._wrapped(start + _plain(sentence))

    def _wrapped(self, text: str) -> list[str]:
        # A no-break space keeps a number and its unit on one line.
        lines = textwrap.wrap(text, self._width, subsequent_indent="  ")
        return [_ascii(line) for line in lines]

    def grid(
        self, title: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]
    ) -> list[str]:
        """Lay out a table with a row per model, without empty columns; [] if all are empty."""
        cells = {
            heading: [_ascii(cell) for cell in column]
            for heading, *column in zip(columns, *rows.values(), strict=True)
            if any(cell != NOTHING for cell in column)
        }
        if not cells:
            return []
        widths = [max(map(len, (heading, *column))) + 2 for heading, column in cells.items()]
        columns_left = max(self._width - sum(widths), MIN_NAME_COLUMNS)
        names = [shortened(printable(name), columns_left) for name in rows]
        columns_left = min(columns_left, max(map(len, (title, *names))))
        table = list(
            zip(
                (title, *names), zip(*([h, *c] for h, c in cells.items()), strict=True), strict=True
            )
        )
        lines = []
        for start, end in self._blocks(widths, columns_left):
            for number, (name, row) in enumerate(table):
                shown = zip(row[start:end], widths[start:end], strict=True)
                line = shortened(name, columns_left).ljust(columns_left) + "".join(
                    cell.rjust(width) for cell, width in shown
                )
                lines.append(line if number else self.title(line))
        return lines

    def _blocks(self, widths: Sequence[int], columns_left: int) -> Iterator[tuple[int, int]]:
        """Yield which columns fit beside each other; what doesn't fit follows below."""
        start, taken = 0, columns_left
        for index, width in enumerate(widths):
            if index > start and taken + width > self._width:
                yield start, index
                start, taken = index, columns_left
            taken += width
        yield start, len(widths)


def _plain(sentence: Sentence) -> str:
    return "".join(map(_plain_part, sentence))


def _plain_part(part: str | Name | Strong) -> str:
    match part:
        case str():
            return part
        case Name(text):
            return shortened(printable(text), SENTENCE_NAME_COLUMNS)
        case Strong(parts):
            return _plain(parts)


def _ascii(text: str) -> str:
    """Replace typographic spaces and minus signs: terminals are copied from."""
    return text.replace(NO_BREAK, " ").replace(MINUS, "-")


def _heading(study: Study, figures: Figures, page: _Page) -> list[str]:
    done = sum(model.requests for model in figures.models)
    planned = "" if study.planned is None else f" of {study.planned:,}"
    facts = [
        count_of(len(study.samples), "request"),
        f"{done:,}{planned} {'response' if (study.planned or done) == 1 else 'responses'}",
        period(study.began, study.ended, _stamp),
        f"only the newest {done:,} (--last N reads more)" if study.is_partial else "",
    ]
    first, *more = page.wrapped(f"{study.title}: {', '.join(fact for fact in facts if fact)}")
    settings = [f"{name} {setting(value)}" for name, value in study.settings.items()]
    return [page.title(first), *more, *page.wrapped(", ".join(settings))]


def _stamp(at: datetime, day: bool) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S}" if day else f"{at:%H:%M:%S}"


# ---- tables


def _answers(models: Sequence[ModelFigures], page: _Page) -> list[str]:
    rows = {
        m.model: [
            f"{m.requests:,}",
            f"{m.ok:,}",
            f"{m.requests - m.ok:,}",
            f"{m.warmups:,}" if any(model.warmups for model in models) else NOTHING,
            *(_median(getattr(m, measure), measure) for measure in _OVERVIEW),
        ]
        for m in models
    }
    columns = ["sent", "ok", "errors", "warm-ups", *(_MEASURE_COLUMNS[m] for m in _OVERVIEW)]
    lines = page.grid("overview, p50", columns, rows)
    for m in models:
        if m.sent_again:
            lines += page.wrapped(
                f"{m.model}: {count_of(m.sent_again, 'failed request')} sent again, and counted in"
                " no other figure"
            )
        if m.first_runs:
            lines += page.wrapped(
                f"{m.model}: {m.first_runs:,} of {count_of(m.ok, 'response')}"
                f" {'was' if m.first_runs == 1 else 'were'} the first in"
                f" {'its' if m.first_runs == 1 else 'their'} process"
                " and may include loading the model"
            )
    return lines


_OVERVIEW: Sequence[Measure] = ("ttft_ms", "duration_ms", "tokens_per_second")


def _median(estimate: Estimate | None, measure: Measure) -> str:
    if estimate is None:
        return NOTHING
    return "~" * estimate.is_estimated + amount(estimate.summary.p50, measure)


def _times(
    title: str,
    models: Sequence[ModelFigures],
    estimate_of: Callable[[ModelFigures], Estimate | None],
    page: _Page,
) -> list[str]:
    rows = {model.model: _time_cells(estimate_of(model)) for model in models}
    tails = {model.model: _tail_cells(estimate_of(model)) for model in models}
    return [
        *page.grid(title, ["count", "never", "p50", "p50, 95 %"], rows),
        *page.grid(f"{title}, slowest", ["p95", "p95, 95 %", "p99", "p99, 95 %"], tails),
    ]


def _time_cells(estimate: Estimate | None) -> list[str]:
    if estimate is None:
        return [NOTHING] * 4
    summary = estimate.summary
    return [
        f"{summary.count:,}",
        f"{summary.late:,}" if summary.late else NOTHING,
        seconds(summary.p50),
        _time_between(estimate.interval),
    ]


def _tail_cells(estimate: Estimate | None) -> list[str]:
    tails = (estimate.p95, estimate.p99) if estimate else (None, None)
    return [
        cell
        for tail in tails
        for cell in (
            (NOTHING, NOTHING)
            if tail is None
            else (seconds(tail.value), _time_between(tail.interval))
        )
    ]


def _time_between(interval: Interval | None) -> str:
    return "too few" if interval is None else between(interval, "ttft_ms")


def _cache(models: Sequence[ModelFigures], page: _Page) -> list[str]:
    rows = {
        m.model: [NOTHING] * 5
        if m.cache is None
        else [percent(m.cache.share), *_cache_cells(m.cache.cold), *_cache_cells(m.cache.warm)]
        for m in models
    }
    columns = ["cached", "cold", "p50 cold", "warm", "p50 warm"]
    return page.grid("first event by prompt cache", columns, rows)


def _cache_cells(estimate: Estimate | None) -> tuple[str, str]:
    if estimate is None:
        return NOTHING, NOTHING
    return f"{estimate.summary.count:,}", seconds(estimate.summary.p50)


def _gaps(models: Sequence[ModelFigures], page: _Page) -> list[str]:
    rows = {
        m.model: [NOTHING] * 4
        if m.gaps is None
        else [
            seconds(m.gaps.typical.summary.p50),
            _time_between(m.gaps.typical.interval),
            seconds(m.gaps.longest.summary.p50),
            seconds(m.gaps.longest.summary.most),
        ]
        for m in models
    }
    columns = ["p50", "p50, 95 %", "longest, p50", "longest of all"]
    return page.grid("gaps between events", columns, rows)


def _tokens(models: Sequence[ModelFigures], page: _Page) -> list[str]:
    rows = {m.model: [_token_sum(m, f"{name}_tokens") for name in _TOKENS] for m in models}
    lines = page.grid("tokens in total", [*_TOKENS.values()], rows)
    for m in models:
        counted = m.tokens["output_tokens"].count if "output_tokens" in m.tokens else 0
        if counted < m.ok:
            few = f"only {counted:,}" if counted else "none"
            lines += page.wrapped(
                f"{m.model}: {few} of {count_of(m.ok, 'response')} had token counts;"
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
            _share(Share(m.ok - m.cost.unknown, m.ok)),
            money(m.cost.total),
            NOTHING if m.cost.per_answer is None else money(m.cost.per_answer),
        ]
        for m in models
    }
    return page.grid("cost", ["responses", "total", "each"], rows)


def _counts(title: str, counts: Mapping[str, Mapping[str, int]], page: _Page) -> list[str]:
    lines = []
    for model, of_model in counts.items():
        listed = ", ".join(f"{kind} {count:,}" for kind, count in of_model.items())
        lines += page.wrapped(f"{model}: {listed}") if listed else []
    return [page.title(title), *lines] if lines else []


def _agreement(
    title: str, agreements: Mapping[str, AgreementFigures | None], page: _Page
) -> list[str]:
    rows = {
        name: [NOTHING] * 6
        if agreement is None
        else [
            _share(agreement.exact_text),
            *_similarity(agreement.similarity),
            _share(agreement.same_json),
            _share(agreement.same_tool_calls),
            _share(agreement.schema_valid),
        ]
        for name, agreement in agreements.items()
    }
    columns = ["text", "similar", "95 %", "JSON", "calls", "fits schema"]
    return page.grid(title, columns, rows)


def _share(share: Share | None) -> str:
    return NOTHING if share is None else str(share)


def _similarity(estimate: Estimate | None) -> tuple[str, str]:
    if estimate is None:
        return NOTHING, NOTHING
    interval = "too few" if estimate.interval is None else between(estimate.interval, SIMILARITY)
    return f"{estimate.summary.p50:.2f}", interval


# ---- comparisons


def _differences(figures: Figures, page: _Page) -> list[str]:
    pairs: dict[str, dict[str, str]] = {}
    for each in figures.comparisons:
        pairs.setdefault(f"{each.first}, {each.second}", {})[each.measure] = _difference(each)
    columns: dict[str, str] = {**dict(_MEASURE_COLUMNS.items()), SIMILARITY: "similar"}
    rows = {
        pair: [cells.get(measure, NOTHING) for measure in columns] for pair, cells in pairs.items()
    }
    lines = page.grid("first minus second", [*columns.values()], rows)
    if any(each.better for each in figures.comparisons):
        lines += page.wrapped(
            f"* beyond chance by its 95 % interval, and among {figures.tested:,} comparisons"
        )
    return lines


def _difference(comparison: Comparison) -> str:
    shown = difference(comparison.difference, comparison.measure)
    return f"{shown}{'*' if comparison.better else ''}"


def _conclusions(study: Study, figures: Figures, page: _Page) -> list[str]:
    lines = []
    for conclusion in conclusions(study, figures):
        lines += page.sentence(f"{conclusion.question}: ", conclusion.answer)
    return [page.title("conclusions"), *lines] if lines else []


# ---- JSON and CSV


def report_json(study: Study, figures: Figures) -> dict[str, Any]:
    """Return a study as JSON values: its figures, and each response in short, warm-ups too.

    A quantile that most requests never reached is null, as its interval's end.
    """
    return {
        "title": study.title,
        "is_run": study.is_run,
        "began": _iso(study.began),
        "ended": _iso(study.ended),
        "settings": {
            name: _iso(value) if isinstance(value, datetime) else value
            for name, value in study.settings.items()
        },
        "planned": study.planned,
        "is_partial": study.is_partial,
        "models": [_finite(asdict(model)) for model in figures.models],
        "comparisons": [_finite(asdict(found)) for found in figures.comparisons],
        "tested": figures.tested,
        "between": [asdict(between) for between in figures.between],
        "throughput": figures.throughput and asdict(figures.throughput),
        "samples": [
            {"id": sample.id, "received": _iso(sample.received), "client": sample.client}
            for sample in study.samples
        ],
        "answers": [_answer(answer) for answer in study.answers],
    }


def _finite(value: Any) -> Any:
    """Replace infinite numbers, which JSON can't have, by None."""
    if isinstance(value, dict):
        return {name: _finite(member) for name, member in value.items()}
    return None if isinstance(value, float) and math.isinf(value) else value


def report_csv(study: Study) -> str:
    """Return a row per response below a header row, as CSV (RFC 4180).

    Text that a spreadsheet would run as a formula gets an apostrophe in front, and unprintable
    characters are escaped; numbers stay numbers.
    """
    rows = [_answer(answer) for answer in study.answers]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(_COLUMNS)
    writer.writerows([_cell(value) for value in row.values()] for row in rows)
    return text.getvalue()


def _answer(answer: Measured) -> dict[str, Any]:
    exchange = answer.exchange
    return {
        "id": exchange.id,
        "sample": answer.sample,
        "model": answer.model,
        "repeat": answer.repeat,
        "was_sent_again": answer.was_sent_again,
        "received": _iso(exchange.received) if exchange.is_timed else None,
        "status": exchange.status,
        "error_kind": answer.error_kind,
        "error": exchange.error,
        "finish_reason": exchange.finish_reason,
        "setup_ms": exchange.setup_ms,
        "queue_ms": exchange.queue_ms,
        "is_first_run": exchange.is_first_run,
        **{measure: measured(answer) for measure, measured in MEASURES.items()},
        **asdict(exchange.usage),
        "output_tokens_estimate": exchange.output_tokens_estimate,
    }


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()


_NO_EXCHANGE = ExchangeSummary(id="", received=datetime.min, dialect="", path="", client="")
_COLUMNS = tuple(_answer(Measured(exchange=_NO_EXCHANGE, model="", sample="")))


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    # https://owasp.org/www-community/attacks/CSV_Injection
    return printable(f"'{value}" if value.startswith(_FORMULA) else value)


_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
