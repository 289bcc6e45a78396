"""An answer as a whole message, and what its stream has in common with it.

The blocks with what llm-anthropic keeps of them in `provider_metadata`, usage and stop
reasons as this wire writes them. Framing and the order of blocks are left to `stream`,
reading another server's answer to `read_answer`.

Spec: https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llm.parts import (
    Part,
    ReasoningPart,
    StreamEvent,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)

from ...core import chat, token_estimate

__all__ = [
    "anthropics",
    "estimate_input_tokens",
    "is_anthropics",
    "is_redacted",
    "is_shown",
    "mcp_server",
    "redacted",
    "redacted_block",
    "render_block",
    "render_counts",
    "render_message",
    "render_response",
    "render_stop",
    "render_usage",
    "server_output",
    "server_result_block",
    "signed",
    "thinking_block",
    "tool_use_block",
]


def render_message(
    request: chat.ChatRequest,
    id_: str,
    content: list[dict[str, Any]],
    usage: dict[str, Any],
    stop: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The message, at its start or whole, with all keys that schema checkers ask for (C6)."""
    return {
        "id": f"msg_{id_}",
        "type": "message",
        "role": "assistant",
        "model": request.model or "",
        "content": content,
        **(stop or {"stop_reason": None, "stop_sequence": None}),
        "stop_details": None,
        "container": None,
        "usage": usage,
    }


STOP_REASONS: Mapping[chat.FinishReason, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}


def render_stop(finish: chat.Finish) -> dict[str, str | None]:
    """Give why the model stopped, in the two fields that say it."""
    if finish.reason == "stop" and finish.stop_sequence is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": finish.stop_sequence}
    return {"stop_reason": STOP_REASONS[finish.reason], "stop_sequence": None}


def estimate_input_tokens(request: chat.ChatRequest) -> int:
    """Estimate what a stream begins with, never none: clients read the first usage (B23)."""
    return max(1, token_estimate.estimate(request))


def render_usage(counts: Mapping[str, Any]) -> dict[str, Any]:
    """The usage of a message: what is counted, and the keys that schema checkers ask for (C6)."""
    return {
        "cache_creation": None,
        "inference_geo": None,
        "output_tokens_details": None,
        "server_tool_use": None,
        "service_tier": None,
        **counts,
    }


def render_counts(usage: chat.Usage, input_tokens_estimate: int) -> dict[str, Any]:
    """Anthropic counts cached input apart (B24). Unknown counts are left out.

    Save the two that the wire's types require: the estimate, and 0.
    """
    input_tokens = input_tokens_estimate
    if usage.input_tokens is not None:
        cached = (usage.cached_tokens or 0) + (usage.cache_write_tokens or 0)
        input_tokens = max(0, usage.input_tokens - cached)
    counts: dict[str, Any] = {
        "input_tokens": input_tokens,
        "output_tokens": usage.output_tokens or 0,
    }
    if usage.cached_tokens is not None:
        counts["cache_read_input_tokens"] = usage.cached_tokens
    if usage.cache_write_tokens is not None:
        counts["cache_creation_input_tokens"] = usage.cache_write_tokens
    if usage.reasoning_tokens is not None:
        counts["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    return counts


# ---- blocks of an answer


def render_block(part: Part) -> dict[str, Any] | None:
    """Render a part of an answer; None for what this wire does not show."""
    match part:
        case TextPart(text=text) if text and not text.isspace():
            return {"type": "text", "text": text, "citations": []}
        case ReasoningPart(text=text):
            metadata = anthropics(part.provider_metadata)
            if is_redacted(metadata):
                return redacted_block(metadata)
            signature = metadata.get("signature") or ""
            return thinking_block(text, str(signature)) if text or signature else None
        case ToolCallPart() if is_shown(part):
            return tool_use_block(part)
        case ToolResultPart() if is_anthropics(part.tool_call_id):
            return server_result_block(part.name, part.tool_call_id, part.output)
    return None


def signed(signature: str | None) -> dict[str, Any] | None:
    """Give the provider_metadata of signed thinking, as llm-anthropic keeps it."""
    return {"anthropic": {"signature": signature}} if signature else None


def redacted(data: str) -> dict[str, Any]:
    """Give the provider_metadata of redacted thinking, as llm-anthropic keeps it."""
    return {"anthropic": {"type": "redacted_thinking", "data": data}}


def mcp_server(name: str | None) -> dict[str, Any] | None:
    """Give the provider_metadata of a call to an MCP server of Anthropic's."""
    return {"anthropic": {"mcp_server_name": name}} if name else None


def server_output(content: Any) -> str:
    """Write a result of the provider's tool as llm-anthropic does: JSON, nothing as ""."""
    return "" if content in (None, [], "") else json.dumps(content)


def anthropics(provider_metadata: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Choose what is Anthropic's of a part's provider_metadata; nothing where it is another's."""
    metadata = (provider_metadata or {}).get("anthropic")
    return metadata if isinstance(metadata, dict) else {}


def is_redacted(metadata: Mapping[str, Any]) -> bool:
    """Whether Anthropic's metadata is that of thinking which only its own servers can read."""
    return metadata.get("type") == "redacted_thinking" and bool(metadata.get("data"))


def redacted_block(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Render redacted thinking; it comes whole, in a stream too."""
    return {"type": "redacted_thinking", "data": metadata["data"]}


def thinking_block(text: str, signature: str) -> dict[str, Any]:
    """Render thinking, or its empty beginning in a stream."""
    return {"type": "thinking", "thinking": text, "signature": signature}


def is_anthropics(tool_call_id: str | None) -> bool:
    """Whether a call that the provider ran was run by Anthropic: its ids say so."""
    return (tool_call_id or "").startswith(("srvtoolu_", "mcptoolu_"))


def is_shown(call: StreamEvent | ToolCallPart) -> bool:
    """Whether this wire has a form for a call: the client's to run, or one that Anthropic ran."""
    return not call.server_executed or is_anthropics(call.tool_call_id)


def tool_use_block(call: ToolCallPart) -> dict[str, Any]:
    """Render a call, whoever runs it, with all keys that schema checkers ask for (C6)."""
    fields = {"id": call.tool_call_id, "name": call.name, "input": call.arguments}
    if not call.server_executed:
        return {"type": "tool_use", **fields, "caller": {"type": "direct"}}
    if (call.tool_call_id or "").startswith("mcptoolu_"):
        server_name = anthropics(call.provider_metadata).get("mcp_server_name") or ""
        return {"type": "mcp_tool_use", **fields, "server_name": server_name}
    return {"type": "server_tool_use", **fields, "caller": {"type": "direct"}}


def server_result_block(name: str, tool_call_id: str | None, output: str) -> dict[str, Any]:
    """Render what a tool of Anthropic's own gave; `server_output` undone."""
    try:
        content = json.loads(output) if output else []
    except ValueError:
        content = output
    return {"type": f"{name}_tool_result", "tool_use_id": tool_call_id, "content": content}


def render_response(
    request: chat.ChatRequest,
    response: chat.ChatResponse,
    id: str,
    created: int,
) -> dict[str, Any]:
    """Render a whole answer as a message; the same content as its stream has.

    Spec: https://docs.anthropic.com/en/api/messages
    """
    content = [block for part in response.parts if (block := render_block(part)) is not None]
    counts = render_counts(response.finish.usage, estimate_input_tokens(request))
    return render_message(request, id, content, render_usage(counts), render_stop(response.finish))
