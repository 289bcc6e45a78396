from __future__ import annotations

import itertools
import subprocess
import sys
from datetime import UTC, datetime

import llm
import pytest

from llmproxy.recorder.exchange import Turn


@pytest.fixture(autouse=True)
def few_plugins(monkeypatch):
    """The `llm` command that a test runs starts faster without the others."""
    monkeypatch.setenv("LLM_LOAD_PLUGINS", "llm-echo")


@pytest.fixture
def path(llm_user_path):
    return llm_user_path / "logs.db"


@pytest.fixture
def make_turn():
    """Make turns with ids of their own, of words that a test says."""
    numbers = itertools.count(1)

    def make(prompt="hello", answer="HELLO", **fields) -> Turn:
        id = f"01jd{next(numbers):022d}"
        return Turn(
            **{
                "id": id,
                "thread_id": id,
                "model": "demo",
                "messages": [llm.user(prompt)],
                "reply": [llm.assistant(answer)],
                "started": datetime(2026, 11, 21, 22, 47, 1, 500, tzinfo=UTC),
                "duration_ms": 12,
            }
            | fields
        )

    return make


@pytest.fixture
def run_llm():
    """Run the `llm` command as a person would, and give what it prints."""

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "llm", *words], capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
