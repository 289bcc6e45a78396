"""The types of a Messages request, under the names of Anthropic's SDK.

`payload.load` checks a body against them.

Spec: https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ...core.payload import shape


@shape
class Base64Source:
    type: Literal["base64"]
    data: str
    media_type: str | None = None


@shape
class URLSource:
    type: Literal["url"]
    url: str


@shape
class FileSource:
    type: Literal["file"]
    file_id: str


@shape
class PlainTextSource:
    type: Literal["text"]
    data: str
    media_type: str | None = None


@shape
class TextBlock:
    type: Literal["text"]
    text: str
    citations: Any = None
    cache_control: Any = None


@shape
class ImageBlock:
    type: Literal["image"]
    source: Base64Source | URLSource | FileSource
    cache_control: Any = None


@shape
class OtherBlock:
    """A block of a kind that we do not know, as it came; ours, no client sends it."""

    type: Literal["other"]
    block: dict[str, Any]


@shape
class ContentBlockSource:
    type: Literal["content"]
    content: str | list[TextBlock | ImageBlock | OtherBlock]


@shape
class DocumentBlock:
    type: Literal["document"]
    source: Base64Source | URLSource | FileSource | PlainTextSource | ContentBlockSource
    title: str | None = None
    context: str | None = None
    citations: Any = None
    cache_control: Any = None


@shape
class SearchResultBlock:
    type: Literal["search_result"]
    content: list[TextBlock | OtherBlock]
    source: str = ""
    title: str = ""
    citations: Any = None
    cache_control: Any = None


@shape
class ToolReferenceBlock:
    type: Literal["tool_reference"]
    tool_name: str
    cache_control: Any = None


@shape
class ThinkingBlock:
    type: Literal["thinking"]
    thinking: str = ""
    signature: str | None = None
    cache_control: Any = None


@shape
class RedactedThinkingBlock:
    type: Literal["redacted_thinking"]
    data: str
    cache_control: Any = None


@shape
class ToolUseBlock:
    type: Literal["tool_use", "server_tool_use", "mcp_tool_use"]
    id: str
    name: str
    input: Any = None  # an object on this wire, but clients send back whatever a model wrote
    caller: Any = None
    server_name: str | None = None  # of mcp_tool_use
    cache_control: Any = None


@shape
class ToolResultBlock:
    type: Literal["tool_result"]
    tool_use_id: str
    content: (
        str
        | list[
            TextBlock
            | ImageBlock
            | DocumentBlock
            | SearchResultBlock
            | ToolReferenceBlock
            | OtherBlock
        ]
        | None
    ) = None
    is_error: bool | None = None
    cache_control: Any = None


@shape
class ServerToolResultBlock:
    """What a tool of the provider's own gave; its content is the provider's to read.

    tool: from its type, which is `web_search_tool_result`, `mcp_tool_result` and so on, also of
        tools that we have never heard of. block: as it came. Both are ours, no client sends them.
    """

    type: Literal["server_tool_result"]
    tool: str
    block: dict[str, Any]
    tool_use_id: str
    content: Any = None
    is_error: bool | None = None
    caller: Any = None
    cache_control: Any = None


ContentBlock = (
    TextBlock
    | ImageBlock
    | DocumentBlock
    | SearchResultBlock
    | ThinkingBlock
    | RedactedThinkingBlock
    | ToolUseBlock
    | ToolResultBlock
    | ServerToolResultBlock
    | OtherBlock
)


@shape
class MessageParam:
    """One turn; a system's is no head but an instruction in its place."""

    role: Literal["user", "assistant", "system"]
    content: str | list[ContentBlock]


@shape
class Tool:
    type: Literal["custom"]
    name: str
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None
    input_examples: Any = None
    allowed_callers: Any = None
    defer_loading: bool | None = None
    eager_input_streaming: bool | None = None
    cache_control: Any = None


@shape
class ToolAddition:
    """The tool that a `tool_addition` block in a message offers from there on."""

    tool: Tool | OtherBlock


@shape
class ToolChoice:
    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: bool | None = None


@shape
class ToolChoiceTool:
    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool | None = None


@shape
class ThinkingConfig:
    type: str
    budget_tokens: int | None = None
    display: str | None = None


@shape
class JSONOutputFormat:
    schema: dict[str, Any]
    type: Literal["json_schema"] = "json_schema"


@shape
class OutputConfig:
    effort: str | None = None
    format: JSONOutputFormat | None = None


@shape
class Metadata:
    user_id: str | None = None


@shape
class CreateMessageRequest:
    """The body of a request. Null means absent throughout, as SDKs send it.

    `max_tokens` may be absent, since count_tokens has the same body without it.
    """

    messages: list[MessageParam]
    model: str | None = None
    max_tokens: int | None = None
    system: str | list[TextBlock | OtherBlock] | None = None
    tools: list[Tool | OtherBlock] | None = None
    tool_choice: ToolChoice | ToolChoiceTool | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    output_format: JSONOutputFormat | None = None  # its older name, under a beta
    metadata: Metadata | None = None
    cache_control: Any = None
    # Gone from the newest SDK's signature, sent all the same.
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    container: Any = None
    context_management: Any = None
    diagnostics: Any = None
    inference_geo: Any = None
    mcp_servers: Any = None
    service_tier: str | None = None
    speed: str | None = None
    thread: Any = None
    previous_message_id: Any = None


NOT_CARRIED: Mapping[str, str] = {
    "container": "a sandbox at Anthropic, which other models lack",
    "context_management": "clears history on Anthropic's side; we receive all of it",
    "diagnostics": "about Anthropic's own prompt cache",
    "inference_geo": "the region of Anthropic's servers",
    "mcp_servers": "llm's plugins take MCP servers from the user, not from a client",
    "service_tier": "Anthropic's priorities, with values that other providers don't know",
    "speed": "an option of one plugin only",
}

TOOL_NOT_CARRIED: Mapping[str, str] = {
    "strict": "llm has no field for it",
    "input_examples": "llm's tools have a schema only",
    "allowed_callers": "callers at Anthropic besides the model",
    "defer_loading": "the model always sees all tools",
    "eager_input_streaming": "arguments are always streamed as they come",
}
