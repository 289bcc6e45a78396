"""Conversations that forked from one another, as one tree.

It is laid out as a flat list, line by line: conversations get a thousand turns deep, and
neither Python's stack nor a reader follows that many levels. What goes on straight stays
in its column; what branches off stands under the turn that it goes on from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..recorder.exchange import ExchangeSummary

__all__ = ["Label", "Node", "TreeRow", "laid_out", "with_previous"]

Label = Literal["retry", "fork", "compacted", "call", "quote"]


@dataclass(frozen=True)
class Node:
    """An exchange, or a turn of llm's own, before it has its place.

    entry: llm's own turns have no dialect there, and "llm" as their client.
    thread_id: the entry's; of what is no turn that of the turn before it.
    message_hash: the last message that was asked; tip_hash: the last one of the reply,
        None where it is no turn.
    """

    entry: ExchangeSummary
    thread_id: str
    message_hash: str | None
    tip_hash: str | None


@dataclass(frozen=True)
class TreeRow:
    """A line of the tree.

    label: what the exchange is beside others, None where it simply goes on: a "retry" asks
        the very same of the same turn once more, a "fork" something else; the rest is its
        link.
    depth: how many branches away from the first column; begins: whether a branch begins
        here, which stands under the turn that it goes on from.
    """

    entry: ExchangeSummary
    label: Label | None
    depth: int
    begins: bool


def with_previous(
    nodes: Iterable[Node], parents: Mapping[str, str | None]
) -> list[tuple[Node, str | None]]:
    """Order nodes by time, each with the id of the node that it goes on from.

    Where the log does not say (of llm's own turns, and where a turn between two was
    forgotten) it is the turn whose reply stands last in the history, else the last one of
    the thread.

    parents: the message before each message, by their hashes.
    """
    ordered = sorted(nodes, key=lambda node: (node.entry.received, node.entry.id))
    there = {node.entry.id for node in ordered}
    ends: dict[str, dict[str, str]] = {}  # by the reply's last message, and by thread
    last: dict[str, str] = {}
    found = []
    for node in ordered:
        id, thread_id = node.entry.id, node.thread_id
        previous = node.entry.previous_id
        if previous not in there:
            previous = _end_before(node, ends, parents) or last.get(thread_id)
        found.append((node, previous))
        if node.tip_hash is not None:
            ends.setdefault(node.tip_hash, {})[thread_id] = id
        if node.entry.thread_id is not None:
            last[thread_id] = id
    return found


def _end_before(
    node: Node, ends: Mapping[str, Mapping[str, str]], parents: Mapping[str, str | None]
) -> str | None:
    hash = node.message_hash
    while hash is not None and hash not in ends:
        hash = parents.get(hash)
    if hash is None:
        return None
    return ends[hash].get(node.thread_id) or list(ends[hash].values())[-1]


def laid_out(nodes: Sequence[tuple[Node, str | None]]) -> list[TreeRow]:
    """Lay a tree out, line by line; `nodes` are as `with_previous` gives them."""
    following: dict[str | None, list[Node]] = {}
    for node, previous in nodes:
        following.setdefault(previous, []).append(node)
    by_id = {node.entry.id: node for node, _ in nodes}
    places = []
    todo: list[tuple[Node, Label | None, int, bool]] = [
        (root, _own_label(root), 0, True) for root in reversed(following.get(None, []))
    ]
    while todo:
        node, label, depth, begins = todo.pop()
        places.append(TreeRow(node.entry, label, depth, begins))
        after = following.get(node.entry.id, [])
        labels = _labels(after, by_id[node.entry.id])
        straight = _straight_on(after, node)
        # Taken from the end: the branches first, then the column goes on.
        todo += [(next, labels[next.entry.id], depth, False) for next in after if next is straight]
        branches = [next for next in after if next is not straight]
        todo += [(next, labels[next.entry.id], depth + 1, True) for next in reversed(branches)]
    return places


def _own_label(node: Node) -> Label | None:
    link = node.entry.link
    return None if link == "reply" else link


def _labels(after: Iterable[Node], before: Node) -> dict[str, Label | None]:
    """Say of each that goes on from one turn what it is beside those that did so earlier."""
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
    """Choose what stays in the column: the thread itself, as its client went on with it."""
    suited = [node for node in after if _suits(node, before)][::-1]
    return max(suited, key=lambda node: _suits(node, before), default=None)


def _suits(node: Node, before: Node) -> int:
    """Of several the last one stays that is not cut short; a side request never does."""
    entry = node.entry
    if entry.link in ("call", "quote"):
        return 0
    if entry.link == "compacted":
        return 2
    if node.thread_id != before.thread_id:
        return 0
    return 1 if entry.thread_id is None else 4 if entry.status == "ok" else 3
