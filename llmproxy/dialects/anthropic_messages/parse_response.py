"""Parse another server's response: its stream of events, or the whole message.

A whole message is parsed as the stream that it would have been, so that the two agree.

Spec: https://docs.anthropic.com/en/api/messages-streaming
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from llm.parts import StreamEvent

from ...core import chat, finish_reasons, payload
from ...core.errors import UpstreamError
from ...core.finish_reasons import common_reason, finer_reason
from ...core.usage import Usage
from ...transport import framing
from .models_and_errors import parse_error
from .render_response import (
    encode_server_output,
    mcp_server_metadata,
    redacted_metadata,
    signature_metadata,
)


def parse_response(body: Any, headers: Mapping[str, str] | None = None) -> chat.ChatResponse:
    """Parse another server's message; its stream, collected, gives the same.

    Raises:
        ProxyError: the error that the body reports, or UpstreamError if it is no message.
    """
    match body:
        case {"type": "error"}:
            raise parse_error(200, body, headers)
        case {"content": list(blocks), **fields}:
            parser = StreamParser()
            events = parser.feed_value({"type": "message_start", "message": fields})
            for index, block in enumerate(blocks):
                start = {"type": "content_block_start", "index": index, "content_block": block}
                events += parser.feed_value(start)
                events += parser.feed_value({"type": "content_block_stop", "index": index})
            events += parser.feed_value({"type": "message_delta", "delta": fields})
            return chat.collect(events + parser.end())
    raise UpstreamError("the upstream's answer is no message")


class StreamParser:
    """Parses another server's stream into our events. Feed its frames in order.

    Accepted, since servers send them: pings, events and blocks of unknown types (listed in
    the Finish's `ignored`), usage in both places (later counts overwrite), input both whole
    in a block's start and in deltas, deltas that do not fit their block. The Finish comes at
    message_stop, or at the end of a stream without one. `model` is the name of the model
    that responds, once the stream has named it.
    """

    def __init__(self) -> None:
        self.model: str | None = None
        self._blocks: dict[Any, _Block] = {}  # by the stream's index
        self._next_part = 0
        self._usage: dict[str, Any] = {}
        self._stop: dict[str, Any] | None = None
        self._ignored: dict[str, None] = {}
        self._is_finished = False

    def feed(self, frame: framing.SSEFrame) -> list[chat.Event]:
        """Return the events of one frame.

        Raises:
            ProxyError: the error that the frame reports; UpstreamError if it is no event.
        """
        if self._is_finished or frame.data.strip() in ("", "[DONE]"):
            return []
        return self.feed_value(payload.parse_upstream(frame.data, "an event"))

    def feed_value(self, value: Any) -> list[chat.Event]:
        """Return the events of the JSON value of one of the stream's events.

        Raises:
            ProxyError: as `feed`.
        """
        if self._is_finished:
            return []
        match value:
            case {"type": "error"}:
                raise parse_error(0, value)
            case {"type": "message_start", "message": dict(message)}:
                if isinstance(message.get("model"), str):
                    self.model = message["model"] or None
                self._add_usage(message.get("usage"))
            case {"type": "content_block_start", "content_block": dict(block)}:
                return self._start_block(_index(value), block)
            case {"type": "content_block_delta", "delta": dict(delta)}:
                return self._apply_delta(_index(value), delta)
            case {"type": "content_block_stop"}:
                return self._stop_block(_index(value))
            case {"type": "message_delta", "delta": dict(delta)}:
                self._stop = delta
                self._add_usage(value.get("usage"))
            case {"type": "message_stop"}:
                return self.end()
            case {"type": "ping"}:
                pass
            case {"type": str(type_)}:
                self._ignored[f"({type_[:40]})"] = None
            case _:
                raise UpstreamError("an event of the upstream has no type")
        return []

    def end(self) -> list[chat.Event]:
        """Return the Finish, unless a frame has given it already.

        Raises:
            UpstreamError: the stream was cut: there was no message_delta.
        """
        if self._is_finished:
            return []
        stop = self._stop
        if stop is None:
            raise UpstreamError("the upstream's stream ended before its answer did")
        finish_reasons.check(str(stop.get("stop_reason") or ""))
        self._is_finished = True
        events = [event for index in list(self._blocks) for event in self._stop_block(index)]
        sequence, word = stop.get("stop_sequence"), str(stop.get("stop_reason") or "")
        finish = chat.Finish(
            common_reason(word),
            stop_sequence=sequence if isinstance(sequence, str) else None,
            usage=_parse_usage(self._usage),
            model=self.model,
            ignored=tuple(self._ignored),
            provider_reason=finer_reason(word, is_anthropics=True),
        )
        return [*events, finish]

    def _add_usage(self, usage: Any) -> None:
        """Take counts: those of message_delta are cumulative and may omit earlier ones."""
        if isinstance(usage, dict):
            self._usage |= {name: count for name, count in usage.items() if count is not None}

    def _start_block(self, index: Any, block: dict[str, Any]) -> list[chat.Event]:
        match block:
            case {"type": "text"}:
                if block.get("citations"):
                    self._ignored["content[*].citations"] = None
                return self._prose_events(index, "text", _str(block.get("text")))
            case {"type": "thinking"}:
                events = self._prose_events(index, "reasoning", _str(block.get("thinking")))
                return events + self._signature_events(index, block.get("signature"))
            case {"type": "redacted_thinking", "data": str(data)}:
                part = self._new_block(index, "reasoning").part
                metadata = redacted_metadata(data)
                return [StreamEvent("reasoning", "", part, provider_metadata=metadata)]
            case {
                "type": "tool_use" | "server_tool_use" | "mcp_tool_use" as type_,
                "id": str(id_),
                "name": str(name),
            }:
                new = self._new_block(index, "call", id_, type_ != "tool_use", block.get("input"))
                server = mcp_server_metadata(_str(block.get("server_name")) or None)
                return [new.event("tool_call_name", name, server)]
            case {"type": str(type_), "tool_use_id": str(id_)} if type_.endswith("_tool_result"):
                part = self._new_block(index, "result").part
                result = StreamEvent(
                    "tool_result",
                    encode_server_output(block.get("content")),
                    part,
                    tool_call_id=id_,
                    server_executed=True,
                    tool_name=type_.removesuffix("_tool_result"),
                )
                return [result]
        self._ignored[f"content[*] ({str(block.get('type'))[:40]})"] = None
        self._new_block(index, "unknown")
        return []

    def _apply_delta(self, index: Any, delta: dict[str, Any]) -> list[chat.Event]:
        block = self._blocks.get(index)
        if block is not None and block.kind == "unknown":
            return []
        match delta:
            case {"type": "text_delta", "text": str(text)}:
                return self._prose_events(index, "text", text)
            case {"type": "thinking_delta", "thinking": str(text)}:
                return self._prose_events(index, "reasoning", text)
            case {"type": "signature_delta", "signature": signature}:
                return self._signature_events(index, signature)
            case {"type": "input_json_delta", "partial_json": str(text)}:
                if block is None or block.kind != "call" or not text:
                    return []
                block.input = None  # the deltas repeat it
                return [block.event("tool_call_args", text)]
        self._ignored[f"content[*] ({str(delta.get('type'))[:40]})"] = None
        return []

    def _stop_block(self, index: Any) -> list[chat.Event]:
        block = self._blocks.pop(index, None)
        if block is None or block.kind != "call" or not block.input:
            return []
        return [block.event("tool_call_args", payload.encode(block.input).decode())]

    def _prose_events(
        self, index: Any, family: Literal["text", "reasoning"], text: str
    ) -> list[chat.Event]:
        """Return text; a delta of another kind than its block begins a new part."""
        block = self._blocks.get(index)
        if block is None or block.kind != family:
            block = self._new_block(index, family)
        return [StreamEvent(family, text, block.part)] if text else []

    def _signature_events(self, index: Any, signature: Any) -> list[chat.Event]:
        if not isinstance(signature, str) or not signature:
            return []
        block = self._blocks.get(index)
        if block is None or block.kind != "reasoning":
            block = self._new_block(index, "reasoning")
        metadata = signature_metadata(signature)
        return [StreamEvent("reasoning", "", block.part, provider_metadata=metadata)]

    def _new_block(
        self,
        index: Any,
        kind: str,
        id_: str | None = None,
        server_executed: bool = False,
        input_: Any = None,
    ) -> _Block:
        block = _Block(kind, self._next_part, id_, server_executed, input_)
        self._next_part += 1
        self._blocks[index] = block
        return block


@dataclass
class _Block:
    """An open block of the stream, and the part of the response that it becomes."""

    kind: str
    part: int
    tool_call_id: str | None
    server_executed: bool
    input: Any  # a call's arguments from the block's start, unless deltas repeat them

    def event(self, type_: str, chunk: str, metadata: dict[str, Any] | None = None) -> StreamEvent:
        return StreamEvent(
            type_,
            chunk,
            self.part,
            self.tool_call_id,
            self.server_executed,
            provider_metadata=metadata,
        )


def _index(event: Mapping[str, Any]) -> Any:
    """Return the index of an event's block; one that is no plain value counts as none."""
    index = event.get("index")
    return None if isinstance(index, dict | list) else index


def _str(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _parse_usage(usage: Mapping[str, Any]) -> Usage:
    """Count as we do: cached tokens are part of the input."""
    counts = {name: count for name, count in usage.items() if type(count) is int}
    read, written = (
        counts.get("cache_read_input_tokens"),
        counts.get("cache_creation_input_tokens"),
    )
    input_tokens = counts.get("input_tokens")
    if input_tokens is not None:
        input_tokens += (read or 0) + (written or 0)
    kept = usage.get("cache_creation")
    for_an_hour = kept.get("ephemeral_1h_input_tokens") if isinstance(kept, dict) else None
    details = usage.get("output_tokens_details")
    thinking = details.get("thinking_tokens") if isinstance(details, dict) else None
    return Usage(
        input_tokens=input_tokens,
        output_tokens=counts.get("output_tokens"),
        cached_tokens=read,
        cache_write_tokens=written,
        reasoning_tokens=thinking if type(thinking) is int else None,
        cache_write_1h_tokens=for_an_hour if type(for_an_hour) is int else None,
    )
