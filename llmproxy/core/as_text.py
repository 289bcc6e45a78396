"""Content that an API, or a model, has no form for, put into words.

Conversions of last resort: the model is told as text what it can't be given otherwise. The
caller lists what was changed.
"""

from __future__ import annotations

import json
import re
from typing import Any

from llm.parts import ToolCallPart, ToolResultPart

# Members of a block that only the provider that wrote it can read, or that no model is shown.
_OPAQUE = frozenset({"cache_control", "signature", "encrypted_content", "encrypted_index"})

# A longer text in base64's letters is data rather than words: an image costs a model that
# reads it a hundred thousand tokens. Chinese and Japanese have no spaces, so these don't tell.
MAX_DATA_CHARACTERS = 4096

_DATA = re.compile(r"(?:data:[^,\s]{0,200},)?[A-Za-z0-9+/=_%\r\n-]+")


def call_text(call: ToolCallPart) -> str:
    """Return a tool call as marked text."""
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return f"<tool_call>{call.name}({arguments})</tool_call>"


def result_text(result: ToolResultPart, name: str | None = None) -> str:
    """Return a tool's result as marked text.

    name: of the tool, where the result's own is that of a kind of tools (`mcp`). The output of
    a tool that a provider ran is JSON: its text, or what of it can be read.
    """
    output = result.output
    if result.server_executed:
        try:
            output = block_text(json.loads(output)) if output else ""
        except ValueError:
            pass  # it is text already
    failure = "Error: " if result.exception is not None else ""
    return f"<tool_result>{name or result.name}: {failure}{output}</tool_result>"


def block_text(block: Any) -> str:
    """Return the text of a block of an unknown kind, or of a list of blocks.

    What says nothing but one text is that text, anything else is its JSON without the members
    that only its provider can read; "" if nothing is left.
    """
    value = _readable(block)
    text = _only_text(value)
    if text is not None:
        return text
    return json.dumps(value, ensure_ascii=False)


def holds_text(block: Any) -> bool:
    """Return whether any string in a block says something, besides the names of kinds."""
    return _holds_text(_readable(block))


def _holds_text(value: Any) -> bool:
    match value:
        case str(text):
            return bool(text)
        case dict(members):
            return any(_holds_text(value) for name, value in members.items() if name != "type")
        case list(items):
            return any(_holds_text(item) for item in items)
    return False


def _only_text(value: Any) -> str | None:
    """Return the text that is all a value says, None if it says something else."""
    match value:
        case None | {"type": str()} if value is None or len(value) == 1:
            return ""
        case str(text):
            return text
        case {"type": str(), "text": inner} | {"type": str(), "content": inner} if len(value) == 2:
            return _only_text(inner)
        case list(items):
            texts = [_only_text(item) for item in items]
            return None if None in texts else "\n".join(text for text in texts if text)
    return None


def _readable(value: Any) -> Any:
    """Return a JSON value without what is opaque, empty, or only data."""
    match value:
        case dict():
            members = {
                name: _readable(member) for name, member in value.items() if name not in _OPAQUE
            }
            return {name: member for name, member in members.items() if _says_something(member)}
        case list():
            return [_readable(item) for item in value]
        case str() if len(value) > MAX_DATA_CHARACTERS and _DATA.fullmatch(value):
            return f"({len(value)} characters of data)"
    return value


def _says_something(value: Any) -> bool:
    return value is not None and value != "" and value != [] and value != {}
