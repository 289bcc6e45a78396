"""Pages that commands write: a conversation, a report of a run, two runs compared."""

import csv
import io
import json
import os
import re
import stat

import pytest

from tests.cli.test_log import ask, log
from tests.commands import run_here
from tests.models import AsyncScript, usage
from tests.proxies import running


@pytest.fixture
def recorded(llm_user_path):
    with running(AsyncScript("m", "Yes. <script>alert(1)</script>", usage(3, 5))) as proxy:
        ask(proxy, "Does it run?")
        for number in range(2):
            ask(proxy, f"other {number}")
    return log("--threads", "--json").splitlines()


def test_a_conversation_is_written_as_one_file_for_its_owner(recorded, tmp_path):
    thread = json.loads(recorded[0])["id"]
    file = tmp_path / "talk.html"
    code, _, err = run_here("log", "--thread", thread[:24], "--html", str(file))
    assert (code, err) == (0, f"wrote {file}\n")
    if os.name == "posix":
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    html = file.read_text("utf-8")
    assert "Does it run?" in html and "&lt;script&gt;alert(1)" in html and "<script" not in html
    assert not re.findall(r'(?:src|href)="(?!#x-)', html) and "http" not in re.sub(
        r'http-equiv="Content-Security-Policy"', "", html
    )
    assert run_here("log", "--thread", thread, "--html", "-")[1].decode() == html


@pytest.mark.parametrize(
    "words", [(), ("--status", "ok"), ("--thread", "x", "--last", "2"), ("--thread", "x", "--json")]
)
def test_a_page_is_of_one_conversation(recorded, tmp_path, words):
    code, _, err = run_here("log", "--html", str(tmp_path / "x.html"), *words)
    assert code == 2 and "--html writes one conversation: it needs --thread ID" in err


def test_two_runs_are_compared(recorded, tmp_path):
    for name in ("friday", "monday"):
        assert run_here("bench", "--models", "demo", "--name", name)[0] == 0
    prices = tmp_path / "prices.json"
    prices.write_text('{"currency": "USD", "demo": {"input": 2, "output": 8}}')
    given = ("report", "friday", "monday", "--prices", str(prices))
    code, out, _ = run_here(*given)
    out = out.decode()
    assert code == 0 and out.startswith("friday and monday\nfriday: ") and "USD" in out
    assert "all values are of the 3 requests in both;" in " ".join(out.split())
    rows = list(csv.DictReader(io.StringIO(run_here(*given, "--csv")[1].decode(), newline="")))
    assert {(row["first_run"], row["second_run"]) for row in rows} == {("friday", "monday")}
    assert json.loads(run_here(*given, "--json")[1])["shared"] == 3
    assert (
        "<h1><bdi>friday</bdi> and <bdi>monday</bdi></h1>"
        in run_here(*given, "--html", "-")[1].decode()
    )
    code, _, err = run_here("report", "friday", "friday")
    assert code == 1 and "friday is compared with itself" in err
    assert "the log has no run 'no'" in run_here("report", "friday", "no")[2]
    assert run_here("report", "friday", "monday", "--last", "3")[0] == 2


def test_a_price_for_a_name_that_no_model_has_is_reported(recorded, tmp_path):
    prices = tmp_path / "prices.json"
    prices.write_text('{"mm": {"input": 2, "output": 8}}')
    _, _, err = run_here("report", "--prices", str(prices))
    assert err == "--prices: no model here is called mm; no price for m\n"
    prices.write_text('{"mm": {"input": 2, "output": 8}, "m": {"input": 1, "output": 1}}')
    assert run_here("report", "--prices", str(prices))[2] == ""
