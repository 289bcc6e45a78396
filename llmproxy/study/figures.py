"""A study in numbers: speed, agreement and cost of each model, and what sets them apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .measured import Study
from .prices import Price
from .stats import Gaps, Interval, Summary

__all__ = [
    "AgreementFigures",
    "Between",
    "Comparison",
    "Cost",
    "Estimate",
    "Figures",
    "ModelFigures",
    "Share",
    "figures",
]

Measure = Literal["ttft_ms", "first_text_ms", "duration_ms", "tokens_per_second"]


@dataclass(frozen=True)
class Estimate:
    """Many values in a few, and where their median lies with 95 % confidence.

    interval: None where the values are too few to say (fewer than six).
    """

    summary: Summary
    interval: Interval | None


@dataclass(frozen=True)
class Share:
    """So many `of` so many."""

    count: int
    of: int


@dataclass(frozen=True)
class AgreementFigures:
    """How often answers are as the ones that they are held against.

    Each share counts the pairs that it can be asked of (`agreement.Agreement`), and is None
    where there are none. similarity: of the texts, 0 to 1.
    """

    exact_text: Share | None
    same_json: Share | None
    same_tool_calls: Share | None
    schema_valid: Share | None
    similarity: Estimate | None


@dataclass(frozen=True)
class Cost:
    """What answers cost by the user's prices, in the prices' currency.

    total: of those that could be counted; unknown: how many could not, since their provider
    told no tokens. per_answer: the mean.
    """

    total: float
    per_answer: float | None
    unknown: int


@dataclass(frozen=True, kw_only=True)
class ModelFigures:
    """One model's answers; warm-ups, and what was cancelled, are in no figure.

    requests: those that ended, well or not; ok of them well. warmups: how many there were.
    errors: by kind, finish_reasons: of the good ones, both the most frequent first.
    Times in milliseconds, of good answers only; tokens_per_second after the first event,
        by the provider's count, unstreamed reasoning left out.
    gaps: between the events of an answer, over all answers.
    tokens: by the names of hub.Usage, a summary of what the providers said; names without
        any number are left out.
    agreement: with the recorded answers, None where there are none.
    """

    model: str
    requests: int
    ok: int
    warmups: int
    errors: Mapping[str, int]
    finish_reasons: Mapping[str, int]
    setup_ms: Estimate | None
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
    """Two models by one measure.

    difference: of the medians, the first's less the second's, in the measure's unit; of a
        run it is the median of the differences request by request, so that what the
        requests differ in is no noise. pairs: how many requests both answered, 0 where
        they were not asked the same.
    faster: the model that the interval says is faster; None where it does not say.
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
    """How far two models' answers to the same requests agree."""

    first: str
    second: str
    agreement: AgreementFigures


@dataclass(frozen=True)
class Figures:
    """A study's figures: each model's in the study's order, then every pair of models."""

    models: Sequence[ModelFigures]
    comparisons: Sequence[Comparison]
    between: Sequence[Between]


def figures(study: Study, prices: Mapping[str, Price] | None = None) -> Figures:
    """Compute the figures of a study."""
    raise NotImplementedError
