"""Render a response of /api/chat or /api/generate, whole or as a stream of lines.

Spec: https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from llm.parts import ReasoningPart, StreamEvent, TextPart, ToolCallPart

from ...core import chat, payload
from ...core.errors import ProxyError
from ...transport import framing
from .models_and_errors import render_error
from .parse_request import GENERATE

ID_PREFIX = ""  # its responses have no id


def render_response(response: chat.ChatResponse, envelope: chat.Envelope) -> dict[str, Any]:
    """Render a whole response: generate's if the request was one, else chat's.

    Left out: the provider's own tools and opaque reasoning.

    Spec: https://github.com/ollama/ollama/blob/main/docs/api.md
    """
    text = "".join(part.text for part in response.parts if isinstance(part, TextPart))
    reasoning = "".join(part.text for part in response.parts if isinstance(part, ReasoningPart))
    calls = [
        part
        for part in response.parts
        if isinstance(part, ToolCallPart) and not part.server_executed
    ]
    content: dict[str, Any] = {"thinking": reasoning} if reasoning else {}
    if calls:
        content["tool_calls"] = [tool_call(call, i) for i, call in enumerate(calls)]
    return _head(envelope) | _content(envelope, text, content) | _end(response.finish, envelope)


def _head(envelope: chat.Envelope) -> dict[str, Any]:
    return {"model": envelope.model, "created_at": rfc3339(envelope.created)}


def rfc3339(seconds: int) -> str:
    """Render a time in seconds since 1970."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _content(envelope: chat.Envelope, text: str, more: dict[str, Any]) -> dict[str, Any]:
    if _is_generate(envelope):
        return {"response": text, **more}
    return {"message": {"role": "assistant", "content": text, **more}}


def _is_generate(envelope: chat.Envelope) -> bool:
    return envelope.form.partition(".")[0] == GENERATE


def _end(finish: chat.Finish, envelope: chat.Envelope) -> dict[str, Any]:
    """Render the fields with which a response ends; counts that are unknown are left out."""
    # Ollama has no word for calls. The others are the model's, so that none is lost.
    reason = envelope.form.partition(".")[2] or finish.reason
    took, usage = finish.durations or chat.Durations(), finish.usage
    fields = {
        "total_duration": took.total_ns,
        "load_duration": took.load_ns,
        "prompt_eval_count": usage.input_tokens,
        "prompt_eval_duration": took.input_ns,
        "eval_count": usage.output_tokens,
        "eval_duration": took.output_ns,
    }
    return {
        "done": True,
        "done_reason": "stop" if reason == "tool_calls" else reason,
        **{name: count for name, count in fields.items() if count is not None},
    }


def tool_call(call: ToolCallPart, index: int) -> dict[str, Any]:
    """Render a tool call, whose arguments are an object here."""
    function = {"index": index, "name": call.name, "arguments": call.arguments}
    return {"id": call.tool_call_id, "function": function}


# ---- the stream


class StreamRenderer:
    """Renders events as lines of JSON. Feed in order; Finish is last.

    Tool calls are whole on this wire, so all of them come in one line before the last.

    Spec: https://github.com/ollama/ollama/blob/main/docs/api.md
    """

    def __init__(self, envelope: chat.Envelope) -> None:
        head = framing.escape_line_ends(payload.encode(_head(envelope)))[:-1]
        # All but the text is the same in every line, so it is encoded once.
        if _is_generate(envelope):
            self._text = head + b',"response":'
            self._thinking = head + b',"response":"","thinking":'
            self._after = b',"done":false}\n'
        else:
            before = head + b',"message":{"role":"assistant","content":'
            self._text = before
            self._thinking = before + b'"","thinking":'
            self._after = b'},"done":false}\n'
        self._envelope = envelope
        self._calls: dict[int | None, list[StreamEvent]] = {}

    def start(self) -> list[bytes]:
        """Return nothing: the first line comes with the first event."""
        return []

    def feed(self, event: chat.Event) -> list[bytes]:
        """Return the lines of one event: none for what this API does not show."""
        match event:
            case chat.Finish():
                return self._finish(event)
            case StreamEvent(type="text", chunk=text) if text:
                return [self._text + _string(text) + self._after]
            case StreamEvent(type="reasoning", chunk=text) if text:
                return [self._thinking + _string(text) + self._after]
            case StreamEvent(type="tool_call_name" | "tool_call_args", server_executed=False):
                self._calls.setdefault(event.part_index, []).append(event)
        return []

    def idle(self) -> list[bytes]:
        """Return a keep-alive: a line without content, since clients read each as JSON."""
        return [self._text + b'""' + self._after]

    def fail(self, error: ProxyError) -> list[bytes]:
        """Return the error's line, the last one."""
        return [framing.encode_ndjson(payload.encode(render_error(error)))]

    def _finish(self, finish: chat.Finish) -> list[bytes]:
        lines = []
        if self._calls:
            # As `collect` reads them, so that a stream and a whole response never differ.
            parts = chat.collect(event for group in self._calls.values() for event in group).parts
            calls = [part for part in parts if isinstance(part, ToolCallPart)]
            content = {"tool_calls": [tool_call(call, i) for i, call in enumerate(calls)]}
            lines.append(self._line(content, {"done": False}))
        return [*lines, self._line({}, _end(finish, self._envelope))]

    def _line(self, content: dict[str, Any], end: dict[str, Any]) -> bytes:
        line = _head(self._envelope) | _content(self._envelope, "", content) | end
        return framing.encode_ndjson(payload.encode(line))


def _string(text: str) -> bytes:
    return framing.escape_line_ends(payload.encode_string(text).encode())
