"""Load a conversation for its page: its tree, its exchanges, and what broke its prompt cache."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..conversations.prompt_cache import CacheMiss, ThreadCache, find_cache_misses
from ..conversations.threads import Thread, threads, tree
from ..conversations.tree import TreeRow
from ..core.errors import NotFound
from ..recorder.exchange import Exchange
from ..recorder.listing import Filter
from ..recorder.paging import time_limit
from ..recorder.previews import Preview, previews
from ..recorder.reader import LogReader

CACHE_TIME_S = 0.1  # in which prompt caches are compared, on a page of the server


@dataclass(frozen=True)
class Step:
    """An exchange of a conversation with what is new in it: `LogReader.response`.

    row: its place in the tree. earlier: number of messages before those of `exchange`.
    exchange: None if it is one of llm's own turns.
    """

    row: TreeRow
    exchange: Exchange | None
    earlier: int = 0


@dataclass(frozen=True)
class Conversation:
    """A conversation with those that forked from it, or from which it forked.

    rows: the whole tree. steps: some of its rows, from the row `first` on, completely.
    misses: requests that missed the prompt cache, by their ids.
    """

    thread: Thread
    rows: Sequence[TreeRow]
    steps: Sequence[Step]
    first: int
    previews: Mapping[str, Preview] = field(default_factory=dict)
    misses: Mapping[str, CacheMiss] = field(default_factory=dict)


def load_conversation(
    reader: LogReader,
    id: str,
    *,
    first: int = 0,
    count: int | None = None,
    time_s: float | None = None,
) -> Conversation:
    """Load a conversation, with `count` exchanges of its tree from the row `first` on.

    id: its own, or that of an exchange in it; a unique prefix is enough.
    time_s: the diagnosis of prompt caches is left out if it takes longer; None for no limit.

    Raises:
        NotFound: there is none.
        InvalidRequest: several ids begin so.
        Unusable: the file can't be read any more.
    """
    chosen = reader.resolve(Filter(thread_id=id))
    assert chosen.thread_id is not None
    rows = tree(reader, chosen.thread_id)
    found = threads(reader, chosen, last=1)
    if not rows or not found:
        raise NotFound(f"the log has no conversation {id}")
    shown = rows[first:] if count is None else rows[first : first + count]
    return Conversation(
        found[0],
        rows,
        [_step(reader, row) for row in shown],
        first,
        previews(reader.rows, [row.entry.id for row in rows]),
        cache_misses(reader, [row.entry.id for row in rows], time_s),
    )


def _step(reader: LogReader, row: TreeRow) -> Step:
    try:
        exchange, earlier = reader.response(row.entry.id)
    except NotFound:
        return Step(row, None)
    return Step(row, exchange, earlier)


def cache_misses(
    reader: LogReader, ids: Sequence[str], time_s: float | None
) -> dict[str, CacheMiss]:
    """Return those of these requests that missed the prompt cache, by their ids.

    time_s: empty if it takes longer; None for no limit.
    """
    found: list[ThreadCache] = []
    with time_limit(reader, math.inf if time_s is None else time.monotonic() + time_s):
        found = find_cache_misses(reader, Filter(ids=tuple(ids)))
    return {miss.id: miss for thread in found for miss in thread.breaks}
