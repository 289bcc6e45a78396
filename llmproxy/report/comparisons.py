"""Compare two models by every measure, and correct for the number of comparisons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite

from .agreement import Agreement
from .data import Study
from .estimates import SEED, Values, interval_of, known, medians_by_sample
from .measures import MEASURES, Measure
from .numbers import SIMILARITY, is_time
from .stats import (
    CONFIDENCE,
    Interval,
    difference,
    difference_interval,
    holm,
    median,
    rank_sum_test,
    sign_test,
)


@dataclass(frozen=True)
class Comparison:
    """Two models compared by one measure: a `Measure`, or numbers.SIMILARITY.

    difference: first minus second, in the measure's unit: of the medians; in a run the median
        of the differences request by request, so that differences between requests add no
        variance. Infinite if one of them failed most requests.
    pairs: number of requests that both finished, 0 if they had different ones.
    interval: of the difference, with 95 % confidence for this comparison alone.
    p_value: of the hypothesis that there is no difference: in a run by the sign test, in traffic
        by the rank sum test. None, as the interval, if there are too few requests.
    corrected_p: the p-value corrected for the number of comparisons in the study, by Holm.
    better: the model that is faster or closer, if the interval and the corrected p-value both
        say so.
    """

    measure: str
    first: str
    second: str
    difference: float
    interval: Interval | None
    pairs: int
    p_value: float | None = None
    corrected_p: float | None = None
    better: str | None = None


Held = Sequence[tuple[str, Agreement]]
"""Requests, and how a reply to each agrees with another one."""


def similarities(held: Held) -> Values:
    alike: dict[str, list[float]] = {}
    for sample, found in held:
        if found.similarity is not None:
            alike.setdefault(sample, []).append(found.similarity)
    return alike


def compare_models(
    study: Study,
    first: str,
    second: str,
    values: Mapping[Measure, Values],
    others: Mapping[Measure, Values],
    agreements: Mapping[str, Held],
) -> Iterator[Comparison]:
    """Compare two models by all measures that both have data for."""
    for measure in MEASURES:
        yield from _compared_by(study, measure, first, second, values[measure], others[measure])
    alike, other_alike = (similarities(agreements[model]) for model in (first, second))
    yield from _compared_by(study, SIMILARITY, first, second, alike, other_alike)


def _compared_by(
    study: Study,
    measure: str,
    first: str,
    second: str,
    values: Values,
    others: Values,
) -> Iterator[Comparison]:
    if not _has_any(values) or not _has_any(others):
        return
    medians, other_medians = medians_by_sample(values), medians_by_sample(others)
    if study.is_run:
        differences = [
            difference(value, other_medians[sample])
            for sample, value in medians.items()
            if sample in other_medians
        ]
        if differences:
            interval = interval_of(differences)
            p_value = None if interval is None else sign_test(differences)
            middle, pairs = median(differences), len(differences)
            yield Comparison(measure, first, second, middle, interval, pairs, p_value)
        return
    own, other = [*medians.values()], [*other_medians.values()]
    interval = difference_interval(own, other, seed=SEED)
    p_value = None if interval is None else rank_sum_test(own, other)
    middle = difference(median(own), median(other))
    yield Comparison(measure, first, second, middle, interval, 0, p_value)


def _has_any(values: Values) -> bool:
    return any(isfinite(value) for of_sample in values.values() for value in of_sample)


def correct_for_number(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Correct the p-values for their number, and name the better models.

    Of twenty comparisons of equal models, each at 95 %, one would say more by chance.
    """
    corrected = iter(holm(known(each.p_value for each in comparisons)))
    claimed = []
    for each in comparisons:
        if each.p_value is not None:
            each = replace(each, corrected_p=next(corrected))
            each = replace(each, better=_better(each))
        claimed.append(each)
    return claimed


def _better(each: Comparison) -> str | None:
    interval, corrected_p = each.interval, each.corrected_p
    if interval is None or corrected_p is None or corrected_p > 1 - CONFIDENCE:
        return None
    if not (interval.is_below_zero or interval.is_above_zero):
        return None
    return each.first if interval.is_below_zero == is_time(each.measure) else each.second
