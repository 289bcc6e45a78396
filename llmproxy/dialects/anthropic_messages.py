"""Anthropic's Messages: the wire of its SDKs and of Claude Code.

Read beside the vendor's page: the request's shapes and how they become the hub's,
the stream of blocks, the whole message, models, errors; then the other side, for the
converters: a request to a server of Anthropic's wire, and what it answers.

Spec: https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import llm
from llm.parts import (
    AttachmentPart,
    Message,
    Part,
    ReasoningPart,
    StreamEvent,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)

from .. import hub, payload, tokens
from ..errors import (
    Forbidden,
    InvalidRequest,
    NotFound,
    Overloaded,
    ProxyError,
    RateLimited,
    TooLarge,
    Unauthorized,
    Unsupported,
    UpstreamError,
    UpstreamTimeout,
    class_of_status,
)
from ..hub import Route
from ..transport import framing

__all__ = [
    "CUT_AFTER_ERROR",
    "NAME",
    "REQUEST_ID_HEADER",
    "ROUTES",
    "STREAM_TYPE",
    "VERSION_HEADER",
    "CreateMessageRequest",
    "StreamParser",
    "StreamRenderer",
    "parse_error",
    "parse_request",
    "parse_response",
    "render_count",
    "render_error",
    "render_model",
    "render_models",
    "render_request",
    "render_response",
    "tool_names",
]

NAME = "anthropic_messages"

ROUTES: tuple[Route, ...] = (
    Route("POST", "/v1/messages", "chat"),
    Route("POST", "/v1/messages/count_tokens", "count_tokens"),
    Route("GET", "/v1/models", "models"),
    Route("GET", "/v1/models/", "model"),
)

STREAM_TYPE = "text/event-stream; charset=utf-8"
REQUEST_ID_HEADER = "request-id"
VERSION_HEADER = "anthropic-version"  # tells its clients apart where routes are shared
CUT_AFTER_ERROR = False  # an error event is a proper end here

MAX_USER_ID_CHARS = 64  # longer ones are refused by other providers; Claude Code's has 130

# ---- request: shapes, with the names of Anthropic's SDK


@dataclass(frozen=True)
class Base64Source:
    type: Literal["base64"]
    data: str
    media_type: str | None = None


@dataclass(frozen=True)
class URLSource:
    type: Literal["url"]
    url: str


@dataclass(frozen=True)
class FileSource:
    type: Literal["file"]
    file_id: str


@dataclass(frozen=True)
class PlainTextSource:
    type: Literal["text"]
    data: str
    media_type: str | None = None


@dataclass(frozen=True)
class TextBlock:
    type: Literal["text"]
    text: str
    citations: Any = None
    cache_control: Any = None


@dataclass(frozen=True)
class ImageBlock:
    type: Literal["image"]
    source: Base64Source | URLSource | FileSource
    cache_control: Any = None


@dataclass(frozen=True)
class ContentBlockSource:
    type: Literal["content"]
    content: str | list[TextBlock | ImageBlock]


@dataclass(frozen=True)
class DocumentBlock:
    type: Literal["document"]
    source: Base64Source | URLSource | FileSource | PlainTextSource | ContentBlockSource
    title: str | None = None
    context: str | None = None
    citations: Any = None
    cache_control: Any = None


@dataclass(frozen=True)
class SearchResultBlock:
    type: Literal["search_result"]
    content: list[TextBlock]
    source: str = ""
    title: str = ""
    citations: Any = None
    cache_control: Any = None


@dataclass(frozen=True)
class ToolReferenceBlock:
    type: Literal["tool_reference"]
    tool_name: str
    cache_control: Any = None


@dataclass(frozen=True)
class ThinkingBlock:
    type: Literal["thinking"]
    thinking: str = ""
    signature: str | None = None
    cache_control: Any = None


@dataclass(frozen=True)
class RedactedThinkingBlock:
    type: Literal["redacted_thinking"]
    data: str
    cache_control: Any = None


@dataclass(frozen=True)
class ToolUseBlock:
    type: Literal["tool_use", "server_tool_use", "mcp_tool_use"]
    id: str
    name: str
    input: dict[str, Any] | None = None
    caller: Any = None
    server_name: str | None = None  # of mcp_tool_use
    cache_control: Any = None


@dataclass(frozen=True)
class OtherBlock:
    """A block of a kind that we do not know, as it came; ours, no client sends it."""

    type: Literal["other"]
    block: dict[str, Any]


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class ServerToolResultBlock:
    """What a tool of the provider's own gave; its content is the provider's to read."""

    type: Literal[
        "web_search_tool_result",
        "web_fetch_tool_result",
        "code_execution_tool_result",
        "bash_code_execution_tool_result",
        "text_editor_code_execution_tool_result",
        "tool_search_tool_result",
        "mcp_tool_result",
    ]
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


@dataclass(frozen=True)
class MessageParam:
    """One turn; a system's is no head but an instruction in its place (C1, B31)."""

    role: Literal["user", "assistant", "system"]
    content: str | list[ContentBlock]


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class ToolChoice:
    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: bool | None = None


@dataclass(frozen=True)
class ToolChoiceTool:
    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool | None = None


@dataclass(frozen=True)
class ThinkingConfig:
    type: str
    budget_tokens: int | None = None
    display: str | None = None


@dataclass(frozen=True)
class JSONOutputFormat:
    schema: dict[str, Any]
    type: Literal["json_schema"] = "json_schema"


@dataclass(frozen=True)
class OutputConfig:
    effort: str | None = None
    format: JSONOutputFormat | None = None


@dataclass(frozen=True)
class Metadata:
    user_id: str | None = None


@dataclass(frozen=True)
class CreateMessageRequest:
    """The body of a request. Null means absent throughout, as SDKs write it.

    `max_tokens` may be absent, since count_tokens has the same body without it.
    """

    messages: list[MessageParam]
    model: str | None = None
    max_tokens: int | None = None
    system: str | list[TextBlock] | None = None
    tools: list[Tool | OtherBlock] | None = None
    tool_choice: ToolChoice | ToolChoiceTool | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    output_format: JSONOutputFormat | None = None  # its older name, under a beta
    metadata: Metadata | None = None
    cache_control: Any = None
    # Gone from the newest SDK's signature, sent all the same (d3).
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
    "container": "a sandbox at Anthropic, which other models do not have",
    "context_management": "what Anthropic clears of the history on its side; we are sent all of it",
    "diagnostics": "about Anthropic's own prompt cache",
    "inference_geo": "where Anthropic computes",
    "mcp_servers": "llm's plugins are told of MCP servers by the user, not by a client",
    "service_tier": "Anthropic's priorities, by other words than other providers'",
    "speed": "llm has no option for it that is not one plugin's own",
}

TOOL_NOT_CARRIED: Mapping[str, str] = {
    "strict": "llm has no word for it",
    "input_examples": "llm's tools have a schema alone",
    "allowed_callers": "who may call a tool at Anthropic besides the model",
    "defer_loading": "all tools are shown to the model at once",
    "eager_input_streaming": "arguments are streamed as they come",
}

# ---- request: to the hub


def parse_request(body: Any, headers: Mapping[str, str] | None = None) -> hub.ChatRequest:
    """Read the JSON value of a request's body as a hub.ChatRequest.

    Kept: system text, inline system messages in their places, text, images and
    documents as attachments (text documents and search results as text), thinking with
    its signature, tool calls and results (those of a user's message come before the rest
    of it), the provider's own tools and what they gave; options, schema. `cache_control`
    marks and Claude Code's billing line are no part of a message (DESIGN 1). Blocks of
    unknown kinds are left out and listed.

    Raises:
        InvalidRequest: a body that is no such request, `param` naming the field.
        Unsupported: files by id, and conversations that the server is to remember (C5).

    Spec: https://docs.anthropic.com/en/api/messages
    """
    _refuse_threads(body)
    ignored: list[str] = []
    request = payload.load(CreateMessageRequest, _with_others_wrapped(body), ignored)
    ignored += [name for name in NOT_CARRIED if getattr(request, name) not in (None, "auto")]
    reader = _MessageReader(ignored)
    if request.cache_control is not None:
        reader.has_cache_marks = True
    reader.read_system(request.system)
    if not request.messages:
        raise InvalidRequest("there is no message to answer", param="messages")
    for i, message in enumerate(request.messages):
        reader.read(message, f"messages[{i}]")
    if not any(message.parts for message in reader.messages[reader.leading :]):
        raise InvalidRequest("there is no message to answer", param="messages")
    reader.check_all_answered(f"messages[{len(request.messages)}]")
    tools, server_tools = _tools(request, reader)
    options = _options(request, ignored)
    if reader.has_cache_marks:
        options["cache"] = True
    wanted = (request.output_config and request.output_config.format) or request.output_format
    return hub.ChatRequest(
        model=request.model or None,
        messages=reader.messages,
        tools=tools,
        server_tools=server_tools,
        tool_choice=_tool_choice(request, tools, ignored),
        options=options,
        schema=(wanted.schema or None) if wanted else None,
        stream=bool(request.stream),
        option_paths=OPTION_PATHS,
        attachment_paths=tuple(reader.attachment_paths),
        ignored=tuple(dict.fromkeys(ignored)),
    )


OPTION_PATHS: Mapping[str, str] = {
    "cache": "cache_control",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "reasoning_effort": "output_config.effort",
    "schema": "output_config.format",
    "thinking_budget": "thinking.budget_tokens",
    "user": "metadata.user_id",
}


def _refuse_threads(body: Any) -> None:
    """Say in the vendor's own words that the whole history is needed: its SDK then sends it."""
    if not isinstance(body, dict):
        return
    for name in ("thread", "previous_message_id"):
        if body.get(name) is not None:
            raise Unsupported(
                "no threads are kept here: send the whole conversation",
                param=name,
                code="thread_unsupported_request",
            )


_BLOCK_TYPES = frozenset(
    "text image document search_result thinking redacted_thinking tool_use server_tool_use"
    " mcp_tool_use tool_result web_search_tool_result web_fetch_tool_result"
    " code_execution_tool_result bash_code_execution_tool_result"
    " text_editor_code_execution_tool_result tool_search_tool_result mcp_tool_result".split()
)
_RESULT_TYPES = frozenset("text image document search_result tool_reference".split())


def _with_others_wrapped(body: Any) -> Any:
    """Put what is of a kind that no shape has into an OtherBlock, so that it can be listed.

    Nothing of the body is edited; what is not of the expected form is left for the check.
    """
    if not isinstance(body, dict):
        return body
    wrapped = dict(body)
    if isinstance(body.get("messages"), list):
        wrapped["messages"] = [_message_wrapped(message) for message in body["messages"]]
    if isinstance(body.get("tools"), list):
        wrapped["tools"] = [_tool_wrapped(tool) for tool in body["tools"]]
    return wrapped


def _message_wrapped(message: Any) -> Any:
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return message
    return message | {"content": [_wrapped(b, _BLOCK_TYPES) for b in message["content"]]}


def _wrapped(block: Any, known: frozenset[str]) -> Any:
    match block:
        case {"type": "tool_result", "content": list(content)} if "tool_result" in known:
            return block | {"content": [_wrapped(b, _RESULT_TYPES) for b in content]}
        case {"type": str(type_)} if type_ not in known:
            return {"type": "other", "block": block}
    return block


def _tool_wrapped(tool: Any) -> Any:
    match tool:
        case {"type": str(type_)} if type_ != "custom":
            return {"type": "other", "block": tool}
        case {"type": None}:
            return tool | {"type": "custom"}
        case dict():
            return {"type": "custom"} | tool
    return tool


def _options(request: CreateMessageRequest, ignored: list[str]) -> dict[str, Any]:
    """Give the options by the hub's names."""
    options: dict[str, Any] = {
        name: getattr(request, name) for name in ("temperature", "top_p", "top_k")
    }
    if request.max_tokens is not None and request.max_tokens < 1:
        ignored.append("max_tokens")
    else:
        options["max_tokens"] = request.max_tokens
    entries = [entry for entry in request.stop_sequences or () if entry]
    options["stop_sequences"] = [entry for entry in entries if entry.strip()] or None
    if any(not entry.strip() for entry in entries):
        ignored.append("stop_sequences")  # providers refuse white space alone (B30)
    if request.thinking is not None:
        options["thinking"] = request.thinking.type != "disabled"
        options["thinking_budget"] = request.thinking.budget_tokens
        if request.thinking.display is not None:
            ignored.append("thinking.display")
    if request.output_config is not None:
        options["reasoning_effort"] = request.output_config.effort
    user = request.metadata.user_id if request.metadata else None
    if user is not None and len(user) > MAX_USER_ID_CHARS:
        ignored.append("metadata.user_id")
    else:
        options["user"] = user or None
    if request.tool_choice is not None and request.tool_choice.disable_parallel_tool_use:
        options["parallel_tool_calls"] = False
    return {name: value for name, value in options.items() if value is not None}


def _tools(
    request: CreateMessageRequest, reader: _MessageReader
) -> tuple[tuple[llm.Tool, ...], tuple[hub.ServerTool, ...]]:
    tools: list[llm.Tool] = []
    server_tools: list[hub.ServerTool] = []
    for i, tool in enumerate(request.tools or ()):
        if isinstance(tool, OtherBlock):
            server_tools.append(_server_tool(tool.block, f"tools[{i}]"))
            reader.note_mark(tool.block.get("cache_control"))
            continue
        reader.ignored += [f"tools[*].{name}" for name in TOOL_NOT_CARRIED if getattr(tool, name)]
        reader.note_mark(tool.cache_control)
        schema = tool.input_schema or {"type": "object", "properties": {}}
        tools.append(llm.Tool(tool.name, tool.description, schema))
    return tuple(tools), tuple(server_tools)


_DATE = re.compile(r"_\d{8}$")


def _server_tool(tool: Mapping[str, Any], path: str) -> hub.ServerTool:
    """Name it without the date of its version: the plugin chooses one that the model has."""
    config = {
        name: value
        for name, value in tool.items()
        if name not in ("type", "name", "cache_control") and value is not None
    }
    return hub.ServerTool(_DATE.sub("", tool["type"]), config, path)


def _tool_choice(
    request: CreateMessageRequest, tools: tuple[llm.Tool, ...], ignored: list[str]
) -> hub.ToolChoice:
    match request.tool_choice:
        case ToolChoice(type="any"):
            return "required"
        case ToolChoice(type="none"):
            return "none"
        case ToolChoiceTool(name=name):
            if name in {tool.name for tool in tools}:
                return hub.NamedTool(name)
            others = [t.block for t in request.tools or () if isinstance(t, OtherBlock)]
            if name not in {other.get("name") for other in others}:
                raise InvalidRequest(
                    f"there is no tool {name!r} in this request", param="tool_choice.name"
                )
            ignored.append("tool_choice")  # no plugin forces the provider's own tools
    return "auto"


# A line of Claude Code's that is another one on each request: neither for models nor
# for hashes (B32). The exchange keeps the request as it came.
_BILLING_LINE = re.compile(r"\Ax-anthropic-billing-header:[^\n]*\n*")


class _MessageReader:
    """Read messages in order, keeping the tool calls that still wait for their results."""

    def __init__(self, ignored: list[str]) -> None:
        self.messages: list[Message] = []
        self.attachment_paths: list[str] = []
        self.ignored = ignored
        self.has_cache_marks = False
        self.leading = 0  # messages that came of the request's `system`
        self._waiting: dict[str, str] = {}  # tool_call_id → name

    def note_mark(self, cache_control: Any) -> None:
        self.has_cache_marks = self.has_cache_marks or cache_control is not None

    def read_system(self, system: str | Iterable[TextBlock] | None) -> None:
        parts = [
            TextPart(text)
            for part in self._parts(system or "", "system")
            if isinstance(part, TextPart) and (text := _BILLING_LINE.sub("", part.text))
        ]
        if parts:
            self.messages.append(Message("system", list[Part](parts)))
            self.leading = 1

    def read(self, message: MessageParam, path: str) -> None:
        blocks = message.content
        if not isinstance(blocks, str):
            results = [b for b in blocks if isinstance(b, ToolResultBlock)]
            if results and message.role != "user":
                raise InvalidRequest("tool results stand in a user's message", param=path)
            for i, block in enumerate(blocks):
                if isinstance(block, ToolResultBlock):
                    self._add_result(self._tool_result(block, f"{path}.content[{i}]"))
        if message.role == "assistant":
            self.check_all_answered(path)
        parts = list(self._parts(blocks, f"{path}.content", message.role))
        if not parts:
            return  # nothing is said, or nothing but results (B28)
        if message.role == "user":
            self.check_all_answered(path)
        self.messages.append(Message(message.role, parts))

    def check_all_answered(self, path: str) -> None:
        """Refuse a history that no provider would take, in words that say why (B27)."""
        if self._waiting:
            ids = ", ".join(self._waiting)
            raise InvalidRequest(f"expected the results of the tool calls {ids} here", param=path)

    def _parts(
        self, content: str | Iterable[Any], path: str, role: str = "system"
    ) -> Iterator[Part]:
        if isinstance(content, str):
            if content:
                yield TextPart(content)
            return
        for i, block in enumerate(content):
            where = f"{path}[{i}]"
            if not isinstance(block, OtherBlock):
                self.note_mark(block.cache_control)
            match block:
                case ToolResultBlock():
                    pass  # read before
                case TextBlock() | ImageBlock() | DocumentBlock() | SearchResultBlock():
                    if role == "system" and not isinstance(block, TextBlock):
                        raise InvalidRequest("a system message has text alone", param=where)
                    yield from self._shown(block, where)
                case OtherBlock():
                    self._ignore_kind(block, path)
                case _ if role != "assistant":
                    raise InvalidRequest(
                        f"{block.type} stands in an assistant's message", param=where
                    )
                case _:
                    yield from self._said(block, where)

    def _ignore_kind(self, block: OtherBlock, path: str) -> None:
        self.note_mark(block.block.get("cache_control"))
        everywhere = re.sub(r"\[\d+\]", "[*]", path)
        self.ignored.append(f"{everywhere}[*] ({block.block['type'][:40]})")

    def _shown(self, block: Any, path: str) -> Iterator[Part]:
        """Read what anyone may show: text, images, documents."""
        match block:
            case TextBlock(text=text):
                if block.citations:
                    self._ignore_field(path, "citations")
                if text:
                    yield TextPart(text)
            case SearchResultBlock():
                texts = [part.text for part in block.content]
                lines = [line for line in (block.title, block.source) if line]
                yield TextPart("\n\n".join(["\n".join(lines), *texts]).strip())
                for part in block.content:
                    self.note_mark(part.cache_control)
            case DocumentBlock():
                for name in ("title", "context"):
                    if getattr(block, name):
                        self._ignore_field(path, name)
                if isinstance(block.citations, dict) and block.citations.get("enabled"):
                    self._ignore_field(path, "citations")
                yield from self._source(block.source, f"{path}.source", "application/pdf")
            case ImageBlock():
                yield from self._source(block.source, f"{path}.source", None)

    def _ignore_field(self, path: str, name: str) -> None:
        self.ignored.append(re.sub(r"\[\d+\]", "[*]", path) + f".{name}")

    def _source(self, source: Any, path: str, media_type: str | None) -> Iterator[Part]:
        match source:
            case PlainTextSource(data=text):
                if text:
                    yield TextPart(text)
            case ContentBlockSource(content=content):
                yield from self._parts(content, f"{path}.content", "user")
            case Base64Source(data=data):
                path = f"{path}.data"
                attachment = hub.attachment_from_base64(
                    data, source.media_type or media_type, param=path
                )
                self.attachment_paths.append(path)
                yield AttachmentPart(attachment)
            case URLSource(url=url):
                path = f"{path}.url"
                attachment = hub.attachment_from_url(url, param=path)
                if media_type and attachment.url and attachment.type == "image/*":
                    attachment = hub.RemoteAttachment(type=media_type, url=attachment.url)
                self.attachment_paths.append(path)
                yield AttachmentPart(attachment)
            case FileSource():
                raise Unsupported(
                    "files are taken as base64 data; no files are kept here",
                    param=f"{path}.file_id",
                )

    def _said(self, block: Any, path: str) -> Iterator[Part]:
        """Read what only an answer has. llm-anthropic's own forms, which it sends back so."""
        match block:
            case ThinkingBlock(thinking=text, signature=signature):
                if text or signature:
                    yield ReasoningPart(text, provider_metadata=_signed(signature))
            case RedactedThinkingBlock(data=data):
                yield ReasoningPart("", provider_metadata=_redacted(data))
            case ToolUseBlock():
                if isinstance(block.caller, dict) and block.caller.get("type") != "direct":
                    self._ignore_field(path, "caller")
                server_executed = block.type != "tool_use"
                if not server_executed:
                    self._waiting[block.id] = block.name
                yield ToolCallPart(
                    block.name,
                    block.input or {},
                    tool_call_id=block.id,
                    server_executed=server_executed,
                    provider_metadata=_mcp_server(block.server_name),
                )
            case ServerToolResultBlock():
                yield ToolResultPart(
                    name=block.type.removesuffix("_tool_result"),
                    output=_server_output(block.content),
                    tool_call_id=block.tool_use_id,
                    server_executed=True,
                    exception="error" if block.is_error else None,
                )

    def _tool_result(self, block: ToolResultBlock, path: str) -> ToolResultPart:
        if block.tool_use_id not in self._waiting:
            raise InvalidRequest(
                f"no tool call {block.tool_use_id!r} waits for a result here",
                param=f"{path}.tool_use_id",
            )
        self.note_mark(block.cache_control)
        content: list[Part] = []
        for i, item in enumerate([] if isinstance(block.content, str) else block.content or ()):
            if isinstance(item, ToolReferenceBlock):
                # With tool search the definition comes in the request's tools (C4).
                content.append(TextPart(f"tool found: {item.tool_name}"))
            elif isinstance(item, OtherBlock):
                self._ignore_kind(item, f"{path}.content")
            else:
                self.note_mark(item.cache_control)
                content += self._shown(item, f"{path}.content[{i}]")
        texts = [part.text for part in content if isinstance(part, TextPart)]
        return ToolResultPart(
            name=self._waiting.pop(block.tool_use_id),
            output=block.content if isinstance(block.content, str) else "\n".join(texts),
            tool_call_id=block.tool_use_id,
            exception="error" if block.is_error else None,
            attachments=[
                part.attachment
                for part in content
                if isinstance(part, AttachmentPart) and part.attachment is not None
            ],
        )

    def _add_result(self, result: ToolResultPart) -> None:
        if self.messages[-1].role == "tool":
            self.messages[-1].parts.append(result)
        else:
            self.messages.append(Message("tool", [result]))


def _signed(signature: str | None) -> dict[str, Any] | None:
    return {"anthropic": {"signature": signature}} if signature else None


def _redacted(data: str) -> dict[str, Any]:
    return {"anthropic": {"type": "redacted_thinking", "data": data}}


def _mcp_server(name: str | None) -> dict[str, Any] | None:
    return {"anthropic": {"mcp_server_name": name}} if name else None


def _server_output(content: Any) -> str:
    """Write a result of the provider's tool as llm-anthropic does: JSON, nothing as ""."""
    return "" if content in (None, [], "") else json.dumps(content)


# ---- request: from the hub

MAX_TOKENS = 4096  # what is asked for where the client set no limit: Anthropic wants one
MIN_THINKING_BUDGET_TOKENS = 1024  # Anthropic refuses less, and a budget not below max_tokens
FILLER = "(continue)"  # Anthropic begins with a user's turn, and ends with one unless it is prefill

EFFORTS: Mapping[str, str] = {word: word for word in ("low", "medium", "high", "xhigh", "max")} | {
    "minimal": "low"
}

# The plugin chooses a version for its model; here it is the one that all models take.
SERVER_TOOL_TYPES: Mapping[str, str] = {
    "web_search": "web_search_20250305",
    "web_fetch": "web_fetch_20250910",
}


def render_request(
    request: hub.ChatRequest, *, max_tokens: int = MAX_TOKENS
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Write a request's body, and list the paths of what this wire can't carry.

    Leading system messages become `system`; a later one stays where it is after a
    user's turn, and elsewhere is marked text of the next (B31). Turns of one role are
    joined, tool results stand first in theirs (B27), blank text is left out (B28); of a
    final answer (prefill) trailing white space is stripped (B29). Thinking that
    Anthropic did not sign is left out. Where thinking is on, sampling knobs are not
    sent. Names of tools that Anthropic refuses are changed as `tool_names` says.

    Raises:
        InvalidRequest: tool calls and results that do not belong together.

    Spec: https://docs.anthropic.com/en/api/messages
    """
    names = tool_names(request)
    writer = _MessageWriter(request, names)
    for message in request.messages:
        writer.write(message)
    writer.end()
    ignored = writer.ignored
    ignored += [f"tools[*].name ({old[:80]})" for old, new in names.items() if old != new]
    limit = request.options.get("max_tokens", max_tokens)
    body: dict[str, Any] = {} if request.model is None else {"model": request.model}
    body |= {"max_tokens": limit, "messages": writer.messages}
    if writer.system:
        body["system"] = _shortest(writer.system)
    tools = [_tool(tool, names) for tool in request.tools]
    for server_tool in request.server_tools:
        if server_tool.name in SERVER_TOOL_TYPES:
            type_ = SERVER_TOOL_TYPES[server_tool.name]
            tools.append({"type": type_, "name": server_tool.name, **server_tool.config})
        else:
            ignored.append(server_tool.path)
    if tools:
        body["tools"] = tools
    if (choice := _rendered_choice(request, names)) is not None:
        if tools:
            body["tool_choice"] = choice
        elif request.tool_choice not in ("auto", "none"):
            ignored.append("tool_choice")
    body |= _option_fields(request, limit, ignored)
    if request.stream:
        body["stream"] = True
    return body, tuple(dict.fromkeys(ignored))


_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def tool_names(request: hub.ChatRequest) -> dict[str, str]:
    """Give for each of a request's tools the name that it has on this wire.

    Most keep theirs; to read an answer, look a changed one up the other way round.
    """
    names = {tool.name: tool.name for tool in request.tools if _TOOL_NAME.fullmatch(tool.name)}
    for tool in request.tools:
        if tool.name not in names:
            names[tool.name] = _fitted(tool.name, set(names.values()))
    return names


def _fitted(name: str, taken: set[str] | frozenset[str] = frozenset()) -> str:
    fitted = re.sub(r"[^a-zA-Z0-9_-]", "_", name)[:64] or "_"
    for number in range(2, len(taken) + 3):
        if fitted not in taken:
            break
        fitted = f"{fitted[:60]}_{number}"
    return fitted


def _tool(tool: llm.Tool, names: Mapping[str, str]) -> dict[str, Any]:
    rendered: dict[str, Any] = {"name": names[tool.name]}
    if tool.description is not None:
        rendered["description"] = tool.description
    return rendered | {"input_schema": tool.input_schema}


def _rendered_choice(request: hub.ChatRequest, names: Mapping[str, str]) -> dict[str, Any] | None:
    match request.tool_choice:
        case hub.NamedTool(name=name):
            choice: dict[str, Any] = {"type": "tool", "name": names.get(name, name)}
        case "required":
            choice = {"type": "any"}
        case word:
            choice = {"type": word}
    if request.options.get("parallel_tool_calls") is False and choice["type"] != "none":
        return choice | {"disable_parallel_tool_use": True}
    return None if choice == {"type": "auto"} else choice


def _option_fields(request: hub.ChatRequest, max_tokens: int, ignored: list[str]) -> dict[str, Any]:
    options = dict(request.options)
    fields: dict[str, Any] = {}
    thinking = _thinking(options, max_tokens)
    if thinking is not None:
        fields["thinking"] = thinking
    elif options.get("thinking"):
        ignored.append(request.option_paths.get("thinking", "thinking"))
    is_thinking = thinking is not None and thinking["type"] != "disabled"
    output: dict[str, Any] = {}
    for name, value in options.items():
        match name:
            case "max_tokens" | "thinking" | "thinking_budget" | "parallel_tool_calls":
                continue  # elsewhere
            case "temperature" if not is_thinking and 0 <= value <= 1:
                fields[name] = value
            case "top_p" | "top_k" if not is_thinking and (
                name == "top_k" or "temperature" not in options  # refused together
            ):
                fields[name] = value
            case "stop_sequences":
                carried = [entry for entry in value if entry.strip()]
                if carried:
                    fields[name] = carried
                if carried != list(value):
                    ignored.append(request.option_paths.get(name, name))
            case "reasoning_effort" if value in EFFORTS:
                output["effort"] = EFFORTS[value]
            case "reasoning_effort" if value == "none" and thinking is None:
                fields["thinking"] = {"type": "disabled"}
            case "user":
                fields["metadata"] = {"user_id": value}
            case "cache":
                fields["cache_control"] = {"type": "ephemeral"}
            case _:
                ignored.append(request.option_paths.get(name, name))
    if request.schema is not None:
        output["format"] = {"type": "json_schema", "schema": request.schema}
    return fields | ({"output_config": output} if output else {})


def _thinking(options: Mapping[str, Any], max_tokens: int) -> dict[str, Any] | None:
    """Give the field, with a budget that Anthropic takes; None where there is no room for it."""
    budget = options.get("thinking_budget")
    if options.get("thinking", budget is not None or None) is None:
        return None
    if options.get("thinking") is False:
        return {"type": "disabled"}
    if budget is None:
        return {"type": "adaptive"}
    if max_tokens <= MIN_THINKING_BUDGET_TOKENS:
        return None
    budget = max(MIN_THINKING_BUDGET_TOKENS, min(budget, max_tokens - 1))
    return {"type": "enabled", "budget_tokens": budget}


class _MessageWriter:
    """Write messages in order, listing what they can't hold here."""

    def __init__(self, request: hub.ChatRequest, names: Mapping[str, str]) -> None:
        self.system: list[dict[str, Any]] = []
        self.messages: list[dict[str, Any]] = []
        self.ignored: list[str] = []
        self._names = names
        self._attachment_paths = iter(request.attachment_paths)
        self._ends_in_answer = bool(request.messages) and request.messages[-1].role == "assistant"
        self._waiting: dict[str, None] = {}  # ids of calls without a result yet
        self._held: list[Message] = []  # system messages from between a call and its result

    def write(self, message: Message) -> None:
        blocks = [block for part in message.parts for block in self._blocks(part)]
        match message.role:
            case "system" if not self.messages:
                self.system += blocks
            case "system" if self._waiting:
                self._held.append(message)
            case "system":
                self._add_system(blocks)
            case "tool":
                self._add_results(blocks)
            case "assistant":
                self._add("assistant", blocks)
            case _:
                self._add("user", blocks)

    def end(self) -> None:
        """Mend the two ends."""
        self._check_all_answered()
        if self.messages and self.messages[-1]["role"] == "assistant":
            if self._ends_in_answer:
                self._strip_prefill()
            else:
                self._fill(len(self.messages))  # a blank user turn is no prefill (B29)
        if not self.messages or self.messages[0]["role"] != "user":
            self._fill(0)
        for message in self.messages:
            message["content"] = _shortest(message["content"])

    def _fill(self, place: int) -> None:
        block = {"type": "text", "text": FILLER}
        self.messages.insert(place, {"role": "user", "content": [block]})
        self.ignored.append("messages[*] (a user's turn put in, which Anthropic asks for)")

    def _strip_prefill(self) -> None:
        content = self.messages[-1]["content"]
        if content[-1]["type"] == "text":
            content[-1]["text"] = content[-1]["text"].rstrip()

    def _add(self, role: str, blocks: list[dict[str, Any]]) -> None:
        if not blocks:
            return
        self._check_all_answered()
        if self.messages and self.messages[-1]["role"] == role:
            self.messages[-1]["content"] += blocks
        else:
            self.messages.append({"role": role, "content": blocks})
        self._waiting = {b["id"]: None for b in blocks if b["type"] == "tool_use"}

    def _add_system(self, blocks: list[dict[str, Any]]) -> None:
        if not blocks:
            return
        if self.messages[-1]["role"] in ("user", "system"):
            self._add("system", blocks)
            return
        for block in blocks:
            block["text"] = f"<system>\n{block['text']}\n</system>"
        self._add("user", blocks)
        self.ignored.append("messages[*] (a system message, made part of a user's)")

    def _add_results(self, blocks: list[dict[str, Any]]) -> None:
        for block in blocks:
            if block["tool_use_id"] not in self._waiting:
                raise InvalidRequest(
                    f"no tool call {block['tool_use_id']!r} waits for a result", param="messages"
                )
            del self._waiting[block["tool_use_id"]]
        if self.messages[-1]["role"] == "user":
            self.messages[-1]["content"] += blocks
        else:
            self.messages.append({"role": "user", "content": blocks})
        if not self._waiting:
            held, self._held = self._held, []
            for message in held:
                self.write(message)

    def _check_all_answered(self) -> None:
        if self._waiting:
            ids = ", ".join(self._waiting)
            raise InvalidRequest(f"expected the results of the tool calls {ids}", param="messages")

    def _blocks(self, part: Part) -> list[dict[str, Any]]:
        match part:
            case TextPart(text=text):
                return [{"type": "text", "text": text}] if text.strip() else []
            case AttachmentPart(attachment=attachment) if attachment is not None:
                return self._attachment(attachment)
            case ToolResultPart(server_executed=False):
                return [self._result(part)]
            case ReasoningPart() if not _anthropics(part.provider_metadata):
                self.ignored.append("messages[*] (reasoning that Anthropic did not sign)")
                return []
        block = _block(part)
        if block is None:
            self.ignored.append("messages[*] (a server tool's call and result)")
            return []
        if block["type"] == "tool_use":
            name = self._names.get(block["name"]) or _fitted(block["name"])
            block |= {"id": _fitted_id(block["id"]), "name": name}
        block.pop("caller", None)
        return [block]

    def _result(self, part: ToolResultPart) -> dict[str, Any]:
        content: str | list[dict[str, Any]] = part.output
        images = [block for a in part.attachments for block in self._attachment(a)]
        if images:
            text = [{"type": "text", "text": part.output}] if part.output.strip() else []
            content = [*text, *images]
        block = {
            "type": "tool_result",
            "tool_use_id": _fitted_id(part.tool_call_id),
            "content": content,
        }
        return block if part.exception is None else block | {"is_error": True}

    def _attachment(self, attachment: llm.Attachment) -> list[dict[str, Any]]:
        path = next(self._attachment_paths, "messages[*] (an attachment)")
        type_ = attachment.type or ""
        kind = "image" if type_.startswith("image/") else "document"
        if type_.startswith("text/") and attachment.content is not None:
            text = attachment.content.decode("utf-8", "replace")
            source = {"type": "text", "media_type": "text/plain", "data": text}
            return [{"type": kind, "source": source}]
        if kind == "document" and type_ != "application/pdf":
            self.ignored.append(path)
            return []
        if attachment.url is not None:
            return [{"type": kind, "source": {"type": "url", "url": attachment.url}}]
        if attachment.content is None:  # a file of this machine: never opened
            self.ignored.append(path)
            return []
        data = base64.b64encode(attachment.content).decode()
        return [{"type": kind, "source": {"type": "base64", "media_type": type_, "data": data}}]


def _fitted_id(id_: str | None) -> str:
    return re.sub(r"[^a-zA-Z0-9_-]", "_", id_ or "") or "_"


def _shortest(blocks: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """One text as a string, which every server of this wire takes."""
    match blocks:
        case [{"type": "text", "text": str(text)}]:
            return text
    return blocks


# ---- the answer as a stream


class StreamRenderer:
    """Render hub events as Anthropic's events. Feed in order; Finish is last.

    Blocks follow one another (B20): of tool calls that come interleaved the later ones
    wait until the earlier is whole. Text of white space alone makes no block, since
    Anthropic's own servers refuse it in the next request (B28). Of what a provider ran
    by itself only Anthropic's own is shown, which alone has a form here.

    Spec: https://docs.anthropic.com/en/api/messages-streaming
    """

    def __init__(self, request: hub.ChatRequest, id: str, created: int) -> None:
        """`id` is the exchange's; `created` has no place on this wire."""
        self._request = request
        self._id = id
        self._input_tokens = _input_tokens_estimate(request)
        self._index = -1  # of the block begun last
        self._kind: Literal["text", "thinking", "result"] | None = None  # of the open block
        self._part: int | None = None  # whose the open block is
        self._before = b""  # all of a delta's frame before its text, the same within a block
        self._signature = ""
        self._result: list[StreamEvent] = []
        self._blank: dict[int | None, str] = {}  # part_index → white space that may begin a text
        self._calls: dict[int | None, _Call] = {}  # those not ended; the first is the open one
        self._ended_calls: set[int | None] = set()

    def start(self) -> list[bytes]:
        """Give message_start, whose usage is an estimate until the end corrects it (B23)."""
        usage = _usage({"input_tokens": self._input_tokens, "output_tokens": 1})
        message = _message(self._request, self._id, [], usage)
        return [_event("message_start", {"message": message})]

    def feed(self, event: hub.Event) -> list[bytes]:
        """Give the frames of one event: none for what waits, or what this wire does not show."""
        match event:
            case hub.Finish():
                return self._end(event)
            case StreamEvent(type="text", chunk=text):
                if self._part == event.part_index and self._kind == "text":
                    return [self._delta(text)] if text else []
                return self._begin_text(event.part_index, text)
            case StreamEvent(type="reasoning"):
                return self._reasoning(event)
            case StreamEvent(type="tool_call_name" | "tool_call_args"):
                return self._call(event)
            case StreamEvent(type="tool_result") if _is_anthropics(event.tool_call_id):
                return self._server_result(event)
        return []

    def idle(self) -> list[bytes]:
        """Give a keep-alive, which may stand anywhere."""
        return [_PING]

    def fail(self, error: ProxyError) -> list[bytes]:
        """Give the error event, a proper end of this wire's streams."""
        body = render_error(error) | {"request_id": self._id}
        return [framing.encode_sse(payload.encode(body), "error")]

    def _delta(self, text: str) -> bytes:
        return b"%b%b}}\n\n" % (self._before, payload.encode_string(text).encode())

    def _begin_text(self, part: int | None, text: str) -> list[bytes]:
        text = self._blank.pop(part, "") + text
        if not text or text.isspace():
            self._blank[part] = text
            return []
        frames = self._open("text", part, {"type": "text", "text": "", "citations": []})
        return [*frames, self._delta(text)]

    def _reasoning(self, event: StreamEvent) -> list[bytes]:
        metadata = _anthropics(event.provider_metadata)
        if _is_redacted(metadata):
            return [*self._close(), *self._whole_block(_redacted_block(metadata))]
        signature = metadata.get("signature")
        if not event.chunk and not signature:
            return []
        frames: list[bytes] = []
        if self._part != event.part_index or self._kind != "thinking":
            frames = self._open("thinking", event.part_index, _thinking_block("", ""))
        if event.chunk:
            frames.append(self._delta(event.chunk))
        if signature:
            self._signature = str(signature)  # the last one counts, and comes last
        return frames

    def _server_result(self, event: StreamEvent) -> list[bytes]:
        frames: list[bytes] = []
        if self._part != event.part_index or self._kind != "result":
            frames = self._close()
            self._kind, self._part = "result", event.part_index
        self._result.append(event)
        return frames

    # -- blocks

    def _open(
        self, kind: Literal["text", "thinking"], part: int | None, block: dict[str, Any]
    ) -> list[bytes]:
        frames = self._close()
        self._kind, self._part = kind, part
        return [*frames, self._start_block(block, f"{kind}_delta", kind)]

    def _start_block(self, block: dict[str, Any], delta: str, field: str) -> bytes:
        self._index += 1
        head = payload.encode({"type": "content_block_delta", "index": self._index})
        self._before = b'event: content_block_delta\ndata: %b,"delta":{"type":"%b","%b":' % (
            head[:-1],
            delta.encode(),
            field.encode(),
        )
        return _event("content_block_start", {"index": self._index, "content_block": block})

    def _stop_block(self) -> bytes:
        return _event("content_block_stop", {"index": self._index})

    def _whole_block(self, block: dict[str, Any]) -> list[bytes]:
        return [self._start_block(block, "", ""), self._stop_block()]

    def _close(self) -> list[bytes]:
        """End what is open: the block of text, thinking or a result, or all calls."""
        frames: list[bytes] = []
        if self._kind == "result":
            output = "".join(event.chunk for event in self._result)
            first = self._result[0]
            block = _server_result_block(first.tool_name or "", first.tool_call_id, output)
            frames = self._whole_block(block)
        elif self._kind is not None:
            if self._signature:
                delta = {"type": "signature_delta", "signature": self._signature}
                fields = {"index": self._index, "delta": delta}
                frames.append(_event("content_block_delta", fields))
            frames.append(self._stop_block())
        self._kind, self._part, self._signature, self._result = None, None, "", []
        for part in list(self._calls):
            frames += self._end_call(part)
        return frames

    # -- tool calls

    def _call(self, event: StreamEvent) -> list[bytes]:
        if event.part_index in self._ended_calls or not _is_shown(event):
            return []
        frames: list[bytes] = []
        call = self._calls.get(event.part_index)
        if call is None:
            if self._kind is not None:
                frames = self._close()
            call = self._calls[event.part_index] = _Call(event)
        call.add(event)
        return frames + self._go_on()

    def _go_on(self) -> list[bytes]:
        """Send what may be sent of the first call, and of the next ones once it is whole."""
        frames: list[bytes] = []
        while self._calls:
            part, call = next(iter(self._calls.items()))
            if call.has_arguments:  # before, its name may still grow
                frames += self._call_so_far(call)
            if len(self._calls) == 1 or not call.is_whole:
                break
            frames += self._end_call(part)
        return frames

    def _call_so_far(self, call: _Call) -> list[bytes]:
        frames: list[bytes] = []
        if not call.is_open:
            call.is_open = True
            frames.append(self._start_block(call.block(), "input_json_delta", "partial_json"))
        text = call.take()
        return [*frames, self._delta(text)] if text else frames

    def _end_call(self, part: int | None) -> list[bytes]:
        frames = self._call_so_far(self._calls.pop(part))
        self._ended_calls.add(part)
        return [*frames, self._stop_block()]

    def _end(self, finish: hub.Finish) -> list[bytes]:
        delta = {**_stop(finish), "stop_details": None, "container": None}
        usage = _counts(finish.usage, self._input_tokens)
        return [
            *self._close(),
            _event("message_delta", {"delta": delta, "usage": usage}),
            _event("message_stop", {}),
        ]


_PING = b'event: ping\ndata: {"type":"ping"}\n\n'


class _Call:
    """A tool call that is not ended, as far as it has come, and what is not sent of it."""

    def __init__(self, first: StreamEvent) -> None:
        self.is_open = False
        self.has_arguments = False
        self._first = first
        self._name = ""
        self._arguments = ""
        self._unsent = ""

    def add(self, event: StreamEvent) -> None:
        if event.type == "tool_call_name":
            self._name += event.chunk
        else:
            self.has_arguments = True
            self._arguments += event.chunk
            self._unsent += event.chunk

    @property
    def is_whole(self) -> bool:
        """Whether the arguments are a JSON object, to which nothing can be added."""
        return self._arguments.rstrip().endswith("}") and "_raw" not in hub.parse_arguments(
            self._arguments
        )

    def take(self) -> str:
        """Give what is to be sent. White space alone is no arguments: it waits (B4)."""
        if self._unsent.isspace() and self._arguments == self._unsent:
            return ""
        text, self._unsent = self._unsent, ""
        return text

    def block(self) -> dict[str, Any]:
        first = self._first
        part = ToolCallPart(
            self._name,
            {},
            first.tool_call_id,
            first.server_executed,
            first.provider_metadata,
        )
        return _tool_use_block(part)


def _event(type_: str, fields: Mapping[str, Any]) -> bytes:
    return framing.encode_sse(payload.encode({"type": type_, **fields}), type_)


def _message(
    request: hub.ChatRequest,
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


STOP_REASONS: Mapping[hub.FinishReason, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}


def _stop(finish: hub.Finish) -> dict[str, str | None]:
    if finish.reason == "stop" and finish.stop_sequence is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": finish.stop_sequence}
    return {"stop_reason": STOP_REASONS[finish.reason], "stop_sequence": None}


def _input_tokens_estimate(request: hub.ChatRequest) -> int:
    known = request.wire.get("input_tokens_estimate")
    return known if isinstance(known, int) else max(1, tokens.estimate(request))


def _usage(counts: Mapping[str, Any]) -> dict[str, Any]:
    """The usage of a message: what is counted, and the keys that schema checkers ask for (C6)."""
    return {
        "cache_creation": None,
        "inference_geo": None,
        "output_tokens_details": None,
        "server_tool_use": None,
        "service_tier": None,
        **counts,
    }


def _counts(usage: hub.Usage, input_tokens_estimate: int) -> dict[str, Any]:
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


def _block(part: Part) -> dict[str, Any] | None:
    """Render a part of an answer; None for what this wire does not show."""
    match part:
        case TextPart(text=text) if text and not text.isspace():
            return {"type": "text", "text": text, "citations": []}
        case ReasoningPart(text=text):
            metadata = _anthropics(part.provider_metadata)
            if _is_redacted(metadata):
                return _redacted_block(metadata)
            signature = metadata.get("signature") or ""
            return _thinking_block(text, str(signature)) if text or signature else None
        case ToolCallPart() if _is_shown(part):
            return _tool_use_block(part)
        case ToolResultPart() if _is_anthropics(part.tool_call_id):
            return _server_result_block(part.name, part.tool_call_id, part.output)
    return None


def _anthropics(provider_metadata: Mapping[str, Any] | None) -> Mapping[str, Any]:
    metadata = (provider_metadata or {}).get("anthropic")
    return metadata if isinstance(metadata, dict) else {}


def _is_redacted(metadata: Mapping[str, Any]) -> bool:
    return metadata.get("type") == "redacted_thinking" and bool(metadata.get("data"))


def _redacted_block(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "redacted_thinking", "data": metadata["data"]}


def _thinking_block(text: str, signature: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": text, "signature": signature}


def _is_anthropics(tool_call_id: str | None) -> bool:
    """Whether a call that the provider ran was run by Anthropic: its ids say so."""
    return (tool_call_id or "").startswith(("srvtoolu_", "mcptoolu_"))


def _is_shown(call: StreamEvent | ToolCallPart) -> bool:
    return not call.server_executed or _is_anthropics(call.tool_call_id)


def _tool_use_block(call: ToolCallPart) -> dict[str, Any]:
    fields = {"id": call.tool_call_id, "name": call.name, "input": call.arguments}
    if not call.server_executed:
        return {"type": "tool_use", **fields, "caller": {"type": "direct"}}
    if (call.tool_call_id or "").startswith("mcptoolu_"):
        server_name = _anthropics(call.provider_metadata).get("mcp_server_name") or ""
        return {"type": "mcp_tool_use", **fields, "server_name": server_name}
    return {"type": "server_tool_use", **fields, "caller": {"type": "direct"}}


def _server_result_block(name: str, tool_call_id: str | None, output: str) -> dict[str, Any]:
    try:
        content = json.loads(output) if output else []
    except ValueError:
        content = output
    return {"type": f"{name}_tool_result", "tool_use_id": tool_call_id, "content": content}


# ---- the answer as a whole


def render_response(
    request: hub.ChatRequest,
    response: hub.ChatResponse,
    id: str,
    created: int,
) -> dict[str, Any]:
    """Render a whole answer as a message; the same content as its stream has.

    Spec: https://docs.anthropic.com/en/api/messages
    """
    content = [block for part in response.parts if (block := _block(part)) is not None]
    counts = _counts(response.finish.usage, _input_tokens_estimate(request))
    return _message(request, id, content, _usage(counts), _stop(response.finish))


# ---- the answer of another server


def parse_response(body: Any, headers: Mapping[str, str] | None = None) -> hub.ChatResponse:
    """Read another server's message; the same as its stream, collected, reads.

    Raises:
        ProxyError: the error that the body is, or UpstreamError where it is no message.
    """
    match body:
        case {"type": "error"}:
            raise parse_error(200, body, headers)
        case {"content": list(blocks), **fields}:
            parser = StreamParser()
            events = parser.feed_event({"type": "message_start", "message": fields})
            for index, block in enumerate(blocks):
                start = {"type": "content_block_start", "index": index, "content_block": block}
                events += parser.feed_event(start)
                events += parser.feed_event({"type": "content_block_stop", "index": index})
            events += parser.feed_event({"type": "message_delta", "delta": fields})
            return hub.collect(events + parser.end())
    raise UpstreamError("the upstream's answer is no message")


class StreamParser:
    """Read another server's stream of events as hub events. Feed its frames in order.

    Taken as they come in the field: pings, events and blocks of unknown kinds (listed in
    the Finish's `ignored`), usage in both places (the later counts overwrite), input
    both whole in a block's start and in deltas, deltas that do not fit their block.
    Finish is given at message_stop, or at the stream's end where that is missing.
    `model` is the answering model's name as soon as it was told.
    """

    def __init__(self) -> None:
        self.model: str | None = None
        self._blocks: dict[Any, _Block] = {}  # by the wire's index
        self._next_part = 0
        self._usage: dict[str, Any] = {}
        self._stop: dict[str, Any] | None = None
        self._ignored: dict[str, None] = {}
        self._is_finished = False

    def feed(self, frame: framing.SSEFrame) -> list[hub.Event]:
        """Give the events of one frame.

        Raises:
            ProxyError: the error that the frame is; UpstreamError where it is no event.
        """
        if self._is_finished or frame.data.strip() in ("", "[DONE]"):
            return []
        try:
            value = payload.parse(frame.data.encode())
        except InvalidRequest as exc:
            raise UpstreamError(f"an event of the upstream is no JSON: {exc.message}") from exc
        return self.feed_event(value)

    def feed_event(self, value: Any) -> list[hub.Event]:
        """Give the hub events of one event's JSON value."""
        match value:
            case {"type": "error"}:
                raise parse_error(0, value)
            case {"type": "message_start", "message": dict(message)}:
                if isinstance(message.get("model"), str):
                    self.model = message["model"] or None
                self._count(message.get("usage"))
            case {"type": "content_block_start", "content_block": dict(block)}:
                return self._begun(value.get("index"), block)
            case {"type": "content_block_delta", "delta": dict(delta)}:
                return self._grown(value.get("index"), delta)
            case {"type": "content_block_stop"}:
                return self._ended(value.get("index"))
            case {"type": "message_delta", "delta": dict(delta)}:
                self._stop = delta
                self._count(value.get("usage"))
            case {"type": "message_stop"}:
                return self.end()
            case {"type": "ping"}:
                pass
            case {"type": str(type_)}:
                self._ignored[f"({type_[:40]})"] = None
            case _:
                raise UpstreamError("an event of the upstream has no type")
        return []

    def end(self) -> list[hub.Event]:
        """Give the Finish, where no frame had it yet.

        Raises:
            UpstreamError: the stream was cut: there was no message_delta.
        """
        if self._is_finished:
            return []
        stop = self._stop
        if stop is None:
            raise UpstreamError("the upstream's stream ended before its answer did")
        self._is_finished = True
        events = [event for index in list(self._blocks) for event in self._ended(index)]
        sequence = stop.get("stop_sequence")
        finish = hub.Finish(
            _REASONS.get(str(stop.get("stop_reason")), "stop"),
            stop_sequence=sequence if isinstance(sequence, str) else None,
            usage=_hub_usage(self._usage),
            model=self.model,
            ignored=tuple(self._ignored),
        )
        return [*events, finish]

    def _count(self, usage: Any) -> None:
        """Take counts: those of message_delta are cumulative, and what it omits stays."""
        if isinstance(usage, dict):
            self._usage |= {name: count for name, count in usage.items() if count is not None}

    def _begun(self, index: Any, block: dict[str, Any]) -> list[hub.Event]:
        match block:
            case {"type": "text"}:
                if block.get("citations"):
                    self._ignored["content[*].citations"] = None
                return self._said(index, "text", _str(block.get("text")))
            case {"type": "thinking"}:
                events = self._said(index, "reasoning", _str(block.get("thinking")))
                return events + self._signature(index, block.get("signature"))
            case {"type": "redacted_thinking", "data": str(data)}:
                part = self._new(index, "reasoning").part
                metadata = _redacted(data)
                return [StreamEvent("reasoning", "", part, provider_metadata=metadata)]
            case {
                "type": "tool_use" | "server_tool_use" | "mcp_tool_use" as type_,
                "id": str(id_),
                "name": str(name),
            }:
                new = self._new(index, "call", id_, type_ != "tool_use", block.get("input"))
                server = _mcp_server(_str(block.get("server_name")) or None)
                return [new.event("tool_call_name", name, server)]
            case {"type": str(type_), "tool_use_id": str(id_)} if type_.endswith("_tool_result"):
                part = self._new(index, "result").part
                result = StreamEvent(
                    "tool_result",
                    _server_output(block.get("content")),
                    part,
                    tool_call_id=id_,
                    server_executed=True,
                    tool_name=type_.removesuffix("_tool_result"),
                )
                return [result]
        self._ignored[f"content[*] ({str(block.get('type'))[:40]})"] = None
        self._new(index, "unknown")
        return []

    def _grown(self, index: Any, delta: dict[str, Any]) -> list[hub.Event]:
        block = self._blocks.get(index)
        if block is not None and block.kind == "unknown":
            return []
        match delta:
            case {"type": "text_delta", "text": str(text)}:
                return self._said(index, "text", text)
            case {"type": "thinking_delta", "thinking": str(text)}:
                return self._said(index, "reasoning", text)
            case {"type": "signature_delta", "signature": signature}:
                return self._signature(index, signature)
            case {"type": "input_json_delta", "partial_json": str(text)}:
                if block is None or block.kind != "call" or not text:
                    return []
                block.input = None  # the deltas say it again
                return [block.event("tool_call_args", text)]
        self._ignored[f"content[*] ({str(delta.get('type'))[:40]})"] = None
        return []

    def _ended(self, index: Any) -> list[hub.Event]:
        block = self._blocks.pop(index, None)
        if block is None or block.kind != "call" or not block.input:
            return []
        return [block.event("tool_call_args", payload.encode(block.input).decode())]

    def _said(self, index: Any, family: Literal["text", "reasoning"], text: str) -> list[hub.Event]:
        """Give text; a delta that is of another kind than its block begins a part (B19)."""
        block = self._blocks.get(index)
        if block is None or block.kind != family:
            block = self._new(index, family)
        return [StreamEvent(family, text, block.part)] if text else []

    def _signature(self, index: Any, signature: Any) -> list[hub.Event]:
        if not isinstance(signature, str) or not signature:
            return []
        block = self._blocks.get(index)
        if block is None or block.kind != "reasoning":
            block = self._new(index, "reasoning")
        metadata = _signed(signature)
        return [StreamEvent("reasoning", "", block.part, provider_metadata=metadata)]

    def _new(
        self,
        index: Any,
        kind: str,
        id_: str | None = None,
        server_executed: bool = False,
        input_: Any = None,
    ) -> _Block:
        block = _Block(kind, self._next_part, id_, server_executed, input_)
        self._next_part += 1
        if not isinstance(index, dict | list):
            self._blocks[index] = block
        return block


@dataclass
class _Block:
    """A block of the stream that is open, and the part of the answer that it is."""

    kind: str
    part: int
    tool_call_id: str | None
    server_executed: bool
    input: Any  # what its start said of a call's arguments, unless deltas say it

    def event(self, type_: str, chunk: str, metadata: dict[str, Any] | None = None) -> StreamEvent:
        return StreamEvent(
            type_,
            chunk,
            self.part,
            self.tool_call_id,
            self.server_executed,
            provider_metadata=metadata,
        )


def _str(value: Any) -> str:
    return value if isinstance(value, str) else ""


_REASONS: Mapping[str, hub.FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


def _hub_usage(usage: Mapping[str, Any]) -> hub.Usage:
    """Count as the hub does: input with what was cached (B24)."""
    counts = {name: count for name, count in usage.items() if type(count) is int}
    read, written = (
        counts.get("cache_read_input_tokens"),
        counts.get("cache_creation_input_tokens"),
    )
    input_tokens = counts.get("input_tokens")
    if input_tokens is not None:
        input_tokens += (read or 0) + (written or 0)
    details = usage.get("output_tokens_details")
    thinking = details.get("thinking_tokens") if isinstance(details, dict) else None
    return hub.Usage(
        input_tokens=input_tokens,
        output_tokens=counts.get("output_tokens"),
        cached_tokens=read,
        cache_write_tokens=written,
        reasoning_tokens=thinking if type(thinking) is int else None,
    )


# ---- counts, models and errors


def render_count(count: int) -> dict[str, Any]:
    """Render the answer of count_tokens: input tokens, here an estimate.

    Spec: https://docs.anthropic.com/en/api/messages-count-tokens
    """
    return {"input_tokens": count}


def render_models(models: Iterable[hub.ModelEntry]) -> dict[str, Any]:
    """Render the list of models, all on one page.

    Spec: https://docs.anthropic.com/en/api/models-list
    """
    data = [render_model(model) for model in models]
    return {
        "data": data,
        "has_more": False,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }


def render_model(model: hub.ModelEntry) -> dict[str, Any]:
    """Render one model."""
    created_at = datetime.fromtimestamp(model.created, UTC)
    return {
        "type": "model",
        "id": model.id,
        "display_name": model.id,
        "created_at": created_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
    }


ERROR_TYPES: Mapping[str, str] = {
    "invalid_request": "invalid_request_error",
    "authentication": "authentication_error",
    "permission": "permission_error",
    "not_found": "not_found_error",
    "too_large": "request_too_large",
    "rate_limit": "rate_limit_error",
    "timeout": "timeout_error",
    "unavailable": "overloaded_error",
    "overloaded": "overloaded_error",
}


def render_error(error: ProxyError) -> dict[str, Any]:
    """Render an error as Anthropic's object; its status and headers go beside it.

    The field at fault begins the message, as Anthropic writes it: there is no other
    place for it.

    Spec: https://docs.anthropic.com/en/api/errors
    """
    shown: dict[str, Any] = {
        "type": ERROR_TYPES.get(error.kind, "api_error"),
        "message": f"{error.param}: {error.message}" if error.param else error.message,
    }
    if error.code is not None:
        shown["details"] = {"error_code": error.code}
    body: dict[str, Any] = {"type": "error", "error": shown}
    if REQUEST_ID_HEADER in error.headers:
        body["request_id"] = error.headers[REQUEST_ID_HEADER]
    return body


_BY_TYPE: Mapping[str, type[ProxyError]] = {
    "invalid_request_error": InvalidRequest,
    "authentication_error": Unauthorized,
    "permission_error": Forbidden,
    "not_found_error": NotFound,
    "request_too_large": TooLarge,
    "rate_limit_error": RateLimited,
    "timeout_error": UpstreamTimeout,
    "overloaded_error": Overloaded,
}

# Clients wait by these (B39).
_FORWARDED = ("retry-after", "retry-after-ms", "x-should-retry")


def parse_error(status: int, body: Any, headers: Mapping[str, str] | None = None) -> ProxyError:
    """Read another server's error; `status` below 400 where it came inside a stream.

    body: the JSON value, or the text of what was none. A status stays as it was; where
    there is none it is told by the error's type.
    """
    match body:
        case {"error": dict(error)} | dict(error):
            message, type_, details = error.get("message"), error.get("type"), error.get("details")
        case _:
            message, type_, details = body, None, None
    by_type = _BY_TYPE.get(type_, UpstreamError) if isinstance(type_, str) else UpstreamError
    code = details.get("error_code") if isinstance(details, dict) else None
    forwarded = {name.lower(): value for name, value in (headers or {}).items()}
    return (class_of_status(status) if status >= 400 else by_type)(
        message
        if isinstance(message, str) and message
        else "the upstream failed, without saying why",
        code=code if isinstance(code, str) else None,
        status=status if status >= 400 else None,
        headers={name: forwarded[name] for name in _FORWARDED if name in forwarded},
    )
