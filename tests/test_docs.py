"""The README and docs/: routes, columns, limits, commands, queries and links are right.

tests/cli/test_docs.py checks the pages about the commands.
"""

import ast
import importlib
import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

import llmproxy
from llmproxy.app import status
from llmproxy.cli import bench
from llmproxy.core.limits import describe
from llmproxy.dialects import DIALECTS
from llmproxy.recorder import token_rate
from llmproxy.recorder.store import Store
from tests.models import AsyncScript, response_json
from tests.models import usage as tokens
from tests.proxies import running

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {path.name: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
PATH = "/home/you/.config/io.datasette.llm/logs.db"  # of llm's log on Linux
MAX_README_BYTES = 8_000  # longer than this, newcomers leave before their first request


def test_the_server_starts_with_the_lines_of_the_readme(llm_user_path):
    """All but the number of models, which depends on the plugins."""
    (shown,) = re.findall(r"```\n(llmproxy .*?)```", README, re.DOTALL)
    environment = os.environ | {"LLM_LOAD_PLUGINS": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "llmproxy", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        lines = [server.stdout.readline() for _ in shown.splitlines()]
        server.terminate()
        server.communicate(timeout=30)
    port = re.search(r":(\d+)\n", lines[0])[1]
    said = "".join(lines).replace(port, "11435").replace(str(llm_user_path / "logs.db"), PATH)
    assert [line for line in said.splitlines() if not line.startswith("models: ")] == [
        line for line in shown.splitlines() if not line.startswith("models: ")
    ]


def test_the_session_of_the_replay_page_runs_as_written(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    section = PAGES["replay.md"]
    script = section.partition("```sh\n")[2].partition("```")[0]
    script = script.replace("11436", str(port)).replace("python -m", f"{sys.executable} -m")
    monkeypatch.setenv("LLM_LOAD_PLUGINS", "")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=50
    )
    # The server's own lines may follow an answer at once.
    decode = json.JSONDecoder().raw_decode
    starts = re.finditer(r"^\{|(?<=\})\{", done.stdout, re.MULTILINE)
    answers = [decode(done.stdout, start.start())[0] for start in starts]
    said = [answer.get("choices", [{}])[0].get("message") for answer in answers]
    assert said[0] is not None
    assert said[1] == said[0]
    miss = answers[2]["error"]
    assert miss["code"] == "not_recorded"
    for words in ("the first difference, `", "how to record it: `"):
        quoted = section.partition(words)[2].partition("`")[0]
        assert quoted and quoted in miss["message"]
    assert done.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ["session.db"]


def test_export_and_import_run_as_written(llm_user_path, tmp_path):
    with running(AsyncScript("m", "Hello", tokens(3, 2))) as proxy:
        body = {"model": "m", "messages": [{"role": "user", "content": "greet me"}]}
        urlopen(f"{proxy.url}/v1/chat/completions", json.dumps(body).encode()).read()
    section = PAGES["log.md"].partition("## Export and import")[2]
    (commands,) = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    python = commands.replace("python -m", f"{sys.executable} -m")
    run = subprocess.run(
        ["sh", "-ec", python], cwd=tmp_path, capture_output=True, text=True, timeout=50
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == "exported 1 exchange\n" * 4
    new = [line.partition(";")[0] for line in run.stdout.splitlines()]
    assert new == ["imported 1 exchange"] * 2
    assert "greet" not in (tmp_path / "bug.jsonl").read_text()


def test_every_column_is_in_the_docs(llm_user_path):
    Store(llm_user_path / "logs.db").close()
    with sqlite3.connect(llm_user_path / "logs.db") as db:
        columns = {row[1] for row in db.execute("pragma table_info(proxy_exchanges)")}
    table = PAGES["log.md"].partition("## Columns")[2].partition("\n## ")[0]
    named = re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE)
    assert {name for cell in named for name in re.findall(r"`(\w+)`", cell)} == columns


def test_the_definition_of_a_rate_has_the_numbers_that_are_used():
    text = PAGES["log.md"].partition("## Tokens per second")[2].partition("\n## ")[0]
    for words in (
        {1.0: "less than a millisecond apart"}[token_rate.READ_MS],
        {2: "fewer than three times"}[token_rate.MIN_LATER],
        {2.0: "fewer than two tokens"}[token_rate.MIN_TOKENS],
        f"less than {token_rate.MIN_SPAN_MS:g} ms",
    ):
        assert words in text


def test_every_query_finds_something(llm_user_path):
    """Ask a log with a response, a failure and a response cut by a token limit."""
    queries = re.findall(r"```sql\n(.*?)```", "\n".join([README, *PAGES.values()]), re.DOTALL)
    assert len(queries) >= 12
    cut = AsyncScript("long", "so far", tokens(3, 9), response_json(finish_reason="length"))
    body = {"messages": [{"role": "user", "content": "hi"}]}
    with running(AsyncScript("m", "a", tokens(2, 1)), cut) as proxy:
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


def test_every_route_is_in_the_docs():
    routes = {f"{route.method} {route.path}" for d in DIALECTS for route in d.ROUTES}
    routes = {f"{route}{{id}}" if route.endswith("/") else route for route in routes}
    routes |= {f"GET {page}" for page in (*status.PAGES, *status.TEXTS)} | {f"POST {status.REWIND}"}
    table = PAGES["routes.md"].partition("## Routes\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"`((?:GET|POST|DELETE) [^`]+)`", table)) == routes


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.NAME)
def test_every_field_that_is_not_carried_is_on_its_page(dialect):
    schema = importlib.import_module(f"{dialect.__name__}.schema")
    fields = schema.NOT_CARRIED | getattr(schema, "TOOL_NOT_CARRIED", {})
    named = re.findall(r"`(?:tools\[\*\])?\.?(\w+)`", PAGES[f"{dialect.NAME}.md"])
    assert set(fields) <= set(named)


def test_every_limit_is_in_the_docs_as_the_command_lists_it():
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \| (.+) \|$", PAGES["limits.md"], re.MULTILINE)
    assert [f"{name}={default}  {reason}" for name, default, reason in rows] == describe()


def anchors(markdown: str) -> set[str]:
    """Return the anchors that GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", markdown, flags=re.DOTALL), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p}" for p in PAGES)])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", text)
    links += [(target, "") for target in re.findall(r'(?:src|srcset)="([^"]+)"', text)]
    for target, anchor in links:
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path.read_text()), f"{target}#{anchor}"


def test_every_page_can_be_found_from_the_readme():
    found, todo = set(), {"README.md"}
    while todo:
        page = todo.pop()
        found.add(page)
        base = (ROOT / page).parent
        targets = re.findall(r"\]\((?!https?:)([^)#]+\.md)", (ROOT / page).read_text())
        todo |= {str((base / t).resolve().relative_to(ROOT)) for t in targets} - found
    assert {f"docs/{page}" for page in PAGES} <= found


def test_every_page_is_on_the_index():
    """The site's navigation is made of it."""
    listed = re.findall(r"^- \[[^]]+\]\((\w+\.md)\)", PAGES["index.md"], re.MULTILINE)
    assert sorted([*listed, "index.md"]) == sorted(PAGES)


def test_the_readme_is_short():
    assert len(README.encode()) < MAX_README_BYTES


def test_python_in_the_docs_uses_public_names():
    text = "\n".join([README, *PAGES.values()])
    blocks = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    names = set(re.findall(r"llmproxy\.(\w+)", blocks))
    for line in re.findall(r"from llmproxy import (.+)", blocks):
        names |= set(line.split(", "))
    assert names and names <= {*llmproxy.__all__, "asgi"}


def test_python_in_the_docs_is_python():
    for page in [README, *PAGES.values()]:
        for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
            compile(block, "docs", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_no_page_installs_the_other_project_of_this_name():
    """On PyPI, `llmproxy` is another project."""
    for page in [README, *PAGES.values()]:
        assert not re.search(r"install\s+llmproxy\b", page)
