"""Say in words why a request missed its provider's prompt cache, for text and pages alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .numbers import count_of

if TYPE_CHECKING:  # they import llm
    from ..conversations.prompt_cache import CacheCounts, CacheMiss, ToolsChange
    from ..core.message_diff import Difference


def miss_lines(miss: CacheMiss) -> list[str]:
    """Return what differs from the earlier request, a line each, and what had to be read again."""
    lines = []
    if miss.models is not None:
        before, after = miss.models
        lines.append(f"different model: {before or '-'}, now {after or '-'}")
    if miss.tools is not None:
        lines.append(f"different tools: {_tools(miss.tools)}")
    if miss.difference is not None:
        lines += _difference_lines(miss.difference)
    return [*lines, _cost(miss)]


def counts_line(counts: CacheCounts) -> str:
    """Return what the provider's cache had of requests, beside what it could have had."""
    wrote = f", and wrote {counts.cache_write_tokens:,}" if counts.cache_write_tokens else ""
    return (
        f"the provider read {count_of(counts.cached_tokens, 'token')} from its cache{wrote};"
        f" expected were about {counts.expected_tokens:,}"
        f" ({count_of(counts.requests, 'request')})"
    )


def _tools(tools: ToolsChange) -> str:
    if tools.is_reordered:
        return "reordered"
    changes = {"added": tools.added, "removed": tools.removed, "redefined": tools.redefined}
    return "; ".join(f"{change} {', '.join(names)}" for change, names in changes.items() if names)


def _difference_lines(difference: Difference) -> list[str]:
    place = f"message {difference.index}"
    if difference.role == "nothing":
        return [f"{place} is missing", f"  was  {difference.before}"]
    place += f" ({difference.role})"
    if difference.position is not None:
        place += f" differs from character {difference.position:,} on"
    elif difference.before == difference.after:
        return [f"{place} has the same text but different cache marks or metadata"]
    else:
        place += " was replaced"
    return [place, f"  was  {difference.before}", f"  now  {difference.after}"]


def _cost(miss: CacheMiss) -> str:
    parts = [
        f"read again: {count_of(miss.messages_again, 'message')},"
        f" about {count_of(miss.tokens_again, 'token')}"
    ]
    if miss.cached_tokens is not None:
        of = "" if miss.input_tokens is None else f" of {miss.input_tokens:,}"
        parts.append(f"the provider had {miss.cached_tokens:,}{of} cached")
    return "; ".join(parts)
