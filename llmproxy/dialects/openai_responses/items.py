"""The items of a conversation in this API: their ids, and how the parts of a reply look.

An item's id has that of its response, so that a reference to it can be found in the log.

Spec: https://platform.openai.com/docs/api-reference/responses/object
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from llm.parts import Part, ReasoningPart, TextPart, ToolCallPart, ToolResultPart

from ...core import chat, payload
from ...core.errors import InvalidRequest

ID_PREFIX = "resp_"
_ID = re.compile(r"(?:resp|msg|rs|fc|ctc|tsc|ws|ci|cmp)_([0-9a-z]{26})(?:_\d+)?")

# What a model is told to write when a conversation is to be compacted, and what stands before
# its text afterwards.
COMPACTION_PROMPT = (
    "Write a summary of this conversation that lets you, or another model, continue the work"
    " without it: what the user wants, what was done and found, decisions with their reasons,"
    " names of files and values that are still needed, and what comes next. Answer with the"
    " summary only."
)
COMPACTED = "Summary of the conversation so far, which it replaces:\n\n"


def exchange_id(id_: str) -> str | None:
    """Return the id of the exchange that a response or an item came from; None if not ours."""
    found = _ID.fullmatch(id_)
    return found[1] if found else None


def item_id(prefix: str, envelope: chat.Envelope, index: int) -> str:
    """Return the id of a response's item at its place in the output."""
    return f"{prefix}_{envelope.id}_{index}"


def tool_name(name: str, namespace: str | None) -> str:
    """Return the name under which a model knows a tool: names are unique in a namespace only."""
    return f"{namespace.rstrip('_')}__{name}" if namespace else name


# ---- reasoning


def openai_metadata(provider_metadata: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return OpenAI's share of a part's provider_metadata, {} if it is another provider's."""
    metadata = (provider_metadata or {}).get("openai")
    return metadata if isinstance(metadata, dict) else {}


def encrypted_content(provider_metadata: Mapping[str, Any] | None) -> str | None:
    """Return the reasoning that only OpenAI can read, if there is any."""
    encrypted = openai_metadata(provider_metadata).get("encrypted_content")
    return encrypted if isinstance(encrypted, str) and encrypted else None


def reasoning_metadata(
    encrypted: str | None, id_: str | None, summary: Sequence[Any]
) -> dict[str, Any] | None:
    """Return the provider_metadata of reasoning as llm's OpenAI plugin keeps it.

    Without the encrypted text there is none: OpenAI keeps nothing that an id could name. An id
    of ours is left out, since the encrypted text has another one in it.
    """
    if not encrypted:
        return None
    metadata: dict[str, Any] = {"encrypted_content": encrypted}
    if id_ and exchange_id(id_) is None:
        metadata["id"] = id_
    if summary:
        metadata["summary"] = list(summary)
    return {"openai": metadata}


def reasoning_item(id_: str, text: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Render reasoning; metadata is OpenAI's share, with the parts of the summary if known."""
    parts = metadata.get("summary")
    if not isinstance(parts, list) or "".join(_texts(parts)) != text:
        parts = [{"type": "summary_text", "text": text}] if text else []
    item: dict[str, Any] = {"id": id_, "type": "reasoning", "summary": parts}
    encrypted = encrypted_content({"openai": metadata})
    return item | {"encrypted_content": encrypted} if encrypted else item


def _texts(parts: list[Any]) -> Iterator[str]:
    for part in parts:
        match part:
            case {"text": str(text)}:
                yield text


# ---- messages and calls


def text_part(text: str) -> dict[str, Any]:
    """Render a text as a part of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def message_item(id_: str, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    """Render a message of the model's."""
    return {
        "id": id_,
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": content,
    }


def call_kind(envelope: chat.Envelope, name: str) -> Mapping[str, Any]:
    """Return what the request calls a tool, if that is no plain function of the same name."""
    kind = envelope.echo.get("calls", {}).get(name)
    return kind if isinstance(kind, dict) else {"type": "function", "name": name}


CALL_PREFIXES: Mapping[str, str] = {"function": "fc", "custom": "ctc", "tool_search": "tsc"}


def call_item(
    id_: str, status: str, kind: Mapping[str, Any], call_id: str | None, arguments: str
) -> dict[str, Any]:
    """Render a call for the client to run, as the request has its tool."""
    item: dict[str, Any] = {"id": id_, "type": "", "status": status, "call_id": call_id}
    match kind["type"]:
        case "custom":
            item |= {
                "type": "custom_tool_call",
                "name": kind["name"],
                "input": custom_input(arguments),
            }
        case "tool_search":
            item |= {
                "type": "tool_search_call",
                "execution": "client",
                "arguments": chat.parse_arguments(arguments),
            }
        case _:
            item |= {"type": "function_call", "name": kind["name"], "arguments": arguments}
    return item | {"namespace": kind["namespace"]} if kind.get("namespace") else item


def custom_input(arguments: str) -> str:
    """Return the text for a custom tool: its only argument, or whatever was written instead."""
    match chat.parse_arguments(arguments):
        case {"input": str(text)}:
            return text
    return "" if arguments in ("{}", "") else arguments


# ---- tools that OpenAI runs itself

# By llm's name of the tool. Only calls with OpenAI's own ids: items of other providers' tools
# have other fields.
_SERVER_PREFIXES: Mapping[str, str] = {"web_search": "ws_", "code_interpreter": "ci_"}


def is_shown_server_tool(name: str | None, id_: str | None) -> bool:
    """Whether this API has an item for a call that the provider ran."""
    return (id_ or "").startswith(_SERVER_PREFIXES.get(name or "", "\0"))


def server_item(name: str, id_: str | None, arguments: str, output: str) -> dict[str, Any]:
    """Render a call that OpenAI ran, with its result, from what llm's plugin keeps of both."""
    given = chat.parse_arguments(arguments)
    if name == "code_interpreter":
        outputs = [] if output in _STATUSES else [{"type": "logs", "logs": output}]
        return {
            "id": id_,
            "type": "code_interpreter_call",
            "status": _status(output),
            "code": given.get("code"),
            "container_id": "",
            "outputs": outputs,
        }
    item: dict[str, Any] = {
        "id": id_,
        "type": "web_search_call",
        "status": _status(output),
        "action": given,
    }
    try:
        results = payload.parse(output.encode())
    except InvalidRequest:
        results = None
    return item | {"results": results} if isinstance(results, list) else item


_STATUSES = ("completed", "failed", "in_progress", "incomplete", "searching", "interpreting")


def _status(output: str) -> str:
    return output if output in _STATUSES else "completed"


def server_call(item: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """Return name, arguments and result of a call that a provider ran, as llm's plugin has them.

    The fields of other kinds than OpenAI's plugin knows are arguments, except the result. None
    if the item is no such call.
    """
    type_, status = str(item.get("type")), str(item.get("status") or "completed")
    match item:
        case {"type": "web_search_call"}:
            results = item.get("results")
            output = json.dumps(results) if results else status
            return "web_search", json.dumps(item.get("action") or {}), output
        case {"type": "code_interpreter_call"}:
            outputs = item.get("outputs")
            texts = [
                str(one.get("logs") or one.get("url") or "")
                for one in (outputs if isinstance(outputs, list) else [])
                if isinstance(one, dict)
            ]
            code = json.dumps({"code": item.get("code") or ""})
            return "code_interpreter", code, "\n".join(filter(None, texts)) or status
        case {"type": "file_search_call" | "image_generation_call" | "mcp_call"}:
            results = [item.get(name) for name in ("results", "result", "output", "error")]
            output = next((json.dumps(result) for result in results if result), status)
            given = {name: value for name, value in item.items() if name not in _NOT_ARGUMENTS}
            return type_.removesuffix("_call"), json.dumps(given), output
    return None


_NOT_ARGUMENTS = frozenset("id type status results result output error".split())


# ---- a whole output


def render_output(
    parts: Sequence[Part], envelope: chat.Envelope, response: chat.ChatResponse
) -> list[dict[str, Any]]:
    """Render the parts of a response as items, each with its place in its id."""
    output: list[dict[str, Any]] = []
    server_calls: dict[str | None, str] = {}  # their arguments, by tool_call_id
    for part in parts:
        match part:
            case ToolCallPart(server_executed=True):
                server_calls[part.tool_call_id] = response.arguments_text(part)
            case TextPart(text=text) if text:
                id_ = item_id("msg", envelope, len(output))
                output.append(message_item(id_, "completed", [text_part(text)]))
            case ReasoningPart(text=text) if text or encrypted_content(part.provider_metadata):
                id_ = item_id("rs", envelope, len(output))
                metadata = openai_metadata(part.provider_metadata)
                output.append(reasoning_item(id_, text, metadata))
            case ToolCallPart():
                kind = call_kind(envelope, part.name)
                id_ = item_id(CALL_PREFIXES[kind["type"]], envelope, len(output))
                arguments = response.arguments_text(part)
                item = call_item(id_, "completed", kind, part.tool_call_id, arguments)
                output.append(item)
            case ToolResultPart() if is_shown_server_tool(part.name, part.tool_call_id):
                arguments = server_calls.get(part.tool_call_id, "{}")
                output.append(server_item(part.name, part.tool_call_id, arguments, part.output))
    finish_output(output, response.finish)
    return output


_CALLS = frozenset({"function_call", "custom_tool_call", "tool_search_call"})


def finish_output(output: list[dict[str, Any]], finish: chat.Finish) -> None:
    """Mark, in a whole output, what was cut short, and which messages are no last ones.

    A message before a call is a commentary, the last one the answer: what agents show apart.
    """
    for item, following in zip_longest(output, output[1:]):
        if item["type"] == "message" and following is not None:
            if following["type"] in _CALLS:
                item["phase"] = "commentary"
        elif item["type"] == "message" and finish.reason in ("stop", "tool_calls"):
            item["phase"] = "final_answer"
    if output and finish.reason in ("length", "content_filter") and "status" in output[-1]:
        output[-1]["status"] = "incomplete"
