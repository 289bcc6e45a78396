"""A study as a person reads it, as JSON, and as a spreadsheet's rows."""

import csv
import io
import json
from dataclasses import replace

import pytest

from llmproxy.core.usage import Usage
from llmproxy.report.data import Study
from llmproxy.report.figures import figures
from llmproxy.report.json_and_csv import report_csv, report_json
from llmproxy.report.prices import Price
from llmproxy.report.text import NO_MEDIAN, table
from tests.report.studies import BEGAN, a_failure, a_sample, a_study, an_answer, changed, said

EVIL = "\x1b[2Jevil\r\n\x9b\u202e"
ESCAPED = r"\x1b[2Jevil\r\n\x9b\u202e"


RUN = """\
a run: 8 requests, 32 of 40 responses, 2026-01-02 03:04:05 to 03:06:05 UTC
repeat 2, concurrency 1, seed 0

overview, p50            sent  ok  errors  warm-ups  first event   whole  tokens
small                      16  15       1         1       140 ms  1.15 s    10/s
openai/gpt-…-2025-04-14    16  16       0         0       156 ms  1.16 s    10/s

first event                     count  never     p50       p50, 95 %
small                              16      1  140 ms  110 ms or more
openai/gpt-4.1-mini-2025-04-14     16      -  156 ms   120 to 190 ms

first event by prompt cache     cached  cold  p50 cold  warm  p50 warm
small                             68 %    14    140 ms     1    100 ms
openai/gpt-4.1-mini-2025-04-14       -     -         -     -         -

first output                    count  never     p50       p50, 95 %
small                              16      1  190 ms  160 ms or more
openai/gpt-4.1-mini-2025-04-14     16      -  206 ms   170 to 240 ms

whole response                  count  never     p50       p50, 95 %
small                              16      1  1.15 s  1.11 s or more
openai/gpt-4.1-mini-2025-04-14     16      -  1.16 s  1.12 to 1.19 s

connecting (not in other times)  count    p50  p50, 95 %
small                                1  12 ms    too few
openai/gpt-4.1-mini-2025-04-14       -      -          -

gaps between events             p50      p50, 95 %  longest, p50  longest of all
small                        500 ms  500 to 500 ms        950 ms          950 ms
openai/gpt-4.…ni-2025-04-14  500 ms  500 to 500 ms        950 ms          950 ms

tokens in total                    in  out  reasoning  cached
small                           1,480  165          4   1,000
openai/gpt-4.1-mini-2025-04-14    320  176          -       -

cost                            responses   total     each
small                               15/15  0.0018  0.00012
openai/gpt-4.1-mini-2025-04-14          -       -        -

finish reasons
small: stop 15
openai/gpt-4.1-mini-2025-04-14: stop 16

errors
small: rate_limit 1

agreement with recorded          text  similar          95 %
small                           15/15     1.00  1.00 to 1.00
openai/gpt-4.1-mini-2025-04-14  16/16     1.00  1.00 to 1.00

agreement of two                       text  similar          95 %
small, openai/gpt-4.1-mini-2025-04-14   8/8     1.00  1.00 to 1.00

first minus second            first event  first output   whole  tokens  similar
small, openai…ini-2025-04-14       -20 ms        -20 ms  -20 ms     0/s     0.00

conclusions
First event: No difference beyond chance: small 140 ms,
  openai/gpt-4.1-mini-2025-04-14 156 ms (95 % interval of the difference 20 ms
  or less, 8 requests). Prompt tokens from the provider's cache: small 68 %.
Whole response: No difference beyond chance: small 1.15 s,
  openai/gpt-4.1-mini-2025-04-14 1.16 s (95 % interval of the difference 20 ms
  or less, 8 requests).
Tokens per second: No difference beyond chance: small 10/s,
  openai/gpt-4.1-mini-2025-04-14 10/s (95 % interval of the difference -4 to 0,
  8 requests).
Agreement: No model is clearly closer to the recorded replies; similarity small
  1.00 (1.00 to 1.00), openai/gpt-4.1-mini-2025-04-14 1.00 (1.00 to 1.00).
Comparisons: 5 made, each pair of models by each measure: none is beyond chance.
Cost: By your prices, per response: small 0.00012 (0.0018 in total). No price
  for openai/gpt-4.1-mini-2025-04-14.
Errors: small 1 of 16 (rate_limit); the other none.
"""


def shown(study, prices=None, **options):
    return table(study, figures(study, prices), **{"width": 80} | options)


def test_a_run_at_eighty_columns():
    study = a_study(("small", "openai/gpt-4.1-mini-2025-04-14"), repeat=2)
    usage = Usage(1200, 11, cached_tokens=1000, reasoning_tokens=4)
    slow = changed(
        study.answers[0],
        setup_ms=12.34,
        duration_ms=12_345.6,
        usage=usage,
        tokens_per_second=6.0,
    )
    bad = a_failure(model="small", sample=study.samples[0].id, repeat=2)
    warm_up = an_answer(model="small", repeat=0)
    study = replace(study, answers=[warm_up, slow, bad, *study.answers[2:]], planned=40)
    assert shown(study, {"small": Price(1.0, 2.0)}) == RUN.splitlines()


def traffic(n, **changes):
    answers = [
        an_answer(model=model, sample=f"{model}{i}", **(changes if model == "b" else {}))
        for model, count in zip("ab", n, strict=True)
        for i in range(count)
    ]
    return Study(title="since monday", is_run=False, models=("a", "b"), answers=answers)


def test_traffic_says_that_its_models_were_asked_different_things():
    lines = shown(traffic((8, 9), ttft_ms=200.0))
    assert lines[0] == "since monday: 0 requests, 17 responses"
    place = lines.index("conclusions") + 1
    assert lines[place : place + 3] == [
        "First event: a is faster than b by 100 ms (95 % interval 100 to 100 ms); medians",
        "  100 ms and 200 ms. They answered different requests, which may be the reason.",
        "Whole response: No difference beyond chance: a 1.10 s, b 1.10 s (95 % interval",
    ]


def test_too_few_requests_of_traffic_are_counted_for_each_model():
    lines = shown(traffic((5, 9)))
    assert lines[0] == "since monday: 0 requests, 14 responses"
    place = lines.index("conclusions") + 1
    assert lines[place : place + 2] == [
        "First event: Too few requests to tell (6 are needed, 5 and 9 came): a 100 ms, b",
        "  100 ms.",
    ]


def test_every_two_models_are_compared_by_every_measure():
    lines = shown(a_study(("a", "b", "c"), 10))
    place = lines.index("first minus second  first event  first output    whole  tokens  similar")
    assert lines[place + 1 : place + 5] == [
        "a, b                    -20 ms*       -20 ms*  -20 ms*     0/s     0.00",
        "a, c                    -40 ms*       -40 ms*  -40 ms*     0/s     0.00",
        "b, c                    -20 ms*       -20 ms*  -20 ms*     0/s     0.00",
        "* beyond chance by its 95 % interval, and among 15 comparisons",
    ]


def conclusions_of(study):
    lines = shown(study, width=1000)
    return lines[lines.index("conclusions") + 1 :]


def test_too_few_requests_for_one_measure_are_noted_there():
    study = a_study(n=8)
    answers = [changed(answer, duration_ms=None) for answer in study.answers[:6]]
    assert conclusions_of(replace(study, answers=[*answers, *study.answers[6:]])) == [
        "First event: a is faster than b by 20 ms (95 % interval 20 to 20 ms, 8 requests); medians"
        " 135 ms and 155 ms.",
        "Whole response: Too few requests to tell (6 are needed, both answered 5): a 1.15 s, b"
        " 1.17 s.",
        "Tokens per second: No difference beyond chance: a 10/s, b 10/s (95 % interval of the"
        " difference 0 to 0, 8 requests).",
        "Agreement: No model is clearly closer to the recorded replies; similarity a 1.00 (1.00 to"
        " 1.00), b 1.00 (1.00 to 1.00).",
        "Comparisons: 4 made, each pair of models by each measure: 2 beyond chance if taken"
        " alone, 2 after Holm's correction for their number.",
        "Errors: None in 16 responses.",
    ]


def test_a_difference_that_many_comparisons_explain_is_none():
    lines = conclusions_of(a_study(n=6))
    assert lines[0] == (
        "First event: No difference beyond chance: a 125 ms, b 145 ms (95 % interval of the"
        " difference 20 to 20 ms, 6 requests; among all comparisons, corrected p = 0.16)."
    )
    assert lines[4] == (
        "Comparisons: 5 made, each pair of models by each measure: 3 beyond chance if taken"
        " alone, 0 after Holm's correction for their number."
    )


def test_a_model_that_fails_most_requests_is_never_the_fast_one():
    study = a_study(n=12)
    failed = [
        a_failure(model="b", sample=answer.sample, error_kind="timeout")
        for answer in study.answers[5::2]
    ]
    good = [answer for answer in study.answers if answer.model == "a"]
    study = replace(study, answers=[*good, *study.answers[1:5:2], *failed])
    also_failed = [replace(answer, model="c") for answer in study.answers if answer.model == "b"]
    assert conclusions_of(study)[0] == (
        "First event: a is faster than b, which failed in half or more of 12 requests; medians"
        " 155 ms and never."
    )
    lines = shown(study)
    place = lines.index("first event  count  never     p50      p50, 95 %")
    assert lines[place + 2] == "b               12     10   never          never"
    place = next(i for i, line in enumerate(lines) if line.startswith("first minus second"))
    assert lines[place + 1].split("  ")[-5:-4] == ["second: none*"]
    assert NO_MEDIAN in " ".join(line.strip() for line in lines[place:])
    three = replace(study, models=("a", "b", "c"), answers=[*study.answers, *also_failed])
    assert "Next is b, which failed in half or more of 12 requests." in conclusions_of(three)[0]


def test_tails_of_enough_requests_have_their_intervals():
    study = a_study(("a",), 60, recorded=False)
    lines = shown(study)
    place = lines.index("first event, slowest     p95      p95, 95 %")
    assert lines[place + 1] == "a                     660 ms  610 to 690 ms"
    assert not any("p99" in line for line in lines)


def test_cached_prompts_are_shown_beside_the_first_event():
    study = a_study(n=8)
    warm = [
        changed(answer, usage=Usage(20, 11, cached_tokens=16)) if answer.model == "a" else answer
        for answer in study.answers
    ]
    study = replace(study, answers=[study.answers[0], *warm[1:]])
    lines = shown(study)
    place = lines.index("first event by prompt cache  cached  cold  p50 cold  warm  p50 warm")
    assert lines[place + 1] == "a                              70 %     1    100 ms     7    140 ms"
    assert conclusions_of(study)[0].endswith(" Prompt tokens from the provider's cache: a 70 %.")


def test_throughput_is_that_of_all_models_together():
    study = a_study(n=8, settings={"concurrency": 4})
    assert conclusions_of(study)[-2] == (
        "All models together: 13.4 requests and 148 output tokens per second; 15.4 requests at a"
        " time on average, at most 16."
    )


USD = Price(1.0, 2.0, currency="USD")  # 0.000042 USD for each response
TWICE = Price(2.0, 4.0, currency="USD")
OF_A = "a 0.000042 USD (0.00034 USD in total)"


@pytest.mark.parametrize(
    ("prices", "said"),
    [
        ({"a": USD}, f"By your prices, per response: {OF_A}. No price for b and c."),
        (
            {"a": USD, "b": TWICE},
            f"a is the cheapest of the two models with a price, per response: {OF_A},"
            " b 0.000084 USD (0.00067 USD in total). No price for c.",
        ),
        (
            {"a": USD, "b": USD, "c": TWICE},
            f"a and b are cheapest, per response: {OF_A}, b{OF_A[1:]}, c 0.000084 USD"
            " (0.00067 USD in total).",
        ),
        (
            {"a": USD, "b": USD},
            f"By your prices, per response: {OF_A}, b{OF_A[1:]}. No price for c.",
        ),
        (
            {"a": USD, "b": replace(TWICE, currency="EUR")},
            f"By your prices, per response: {OF_A}, b 0.000084 EUR (0.00067 EUR in total). No price"
            " for c.",
        ),
        (
            {"a": USD, "b": TWICE, "c": replace(USD, to_date=BEGAN.date())},
            f"a is the cheapest of the two models whose cost is known, per response: {OF_A},"
            " b 0.000084 USD (0.00067 USD in total). No cost is known of c.",
        ),
    ],
)
def test_a_model_is_called_cheapest_among_those_whose_cost_is_known(prices, said):
    study = a_study(("a", "b", "c"), n=8, recorded=False)
    lines = shown(study, prices, width=1000)
    (cost,) = [line for line in lines if line.startswith("Cost: ")]
    assert cost.replace("\u00a0", " ") == f"Cost: {said}"


def test_failures_that_were_sent_again_are_counted_apart():
    study = a_study(n=1)
    again = replace(a_failure(model="b"), was_sent_again=True)
    lines = shown(replace(study, answers=[again, *study.answers]))
    assert "b: 1 failed request sent again, and counted in no other figure" in lines
    assert lines[0].startswith("a run: 1 request, 2 of 2 responses")


def test_a_study_of_nothing_is_one_line():
    assert shown(Study(title="nothing", is_run=False)) == ["nothing: 0 requests, 0 responses"]
    begun = Study(title="soon", is_run=True, began=BEGAN, planned=1, samples=[a_sample()])
    assert shown(begun) == ["soon: 1 request, 0 of 1 response, since 2026-01-02 03:04:05 UTC"]


def test_missing_token_counts_are_noted():
    study = a_study(("a",), 3, recorded=False)
    told, *others = study.answers
    answers = [told, *(changed(answer, usage=Usage()) for answer in others)]
    lines = shown(replace(study, answers=answers), {"a": Price(1000.0, 10_000.0)})
    assert "a: only 1 of 3 responses had token counts; ~ marks rates by our estimate" in lines
    cost = lines.index("cost  responses   total    each")
    assert lines[cost + 1] == "a           1/3  0.1300  0.1300"


@pytest.mark.parametrize("width", [0, 80, 133])
def test_no_line_is_longer_than_the_screen(width):
    models = ("m" * 200, "n" * 79, "o")
    study = a_study(models, 6, settings={"models": list(models), "limit": None})
    answers = [
        changed(
            answer,
            ttft_ms=answer.ttft_ms * 1e3,
            duration_ms=answer.duration_ms * 1e3,
            usage=Usage(10**6, 10**6, 10**6, 10**6, 10**6),
        )
        for answer in study.answers
    ]
    answers += [
        an_answer(model=models[0], repeat=0),
        a_failure(model=models[1], error_kind="x y" * 50),
    ]
    lines = shown(
        replace(study, answers=answers), dict.fromkeys(models, Price(1e5, 1e5)), width=width
    )
    assert max(map(len, lines)) <= max(width, 40)


def test_a_clients_words_never_drive_the_terminal():
    answers = [
        an_answer(model=EVIL, sample=str(i), finish_reason=EVIL, id=EVIL) for i in range(8)
    ] + [an_answer(model="b", sample=str(i), ttft_ms=500.0) for i in range(8)]
    study = Study(
        title=EVIL,
        is_run=True,
        models=(EVIL, "b"),
        samples=[a_sample(id=str(i), recorded=an_answer()) for i in range(8)],
        answers=[*answers, a_failure(model=EVIL, error_kind=EVIL, error=EVIL)],
        settings={EVIL: EVIL},
    )
    lines = shown(study)
    assert all(line.isprintable() for line in lines)
    assert lines[0] == f"{ESCAPED}: 8 requests, 17 responses"
    assert f"{ESCAPED}: {ESCAPED} 1" in lines
    assert any(line.startswith(f"First event: {ESCAPED} is faster than b") for line in lines)
    assert report_csv(study).replace("\r\n", "").isprintable()


def test_colours_are_only_colours():
    study = a_study()
    plain, painted = shown(study), shown(study, colours=True)
    assert plain != painted
    bare = [line.replace("\x1b[1m", "").replace("\x1b[0m", "") for line in painted]
    assert bare == plain


def test_json_has_it_all_and_is_json():
    study = a_study(n=6, repeat=2)
    study = replace(study, answers=[*study.answers, a_failure()])
    prices = {"a": Price(1.0, 2.0)}
    form = report_json(study, figures(study, prices))
    assert json.loads(json.dumps(form, allow_nan=False)) == form
    assert [*form] == [
        "title",
        "is_run",
        "began",
        "ended",
        "settings",
        "planned",
        "is_partial",
        "models",
        "comparisons",
        "tested",
        "between",
        "throughput",
        "samples",
        "answers",
    ]
    assert form["models"][0]["ttft_ms"]["summary"] == {
        "count": 13, "mean": pytest.approx(125.5), "least": 100.0, "p50": 130.0, "most": 151.0,
        "late": 1,
    }  # fmt: skip
    assert form["models"][0]["cost"]["unknown"] == 0
    assert form["samples"][0] == {
        "id": "01sample00",
        "received": "2026-01-01T03:04:05+00:00",
        "client": "aider",
    }
    assert form["answers"][-1] == {
        "id": "01answer",
        "sample": "01sample",
        "model": "a",
        "is_warm_up": False,
        "repeat": 1,
        "was_sent_again": False,
        "received": "2026-01-02T03:04:05+00:00",
        "status": "error",
        "error_kind": "rate_limit",
        "error": "slow down",
        "finish_reason": None,
        "setup_ms": None,
        "queue_ms": None,
        "is_first_run": False,
        "ttft_ms": None,
        "first_output_ms": None,
        "duration_ms": 20.0,
        "tokens_per_second": None,
        "input_tokens": None,
        "output_tokens": None,
        "cached_tokens": None,
        "cache_write_tokens": None,
        "cache_write_1h_tokens": None,
        "reasoning_tokens": None,
        "output_tokens_estimate": None,
        "cost": None,
        "cost_currency": None,
        "similarity": None,
        "same_text": None,
        "same_json": None,
        "same_tool_calls": None,
        "fits_schema": None,
    }


def test_csv_has_costs_with_their_unit_agreement_and_warm_ups():
    study = a_study(n=1)
    warm = changed(study.answers[0], id="warm", repeat=0)
    study = replace(study, answers=[warm, *study.answers])
    prices = {"a": Price(1.0, 2.0, currency="EUR")}
    rows = list(csv.DictReader(io.StringIO(report_csv(study, prices), newline="")))
    of_a = [row for row in rows if row["model"] == "a"]
    usage = study.answers[1].exchange.usage
    spent = (usage.input_tokens + 2 * usage.output_tokens) / 1_000_000
    assert [(row["is_warm_up"], row["repeat"]) for row in of_a] == [("True", "0"), ("False", "1")]
    assert (float(of_a[1]["cost"]), of_a[1]["cost_currency"]) == (pytest.approx(spent), "EUR")
    assert (of_a[1]["similarity"], of_a[1]["same_text"]) == ("1.0", "True")
    assert {row["cost"] for row in rows if row["model"] == "b"} == {""}


def test_csv_reads_back_as_the_answers():
    study = a_study(n=2)
    study = replace(study, answers=[*study.answers, a_failure(error='no, "never"', repeat=0)])
    rows = list(csv.DictReader(io.StringIO(report_csv(study), newline="")))
    expected = [
        {name: "" if value is None else str(value) for name, value in answer.items()}
        for answer in report_json(study, figures(study))["answers"]
    ]
    assert rows == expected
    assert (rows[0]["tokens_per_second"], rows[-1]["error"]) == ("10.0", 'no, "never"')
    [names] = csv.reader(io.StringIO(report_csv(Study(title="", is_run=False)), newline=""))
    assert names == [*rows[0]]


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_no_spreadsheet_runs_a_clients_words(first):
    answer = an_answer(model=f"{first}1+1", error=f"{first}cmd", setup_ms=-5.0, reply=said("="))
    study = Study(title="", is_run=False, models=(answer.model,), answers=[answer])
    [row] = csv.DictReader(io.StringIO(report_csv(study), newline=""))
    shown = first if first.isprintable() else repr(first)[1:-1]
    assert (row["model"], row["error"]) == (f"'{shown}1+1", f"'{shown}cmd")
    assert row["setup_ms"] == "-5.0"
