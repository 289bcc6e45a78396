"""Reasoning that only the model's provider can read comes back to it, by whichever API."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import llm
import pytest
from llm.parts import (
    Message,
    ReasoningPart,
    StreamEvent,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)

from llmproxy.core import chat, payload
from llmproxy.core.backend import chat_path
from llmproxy.dialects import DIALECTS, Dialect, by_name
from tests.app.test_app import request
from tests.models import AsyncScript
from tests.proxies import Running, running

PATHS = {dialect.NAME: chat_path(dialect.ROUTES) for dialect in DIALECTS}
every_dialect = pytest.mark.parametrize("dialect", DIALECTS, ids=attrgetter("NAME"))

TOOL = llm.Tool("tide", "Tell the tide.", {"type": "object", "properties": {}})


def ask(proxy: Running, dialect: Dialect, messages: list[Message], *, stream: bool = False) -> Any:
    """Ask by an API as one of its clients does; give the response, read by its own parser."""
    asked = chat.ChatRequest("m", messages, (TOOL,), options={"max_tokens": 100}, stream=stream)
    status, _, body = request(proxy, "POST", PATHS[dialect.NAME], dialect.render_request(asked)[0])
    assert status == 200, body
    return None if stream else dialect.parse_response(payload.parse(body))


SUMMARY = [{"type": "summary_text", "text": "Ask the tool."}]
ENCRYPTED = {"openai": {"id": "rs_68ab", "encrypted_content": "gAAAA", "summary": SUMMARY}}
THINKING = [
    StreamEvent("reasoning", "Ask the tool."),
    StreamEvent("reasoning", "", provider_metadata=ENCRYPTED),
    StreamEvent("text", "I look at the tide tables."),
    StreamEvent("tool_call_name", "tide", tool_call_id="call_tide_1"),
    StreamEvent("tool_call_args", '{"at": "noon"}', tool_call_id="call_tide_1"),
]


def call_id(dialect: Dialect) -> str:
    """Return the id of the call as a client of this API has it: Ollama's count the calls."""
    return "call_0" if dialect.NAME == "ollama" else "call_tide_1"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("goes_on_by", DIALECTS, ids=lambda dialect: f"then-{dialect.NAME}")
@pytest.mark.parametrize("begun_by", DIALECTS, ids=lambda dialect: dialect.NAME)
def test_b25_encrypted_reasoning_comes_back_whichever_api_goes_on(
    begun_by, goes_on_by, stream, llm_user_path
):
    model = AsyncScript("m", *THINKING)
    first = [Message("user", [TextPart("High tide?")])]
    with running(model) as proxy:
        ask(proxy, begun_by, first, stream=stream)
        recorded = proxy.wait_for_report().turn
        call = ToolCallPart("tide", {"at": "noon"}, call_id(begun_by))
        ask(
            proxy,
            goes_on_by,
            [
                *first,
                Message("assistant", [TextPart("I look at the tide tables."), call]),
                Message("tool", [ToolResultPart("tide", "12:40", tool_call_id=call.tool_call_id)]),
            ],
        )
        exchange = proxy.wait_for_report(2)
    assert (exchange.link, exchange.recalled) == ("reply", 1)
    assert model.prompts[1].messages[1] == recorded.reply[0]
    reasoning = model.prompts[1].messages[1].parts[0]
    assert reasoning == ReasoningPart("Ask the tool.", provider_metadata=ENCRYPTED)


@pytest.mark.parametrize("is_logged", [True, False], ids=["logged", "without-a-log"])
def test_b37_a_client_that_sends_everything_back_needs_no_log(is_logged, llm_user_path):
    """Its items have ids of ours, which OpenAI must not see beside its encrypted text."""
    model = AsyncScript("m", *THINKING)
    responses = by_name("openai_responses")
    body: dict[str, Any] = {
        "model": "m",
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "input": [{"role": "user", "content": "High tide?"}],
        "tools": [{"type": "function", "name": "tide"}],
    }
    with running(model, log=is_logged) as proxy:
        _, _, text = request(proxy, "POST", PATHS[responses.NAME], body)
        output = payload.parse(text)["output"]
        body["input"] += [
            *output,
            {"type": "function_call_output", "call_id": "call_tide_1", "output": "12:40"},
        ]
        assert request(proxy, "POST", PATHS[responses.NAME], body)[0] == 200
    reasoning = model.prompts[1].messages[1].parts[0]
    expected = dict(ENCRYPTED["openai"])
    if not is_logged:
        del expected["id"]
    assert reasoning.text == "Ask the tool."
    assert reasoning.provider_metadata == {"openai": expected}


@every_dialect
def test_reasoning_goes_on_to_openais_own_servers(dialect, llm_user_path):
    """What is recalled is what llm's plugin sends as a reasoning item, next to its call."""
    model = AsyncScript("m", *THINKING)
    with running(model) as proxy:
        first = [Message("user", [TextPart("High tide?")])]
        ask(proxy, dialect, first)
        proxy.wait_for_report()
        call = ToolCallPart("tide", {"at": "noon"}, call_id(dialect))
        result = ToolResultPart("tide", "12:40", tool_call_id=call.tool_call_id)
        reply = Message("assistant", [TextPart("I look at the tide tables."), call])
        ask(proxy, dialect, [*first, reply, Message("tool", [result])])
    asked = chat.ChatRequest("m", model.prompts[1].messages)
    body, ignored = by_name("openai_responses").render_request(asked)
    assert [item["type"] for item in body["input"]] == [
        *("message", "reasoning", "message", "function_call", "function_call_output")
    ]
    reasoning = body["input"][1]
    assert (reasoning["id"], reasoning["encrypted_content"]) == ("rs_68ab", "gAAAA")
    assert ignored == ()


@pytest.mark.parametrize("is_edited", [False, True], ids=["as-it-was", "edited"])
def test_plain_reasoning_that_a_client_sends_back_is_the_models_own(is_edited, llm_user_path):
    """Some models want it in a turn with tools. What the log doesn't have is left out."""
    model = AsyncScript("m", StreamEvent("reasoning", "Hm."), StreamEvent("text", "The Otter."))
    body = {"model": "m", "input": [{"role": "user", "content": "Which boat?"}]}
    with running(model) as proxy:
        _, _, text = request(proxy, "POST", "/v1/responses", body)
        output = payload.parse(text)["output"]
        if is_edited:
            output[0]["summary"][0]["text"] = "Ah."
            output[1]["content"][0]["text"] = "The Heron."
        body["input"] += [*output, {"role": "user", "content": "Why?"}]
        assert request(proxy, "POST", "/v1/responses", body)[0] == 200
        exchange = proxy.wait_for_report(2)
    reply = model.prompts[1].messages[1]
    assert [type(part).__name__ for part in reply.parts] == (
        ["TextPart"] if is_edited else ["ReasoningPart", "TextPart"]
    )
    assert ("messages[*].reasoning" in exchange.ignored) == is_edited
