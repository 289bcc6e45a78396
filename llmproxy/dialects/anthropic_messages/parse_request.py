"""Parse a Messages request, and strip it to its normal form.

Spec: https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import llm
from llm.parts import (
    AttachmentPart,
    Message,
    Part,
    ReasoningPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)

from ...core import attachments, chat, payload
from ...core.as_text import block_text, holds_text
from ...core.errors import InvalidRequest, Unsupported
from ...core.known_bodies import ItemMemory, add_items
from ...core.tool_calls import PendingToolCalls, append_result
from .render_response import (
    encode_server_output,
    mcp_server_metadata,
    redacted_metadata,
    signature_metadata,
)
from .schema import (
    NOT_CARRIED,
    TOOL_NOT_CARRIED,
    Base64Source,
    ContentBlockSource,
    CreateMessageRequest,
    DocumentBlock,
    FileSource,
    ImageBlock,
    MessageParam,
    OtherBlock,
    PlainTextSource,
    RedactedThinkingBlock,
    SearchResultBlock,
    ServerToolResultBlock,
    TextBlock,
    ThinkingBlock,
    Tool,
    ToolAddition,
    ToolChoice,
    ToolChoiceTool,
    ToolReferenceBlock,
    ToolResultBlock,
    ToolUseBlock,
    URLSource,
)

MAX_USER_ID_CHARS = 64  # longer ones are refused by other providers; Claude Code's has 130


def parse_request(
    body: Any,
    headers: Mapping[str, str] | None = None,
    memory: ItemMemory | None = None,
) -> chat.ChatRequest:
    """Parse the body of a request, a JSON value.

    memory: of its first messages, if an earlier body had them; those that follow are added.

    Kept: system text, inline system messages in their places, text, images and documents as
    attachments (text documents and search results as text), thinking with its signature,
    tool calls and results (those in a user message come before its other content), the
    provider's own tools and their results; options, schema; tools that a message adds or
    removes. `cache_control` marks and Claude Code's billing line are not part of a message.
    Blocks of unknown types become text if they hold any, those inside another block in any
    case, as does a provider's result without its call; they are listed in `ignored`.

    Raises:
        InvalidRequest: the body is not such a request; `param` names the field.
        Unsupported: files by id, and conversations that the server should remember.

    Spec: https://docs.anthropic.com/en/api/messages
    """
    _refuse_threads(body)
    ignored: list[str] = []
    request = payload.load(CreateMessageRequest, _with_others_wrapped(body, memory), ignored)
    ignored += [name for name in NOT_CARRIED if getattr(request, name) not in (None, "auto")]
    parser = _MessageParser()
    if request.cache_control is not None:
        parser.has_cache_marks = True
    parser.add_system(request.system)
    if not request.messages:
        raise InvalidRequest("must not be empty", param="messages")
    add_items(parser, request.messages, "messages", memory)
    if not any(message.parts for message in parser.messages[parser.leading :]):
        raise InvalidRequest("no message besides the system prompt has content", param="messages")
    parser.pending.check_empty(f"messages[{len(request.messages)}]")
    tools, server_tools = _tools(request, parser)
    ignored += parser.ignored
    options = _options(request, ignored)
    if parser.has_cache_marks:
        options["cache"] = True
    wanted = (request.output_config and request.output_config.format) or request.output_format
    return chat.ChatRequest(
        model=request.model or None,
        messages=parser.messages,
        tools=tools,
        server_tools=server_tools,
        tool_choice=_tool_choice(request, tools, ignored),
        options=options,
        schema=(wanted.schema or None) if wanted else None,
        stream=bool(request.stream),
        option_paths=OPTION_PATHS,
        attachment_paths=tuple(parser.attachment_paths),
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
    """Refuse threads with the vendor's own error code, which makes its SDK send the history."""
    if not isinstance(body, dict):
        return
    for name in ("thread", "previous_message_id"):
        if body.get(name) is not None:
            raise Unsupported(
                "this server stores no threads: send the whole conversation",
                param=name,
                code="thread_unsupported_request",
            )


_BLOCK_TYPES = frozenset(
    "text image document search_result thinking redacted_thinking tool_use server_tool_use"
    " mcp_tool_use tool_result".split()
)
_RESULT_TYPES = frozenset("text image document search_result tool_reference".split())
_SEARCH_RESULT_TYPES = frozenset({"text"})
_DOCUMENT_TYPES = frozenset({"text", "image"})
_RESULT_SUFFIX = "_tool_result"


def _with_others_wrapped(body: Any, memory: ItemMemory | None) -> Any:
    """Wrap blocks and tools of unknown types as an OtherBlock, so that they can be listed.

    The body is not edited; a value of an unexpected type is left for `payload.load`.
    """
    if not isinstance(body, dict):
        return body
    wrapped = dict(body)
    if isinstance(body.get("system"), list):
        wrapped["system"] = [_wrapped(block, _BLOCK_TYPES) for block in body["system"]]
    if memory is not None:
        wrapped["messages"] = memory.items(body["messages"], _message_wrapped)
    elif isinstance(body.get("messages"), list):
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
        case {"type": "search_result", "content": list(content)} if "search_result" in known:
            return block | {"content": [_wrapped(b, _SEARCH_RESULT_TYPES) for b in content]}
        case {"type": "document", "source": {"type": "content", "content": list(content)}} if (
            "document" in known
        ):
            content = [_wrapped(b, _DOCUMENT_TYPES) for b in content]
            return block | {"source": block["source"] | {"content": content}}
        case {"type": str(type_), "tool_use_id": str()} if (
            "tool_result" in known and type_.endswith(_RESULT_SUFFIX)
        ):
            tool = type_.removesuffix(_RESULT_SUFFIX)
            return block | {"type": "server_tool_result", "tool": tool, "block": block}
        case {"type": str(type_)} if type_ not in known:
            return {"type": "other", "block": block}
    return block


def _tool_wrapped(tool: Any) -> Any:
    match tool:
        case {"type": str(type_)} if type_ not in ("custom", ""):
            return {"type": "other", "block": tool}
        case {"type": None | ""}:
            return tool | {"type": "custom"}
        case dict():
            return {"type": "custom"} | tool
    return tool


def _options(request: CreateMessageRequest, ignored: list[str]) -> dict[str, Any]:
    """Return the options under our names."""
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
        ignored.append("stop_sequences")  # providers refuse white space alone
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
    request: CreateMessageRequest, parser: _MessageParser
) -> tuple[tuple[llm.Tool, ...], tuple[chat.ServerTool, ...]]:
    """Return the tools that are offered now: the request's, as its messages change them."""
    defined = [
        (_name(tool), _tool(tool, f"tools[{i}]", parser))
        for i, tool in enumerate(request.tools or ())
    ]
    latest = dict(defined)
    name: str | None
    offered = dict(enumerate(tool for _, tool in defined))  # by their places
    places: dict[str | None, list[int]] = {}
    for place, (name, _) in enumerate(defined):
        places.setdefault(name, []).append(place)
    for place, (change, path) in enumerate(parser.tool_changes, len(defined)):
        match change:
            case {"tool": {"type": "tool_reference", "name": str(name)}}:
                pass
            case {"tool": {"type": str(kind)}} if kind.startswith("mcp"):  # no plugin is given them
                parser.ignored.append(f"messages[*].content[*] ({change['type']})")
                continue
            case {"type": "tool_removal"}:
                parser.ignored.append("messages[*].content[*] (tool_removal)")
                continue
            case _:
                definition, path = change.get("tool"), f"{path}.tool"
                if isinstance(definition, dict) and definition.get("type") == "tool_definition":
                    definition, path = definition.get("definition"), f"{path}.definition"
                tool = _added_tool(definition, path)
                name = _name(tool)
                latest[name] = _tool(tool, path, parser)
        for removed in places.pop(name, ()):
            del offered[removed]
        if change["type"] == "tool_addition":
            if name not in latest:
                raise _no_tool(name, f"{path}.tool.name")
            offered[place], places[name] = latest[name], [place]
    return (
        tuple(tool for tool in offered.values() if isinstance(tool, llm.Tool)),
        tuple(tool for tool in offered.values() if isinstance(tool, chat.ServerTool)),
    )


def _name(tool: Tool | OtherBlock) -> str | None:
    name = tool.name if isinstance(tool, Tool) else tool.block.get("name")
    return name if isinstance(name, str) else None


def _no_tool(name: str | None, param: str) -> InvalidRequest:
    return InvalidRequest(f"there is no tool {name!r} in this request", param=param)


def _added_tool(definition: Any, path: str) -> Tool | OtherBlock:
    """Read the definition of a tool inside a message.

    Raises:
        InvalidRequest: it is none; refused, since the client expects it to be offered.
    """
    try:
        return payload.load(ToolAddition, {"tool": _tool_wrapped(definition)}).tool
    except InvalidRequest as exc:
        field = (exc.param or "").removeprefix("tool")
        raise InvalidRequest(exc.message, param=path + field) from None


def _tool(tool: Tool | OtherBlock, path: str, parser: _MessageParser) -> llm.Tool | chat.ServerTool:
    if isinstance(tool, OtherBlock):
        parser.note_mark(tool.block.get("cache_control"))
        return _server_tool(tool.block, path)
    parser.ignored += [f"tools[*].{name}" for name in TOOL_NOT_CARRIED if getattr(tool, name)]
    parser.note_mark(tool.cache_control)
    schema = tool.input_schema or {"type": "object", "properties": {}}
    return llm.Tool(tool.name, tool.description, schema)


_DATE = re.compile(r"_\d{8}$")


def _server_tool(tool: Mapping[str, Any], path: str) -> chat.ServerTool:
    """Drop the date of its version: the plugin chooses one that the model supports."""
    config = {
        name: value
        for name, value in tool.items()
        if name not in ("type", "name", "cache_control") and value is not None
    }
    return chat.ServerTool(_DATE.sub("", tool["type"]), config, path)


def _tool_choice(
    request: CreateMessageRequest, tools: tuple[llm.Tool, ...], ignored: list[str]
) -> chat.ToolChoice:
    match request.tool_choice:
        case ToolChoice(type="any"):
            return "required"
        case ToolChoice(type="none"):
            return "none"
        case ToolChoiceTool(name=name):
            if name in {tool.name for tool in tools}:
                return chat.NamedTool(name)
            others = [t.block for t in request.tools or () if isinstance(t, OtherBlock)]
            if name not in {other.get("name") for other in others}:
                raise _no_tool(name, "tool_choice.name")
            ignored.append("tool_choice")  # no plugin can force the provider's own tools
    return "auto"


_TOOL_CHANGES = frozenset({"tool_addition", "tool_removal"})
# Blocks that Anthropic shows to no model: where another model took over, and what an MCP server
# offers, which would be its tools' schemas in the middle of a conversation.
_NOT_SHOWN = frozenset({"fallback", "mcp_tool_listing"})

# An MCP server's result has text blocks, which a client may mark like any other.
_without_block_marks = payload.without("[*].cache_control")


class _MessageParser:
    """Parses messages in order."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.attachment_paths: list[str] = []
        self.ignored: list[str] = []
        self.has_cache_marks = False
        self.leading = 0  # messages that came from the request's `system`
        self.tool_changes: list[tuple[dict[str, Any], str]] = []  # blocks and their paths
        self._server_calls: list[str] = []
        self._server_call_ids: set[str] = set()
        self.pending = PendingToolCalls()
        self._arguments = chat.CallArguments()

    def made(self) -> tuple[list[Any], ...]:
        return (
            self.messages,
            self.attachment_paths,
            self.ignored,
            self.tool_changes,
            self._server_calls,
        )

    def facts(self) -> tuple[Any, ...] | None:
        # While a call waits, results are added to the last message; none may follow later.
        return None if self.pending else (self._arguments.left, self.has_cache_marks)

    def go_on(self, facts: tuple[Any, ...]) -> None:
        self._arguments.left, self.has_cache_marks = facts
        self._server_call_ids = set(self._server_calls)

    def note_mark(self, cache_control: Any) -> None:
        self.has_cache_marks = self.has_cache_marks or cache_control is not None

    def add_system(self, system: str | Iterable[TextBlock | OtherBlock] | None) -> None:
        parts = [
            TextPart(text)
            for part in self._parts(system or "", "system")
            if isinstance(part, TextPart) and (text := _without_billing_line(part.text))
        ]
        if parts:
            self.messages.append(Message("system", list[Part](parts)))
            self.leading = 1

    def add(self, message: MessageParam, path: str) -> None:
        blocks = message.content
        if not isinstance(blocks, str):
            results = [b for b in blocks if isinstance(b, ToolResultBlock)]
            if results and message.role != "user":
                raise InvalidRequest("tool results are allowed only in a user message", param=path)
            for i, block in enumerate(blocks):
                if isinstance(block, ToolResultBlock):
                    result = self._tool_result(block, f"{path}.content[{i}]")
                    append_result(self.messages, result)
        if message.role == "assistant":
            self.pending.check_empty(path)
        parts = list(self._parts(blocks, f"{path}.content", message.role))
        if not parts:
            return  # empty, or nothing but results
        if message.role == "user":
            self.pending.check_empty(path)
        self.messages.append(Message(message.role, parts))

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
                    pass  # parsed before the rest
                case TextBlock() | ImageBlock() | DocumentBlock() | SearchResultBlock():
                    if role == "system" and not isinstance(block, TextBlock):
                        raise InvalidRequest("a system message may contain only text", param=where)
                    yield from self._common_parts(block, where)
                case OtherBlock():
                    yield from self._other_parts(block, path, where)
                case ServerToolResultBlock() if (
                    role != "assistant" or block.tool_use_id not in self._server_call_ids
                ):
                    # A result and its call stay together: without the call it is a text.
                    yield from self._other_parts(
                        OtherBlock(type="other", block=block.block), path, where
                    )
                case _ if role != "assistant":
                    raise InvalidRequest(
                        f"{block.type} is allowed only in an assistant message", param=where
                    )
                case _:
                    yield from self._reply_parts(block, where)

    def _nested_parts(self, blocks: Iterable[Any], path: str) -> Iterator[Part]:
        """Parse the blocks inside a tool's result, a search result or a document."""
        for i, block in enumerate(blocks):
            where = f"{path}[{i}]"
            if isinstance(block, OtherBlock):
                yield from self._other_parts(block, path, where, is_nested=True)
                continue
            self.note_mark(block.cache_control)
            if isinstance(block, ToolReferenceBlock):
                # With tool search the definition comes in the request's tools.
                self.ignored.append("messages[*].content[*].content[*] (tool_reference)")
                yield TextPart(f"tool found: {block.tool_name}")
            else:
                yield from self._common_parts(block, where)

    def _other_parts(
        self, other: OtherBlock, path: str, where: str, *, is_nested: bool = False
    ) -> Iterator[Part]:
        """Parse a block of an unknown type: what holds text, and all of what is nested.

        Only a message's own blocks change tools: what is nested may be a tool's words.
        """
        block = other.block
        if block["type"] in _TOOL_CHANGES and not is_nested:
            self.note_mark(block.get("cache_control"))
            self.tool_changes.append((block, where))
            return
        self._ignore_kind(other, path)
        if isinstance(changes := block.get("tool_changes"), list) and not is_nested:
            # A summary has those of the messages that it stands for.
            self.tool_changes += [
                (change, f"{where}.tool_changes[{i}]")
                for i, change in enumerate(changes)
                if isinstance(change, dict) and change.get("type") in _TOOL_CHANGES
            ]
            block = {name: value for name, value in block.items() if name != "tool_changes"}
        match block:
            case {"type": type_} if type_ in _NOT_SHOWN and not is_nested:
                return
            case {"source": {"type": "base64", "data": str(data), "media_type": str(media_type)}}:
                yield from self._source(
                    Base64Source(type="base64", data=data, media_type=media_type),
                    f"{where}.source",
                    None,
                )
            case _ if is_nested or holds_text(block):
                if text := block_text(block):
                    yield TextPart(text)

    def _ignore_kind(self, block: OtherBlock, path: str) -> None:
        self.note_mark(block.block.get("cache_control"))
        everywhere = re.sub(r"\[\d+\]", "[*]", path)
        self.ignored.append(f"{everywhere}[*] ({block.block['type'][:40]})")

    def _common_parts(self, block: Any, path: str) -> Iterator[Part]:
        """Parse the blocks that any role may have: text, images, documents."""
        match block:
            case TextBlock(text=text):
                if block.citations:
                    self._ignore_field(path, "citations")
                if text:
                    yield TextPart(text)
            case SearchResultBlock():
                self._ignore_citations(block, path)
                parts = list(self._nested_parts(block.content, f"{path}.content"))
                texts = [part.text for part in parts if isinstance(part, TextPart)]
                lines = [line for line in (block.title, block.source) if line]
                yield TextPart("\n\n".join(["\n".join(lines), *texts]).strip())
                yield from (part for part in parts if isinstance(part, AttachmentPart))
            case DocumentBlock():
                for name in ("title", "context"):
                    if getattr(block, name):
                        self._ignore_field(path, name)
                self._ignore_citations(block, path)
                yield from self._source(block.source, f"{path}.source", "application/pdf")
            case ImageBlock():
                yield from self._source(block.source, f"{path}.source", None)

    def _ignore_citations(self, block: DocumentBlock | SearchResultBlock, path: str) -> None:
        if isinstance(block.citations, dict) and block.citations.get("enabled"):
            self._ignore_field(path, "citations")

    def _ignore_field(self, path: str, name: str) -> None:
        self.ignored.append(re.sub(r"\[\d+\]", "[*]", path) + f".{name}")

    def _source(self, source: Any, path: str, media_type: str | None) -> Iterator[Part]:
        match source:
            case PlainTextSource(data=text):
                if text:
                    yield TextPart(text)
            case ContentBlockSource(content=str(text)):
                if text:
                    yield TextPart(text)
            case ContentBlockSource(content=content):
                yield from self._nested_parts(content, f"{path}.content")
            case Base64Source(data=data):
                path = f"{path}.data"
                attachment = attachments.attachment_from_base64(
                    data, source.media_type or media_type, param=path
                )
                self.attachment_paths.append(path)
                yield AttachmentPart(attachment)
            case URLSource(url=url):
                path = f"{path}.url"
                attachment = attachments.attachment_from_url(url, param=path)
                if media_type and attachment.url and attachment.type == "image/*":
                    attachment = attachments.RemoteAttachment(type=media_type, url=attachment.url)
                self.attachment_paths.append(path)
                yield AttachmentPart(attachment)
            case FileSource():
                raise Unsupported(
                    "files must be sent as base64 data; this server stores none",
                    param=f"{path}.file_id",
                )

    def _reply_parts(self, block: Any, path: str) -> Iterator[Part]:
        """Parse the blocks of replies, in the format that llm-anthropic keeps and sends back."""
        match block:
            case ThinkingBlock(thinking=text, signature=signature):
                if text or signature:
                    yield ReasoningPart(text, provider_metadata=signature_metadata(signature))
            case RedactedThinkingBlock(data=data):
                yield ReasoningPart("", provider_metadata=redacted_metadata(data))
            case ToolUseBlock():
                if isinstance(block.caller, dict) and block.caller.get("type") != "direct":
                    self._ignore_field(path, "caller")
                server_executed = block.type != "tool_use"
                if server_executed:
                    self._server_calls.append(block.id)
                    self._server_call_ids.add(block.id)
                else:
                    self.pending.add(block.id, block.name)
                yield ToolCallPart(
                    block.name,
                    _call_arguments(block.input, self._arguments),
                    tool_call_id=block.id,
                    server_executed=server_executed,
                    provider_metadata=mcp_server_metadata(block.server_name),
                )
            case ServerToolResultBlock(content=content):
                for item in content if isinstance(content, list) else ():
                    if isinstance(item, dict):
                        self.note_mark(item.get("cache_control"))
                yield ToolResultPart(
                    name=block.tool,
                    output=encode_server_output(_without_block_marks(content)),
                    tool_call_id=block.tool_use_id,
                    server_executed=True,
                    exception="error" if block.is_error else None,
                )

    def _tool_result(self, block: ToolResultBlock, path: str) -> ToolResultPart:
        name = self.pending.take(block.tool_use_id, f"{path}.tool_use_id")
        self.note_mark(block.cache_control)
        blocks = () if isinstance(block.content, str) else block.content or ()
        content = list(self._nested_parts(blocks, f"{path}.content"))
        texts = [part.text for part in content if isinstance(part, TextPart)]
        return ToolResultPart(
            name=name,
            output=block.content if isinstance(block.content, str) else "\n".join(texts),
            tool_call_id=block.tool_use_id,
            exception="error" if block.is_error else None,
            attachments=[
                part.attachment
                for part in content
                if isinstance(part, AttachmentPart) and part.attachment is not None
            ],
        )


def _call_arguments(input_: Any, arguments: chat.CallArguments) -> dict[str, Any]:
    """Return a call's arguments: an object on this wire, or the JSON text of one."""
    match input_:
        case dict():
            return input_
        case None:
            return {}
        case str() if "_raw" not in (parsed := arguments.parse(input_)):
            return parsed
    return chat.parse_arguments(payload.encode(input_).decode())


# ---- the normal form

# The places that Anthropic's types give a mark: never a tool's input or schema.
_without_cache_marks = payload.without(
    "cache_control",
    "system[*].cache_control",
    "tools[*].cache_control",
    "messages[*].content[*].cache_control",
    "messages[*].content[*].content[*].cache_control",
    "messages[*].content[*].content[*].content[*].cache_control",  # search results in a result
    "messages[*].content[*].source.content[*].cache_control",  # documents made of blocks
    "messages[*].content[*].content[*].source.content[*].cache_control",
)


def normalize_body(body: Any) -> Any:
    """Strip cache marks and Claude Code's billing line before a request's body is stored.

    Marks move with every turn, and the billing line differs in every request. A system block
    that is nothing but the billing line is left out. Any JSON value is taken; it is not
    edited, and the result shares its unchanged parts.

    Spec: https://docs.anthropic.com/en/docs/build-with-claude/prompt-caching
    """
    kept = _without_cache_marks(body)
    if not isinstance(kept, dict):
        return kept
    match kept.get("system"):
        case str(text) if (rest := _without_billing_line(text)) != text:
            return kept | {"system": rest}
        case list(blocks) if any(_has_billing_line(block) for block in blocks):
            return kept | {"system": [rest for b in blocks for rest in _rest_of_system_block(b)]}
    return kept


def _has_billing_line(block: Any) -> bool:
    match block:
        case {"text": str(text)}:
            return _without_billing_line(text) != text
    return False


def _rest_of_system_block(block: Any) -> list[Any]:
    """Return the rest of a system block: itself, a shorter one or nothing."""
    if not _has_billing_line(block):
        return [block]
    rest = _without_billing_line(block["text"])
    return [block | {"text": rest}] if rest else []


# It differs in every request, so neither models nor hashes may see it.
_BILLING_LINE = re.compile(r"x-anthropic-billing-header:[^\n]*\n*")


def _without_billing_line(text: str) -> str:
    """Strip the line that Claude Code puts at the start of a system text."""
    line = _BILLING_LINE.match(text)
    return text[line.end() :] if line else text
