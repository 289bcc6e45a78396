"""Render messages: texts, reasoning, calls of tools and their results, attachments.

All of it comes from clients and models: long text is cut, and goes through `markup.text`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from llm.parts import (
    AttachmentPart,
    Part,
    ReasoningPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)

from .. import numbers
from . import markup

MAX_TEXT_CHARS = 6_000  # of one text: three printed pages; `log ID` shows all of it
MAX_CALL_CHARS = 1_500  # of a tool call's arguments
MAX_PARTS = 30  # of a message or reply; messages of a prompt


def parts(of_message: Sequence[Part]) -> str:
    """Render the parts of a message, at most MAX_PARTS."""
    return "".join(map(part, of_message[:MAX_PARTS])) + more(of_message, "part")


def more(things: Sequence[object], thing: str) -> str:
    """Say how many are not shown, if any."""
    left_out = len(things) - MAX_PARTS
    if left_out <= 0:
        return ""
    return f'<p class="soft">{numbers.count_of(left_out, f"more {thing}")} not shown</p>'


def part(one: Part) -> str:
    """Render a part of a message."""
    match one:
        case TextPart(text=text):
            return block(text) if text else ""
        case ReasoningPart(text=text, redacted=redacted):
            return _reasoning(text, redacted)
        case ToolCallPart(name=name, arguments=arguments):
            shown = json.dumps(arguments, ensure_ascii=False, default=str)
            return (
                f'<pre class="call" dir="auto"><b>{markup.name(name)}</b>'
                f"({markup.text(shown[:MAX_CALL_CHARS])}{cut(shown, MAX_CALL_CHARS)})</pre>"
            )
        case ToolResultPart(output=output, exception=exception):
            attached = "".join(part(AttachmentPart(each)) for each in one.attachments)
            head = f'<p class="soft">{result_title(one)}</p>'
            return f"{head}{block(exception or output)}{attached}"
        case AttachmentPart(attachment=attachment) if attachment is not None:
            size = f"{len(attachment.content):,} bytes" if attachment.content else attachment.url
            kind = attachment.type or "attachment"
            return f'<p class="attached">[{markup.name(kind)}, {markup.name(size or "empty")}]</p>'
    return '<p class="soft">[content of an unknown kind]</p>'


def result_title(part: ToolResultPart) -> str:
    """Say which tool returned the result."""
    return f"{markup.name(part.name)} {'failed' if part.exception else 'returned'}"


def block(text: str, limit: int = MAX_TEXT_CHARS) -> str:
    """Render a text as it is written, up to a limit."""
    return f'<pre dir="auto">{markup.text(text[:limit])}{cut(text, limit)}</pre>'


def cut(text: str, limit: int) -> str:
    """Say how much of a text is beyond a limit, if any."""
    left_out = len(text) - limit
    if left_out <= 0:
        return ""
    return f'<span class="cut"> … {numbers.count_of(left_out, "more character")}</span>'


def _reasoning(text: str, redacted: bool) -> str:
    if not text:
        hidden = "Hidden reasoning" if redacted else ""
        return f'<p class="soft">{hidden}</p>' if hidden else ""
    return (
        f'<details class="reasoning"><summary>Reasoning, '
        f"{numbers.count_of(len(text), 'character')}</summary>{block(text)}</details>"
    )
