"""Figures are the same wherever they are shown, and count only what was measured and used."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from datetime import datetime, timedelta
from pathlib import Path
from urllib.request import urlopen

import llm
import openai
import pytest

from llmproxy.cli.summary_text import summary_line
from llmproxy.recorder.summary import timestamp
from llmproxy.report.numbers import number
from tests.app.test_dashboard import get
from tests.cli.test_log import ask
from tests.commands import run_here
from tests.models import AsyncScript, registered, usage
from tests.proxies import running

ROOT = Path(__file__).parent.parent.parent
WORD = "four"


def paced(model_id="m", *, words=12, reasoning=90, counted=True):
    """A model that says a word every 20 ms after long hidden reasoning, and counts late."""
    steps = []
    for _ in range(words):
        steps += [WORD, lambda response: asyncio.sleep(0.02)]
    details = {"completion_tokens_details": {"reasoning_tokens": reasoning}}
    late = [lambda response: asyncio.sleep(0.1)]
    late += [usage(20, words + reasoning, **details)] if counted else []
    return AsyncScript(model_id, *steps, *late)


def at_once(model_id="whole"):
    """A model whose answer comes in one piece."""
    return AsyncScript(model_id, WORD * 100, usage(20, 100))


def output_of(*words):
    code, out, err = run_here(*words)
    assert code == 0, err
    return out.decode()


def rows(sql):
    with sqlite3.connect(llm.user_dir() / "logs.db") as db:
        return db.execute(sql).fetchall()


@pytest.fixture
def recorded(llm_user_path):
    """A streamed answer, one by our estimate, one in one piece; the metrics and page of each."""
    models = [paced(), paced("guessed", counted=False), at_once()]
    with running(*models) as proxy:
        for number_, model in enumerate(models, 1):
            assert [*ask(proxy, "What is 2 + 2?", model.model_id, stream=True)]
            proxy.wait_for_report(number_)
        metrics = urlopen(f"{proxy.url}/metrics").read().decode()
        page = get(proxy, "/figures")[2]
    lines = [summary_line(report) for report in proxy.reports]
    return lines, metrics, page


def test_every_view_shows_one_rate(recorded):
    """Each computed its own; `log` took hidden reasoning and late counts for speed and time."""
    lines, metrics, page = recorded
    sql = "select tokens_per_second from proxy_exchanges order by number"
    rate, guessed, none = [found for (found,) in rows(sql)]
    assert 20 < rate <= 51 and none is None
    shown, about = f"  {number(rate)}/s  ", f"  ~{number(guessed)}/s  "
    assert shown in lines[0] and about in lines[1] and "/s  " not in lines[2]
    listed = output_of("log").splitlines()
    assert shown in listed[0] and about in listed[1] and "/s  " not in listed[2]
    ((first,),) = rows("select id from proxy_exchanges order by number limit 1")
    assert f", {number(rate)}/s\n" in output_of("log", first)
    report = json.loads(output_of("report", "--json"))
    figures = {each["model"]: each["tokens_per_second"] for each in report["models"]}
    assert figures["m"]["summary"]["p50"] == rate and not figures["m"]["is_estimated"]
    assert figures["guessed"]["summary"]["p50"] == guessed and figures["guessed"]["is_estimated"]
    assert figures["whole"] is None
    assert f"{number(rate)}/s" in output_of("report")
    assert f"<b>~{number(guessed)}</b>" in page
    sums = re.findall(r'tokens_per_second_sum\{.*model="(\w+)",counted_by="(\w+)"\} (\S+)', metrics)
    assert sums == [
        ("m", "provider", f"{rate:.6f}"),
        ("guessed", "estimate", f"{guessed:.6f}"),
    ]
    query = (ROOT / "docs/log.md").read_text().partition("How fast does each model begin")[2]
    asked = rows(query.partition("```sql\n")[2].partition("```")[0])
    assert {model: value for model, _, _, value in asked} == {
        "m": round(rate, 1),
        "guessed": round(guessed, 1),
        "whole": None,
    }


# ---- what counts


def queries(page):
    """The queries of a page that sum up what was used."""
    found = re.findall(r"```sql\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    return [query for query in found if "sum(" in query or "avg(" in query]


def test_replays_and_benchmarks_are_not_use(llm_user_path):
    """They were in the README's sums, in those of the docs, and in /metrics."""
    sums = [*queries("README.md"), *queries("docs/log.md")]
    assert len(sums) == 7
    with running(paced(words=3)) as proxy:
        ask(proxy, "What is 2 + 2?")
    used = [rows(query) for query in sums]
    listed, report = output_of("log", "--threads"), output_of("report")
    assert all(len(found) == 1 for found in used)
    with registered(paced("m", words=3), paced("other", words=3)):
        output_of("bench", "--models", "m,other", "--warmup", "0", "--repeat", "2")
    with running(replay="replay") as proxy:
        ask(proxy, "What is 2 + 2?")
        proxy.wait_for_report()
        metrics = urlopen(f"{proxy.url}/metrics").read().decode()
    assert rows("select count(*) from proxy_exchanges") == [(6,)]
    assert [rows(query) for query in sums] == used
    assert (output_of("log", "--threads"), output_of("report")) == (listed, report)
    assert 'llmproxy_replays_total{dialect="openai_chat",model="m",status="ok",code="200"} 1' in (
        metrics
    )
    assert not re.findall(r"^llmproxy_(?:requests|tokens|time|duration).*\{.*", metrics, re.M)


def test_what_no_model_was_found_for_is_no_models_failure(llm_user_path):
    """A request that no recording answers counted as an error of the model that it named."""
    with running(paced(words=3)) as proxy:
        ask(proxy, "What is 2 + 2?")
        report = output_of("report")
        with pytest.raises(openai.NotFoundError, match="there is no model"):
            ask(proxy, "What is 2 + 2?", "nobody")
    with running(replay="replay") as proxy:
        with pytest.raises(openai.UnprocessableEntityError, match="no recording matches"):
            ask(proxy, "And 3 + 3?")
        proxy.wait_for_report()
    assert rows("select status, http_status from proxy_exchanges where model_used is null") == [
        ("error", 404),
        ("error", 422),
    ]
    assert output_of("report") == report


def test_a_replay_has_no_rate(recorded):
    with running(replay="replay") as proxy:
        assert [*ask(proxy, "What is 2 + 2?", "m", stream=True)]
        replayed = proxy.wait_for_report()
    assert replayed.event_count > 10 and replayed.tokens_per_second is None


def test_times_of_imported_recordings_are_absent_and_not_zero(llm_user_path, tmp_path):
    """They were gaps of 0 ms, a report since 1970, and in `llm logs` a duration of 0 ms."""
    recordings = sorted(str(path) for path in (ROOT / "tests/recordings").glob("chat-*.json"))
    output_of("import", *recordings)
    times = "ttft_ms, first_text_ms, duration_ms, queue_ms, setup_ms, tokens_per_second"
    assert set(rows(f"select {times} from proxy_exchanges")) == {(None,) * 6}
    output_of("export", str(tmp_path / "all.jsonl"))
    (llm_user_path / "logs.db").unlink()
    output_of("import", str(tmp_path / "all.jsonl"))
    assert set(rows("select duration_ms from turns")) == {(None,)}
    lines = [output_of("log"), output_of("log", "--threads")]
    assert all(line.split("  ")[1] == "-" for text in lines for line in text.splitlines())
    report = json.loads(output_of("report", "--json"))
    assert (report["began"], report["ended"]) == (None, None)
    names = ("gaps", "ttft_ms", "first_output_ms", "duration_ms", "tokens_per_second", "queue_ms")
    assert {model[name] for model in report["models"] for name in names} == {None}
    assert {each["received"] for each in report["samples"] + report["answers"]} == {None}
    ((id,),) = rows("select id from proxy_exchanges order by number limit 1")
    shown = [output_of("log", id), output_of("report"), output_of("report", "--html", "-"), *lines]
    # Whatever a reply says of its own time stands in its body alone.
    assert not [text for text in shown if re.search(r"1970|01-01 |\b0(\.\d+)?.?ms|timeline", text)]
    threads = [json.loads(line) for line in output_of("log", "--threads", "--json").splitlines()]
    assert {(each["began"], each["moved"]) for each in threads} == {(None, None)}
    exported = [str(tmp_path / name) for name in ("once.jsonl", "again.jsonl")]
    output_of("export", exported[0])
    copy = ["--database", str(tmp_path / "copy.db")]
    output_of("import", exported[0], *copy)
    output_of("export", exported[1], *copy)
    assert Path(exported[0]).read_text() == Path(exported[1]).read_text()


def test_recordings_among_timed_traffic_change_no_time(recorded):
    def timed():
        report = json.loads(output_of("report", "--json"))
        (model,) = (each for each in report["models"] if each["model"] == "m")
        return report["began"], report["ended"], model["ttft_ms"], model["gaps"]

    before = timed()
    output_of("import", str(ROOT / "tests/recordings/chat-passthrough-stream.json"))
    with sqlite3.connect(llm.user_dir() / "logs.db") as db:
        db.execute("update proxy_exchanges set model_used = 'm' where origin is not null")
    assert timed() == before


# ---- what was looked at, and which day it is


def test_a_report_says_when_it_looked_at_a_part_only(recorded):
    assert "newest" not in output_of("report") + output_of("report", "--last", "3")
    assert "only the newest 2 (--last N reads more)" in " ".join(
        output_of("report", "--last", "2").split()
    )
    assert json.loads(output_of("report", "--last", "2", "--json"))["is_partial"]
    assert not json.loads(output_of("report", "--json"))["is_partial"]
    page = output_of("report", "--last", "2", "--html", "-")
    assert "only the newest; there is more in the log" in page
    assert "only the newest" not in output_of("report", "--html", "-")
    assert run_here("report", "--last", "2", "--csv")[2] == (
        "only the newest 2 responses; --last N reads more\n"
    )
    assert run_here("report", "--csv")[2] == ""


def test_a_report_says_what_selected_its_traffic(recorded, tmp_path):
    ids = tmp_path / "ids"
    ids.write_text(" ".join(id for (id,) in rows("select id from proxy_exchanges")))
    words = ["--model", "m", "--since", "2026-01-02", "--ids", str(ids), "--status", "ok"]
    heading = " ".join(output_of("report", *words).split())
    assert "since 2026-01-02 00:00:00, model m, status ok, ids 3" in heading
    assert "model m" in re.sub(r"<[^>]+>", "", output_of("report", *words, "--html", "-"))
    assert json.loads(output_of("report", *words, "--json"))["settings"]["model"] == "m"
    assert json.loads(output_of("report", "--json"))["settings"] == {}


@pytest.mark.usefixtures("in_berlin")
def test_times_of_one_command_are_local_ones(llm_user_path):
    """`report` and `log ID` had UTC, `log` and the names of runs local time."""
    with running(paced(words=3)) as proxy:
        ask(proxy, "What is 2 + 2?")
    # It is the 15th in Berlin, the 14th in UTC.
    with sqlite3.connect(llm.user_dir() / "logs.db") as db:
        db.execute("update proxy_exchanges set received = '2026-01-14T23:30:00.000000+00:00'")
    ((id,),) = rows("select id from proxy_exchanges")
    assert output_of("log").split("  ")[1] == "01-15 00:30:00+01"
    assert output_of("log", "--threads").split("  ")[1] == "01-15 00:30:00+01"
    assert "received     2026-01-15T00:30:00+01:00\n" in output_of("log", id)
    assert ", 2026-01-15 00:30:00 UTC+01:00 overview" in " ".join(output_of("report").split())
    page = output_of("report", "--html", "-")
    text = re.sub(r"<[^>]+>", "", page)
    assert "2026-01-15 00:30:00 UTC+01:00" in text and "2026-01-15 00:30 UTC+01:00 ·" in text
    assert '<time datetime="2026-01-14T23:30:00Z">' in page
    assert "01-14 23:30" not in text
    day = ["report", "--since", "2026-01-15", "--until", "2026-01-16"]
    assert "since 2026-01-15 00:00:00, until 2026-01-16 00:00:00" in " ".join(
        output_of(*day).split()
    )
    assert "since 2026-01-15 00:00:00" in re.sub(r"<[^>]+>", "", output_of(*day, "--html", "-"))
    report = json.loads(output_of(*day, "--json"))
    given = [report["settings"]["since"], report["began"], report["answers"][0]["received"]]
    utc = ["2026-01-14T23:00:00+00:00", *["2026-01-14T23:30:00+00:00"] * 2]
    assert given == utc  # all of one output in one zone


@pytest.mark.usefixtures("in_berlin")
def test_today_is_the_terminals_day(llm_user_path):
    """By UTC, what was said after midnight was yesterday's."""
    (query,) = [each for each in queries("docs/log.md") if "date('now', 'localtime')" in each]
    with running(paced(words=3)) as proxy:
        ask(proxy, "What is 2 + 2?")
    midnight = datetime.now().astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
    for at, count in ((midnight, 1), (midnight - timedelta(seconds=1), 0)):
        with sqlite3.connect(llm.user_dir() / "logs.db") as db:
            db.execute("update proxy_exchanges set received = ?", (timestamp(at),))
        assert len(rows(query)) == count
