"""Sample messages, events and responses of OpenAI's Chat Completions, and its SDK as a reader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import openai
from llm.parts import (
    StreamEvent,
)
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from llmproxy.core import chat, payload
from llmproxy.dialects import openai_chat
from tests.wire_cases import envelope, wire_cases

CASES = wire_cases("openai_chat")


ANSWERED = wire_cases("openai_chat", answered=True)


def parse(*messages: dict[str, Any], **fields: Any) -> chat.ChatRequest:
    return openai_chat.parse_request({"model": "m", "messages": list(messages), **fields})


USER = {"role": "user", "content": "hi"}


def tool_call(id_: str | None, name: str, arguments: str = "{}") -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


def assistant(**fields: Any) -> dict[str, Any]:
    return {"role": "assistant", **fields}


def stream_of(events: list[chat.Event], *, include_usage: bool = True) -> bytes:
    renderer = openai_chat.StreamRenderer(envelope(include_usage=include_usage))
    return b"".join(renderer.start() + [f for event in events for f in renderer.feed(event)])


def whole_of(events: list[chat.Event]) -> dict[str, Any]:
    response = chat.collect(events)
    return openai_chat.render_response(response, envelope())


def text(chunk: str, index: int = 0) -> StreamEvent:
    return StreamEvent("text", chunk, part_index=index)


def call_name(name: str, index: int, id_: str) -> StreamEvent:
    return StreamEvent("tool_call_name", name, part_index=index, tool_call_id=id_)


def call_args(chunk: str, index: int, id_: str) -> StreamEvent:
    return StreamEvent("tool_call_args", chunk, part_index=index, tool_call_id=id_)


class Pieces(httpx2.SyncByteStream):
    """A body in pieces, which may end in a broken connection."""

    def __init__(self, pieces: list[bytes], error: Exception | None = None) -> None:
        self._pieces, self._error = pieces, error

    def __iter__(self) -> Iterator[bytes]:
        yield from self._pieces
        if self._error is not None:
            raise self._error


class Server:
    """Answers the SDK's next request with what it was given.

    sent: the body of the last request, as the SDK encoded it.
    """

    def __init__(self) -> None:
        self.answer = httpx2.Response(404)
        self.sent = b""
        http = httpx2.Client(transport=httpx2.MockTransport(self._respond))
        self.client = openai.OpenAI(
            base_url="http://proxy.test/v1", api_key="none", max_retries=0, http_client=http
        )

    def _respond(self, request: httpx2.Request) -> httpx2.Response:
        self.sent = request.read()
        return self.answer

    def encoded(self, **body: Any) -> bytes:
        """Give the body of a request as the SDK encodes it."""
        self.answer = httpx2.Response(200, json={"choices": []})
        self.client.chat.completions.create(**body)
        return self.sent

    def chunks(self, body: Pieces) -> Iterator[ChatCompletionChunk]:
        self.answer = sse(body)
        return self.client.chat.completions.create(model="m", messages=[], stream=True)

    def accumulated(self, body: Pieces) -> dict[str, Any]:
        """Give what the SDK itself makes of a stream."""
        self.answer = sse(body)
        with self.client.chat.completions.stream(model="m", messages=[]) as stream:
            snapshots = [event.snapshot for event in stream if event.type == "chunk"]
        return snapshots[-1].model_dump(exclude_unset=True)

    def whole(self, body: dict[str, Any]) -> ChatCompletion:
        self.answer = httpx2.Response(200, content=payload.encode(body))
        self.answer.headers["content-type"] = "application/json"
        return self.client.chat.completions.create(model="m", messages=[])


def sse(body: Pieces) -> httpx2.Response:
    return httpx2.Response(200, headers={"content-type": openai_chat.STREAM_TYPE}, stream=body)


SERVER = Server()


def shown(completion: dict[str, Any]) -> dict[str, Any]:
    """What a completion says; content that is null and empty say the same."""
    [choice] = completion["choices"]
    message = choice["message"]
    return {
        "head": {key: completion[key] for key in ("id", "object", "created", "model")},
        "role": message["role"],
        "text": message["content"] or "",
        "reasoning": message.get("reasoning_content") or "",
        "calls": [
            (call["id"], call["type"], call["function"]["name"], call["function"]["arguments"])
            for call in message.get("tool_calls") or ()
        ],
        "finish_reason": choice["finish_reason"],
        "usage": completion["usage"],
    }


def delta(finish_reason: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish_reason}]}


def written(response: chat.ChatResponse) -> dict[str, Any]:
    return openai_chat.render_response(response, envelope())
