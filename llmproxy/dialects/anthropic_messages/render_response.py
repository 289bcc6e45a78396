"""Render a response as a message, or as a stream of events.

A part's `provider_metadata` holds what llm-anthropic keeps there, in its format.

Spec: https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, Literal

from llm.parts import (
    Part,
    ReasoningPart,
    StreamEvent,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)

from ...core import argument_text, chat, payload
from ...core.errors import InvalidRequest, ProxyError
from ...core.usage import FinishReason, Usage
from ...transport import framing
from .models_and_errors import render_error

ID_PREFIX = "msg_"


def _render_message(
    envelope: chat.Envelope,
    content: list[dict[str, Any]],
    usage: dict[str, Any],
    stop: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Render the message, at its start or whole, with all keys that schema checkers need."""
    return {
        "id": ID_PREFIX + envelope.id,
        "type": "message",
        "role": "assistant",
        "model": envelope.model,
        "content": content,
        **(stop or {"stop_reason": None, "stop_sequence": None}),
        "stop_details": None,
        "container": None,
        "usage": usage,
    }


STOP_REASONS: Mapping[FinishReason, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}


def _render_stop(finish: chat.Finish) -> dict[str, str | None]:
    """Render why the model stopped, in the API's two fields and its own words."""
    if finish.reason == "stop" and finish.stop_sequence is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": finish.stop_sequence}
    reason = finish.provider_reason or STOP_REASONS[finish.reason]
    return {"stop_reason": reason, "stop_sequence": None}


def _render_usage(counts: Mapping[str, Any]) -> dict[str, Any]:
    """Add the keys that schema checkers require to the counts of a message's usage."""
    return {
        "cache_creation": None,
        "inference_geo": None,
        "output_tokens_details": None,
        "server_tool_use": None,
        "service_tier": None,
        **counts,
    }


def _estimated_input_tokens(envelope: chat.Envelope) -> int:
    """Return the estimate, at least 1: clients read the first usage and expect it."""
    return max(1, envelope.input_tokens)


def _render_counts(usage: Usage, envelope: chat.Envelope) -> dict[str, Any]:
    """Render the counts, with cached input apart from the rest.

    Unknown counts are left out, except those that the API's types require: the input is the
    estimate, the others 0, as Anthropic sends where nothing was cached. Clients add them up.
    """
    input_tokens = _estimated_input_tokens(envelope)
    if usage.input_tokens is not None:
        cached = (usage.cached_tokens or 0) + (usage.cache_write_tokens or 0)
        input_tokens = max(0, usage.input_tokens - cached)
    counts: dict[str, Any] = {
        "input_tokens": input_tokens,
        "cache_creation_input_tokens": usage.cache_write_tokens or 0,
        "cache_read_input_tokens": usage.cached_tokens or 0,
        "output_tokens": usage.output_tokens or 0,
    }
    if usage.cache_write_1h_tokens is not None:
        for_an_hour = usage.cache_write_1h_tokens
        counts["cache_creation"] = {
            "ephemeral_1h_input_tokens": for_an_hour,
            "ephemeral_5m_input_tokens": max(0, (usage.cache_write_tokens or 0) - for_an_hour),
        }
    if usage.reasoning_tokens is not None:
        counts["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    return counts


# ---- blocks


def render_block(part: Part) -> dict[str, Any] | None:
    """Render a part of a response; None if this API has no block for it."""
    match part:
        case TextPart(text=text) if text and not text.isspace():
            return {"type": "text", "text": text, "citations": []}
        case ReasoningPart(text=text):
            metadata = anthropic_metadata(part.provider_metadata)
            if _is_redacted(metadata):
                return _redacted_block(metadata)
            signature = metadata.get("signature") or ""
            return _thinking_block(text, str(signature)) if text or signature else None
        case ToolCallPart() if _is_shown(part):
            return _tool_use_block(part)
        case ToolResultPart() if _was_run_by_anthropic(part.tool_call_id):
            return _server_result_block(part.name, part.tool_call_id, part.output)
    return None


def signature_metadata(signature: str | None) -> dict[str, Any] | None:
    """Return the provider_metadata of signed thinking, as llm-anthropic keeps it."""
    return {"anthropic": {"signature": signature}} if signature else None


def redacted_metadata(data: str) -> dict[str, Any]:
    """Return the provider_metadata of redacted thinking, as llm-anthropic keeps it."""
    return {"anthropic": {"type": "redacted_thinking", "data": data}}


def mcp_server_metadata(name: str | None) -> dict[str, Any] | None:
    """Return the provider_metadata of a call to an MCP server through Anthropic."""
    return {"anthropic": {"mcp_server_name": name}} if name else None


def encode_server_output(content: Any) -> str:
    """Encode the result of a provider's tool as llm-anthropic does: JSON, or "" if empty."""
    return "" if content in (None, [], "") else json.dumps(content)


def anthropic_metadata(provider_metadata: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return Anthropic's share of a part's provider_metadata, {} if it is another provider's."""
    metadata = (provider_metadata or {}).get("anthropic")
    return metadata if isinstance(metadata, dict) else {}


def _is_redacted(metadata: Mapping[str, Any]) -> bool:
    """Whether Anthropic's metadata holds thinking that only its own servers can read."""
    data = metadata.get("data")
    return metadata.get("type") == "redacted_thinking" and isinstance(data, str) and data != ""


def _redacted_block(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Render redacted thinking, which comes whole in streams too."""
    return {"type": "redacted_thinking", "data": metadata["data"]}


def _thinking_block(text: str, signature: str) -> dict[str, Any]:
    """Render thinking, or its empty beginning in a stream."""
    return {"type": "thinking", "thinking": text, "signature": signature}


def _was_run_by_anthropic(tool_call_id: str | None) -> bool:
    """Whether Anthropic ran a call, to judge by the prefix of its id."""
    return (tool_call_id or "").startswith(("srvtoolu_", "mcptoolu_"))


def _is_shown(call: StreamEvent | ToolCallPart) -> bool:
    """Whether this API has a block for a call: the client's to run, or run by Anthropic."""
    return not call.server_executed or _was_run_by_anthropic(call.tool_call_id)


def _tool_use_block(call: ToolCallPart) -> dict[str, Any]:
    """Render a call, whoever runs it, with all keys that schema checkers require."""
    fields = {"id": call.tool_call_id, "name": call.name, "input": call.arguments}
    if not call.server_executed:
        return {"type": "tool_use", **fields, "caller": {"type": "direct"}}
    if (call.tool_call_id or "").startswith("mcptoolu_"):
        server_name = anthropic_metadata(call.provider_metadata).get("mcp_server_name") or ""
        return {"type": "mcp_tool_use", **fields, "server_name": str(server_name)}
    return {"type": "server_tool_use", **fields, "caller": {"type": "direct"}}


def _server_result_block(name: str, tool_call_id: str | None, output: str) -> dict[str, Any]:
    """Render the result of one of Anthropic's own tools: the inverse of `encode_server_output`."""
    try:
        content = payload.parse(output.encode(), argument_text.LIMITS) if output else []
    except InvalidRequest:
        content = output
    return {"type": f"{name}_tool_result", "tool_use_id": tool_call_id, "content": content}


def render_response(response: chat.ChatResponse, envelope: chat.Envelope) -> dict[str, Any]:
    """Render a response as a message, with the same content as its stream.

    Spec: https://docs.anthropic.com/en/api/messages
    """
    content = [block for part in response.parts if (block := render_block(part)) is not None]
    usage = _render_usage(_render_counts(response.finish.usage, envelope))
    return _render_message(envelope, content, usage, _render_stop(response.finish))


# ---- the stream


class StreamRenderer:
    """Renders our events as Anthropic's. Feed in order; Finish is last.

    Blocks are strictly sequential: of interleaved tool calls, the later ones wait until
    the earlier is whole. Text of white space alone makes no block, since Anthropic's own
    servers refuse it in the next request. Of provider-run tools only Anthropic's own
    are shown: the API has no blocks for others.

    Spec: https://docs.anthropic.com/en/api/messages-streaming
    """

    def __init__(self, envelope: chat.Envelope) -> None:
        self._envelope = envelope
        self._index = -1  # of the block begun last
        self._kind: Literal["text", "thinking", "result"] | None = None  # of the open block
        self._part: int | None = None  # the part_index of the open block
        self._before = b""  # a delta's frame up to its text, the same within a block
        self._signature = ""
        self._result: list[StreamEvent] = []
        # part_index → white space that may begin a text
        self._blank: dict[int | None, list[str]] = {}
        self._calls: dict[int | None, _Call] = {}  # unfinished ones; the first is open
        self._incomplete: dict[int | None, None] = {}  # those of them within their arguments
        self._ended_calls: set[int | None] = set()
        self._held_count = 0
        # Events that came between pieces of a call's arguments, in order and by part.
        self._held: deque[_Held] = deque()
        self._held_of: dict[int | None, deque[_Held]] = {}
        self._resumable: list[_Held] = []  # a heap: the next of such events of each open call

    def start(self) -> list[bytes]:
        """Return message_start, whose usage is an estimate that the end corrects."""
        usage = _render_usage(_render_counts(Usage(output_tokens=1), self._envelope))
        message = _render_message(self._envelope, [], usage)
        return [_event("message_start", {"message": message})]

    def feed(self, event: chat.Event) -> list[bytes]:
        """Return the frames of one event: none if it must wait, or if the API has no block.

        Blocks are sequential, so an event between the pieces of a call's arguments
        waits until they are whole.
        """
        if isinstance(event, chat.Finish):
            return [*self._release_all(), *self._end(event)]
        if (self._held or self._incomplete) and not (
            event.part_index in self._calls
            or (event.type == "tool_call_name" and not self._held)  # it begins beside the others
        ):
            self._held_count += 1
            held = _Held(self._held_count, event)
            self._held.append(held)
            self._held_of.setdefault(event.part_index, deque()).append(held)
            return []
        frames = self._show(event)
        return frames if self._incomplete else [*frames, *self._release()]

    def _release(self) -> list[bytes]:
        """Show held events in order, until one of them begins arguments that go on later.

        Each is looked at once, however many calls there are.
        """
        frames: list[bytes] = []
        while self._held and not self._incomplete:
            frames += self._show_held(self._held[0])
            while self._incomplete and self._held and self._goes_beside(self._held[0].event):
                frames += self._show_held(self._held[0])
            while self._incomplete and self._resumable:
                held = heappop(self._resumable)
                if not held.is_shown and held.event.part_index in self._calls:
                    frames += self._show_held(held)
        return frames

    def _goes_beside(self, event: StreamEvent) -> bool:
        return event.type == "tool_call_name" or event.part_index in self._calls

    def _show_held(self, held: _Held) -> list[bytes]:
        held.is_shown = True
        part = held.event.part_index
        of_part = self._held_of[part]
        for waiting in (self._held, of_part):
            while waiting and waiting[0].is_shown:
                waiting.popleft()
        frames = self._show(held.event)
        if of_part and part in self._calls:
            heappush(self._resumable, of_part[0])
        return frames

    def _release_all(self) -> list[bytes]:
        """Return the events that wait for arguments that never became whole."""
        frames: list[bytes] = []
        while self._held:
            frames += [*self._close(), *self._release()]
        return frames

    def _show(self, event: StreamEvent) -> list[bytes]:
        if self._kind == "text" and event.type == "text" and self._part == event.part_index:
            # Most events are more of the same text; the match below takes 0.5 µs more.
            return [self._delta(event.chunk)] if event.chunk else []
        match event:
            case StreamEvent(type="text", chunk=text):
                return self._begin_text(event.part_index, text)
            case StreamEvent(type="reasoning"):
                return self._reasoning(event)
            case StreamEvent(type="tool_call_name" | "tool_call_args"):
                return self._call(event)
            case StreamEvent(type="tool_result") if _was_run_by_anthropic(event.tool_call_id):
                return self._server_result(event)
        return []

    def idle(self) -> list[bytes]:
        """Return a keep-alive, which may come anywhere."""
        return [_PING]

    def fail(self, error: ProxyError) -> list[bytes]:
        """Return the error event, a proper end of a stream in this API."""
        body = render_error(error) | {"request_id": self._envelope.id}
        return [framing.encode_sse(payload.encode(body), "error")]

    def _delta(self, text: str) -> bytes:
        text_json = framing.escape_line_ends(payload.encode_string(text).encode())
        return b"%b%b}}\n\n" % (self._before, text_json)

    def _begin_text(self, part: int | None, text: str) -> list[bytes]:
        if not text or text.isspace():
            self._blank.setdefault(part, []).append(text)
            return []
        text = "".join(self._blank.pop(part, ())) + text
        frames = self._open("text", part, {"type": "text", "text": "", "citations": []})
        return [*frames, self._delta(text)]

    def _reasoning(self, event: StreamEvent) -> list[bytes]:
        metadata = anthropic_metadata(event.provider_metadata)
        if _is_redacted(metadata):
            return [*self._close(), *self._whole_block(_redacted_block(metadata))]
        signature = metadata.get("signature")
        if not event.chunk and not signature:
            return []
        frames: list[bytes] = []
        if self._part != event.part_index or self._kind != "thinking":
            frames = self._open("thinking", event.part_index, _thinking_block("", ""))
        if event.chunk:
            frames.append(self._delta(event.chunk))
        if signature:
            self._signature = str(signature)  # the last one counts; it is sent at the block's end
        return frames

    def _server_result(self, event: StreamEvent) -> list[bytes]:
        frames: list[bytes] = []
        if self._part != event.part_index or self._kind != "result":
            frames = self._close()
            self._kind, self._part = "result", event.part_index
        self._result.append(event)
        return frames

    # -- blocks

    def _open(
        self, kind: Literal["text", "thinking"], part: int | None, block: dict[str, Any]
    ) -> list[bytes]:
        frames = self._close()
        self._kind, self._part = kind, part
        return [*frames, self._start_block(block, f"{kind}_delta", kind)]

    def _start_block(self, block: dict[str, Any], delta: str, field: str) -> bytes:
        self._index += 1
        head = payload.encode({"type": "content_block_delta", "index": self._index})
        self._before = b'event: content_block_delta\ndata: %b,"delta":{"type":"%b","%b":' % (
            head[:-1],
            delta.encode(),
            field.encode(),
        )
        return _event("content_block_start", {"index": self._index, "content_block": block})

    def _stop_block(self) -> bytes:
        return _event("content_block_stop", {"index": self._index})

    def _whole_block(self, block: dict[str, Any]) -> list[bytes]:
        return [self._start_block(block, "", ""), self._stop_block()]

    def _close(self) -> list[bytes]:
        """End whatever is open: a block of text, thinking or a result, or all calls."""
        frames: list[bytes] = []
        if self._kind == "result":
            output = "".join(event.chunk for event in self._result)
            first = self._result[0]
            block = _server_result_block(first.tool_name or "", first.tool_call_id, output)
            frames = self._whole_block(block)
        elif self._kind is not None:
            if self._signature:
                delta = {"type": "signature_delta", "signature": self._signature}
                fields = {"index": self._index, "delta": delta}
                frames.append(_event("content_block_delta", fields))
            frames.append(self._stop_block())
        self._kind, self._part, self._signature, self._result = None, None, "", []
        for part in list(self._calls):
            frames += self._end_call(part)
        return frames

    # -- tool calls

    def _call(self, event: StreamEvent) -> list[bytes]:
        if event.part_index in self._ended_calls or not _is_shown(event):
            return []
        frames: list[bytes] = []
        call = self._calls.get(event.part_index)
        if call is None:
            if self._kind is not None:
                frames = self._close()
            call = self._calls[event.part_index] = _Call(event)
        call.add(event)
        if call.has_arguments and not call.is_whole:
            self._incomplete[event.part_index] = None
        else:
            self._incomplete.pop(event.part_index, None)
        return frames + self._go_on()

    def _go_on(self) -> list[bytes]:
        """Send what is ready of the first call, and of the next ones once it is whole."""
        frames: list[bytes] = []
        while self._calls:
            part, call = next(iter(self._calls.items()))
            if call.has_arguments:  # until then its name may still grow
                frames += self._call_so_far(call)
            if len(self._calls) == 1 or not call.is_whole:
                break
            frames += self._end_call(part)
        return frames

    def _call_so_far(self, call: _Call) -> list[bytes]:
        frames: list[bytes] = []
        if not call.is_open:
            call.is_open = True
            frames.append(self._start_block(call.block(), "input_json_delta", "partial_json"))
        text = call.take()
        return [*frames, self._delta(text)] if text else frames

    def _end_call(self, part: int | None) -> list[bytes]:
        call = self._calls.pop(part)
        self._incomplete.pop(part, None)
        frames = self._call_so_far(call)
        if rest := call.rest():
            frames.append(self._delta(rest))
        self._ended_calls.add(part)
        return [*frames, self._stop_block()]

    def _end(self, finish: chat.Finish) -> list[bytes]:
        delta = {**_render_stop(finish), "stop_details": None, "container": None}
        usage = _render_counts(finish.usage, self._envelope)
        return [
            *self._close(),
            _event("message_delta", {"delta": delta, "usage": usage}),
            _event("message_stop", {}),
        ]


@dataclass(order=True)
class _Held:
    """An event that waits, by its number in the order of arrival."""

    number: int
    event: StreamEvent = field(compare=False)
    is_shown: bool = field(default=False, compare=False)


_PING = b'event: ping\ndata: {"type":"ping"}\n\n'


class _Call:
    """An unfinished tool call: what has come so far, and what is not sent yet."""

    def __init__(self, first: StreamEvent) -> None:
        self.is_open = False
        self.has_arguments = False
        self.is_whole = False  # whether the arguments are a complete JSON object
        self._first = first
        self._names: list[str] = []
        self._arguments: list[str] = []
        self._unsent: list[str] = []
        self._has_text = False
        self._is_object = False  # as far as can be told from its beginning
        self._text = argument_text.ArgumentText()

    def add(self, event: StreamEvent) -> None:
        if event.type == "tool_call_name":
            self._names.append(event.chunk)
            return
        self.has_arguments = True
        self._arguments.append(event.chunk)
        if event.chunk and not event.chunk.isspace() and not self._has_text:
            self._has_text = True
            self._is_object = event.chunk.lstrip().startswith("{")
        was_whole = self._text.is_whole
        self._unsent.append(self._text.feed(event.chunk))
        if not event.chunk or event.chunk.isspace():
            return
        if was_whole:
            self.is_whole = False  # more than an object
        elif self._text.is_whole:
            self.is_whole = "_raw" not in chat.parse_arguments("".join(self._arguments))

    def take(self) -> str:
        """Return what can be sent now; until it begins as an object, it waits for the end."""
        if not self._is_object:
            return ""
        text, self._unsent = "".join(self._unsent), []
        return text

    def rest(self) -> str:
        """Return what waited: `input` is an object here, and clients send back what they read.

        White space alone is no arguments; other JSON becomes the object that a whole response
        has in its place.
        """
        if self._is_object:
            return "".join(self._unsent) + self._text.end()
        text = "".join(self._arguments)
        return payload.encode(chat.parse_arguments(text)).decode() if text.strip() else ""

    def block(self) -> dict[str, Any]:
        first = self._first
        part = ToolCallPart(
            "".join(self._names),
            {},
            first.tool_call_id,
            first.server_executed,
            first.provider_metadata,
        )
        return _tool_use_block(part)


def _event(type_: str, fields: Mapping[str, Any]) -> bytes:
    return framing.encode_sse(payload.encode({"type": type_, **fields}), type_)
