"""Render a Messages request for another server.

Spec: https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any

import llm
from llm.parts import (
    AttachmentPart,
    Message,
    Part,
    ReasoningPart,
    TextPart,
    ToolResultPart,
)

from ...core import chat
from ...core.tool_calls import PendingToolCalls
from .render_response import anthropic_metadata, render_block

VERSION_HEADER = "anthropic-version"
API_VERSION = "2023-06-01"  # the only one
MAX_TOKENS = 4096  # for requests without a limit: Anthropic requires one
MIN_THINKING_BUDGET_TOKENS = 1024  # Anthropic refuses less, and a budget of max_tokens or more
PLACEHOLDER = "(continue)"  # Anthropic requires a user's turn first, and last unless prefilling

EFFORTS: Mapping[str, str] = {word: word for word in ("low", "medium", "high", "xhigh", "max")} | {
    "minimal": "low"
}

# The versions that all models accept.
SERVER_TOOL_TYPES: Mapping[str, str] = {
    "web_search": "web_search_20250305",
    "web_fetch": "web_fetch_20250910",
}


def render_request(
    request: chat.ChatRequest, *, max_tokens: int = MAX_TOKENS
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Render a request's body and list the paths of what this API can't hold.

    Leading system messages become `system`; a later one keeps its place after a user's turn,
    and elsewhere becomes marked text of the next. Turns of one role are joined, tool
    results come first in theirs, blank text is left out; a final assistant turn
    (prefill) loses trailing white space. Thinking that Anthropic did not sign is left
    out. Sampling options are not sent with thinking. Tool names that Anthropic refuses are
    changed by `tool_names`.

    Raises:
        InvalidRequest: tool calls and results do not belong together.

    Spec: https://docs.anthropic.com/en/api/messages
    """
    names = tool_names(request)
    renderer = _MessageRenderer(request, names)
    for message in request.messages:
        renderer.add_message(message)
    renderer.end()
    ignored = renderer.ignored
    ignored += [f"tools[*].name ({old[:80]})" for old, new in names.items() if old != new]
    limit = request.options.get("max_tokens", max_tokens)
    body: dict[str, Any] = {} if request.model is None else {"model": request.model}
    body |= {"max_tokens": limit, "messages": renderer.messages}
    if renderer.system:
        body["system"] = _shortest(renderer.system)
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


MAX_TOOL_NAME_CHARS = 64
_TOOL_NAME = re.compile(rf"[a-zA-Z0-9_-]{{1,{MAX_TOOL_NAME_CHARS}}}")


def tool_names(request: chat.ChatRequest) -> dict[str, str]:
    """Map the name of each of a request's tools to its name in this API.

    Most stay the same; to parse a response, look a changed name up in reverse.
    """
    names = {tool.name: tool.name for tool in request.tools if _TOOL_NAME.fullmatch(tool.name)}
    taken = set(names)
    numbers: dict[str, int] = {}  # the last one given to each name that was taken
    for tool in request.tools:
        if tool.name in names:
            continue
        name = fitted = _fitted(tool.name)
        while name in taken:
            number = numbers[fitted] = numbers.get(fitted, 1) + 1
            name = f"{fitted[: MAX_TOOL_NAME_CHARS - 1 - len(str(number))]}_{number}"
        taken.add(name)
        names[tool.name] = name
    return names


def _fitted(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_-]", "_", name[:MAX_TOOL_NAME_CHARS]) or "_"


def _tool(tool: llm.Tool, names: Mapping[str, str]) -> dict[str, Any]:
    rendered: dict[str, Any] = {"name": names[tool.name]}
    if tool.description is not None:
        rendered["description"] = tool.description
    return rendered | {"input_schema": tool.input_schema}


def _rendered_choice(request: chat.ChatRequest, names: Mapping[str, str]) -> dict[str, Any] | None:
    match request.tool_choice:
        case chat.NamedTool(name=name):
            choice: dict[str, Any] = {"type": "tool", "name": names.get(name, name)}
        case "required":
            choice = {"type": "any"}
        case word:
            choice = {"type": word}
    if request.options.get("parallel_tool_calls") is False and choice["type"] != "none":
        return choice | {"disable_parallel_tool_use": True}
    return None if choice == {"type": "auto"} else choice


def _option_fields(
    request: chat.ChatRequest, max_tokens: int, ignored: list[str]
) -> dict[str, Any]:
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
                continue  # rendered elsewhere
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
    """Return the field, with a budget that Anthropic accepts; None if max_tokens leaves none."""
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


def auth_headers(key: str | None) -> dict[str, str]:
    """Return the header fields that authenticate a request to a server of this API.

    The version is sent without a key too: Anthropic's servers refuse requests without it.
    """
    version = {VERSION_HEADER: API_VERSION}
    return version if key is None else version | {"x-api-key": key}


class _MessageRenderer:
    """Renders messages in order and lists what they can't hold."""

    def __init__(self, request: chat.ChatRequest, names: Mapping[str, str]) -> None:
        self.system: list[dict[str, Any]] = []
        self.messages: list[dict[str, Any]] = []
        self.ignored: list[str] = []
        self._names = names
        self._attachment_paths = iter(request.attachment_paths)
        self._ends_in_answer = bool(request.messages) and request.messages[-1].role == "assistant"
        self._pending = PendingToolCalls()
        self._held: list[Message] = []  # system messages between a call and its result

    def add_message(self, message: Message) -> None:
        blocks = [block for part in message.parts for block in self._blocks(part)]
        match message.role:
            case "system" if not self.messages:
                self.system += blocks
            case "system" if self._pending:
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
        """Make the history begin, and end, with the turn that Anthropic requires."""
        self._pending.check_empty("messages")
        if self.messages and self.messages[-1]["role"] == "assistant":
            if self._ends_in_answer:
                self._strip_prefill()
            else:
                self._fill(len(self.messages))  # a blank user turn is no prefill
        if not self.messages or self.messages[0]["role"] != "user":
            self._fill(0)
        for message in self.messages:
            message["content"] = _shortest(message["content"])

    def _fill(self, place: int) -> None:
        block = {"type": "text", "text": PLACEHOLDER}
        self.messages.insert(place, {"role": "user", "content": [block]})
        self.ignored.append("messages[*] (a user's turn put in, which Anthropic asks for)")

    def _strip_prefill(self) -> None:
        content = self.messages[-1]["content"]
        if content[-1]["type"] == "text":
            content[-1]["text"] = content[-1]["text"].rstrip()

    def _add(self, role: str, blocks: list[dict[str, Any]]) -> None:
        if not blocks:
            return
        self._pending.check_empty("messages")
        if self.messages and self.messages[-1]["role"] == role:
            self.messages[-1]["content"] += blocks
        else:
            self.messages.append({"role": role, "content": blocks})
        for block in blocks:
            if block["type"] == "tool_use":
                self._pending.add(block["id"], block["name"])

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
            self._pending.take(block["tool_use_id"], "messages")
        if self.messages[-1]["role"] == "user":
            self.messages[-1]["content"] += blocks
        else:
            self.messages.append({"role": "user", "content": blocks})
        if not self._pending:
            held, self._held = self._held, []
            for message in held:
                self.add_message(message)

    def _blocks(self, part: Part) -> list[dict[str, Any]]:
        match part:
            case TextPart(text=text):
                return [{"type": "text", "text": text}] if text.strip() else []
            case AttachmentPart(attachment=attachment) if attachment is not None:
                return self._attachment(attachment)
            case ToolResultPart(server_executed=False):
                return [self._result(part)]
            case ReasoningPart() if not anthropic_metadata(part.provider_metadata):
                self.ignored.append("messages[*] (reasoning that Anthropic did not sign)")
                return []
        block = render_block(part)
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
    """Return one text as a string, which every server of this API accepts."""
    match blocks:
        case [{"type": "text", "text": str(text)}]:
            return text
    return blocks
