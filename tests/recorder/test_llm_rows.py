"""Our own statements write what LogStore writes, byte for byte; LogStore stays the measure."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import llm
import pytest
import sqlite_utils
from hypothesis import example, given, settings
from hypothesis import strategies as st
from llm import logs, migrations
from llm.logs import LogStore, message_hash
from llm.parts import (
    AttachmentPart,
    Message,
    Part,
    ReasoningPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)

from llmproxy.recorder import llm_rows
from llmproxy.recorder.exchange import Turn
from llmproxy.recorder.llm_turns import TurnLog, TurnRecord
from tests import strategies

STARTED = datetime(2026, 11, 27, 8, 30, 0, 123_456, tzinfo=UTC)
LONG = "a text that is long enough for llm to store it once, and refer to it: 64 characters"
# When it was written; all else must be the same.
UNSTABLE = {"threads": {"datetime_utc"}, "_llm_migrations": {"applied_at"}}

metadata = st.one_of(st.none(), strategies.json_objects, st.just({"signature": LONG}))
long_texts = st.one_of(
    strategies.texts(), st.just(LONG), st.just(LONG + " and more"), st.just(f"{LONG} {LONG}")
)


def attachments() -> st.SearchStrategy[llm.Attachment]:
    return st.one_of(
        st.builds(llm.Attachment, type=st.just("image/png"), content=st.binary(min_size=1)),
        st.just(llm.Attachment(type="image/*", url="https://example.com/a.png")),
    )


def parts() -> st.SearchStrategy[Part]:
    ids = st.one_of(st.none(), strategies.words)
    return st.one_of(
        st.builds(TextPart, long_texts, metadata),
        st.builds(ReasoningPart, long_texts, st.booleans(), metadata),
        st.builds(
            ToolCallPart, strategies.words, strategies.json_objects, ids, st.booleans(), metadata
        ),
        st.builds(
            ToolResultPart,
            strategies.words,
            long_texts,
            ids,
            st.booleans(),
            st.lists(attachments(), max_size=2),
            st.one_of(st.none(), strategies.texts()),
            metadata,
        ),
        st.builds(AttachmentPart, attachments(), metadata),
    )


def messages(*roles: str) -> st.SearchStrategy[Message]:
    single = st.lists(st.builds(TextPart, long_texts), min_size=1, max_size=1)
    return st.builds(
        Message, st.sampled_from(roles), st.one_of(single, st.lists(parts(), max_size=4)), metadata
    )


def raw_responses() -> st.SearchStrategy[Any]:
    said = st.one_of(long_texts, st.just(f"before {LONG}{LONG} after"), st.just({"$": "0.0.text"}))
    return st.one_of(
        st.none(),
        st.dictionaries(st.sampled_from(["a", "$", "$r", "$raw"]), said, max_size=2),
        st.fixed_dictionaries({"content": said, "usage": strategies.json_objects}),
    )


def turns() -> st.SearchStrategy[Turn]:
    counts = st.one_of(st.none(), st.integers(0, 2**40))
    schemas = st.one_of(st.none(), st.just({"type": "object", "properties": {"a": {}}}))
    tools = st.one_of(strategies.tools(), st.just(llm.Tool("lookup", LONG, plugin="p")))
    return st.builds(
        Turn,
        id=st.sampled_from(["01a", "01b", "01c"]),
        thread_id=st.sampled_from(["01x", "01y"]),
        model=strategies.words,
        resolved_model=st.one_of(st.none(), strategies.words),
        messages=st.lists(messages("system", "user", "assistant", "tool"), max_size=4),
        reply=st.one_of(
            st.lists(messages("assistant"), min_size=1, max_size=1),
            st.lists(messages("assistant", "tool"), max_size=3),
        ),
        started=st.just(STARTED),
        duration_ms=counts,
        options=st.one_of(st.none(), strategies.json_objects),
        tools=st.lists(tools, max_size=3).map(tuple),
        schema=schemas,
        usage=st.builds(llm.Usage, counts, counts, st.one_of(st.none(), strategies.json_objects)),
        response_json=raw_responses(),
    )


@pytest.fixture(scope="module")
def empty() -> Iterator[sqlite3.Connection]:
    """llm's tables, copied for each example, since llm takes a tenth of a second to make them."""
    with closing(sqlite3.connect(":memory:")) as connection:
        LogStore(sqlite_utils.Database(connection))
        yield connection


def copy(empty: sqlite3.Connection) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    empty.backup(connection)
    return connection


def content(connection: sqlite3.Connection) -> dict[str, list[Any]]:
    """All rows of all tables, with their rowids, and the search index's own."""
    tables = connection.execute("select name from sqlite_master where type = 'table'").fetchall()
    rows = {}
    for (table,) in tables:
        names = connection.execute("select name from pragma_table_info(?)", (table,)).fetchall()
        columns = [f'"{n}", typeof("{n}")' for (n,) in names if n not in UNSTABLE.get(table, ())]
        rows[table] = connection.execute(f"select {', '.join(columns)} from {table}").fetchall()
    return rows


def by_us(connection: sqlite3.Connection, turns: Sequence[Turn]) -> TurnLog:
    log = TurnLog(connection)
    for turn in turns:
        connection.execute("begin")
        record = TurnRecord(turn, log.seen)
        log.log_turn(record, turn.thread_id, is_finished=True, forked_from=None)
        connection.execute("commit")
    return log


def by_llm(connection: sqlite3.Connection, turns: Sequence[Turn]) -> None:
    log = LogStore(sqlite_utils.Database(connection))
    for turn in turns:
        record: Any = TurnRecord(turn, {})
        log.ensure_thread(turn.thread_id, record.thread_name)
        log.log(record, turn.thread_id)


def turn(reply: Sequence[Message] = (llm.assistant("HI"),), **fields: Any) -> Turn:
    asked = fields.pop("messages", [llm.user("hi")])
    return Turn("01a", "01x", "m", asked, list(reply), STARTED, 5, **fields)


@settings(max_examples=60, deadline=None)
@given(st.lists(turns(), min_size=1, max_size=3))
@example([turn(response_json={"content": LONG}, reply=[llm.assistant(LONG)])])
@example([turn(response_json={"a": [f"{LONG}\n{LONG}x"]}, reply=[llm.assistant(LONG, "x" * 64)])])
@example([turn(messages=[llm.user("a\0b", "c")]), turn(messages=[llm.user("a\0b", "c")])])
@example([turn(usage=llm.Usage(1, 2, {"cached": 3}), resolved_model="m-2026")])
@example([turn(messages=[], reply=[])])
def test_our_rows_are_those_of_llm(empty, turns):
    with closing(copy(empty)) as ours, closing(copy(empty)) as theirs:
        log = by_us(ours, turns)
        by_llm(theirs, turns)
        assert content(ours) == content(theirs)
        assert log.verify() == []


@given(messages("user", "assistant", "röle\n"), st.one_of(st.none(), st.just("b2:00ff")))
def test_a_messages_hash_is_llms(message, parent):
    assert llm_rows._message_hash(message, parent) == message_hash(message, parent)


def test_the_usual_turn_is_written_without_llms_code(empty, monkeypatch):
    def not_needed(*args: Any) -> None:
        raise AssertionError("this costs a millisecond")

    for name in ("log", "_ensure_message", "_write_part"):
        monkeypatch.setattr(LogStore, name, not_needed)
    monkeypatch.setattr(logs, "condense_payload", not_needed)
    reply = [llm.assistant(ReasoningPart(LONG), LONG, ToolCallPart("f", {"a": 1}, "1"))]
    tools = (llm.Tool("f", "g", {"type": "object"}),)
    with closing(copy(empty)) as ours:
        by_us(ours, [turn(reply, tools=tools, response_json={"content": LONG})])


def other_column(connection):
    connection.execute("alter table turns add column cost real")


def newer_file(connection):
    connection.execute("insert into _llm_migrations (name) values ('m999_later')")


@pytest.mark.parametrize("change", [other_column, newer_file])
def test_other_tables_are_left_to_llm(empty, change):
    with closing(copy(empty)) as connection:
        assert llm_rows.has_known_tables(connection)
        change(connection)
        assert not llm_rows.has_known_tables(connection)
        log = TurnLog(connection)
        log.log_turn(TurnRecord(turn(), {}), "01x", is_finished=True, forked_from="01w")
        threads = connection.execute("select id, forked_from, tip_message_hash from threads")
        (tip,) = connection.execute("select tip_message_hash from turns").fetchone()
        assert threads.fetchall() == [("01x", "01w", tip)]


def test_a_newer_llm_is_left_to_itself(empty, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("importlib.metadata.version", lambda name: "0.37a0")
        assert not llm_rows.has_known_tables(empty)
    assert llm_rows.has_known_tables(empty)

    def m999_later(db):
        raise AssertionError

    monkeypatch.setattr(migrations, "MIGRATIONS", [*migrations.MIGRATIONS, m999_later])
    assert not llm_rows.has_known_tables(empty)
