"""What a study shows, as sentences: who is faster and by how much, who agrees, what it costs.

Worded here once; `text` and `html/summary` render the names and the emphasis. A model is called
faster only if the interval of the comparison says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isinf

from .comparisons import Comparison
from .data import Study
from .estimates import ENOUGH, Estimate
from .figures import Figures, ModelFigures
from .measures import Measure
from .numbers import SIMILARITY, amount, between, count_of, is_time, money, number, percent
from .stats import Interval

CHANCE = "no difference beyond chance"
FEW = "too few requests to tell"
MAX_NAMED = 8  # models in one sentence
MAX_LISTED = 4  # models with their numbers

_QUESTIONS: dict[Measure, str] = {
    "ttft_ms": "First event",
    "duration_ms": "Whole response",
    "tokens_per_second": "Tokens per second",
}


@dataclass(frozen=True)
class Name:
    """A name of other people's choice, to be escaped and shortened."""

    text: str
    is_model: bool = True


@dataclass(frozen=True)
class Strong:
    """A part of a sentence to be emphasized."""

    parts: tuple[str | Name, ...]


Sentence = Sequence[str | Name | Strong]


@dataclass(frozen=True)
class Conclusion:
    """A question about the models, and its answer in sentences."""

    question: str
    answer: Sentence


def conclusions(study: Study, figures: Figures) -> Iterator[Conclusion]:
    """Yield what a study shows; questions without data are left out."""
    for measure, question in _QUESTIONS.items():
        if answer := _speed(study, figures, measure):
            cached = _cached(figures) if measure == "ttft_ms" else []
            yield Conclusion(question, [*answer, *_estimated(figures, measure), *cached])
    for question, answer in (
        ("Agreement", _closeness(figures)),
        ("Comparisons", _claims(figures)),
        ("All models together", _throughput(figures)),
        ("Cost", _cost(figures)),
        ("Errors", _errors(figures)),
    ):
        if answer:
            yield Conclusion(question, answer)


def _estimated(figures: Figures, measure: Measure) -> Sentence:
    models = [each.model for each in figures.models if _is_estimated(getattr(each, measure))]
    return [" The tokens of ", *_names(models), " are our estimate."] if models else []


def _is_estimated(estimate: Estimate | None) -> bool:
    return estimate is not None and estimate.is_estimated


def _cached(figures: Figures) -> Sentence:
    """Say whose prompts came from a cache: that makes the first event come sooner."""
    shares = {each.model: each.cache.share for each in figures.models if each.cache}
    if not any(shares.values()):
        return []
    listed: list[str | Name] = []
    for model, share in list(shares.items())[:MAX_NAMED]:
        listed += [", " if listed else "", Name(model), f" {percent(share)}"]
    return [" Prompt tokens from the provider's cache: ", *listed, "."]


def _claims(figures: Figures) -> Sentence:
    if not figures.tested:
        return []
    made = f"{figures.tested:,} made, each pair of models by each measure"
    alone = sum(map(_is_beyond_chance_alone, figures.comparisons))
    if not alone:
        return [f"{made}: none is beyond chance."]
    better = sum(each.better is not None for each in figures.comparisons)
    return [
        f"{made}: {alone:,} beyond chance if taken alone, {better:,} after Holm's correction for "
        "their number."
    ]


def _is_beyond_chance_alone(each: Comparison) -> bool:
    interval = each.interval
    return interval is not None and (interval.is_below_zero or interval.is_above_zero)


def _throughput(figures: Figures) -> Sentence:
    found = figures.throughput
    if found is None:
        return []
    rate = f"{'~' * found.is_estimated}{number(found.tokens_per_second)}"
    return [
        f"{number(found.requests_per_second)} requests and {rate} output tokens per second; "
        f"{found.concurrency:.1f} requests at a time on average, at most {found.most:,}."
    ]


# ---- speed


@dataclass(frozen=True)
class _Rival:
    """A model compared with the best one: how far it is behind, and which of the two is faster."""

    model: str
    median: float
    count: int
    behind: float
    interval: Interval | None
    faster: str | None
    pairs: int
    corrected_p: float | None


def _speed(study: Study, figures: Figures, measure: Measure) -> Sentence:
    medians = {
        each.model: estimate for each in figures.models if (estimate := getattr(each, measure))
    }
    if not medians:
        return []
    if len(medians) == 1:
        ((model, estimate),) = medians.items()
        return [Name(model), f": {_middle(estimate, measure)}."]
    best = _best(medians, figures, measure)
    rivals = list(_rivals(best, medians, figures, measure))
    slower = [rival for rival in rivals if rival.faster == best]
    if len(rivals) == 1:
        answer = _of_two(best, medians[best], rivals[0], measure)
    else:
        answer = _of_many(best, medians[best], rivals, slower, measure)
    if slower and not study.is_run:
        answer = [*answer, " They answered different requests, which may be the reason."]
    return answer


def _best(medians: dict[str, Estimate], figures: Figures, measure: Measure) -> str:
    """Return the model faster than the most others; of several, the one with the best median."""
    wins = [each.better for each in figures.comparisons if each.measure == measure]
    sign = -1 if is_time(measure) else 1
    return max(medians, key=lambda model: (wins.count(model), sign * medians[model].summary.p50))


def _rivals(
    best: str, medians: dict[str, Estimate], figures: Figures, measure: Measure
) -> Iterator[_Rival]:
    for each in figures.comparisons:
        if each.measure != measure or best not in (each.first, each.second):
            continue
        other = each.second if each.first == best else each.first
        if other in medians:
            yield _rival(each, best, other, medians[other], measure)


def _rival(each: Comparison, best: str, other: str, estimate: Estimate, measure: Measure) -> _Rival:
    """Turn a comparison round if needed, so that it says how far the other model is behind."""
    flip = (each.first == best) == is_time(measure)
    behind = -each.difference if flip else each.difference
    interval = each.interval
    if interval is not None and flip:
        interval = Interval(-interval.high, -interval.low)
    summary = estimate.summary
    return _Rival(
        other,
        summary.p50,
        summary.count,
        behind,
        interval,
        each.better,
        each.pairs,
        each.corrected_p,
    )


def _of_two(best: str, estimate: Estimate, rival: _Rival, measure: Measure) -> Sentence:
    own, median = amount(estimate.summary.p50, measure), amount(rival.median, measure)
    both: list[str | Name] = [Name(best), f" {own}, ", Name(rival.model), f" {median}"]
    if rival.interval is None:
        had = f"{estimate.summary.count:,} and {rival.count:,} came"
        had = f"both answered {rival.pairs:,}" if rival.pairs else had
        return [f"{_capital(FEW)} ({ENOUGH} are needed, {had}): ", *both, "."]
    if rival.faster is None:
        where = between(rival.interval, measure)
        if rival.interval.low == rival.interval.high and isinf(rival.interval.low):
            where = "infinite"
        corrected = ""
        if rival.interval.is_below_zero or rival.interval.is_above_zero:
            corrected = f"; among all comparisons, corrected p = {rival.corrected_p:.2f}"
        return [
            f"{_capital(CHANCE)}: ",
            *both,
            f" (95 % interval of the difference {where}{_of_pairs(rival)}{corrected}).",
        ]
    return [
        Strong((Name(best), " is faster")),
        " than ",
        Name(rival.model),
        f"{_by(rival, measure)}; medians {own} and {median}.",
    ]


def _of_many(
    best: str,
    estimate: Estimate,
    rivals: Sequence[_Rival],
    slower: Sequence[_Rival],
    measure: Measure,
) -> Sentence:
    own = amount(estimate.summary.p50, measure)
    others = [rival.model for rival in rivals if rival.interval and rival.faster is None]
    # Pairs are compared by what both answered, so that each of three can be behind another.
    ahead = [rival.model for rival in rivals if rival.faster == rival.model]
    few = [rival.model for rival in rivals if rival.interval is None]
    if not slower:
        reason = CHANCE if others else f"{FEW} ({ENOUGH} are needed)"
        return [f"{_capital(reason)}; the best median is that of ", Name(best), f", {own}."]
    nearest = min(slower, key=lambda rival: rival.behind)
    answer: list[str | Name | Strong] = [
        Strong((Name(best), " is the fastest")),
        f", median {own}. Next is ",
    ]
    if others or few or ahead:
        answer = [
            Strong((Name(best), " is faster")),
            " than ",
            *_names([rival.model for rival in slower]),
            f", median {own}. The nearest of them is ",
        ]
    slower_by = "" if isinf(nearest.behind) else ", slower"
    answer += [Name(nearest.model), f"{slower_by}{_by(nearest, measure)}."]
    if others:
        answer += [f" {_capital(CHANCE)} from ", *_names(others), "."]
    if ahead:
        answer += [" Faster still: ", *_names(ahead), "."]
    if few:
        answer += [f" {_capital(FEW)} ({ENOUGH} are needed): ", *_names(few), "."]
    return answer


def _by(rival: _Rival, measure: Measure) -> str:
    assert rival.interval is not None
    if isinf(rival.behind):
        of = f"{rival.pairs:,} requests" if rival.pairs else "its requests"
        return f", which failed in half or more of {of}"
    where = between(rival.interval, measure)
    return f" by {amount(rival.behind, measure)} (95 % interval {where}{_of_pairs(rival)})"


def _of_pairs(rival: _Rival) -> str:
    return f", {count_of(rival.pairs, 'request')}" if rival.pairs else ""


def _middle(estimate: Estimate, measure: Measure) -> str:
    median = f"median {amount(estimate.summary.p50, measure)}"
    if estimate.interval is None:
        return f"{median}, {count_of(estimate.summary.count, 'response')}"
    return f"{median} (95 % interval {between(estimate.interval, measure)})"


# ---- agreement, cost, errors


def _closeness(figures: Figures) -> Sentence:
    similar = [
        (each.model, each.agreement.similarity)
        for each in figures.models
        if each.agreement and each.agreement.similarity
    ]
    if not similar:
        return []
    similar.sort(key=lambda pair: -pair[1].summary.p50)
    listed: list[str | Name] = []
    for model, estimate in similar[:MAX_LISTED]:
        interval = f" ({between(estimate.interval, SIMILARITY)})" if estimate.interval else ""
        listed += [", " if listed else "", Name(model), f" {estimate.summary.p50:.2f}{interval}"]
    if len(similar) > MAX_LISTED:
        listed.append(f", {len(similar) - MAX_LISTED} more in the figures")
    if len(similar) == 1:
        return ["Median similarity to the recorded replies: ", *listed, "."]
    found = [each for each in figures.comparisons if each.measure == SIMILARITY]
    wins = [each.better for each in found]
    best = max((model for model, _ in similar), key=wins.count)
    closest = "closer" if len(similar) == 2 else "closest"
    if all(each.interval is None for each in found):
        start: Sentence = [f"{_capital(FEW)} which model is {closest} to the recorded replies"]
    elif wins.count(best) < len(similar) - 1:
        start = [f"No model is clearly {closest} to the recorded replies"]
    else:
        start = [Strong((Name(best), f" is {closest}")), " to the recorded replies"]
    return [*start, "; similarity ", *listed, "."]


def _cost(figures: Figures) -> Sentence:
    known = [
        (each.model, each.cost, each.cost.per_answer)
        for each in figures.models
        if each.cost and each.cost.per_answer is not None
    ]
    if not known:
        return []
    known.sort(key=lambda one: one[2])
    listed: list[str | Name] = []
    for model, cost, per_answer in known[:MAX_LISTED]:
        each, total = (money(amount, cost.currency) for amount in (per_answer, cost.total))
        listed += [", " if listed else "", Name(model), f" {each} ({total} in total)"]
    if len(known) > MAX_LISTED:
        listed.append(f", {len(known) - MAX_LISTED} more in the figures")
    lowest = [model for model, _, per_answer in known if per_answer == known[0][2]]
    start: str | Strong = "By your prices"
    # Sums of several currencies can't be compared, nor is one of equal sums the lowest.
    if len(lowest) < len(known) and len({cost.currency for _, cost, _ in known}) == 1:
        are = "is" if len(lowest) == 1 else "are"
        which = "cheapest"
        if len(known) < len(figures.models):
            priced = sum(each.cost is not None for each in figures.models)
            what = "with a price" if len(known) == priced else "whose cost is known"
            which = f"the cheapest of the {_count(len(known))} models {what}"
        start = Strong((*_names(lowest), f" {are} {which}"))
    return [start, ", per response: ", *listed, ".", *_without_cost(figures)]


def _without_cost(figures: Figures) -> Iterator[str | Name]:
    """Name the models without a price, and those whose tokens or price of the day are missing."""
    for reason, models in (
        ("No price for", [each.model for each in figures.models if each.cost is None]),
        (
            "No cost is known of",
            [
                each.model
                for each in figures.models
                if each.cost is not None and each.cost.per_answer is None
            ],
        ),
    ):
        if models:
            yield from (f" {reason} ", *_names(models), ".")


def _count(count: int) -> str:
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return words[count] if count < len(words) else f"{count:,}"


def _errors(figures: Figures) -> Sentence:
    failing = [each for each in figures.models if each.errors]
    requests = sum(each.requests for each in figures.models)
    if not requests:
        return []
    if not failing:
        return [f"None in {count_of(requests, 'response')}."]
    answer: list[str | Name] = []
    for each in failing[:MAX_NAMED]:
        answer += [", " if answer else "", *_failed(each)]
    without = len(figures.models) - len(failing)
    if without:
        answer.append(f"; the other{'s' if without > 1 else ''} none")
    return [*answer, "."]


def _failed(each: ModelFigures) -> Iterator[str | Name]:
    yield Name(each.model)
    yield f" {each.requests - each.ok:,} of {each.requests:,} ("
    for place, kind in enumerate(list(each.errors)[:3]):
        yield ", " if place else ""
        yield Name(kind, is_model=False)
    yield ")"


def _names(models: Sequence[str]) -> Iterator[str | Name]:
    """Yield models as a list: "a, b and c"."""
    shown: list[str | Name] = [Name(model) for model in models[:MAX_NAMED]]
    if len(models) > MAX_NAMED:
        shown.append(f"{len(models) - MAX_NAMED} more")
    for place, name in enumerate(shown):
        if place:
            yield " and " if place == len(shown) - 1 else ", "
        yield name


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
