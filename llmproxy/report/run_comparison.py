"""Compare two benchmark runs: how each model's responses changed from one to the other.

Each model is treated as a study of its own whose two "models" are the runs, so that all figures,
intervals and tests are those of `figures`: differences are taken request by request. All values
are of the requests that the model answered in both runs, those of a measure of the requests for
which both runs have it.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from math import fsum
from operator import attrgetter
from typing import Any

from ..core.text import printable
from . import stats
from .comparisons import Comparison, correct_for_number, similarities
from .data import Study
from .estimates import Values, by_sample
from .figures import (
    ModelFigures,
    cost_of,
    ended_of,
    figures,
    held_against_recorded,
    values_of,
)
from .json_and_csv import csv_cell, finite
from .measures import MEASURES
from .numbers import (
    SIMILARITY,
    amount,
    count_of,
    difference,
    difference_between,
    money,
    number,
    period,
    setting,
)
from .prices import Price
from .text import stamp
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
    "input_tokens": "tokens in",
    "output_tokens": "tokens out",
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

    first, second: the medians in the two runs, of costs the means, of the requests for which both
        have it; None if there are none.
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
        return stats.difference(self.second, self.first)


@dataclass(frozen=True)
class ModelChange:
    """How a model changed from the first run to the second.

    requests: number of those that it answered in both, or failed to; all figures are of these.
    """

    model: str
    requests: int
    first: ModelFigures
    second: ModelFigures
    changes: Sequence[Change]


@dataclass(frozen=True)
class RunFacts:
    """When a run was made, and how: `Study.settings`."""

    name: str
    began: datetime | None
    ended: datetime | None
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class RunComparison:
    """Two runs compared.

    facts: of the first and the second run.
    shared: number of requests that a model got in both; left_out_first, left_out_second: of the
        other requests of each run, which count in no figure.
    models: those in both runs; only_first, only_second: the others.
    tested: number of comparisons for which p-values are corrected.
    """

    first: str
    second: str
    facts: tuple[RunFacts, RunFacts]
    shared: int
    left_out_first: int
    left_out_second: int
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
    prices = prices or {}
    both = [model for model in first.models if model in second.models]
    shared = {model: _samples(first, model) & _samples(second, model) for model in both}
    pairs = {model: _pair(model, first, second, ids) for model, ids in shared.items()}
    found = {
        model: figures(pair, _prices(pair, prices.get(model))) for model, pair in pairs.items()
    }
    every = correct_for_number([each for one in found.values() for each in one.comparisons])
    corrected = iter(every)
    models = []
    for model, pair in pairs.items():
        other, one = found[model].models
        compared = {each.measure: next(corrected) for each in found[model].comparisons}
        changes = list(_changes(pair, compared, prices.get(model)))
        models.append(ModelChange(model, len(shared[model]), one, other, changes))
    whole: set[str] = set().union(*shared.values())
    return RunComparison(
        first.title,
        second.title,
        (_facts(first), _facts(second)),
        len(whole),
        _left_out(first, whole),
        _left_out(second, whole),
        models,
        [model for model in first.models if model not in both],
        [model for model in second.models if model not in both],
        sum(each.p_value is not None for each in every),
    )


def _facts(study: Study) -> RunFacts:
    return RunFacts(study.title, study.began, study.ended, study.settings)


def _left_out(study: Study, shared: Collection[str]) -> int:
    return len({answer.sample for answer in study.answers if answer.sample not in shared})


def _samples(study: Study, model: str) -> set[str]:
    return {answer.sample for answer in ended_of(study, model)}


def _pair(model: str, first: Study, second: Study, shared: Collection[str]) -> Study:
    """Return a model's responses to these requests as a study, with the runs as its models.

    The second run comes first: figures compare the first model with the second.
    """
    samples = {sample.id: sample for study in (first, second) for sample in study.samples}
    return Study(
        title=model,
        is_run=True,
        models=(second.title, first.title),
        samples=[sample for sample in samples.values() if sample.id in shared],
        answers=[
            replace(answer, model=run.title)
            for run in (first, second)
            for answer in run.answers
            if answer.model == model and answer.sample in shared
        ],
    )


def _prices(pair: Study, price: Price | None) -> dict[str, Price]:
    return {} if price is None else dict.fromkeys(pair.models, price)


def _changes(
    pair: Study, compared: Mapping[str, Comparison], price: Price | None
) -> Iterator[Change]:
    second, first = (_values(pair, run, price) for run in pair.models)
    for measure, unit in UNITS.items():
        one, other = _in_both(first[measure], second[measure])
        yield Change(measure, _median(one), _median(other), compared.get(measure), unit)
    one, other = _in_both(first["cost"], second["cost"])
    yield Change("cost", _mean(one), _mean(other), None, price.currency if price else "")


def _values(pair: Study, run: str, price: Price | None) -> dict[str, Values]:
    """Return the values of each request in a run, by measure."""
    ended = ended_of(pair, run)
    good = [answer for answer in ended if answer.exchange.status == "ok"]
    samples = {sample.id: sample for sample in pair.samples}
    return {
        **{measure: values_of(pair, measure, ended) for measure in MEASURES},
        SIMILARITY: similarities(held_against_recorded(good, samples)),
        **{
            name: by_sample(good, attrgetter(f"exchange.usage.{name}"))
            for name in ("input_tokens", "output_tokens")
        },
        "cost": {} if price is None else by_sample(good, lambda one: cost_of(one, price)),
    }


def _in_both(first: Values, second: Values) -> tuple[list[float], list[float]]:
    """Return all values of the requests that have any in both."""
    both = first.keys() & second.keys()
    one, other = ([value for id in both for value in values[id]] for values in (first, second))
    return one, other


def _median(values: Sequence[float]) -> float | None:
    return stats.median(values) if values else None


def _mean(values: Sequence[float]) -> float | None:
    return fsum(values) / len(values) if values else None


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
    if math.isinf(value):
        return f"half or more {'now fail' if value > 0 else 'failed before'}"
    measured = _is_measured(change)
    text = difference(value, change.measure) if measured else shown(change, value)
    is_zero = not any(digit in text for digit in "123456789")  # rounded
    return text if is_zero or value < 0 else f"+{text}"


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
    for facts in runs.facts:
        told = [f"{name} {setting(value)}" for name, value in facts.settings.items()]
        when = period(facts.began, facts.ended, stamp)
        lines += page.wrapped(f"{facts.name}: {', '.join(filter(None, [when, *told]))}")
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
        lines += ["", *page.grid(model_title(each, runs), headings, rows)]
    for name, models in ((runs.first, runs.only_first), (runs.second, runs.only_second)):
        if models:
            lines += ["", *page.wrapped(f"only in {name}: {', '.join(models)}")]
    return lines


def _about(runs: RunComparison) -> str:
    return (
        f"{requests_of(runs)}; change: second minus first, the median of the differences request "
        "by request; better or worse is said where the whole 95 % interval and the p-value say "
        f"so, corrected for {count_of(runs.tested, 'comparison')}"
    )


def requests_of(runs: RunComparison) -> str:
    """Say how many requests are compared, and how many of each run are left out."""
    left_out = [
        f"{count:,} of {printable(name)}"
        for name, count in ((runs.first, runs.left_out_first), (runs.second, runs.left_out_second))
        if count
    ]
    rest = f" ({' and '.join(left_out)} left out)" if left_out else ""
    return f"all values are of the {count_of(runs.shared, 'request')} in both{rest}"


def model_title(each: ModelChange, runs: RunComparison) -> str:
    """Return a model's name, with the number of its requests if it got fewer than others."""
    is_all = each.requests == runs.shared
    return each.model if is_all else f"{each.model}, {count_of(each.requests, 'request')}"


def _succeeded(each: ModelChange) -> tuple[str, str]:
    return f"{each.first.ok}/{each.first.requests}", f"{each.second.ok}/{each.second.requests}"


# ---- for programs


def comparison_json(runs: RunComparison) -> dict[str, Any]:
    """Return two compared runs as JSON values; what is infinite becomes null."""
    return {
        "first": runs.first,
        "second": runs.second,
        "runs": [
            {
                "name": facts.name,
                "began": facts.began and facts.began.isoformat(),
                "ended": facts.ended and facts.ended.isoformat(),
                "settings": dict(facts.settings),
            }
            for facts in runs.facts
        ],
        "shared": runs.shared,
        "left_out_first": runs.left_out_first,
        "left_out_second": runs.left_out_second,
        "tested": runs.tested,
        "only_first": list(runs.only_first),
        "only_second": list(runs.only_second),
        "models": [
            {
                "model": each.model,
                "requests": each.requests,
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
