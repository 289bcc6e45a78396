"""Run an agent's tests without its provider: record once, then replay.

`RECORD=1 pytest examples/agent_tests.py` records the agent's requests in agent.db (the demo
model plays the provider). Without RECORD, the same tests run from that file alone. A request
that was not recorded fails its test; the error names the nearest recording and the first
difference. Needs pytest and openai. The agent here is a stand-in that asks twice.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import openai
import pytest

import llmproxy

RECORDING = Path(os.environ.get("AGENT_DB", "agent.db"))


@pytest.fixture(scope="session")
def client() -> Iterator[openai.OpenAI]:
    """Return a client of the recording, or of the models that are being recorded."""
    settings = llmproxy.Settings(port=0, database=RECORDING)
    if not os.environ.get("RECORD"):
        settings = replace(settings, log=False, replay="replay", replay_speed=0)
    with llmproxy.running(settings) as proxy:
        yield openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="any", max_retries=0)


def agent(client: openai.OpenAI, task: str) -> list[str]:
    """Ask, then ask what is left to do."""
    messages: list = [{"role": "user", "content": task}]
    for _ in range(2):
        response = client.chat.completions.create(model="demo", messages=messages)
        messages.append({"role": "assistant", "content": response.choices[0].message.content})
        messages.append({"role": "user", "content": "What is left to do?"})
    return [message["content"] for message in messages if message["role"] == "assistant"]


def test_agent_goes_on_until_all_is_done(client: openai.OpenAI) -> None:
    first, second = agent(client, os.environ.get("TASK", "Tidy the shed."))
    assert first.startswith("You said: Tidy the shed.")
    assert "turn 2" in second
