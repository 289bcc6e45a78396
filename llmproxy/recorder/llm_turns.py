"""Turns as llm's own `LogStore` takes them.

LogStore is given a small record made of plain data, never a `llm.Response`: logging one
of those can run its model again or ask a client's URL for its type. The rows that come
of it are LogStore's, down to the last: what is left out is the asking, for each message
of a history that is sent again, whether the database has it.
"""

from __future__ import annotations

import hashlib
import json
import marshal
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import llm
import sqlite_utils
from llm.logs import LogStore
from llm.models import _conversation_name
from llm.parts import Message, TextPart

from .exchange import Turn, last_text

__all__ = ["Conversation", "TurnLog", "TurnRecord"]


class TurnRecord:
    """What `LogStore.log` reads of a `llm.Response`, made of a turn.

    known: fingerprints of the messages that are stored, as `TurnLog.seen` gives them.
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
        """How llm names a thread that begins with this turn."""
        return str(_conversation_name(self.prompt.prompt or self.prompt.system))

    @property
    def prompt_to_index(self) -> str | None:
        """The prompt where llm leaves it out of its search, else None.

        It takes it only where the user has the very last word; Claude Code sends system
        messages after it.
        """
        said = [message for message in self._turn.messages if message.role != "system"]
        if not said or said[-1] is self._turn.messages[-1] or said[-1].role != "user":
            return None
        return "".join(part.text for part in said[-1].parts if isinstance(part, TextPart))


@dataclass(frozen=True)
class _Model:
    model_id: str


@dataclass(frozen=True)
class Conversation:
    """The thread of a turn, as LogStore asks for it."""

    id: str


@dataclass(frozen=True)
class _Prompt:
    """`prompt` and `system` name the thread; LogStore reads the conversation from `messages`."""

    messages: _Chain
    prompt: str
    system: str
    options: dict[str, Any]
    tools: tuple[llm.Tool, ...]
    schema: dict[str, Any] | None
    fragments: tuple[str, ...] = ()
    system_fragments: tuple[str, ...] = ()
    tool_results: tuple[llm.ToolResult, ...] = ()  # there: which toolbox ran; ours never did


def _plain(payload: Any) -> Any:
    """What a plugin leaves for the log may hold its SDK's objects: those become text."""
    return json.loads(json.dumps(payload, default=str))


class _Chain(list[Message]):
    """Messages of which the first `known` are stored, the last of those as `tip`."""

    def __init__(self, messages: Iterable[Message], known: int, tip: str | None) -> None:
        super().__init__(messages)
        self.known = known
        self.tip = tip


def _chain(messages: Sequence[Message], known: Mapping[bytes, str]) -> _Chain:
    tip: str | None = None
    for count, message in enumerate(messages):
        hash = known.get(_fingerprint(tip, message))
        if hash is None:
            return _Chain(messages, count, tip)
        tip = hash
    return _Chain(messages, len(messages), tip)


def _fingerprint(parent: str | None, message: Message) -> bytes:
    """Tell apart what llm's hash does, and more, in a fraction of the time."""
    data = marshal.dumps(dict(message.to_dict()), 2)  # version 2 writes the same alike, always
    return hashlib.sha256((parent or "").encode() + data).digest()


class TurnLog(LogStore):
    """llm's LogStore, which takes the known part of a chain as stored.

    seen: the messages that it stored or found, llm's hashes by fingerprint.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        database = sqlite_utils.Database(connection, execute_plugins=False)
        super().__init__(database)  # type: ignore[no-untyped-call]  # llm has no types for it
        self.seen: dict[bytes, str] = {}

    def ensure_chain(
        self, messages: Sequence[Message], parent: str | None = None, fragments: Any = None
    ) -> str | None:
        """Store what is not known of a chain, and give the hash of its last message."""
        tip = parent
        if isinstance(messages, _Chain) and self._has(messages.tip):
            tip = messages.tip
            messages = messages[messages.known :]
        for message in messages:
            fingerprint = _fingerprint(tip, message)
            tip = super().ensure_chain([message], parent=tip)
            assert tip is not None
            self.seen[fingerprint] = tip
        return tip

    def _has(self, hash: str | None) -> bool:
        """Look for a message, and so for those before it: somebody may have deleted it by hand."""
        found = self.db.execute("select 1 from messages where hash = ?", (hash,))
        return found.fetchone() is not None
