"""A study in numbers: what counts, what is compared with what, and what chance may say."""

import random
import time
from dataclasses import replace
from datetime import timedelta
from math import inf

import pytest
from llm.parts import Message, ToolCallPart

from llmproxy.core.usage import Usage
from llmproxy.report.comparisons import Comparison
from llmproxy.report.data import Study
from llmproxy.report.estimates import ENOUGH, Estimate, Share
from llmproxy.report.figures import (
    AgreementFigures,
    Between,
    CacheFigures,
    Cost,
    Figures,
    GapFigures,
    ModelFigures,
    figures,
)
from llmproxy.report.prices import Price
from llmproxy.report.stats import Interval, Summary, summary
from llmproxy.report.throughput import Throughput
from tests.report.studies import BEGAN, a_failure, a_sample, a_study, an_answer, said

NOTHING = {"first_output_ms": None, "duration_ms": None, "ticks": (), "reply": ()}  # to save time
SAMPLE = a_sample(recorded=an_answer(model="original"))


def a_run(*answers, samples=(SAMPLE,), models=("a", "b"), is_run=True, **changes):
    whole = {"title": "run", "models": models, "samples": samples, "answers": answers} | changes
    return Study(is_run=is_run, **whole)


def timed(model, sample, ms, **changes):
    """An answer that is `ms` late in all, of 11 tokens in a second."""
    changes = {"ttft_ms": ms, "first_output_ms": ms, "duration_ms": ms + 1000.0} | changes
    return an_answer(id=f"{model}{sample}", model=model, sample=sample, **changes)


def compared(study, measure, *, models=("a", "b")):
    found = figures(study).comparisons
    return next(c for c in found if (c.measure, c.first, c.second) == (measure, *models))


def one(value):
    return Summary(1, value, value, value, value)


def half_failed(value):
    return Summary(2, value, value, inf, value, late=1)


def test_a_small_study_by_hand():
    study = a_run(
        an_answer(id="1", usage=Usage(20, 11, cached_tokens=10)),
        an_answer(id="2", repeat=0, ttft_ms=9000.0),
        a_failure(id="3", repeat=2),
        an_answer(id="4", repeat=3, status="cancelled", finish_reason=None),
        an_answer(
            id="5",
            model="b",
            ttft_ms=300.0,
            tokens_per_second=None,
            ticks=((100.0, 3), (150.0, 10), (1100.0, 7)),
            reply=said("It is five."),
            usage=Usage(),
        ),
    )
    same = Share(1, 1)
    b = figures(study, {"a": Price(1.0, 2.0, cached=0.5), "c": Price(1.0, 1.0)})
    assert b == Figures(
        models=[
            ModelFigures(
                model="a",
                requests=2,
                ok=1,
                warmups=1,
                sent_again=0,
                first_runs=0,
                queue_ms=None,
                errors={"rate_limit": 1},
                finish_reasons={"stop": 1},
                setup_ms=None,
                ttft_ms=Estimate(half_failed(100.0), None),
                cache=CacheFigures(0.5, None, None),
                first_output_ms=Estimate(half_failed(150.0), None),
                duration_ms=Estimate(half_failed(1100.0), None),
                tokens_per_second=Estimate(one(10.0), None),
                gaps=GapFigures(Estimate(one(500.0), None), Estimate(one(950.0), None)),
                tokens={
                    "input_tokens": one(20),
                    "output_tokens": one(11),
                    "cached_tokens": one(10),
                },
                agreement=AgreementFigures(same, None, None, None, Estimate(one(1.0), None)),
                cost=Cost(total=37e-6, per_answer=37e-6, unknown=0),
            ),
            ModelFigures(
                model="b",
                requests=1,
                ok=1,
                warmups=0,
                sent_again=0,
                first_runs=0,
                queue_ms=None,
                errors={},
                finish_reasons={"stop": 1},
                setup_ms=None,
                ttft_ms=Estimate(one(300.0), None),
                cache=None,
                first_output_ms=Estimate(one(150.0), None),
                duration_ms=Estimate(one(1100.0), None),
                tokens_per_second=None,
                gaps=GapFigures(Estimate(one(500.0), None), Estimate(one(950.0), None)),
                tokens={},
                agreement=AgreementFigures(
                    Share(0, 1), None, None, None, Estimate(one(0.75), None)
                ),
                cost=None,
            ),
        ],
        comparisons=[
            Comparison("ttft_ms", "a", "b", inf, None, 1),
            Comparison("first_output_ms", "a", "b", inf, None, 1),
            Comparison("duration_ms", "a", "b", inf, None, 1),
            Comparison("similarity", "a", "b", 0.25, None, 1),
        ],
        between=[
            Between(
                "a",
                "b",
                AgreementFigures(Share(0, 1), None, None, None, Estimate(one(0.75), None)),
            )
        ],
    )


def test_a_rate_is_that_of_the_log():
    """Only rates by our estimate are marked: an answer without any rate marks none."""
    guessed = {"usage": Usage(), "output_tokens_estimate": 7}
    whole = an_answer(id="2", tokens_per_second=None, **guessed)
    study = a_run(an_answer(), whole, an_answer(model="b", tokens_per_second=35.0, **guessed))
    rates = [model.tokens_per_second for model in figures(study).models]
    assert rates == [
        Estimate(one(10.0), None, is_estimated=False),
        Estimate(one(35.0), None, is_estimated=True),
    ]


def test_a_study_of_nothing_has_no_figures():
    assert figures(Study(title="", is_run=False)) == Figures([], [], [])
    [only] = figures(a_run(a_failure(), models=("a",))).models
    assert (only.requests, only.ok, only.errors) == (1, 0, {"rate_limit": 1})
    nothing = [only.ttft_ms, only.duration_ms, only.tokens_per_second, only.gaps, only.agreement]
    assert nothing == [None] * 5
    assert only.tokens == {}


def test_a_whole_run_is_numpys():
    import numpy

    study = a_study(n=20, repeat=3)
    a, b = figures(study).models
    for model in (a, b):
        times = [answer.ttft_ms for answer in study.answers if answer.model == model.model]
        expected = [60, numpy.mean(times), min(times), numpy.median(times), max(times), 0]
        assert [*vars(model.ttft_ms.summary).values()] == pytest.approx(expected)
        assert (model.ttft_ms.p95, model.ttft_ms.p99) == (None, None), "of 20 requests"
    assert (a.requests, a.ok, a.warmups) == (60, 60, 0)
    assert (a.agreement.exact_text, a.agreement.similarity.summary.mean) == (Share(60, 60), 1.0)


def test_errors_and_finish_reasons_are_ordered_by_frequency():
    kinds = ["timeout", "rate_limit", "upstream", "rate_limit", None]
    ends = ["stop", "length", "length"]
    study = a_run(
        *[a_failure(error_kind=kind) for kind in kinds],
        *[an_answer(finish_reason=end) for end in ends],
    )
    a, _ = figures(study).models
    assert [*a.errors.items()] == [
        ("rate_limit", 2),
        ("timeout", 1),
        ("unknown", 1),
        ("upstream", 1),
    ]
    assert [*a.finish_reasons.items()] == [("length", 2), ("stop", 1)]


def test_gaps_are_summarized_for_each_response_first():
    """One long response has more gaps than all others, but is one response."""
    long = [(float(at), 1) for at in range(100)]
    short = [(0.0, 1), (500.0, 1)]
    middle = [(0.0, 1), (10.0, 1), (310.0, 1), (320.0, 1)]
    a, _ = figures(a_run(*[an_answer(ticks=ticks) for ticks in (long, short, middle)])).models
    assert a.gaps == GapFigures(
        Estimate(summary([1.0, 500.0, 10.0]), None), Estimate(summary([1.0, 500.0, 300.0]), None)
    )
    assert figures(a_run(an_answer(ticks=short[:1]))).models[0].gaps is None


# ---- failures


@pytest.mark.parametrize("measure", ["ttft_ms", "first_output_ms", "duration_ms"])
def test_failures_are_later_than_any(measure):
    """A model that times out on hard requests is not the fast one."""
    answers = [timed("a", str(i), 100.0 + i) for i in range(12)]
    answers += [timed("b", str(i), 50.0 + i) for i in range(5)]
    answers += [a_failure(model="b", sample=str(i), error_kind="timeout") for i in range(5, 12)]
    found = figures(a_run(*answers))
    estimate = getattr(found.models[1], measure)
    assert (estimate.summary.count, estimate.summary.late) == (12, 7)
    assert estimate.summary.p50 == inf and estimate.interval.high == inf
    assert estimate.summary.mean == pytest.approx(estimate.summary.least + 2)
    comparison = compared(a_run(*answers), measure)
    assert (comparison.difference, comparison.pairs) == (-inf, 12)
    assert found.models[1].tokens_per_second.summary.count == 5, "a failure has no rate"


def test_what_came_before_a_failure_is_no_success():
    cut = [a_failure(sample=str(i), ttft_ms=1.0, error_kind="cut") for i in range(4)]
    a, _ = figures(a_run(*cut, *[timed("a", str(i), 100.0) for i in range(4, 8)])).models
    assert (a.ttft_ms.summary.least, a.ttft_ms.summary.late) == (100.0, 4)


def test_where_both_models_failed_neither_is_faster():
    answers = [timed(model, str(i), ms) for i in range(12) for model, ms in (("a", 9), ("b", 99))]
    failed = [a_failure(model=model, sample=str(i)) for i in range(12, 30) for model in "ab"]
    found = compared(a_run(*answers, *failed), "ttft_ms")
    assert (found.difference, found.pairs, found.better) == (0, 30, None)


def test_a_model_that_only_failed_is_compared_with_none():
    answers = [timed("a", str(i), 1.0) for i in range(9)]
    failed = [a_failure(model="b", sample=str(i)) for i in range(9)]
    found = figures(a_run(*answers, *failed))
    assert found.comparisons == [] and found.models[1].ttft_ms is None


@pytest.mark.parametrize(
    ("changes", "late"),
    [
        ({"error_kind": "timeout"}, 1),
        ({"error_kind": "rate_limit"}, 1),
        ({"error_kind": "cut"}, 1),
        ({"error_kind": "invalid_request"}, 0),
        ({"error_kind": "authentication"}, 0),
        ({"error_kind": "timeout", "origin": "llama-stack"}, 0),
    ],
)
def test_in_traffic_a_clients_mistake_says_nothing_of_a_models_speed(changes, late):
    study = a_run(an_answer(), a_failure(sample="2", **changes), is_run=False)
    [found, _] = figures(study).models
    assert found.duration_ms.summary.late == late
    assert (found.requests, found.ok) == (2, 1)


def test_a_response_without_any_output_is_later_than_those_with():
    """It was cut at its token limit while it reasoned; an imported one was never timed."""
    silent = an_answer(first_output_ms=None, finish_reason="length")
    imported = an_answer(ttft_ms=None, first_output_ms=None, duration_ms=None, ticks=())
    a, _ = figures(a_run(an_answer(), silent, imported)).models
    assert (a.first_output_ms.summary.count, a.first_output_ms.summary.late) == (2, 1)
    assert (a.ttft_ms.summary.count, a.ttft_ms.summary.late) == (2, 0)


def test_failures_that_were_sent_again_count_once():
    again = replace(a_failure(), was_sent_again=True)
    a, _ = figures(a_run(again, again, an_answer())).models
    assert (a.requests, a.ok, a.errors, a.sent_again, a.warmups) == (1, 1, {}, 2, 0)
    assert a.duration_ms.summary.late == 0


# ---- tails, caches, throughput


def test_tails_take_59_and_299_requests():
    def tails(n):
        a, _ = figures(a_run(*[timed("a", str(i), float(i)) for i in range(n)])).models
        return a.ttft_ms.p95, a.ttft_ms.p99

    assert tails(58) == (None, None)
    p95, none = tails(59)
    assert (p95.value, p95.interval.high, none) == (pytest.approx(0.95 * 58), 58, None)
    assert [tail.interval.high for tail in tails(299)] == [pytest.approx(291, abs=3), 298]


def test_cold_and_warm_prompts_are_told_apart():
    """llm's plugins leave out a count of 0."""
    cold = [an_answer(sample=str(i), ttft_ms=500.0 + i, usage=Usage(20, 11)) for i in range(7)]
    warm = [
        an_answer(sample=str(i), repeat=2, ttft_ms=90.0 + i, usage=Usage(20, 11, cached_tokens=16))
        for i in range(7)
    ]
    a, b = figures(a_run(*cold, *warm, an_answer(model="b"))).models
    assert a.cache.share == 0.4
    assert (a.cache.cold.summary.p50, a.cache.warm.summary.p50) == (503, 93)
    assert a.cache.warm.interval == Interval(90, 96)
    assert b.cache is None, "nothing was counted"
    [a, _] = figures(a_run(*warm)).models
    assert a.cache == CacheFigures(0.8, None, None)


def at(second, **changes):
    return an_answer(
        id=f"{second}{changes}",
        received=BEGAN + timedelta(seconds=second),
        duration_ms=2000.0,
        **changes,
    )


def test_throughput_counts_while_anything_runs():
    """Two at a time from 0 to 2 s and from 1 to 3 s, and an hour later one to 2 s."""
    answers = [at(0), at(1, model="b"), at(3600), at(-5, repeat=0)]
    study = a_run(*answers, settings={"concurrency": 2})
    assert figures(study).throughput == Throughput(
        requests_per_second=pytest.approx(3 / 5),
        tokens_per_second=pytest.approx(33 / 5),
        is_estimated=False,
        concurrency=pytest.approx(6 / 5),
        most=2,
    )
    failed = a_run(*answers[:2], a_failure(received=BEGAN), settings={"concurrency": 2})
    assert figures(failed).throughput.most == 2
    assert figures(failed).throughput.requests_per_second == pytest.approx(2 / 3)
    estimated = a_run(at(0, usage=Usage(), output_tokens_estimate=8), settings={"concurrency": 2})
    assert figures(estimated).throughput.tokens_per_second == pytest.approx(4)
    assert figures(estimated).throughput.is_estimated
    assert figures(a_run(*answers, settings={"concurrency": 1})).throughput is None
    assert figures(a_run(a_failure(duration_ms=None), settings={"concurrency": 2})).throughput is (
        None
    )


# ---- comparisons


def test_a_difference_is_that_of_the_same_requests():
    """The requests differ by seconds, the models by a tenth of one: unpaired, all is noise."""
    import numpy

    source = random.Random(1)
    waits = [source.uniform(500, 20_000) for _ in range(12)]
    answers = [timed("a", str(i), wait) for i, wait in enumerate(waits)]
    answers += [timed("b", str(i), wait + source.uniform(50, 150)) for i, wait in enumerate(waits)]
    paired = compared(a_run(*answers), "ttft_ms")
    differences = [a.ttft_ms - b.ttft_ms for a, b in zip(answers[:12], answers[12:], strict=True)]
    assert paired.difference == numpy.median(differences)
    assert -150 < paired.interval.low < paired.interval.high < -50
    assert (paired.pairs, paired.better) == (12, "a")
    unpaired = compared(a_run(*answers, is_run=False), "ttft_ms")
    assert unpaired.interval.low < 0 < unpaired.interval.high
    assert (unpaired.pairs, unpaired.better) == (0, None)
    assert unpaired.difference == pytest.approx(
        numpy.median(waits) - numpy.median([b.ttft_ms for b in answers[12:]])
    )


def test_a_paired_interval_is_scipys():
    import numpy
    import scipy.stats

    source = random.Random(2)
    differences = [source.lognormvariate(3, 1) for _ in range(40)]
    answers = [timed("a", str(i), 100.0) for i in range(40)]
    answers += [timed("b", str(i), 100.0 + by) for i, by in enumerate(differences)]
    ours = compared(a_run(*answers), "ttft_ms").interval
    theirs = scipy.stats.bootstrap(
        ([-by for by in differences],), numpy.median, method="percentile", rng=1
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.2 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.2 * width)


def test_less_time_is_faster_and_so_are_more_tokens_in_a_second():
    study = a_run(
        *[timed("a", str(i), 100.0 + i, duration_ms=1100.0 + i) for i in range(8)],
        *[timed("b", str(i), 150.0 + i, duration_ms=650.0 + i) for i in range(8)],
    )
    found = {c.measure: (c.difference, c.interval, c.better) for c in figures(study).comparisons}
    assert found == {
        "ttft_ms": (-50, Interval(-50, -50), "a"),
        "first_output_ms": (-50, Interval(-50, -50), "a"),
        "duration_ms": (450, Interval(450, 450), "b"),
        "tokens_per_second": (-10, Interval(-10, -10), "b"),
    }


def test_only_requests_that_both_finished_are_compared():
    answers = [timed("a", str(i), 100.0) for i in range(9)]
    answers += [timed("b", str(i), 110.0) for i in range(3, 12)]
    answers += [a_failure(model="b", sample="0"), timed("b", "1", 1.0, ttft_ms=None)]
    answers += [timed("b", "2", 5.0, repeat=0), timed("b", "2", 5.0, status="interrupted")]
    assert compared(a_run(*answers), "ttft_ms").pairs == 7
    assert compared(a_run(*answers), "tokens_per_second").pairs == 6
    apart = [timed("a", "0", 1.0), timed("b", "1", 1.0)]
    assert figures(a_run(*apart)).comparisons == []
    assert figures(a_run(apart[0], is_run=False)).comparisons == []


@pytest.mark.parametrize("is_run", [True, False])
def test_too_few_requests_say_nothing(is_run):
    answers = [timed(m, str(i), ms) for i in range(ENOUGH) for m, ms in (("a", 1.0), ("b", 900.0))]
    enough = compared(a_run(*answers, is_run=is_run), "ttft_ms")
    assert enough.interval == Interval(-899, -899) and enough.p_value <= 0.05
    few = compared(a_run(*answers[:-1], is_run=is_run), "ttft_ms")
    assert (few.difference, few.interval, few.p_value, few.better) == (-899, None, None, None)


def test_p_values_are_corrected_for_all_comparisons_of_the_study():
    """Of two models four measures, of four models 24: then eight requests say less."""
    answers = [
        timed(model, str(i), 100.0 * place)
        for i in range(8)
        for place, model in enumerate("abcd", 1)
    ]
    two = figures(a_run(*answers))
    assert two.tested == 4
    by = {each.measure: each for each in two.comparisons}
    assert (by["ttft_ms"].p_value, by["ttft_ms"].corrected_p) == (2 / 2**8, 8 / 2**8)
    assert [by[name].better for name in by] == ["a", "a", "a", None]
    four = figures(a_run(*answers, models=tuple("abcd")))
    assert four.tested == 24 and {each.better for each in four.comparisons} == {None}
    assert {each.interval for each in four.comparisons if each.measure == "ttft_ms"} == {
        Interval(-100.0 * by, -100.0 * by) for by in (1, 2, 3)
    }


def test_one_of_many_equal_models_is_seldom_called_faster():
    """Ten pairs at 95 % each would call one faster in a third of such studies."""
    source, called, alone = random.Random(6), 0, 0
    for _ in range(30):
        answers = [
            an_answer(model=model, sample=str(i), ttft_ms=source.lognormvariate(5, 0.5), **NOTHING)
            for i in range(25)
            for model in "abcde"
        ]
        found = figures(a_run(*answers, models=tuple("abcde"), samples=())).comparisons
        alone += any(each.p_value <= 0.05 for each in found)
        called += any(each.better for each in found)
    assert alone >= 6 and called <= 2


def test_the_closer_model_is_a_claim_as_any_other():
    samples = [
        a_sample(id=str(i), recorded=an_answer(reply=said("one two three four"))) for i in range(9)
    ]
    answers = [timed("a", str(i), 1.0, reply=said("one two three five")) for i in range(9)]
    answers += [timed("b", str(i), 1.0, reply=said("one six seven")) for i in range(9)]
    found = compared(a_run(*answers, samples=samples), "similarity")
    assert (found.difference, found.pairs, found.better) == (pytest.approx(0.464, abs=1e-3), 9, "a")


def test_many_answers_to_few_requests_fake_no_confidence():
    """A hundred answers each to three requests are three differences, not three hundred."""
    source = random.Random(3)
    answers = [
        timed(model, str(i), source.gauss(100 + 5 * (model == "b"), 1), repeat=repeat)
        for model in "ab"
        for i in range(3)
        for repeat in range(1, 101)
    ]
    study = a_run(*answers)
    found = compared(study, "ttft_ms")
    assert (found.interval, found.pairs, found.better) == (None, 3, None)
    a, _ = figures(study).models
    assert (a.ttft_ms.summary.count, a.ttft_ms.interval) == (300, None)


def test_more_answers_to_the_same_requests_leave_the_interval_wide():
    """What requests differ in stays, however often each of them is asked."""
    source = random.Random(4)
    waits = [source.uniform(100, 1000) for _ in range(10)]

    def interval(repeats):
        answers = [
            timed("a", str(i), wait + source.gauss(0, 1), repeat=repeat)
            for i, wait in enumerate(waits)
            for repeat in range(1, repeats + 1)
        ]
        found = figures(a_run(*answers)).models[0].ttft_ms.interval
        return found.high - found.low

    assert interval(50) == pytest.approx(interval(1), rel=0.05)


def test_a_repeat_that_stalled_does_not_decide():
    answers = [
        timed(model, str(i), 9e6 if (i, repeat) == (0, 2) and model == "a" else ms, repeat=repeat)
        for model, ms in (("a", 100.0), ("b", 120.0))
        for i in range(8)
        for repeat in (1, 2, 3)
    ]
    found = compared(a_run(*answers), "ttft_ms")
    assert (found.difference, found.interval, found.better) == (-20, Interval(-20, -20), "a")


def test_chance_is_seldom_called_faster():
    """Two models that are the same one: by 95 % one of twenty such studies may say more."""
    source = random.Random(5)
    called = 0
    for _ in range(200):
        answers = [
            an_answer(model=model, sample=str(i), ttft_ms=source.lognormvariate(5, 0.5), **NOTHING)
            for i in range(7)
            for model in "ab"
        ]
        called += compared(a_run(*answers), "ttft_ms").better is not None
    # 10 of 200 are 5 %. Of seven requests a bootstrap alone would call some 24 faster.
    assert called <= 10


def test_the_same_study_gives_the_same_figures():
    study = a_study(("a", "b", "c"), 10, repeat=2)
    assert figures(study) == figures(replace(study, answers=[*study.answers]))
    pairs = [(c.first, c.second) for c in figures(study).comparisons if c.measure == "ttft_ms"]
    assert pairs == [("a", "b"), ("a", "c"), ("b", "c")]


# ---- agreement and cost


def test_replies_are_compared_with_the_recorded_ones():
    call = Message("assistant", [ToolCallPart("look", {"at": 1}, "1")])
    schema = {"type": "object", "required": ["a"]}
    samples = [
        a_sample(id="json", recorded=an_answer(reply=said('{"a": 1}')), schema=schema),
        a_sample(id="call", recorded=an_answer(reply=[call])),
        a_sample(id="failed", recorded=a_failure(reply=said("It is"))),
        a_sample(id="none"),
    ]
    study = a_run(
        timed("a", "json", 1.0, reply=said('{"a": 1.0}')),
        timed("a", "json", 1.0, reply=said('{"b": 1}'), repeat=2),
        timed("a", "call", 1.0, reply=[call]),
        timed("a", "failed", 1.0),
        timed("a", "none", 1.0),
        timed("a", "gone", 1.0),
        samples=samples,
    )
    a, b = figures(study).models
    assert a.agreement == AgreementFigures(
        exact_text=Share(0, 2),
        same_json=Share(1, 2),
        same_tool_calls=Share(1, 1),
        schema_valid=Share(1, 2),
        similarity=Estimate(summary([7 * 2 / 16, 6 * 2 / 14]), None),
    )
    assert b.agreement is None


def test_models_are_compared_by_their_first_replies():
    samples = [a_sample(id="0", schema={"type": "object"}), a_sample(id="1"), a_sample(id="2")]
    study = a_run(
        timed("a", "0", 1.0, reply=said("Later."), repeat=2),
        timed("a", "0", 1.0, reply=said("Yes.")),
        timed("a", "0", 1.0, reply=said("Warm."), repeat=0),
        a_failure(model="b", sample="0"),
        timed("b", "0", 1.0, reply=said("Yes."), repeat=2),
        timed("a", "1", 1.0, reply=said("Yes.")),
        timed("b", "1", 1.0, reply=said("No.")),
        timed("a", "2", 1.0),
        samples=samples,
    )
    [between] = figures(study).between
    alike = Estimate(summary([1.0, 0.5]), None)
    assert between == Between("a", "b", AgreementFigures(Share(1, 2), None, None, None, alike))


def test_responses_without_counts_are_counted_beside_the_cost():
    answers = [an_answer(), an_answer(usage=Usage(20, None)), an_answer(usage=Usage(40, 22))]
    study = a_run(*answers, a_failure(), models=("a",))
    [a] = figures(study, {"a": Price(1.0, 10.0)}).models
    assert a.cost == Cost(pytest.approx(390e-6), pytest.approx(195e-6), unknown=1)
    [a] = figures(a_run(a_failure(), models=("a",)), {"a": Price(1.0, 10.0)}).models
    assert a.cost == Cost(0.0, None, 0)


def test_a_large_study_takes_seconds():
    source = random.Random(6)
    words = [f"word{i}" for i in range(300)]
    study = a_study(("a", "b", "c"), 300)
    answers = [
        replace(answer, reply=said(" ".join(source.choices(words, k=300))))
        for answer in study.answers
    ]
    begin = time.monotonic()
    found = figures(replace(study, answers=answers))
    assert time.monotonic() - begin < 10  # 2 s on a machine of 2020 with two cores
    assert [model.ok for model in found.models] == [300] * 3
