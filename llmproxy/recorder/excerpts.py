"""The beginnings of what was said last and of the reply, each in a line, for lists of the log."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import takewhile

from llm.parts import AttachmentPart, Message, Part, TextPart, ToolCallPart, ToolResultPart

from .previews import PreviewPart, newly_asked

MAX_CHARS = 100  # of an excerpt
MAX_MESSAGES = 50  # that are looked at, of those since the last reply
PIECE_CHARS = 40  # of one of several pieces: of a text before calls, of each result


def last_message(messages: Sequence[Message]) -> str:
    """Return what a request newly asks: `read_file → contents; go on; [image/png]`."""
    newest = messages[-MAX_MESSAGES:]
    if newest and newest[-1].role == "assistant":  # the beginning of the reply
        newest = newest[:-1]
    new = [*takewhile(lambda message: message.role != "assistant", reversed(newest))][::-1]
    parts = ((message.role, _part(part)) for message in new for part in message.parts)
    return _joined([*map(_piece, newly_asked((role, part) for role, part in parts if part))])


def reply_words(reply: Sequence[Message]) -> str:
    """Return the beginning of a reply's text, and its calls: `read_file(path="a.txt")`."""
    parts = [part for message in reply for part in message.parts]
    calls = [_call(part) for part in parts if isinstance(part, ToolCallPart)]
    shown = [part for part in map(_part, parts) if part]
    text = " ".join(part.text for part in shown if part.kind == "text")
    text = _one_line(text, PIECE_CHARS if calls else MAX_CHARS)
    attachments = (_piece(part) for part in shown if part.kind == "attachment")
    return _joined([*([text] if text else []), *calls] or [*attachments])


def _part(part: Part) -> PreviewPart | None:
    """Return the beginning of a text or result, or an attachment's type; None for other parts."""
    match part:
        case TextPart() if text := _one_line(part.text, MAX_CHARS):
            return PreviewPart("text", text)
        case ToolResultPart():
            failed = "failed: " if part.exception else ""
            output = _one_line(part.output or part.exception or "", PIECE_CHARS) or "(nothing)"
            return PreviewPart("result", f"{failed}{output}", part.name or "tool")
        case AttachmentPart() if part.attachment is not None:
            return PreviewPart("attachment", part.attachment.type or "attachment")
    return None


def _piece(part: PreviewPart) -> str:
    if part.kind == "attachment":
        return f"[{part.text}]"
    return f"{part.name} → {part.text}" if part.kind == "result" else part.text


def _call(part: ToolCallPart) -> str:
    arguments = part.arguments
    if not isinstance(arguments, Mapping):
        return f"{part.name}({_value(arguments)})"
    shown = []
    for name, value in arguments.items():
        shown.append(f"{name}={_value(value)}")
        if sum(map(len, shown)) > MAX_CHARS:
            break
    return f"{part.name}({', '.join(shown)})"


def _value(value: object) -> str:
    if isinstance(value, str):
        return json.dumps(_one_line(value, PIECE_CHARS), ensure_ascii=False)
    if isinstance(value, Mapping | list):
        return "{…}" if isinstance(value, Mapping) else "[…]"
    return json.dumps(value, default=str)


def _one_line(text: str, most: int) -> str:
    """Return the beginning of a text on one line, with "…" if there is more."""
    line = " ".join(text.lstrip()[: 4 * most].split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _joined(pieces: Sequence[str]) -> str:
    return _one_line("; ".join(pieces), MAX_CHARS)
