"""A published suite that checks an API's schema and meaning, against the whole server.

Its part for an API that llmproxy doesn't speak (Gemini) is left out.
"""

from __future__ import annotations

import json
import subprocess
import sys

import llm
import pytest
from llm.parts import StreamEvent

from tests.models import usage
from tests.proxies import running


class Obliging(llm.AsyncModel):
    """A model that thinks and answers, or calls the tool that it is given."""

    can_stream = True
    supports_tools = True
    attachment_types = {"image/jpeg"}  # noqa: RUF012

    def __init__(self, model_id: str) -> None:
        self.model_id = model_id

    async def execute(self, prompt, stream, response, conversation):  # type: ignore[no-untyped-def]
        if prompt.tools:
            yield StreamEvent("tool_call_name", prompt.tools[0].name, tool_call_id="toolu_1")
            yield StreamEvent("tool_call_args", '{"location": "Paris"}', tool_call_id="toolu_1")
        else:
            yield StreamEvent("reasoning", "hm")
            yield StreamEvent("text", "Hello ")
            yield StreamEvent("text", "there")
        if self.model_id != "o1-uncounted":
            usage(7, 3, completion_tokens_details={"reasoning_tokens": 1})(response)


def failures(*arguments):
    """Run the suite; return the errors of the rows that fail, after checking that all ran."""
    command = [sys.executable, "-m", "llm_comply.cli", "--api-key", "any", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    results = json.loads(done.stdout)["results"]
    assert [row["id"] for row in results if row["status"] == "skipped"] == []
    return {row["id"]: row["errors"] for row in results if row["status"] == "failed"}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["o1-scripted", "o1-uncounted"])
def test_chat_completions_comply(llm_user_path, model):
    """Of the second model, which counts no tokens, the usage is our estimate."""
    with running(Obliging(model), default_model=model) as proxy:
        failed = failures("--format", "openai-chat", "-u", f"{proxy.url}/v1", "--model", model)
    # A request without a model is answered by llm's default one, as `llm` itself does: a
    # feature that the suite takes for a fault.
    assert failed == {"chat-error-handling": ["HTTP 200 (expected [400, 422])"]}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["claude-haiku-4-5", "o1-uncounted"])
def test_messages_comply(llm_user_path, model):
    shown = "claude-haiku-4-5"  # the suite skips a row for other names
    with running(Obliging(model), maps=[(shown, model)]) as proxy:
        failed = failures(
            *("--format", "anthropic", "-u", f"{proxy.url}/v1", "--model", shown),
            *("--auth-header", "x-api-key", "--no-bearer", "-H", "anthropic-version:2023-06-01"),
        )
    assert failed == {}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["o1-scripted", "o1-uncounted"])
def test_responses_comply(llm_user_path, model):
    with running(Obliging(model), default_model=model) as proxy:
        failed = failures("--format", "open-responses", "-u", f"{proxy.url}/v1", "--model", model)
    # OpenAI's names, which the suite's own specification has, but not its table of events.
    unknown = {
        f"unknown SSE event type: response.reasoning_summary_text.{name}"
        for name in ("delta", "done")
    }
    assert {row for row, errors in failed.items() if set(errors) <= unknown} == {
        "streaming-response",
        "streaming-usage",
    }
    # As above: a request without a model is answered.
    assert {row: errors for row, errors in failed.items() if not set(errors) <= unknown} == {
        "compact-missing-model": ["HTTP 200 (expected [400, 404, 422])"],
        "error-handling": ["HTTP 200 (expected [400, 422])"],
    }
