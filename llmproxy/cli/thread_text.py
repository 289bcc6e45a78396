"""Format conversations for a terminal: a list, a tree, broken prompt caches, a verified log.

Returns lines and prints nothing. Text from clients and models is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..conversations.prompt_cache import CacheMiss, ThreadCache, ToolsChange
from ..conversations.threads import Origin, Thread
from ..conversations.tree import Label, TreeRow
from ..core.message_diff import Difference
from ..core.text import painted, printable
from ..recorder.verify import Broken, Verified
from ..report.numbers import count_of
from .exchange_text import summary_line, tokens_in_and_out

_ORIGINS: dict[Origin, str] = {
    "fork": "fork of",
    "compacted": "compacted from",
    "call": "sub-agent of",
    "quote": "quotes",
}
_LABELS: dict[Label, str] = {
    "retry": "retry",
    "fork": "fork",
    "compacted": "compacted",
    "call": "sub-agent",
    "quote": "quote",
}


def thread_line(thread: Thread) -> str:
    """Format a conversation as one line.

    Its ID (for `log --thread ID`), the time of its last exchange, clients, models, number of
    exchanges and turns, tokens in and out, what it was forked from, and its first words.
    """
    cached = thread.usage.cached_tokens
    origin = f"{_ORIGINS[thread.origin]} {thread.forked_from}" if thread.origin else ""
    columns = [
        thread.id,
        f"{thread.moved.astimezone():%m-%d %H:%M:%S}",
        ", ".join(thread.clients),
        ", ".join(thread.models) or "-",
        count_of(thread.exchanges, "exchange")
        + (f", {count_of(thread.turns, 'turn')}" if thread.turns != thread.exchanges else ""),
        tokens_in_and_out(thread.usage) + (f", {cached:,} cached" if cached else ""),
        origin,
        " ".join(thread.name.split()),
    ]
    return "  ".join(printable(column) for column in columns if column)


def tree_lines(places: Sequence[TreeRow], thread_id: str, *, colours: bool = False) -> list[str]:
    """Draw a tree, an exchange per line; a star marks those of conversation `thread_id`."""
    lines = []
    # From the end: a branch's line continues only if more of it follows.
    more: list[bool] = []
    for place in reversed(places):
        depth = place.depth
        open_ = [*more, *[False] * (depth + 1)][: depth + 1]
        bars = ["│  " if goes_on else "   " for goes_on in open_[1:]]
        if place.begins and depth:
            bars[-1] = "├─ " if open_[depth] else "└─ "
        star = "* " if place.entry.thread_id == thread_id else "  "
        label = f"{_LABELS[place.label]}  " if place.label else ""
        lines.append(
            star
            + painted("".join(bars), "dim", colours)
            + painted(label, "yellow", colours)
            + summary_line(place.entry, colours=colours)
        )
        more = [*open_[:depth], True] if place.begins else [*open_, True]
    return lines[::-1]


def prefix_lines(prefixes: Iterable[ThreadCache], *, colours: bool = False) -> list[str]:
    """List requests that broke a prompt cache and why; count conversations without any."""
    lines = []
    kept = 0
    prefixes = list(prefixes)
    if not prefixes:
        return ["none of these requests continues another one"]
    for prefix in prefixes:
        kept += not prefix.breaks
        if prefix.breaks:
            lines.append(_prefix_line(prefix, colours))
            lines += [f"  {line}" for broken in prefix.breaks for line in _break_lines(broken)]
    return [*lines, f"{count_of(kept, 'thread')} kept {'its' if kept == 1 else 'their'} prefix"]


def _prefix_line(prefix: ThreadCache, colours: bool) -> str:
    columns = [
        painted(printable(prefix.thread_id), "bold", colours),
        printable(prefix.client),
        printable(prefix.model),
        f"{len(prefix.breaks):,} of {count_of(prefix.requests, 'request')} broke the prefix",
    ]
    return "  ".join(column for column in columns if column)


def _break_lines(broken: CacheMiss) -> list[str]:
    how = "compacted from" if broken.link == "compacted" else "after"
    lines = [
        f"{broken.received.astimezone():%m-%d %H:%M:%S}  {broken.id} {how} {broken.previous_id}"
    ]
    if broken.models is not None:
        before, after = broken.models
        lines.append(f"  different model: {before or '-'}, now {after or '-'}")
    if broken.tools is not None:
        lines.append(f"  different tools: {_tools(broken.tools)}")
    if broken.difference is not None:
        lines += [f"  {line}" for line in _difference_lines(broken.difference)]
    lines.append(f"  {_cost(broken)}")
    return [printable(line) for line in lines]


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


def _cost(broken: CacheMiss) -> str:
    parts = [
        f"read again: {count_of(broken.messages_again, 'message')},"
        f" about {count_of(broken.tokens_again, 'token')}"
    ]
    if broken.cached_tokens is not None:
        of = "" if broken.input_tokens is None else f" of {broken.input_tokens:,}"
        parts.append(f"the provider had {broken.cached_tokens:,}{of} cached")
    return "; ".join(parts)


def verified_lines(verified: Verified) -> list[str]:
    """List what differs from its hash, one per line, or report in one line that all is well."""
    checked = (
        f"{count_of(verified.messages, 'message')} and"
        f" {count_of(verified.contents, 'part')} of requests"
    )
    if not verified.broken:
        return [f"ok: {checked} match their hashes"]
    count = sum(broken.kind != "exchange" for broken in verified.broken)
    return [_broken_line(broken) for broken in verified.broken] + [
        f"{count:,} of {checked} {'does' if count == 1 else 'do'} not match"
        if count
        else f"{checked} match their hashes"
    ]


def _broken_line(broken: Broken) -> str:
    name = f"message {broken.hash} ({broken.role})"
    if broken.kind == "content":
        name = f"request part {broken.hash}"
    elif broken.kind == "exchange":
        name = "the exchange"
    where = "(unused)"
    if broken.turn_id is not None:
        where = f"in {broken.turn_id}"
        where += f" of thread {broken.thread_id}" if broken.thread_id else ""
    return printable(f"{name} {where}: {broken.why}")
