"""Write turns to llm's tables through llm's own `LogStore`, and read its messages.

LogStore is given a record of plain data, not a `llm.Response`: logging one of those can run
its model again, or request a client's URL to find out its type. The rows are exactly those
that LogStore writes; only its lookup of every message of a repeated history is saved.
"""

from __future__ import annotations

import hashlib
import json
import marshal
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import llm
import sqlite_utils
from llm.logs import LogStore
from llm.models import _conversation_name
from llm.parts import Message, TextPart

from .exchange import Turn, last_text, with_remote_attachments


class TurnRecord:
    """Has the attributes of a `llm.Response` that `LogStore.log` reads, made from a turn.

    known: fingerprints of stored messages, as in `TurnLog.seen`.
    """

    def __init__(self, turn: Turn, known: Mapping[bytes, str]) -> None:
        self.id = turn.id
        self.conversation = Conversation(turn.thread_id)
        self.model = _Model(turn.model)
        self.resolved_model = turn.resolved_model
        self.prompt = _Prompt(
            messages=_chain(turn.messages, known),
            prompt=last_text(turn.messages, "user"),
            system=last_text(turn.messages, "system"),
            options=_plain(turn.options or {}),
            tools=turn.tools,
            schema=turn.schema,
        )
        self.response_json = _plain(turn.response_json)
        self.input_tokens = turn.usage.input
        self.output_tokens = turn.usage.output
        self.token_details = turn.usage.details
        self._turn = turn

    def _messages_now(self) -> list[Message]:
        return self._turn.reply

    def duration_ms(self) -> int:
        return self._turn.duration_ms

    def datetime_utc(self) -> str:
        return self._turn.started.isoformat()

    @property
    def thread_name(self) -> str:
        """The name that llm gives to a thread that begins with this turn."""
        return str(_conversation_name(self.prompt.prompt or self.prompt.system))

    @property
    def prompt_to_index(self) -> str | None:
        """The prompt, if llm leaves it out of its search index; else None.

        llm indexes it only if the user's message is the last one; Claude Code sends system
        messages after it.
        """
        others = [message for message in self._turn.messages if message.role != "system"]
        if not others or others[-1] is self._turn.messages[-1] or others[-1].role != "user":
            return None
        return "".join(part.text for part in others[-1].parts if isinstance(part, TextPart))


@dataclass(frozen=True)
class _Model:
    model_id: str


@dataclass(frozen=True)
class Conversation:
    """A turn's thread, as LogStore reads it."""

    id: str


@dataclass(frozen=True)
class _Prompt:
    """The messages, and the texts from which LogStore makes the thread's name."""

    messages: _MessageChain
    prompt: str
    system: str
    options: dict[str, Any]
    tools: tuple[llm.Tool, ...]
    schema: dict[str, Any] | None
    fragments: tuple[str, ...] = ()
    system_fragments: tuple[str, ...] = ()
    tool_results: tuple[llm.ToolResult, ...] = ()  # in llm: of tools that it ran itself


def _plain(payload: Any) -> Any:
    """Turn objects that a plugin left in its payload (of its SDK, say) into text."""
    return json.loads(json.dumps(payload, default=str))


class _MessageChain(list[Message]):
    """Messages, of which the first `known` are stored; `tip` is the hash of the last of these."""

    def __init__(self, messages: Iterable[Message], known: int, tip: str | None) -> None:
        super().__init__(messages)
        self.known = known
        self.tip = tip


def _chain(messages: Sequence[Message], known: Mapping[bytes, str]) -> _MessageChain:
    tip: str | None = None
    for count, message in enumerate(messages):
        hash = known.get(_fingerprint(tip, message))
        if hash is None:
            return _MessageChain(messages, count, tip)
        tip = hash
    return _MessageChain(messages, len(messages), tip)


def _fingerprint(parent: str | None, message: Message) -> bytes:
    """Distinguish all messages that llm's hash does, in a fraction of its time."""
    data = marshal.dumps(dict(message.to_dict()), 2)  # version 2 always encodes equal values alike
    return hashlib.sha256((parent or "").encode() + data).digest()


class TurnLog(LogStore):
    """llm's LogStore, but messages that are known to be stored are not looked up.

    seen: llm's hashes of the messages that it stored or found, by fingerprint.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        database = sqlite_utils.Database(connection, execute_plugins=False)
        super().__init__(database)  # type: ignore[no-untyped-call]  # llm has no types for it
        self.seen: dict[bytes, str] = {}

    def ensure_chain(
        self, messages: Sequence[Message], parent: str | None = None, fragments: Any = None
    ) -> str | None:
        """Store the unknown messages of a chain; return the hash of its last one."""
        tip = parent
        if isinstance(messages, _MessageChain) and self._has(messages.tip):
            tip = messages.tip
            messages = messages[messages.known :]
        for message in messages:
            fingerprint = _fingerprint(tip, message)
            tip = super().ensure_chain([message], parent=tip)
            assert tip is not None
            self.seen[fingerprint] = tip
        return tip

    def _has(self, hash: str | None) -> bool:
        """Check that a message, and so those before it, has not been deleted by hand."""
        rows = self.db.execute("select 1 from messages where hash = ?", (hash,))
        return rows.fetchone() is not None


_MESSAGE_CHAIN = """
    with recursive chain (hash) as (
        select :tip where :tip is not :after
        union  -- not "union all": a circle, which only an edited file has, must end
        select parent_hash from chain join messages using (hash) where parent_hash is not :after
    )
    select chain.hash, parent_hash, role from chain left join messages using (hash)
"""


class ChainLink(NamedTuple):
    """A message of a chain; its role is None if the log has lost it."""

    hash: str
    role: str | None


def message_chain(log: LogStore, tip: str | None, *, after: str | None = None) -> list[ChainLink]:
    """Return the messages after `after` up to `tip`; each once, if they form a circle."""
    rows = log.db.execute(_MESSAGE_CHAIN, {"tip": tip, "after": after})
    found = {hash: (parent, role) for hash, parent, role in rows}
    chain: list[ChainLink] = []
    while tip is not None and tip in found:
        parent, role = found.pop(tip)
        chain.append(ChainLink(tip, role))
        tip = parent
    return chain[::-1]


def read_chain(log: LogStore, tip: str | None, *, after: str | None = None) -> list[Message]:
    """Read the messages after `after` up to `tip` at once; llm reads them one by one.

    Raises:
        KeyError: one of them is missing.
    """
    hashes = [link.hash for link in message_chain(log, tip, after=after)]
    messages = read_messages(log, hashes)
    return [messages[hash] for hash in hashes]


def read_messages(log: LogStore, hashes: Sequence[str]) -> dict[str, Message]:
    """Read messages by their hashes; missing ones are left out."""
    rows = log.db.execute(
        "select hash, role, provider_metadata from messages"
        " where hash in (select value from json_each(:hashes))",
        {"hashes": json.dumps(hashes)},
    ).fetchall()
    parts = log._load_parts([hash for hash, _, _ in rows])
    messages = [
        Message(role, parts.get(hash, []), json.loads(metadata) if metadata else None)
        for hash, role, metadata in rows
    ]
    return dict(zip((hash for hash, _, _ in rows), with_remote_attachments(messages), strict=True))
