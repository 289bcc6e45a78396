"""Compute a study's figures: speed, agreement and cost of each model, and how models differ.

This module decides which responses count and what is compared with what; `stats` has the
arithmetic, and `agreement` compares replies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import combinations
from math import fsum, inf
from operator import attrgetter

from llm.parts import Message

from ..core.usage import Usage
from .agreement import Agreement, agreement
from .comparisons import Comparison, Held, compare_models, correct_for_number, similarities
from .data import Measured, Sample, Study
from .estimates import Estimate, Share, Values, by_sample, estimate_of, known
from .measures import MEASURES, Measure
from .numbers import is_time
from .prices import Price, cost
from .stats import Summary, gaps, median, summary
from .throughput import Throughput, throughput_of

# Kinds of errors that say nothing about a model's speed in recorded traffic, where a program may
# have sent anything. In a run, the requests are those that were answered before.
_CLIENT_ERRORS = frozenset(
    ("invalid_request", "authentication", "permission", "not_found", "too_large")
)


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
    ended = {model: ended_of(study, model) for model in study.models}
    good = {
        model: [answer for answer in answers if answer.exchange.status == "ok"]
        for model, answers in ended.items()
    }
    values = {
        model: {measure: values_of(study, measure, answers) for measure in MEASURES}
        for model, answers in ended.items()
    }
    agreements = {model: held_against_recorded(good[model], samples) for model in study.models}
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
                for comparison in compare_models(
                    study, first, second, values[first], values[second], agreements
                )
            ]
        ),
        between=[
            between
            for first, second in combinations(study.models, 2)
            if (between := _between(first, second, good)) is not None
        ],
        throughput=throughput_of(study),
    )


def ended_of(study: Study, model: str) -> list[Measured]:
    """Return a model's responses that count: those that ended well, and failures."""
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
    values: Mapping[Measure, Values],
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
        setup_ms=estimate_of(by_sample(good, attrgetter("exchange.setup_ms"))),
        queue_ms=estimate_of(by_sample(good, attrgetter("exchange.queue_ms"))),
        ttft_ms=estimate_of(values["ttft_ms"]),
        cache=_cache(good),
        first_output_ms=estimate_of(values["first_output_ms"]),
        duration_ms=estimate_of(values["duration_ms"]),
        tokens_per_second=_rate(good),
        gaps=_gaps(good),
        tokens=_tokens(good),
        agreement=agreement,
        cost=None if price is None else _cost(good, price),
    )


def _frequent(kinds: Iterable[str | None]) -> dict[str, int]:
    counts = Counter(kind or "unknown" for kind in kinds)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def values_of(study: Study, measure: Measure, ended: Iterable[Measured]) -> Values:
    """Return what was measured, and for times that were never reached infinity.

    Without that, a model that times out on hard requests would look fast.
    """
    return by_sample(ended, lambda answer: _value(study, measure, answer))


def _value(study: Study, measure: Measure, answer: Measured) -> float | None:
    if answer.exchange.status == "ok":
        value = MEASURES[measure](answer)
        is_never = value is None and measure == "first_output_ms" and answer.ttft_ms is not None
        return inf if is_never else value
    if not is_time(measure) or answer.exchange.origin is not None:  # no times were taken there
        return None
    return None if not study.is_run and answer.error_kind in _CLIENT_ERRORS else inf


def _rate(good: Sequence[Measured]) -> Estimate | None:
    found = estimate_of(by_sample(good, MEASURES["tokens_per_second"]))
    is_estimated = any(answer.exchange.is_rate_estimated for answer in good)
    return None if found is None else replace(found, is_estimated=is_estimated)


def _cache(good: Sequence[Measured]) -> CacheFigures | None:
    counted = [answer for answer in good if answer.exchange.usage.input_tokens]
    if all(answer.exchange.usage.cached_tokens is None for answer in counted):
        return None
    cached = sum(answer.exchange.usage.cached_tokens or 0 for answer in counted)
    share = cached / sum(answer.exchange.usage.input_tokens or 0 for answer in counted)
    cold, warm = (
        estimate_of(
            by_sample(
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
        estimate_of(by_sample(good, partial(_gap, of_all=of_all))) for of_all in (median, max)
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
        if (counts := summary(known(getattr(usage, field.name) for usage in usages))) is not None
    }


def _cost(answers: Sequence[Measured], price: Price) -> Cost:
    costs = known(cost_of(answer, price) for answer in answers)
    return Cost(
        total=fsum(costs),
        per_answer=fsum(costs) / len(costs) if costs else None,
        unknown=len(answers) - len(costs),
        currency=price.currency,
    )


def cost_of(answer: Measured, price: Price) -> float | None:
    """Compute what a response cost; None if its tokens or the price of its day are not known."""
    return cost(answer.exchange.usage, price, answer.exchange.received.date())


# ---- agreement


def held_against_recorded(answers: Iterable[Measured], samples: Mapping[str, Sample]) -> Held:
    """Compare responses with the recorded ones, where that is possible; samples: by their ids."""
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


def _agreement_figures(held: Held) -> AgreementFigures | None:
    if not held:
        return None
    every = [found for _, found in held]
    return AgreementFigures(
        exact_text=_share(f.exact_text if f.similarity is not None else None for f in every),
        same_json=_share(f.same_json for f in every),
        same_tool_calls=_share(f.same_tool_calls for f in every),
        schema_valid=_share(None if f.schema is None else f.schema.is_valid for f in every),
        similarity=estimate_of(similarities(held)),
    )


def _share(answers: Iterable[bool | None]) -> Share | None:
    asked = [answer for answer in answers if answer is not None]
    return Share(sum(asked), len(asked)) if asked else None
