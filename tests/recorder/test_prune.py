from __future__ import annotations

import sqlite3
from dataclasses import replace
from datetime import timedelta

import llm
import pytest
import sqlite_utils
from llm.logs import LogStore
from llm.parts import Message, ReasoningPart, TextPart, ToolCallPart, ToolResultPart

from llmproxy.recorder.database import Locked, Unusable
from llmproxy.recorder.listing import Filter
from llmproxy.recorder.prune import Pruned, prune
from llmproxy.recorder.reader import LogReader
from tests.log_fixtures import RECEIVED


def dump(path):
    """Return all rows except counters and the full-text index's internal ones."""
    connection = sqlite3.connect(path)
    lines = set(connection.iterdump())
    connection.close()
    others = "sqlite_sequence", "'prunes'", "turn_search_fts_"
    return {line for line in lines if not any(other in line for other in others)}


def sound(path):
    with sqlite_utils.Database(path) as database:
        assert LogStore(database).verify() == []
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
        assert list(database.execute("pragma foreign_key_check")) == []
    return True


def full(make_exchange, word, **fields):
    """An exchange that has a row in every table."""
    image = llm.Attachment("image/png", content=b"\x89PNG" + word.encode())
    result = Message("tool", [ToolResultPart("t", word, "c1", attachments=[image])])
    return make_exchange(
        messages=[llm.user(f"{word} " * 100, image), llm.assistant("calls"), result],
        tools=(llm.Tool(word),),
        schema={"title": word},
        request={"body": {"messages": [{"content": f"{word} " * 200}] * 20}},
        **fields,
    )


def test_only_what_pruned_exchanges_used_is_deleted(store, path, make_exchange):
    kept = full(make_exchange, "kept")
    store.write([kept])
    before = dump(path)
    forgotten = full(make_exchange, "forgotten")
    store.write([forgotten])
    contents = len(set(store._known.values()))
    pruned = prune(path, Filter(ids=(forgotten.id,)))
    assert (pruned.exchanges, pruned.turns, pruned.messages) == (1, 1, 4)
    assert 0 < pruned.contents < contents
    assert dump(path) == before
    assert sound(path)


def test_shared_rows_are_not_pruned(store, path, make_exchange):
    text = "the same long text " * 50
    request = {"body": {"messages": [{"content": text}]}}
    first = make_exchange(text, "ONE", request=request)
    history = first.turn.messages + first.turn.reply
    second = make_exchange(
        messages=[*history, llm.user("two")], thread_id=first.thread_id, request=request
    )
    store.write([first, second])
    assert prune(path, Filter(ids=(first.id,))) == Pruned(1, 1, 0, 0)
    log = LogReader(path)
    assert log.exchange(second.id).turn.messages == second.turn.messages
    assert log.exchange(second.id).request == second.request
    log.close()
    assert sound(path)


def test_a_thread_is_set_back_to_its_last_remaining_turn(store, path, make_exchange):
    first = make_exchange("one", "ONE")
    history = first.turn.messages + first.turn.reply
    second = make_exchange(messages=[*history, llm.user("two")], thread_id=first.thread_id)
    store.write([first, second])
    assert prune(path, Filter(ids=(second.id,))).messages == 2
    with sqlite_utils.Database(path) as database:
        assert LogStore(database).thread_messages(first.thread_id) == history
    assert sound(path)


def test_a_thread_without_turns_is_deleted(store, path, make_exchange):
    exchange = make_exchange()
    store.write([exchange])
    prune(path, Filter(thread_id=exchange.thread_id))
    connection = sqlite3.connect(path)
    assert connection.execute("select count(*) from threads").fetchone() == (0,)
    connection.close()


def test_the_messages_of_a_failure_are_pruned_with_it(store, path, make_exchange):
    store.write([make_exchange(reply=[], status="error", error="down")])
    assert prune(path, Filter(status="error")) == Pruned(1, 0, 1, 0)


def test_llms_own_rows_are_not_pruned(store, path, make_exchange, run_llm):
    run_llm("-m", "echo", "hello")
    before = dump(path)
    exchange = make_exchange(messages=[llm.user("hello")])  # the same message as llm's
    store.write([exchange])
    assert prune(path, Filter(ids=(exchange.id,))).messages == 1
    assert dump(path) == before


def test_a_dry_run_counts_and_changes_nothing(store, path, make_exchange):
    for word in ("one", "two"):
        store.write([full(make_exchange, word)])
    before = dump(path)
    counted = prune(path, Filter(model="demo"), dry_run=True)
    assert dump(path) == before
    assert counted == prune(path, Filter(model="demo"))
    assert counted.exchanges == 2


def test_running_exchanges_are_not_pruned(store, path, make_begun):
    store.write([make_begun()])
    assert prune(path, Filter(dialect="openai_chat")) == Pruned(0, 0, 0, 0)


def test_pruning_by_age(store, path, make_exchange):
    old, new = make_exchange("old"), make_exchange("new")
    new = replace(new, received=RECEIVED + timedelta(days=2))
    store.write([old, new])
    assert prune(path, Filter(until=RECEIVED + timedelta(days=1))).exchanges == 1
    log = LogReader(path)
    assert [entry.id for entry in log.entries()] == [new.id]
    log.close()


def test_a_running_proxy_stores_pruned_content_again(store, path, make_exchange):
    first, second = full(make_exchange, "same"), full(make_exchange, "same")
    store.write([first])
    prune(path, Filter(ids=(first.id,)))
    with pytest.raises(Locked):
        store.write([second])
    store.write([second])
    log = LogReader(path)
    assert log.exchange(second.id).request == second.request
    log.close()
    assert sound(path)


def test_everything_is_not_pruned_by_accident(store, path):
    with pytest.raises(ValueError, match="a filter is needed to delete exchanges"):
        prune(path, Filter())


def test_a_missing_file_is_not_created(path):
    with pytest.raises(Unusable, match="nothing is recorded yet"):
        prune(path, Filter(status="error"))
    assert not path.exists()


# ---- forgotten means forgotten


SECRET = "Zanzibarquokka"  # one word of the search index, and found by its letters anywhere


def confide(make_exchange, make_begun):
    """Make an exchange that has the word wherever an exchange can have one; how it begins too."""
    picture = llm.Attachment("image/png", content=b"\x89PNG" + SECRET.encode())
    result = Message("tool", [ToolResultPart("look", SECRET, "c1", attachments=[picture])])
    reply = [
        ReasoningPart(f"hmm, {SECRET}"),
        TextPart(f"{SECRET}! " * 400),
        ToolCallPart("look", {"at": SECRET}, "c2"),
    ]
    request = {
        "body": {"messages": [{"content": f"{SECRET} {n} " * 200} for n in range(20)]},
        "client": SECRET,
        "model": SECRET,
        "query": f"q={SECRET}",
        "headers": [("x-title", SECRET)],
        "path": f"/{SECRET}",
    }
    exchange = make_exchange(
        messages=[llm.system(f"Say {SECRET}."), llm.user(f"{SECRET}, " * 300, picture), result],
        reply=[Message("assistant", reply, {"signature": SECRET})],
        tools=(llm.Tool(SECRET, f"About {SECRET}", {"title": SECRET}),),
        schema={"title": SECRET},
        options={"stop": [SECRET]},
        resolved_model=SECRET,
        response_json={"id": SECRET},
        request=request,
    )
    exchange = replace(exchange, stop_sequence=SECRET, first_words=SECRET, ignored=(SECRET,))
    return replace(make_begun(**request), id=exchange.id), exchange


def files_of(path):
    return {file.name: file.read_bytes() for file in path.parent.glob(f"{path.name}*")}


def words_left(path):
    """Return which files have the word: as it is, in small letters as in the index, or in bytes."""
    return sorted(name for name, data in files_of(path).items() if SECRET.lower() in lower(data))


def lower(data):
    return data.decode("latin-1").lower()


def around(make_exchange):
    """Make exchanges that stay, so that pages and segments are shared."""
    return [make_exchange(f"kept {n} " * 40, f"answer {n} " * 60) for n in range(40)]


@pytest.fixture
def confided(store, path, make_exchange, make_begun):
    """A log that a running proxy has open, with the word in the midst of others."""
    begins, ended = confide(make_exchange, make_begun)
    kept = around(make_exchange)
    for exchange in (*kept[:20], begins, *kept[20:30], ended, *kept[30:]):
        store.write([exchange])
    assert words_left(path)
    return ended, kept


def test_no_pruned_word_is_left_in_any_file(confided, path, store, run_llm):
    ended, kept = confided
    pruned = prune(path, Filter(ids=(ended.id,)))
    assert (pruned.exchanges, pruned.remnants) == (1, ())
    assert words_left(path) == []
    assert sound(path)
    with LogReader(path) as log:
        assert [entry.id for entry in log.entries()] == [exchange.id for exchange in kept]
        assert [entry.id for entry in log.entries(Filter(search="kept 17"))] == [kept[17].id]
    assert "answer 17" in run_llm("logs", "-q", "17", "-n", "1")


def test_words_that_earlier_versions_left_behind_go_too(confided, path, make_exchange):
    ended, _ = confided
    with sqlite3.connect(path) as connection:
        connection.execute("pragma secure_delete = off")
        connection.execute("update proxy_exchanges set body = 'x' where id = ?", (ended.id,))
        connection.execute("delete from turn_search where turn_id = ?", (ended.id,))
    connection.close()
    assert prune(path, Filter(ids=(ended.id,))).remnants == ()
    assert words_left(path) == []


@pytest.mark.parametrize("others", [(), ("turn_tools", "turn_search")], ids=["turn", "all of it"])
def test_an_exchange_whose_turn_was_deleted_is_forgotten_too(confided, path, others):
    ended, _ = confided
    with sqlite3.connect(path) as connection:
        connection.execute("delete from turns where id = ?", (ended.id,))
        for table in others:
            connection.execute(f"delete from {table} where turn_id = ?", (ended.id,))
    connection.close()
    pruned = prune(path, Filter(ids=(ended.id,)))
    assert (pruned.exchanges, pruned.turns, pruned.messages) == (1, 0, 4)
    assert words_left(path) == []


def test_a_conversation_loses_the_name_that_its_first_turn_gave(store, path, make_exchange):
    first = make_exchange(SECRET, "ONE")
    second = make_exchange("afterwards", "TWO", thread_id=first.thread_id)
    for exchange in (first, replace(second, previous_id=first.id, link="compacted")):
        store.write([exchange])
    prune(path, Filter(ids=(first.id,)))
    assert words_left(path) == []
    with sqlite3.connect(path) as connection:
        assert connection.execute("select name from threads").fetchall() == [("afterwards",)]
    connection.close()


def test_what_may_be_left_is_said(confided, path, monkeypatch):
    ended, kept = confided
    monkeypatch.setattr("llmproxy.recorder.prune.TIMEOUT_S", 0.05)
    spool = path.with_name("logs.db-llmproxy-x.jsonl")
    spool.write_bytes(b"{}\n")
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("begin")
    reader.execute("select count(*) from turns").fetchone()
    assert prune(path, Filter(ids=(ended.id,))).remnants == (
        f"another program reads {path}, so logs.db-wal could not be emptied",
        f"{spool} holds exchanges for the log that were not looked at",
    )
    reader.close()
    spool.unlink()
    assert prune(path, Filter(ids=(kept[0].id,))).remnants == ()
    assert words_left(path) == []


def test_a_dry_run_rewrites_nothing(confided, path):
    ended, _ = confided
    before = files_of(path)
    assert prune(path, Filter(ids=(ended.id,)), dry_run=True).remnants == ()
    assert files_of(path)["logs.db"] == before["logs.db"]
