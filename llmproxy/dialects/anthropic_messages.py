"""Anthropic's Messages: the wire of its SDKs and of Claude Code.

Read beside the vendor's page: the request's shapes and how they become the hub's,
the stream of blocks, the whole message, models, errors; then the other side, for the
converters: a request to a server of Anthropic's wire, and what it answers.

Spec: https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

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
from ..errors import InvalidRequest, ProxyError, Unsupported
from ..hub import Route
from ..transport import framing

__all__ = [
    "CUT_AFTER_ERROR",
    "NAME",
    "REQUEST_ID_HEADER",
    "ROUTES",
    "STREAM_TYPE",
    "CreateMessageRequest",
    "StreamRenderer",
    "parse_request",
    "render_count",
    "render_error",
    "render_model",
    "render_models",
    "render_response",
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
