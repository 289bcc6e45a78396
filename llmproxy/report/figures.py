"""Compute a study's figures: speed, agreement and cost of each model, and how models differ.

This module decides which responses count and what is compared with what; `stats` has the
arithmetic, and `agreement` compares replies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import combinations, pairwise
from math import fsum, inf, isfinite
from operator import attrgetter
from typing import Literal

from llm.parts import Message

from ..core.usage import Usage
from .agreement import Agreement, agreement
from .data import Measured, Sample, Study
from .numbers import SIMILARITY, is_time
from .prices import Price, cost
from .stats import (
    CONFIDENCE,
    Interval,
    Summary,
    Tail,
    difference,
    difference_interval,
    gaps,
    holm,
    median,
    median_interval,
    rank_sum_test,
    sign_test,
    summary,
    tail,
)

SEED = 0  # so that the same responses give the same figures
ENOUGH = 6  # requests for an interval at 95 %, see `stats.median_interval`

ENOUGH_P95, ENOUGH_P99 = 59, 299  # requests for a p95 or p99, see `stats.tail`

Measure = Literal["ttft_ms", "first_output_ms", "duration_ms", "tokens_per_second"]

# Kinds of errors that say nothing about a model's speed in recorded traffic, where a program may
# have sent anything. In a run, the requests are those that were answered before.
_CLIENT_ERRORS = frozenset(
    ("invalid_request", "authentication", "permission", "not_found", "too_large")
)


@dataclass(frozen=True)
class Estimate:
    """A summary of values, and the 95 % interval of their median.

    interval: of the medians per request, since responses to one request are alike, and many of
        them say little about others. None if there are fewer than ENOUGH requests.
    p95, p99: of all values, with their exact 95 % intervals. None if there are fewer than
        ENOUGH_P95 or ENOUGH_P99 requests.
    is_estimated: some values are based on our own token estimate.
    """

    summary: Summary
    interval: Interval | None
    p95: Tail | None = None
    p99: Tail | None = None
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
    """The cost of successful responses by the user's prices.

    currency: empty if the prices don't say.
    total, per_answer: sum and mean of responses with token counts; unknown: the number of
    responses without.
    """

    total: float
    per_answer: float | None
    unknown: int
    currency: str = ""


@dataclass(frozen=True)
class CacheFigures:
    """How much of a model's prompts came from the provider's cache, and what that changed.

    share: of the input tokens of successful responses, 0 to 1. Counts that are missing beside
        others are 0: llm's plugins leave out a 0.
    cold, warm: time to the first event of successful responses without and with cached tokens;
        None unless there are both.
    """

    share: float
    cold: Estimate | None
    warm: Estimate | None


@dataclass(frozen=True)
class GapFigures:
    """The times between the events of a response, in milliseconds.

    typical, longest: the median gap of each response, and its longest one.
    """

    typical: Estimate
    longest: Estimate


@dataclass(frozen=True, kw_only=True)
class ModelFigures:
    """The figures of one model. Warm-ups and cancelled requests count in none of them.

    requests: finished ones; ok: the successful ones among them. warmups: their number.
    sent_again: failures whose requests were sent again, which count in no other figure.
    first_runs: successful responses whose time may include loading the model.
    errors: by kind; finish_reasons: of successful responses; both most frequent first.
    Times are in milliseconds. In ttft_ms, first_output_ms and duration_ms a failed response is
        later than any, and so is in first_output_ms one that ended without output. In recorded
        traffic, errors that are the client's own (_CLIENT_ERRORS) are left out. The other
        figures are of successful responses. queue_ms: of those that waited for other requests
        to the model; no other time includes it.
    tokens_per_second: as recorder/token_rate.py defines it.
    cache: None if no cached tokens were counted.
    tokens: summaries of the provider's counts, by the names of Usage; names without any
        count are left out.
    agreement: with the recorded replies, None if there are none.
    cost: None without a price.
    """

    model: str
    requests: int
    ok: int
    warmups: int
    sent_again: int
    first_runs: int
    errors: Mapping[str, int]
    finish_reasons: Mapping[str, int]
    setup_ms: Estimate | None
    queue_ms: Estimate | None
    ttft_ms: Estimate | None
    cache: CacheFigures | None
    first_output_ms: Estimate | None
    duration_ms: Estimate | None
    tokens_per_second: Estimate | None
    gaps: GapFigures | None
    tokens: Mapping[str, Summary]
    agreement: AgreementFigures | None
    cost: Cost | None


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


@dataclass(frozen=True)
class Throughput:
    """What all models together did in a run, while any request was running.

    requests_per_second, tokens_per_second: of successful responses and their output tokens;
        is_estimated: some of these are our own estimate.
    concurrency: requests that ran at a time, on average; most: at any time.
    """

    requests_per_second: float
    tokens_per_second: float
    is_estimated: bool
    concurrency: float
    most: int


@dataclass(frozen=True)
class Between:
    """How far two models' replies to the same requests agree."""

    first: str
    second: str
    agreement: AgreementFigures


@dataclass(frozen=True)
class Figures:
    """The figures of a study: each model, in the study's order, and every pair of models.

    throughput: None unless it is a run that sends several requests at a time.
    """

    models: Sequence[ModelFigures]
    comparisons: Sequence[Comparison]
    between: Sequence[Between]
    throughput: Throughput | None = None

    @property
    def tested(self) -> int:
        """The number of comparisons that had enough requests, for which p-values are corrected."""
        return sum(each.p_value is not None for each in self.comparisons)


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
    values = {
        model: {measure: _values(study, measure, answers) for measure in MEASURES}
        for model, answers in ended.items()
    }
    agreements = {model: _held_against_recorded(good[model], samples) for model in study.models}
    return Figures(
        models=[
            _model_figures(
                model,
                ended[model],
                good[model],
                values[model],
                others=[
                    answer
                    for answer in study.answers
                    if answer.model == model and not answer.counts
                ],
                agreement=_agreement_figures(agreements[model]),
                price=(prices or {}).get(model),
            )
            for model in study.models
        ],
        comparisons=correct_for_number(
            [
                comparison
                for first, second in combinations(study.models, 2)
                for comparison in _compared(
                    study, first, second, values[first], values[second], agreements
                )
            ]
        ),
        between=[
            between
            for first, second in combinations(study.models, 2)
            if (between := _between(first, second, good)) is not None
        ],
        throughput=_throughput(study),
    )


def _ended(study: Study, model: str) -> list[Measured]:
    return [
        answer
        for answer in study.answers
        if answer.model == model and answer.counts and answer.exchange.status in ("ok", "error")
    ]


# ---- one model


def _model_figures(
    model: str,
    ended: Sequence[Measured],
    good: Sequence[Measured],
    values: Mapping[Measure, _Values],
    *,
    others: Sequence[Measured],
    agreement: AgreementFigures | None,
    price: Price | None,
) -> ModelFigures:
    failed = (answer for answer in ended if answer.exchange.status == "error")
    return ModelFigures(
        model=model,
        requests=len(ended),
        ok=len(good),
        warmups=sum(answer.repeat == 0 for answer in others),
        sent_again=sum(answer.exchange.status == "error" for answer in others if answer.repeat),
        first_runs=sum(answer.exchange.is_first_run for answer in good),
        errors=_frequent(answer.error_kind for answer in failed),
        finish_reasons=_frequent(answer.exchange.finish_reason for answer in good),
        setup_ms=_estimate(_by_sample(good, attrgetter("exchange.setup_ms"))),
        queue_ms=_estimate(_by_sample(good, attrgetter("exchange.queue_ms"))),
        ttft_ms=_estimate(values["ttft_ms"]),
        cache=_cache(good),
        first_output_ms=_estimate(values["first_output_ms"]),
        duration_ms=_estimate(values["duration_ms"]),
        tokens_per_second=_rate(good),
        gaps=_gaps(good),
        tokens=_tokens(good),
        agreement=agreement,
        cost=None if price is None else _cost(good, price),
    )


def _frequent(kinds: Iterable[str | None]) -> dict[str, int]:
    counts = Counter(kind or "unknown" for kind in kinds)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


_Values = Mapping[str, Sequence[float]]
"""The values of each request."""


def _values(study: Study, measure: Measure, ended: Sequence[Measured]) -> _Values:
    """Return what was measured, and for times that were never reached infinity.

    Without that, a model that times out on hard requests would look fast.
    """
    return _by_sample(ended, lambda answer: _value(study, measure, answer))


def _value(study: Study, measure: Measure, answer: Measured) -> float | None:
    if answer.exchange.status == "ok":
        value = MEASURES[measure](answer)
        is_never = value is None and measure == "first_output_ms" and answer.ttft_ms is not None
        return inf if is_never else value
    if not is_time(measure) or answer.exchange.origin is not None:  # no times were taken there
        return None
    return None if not study.is_run and answer.error_kind in _CLIENT_ERRORS else inf


def _by_sample(answers: Iterable[Measured], measure: Callable[[Measured], float | None]) -> _Values:
    """Return the measured values of each request that has any."""
    values: dict[str, list[float]] = {}
    for answer in answers:
        if (value := measure(answer)) is not None:
            values.setdefault(answer.sample, []).append(value)
    return values


def _medians(values: _Values) -> dict[str, float]:
    return {sample: median(of_sample) for sample, of_sample in values.items()}


def _estimate(values: _Values) -> Estimate | None:
    every = [value for of_sample in values.values() for value in of_sample]
    whole = summary(every)
    if whole is None:
        return None
    interval = _interval([*_medians(values).values()])
    p95, p99 = (tail(every, q, independent=len(values)) for q in (0.95, 0.99))
    return Estimate(whole, interval, p95, p99)


def _rate(good: Sequence[Measured]) -> Estimate | None:
    found = _estimate(_by_sample(good, MEASURES["tokens_per_second"]))
    is_estimated = any(answer.exchange.is_rate_estimated for answer in good)
    return None if found is None else replace(found, is_estimated=is_estimated)


def _interval(values: Sequence[float]) -> Interval | None:
    return median_interval(values, seed=SEED)


MEASURES: Mapping[Measure, Callable[[Measured], float | None]] = {
    "ttft_ms": attrgetter("ttft_ms"),
    "first_output_ms": attrgetter("first_output_ms"),
    "duration_ms": attrgetter("duration_ms"),
    "tokens_per_second": attrgetter("exchange.tokens_per_second"),
}
"""What models are compared by; None if it was not measured."""


def _cache(good: Sequence[Measured]) -> CacheFigures | None:
    counted = [answer for answer in good if answer.exchange.usage.input_tokens]
    if all(answer.exchange.usage.cached_tokens is None for answer in counted):
        return None
    cached = sum(answer.exchange.usage.cached_tokens or 0 for answer in counted)
    share = cached / sum(answer.exchange.usage.input_tokens or 0 for answer in counted)
    cold, warm = (
        _estimate(
            _by_sample(
                [each for each in counted if bool(each.exchange.usage.cached_tokens) is is_warm],
                MEASURES["ttft_ms"],
            )
        )
        for is_warm in (False, True)
    )
    return CacheFigures(share, cold, warm) if cold and warm else CacheFigures(share, None, None)


def _gaps(good: Sequence[Measured]) -> GapFigures | None:
    """Summarize each response first: one with many events would outweigh all others."""
    typical, longest = (
        _estimate(_by_sample(good, partial(_gap, of_all=of_all))) for of_all in (median, max)
    )
    return GapFigures(typical, longest) if typical and longest else None


def _gap(answer: Measured, of_all: Callable[[Sequence[float]], float]) -> float | None:
    between = gaps([at for at, _ in answer.ticks])
    return of_all(between) if between else None


def _tokens(answers: Sequence[Measured]) -> dict[str, Summary]:
    usages = [answer.exchange.usage for answer in answers]
    return {
        field.name: counts
        for field in fields(Usage)
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
        currency=price.currency,
    )


# ---- agreement


_Held = Sequence[tuple[str, Agreement]]
"""Requests, and how a reply to each agrees with another one."""


def _held_against_recorded(answers: Iterable[Measured], samples: Mapping[str, Sample]) -> _Held:
    found = ((answer.sample, agreement_with_recorded(answer, samples)) for answer in answers)
    return [(sample, agreed) for sample, agreed in found if agreed is not None]


def agreement_with_recorded(answer: Measured, samples: Mapping[str, Sample]) -> Agreement | None:
    """Compare a response with the recorded one; None if either is missing or can't be read.

    samples: by their ids.
    """
    sample = samples.get(answer.sample)
    recorded = None if sample is None else sample.recorded
    if sample is None or recorded is None or recorded.exchange.status != "ok":
        return None
    if answer.exchange.status != "ok" or not (recorded.has_reply and answer.has_reply):
        return None
    return agreement(recorded.reply, answer.reply, sample.schema)


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
        if answer.has_reply:
            replies.setdefault(answer.sample, answer.reply)
    return replies


def _similarities(held: _Held) -> _Values:
    alike: dict[str, list[float]] = {}
    for sample, found in held:
        if found.similarity is not None:
            alike.setdefault(sample, []).append(found.similarity)
    return alike


def _agreement_figures(held: _Held) -> AgreementFigures | None:
    if not held:
        return None
    every = [found for _, found in held]
    return AgreementFigures(
        exact_text=_share(f.exact_text if f.similarity is not None else None for f in every),
        same_json=_share(f.same_json for f in every),
        same_tool_calls=_share(f.same_tool_calls for f in every),
        schema_valid=_share(None if f.schema is None else f.schema.is_valid for f in every),
        similarity=_estimate(_similarities(held)),
    )


def _share(answers: Iterable[bool | None]) -> Share | None:
    asked = [answer for answer in answers if answer is not None]
    return Share(sum(asked), len(asked)) if asked else None


# ---- two models


def _compared(
    study: Study,
    first: str,
    second: str,
    values: Mapping[Measure, _Values],
    others: Mapping[Measure, _Values],
    agreements: Mapping[str, _Held],
) -> Iterator[Comparison]:
    """Compare two models by all measures that both have data for."""
    for measure in MEASURES:
        yield from _compared_by(study, measure, first, second, values[measure], others[measure])
    alike, other_alike = (_similarities(agreements[model]) for model in (first, second))
    yield from _compared_by(study, SIMILARITY, first, second, alike, other_alike)


def _compared_by(
    study: Study,
    measure: str,
    first: str,
    second: str,
    values: _Values,
    others: _Values,
) -> Iterator[Comparison]:
    if not _has_any(values) or not _has_any(others):
        return
    medians, other_medians = _medians(values), _medians(others)
    if study.is_run:
        differences = [
            difference(value, other_medians[sample])
            for sample, value in medians.items()
            if sample in other_medians
        ]
        if differences:
            interval = _interval(differences)
            p_value = None if interval is None else sign_test(differences)
            middle, pairs = median(differences), len(differences)
            yield Comparison(measure, first, second, middle, interval, pairs, p_value)
        return
    own, other = [*medians.values()], [*other_medians.values()]
    interval = difference_interval(own, other, seed=SEED)
    p_value = None if interval is None else rank_sum_test(own, other)
    middle = difference(median(own), median(other))
    yield Comparison(measure, first, second, middle, interval, 0, p_value)


def _has_any(values: _Values) -> bool:
    return any(isfinite(value) for of_sample in values.values() for value in of_sample)


def correct_for_number(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Correct the p-values for their number, and name the better models.

    Of twenty comparisons of equal models, each at 95 %, one would say more by chance.
    """
    corrected = iter(holm(_numbers(each.p_value for each in comparisons)))
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


# ---- all models


def _throughput(study: Study) -> Throughput | None:
    """Count what ran at any time; times without any request, as between two parts, don't count."""
    if not study.is_run or study.settings.get("concurrency") in (None, 1):
        return None
    changes = []
    for answer in study.answers:
        exchange = answer.exchange
        if answer.repeat and exchange.duration_ms is not None:
            begin_ms = exchange.received.timestamp() * 1000
            took_ms = exchange.duration_ms + (exchange.setup_ms or 0.0)
            changes += [(begin_ms, 1), (begin_ms + took_ms, -1)]
    changes.sort()
    running = most = 0
    busy_ms = request_ms = 0.0
    for (at, change), (until, _) in pairwise(changes):
        running += change
        most = max(most, running)
        busy_ms += (until - at) if running else 0.0
        request_ms += (until - at) * running
    if not busy_ms:
        return None
    good = [each for each in study.answers if each.counts and each.exchange.status == "ok"]
    counts = [_output_tokens(answer) for answer in good]
    return Throughput(
        requests_per_second=len(good) * 1000 / busy_ms,
        tokens_per_second=sum(count or 0 for count in counts) * 1000 / busy_ms,
        is_estimated=any(answer.exchange.output_tokens_estimate is not None for answer in good),
        concurrency=request_ms / busy_ms,
        most=most,
    )


def _output_tokens(answer: Measured) -> int | None:
    counted = answer.exchange.usage.output_tokens
    return answer.exchange.output_tokens_estimate if counted is None else counted
