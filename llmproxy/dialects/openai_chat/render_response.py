"""An answer as a whole completion, and what its stream has in common with it.

The envelope, tool calls and usage as this wire writes them. The chunks are left to
`stream`, reading another server's answer to `read_answer`; ids and times are given.

Spec: https://platform.openai.com/docs/api-reference/chat/object
"""

from __future__ import annotations

from typing import Any

from llm.parts import ReasoningPart, TextPart, ToolCallPart

from ...core import chat, payload

__all__ = ["arguments_text", "envelope", "render_response", "render_usage", "tool_call"]


def envelope(request: chat.ChatRequest, id_: str, created: int, object_: str) -> dict[str, Any]:
    """What the whole answer and each of its chunks begin with; the model as it was asked for."""
    return {
        "id": f"chatcmpl-{id_}",
        "object": object_,
        "created": created,
        "model": request.model or "",
    }


def tool_call(id_: str | None, function: dict[str, str]) -> dict[str, Any]:
    """Render a call of a function, whole or as what a chunk has of it."""
    return {"id": id_, "type": "function", "function": function}


def render_usage(usage: chat.Usage) -> dict[str, Any] | None:
    """OpenAI counts as the hub does. Null where the provider gave no counts."""
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


def render_response(
    request: chat.ChatRequest,
    response: chat.ChatResponse,
    id: str,
    created: int,
) -> dict[str, Any]:
    """Render a whole answer as a chat.completion; the same content as its stream has.

    Spec: https://platform.openai.com/docs/api-reference/chat/object
    """
    text = "".join(part.text for part in response.parts if isinstance(part, TextPart))
    calls = [
        part
        for part in response.parts
        if isinstance(part, ToolCallPart) and not part.server_executed
    ]
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if calls and not text else text,
        "refusal": None,
        "annotations": [],
    }
    reasoning = "".join(part.text for part in response.parts if isinstance(part, ReasoningPart))
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [
            tool_call(
                call.tool_call_id, {"name": call.name, "arguments": _arguments(response, call)}
            )
            for call in calls
        ]
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": response.finish.reason,
    }
    head = envelope(request, id, created, "chat.completion")
    return head | {"choices": [choice], "usage": render_usage(response.finish.usage)}


def _arguments(response: chat.ChatResponse, call: ToolCallPart) -> str:
    raw = response.raw_arguments.get(call.tool_call_id or "")
    if raw is None:
        return arguments_text(call)
    return raw if raw.strip() else "{}"


def arguments_text(call: ToolCallPart) -> str:
    """Write the arguments of a Part; what was no JSON object is written as it was (B4)."""
    match call.arguments:
        case {"_raw": str(text)} if len(call.arguments) == 1:
            return text
    return payload.encode(call.arguments).decode()
