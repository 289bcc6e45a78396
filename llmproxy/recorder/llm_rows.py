"""Write the rows that llm's `LogStore` writes, by statements of our own.

LogStore looks up the schema and builds its SQL for every row, which is four fifths of the time
that a turn takes. Here each kind of row has one statement, which SQLite keeps prepared.

The rows are LogStore's, byte for byte: tests/recorder/test_llm_rows.py compares them for every
kind of content. LogStore itself writes what is rare (attachments, values that it converts) and
what was there already, and everything if llm's tables are not those that this was written for.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import marshal
import sqlite3
from collections.abc import Sequence
from copy import copy
from datetime import UTC, datetime
from heapq import heapify, heappop, heappush
from json.encoder import encode_basestring
from typing import Any, Protocol

import llm
from llm import logs, migrations
from llm.logs import LogStore, message_hash
from llm.parts import Message, Part, TextPart
from llm.utils import ensure_tool, make_schema_id

from ..core.attachments import find_attachments, map_attachments

# A newer llm may fill these tables in another way, or further ones.
_LLM_VERSION = ["0", "36"]
_MIGRATIONS = 30, "m027_turns_response_json"
_COLUMNS = {
    "messages": ("hash", "parent_hash", "role", "provider_metadata"),
    "parts": ("id", "message_hash", "position", "type", "tool_name", "text", "payload"),
    "threads": ("id", "name", "tip_message_hash", "forked_from", "datetime_utc"),
    "turns": (
        "id", "thread_id", "parent_message_hash", "tip_message_hash", "model", "resolved_model",
        "options_json", "schema_id", "input_tokens", "output_tokens", "token_details",
        "duration_ms", "datetime_utc", "response_json",
    ),
    "turn_search": ("id", "turn_id", "prompt", "response"),
    "turn_tools": ("turn_id", "tool_id", "instance_id"),
    "schemas": ("id", "content"),
}  # fmt: skip


def _insert(table: str, *, otherwise: str = "abort") -> str:
    columns = _COLUMNS[table]
    if table in ("parts", "turn_search"):  # SQLite chooses the id
        columns = columns[1:]
    places = ", ".join("?" * len(columns))
    return f"insert or {otherwise} into {table} ({', '.join(columns)}) values ({places})"


_INSERT_MESSAGE = _insert("messages", otherwise="ignore")
_INSERT_PART = _insert("parts")
_INSERT_THREAD = _insert("threads")
_INSERT_TURN = _insert("turns", otherwise="ignore")
_INSERT_SEARCH = _insert("turn_search")
_INSERT_TURN_TOOL = _insert("turn_tools", otherwise="replace")
_INSERT_SCHEMA = _insert("schemas", otherwise="ignore")

MAX_TOOL_HASHES = 1_000
MAX_SURE_LEVELS = 100  # that llm can read, whatever the stack
_PLAIN = frozenset({str, int, float, type(None)})  # SQLite takes these as they are
_MARKERS = '"$"', '"$r"', '"$raw"'  # in llm's condensed JSON


class Record(Protocol):
    """A turn, as far as `LlmRows` reads it; a `TurnRecord` is one."""

    id: str
    model: Any
    resolved_model: str | None
    prompt: Any
    response_json: Any
    input_tokens: int | None
    output_tokens: int | None
    token_details: dict[str, Any] | None

    def _messages_now(self) -> list[Message]: ...
    def duration_ms(self) -> int | None: ...
    def datetime_utc(self) -> str: ...


def has_known_tables(connection: sqlite3.Connection) -> bool:
    """Check that llm and the tables that it made are those that `LlmRows` was written for."""
    known = [migration.__name__ for migration in migrations.MIGRATIONS]
    applied = {name for (name,) in connection.execute("select name from _llm_migrations")}
    return (
        _llm_version() == _LLM_VERSION
        and (len(known), known[-1]) == _MIGRATIONS
        and applied == set(known)
        and all(
            columns == tuple(row[0] for row in connection.execute(_COLUMNS_OF, (table,)))
            for table, columns in _COLUMNS.items()
        )
    )


def _llm_version() -> list[str]:
    try:
        return importlib.metadata.version("llm").split(".")[:2]
    except importlib.metadata.PackageNotFoundError:  # vendored
        return []


_COLUMNS_OF = "select name from pragma_table_info(?) order by cid"


class LlmRows:
    """Writes messages, turns and threads to llm's tables, in the transaction that is open.

    log: writes what is rare.
    """

    def __init__(self, connection: sqlite3.Connection, log: LogStore) -> None:
        self._execute = connection.execute
        self._log = log
        self._tool_hashes: dict[bytes, str] = {}

    def ensure_message(self, message: Message, parent: str | None) -> tuple[str, bool]:
        """Store a message unless it is there; return its hash, and whether it was new."""
        hash = _message_hash(message, parent)
        metadata = message.provider_metadata
        row = hash, parent, message.role, json.dumps(metadata) if metadata else None
        is_new = self._execute(_INSERT_MESSAGE, row).rowcount > 0
        if is_new:
            for position, part in enumerate(message.parts):
                self._insert_part(hash, position, part)
        return hash, is_new

    def _insert_part(self, hash: str, position: int, part: Part) -> None:
        if type(part) is not TextPart and logs._attachments_of(part):
            self._log._write_part(hash, position, _rendered_without_content(part), {})
            return
        payload: dict[str, Any] = dict(part.to_dict())
        kind = payload.pop("type")
        text = payload.pop("text", None) if kind in ("text", "reasoning") else None
        encoded = json.dumps(payload) if payload else None
        self._execute(_INSERT_PART, (hash, position, kind, payload.get("name"), text, encoded))

    def insert_turn(
        self, record: Record, thread_id: str, parent: str | None, tip: str | None, are_new: bool
    ) -> bool:
        """Write a turn whose messages are stored; return False if LogStore has to do it.

        are_new: whether this transaction stored the last message of the request and the reply.
        """
        prompt, reply = record.prompt, record._messages_now()
        schema_id = schema = None
        if prompt.schema:
            schema_id, schema = make_schema_id(prompt.schema)
        row = (
            record.id, thread_id, parent, tip, record.model.model_id, record.resolved_model,
            _json({name: v for name, v in prompt.options.items() if v is not None}), schema_id,
            record.input_tokens, record.output_tokens, _json(record.token_details),
            record.duration_ms(), record.datetime_utc(), _condensed(record, reply),
        )  # fmt: skip
        if not _PLAIN.issuperset(map(type, row)) or any(map(_has_instance, prompt.tools)):
            return False
        if self._execute(_INSERT_TURN, row).rowcount == 0:
            return False  # it was there
        if schema is not None:
            self._execute(_INSERT_SCHEMA, (schema_id, schema))
        for tool in prompt.tools:
            self._execute(_INSERT_TURN_TOOL, (record.id, self._tool_id(tool), None))
        self._index(record.id, prompt.messages, reply, are_new)
        return True

    def _tool_id(self, tool: llm.Tool) -> int:
        """Store a tool unless it is there; agents send the same twenty with every request."""
        facts = tool.name, tool.description, tool.input_schema, tool.plugin
        fingerprint = hashlib.sha256(marshal.dumps(facts, 2)).digest()
        hash = self._tool_hashes.get(fingerprint)  # two JSON encodings of ten kilobytes saved
        if hash is None:
            if len(self._tool_hashes) == MAX_TOOL_HASHES:
                self._tool_hashes.clear()
            hash = self._tool_hashes[fingerprint] = tool.hash()
        row = self._execute("select id from tools where hash = ?", (hash,)).fetchone()
        return int(row[0] if row else ensure_tool(self._log.db, tool))

    def _index(
        self, turn_id: str, messages: Sequence[Message], reply: Sequence[Message], are_new: bool
    ) -> None:
        if not are_new or len(reply) > 1:
            # A message that llm stored may refer to a fragment, which is not indexed.
            self._execute(logs.TURN_SEARCH_INSERT_SQL, {"turn_id": turn_id})
            return
        asked = _text(messages[-1]) if messages and messages[-1].role == "user" else ""
        said = _text(reply[0]) if reply and reply[0].role == "assistant" else ""
        if asked or said:
            self._execute(_INSERT_SEARCH, (turn_id, asked, said))

    def insert_thread(self, id: str, name: str, tip: str | None, forked_from: str | None) -> None:
        """Create a thread."""
        self._execute(_INSERT_THREAD, (id, name, tip, forked_from, str(datetime.now(UTC))))


def _message_hash(message: Message, parent: str | None) -> str:
    """llm's `message_hash`; what is nearly always hashed takes a fifth of the time."""
    if any(one.content for one in find_attachments(message)):
        return _hash_with_attachments(message, parent)
    if len(message.parts) != 1 or message.provider_metadata:
        return message_hash(message, parent)
    (part,) = message.parts
    if type(part) is not TextPart or part.provider_metadata or type(part.text) is not str:
        return message_hash(message, parent)
    text, role = encode_basestring(part.text), encode_basestring(message.role)
    before = "null" if parent is None else encode_basestring(parent)
    canonical = (
        f'{{"message":{{"parts":[{{"text":{text},"type":"text"}}],"role":{role}}},'
        f'"parent":{before}}}'
    )
    digest = hashlib.blake2b(canonical.encode(), digest_size=logs._DIGEST_SIZE).hexdigest()
    return f"{logs.HASH_PREFIX}{digest}"


def _hash_with_attachments(message: Message, parent: str | None) -> str:
    """llm's `message_hash` without its base64 of each content, which takes no part: 10 ms for 5 MB.

    llm renders a message as a dict, and then puts the hash of each attachment in its place.
    """
    rendered: Any = map_attachments(message, lambda one: llm.Attachment(one.type)).to_dict()
    for part, part_dict in zip(message.parts, rendered["parts"], strict=True):
        if attachment := getattr(part, "attachment", None):
            part_dict["attachment"] = logs._canonical_attachment(attachment)
        if attachments := getattr(part, "attachments", None):
            part_dict["attachments"] = [*map(logs._canonical_attachment, attachments)]
    return str(logs.content_hash({"parent": parent, "message": rendered}))


def _rendered_without_content(part: Part) -> Part:
    """Return a part that llm renders without base64 of its content: 7 ms for 5 MB.

    LogStore renders it as a dict, and then puts references in the place of attachments.
    """
    (bare,) = map_attachments(Message("", [part]), lambda one: llm.Attachment(one.type)).parts
    other: Any = copy(part)
    other.to_dict = bare.to_dict
    return other  # type: ignore[no-any-return]


def _text(message: Message) -> str:
    return "".join(part.text for part in message.parts if isinstance(part, TextPart))


def _json(value: dict[str, Any] | None) -> str | None:
    return json.dumps(value) if value else None


def _has_instance(tool: Any) -> bool:
    return type(tool) is not llm.Tool or tool.implementation is not None


# ---- the provider's raw response


def _condensed(record: Record, reply: Sequence[Message]) -> str | None:
    """llm's `condense_payload`: texts that are stored elsewhere are replaced by references.

    llm compiles a regular expression of the texts for every turn, a millisecond per kilobyte.
    """
    payload = record.response_json
    if payload is None:
        return None
    prompt = record.prompt
    tools = [(tool.name, tool.description) for tool in prompt.tools]
    known = logs._payload_replacements(reply, tools, prompt.schema)
    encoded = json.dumps(payload)
    are_texts = all(isinstance(value, str) for value in known.values())
    if not are_texts or any(marker in encoded for marker in _MARKERS):
        return logs.condense_payload(payload, reply, tools, schema=prompt.schema)
    keys = {text: key for key, text in reversed(known.items())}  # of equal texts, the first one's
    found = {text: key for text, key in keys.items() if json.dumps(text)[1:-1] in encoded}
    if found or encoded.count("{") + encoded.count("[") > MAX_SURE_LEVELS:
        return json.dumps(_with_references(payload, found))  # or RecursionError, as reading it
    return encoded


def _with_references(value: Any, keys: dict[str, str]) -> Any:
    match value:
        case dict():
            return {name: _with_references(member, keys) for name, member in value.items()}
        case list():
            return [_with_references(item, keys) for item in value]
        case str():
            pieces = _pieces(value, keys)
            if len(pieces) > 1:
                return {"$r": pieces}
            return pieces[0] if pieces else value
    return value


def _pieces(text: str, keys: dict[str, str]) -> list[Any]:
    """Split a text at what is known, from left to right, the longest first."""
    places = [(at, -len(part), part) for part in keys if (at := text.find(part)) >= 0]
    heapify(places)
    pieces: list[Any] = []
    start = 0
    while places:
        at, _, part = heappop(places)
        if at >= start:
            pieces += [text[start:at]] if at > start else []
            pieces.append({"$": keys[part]})
            start = at + len(part)
        if (at := text.find(part, start)) >= 0:
            heappush(places, (at, -len(part), part))
    return pieces + [text[start:]] if start < len(text) else pieces
