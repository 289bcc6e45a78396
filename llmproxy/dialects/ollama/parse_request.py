"""Parse the requests of /api/chat and /api/generate.

Spec: https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from ...core.errors import Unsupported
from ...core.known_bodies import ItemMemory, add_items
from ...core.tool_calls import PendingToolCalls, append_result
from . import schema
from .schema import NOT_CARRIED, OPTIONS, THINK_LEVELS

CHAT = ""
GENERATE = "generate"
LOAD = ".load"
UNLOAD = ".unload"
"""Forms of a request: one of the first two, and for one without messages one of the last two."""


def parse_request(
    body: Any,
    headers: Mapping[str, str] | None = None,
    memory: ItemMemory | None = None,
) -> chat.ChatRequest:
    """Parse the body of /api/chat, or of /api/generate if it has no `messages`.

    memory: of its first messages, if an earlier body had them; those that follow are added.

    Kept: messages of every role, thinking, images of users and tools, tool calls and results,
    tools, options, schema; of generate the system text, the prompt and its images. A call
    without an id gets one from its place, and a result without one answers the oldest call (of
    its `tool_name`). A response streams unless `stream` is false. A request without messages, or
    without a prompt, asks for nothing but the model to be loaded. What is not carried is
    listed in `ignored`.

    Raises:
        InvalidRequest: the body is not such a request; `param` names the field.
        Unsupported: `suffix`, since llm's models complete no text in the middle.

    Spec: https://github.com/ollama/ollama/blob/main/docs/api.md
    """
    ignored: list[str] = []
    body = _without_nulls(body)
    if isinstance(body, dict) and (body.get("messages") is None and body.get("prompt")):
        body = {name: value for name, value in body.items() if name != "messages"}
    if isinstance(body, dict) and "messages" not in body:
        return _parse_generate(payload.load(schema.GenerateRequest, body, ignored), ignored)
    if memory is not None:
        body = body | {"messages": memory.items(body["messages"], lambda message: message)}
    request = payload.load(schema.ChatRequest, body, ignored)
    parser = _MessageParser()
    add_items(parser, request.messages or (), "messages", memory)
    parser.pending.check_empty(f"messages[{len(request.messages or ())}]")
    return _request(request, CHAT, parser, request.tools or (), ignored)


def as_chat(body: Any) -> Any:
    """Return the body of /api/chat, of which one with neither messages nor a prompt looks like
    generate's: with no messages, it asks for the model to be loaded.
    """
    if isinstance(body, dict) and body.get("messages") is None and not body.get("prompt"):
        return body | {"messages": []}
    return body


def _parse_generate(request: schema.GenerateRequest, ignored: list[str]) -> chat.ChatRequest:
    if request.suffix:
        raise Unsupported("the models here complete no text in the middle", param="suffix")
    parser = _MessageParser()
    if request.prompt or request.images:
        if request.system:
            parser.messages.append(Message("system", [TextPart(request.system)]))
        parts: list[Part] = [TextPart(request.prompt)] if request.prompt else []
        parts += map(AttachmentPart, parser.images(request.images, "images"))
        parser.messages.append(Message("user", parts))
    return _request(request, GENERATE, parser, (), ignored)


def _without_nulls(body: Any) -> Any:
    """Leave out options that are null, as some clients send all of them."""
    match body:
        case {"options": dict(options)} if None in options.values():
            kept = {name: value for name, value in options.items() if value is not None}
            return body | {"options": kept}
    return body


def _request(
    request: schema.ChatRequest | schema.GenerateRequest,
    form: str,
    parser: _MessageParser,
    tools: Sequence[schema.Tool],
    ignored: list[str],
) -> chat.ChatRequest:
    ignored += parser.ignored
    if not any(message.parts for message in parser.messages):
        parser.messages.clear()
        form += UNLOAD if _is_zero(request.keep_alive) else LOAD
    else:
        ignored += [
            name for name in NOT_CARRIED if getattr(request, name, None) not in (None, False, "")
        ]
    options = _options(request, ignored)
    wanted = request.format
    return chat.ChatRequest(
        model=request.model or None,
        messages=parser.messages,
        tools=tuple(
            llm.Tool(
                tool.function.name,
                tool.function.description,
                tool.function.parameters or {"type": "object", "properties": {}},
            )
            for tool in tools
        ),
        options=options,
        schema=(wanted or None) if isinstance(wanted, dict) else None,
        stream=request.stream is not False,
        form=form,
        option_paths=OPTION_PATHS,
        attachment_paths=tuple(parser.attachment_paths),
        ignored=tuple(dict.fromkeys(ignored)),
        counted_calls=None if parser.has_sent_ids else parser.call_count,
    )


def _is_zero(keep_alive: Any) -> bool:
    """Return whether a time to keep the model, in seconds or as text (`0s`), is none at all."""
    return str(keep_alive).rstrip("smh") in ("0", "0.0")


OPTION_PATHS: Mapping[str, str] = {
    **{name: f"options.{theirs}" for name, theirs in OPTIONS.items()},
    "json_object": "format",
    "schema": "format",
    "thinking": "think",
    "reasoning_effort": "think",
}


def _options(
    request: schema.ChatRequest | schema.GenerateRequest, ignored: list[str]
) -> dict[str, Any]:
    """Return the options under our names."""
    asked = request.options or schema.Options()
    options = {name: getattr(asked, theirs) for name, theirs in OPTIONS.items()}
    if asked.num_predict is not None and asked.num_predict < 1:
        options["max_tokens"] = None  # -1 and -2 mean no limit
    stop = [asked.stop] if isinstance(asked.stop, str) else asked.stop or ()
    options["stop_sequences"] = [entry for entry in stop if entry.strip()] or None
    if any(entry and not entry.strip() for entry in stop):
        ignored.append("options.stop")  # providers refuse white space alone
    match request.think:
        case bool(thinks):
            options["thinking"] = thinks
        case str(level) if level in THINK_LEVELS:
            options["reasoning_effort"] = level
        case str(level) if level:
            ignored.append("think")
    if request.format in ("json", {}):
        options["json_object"] = True  # {} too, which llm takes for no schema at all
    elif isinstance(request.format, str) and request.format:
        ignored.append("format")
    return {name: value for name, value in options.items() if value is not None}


_READ_BY_ROLE: Mapping[str, tuple[str, ...]] = {
    "assistant": ("thinking", "tool_calls"),
    "tool": ("tool_name", "tool_call_id", "name"),
}
_FIELDS = tuple(name for names in _READ_BY_ROLE.values() for name in names)


class _MessageParser:
    """Parses messages in order.

    call_count: of the tool calls so far. has_sent_ids: whether the client sends their ids back.
    """

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.attachment_paths: list[str] = []
        self.ignored: list[str] = []
        self.pending = PendingToolCalls()
        self.call_count = 0
        self.has_sent_ids = False
        self._arguments = chat.CallArguments()

    def made(self) -> tuple[list[Any], ...]:
        return self.messages, self.attachment_paths, self.ignored

    def facts(self) -> tuple[Any, ...] | None:
        # While a call waits, results are added to the last message; none may follow later.
        if self.pending:
            return None
        return self._arguments.left, self.call_count, self.has_sent_ids

    def go_on(self, facts: tuple[Any, ...]) -> None:
        self._arguments.left, self.call_count, self.has_sent_ids = facts

    def add(self, message: schema.Message, path: str) -> None:
        read = _READ_BY_ROLE.get(message.role, ())
        self.ignored += [
            f"messages[*].{name}" for name in _FIELDS if name not in read and getattr(message, name)
        ]
        if message.role == "tool":
            append_result(self.messages, self._tool_result(message, path))
            return
        self.pending.check_empty(path)
        parts: list[Part] = []
        if message.role == "assistant":
            if message.thinking:
                parts.append(ReasoningPart(message.thinking))
            parts += [TextPart(message.content)] if message.content else []
            parts += self._calls(message.tool_calls or ())
        elif message.content:
            parts.append(TextPart(message.content))
        if message.role == "user":
            parts += map(AttachmentPart, self.images(message.images, f"{path}.images"))
        elif message.images:
            self.ignored.append("messages[*].images")  # only users and tools show some
        if parts:
            role = "system" if message.role == "developer" else message.role
            self.messages.append(Message(role, parts))

    def images(self, images: Sequence[str] | None, path: str) -> Iterator[llm.Attachment]:
        for i, image in enumerate(images or ()):
            param = f"{path}[{i}]"
            attachment = attachments.attachment_from_base64(image, param=param)
            self.attachment_paths.append(param)
            yield attachment

    def _calls(self, calls: Sequence[schema.ToolCall]) -> Iterator[ToolCallPart]:
        for call in calls:
            function = call.function
            id_ = call.id or chat.counted_call_id(self.call_count)
            self.has_sent_ids |= bool(call.id)
            self.call_count += 1
            self.pending.add(id_, function.name)
            arguments = function.arguments
            if not isinstance(arguments, dict):
                arguments = self._arguments.parse(arguments or "")
            yield ToolCallPart(function.name, arguments, tool_call_id=id_)

    def _tool_result(self, message: schema.Message, path: str) -> ToolResultPart:
        name = message.tool_name or message.name
        id_ = message.tool_call_id or self.pending.oldest(name) or self.pending.oldest() or ""
        field = "tool_call_id" if message.tool_call_id else "tool_name"
        return ToolResultPart(
            name=self.pending.take(id_, f"{path}.{field}"),
            output=message.content or "",
            tool_call_id=id_,
            attachments=list(self.images(message.images, f"{path}.images")),
        )


def normalize_body(body: Any) -> Any:
    """Return the body itself: Ollama's clients send nothing that changes with every request."""
    return body
