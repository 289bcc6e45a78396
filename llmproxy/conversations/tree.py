"""Lay out conversations that forked from one another as one tree.

The tree is a flat list of rows: conversations can have a thousand turns, and neither Python's
stack nor a reader follows that many levels. Turns that simply continue stay in their column;
branches stand under the turn that they continue.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..core.circles import find_circles
from ..recorder.summary import ExchangeSummary

Label = Literal["retry", "fork", "compacted", "call", "quote"]


@dataclass(frozen=True)
class Node:
    """An exchange, or one of llm's own turns, that is to be put into the tree.

    entry: for llm's own turns without a dialect, and with the client "llm".
    thread_id: the entry's, or if it is not a turn, that of the previous turn.
    message_hash: the request's last message. tip_hash: the reply's last message; None if it
        is not a turn.
    """

    entry: ExchangeSummary
    thread_id: str
    message_hash: str | None
    tip_hash: str | None


@dataclass(frozen=True)
class TreeRow:
    """A row of the tree.

    label: how the exchange branches off; None if it simply continues. A "retry" repeats the
        request of another turn after the same one, a "fork" sends another; the others are
        the exchange's link.
    depth: number of branches from the first column. begins: whether a branch begins here,
        under the turn that it continues.
    """

    entry: ExchangeSummary
    label: Label | None
    depth: int
    begins: bool


def with_previous(
    nodes: Iterable[Node], parents: Mapping[str, str | None]
) -> list[tuple[Node, str | None]]:
    """Order nodes by time, each with the id of the node that it continues.

    If the log doesn't have that (for llm's own turns, and if a turn in between was pruned),
    it is the turn whose reply is the last one in the history, else the thread's last turn.
    If turns continue one another in a circle, which only an edited or imported log has, the
    first of them continues nothing.

    parents: maps the hash of each message to that of the message before it; without circles.
    """
    ordered = sorted(nodes, key=lambda node: (node.entry.received, node.entry.id))
    ids = {node.entry.id for node in ordered}
    ends: dict[str, dict[str, str]] = {}  # turns by the reply's last message and by thread
    last: dict[str, str] = {}
    pairs = []
    for node in ordered:
        id, thread_id = node.entry.id, node.thread_id
        previous = node.entry.previous_id
        if previous not in ids:
            previous = _end_before(node, ends, parents) or last.get(thread_id)
        pairs.append((node, previous))
        if node.tip_hash is not None:
            ends.setdefault(node.tip_hash, {})[thread_id] = id
        if node.entry.thread_id is not None:
            last[thread_id] = id
    before = without_circles({node.entry.id: previous for node, previous in pairs})
    return [(node, before[node.entry.id]) for node, _ in pairs]


def without_circles(before: Mapping[str, str | None]) -> dict[str, str | None]:
    """Return a mapping to what each one follows, with each circle cut before the first of it."""
    cut = dict(before)
    circles = find_circles(before)
    if circles:
        places = {id: place for place, id in enumerate(before)}
        for circle in circles:
            cut[min(circle, key=places.__getitem__)] = None
    return cut


def _end_before(
    node: Node, ends: Mapping[str, Mapping[str, str]], parents: Mapping[str, str | None]
) -> str | None:
    hash = node.message_hash
    while hash is not None and hash not in ends:
        hash = parents.get(hash)
    if hash is None:
        return None
    return ends[hash].get(node.thread_id) or list(ends[hash].values())[-1]


def tree_rows(nodes: Sequence[tuple[Node, str | None]]) -> list[TreeRow]:
    """Return the rows of a tree; `nodes` is the result of `with_previous`."""
    following: dict[str | None, list[Node]] = {}
    for node, previous in nodes:
        following.setdefault(previous, []).append(node)
    by_id = {node.entry.id: node for node, _ in nodes}
    rows: list[TreeRow] = []
    # Those that, in a damaged log, continue themselves come last.
    roots = [*following.get(None, []), *(node for node, _ in nodes)]
    todo: list[tuple[Node, Label | None, int, bool]] = [
        (root, _own_label(root), 0, True) for root in reversed(roots)
    ]
    done: set[str] = set()
    while todo:
        node, label, depth, begins = todo.pop()
        if node.entry.id in done:
            continue
        done.add(node.entry.id)
        rows.append(TreeRow(node.entry, label, depth, begins))
        after = following.get(node.entry.id, [])
        labels = _labels(after, by_id[node.entry.id])
        straight = _straight_on(after, node)
        # Taken from the end: first the branches, then the column continues.
        todo += [(next, labels[next.entry.id], depth, False) for next in after if next is straight]
        branches = [next for next in after if next is not straight]
        todo += [(next, labels[next.entry.id], depth + 1, True) for next in reversed(branches)]
    return rows


def _own_label(node: Node) -> Label | None:
    link = node.entry.link
    return None if link == "reply" else link


def _labels(after: Iterable[Node], before: Node) -> dict[str, Label | None]:
    """Label the nodes that continue one turn, by those that did so earlier."""
    asked: set[str | None] = set()
    labels: dict[str, Label | None] = {}
    for node in after:
        label = _own_label(node)
        if label is None:
            if node.message_hash in asked:
                label = "retry"
            elif asked or node.thread_id != before.thread_id:
                label = "fork"
            asked.add(node.message_hash)
        labels[node.entry.id] = label
    return labels


def _straight_on(after: Iterable[Node], before: Node) -> Node | None:
    """Choose the node that stays in the column: the one with which the thread continues."""
    ranked = [node for node in after if _rank(node, before)][::-1]
    return max(ranked, key=lambda node: _rank(node, before), default=None)


def _rank(node: Node, before: Node) -> int:
    """Rank nodes: the last complete one stays in the column, a side request never does."""
    entry = node.entry
    if entry.link in ("call", "quote"):
        return 0
    if entry.link == "compacted":
        return 2
    if node.thread_id != before.thread_id:
        return 0
    return 1 if entry.thread_id is None else 4 if entry.status == "ok" else 3
