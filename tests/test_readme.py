"""What the README promises is there: every flag, every route, every file it names."""

import argparse
import json
import re
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from llmproxy.app.status import PATHS
from llmproxy.cli import bench, convert, export_import, log, report
from llmproxy.cli.serve import _parser
from llmproxy.core.limits import describe
from llmproxy.dialects import DIALECTS
from llmproxy.recorder.store import Store
from tests.models import AsyncScript, response_json, usage
from tests.proxies import running

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_every_flag_is_in_the_readme_and_the_other_way_round():
    flags = {word for action in _parser("x")._actions for word in action.option_strings}
    flags.remove("-h")
    section = README.partition("## The command")[2].partition("### Routes")[0]
    assert set(re.findall(r"--[a-z][a-z-]+", section)) == flags


@pytest.mark.slow
def test_session_is_recorded_and_played_again_as_written(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    section = README.partition("### Play it again")[2]
    script = section.partition("```sh\n")[2].partition("```")[0]
    script = script.replace("11436", str(port)).replace("python -m", f"{sys.executable} -m")
    monkeypatch.setenv("LLM_LOAD_PLUGINS", "")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=50
    )
    answers = [line for line in done.stdout.splitlines() if line.startswith("{")]
    said = [json.loads(line).get("choices", [{}])[0].get("message") for line in answers]
    assert said[0] is not None
    assert said[1] == said[0]
    assert json.loads(answers[2])["error"]["message"].endswith(
        section.partition("differs: `")[2].partition("`")[0]
    )
    assert done.stderr == ""


def test_every_flag_of_log_is_in_the_readme_and_the_other_way_round():
    flags = {word for action in log._parser("x")._actions for word in action.option_strings}
    flags -= {"-h", "--help"}
    usage = README.partition("python -m llmproxy log [ID]")[2].partition("```")[0]
    assert set(re.findall(r"--[a-z][a-z-]+", usage)) == flags


def test_every_flag_of_convert_is_in_the_readme_and_the_other_way_round():
    actions = convert._parser("x")._actions
    flags = {word for action in actions for word in action.option_strings} - {"-h", "--help"}
    usage = README.partition("python -m llmproxy convert")[2].partition("```")[0]
    assert set(re.findall(r"--[a-z][a-z-]+", usage)) == flags


@pytest.mark.parametrize(
    "parser, start",
    [
        (export_import._export_parser, "python -m llmproxy export FILE"),
        (export_import._import_parser, "python -m llmproxy import FILE…"),
        (bench._parser, "python -m llmproxy bench --models A"),
        (report._parser, "python -m llmproxy report [RUN]"),
    ],
    ids=["export", "import", "bench", "report"],
)
def test_every_flag_of_a_command_is_in_the_readme_and_the_other_way_round(parser, start):
    actions = [one for one in parser("x")._actions if one.help is not argparse.SUPPRESS]
    flags = {word for action in actions for word in action.option_strings}
    usage = README.partition(start)[2].partition("```")[0]
    command = start.split()[3]
    usage = start + re.split(f"python -m llmproxy (?!{command})", usage)[0]
    assert set(re.findall(r"--[a-z][a-z-]+", usage)) == flags - {"-h", "--help"}


@pytest.mark.slow
def test_the_commands_that_move_a_log_work_as_written(llm_user_path, tmp_path):
    with running(AsyncScript("m", "Hello", usage(3, 2))) as proxy:
        body = {"model": "m", "messages": [{"role": "user", "content": "greet me"}]}
        urlopen(f"{proxy.url}/v1/chat/completions", json.dumps(body).encode()).read()
    section = README.partition("### Move it")[2].partition("### ")[0]
    (commands,) = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    python = commands.replace("python -m", f"{sys.executable} -m")
    run = subprocess.run(
        ["sh", "-ec", python], cwd=tmp_path, capture_output=True, text=True, timeout=50
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == "exported 1 exchange\n" * 3
    new = [line.partition(";")[0] for line in run.stdout.splitlines()]
    assert new == ["imported 1 exchange"] * 2
    assert "greet" not in (tmp_path / "bug.jsonl").read_text()


@pytest.mark.slow
def test_the_story_of_a_benchmark_goes_as_written(tmp_path, monkeypatch):
    """With models that need no key in place of the named ones."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    section = README.partition("## Compare models")[2]
    script = section.partition("```sh\n")[2].partition("```")[0]
    names = "gpt-4o-mini,claude-haiku-4.5"
    assert names in script
    script = script.replace("11435", str(port)).replace("python -m", f"{sys.executable} -m")
    monkeypatch.setenv("LLM_LOAD_PLUGINS", "llm-echo")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = subprocess.run(
        ["bash", "-ec", script.replace(names, "demo,echo") + "kill %1; wait %1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    assert "friday: 1 request, 6 of 6 responses" in done.stdout
    assert done.stderr.endswith("as a page: report friday --html FILE\nwrote friday.html\n")
    assert "Name three colours." in (tmp_path / "friday.html").read_text("utf-8")


def test_every_column_is_in_the_readme(llm_user_path):
    Store(llm_user_path / "logs.db").close()
    with sqlite3.connect(llm_user_path / "logs.db") as db:
        columns = {row[1] for row in db.execute("pragma table_info(proxy_exchanges)")}
    table = README.partition("### The table")[2].partition("\n\n```sql")[0]
    named = re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE)
    assert {name for cell in named for name in re.findall(r"`(\w+)`", cell)} == columns


def test_every_query_of_the_readme_finds_something(llm_user_path):
    """Over an answer, a failure and an answer that a token limit cut."""
    queries = re.findall(r"```sql\n(.*?)```", README, re.DOTALL)
    assert len(queries) == 6
    cut = AsyncScript("long", "so far", usage(3, 9), response_json(finish_reason="length"))
    body = {"messages": [{"role": "user", "content": "hi"}]}
    with running(AsyncScript("m", "a", usage(2, 1)), cut) as proxy:
        for model in ("m", "long", "nobody"):
            data = json.dumps(body | {"model": model}).encode()
            try:
                urlopen(f"{proxy.url}/v1/chat/completions", data).read()
            except HTTPError as error:
                error.close()
        assert bench.main(["--models", "m"], "llmproxy") == 0
    with sqlite3.connect(llm_user_path / "logs.db") as db:
        for query in queries:
            assert db.execute(query).fetchall(), query


def test_every_route_is_in_the_readme():
    for dialect in DIALECTS:
        for route in dialect.ROUTES:
            assert f"`{route.method} {route.path}" in README
    for page in PATHS:
        assert f"`GET {page}`" in README


def test_every_limit_is_in_the_docs_as_the_command_lists_it():
    text = (ROOT / "docs" / "limits.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \| (.+) \|$", text, re.MULTILINE)
    assert [f"{name}={default}  {reason}" for name, default, reason in rows] == describe()


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_nobody_is_told_to_install_somebody_elses_package():
    assert not re.search(r"install\s+llmproxy\b", README)
