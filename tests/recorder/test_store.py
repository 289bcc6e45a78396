from __future__ import annotations

import json
import os
import socket
import sqlite3
import stat
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import llm
import pytest
import sqlite_utils
from llm.logs import LogStore, log_rows
from llm.models import _conversation_name
from llm.parts import (
    Message,
    ReasoningPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)

from llmproxy.core import attachments
from llmproxy.recorder.database import SCHEMA_VERSION, Locked, Unusable
from llmproxy.recorder.llm_turns import TurnRecord
from llmproxy.recorder.process_lock import ProcessLock
from llmproxy.recorder.request_store import restore
from llmproxy.recorder.store import Store, logs_on
from tests.log_fixtures import ended_as

PNG = b"\x89PNG\r\n\x1a\n" + bytes(32)


@pytest.fixture
def llm_log(path):
    """llm's own view of the database, for reading back."""
    with sqlite_utils.Database(path) as database:
        yield LogStore(database)


def rows(path, sql, *values):
    with sqlite3.connect(path) as connection:
        return connection.execute(sql, values).fetchall()


def test_a_turn_is_shown_by_llm_logs(store, make_exchange, run_llm):
    store.write(
        [
            make_exchange(
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


def test_a_tool_loop_with_everything_reads_back_equal(store, path, make_exchange, llm_log, run_llm):
    schema = {"type": "object", "properties": {"colour": {"type": "string"}}}
    tool = llm.Tool("look", "Look at a picture" * 8, {"type": "object", "properties": {}})
    asked = [
        llm.system("use tools"),
        llm.user(
            "what colour?", attachments.attachment_from_url("https://example.invalid/cat.png")
        ),
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
    first = make_exchange(messages=asked, reply=[call], tools=(tool,), schema=schema)
    second = make_exchange(
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
    assert llm_log.turn_response_json(second.id) == second.turn.response_json
    assert rows(path, "select count(*) from messages") == [(5,)]
    rows_shown = json.loads(run_llm("logs", "--json"))
    assert [row["tools"][0]["name"] for row in rows_shown] == ["look", "look"]
    assert rows_shown[0]["tool_calls"][0]["arguments"] == {"z": 1, "a": [1.0, True, None]}
    assert rows_shown[1]["tool_results"][0]["output"] == "red"
    assert rows_shown[1]["schema_json"] == schema
    assert list(rows_shown[0]["tool_calls"][0]["arguments"]) == ["z", "a"]  # B40: the model's order


def test_no_url_of_a_client_is_ever_requested(store, make_exchange, monkeypatch):
    def no_network(*_):
        raise AssertionError("a socket was made")

    monkeypatch.setattr(socket, "socket", no_network)
    picture = attachments.attachment_from_url("http://127.0.0.1:9/without-a-type")
    store.write([make_exchange(messages=[llm.user("look", picture)])])


def everything(path):
    tables = rows(path, "select name from sqlite_master where type = 'table'")
    return {table: rows(path, f"select * from {table} order by 1, 2") for (table,) in tables}


def test_writing_again_changes_nothing(store, path, make_exchange):
    exchange = make_exchange("find me once", options={"seed": 1}, tools=(llm.Tool("t"),))
    store.write([exchange])
    before = everything(path)
    store.write([exchange, exchange])
    other = Store(path)
    other.write([exchange])
    other.close()
    assert everything(path) == before


def test_an_exchange_is_written_when_it_begins_and_when_it_has_ended(store, path, make_begun):
    columns = "status, dialect, path, client, stream, model_asked, http_status, error, first_words"
    begun = make_begun("hello", query="beta=true")
    store.write([begun])
    request = "/v1/chat/completions", "tests", 1, "demo"
    assert rows(path, f"select {columns} from proxy_exchanges") == [
        ("running", "openai_chat", *request, None, None, "hello")
    ]
    store.write([ended_as(begun, "error", http_status=502, duration_ms=3.5, error="no model")])
    assert rows(path, f"select {columns} from proxy_exchanges") == [
        ("error", "openai_chat", *request, 502, "no model", "hello")
    ]
    assert rows(path, "select query, headers, duration_ms from proxy_exchanges") == [
        ("beta=true", '{"user-agent":"tests/1"}', 3.5)
    ]
    store.write([begun])
    assert rows(path, "select status from proxy_exchanges") == [("error",)]


def test_an_end_without_a_written_beginning_is_complete(store, path, make_begun, make_exchange):
    begun = make_begun()
    store.write([begun, ended_as(begun, "cancelled", http_status=None, duration_ms=1.0)])
    store.write([make_exchange("only ended")])
    assert rows(path, "select status, body is null from proxy_exchanges order by id") == [
        ("cancelled", 0),
        ("ok", 0),
    ]


def test_a_failure_without_output_keeps_its_messages_and_is_not_a_turn(
    store, path, make_exchange, llm_log
):
    exchange = make_exchange("what happened?", reply=[], status="error", error="down")
    store.write([exchange])
    ((tip, thread),) = rows(path, "select message_hash, thread_id from proxy_exchanges")
    assert llm_log.load_chain(tip) == exchange.turn.messages
    assert thread is None
    assert rows(path, "select count(*) from turns") == [(0,)]
    assert rows(path, "select count(*) from threads") == [(0,)]


def test_only_a_finished_turn_becomes_its_threads_tip(store, make_exchange, llm_log):
    first = make_exchange("one", "ONE")
    history = first.turn.messages + first.turn.reply
    asked = {"messages": [*history, llm.user("two")], "thread_id": first.thread_id}
    cut = make_exchange("two", "TW", status="cancelled", **asked)
    store.write([first, cut])
    assert llm_log.thread_messages(first.thread_id) == history
    again = make_exchange("two", "TWO", **asked)
    store.write([again])
    assert llm_log.thread_messages(first.thread_id) == again.turn.messages + again.turn.reply


def test_a_thread_that_begins_with_a_cut_turn_can_be_continued(store, make_exchange, llm_log):
    cut = make_exchange("two", "TW", status="cancelled")
    store.write([cut])
    assert llm_log.thread_messages(cut.thread_id) == cut.turn.messages + cut.turn.reply


def conversation(make_exchange, turns):
    """A client that sends the whole history again each time, with a tool loop in it."""
    history = [llm.system("be brief")]
    for number in range(turns):
        history = [*history, llm.user(f"question {number}")]
        if number % 3 == 1:
            call = Message("assistant", [ToolCallPart("look", {"n": number}, f"c{number}")])
            result = Message("tool", [ToolResultPart("look", "seen", f"c{number}")])
            history = [*history, call, result]
        answer = [Message("assistant", [ReasoningPart("hm"), TextPart(f"answer {number}")])]
        yield make_exchange(messages=history, reply=answer, thread_id="01jd0")
        history = [*history, *answer]


def test_the_name_of_a_thread_is_llms_however_long_the_prompt(make_exchange):
    for text in (
        "short",
        "wörd  " * 50_000,
        " " * 9_000 + "late",
        "x" * 4_096,
        "x" * 90 + " " * 5_000,
    ):
        record = TurnRecord(make_exchange(messages=[llm.user(text)]).turn, {})
        assert record.thread_name == _conversation_name(text)


def test_the_rows_are_those_of_llms_own_store(store, path, tmp_path, make_exchange):
    """Known messages are not looked up, but all rows are written."""
    exchanges = list(conversation(make_exchange, 8))
    for exchange in exchanges:
        store.write([exchange])
    other = tmp_path / "llms.db"
    with sqlite_utils.Database(other) as database:
        log = LogStore(database)
        for exchange in exchanges:
            record: Any = TurnRecord(exchange.turn, {})
            record.conversation = SimpleNamespace(id=exchange.turn.thread_id)
            log.log(record)
    for table in ("messages", "parts", "turns", "turn_search", "turn_tools"):
        assert rows(path, f"select * from {table}") == rows(other, f"select * from {table}")
    threads = "select id, name, tip_message_hash, forked_from from threads"
    assert rows(path, threads) == rows(other, threads)


def test_a_known_history_is_not_looked_up(store, make_exchange):
    def statements(exchange):
        seen = []
        store._conn.set_trace_callback(seen.append)
        store.write([exchange])
        store._conn.set_trace_callback(None)
        return len(seen)

    *_, long, longer = conversation(make_exchange, 60)
    (short,) = conversation(make_exchange, 1)
    store.write([long])
    assert statements(longer) < statements(short) + 40  # three or four of 160 messages are new


def test_a_history_deleted_by_hand_is_written_again(store, path, make_exchange, llm_log):
    *_, before, after = conversation(make_exchange, 5)
    store.write([before])
    with sqlite3.connect(path) as connection:
        connection.execute("delete from parts")
        connection.execute("delete from messages")
    store.write([after])
    assert llm_log.load_chain(llm_log.thread_tip("01jd0")) == after.turn.messages + after.turn.reply


def test_content_rolled_back_does_not_count_as_stored(store, path, make_exchange, llm_log):
    """d6.21: a chain that ends in missing rows can't be read."""
    first, second = conversation(make_exchange, 2)
    bad = make_exchange("bad \ud800")
    with pytest.raises(UnicodeEncodeError):
        store.write([first, bad])
    store.write([second])
    assert llm_log.verify() == []
    assert llm_log.thread_messages("01jd0") == second.turn.messages + second.turn.reply
    ((body,),) = rows(path, "select body from proxy_exchanges")
    assert restore(body, dict(rows(path, "select * from proxy_contents")).__getitem__)


def test_content_pruned_meanwhile_is_written_again(store, path, make_exchange):
    text = "a long text " * 100
    first, second = make_exchange(text), make_exchange(text)
    store.write([first])
    with sqlite3.connect(path) as connection:
        connection.execute("delete from proxy_contents")
        connection.execute("update proxy_meta set value = value + 1 where name = 'prunes'")
    with pytest.raises(Locked):
        store.write([second])
    store.write([second])
    bodies = rows(path, "select body from proxy_exchanges where id = ?", second.id)
    contents = dict(rows(path, "select * from proxy_contents"))
    assert restore(bodies[0][0], contents.__getitem__) == second.request.body


def test_no_secret_reaches_the_file(store, path, make_exchange):
    key = "sk-abcdefgh12345678"
    request = {
        "headers": [("authorization", f"Bearer {key}"), ("cookie", f"session={key}")],
        "query": f"key={key}",
        "body": {"model": "m", "messages": [], "mcp_servers": [{"authorization_token": key}]},
    }
    exchange = make_exchange("hi", reply=[], status="error", error=f"bad: {key}", request=request)
    store.write([exchange])
    store.flush()
    assert key.encode() not in path.read_bytes()


def test_names_that_can_not_be_stored_are_repaired(store, path, make_begun):
    store.write([make_begun(model="m\ud800", client="c\udfff")])
    assert rows(path, "select model_asked, client from proxy_exchanges") == [("m?", "c?")]


def test_what_a_killed_process_left_running_is_interrupted(path, make_begun):
    """Exchanges of another process that is alive are not touched."""
    here, there = ProcessLock(path, "here"), ProcessLock(path, "there")
    neighbour = Store(path, there)
    neighbour.write([make_begun("of a neighbour")])
    dead = Store(path, ProcessLock(path, "dead"))
    begun = make_begun("of a dead one")
    dead.write([begun])
    dead._owner._lock.close()  # as the end of its process does
    store = Store(path, here)
    store.write([make_begun("of our own")])
    store.interrupt_orphans()
    statuses = "select first_words, status from proxy_exchanges order by id"
    assert rows(path, statuses) == [
        ("of a neighbour", "running"),
        ("of a dead one", "interrupted"),
        ("of our own", "running"),
    ]
    store.write([ended_as(begun, "ok", http_status=200, duration_ms=1.0)])  # from its spool
    assert rows(path, statuses)[1] == ("of a dead one", "ok")
    for owner in (here, there):
        owner.release()
    store.close()
    neighbour.close()
    dead.close()


def test_an_empty_reply_keeps_its_prompt(store, make_exchange, llm_log):
    store.write([make_exchange("anyone?", reply=[])])
    (row,) = log_rows(llm_log)
    assert (row["prompt"], row["response"]) == ("anyone?", "")


@pytest.mark.parametrize("reply", [[], [llm.assistant("fine")]], ids=["empty", "text"])
def test_a_prompt_before_a_final_system_message_is_found(
    store, path, make_exchange, llm_log, reply
):
    """Claude Code's habit (C1, d6.18)."""
    messages = [llm.user("<reminder>", "rhubarb please"), llm.system("today is Monday")]
    turn = make_exchange(messages=messages, reply=reply)
    store.write([turn])
    assert [row["id"] for row in log_rows(llm_log, query="rhubarb")] == [turn.id]
    assert rows(path, "select name from threads") == [("rhubarb please",)]


def test_a_final_system_message_after_a_tool_result_is_not_searched(store, path, make_exchange):
    result = Message("tool", [ToolResultPart("t", "12", "call_1")])
    messages = [llm.user("rhubarb"), llm.assistant(ToolCallPart("t", {}, "call_1")), result]
    store.write([make_exchange(messages=[*messages, llm.system("go on")])])
    assert rows(path, "select prompt, response from turn_search") == [("", "HELLO")]


@pytest.mark.parametrize("text", ["nul \0 in", "\u2028", "🌊" * 3, " " * 9, "x" * 2**20])
def test_odd_texts_read_back_as_written(store, make_exchange, llm_log, text):
    turn = make_exchange(text, text)
    store.write([turn])
    assert llm_log.thread_messages(turn.thread_id) == turn.turn.messages + turn.turn.reply
    assert llm_log.verify() == []


def test_a_bad_row_leaves_nothing_behind(store, path, make_exchange):
    good, bad = make_exchange("good"), make_exchange("bad \ud800")
    with pytest.raises(UnicodeEncodeError):
        store.write([good, bad])
    assert rows(path, "select count(*) from turns") == [(0,)]
    assert store.write([good]) == 1


def test_a_payload_that_is_not_json_loses_only_its_odd_values(store, make_exchange, llm_log):
    turn = make_exchange(
        response_json={"id": "r1", "odd": {1}, "raw": b"\xff"}, options={"o": object}
    )
    store.write([turn])
    assert llm_log.turn_response_json(turn.id) == {"id": "r1", "odd": "{1}", "raw": "b'\\xff'"}


def test_a_long_group_is_split_to_keep_the_lock_short(store, path, make_exchange, monkeypatch):
    monkeypatch.setattr("llmproxy.recorder.store.LOCK_S", 0)
    assert store.write([make_exchange(), make_exchange()]) == 1
    assert rows(path, "select count(*) from turns") == [(1,)]


def test_a_new_file_is_private(tmp_path):
    path = tmp_path / "new" / "folder" / "logs.db"
    Store(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("steps", [1, 2])
def test_a_new_file_behind_a_symlink_is_private(tmp_path, steps):
    for step in range(steps):
        (tmp_path / f"link{step}").symlink_to(tmp_path / f"link{step + 1}")
    (tmp_path / f"link{steps}").symlink_to("target.db")
    Store(tmp_path / "link0").close()
    assert stat.S_IMODE((tmp_path / "target.db").stat().st_mode) == 0o600


def test_a_symlink_to_itself_is_no_log(tmp_path):
    (tmp_path / "logs.db").symlink_to("logs.db")
    with pytest.raises(Unusable):
        Store(tmp_path / "logs.db")


def test_the_mode_of_an_existing_file_is_not_changed(path):
    sqlite3.connect(path).close()
    path.chmod(0o644)
    Store(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_llms_own_schema_is_as_llm_makes_it(store, path, tmp_path):
    def schema(database):
        return rows(
            database,
            "select type, name, sql from sqlite_master where tbl_name not like 'proxy%'"
            " and name != 'sqlite_sequence' order by name",
        )

    with sqlite_utils.Database(tmp_path / "llms.db") as database:
        LogStore(database)
    assert schema(path) == schema(tmp_path / "llms.db")


def test_a_newer_schema_is_refused_in_one_line(store, path):
    store._conn.execute("update proxy_meta set value = 99 where name = 'schema'")
    with pytest.raises(Unusable) as refused:
        Store(path)
    assert str(refused.value) == (
        f"{path} was written by a newer llmproxy (schema 99, this one knows"
        f" {SCHEMA_VERSION}): upgrade llmproxy"
    )


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


@pytest.mark.slow
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


def test_the_lock_of_another_writer_is_reported(store, path, make_exchange):
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Locked, match="database is locked"):
        store.write([make_exchange()])
    with pytest.raises(Locked):
        Store(path)
    other.execute("ROLLBACK")
    other.close()
    assert store.write([make_exchange()]) == 1


def not_sqlite(path):
    path.write_text("not a database, but long enough to have a header of its own " * 20)


def a_folder(path):
    path.mkdir()


def under_a_file(path):
    path.parent.rmdir()
    path.parent.write_text("")


@pytest.mark.parametrize("spoil", [not_sqlite, a_folder, under_a_file])
def test_another_file_than_a_database_is_unusable(path, spoil):
    spoil(path)
    with pytest.raises(Unusable, match="logs.db"):
        Store(path)


def test_a_database_that_turns_read_only_is_unusable(store, make_exchange):
    store._conn.execute("PRAGMA query_only = on")
    with pytest.raises(Unusable, match="readonly"):
        store.write([make_exchange()])


def test_a_full_disk_is_unusable_and_stores_none_of_a_group(
    store, path, make_exchange, monkeypatch
):
    """d6.21: SQLite ends the transaction by itself."""
    monkeypatch.setattr("llmproxy.recorder.store.LOCK_S", 60)  # one group on a slow machine too
    (pages,) = store._conn.execute("PRAGMA page_count").fetchone()
    store._conn.execute(f"PRAGMA max_page_count = {pages + 8}")
    with pytest.raises(Unusable, match="full"):
        store.write([make_exchange(), make_exchange("x" * 2**20), make_exchange()])
    assert rows(path, "select count(*) from turns") == [(0,)]
    assert rows(path, "select count(*) from messages") == [(0,)]


def test_a_file_that_is_deleted_or_replaced_is_not_current(store, path, tmp_path):
    assert store.is_current()
    path.rename(tmp_path / "moved")
    assert not store.is_current()
    path.write_bytes(b"")
    assert not store.is_current()


def test_a_flush_leaves_no_rows_outside_the_file(store, path, make_exchange):
    store.write([make_exchange()])
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


# ---- goes on with a thread, or forks from it


def threads_and_origins(path):
    return rows(
        path,
        "select turns.id, thread_id, forked_from from turns"
        " join threads on threads.id = thread_id order by turns.id",
    )


def test_the_second_continuation_forks(talk, path):
    first = talk("one")
    second, third = talk("two", first), talk("three", first)
    assert threads_and_origins(path) == [
        (first.id, first.id, None),
        (second.id, first.id, None),
        (third.id, third.id, first.id),
    ]


@pytest.mark.parametrize("fields", [{"status": "cancelled"}, {"reply": []}])
def test_cut_or_empty_turns_do_not_count_as_continuations(fields, talk, path):
    first = talk("one")
    talk("two", first, **fields)
    talk("three", first)
    assert {row[1:] for row in threads_and_origins(path)} == {(first.id, None)}


def test_a_turn_of_llms_own_can_be_first(talk, path, run_llm):
    first = talk("one", model="echo")
    run_llm("--cid", first.id, "-m", "echo", "said by hand")
    second = talk("two", first)
    assert (second.id, second.id, first.id) in threads_and_origins(path)


def test_continuing_a_pruned_turn_starts_a_new_thread(talk, make_exchange, path):
    gone = make_exchange("never written")
    second = talk("two", gone)
    assert threads_and_origins(path) == [(second.id, second.id, None)]
