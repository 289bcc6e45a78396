"""Conversations as a person reads them on a terminal: a list, a tree, what broke a cache.

Pure text, as in terminal.py: a client's words never drive the terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..conversations.prompt_cache import Break, Prefix, ToolsChange
from ..conversations.threads import Origin, Thread
from ..conversations.tree import Label, TreeRow
from ..core.message_diff import Difference
from ..core.text import painted, printable
from ..recorder.verify import Broken, Verified
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
    """Say a conversation in one line.

    Its id (for `log --thread ID`), when it last moved, who, which models, how much of it
    there is, tokens in and out, where it comes from, and how it began.
    """
    cached = thread.usage.cached_tokens
    origin = f"{_ORIGINS[thread.origin]} {thread.forked_from}" if thread.origin else ""
    words = [
        thread.id,
        f"{thread.moved.astimezone():%m-%d %H:%M:%S}",
        ", ".join(thread.clients),
        ", ".join(thread.models) or "-",
        _counted(thread.exchanges, "exchange")
        + (f", {_counted(thread.turns, 'turn')}" if thread.turns != thread.exchanges else ""),
        tokens_in_and_out(thread.usage) + (f", {cached:,} cached" if cached else ""),
        origin,
        " ".join(thread.name.split()),
    ]
    return "  ".join(printable(word) for word in words if word)


def _counted(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def tree_lines(places: Sequence[TreeRow], thread_id: str, *, colours: bool = False) -> list[str]:
    """Draw a tree, one exchange a line; those of the thread that was asked for have a star."""
    lines = []
    # From the end, for a branch is drawn on only where more comes after it.
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


def prefix_lines(prefixes: Iterable[Prefix], *, colours: bool = False) -> list[str]:
    """Say which requests broke their cache, and by what; those that kept it are one line."""
    lines = []
    kept = 0
    prefixes = list(prefixes)
    if not prefixes:
        return ["none of these requests goes on from another one"]
    for prefix in prefixes:
        kept += not prefix.breaks
        if prefix.breaks:
            lines.append(_prefix_line(prefix, colours))
            lines += [f"  {line}" for broken in prefix.breaks for line in _break_lines(broken)]
    return [*lines, f"{_counted(kept, 'thread')} kept {'its' if kept == 1 else 'their'} prefix"]


def _prefix_line(prefix: Prefix, colours: bool) -> str:
    words = [
        painted(printable(prefix.thread_id), "bold", colours),
        printable(prefix.client),
        printable(prefix.model),
        f"{len(prefix.breaks):,} of {_counted(prefix.requests, 'request')} broke the prefix",
    ]
    return "  ".join(word for word in words if word)


def _break_lines(broken: Break) -> list[str]:
    how = "compacted from" if broken.link == "compacted" else "after"
    lines = [
        f"{broken.received.astimezone():%m-%d %H:%M:%S}  {broken.id} {how} {broken.previous_id}"
    ]
    if broken.models is not None:
        before, after = broken.models
        lines.append(f"  another model: {before or '-'}, now {after or '-'}")
    if broken.tools is not None:
        lines.append(f"  other tools: {_tools(broken.tools)}")
    if broken.difference is not None:
        lines += [f"  {line}" for line in _difference_lines(broken.difference)]
    lines.append(f"  {_again(broken)}")
    return [printable(line) for line in lines]


def _tools(change: ToolsChange) -> str:
    if change.is_reordered:
        return "the same in another order"
    changes = {"added": change.added, "removed": change.removed, "redefined": change.redefined}
    return "; ".join(f"{word} {', '.join(names)}" for word, names in changes.items() if names)


def _difference_lines(difference: Difference) -> list[str]:
    place = f"message {difference.index}"
    if difference.role == "nothing":
        return [f"{place} is left out", f"  was  {difference.before}"]
    place += f" ({difference.role})"
    if difference.position is not None:
        place += f" is another from character {difference.position:,} on"
    elif difference.before == difference.after:
        return [f"{place} has the same words, and other marks or metadata beside them"]
    else:
        place += " stands where another was"
    return [place, f"  was  {difference.before}", f"  now  {difference.after}"]


def _again(broken: Break) -> str:
    words = [
        f"read again: {_counted(broken.messages_again, 'message')},"
        f" about {_counted(broken.tokens_again, 'token')}"
    ]
    if broken.cached_tokens is not None:
        of = "" if broken.input_tokens is None else f" of {broken.input_tokens:,}"
        words.append(f"the provider had {broken.cached_tokens:,}{of} cached")
    return "; ".join(words)


def verified_lines(verified: Verified) -> list[str]:
    """Say what is not as it was stored, one a line, or in one line that all of it is."""
    looked_at = (
        f"{_counted(verified.messages, 'message')} and"
        f" {_counted(verified.contents, 'part')} of requests"
    )
    if not verified.broken:
        return [f"all is as it was stored: {looked_at}"]
    count = len(verified.broken)
    return [_broken_line(broken) for broken in verified.broken] + [
        f"{count:,} {'is' if count == 1 else 'are'} not as stored, of {looked_at}"
    ]


def _broken_line(broken: Broken) -> str:
    what = f"message {broken.hash} ({broken.role})"
    if broken.kind == "content":
        what = f"part of a request {broken.hash}"
    where = "that nothing refers to"
    if broken.turn_id is not None:
        where = f"in {broken.turn_id}"
        where += f" of thread {broken.thread_id}" if broken.thread_id else ""
    return printable(f"{what} {where}: {broken.why}")
