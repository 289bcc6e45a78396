"""Benchmark runs in the log: their rows, and the conversations that they leave unchanged."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from llmproxy.bench.runs import Benchmark, find_run, list_run_names, save_run
from llmproxy.conversations.matching import Match, Matcher
from llmproxy.conversations.threads import threads, tree
from llmproxy.core.errors import NotFound
from llmproxy.recorder.exchange import encode
from llmproxy.recorder.listing import Filter
from llmproxy.recorder.prune import prune
from llmproxy.recorder.reader import LogReader
from llmproxy.transfer.import_ import import_files
from llmproxy.transfer.jsonl import decode

BEGAN = datetime(2026, 11, 22, 5, 0, tzinfo=UTC)
RUN = Benchmark("01jr" + "0" * 22, "friday", BEGAN, None, {"models": ["a", "b"], "repeat": 2})


@pytest.fixture
def history(store, path):
    history = LogReader(path)
    yield history
    history.close()


@pytest.fixture
def asked_again(make_exchange):
    """Make an exchange of a run, which sent the request of `recorded` again."""

    def make(recorded, answer="WHY", **changes):
        again = make_exchange("hello", answer)
        thread_id = "0" * 10 + again.id[10:]
        turn = replace(again.turn, thread_id=thread_id, messages=recorded.turn.messages)
        facts = {"run_id": RUN.id, "recorded_id": recorded.id, "repeat": 1, "setup_ms": 1.5}
        return replace(again, thread_id=thread_id, turn=turn, **facts | changes)

    return make


def test_a_run_is_found_by_name_by_id_and_as_the_last(history, path):
    save_run(path, RUN)
    older = Benchmark("01jr" + "1" * 22, "thursday", BEGAN - timedelta(days=1), BEGAN, {})
    save_run(path, older)
    assert find_run(history, "friday") == find_run(history, RUN.id) == RUN
    assert find_run(history, "last") == RUN
    assert find_run(history, "thursday") == older
    assert list_run_names(history) == ["thursday", "friday"]


def test_a_finished_run_has_its_end(history, path):
    save_run(path, RUN)
    save_run(path, over := replace(RUN, ended=BEGAN + timedelta(minutes=2)))
    assert find_run(history, "friday") == over


def test_names_of_runs_are_unique(history, path):
    save_run(path, RUN)
    with pytest.raises(sqlite3.IntegrityError):
        save_run(path, replace(RUN, id="01jr" + "2" * 22))


def test_error_for_an_unknown_run_lists_the_runs(history, path):
    with pytest.raises(NotFound, match="the log has no run 'monday'; `llmproxy bench` creates one"):
        find_run(history, "monday")
    save_run(path, RUN)
    with pytest.raises(NotFound, match="the log has no run 'monday'; its runs are friday"):
        find_run(history, "monday")


def test_a_response_is_a_sibling_of_the_recorded_one_and_moves_no_tip(
    store, path, make_exchange, asked_again
):
    recorded = make_exchange()
    store.write([recorded])
    before = list(sqlite3.connect(path).execute("select * from threads"))
    again = asked_again(recorded)
    store.write([replace(again, status="running", turn=None, thread_id=None), again])
    connection = sqlite3.connect(path)
    parents = list(connection.execute("select parent_message_hash from turns"))
    assert len(parents) == 2 and parents[0] == parents[1] != (None,)
    rows = list(connection.execute("select * from threads order by id"))
    assert rows[1:] == before
    forked = list(connection.execute("select id, forked_from from threads order by id"))
    assert forked[0] == (again.thread_id, recorded.thread_id)
    columns = "run_id, recorded_id, repeat, setup_ms"
    assert list(connection.execute(f"select {columns} from proxy_exchanges")) == [
        (None, None, None, None),
        (RUN.id, recorded.id, 1, 1.5),
    ]


def test_a_response_to_a_failed_request_is_in_no_clients_conversation(
    store, path, make_exchange, asked_again
):
    """Otherwise it would continue the thread of the previous turn."""
    first = make_exchange()
    failed = replace(
        make_exchange(status="error"), thread_id=None, previous_id=first.id, link="reply"
    )
    store.write([first, failed, again := asked_again(failed)])
    rows = list(sqlite3.connect(path).execute("select id, forked_from from threads order by id"))
    assert rows == [(again.thread_id, None), (first.thread_id, None)]


def test_llm_continues_the_users_conversation_after_a_run(
    store, path, make_exchange, asked_again, run_llm
):
    recorded = make_exchange(model="echo")
    store.write([recorded, asked_again(recorded)])
    run_llm("-c", "-m", "echo", "and?")
    (newest,) = (
        sqlite3.connect(path)
        .execute("select thread_id from turns order by id desc limit 1")
        .fetchone()
    )
    assert newest == recorded.thread_id


def test_matcher_does_not_match_a_benchmarks_responses(store, path, make_exchange, asked_again):
    reply = "An answer too long to be given twice by chance."
    recorded = make_exchange(answer="another")
    store.write([recorded, again := asked_again(recorded, answer=reply)])
    matcher = Matcher(path)
    history = [*again.turn.messages, *again.turn.reply, *again.turn.messages]
    assert matcher.match(history, "demo", "tests") == Match(history)
    matcher.close()
    assert not list(
        sqlite3.connect(path).execute("select * from proxy_replies where turn_id = ?", (again.id,))
    )


def test_runs_are_not_listed_as_conversations(store, history, make_exchange, asked_again):
    recorded = make_exchange()
    store.write([recorded, asked_again(recorded)])
    assert [thread.id for thread in threads(history, Filter())] == [recorded.thread_id]
    rows = tree(history, recorded.thread_id)
    assert [row.entry.id for row in rows] == [recorded.id]


def test_filters_select_a_run_and_clients_traffic(store, history, path, make_exchange, asked_again):
    save_run(path, RUN)
    recorded, played = make_exchange(), make_exchange()
    played = replace(played, turn=None, thread_id=None, replay_of=recorded.id)
    store.write([recorded, played, again := asked_again(recorded)])
    assert history.ids(Filter(run="friday")) == history.ids(Filter(run=RUN.id)) == [again.id]
    assert history.ids(Filter(run="monday")) == []
    assert history.ids(Filter(is_traffic=True)) == [recorded.id]
    assert len(history.ids()) == 3


def test_a_pruned_run_leaves_nothing(store, history, path, make_exchange, asked_again):
    save_run(path, RUN)
    recorded = make_exchange()
    store.write([recorded, asked_again(recorded)])
    assert prune(path, Filter(run="friday")).exchanges == 1
    assert list_run_names(history) == []
    assert history.ids() == [recorded.id]


@pytest.mark.parametrize("order", [1, -1], ids=["recorded first", "answer first"])
def test_an_imported_run_equals_the_exported_one(
    store, history, tmp_path, make_exchange, asked_again, order
):
    recorded = make_exchange()
    again = asked_again(recorded)
    store.write([recorded, again])
    lines = [encode(history.exchange(one.id)) for one in (recorded, again)]
    (tmp_path / "run.jsonl").write_bytes(b"\n".join(lines[::order]) + b"\n")
    import_files([tmp_path / "run.jsonl"], tmp_path / "other.db", dry_run=False)
    other = LogReader(tmp_path / "other.db")
    assert replace(other.exchange(again.id), owner=None, events=()) == replace(
        decode(lines[1]), owner=None, events=()
    )
    run = find_run(other, RUN.id)
    assert (run.name, run.settings) == (RUN.id, {})
    forked = other.rows("select id, forked_from from threads order by id", {})
    assert [tuple(row) for row in forked] == [
        (again.thread_id, recorded.thread_id),
        (recorded.thread_id, None),
    ]
    other.close()


def test_an_imported_run_is_named_by_its_id(store, path, history, make_exchange, asked_again):
    """Exchanges are exported, the row of their run is not."""
    recorded = make_exchange("hello", "HELLO")
    again = asked_again(recorded)
    store.write([recorded, again])
    assert list_run_names(history) == [RUN.id]
    assert find_run(history, "last") == find_run(history, RUN.id)
    assert find_run(history, "last").settings == {}
    with pytest.raises(NotFound, match=f"its runs are {RUN.id}"):
        find_run(history, "friday")
    save_run(path, RUN)
    assert list_run_names(history) == ["friday"]
