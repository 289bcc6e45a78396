"""Benchmarks in the log: their rows, and what they leave alone."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from llmproxy.bench.runs import Benchmark, find_run, run_names, save_run
from llmproxy.conversations.matching import Match, Matcher
from llmproxy.conversations.threads import threads, tree
from llmproxy.core.errors import NotFound
from llmproxy.recorder.exchange import encode
from llmproxy.recorder.prune import prune
from llmproxy.recorder.reader import Filter, LogReader
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
    """Make an exchange of a run, which asked what `recorded` had asked."""

    def make(recorded, answer="WHY", **changes):
        again = make_exchange("hello", answer)
        thread_id = "0" * 10 + again.id[10:]
        turn = replace(again.turn, thread_id=thread_id, messages=recorded.turn.messages)
        facts = {"run_id": RUN.id, "recorded_id": recorded.id, "repeat": 1, "setup_ms": 1.5}
        return replace(again, thread_id=thread_id, turn=turn, **facts | changes)

    return make


def test_a_run_is_found_by_its_name_its_id_and_as_the_last(history, path):
    save_run(path, RUN)
    older = Benchmark("01jr" + "1" * 22, "thursday", BEGAN - timedelta(days=1), BEGAN, {})
    save_run(path, older)
    assert find_run(history, "friday") == find_run(history, RUN.id) == RUN
    assert find_run(history, "last") == RUN
    assert find_run(history, "thursday") == older
    assert run_names(history) == ["thursday", "friday"]


def test_a_run_that_is_over_says_when(history, path):
    save_run(path, RUN)
    save_run(path, over := replace(RUN, ended=BEGAN + timedelta(minutes=2)))
    assert find_run(history, "friday") == over


def test_no_two_runs_have_one_name(history, path):
    save_run(path, RUN)
    with pytest.raises(sqlite3.IntegrityError):
        save_run(path, replace(RUN, id="01jr" + "2" * 22))


def test_a_run_that_is_not_there_is_told_with_those_that_are(history, path):
    with pytest.raises(NotFound, match="the log has no run 'monday'; `bench` makes one"):
        find_run(history, "monday")
    save_run(path, RUN)
    with pytest.raises(NotFound, match="the log has no run 'monday'; there are friday"):
        find_run(history, "monday")


def test_an_answer_is_a_sibling_of_the_recorded_one_and_moves_no_tip(
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


def test_an_answer_to_what_had_failed_is_in_no_conversation_of_a_clients(
    store, path, make_exchange, asked_again
):
    """Else it would go on with the thread of the turn before."""
    first = make_exchange()
    failed = replace(
        make_exchange(status="error"), thread_id=None, previous_id=first.id, link="reply"
    )
    store.write([first, failed, again := asked_again(failed)])
    rows = list(sqlite3.connect(path).execute("select id, forked_from from threads order by id"))
    assert rows == [(again.thread_id, None), (first.thread_id, None)]


def test_llm_goes_on_with_the_users_conversation_after_a_run(
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


def test_memory_does_not_know_what_a_benchmark_was_answered(
    store, path, make_exchange, asked_again
):
    said = "An answer that nobody gives twice by chance."
    recorded = make_exchange(answer="another")
    store.write([recorded, again := asked_again(recorded, answer=said)])
    memory = Matcher(path)
    history = [*again.turn.messages, *again.turn.reply, *again.turn.messages]
    assert memory.match(history, "demo", "tests") == Match(history)
    memory.close()
    assert not list(
        sqlite3.connect(path).execute("select * from proxy_replies where turn_id = ?", (again.id,))
    )


def test_runs_stay_out_of_the_lists_of_conversations(store, history, make_exchange, asked_again):
    recorded = make_exchange()
    store.write([recorded, asked_again(recorded)])
    assert [thread.id for thread in threads(history, Filter())] == [recorded.thread_id]
    places = tree(history, recorded.thread_id)
    assert [place.entry.id for place in places] == [recorded.id]


def test_filters_tell_a_run_and_what_clients_asked(
    store, history, path, make_exchange, asked_again
):
    save_run(path, RUN)
    recorded, played = make_exchange(), make_exchange()
    played = replace(played, turn=None, thread_id=None, replay_of=recorded.id)
    store.write([recorded, played, again := asked_again(recorded)])
    assert history.ids(Filter(run="friday")) == history.ids(Filter(run=RUN.id)) == [again.id]
    assert history.ids(Filter(run="monday")) == []
    assert history.ids(Filter(is_traffic=True)) == [recorded.id]
    assert len(history.ids()) == 3


def test_a_forgotten_run_leaves_nothing(store, history, path, make_exchange, asked_again):
    save_run(path, RUN)
    recorded = make_exchange()
    store.write([recorded, asked_again(recorded)])
    assert prune(path, Filter(run="friday")).exchanges == 1
    assert run_names(history) == []
    assert history.ids() == [recorded.id]


@pytest.mark.parametrize("order", [1, -1], ids=["recorded first", "answer first"])
def test_an_imported_run_is_what_it_was(
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


def test_an_imported_run_is_there_under_its_id(store, path, history, make_exchange, asked_again):
    """Its row stays where it was made, its exchanges do not."""
    recorded = make_exchange("hello", "HELLO")
    again = asked_again(recorded)
    store.write([recorded, again])
    assert run_names(history) == [RUN.id]
    assert find_run(history, "last") == find_run(history, RUN.id)
    assert find_run(history, "last").settings == {}
    with pytest.raises(NotFound, match=f"there are {RUN.id}"):
        find_run(history, "friday")
    save_run(path, RUN)
    assert run_names(history) == ["friday"]
