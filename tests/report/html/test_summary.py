"""What is said of figures that no small study has."""

import re

from llmproxy.report.comparisons import Comparison
from llmproxy.report.data import Study
from llmproxy.report.estimates import Estimate
from llmproxy.report.figures import Figures, ModelFigures
from llmproxy.report.html.summary import summary
from llmproxy.report.stats import Interval, Summary


def said(models, comparisons, is_run=True):
    """Return the conclusion about first events, of models given by their medians."""
    figures = Figures([of(*pair) for pair in models.items()], comparisons, [])
    study = Study(title="", is_run=is_run, models=tuple(models))
    answers = dict(summary(study, figures))
    return " ".join(re.sub("<[^>]*>", "", answers["First event"]).split())


def of(model, median):
    return ModelFigures(
        model=model,
        requests=9,
        ok=9,
        warmups=0,
        sent_again=0,
        first_runs=0,
        queue_ms=None,
        errors={},
        finish_reasons={"stop": 9},
        setup_ms=None,
        ttft_ms=Estimate(Summary(9, median, median, median, median), None),
        cache=None,
        first_output_ms=None,
        duration_ms=None,
        tokens_per_second=None,
        gaps=None,
        tokens={},
        agreement=None,
        cost=None,
    )


def held(first, second, difference, faster, interval, pairs=9):
    p_value = None if interval is None else 0.01 if faster else 0.5
    return Comparison(
        "ttft_ms", first, second, difference, interval, pairs, p_value, p_value, faster
    )


def test_models_that_are_not_clearly_slower_are_named():
    comparisons = [
        held("a", "b", -100, "a", Interval(-110, -90)),
        held("a", "c", -1, None, Interval(-5, 5)),
        held("b", "c", 99, "c", Interval(90, 110)),
    ]
    assert said({"a": 100, "b": 200, "c": 101}, comparisons) == (
        "a is faster than b, median 100 ms. The nearest of them is b, slower by 100 ms "
        "(95 % interval 90 to 110 ms, 9 requests). "
        "No difference beyond chance from c."
    )


def test_the_one_with_most_wins_is_best_whatever_its_median():
    comparisons = [
        held("a", "b", 10, "b", Interval(5, 15)),
        held("a", "c", 0, None, Interval(-5, 5)),
        held("b", "c", -10, "b", Interval(-15, -5)),
    ]
    assert said({"a": 100, "b": 101, "c": 102}, comparisons).startswith(
        "b is the fastest, median 101 ms. Next is a, slower by 10 ms"
    )


def test_cyclic_comparisons_are_shown_as_they_are():
    comparisons = [
        held("a", "b", -10, "a", Interval(-15, -5)),
        held("a", "c", 10, "c", Interval(5, 15)),
        held("b", "c", -10, "b", Interval(-15, -5)),
    ]
    words = said({"a": 100, "b": 101, "c": 102}, comparisons)
    assert words.startswith("a is faster than b, median 100 ms.")
    assert words.endswith("Faster still: c.")


def test_models_with_too_few_requests_are_named():
    comparisons = [
        held("a", "b", -100, "a", Interval(-110, -90)),
        held("a", "c", -50, None, None),
        held("b", "c", 50, None, None),
    ]
    words = said({"a": 100, "b": 200, "c": 150}, comparisons)
    assert words.endswith("Too few requests to tell (6 are needed): c.")
    comparisons = [held(*pair, -1, None, None) for pair in ("ab", "ac", "bc")]
    assert said({"a": 1, "b": 2, "c": 3}, comparisons) == (
        "Too few requests to tell (6 are needed); the best median is that of a, 1.0 ms."
    )


def test_traffic_warns_that_models_were_not_asked_the_same():
    words = said(
        {"a": 1, "b": 2}, [held("a", "b", -1, "a", Interval(-2, -1), pairs=0)], is_run=False
    )
    assert words == (
        "a is faster than b by 1.0 ms (95 % interval 1.0 to 2.0 ms); medians 1.0 ms and 2.0 ms. "
        "They answered different requests, which may be the reason."
    )
