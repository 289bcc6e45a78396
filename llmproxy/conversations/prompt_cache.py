"""Which requests broke their provider's cache, and by what.

A provider reads a conversation from its cache as far as it begins with the very same
tokens as an earlier request: tools first, then the messages. Each request is held against
the one that it goes on from. Stored chains tell by their hashes where two part, so that
contents are read from there on only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import llm
from llm.parts import Message, Part

from ..core import chat, token_estimate
from ..core.message_diff import Difference, first_difference
from ..recorder.exchange import ExchangeSummary, Relation
from ..recorder.reader import Filter, LogReader
from ..recorder.store import SUMMARY_COLUMNS, summary_of
from .threads import parents, selected

__all__ = ["Break", "Prefix", "ToolsChange", "prefixes"]

BATCH = 500  # messages in one query


@dataclass(frozen=True)
class ToolsChange:
    """What became of the tools, by name; `is_reordered` where only their order is another."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    redefined: tuple[str, ...] = ()
    is_reordered: bool = False


@dataclass(frozen=True, kw_only=True)
class Break:
    """A request that does not begin with all that the one before it sent.

    id, received: the request's own; previous_id: what it is held against; link: how it
        goes on from that ("compacted" breaks by design).
    models: before and after, where another model was asked, which has a cache of its own.
    tools: None where they are as they were.
    difference: the first message that is another, None where all are as they were.
    messages_again, tokens_again: of what the one before had sent, all that had to be read
        again; the tokens by our estimate, tools included where they or the model changed.
    input_tokens, cached_tokens: what the provider itself counted for this request.
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
class Prefix:
    """A thread, how many of its requests go on from another, and those that broke with it."""

    thread_id: str
    client: str
    model: str
    requests: int
    breaks: tuple[Break, ...]


def prefixes(history: LogReader, only: Filter, *, last: int | None = None) -> list[Prefix]:
    """Hold each request that `only` means against the one before it, thread by thread.

    At most the `last` threads, the one that moved last at the end; those that have no
    request that goes on from another are left out.

    Raises:
        Unusable: the file can't be read any more.
    """
    found = selected(history, only, last)
    requests = _requests(history, found)
    meant = _meant(history, only, found)
    pairs: dict[str, list[tuple[_Request, _Request]]] = {id: [] for id in found}
    for before, after in _pairs(requests):
        if after.thread_id in pairs and after.entry.id in meant:
            pairs[after.thread_id].append((before, after))
    return [_prefix(history, id, pairs[id]) for id in found if pairs[id]]


@dataclass(frozen=True)
class _Request:
    entry: ExchangeSummary
    thread_id: str
    tip: str | None


def _requests(history: LogReader, thread_ids: Sequence[str]) -> list[_Request]:
    """Those of the threads, and those that they go on from, in the order of time."""
    rows = history.rows(
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
    return [_Request(summary_of(row), row["thread_id"], row["message_hash"]) for row in rows]


def _meant(history: LogReader, only: Filter, thread_ids: Sequence[str]) -> set[str]:
    condition, values = only.where()
    rows = history.rows(
        f"select id from proxy_exchanges where {condition}"
        " and thread_id in (select value from json_each(:found))",
        values | {"found": json.dumps(thread_ids)},
    )
    return {row["id"] for row in rows}


def _pairs(requests: Iterable[_Request]) -> Iterator[tuple[_Request, _Request]]:
    by_id: dict[str | None, _Request] = {}
    last: dict[str, _Request] = {}
    for request in requests:
        before = last.get(request.thread_id)
        if request.entry.link in ("reply", "compacted"):
            before = by_id.get(request.entry.previous_id, before)
        if before is not None:
            yield before, request
        by_id[request.entry.id] = last[request.thread_id] = request


def _prefix(
    history: LogReader, thread_id: str, pairs: Sequence[tuple[_Request, _Request]]
) -> Prefix:
    tips = {request.tip for pair in pairs for request in pair if request.tip is not None}
    chains = _Chains(parents(history, tips))
    tools = _tools(history, {request.entry.id for pair in pairs for request in pair})
    found = [
        broken
        for before, after in pairs
        if (broken := _held(before, after, chains, tools)) is not None
    ]
    sizes = _sizes(history, (hash for broken in found for hash in broken.again))
    definitions = _definitions(history, {id for broken in found for id in broken.tools_before})
    shown = [hash for broken in found for hash in (broken.old, broken.new) if hash is not None]
    contents = _contents(history, shown)
    newest = pairs[-1][1].entry
    return Prefix(
        thread_id,
        newest.client,
        newest.model_used or "",
        len(pairs),
        tuple(_break(broken, sizes, definitions, contents) for broken in found),
    )


class _Chains:
    """Chains of messages by their hashes, without what they say."""

    def __init__(self, parents: Mapping[str, str | None]) -> None:
        self._parents = parents
        self._lengths: dict[str | None, int] = {None: 0}

    def length(self, tip: str | None) -> int:
        way = []
        hash = tip
        while hash not in self._lengths:
            assert hash is not None, "the empty chain has a length"
            way.append(hash)
            hash = self._parents.get(hash)
        length = self._lengths[hash]
        for passed in reversed(way):
            length += 1
            self._lengths[passed] = length
        return length

    def after(self, tip: str | None, length: int) -> list[str]:
        """The messages of a chain after its first `length` ones."""
        found = []
        hash = tip
        for _ in range(self.length(tip) - length):
            assert hash is not None, "the chain is longer"
            found.append(hash)
            hash = self._parents.get(hash)
        return found[::-1]

    def shared(self, a: str | None, b: str | None) -> int:
        """How many messages two chains begin with alike."""
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
class _Broken:
    """Two requests that part, by ids and hashes; old, new: the first messages that differ."""

    before: _Request
    after: _Request
    models: tuple[str, str] | None
    tools_before: Sequence[int]
    tools: ToolsChange | None
    shared: int
    old: str | None
    new: str | None
    again: Sequence[str]


@dataclass(frozen=True)
class _Tools:
    """The tools of turns in their order, by row, and the tools' names."""

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


def _tools(history: LogReader, turn_ids: Iterable[str]) -> _Tools:
    rows = history.rows(
        "select turn_id, tool_id, name from turn_tools join tools on tools.id = tool_id"
        " where turn_id in (select value from json_each(:ids)) order by turn_tools.rowid",
        {"ids": json.dumps(list(turn_ids))},
    )
    of_turn: dict[str, list[int]] = {}
    for row in rows:
        of_turn.setdefault(row["turn_id"], []).append(row["tool_id"])
    return _Tools(of_turn, {row["tool_id"]: row["name"] for row in rows})


def _held(before: _Request, after: _Request, chains: _Chains, tools: _Tools) -> _Broken | None:
    """Hold a request against the one before it; None where it begins with all of that."""
    models = (before.entry.model_used or "", after.entry.model_used or "")
    had = tools.of_turn.get(before.entry.id, ())
    change = tools.change(had, tools.of_turn.get(after.entry.id, ()))
    shared = chains.shared(before.tip, after.tip)
    length = chains.length(before.tip)
    is_other_model = models[0] != models[1]
    if shared == length and change is None and not is_other_model:
        return None
    from_start = is_other_model or change is not None
    old = chains.after(before.tip, shared)
    # All that follows another message has another hash: one is enough of the new ones.
    new = chains.after(after.tip, shared) if old else []
    return _Broken(
        before,
        after,
        models if is_other_model else None,
        had if from_start else (),
        change,
        shared,
        old[0] if old else None,
        new[0] if new else None,
        chains.after(before.tip, 0) if from_start else old,
    )


def _sizes(history: LogReader, hashes: Iterable[str]) -> dict[str, int]:
    """Estimate the tokens of messages."""
    sizes: dict[str, int] = {}
    ordered = list(dict.fromkeys(hashes))  # as they were written, so read in a row
    for start in range(0, len(ordered), BATCH):
        batch = ordered[start : start + BATCH]
        parts: dict[str, list[Part]] = {hash: [] for hash in batch}
        # Of a thread whose every request breaks there are more messages than anything else:
        # only those with attachments or fragments are read as llm does.
        whole = []
        for row in history.rows(_PARTS, {"hashes": json.dumps(batch)}):
            payload = row["payload"] or ""
            if '"attachment' in payload or '"text_ref"' in payload:
                whole.append(row["message_hash"])
                continue
            form: Any = json.loads(payload) if payload else {}
            form |= {"type": row["type"]} | ({} if row["text"] is None else {"text": row["text"]})
            parts[row["message_hash"]].append(Part.from_dict(form))
        for hash, found in parts.items():
            sizes[hash] = token_estimate.estimate_message(Message("user", found))
        for hash, message in history.messages(whole).items():
            sizes[hash] = token_estimate.estimate_message(message)
    return sizes


_PARTS = (
    "select message_hash, type, text, payload from parts"
    " where message_hash in (select value from json_each(:hashes))"
)


def _definitions(history: LogReader, tool_ids: Iterable[int]) -> dict[int, int]:
    """Estimate the tokens of tools."""
    rows = history.rows(
        "select id, name, description, input_schema from tools"
        " where id in (select value from json_each(:ids))",
        {"ids": json.dumps(list(tool_ids))},
    )
    return {
        row["id"]: token_estimate.estimate(
            chat.ChatRequest(
                None,
                [],
                (llm.Tool(row["name"], row["description"], json.loads(row["input_schema"])),),
            )
        )
        for row in rows
    }


def _contents(history: LogReader, hashes: Sequence[str]) -> dict[str, Message]:
    contents: dict[str, Message] = {}
    for start in range(0, len(hashes), BATCH):
        contents |= history.messages(hashes[start : start + BATCH])
    return contents


def _break(
    broken: _Broken,
    sizes: Mapping[str, int],
    definitions: Mapping[int, int],
    contents: Mapping[str, Message],
) -> Break:
    difference = None
    if broken.old is not None:
        new = [contents[broken.new]] if broken.new is not None else []
        difference = first_difference([contents[broken.old]], new)
    entry = broken.after.entry
    return Break(
        id=entry.id,
        previous_id=broken.before.entry.id,
        received=entry.received,
        link=entry.link,
        models=broken.models,
        tools=broken.tools,
        difference=difference and replace(difference, index=broken.shared),
        messages_again=len(broken.again),
        tokens_again=sum(sizes[hash] for hash in broken.again)
        + sum(definitions[id] for id in broken.tools_before),
        input_tokens=entry.usage.input_tokens,
        cached_tokens=entry.usage.cached_tokens,
    )
