"""What a study says, in plain words: who is faster and by how much, who agrees, what it costs.

Nobody is called faster whom the comparison's interval does not call so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..data import Study
from ..figures import Comparison, Estimate, Figures, Measure, ModelFigures
from ..stats import Interval
from . import markup

CHANCE = "no difference that chance could not make"
FEW = "too few requests to say"
MODEL_CHARS = 60  # of a model's name in a sentence
MAX_NAMED = 8  # models in one sentence
MAX_LISTED = 4  # with their numbers

_QUESTIONS: dict[Measure, str] = {
    "ttft_ms": "First event",
    "duration_ms": "Whole answer",
    "tokens_per_second": "Tokens per second",
}


def verdict(study: Study, figures: Figures) -> Iterator[tuple[str, str]]:
    """Give questions with their answers in words, as markup; without any what there is no
    number for."""
    for measure, question in _QUESTIONS.items():
        words = _speed(study, figures, measure)
        if words:
            yield question, words + _estimated(figures, measure)
    for question, words in (
        ("Agreement", _closeness(figures)),
        ("Cost", _cost(figures)),
        ("Errors", _errors(figures)),
    ):
        if words:
            yield question, words


def _estimated(figures: Figures, measure: Measure) -> str:
    models = [each.model for each in figures.models if _is_estimated(getattr(each, measure))]
    return f" For {_names(models)} the tokens are our estimate." if models else ""


def _is_estimated(estimate: Estimate | None) -> bool:
    return estimate is not None and estimate.is_estimated


# ---- speed


@dataclass(frozen=True)
class _Rival:
    """Another model beside the best: by how much it is behind, where that lies, who is faster."""

    model: str
    median: float
    behind: float
    interval: Interval | None
    faster: str | None
    pairs: int


def _speed(study: Study, figures: Figures, measure: Measure) -> str:
    medians = {
        each.model: estimate for each in figures.models if (estimate := getattr(each, measure))
    }
    if not medians:
        return ""
    if len(medians) == 1:
        ((model, estimate),) = medians.items()
        return f"{_named(model)}: {_middle(estimate, measure)}."
    best = _best(medians, figures, measure)
    rivals = list(_rivals(best, medians, figures, measure))
    own = _amount(medians[best].summary.p50, measure)
    slower = [rival for rival in rivals if rival.faster == best]
    said = _of_two(best, own, rivals[0], measure) if len(rivals) == 1 else ""
    if not said:
        said = _of_many(best, own, rivals, slower, measure)
    if slower and not study.is_run:
        said += " They were not asked the same."
    return said


def _best(medians: dict[str, Estimate], figures: Figures, measure: Measure) -> str:
    """Find who is faster than the most, of several such the one with the best median."""
    wins = [each.faster for each in figures.comparisons if each.measure == measure]
    sign = 1 if measure == "tokens_per_second" else -1
    return max(medians, key=lambda model: (wins.count(model), sign * medians[model].summary.p50))


def _rivals(
    best: str, medians: dict[str, Estimate], figures: Figures, measure: Measure
) -> Iterator[_Rival]:
    for each in figures.comparisons:
        if each.measure != measure or best not in (each.first, each.second):
            continue
        other = each.second if each.first == best else each.first
        if other in medians:
            yield _rival(each, best, other, medians[other].summary.p50, measure)


def _rival(each: Comparison, best: str, other: str, median: float, measure: Measure) -> _Rival:
    """Turn a comparison so that it tells by how much the other is behind."""
    flip = (each.first == best) != (measure == "tokens_per_second")
    behind = -each.difference if flip else each.difference
    interval = each.interval
    if interval is not None and flip:
        interval = Interval(-interval.high, -interval.low)
    return _Rival(other, median, behind, interval, each.faster, each.pairs)


def _of_two(best: str, own: str, rival: _Rival, measure: Measure) -> str:
    both = f"{_named(best)} {own}, {_named(rival.model)} {_amount(rival.median, measure)}"
    if rival.interval is None:
        return f"{_capital(FEW)}: {both}."
    if rival.faster is None:
        where = markup.between(rival.interval, is_time=_is_time(measure))
        return f"{_capital(CHANCE)}: {both} (95 % interval of the difference {where})."
    return (
        f"<b>{_named(best)} is faster</b> by {_by(rival, measure)}; medians {own} "
        f"and {_amount(rival.median, measure)}."
    )


def _of_many(
    best: str, own: str, rivals: Sequence[_Rival], slower: Sequence[_Rival], measure: Measure
) -> str:
    others = [rival.model for rival in rivals if rival.interval and rival.faster is None]
    # Pairs are compared by what both answered, so that each of three can be behind another.
    ahead = [rival.model for rival in rivals if rival.faster == rival.model]
    few = [rival.model for rival in rivals if rival.interval is None]
    if not slower:
        reason = CHANCE if others else FEW
        return f"{_capital(reason)}; the best median is {_named(best)}’s, {own}."
    nearest = min(slower, key=lambda rival: rival.behind)
    said = f"<b>{_named(best)} is the fastest</b>, median {own}. Next is "
    if others or few or ahead:
        said = f"<b>{_named(best)} is faster</b> than {_names([r.model for r in slower])}, "
        said += f"median {own}. The nearest of them is "
    said += f"{_named(nearest.model)}, slower by {_by(nearest, measure)}."
    if others:
        said += f" To {_names(others)} {CHANCE}."
    if ahead:
        said += f" Faster than it: {_names(ahead)}."
    if few:
        said += f" {_capital(FEW)} of {_names(few)}."
    return said


def _by(rival: _Rival, measure: Measure) -> str:
    assert rival.interval is not None
    where = markup.between(rival.interval, is_time=_is_time(measure))
    pairs = f", {markup.count_of(rival.pairs, 'request')}" if rival.pairs else ""
    return f"{_amount(rival.behind, measure)} (95 % interval {where}{pairs})"


def _middle(estimate: Estimate, measure: Measure) -> str:
    said = f"median {_amount(estimate.summary.p50, measure)}"
    if estimate.interval is None:
        return f"{said}, {markup.count_of(estimate.summary.count, 'answer')}"
    return f"{said} (95 % interval {markup.between(estimate.interval, is_time=_is_time(measure))})"


def _is_time(measure: Measure) -> bool:
    return measure != "tokens_per_second"


def _amount(value: float, measure: Measure) -> str:
    return markup.seconds(value) if _is_time(measure) else f"{markup.number(value)}/s"


# ---- agreement, cost, errors


def _closeness(figures: Figures) -> str:
    found = [
        (each.model, each.agreement.similarity)
        for each in figures.models
        if each.agreement and each.agreement.similarity
    ]
    if not found:
        return ""
    found.sort(key=lambda pair: -pair[1].summary.p50)
    said = [
        f"{_named(model)} {estimate.summary.p50:.2f}"
        + (f" ({markup.shares_between(estimate.interval)})" if estimate.interval else "")
        for model, estimate in found[:MAX_LISTED]
    ]
    listed = ", ".join(said)
    if len(found) > MAX_LISTED:
        listed += f", {len(found) - MAX_LISTED} more below"
    if len(found) == 1:
        return f"Similarity to the recorded answers, median: {listed}."
    (best, first), (_, second) = found[:2]
    closest = "closer" if len(found) == 2 else "closest"
    if first.interval is None or second.interval is None:
        return f"{_capital(FEW)} who is closer to the recorded answers; similarity {listed}."
    if first.interval.low <= second.interval.high:
        return f"No model is clearly {closest} to the recorded answers; similarity {listed}."
    return f"<b>{_named(best)} is {closest}</b> to the recorded answers; similarity {listed}."


def _cost(figures: Figures) -> str:
    known = [
        (each.model, each.cost)
        for each in figures.models
        if each.cost and each.cost.per_answer is not None
    ]
    if not known:
        return ""
    known.sort(key=lambda pair: pair[1].per_answer or 0)
    said = [
        f"{_named(model)} {markup.money(cost.per_answer or 0)} ({markup.money(cost.total)} in all)"
        for model, cost in known[:MAX_LISTED]
    ]
    if len(known) > MAX_LISTED:
        said.append(f"{len(known) - MAX_LISTED} more above")
    head = f"<b>{_named(known[0][0])} is cheapest</b>" if len(known) > 1 else "By your prices"
    return f"{head}, an answer: {', '.join(said)}."


def _errors(figures: Figures) -> str:
    failing = [each for each in figures.models if each.errors]
    asked = sum(each.requests for each in figures.models)
    if not asked:
        return ""
    if not failing:
        return f"None in {markup.count_of(asked, 'answer')}."
    return f"{', '.join(map(_failed, failing[:MAX_NAMED]))}{_others(figures, failing)}."


def _failed(each: ModelFigures) -> str:
    kinds = ", ".join(markup.name(kind) for kind in list(each.errors)[:3])
    return f"{_named(each.model)} {each.requests - each.ok:,} of {each.requests:,} ({kinds})"


def _others(figures: Figures, failing: Sequence[ModelFigures]) -> str:
    well = len(figures.models) - len(failing)
    return f"; the other{'s' if well > 1 else ''} none" if well else ""


def _named(model: str) -> str:
    return f'<span class="model">{markup.name(markup.shortened(model, MODEL_CHARS))}</span>'


def _names(models: Sequence[str]) -> str:
    shown = [_named(model) for model in models[:MAX_NAMED]]
    if len(models) > MAX_NAMED:
        shown.append(f"{len(models) - MAX_NAMED} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _capital(words: str) -> str:
    return words[0].upper() + words[1:]
