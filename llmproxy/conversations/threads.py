"""Conversations of the log: a list of them, and one with all that forked from it.

A conversation is a thread of llm's. What is in it are the turns of exchanges, the
exchanges that failed while they went on from one of them, and llm's own turns.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Literal

from ..core.chat import Usage
from ..core.errors import NotFound
from ..recorder.exchange import FIRST_WORDS_CHARS, ExchangeSummary
from ..recorder.reader import THREAD_OF, Filter, LogReader
from ..recorder.store import SUMMARY_COLUMNS, summary_of
from .tree import Node, TreeRow, laid_out, with_previous

__all__ = ["Origin", "Thread", "parents", "selected", "thread_of", "threads", "tree"]

Origin = Literal["fork", "compacted", "call", "quote"]


@dataclass(frozen=True, kw_only=True)
class Thread:
    """A conversation in short.

    name: llm's, which is how the first prompt begins.
    began, moved: when its first and its last request came, UTC.
    clients, models: who asked and what answered, in the order in which they came in.
    exchanges: those that failed without a turn included; turns: llm's own included.
    usage: the sums of what the providers counted.
    forked_from: the thread that it left, and `origin` in which way.
    """

    id: str
    name: str
    began: datetime
    moved: datetime
    clients: tuple[str, ...]
    models: tuple[str, ...]
    exchanges: int
    turns: int
    usage: Usage
    forked_from: str | None = None
    origin: Origin | None = None


def threads(history: LogReader, only: Filter, *, last: int | None = None) -> list[Thread]:
    """List the threads that have an exchange meant by `only`, the one that moved last at the end.

    At most the `last` ones.

    Raises:
        Unusable: the file can't be read any more.
    """
    found = selected(history, only, last)
    rows = history.rows(
        "select id, name, forked_from from threads where id in (select value from json_each(:ids))",
        {"ids": json.dumps(found)},
    )
    named = {row["id"]: row for row in rows}
    nodes: dict[str, list[Node]] = {id: [] for id in found}
    for node in _nodes(history, found):
        nodes[node.thread_id].append(node)
    return [
        _thread(id, named[id]["name"], named[id]["forked_from"], nodes[id])
        for id in found
        if nodes[id]
    ]


def selected(history: LogReader, only: Filter, last: int | None) -> list[str]:
    """Give the ids of the threads that `only` means, the one that moved last at the end."""
    condition, values = only.where()
    rows = history.rows(
        f"""
        with meant as (
            select distinct {_THREAD_ID} as id from proxy_exchanges
            where run_id is null and {condition}
        )
        select id, (select max(turns.id) from turns where turns.thread_id = meant.id) as newest
        from meant join threads using (id) order by newest desc limit :last
        """,
        values | {"last": -1 if last is None else last},
    )
    return [row["id"] for row in reversed(rows)]


# An exchange that failed is in the thread of the turn that it would have gone on from.
_THREAD_ID = "coalesce(thread_id, (select turns.thread_id from turns where turns.id = previous_id))"


def _thread(id: str, name: str | None, forked_from: str | None, nodes: Iterable[Node]) -> Thread:
    entries = sorted((node.entry for node in nodes), key=lambda entry: (entry.received, entry.id))
    link = entries[0].link
    origin: Origin = link if link and link != "reply" else "fork"
    return Thread(
        id=id,
        name=name or entries[0].first_words,
        began=entries[0].received,
        moved=entries[-1].received,
        clients=tuple(dict.fromkeys(entry.client for entry in entries)),
        models=tuple(dict.fromkeys(entry.model_used for entry in entries if entry.model_used)),
        exchanges=sum(bool(entry.dialect) for entry in entries),
        turns=sum(entry.thread_id is not None for entry in entries),
        usage=_sum([entry.usage for entry in entries]),
        forked_from=forked_from,
        origin=origin if forked_from else None,
    )


def _sum(usages: Sequence[Usage]) -> Usage:
    counts = {
        field.name: [count for usage in usages if (count := getattr(usage, field.name)) is not None]
        for field in fields(Usage)
    }
    return Usage(**{name: sum(said) if said else None for name, said in counts.items()})


def thread_of(history: LogReader, id: str) -> str:
    """Give the id of the thread that is meant by its own id, or by that of an exchange in it.

    Raises:
        NotFound: there is no such thread.
        Unusable: the file can't be read any more.
    """
    found = history.rows(f"select id from threads where id = {THREAD_OF}", {"thread_id": id})
    if not found:
        raise NotFound(f"the log has no thread {id}")
    return str(found[0]["id"])


def tree(history: LogReader, thread_id: str) -> list[TreeRow]:
    """Show a thread among those that it forked from and that forked from it, line by line.

    thread_id: as `thread_of` takes it.

    Raises:
        NotFound: there is no such thread.
        Unusable: the file can't be read any more.
    """
    thread_id = thread_of(history, thread_id)
    nodes = _nodes(history, _family(history, thread_id))
    there = {node.entry.id for node in nodes}
    unsaid = [node.message_hash for node in nodes if node.entry.previous_id not in there]
    before = parents(history, [hash for hash in unsaid if hash is not None])
    return laid_out(with_previous(nodes, before))


def _family(history: LogReader, thread_id: str) -> list[str]:
    rows = history.rows(
        "select id, forked_from from threads where forked_from is not null and not exists"
        " (select 1 from proxy_exchanges where thread_id = threads.id and run_id is not null)",
        {},
    )
    origins = {row["id"]: row["forked_from"] for row in rows}
    forks: dict[str, list[str]] = {}
    for id, origin in origins.items():
        forks.setdefault(origin, []).append(id)
    way_up = {thread_id}
    while (origin := origins.get(thread_id)) is not None and origin not in way_up:
        way_up.add(origin)
        thread_id = origin
    family = {thread_id}
    todo = [thread_id]
    while todo:
        new = [fork for fork in forks.get(todo.pop(), []) if fork not in family]
        family.update(new)
        todo += new
    return sorted(family)


def _nodes(history: LogReader, thread_ids: Sequence[str]) -> list[Node]:
    values = {"ids": json.dumps(thread_ids)}
    columns = ", ".join(f"proxy_exchanges.{name}" for name in SUMMARY_COLUMNS)
    ours = history.rows(
        f"""
        select {columns}, proxy_exchanges.message_hash, turns.tip_message_hash,
            coalesce(proxy_exchanges.thread_id, before.thread_id) as in_thread
        from proxy_exchanges left join turns using (id)
        left join turns as before on before.id = previous_id
        where number in (
            select number from proxy_exchanges
            where thread_id in (select value from json_each(:ids))
            union all
            select number from proxy_exchanges join turns as before on before.id = previous_id
            where proxy_exchanges.thread_id is null
                and before.thread_id in (select value from json_each(:ids))
        )
        """,
        values,
    )
    llms = history.rows(
        f"""
        select turns.*, substr(prompt, 1, {4 * FIRST_WORDS_CHARS}) as prompt
        from turns left join turn_search on turn_id = turns.id
        where thread_id in (select value from json_each(:ids))
            and turns.id not in (select id from proxy_exchanges)
        """,
        values,
    )
    return [
        Node(summary_of(row), row["in_thread"], row["message_hash"], row["tip_message_hash"])
        for row in ours
    ] + [
        Node(
            ExchangeSummary(
                id=row["id"],
                received=_utc(row["datetime_utc"]),
                dialect="",
                path="",
                client="llm",
                model_used=row["model"],
                thread_id=row["thread_id"],
                status="ok",
                duration_ms=row["duration_ms"],
                usage=Usage(row["input_tokens"], row["output_tokens"]),
                first_words=" ".join((row["prompt"] or "").split())[:FIRST_WORDS_CHARS],
            ),
            row["thread_id"],
            row["parent_message_hash"],
            row["tip_message_hash"],
        )
        for row in llms
    ]


def _utc(text: str) -> datetime:
    """Read llm's time; what it took over from its older tables has no zone."""
    at = datetime.fromisoformat(text)
    return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)


def parents(history: LogReader, tips: Iterable[str]) -> dict[str, str | None]:
    """Give the message before each message of the chains that end with `tips`, by hash."""
    found: dict[str, str | None] = {}
    todo = set(tips)
    # A message further up at a time: a recursive query takes twice as long.
    while todo:
        rows = history.rows(
            "select hash, parent_hash from messages"
            " where hash in (select value from json_each(:hashes))",
            {"hashes": json.dumps(sorted(todo))},
        )
        found |= {row["hash"]: row["parent_hash"] for row in rows}
        todo = {parent for row in rows if (parent := row["parent_hash"]) and parent not in found}
    return found
