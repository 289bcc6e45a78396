"""Codex CLI itself, with this proxy as its provider. Skipped where it is not installed.

`npm install @openai/codex` anywhere, and its `node_modules/.bin` on PATH, or CODEX set to the
program. It is told of no other server, and has a home of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import llm
import pytest
from llm.parts import StreamEvent

from tests.models import usage
from tests.proxies import running

CODEX = os.environ.get("CODEX") or shutil.which("codex")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CODEX is None, reason="codex is not installed"),
]

TIMEOUT_S = 50


class Agent(llm.AsyncModel):
    """A model that runs one command and tells its output; it summarizes when it is asked to.

    used: tokens that its first response says it took.
    """

    model_id = "m"
    can_stream = True
    supports_tools = True

    def __init__(self, used: int = 500) -> None:
        self.used = used
        self.prompts: list[Any] = []

    async def execute(self, prompt, stream, response, conversation):  # type: ignore[no-untyped-def]
        self.prompts.append(prompt)
        usage(self.used if len(self.prompts) == 1 else 500, 5)(response)
        last = prompt.messages[-1]
        if last.role == "tool":
            yield "It said " + last.parts[-1].output.split()[-1]
        elif last.parts[-1].text.startswith("Write a summary"):
            yield "A command was run."
        else:
            yield StreamEvent("reasoning", "I shall run it.")
            yield StreamEvent("text", "Running.")
            name, arguments = "exec_command", {"cmd": "echo harbour"}
            if "functions__exec" in {tool.name for tool in prompt.tools}:
                code = 'const r = await tools.exec_command({cmd: "echo harbour"}); text(r.output)'
                name, arguments = "functions__exec", {"input": code}
            yield StreamEvent("tool_call_name", name, tool_call_id="call_1")
            yield StreamEvent("tool_call_args", json.dumps(arguments), tool_call_id="call_1")


def codex(home: Path, *arguments: str, model: str = "m", **variables: str) -> list[dict[str, Any]]:
    """Run `codex exec` once; return the events that it prints."""
    home.mkdir(exist_ok=True)
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "CODEX_HOME": str(home), "KEY": "any"}
    env |= variables
    assert CODEX is not None
    if "--login" in arguments:
        arguments = tuple(one for one in arguments if one != "--login")
        login = [CODEX, "login", "--with-api-key"]
        subprocess.run(login, env=env, input=b"sk-any", check=True, capture_output=True)
    done = subprocess.run(
        [CODEX, "exec", "--skip-git-repo-check", "--json", "-m", model, *arguments, "Run it."],
        env=env,
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def said(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    items = [event["item"] for event in events if event["type"] == "item.completed"]
    return [
        (item["type"], item.get("text") or item.get("aggregated_output") or "")
        for item in items
        if item["type"] != "error"  # that it doesn't know the model
    ]


TURN = [
    ("reasoning", "I shall run it."),
    ("agent_message", "Running."),
    ("command_execution", "harbour\n"),
    ("agent_message", "It said harbour"),
]


def provider(url: str) -> list[str]:
    """The settings for this proxy as a provider of its own."""
    settings = ['name="llmproxy"', f'base_url="{url}/v1"', 'wire_api="responses"', 'env_key="KEY"']
    flags = ["-c", 'model_provider="llmproxy"']
    for setting in settings:
        flags += ["-c", f"model_providers.llmproxy.{setting}"]
    return flags


def test_codex_works_with_a_provider_of_its_own(llm_user_path, tmp_path):
    agent = Agent()
    with running(agent) as proxy:
        events = codex(tmp_path / "home", *provider(proxy.url))
        first, second = proxy.reports
    assert said(events) == TURN
    assert (first.link, second.link, second.previous_id) == (None, "reply", first.id)
    names = {tool.name for tool in agent.prompts[0].tools}
    assert {"exec_command", "multi_agent_v1__close_agent"} <= names


def test_codex_runs_code_of_any_model_that_bears_a_newer_name(llm_user_path, tmp_path):
    """For these it sends its tools in the input, and a custom one in a namespace for all."""
    agent = Agent()
    with running(agent, maps=[("gpt-*", "m")]) as proxy:
        events = codex(tmp_path / "home", *provider(proxy.url), model="gpt-6-sol")
        exchanges = list(proxy.reports)
    assert said(events)[-1] == TURN[-1]
    assert {exchange.status for exchange in exchanges} == {"ok"}
    assert "tools" not in exchanges[0].request.body
    names = {tool.name for tool in agent.prompts[0].tools}
    assert {"functions__exec", "collaboration__spawn_agent"} <= names


def test_c14_codex_finds_a_model_of_ollamas_by_its_exact_name(llm_user_path, tmp_path):
    """A name that is not in the list makes it ask for a pull, which is refused."""
    agent = Agent()
    with running(agent, maps=[("gpt-oss:20b", "m")]) as proxy:
        events = codex(
            tmp_path / "home",
            *("--oss", "--local-provider", "ollama"),
            model="gpt-oss:20b",
            CODEX_OSS_BASE_URL=f"{proxy.url}/v1",
        )
        exchanges = list(proxy.reports)
    assert said(events) == TURN
    assert {exchange.model_asked for exchange in exchanges} == {"gpt-oss:20b"}
    assert {exchange.status for exchange in exchanges} == {"ok"}


def test_codex_goes_on_without_a_websocket_and_compacts(llm_user_path, tmp_path):
    """Its own provider asks for a WebSocket first, and lets the server compact."""
    agent = Agent(used=90_000)
    with running(agent) as proxy:
        events = codex(
            tmp_path / "home",
            "--login",
            *("-c", f'openai_base_url="{proxy.url}/v1"'),
            *("-c", "model_auto_compact_token_limit=1000"),
            *("-c", "model_context_window=200000"),
        )
        exchanges = list(proxy.reports)
    assert said(events)[-1] == TURN[-1]
    inputs = [[item["type"] for item in exchange.request.body["input"]] for exchange in exchanges]
    assert "compaction_trigger" in inputs[1]
    assert "compaction" in inputs[2]
    assert {exchange.status for exchange in exchanges} == {"ok"}
