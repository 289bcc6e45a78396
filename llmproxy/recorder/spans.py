"""An exchange as an OpenTelemetry span, in the JSON form of OTLP.

The attributes are those of the GenAI conventions for an inference span, where there is one. A
span has no words of the conversation unless they are asked for.

Spec: https://github.com/open-telemetry/semantic-conventions-genai (client-inference.md, at
    024a4f9), https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding,
    https://www.w3.org/TR/trace-context/#traceparent-header
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from llm.parts import (
    Message,
    Part,
    ReasoningPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)

from ..version import __version__
from .exchange import Exchange

_TRACE_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
_CLIENT = 3  # the span's kind: a call to a service
_ERROR = 2  # the status' code
_ULID_DIGITS = {digit: i for i, digit in enumerate("0123456789abcdefghjkmnpqrstvwxyz")}

# How the ids of models begin in llm's plugins, and what the conventions call the provider.
_PROVIDERS = (
    ("gpt-", "openai"),
    ("chatgpt-", "openai"),
    ("anthropic/", "anthropic"),
    ("claude-", "anthropic"),
    ("gemini", "gcp.gemini"),
    ("mistral/", "mistral_ai"),
    ("groq/", "groq"),
    ("deepseek", "deepseek"),
    ("sonar", "perplexity"),
    ("grok", "x_ai"),
    ("openrouter/", "openrouter"),
)
_OPTIONS = {
    "temperature": float,
    "top_p": float,
    "frequency_penalty": float,
    "presence_penalty": float,
    "max_tokens": int,
    "top_k": int,
    "seed": int,
}


def span_of(exchange: Exchange, *, content: bool = False) -> dict[str, Any] | None:
    """Return an exchange that has ended as a span; None if its client's trace isn't sampled.

    It continues the trace that the client's `traceparent` names, if there is one. Otherwise
    the trace has the exchange's id, as 16 bytes. An embeddings request has the operation's
    name `embeddings`, a legacy completion `text_completion`.

    content: with the messages, the reply and the error's text.
    """
    sampled, trace_id, parent_id = _parent(exchange.request.headers.get("traceparent", ""))
    if not sampled:
        return None
    own_id = _bytes_of_ulid(exchange.id).hex()
    started = exchange.received
    ended = started + timedelta(milliseconds=exchange.duration_ms or 0)
    model = exchange.model_asked or exchange.model_used
    operation = _operation(exchange.path)
    span: dict[str, Any] = {
        "traceId": trace_id or own_id,
        "spanId": own_id[16:],
        "name": f"{operation} {model}" if model else operation,
        "kind": _CLIENT,
        "startTimeUnixNano": _nanoseconds(started),
        "endTimeUnixNano": _nanoseconds(ended),
        "attributes": _encode(dict(_attributes(exchange, operation, content))),
    }
    if parent_id:
        span["parentSpanId"] = parent_id
        span["traceState"] = exchange.request.headers.get("tracestate", "")
    if exchange.status in ("error", "interrupted"):
        span["status"] = {"code": _ERROR}
        if content and exchange.error:
            span["status"]["message"] = exchange.error
    return span


def export_request(spans: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the body of an export request (`ExportTraceServiceRequest`) for these spans."""
    resource = {"service.name": "llmproxy", "service.version": __version__}
    scope = {"name": "llmproxy", "version": __version__}
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": _encode(resource)},
                "scopeSpans": [{"scope": scope, "spans": list(spans)}],
            }
        ]
    }


def _attributes(exchange: Exchange, operation: str, content: bool) -> Iterator[tuple[str, Any]]:
    """Yield the names and values of a span's attributes; None where nothing is known."""
    usage = exchange.usage
    yield "gen_ai.operation.name", operation
    yield "gen_ai.provider.name", _provider(exchange.model_used or "")
    yield "gen_ai.request.model", exchange.model_asked
    yield "gen_ai.response.model", _response_model(exchange)
    yield "gen_ai.response.id", exchange.id
    yield "gen_ai.conversation.id", exchange.thread_id
    yield "gen_ai.request.stream", exchange.stream or None
    options = (exchange.turn and exchange.turn.options) or {}
    for name, type_ in _OPTIONS.items():
        if isinstance(options.get(name), int | float):
            yield f"gen_ai.request.{name}", type_(options[name])
    yield "gen_ai.usage.input_tokens", usage.input_tokens
    yield "gen_ai.usage.output_tokens", usage.output_tokens
    yield "gen_ai.usage.cache_read.input_tokens", usage.cached_tokens
    yield "gen_ai.usage.cache_write.input_tokens", usage.cache_write_tokens
    yield "gen_ai.usage.reasoning.output_tokens", usage.reasoning_tokens
    if exchange.finish_reason:
        yield "gen_ai.response.finish_reasons", [exchange.finish_reason]
    if exchange.stream and exchange.ttft_ms is not None:
        yield "gen_ai.response.time_to_first_chunk", exchange.ttft_ms / 1000
    if exchange.status in ("error", "interrupted"):
        yield "error.type", exchange.error_kind or exchange.status
    yield "http.response.status_code", exchange.http_status
    yield "url.path", exchange.path
    yield "llmproxy.api", exchange.dialect
    yield "llmproxy.status", exchange.status
    if content and exchange.turn:
        yield "gen_ai.input.messages", _messages(exchange.turn.messages)
        yield "gen_ai.output.messages", _messages(exchange.turn.reply)


def _operation(path: str) -> str:
    if "/embed" in path:
        return "embeddings"
    if path.endswith(("/completions", "/generate")) and "/chat/" not in path:
        return "text_completion"
    return "chat"


def _provider(model: str) -> str:
    """Return the name of a model's provider; "llm" if its id doesn't tell."""
    return next((name for start, name in _PROVIDERS if model.startswith(start)), "llm")


def _response_model(exchange: Exchange) -> str | None:
    resolved = exchange.turn.resolved_model if exchange.turn else None
    return resolved or exchange.model_used


def _messages(messages: Iterable[Message]) -> str:
    """Return messages as JSON, in the conventions' form; of an attachment its type only."""
    return json.dumps(
        [
            {"role": message.role, "parts": [_part(part) for part in message.parts]}
            for message in messages
        ],
        ensure_ascii=False,
    )


def _part(part: Part) -> dict[str, Any]:
    match part:
        case TextPart():
            return {"type": "text", "content": part.text}
        case ReasoningPart():
            return {"type": "reasoning", "content": part.text}
        case ToolCallPart():
            return {
                "type": "tool_call",
                "id": part.tool_call_id,
                "name": part.name,
                "arguments": part.arguments,
            }
        case ToolResultPart():
            return {
                "type": "tool_call_response",
                "id": part.tool_call_id,
                "response": part.output,
            }
        case _:
            return {"type": str(part.to_dict()["type"])}


def _parent(header: str) -> tuple[bool, str, str]:
    """Return whether to make a span, the trace's id and the parent's; "" for none.

    A header that is not as the specification has it is as none (section 4.3).
    """
    found = _TRACE_PARENT.fullmatch(header.strip())
    if found is None:
        return True, "", ""
    version, trace_id, parent_id, flags, more = found.groups()
    is_valid = version != "ff" and int(trace_id, 16) and int(parent_id, 16)
    if not is_valid or (version == "00" and more):
        return True, "", ""
    return bool(int(flags, 16) & 1), trace_id, parent_id


def _bytes_of_ulid(id: str) -> bytes:
    number = 0
    for digit in id:
        number = number << 5 | _ULID_DIGITS[digit]
    return number.to_bytes(16)


def _nanoseconds(at: datetime) -> str:
    """Return a time in ns since 1970; as a text, since JSON's numbers are too short."""
    return str((at - _EPOCH) // timedelta(microseconds=1) * 1000)


def _encode(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"key": key, "value": _value(value)} for key, value in values.items() if value is not None
    ]


def _value(value: Any) -> dict[str, Any]:
    match value:
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value}
        case list():
            return {"arrayValue": {"values": [_value(one) for one in value]}}
        case _:
            return {"stringValue": str(value).encode("utf-8", "replace").decode()}
