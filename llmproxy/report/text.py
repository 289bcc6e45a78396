"""Format a study as text for a terminal.

Returns text and prints nothing. Names of models, titles and errors come from clients and servers:
they are escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from math import isinf

from .comparisons import Comparison
from .conclusions import conclusions
from .data import Study
from .estimates import Estimate, Share
from .figures import AgreementFigures, Figures, ModelFigures
from .measures import Measure
from .numbers import (
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
)
from .stats import Interval
from .text_layout import MIN_COLUMNS, NOTHING, TextLayout

NO_MEDIAN = (
    "none: it has no median, because half or more of its requests failed or had no output; a "
    "repeated request counts as failed if half of its responses did"
)
_MEASURE_COLUMNS: Mapping[Measure, str] = {
    "ttft_ms": "first event",
    "first_output_ms": "first output",
    "duration_ms": "whole",
    "tokens_per_second": "tokens",
}


def table(study: Study, figures: Figures, *, width: int, colours: bool = False) -> list[str]:
    """Format a study as lines of at most `width` columns, or MIN_COLUMNS if that is more."""
    page = TextLayout(max(width, MIN_COLUMNS), colours)
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


def _heading(study: Study, figures: Figures, page: TextLayout) -> list[str]:
    done = sum(model.requests for model in figures.models)
    planned = "" if study.planned is None else f" of {study.planned:,}"
    facts = [
        count_of(len(study.samples), "request"),
        f"{done:,}{planned} {'response' if (study.planned or done) == 1 else 'responses'}",
        period(study.began, study.ended, stamp),
        f"only the newest {done:,} (--last N reads more)" if study.is_partial else "",
    ]
    first, *more = page.wrapped(f"{study.title}: {', '.join(fact for fact in facts if fact)}")
    settings = [f"{name} {setting(value)}" for name, value in study.settings.items()]
    return [page.title(first), *more, *page.wrapped(", ".join(settings))]


def stamp(at: datetime, day: bool, seconds: bool) -> str:
    """Format a time, always with its seconds."""
    return f"{at:%Y-%m-%d %H:%M:%S}" if day else f"{at:%H:%M:%S}"


# ---- tables


def _answers(models: Sequence[ModelFigures], page: TextLayout) -> list[str]:
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
    page: TextLayout,
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


def _cache(models: Sequence[ModelFigures], page: TextLayout) -> list[str]:
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


def _gaps(models: Sequence[ModelFigures], page: TextLayout) -> list[str]:
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


def _tokens(models: Sequence[ModelFigures], page: TextLayout) -> list[str]:
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
    "cache_write_1h": "for 1 h",
}


def _token_sum(model: ModelFigures, name: str) -> str:
    if name not in model.tokens:
        return NOTHING
    return f"{round(model.tokens[name].mean * model.tokens[name].count):,}"


def _costs(models: Sequence[ModelFigures], page: TextLayout) -> list[str]:
    rows = {
        m.model: [NOTHING] * 3
        if m.cost is None
        else [
            _share(Share(m.ok - m.cost.unknown, m.ok)),
            money(m.cost.total, m.cost.currency),
            NOTHING if m.cost.per_answer is None else money(m.cost.per_answer, m.cost.currency),
        ]
        for m in models
    }
    return page.grid("cost", ["responses", "total", "each"], rows)


def _counts(title: str, counts: Mapping[str, Mapping[str, int]], page: TextLayout) -> list[str]:
    lines = []
    for model, of_model in counts.items():
        listed = ", ".join(f"{kind} {count:,}" for kind, count in of_model.items())
        lines += page.wrapped(f"{model}: {listed}") if listed else []
    return [page.title(title), *lines] if lines else []


def _agreement(
    title: str, agreements: Mapping[str, AgreementFigures | None], page: TextLayout
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


def _differences(figures: Figures, page: TextLayout) -> list[str]:
    pairs: dict[str, dict[str, str]] = {}
    for each in figures.comparisons:
        pairs.setdefault(f"{each.first}, {each.second}", {})[each.measure] = _difference(each)
    columns: dict[str, str] = {**dict(_MEASURE_COLUMNS.items()), SIMILARITY: "similar"}
    rows = {
        pair: [cells.get(measure, NOTHING) for measure in columns] for pair, cells in pairs.items()
    }
    lines = page.grid("first minus second", [*columns.values()], rows)
    if any(isinf(each.difference) for each in figures.comparisons):
        lines += page.wrapped(NO_MEDIAN)
    if any(each.better for each in figures.comparisons):
        lines += page.wrapped(
            f"* beyond chance by its 95 % interval, and among {figures.tested:,} comparisons"
        )
    return lines


def _difference(comparison: Comparison) -> str:
    shown = difference(comparison.difference, comparison.measure)
    return f"{shown}{'*' if comparison.better else ''}"


def _conclusions(study: Study, figures: Figures, page: TextLayout) -> list[str]:
    lines = []
    for conclusion in conclusions(study, figures):
        lines += page.sentence(f"{conclusion.question}: ", conclusion.answer)
    return [page.title("conclusions"), *lines] if lines else []
