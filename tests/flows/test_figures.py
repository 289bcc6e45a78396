"""Figures are the same wherever they are shown, and count only what was measured and used."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from pathlib import Path
from urllib.request import urlopen

import llm
import pytest

from llmproxy.cli.exchange_text import summary_line
from llmproxy.report.numbers import number
from tests.app.test_dashboard import get
from tests.cli.test_log import ask
from tests.commands import run_here
from tests.models import AsyncScript, usage
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
        page = get(proxy)[2]
    lines = [summary_line(report, id=False) for report in proxy.reports]
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
