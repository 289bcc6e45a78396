"""Compare two benchmark runs: how each model's responses changed from one to the other.

Each model is treated as a study of its own whose two "models" are the runs, so that all figures,
intervals and tests are those of `figures`: differences are taken request by request.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..core.text import printable
from .comparisons import Comparison, correct_for_number
from .data import Study
from .estimates import Estimate
from .figures import ModelFigures, figures
from .json_and_csv import csv_cell, finite
from .measures import MEASURES, Measure
from .numbers import SIMILARITY, amount, count_of, difference, difference_between, money, number
from .prices import Price
from .text_layout import MIN_COLUMNS, NOTHING, TextLayout

NAMES: Mapping[str, str] = {
    "ttft_ms": "first event",
    "first_output_ms": "first output",
    "duration_ms": "whole response",
    "tokens_per_second": "tokens per second",
    SIMILARITY: "similarity to the recorded",
    "input_tokens": "input tokens, median",
    "output_tokens": "output tokens, median",
    "cost": "cost per response",
}
_SHORT: Mapping[str, str] = {
    "duration_ms": "whole",
    "tokens_per_second": "tokens",
    SIMILARITY: "similar",
    "input_tokens": "input tokens",
    "output_tokens": "output tokens",
    "cost": "cost each",
}
NO_DIFFERENCE = "no significant difference"
UNITS: Mapping[str, str] = {
    "ttft_ms": "ms",
    "first_output_ms": "ms",
    "duration_ms": "ms",
    "tokens_per_second": "tokens/s",
    SIMILARITY: "0 to 1",
    "input_tokens": "tokens",
    "output_tokens": "tokens",
}


@dataclass(frozen=True)
class Change:
    """How one measure of a model changed.

    first, second: the medians in the two runs, of costs the means; None if it was not measured.
    comparison: second minus first, with its interval and test; None for tokens and costs.
    unit: of the values; empty if it is not known.
    """

    measure: str
    first: float | None
    second: float | None
    comparison: Comparison | None
    unit: str

    @property
    def difference(self) -> float | None:
        """Second minus first."""
        if self.comparison is not None:
            return self.comparison.difference
        if self.first is None or self.second is None:
            return None
        return self.second - self.first


@dataclass(frozen=True)
class ModelChange:
    """How a model changed from the first run to the second."""

    model: str
    first: ModelFigures
    second: ModelFigures
    changes: Sequence[Change]


@dataclass(frozen=True)
class RunComparison:
    """Two runs compared.

    shared: number of requests that are in both; only those are compared request by request.
    models: those in both runs; only_first, only_second: the others.
    tested: number of comparisons for which p-values are corrected.
    """

    first: str
    second: str
    shared: int
    models: Sequence[ModelChange]
    only_first: Sequence[str]
    only_second: Sequence[str]
    tested: int


def compare_runs(
    first: Study, second: Study, prices: Mapping[str, Price] | None = None
) -> RunComparison:
    """Compare two runs. Their titles differ, as the names of runs are unique.

    prices: by the names of the models.
    """
    both = [model for model in first.models if model in second.models]
    pairs = {model: _figures_of(model, first, second, prices or {}) for model in both}
    every = correct_for_number([each for _, _, found in pairs.values() for each in found])
    corrected = iter(every)
    models = []
    for model, (one, other, found) in pairs.items():
        compared = {each.measure: next(corrected) for each in found}
        models.append(ModelChange(model, one, other, list(_changes(one, other, compared))))
    shared = {sample.id for sample in first.samples} & {sample.id for sample in second.samples}
    return RunComparison(
        first.title,
        second.title,
        len(shared),
        models,
        [model for model in first.models if model not in both],
        [model for model in second.models if model not in both],
        sum(each.p_value is not None for each in every),
    )


def _figures_of(
    model: str, first: Study, second: Study, prices: Mapping[str, Price]
) -> tuple[ModelFigures, ModelFigures, Sequence[Comparison]]:
    """Return a model's figures in both runs, and their comparisons, second minus first."""
    samples = {sample.id: sample for study in (first, second) for sample in study.samples}
    study = Study(
        title=model,
        is_run=True,
        models=(second.title, first.title),
        samples=list(samples.values()),
        answers=[
            replace(answer, model=one.title)
            for one in (first, second)
            for answer in one.answers
            if answer.model == model
        ],
    )
    price = prices.get(model)
    of_runs = {} if price is None else {first.title: price, second.title: price}
    found = figures(study, of_runs)
    other, one = found.models
    return one, other, found.comparisons


def _changes(
    first: ModelFigures, second: ModelFigures, compared: Mapping[str, Comparison]
) -> Iterator[Change]:
    measures: Sequence[Measure] = tuple(MEASURES)
    for measure in measures:
        one, other = (_middle(getattr(each, measure)) for each in (first, second))
        yield Change(measure, one, other, compared.get(measure), UNITS[measure])
    one, other = (
        _middle(each.agreement.similarity if each.agreement else None) for each in (first, second)
    )
    yield Change(SIMILARITY, one, other, compared.get(SIMILARITY), UNITS[SIMILARITY])
    for name in ("input_tokens", "output_tokens"):
        one, other = (_median_tokens(each, name) for each in (first, second))
        yield Change(name, one, other, None, UNITS[name])
    currency = first.cost.currency if first.cost else ""
    one, other = (each.cost.per_answer if each.cost else None for each in (first, second))
    yield Change("cost", one, other, None, currency)


def _middle(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.summary.p50


def _median_tokens(each: ModelFigures, name: str) -> float | None:
    found = each.tokens.get(name)
    return None if found is None else found.p50


# ---- for people


def shown(change: Change, value: float | None) -> str:
    """Format a value of a measure."""
    if value is None:
        return NOTHING
    if change.measure == "cost":
        return money(value, change.unit)
    return amount(value, change.measure) if _is_measured(change) else number(value)


def _is_measured(change: Change) -> bool:
    return change.measure in MEASURES or change.measure == SIMILARITY


def shown_difference(change: Change) -> str:
    """Format how much a measure changed, with a sign; "-" if that is not known."""
    value = change.difference
    if value is None:
        return NOTHING
    sign = "+" if 0 < value < math.inf else ""
    if math.isinf(value):
        return "now fails" if value > 0 else "failed before"
    if _is_measured(change):
        return sign + difference(value, change.measure)
    return sign + shown(change, value)


def shown_interval(change: Change) -> str:
    """Format the 95 % interval of a change."""
    if change.comparison is None:
        return NOTHING
    if change.comparison.interval is None:
        return "too few"
    return difference_between(change.comparison.interval, change.measure)


def verdict(change: Change, runs: RunComparison) -> str:
    """Say whether a change is more than chance: better or worse; "-" for tokens and costs."""
    found = change.comparison
    if found is None:
        return NOTHING
    if found.corrected_p is None:
        return "too few requests"
    if found.better is None:
        return NO_DIFFERENCE
    return "better" if found.better == runs.second else "worse"


def comparison_lines(runs: RunComparison, *, width: int, colours: bool = False) -> list[str]:
    """Format two compared runs as lines of at most `width` columns, or MIN_COLUMNS if more."""
    page = TextLayout(max(width, MIN_COLUMNS), colours)
    lines = [page.title(printable(f"{runs.first} and {runs.second}"))]
    lines += page.wrapped(_about(runs))
    columns = [runs.first, runs.second, "change", "95 %", "beyond chance?"]
    for each in runs.models:
        rows = {"succeeded": [*_succeeded(each), NOTHING, NOTHING, NOTHING]}
        rows |= {
            _SHORT.get(change.measure, NAMES[change.measure]): [
                shown(change, change.first),
                shown(change, change.second),
                shown_difference(change),
                shown_interval(change),
                verdict(change, runs).replace(NO_DIFFERENCE, "no"),
            ]
            for change in each.changes
            if change.first is not None or change.second is not None
        }
        headings = [printable(name)[:24] for name in columns]
        lines += ["", *page.grid(each.model, headings, rows)]
    for name, models in ((runs.first, runs.only_first), (runs.second, runs.only_second)):
        if models:
            lines += ["", *page.wrapped(f"only in {name}: {', '.join(models)}")]
    return lines


def _about(runs: RunComparison) -> str:
    shared = count_of(runs.shared, "request")
    return (
        f"{shared} in both; change: second minus first, the median of the differences request by "
        f"request; better or worse is said where the whole 95 % interval and the p-value say so, "
        f"corrected for {count_of(runs.tested, 'comparison')}"
    )


def _succeeded(each: ModelChange) -> tuple[str, str]:
    return f"{each.first.ok}/{each.first.requests}", f"{each.second.ok}/{each.second.requests}"


# ---- for programs


def comparison_json(runs: RunComparison) -> dict[str, Any]:
    """Return two compared runs as JSON values; what is infinite becomes null."""
    return {
        "first": runs.first,
        "second": runs.second,
        "shared": runs.shared,
        "tested": runs.tested,
        "only_first": list(runs.only_first),
        "only_second": list(runs.only_second),
        "models": [
            {
                "model": each.model,
                "first": finite(asdict(each.first)),
                "second": finite(asdict(each.second)),
                "changes": [finite(_row(runs, each, change)) for change in each.changes],
            }
            for each in runs.models
        ],
    }


def comparison_csv(runs: RunComparison) -> str:
    """Return a row per model and measure, as CSV; `unit` is that of all values of the row."""
    rows = [_row(runs, each, change) for each in runs.models for change in each.changes]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(_ROW)
    writer.writerows([csv_cell(value) for value in row.values()] for row in rows)
    return text.getvalue()


_ROW = (
    *("model", "measure", "unit", "first_run", "second_run", "first", "second", "difference"),
    *("interval_low", "interval_high", "requests", "p_value", "corrected_p", "verdict"),
)


def _row(runs: RunComparison, each: ModelChange, change: Change) -> dict[str, Any]:
    found = change.comparison
    interval = found.interval if found else None
    values = (
        *(each.model, change.measure, change.unit, runs.first, runs.second),
        *(change.first, change.second, change.difference),
        *(interval and interval.low, interval and interval.high),
        *(found and found.pairs, found and found.p_value, found and found.corrected_p),
        None if found is None else verdict(change, runs),
    )
    return dict(zip(_ROW, values, strict=True))
