"""Find the requests that missed their provider's prompt cache, and why.

A provider reads a request from its cache as far as it begins with the same tokens as an
earlier request: first the tools, then the messages. Each request is therefore compared with
the one that it continues. The hashes of stored messages show where the two differ, so only
the messages from there on are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from datetime import datetime
from operator import add
from typing import Any, NamedTuple

import llm
from llm.parts import Message, Part

from ..core import chat, token_estimate
from ..core.message_diff import Difference, first_difference
from ..recorder.damage import UNREADABLE
from ..recorder.listing import Filter
from ..recorder.reader import LogReader
from ..recorder.summary import SUMMARY_COLUMNS, ExchangeSummary, Relation
from .threads import parents, selected, sound_hash

BATCH = 500  # messages in one query


@dataclass(frozen=True)
class ToolsChange:
    """How the tools changed, by name; `is_reordered` if only their order did."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    redefined: tuple[str, ...] = ()
    is_reordered: bool = False


@dataclass(frozen=True, kw_only=True)
class CacheMiss:
    """A request that does not begin with everything that the one before it sent.

    id, received: the request's own. previous_id: the request that it was compared with.
    link: how it continues that one ("compacted" misses the cache by design).
    models: before and after, if the model changed; each has a cache of its own.
    tools: None if they did not change.
    difference: the first message that differs; None if none does.
    messages_again, tokens_again: how much of the earlier request had to be read again, the
        tokens by our estimate, including tools if they or the model changed.
    input_tokens, cached_tokens: as counted by the provider for this request.
    """

    id: str
    previous_id: str
    received: datetime
    link: Relation | None
    models: tuple[str, str] | None
    tools: ToolsChange | None
    difference: Difference | None
    messages_again: int
    tokens_again: int
    input_tokens: int | None
    cached_tokens: int | None


@dataclass(frozen=True)
class CacheCounts:
    """Tokens that a provider's cache could have had, and what the provider counted.

    requests: those for which it reported a count. expected_tokens: what the requests before these
        had, as far as it was sent again, by the provider's count of these requests.
    cached_tokens, cache_write_tokens: read from the cache, and written there.
    """

    requests: int
    expected_tokens: int
    cached_tokens: int
    cache_write_tokens: int

    def __add__(self, other: CacheCounts) -> CacheCounts:
        """Return the sums."""
        return CacheCounts(*map(add, astuple(self), astuple(other)))


@dataclass(frozen=True)
class ThreadCache:
    """A thread, how many of its requests continue another one, and those that missed the cache.

    counts: None if the provider counted nothing.
    """

    thread_id: str
    client: str
    model: str
    requests: int
    breaks: tuple[CacheMiss, ...]  # the name is a key of the command's JSON
    counts: CacheCounts | None = None


def find_cache_misses(
    reader: LogReader, filter: Filter, *, last: int | None = None
) -> list[ThreadCache]:
    """Compare each request that the filter selects with the one before it, thread by thread.

    Returns at most the `last` threads, the most recently used one at the end, without those
    in which no request continues another.

    Raises:
        Unusable: the file can't be read any more.
    """
    thread_ids = selected(reader, filter, last)
    requests = _requests(reader, thread_ids)
    selected_ids = _selected_ids(reader, filter, thread_ids)
    pairs: dict[str, list[tuple[_Request, _Request]]] = {id: [] for id in thread_ids}
    for before, after in _pairs(requests):
        if after.thread_id in pairs and after.summary.id in selected_ids:
            pairs[after.thread_id].append((before, after))
    return [_thread_cache(reader, id, pairs[id]) for id in thread_ids if pairs[id]]


@dataclass(frozen=True)
class _Request:
    summary: ExchangeSummary
    thread_id: str
    tip: str | None  # the hash of its last message


def _requests(reader: LogReader, thread_ids: Sequence[str]) -> list[_Request]:
    """Return the threads' requests, and those that they continue, in order of time."""
    rows = reader.rows(
        f"""
        with own as (
            select id, previous_id from proxy_exchanges
            where thread_id in (select value from json_each(:ids))
        )
        select {", ".join(SUMMARY_COLUMNS)}, message_hash from proxy_exchanges
        where thread_id is not null
            and id in (select id from own union select previous_id from own)
        order by received, number
        """,
        {"ids": json.dumps(thread_ids)},
    )
    return [
        _Request(summary, row["thread_id"], sound_hash(row["message_hash"]))
        for summary, row in zip(reader.summaries(rows), rows, strict=True)
    ]


def _selected_ids(reader: LogReader, filter: Filter, thread_ids: Sequence[str]) -> set[str]:
    in_threads = "thread_id in (select value from json_each(:thread_ids))"
    condition, values = filter.where(in_threads)
    rows = reader.rows(
        f"select id from proxy_exchanges where {condition}",
        values | {"thread_ids": json.dumps(thread_ids)},
    )
    return {row["id"] for row in rows}


def _pairs(requests: Iterable[_Request]) -> Iterator[tuple[_Request, _Request]]:
    by_id: dict[str | None, _Request] = {}
    last: dict[str, _Request] = {}
    for request in requests:
        before = last.get(request.thread_id)
        if request.summary.link in ("reply", "compacted"):
            before = by_id.get(request.summary.previous_id, before)
        if before is not None:
            yield before, request
        by_id[request.summary.id] = last[request.thread_id] = request


def _thread_cache(
    reader: LogReader, thread_id: str, pairs: Sequence[tuple[_Request, _Request]]
) -> ThreadCache:
    tips = {request.tip for pair in pairs for request in pair if request.tip is not None}
    chains = _HashChains(parents(reader, tips))
    tools = _tools(reader, {request.summary.id for pair in pairs for request in pair})
    compared = (_compare(before, after, chains, tools) for before, after in pairs)
    misses = [pair for pair in compared if pair is not None]
    # Contents are read for all misses of a thread at once: often every request is one.
    sizes = _sizes(reader, (hash for _, read in misses for hash in read.again))
    tool_sizes = _tool_sizes(reader, {id for _, read in misses for id in read.tools})
    hashes = [hash for _, read in misses for hash in (read.old, read.new) if hash is not None]
    contents = _contents(reader, hashes)
    newest = pairs[-1][1].summary
    breaks = tuple(
        replace(
            miss,
            difference=_difference(read, contents),
            # What is missing from the log has no size.
            tokens_again=sum(sizes.get(hash, 0) for hash in read.again)
            + sum(tool_sizes.get(id, 0) for id in read.tools),
        )
        for miss, read in misses
    )
    return ThreadCache(
        thread_id,
        newest.client,
        newest.model_used or "",
        len(pairs),
        breaks,
        _counts(pairs, breaks),
    )


def _counts(
    pairs: Sequence[tuple[_Request, _Request]], breaks: Sequence[CacheMiss]
) -> CacheCounts | None:
    again = {miss.id: miss.tokens_again for miss in breaks}
    counted = [
        (before.summary, after.summary)
        for before, after in pairs
        if after.summary.usage.cached_tokens is not None
        and before.summary.usage.input_tokens is not None
    ]
    if not counted:
        return None
    return CacheCounts(
        len(counted),
        sum(max((b.usage.input_tokens or 0) - again.get(a.id, 0), 0) for b, a in counted),
        sum(after.usage.cached_tokens or 0 for _, after in counted),
        sum(after.usage.cache_write_tokens or 0 for _, after in counted),
    )


class _HashChains:
    """Chains of messages by their hashes, without their contents."""

    def __init__(self, parents: Mapping[str, str | None]) -> None:
        self._parents = parents
        self._lengths: dict[str | None, int] = {None: 0}

    def length(self, tip: str | None) -> int:
        passed = []
        hash = tip
        while hash not in self._lengths:
            assert hash is not None, "the empty chain has a length"
            passed.append(hash)
            hash = self._parents.get(hash)
        length = self._lengths[hash]
        for hash in reversed(passed):
            length += 1
            self._lengths[hash] = length
        return length

    def after(self, tip: str | None, length: int) -> list[str]:
        """Return the messages of a chain after its first `length` ones."""
        hashes: list[str] = []
        hash = tip
        for _ in range(self.length(tip) - length):
            assert hash is not None, "the chain is longer"
            hashes.append(hash)
            hash = self._parents.get(hash)
        return hashes[::-1]

    def shared(self, a: str | None, b: str | None) -> int:
        """Count the messages with which both chains begin."""
        length = min(self.length(a), self.length(b))
        a, b = (self._up(tip, self.length(tip) - length) for tip in (a, b))
        while a != b:
            a, b = self._up(a, 1), self._up(b, 1)
            length -= 1
        return length

    def _up(self, tip: str | None, count: int) -> str | None:
        for _ in range(count):
            assert tip is not None, "the chain is longer"
            tip = self._parents.get(tip)
        return tip


@dataclass(frozen=True)
class _Tools:
    """The tools of each turn, as row ids in their order, and the tools' names."""

    of_turn: Mapping[str, Sequence[int]]
    names: Mapping[int, str]

    def change(self, before: Sequence[int], after: Sequence[int]) -> ToolsChange | None:
        if before == after:
            return None
        old = {self.names[id]: id for id in before}
        new = {self.names[id]: id for id in after}
        added = tuple(name for name in new if name not in old)
        removed = tuple(name for name in old if name not in new)
        redefined = tuple(name for name, id in new.items() if name in old and old[name] != id)
        return ToolsChange(added, removed, redefined, not (added or removed or redefined))


def _tools(reader: LogReader, turn_ids: Iterable[str]) -> _Tools:
    rows = reader.rows(
        "select turn_id, tool_id, name from turn_tools join tools on tools.id = tool_id"
        " where turn_id in (select value from json_each(:ids)) order by turn_tools.rowid",
        {"ids": json.dumps(list(turn_ids))},
    )
    of_turn: dict[str, list[int]] = {}
    for row in rows:
        of_turn.setdefault(row["turn_id"], []).append(row["tool_id"])
    return _Tools(of_turn, {row["tool_id"]: row["name"] for row in rows})


class _ToRead(NamedTuple):
    """The contents of a cache miss: hashes of messages, and row ids of tools."""

    old: str | None  # the first messages that differ
    new: str | None
    shared: int  # messages before these
    again: Sequence[str]
    tools: Sequence[int]


def _compare(
    before: _Request, after: _Request, chains: _HashChains, tools: _Tools
) -> tuple[CacheMiss, _ToRead] | None:
    """Compare a request with the one before it; return None if it begins with all of that.

    The miss has no difference and no tokens yet.
    """
    models = (before.summary.model_used or "", after.summary.model_used or "")
    tools_before = tools.of_turn.get(before.summary.id, ())
    change = tools.change(tools_before, tools.of_turn.get(after.summary.id, ()))
    shared = chains.shared(before.tip, after.tip)
    is_other_model = models[0] != models[1]
    if shared == chains.length(before.tip) and change is None and not is_other_model:
        return None
    is_from_start = is_other_model or change is not None
    old = chains.after(before.tip, shared)
    # All that follows a message that differs has another hash: the first is enough.
    new = chains.after(after.tip, shared) if old else []
    again = chains.after(before.tip, 0) if is_from_start else old
    miss = CacheMiss(
        id=after.summary.id,
        previous_id=before.summary.id,
        received=after.summary.received,
        link=after.summary.link,
        models=models if is_other_model else None,
        tools=change,
        difference=None,
        messages_again=len(again),
        tokens_again=0,
        input_tokens=after.summary.usage.input_tokens,
        cached_tokens=after.summary.usage.cached_tokens,
    )
    return miss, _ToRead(
        old[0] if old else None,
        new[0] if new else None,
        shared,
        again,
        tools_before if is_from_start else (),
    )


def _difference(read: _ToRead, contents: Mapping[str, Message]) -> Difference | None:
    if read.old is None or not {read.old, read.new or read.old} <= contents.keys():
        return None  # nothing differs, or it is missing from the log
    new = [] if read.new is None else [contents[read.new]]
    difference = first_difference([contents[read.old]], new)
    return difference and replace(difference, index=read.shared)


def _sizes(reader: LogReader, hashes: Iterable[str]) -> dict[str, int]:
    """Estimate the tokens of messages."""
    sizes: dict[str, int] = {}
    ordered = list(dict.fromkeys(hashes))  # in the order of writing, so rows are adjacent
    for start in range(0, len(ordered), BATCH):
        batch = ordered[start : start + BATCH]
        parts: dict[str, list[Part]] = {hash: [] for hash in batch}
        # If every request of a thread misses, most of the time goes into messages: so only
        # those with attachments or fragments are read the way llm does.
        whole = []
        for row in reader.rows(_PARTS, {"hashes": json.dumps(batch)}):
            payload = str(row["payload"] or "")
            if '"attachment' in payload or '"text_ref"' in payload:
                whole.append(row["message_hash"])
                continue
            with suppress(*UNREADABLE):  # a damaged part has no size
                form: Any = json.loads(payload) if payload else {}
                form |= {"type": row["type"]}
                form |= {} if row["text"] is None else {"text": row["text"]}
                parts[row["message_hash"]].append(Part.from_dict(form))
        for hash, of_message in parts.items():
            sizes[hash] = token_estimate.estimate_message(Message("user", of_message))
        for hash, message in reader.messages(whole).items():
            sizes[hash] = token_estimate.estimate_message(message)
    return sizes


_PARTS = (
    "select message_hash, type, text, payload from parts"
    " where message_hash in (select value from json_each(:hashes))"
)


def _tool_sizes(reader: LogReader, tool_ids: Iterable[int]) -> dict[int, int]:
    """Estimate the tokens of tools."""
    rows = reader.rows(
        "select id, name, description, input_schema from tools"
        " where id in (select value from json_each(:ids))",
        {"ids": json.dumps(list(tool_ids))},
    )
    sizes = {}
    for row in rows:
        with suppress(*UNREADABLE):
            tool = llm.Tool(row["name"], row["description"], json.loads(row["input_schema"]))
            sizes[row["id"]] = token_estimate.estimate(chat.ChatRequest(None, [], (tool,)))
    return sizes


def _contents(reader: LogReader, hashes: Sequence[str]) -> dict[str, Message]:
    contents: dict[str, Message] = {}
    for start in range(0, len(hashes), BATCH):
        contents |= reader.messages(hashes[start : start + BATCH])
    return contents
