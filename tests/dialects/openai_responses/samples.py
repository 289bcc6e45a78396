"""Sample requests and streams of OpenAI's Responses."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from llm.parts import StreamEvent

from llmproxy.core import chat
from llmproxy.dialects import openai_responses
from llmproxy.transport.framing import SSEDecoder
from tests.wire_cases import envelope, wire_cases

ANSWERED = wire_cases("openai_responses", answered=True)


def parse(*items: dict[str, Any], **fields: Any) -> chat.ChatRequest:
    return openai_responses.parse_request({"model": "m", "input": list(items), **fields})


def message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}


USER = message("user", "hi")


def call(call_id: str, name: str = "f", arguments: str = "{}", **fields: Any) -> dict[str, Any]:
    item = {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}
    return item | fields


def output(call_id: str, text: str = "ok") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": text}


def head(request: chat.ChatRequest | None = None) -> chat.Envelope:
    return replace(envelope(), echo=request.echo) if request else envelope()


def stream_of(events: list[chat.Event], request: chat.ChatRequest | None = None) -> bytes:
    renderer = openai_responses.StreamRenderer(head(request))
    return b"".join(renderer.start() + [f for event in events for f in renderer.feed(event)])


def whole_of(events: list[chat.Event], request: chat.ChatRequest | None = None) -> dict[str, Any]:
    return openai_responses.render_response(chat.collect(events), head(request))


def values_of(stream: bytes) -> list[dict[str, Any]]:
    """Give the events of a stream, after checking their numbers and names."""
    frames = SSEDecoder().feed(stream)
    values = [json.loads(frame.data) for frame in frames]
    assert [value["sequence_number"] for value in values] == list(range(len(values)))
    assert [frame.event for frame in frames] == [value["type"] for value in values]
    return values


def text(chunk: str, index: int = 0) -> StreamEvent:
    return StreamEvent("text", chunk, part_index=index)


def reasoning(chunk: str, index: int = 0, **openai: Any) -> StreamEvent:
    metadata = {"openai": openai} if openai else None
    return StreamEvent("reasoning", chunk, part_index=index, provider_metadata=metadata)


def call_name(name: str, index: int, id_: str) -> StreamEvent:
    return StreamEvent("tool_call_name", name, part_index=index, tool_call_id=id_)


def call_args(chunk: str, index: int, id_: str) -> StreamEvent:
    return StreamEvent("tool_call_args", chunk, part_index=index, tool_call_id=id_)
