"""Compute a study's figures: speed, agreement and cost of each model, and how models differ.

This module decides which responses count and what is compared with what; `stats` has the
arithmetic, and `agreement` compares replies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations, pairwise
from math import fsum
from operator import attrgetter
from typing import Literal

from llm.parts import Message

from ..core import chat
from .agreement import Agreement, agreement
from .data import Measured, Sample, Study
from .prices import Price, cost
from .stats import (
    Gaps,
    Interval,
    Summary,
    difference_interval,
    median,
    median_interval,
    summary,
)

SEED = 0  # so that the same responses give the same figures
ENOUGH = 6  # requests for an interval at 95 %, see `stats.median_interval`

Measure = Literal["ttft_ms", "first_text_ms", "duration_ms", "tokens_per_second"]


@dataclass(frozen=True)
class Estimate:
    """A summary of values, and the 95 % interval of their median.

    interval: of the medians per request, since responses to one request are alike, and many of
        them say little about others. None if there are fewer than ENOUGH requests.
    is_estimated: some values are based on our own token estimate.
    """

    summary: Summary
    interval: Interval | None
    is_estimated: bool = False


@dataclass(frozen=True)
class Share:
    """How many of how many."""

    count: int
    of: int

    def __str__(self) -> str:
        return f"{self.count:,}/{self.of:,}"


@dataclass(frozen=True)
class AgreementFigures:
    """How often replies agree with those they are compared with.

    Each share counts the pairs that it applies to (`agreement.Agreement`; for the text, pairs
    with any text), and is None if there are none. similarity: of the texts, 0 to 1.
    schema_valid: None between models, since it concerns one reply only.
    """

    exact_text: Share | None
    same_json: Share | None
    same_tool_calls: Share | None
    schema_valid: Share | None
    similarity: Estimate | None


@dataclass(frozen=True)
class Cost:
    """The cost of successful responses by the user's prices, in the prices' currency.

    total, per_answer: sum and mean of responses with token counts; unknown: the number of
    responses without.
    """

    total: float
    per_answer: float | None
    unknown: int


@dataclass(frozen=True, kw_only=True)
class ModelFigures:
    """The figures of one model. Warm-ups and cancelled requests count in none of them.

    requests: finished ones; ok: the successful ones among them. warmups: their number.
    first_runs: successful responses whose time may include loading the model.
    errors: by kind; finish_reasons: of successful responses; both most frequent first.
    Times are in milliseconds, of successful responses. queue_ms: of those that waited for other
        requests to the model; no other time includes it.
    tokens_per_second: as recorder/token_rate.py defines it.
    gaps: between the events of a response, over all responses.
    tokens: summaries of the provider's counts, by the names of chat.Usage; names without any
        count are left out.
    agreement: with the recorded replies, None if there are none.
    cost: None without a price.
    """

    model: str
    requests: int
    ok: int
    warmups: int
    first_runs: int
    errors: Mapping[str, int]
    finish_reasons: Mapping[str, int]
    setup_ms: Estimate | None
    queue_ms: Estimate | None
    ttft_ms: Estimate | None
    first_text_ms: Estimate | None
    duration_ms: Estimate | None
    tokens_per_second: Estimate | None
    gaps: Gaps | None
    tokens: Mapping[str, Summary]
    agreement: AgreementFigures | None
    cost: Cost | None


@dataclass(frozen=True)
class Comparison:
    """Two models compared by one measure.

    difference: first minus second, in the measure's unit: of the medians; in a run the median
        of the differences request by request, so that differences between requests add no
        variance. pairs: number of requests that both answered, 0 if they had different ones.
    faster: the model that is faster according to the interval, if any.
    """

    measure: Measure
    first: str
    second: str
    difference: float
    interval: Interval | None
    pairs: int
    faster: str | None


@dataclass(frozen=True)
class Between:
    """How far two models' replies to the same requests agree."""

    first: str
    second: str
    agreement: AgreementFigures


@dataclass(frozen=True)
class Figures:
    """The figures of a study: each model, in the study's order, and every pair of models."""

    models: Sequence[ModelFigures]
    comparisons: Sequence[Comparison]
    between: Sequence[Between]


def figures(study: Study, prices: Mapping[str, Price] | None = None) -> Figures:
    """Compute the figures of a study. The same study always gives the same figures.

    prices: by the model names of the study.
    """
    samples = {sample.id: sample for sample in study.samples}
    ended = {model: _ended(study, model) for model in study.models}
    good = {
        model: [answer for answer in answers if answer.exchange.status == "ok"]
        for model, answers in ended.items()
    }
    return Figures(
        models=[
            _model_figures(
                model,
                ended[model],
                good[model],
                warmups=sum(
                    answer.model == model and not answer.repeat for answer in study.answers
                ),
                samples=samples,
                price=(prices or {}).get(model),
            )
            for model in study.models
        ],
        comparisons=[
            comparison
            for first, second in combinations(study.models, 2)
            for measure in MEASURES
            if (comparison := _compared(study, measure, first, second, good)) is not None
        ],
        between=[
            between
            for first, second in combinations(study.models, 2)
            if (between := _between(first, second, good)) is not None
        ],
    )


def _ended(study: Study, model: str) -> list[Measured]:
    return [
        answer
        for answer in study.answers
        if answer.model == model and answer.repeat and answer.exchange.status in ("ok", "error")
    ]


# ---- one model


def _model_figures(
    model: str,
    ended: Sequence[Measured],
    good: Sequence[Measured],
    *,
    warmups: int,
    samples: Mapping[str, Sample],
    price: Price | None,
) -> ModelFigures:
    failed = (answer for answer in ended if answer.exchange.status == "error")
    return ModelFigures(
        model=model,
        requests=len(ended),
        ok=len(good),
        warmups=warmups,
        first_runs=sum(answer.exchange.is_first_run for answer in good),
        errors=_frequent(answer.error_kind for answer in failed),
        finish_reasons=_frequent(answer.exchange.finish_reason for answer in good),
        setup_ms=_estimate(_by_sample(good, attrgetter("exchange.setup_ms"))),
        queue_ms=_estimate(_by_sample(good, attrgetter("exchange.queue_ms"))),
        ttft_ms=_estimate(_by_sample(good, MEASURES["ttft_ms"])),
        first_text_ms=_estimate(_by_sample(good, MEASURES["first_text_ms"])),
        duration_ms=_estimate(_by_sample(good, MEASURES["duration_ms"])),
        tokens_per_second=_rate(good),
        gaps=_gaps(good),
        tokens=_tokens(good),
        agreement=_agreement_with_recorded(good, samples),
        cost=None if price is None else _cost(good, price),
    )


def _frequent(kinds: Iterable[str | None]) -> dict[str, int]:
    counts = Counter(kind or "unknown" for kind in kinds)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _by_sample(
    answers: Iterable[Measured], measure: Callable[[Measured], float | None]
) -> dict[str, list[float]]:
    """Return the measured values of each request that has any."""
    values: dict[str, list[float]] = {}
    for answer in answers:
        if (value := measure(answer)) is not None:
            values.setdefault(answer.sample, []).append(value)
    return values


def _medians(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {sample: median(of_sample) for sample, of_sample in values.items()}


def _estimate(values: Mapping[str, Sequence[float]]) -> Estimate | None:
    whole = summary([value for of_sample in values.values() for value in of_sample])
    return None if whole is None else Estimate(whole, _interval([*_medians(values).values()]))


def _rate(good: Sequence[Measured]) -> Estimate | None:
    found = _estimate(_by_sample(good, MEASURES["tokens_per_second"]))
    is_estimated = any(answer.exchange.is_rate_estimated for answer in good)
    return None if found is None else replace(found, is_estimated=is_estimated)


def _interval(values: Sequence[float]) -> Interval | None:
    return median_interval(values, seed=SEED)


MEASURES: Mapping[Measure, Callable[[Measured], float | None]] = {
    "ttft_ms": attrgetter("ttft_ms"),
    "first_text_ms": attrgetter("first_text_ms"),
    "duration_ms": attrgetter("duration_ms"),
    "tokens_per_second": attrgetter("exchange.tokens_per_second"),
}
"""What models are compared by; None if it was not measured."""


def is_time(measure: str) -> bool:
    """Return whether a measure is a time in milliseconds, of which less is better."""
    return measure != "tokens_per_second"


def _gaps(answers: Iterable[Measured]) -> Gaps | None:
    between = summary(
        [
            later - earlier
            for answer in answers
            for (earlier, _), (later, _) in pairwise(answer.ticks)
        ]
    )
    return None if between is None else Gaps(between.p50, between.p95, between.most)


def _tokens(answers: Sequence[Measured]) -> dict[str, Summary]:
    usages = [answer.exchange.usage for answer in answers]
    return {
        field.name: counts
        for field in fields(chat.Usage)
        if (counts := summary(_numbers(getattr(usage, field.name) for usage in usages))) is not None
    }


def _numbers(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _cost(answers: Sequence[Measured], price: Price) -> Cost:
    costs = _numbers(cost(answer.exchange.usage, price) for answer in answers)
    return Cost(
        total=fsum(costs),
        per_answer=fsum(costs) / len(costs) if costs else None,
        unknown=len(answers) - len(costs),
    )


# ---- agreement


def _agreement_with_recorded(
    answers: Iterable[Measured], samples: Mapping[str, Sample]
) -> AgreementFigures | None:
    held: list[tuple[str, Agreement]] = []
    for answer in answers:
        sample = samples.get(answer.sample)
        recorded = None if sample is None else sample.recorded
        if sample is not None and recorded is not None and recorded.exchange.status == "ok":
            held.append((sample.id, agreement(recorded.reply, answer.reply, sample.schema)))
    return _agreement_figures(held)


def _between(first: str, second: str, good: Mapping[str, Sequence[Measured]]) -> Between | None:
    replies, others = _first_replies(good[first]), _first_replies(good[second])
    held = [
        (sample, agreement(reply, others[sample]))
        for sample, reply in replies.items()
        if sample in others
    ]
    found = _agreement_figures(held)
    return None if found is None else Between(first, second, found)


def _first_replies(answers: Iterable[Measured]) -> dict[str, Sequence[Message]]:
    """Return the first successful reply to each request: more would count some requests twice."""
    replies: dict[str, Sequence[Message]] = {}
    for answer in sorted(answers, key=attrgetter("repeat")):
        replies.setdefault(answer.sample, answer.reply)
    return replies


def _agreement_figures(held: Sequence[tuple[str, Agreement]]) -> AgreementFigures | None:
    if not held:
        return None
    alike: dict[str, list[float]] = {}
    for sample, found in held:
        if found.similarity is not None:
            alike.setdefault(sample, []).append(found.similarity)
    every = [found for _, found in held]
    return AgreementFigures(
        exact_text=_share(f.exact_text if f.similarity is not None else None for f in every),
        same_json=_share(f.same_json for f in every),
        same_tool_calls=_share(f.same_tool_calls for f in every),
        schema_valid=_share(None if f.schema is None else f.schema.is_valid for f in every),
        similarity=_estimate(alike),
    )


def _share(answers: Iterable[bool | None]) -> Share | None:
    asked = [answer for answer in answers if answer is not None]
    return Share(sum(asked), len(asked)) if asked else None


# ---- two models


def _compared(
    study: Study,
    measure: Measure,
    first: str,
    second: str,
    good: Mapping[str, Sequence[Measured]],
) -> Comparison | None:
    """Compare two models; None if either has no data."""
    medians, others = (
        _medians(_by_sample(good[model], MEASURES[measure])) for model in (first, second)
    )
    pairs = 0
    if study.is_run:
        differences = [medians[sample] - others[sample] for sample in medians if sample in others]
        if not differences:
            return None
        pairs = len(differences)
        difference, interval = median(differences), _interval(differences)
    else:
        if not medians or not others:
            return None
        values, other_values = [*medians.values()], [*others.values()]
        difference = median(values) - median(other_values)
        interval = difference_interval(values, other_values, seed=SEED)
    return Comparison(
        measure=measure,
        first=first,
        second=second,
        difference=difference,
        interval=interval,
        pairs=pairs,
        faster=_faster(measure, first, second, interval),
    )


def _faster(measure: Measure, first: str, second: str, interval: Interval | None) -> str | None:
    if interval is None or not (interval.is_below_zero or interval.is_above_zero):
        return None
    return first if interval.is_below_zero == is_time(measure) else second
