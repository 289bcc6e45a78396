"""`report` as a person runs it, on what a real proxy and a real run recorded."""

import csv
import io
import json
import os
import shutil
import stat
import subprocess
import sys

import pytest

from llmproxy.cli import report as report_command
from tests.cli.test_bench import bench, no_plugins, one_word, talk
from tests.commands import run_here
from tests.models import AsyncScript, registered, usage
from tests.proxies import running

__all__ = ["no_plugins"]

pytestmark = pytest.mark.usefixtures("no_plugins")
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def recorded_run(tmp_path_factory):
    """Three turns, and a run over them of two models."""
    path = tmp_path_factory.mktemp("run") / "logs.db"
    with running(AsyncScript("then", "It is four.", usage(20, 4)), database=path) as proxy:
        talk(proxy, 3, "then")
    words = ["--models", "a,b", "--name", "friday", "--database", str(path)]
    bench(*words, models=[one_word("a", HOSTILE), one_word("b")])
    return path


@pytest.fixture
def recorded(recorded_run, llm_user_path):
    """The log of it for this test alone."""
    shutil.copy(recorded_run, llm_user_path / "logs.db")


def report(capsys, *words, code=0):
    capsys.readouterr()
    assert report_command.main(words, "llmproxy") == code
    out, err = capsys.readouterr()
    return out if code == 0 else err


def test_a_run_is_a_table(recorded, capsys):
    table = report(capsys, "friday")
    assert table.startswith("friday: 3 requests, 6 of 6 responses")
    assert report(capsys, "last") == table
    assert "a, b" in table and "then" not in table


def test_the_logs_own_traffic_is_a_table_too(recorded, capsys):
    table = report(capsys)
    assert table.startswith("the log: 3 requests, 3 responses")
    assert "then" in table
    assert report(capsys, "--last", "2").startswith("the log: 2 requests, 2 responses")
    assert report(capsys, "--model", "nobody").startswith("the log: 0 requests, 0 responses")


def test_models_of_the_log_are_ordered_by_responses(llm_user_path, capsys):
    with running(one_word("rare"), one_word("busy")) as proxy:
        talk(proxy, 1, "rare")
        talk(proxy, 2, "busy")
    whole = json.loads(report(capsys, "--json"))
    assert [model["model"] for model in whole["models"]] == ["busy", "rare"]


def test_json_has_figures_and_answers(recorded, capsys):
    whole = json.loads(report(capsys, "friday", "--json"))
    assert len(whole["answers"]) == 8  # two warm-ups among them
    assert [model["model"] for model in whole["models"]] == ["a", "b"]


def test_csv_has_a_row_for_each_answer(recorded, capsysbinary):
    capsysbinary.readouterr()
    assert report_command.main(["friday", "--csv"], "llmproxy") == 0
    rows = list(csv.DictReader(io.StringIO(capsysbinary.readouterr().out.decode(), newline="")))
    assert sorted((row["model"], row["repeat"]) for row in rows) == [
        *[("a", "0"), *[("a", "1")] * 3],
        *[("b", "0"), *[("b", "1")] * 3],
    ]


def test_html_is_one_page_that_shows_a_script_as_text(recorded, capsys, tmp_path):
    path = tmp_path / "page.html"
    report(capsys, "friday", "--html", str(path))
    page = path.read_text("utf-8")
    assert page.startswith("<!doctype html>") and "<script" not in page
    assert "&lt;script&gt;" in page and 'http-equiv="refresh"' not in page
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert report(capsys, "friday", "--html", "-") == page


def test_prices_make_costs(recorded, capsys, tmp_path):
    prices = tmp_path / "prices.json"
    prices.write_text('{"a": {"input": 1000000, "output": 0}}')
    models = json.loads(report(capsys, "friday", "--json", "--prices", str(prices)))["models"]
    assert [model["cost"] and model["cost"]["total"] for model in models] == [60, None]
    prices.write_text('{"a": {"input": 1, "output": 0}, "nobody": {"input": 1, "output": 1}}')
    assert run_here("report", "friday", "--prices", str(prices))[2] == (
        "--prices: no model here is called nobody; no price for b\n"
    )
    prices.write_text('{"a": {"input": 1, "ouptut": 0}}')
    words = report(capsys, "friday", "--prices", str(prices), code=1)
    assert words.startswith(f"llmproxy report: {prices}: a.")


@pytest.mark.parametrize(
    "words, message",
    [
        (["monday"], "the log has no run 'monday'; its runs are friday"),
        (["friday", "--last", "2"], "a run is always reported whole"),
        (["friday", "--client", "x"], "a run is always reported whole"),
        (["--json", "--csv"], "not allowed with argument"),
        (["--html", "/no/folder/page.html"], "/no/folder/page.html: No such file or directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_arguments_are_refused(recorded, capsys, words, message):
    try:
        code = report_command.main(words, "llmproxy")
    except SystemExit as exc:
        code = exc.code
    assert code in (1, 2)
    assert message in capsys.readouterr().err


def test_a_missing_log_is_an_error(llm_user_path, capsys):
    assert "nothing is recorded yet; the file does not exist" in report(capsys, code=1)


def test_models_need_not_be_there_for_a_report(recorded):
    """Nor is any plugin loaded: some ask their servers."""
    with registered():
        environment = os.environ | {"LLM_LOAD_PLUGINS": "none-of-these"}
        run = subprocess.run(
            [sys.executable, "-m", "llmproxy", "report", "friday"],
            capture_output=True,
            text=True,
            timeout=50,
            env=environment,
        )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("friday: 3 requests")
