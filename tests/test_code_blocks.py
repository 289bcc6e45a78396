"""Every block of code in the README and docs/ runs as written, or says why it is not run here.

The blocks of a page run in order, against one server whose model is `demo`. A block that is not
run has a comment before it, which readers of the page don't see:

    <!-- not run: needs a key -->
    <!-- not run: tests/test_vendoring.py::test_a_zip_of_it_runs_where_llm_is_installed -->

The second form names the test that does the same. Blocks without a language are output or names.
Queries in SQL are run by tests/test_docs.py.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import os
import re
import sqlite3
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

import openai
import pytest

import llmproxy
from llmproxy.proxy import Proxy
from tests.proxies import running

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"^(?:<!-- not run: ([^\n]*) -->\n+)?^```(\w*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE
)
REASONS = re.compile(r"needs (a key|root|a compiler|the network|[A-Z][\w ]+)|runs these tests")
LANGUAGES = {"", "sh", "python", "sql", "toml"}
QUESTION = {"role": "user", "content": "Hello!"}


class Block(NamedTuple):
    """A block of a page; reason: why it is not run, "" if it is."""

    page: str
    language: str
    text: str
    reason: str


BLOCKS = [
    Block(path.name, language, text, reason)
    for path in PAGES
    for reason, language, text in BLOCK.findall(path.read_text("utf-8"))
]


def test_each_block_is_found_and_of_a_language_that_is_tested():
    fences = sum(path.read_text("utf-8").count("\n```") for path in PAGES)
    assert fences == 2 * len(BLOCKS)
    assert {block.language for block in BLOCKS} <= LANGUAGES


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.reason], ids=lambda block: block.page
)
def test_a_block_that_is_not_run_says_why(block):
    path, _, name = block.reason.partition("::")
    if name:
        assert re.search(rf"def {re.escape(name)}\(", (ROOT / path).read_text("utf-8"))
    else:
        assert REASONS.fullmatch(block.reason), block.reason


@pytest.mark.own_server
@pytest.mark.parametrize(
    "page", sorted({block.page for block in BLOCKS if block.language in ("sh", "python", "toml")})
)
def test_the_blocks_of_a_page_run(page, tmp_path, llm_user_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    for program in ("python", "llm"):
        command = tmp_path / "bin" / program
        command.write_text(f'#!/bin/sh\nexec "{Path(sys.executable).parent / program}" "$@"\n')
        command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # others take seconds to load
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p llmproxy.pytest_plugin")
    monkeypatch.setenv("LLM_LOAD_PLUGINS", "llm-proxy-recorder")  # llm has the model demo too
    with running(maps=[("gpt-*", "demo")]) as proxy:
        client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="any")
        client.chat.completions.create(model="demo", messages=[QUESTION])
        with sqlite3.connect(llm_user_path / "logs.db") as log:
            log.execute("vacuum into 'session.db'")
        monkeypatch.setattr(Proxy, "serve_forever", Proxy.close)  # what runs until Ctrl-C
        monkeypatch.setattr(llmproxy, "run", lambda **settings: llmproxy.Settings(**settings))
        names = _names_of_the_reader(proxy)
        for block in BLOCKS:
            if block.page != page or block.reason:
                continue
            if block.language == "toml":
                tomllib.loads(block.text)
            elif block.language == "python":
                _run_python(block.text.replace("11435", str(proxy.port)), names)
            elif block.language == "sh":
                _run_sh(block.text.replace("11435", str(proxy.port)), names["conversation"])


def _names_of_the_reader(proxy):
    """Return what the blocks take for granted: a client, a request, a response."""

    def messages(**options):
        body = {"model": "demo", "max_tokens": 9, "messages": [QUESTION], **options}
        return urlopen(f"{proxy.url}/v1/messages", json.dumps(body).encode()).read()

    def ask(url, text):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="any")
        question = {"role": "user", "content": text}
        answer = client.chat.completions.create(model="demo", messages=[question])
        return answer.choices[0].message.content

    with llmproxy.open_log() as log:
        conversation = log.conversations(last=1)[0].id
    return {
        "llmproxy": llmproxy,
        "openai": openai,
        "pytest": pytest,
        "ask": ask,
        "body": {"model": "gpt-4o", "messages": [QUESTION]},
        "answer": json.loads(messages()),
        "upstream": [messages(stream=True)],
        "post": json.dumps,
        "send": bytes,
        "conversation": conversation,
    }


def _run_python(text, names):
    code = compile(text, "<docs>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if code.co_flags & inspect.CO_COROUTINE:
        asyncio.run(eval(code, names))  # noqa: S307  # our own docs
    else:
        exec(code, names)  # noqa: S102


def _run_sh(text, conversation):
    """Run the commands of a block.

    A server's start becomes `check` with the same flags: it says whether they would work.
    What follows new lines is stopped, and ID is that of the conversation in the log.
    """
    text = re.sub(
        r"python -m llmproxy(?= --)(.*?)( &)?$",
        r"python -m llmproxy check\1",
        text,
        flags=re.MULTILINE,
    )
    text = re.sub(r"^(.*--follow)", r"timeout -s INT 2 \1 || true", text, flags=re.MULTILINE)
    text = re.sub(r"(--cid|--thread) ID\b", rf"\1 {conversation}", text)
    text = text.replace(".venv/bin/", "")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        input="",
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    assert not re.search(r'"error": ?\{', done.stdout), done.stdout
