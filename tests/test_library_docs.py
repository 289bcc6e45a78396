"""The reference of the library: its signatures are right, and its examples run."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from urllib.request import Request, urlopen

import openai
import pytest

import llmproxy
from llmproxy import log
from tests.test_docs import PAGES

PAGE = PAGES["embedding.md"]


def examples(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


def ask(url: str, text: str) -> str:
    body = {"model": "demo", "messages": [{"role": "user", "content": text}]}
    with urlopen(Request(f"{url}/v1/chat/completions", json.dumps(body).encode())) as response:
        return json.load(response)["choices"][0]["message"]["content"]


def run(code: str, **names) -> None:
    exec(compile(code, "docs", "exec"), {"llmproxy": llmproxy, "ask": ask} | names)


def test_the_examples_of_the_page_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = examples(PAGE)
    assert len(blocks) == 3
    run("\n".join(blocks))
    said = capsys.readouterr().out
    assert re.fullmatch(
        r"http://127\.0\.0\.1:(\d+) \1\nhttp://127\.0\.0\.1:\d+\n\[\('gpt-\*', 'demo'\)\]\n"
        r"2\S+ \S+ \S+ Hello!\nYou said: Hello!.*\n\w{26} Hello! \d+\n",
        said,
        re.DOTALL,
    ), said


def test_the_example_of_a_test_suite_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with llmproxy.running(database="session.db") as server:
        ask(server.url, "Hello!")
        ask(server.url, "Nobody asks this again.")
    block, _ = examples(PAGES["replay.md"])
    run(block, openai=openai)
    said = capsys.readouterr().out
    assert said.startswith("You said: Hello!")
    assert re.findall(r"^\w{26} (.*)", said, re.MULTILINE) == ["demo Nobody asks this again."]
    assert [path.name for path in Path().iterdir()] == ["session.db"]


def test_the_examples_of_conversion_run():
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "seed": 1}
    answer = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "m",
        "content": [{"type": "text", "text": "Hello"}], "stop_reason": "end_turn",
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }  # fmt: skip
    source = llmproxy.StreamConverter(source="openai_chat", target="anthropic_messages")
    chunk = {"id": "1", "model": "m", "object": "chat.completion.chunk", "created": 1}
    upstream = [
        source.feed(
            chunk
            | {"choices": [{"index": 0, "delta": {"content": "Hey"}, "finish_reason": "stop"}]}
        ),
        source.feed(b"data: [DONE]\n\n") + source.end(),
    ]
    sent: list[bytes] = []
    for block in examples(PAGES["convert.md"]):
        run(block, body=body, answer=answer, upstream=upstream, send=sent.append)
    assert b'"Hey"' in b"".join(sent) and b"[DONE]" in b"".join(sent)


def shown(name: str, page: str) -> list[str] | None:
    """Return the names of the parameters in the table's row about a name; None without one."""
    row = re.search(rf"^\| `(?:\w+\.)?{name}\((.*?)\)`", page, re.MULTILINE)
    if row is None:
        return None
    listed = [one.partition("=")[0].strip(" *") for one in row[1].split(",")]
    return [one for one in listed if one not in ("", "…")]


@pytest.mark.parametrize(
    "name, target",
    [
        ("serve", llmproxy.serve),
        ("running", llmproxy.running),
        ("run", llmproxy.run),
        ("Proxy", llmproxy.Proxy),
        ("open_log", llmproxy.open_log),
        ("entries", log.Log.entries),
        ("exchange", log.Log.exchange),
        ("conversations", log.Log.conversations),
        ("Filter", llmproxy.Filter),
    ],
)
def test_a_signature_has_all_parameters(name, target):
    parameters = [one for one in inspect.signature(target).parameters if one != "self"]
    assert shown(name, PAGE) == parameters


@pytest.mark.parametrize(
    "name", ["convert_request", "convert_response", "convert_error", "StreamConverter", "collect"]
)
def test_a_converters_parameters_exist(name):
    parameters = inspect.signature(getattr(llmproxy.convert, name)).parameters
    listed = shown(name, PAGES["convert.md"])
    assert listed and set(listed) <= set(parameters)


def test_each_public_name_is_in_the_reference():
    text = PAGE + PAGES["convert.md"]
    assert [name for name in llmproxy.__all__ if not re.search(rf"`[^`]*\b{name}\b", text)] == []


def test_help_shows_the_public_names(capsys):
    help(llmproxy)
    said = capsys.readouterr().out
    for name in llmproxy.__all__:
        assert re.search(rf"\b{name}\b", said), name
