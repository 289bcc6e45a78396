"""Find where two histories of messages first differ, for errors and reports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from llm.parts import AttachmentPart, Message, ToolCallPart, ToolResultPart

EXCERPT_CHARS = 40  # shown on either side of the place where two messages differ


@dataclass(frozen=True)
class Difference:
    """The first difference between two histories.

    index: of the message. role: its role now.
    position: the first differing character of its text, None if there is no text to
        compare: the message is new, or of another kind.
    before, after: the text around the difference, then and now.
    """

    index: int
    role: str
    position: int | None
    before: str
    after: str


def first_difference(before: Sequence[Message], after: Sequence[Message]) -> Difference | None:
    """Find the first message of `before` that `after` does not have in its place.

    None if `after` begins with all of `before`.
    """
    for index, old in enumerate(before):
        new = after[index] if index < len(after) else Message("nothing")
        # As text: 1 and 1.0 are equal in Python, but not to a provider's cache.
        if json.dumps(old.to_dict(), sort_keys=True) != json.dumps(new.to_dict(), sort_keys=True):
            return _difference(index, old, new)
    return None


def _difference(index: int, old: Message, new: Message) -> Difference:
    was, now = _shown(old), _shown(new)
    if old.role != new.role or was == now:
        return Difference(index, new.role, None, was[:EXCERPT_CHARS], now[:EXCERPT_CHARS])
    position = _common_length(was, now)
    around = slice(max(0, position - EXCERPT_CHARS), position + EXCERPT_CHARS)
    return Difference(index, new.role, position, was[around], now[around])


def _common_length(one: str, other: str) -> int:
    """Count the characters with which both texts begin, by halves: texts have megabytes."""
    known, most = 0, min(len(one), len(other))
    while known < most:
        half = (known + most + 1) // 2
        if one[known:half] == other[known:half]:
            known = half
        else:
            most = half - 1
    return known


def _shown(message: Message) -> str:
    """Return a message as text, of whatever parts."""
    shown = []
    for part in message.parts:
        match part:
            case ToolCallPart():
                shown.append(f"{part.name}({json.dumps(part.arguments, ensure_ascii=False)})")
            case ToolResultPart():
                shown.append(part.output)
            case AttachmentPart(attachment=attachment) if attachment is not None:
                where = attachment.url or f"{len(attachment.content or b'')} bytes"
                shown.append(f"[{attachment.type}, {where}]")
            case _:
                shown.append(getattr(part, "text", ""))
    return "".join(shown)
