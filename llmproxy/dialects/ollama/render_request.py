"""Render a request of /api/chat for another server.

Spec: https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
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

from ...core import chat
from .render_response import tool_call
from .schema import OPTIONS, THINK_LEVELS


def render_request(request: chat.ChatRequest) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Render a request's body and list the paths of what this API can't hold.

    A message has one text, then its images: a user's message of several texts becomes several.
    An assistant's parts are sorted as this API has them: thinking, text, calls. Images must be
    base64 data: those by URL are listed, as are other files and the tool choice.

    Spec: https://github.com/ollama/ollama/blob/main/docs/api.md
    """
    renderer = _MessageRenderer(request)
    for message in request.messages:
        renderer.add_message(message)
    ignored = renderer.ignored
    body: dict[str, Any] = {"messages": renderer.messages}
    if request.model is not None:
        body = {"model": request.model, **body}
    tools = () if request.tool_choice == "none" else request.tools
    if tools:
        body["tools"] = [_tool(tool) for tool in tools]
    if request.tool_choice != "auto":
        ignored.append("tool_choice")
    ignored += [tool.path for tool in request.server_tools]
    body |= _option_fields(request, ignored)
    return body | {"stream": request.stream}, tuple(dict.fromkeys(ignored))


def _tool(tool: llm.Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    return {"type": "function", "function": function | {"parameters": tool.input_schema}}


def _option_fields(request: chat.ChatRequest, ignored: list[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    options: dict[str, Any] = {}
    effort, thinks = request.options.get("reasoning_effort"), request.options.get("thinking")
    level = effort if effort in THINK_LEVELS and thinks is not False else None
    for name, value in request.options.items():
        match name:
            case "json_object":
                fields["format"] = "json"
            case "reasoning_effort" if value == level:
                fields["think"] = value
            case "thinking":
                fields["think"] = value and level or value  # a level says that it thinks
            case _ if name in OPTIONS:
                options[OPTIONS[name]] = value
            case _:
                ignored.append(request.option_paths.get(name, name))
    if request.schema is not None:
        fields["format"] = request.schema
    return fields | ({"options": options} if options else {})


def auth_headers(key: str | None) -> dict[str, str]:
    """Return the header fields that authenticate a request, as Ollama's cloud takes them."""
    return {} if key is None else {"authorization": f"Bearer {key}"}


class _MessageRenderer:
    """Renders messages in order and lists what they can't hold."""

    def __init__(self, request: chat.ChatRequest) -> None:
        self.messages: list[dict[str, Any]] = []
        self.ignored: list[str] = []
        self._attachment_paths = iter(request.attachment_paths)

    def add_message(self, message: Message) -> None:
        if any(getattr(part, "provider_metadata", None) for part in message.parts):
            self.ignored.append("messages[*] (a provider's own data, as signatures)")
        if message.role == "assistant":
            self._render_assistant(message.parts)
            return
        results = [part for part in message.parts if isinstance(part, ToolResultPart)]
        for part in results:
            self._render_result(part)
        role = "system" if message.role == "system" else "user"
        for text, images in self._texts_with_images(message.parts):
            content: dict[str, Any] = {"role": role, "content": text}
            self.messages.append(content | ({"images": images} if images else {}))

    def _texts_with_images(self, parts: list[Part]) -> Iterator[tuple[str, list[str]]]:
        """Yield each text of a message with the images that follow it."""
        text, images = "", list[str]()
        for part in parts:
            match part:
                case TextPart():
                    if text or images:
                        yield text, images
                    text, images = part.text, []
                case AttachmentPart(attachment=attachment) if attachment is not None:
                    images += self._image(attachment)
                case ToolResultPart():
                    pass  # rendered before
                case _:
                    self.ignored.append(f"messages[*] (a {type(part).__name__})")
        if text or images:
            yield text, images

    def _render_assistant(self, parts: list[Part]) -> None:
        reasoning: list[str] = []
        text: list[str] = []
        calls: list[dict[str, Any]] = []
        ranks: list[int] = []
        for part in parts:
            match part:
                case ReasoningPart(redacted=True) | ReasoningPart(text=""):
                    self.ignored.append("messages[*] (reasoning that is opaque)")
                    continue
                case ReasoningPart():
                    reasoning.append(part.text)
                case TextPart():
                    text.append(part.text)
                case ToolCallPart(server_executed=False):
                    calls.append(tool_call(part, len(calls)))
                case AttachmentPart():
                    self.ignored.append(next(self._attachment_paths, "messages[*] (an attachment)"))
                    continue
                case _:
                    self.ignored.append("messages[*] (a server tool's call and result)")
                    continue
            ranks.append(_RANKS[type(part)])
        if ranks != sorted(ranks) or len(text) > 1:
            self.ignored.append("messages[*] (the order of an answer's parts)")
        if not ranks:
            return
        message: dict[str, Any] = {"role": "assistant", "content": "".join(text)}
        if reasoning:
            message["thinking"] = "".join(reasoning)
        if calls:
            message["tool_calls"] = calls
        self.messages.append(message)

    def _render_result(self, part: ToolResultPart) -> None:
        output = part.output
        if part.exception is not None:
            self.ignored.append("messages[*] (a tool's failure, put into words)")
            output = f"Error: {output}"
        message: dict[str, Any] = {"role": "tool", "content": output, "tool_name": part.name}
        message["tool_call_id"] = part.tool_call_id
        images = [image for attachment in part.attachments for image in self._image(attachment)]
        self.messages.append(message | ({"images": images} if images else {}))

    def _image(self, attachment: llm.Attachment) -> list[str]:
        path = next(self._attachment_paths, "messages[*] (an attachment)")
        is_image = (attachment.type or "").startswith("image/")
        if attachment.content is None or not is_image:
            self.ignored.append(path)
            return []
        return [base64.b64encode(attachment.content).decode()]


_RANKS = {ReasoningPart: 0, TextPart: 1, ToolCallPart: 2}
