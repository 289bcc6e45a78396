"""The types of Ollama's requests and responses, under the names of its Go package `api`.

`payload.load` checks a body against them.

Spec: https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ...core.payload import shape

# ---- the request


@shape
class ToolCallFunction:
    name: str
    arguments: dict[str, Any] | str | None = None  # an object on this wire; some send its text
    index: int | None = None
    description: Any = None


@shape
class ToolCall:
    """A call of a tool; older servers and the Python client know no `id`."""

    function: ToolCallFunction
    id: str | None = None
    type: str | None = None


@shape
class Message:
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None
    name: str | None = None  # of the tool, from clients that write it as OpenAI's do


@shape
class ToolFunction:
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


@shape
class Tool:
    function: ToolFunction
    type: str | None = "function"


@shape
class Options:
    """The options that are carried; others are listed (`options.num_gpu`)."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    num_predict: int | None = None
    num_ctx: int | None = None
    stop: str | list[str] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None


@shape
class ChatRequest:
    """The body of /api/chat. Null means absent throughout; without messages, it loads a model."""

    model: str | None = None
    messages: list[Message] | None = None
    tools: list[Tool] | None = None
    format: str | dict[str, Any] | None = None
    options: Options | None = None
    think: bool | str | None = None
    stream: bool | None = None
    keep_alive: Any = None
    truncate: Any = None
    shift: Any = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


@shape
class GenerateRequest:
    """The body of /api/generate. Without a prompt and images, it loads a model."""

    model: str | None = None
    prompt: str | None = None
    system: str | None = None
    images: list[str] | None = None
    suffix: str | None = None
    format: str | dict[str, Any] | None = None
    options: Options | None = None
    think: bool | str | None = None
    stream: bool | None = None
    raw: bool | None = None
    template: str | None = None
    context: Any = None
    keep_alive: Any = None
    truncate: Any = None
    shift: Any = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


OPTIONS: Mapping[str, str] = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "seed": "seed",
    "max_tokens": "num_predict",
    "num_ctx": "num_ctx",
    "stop_sequences": "stop",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "repeat_penalty": "repeat_penalty",
    "repeat_last_n": "repeat_last_n",
}
"""Ollama's names of options, by ours."""

THINK_LEVELS = ("low", "medium", "high", "max")

NOT_CARRIED: Mapping[str, str] = {
    "context": "an older form of a conversation, in a model's own tokens",
    "keep_alive": "models are held by llm's plugins, or by their servers",
    "logprobs": "llm has no field for token probabilities",
    "raw": "a plugin writes the prompt in its model's format",
    "shift": "the model's provider decides what a full context loses",
    "template": "a plugin writes the prompt in its model's format",
    "top_logprobs": "llm has no field for token probabilities",
    "truncate": "the model's provider decides what a full context loses",
}

# ---- the response, as another server sends it


@shape
class ResponseMessage:
    role: Any = None
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[ToolCall] | None = None
    images: Any = None
    tool_name: Any = None


@shape
class ChatResponse:
    """A line of a stream, or a whole response; `message` is /api/chat's, the rest generate's."""

    message: ResponseMessage | None = None
    response: str | None = None
    thinking: str | None = None
    tool_calls: list[ToolCall] | None = None
    model: str | None = None
    done: bool | None = None
    done_reason: str | None = None
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None
    # The envelope, not the response itself.
    created_at: Any = None
    remote_model: Any = None
    remote_host: Any = None
    context: Any = None
    logprobs: Any = None
    error: Any = None
