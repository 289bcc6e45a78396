"""Ids as people and programs give them: with prefixes, in upper case, only their beginning."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from functools import partial

import pytest

from llmproxy.core.errors import InvalidRequest, NotFound
from llmproxy.recorder.ids import (
    MAX_NAMED,
    MAX_OF_SEVERAL,
    MIN_BEGINNING_CHARS,
    find_exchanges,
    find_id,
    find_thread,
)
from llmproxy.recorder.listing import Filter
from llmproxy.recorder.reader import LogReader
from llmproxy.recorder.store import Store

ONE = "01kb3yq8w5m1vr7t4s0c2d9e6f"
NEXT = "01kb3yq8w5m1vr7t4s0c2d9e6g"  # of the same millisecond
OTHER = "01kc000000aaaaaaaaaaaaaaaa"
THREAD = "01kb3yq8w5m1vr7t4s0c2d9e6h"
FORMS = {
    "as stored": "{}",
    "OpenAI's": "chatcmpl-{}",
    "Anthropic's": "msg_{}",
    "another API's": "resp_{}",
    "an item's of a response": "msg_{}_12",
    "with blanks and a line end": "  {}\r\n",
    "with a byte order mark": "\ufeff{}",
    "in quotes": '"{}"',
}


@pytest.fixture
def history(store, path, make_exchange):
    one, next_, other = (replace(make_exchange(), id=id) for id in (ONE, NEXT, OTHER))
    exchanges = [one, next_, other]
    for number, exchange in enumerate(exchanges):
        thread = THREAD if number < 2 else OTHER
        turn = replace(exchange.turn, id=exchange.id, thread_id=thread)
        exchanges[number] = replace(exchange, turn=turn, thread_id=thread)
    while exchanges:
        exchanges = exchanges[store.write(exchanges) :]
    with LogReader(path) as reader:
        yield reader


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("change", [str, str.upper, str.title])
def test_an_id_is_known_in_every_form(history, form, change):
    text = change(form.format(ONE))
    assert history.exchange(text).id == ONE
    assert history.response(text)[0].id == ONE
    assert history.resolve(Filter(ids=(text, ONE, OTHER))).ids == (ONE, OTHER)
    assert history.resolve(Filter(thread_id=text)).thread_id == THREAD
    assert find_thread(history.rows, change(form.format(THREAD))) == THREAD


@pytest.mark.parametrize("form", ["{}", "chatcmpl-{}", " MSG_{}"])
def test_the_beginning_of_only_one_id_is_enough(history, form):
    assert history.exchange(form.format(OTHER[:-3])).id == OTHER
    assert history.exchange(form.format(OTHER[:MIN_BEGINNING_CHARS])).id == OTHER
    assert find_thread(history.rows, form.format(OTHER[:9])) == OTHER
    # All ids of a conversation begin with it.
    assert find_thread(history.rows, form.format(ONE[:-1])) == THREAD


def test_the_beginning_of_several_ids_is_an_error_that_names_them(history):
    with pytest.raises(InvalidRequest) as refused:
        history.exchange(ONE[:-1])
    assert refused.value.message == f"several ids begin with {ONE[:-1]}: {ONE}, {NEXT}"


@pytest.mark.parametrize(
    "count, more", [(2, ""), (4, ""), (5, " and 1 more"), (16, " and 12 more")]
)
def test_a_few_of_several_ids_are_named_as_short_as_they_differ(count, more):
    ids = [f"01m8{number:022}" for number in range(count)]
    rows = {True: [(count,)], False: [(id,) for id in ids]}

    def query(sql, values):
        return [] if "id" in values else rows["count(" in sql][: MAX_OF_SEVERAL + 1]

    with pytest.raises(InvalidRequest) as refused:
        find_id(query, "any table", "01m8")
    assert refused.value.message == f"several ids begin with 01m8: {', '.join(ids[:4])}{more}"

    ids = [f"01m8{number:05}{'x' * 17}" for number in range(count)]
    rows[False] = [(id,) for id in ids]
    with pytest.raises(InvalidRequest) as refused:
        find_id(query, "any table", "01m8")
    shown = ", ".join(id[:13] for id in ids[:4])
    assert refused.value.message == f"several ids begin with 01m8: {shown}{more}"


@pytest.mark.parametrize(
    "text",
    ["", " ", "0", OTHER[: MIN_BEGINNING_CHARS - 1], "%", "_", "01k*", OTHER + "0", "chatcmpl-"],
)
def test_anything_else_means_nothing(history, text):
    with pytest.raises(NotFound, match="the log has no exchange"):
        history.exchange(text)
    with pytest.raises(NotFound, match="the log has no conversation"):
        find_thread(history.rows, text)


@pytest.mark.parametrize("text", ["0", OTHER[: MIN_BEGINNING_CHARS - 1], "'01'", "CHATCMPL-01"])
def test_a_beginning_that_is_too_short_is_told_so(history, text):
    for find in (history.exchange, partial(find_thread, history.rows)):
        with pytest.raises(NotFound) as refused:
            find(text)
        least = "; the beginning of an ID must have at least 4 characters"
        assert refused.value.message.endswith(f" {text}{least}")


def test_an_exchange_stays_in_its_conversation_if_turns_were_deleted(history, path, make_begun):
    failed = replace(make_begun(), status="error", previous_id=ONE)
    with Store(path) as store:
        store.write([failed])
    with sqlite3.connect(path) as log:
        log.execute("delete from turns")
        log.execute("delete from threads")
    log.close()
    for text in (ONE, f"chatcmpl-{NEXT}", ONE[:-1], THREAD.upper(), failed.id, failed.id[:-1]):
        assert find_thread(history.rows, text) == THREAD


def test_all_unknown_ids_are_named(history):
    with pytest.raises(NotFound) as refused:
        find_exchanges(history.rows, ["nobody", ONE, "msg_nothing"])
    assert refused.value.message == "the log has no exchanges nobody, msg_nothing"
    many = [f"x{number}" for number in range(MAX_NAMED + 1000)]
    with pytest.raises(NotFound, match=f"x{MAX_NAMED - 1} and 1,000 more$"):
        find_exchanges(history.rows, many)


def test_an_id_of_something_else_is_no_exchange_but_the_error_helps(history, path):
    turn, run = f"{ONE[:-2]}xx", f"{ONE[:-2]}yy"
    with sqlite3.connect(path) as log:
        log.execute("update turns set id = ? where id = ?", (turn, OTHER))
        log.execute("insert into proxy_runs values (?, 'night', '2026', null, '{}')", (run,))
    log.close()
    for id, hint in (
        (THREAD, f"it is a conversation: log --thread {THREAD}"),
        (turn, f"it is a turn of llm itself: log --thread {turn}"),
        (run, f"it is a benchmark run: log --run {run}"),
    ):
        with pytest.raises(NotFound) as refused:
            history.exchange(id.upper())
        assert refused.value.message == f"the log has no exchange {id.upper()}; {hint}"


def test_a_log_without_exchanges_has_no_ids(tmp_path):
    (tmp_path / "empty.db").touch()
    with LogReader(tmp_path / "empty.db") as reader:
        with pytest.raises(NotFound, match="the log has no exchange 01x"):
            reader.exchange("01x")
        assert reader.resolve(Filter(ids=())) == Filter(ids=())
