"""Format conversations for a terminal: a list, a tree, broken prompt caches, a verified log.

Returns lines and prints nothing. Text from clients and models is escaped.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

from ..conversations.threads import Origin, Thread
from ..conversations.tree import Label, TreeRow
from ..core.text import painted, printable
from ..report.cache_text import counts_line, miss_lines
from ..report.numbers import count_of
from .columns import Cell, cell, folded
from .summary_text import local_time, summary_row, tokens_in_and_out

if TYPE_CHECKING:  # they import llm
    from ..conversations.prompt_cache import CacheMiss, ThreadCache
    from ..recorder.verify import Broken, Verified

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


THREAD_OMITTED = (2, 5, 6, 4, 3, 1)
"""Columns of `thread_row` that a narrow terminal goes without, the first ones first: clients,
tokens, origin, number of exchanges, models, time."""


def thread_row(thread: Thread) -> list[Cell]:
    """Format a conversation as columns.

    Its ID (for `log --thread ID`), the time of its last exchange, clients, models, number of
    exchanges and turns, tokens in and out, what it was forked from, and its first words.
    """
    cached = thread.usage.cached_tokens
    origin = f"{_ORIGINS[thread.origin]} {thread.forked_from}" if thread.origin else ""
    columns = [
        thread.id,
        local_time(thread.moved) if thread.moved else "-",
        ", ".join(thread.clients),
        ", ".join(thread.models) or "-",
        count_of(thread.exchanges, "exchange")
        + (f", {count_of(thread.turns, 'turn')}" if thread.turns != thread.exchanges else ""),
        tokens_in_and_out(thread.usage) + (f", {cached:,} cached" if cached else ""),
        origin,
        f"damaged: {', '.join(thread.damaged)}" if thread.damaged else "",
        " ".join(thread.name.split()),
    ]
    return [cell(printable(column)) for column in columns]


def tree_rows(places: Sequence[TreeRow], thread_id: str) -> list[list[Cell]]:
    """Draw a tree, an exchange per row; a star marks those of conversation `thread_id`.

    The branches stand before the ID, in the first column of `summary_row`.
    """
    rows = []
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
        id_, *others = summary_row(place.entry)
        branches = (*cell(star), *cell("".join(bars), "dim"), *cell(label, "yellow"))
        rows.append([(*branches, *id_), *others])
        more = [*open_[:depth], True] if place.begins else [*open_, True]
    return rows[::-1]


def prefix_lines(
    prefixes: Iterable[ThreadCache], *, colours: bool = False, width: int = sys.maxsize
) -> list[str]:
    """List requests that broke a prompt cache and why; count conversations without any.

    width: of the terminal, at which lines are broken.
    """
    lines = []
    kept = 0
    prefixes = list(prefixes)
    if not prefixes:
        return [folded("none of these requests continues another one", width, 2)]
    for prefix in prefixes:
        kept += not prefix.breaks
        if prefix.breaks:
            lines.append(_prefix_line(prefix, colours, width))
            if prefix.counts is not None:
                lines.append(folded(f"  {counts_line(prefix.counts)}", width, 6))
            lines += [
                folded(f"  {line}", width, 6)
                for broken in prefix.breaks
                for line in _break_lines(broken)
            ]
    lines.append(f"{count_of(kept, 'conversation')} kept {'its' if kept == 1 else 'their'} prefix")
    counted = [one.counts for one in prefixes if one.counts is not None and not one.breaks]
    if counted:
        lines.append(folded(f"  {counts_line(reduce(add, counted))}", width, 6))
    return lines


def _prefix_line(prefix: ThreadCache, colours: bool, width: int) -> str:
    columns = [
        printable(prefix.thread_id),
        printable(prefix.client),
        printable(prefix.model),
        f"{len(prefix.breaks):,} of {count_of(prefix.requests, 'request')} broke the prefix",
    ]
    line = folded("  ".join(column for column in columns if column), width, 2)
    id = columns[0]
    return painted(id, "bold", colours) + line.removeprefix(id)


def _break_lines(broken: CacheMiss) -> list[str]:
    how = "compacted from" if broken.link == "compacted" else "after"
    lines = [f"{local_time(broken.received)}  {broken.id} {how} {broken.previous_id}"]
    lines += [f"  {line}" for line in miss_lines(broken)]
    return [printable(line) for line in lines]


def verified_lines(verified: Verified) -> list[str]:
    """List what is broken, one per line, or report in one line that all is well."""
    checked = [
        count_of(verified.messages, "message"),
        f"{count_of(verified.contents, 'part')} of requests",
        count_of(verified.exchanges, "exchange"),
    ]
    if not verified.broken:
        return [f"ok: {checked[0]} and {checked[1]} match their hashes; {checked[2]} can be read"]
    count = len(verified.broken)
    return [_broken_line(broken) for broken in verified.broken] + [
        f"{count_of(count, 'thing')} damaged or missing in {', '.join(checked)}"
    ]


def _broken_line(broken: Broken) -> str:
    where = "(unused)"
    if broken.turn_id is not None:
        where = f"in {broken.turn_id}"
        where += f" of conversation {broken.thread_id}" if broken.thread_id else ""
    match broken.kind:
        case "message":
            name = f"message {broken.hash}" + (f" ({broken.role})" if broken.role else "")
        case "content":
            name = f"request part {broken.hash}"
        case _:
            name, where = broken.kind, where.removeprefix("in ")
    return printable(f"{name} {where}: {broken.why}")
