"""Tokens per second: a right rate, or none."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from llm.parts import StreamEvent

from llmproxy.core.usage import Usage
from llmproxy.recorder.database import SCHEMA_VERSION
from llmproxy.recorder.exchange import from_json, to_json, with_answer
from llmproxy.recorder.listing import open_for_reading
from llmproxy.recorder.reader import LogReader
from llmproxy.recorder.store import Store
from llmproxy.recorder.timeline import EventTicks, Tick, encode, ticks
from llmproxy.recorder.token_rate import MIN_SPAN_MS, tokens_per_second
from tests.log_fixtures import make_version_4


def words(count, gap_ms, at_ms=100.0, kind="text", chars=4):
    """Words of one token each, one after another."""
    return [Tick(at_ms + number * gap_ms, kind, 0, chars) for number in range(count)]


def rate(ticks, output, reasoning=None, estimate=None):
    return tokens_per_second(
        ticks, Usage(output_tokens=output, reasoning_tokens=reasoning), estimate
    )


def test_a_token_at_a_time_has_the_rate_of_its_pauses():
    assert rate(words(101, 20.0), 101) == pytest.approx(50)


def test_a_usage_chunk_or_an_event_without_text_may_be_late():
    """It gave 5/s: ten tokens per second, and 0.6 s of counting behind them."""
    spoken = words(7, 100.0)
    assert rate(spoken, 7) == pytest.approx(10)
    assert rate([*spoken, Tick(1300.0, "text", 0, 0)], 7) == pytest.approx(10)
    assert rate([*spoken, Tick(1300.0, "redacted", 1, 0)], 7, 0) == pytest.approx(10)


def test_the_share_of_the_first_piece_is_left_out():
    """It gave 299/s: three pieces of a hundred tokens, one in half a second."""
    assert rate(words(3, 500.0, chars=400), 300) == pytest.approx(200)
    uneven = [Tick(0.0, "text", 0, 600), Tick(400.0, "text", 0, 200), Tick(1000.0, "text", 0, 200)]
    assert rate(uneven, 250) == pytest.approx(100)


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        words(1, 0.0, chars=400),
        words(100, 0.0),
        words(100, 0.05),  # as a plugin hands on what it read at once
        [*words(99, 0.0, chars=5), Tick(120.0, "text", 0, 1)],  # it gave 4,844/s
        [*words(99, 0.05, chars=5), Tick(120.0, "text", 0, 1)],
        [Tick(100.0, "text", 0, 495), Tick(120.0, "text", 0, 1)],
        [Tick(100.0, "text", 0, 495), Tick(2100.0, "text", 0, 1)],
        [*words(99, 0.25, chars=5), Tick(300.0, "text", 0, 1), Tick(500.0, "text", 0, 1)],
        words(2, 1000.0, chars=200),
        [*words(1, 0.0, chars=400), Tick(900.0, "text", 0, 0)],
        words(100, 0.4),
        [*words(70, 0.3), *words(30, 0.3, at_ms=160.0)],  # with a pause of the machine
        [*words(100, 0.4), *words(99, 0.4, at_ms=142.0), *words(99, 0.4, at_ms=184.0)],
    ],
    ids=[
        "nothing",
        "one piece",
        "all at one moment",
        "all in 5 ms",
        "a dot later",
        "a dot later than 5 ms",
        "a dot after one piece",
        "a dot 2 s later",
        "two dots",
        "two pieces",
        "metadata later",
        "all in 40 ms",
        "read in two parts",
        "more of it, read in three parts",
    ],
)
def test_what_does_not_tell_has_no_rate(pieces):
    assert rate(pieces, 100) is None
    assert rate(pieces, None, estimate=100) is None


def test_hidden_reasoning_does_not_count():
    """It gave 1,879/s for 185."""
    spoken = words(101, 5.4, chars=5)
    expected = pytest.approx(1000 / 5.4)
    assert rate(spoken, 101) == expected
    assert rate(spoken, 1001, 900) == expected
    assert rate([Tick(90.0, "redacted", 0, 0), *spoken], 1001, 900) == expected
    assert rate([Tick(90.0, "reasoning", 0, 0), *spoken], 1001, 900) == expected
    assert rate([*spoken, Tick(900.0, "redacted", 1, 0)], 1001, 900) == expected


def test_a_summary_of_reasoning_does_not_count():
    summary = words(10, 100.0, kind="reasoning", chars=30)
    assert rate([*summary, *words(51, 20.0, 2000.0)], 951, 900) == pytest.approx(50)


def test_reasoning_that_was_streamed_counts_like_text():
    thought = words(60, 20.0, kind="reasoning")
    assert rate([*thought, *words(41, 20.0, 1300.0)], 101, 60) == pytest.approx(50)
    assert rate([*thought, *words(41, 20.0, 1300.0)], 101) == pytest.approx(50)
    assert rate(thought, 60, 60) == pytest.approx(50)


@pytest.mark.parametrize(
    "pieces, output, reasoning",
    [
        (words(50, 20.0), 201, None),
        (words(50, 20.0), 1000, 0),
        ([Tick(90.0, "redacted", 0, 0), *words(50, 20.0)], 150, None),
        (words(50, 20.0), 20, 30),
    ],
    ids=["more tokens than characters", "and no reasoning", "hidden, not counted", "a wrong count"],
)
def test_a_count_of_more_than_was_streamed_gives_no_rate(pieces, output, reasoning):
    assert rate(pieces, output, reasoning) is None


def test_calls_of_tools_count_and_their_results_do_not():
    call = [Tick(100.0, "tool_call_name", 0, 4), *words(50, 20.0, 120.0, "tool_call_args")]
    assert rate(call, 51) == pytest.approx(50)
    search = [Tick(5000.0, "tool_result", 1, 9000)]
    more = words(50, 20.0, 6000.0)
    assert rate([*call, *search, *more], 101) == pytest.approx(50)


def test_our_estimate_stands_in_for_a_count_only():
    spoken = words(101, 20.0)
    assert rate(spoken, None, estimate=101) == pytest.approx(50)
    assert rate(spoken, 101, estimate=9) == pytest.approx(50)
    assert rate(spoken, None) is None
    assert rate(spoken, 0, estimate=101) is None


# ---- properties


@st.composite
def streams(draw):
    """Events as models stream them, with counts that could be theirs."""
    kinds = st.sampled_from(["text", "text", "text", "reasoning", "tool_call_args", "tool_result"])
    steps = st.tuples(st.integers(0, 800), kinds, st.integers(0, 60))
    at, pieces = 0, []
    for gap, kind, length in draw(st.lists(steps, min_size=4, max_size=40)):
        at += gap
        pieces.append(Tick(at / 4, kind, 0, length))  # quarters are exact as floats
    chars = sum(tick.length for tick in pieces if tick.kind != "tool_result")
    output = draw(st.integers(chars // 5, chars))
    return pieces, output, draw(st.none() | st.integers(0, output))


def last_read_at_once(times):
    """The last event that came together with the first one."""
    return next(at for at, after in pairwise(times) if after - at > 1)


@given(streams())
def test_a_rate_is_never_above_what_tokens_and_time_allow(stream):
    pieces, output, reasoning = stream
    found = rate(pieces, output, reasoning)
    assume(found is not None)
    times = [tick.at_ms for tick in pieces if tick.length and tick.kind != "tool_result"]
    assert 0 < found <= output * 1000 / MIN_SPAN_MS
    if not any(tick.kind in ("tool_result", "reasoning") for tick in pieces):
        later = times[-1] - last_read_at_once(times)
        assert found <= output * 1000 / later * (1 + 1e-9)


@given(streams(), st.integers(1, 100))
def test_more_tokens_in_the_same_time_are_a_higher_rate(stream, more):
    pieces, output, _ = stream
    found, fewer = rate(pieces, output), rate(pieces, max(output - more, 1))
    assume(found is not None and fewer is not None)
    assert fewer < found or output == 1


@given(streams(), st.integers(2, 9))
def test_the_same_in_more_time_is_a_lower_rate(stream, times):
    """By as much, where events are too far apart to be taken as one."""
    pieces, output, reasoning = stream
    apart = [tick._replace(at_ms=number * 15 + tick.at_ms) for number, tick in enumerate(pieces)]
    slow = [tick._replace(at_ms=tick.at_ms * times) for tick in apart]
    found = rate(apart, output, reasoning)
    assume(found is not None)
    assert rate(slow, output, reasoning) == pytest.approx(found / times)


@given(streams(), st.data())
def test_cutting_an_event_into_pieces_changes_nothing(stream, data):
    pieces, output, reasoning = stream
    cut = []
    for tick in pieces:
        first = data.draw(st.integers(0, tick.length))
        cut += [tick._replace(length=first), tick._replace(length=tick.length - first)]
    whole = rate(pieces, output, reasoning)
    assert rate(cut, output, reasoning) == (None if whole is None else pytest.approx(whole))


@given(streams(), st.integers(0, 10**6))
def test_the_wait_before_the_first_event_changes_nothing(stream, wait_ms):
    pieces, output, reasoning = stream
    later = [tick._replace(at_ms=tick.at_ms + wait_ms) for tick in pieces]
    assert rate(later, output, reasoning) == rate(pieces, output, reasoning)


# ---- where it is kept


SPOKEN = [(100.0 + 20 * i, StreamEvent("text", "word", part_index=0)) for i in range(101)]


def spoken(exchange, **changes):
    """Give an exchange an answer of 101 tokens, 50 in a second."""
    turn = replace(exchange.turn, reply=[])
    changed = replace(exchange, status="ok", **changes)
    finish = replace(exchange.finish, usage=Usage(3, 101))
    return with_answer(changed, turn, SPOKEN, finish)


def test_an_exchange_is_given_its_rate_when_it_ends(make_exchange):
    assert spoken(make_exchange()).tokens_per_second == pytest.approx(50)
    assert spoken(make_exchange(), replay_of="01recorded").tokens_per_second is None


def test_times_are_rounded_before_they_are_used():
    """So that a rate can be computed again from what is stored."""
    events = [(at + at / 3, event) for at, event in SPOKEN]
    assert list(EventTicks(events)) == ticks(encode(events))


def test_a_line_of_an_older_version_gets_its_rate(make_exchange):
    form = to_json(make_exchange(answer="word" * 101))
    form["timeline"] = encode(SPOKEN)
    form["usage"]["output_tokens"] = 101
    assert from_json(form).tokens_per_second is None  # as it says
    del form["tokens_per_second"]
    assert from_json(form).tokens_per_second == pytest.approx(50)


def test_rows_of_an_older_version_get_their_rates(store, path, make_exchange):
    whole, estimated, damaged, empty, replayed = [spoken(make_exchange()) for _ in range(5)]
    estimated = replace(estimated, usage=Usage(), output_tokens_estimate=202)
    empty = replace(empty, events=())
    replayed = replace(replayed, turn=None, thread_id=None, replay_of="01recorded")
    store.write([whole, estimated, damaged, empty, replayed])
    store.close()
    with sqlite3.connect(path) as db:
        make_version_4(db)
        broken = '{"parts": [{}], "ticks": "AAA"}'
        db.execute("update proxy_exchanges set timeline = ? where id = ?", (broken, damaged.id))
        db.execute("update proxy_exchanges set origin = 'llama-stack' where id = ?", (empty.id,))
    sql = "select tokens_per_second from proxy_exchanges order by number"
    expected = [pytest.approx(50), pytest.approx(100), None, None, None]
    with closing(open_for_reading(path)[0]) as read_only:  # as where nothing can be written
        assert [rate for (rate,) in read_only.execute(sql)] == expected
    with LogReader(path) as reader:  # times that were not taken are absent there too
        untimed, timed = reader.exchange(empty.id), reader.exchange(whole.id)
    assert (untimed.turn.duration_ms, timed.turn.duration_ms) == (None, whole.turn.duration_ms)
    Store(path).close()
    with sqlite3.connect(path) as db:
        rates = [rate for (rate,) in db.execute(sql)]
        version = db.execute("select value from proxy_meta where name = 'schema'").fetchone()[0]
        untimed = db.execute("select id from turns where duration_ms is null").fetchall()
    assert rates == expected
    assert version == SCHEMA_VERSION
    assert untimed == [(empty.id,)]


def test_an_older_export_has_no_times_that_were_not_taken(make_exchange):
    imported = replace(spoken(make_exchange()), origin="llama-stack", events=())
    form = to_json(imported)
    assert form["turn"]["duration_ms"] is not None
    assert from_json(form).turn.duration_ms is None
