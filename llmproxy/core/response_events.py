"""A whole response as the events of a stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from llm.parts import Part, ReasoningPart, StreamEvent, TextPart, ToolCallPart, ToolResultPart

from . import chat, payload


def events_of(response: chat.ChatResponse) -> Iterator[chat.Event]:
    """Yield a whole response as events, part by part; `chat.collect` gives it back."""
    parts = [(i, part) for i, message in enumerate(response.messages) for part in message.parts]
    for index, (message_index, part) in enumerate(parts):
        for event in _part_events(part, response.raw_arguments):
            event.part_index = index
            event.message_index = message_index
            yield event
    yield response.finish


def _part_events(part: Part, raw_arguments: Mapping[str, str]) -> Iterator[StreamEvent]:
    match part:
        case TextPart():
            yield StreamEvent("text", part.text, provider_metadata=part.provider_metadata)
        case ReasoningPart():
            yield StreamEvent(
                "reasoning",
                part.text,
                redacted=part.redacted,
                provider_metadata=part.provider_metadata,
            )
        case ToolCallPart():
            id_, server_executed = part.tool_call_id, part.server_executed
            yield StreamEvent(
                "tool_call_name",
                part.name,
                tool_call_id=id_,
                server_executed=server_executed,
                provider_metadata=part.provider_metadata,
            )
            raw = raw_arguments.get(id_ or "", "")
            if chat.parse_arguments(raw) != part.arguments:  # another call has the same id
                raw = payload.encode(part.arguments).decode()
            yield StreamEvent(
                "tool_call_args", raw, tool_call_id=id_, server_executed=server_executed
            )
        case ToolResultPart():
            yield StreamEvent(
                "tool_result",
                part.output,
                tool_call_id=part.tool_call_id,
                server_executed=part.server_executed,
                tool_name=part.name,
                provider_metadata=part.provider_metadata,
            )
