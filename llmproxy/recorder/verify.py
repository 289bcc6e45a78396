"""Check what is stored: messages and request parts against their hashes, the rest for being whole.

Messages are read with their fragments and attachments and hashed by llm's own function, as
`LogStore.verify` does, but in batches, and without requesting a URL to find out an
attachment's type. Nothing is written.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llm.logs import LogStore, message_hash
from llm.parts import Message, Part

from ..core.attachments import find_attachments
from ..core.circles import find_circles
from .damage import EPOCH, TEXT, UNREADABLE, Damage
from .database import translated
from .exchange import with_remote_attachments
from .listing import open_for_reading
from .llm_turns import read_chain
from .reader import (
    ReadOnlyLog,
    events_of,
    headers_of,
    parse_json,
    read_tools,
    run_facts,
    turn_facts,
)
from .request_store import references
from .summary import summary_of

BATCH = 500  # messages in one query


@dataclass(frozen=True)
class Broken:
    """Something stored that was changed, is damaged, or is gone although it is referred to.

    kind: a message, a stored part of a request, an exchange, a turn in llm's tables, or a
        benchmark's run.
    hash: of a message or part. role: the message's, None if it is gone.
    why: a reason for people to read.
    turn_id: a turn or exchange that contains it (`log ID` takes the latter), or the run's id;
        thread_id: its conversation. None if nothing refers to it.
    """

    kind: Literal["message", "content", "exchange", "turn", "run"]
    hash: str | None
    role: str | None
    why: str
    turn_id: str | None = None
    thread_id: str | None = None


@dataclass(frozen=True)
class Verified:
    """The numbers of messages, request parts and exchanges that were checked; the broken things."""

    messages: int
    contents: int
    exchanges: int
    broken: tuple[Broken, ...]


def verify(path: Path) -> Verified:
    """Hash all stored messages and request parts again; check that all exchanges can be read.

    Raises:
        Unusable: the file can't be read.
    """
    with translated(path):
        connection, _, version = open_for_reading(path)
        log = ReadOnlyLog(connection)
        with closing(connection):
            connection.execute("BEGIN")  # one snapshot, even if others write meanwhile
            return _verify(connection, log, version)


def _verify(connection: sqlite3.Connection, log: LogStore, version: int) -> Verified:
    tables = {row[0] for row in connection.execute("select name from sqlite_master")}
    messages = _Messages(connection, log)
    wrong_messages = list(messages.broken()) if "messages" in tables else []
    users = _users_of_messages(connection, version) if "turns" in tables else {}
    broken = [
        Broken("message", hash, role, why, *users.get(hash, (None, None)))
        for hash, role, why in wrong_messages
    ]
    broken += _missing_messages(connection, users)
    contents = exchanges = 0
    if version:
        contents, wrong_blobs = _broken_blobs(connection)
        broken += wrong_blobs
        exchanges, wrong_exchanges = _broken_exchanges(connection, log)
        broken += wrong_exchanges
        broken += _broken_runs(connection)
    if "turns" in tables:
        broken += _broken_turns(connection)
    return Verified(messages.count, contents, exchanges, tuple(broken))


class _Messages:
    """Checks all stored messages, batch by batch."""

    def __init__(self, connection: sqlite3.Connection, log: LogStore) -> None:
        self._connection = connection
        self._log = log
        self.count = 0

    def broken(self) -> Iterator[tuple[str, str, str]]:
        """Yield hash, role and reason of messages that don't match their hash."""
        cursor = self._connection.execute(
            "select hash, parent_hash, role, provider_metadata, parent_hash is not null and"
            " parent_hash not in (select hash from messages) as is_torn from messages"
        )
        while rows := cursor.fetchmany(BATCH):
            self.count += len(rows)
            try:
                parts = self._log._load_parts([row["hash"] for row in rows])
            except UNREADABLE:
                parts = None
            for row in rows:
                why = self._why_broken(row, parts)
                if why is not None:
                    yield row["hash"], row["role"], why

    def _why_broken(self, row: sqlite3.Row, parts: Mapping[str, list[Part]] | None) -> str | None:
        try:
            if parts is None:  # a message of this batch can't be read, perhaps this one
                parts = self._log._load_parts([row["hash"]])
            metadata = row["provider_metadata"]
            message = Message(
                row["role"], parts.get(row["hash"], []), json.loads(metadata) if metadata else None
            )
            (message,) = with_remote_attachments([message])
            if _hash(message, row["parent_hash"]) == row["hash"]:
                return "the previous message is missing" if row["is_torn"] else None
            if not message.parts:
                return "its parts are missing"
            return _changed(message)
        except KeyError as exc:
            return f"something it refers to is missing: {exc}"
        except UNREADABLE as exc:
            return f"it can't be read: {type(exc).__name__}: {exc}"


def _changed(message: Message) -> str:
    attachments = find_attachments(message)
    reasons = ["it was changed"]
    reasons += [f"the file {one.path} was" for one in attachments if one.path and not one.content]
    if any(one.content for one in attachments):
        # llm keeps the same bytes once, with the type under which they were logged last.
        reasons.append("its attachment was logged again under another media type")
    return " or ".join(reasons)


def _hash(message: Message, parent: str | None) -> str:
    if any(one.url and not one.type for one in find_attachments(message)):
        raise ValueError("an attachment's type would have to be requested from its URL")
    return message_hash(message, parent)


def _missing_messages(
    connection: sqlite3.Connection, users: Mapping[str, tuple[str, str | None]]
) -> list[Broken]:
    """List the messages that turns and exchanges end with, but that are gone.

    Those that are gone from the middle of a request are named by the messages after them.
    """
    stored = {hash for (hash,) in connection.execute("select hash from messages")}
    middle = {
        parent
        for (parent,) in connection.execute(
            "select parent_hash from messages except select tip_message_hash from turns"
        )
    }
    return [
        Broken("message", hash, None, "it is missing", *user)
        for hash, user in users.items()
        if hash not in stored and hash not in middle
    ]


def _broken_blobs(connection: sqlite3.Connection) -> tuple[int, list[Broken]]:
    """Count the stored parts of requests, and list those that were changed or are missing."""
    inner: dict[str, list[str]] = {}
    changed = []
    for hash, data in connection.execute("select hash, cast(text as blob) from proxy_contents"):
        data = data or b""
        inner[hash] = references(data.decode(errors="replace"))
        if hashlib.sha256(data).hexdigest()[:32] != hash:
            changed.append(hash)
    users = _users_of_blobs(connection, inner)
    missing = [hash for hash in users if hash not in inner]
    return len(inner), [
        Broken("content", hash, None, why, *users.get(hash, (None, None)))
        for why, hashes in (("it was changed", changed), ("it is missing", missing))
        for hash in hashes
    ]


def _broken_exchanges(connection: sqlite3.Connection, log: LogStore) -> tuple[int, list[Broken]]:
    """Count the exchanges, and list those that can't be read."""
    count = 0
    broken = []
    in_circles = _in_circles(connection)
    for row in connection.execute("select * from proxy_exchanges order by number"):
        count += 1
        reasons = _reasons_of_exchange(connection, log, row)
        if row["id"] in in_circles:
            reasons.append("it continues itself, directly or through others")
        if why := "; ".join(reasons):
            broken.append(Broken("exchange", None, None, why, row["id"], row["thread_id"]))
    return count, broken


def _in_circles(connection: sqlite3.Connection) -> set[str]:
    """Return the exchanges that continue one another in a circle: no recording makes one."""
    before = dict(connection.execute("select id, previous_id from proxy_exchanges").fetchall())
    return {id for circle in find_circles(before) for id in circle}


def _reasons_of_exchange(
    connection: sqlite3.Connection, log: LogStore, row: sqlite3.Row
) -> list[str]:
    """Check an exchange by itself: not its messages, nor the stored parts of its request."""
    damage = Damage(summary_of(row).damage)
    damage.read("headers", lambda: headers_of(row["headers"]), None)
    damage.read("body", lambda: parse_json(row["body"]), None)
    damage.value("query", row["query"], TEXT)
    turn = connection.execute(
        "select parent_message_hash, tip_message_hash from turns where id = ?", (row["id"],)
    ).fetchone()
    if turn is not None:
        reply = read_chain(log, turn["tip_message_hash"], after=turn["parent_message_hash"])
        if reply.is_whole:
            events_of(row, reply.messages, damage)
    reasons = ["its turn is missing"] if turn is None and row["thread_id"] is not None else []
    return reasons + _unreadable(damage)


def _broken_runs(connection: sqlite3.Connection) -> list[Broken]:
    """List the benchmark runs whose columns can't be read."""
    broken = []
    for row in connection.execute("select * from proxy_runs order by id"):
        damage = Damage()
        run_facts(row, damage)
        broken += [Broken("run", None, None, why, row["id"]) for why in _unreadable(damage)]
    return broken


def _broken_turns(connection: sqlite3.Connection) -> list[Broken]:
    """List the turns, llm's own included, whose columns or tools can't be read."""
    rows = connection.execute(
        "select turns.*, schemas.content as schema_json from turns"
        " left join schemas on schemas.id = schema_id order by turns.id"
    )
    return [
        Broken("turn", None, None, why, row["id"], row["thread_id"])
        for row in rows
        for why in _unreadable(_damage_of_turn(connection, row))
    ]


def _damage_of_turn(connection: sqlite3.Connection, row: sqlite3.Row) -> Damage:
    damage = Damage()
    turn_facts(row, EPOCH, damage)
    damage.read("tools", lambda: read_tools(connection, row["id"]), None)
    if row["schema_id"] is not None and row["schema_json"] is None:
        damage.add("turns.schema_id")
    return damage


def _unreadable(damage: Damage) -> list[str]:
    return [f"can't be read: {', '.join(damage.names)}"] if damage.names else []


# ---- where it is used


def _users_of_messages(
    connection: sqlite3.Connection, version: int
) -> dict[str, tuple[str, str | None]]:
    """Map each message to the first turn that contains it, and to the turn's thread."""
    parents = dict(connection.execute("select hash, parent_hash from messages").fetchall())
    ends: list[Any] = connection.execute(
        "select id, thread_id, parent_message_hash from turns"
        " union all select id, thread_id, tip_message_hash from turns order by id"
    ).fetchall()
    if version:
        ends += connection.execute(
            "select id, thread_id, message_hash from proxy_exchanges order by number"
        )
    users: dict[str, tuple[str, str | None]] = {}
    for id, thread_id, hash in ends:
        while hash is not None and hash not in users:
            users[hash] = id, thread_id
            hash = parents.get(hash)
    return users


def _users_of_blobs(
    connection: sqlite3.Connection, inner: Mapping[str, list[str]]
) -> dict[str, tuple[str, str | None]]:
    """Map each part that is referred to, directly or not, to the first exchange that does so.

    inner: the references in each stored part.
    """
    users: dict[str, tuple[str, str | None]] = {}
    for id, thread_id, body in connection.execute(
        "select id, thread_id, body from proxy_exchanges order by number"
    ):
        todo = references(str(body))
        while todo:
            hash = todo.pop()
            if hash not in users:
                users[hash] = id, thread_id
                todo += inner.get(hash, [])
    return users
