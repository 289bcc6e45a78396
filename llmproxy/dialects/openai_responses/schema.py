"""The types of a Responses request, under the names of OpenAI's SDK.

`payload.load` checks a body against them. A kind of item, part or tool that has no type of its
own is wrapped as an Other… before, so that it can be put into words and listed.

Spec: https://platform.openai.com/docs/api-reference/responses
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ...core.payload import shape

# ---- content


@shape
class ResponseInputText:
    """Text of any role: some clients send one type for all."""

    type: Literal["input_text", "output_text", "text", "summary_text", "reasoning_text"]
    text: str
    annotations: Any = None
    logprobs: Any = None
    prompt_cache_breakpoint: Any = None


@shape
class ResponseOutputRefusal:
    type: Literal["refusal"]
    refusal: str


@shape
class ImageURL:
    """As in Chat Completions, which some clients send here."""

    url: str
    detail: str | None = None


@shape
class ResponseInputImage:
    type: Literal["input_image", "computer_screenshot"]
    image_url: str | ImageURL | None = None
    file_id: str | None = None
    detail: str | None = None
    prompt_cache_breakpoint: Any = None


@shape
class ResponseInputFile:
    type: Literal["input_file"]
    file_data: str | None = None
    file_url: str | None = None
    file_id: str | None = None
    filename: str | None = None
    detail: str | None = None
    prompt_cache_breakpoint: Any = None


@shape
class InputAudio:
    data: str
    format: Literal["wav", "mp3"]


@shape
class ResponseInputAudio:
    type: Literal["input_audio"]
    input_audio: InputAudio


@shape
class OtherContent:
    """A part of a kind that we do not know, as it came; ours, no client sends it."""

    type: Literal["other"]
    part: dict[str, Any]


Content = (
    ResponseInputText
    | ResponseOutputRefusal
    | ResponseInputImage
    | ResponseInputFile
    | ResponseInputAudio
    | OtherContent
)

# ---- items


@shape
class EasyInputMessage:
    """A message of any role; clients leave out its type."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[Content] | None = None
    id: Any = None
    status: Any = None
    phase: Any = None


@shape
class ResponseReasoningItem:
    """Reasoning as it was sent; Codex sends null for what it lacks."""

    type: Literal["reasoning"]
    summary: list[ResponseInputText | OtherContent] | None = None
    content: list[ResponseInputText | OtherContent] | None = None
    encrypted_content: str | None = None
    id: str | None = None
    status: Any = None


@shape
class ResponseFunctionToolCall:
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str | dict[str, Any] | None = None
    namespace: str | None = None
    id: Any = None
    status: Any = None
    caller: Any = None


@shape
class FunctionCallOutput:
    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str
    output: str | list[Content] | dict[str, Any] | None = None
    id: Any = None
    status: Any = None
    caller: Any = None
    name: Any = None


@shape
class ResponseCustomToolCall:
    type: Literal["custom_tool_call"]
    call_id: str
    name: str
    input: str | None = None
    namespace: str | None = None
    id: Any = None
    status: Any = None
    caller: Any = None


@shape
class ToolSearchCall:
    """A search for tools, which the client runs if it has a call_id."""

    type: Literal["tool_search_call"]
    call_id: str | None = None
    arguments: Any = None
    execution: str | None = None
    id: Any = None
    status: Any = None
    created_by: Any = None


@shape
class ToolSearchOutput:
    """The tools that a search found: they are offered from there on."""

    type: Literal["tool_search_output"]
    tools: list[Tool]
    call_id: str | None = None
    execution: str | None = None
    id: Any = None
    status: Any = None
    created_by: Any = None


@shape
class AdditionalTools:
    type: Literal["additional_tools"]
    tools: list[Tool]
    role: Any = None
    id: Any = None


@shape
class ItemReference:
    type: Literal["item_reference"]
    id: str


@shape
class ResponseCompactionItem:
    """A conversation so far, which only the server that compacted it can read."""

    type: Literal["compaction", "compaction_summary"]
    encrypted_content: str
    id: Any = None
    created_by: Any = None


@shape
class CompactionTrigger:
    type: Literal["compaction_trigger"]
    id: Any = None


@shape
class OtherItem:
    """An item of another kind, as it came; ours, no client sends it."""

    type: Literal["other"]
    item: dict[str, Any]


Item = (
    EasyInputMessage
    | ResponseReasoningItem
    | ResponseFunctionToolCall
    | FunctionCallOutput
    | ResponseCustomToolCall
    | ToolSearchCall
    | ToolSearchOutput
    | AdditionalTools
    | ItemReference
    | ResponseCompactionItem
    | CompactionTrigger
    | OtherItem
)

# ---- tools


@shape
class FunctionTool:
    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    defer_loading: bool | None = None
    output_schema: Any = None
    allowed_callers: Any = None


@shape
class CustomTool:
    """A tool that takes a text, which a grammar may describe."""

    type: Literal["custom"]
    name: str
    description: str | None = None
    format: dict[str, Any] | None = None
    defer_loading: bool | None = None
    allowed_callers: Any = None


@shape
class ToolSearchTool:
    type: Literal["tool_search"]
    description: str | None = None
    execution: str | None = None
    parameters: dict[str, Any] | None = None


@shape
class OtherTool:
    """A tool that the provider runs, or of a kind that we do not know; ours."""

    type: Literal["other"]
    tool: dict[str, Any]


@shape
class NamespaceTool:
    type: Literal["namespace"]
    name: str
    tools: list[FunctionTool | CustomTool | OtherTool]
    description: str | None = None


Tool = FunctionTool | CustomTool | ToolSearchTool | NamespaceTool | OtherTool


@shape
class ToolChoice:
    """A choice of one tool, or of the allowed ones."""

    type: str
    name: str | None = None
    namespace: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[dict[str, Any]] | None = None
    server_label: Any = None


# ---- the request


@shape
class TextFormat:
    type: Literal["text", "json_object", "json_schema"]
    schema: dict[str, Any] | None = None
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


@shape
class ResponseTextConfig:
    format: TextFormat | None = None
    verbosity: str | None = None


@shape
class Reasoning:
    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


@shape
class Resolved:
    """What a body said before it was made complete from the log; ours, no client sends it.

    kept: messages that a compacted conversation still has, in `POST /v1/responses/compact`.
    """

    previous_response_id: str | None = None
    kept: list[dict[str, Any]] | None = None


@shape
class ResponseCreateParams:
    """The body of a request. Null means absent throughout, as SDKs send it."""

    input: str | list[Item] | None = None
    model: str | None = None
    instructions: str | list[Item] | None = None
    previous_response_id: str | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    text: ResponseTextConfig | None = None
    reasoning: Reasoning | None = None
    stream: bool | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    parallel_tool_calls: bool | None = None
    service_tier: str | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    include: list[str] | None = None
    truncation: str | None = None
    background: bool | None = None
    conversation: Any = None
    prompt: Any = None
    max_tool_calls: int | None = None
    top_logprobs: int | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: Any = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    stream_options: Any = None
    client_metadata: Any = None
    context_management: Any = None
    moderation: Any = None
    # Not OpenAI's, but of the Open Responses specification, and of local servers.
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    llmproxy: Resolved | None = None


# Options under our names, which are the vendor's own.
OPTIONS = (
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "parallel_tool_calls",
    "service_tier",
    "user",
)

NOT_CARRIED: Mapping[str, str] = {
    "client_metadata": "for OpenAI's own log; ours has the request as it came",
    "context_management": "compacts on OpenAI's side; clients can ask for it themselves",
    "max_tool_calls": "about tools that the provider runs, and no plugin has it",
    "moderation": "a service of OpenAI's",
    "prompt_cache_key": "plugins choose their own cache keys",
    "prompt_cache_options": "plugins choose their own cache keys",
    "prompt_cache_retention": "plugins choose their own cache keys",
    "safety_identifier": "names the client's user to OpenAI, not to the model",
    "stream_options": "about padding that OpenAI adds to its streams",
    "top_logprobs": "llm has no field for token probabilities",
}

TOOL_NOT_CARRIED: Mapping[str, str] = {
    "strict": "llm has no field for it",
    "defer_loading": "the model sees all tools at once",
    "output_schema": "llm's tools have a schema for their input only",
    "allowed_callers": "callers at OpenAI besides the model",
    "format": "a grammar; the model is told of it in the tool's description",
}
