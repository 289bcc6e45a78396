"""Two benchmark runs compared."""

import csv
import io
import json
import re
from dataclasses import replace
from datetime import timedelta

import pytest

from llmproxy.core.usage import Usage
from llmproxy.report.data import Study
from llmproxy.report.html.comparison_page import comparison_page
from llmproxy.report.prices import Price
from llmproxy.report.run_comparison import (
    NO_DIFFERENCE,
    compare_runs,
    comparison_csv,
    comparison_json,
    comparison_lines,
    shown_difference,
    verdict,
)
from tests.report.studies import BEGAN, a_failure, a_sample, an_answer, changed, said

N = 12
HOUR = timedelta(hours=1)


def a_run(title, slower_ms=0.0, models=("a",), usage=None, n=N):
    samples = [a_sample(id=f"s{i}") for i in range(n)]
    answers = [
        an_answer(
            id=f"{title}{model}{i}",
            model=model,
            sample=f"s{i}",
            ttft_ms=100.0 + i,
            duration_ms=1000.0 + 7 * i + (slower_ms if model == "a" else i % 2),
            usage=usage or Usage(20, 11),
        )
        for model in models
        for i in range(n)
    ]
    return Study(title=title, is_run=True, models=models, samples=samples, answers=answers)


def changes(runs, model="a"):
    (found,) = [each for each in runs.models if each.model == model]
    return {change.measure: change for change in found.changes}


def test_a_slower_run_is_worse_beyond_chance():
    runs = compare_runs(a_run("friday"), a_run("slow", slower_ms=250.0))
    found = changes(runs)
    whole = found["duration_ms"]
    assert (whole.difference, verdict(whole, runs)) == (250.0, "worse")
    assert (whole.comparison.pairs, whole.comparison.interval.low) == (N, 250.0)
    assert verdict(found["ttft_ms"], runs) == NO_DIFFERENCE
    assert found["tokens_per_second"].difference < 0
    assert verdict(found["tokens_per_second"], runs) == "worse"
    back = compare_runs(a_run("slow", slower_ms=250.0), a_run("friday"))
    assert verdict(changes(back)["duration_ms"], back) == "better"


def test_the_same_run_twice_differs_in_nothing():
    runs = compare_runs(a_run("one", models=("a", "b")), a_run("two", models=("a", "b")))
    words = {verdict(change, runs) for each in runs.models for change in each.changes}
    assert words <= {NO_DIFFERENCE, "-", "too few requests"}
    assert runs.tested == sum(
        change.comparison is not None and change.comparison.p_value is not None
        for each in runs.models
        for change in each.changes
    )


def test_too_few_requests_say_nothing():
    runs = compare_runs(a_run("one", n=3), a_run("two", slower_ms=900, n=3))
    assert verdict(changes(runs)["duration_ms"], runs) == "too few requests"


def test_models_and_requests_of_one_run_only_are_told():
    first, second = a_run("one", models=("a", "b")), a_run("two", models=("a", "c"), n=9)
    runs = compare_runs(first, second)
    assert (runs.only_first, runs.only_second, runs.shared) == (["b"], ["c"], 9)
    text = "\n".join(comparison_lines(runs, width=120))
    assert (
        "only in one: b" in text
        and "only in two: c" in text
        and "the 9 requests in both (3 of one left" in text
    )


def test_every_value_is_of_the_requests_that_both_runs_have():
    """The same models, the same times: only the requests that one run has alone are others."""
    prices = {"a": Price(1.0, 2.0)}
    first, second = a_run("one"), a_run("two")
    odd = {"duration_ms": 9000.0, "usage": Usage(900, 900), "ttft_ms": 800.0, "reply": said("?")}
    alone = [an_answer(id=f"x{i}", sample=f"x{i}", **odd) for i in range(N)]
    failing = [a_failure(id=f"f{i}", sample=f"x{i}") for i in range(2 * N)]
    samples = [*second.samples, *(a_sample(id=one.sample) for one in failing)]
    second = replace(second, samples=samples, answers=[*second.answers, *alone])
    first = replace(first, samples=samples, answers=[*first.answers, *failing[N:]])
    runs = compare_runs(first, second, prices)
    for change in changes(runs).values():
        assert (change.first, change.difference) in [(change.second, 0.0), (None, None)]
    assert (runs.shared, runs.left_out_first, runs.left_out_second) == (N, N, N)
    rows = list(csv.DictReader(io.StringIO(comparison_csv(runs), newline="")))
    assert [row["first"] for row in rows] == [row["second"] for row in rows]
    form = comparison_json(runs)["models"][0]
    assert form["first"]["duration_ms"] == form["second"]["duration_ms"]
    assert form["first"]["cost"] == form["second"]["cost"]
    said_so = "all values are of the 12 requests in both (12 of one and 12 of two left out)"
    assert said_so in " ".join(comparison_lines(runs, width=200))
    assert said_so in comparison_page(runs, "llmproxy")


def test_tokens_and_costs_are_of_the_requests_that_succeeded_in_both():
    second = a_run("two")
    failed = [a_failure(id=f"f{i}", sample=f"s{i}") for i in range(4)]
    second = replace(second, answers=[*failed, *second.answers[4:]])
    first = a_run("one")
    long = [changed(one, usage=Usage(900, 900)) for one in first.answers[:4]]
    first = replace(first, answers=[*long, *first.answers[4:]])
    found = changes(compare_runs(first, second, {"a": Price(1.0, 2.0)}))
    for name in ("tokens_per_second", "input_tokens", "output_tokens", "cost"):
        assert (name, found[name].difference) == (name, 0.0)
        assert found[name].first == found[name].second is not None


def test_each_run_says_when_and_how_it_was_made():
    first = replace(a_run("one"), began=BEGAN, ended=BEGAN + HOUR, settings={"cache": "cold"})
    second = replace(a_run("<b>"), began=BEGAN, ended=BEGAN, settings={"repeat": 2})
    runs = compare_runs(first, second)
    lines = comparison_lines(runs, width=120)
    assert lines[1:3] == [
        "one: 2026-01-02 03:04:05 to 04:04:05 UTC, cache cold",
        "<b>: 2026-01-02 03:04:05 UTC, repeat 2",
    ]
    page = re.sub("<[^>]+>", "", comparison_page(runs, "llmproxy"))
    assert "one · 2026-01-02 03:04 to 04:04 UTC · cache cold" in page
    assert "&lt;b&gt; · 2026-01-02 03:04:05 UTC · repeat 2" in page
    assert [one["settings"] for one in comparison_json(runs)["runs"]] == [
        {"cache": "cold"},
        {"repeat": 2},
    ]


def test_a_model_that_got_fewer_requests_says_so():
    first, second = a_run("one", models=("a", "b")), a_run("two", models=("a", "b"))
    second = replace(second, answers=second.answers[:-2])
    text = "\n".join(comparison_lines(compare_runs(first, second), width=120))
    assert "the 12 requests in both;" in text and "b, 10 requests" in text


def test_a_change_that_rounds_to_nothing_has_no_sign():
    def change(ms):
        return shown_difference(changes(compare_runs(a_run("a"), a_run("b", ms)))["duration_ms"])

    assert [change(ms) for ms in (0.02, 20.0, -20.0)] == [
        "0.0\u00a0ms",
        "+20\u00a0ms",
        "−20\u00a0ms",
    ]


def test_tokens_and_costs_have_their_units():
    prices = {"a": Price(1.0, 2.0, currency="EUR")}
    first, second = a_run("one"), a_run("two", usage=Usage(200, 110))
    runs = compare_runs(first, second, prices)
    found = changes(runs)
    assert (found["input_tokens"].difference, found["input_tokens"].unit) == (180, "tokens")
    assert found["cost"].difference == pytest.approx(378 / 1_000_000)
    assert found["cost"].unit == "EUR"
    rows = list(csv.DictReader(io.StringIO(comparison_csv(runs), newline="")))
    assert [row["measure"] for row in rows] == [
        "ttft_ms", "first_output_ms", "duration_ms", "tokens_per_second", "similarity",
        "input_tokens", "output_tokens", "cost",
    ]  # fmt: skip
    assert {row["unit"] for row in rows} == {"ms", "tokens/s", "0 to 1", "tokens", "EUR"}
    assert "EUR" in "\n".join(comparison_lines(runs, width=200))


def test_json_has_it_all_and_failures_are_null():
    second = a_run("two")
    failing = [a_failure(id=f"f{i}", sample=f"s{i}") for i in range(N)]
    runs = compare_runs(a_run("one"), replace(second, answers=failing))
    form = comparison_json(runs)
    assert json.loads(json.dumps(form, allow_nan=False)) == form
    assert form["models"][0]["second"]["ok"] == 0


def test_the_page_says_it_first_and_escapes_names():
    hostile = "<script>x</script>"
    runs = compare_runs(a_run(hostile), a_run("slow", slower_ms=250.0))
    html = comparison_page(runs, "llmproxy 9")
    assert "<script" not in html and "&lt;script&gt;" in html
    assert "<b>Worse</b>: whole response +250" in html
    assert html.index("Worse") < html.index("<table")
