"""Check stored messages and request parts against their hashes.

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
from .exchange import with_remote_attachments
from .reader import open_for_reading
from .request_store import references
from .store import translated

BATCH = 500  # messages in one query

# Raised when a row is read that was edited by hand.
_UNREADABLE = (KeyError, ValueError, TypeError, AttributeError, OSError)


@dataclass(frozen=True)
class Broken:
    """A message, or a stored part of a request, that no longer matches its hash.

    Or an exchange that continues itself, directly or through others: its `hash` is its id.

    role: the message's; None for a part of a request.
    why: a reason for people to read.
    turn_id: a turn or exchange that contains it (`log ID` takes the latter), thread_id: its
        conversation; None if nothing refers to it.
    """

    kind: Literal["message", "content", "exchange"]
    hash: str
    role: str | None
    why: str
    turn_id: str | None = None
    thread_id: str | None = None


@dataclass(frozen=True)
class Verified:
    """The number of messages and request parts that were checked, and the broken ones."""

    messages: int
    contents: int
    broken: tuple[Broken, ...]


def verify(path: Path) -> Verified:
    """Hash all stored messages and request parts again.

    Raises:
        Unusable: the file can't be read.
    """
    with translated(path):
        connection, log, version = open_for_reading(path)
        with closing(connection):
            # Text that is no longer UTF-8 has another hash, and is no reason to stop.
            connection.text_factory = lambda data: data.decode("utf-8", "replace")
            connection.execute("BEGIN")  # one snapshot, even if others write meanwhile
            return _verify(connection, log, version)


def _verify(connection: sqlite3.Connection, log: LogStore, version: int) -> Verified:
    tables = {row[0] for row in connection.execute("select name from sqlite_master")}
    messages = _Messages(connection, log)
    wrong_messages = list(messages.broken()) if "messages" in tables else []
    contents, wrong_blobs = _broken_blobs(connection) if version else (0, [])
    broken: list[Broken] = []
    if wrong_messages:
        users = _users_of_messages(connection, version)
        broken += [
            Broken("message", hash, role, why, *users.get(hash, (None, None)))
            for hash, role, why in wrong_messages
        ]
    if wrong_blobs:
        users = _users_of_blobs(connection)
        broken += [
            Broken("content", hash, None, "it was changed", *users.get(hash, (None, None)))
            for hash in wrong_blobs
        ]
    if version:
        broken += _circles(connection)
    return Verified(messages.count, contents, tuple(broken))


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
            except _UNREADABLE:
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
        except _UNREADABLE as exc:
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


def _broken_blobs(connection: sqlite3.Connection) -> tuple[int, list[str]]:
    count = 0
    broken = []
    for hash, data in connection.execute("select hash, cast(text as blob) from proxy_contents"):
        count += 1
        if hashlib.sha256(data).hexdigest()[:32] != hash:
            broken.append(hash)
    return count, broken


def _circles(connection: sqlite3.Connection) -> Iterator[Broken]:
    """Find exchanges that continue one another in a circle: no recording makes one."""
    rows = connection.execute(
        "select id, previous_id, thread_id from proxy_exchanges"
        " where previous_id is not null order by number"
    ).fetchall()
    circles = find_circles({row["id"]: row["previous_id"] for row in rows})
    in_circles = {id for circle in circles for id in circle}
    for row in rows:
        if row["id"] in in_circles:
            why = "it continues itself, directly or through others"
            yield Broken("exchange", row["id"], None, why, row["id"], row["thread_id"])


# ---- where it is used


def _users_of_messages(
    connection: sqlite3.Connection, version: int
) -> dict[str, tuple[str, str | None]]:
    """Map each message to the first turn that contains it, and to the turn's thread."""
    parents = dict(connection.execute("select hash, parent_hash from messages").fetchall())
    ends: list[Any] = connection.execute(
        "select id, thread_id, tip_message_hash from turns order by id"
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


def _users_of_blobs(connection: sqlite3.Connection) -> dict[str, tuple[str, str | None]]:
    """Map each stored part to the first exchange that refers to it, directly or not."""
    users: dict[str, tuple[str, str | None]] = {}
    for id, thread_id, body in connection.execute(
        "select id, thread_id, body from proxy_exchanges order by number"
    ):
        todo: list[str] = references(body)
        while todo:
            hash = todo.pop()
            if hash in users:
                continue
            users[hash] = id, thread_id
            for (text,) in connection.execute(
                "select text from proxy_contents where hash = ?", (hash,)
            ):
                todo += references(text)
    return users
