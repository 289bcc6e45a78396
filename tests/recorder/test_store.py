from __future__ import annotations

import json
import os
import socket
import sqlite3
import stat
import subprocess
import sys

import llm
import pytest
import sqlite_utils
from llm.logs import LogStore, log_rows
from llm.parts import (
    Message,
    ReasoningPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)

from llmproxy import hub
from llmproxy.recorder.store import Locked, Store, Unusable, logs_on

PNG = b"\x89PNG\r\n\x1a\n" + bytes(32)


@pytest.fixture
def store(path):
    store = Store(path)
    yield store
    store.close()


@pytest.fixture
def llm_log(path):
    """llm's own view of the database, for reading back."""
    with sqlite_utils.Database(path) as database:
        yield LogStore(database)


def rows(path, sql, *values):
    with sqlite3.connect(path) as connection:
        return connection.execute(sql, values).fetchall()


def test_a_turn_is_shown_by_llm_logs(store, make_turn, run_llm):
    store.write(
        [
            make_turn(
                "say hello in capitals",
                "HELLO",
                messages=[llm.system("be brief"), llm.user("say hello in capitals")],
                resolved_model="demo-2026",
                options={"temperature": 0.5},
                usage=llm.Usage(input=7, output=2, details={"cached": 4}),
                response_json={"id": "r1", "content": "HELLO"},
            )
        ]
    )
    (row,) = json.loads(run_llm("logs", "list", "--json"))
    assert {key: row[key] for key in EXPECTED_ROW} == EXPECTED_ROW
    text = run_llm("logs", "-n", "3")
    assert "say hello in capitals" in text and "HELLO" in text
    assert [r["id"] for r in json.loads(run_llm("logs", "-q", "capitals", "--json"))] == [row["id"]]


EXPECTED_ROW = {
    "model": "demo",
    "resolved_model": "demo-2026",
    "prompt": "say hello in capitals",
    "system": "be brief",
    "response": "HELLO",
    "options_json": {"temperature": 0.5},
    "response_json": {"id": "r1", "content": "HELLO"},
    "input_tokens": 7,
    "output_tokens": 2,
    "token_details": '{"cached": 4}',
    "duration_ms": 12,
    "datetime_utc": "2026-11-21T22:47:01.000500+00:00",
    "conversation_name": "say hello in capitals",
    "conversation_model": "demo",
}


def test_a_tool_loop_with_everything_reads_back_equal(store, path, make_turn, llm_log, run_llm):
    schema = {"type": "object", "properties": {"colour": {"type": "string"}}}
    tool = llm.Tool("look", "Look at a picture" * 8, {"type": "object", "properties": {}})
    asked = [
        llm.system("use tools"),
        llm.user("what colour?", hub.attachment_from_url("https://example.invalid/cat.png")),
    ]
    call = Message(
        "assistant",
        [
            ReasoningPart("hmm", provider_metadata={"anthropic": {"signature": "s" * 80}}),
            TextPart("Looking."),
            ToolCallPart("look", {"z": 1, "a": [1.0, True, None]}, "call_1"),
        ],
    )
    result = Message(
        "tool",
        [
            ToolResultPart(
                "look", "red", "call_1", attachments=[llm.Attachment("image/png", content=PNG)]
            )
        ],
    )
    answer = [
        Message("assistant", [ReasoningPart("", redacted=True), TextPart('{"colour": "red"}')])
    ]
    first = make_turn(messages=asked, reply=[call], tools=(tool,), schema=schema)
    second = make_turn(
        messages=[*asked, call, result],
        reply=answer,
        thread_id=first.thread_id,
        tools=(tool,),
        schema=schema,
        response_json={"text": '{"colour": "red"}', "tool": tool.description},
    )
    assert store.write([first, second]) == 2

    assert llm_log.verify() == []
    whole = [message.to_dict() for message in [*asked, call, result, *answer]]
    assert [m.to_dict() for m in llm_log.thread_messages(first.thread_id)] == whole
    assert llm_log.turn_response_json(second.id) == second.response_json
    assert rows(path, "select count(*) from messages") == [(5,)]
    rows_shown = json.loads(run_llm("logs", "--json"))
    assert [row["tools"][0]["name"] for row in rows_shown] == ["look", "look"]
    assert rows_shown[0]["tool_calls"][0]["arguments"] == {"z": 1, "a": [1.0, True, None]}
    assert rows_shown[1]["tool_results"][0]["output"] == "red"
    assert rows_shown[1]["schema_json"] == schema
    assert list(rows_shown[0]["tool_calls"][0]["arguments"]) == ["z", "a"]  # B40: the model's order


def test_no_address_of_a_client_is_ever_asked(store, make_turn, monkeypatch):
    def no_network(*_):
        raise AssertionError("a socket was made")

    monkeypatch.setattr(socket, "socket", no_network)
    picture = hub.attachment_from_url("http://127.0.0.1:9/without-a-type")
    store.write([make_turn(messages=[llm.user("look", picture)])])


def test_a_turn_written_twice_is_there_once(store, path, make_turn):
    turn = make_turn("find me once", options={"seed": 1}, tools=(llm.Tool("t"),))
    tables = "messages", "parts", "turns", "threads", "turn_tools", "turn_search"
    store.write([turn])
    before = {table: rows(path, f"select * from {table} order by 1") for table in tables}
    store.write([turn, turn])
    after = {table: rows(path, f"select * from {table} order by 1") for table in tables}
    search = [row[1:] for row in after.pop("turn_search")]  # its number alone is new
    assert search == [row[1:] for row in before.pop("turn_search")]
    assert after == before


def test_an_empty_reply_keeps_its_prompt(store, make_turn, llm_log):
    store.write([make_turn("anyone?", reply=[])])
    (row,) = log_rows(llm_log)
    assert (row["prompt"], row["response"]) == ("anyone?", "")


@pytest.mark.parametrize("reply", [[], [llm.assistant("fine")]], ids=["empty", "text"])
def test_a_prompt_before_a_last_system_message_is_found(store, path, make_turn, llm_log, reply):
    """Claude Code's habit (C1, d6.18)."""
    messages = [llm.user("<reminder>", "rhubarb please"), llm.system("today is Monday")]
    turn = make_turn(messages=messages, reply=reply)
    store.write([turn])
    assert [row["id"] for row in log_rows(llm_log, query="rhubarb")] == [turn.id]
    assert rows(path, "select name from threads") == [("rhubarb please",)]


def test_a_last_system_message_after_a_tool_result_is_not_searched(store, path, make_turn):
    result = Message("tool", [ToolResultPart("t", "12", "call_1")])
    messages = [llm.user("rhubarb"), llm.assistant(ToolCallPart("t", {}, "call_1")), result]
    store.write([make_turn(messages=[*messages, llm.system("go on")])])
    assert rows(path, "select prompt, response from turn_search") == [("", "HELLO")]


@pytest.mark.parametrize("text", ["nul \0 in", "\u2028", "🌊" * 3, " " * 9, "x" * 2**20])
def test_odd_texts_read_back_as_written(store, make_turn, llm_log, text):
    turn = make_turn(text, text)
    store.write([turn])
    assert llm_log.thread_messages(turn.thread_id) == turn.messages + turn.reply
    assert llm_log.verify() == []


def test_a_bad_row_leaves_nothing_behind(store, path, make_turn):
    good, bad = make_turn("good"), make_turn("bad \ud800")
    with pytest.raises(UnicodeEncodeError):
        store.write([good, bad])
    assert rows(path, "select count(*) from turns") == [(0,)]
    assert store.write([good]) == 1


def test_a_payload_that_is_not_json_costs_only_its_odd_values(store, make_turn, llm_log):
    turn = make_turn(response_json={"id": "r1", "odd": {1}, "raw": b"\xff"}, options={"o": object})
    store.write([turn])
    assert llm_log.turn_response_json(turn.id) == {"id": "r1", "odd": "{1}", "raw": "b'\\xff'"}


def test_a_long_group_ends_with_a_short_lock(store, path, make_turn, monkeypatch):
    monkeypatch.setattr("llmproxy.recorder.store.LOCK_S", 0)
    assert store.write([make_turn(), make_turn()]) == 1
    assert rows(path, "select count(*) from turns") == [(1,)]


def test_a_new_file_is_for_its_owner_alone(tmp_path):
    path = tmp_path / "new" / "folder" / "logs.db"
    Store(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_mode_of_a_file_that_is_there_is_left(path):
    sqlite3.connect(path).close()
    path.chmod(0o644)
    Store(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_the_schema_is_llms_own(store, path, tmp_path):
    def schema(database):
        return rows(database, "select type, name, sql from sqlite_master order by name")

    with sqlite_utils.Database(tmp_path / "llms.db") as database:
        LogStore(database)
    assert schema(path) == schema(tmp_path / "llms.db")


OPEN = """
import pathlib, sys
from llmproxy.recorder.store import Locked, Store
sys.stdin.read()
while True:
    try:
        Store(pathlib.Path(sys.argv[1])).close()
        break
    except Locked:
        pass
"""


def test_processes_that_open_an_empty_file_at_once_all_succeed(path, llm_log):
    """d6.23: with llm's own migrations all but one fail."""
    started = [
        subprocess.Popen([sys.executable, "-c", OPEN, str(path)], stdin=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for process in started:
        process.stdin.close()
    assert [process.wait(20) for process in started] == [0, 0, 0, 0]
    assert llm_log.verify() == []


def test_a_lock_of_another_is_told(store, path, make_turn):
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Locked, match="database is locked"):
        store.write([make_turn()])
    with pytest.raises(Locked):
        Store(path)
    other.execute("ROLLBACK")
    other.close()
    assert store.write([make_turn()]) == 1


def not_sqlite(path):
    path.write_text("not a database, but long enough to have a header of its own " * 20)


def a_folder(path):
    path.mkdir()


def under_a_file(path):
    path.parent.rmdir()
    path.parent.write_text("")


@pytest.mark.parametrize("spoil", [not_sqlite, a_folder, under_a_file])
def test_what_is_no_database_is_unusable(path, spoil):
    spoil(path)
    with pytest.raises(Unusable, match="logs.db"):
        Store(path)


def test_a_database_that_turns_read_only_is_unusable(store, make_turn):
    store._conn.execute("PRAGMA query_only = on")
    with pytest.raises(Unusable, match="readonly"):
        store.write([make_turn()])


def test_a_full_disk_is_unusable_and_takes_none_of_a_group(store, path, make_turn):
    """d6.21: SQLite ends the transaction by itself."""
    (pages,) = store._conn.execute("PRAGMA page_count").fetchone()
    store._conn.execute(f"PRAGMA max_page_count = {pages + 8}")
    with pytest.raises(Unusable, match="full"):
        store.write([make_turn(), make_turn("x" * 2**20), make_turn()])
    assert rows(path, "select count(*) from turns") == [(0,)]
    assert rows(path, "select count(*) from messages") == [(0,)]


def test_a_file_that_is_gone_or_another_is_not_current(store, path, tmp_path):
    assert store.is_current()
    path.rename(tmp_path / "moved")
    assert not store.is_current()
    path.write_bytes(b"")
    assert not store.is_current()


def test_a_flush_leaves_no_rows_outside_the_file(store, path, make_turn):
    store.write([make_turn()])
    wal = path.with_name("logs.db-wal")
    assert wal.stat().st_size > 0
    store.flush()
    assert wal.stat().st_size == 0


def test_llm_logs_off_is_seen(run_llm, monkeypatch):
    assert logs_on()
    run_llm("logs", "off")
    assert not logs_on()
    monkeypatch.setenv("LLM_USER_PATH", os.devnull)
    assert logs_on()
