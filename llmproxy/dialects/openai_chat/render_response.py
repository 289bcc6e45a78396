"""Render a response as a chat.completion, or as a stream of chunks.

Spec: https://platform.openai.com/docs/api-reference/chat/object
"""

from __future__ import annotations

from typing import Any

from llm.parts import ReasoningPart, StreamEvent, TextPart, ToolCallPart

from ...core import chat, payload
from ...core.errors import ProxyError
from ...core.openai_api import render_error
from ...core.usage import Usage
from ...transport import framing
from .schema import OLD_TOOLS

ID_PREFIX = "chatcmpl-"


def _head(envelope: chat.Envelope, object_: str) -> dict[str, Any]:
    """Render the fields that a completion and each of its chunks begin with."""
    return {
        "id": ID_PREFIX + envelope.id,
        "object": object_,
        "created": envelope.created,
        "model": envelope.model,
    }


def tool_call(id_: str | None, function: dict[str, str]) -> dict[str, Any]:
    """Render a function call, whole or the piece in a chunk."""
    return {"id": id_, "type": "function", "function": function}


def render_usage(usage: Usage) -> dict[str, Any] | None:
    """Render the usage, counted as ours is. None if the provider gave no counts."""
    if usage.input_tokens is None and usage.output_tokens is None:
        return None
    prompt_tokens, completion_tokens = usage.input_tokens or 0, usage.output_tokens or 0
    counts: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
    prompt_details = {
        name: count
        for name, count in (
            ("cached_tokens", usage.cached_tokens),
            ("cache_write_tokens", usage.cache_write_tokens),
        )
        if count is not None
    }
    if prompt_details:
        counts["prompt_tokens_details"] = prompt_details
    if usage.reasoning_tokens is not None:
        counts["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return counts


def render_chat(response: chat.ChatResponse, envelope: chat.Envelope) -> dict[str, Any]:
    """Render a response as a chat.completion, with the same content as its stream.

    A client that sent `functions` gets a `function_call`, which is one call: further ones are
    left out (`left_out` lists them).

    Spec: https://platform.openai.com/docs/api-reference/chat/object
    """
    text = "".join(part.text for part in response.parts if isinstance(part, TextPart))
    calls = _calls(response)
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if calls and not text else text,
        "refusal": None,
        "annotations": [],
    }
    reasoning = "".join(part.text for part in response.parts if isinstance(part, ReasoningPart))
    if reasoning:
        message["reasoning_content"] = reasoning
    functions = [{"name": call.name, "arguments": response.arguments_text(call)} for call in calls]
    if calls and envelope.form == OLD_TOOLS:
        message["function_call"] = functions[0]
    elif calls:
        message["tool_calls"] = [
            tool_call(call.tool_call_id, function)
            for call, function in zip(calls, functions, strict=True)
        ]
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": _finish_reason(response.finish, envelope),
    }
    head = _head(envelope, "chat.completion")
    return head | {"choices": [choice], "usage": render_usage(response.finish.usage)}


def _calls(response: chat.ChatResponse) -> list[ToolCallPart]:
    """Return the calls that the client has to run."""
    return [
        part
        for part in response.parts
        if isinstance(part, ToolCallPart) and not part.server_executed
    ]


def left_out(response: chat.ChatResponse, envelope: chat.Envelope) -> tuple[str, ...]:
    """List what the form in which the client asked has no place for in this response."""
    if envelope.form == OLD_TOOLS and (others := len(_calls(response)) - 1) > 0:
        return (f"function_call ({others} more of the model's)",)
    return ()


def _finish_reason(finish: chat.Finish, envelope: chat.Envelope) -> str:
    if finish.reason == "tool_calls" and envelope.form == OLD_TOOLS:
        return "function_call"
    return finish.reason


# ---- the stream


class ChatStreamRenderer:
    """Renders events as SSE frames of chat.completion.chunk. Feed in order; Finish is last.

    Shown: text as `content`, reasoning as `reasoning_content`, tool calls with indexes from
    0, each with its arguments as they come, or "{}" without any. Left out: the provider's
    own tools (server tools) and opaque reasoning. The first call is a `function_call`, and the
    only one, if the client sent `functions`.

    Spec: https://platform.openai.com/docs/api-reference/chat-streaming
    """

    def __init__(self, envelope: chat.Envelope) -> None:
        head = framing.escape_line_ends(payload.encode(_head(envelope, "chat.completion.chunk")))
        self._head = b"data: " + head[:-1] + b","
        self._envelope = envelope
        self._include_usage = envelope.include_usage
        # All but the delta is the same in every chunk, so it is encoded once.
        self._usage_null = b',"usage":null' if self._include_usage else b""
        self._before = self._head + b'"choices":[{"index":0,"delta":'
        self._after = b',"logprobs":null,"finish_reason":null}]' + self._usage_null + b"}\n\n"
        self._before_text = self._before + b'{"content":'
        self._after_text = b"}" + self._after
        self._indexes: dict[int | None, int] = {}  # part_index → index of the tool call
        # Clients take a call's name from its first delta: it waits until arguments come, since
        # it may be in pieces.
        self._unnamed: dict[int, list[StreamEvent]] = {}
        # White space alone is no arguments: it is held until more comes.
        self._blank: dict[int, list[str]] = {}

    def start(self) -> list[bytes]:
        """Return the first chunk, the only one with the role."""
        return [self._chunk(b'{"role":"assistant","content":"","refusal":null}')]

    def feed(self, event: chat.Event) -> list[bytes]:
        """Return the frames of one event: none for what this API does not show."""
        if isinstance(event, chat.Finish):
            return self._end(event)
        text = event.chunk
        if event.type == "text":  # most events are; the match below takes 0.5 µs more
            if not text:
                return []
            content = framing.escape_line_ends(payload.encode_string(text).encode())
            return [self._before_text + content + self._after_text]
        match event:
            case StreamEvent(type="reasoning") if text:
                text_json = payload.encode_string(text).encode()
                return [self._chunk(b'{"reasoning_content":%b}' % text_json)]
            case StreamEvent(type="tool_call_name", server_executed=False):
                return self._call_name(event)
            case StreamEvent(type="tool_call_args", server_executed=False):
                arguments = self._arguments(self._indexes[event.part_index], text)
                return [*self._begin_calls(), *arguments]
        return []

    def idle(self) -> list[bytes]:
        """Return a keep-alive: a comment, since clients take any event for a chunk."""
        return [framing.SSE_PING]

    def fail(self, error: ProxyError) -> list[bytes]:
        """Return the error frame. The body must be cut after it, not ended."""
        return [framing.encode_sse(payload.encode(render_error(error)))]

    def _chunk(self, delta: bytes) -> bytes:
        return self._before + framing.escape_line_ends(delta) + self._after

    def _call_name(self, event: StreamEvent) -> list[bytes]:
        index = self._indexes.get(event.part_index)
        if index is None:
            index = self._indexes[event.part_index] = len(self._indexes)
            self._blank[index] = []
            self._unnamed[index] = [event]
        elif index in self._unnamed:
            self._unnamed[index].append(event)
        else:  # another call's arguments came between the pieces: most clients join them
            return self._call({"index": index, "function": {"name": event.chunk}})
        return []

    def _begin_calls(self) -> list[bytes]:
        """Return the first chunks of the calls that had none."""
        frames: list[bytes] = []
        if not self._unnamed:
            return frames
        begun, self._unnamed = self._unnamed, {}
        for index, events in begun.items():
            name = "".join(event.chunk for event in events)
            function = {"name": name, "arguments": ""}
            call = {"index": index, **tool_call(events[0].tool_call_id, function)}
            frames += self._call(call)
        return frames

    def _call(self, call: dict[str, Any]) -> list[bytes]:
        if self._envelope.form != OLD_TOOLS:
            return [self._chunk(payload.encode({"tool_calls": [call]}))]
        if call["index"] > 0:
            return []
        return [self._chunk(payload.encode({"function_call": call["function"]}))]

    def _arguments(self, index: int, text: str) -> list[bytes]:
        if index in self._blank:
            if not text or text.isspace():
                self._blank[index].append(text)
                return []
            text = "".join(self._blank.pop(index)) + text
        return self._call_arguments(index, text) if text else []

    def _call_arguments(self, index: int, text: str) -> list[bytes]:
        return self._call({"index": index, "function": {"arguments": text}})

    def _end(self, finish: chat.Finish) -> list[bytes]:
        frames = self._begin_calls()
        frames += [frame for index in self._blank for frame in self._call_arguments(index, "{}")]
        reason = _finish_reason(finish, self._envelope)
        choice = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": reason}
        choices = b'"choices":[%b]' % payload.encode(choice)
        frames.append(self._head + choices + self._usage_null + b"}\n\n")
        if self._include_usage:
            usage = payload.encode(render_usage(finish.usage))
            frames.append(self._head + b'"choices":[],"usage":%b}\n\n' % usage)
        frames.append(b"data: [DONE]\n\n")
        return frames
