"""Run an agent's tests without its provider: record once, then replay.

`RECORD=1 pytest examples/agent_tests.py` records the agent's requests in agent.db (the demo
model plays the provider) and exports them to agent.jsonl, to be reviewed and committed. Without
RECORD, the same tests run from that file alone, and change nothing on disk. A request that was
not recorded fails its test; the error names the nearest recording and the first difference. So
does a recording that no test used. Needs pytest and openai. The agent is a stand-in.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

try:
    import openai
except ImportError:
    pytest.exit("this example needs a package: pip install openai", returncode=1)

import llmproxy

LOG = Path(os.environ.get("AGENT_DB", "agent.db"))
RECORDING = LOG.with_suffix(".jsonl")
RECORD = bool(os.environ.get("RECORD"))
MAY_DIFFER = [r"\d{4}-\d\d-\d\d"]  # the agent says what day it is


@pytest.fixture(scope="session")
def proxy() -> Iterator[llmproxy.Proxy]:
    """Serve the recording, or models while it is made."""
    if RECORD:
        with llmproxy.running(database=LOG) as live:
            yield live
        export = [sys.executable, "-m", "llmproxy", "export", RECORDING, "--pretty"]
        subprocess.run([*export, "--database", LOG], check=True)
        return
    if not RECORDING.exists():
        pytest.fail(f"{RECORDING} is missing: record it with RECORD=1", pytrace=False)
    with llmproxy.running(
        recordings=RECORDING, log=False, replay_speed=0, ignore=MAY_DIFFER
    ) as replay:
        yield replay
    unused = [f"{one.id} ({one.first_words})" for one in replay.unused_recordings()]
    assert not unused, f"no test used these recordings: {', '.join(unused)}"


def test_agent_goes_on_until_all_is_done(proxy: llmproxy.Proxy) -> None:
    client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="any")
    messages: list = [{"role": "system", "content": f"Today is {date.today()}."}]
    for said in (os.environ.get("TASK", "Tidy the shed."), "What is left to do?"):
        messages.append({"role": "user", "content": said})
        response = client.chat.completions.create(model="demo", messages=messages)
        messages.append({"role": "assistant", "content": response.choices[0].message.content})
    assert messages[2]["content"].startswith("You said: Tidy the shed.")
    assert "turn 2" in messages[4]["content"]
