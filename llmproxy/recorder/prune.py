"""Delete exchanges, with everything that only they use in llm's and our own tables.

It is all one transaction, which holds the write lock; proxies that run meanwhile spool.
Whatever is shared with something that stays (a message of another thread, a fragment's
attachment, a blob of another request) stays as well.

Then the file is rewritten. SQLite only marks deleted content as free, and a row that has grown
leaves its older self behind; FTS5 keeps deleted words in the segments of its index; and the
write-ahead log has whatever was written last.
"""

from __future__ import annotations

import glob
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from .database import translated
from .listing import Filter
from .reader import LogReader
from .request_store import references

TIMEOUT_S = 60.0  # the user waits, and other writers' locks are short


@dataclass(frozen=True)
class Pruned:
    """The numbers of rows that were deleted, or would be.

    remnants: why deleted content may still be in the log's files, for people to read; empty if
        none is left, or if nothing was deleted.
    bytes_before, bytes_after: sizes of the log's files; 0 if nothing was deleted.
    """

    exchanges: int
    turns: int
    messages: int
    contents: int
    remnants: tuple[str, ...] = ()
    bytes_before: int = field(default=0, compare=False)
    bytes_after: int = field(default=0, compare=False)

    def __str__(self) -> str:
        counts = [(self.exchanges, "exchange"), (self.turns, "turn"), (self.messages, "message")]
        parts = [f"{count:,} {name}{'s' * (count != 1)}" for count, name in counts]
        parts.append(f"{self.contents:,} part{'s' * (self.contents != 1)} of requests")
        sizes = [f"{size / 1e6:,.1f} MB" for size in (self.bytes_after, self.bytes_before)]
        size = f"; the log takes {sizes[0]}, was {sizes[1]}" if self.bytes_before else ""
        return ", ".join(parts) + size


def prune(path: Path, filter: Filter, *, dry_run: bool = False) -> Pruned:
    """Delete the exchanges that the filter selects, except running ones.

    What they said is not in the file afterwards, nor in its write-ahead log, so the whole file
    is written anew. That takes as much free space again, and time if it is large.

    Raises:
        ValueError: the filter selects all exchanges.
        Locked, Unusable: nothing was deleted.
    """
    condition, values = filter.where()
    if not values:
        raise ValueError("a filter is needed to delete exchanges")
    LogReader(path).close()  # migrates an older llmproxy's tables
    with translated(path):
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=rw", timeout=TIMEOUT_S, uri=True, isolation_level=None
        )
        with closing(connection):
            before = _size(path)
            connection.execute("PRAGMA secure_delete = on")  # in case the rewriting fails
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(
                "create temp table gone as select id, message_hash, thread_id, previous_id, run_id"
                " from proxy_exchanges"
                f" where status is not 'running' and {condition}",
                values,
            )
            pruned = _prune(connection)
            if dry_run or not pruned.exchanges:
                connection.execute("ROLLBACK")
                return pruned
            # A segment of the index still has the deleted words, beside a note of deletion.
            connection.execute("insert into turn_search_fts (turn_search_fts) values ('rebuild')")
            connection.execute("COMMIT")
            remnants = (*_rewrite(connection, path), *_spooled(path))
            sizes = {"bytes_before": before, "bytes_after": _size(path)}
            return replace(pruned, remnants=remnants, **sizes)


def _size(path: Path) -> int:
    """Return the size of a log and its write-ahead log."""
    return sum(file.stat().st_size for file in (path, Path(f"{path}-wal")) if file.exists())


def _rewrite(connection: sqlite3.Connection, path: Path) -> list[str]:
    """Rewrite the file and empty its write-ahead log; return why deleted content may be left."""
    try:
        connection.execute("VACUUM")
        busy, _, _ = connection.execute("PRAGMA wal_checkpoint (truncate)").fetchone()
    except sqlite3.Error as exc:
        return [f"{path} could not be rewritten ({exc}): `sqlite-utils vacuum {path}` does so"]
    if busy:
        return [f"another program reads {path}, so {path.name}-wal could not be emptied"]
    return []


def _spooled(path: Path) -> list[str]:
    """Name the spools beside the log: their exchanges are not in the log yet."""
    spools = sorted(path.parent.glob(f"{glob.escape(path.name)}-llmproxy-*.jsonl"))
    return [f"{spool} holds exchanges for the log that were not looked at" for spool in spools]


def _prune(connection: sqlite3.Connection) -> Pruned:
    messages = _column(connection, _ENDS)
    tools = _column(connection, _TOOLS)
    schemas = _column(connection, _SCHEMAS)
    for table in ("turn_tools", "turn_fragments", "tool_instantiations", "turn_search"):
        connection.execute(f"delete from {table} where turn_id in (select id from gone)")
    for table in ("proxy_replies", "proxy_calls"):
        connection.execute(f"delete from {table} where turn_id in (select id from gone)")
    connection.execute(
        "update proxy_exchanges set previous_id = null, link = null"
        " where previous_id in (select id from gone)"
    )
    connection.execute(
        "update proxy_replies set is_continued = 0 where turn_id in (select previous_id from gone)"
        " and not exists (select 1 from proxy_exchanges where previous_id = turn_id"
        " and link = 'reply' and status = 'ok' and id not in (select id from gone))"
    )
    turns = connection.execute("delete from turns where id in (select id from gone)").rowcount
    exchanges = connection.execute(
        "delete from proxy_exchanges where id in (select id from gone)"
    ).rowcount
    connection.execute(
        "delete from proxy_runs where id in (select run_id from gone)"
        " and not exists (select 1 from proxy_exchanges where run_id = proxy_runs.id)"
    )
    _settle_threads(connection)
    deleted = _prune_messages(connection, messages)
    for statement, keys in ((_UNUSED_TOOL, tools), (_UNUSED_SCHEMA, schemas)):
        connection.executemany(statement, [(key,) for key in keys])
    contents = _prune_blobs(connection) if exchanges else 0
    # Running proxies must forget what they know to be stored.
    connection.execute("update proxy_meta set value = value + 1 where name = 'prunes'")
    return Pruned(exchanges, turns, deleted, contents)


# Where a turn was deleted by hand, its reply is below the request, and nothing ends with it;
# its tools and its schema can be any that nothing uses.
_LOST = (
    "select message_hash from gone where thread_id is not null and id not in (select id from turns)"
)
_TOOLS = f"""
    select tool_id from turn_tools where turn_id in (select id from gone)
    union select id from tools where exists ({_LOST})
"""
_SCHEMAS = f"""
    select schema_id from turns where id in (select id from gone)
    union select id from schemas where exists ({_LOST})
"""
_ENDS = f"""
    with recursive below (hash) as (
        {_LOST}
        union
        select messages.hash from messages join below on messages.parent_hash = below.hash
    )
    select message_hash from gone
    union select tip_message_hash from turns where id in (select id from gone)
    union select hash from below
"""


def _settle_threads(connection: sqlite3.Connection) -> None:
    """Set threads back to the last turn that stays; delete those without any."""
    connection.execute(
        """
        delete from threads where id in (select thread_id from gone)
            and not exists (select 1 from turns where turns.thread_id = threads.id)
        """
    )
    connection.execute(
        """
        update threads set tip_message_hash = (
            select tip_message_hash from turns where turns.thread_id = threads.id
            order by turns.id desc limit 1
        ) where id in (select thread_id from gone)
        """
    )
    # Its name is the beginning of its first prompt, which may be gone.
    connection.execute(
        """
        update threads set name = (
            select coalesce(first_words, '') from turns left join proxy_exchanges using (id)
            where turns.thread_id = threads.id order by turns.id limit 1
        ) where id in (select thread_id from gone where id < (
            select min(turns.id) from turns where turns.thread_id = threads.id
        ))
        """
    )
    connection.execute(
        """
        update threads set forked_from = null where forked_from in (select thread_id from gone)
            and forked_from not in (select id from threads)
        """
    )


def _prune_messages(connection: sqlite3.Connection, ends: Iterable[str]) -> int:
    """Delete messages from the ends of chains upwards, until one is used by something else."""
    connection.execute(
        """
        create temp table used as
            select parent_message_hash as hash from turns union select tip_message_hash from turns
            union select tip_message_hash from threads
            union select message_hash from proxy_exchanges
        """
    )
    connection.execute("create index temp.used_hash on used (hash)")
    deleted = 0
    todo = list(ends)
    while todo:
        hash = todo.pop()
        parent = connection.execute(
            "select parent_hash from messages where hash = :hash"
            " and not exists (select 1 from used where hash = :hash)"
            " and not exists (select 1 from messages where parent_hash = :hash)",
            {"hash": hash},
        ).fetchone()
        if parent is None:
            continue
        deleted += 1
        _delete_message(connection, hash)
        if parent[0] is not None:
            todo.append(parent[0])
    return deleted


def _delete_message(connection: sqlite3.Connection, hash: str) -> None:
    parts = _column(connection, "select id from parts where message_hash = ?", hash)
    for part in parts:
        attachments = _column(
            connection, "select attachment_id from part_attachments where part_id = ?", part
        )
        for table in ("part_attachments", "part_fragments"):
            connection.execute(f"delete from {table} where part_id = ?", (part,))
        connection.executemany(_UNUSED_ATTACHMENT, [(id,) for id in attachments])
    connection.execute("delete from parts where message_hash = ?", (hash,))
    connection.execute("delete from messages where hash = ?", (hash,))


# llm's older tables may use the same rows.
_UNUSED_ATTACHMENT = """
    delete from attachments where id = ?1
        and not exists (select 1 from part_attachments where attachment_id = ?1)
        and not exists (select 1 from prompt_attachments where attachment_id = ?1)
        and not exists (select 1 from tool_results_attachments where attachment_id = ?1)
"""
_UNUSED_TOOL = """
    delete from tools where id = ?1
        and not exists (select 1 from turn_tools where tool_id = ?1)
        and not exists (select 1 from tool_responses where tool_id = ?1)
        and not exists (select 1 from tool_calls where tool_id = ?1)
        and not exists (select 1 from tool_results where tool_id = ?1)
"""
_UNUSED_SCHEMA = """
    delete from schemas where id = ?1
        and not exists (select 1 from turns where schema_id = ?1)
        and not exists (select 1 from responses where schema_id = ?1)
"""


def _prune_blobs(connection: sqlite3.Connection) -> int:
    """Delete blobs that no remaining body refers to, directly or not."""
    used: set[str] = set()
    todo: list[str] = []
    for (body,) in connection.execute("select body from proxy_exchanges"):
        todo += references(body)
    while todo:
        hash = todo.pop()
        if hash not in used:
            used.add(hash)
            for (text,) in connection.execute(
                "select text from proxy_contents where hash = ?", (hash,)
            ):
                todo += references(text)
    unused = set(_column(connection, "select hash from proxy_contents")) - used
    connection.executemany(
        "delete from proxy_contents where hash = ?", [(hash,) for hash in unused]
    )
    return len(unused)


def _column(connection: sqlite3.Connection, sql: str, *values: object) -> list[str]:
    rows = connection.execute(sql, values).fetchall()
    return [value for (value,) in rows if value is not None]
