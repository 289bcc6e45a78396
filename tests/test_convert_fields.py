"""No field of any schema gets lost without a word: every one of them, by every pair of dialects."""

from __future__ import annotations

import copy
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any, Literal

import pytest

from llmproxy import convert
from llmproxy.core.errors import InvalidRequest
from llmproxy.dialects import DIALECTS
from llmproxy.dialects.anthropic_messages import schema as anthropic
from llmproxy.dialects.ollama import schema as ollama
from llmproxy.dialects.openai_chat import completions
from llmproxy.dialects.openai_chat import schema as openai
from llmproxy.dialects.openai_responses import schema as responses

SCHEMA = {"type": "object", "properties": {"at": {"type": "string"}}}
PNG = "iVBORw0KGgoAAAANSUhEUg=="
DATA_URL = f"data:image/png;base64,{PNG}"

CHAT = {
    "model": "m",
    "messages": [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "When is the tide?"},
                {"type": "image_url", "image_url": {"url": DATA_URL}},
                {"type": "file", "file": {"file_data": "data:application/pdf;base64,QQ=="}},
            ],
        },
        {
            "role": "assistant",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "tide", "arguments": "{}"}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "12:40"},
        {"role": "user", "content": "Thanks."},
    ],
    "tools": [{"type": "function", "function": {"name": "tide", "parameters": SCHEMA}}],
}
COMPLETION = {"model": "m", "prompt": "Once upon a time"}
MESSAGES = {
    "model": "m",
    "max_tokens": 9,
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "When is the tide?"},
                {
                    "type": "image",
                    "source": {"type": "base64", "media_type": "image/png", "data": PNG},
                },
                {
                    "type": "document",
                    "source": {"type": "base64", "media_type": "application/pdf", "data": "QQ=="},
                },
                {"type": "search_result", "content": [{"type": "text", "text": "found"}]},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm"},
                {"type": "tool_use", "id": "c1", "name": "tide", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "12:40"}],
        },
    ],
    "tools": [{"type": "custom", "name": "tide", "input_schema": SCHEMA}],
}
RESPONSES = {
    "model": "m",
    "input": [
        {
            "type": "message",
            "role": "user",
            "content": [
                {"type": "input_text", "text": "When is the tide?"},
                {"type": "input_image", "image_url": DATA_URL},
                {"type": "input_file", "file_data": "data:application/pdf;base64,QQ=="},
            ],
        },
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm"}]},
        {"type": "function_call", "call_id": "c1", "name": "tide", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "12:40"},
        {"type": "custom_tool_call", "call_id": "c2", "name": "patch", "input": "x"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": "done"},
    ],
    "tools": [
        {"type": "function", "name": "tide", "parameters": SCHEMA},
        {"type": "custom", "name": "patch"},
    ],
}
OLLAMA = {
    "model": "m",
    "messages": [
        {"role": "user", "content": "When is the tide?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "tide", "arguments": {}}}],
        },
        {"role": "tool", "content": "12:40"},
        {"role": "user", "content": "Thanks."},
    ],
    "tools": [{"type": "function", "function": {"name": "tide", "parameters": SCHEMA}}],
}
GENERATE = {"model": "m", "prompt": "When is the tide?"}

SITES: list[tuple[str, dict[str, Any], list[str | int], type]] = [
    ("openai_chat", CHAT, [], openai.CreateChatCompletionRequest),
    ("openai_chat", CHAT, ["messages", 0], openai.ChatCompletionSystemMessage),
    ("openai_chat", CHAT, ["messages", 1], openai.ChatCompletionUserMessage),
    ("openai_chat", CHAT, ["messages", 1, "content", 1, "image_url"], openai.ImageURL),
    ("openai_chat", CHAT, ["messages", 1, "content", 2, "file"], openai.FileFile),
    ("openai_chat", CHAT, ["messages", 2], openai.ChatCompletionAssistantMessage),
    (
        "openai_chat",
        CHAT,
        ["messages", 2, "tool_calls", 0],
        openai.ChatCompletionMessageToolCall,
    ),
    ("openai_chat", CHAT, ["messages", 3], openai.ChatCompletionToolMessage),
    ("openai_chat", CHAT, ["tools", 0, "function"], openai.FunctionDefinition),
    ("openai_chat", COMPLETION, [], completions.CreateCompletionRequest),
    ("anthropic_messages", MESSAGES, [], anthropic.CreateMessageRequest),
    ("anthropic_messages", MESSAGES, ["messages", 0, "content", 0], anthropic.TextBlock),
    ("anthropic_messages", MESSAGES, ["messages", 0, "content", 1], anthropic.ImageBlock),
    ("anthropic_messages", MESSAGES, ["messages", 0, "content", 2], anthropic.DocumentBlock),
    ("anthropic_messages", MESSAGES, ["messages", 0, "content", 3], anthropic.SearchResultBlock),
    ("anthropic_messages", MESSAGES, ["messages", 1, "content", 0], anthropic.ThinkingBlock),
    ("anthropic_messages", MESSAGES, ["messages", 1, "content", 1], anthropic.ToolUseBlock),
    ("anthropic_messages", MESSAGES, ["messages", 2, "content", 0], anthropic.ToolResultBlock),
    ("anthropic_messages", MESSAGES, ["tools", 0], anthropic.Tool),
    ("openai_responses", RESPONSES, [], responses.ResponseCreateParams),
    ("openai_responses", RESPONSES, ["input", 0], responses.EasyInputMessage),
    ("openai_responses", RESPONSES, ["input", 0, "content", 0], responses.ResponseInputText),
    ("openai_responses", RESPONSES, ["input", 0, "content", 1], responses.ResponseInputImage),
    ("openai_responses", RESPONSES, ["input", 0, "content", 2], responses.ResponseInputFile),
    ("openai_responses", RESPONSES, ["input", 1], responses.ResponseReasoningItem),
    ("openai_responses", RESPONSES, ["input", 2], responses.ResponseFunctionToolCall),
    ("openai_responses", RESPONSES, ["input", 3], responses.FunctionCallOutput),
    ("openai_responses", RESPONSES, ["input", 4], responses.ResponseCustomToolCall),
    ("openai_responses", RESPONSES, ["tools", 0], responses.FunctionTool),
    ("openai_responses", RESPONSES, ["tools", 1], responses.CustomTool),
    ("ollama", OLLAMA, [], ollama.ChatRequest),
    ("ollama", OLLAMA, ["messages", 0], ollama.Message),
    ("ollama", OLLAMA, ["messages", 1, "tool_calls", 0], ollama.ToolCall),
    ("ollama", OLLAMA, ["messages", 1, "tool_calls", 0, "function"], ollama.ToolCallFunction),
    ("ollama", OLLAMA, ["messages", 2], ollama.Message),
    ("ollama", OLLAMA, ["tools", 0, "function"], ollama.ToolFunction),
    ("ollama", GENERATE, [], ollama.GenerateRequest),
]
"""Where a class of a schema stands in a body: dialect, body, path, class."""

# Of fields whose type does not say what a value looks like, or has a default that is the same.
VALUES: dict[str, Any] = {
    "stream_options": {"include_obfuscation": True},
    "response_format": {"type": "json_object"},
    "modalities": ["image"],
    "function_call": {"name": "tide"},
    "metadata": {"user_id": "ada"},
    "output_config": {"effort": "low"},
    "citations": {"enabled": True},
    "text": {"verbosity": "low"},
    "reasoning": {"effort": "low"},
    "parallel_tool_calls": False,
    "options": {"seed": 1},
    "ChatRequest.stream": False,
    "GenerateRequest.stream": False,
    "ResponseCreateParams.store": False,
    "CustomTool.format": {"type": "grammar", "syntax": "lark", "definition": "start: WORD"},
}

# What stands beside a field in the body above, and instead of which it is sent.
INSTEAD_OF = {
    "file_id": ("file_data", "image_url"),
    "file_url": ("file_data",),
    "function_call": ("tool_calls", "tools"),
    "custom": ("function",),
    "functions": ("tools",),
}

# They say nothing that a model, or a client of another API, could want to know.
SAYS_NOTHING = {
    "type",  # of what is known by its place
    "id",
    "status",
    "caller",
    "index",
    "phase",  # known by the place of the message
    "prompt_cache_breakpoint",  # a cache mark, which is no part of the normal form
    "llmproxy",  # ours
    "ToolUseBlock.server_name",  # of a kind of its own, mcp_tool_use
    "ToolCallFunction.description",  # repeats the tool's
    "ChatCompletionToolMessage.name",  # that of the call with the same id
    "FunctionCallOutput.name",
    "Message[2].tool_name",
    "Message[2].name",
    "Message.messages",
    "ChatCompletionAssistantMessage.function_call",  # an older form of tool_calls
    "ChatRequest.messages",
    "GenerateRequest.prompt",
}

# Without a word of its own, since the part that it belongs to is listed.
LISTED_WITH = {
    "encrypted_content": "reasoning",
    "content": "reasoning",
    "signature": "reasoning",
    "thinking": "reasoning",
    "summary": "reasoning",
}


def value_of(type_: Any) -> Any:
    """Return a value of a field's type that is not its default."""
    origin, arguments = typing.get_origin(type_), typing.get_args(type_)
    if origin in (types.UnionType, typing.Union):
        return value_of(next(a for a in arguments if a is not types.NoneType))
    if origin is Literal:
        return arguments[-1]
    if origin is list:
        return [value_of(arguments[0])]
    if origin is dict or type_ is Any:
        return {"marker": 1}
    if isinstance(type_, type) and hasattr(type_, "__dataclass_fields__"):
        hints = typing.get_type_hints(type_)
        needed = [f.name for f in fields(type_) if f.default is MISSING]
        return {name: value_of(hints[name]) for name in needed}
    return {str: "marker", int: 3, float: 0.25, bool: True}[type_]


def cases() -> Iterator[Any]:
    for name, body, path, shape in SITES:
        at = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
        for field, type_ in typing.get_type_hints(shape).items():
            key = f"{shape.__name__}.{field}"
            if (
                field in SAYS_NOTHING
                or key in SAYS_NOTHING
                or f"{shape.__name__}{at[-3:]}.{field}" in SAYS_NOTHING
            ):
                continue
            value = VALUES.get(key, VALUES.get(field, MISSING))
            value = value_of(type_) if value is MISSING else value
            yield pytest.param(
                name, body, path, field, value, id=f"{name}{at}.{field}-{shape.__name__}"
            )


def with_field(body: dict[str, Any], path: list[str | int], field: str, value: Any) -> Any:
    changed: Any = copy.deepcopy(body)
    at = changed
    for key in path:
        at = at[key]
    if value is MISSING:
        at.pop(field, None)
    else:
        at[field] = value
    return changed


@pytest.mark.parametrize("source, body, path, field, value", list(cases()))
def test_every_field_is_carried_listed_or_refused(source, body, path, field, value):
    for other in (field, *INSTEAD_OF.get(field, ())):
        body = with_field(body, path, other, MISSING)
    if is_needed(source, body):
        return  # without it there is no request: it is carried, or all other tests fail
    for dialect in DIALECTS:
        plain = convert.convert_request(body, source=source, target=dialect.NAME)
        try:
            there = convert.convert_request(
                with_field(body, path, field, value), source=source, target=dialect.NAME
            )
        except InvalidRequest as exc:
            assert field in f"{exc.param} {exc.message}"
            continue
        is_carried = there.body != plain.body
        is_listed = set(there.ignored) > set(plain.ignored) or any(
            LISTED_WITH.get(field, "(none)") in path for path in there.ignored
        )
        assert is_carried or is_listed, (dialect.NAME, value)


def is_needed(source: str, body: Any) -> bool:
    try:
        convert.convert_request(body, source=source, target=source)
    except InvalidRequest:
        return True
    return False
