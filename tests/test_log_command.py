"""`log` as a person runs it, on what a real proxy recorded."""

import json
import os
import re
import signal
import subprocess
import sys

import openai
import pytest

from tests.models import AsyncScript, usage
from tests.proxies import running

COMMAND = [sys.executable, "-m", "llmproxy", "log"]


def log(*words: str, code: int = 0) -> str:
    result = subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=30)
    assert result.returncode == code, result.stderr
    return result.stdout if code == 0 else result.stderr


def ask(proxy, text, model="m", **fields):
    client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="any", max_retries=0)
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(model=model, messages=messages, **fields)


@pytest.fixture
def recorded(llm_user_path):
    """Three exchanges: two answered, of two models, and one that failed."""
    failing = AsyncScript("broken", "so far", RuntimeError("gone"))
    other = AsyncScript("other", "Paris", usage(5, 1))
    with running(AsyncScript("m", "Hello", usage(3, 2)), other, failing) as proxy:
        first = ask(proxy, "greet me")
        ask(proxy, "capital of France?", "other", extra_headers={"x-title": "aider"})
        with pytest.raises(openai.APIError):
            list(ask(proxy, "break", "broken", stream=True))
    return first.id.removeprefix("chatcmpl-")


def test_lines_are_one_an_exchange_newest_last(recorded):
    lines = log().splitlines()
    assert [line.split("  ")[-1] for line in lines] == [
        "greet me",
        "capital of France?",
        "the model failed: RuntimeError: gone",
    ]
    assert lines[0].startswith(recorded)
    assert "  error 200  " in lines[2]


@pytest.mark.parametrize(
    ("words", "models"),
    [
        (["--last", "1"], ["broken"]),
        (["--model", "other"], ["other"]),
        (["--client", "aider"], ["other"]),
        (["--status", "error"], ["broken"]),
        (["--dialect", "openai_chat", "--status", "ok"], ["m", "other"]),
        (["--search", "paris"], ["other"]),
        (["--since", "1h"], ["m", "other", "broken"]),
        (["--until", "1h"], []),
        (["--since", "2999-01-01"], []),
    ],
)
def test_filters_narrow_the_list(recorded, words, models):
    entries = [json.loads(line) for line in log("--json", *words).splitlines()]
    assert [entry["model_asked"] for entry in entries] == models


def test_one_exchange_whole(recorded):
    page = log(recorded)
    assert f"exchange  {recorded}" in page
    assert "── user ──\ngreet me" in page
    assert "── answer ──\nHello" in page
    assert re.search(r"── timeline, 1 events in \S+ ──", page)
    whole = json.loads(log(recorded, "--json"))
    assert whole["request"]["body"]["messages"] == [{"role": "user", "content": "greet me"}]
    assert whole["turn"]["reply"][0]["parts"] == [{"type": "text", "text": "Hello"}]


def test_follow_shows_what_comes_in_until_ctrl_c(llm_user_path):
    with running(AsyncScript("m", "Hello")) as proxy:
        ask(proxy, "before")
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            [*COMMAND, "--follow", "--json"],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            # Ignored in what a shell runs behind it, and inherited from there.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            assert json.loads(process.stdout.readline())["first_words"] == "before"
            ask(proxy, "while it looks")
            seen = {}
            while seen.get("status") != "ok":
                seen = json.loads(process.stdout.readline())
                assert seen["first_words"] == "while it looks"
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 130
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def test_prune_forgets_what_is_meant_and_says_so(recorded):
    dry = log("--prune", "--model", "other", "--dry-run")
    assert dry == "would forget 1 exchanges, 1 turns, 2 messages, 0 parts of requests\n"
    assert len(log().splitlines()) == 3
    assert log("--prune", "--model", "other").startswith("forgot 1 exchanges, 1 turns")
    assert [line.split("  ")[4] for line in log().splitlines()] == ["m", "broken"]
    assert log("--prune", recorded).startswith("forgot 1 exchanges")


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["nobody"], 1, "llmproxy log: the log has no exchange nobody"),
        (["--prune"], 2, "--prune takes an ID or a filter, so that it can't forget everything"),
        (["--since", "x"], 2, "expected a date, a time or an age, not 'x'"),
        (["--last", "0"], 2, "expected a number above 0"),
        (["--database", "nowhere.db"], 1, "nowhere.db"),
    ],
)
def test_mistakes_are_one_clear_line(recorded, words, code, error):
    assert error in log(*words, code=code).splitlines()[-1]


def test_head_may_close_the_pipe(recorded):
    command = " ".join([*COMMAND, "| head -1"])
    result = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=30)
    assert (result.returncode, result.stderr) == (0, "")
