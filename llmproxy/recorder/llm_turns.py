"""Write turns to llm's tables as llm's own `LogStore` does, and read its messages.

LogStore is given a record of plain data, not a `llm.Response`: logging one of those can run
its model again, or request a client's URL to find out its type. The rows are exactly those
that LogStore writes, most of them by our own statements (llm_rows.py); and messages of a
repeated history are not looked up.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import llm
import sqlite_utils
from llm.logs import LogStore, message_hash
from llm.models import _conversation_name
from llm.parts import Message, Part, TextPart

from ..core.attachments import find_attachments
from ..core.fingerprints import digest_of
from .damage import UNREADABLE
from .exchange import Turn, last_text, with_remote_attachments
from .llm_rows import LlmRows, has_known_tables

NAMED_CHARS = 4_096  # of a prompt, in which its thread's name is looked for first


class TurnRecord:
    """Has the attributes of a `llm.Response` that `LogStore.log` reads, made from a turn.

    known: fingerprints of stored messages, as in `TurnLog.seen`.
    digests: of the turn's messages, if they are known.
    """

    def __init__(
        self, turn: Turn, known: Mapping[Any, str], digests: Sequence[bytes] | None = None
    ) -> None:
        self.id = turn.id
        self.model = _Model(turn.model)
        self.resolved_model = turn.resolved_model
        self.prompt = _Prompt(
            messages=_chain(turn.messages, known, digests),
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

    def duration_ms(self) -> int | None:
        return self._turn.duration_ms

    def datetime_utc(self) -> str:
        return self._turn.started.isoformat()

    @property
    def thread_name(self) -> str:
        """The name that llm gives to a thread that begins with this turn."""
        text = self.prompt.prompt or self.prompt.system
        # The whole of a long prompt takes one long call into C, which holds all other threads.
        name = str(_conversation_name(text[:NAMED_CHARS]))
        return name if name.endswith("…") else str(_conversation_name(text))

    @property
    def prompt_to_index(self) -> str | None:
        """The prompt, if llm leaves it out of its search index; else None.

        llm indexes it only if the user's message is the last one; Claude Code sends system
        messages after it.
        """
        messages = self._turn.messages
        asked = next((one for one in reversed(messages) if one.role != "system"), None)
        if asked is None or asked is messages[-1] or asked.role != "user":
            return None
        return "".join(part.text for part in asked.parts if isinstance(part, TextPart))


@dataclass(frozen=True)
class _Model:
    model_id: str


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
    return json.loads(json.dumps(payload, default=str)) if payload else payload


class _MessageChain(list[Message]):
    """Messages, of which the first `known` are stored; `tip` is the hash of the last of these."""

    def __init__(self, messages: Iterable[Message], known: int, tip: str | None) -> None:
        super().__init__(messages)
        self.known = known
        self.tip = tip


Fingerprint = tuple[str | None, bytes]
"""A message's parent and its digest, which distinguish all that llm's hash does, in a tenth of
its time."""


def _chain(
    messages: Sequence[Message], known: Mapping[Any, str], digests: Sequence[bytes] | None
) -> _MessageChain:
    tip: str | None = None
    for count, digest in enumerate(map(digest_of, messages) if digests is None else digests):
        hash = known.get((tip, digest))
        if hash is None:
            return _MessageChain(messages, count, tip)
        tip = hash
    return _MessageChain(messages, len(messages), tip)


class TurnLog(LogStore):
    """llm's LogStore, but messages that are known to be stored are not looked up.

    seen: llm's hashes of the messages that it stored or found, by fingerprint.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        database = sqlite_utils.Database(connection, execute_plugins=False)
        super().__init__(database)  # type: ignore[no-untyped-call]  # llm has no types for it
        self.seen: dict[Fingerprint, str] = {}
        self._connection = connection
        self._rows = LlmRows(connection, self) if has_known_tables(connection) else None
        self._is_new = True  # the message that was stored last

    def ensure_chain(
        self, messages: Sequence[Message], parent: str | None = None, fragments: Any = None
    ) -> str | None:
        """Store the unknown messages of a chain; return the hash of its last one."""
        tip = parent
        self._is_new = True
        if isinstance(messages, _MessageChain) and self._has(messages.tip):
            tip = messages.tip
            self._is_new = False
            messages = messages[messages.known :]
        for message in messages:
            fingerprint = tip, digest_of(message)
            if self._rows is None:
                tip = super().ensure_chain([message], parent=tip)
            else:
                tip, self._is_new = self._rows.ensure_message(message, tip)
            assert tip is not None
            self.seen[fingerprint] = tip
        return tip

    def _has(self, hash: str | None) -> bool:
        """Check that a message, and so those before it, has not been deleted by hand."""
        if hash is None:
            return False
        rows = self._connection.execute("select 1 from messages where hash = ?", (hash,))
        return rows.fetchone() is not None

    def log_turn(
        self, record: TurnRecord, thread_id: str, *, is_finished: bool, forked_from: str | None
    ) -> str | None:
        """Write a turn, in a transaction that is open; return its last request message's hash.

        is_finished: only such a turn becomes the tip of a thread that has one.
        forked_from: the thread that its own forks from, if that is known.
        """
        execute = self._connection.execute
        find = "select tip_message_hash from threads where id = ?"
        thread = execute(find, (thread_id,)).fetchone()
        parent = self.ensure_chain(record.prompt.messages)
        are_new = self._is_new
        tip = self.ensure_chain(record._messages_now(), parent=parent)
        are_new &= self._is_new
        rows = self._rows
        if rows is None or not rows.insert_turn(record, thread_id, parent, tip, are_new):
            self.ensure_thread(thread_id, record.thread_name)
            self.log(record, thread_id)
        elif thread is None:
            rows.insert_thread(thread_id, record.thread_name, tip, forked_from)
            return parent
        if thread is not None:
            new_tip = tip if is_finished else thread[0]
            execute("update threads set tip_message_hash = ? where id = ?", (new_tip, thread_id))
        if forked_from is not None:
            execute("update threads set forked_from = ? where id = ?", (forked_from, thread_id))
        return parent


_MESSAGE_CHAIN = """
    with recursive chain (hash) as (
        select :tip where :tip is not :after
        union  -- not "union all": a circle, which only an edited file has, must end
        select parent_hash from chain join messages using (hash) where parent_hash is not :after
    )
    select cast(chain.hash as text), cast(parent_hash as text), role  -- damaged ones may be bytes
    from chain left join messages using (hash)
"""


class ChainLink(NamedTuple):
    """A message of a chain; its role is None if the log has lost it."""

    hash: str
    role: str | None


class Links(NamedTuple):
    """The links of a chain in order.

    is_whole: none is lost, and they begin where they should.
    """

    links: list[ChainLink]
    is_whole: bool


def message_chain(log: LogStore, tip: str | None, *, after: str | None = None) -> Links:
    """Return the messages after `after` up to `tip`; each once, if they form a circle.

    None if `after` is not before them: they would be the whole conversation.
    """
    rows = log.db.execute(_MESSAGE_CHAIN, {"tip": tip, "after": after})
    found = {hash: (parent, role) for hash, parent, role in rows}
    chain: list[ChainLink] = []
    while tip is not None and tip in found:
        parent, role = found.pop(tip)
        chain.append(ChainLink(tip, role))
        tip = parent
    are_known = all(link.role is not None for link in chain)
    if after is not None and are_known and tip != after:
        return Links([], False)
    return Links(chain[::-1], are_known and tip == after)


class Chain(NamedTuple):
    """Messages in order; not `is_whole` if some are missing, or only partly readable."""

    messages: list[Message]
    is_whole: bool


def read_chain(log: LogStore, tip: str | None, *, after: str | None = None) -> Chain:
    """Read the messages after `after` up to `tip` at once; llm reads them one by one.

    If one of them is missing, those before it can't be found either.
    """
    links, is_whole = message_chain(log, tip, after=after)
    chain = read_messages(log, [link.hash for link in links])
    return Chain(chain.messages, chain.is_whole and is_whole)


def read_messages(log: LogStore, hashes: Sequence[str]) -> Chain:
    """Read messages by their hashes, each of which is there once, in this order."""
    found, damaged = find_messages(log, hashes)
    messages = [found[hash] for hash in hashes if hash in found]
    return Chain(messages, len(messages) == len(hashes) and not damaged)


def find_messages(log: LogStore, hashes: Sequence[str]) -> tuple[dict[str, Message], set[str]]:
    """Read messages by their hashes; missing ones are left out.

    Returns also the hashes of damaged ones, of which only the text is returned.
    """
    rows = log.db.execute(
        "select hash, parent_hash, role, provider_metadata from messages"
        " where hash in (select value from json_each(:hashes))",
        {"hashes": json.dumps(hashes)},
    ).fetchall()
    try:
        parts = log._load_parts([row[0] for row in rows])
    except UNREADABLE:  # one of them is damaged
        parts = None
    messages = {}
    damaged = set()
    for hash, parent, role, metadata in rows:
        try:
            loaded = log._load_parts([hash]) if parts is None else parts
            messages[hash] = _message(hash, parent, role, metadata, loaded.get(hash, []))
        except UNREADABLE:
            messages[hash] = Message(str(role), _stored_texts(log, hash))
            damaged.add(hash)
    return messages, damaged


def _message(
    hash: str, parent: str | None, role: str, metadata: str | None, parts: list[Part]
) -> Message:
    message = Message(role, parts, json.loads(metadata) if metadata else None)
    if any(type(getattr(part, "text", "")) is not str for part in parts):
        raise ValueError("it has text that is no text")
    for one in find_attachments(message):
        texts = (one.type, one.url, one.path)
        if any(not isinstance(text, str | None) for text in texts) or not isinstance(
            one.content, bytes | None
        ):
            raise ValueError("it has an attachment of another type than was stored")
    # Few messages have no parts; if this one had some, they are missing.
    if not isinstance(role, str) or (not parts and message_hash(message, parent) != hash):
        raise ValueError("it was changed")
    (message,) = with_remote_attachments([message])
    return message


def _stored_texts(log: LogStore, hash: str) -> list[Part]:
    rows = log.db.execute(
        "select text from parts where message_hash = ? order by position", (hash,)
    )
    return [TextPart(str(text)) for (text,) in rows if isinstance(text, str)]
