"""List the log's conversations, or show one as a tree with its forks.

A conversation is a thread in llm's tables. It consists of the turns of exchanges, the
exchanges that failed while continuing one of these, and llm's own turns.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Literal

from ..core.usage import Usage
from ..recorder.damage import COUNT, EPOCH, OPTIONAL_TEXT, TEXT, Damage, text_of, utc
from ..recorder.ids import find_thread
from ..recorder.listing import Filter, LogListing
from ..recorder.summary import (
    FIRST_WORDS_CHARS,
    SUMMARY_COLUMNS,
    ExchangeSummary,
    time_of_id,
)
from .tree import Node, TreeRow, tree_rows, with_previous, without_circles

Origin = Literal["fork", "compacted", "call", "quote"]

RECENT = 50, 1_000  # exchanges for each thread that is listed, among which it is looked for

NEXT_THREADS = 50_000  # begun after a thread, among which all of its forks are found


@dataclass(frozen=True, kw_only=True)
class Thread:
    """A summary of a conversation.

    name: llm's name for it, the beginning of its first prompt. first_words: more of that.
    began, moved: the times of its first and its last request, UTC; None if they are not known.
    clients, models: in the order in which they came in.
    exchanges: includes those that failed without a turn. turns: includes llm's own.
    usage: the sums of the providers' counts.
    forked_from, origin: the thread that it forked from, and how.
    damaged: the ids of those of its exchanges that can't be read completely.
    """

    id: str
    name: str
    began: datetime | None
    moved: datetime | None
    clients: tuple[str, ...]
    models: tuple[str, ...]
    exchanges: int
    turns: int
    usage: Usage
    forked_from: str | None = None
    origin: Origin | None = None
    damaged: tuple[str, ...] = ()
    first_words: str = ""


def threads(
    reader: LogListing, filter: Filter, *, last: int | None = None, before: str | None = None
) -> list[Thread]:
    """List the threads with an exchange that the filter selects, the most recent one last.

    Returns at most the `last` of them. before: only those whose newest id is less than this.

    Raises:
        Unusable: the file can't be read any more.
    """
    ids = selected(reader, filter, last, before)
    rows = reader.rows(
        "select id, name, cast(forked_from as text) as forked_from from threads"
        " where id in (select value from json_each(:ids))",
        {"ids": json.dumps(ids)},
    )
    named = {row["id"]: row for row in rows}
    nodes: dict[str, list[Node]] = {id: [] for id in ids}
    for node in _nodes(reader, ids):
        nodes[node.thread_id].append(node)
    return [_thread(id, named.get(id), nodes[id]) for id in ids if nodes[id]]


def selected(
    reader: LogListing, filter: Filter, last: int | None, before: str | None = None
) -> list[str]:
    """Return the ids of the threads that the filter selects, the most recent one last."""
    end = {"before": before or "\U0010ffff"}
    # Nearly always they are among the newest turns, and a long log need not be read.
    for count in [one * last for one in RECENT] if last is not None else []:
        newest = (
            "select id from proxy_exchanges where id < :before order by id desc"
            " limit 1 offset :count"
        )
        start = reader.rows(newest, end | {"count": count})
        if not start:
            break
        condition, values = filter.where(_IN_RECENT if filter.search else "")
        rows = reader.rows(
            _NEWEST.format(selected=_AMONG_RECENT.format(condition=condition)),
            values | end | {"last": last, "start": start[0]["id"]},
        )
        if len(rows) == last:
            return [row["id"] for row in reversed(rows)]
    condition, values = filter.where()
    # By number, so that most conditions are checked in an index.
    every = (
        f"selected as (select distinct {_THREAD_ID} as id from proxy_exchanges"
        " where run_id is null"
        f" and number in (select number from proxy_exchanges where {condition}))"
    )
    values |= end | {"last": -1 if last is None else last}
    rows = reader.rows(_NEWEST.format(selected=every), values)
    return [row["id"] for row in reversed(rows)]


def newest_id(reader: LogListing, thread_id: str) -> str | None:
    """Return the id of a thread's newest turn or exchange, by which threads are ordered."""
    selected = "selected as (select :thread_id as id)"
    values = {"thread_id": thread_id, "before": "\U0010ffff", "last": 1}
    for row in reader.rows(_NEWEST.format(selected=selected), values):
        return str(row["newest"])
    return None


# Ids that are no text sort after all texts, at x'': only an edited file has them.
_NEWEST = """
    with {selected}
    select id, max(
        coalesce((select max(turns.id) from turns
            where turns.thread_id = selected.id and turns.id < x''), ''),
        coalesce((select max(own.id) from proxy_exchanges as own
            where own.thread_id = selected.id and own.id < x''), '')
    ) as newest
    from selected where typeof(id) = 'text' and newest < :before order by newest desc limit :last
"""
_AMONG_RECENT = """
    recent as materialized (
        select thread_id as id from turns where turns.id >= :start and turns.id < :before
        union select thread_id from proxy_exchanges
        where proxy_exchanges.id >= :start and proxy_exchanges.id < :before
    ),
    selected as (
        select id from recent
        where exists (
            select 1 from proxy_exchanges
            where thread_id = recent.id and run_id is null and {condition}
        ) or exists (
            select 1 from proxy_exchanges where +thread_id is null and run_id is null
                and previous_id in (
                    select before.id from proxy_exchanges as before
                    where before.thread_id = recent.id
                )
                and {condition}
        )
    )
"""
_IN_RECENT = """
    thread_id in (select id from recent) or +thread_id is null and previous_id in (
        select before.id from proxy_exchanges as before
        where before.thread_id in (select id from recent)
    )
"""
# An exchange that failed belongs to the thread of the turn that it would have continued.
_THREAD_ID = (
    "coalesce(thread_id, (select before.thread_id from proxy_exchanges as before"
    " where before.id = proxy_exchanges.previous_id))"
)


def _thread(id: str, row: sqlite3.Row | None, nodes: Iterable[Node]) -> Thread:
    """Summarize a thread; its own row may have been deleted."""
    name, forked_from = (None, None) if row is None else (row["name"], row["forked_from"])
    summaries = sorted((node.entry for node in nodes), key=lambda one: (one.received, one.id))
    times = [one.received for one in summaries if one.is_timed]
    link = summaries[0].link
    origin: Origin = link if link and link != "reply" else "fork"
    return Thread(
        id=id,
        name=name if name and isinstance(name, str) else summaries[0].first_words,
        began=times[0] if times else None,
        moved=times[-1] if times else None,
        clients=tuple(dict.fromkeys(one.client for one in summaries)),
        models=tuple(dict.fromkeys(one.model_used for one in summaries if one.model_used)),
        exchanges=sum(bool(one.dialect) for one in summaries),
        turns=sum(one.thread_id is not None for one in summaries),
        usage=_sum([one.usage for one in summaries]),
        forked_from=forked_from,
        origin=origin if forked_from else None,
        damaged=tuple(one.id for one in summaries if one.damage),
        first_words=summaries[0].first_words,
    )


def _sum(usages: Sequence[Usage]) -> Usage:
    counts = {
        field.name: [count for usage in usages if (count := getattr(usage, field.name)) is not None]
        for field in fields(Usage)
    }
    return Usage(**{name: sum(known) if known else None for name, known in counts.items()})


def tree(reader: LogListing, thread_id: str) -> list[TreeRow]:
    """Return the tree of a thread and all threads related to it by forks, row by row.

    thread_id: the thread's, or that of an exchange or turn in it, as `LogListing.resolve` takes it.

    Raises:
        NotFound: there is no such thread.
        Unusable: the file can't be read any more.
    """
    nodes = _nodes(reader, _family(reader, find_thread(reader.rows, thread_id)))
    ids = {node.entry.id for node in nodes}
    tips = [node.message_hash for node in nodes if node.entry.previous_id not in ids]
    before = parents(reader, [hash for hash in tips if hash is not None])
    return tree_rows(with_previous(nodes, before))


def _family(reader: LogListing, thread_id: str) -> list[str]:
    """Return the ids of a thread and of those that are related to it by forks.

    Threads of benchmarks are no relatives, though their turns repeat recorded ones.
    """
    ancestors = {thread_id}
    while (origin := _origin(reader, thread_id)) is not None and origin not in ancestors:
        if _of_benchmarks(reader, [thread_id]):
            break
        ancestors.add(origin)
        thread_id = origin
    family, new = set(ancestors), sorted(ancestors)
    while new:
        forks = _forks(reader, new, thread_id) - family
        new = sorted(forks - _of_benchmarks(reader, sorted(forks)))
        family.update(new)
    return sorted(family)


def _origin(reader: LogListing, thread_id: str) -> str | None:
    query = "select cast(forked_from as text) as forked_from from threads where id = :id"
    for row in reader.rows(query, {"id": thread_id}):
        origin: str | None = row["forked_from"]
        return origin
    return None


def _forks(reader: LogListing, thread_ids: Sequence[str], root: str) -> set[str]:
    """Return the ids of the threads that forked from these.

    Nearly all have an exchange that continues a turn of theirs, which an index finds. Those that
    llm itself made, and those whose fork was at a turn that is deleted since, are looked for
    among the NEXT_THREADS after `root`: to read all of a million takes 0.5 s.
    """
    rows = reader.rows(
        """
        with before as (
            select id from turns where thread_id in (select value from json_each(:ids))
            union select id from proxy_exchanges
            where thread_id in (select value from json_each(:ids))
        )
        select threads.id from before
        cross join proxy_exchanges as after on after.previous_id = before.id
        cross join threads on threads.id = after.thread_id
        where threads.forked_from in (select value from json_each(:ids))
        union
        select id from (
            select id, forked_from from threads where id > :root order by id limit :next
        )
        where forked_from in (select value from json_each(:ids))
        """,
        {"ids": json.dumps(list(thread_ids)), "root": root, "next": NEXT_THREADS},
    )
    return {row["id"] for row in rows}


def _of_benchmarks(reader: LogListing, thread_ids: Sequence[str]) -> set[str]:
    rows = reader.rows(
        "select distinct thread_id from proxy_exchanges"
        " where thread_id in (select value from json_each(:ids)) and run_id is not null",
        {"ids": json.dumps(thread_ids)},
    )
    return {row["thread_id"] for row in rows}


def _nodes(reader: LogListing, thread_ids: Sequence[str]) -> list[Node]:
    values = {"ids": json.dumps(thread_ids)}
    columns = ", ".join(f"proxy_exchanges.{name}" for name in SUMMARY_COLUMNS)
    ours = reader.rows(
        f"""
        select {columns}, proxy_exchanges.message_hash, turns.tip_message_hash,
            coalesce(proxy_exchanges.thread_id, before.thread_id) as in_thread
        from proxy_exchanges left join turns using (id)
        left join proxy_exchanges as before on before.id = proxy_exchanges.previous_id
        where proxy_exchanges.number in (
            select number from proxy_exchanges
            where thread_id in (select value from json_each(:ids))
            union all
            select proxy_exchanges.number from proxy_exchanges as before
            cross join proxy_exchanges on proxy_exchanges.previous_id = before.id
            where +proxy_exchanges.thread_id is null
                and before.thread_id in (select value from json_each(:ids))
        )
        """,
        values,
    )
    llms = reader.rows(
        f"""
        select turns.*, substr(prompt, 1, {4 * FIRST_WORDS_CHARS}) as prompt
        from turns left join turn_search on turn_id = turns.id
        where thread_id in (select value from json_each(:ids))
            and turns.id not in (select id from proxy_exchanges)
        """,
        values,
    )
    return [
        Node(entry, row["in_thread"], sound_hash(row["message_hash"]), row["tip_message_hash"])
        for entry, row in zip(reader.summaries(ours), ours, strict=True)
    ] + [
        Node(
            _entry_of_turn(row),
            row["thread_id"],
            sound_hash(row["parent_message_hash"]),
            row["tip_message_hash"],
        )
        for row in llms
    ]


def _entry_of_turn(row: sqlite3.Row) -> ExchangeSummary:
    """Summarize one of llm's own turns."""
    damage = Damage()
    received = damage.read("datetime_utc", lambda: utc(row["datetime_utc"]), None)
    return ExchangeSummary(
        id=damage.value("id", row["id"], TEXT),
        received=received or time_of_id(text_of(row["id"])) or EPOCH,
        dialect="",
        path="",
        client="llm",
        model_used=damage.value("model", row["model"], OPTIONAL_TEXT),
        thread_id=row["thread_id"],
        status="ok",
        duration_ms=damage.value("duration_ms", row["duration_ms"], COUNT),
        usage=Usage(
            damage.value("input_tokens", row["input_tokens"], COUNT),
            damage.value("output_tokens", row["output_tokens"], COUNT),
        ),
        first_words=" ".join(str(row["prompt"] or "").split())[:FIRST_WORDS_CHARS],
        damage=damage.names,
    )


def sound_hash(value: object) -> str | None:
    """Return a message's hash from its column, None if that is damaged."""
    return value if isinstance(value, str) else None


def parents(reader: LogListing, tips: Iterable[str]) -> dict[str, str | None]:
    """Map each message of the chains that end with `tips` to the one before it, by hashes.

    A chain that runs in a circle, as only an edited file has it, is cut, so that all end.
    """
    parents: dict[str, str | None] = {}
    todo = set(tips)
    # One level per query: a recursive query takes twice as long.
    while todo:
        rows = reader.rows(
            "select hash, parent_hash from messages"
            " where hash in (select value from json_each(:hashes))",
            {"hashes": json.dumps(sorted(todo))},
        )
        parents |= {row["hash"]: sound_hash(row["parent_hash"]) for row in rows}
        before = {parents[row["hash"]] for row in rows}
        todo = {hash for hash in before if hash and hash not in parents}
    return without_circles(parents)
