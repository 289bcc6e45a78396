"""Render a Responses request for another server.

Spec: https://platform.openai.com/docs/api-reference/responses/create
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
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
from .items import encrypted_content, openai_metadata, reasoning_item
from .schema import OPTIONS


def render_request(request: chat.ChatRequest) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Render a request's body and list the paths of what this API can't hold.

    The first message becomes `instructions` if it is a system's and not the only one, since the
    input must not be empty. Nothing is to be stored at the server, so the encrypted text of
    reasoning is asked for. Reasoning that OpenAI has not encrypted is left out, as are calls that
    a provider ran.

    Spec: https://platform.openai.com/docs/api-reference/responses/create
    """
    renderer = _ItemRenderer(request)
    messages = list(request.messages)
    body: dict[str, Any] = {} if request.model is None else {"model": request.model}
    if len(messages) > 1 and messages[0].role == "system" and _is_text(messages[0]):
        body["instructions"] = "".join(
            part.text for part in messages.pop(0).parts if isinstance(part, TextPart)
        )
    for message in messages:
        renderer.add_message(message)
    ignored = renderer.ignored
    body["input"] = renderer.items
    if request.tools:
        body["tools"] = [_function_tool(tool) for tool in request.tools]
    for server_tool in request.server_tools:
        if server_tool.name in _SERVER_TOOLS:
            body.setdefault("tools", []).append({"type": server_tool.name, **server_tool.config})
        else:
            ignored.append(server_tool.path)
    if body.get("tools"):
        match request.tool_choice:
            case chat.NamedTool(name=name):
                body["tool_choice"] = {"type": "function", "name": name}
            case "none" | "required" as word:
                body["tool_choice"] = word
    elif request.tool_choice not in ("auto", "none"):
        ignored.append("tool_choice")
    body |= _option_fields(request, ignored)
    body |= {"store": False, "include": ["reasoning.encrypted_content"]}
    if request.stream:
        body["stream"] = True
    return body, tuple(dict.fromkeys(ignored))


_SERVER_TOOLS = frozenset({"web_search"})


def _is_text(message: Message) -> bool:
    return len(message.parts) == 1 and isinstance(message.parts[0], TextPart)


def _function_tool(tool: llm.Tool) -> dict[str, Any]:
    rendered: dict[str, Any] = {"type": "function", "name": tool.name}
    if tool.description is not None:
        rendered["description"] = tool.description
    # Strict, OpenAI's default here, allows few schemas.
    return rendered | {"parameters": tool.input_schema, "strict": False}


def _option_fields(request: chat.ChatRequest, ignored: list[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    text: dict[str, Any] = {}
    for name, value in request.options.items():
        path = request.option_paths.get(name, name)
        match name:
            case "max_tokens":
                fields["max_output_tokens"] = value
            case "verbosity":
                text["verbosity"] = value
            case "json_object":
                text["format"] = {"type": "json_object"}
            case "user" if len(value) > MAX_USER_CHARS:
                ignored.append(path)
            case "reasoning_effort" if value == "max":  # Anthropic's; here it ends with xhigh
                fields["reasoning"] = {"effort": "xhigh"}
                ignored.append(path)
            case "reasoning_effort":
                fields["reasoning"] = {"effort": value}
            case _ if name in OPTIONS:
                fields[name] = value
            case _:
                ignored.append(path)
    if request.schema is not None:
        schema = {"name": SCHEMA_NAME, "schema": request.schema, "strict": False}
        text["format"] = {"type": "json_schema", **schema}
    return fields | ({"text": text} if text else {})


class _ItemRenderer:
    """Renders messages in order and lists what they can't hold."""

    def __init__(self, request: chat.ChatRequest) -> None:
        self.items: list[dict[str, Any]] = []
        self.ignored: list[str] = []
        self._attachment_paths = iter(request.attachment_paths)

    def add_message(self, message: Message) -> None:
        if message.role == "assistant":
            self._render_assistant(message.parts)
            return
        content: list[dict[str, Any]] = []
        results = 0
        for part in message.parts:
            if isinstance(part, ToolResultPart):
                results += 1
                self._render_result(part)
            else:
                content += self._content(part)
        if content or not results:
            role = "developer" if message.role == "system" else "user"
            self.items.append({"type": "message", "role": role, "content": content})

    def _render_assistant(self, parts: Sequence[Part]) -> None:
        text: list[dict[str, Any]] = []  # one message until something else comes
        for part in parts:
            metadata = getattr(part, "provider_metadata", None)
            if metadata and not encrypted_content(metadata):
                self.ignored.append("messages[*] (a provider's own data, as signatures)")
            if isinstance(part, TextPart):
                if not text:
                    self.items.append({"type": "message", "role": "assistant", "content": text})
                text.append({"type": "output_text", "text": part.text})
                continue
            text = []
            match part:
                case ReasoningPart() if encrypted_content(metadata):
                    openai = openai_metadata(metadata)
                    item = reasoning_item(str(openai.get("id") or ""), part.text, openai)
                    if not item["id"]:
                        del item["id"]
                    self.items.append(item)
                case ReasoningPart():
                    self.ignored.append("messages[*] (reasoning that OpenAI did not encrypt)")
                case ToolCallPart(server_executed=False):
                    call = {"type": "function_call", "call_id": part.tool_call_id}
                    arguments = chat.arguments_text(part)
                    self.items.append(call | {"name": part.name, "arguments": arguments})
                case AttachmentPart():
                    self.ignored.append(next(self._attachment_paths, "messages[*] (an attachment)"))
                case _:
                    self.ignored.append("messages[*] (a server tool's call and result)")

    def _render_result(self, part: ToolResultPart) -> None:
        output: str | list[dict[str, Any]] = part.output
        if part.exception is not None:
            self.ignored.append("messages[*] (a tool's failure, put into words)")
            output = f"Error: {part.output}"
        images = [item for attachment in part.attachments for item in self._attachment(attachment)]
        if images:
            text = [{"type": "input_text", "text": output}] if output else []
            output = [*text, *images]
        item = {"type": "function_call_output", "call_id": part.tool_call_id}
        self.items.append(item | {"output": output})

    def _content(self, part: Part) -> list[dict[str, Any]]:
        match part:
            case TextPart(text=text):
                return [{"type": "input_text", "text": text}]
            case AttachmentPart(attachment=attachment) if attachment is not None:
                return self._attachment(attachment)
        self.ignored.append(f"messages[*] (a {type(part).__name__})")
        return []

    def _attachment(self, attachment: llm.Attachment) -> list[dict[str, Any]]:
        path = next(self._attachment_paths, "messages[*] (an attachment)")
        type_ = attachment.type or "application/octet-stream"
        if attachment.url is not None:
            if type_.startswith("image/"):
                return [{"type": "input_image", "image_url": attachment.url}]
            return [{"type": "input_file", "file_url": attachment.url}]
        if attachment.content is None:  # a file of this machine: never opened
            self.ignored.append(path)
            return []
        data = base64.b64encode(attachment.content).decode()
        if type_.startswith("image/"):
            return [{"type": "input_image", "image_url": f"data:{type_};base64,{data}"}]
        if type_ in AUDIO_FORMATS:
            audio = {"data": data, "format": AUDIO_FORMATS[type_]}
            return [{"type": "input_audio", "input_audio": audio}]
        # OpenAI requires a name beside the data; our attachments have none.
        ending = type_.rpartition("/")[2]
        file = {"filename": f"file.{ending}", "file_data": f"data:{type_};base64,{data}"}
        return [{"type": "input_file", **file}]
