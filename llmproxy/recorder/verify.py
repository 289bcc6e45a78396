"""Whether all that the log keeps by its hash still is what the hash was taken of.

Messages are read as everybody reads them, fragments and attachments put back in their
places, and hashed by llm's own function: what `LogStore.verify` does, in batches, and
without ever asking an address for an attachment's type. Nothing is written.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import llm
from llm.logs import LogStore, message_hash
from llm.parts import AttachmentPart, Message, Part, ToolResultPart

from .exchange import with_remote_attachments
from .reader import open_for_reading
from .request_store import references
from .store import translated

__all__ = ["Broken", "Verified", "verify"]

BATCH = 500  # messages in one query
MAX_GUESSES = 200  # of media types: a message of two attachments, each of a dozen

# What reading a row raises that somebody has changed by hand.
_UNREADABLE = (KeyError, ValueError, TypeError, AttributeError, OSError)


@dataclass(frozen=True)
class Broken:
    """A message, or a content of a request, that is not what it was when it was stored.

    role: the message's; None for a content.
    why: in words.
    turn_id: one that has it, as `log ID` takes it where it is an exchange; thread_id: its
        conversation. None where nothing has it.
    """

    kind: Literal["message", "content"]
    hash: str
    role: str | None
    why: str
    turn_id: str | None = None
    thread_id: str | None = None


@dataclass(frozen=True)
class Verified:
    """How many messages and contents were looked at, and which of them are broken."""

    messages: int
    contents: int
    broken: tuple[Broken, ...]


def verify(path: Path) -> Verified:
    """Hash all stored messages and contents again.

    Raises:
        Unusable: the file can't be read.
    """
    with translated(path):
        connection, log, version = open_for_reading(path)
        with closing(connection):
            # What is no UTF-8 any more is something else, and no reason to stop.
            connection.text_factory = lambda data: data.decode("utf-8", "replace")
            connection.execute("BEGIN")  # all of one moment, whoever writes meanwhile
            return _verify(connection, log, version)


def _verify(connection: sqlite3.Connection, log: LogStore, version: int) -> Verified:
    tables = {row[0] for row in connection.execute("select name from sqlite_master")}
    messages = _Messages(connection, log)
    wrong_messages = list(messages.broken()) if "messages" in tables else []
    contents, wrong_contents = _broken_contents(connection) if version else (0, [])
    broken: list[Broken] = []
    if wrong_messages:
        owners = _owners_of_messages(connection, version)
        broken += [
            Broken("message", hash, role, why, *owners.get(hash, (None, None)))
            for hash, role, why in wrong_messages
        ]
    if wrong_contents:
        having = _owners_of_contents(connection)
        broken += [
            Broken("content", hash, None, "it was changed", *having.get(hash, (None, None)))
            for hash in wrong_contents
        ]
    return Verified(messages.count, contents, tuple(broken))


class _Messages:
    """All stored messages, a batch at a time."""

    def __init__(self, connection: sqlite3.Connection, log: LogStore) -> None:
        self._connection = connection
        self._log = log
        self.count = 0

    def broken(self) -> Iterator[tuple[str, str, str]]:
        """Give hash and role of those that are not as they were, and why in words."""
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
            if parts is None:  # one of this batch can't be read: perhaps this one
                parts = self._log._load_parts([row["hash"]])
            metadata = row["provider_metadata"]
            message = Message(
                row["role"], parts.get(row["hash"], []), json.loads(metadata) if metadata else None
            )
            (message,) = with_remote_attachments([message])
            if _hash(message, row["parent_hash"]) == row["hash"]:
                return "the message before it is gone" if row["is_torn"] else None
            if not message.parts:
                return "its parts are gone"
            return self._other_type(message, row) or _changed(message)
        except KeyError as exc:
            return f"something of it is gone: {exc}"
        except _UNREADABLE as exc:
            return f"it can't be read: {type(exc).__name__}: {exc}"

    def _other_type(self, message: Message, row: sqlite3.Row) -> str | None:
        """Say whether it is llm's: it keeps the bytes that came under two types under the last."""
        attachments = _attachments(message)
        types = [
            row[0] for row in self._connection.execute("select distinct type from attachments")
        ]
        candidates = [[*dict.fromkeys([one.type, *types, *_TYPES])] for one in attachments]
        for guess in itertools.islice(itertools.product(*candidates), MAX_GUESSES):
            given = iter(guess)
            if _hash(_with_types(message, given), row["parent_hash"]) == row["hash"]:
                pairs = zip(attachments, guess, strict=True)
                return ", ".join(
                    f"its attachment was {then} when it was logged, and the same bytes were"
                    f" logged as {one.type} since (llm keeps one type of them)"
                    for one, then in pairs
                    if one.type != then
                )
        return None


def _changed(message: Message) -> str:
    files = [one.path for one in _attachments(message) if one.path and not one.content]
    return " or ".join(["it was changed", *(f"the file {path} was" for path in files)])


_TYPES = (
    "image/png image/jpeg image/gif image/webp application/pdf text/plain audio/mpeg audio/wav"
    " video/mp4 application/octet-stream"
).split()


def _hash(message: Message, parent: str | None) -> str:
    if any(one.url and not one.type for one in _attachments(message)):
        raise ValueError("an attachment's type would have to be asked for at its URL")
    return message_hash(message, parent)


def _attachments(message: Message) -> list[llm.Attachment]:
    found: list[llm.Attachment] = []
    for part in message.parts:
        match part:
            case AttachmentPart(attachment=llm.Attachment() as attachment):
                found.append(attachment)
            case ToolResultPart(attachments=attachments):
                found += attachments
    return found


def _with_types(message: Message, types: Iterator[str | None]) -> Message:
    def typed(attachment: llm.Attachment) -> llm.Attachment:
        return replace(attachment, type=next(types))

    parts: list[Part] = []
    for part in message.parts:
        match part:
            case AttachmentPart(attachment=llm.Attachment() as attachment):
                parts.append(replace(part, attachment=typed(attachment)))
            case ToolResultPart(attachments=attachments):
                parts.append(replace(part, attachments=[typed(one) for one in attachments]))
            case _:
                parts.append(part)
    return replace(message, parts=parts)


def _broken_contents(connection: sqlite3.Connection) -> tuple[int, list[str]]:
    count = 0
    broken = []
    for hash, data in connection.execute("select hash, cast(text as blob) from proxy_contents"):
        count += 1
        if hashlib.sha256(data).hexdigest()[:32] != hash:
            broken.append(hash)
    return count, broken


# ---- who has it


def _owners_of_messages(
    connection: sqlite3.Connection, version: int
) -> dict[str, tuple[str, str | None]]:
    """Give for each message the first turn that has it, and that one's thread."""
    parents = dict(connection.execute("select hash, parent_hash from messages").fetchall())
    ends: list[Any] = connection.execute(
        "select id, thread_id, tip_message_hash from turns order by id"
    ).fetchall()
    if version:
        ends += connection.execute(
            "select id, thread_id, message_hash from proxy_exchanges order by number"
        )
    owners: dict[str, tuple[str, str | None]] = {}
    for id, thread_id, hash in ends:
        while hash is not None and hash not in owners:
            owners[hash] = id, thread_id
            hash = parents.get(hash)
    return owners


def _owners_of_contents(connection: sqlite3.Connection) -> dict[str, tuple[str, str | None]]:
    """Give for each content the first exchange that refers to it, directly or not."""
    owners: dict[str, tuple[str, str | None]] = {}
    for id, thread_id, body in connection.execute(
        "select id, thread_id, body from proxy_exchanges order by number"
    ):
        todo: list[str] = references(body)
        while todo:
            hash = todo.pop()
            if hash in owners:
                continue
            owners[hash] = id, thread_id
            for (text,) in connection.execute(
                "select text from proxy_contents where hash = ?", (hash,)
            ):
                todo += references(text)
    return owners
