"""List the log's conversations, and draw them as a tree."""

import sqlite3
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import llm
import pytest
from llm.logs import LogStore
from sqlite_utils import Database

from llmproxy.conversations.prompt_cache import find_cache_misses
from llmproxy.conversations.threads import Thread, parents, threads, tree
from llmproxy.core.errors import NotFound
from llmproxy.core.usage import Usage
from llmproxy.recorder.listing import Filter
from llmproxy.recorder.llm_turns import message_chain
from llmproxy.recorder.prune import prune
from llmproxy.recorder.reader import LogReader
from tests.log_fixtures import RECEIVED


@pytest.fixture
def history(store, path):
    history = LogReader(path)
    yield history
    history.close()


def drawn(history, exchange):
    """Return each row's depth, label and first words."""
    return [
        (place.depth, place.label, place.entry.first_words) for place in tree(history, exchange.id)
    ]


# ---- the list


def test_a_conversation_is_listed_with_all_its_facts(talk, history):
    first = talk("one", usage=Usage(10, 2, cached_tokens=0))
    second = talk("two", first, usage=Usage(20, 3, cached_tokens=8), model="other")
    other_client = {"client": "aider"}
    talk("three", second, request=other_client, status="error", reply=[], error="gone")
    assert threads(history, Filter()) == [
        Thread(
            id=first.id,
            name="one",
            first_words="one",
            began=RECEIVED,
            moved=RECEIVED + timedelta(seconds=2),
            clients=("tests", "aider"),
            models=("demo", "other"),
            exchanges=3,
            turns=2,
            usage=Usage(30, 5, cached_tokens=8),
        )
    ]


def test_the_most_recent_conversation_is_last(talk, history):
    first, second = talk("one"), talk("two")
    assert [thread.id for thread in threads(history, Filter())] == [first.id, second.id]
    talk("one more", first)
    assert [thread.id for thread in threads(history, Filter())] == [second.id, first.id]
    assert [thread.id for thread in threads(history, Filter(), last=1)] == [first.id]


def test_the_newest_of_many_are_found_without_reading_all(talk, history, monkeypatch):
    started = [talk(f"conversation {number}") for number in range(6)]
    talk("go on", started[1])
    talk("fails", started[2], status="error", reply=[], error="gone")
    filters = (
        Filter(),
        Filter(status="error"),
        Filter(status="ok", search="conversation"),
        Filter(search="fails"),
        Filter(search="nothing like it"),
        Filter(thread_id=started[4].id),
    )
    every = {chosen: threads(history, chosen) for chosen in filters}
    assert [len(found) for found in every.values()] == [6, 1, 6, 1, 0, 1]
    read = []
    rows = LogReader.rows
    for recent in ((), (1,), (1, 2)):
        monkeypatch.setattr("llmproxy.conversations.threads.RECENT", recent)
        for last in range(1, 8):
            for chosen, found in every.items():
                assert threads(history, chosen, last=last) == found[-last:]
    monkeypatch.setattr(
        LogReader, "rows", lambda self, sql, values: read.append(sql) or rows(self, sql, values)
    )
    assert len(threads(history, Filter(), last=2)) == 2
    assert len(threads(history, Filter(search="conversation"), last=1)) == 1
    assert not any("select distinct" in sql for sql in read)


def test_a_filter_selects_the_threads_of_its_exchanges(talk, history):
    first, second = talk("one"), talk("two")
    talk("a failure", first, status="error", reply=[], error="gone")
    talk("in nobody's thread", status="error", reply=[], error="gone")
    late = talk("late", second)
    assert [thread.id for thread in threads(history, Filter(status="error"))] == [first.id]
    assert [thread.id for thread in threads(history, Filter(since=late.received))] == [second.id]
    assert [thread.id for thread in threads(history, Filter(search="late"))] == [second.id]
    assert [thread.id for thread in threads(history, Filter(thread_id=first.id))] == [first.id]
    assert threads(history, Filter(model="nobody")) == []


@pytest.mark.parametrize(
    "link, origin",
    [("reply", "fork"), ("compacted", "compacted"), ("call", "call"), ("quote", "quote")],
)
def test_a_thread_has_its_origin(talk, history, link, origin):
    first = talk("one")
    talk("two", first)
    other = talk("another two", first, link)
    listed = {thread.id: thread for thread in threads(history, Filter())}
    assert listed[other.id].forked_from == first.id
    assert listed[other.id].origin == origin
    assert (listed[first.id].forked_from, listed[first.id].origin) == (None, None)


def test_a_log_without_our_tables_has_no_conversations(path):
    database = Database(path)
    LogStore(database)
    database.close()
    history = LogReader(path)
    assert threads(history, Filter()) == []
    with pytest.raises(NotFound):
        tree(history, "x")
    history.close()


# ---- the tree


def test_a_straight_conversation_is_a_straight_column(talk, history):
    first = talk("one")
    talk("three", talk("two", first))
    assert drawn(history, first) == [(0, None, "one"), (0, None, "two"), (0, None, "three")]


def test_a_branch_stands_under_the_turn_it_continues(talk, history):
    first = talk("one")
    second = talk("two", first)
    edited = talk("two, edited", first)
    again = talk("two", first, answer="something else that is long enough")
    agent = talk("look it up", second, "call")
    talk("found?", agent)
    talk("title", second, "quote")
    talk("edited on", edited)
    talk("three", second)
    summed = talk("the story so far", second, "compacted")
    lines = [
        (0, None, "one"),
        (1, "fork", "two, edited"),
        (1, None, "edited on"),
        (1, "retry", "two"),
        (0, None, "two"),
        (1, "call", "look it up"),
        (1, None, "found?"),
        (1, "quote", "title"),
        (1, "compacted", "the story so far"),
        (0, None, "three"),
    ]
    for asked in (first, edited, again, agent, summed):
        assert drawn(history, asked) == lines
    begins = [place.begins for place in tree(history, first.id)]
    assert begins == [True, True, False, True, False, True, False, True, True, False]


def test_a_compacted_conversation_stays_in_its_column(talk, history):
    first = talk("one")
    talk("on", talk("the story so far", first, "compacted"))
    assert drawn(history, first) == [
        (0, None, "one"),
        (0, "compacted", "the story so far"),
        (0, None, "on"),
    ]


def test_a_failure_is_shown_beside_its_retry(talk, history):
    first = talk("one")
    talk("two", first, status="error", reply=[], error="overloaded")
    talk("two", first, status="cancelled", answer="so fa")
    talk("two", first)
    places = tree(history, first.id)
    assert [(place.depth, place.label, place.entry.status) for place in places] == [
        (0, None, "ok"),
        (1, None, "error"),
        (1, "retry", "cancelled"),
        (0, "retry", "ok"),
    ]


def test_a_last_failure_stays_in_the_column(talk, history):
    first = talk("one")
    talk("two", first, status="error", reply=[], error="overloaded")
    assert drawn(history, first) == [(0, None, "one"), (0, None, "two")]


def test_the_last_of_several_cut_turns_stays_in_the_column(talk, history):
    first = talk("one")
    for answer in ("so fa", "so far as"):
        talk("two", first, status="cancelled", answer=answer)
    places = tree(history, first.id)
    assert [(place.depth, place.label, place.begins) for place in places[1:]] == [
        (1, None, True),
        (0, "retry", False),
    ]


def test_a_fork_stays_one_after_its_origin_is_pruned(talk, history, path):
    first = talk("one")
    second = talk("two", first)
    talk("three", first)
    prune(path, Filter(ids=(second.id,)))
    assert drawn(history, first) == [(0, None, "one"), (1, "fork", "three")]


def test_llms_own_turn_stays_in_its_thread_if_a_retry_has_the_same_reply(talk, history, run_llm):
    past = {"received": datetime(2000, 1, 1, tzinfo=UTC), "model": "echo"}
    first = talk("one", **past)
    second = talk("two", first, **past)
    talk("two", first, **past)
    run_llm("--cid", first.id, "-m", "echo", "said by hand")
    assert drawn(history, second) == [
        (0, None, "one"),
        (1, "retry", "two"),
        (0, None, "two"),
        (0, None, "said by hand"),
    ]


def test_a_turn_without_known_history_continues_the_last_of_its_thread(talk, history, path):
    first = talk("one")
    second = talk("two", first)
    talk("three", second, messages=[llm.user("moved"), llm.user("three")])
    prune(path, Filter(ids=(second.id,)))
    assert drawn(history, first) == [(0, None, "one"), (0, None, "three")]
    assert [place.begins for place in tree(history, first.id)] == [True, False]


def test_llms_own_turns_are_in_the_tree(talk, history, run_llm):
    first = talk("one", model="echo", received=datetime(2000, 1, 1, tzinfo=UTC))
    run_llm("--cid", first.id, "-m", "echo", "said by hand")
    run_llm("--cid", first.id, "-m", "echo", "and again")
    talk("overtaken", first, received=datetime(2200, 1, 1, tzinfo=UTC))
    assert drawn(history, first) == [
        (0, None, "one"),
        (1, "fork", "overtaken"),
        (0, None, "said by hand"),
        (0, None, "and again"),
    ]
    own = tree(history, first.id)[2].entry
    assert (own.client, own.dialect, own.model_used, own.status) == ("llm", "", "echo", "ok")
    listed = {thread.id: thread for thread in threads(history, Filter())}
    thread = listed[first.id]
    assert (thread.clients, thread.exchanges, thread.turns) == (("tests", "llm"), 1, 3)


def test_a_turn_whose_predecessor_was_pruned_continues_the_one_before(talk, history, path):
    first = talk("one")
    second = talk("two", first)
    talk("three", second)
    prune(path, Filter(ids=(second.id,)))
    assert drawn(history, first) == [(0, None, "one"), (0, None, "three")]


@pytest.mark.parametrize("ends", [(0, 0), (0, 1), (0, 2), (1, 1)])
def test_turns_in_a_circle_are_all_drawn(talk, history, path, ends):
    first = talk("one")
    second = talk("two", first)
    third = talk("three", second)
    ids = first.id, second.id, third.id
    with sqlite3.connect(path) as connection:
        connection.execute(
            "update proxy_exchanges set previous_id = ?, link = 'reply' where id = ?",
            (ids[ends[1]], ids[ends[0]]),
        )
    shown = drawn(history, first)
    assert sorted(words for _, _, words in shown) == ["one", "three", "two"]
    assert [thread.exchanges for thread in threads(history, Filter())] == [3]


def test_messages_in_a_circle_end(talk, history, path):
    first = talk("one")
    talk("two", first)
    with sqlite3.connect(path) as connection:
        (tip,) = connection.execute("select max(hash) from messages").fetchone()
        connection.execute("update messages set parent_hash = ?", (tip,))
        connection.execute("update proxy_exchanges set previous_id = null")
    assert len(drawn(history, first)) == 2
    assert None in parents(history, [tip]).values()
    assert len(find_cache_misses(history, Filter())) == 1
    assert [link.hash for link in message_chain(history._log, tip).links] == [tip]


@pytest.mark.slow
def test_a_thousand_turns_do_not_nest(talk, history, store, make_exchange):
    """Neither in one column nor in branches of branches."""
    before, exchanges = None, []
    for number in range(1_000):
        exchange = make_exchange(f"turn {number}", f"answer {number}")
        link = "call" if number % 2 else "reply"
        exchange = replace(exchange, previous_id=before, link=before and link)
        before = exchange.id
        exchanges.append(exchange)
    while exchanges:
        exchanges = exchanges[store.write(exchanges) :]
    places = tree(history, "01jd" + "1".zfill(22))
    assert len(places) == 1_000
    assert places[-1].depth == 500


def test_an_exchange_stands_for_its_thread(talk, history, run_llm):
    first = talk("one", model="echo", received=datetime(2000, 1, 1, tzinfo=UTC))
    second = talk("two", first, model="echo")
    failed = talk("three", second, status="error", reply=[], error="overloaded")
    run_llm("--cid", first.id, "-m", "echo", "said by hand")
    by_hand = history.rows("select max(id) as id from turns", {})[0]["id"]
    for id in (first.id, second.id, failed.id, by_hand):
        meant = history.resolve(Filter(thread_id=id))
        assert meant.thread_id == first.id
        assert len(tree(history, id)) == 4
        assert [thread.id for thread in threads(history, meant)] == [first.id]
        meant = [entry.id for entry in history.entries(meant)]
        assert meant == [first.id, second.id]


def test_an_unknown_thread_is_named(talk, history):
    alone = talk("one", status="error", reply=[], error="overloaded")
    for id in ("nobody", alone.id):
        with pytest.raises(NotFound, match=f"the log has no conversation {id}"):
            tree(history, id)
        assert history.entries(Filter(thread_id=id)) == []


def test_parents_has_all_messages_of_the_chains(talk, history, store):
    first = talk("one")
    second = talk("two", first)
    tip = history.rows("select message_hash from proxy_exchanges where id = :id", {"id": second.id})
    found = parents(history, [tip[0][0]])
    assert len(found) == 3
    assert list(found.values()).count(None) == 1
    assert parents(history, []) == {}


def test_the_origin_of_a_thread_may_be_bytes_that_are_no_text(talk, history, path):
    """Only an edited file has them; SQLite takes any value in any column."""
    first = talk("one")
    with sqlite3.connect(path) as connection:
        connection.execute("update threads set forked_from = x'ff1b5b'")
    assert len(drawn(history, first)) == 1
    assert [thread.exchanges for thread in threads(history, Filter())] == [1]
