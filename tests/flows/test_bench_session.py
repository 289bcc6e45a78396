"""A session is recorded, sent to other models with an interruption, and reported.

The commands and llm's own plugin are real; only the provider is a fake. Measured times are
compared with those at which the fake really sent its events.
"""

import json
import re
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from tests.browser import open_browser
from tests.session import (
    EXCHANGES,
    FAILING,
    RECORDED,
    Session,
    command,
    environment,
    on_stage,
    record,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]  # the first test runs the session

MODELS = ("quick", "thorough")
STOPPED_AFTER = 13  # of 40 responses


@dataclass
class Ran:
    """The results of the session.

    threads: llm's, before the benchmark. stopped: the result of the `bench` that was stopped
        by Ctrl-C. row_when_stopped: the run's row after that. resumed: of the second `bench`.
    """

    session: Session
    listed: str
    threads: list[Any]
    stopped: subprocess.CompletedProcess[str]
    row_when_stopped: Any
    resumed: subprocess.CompletedProcess[str]
    report: dict[str, Any]
    page: Path

    def rows(self, sql: str, *values: Any) -> list[Any]:
        return rows(self.session, sql, *values)

    def model(self, name: str) -> dict[str, Any]:
        (found,) = (model for model in self.report["models"] if model["model"] == name)
        return found


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("session")
    with on_stage(folder / "llm") as session:
        record(session)
        listed = run(session, "log").stdout
        threads = rows(session, "select * from threads order by id")
        stopped = stop_midway(session, "bench", "--models", ",".join(MODELS), "--name", "friday")
        (row,) = rows(session, "select ended from proxy_runs where name = 'friday'")
        resumed = run(session, "bench", "--resume")
        report = json.loads(run(session, "report", "friday", "--json").stdout)
        page = folder / "page.html"
        run(session, "report", "friday", "--html", str(page))
        yield Ran(session, listed, threads, stopped, row, resumed, report, page)


def run(session, *arguments):
    return subprocess.run(
        command(*arguments),
        env=environment(session.folder),
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )


def stop_midway(session, *arguments):
    """Send Ctrl-C in the middle of a response of `thorough`, after some other responses."""
    process = subprocess.Popen(
        command(*arguments),
        env=environment(session.folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Otherwise a process in the background of a shell ignores Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        until = time.monotonic() + 60
        while not speaks_midway(session):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def speaks_midway(session):
    again = session.said[EXCHANGES + len(MODELS) :]  # without warm-ups
    last = again[-1] if len(again) > STOPPED_AFTER else None
    return last is not None and last.model == "thorough" and 2 < len(last.times) < 6


def rows(session, sql, *values):
    connection = sqlite3.connect(session.folder / "logs.db")
    try:
        return connection.execute(sql, values).fetchall()
    finally:
        connection.close()


# ---- what was recorded, and what was sent


def test_the_session_is_in_the_log(ran):
    lines = ran.listed.splitlines()
    assert len(lines) == EXCHANGES
    assert all("  editor  openai_chat  original  ok  " in line for line in lines)
    assert len(ran.threads) == 2


def test_named_models_get_the_recorded_requests_and_no_others(ran):
    bodies = ran.session.provider.bodies
    recorded = [json.dumps(body["messages"]) for body in bodies if body["model"] == RECORDED]
    assert len(recorded) == len(set(recorded)) == EXCHANGES
    counts = Counter(body["model"] for body in bodies)
    # Warm-ups before both parts of the run; the interrupted request was sent twice.
    assert counts == {RECORDED: EXCHANGES, "quick": EXCHANGES + 2, "thorough": EXCHANGES + 3}
    recorded = {json.dumps(body["messages"]): body for body in bodies[:EXCHANGES]}
    warm_ups = 0
    for body in bodies:
        system, *others = body["messages"]
        line, _, rest = system["content"].partition("\n")
        if re.fullmatch(r"\[01[0-9a-z]{24}\]", line):
            body["messages"] = [system | {"content": rest}, *others]
            warm_ups += 1
        assert body == recorded[json.dumps(body["messages"])] | {"model": body["model"]}
    assert warm_ups == 4, "none of which puts a measured prompt into a cache"


# ---- the run in the log


def test_a_stopped_run_names_the_command_to_resume_it(ran):
    assert ran.stopped.returncode == 130
    assert ran.stopped.stderr.splitlines()[-1] == "stopped; to continue: bench --resume friday"
    assert "Traceback" not in ran.stopped.stderr
    assert ran.row_when_stopped == (None,)
    assert "friday: 20 requests, 40 of 40 responses" in ran.resumed.stdout
    assert ran.rows("select name, ended is null from proxy_runs") == [("friday", 0)]
    statuses = ran.rows(
        "select model_asked, status, count(*) from proxy_exchanges"
        " where run_id is not null and repeat > 0 group by 1, 2 order by 1, 2"
    )
    assert statuses == [
        ("quick", "error", 1),
        ("quick", "ok", EXCHANGES - 1),
        ("thorough", "cancelled", 1),
        ("thorough", "ok", EXCHANGES),
    ]


def test_each_response_is_a_sibling_of_the_recorded_one(ran):
    answers = ran.rows(
        "select again.model, again.parent_message_hash = recorded.parent_message_hash,"
        "  again.thread_id = recorded.thread_id, run.name"
        " from proxy_exchanges as exchange join turns as again using (id)"
        " join turns as recorded on recorded.id = exchange.recorded_id"
        " join proxy_runs as run on run.id = exchange.run_id"
        " where exchange.repeat > 0 and exchange.status = 'ok'"
    )
    assert Counter(answers) == {
        ("quick", 1, 0, "friday"): EXCHANGES - 1,
        ("thorough", 1, 0, "friday"): EXCHANGES,
    }


def test_the_recorded_conversations_are_unchanged(ran):
    ids = ", ".join(f"'{thread[0]}'" for thread in ran.threads)
    assert ran.rows(f"select * from threads where id in ({ids}) order by id") == ran.threads
    last = "select id from threads order by id desc limit 1"  # the one that `llm -c` continues
    assert ran.rows(last)[0][0] == ran.threads[-1][0]


# ---- the figures


def measured(ran, model):
    """Return a model's successful responses, each with the provider's own record of it."""
    recorded = ran.rows("select id from proxy_exchanges where run_id is null order by number")
    asked = {id: one.asked for (id,), one in zip(recorded, ran.session.said, strict=False)}
    said = ran.session.last_said(model)
    return [
        (answer, said[asked[answer["sample"]]])
        for answer in ran.report["answers"]
        if answer["model"] == model and answer["repeat"] and answer["status"] == "ok"
    ]


def test_times_are_those_at_which_the_provider_sent_events(ran):
    """The SDK adds some tens of milliseconds to connect, the same for both models."""
    added = {}
    for name in MODELS:
        pairs = measured(ran, name)
        added[name] = [answer["ttft_ms"] - said.ttft_s * 1000 for answer, said in pairs]
        assert all(said.is_whole for _, said in pairs)
        assert min(added[name]) > 0
        # A third of the answers are over in less time than tells a rate.
        known = {
            said.tokens_per_s: rate
            for answer, said in pairs
            if (rate := answer["tokens_per_second"])
        }
        assert len(known) >= 10
        assert median(ours / theirs for theirs, ours in known.items()) == pytest.approx(1, rel=0.05)
        figures = ran.model(name)
        rate = median(known.values())
        assert figures["tokens_per_second"]["summary"]["p50"] == pytest.approx(rate)
        failed = [inf] * (figures["requests"] - figures["ok"])  # later than any
        first_ms = median([*(answer["ttft_ms"] for answer, _ in pairs), *failed])
        assert figures["ttft_ms"]["summary"]["p50"] == pytest.approx(first_ms)
    # The least of twenty: other tests on the machine add to most of them, and some to all.
    assert min(added["thorough"]) == pytest.approx(min(added["quick"]), abs=1_000)


def test_the_comparison_agrees_with_the_providers_times(ran):
    quick, thorough = (ran.session.last_said(name) for name in MODELS)
    truth = median(
        (said.ttft_s - thorough[asked].ttft_s) * 1000
        for asked, said in quick.items()
        if asked != FAILING
    )
    found = {each["measure"]: each for each in ran.report["comparisons"]}
    assert {name: each["pairs"] for name, each in found.items()} == {
        "ttft_ms": EXCHANGES,
        "first_output_ms": EXCHANGES,
        "duration_ms": EXCHANGES,
        "tokens_per_second": found["tokens_per_second"]["pairs"],
        "similarity": found["similarity"]["pairs"],
    }
    assert found["tokens_per_second"]["pairs"] >= 10
    # Both include the plugin's own time, which varies on a busy machine.
    assert found["ttft_ms"]["difference"] == pytest.approx(truth, abs=100)
    assert found["ttft_ms"]["interval"]["low"] < truth and found["ttft_ms"]["interval"]["high"] < 0
    assert {found[name]["better"] for name in found if name != "similarity"} == {"quick"}
    assert "First event: quick is faster than thorough by" in ran.resumed.stdout


def test_errors_and_finish_reasons_are_counted(ran):
    assert [ran.model(name)["errors"] for name in MODELS] == [{"invalid_request": 1}, {}]
    assert [ran.model(name)["requests"] for name in MODELS] == [EXCHANGES, EXCHANGES]
    assert ran.model("thorough")["finish_reasons"] == {"stop": 13, "tool_calls": 7}
    (error,) = ran.rows("select error from proxy_exchanges where status = 'error'")[0]
    assert error == "messages: This model's maximum context length is 1024 tokens."


def test_tokens_are_the_providers_counts(ran):
    for name in MODELS:
        usages = [said.usage for _, said in measured(ran, name)]
        details = {
            "input_tokens": [each["prompt_tokens"] for each in usages],
            "output_tokens": [each["completion_tokens"] for each in usages],
            "cached_tokens": [each["prompt_tokens_details"]["cached_tokens"] for each in usages],
            "reasoning_tokens": [
                each["completion_tokens_details"]["reasoning_tokens"] for each in usages
            ],
        }
        found = ran.model(name)["tokens"]
        for kind, counts in details.items():
            if sum(counts):
                assert found[kind]["mean"] * found[kind]["count"] == pytest.approx(sum(counts))
            else:
                assert kind not in found
    assert ran.model("thorough")["tokens"]["output_tokens"]["count"] == EXCHANGES


def test_agreement_is_that_of_the_scripted_replies(ran):
    quick, thorough = (ran.model(name)["agreement"] for name in MODELS)
    assert thorough["same_tool_calls"] == {"count": 7, "of": 7}
    assert quick["same_tool_calls"] == {"count": 3, "of": 7}
    assert (quick["schema_valid"], thorough["schema_valid"]) == (
        {"count": 1, "of": 2},
        {"count": 2, "of": 2},
    )
    assert thorough["similarity"]["interval"]["low"] > quick["similarity"]["interval"]["high"]


def test_a_random_difference_is_not_called_faster(ran):
    """One model under two names; which of them is faster changes with every request."""
    run(ran.session, "bench", "--models", "twin-a,twin-b", "--last", "10", "--name", "twins")
    report = json.loads(run(ran.session, "report", "twins", "--json").stdout)
    assert [model["ok"] for model in report["models"]] == [10, 10]
    assert len(report["comparisons"]) == report["tested"] == 5
    assert {each["better"] for each in report["comparisons"]} == {None}
    assert " is faster " not in run(ran.session, "report", "twins").stdout


# ---- the page


def test_the_page_loads_nothing_in_a_browser(ran, tmp_path):
    with open_browser(tmp_path) as browser:
        browser.show()
        browser.navigate(ran.page.as_uri())
        text = browser.evaluate("document.body.innerText")
        assert "quick is faster than thorough by" in text
        assert "thorough is closer to the recorded" in text
        for width in (1280, 360):
            browser.show(width=width)
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.messages == []
        assert browser.requested() == [ran.page.as_uri()]
