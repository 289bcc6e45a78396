"""An answer as OpenAI's stream: chunks in frames of SSE, made to be written fast.

What a tool call or usage looks like is left to `answers`, an error to
`models_and_errors`, the bytes of a keep-alive to transport.framing, sending to the server.

Spec: https://platform.openai.com/docs/api-reference/chat-streaming
"""

from __future__ import annotations

from typing import Any

from llm.parts import StreamEvent

from ...core import chat, payload
from ...core.errors import ProxyError
from ...transport import framing
from .models_and_errors import render_error
from .render_response import envelope, render_usage, tool_call

__all__ = ["StreamRenderer"]


class StreamRenderer:
    """Render hub events as chat.completion.chunk frames of SSE. Feed in order; Finish is last.

    Given: text as `content`, reasoning as `reasoning_content`, tool calls with an
    index of their own from 0 on, each with its arguments as they come, "{}" where
    there are none. Left out: what the provider ran by itself (server tools), and
    reasoning that is opaque.

    Spec: https://platform.openai.com/docs/api-reference/chat-streaming
    """

    def __init__(self, request: chat.ChatRequest, id: str, created: int) -> None:
        """`id` is the exchange's; `created` in seconds since 1970."""
        head = envelope(request, id, created, "chat.completion.chunk")
        self._head = b"data: " + payload.encode(head)[:-1] + b","
        self._include_usage = bool(request.wire.get("include_usage"))
        # Of a chunk all but the delta is the same all through the stream: rendered once.
        self._usage_null = b',"usage":null' if self._include_usage else b""
        self._before = self._head + b'"choices":[{"index":0,"delta":'
        self._after = b',"logprobs":null,"finish_reason":null}]' + self._usage_null + b"}\n\n"
        self._indexes: dict[int | None, int] = {}  # part_index → index of the tool call
        # White space alone is no arguments (B4): it waits until more comes.
        self._blank: dict[int, str] = {}

    def start(self) -> list[bytes]:
        """Give the first chunk, which alone bears the role (B3)."""
        return [self._chunk(b'{"role":"assistant","content":"","refusal":null}')]

    def feed(self, event: chat.Event) -> list[bytes]:
        """Give the frames of one event: none for what this wire does not show."""
        match event:
            case chat.Finish():
                return self._end(event)
            case StreamEvent(type="text", chunk=text) if text:
                return [self._chunk(b'{"content":%b}' % payload.encode_string(text).encode())]
            case StreamEvent(type="reasoning", chunk=text) if text:
                text_json = payload.encode_string(text).encode()
                return [self._chunk(b'{"reasoning_content":%b}' % text_json)]
            case StreamEvent(type="tool_call_name", server_executed=False):
                return [self._call_name(event)]
            case StreamEvent(type="tool_call_args", server_executed=False, chunk=text):
                return self._arguments(self._indexes[event.part_index], text)
        return []

    def idle(self) -> list[bytes]:
        """Give a keep-alive: a comment, since an event of any name reads as a chunk (B13)."""
        return [framing.SSE_PING]

    def fail(self, error: ProxyError) -> list[bytes]:
        """Give the error frame. This wire has no end after it: the body must be cut (B11)."""
        return [framing.encode_sse(payload.encode(render_error(error)))]

    def _chunk(self, delta: bytes) -> bytes:
        return self._before + delta + self._after

    def _call_name(self, event: StreamEvent) -> bytes:
        index = self._indexes.get(event.part_index)
        if index is not None:  # a name in pieces: readers join them
            call: dict[str, Any] = {"index": index, "function": {"name": event.chunk}}
        else:
            index = self._indexes[event.part_index] = len(self._indexes)
            self._blank[index] = ""
            function = {"name": event.chunk, "arguments": ""}
            call = {"index": index, **tool_call(event.tool_call_id, function)}
        return self._chunk(payload.encode({"tool_calls": [call]}))

    def _arguments(self, index: int, text: str) -> list[bytes]:
        if index in self._blank:
            text = self._blank.pop(index) + text
            if not text.strip():
                self._blank[index] = text
                return []
        return [self._call_arguments(index, text)] if text else []

    def _call_arguments(self, index: int, text: str) -> bytes:
        call = {"index": index, "function": {"arguments": text}}
        return self._chunk(payload.encode({"tool_calls": [call]}))

    def _end(self, finish: chat.Finish) -> list[bytes]:
        frames = [self._call_arguments(index, "{}") for index in self._blank]
        choice = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": finish.reason}
        choices = b'"choices":[%b]' % payload.encode(choice)
        frames.append(self._head + choices + self._usage_null + b"}\n\n")
        if self._include_usage:
            usage = payload.encode(render_usage(finish.usage))
            frames.append(self._head + b'"choices":[],"usage":%b}\n\n' % usage)
        frames.append(b"data: [DONE]\n\n")
        return frames
