"""Responses both ways, models and errors, as Ollama's Python client reads them."""

from __future__ import annotations

import json
from typing import Any

import ollama as sdk
import pytest
from hypothesis import given
from llm.parts import StreamEvent, ToolCallPart

from llmproxy.core import chat
from llmproxy.core.backend import ModelEntry
from llmproxy.core.errors import (
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    ProxyError,
    RateLimited,
    Unauthorized,
    UpstreamError,
)
from llmproxy.dialects import DIALECTS, ollama
from tests.examples import many_examples
from tests.strategies import event_streams
from tests.wire_cases import envelope


def lines_of(events: list[chat.Event], form: str = "") -> list[dict[str, Any]]:
    renderer = ollama.StreamRenderer(envelope(form=form))
    stream = b"".join(renderer.start() + [f for event in events for f in renderer.feed(event)])
    return [json.loads(line) for line in stream.split(b"\n")[:-1]]


@pytest.mark.parametrize("form", ["", "generate"])
@given(events=event_streams())
@many_examples(50)
def test_the_client_reads_the_same_from_a_stream_and_a_whole_response(form, events):
    whole = ollama.render_response(chat.collect(events), envelope(form=form))
    lines = lines_of(events, form)
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    if form:
        kind = sdk.GenerateResponse
        chunks = [kind.model_validate(line) for line in lines]
        assert "".join(c.response for c in chunks) == kind.model_validate(whole).response
    else:
        kind = sdk.ChatResponse
        chunks = [kind.model_validate(line) for line in lines]
        message = kind.model_validate(whole).message
        assert "".join(c.message.content for c in chunks) == message.content
        assert "".join(c.message.thinking or "" for c in chunks) == (message.thinking or "")
        calls = [call for c in chunks for call in c.message.tool_calls or ()]
        assert calls == list(message.tool_calls or ())
    assert chunks[-1].done_reason == whole["done_reason"]


@given(events=event_streams())
@many_examples(50)
def test_a_response_of_generate_is_parsed_as_chats(events):
    response = chat.collect(events)
    bodies = [ollama.render_response(response, envelope(form=form)) for form in ("", "generate")]
    one, other = (ollama.parse_response(body) for body in bodies)
    assert (one.messages, one.finish) == (other.messages, other.finish)


def test_calls_come_whole_and_together_before_the_last_line():
    events: list[chat.Event] = [
        StreamEvent("tool_call_name", "f", 0, "a"),
        StreamEvent("tool_call_name", "g", 1, "b"),
        StreamEvent("tool_call_args", '{"x": 1', 0, "a"),
        StreamEvent("tool_call_args", "[1]", 1, "b"),
        StreamEvent("tool_call_args", "}", 0, "a"),
        StreamEvent("text", "late", 2),
        chat.Finish("tool_calls"),
    ]
    text, calls, last = lines_of(events)
    assert text["message"]["content"] == "late"
    assert calls["message"]["tool_calls"] == [
        {"id": "a", "function": {"index": 0, "name": "f", "arguments": {"x": 1}}},
        {"id": "b", "function": {"index": 1, "name": "g", "arguments": {"_raw": "[1]"}}},
    ]
    assert (last["done_reason"], last["message"]) == ("stop", {"role": "assistant", "content": ""})


def test_the_models_order_of_arguments_is_kept():
    """B40"""
    events: list[chat.Event] = [
        StreamEvent("tool_call_name", "f", 0, "a"),
        StreamEvent("tool_call_args", '{"z": 1, "a": {"y": 2, "b": 3}}', 0, "a"),
        chat.Finish("tool_calls"),
    ]
    arguments = lines_of(events)[0]["message"]["tool_calls"][0]["function"]["arguments"]
    assert json.dumps(arguments) == '{"z": 1, "a": {"y": 2, "b": 3}}'


# ---- another server's


def feed(*lines: Any) -> list[chat.Event]:
    parser = ollama.StreamParser()
    events = [e for line in lines for e in parser.feed(json.dumps(line).encode())]
    return events + parser.end()


def test_a_real_servers_stream_is_read():
    """ollama 0.13 with a thinking model: ids of calls, durations, and thinking before the text."""
    base = {"model": "qwen3", "created_at": "2026-01-01T00:00:00.123456789Z"}
    call = {"function": {"index": 0, "name": "f", "arguments": {"a": 1}}}
    events = feed(
        {**base, "message": {"role": "assistant", "content": "", "thinking": "Hm"}, "done": False},
        {**base, "message": {"role": "assistant", "content": "So"}, "done": False},
        {**base, "message": {"role": "assistant", "content": "", "tool_calls": [call]}},
        {
            **base,
            "message": {"role": "assistant", "content": ""},
            "done": True,
            "done_reason": "stop",
            "total_duration": 9,
            "prompt_eval_count": 3,
            "eval_count": 4,
            "eval_duration": 5,
        },
    )
    response = chat.collect(events)
    [message] = response.messages
    assert [type(part).__name__ for part in message.parts] == [
        "ReasoningPart",
        "TextPart",
        "ToolCallPart",
    ]
    assert message.parts[2] == ToolCallPart("f", {"a": 1}, tool_call_id="call_0")
    finish = response.finish
    assert (finish.reason, finish.model) == ("tool_calls", "qwen3")
    assert (finish.usage.input_tokens, finish.usage.output_tokens) == (3, 4)
    assert finish.durations == chat.Durations(total_ns=9, output_ns=5)
    assert finish.ignored == ()


def test_a_stream_that_is_cut_or_fails_is_an_error():
    begun = {"model": "m", "message": {"role": "assistant", "content": "a"}, "done": False}
    with pytest.raises(UpstreamError, match="ended before its answer did"):
        feed(begun)
    with pytest.raises(ModelNotFound):
        feed(begun, {"error": "model 'x' not found, try pulling it first"})
    with pytest.raises(UpstreamError, match="not JSON"):
        ollama.StreamParser().feed(b"{")
    with pytest.raises(UpstreamError, match="neither a message nor a response"):
        ollama.parse_response({"model": "m", "done": True})


# ---- models


ENTRY = ModelEntry("org/m", "openai", 1_700_000_000, tools=True, attachment_types=("image/png",))


def test_lists_and_descriptions_are_what_the_client_reads():
    """B38, C21"""
    known = ModelEntry("n", "llm", 1, thinks=True, context_length=8192)
    vectors = ModelEntry("e", "llm", 1, chats=False, embeds=True)
    tags = ollama.render_models([ENTRY, known, vectors])
    listed = sdk.ListResponse.model_validate(tags).models
    assert [entry.model for entry in listed] == ["org/m", "n", "e"]
    assert len({entry.digest for entry in listed}) == 3
    assert [entry["capabilities"] for entry in tags["models"]] == [
        ["completion", "tools", "vision"],
        ["completion", "thinking"],
        ["embedding"],
    ]
    shown = sdk.ShowResponse.model_validate(ollama.render_model(known))
    assert shown.modelinfo["llm.context_length"] == 8192
    assert ollama.render_model(ENTRY)["model_info"] == {
        "general.architecture": "openai",
        "general.basename": "org/m",
        "openai.context_length": 32_768,
        "llmproxy.is_assumed": "context",
    }
    sdk._types.ProcessResponse.model_validate(ollama.render_running([ENTRY, known]))


# ---- errors


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.NAME)
@pytest.mark.parametrize(
    "error, status",
    [
        (InvalidRequest("no such field", param="a.b"), 400),
        (Unauthorized("who?"), 401),
        (ModelNotFound("there is no model 'x' here"), 404),
        (RateLimited("later"), 429),
        (Overloaded("busy"), 503),
        (UpstreamError("broken"), 502),
        (ProxyError("internal error"), 500),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_is_a_message_and_keeps_its_class(dialect, error, status):
    body = ollama.render_error(error)
    assert ollama.error_status(error) == status
    assert body["error"] == error.full_message
    assert sdk.ResponseError(json.dumps(body)).error == error.full_message
    read = ollama.parse_error(status, body)
    assert type(read) is (UpstreamError if type(error) is ProxyError else type(error))
    dialect.render_error(read)
