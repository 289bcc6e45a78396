"""Render a Chat Completions request for another server.

Spec: https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
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
from ...core.openai_api import AUDIO_FORMATS, MAX_USER_CHARS, SCHEMA_NAME
from .render_response import tool_call
from .schema import OPTIONS


def render_request(request: chat.ChatRequest) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Render a request's body and list the paths of what this API can't hold.

    An assistant's parts are sorted as this API has them: reasoning (`reasoning_content`),
    text, calls. Images in tool results move to a user message after them. A streamed
    response is requested with its usage unless the request says otherwise. The token limit
    is `max_tokens`, which every server of this API knows, unless the client itself sent
    `max_completion_tokens`.

    Spec: https://platform.openai.com/docs/api-reference/chat/create
    """
    renderer = _MessageRenderer(request)
    for message in request.messages:
        renderer.add_message(message)
    ignored = renderer.ignored
    body: dict[str, Any] = {"messages": renderer.messages}
    if request.model is not None:
        body = {"model": request.model, **body}
    if request.tools:
        body["tools"] = [_function_tool(tool) for tool in request.tools]
        match request.tool_choice:
            case chat.NamedTool(name=name):
                body["tool_choice"] = {"type": "function", "function": {"name": name}}
            case "none" | "required" as word:
                body["tool_choice"] = word
    elif request.tool_choice not in ("auto", "none"):
        ignored.append("tool_choice")  # OpenAI refuses it where there are no tools
    ignored += [tool.path for tool in request.server_tools]
    body |= _option_fields(request, ignored)
    if request.stream:
        body["stream"] = True
        if request.include_usage:
            body["stream_options"] = {"include_usage": True}
    return body, tuple(dict.fromkeys(ignored))


def _function_tool(tool: llm.Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    return {"type": "function", "function": function | {"parameters": tool.input_schema}}


def _option_fields(request: chat.ChatRequest, ignored: list[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in request.options.items():
        path = request.option_paths.get(name, name)
        match name:
            case "max_tokens":
                is_newer = path == "max_completion_tokens"
                fields["max_completion_tokens" if is_newer else "max_tokens"] = value
            case "stop_sequences":
                fields["stop"] = value
            case "json_object":
                fields["response_format"] = {"type": "json_object"}
            case "user" if len(value) > MAX_USER_CHARS:
                ignored.append(path)
            case "reasoning_effort" if value == "max":  # Anthropic's; here it ends with xhigh
                fields[name] = "xhigh"
                ignored.append(path)
            case _ if name in OPTIONS:
                fields[name] = value
            case _:
                ignored.append(path)
    if request.schema is not None:
        schema = {"name": SCHEMA_NAME, "schema": request.schema}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    return fields


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
        moved = [image for part in results for image in self._render_result(part)]
        others = [part for part in message.parts if not isinstance(part, ToolResultPart)]
        content = moved + [item for part in others for item in self._content(part)]
        if content or not results:
            role = "system" if message.role == "system" else "user"
            self.messages.append({"role": role, "content": _shortest(content)})

    def _render_assistant(self, parts: Sequence[Part]) -> None:
        reasoning: list[str] = []
        text: list[dict[str, Any]] = []
        calls: list[dict[str, Any]] = []
        ranks: list[int] = []
        for part in parts:
            match part:
                case ReasoningPart(redacted=True) | ReasoningPart(text=""):
                    self.ignored.append("messages[*] (reasoning that is opaque)")
                    continue
                case ReasoningPart():
                    reasoning.append(part.text)
                case ToolCallPart(server_executed=False):
                    function = {"name": part.name, "arguments": chat.arguments_text(part)}
                    calls.append(tool_call(part.tool_call_id, function))
                case TextPart():
                    text += self._content(part)
                case AttachmentPart():
                    self.ignored.append(next(self._attachment_paths, "messages[*] (an attachment)"))
                    continue
                case _:
                    self.ignored.append("messages[*] (a server tool's call and result)")
                    continue
            ranks.append(_RANKS[type(part)])
        if ranks != sorted(ranks):
            self.ignored.append("messages[*] (the order of an answer's parts)")
        if not ranks:
            return
        message: dict[str, Any] = {"role": "assistant"}
        message["content"] = _shortest(text) or (None if calls else "")
        if reasoning:
            message["reasoning_content"] = "".join(reasoning)
        if calls:
            message["tool_calls"] = calls
        self.messages.append(message)

    def _render_result(self, part: ToolResultPart) -> list[dict[str, Any]]:
        """Render a tool's message; return its images, which it can't hold."""
        output = part.output
        if part.exception is not None:
            self.ignored.append("messages[*] (a tool's failure, put into words)")
            output = f"Error: {output}"
        if part.attachments:
            self.ignored.append("messages[*] (a tool's image, moved into a user message)")
        self.messages.append({"role": "tool", "tool_call_id": part.tool_call_id, "content": output})
        return [item for attachment in part.attachments for item in self._attachment(attachment)]

    def _content(self, part: Part) -> list[dict[str, Any]]:
        match part:
            case TextPart(text=text):
                return [{"type": "text", "text": text}]
            case AttachmentPart(attachment=attachment) if attachment is not None:
                return self._attachment(attachment)
        self.ignored.append(f"messages[*] (a {type(part).__name__})")
        return []

    def _attachment(self, attachment: llm.Attachment) -> list[dict[str, Any]]:
        path = next(self._attachment_paths, "messages[*] (an attachment)")
        type_ = attachment.type or "application/octet-stream"
        if attachment.url is not None and type_.startswith("image/"):
            return [{"type": "image_url", "image_url": {"url": attachment.url}}]
        if attachment.content is None:  # a URL of what is no image, or a file of this machine
            self.ignored.append(path)
            return []
        data = base64.b64encode(attachment.content).decode()
        if type_.startswith("image/"):
            return [{"type": "image_url", "image_url": {"url": f"data:{type_};base64,{data}"}}]
        if type_ in AUDIO_FORMATS:
            audio = {"data": data, "format": AUDIO_FORMATS[type_]}
            return [{"type": "input_audio", "input_audio": audio}]
        # OpenAI requires a name beside the data; our attachments have none.
        ending = type_.rpartition("/")[2]
        file = {"filename": f"file.{ending}", "file_data": f"data:{type_};base64,{data}"}
        return [{"type": "file", "file": file}]


_RANKS: Mapping[type, int] = {ReasoningPart: 0, TextPart: 1, ToolCallPart: 2}


def _shortest(content: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Return one text as a string, for servers that accept no lists of parts."""
    match content:
        case []:
            return ""
        case [{"type": "text", "text": str(text)}]:
            return text
    return content
