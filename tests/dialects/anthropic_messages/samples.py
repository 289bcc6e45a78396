"""Sample messages, events and responses of Anthropic's Messages, and its SDK as a reader."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import anthropic
import httpx2
from llm.parts import (
    Message,
    StreamEvent,
    TextPart,
    ToolResultPart,
)

from llmproxy.core import chat, payload
from llmproxy.dialects import anthropic_messages
from llmproxy.transport.framing import SSEDecoder, SSEFrame
from tests.wire_cases import envelope, wire_cases

CASES = wire_cases("anthropic_messages")


ANSWERED = wire_cases("anthropic_messages", answered=True)


PNG = b"\x89PNG\r\n\x1a\nshot"


def user(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def words(text: str, **fields: Any) -> dict[str, Any]:
    return {"type": "text", "text": text, **fields}


def tool_use(id_: str, name: str = "f", **input_: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": id_, "name": name, "input": input_}


def tool_result(id_: str, content: Any = "x", **fields: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": id_, "content": content, **fields}


def stream_of(events: list[chat.Event], model: str | None = "m") -> bytes:
    renderer = anthropic_messages.StreamRenderer(envelope(model, input_tokens=7))
    return b"".join(renderer.start() + [f for event in events for f in renderer.feed(event)])


def text(chunk: str, index: int = 0) -> StreamEvent:
    return StreamEvent("text", chunk, part_index=index)


class Pieces(httpx2.SyncByteStream):
    """A body in pieces."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        yield from self._pieces


class Server:
    """Answers the SDK's next request with what it was given.

    sent: the body of the last request, as the SDK encoded it.
    """

    def __init__(self) -> None:
        self.answer = httpx2.Response(404)
        self.sent = b""
        http = httpx2.Client(transport=httpx2.MockTransport(self._respond))
        self.client = anthropic.Anthropic(
            base_url="http://proxy.test", api_key="none", max_retries=0, http_client=http
        )

    def _respond(self, request: httpx2.Request) -> httpx2.Response:
        self.sent = request.read()
        return self.answer

    def encoded(self, **body: Any) -> bytes:
        """Give the body of a request as the SDK encodes it."""
        self.json({"type": "message", "content": []})
        self.client.messages.create(max_tokens=9, **body)
        return self.sent

    def accumulated(self, *pieces: bytes) -> dict[str, Any]:
        """Give what the SDK itself makes of a stream."""
        headers = {"content-type": anthropic_messages.STREAM_TYPE}
        self.answer = httpx2.Response(200, headers=headers, stream=Pieces(list(pieces)))
        with self.client.messages.stream(model="m", max_tokens=9, messages=[]) as stream:
            return stream.get_final_message().to_dict(warnings=False)

    def json(self, value: dict[str, Any], status: int = 200, **headers: str) -> None:
        fields = {"content-type": "application/json", **headers}
        self.answer = httpx2.Response(status, headers=fields, content=payload.encode(value))

    def whole(self, body: dict[str, Any]) -> dict[str, Any]:
        self.json(body)
        return self.client.messages.create(model="m", max_tokens=9, messages=[]).to_dict(
            warnings=False
        )


SERVER = Server()


def rendered(*messages: Message, **fields: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    return anthropic_messages.render_request(chat.ChatRequest("m", list(messages), **fields))


def said(role: str, *texts: str) -> Message:
    return Message(role, [TextPart(t) for t in texts])


def result(id_: str, **fields: Any) -> Message:
    return Message("tool", [ToolResultPart("f", "x", tool_call_id=id_, **fields)])


def events_of(stream: bytes) -> list[chat.Event]:
    parser = anthropic_messages.StreamParser()
    events = [event for frame in SSEDecoder().feed(stream) for event in parser.feed(frame)]
    return events + parser.end()


def normal(response: chat.ChatResponse) -> chat.ChatResponse:
    """An answer without the letters of its arguments, which a whole one does not keep."""
    return replace(response, raw_arguments={})


def read_of(stream: bytes) -> chat.ChatResponse:
    return normal(chat.collect(events_of(stream)))


def frame(**fields: Any) -> SSEFrame:
    return SSEFrame(fields["type"], json.dumps(fields))
