"""Read exchanges from logs.db completely; listing.py lists them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import llm
import sqlite_utils
from llm.logs import LogStore, UncondenseError  # type: ignore[attr-defined]  # it raises it
from llm.migrations import MIGRATIONS
from llm.parts import Message

from ..core.errors import NotFound
from . import timeline
from .damage import COUNT, EPOCH, OPTIONAL_TEXT, TEXT, UNREADABLE, Damage, Kind, utc
from .database import Unusable, translated
from .exchange import Exchange, RawRequest, Turn
from .ids import find_exchanges
from .listing import LogListing, open_for_reading
from .llm_turns import find_messages, message_chain, read_chain, read_messages
from .request_store import restore
from .summary import ExchangeSummary


class LogReader(LogListing):
    """Reads a logs.db; may be used by one thread at a time.

    asks_models: let llm look up a model, and thus load its plugins, if that is needed to
        restore a provider's raw response; otherwise such a response is left out.

    writes_nothing: as `LogListing` takes it.

    Raises:
        Unusable: there is no file, or it is not a database, or a newer llmproxy's.
    """

    def __init__(
        self, path: Path, *, asks_models: bool = True, writes_nothing: bool = False
    ) -> None:
        self._asks_models = asks_models
        super().__init__(path, writes_nothing=writes_nothing)

    def _open(self) -> None:
        super()._open()
        self._log = ReadOnlyLog(self._conn)

    def exchange(self, id: str) -> Exchange:
        """Read one exchange completely.

        id: in any form, as `resolve` takes it. Its turn is None if llm's tables have neither
            a turn nor messages of it. What can't be read has its default, and is named in
            `damage`; of a damaged body or message, the rest is returned.

        Raises:
            NotFound: there is no exchange with this id.
            Unusable: the file can't be read any more.
        """
        return self._exchange(self._row(id))[0]

    def response(self, id: str) -> tuple[Exchange, int]:
        """Read one exchange with its response, but only the end of its request.

        The turn's messages are those after the last reply before it; the number returned
        is that of the messages before these. The request's body is None. Much faster if
        conversations are long.

        Raises:
            NotFound: there is no exchange with this id.
            Unusable: the file can't be read any more.
        """
        return self._exchange(self._row(id), is_whole=False)

    def _row(self, id: str) -> sqlite3.Row:
        (found,) = find_exchanges(self.rows, [id])
        for row in self.rows("select * from proxy_exchanges where id = :id", {"id": found}):
            return row
        raise NotFound(f"the log has no exchange {id}")  # pruned meanwhile

    def _exchange(self, row: sqlite3.Row, *, is_whole: bool = True) -> tuple[Exchange, int]:
        (entry,) = self.summaries([row])
        damage = Damage(entry.damage)
        with translated(self.path):
            turn, earlier = self._turn(row, entry, damage, is_whole)
            has_reply = turn is not None and not {"turn", "reply"}.intersection(damage.names)
            request = RawRequest(
                damage.read("headers", lambda: headers_of(row["headers"]), {}),
                damage.value("query", row["query"], TEXT),
                self._body(row["body"], damage) if is_whole else None,
            )
            exchange = Exchange(
                **{field.name: getattr(entry, field.name) for field in fields(ExchangeSummary)}
                | {"damage": ()},
                request=request,
                turn=turn,
                replay_key=damage.value("replay_key", row["replay_key"], OPTIONAL_TEXT),
                events=events_of(row, turn.reply, damage) if turn and has_reply else [],
            )
        return replace(exchange, damage=damage.names), earlier

    def _body(self, text: str, damage: Damage) -> Any:
        """Restore a request's body; if it is damaged, as much of it as can be."""
        try:
            if type(text) is str:
                return restore(text, self._blob)
        except UNREADABLE:
            pass
        damage.add("body")
        with suppress(*UNREADABLE):
            return restore(text, self._blob_or_note)
        return text if isinstance(text, str) else None

    def _blob(self, hash: str) -> str:
        row = self._conn.execute(
            "select text from proxy_contents where hash = ?", (hash,)
        ).fetchone()
        if row is None or type(row["text"]) is not str:
            raise KeyError(hash)
        return row["text"]

    def _blob_or_note(self, hash: str) -> str:
        with suppress(*UNREADABLE):
            text = self._blob(hash)
            json.loads(text)
            return text
        return json.dumps([f"({hash} is missing)"])  # a list, since it may be one's items

    def _turn(
        self, row: sqlite3.Row, entry: ExchangeSummary, damage: Damage, is_whole: bool
    ) -> tuple[Turn | None, int]:
        turn = self._conn.execute(
            "select turns.*, schemas.content as schema_json from turns"
            " left join schemas on schemas.id = turns.schema_id where turns.id = ?",
            (row["id"],),
        ).fetchone()
        tip = row["message_hash"] if turn is None else turn["parent_message_hash"]
        messages, earlier = self._request_messages(tip, damage, is_whole)
        if turn is not None:
            return self._turn_of(turn, entry, messages, damage), earlier
        if tip is None:
            return None, 0
        return Turn(
            id=entry.id,
            thread_id=entry.id,
            model=entry.model_used or "",
            messages=messages,
            reply=[],
            started=entry.received,
            duration_ms=None if entry.duration_ms is None else int(entry.duration_ms),
        ), earlier

    def _request_messages(
        self, tip: str | None, damage: Damage, is_whole: bool
    ) -> tuple[list[Message], int]:
        """Return the messages up to `tip`, or only the last of them, and how many precede these."""
        chain, is_complete = message_chain(self._log, tip)
        replies = [count for count, link in enumerate(chain, 1) if link.role == "assistant"]
        earlier = 0 if is_whole or not replies else replies[-1]
        messages, are_sound = read_messages(self._log, [link.hash for link in chain[earlier:]])
        if not are_sound or not is_complete:
            damage.add("messages")
        return messages, earlier

    def _turn_of(
        self, row: sqlite3.Row, entry: ExchangeSummary, messages: list[Message], damage: Damage
    ) -> Turn:
        reply = read_chain(self._log, row["tip_message_hash"], after=row["parent_message_hash"])
        if not reply.is_whole:
            damage.add("reply")
        response_json = None
        is_readable = self._asks_models or '"m.' not in str(row["response_json"])
        if is_readable and not {"messages", "reply"}.intersection(damage.names):
            with suppress(UncondenseError):
                response_json = damage.read(
                    "turns.response_json", lambda: self._log.turn_response_json(row["id"]), None
                )
        facts = turn_facts(row, entry.received, damage)
        if not entry.is_timed:
            facts["duration_ms"] = None  # older versions wrote 0
        return Turn(
            id=row["id"],
            messages=messages,
            reply=reply.messages,
            tools=damage.read("tools", lambda: read_tools(self._conn, row["id"]), ()),
            response_json=response_json,
            **facts,
        )

    def messages(self, hashes: Sequence[str]) -> dict[str, Message]:
        """Read messages by their hashes; missing ones are left out, damaged ones have only text.

        Raises:
            Unusable: the file can't be read any more.
        """
        with translated(self.path):
            return find_messages(self._log, hashes)[0]


def turn_facts(row: sqlite3.Row, received: datetime, damage: Damage) -> dict[str, Any]:
    """Return the fields of a turn that are columns of llm's `turns`, and its schema.

    received: stands for the time at which it started, if that can't be read.
    """

    def value(name: str, kind: Kind) -> Any:
        return damage.value(f"turns.{name}", row[name], kind)

    def parsed(name: str) -> Any:
        text = row[name]
        return (
            None if text is None else damage.read(f"turns.{name}", lambda: parse_object(text), None)
        )

    return {
        "thread_id": value("thread_id", TEXT),
        "model": value("model", TEXT),
        "started": damage.read("turns.datetime_utc", lambda: utc(row["datetime_utc"]), received),
        "duration_ms": value("duration_ms", COUNT),
        "resolved_model": value("resolved_model", OPTIONAL_TEXT),
        "options": parsed("options_json"),
        "schema": parsed("schema_json"),
        "usage": llm.Usage(
            value("input_tokens", COUNT), value("output_tokens", COUNT), parsed("token_details")
        ),
    }


def run_facts(row: sqlite3.Row, damage: Damage) -> dict[str, Any]:
    """Return the times and the settings of a benchmark's run, from its columns."""
    return {
        "began": damage.read("began", lambda: utc(row["began"]), EPOCH),
        "ended": damage.read("ended", lambda: row["ended"] and utc(row["ended"]), None),
        "settings": damage.read("settings", lambda: parse_object(row["settings"]), {}),
    }


def read_tools(connection: sqlite3.Connection, turn_id: str) -> tuple[llm.Tool, ...]:
    """Read the tools of a turn.

    Raises:
        ValueError, TypeError: one of them is damaged or missing.
    """
    rows = connection.execute(
        "select name, description, input_schema, plugin from turn_tools"
        " left join tools on tools.id = tool_id where turn_id = ? order by turn_tools.rowid",
        (turn_id,),
    )
    return tuple(_tool(*row) for row in rows)


def _tool(name: Any, description: Any, schema: Any, plugin: Any) -> llm.Tool:
    texts = isinstance(name, str), isinstance(description, str | None)
    if not (all(texts) and isinstance(plugin, str | None)):
        raise TypeError("a tool was changed")
    return llm.Tool(name, description, parse_json(schema), plugin=plugin)


def events_of(
    row: sqlite3.Row, reply: Sequence[Message], damage: Damage
) -> list[timeline.TimedEvent]:
    """Decode the timeline of an exchange with this reply; no events if that can't be done."""
    if row["timeline"] is None:
        if row["event_count"] and row["thread_id"] is not None:
            damage.add("timeline")
        return []
    return damage.read("timeline", lambda: timeline.decode(parse_json(row["timeline"]), reply), [])


def parse_json(text: str) -> Any:
    """Parse a column of JSON.

    Raises:
        ValueError, TypeError: it has something else.
    """
    if type(text) is not str:
        raise ValueError("it is no text, or not UTF-8")
    return json.loads(text)


def parse_object(text: str) -> dict[str, Any]:
    """Parse a column that holds a JSON object.

    Raises:
        ValueError, TypeError: it has something else.
    """
    value = parse_json(text)
    if not isinstance(value, dict):
        raise TypeError("it is no JSON object")
    return value


def headers_of(text: str) -> dict[str, str]:
    """Parse the column `headers`.

    Raises:
        ValueError, TypeError: it has something else.
    """
    value = parse_object(text)
    if not all(isinstance(one, str) for one in value.values()):
        raise TypeError("they are no headers")
    return value


def check_llm(path: Path) -> None:
    """Check that a logs.db was not migrated by a newer llm, so that this one may write to it.

    Raises:
        Unusable: it was, or it is a newer llmproxy's, or not a database.
    """
    with translated(path):
        connection, _, _ = open_for_reading(path)
        with closing(connection):
            if not connection.execute("pragma table_info(_llm_migrations)").fetchall():
                return
            applied = {
                row["name"] for row in connection.execute("select name from _llm_migrations")
            }
    unknown = sorted(applied - {migration.__name__ for migration in MIGRATIONS})
    if unknown:
        raise Unusable(
            f"{path} was written by a newer llm (this one does not know {unknown[0]}): upgrade llm"
        )


class ReadOnlyLog(LogStore):
    """llm's LogStore without its migrations, which would write."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.db = sqlite_utils.Database(connection, execute_plugins=False)
