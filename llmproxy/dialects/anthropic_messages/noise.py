"""What a request says anew each time, and what is no part of the chat: kept by nobody.

Marks for Anthropic's prompt cache move on with each turn, and Claude Code writes a line
into its system text that differs with each request. What they switch on is left to
`read_request`, which reads the body with them.

Spec: https://docs.anthropic.com/en/docs/build-with-claude/prompt-caching
"""

from __future__ import annotations

import re
from typing import Any

from ...core import payload

__all__ = ["without_billing_line", "normalize_body"]

# The places that have one by Anthropic's types: a tool's input and schema are not among them.
_without_marks = payload.without(
    "cache_control",
    "system[*].cache_control",
    "tools[*].cache_control",
    "messages[*].content[*].cache_control",
    "messages[*].content[*].content[*].cache_control",
    "messages[*].content[*].content[*].content[*].cache_control",  # search results in a result
    "messages[*].content[*].source.content[*].cache_control",  # documents made of blocks
    "messages[*].content[*].content[*].source.content[*].cache_control",
)


def normalize_body(body: Any) -> Any:
    """Give a request's body without cache marks and Claude Code's billing line.

    A system block that is the billing line alone is left out. The body may be of any
    shape; it is not edited, and what stays is shared with it. What is left reads as the
    whole body does, but for the option `cache`.
    """
    kept = _without_marks(body)
    if not isinstance(kept, dict):
        return kept
    match kept.get("system"):
        case str(text) if (left := without_billing_line(text)) != text:
            return kept | {"system": left}
        case list(blocks) if any(_is_billed(block) for block in blocks):
            return kept | {"system": [left for block in blocks for left in _unbilled(block)]}
    return kept


def _is_billed(block: Any) -> bool:
    match block:
        case {"text": str(text)}:
            return without_billing_line(text) != text
    return False


def _unbilled(block: Any) -> list[Any]:
    """Give what is left of a block of system text: itself, a shorter one or nothing."""
    if not _is_billed(block):
        return [block]
    left = without_billing_line(block["text"])
    return [block | {"text": left}] if left else []


# It is another one on each request: neither for models nor for hashes (B32).
_BILLING_LINE = re.compile(r"x-anthropic-billing-header:[^\n]*\n*")


def without_billing_line(text: str) -> str:
    """Give a system text without the line that Claude Code puts at its start."""
    line = _BILLING_LINE.match(text)
    return text[line.end() :] if line else text
