from __future__ import annotations

import json
import sqlite3
import time
from dataclasses import replace
from datetime import timedelta

import llm
import pytest
from llm.parts import (
    Message,
    ReasoningPart,
    StreamEvent,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)

from llmproxy.core import attachments, chat
from llmproxy.core.errors import NotFound
from llmproxy.core.usage import Usage
from llmproxy.recorder.database import SCHEMA_VERSION, Unusable
from llmproxy.recorder.exchange import to_json
from llmproxy.recorder.listing import Filter
from llmproxy.recorder.prune import prune
from llmproxy.recorder.reader import LogReader
from llmproxy.recorder.store import Store
from llmproxy.recorder.summary import ExchangeSummary, columns, timestamp
from tests.log_fixtures import RECEIVED, ended_as


@pytest.fixture
def history(store, path):
    history = LogReader(path)
    yield history
    history.close()


def ids(entries):
    return [entry.id for entry in entries]


def test_exchanges_are_listed_as_they_were_received(store, history, make_exchange, make_begun):
    late = replace(make_exchange("late"), received=RECEIVED + timedelta(hours=1))
    early, running = make_exchange("early"), make_begun("running")
    store.write([late, early, running])
    assert ids(history.entries()) == ids([early, running, late])
    assert ids(history.entries(last=2)) == ids([running, late])


@pytest.mark.parametrize(
    "field, value",
    [
        ("status", "bogus"),
        ("since", "2d"),
        ("until", 1),
        ("ids", "01jd"),
        ("ids", [1]),
        ("model", ["demo"]),
        ("is_traffic", "no"),
    ],
)
def test_a_filter_that_makes_no_sense_is_refused(field, value):
    with pytest.raises(ValueError, match=f"^filter {field}: expected "):
        Filter(**{field: value})


def test_a_summary_reads_back_equal(store, history, make_begun, make_exchange):
    finish = chat.Finish("length", "END", Usage(9, 8, 7, 6, 5))
    exchange = ended_as(
        make_begun("two  words\n" * 50),
        "error",
        http_status=200,
        duration_ms=12.5,
        events=[(3.25, StreamEvent("text", "x", part_index=0))],
        finish=finish,
        error="cut",
        ignored=["top_k", "tools[*].strict"],
    )
    store.write([exchange])
    (entry,) = history.entries()
    assert entry == ExchangeSummary(**{name: getattr(exchange, name) for name in vars(entry)})


@pytest.mark.parametrize(
    "only, expected",
    [
        (Filter(since=RECEIVED + timedelta(minutes=1)), "bc"),
        (Filter(until=RECEIVED + timedelta(minutes=1)), "a"),
        (Filter(model="gpt-x"), "b"),
        (Filter(model="demo"), "abc"),
        (Filter(client="aider"), "b"),
        (Filter(dialect="anthropic_messages"), "c"),
        (Filter(status="error"), "c"),
        (Filter(status="ok", client="tests"), "a"),
        (Filter(thread_id="thread"), "b"),
        (Filter(search="rhubarb"), "a"),
        (Filter(search="crumble rhubarb"), "a"),
        (Filter(search='"odd OR (words'), "b"),
        (Filter(search="nothing"), ""),
        (Filter(ids=("a", "c", "x")), "ac"),
        (Filter(ids=()), ""),
    ],
    ids=str,
)
def test_a_list_can_be_filtered(store, history, make_exchange, only, expected):
    a = make_exchange("rhubarb", "crumble", id="a")
    request = {"model": "gpt-x", "client": "aider"}
    b = make_exchange('"odd OR (words', request=request, thread_id="thread", id="b")
    request = {"dialect": "anthropic_messages"}
    c = make_exchange("down?", reply=[], status="error", error="down", request=request, id="c")
    for minute, exchange in enumerate([a, b, c]):
        received = RECEIVED + timedelta(minutes=minute)
        store.write([replace(exchange, id="abc"[minute], received=received)])
    assert "".join(ids(history.entries(only))) == expected


def test_an_exchange_reads_back_completely(store, history, make_exchange):
    picture = attachments.attachment_from_url("https://example.invalid/cat.png")
    image = llm.Attachment("image/png", content=b"\x89PNG")
    reply = [
        ReasoningPart("hmm", provider_metadata={"anthropic": {"signature": "s" * 80}}),
        TextPart("Looking."),
        ToolCallPart("look", {"z": 1, "a": [1.0, True]}, "call_1"),
    ]
    body = {"messages": [{"content": "long " * 200}] * 40, "$": 1}
    exchange = make_exchange(
        messages=[llm.system("be brief"), llm.user("look", picture, image)],
        reply=[Message("assistant", reply)],
        options={"temperature": 0.5},
        tools=(llm.Tool("look", "Look.", {"type": "object"}), llm.Tool("b"), llm.Tool("a")),
        schema={"type": "object"},
        usage=llm.Usage(7, 2, {"cached": 1}),
        resolved_model="demo-2026",
        response_json={"id": "r1", "text": "Looking."},
        request={"body": body, "query": "beta=true"},
    )
    store.write([exchange])
    read = history.exchange(exchange.id)
    assert to_json(read) == to_json(exchange)
    assert read.finish == exchange.finish
    assert type(read.turn.messages[1].parts[1].attachment) is attachments.RemoteAttachment


def test_a_failure_reads_back_with_its_messages(store, history, make_exchange):
    exchange = make_exchange("what?", reply=[], status="error", error="down")
    store.write([exchange])
    read = history.exchange(exchange.id)
    assert (read.error, read.events, read.turn.messages) == ("down", [], exchange.turn.messages)


def test_a_request_without_a_model_run_reads_back(store, history, make_begun):
    begun = make_begun(body="{no JSON", messages=())
    exchange = ended_as(begun, "error", http_status=400, duration_ms=0.5, error="bad")
    store.write([exchange])
    read = history.exchange(exchange.id)
    assert read == replace(exchange, events=[])
    assert read.turn is None and read.finish is None


def test_an_unknown_id_is_not_found(history):
    with pytest.raises(NotFound, match="the log has no exchange 01x"):
        history.exchange("01x")


def test_new_exchanges_are_followed(store, history, make_begun, make_exchange):
    before = make_begun("was running before")
    store.write([before, make_exchange("had ended before")])
    follower = history.follow()
    assert follower.poll() == []
    begun, ended = make_begun("begins"), make_exchange("ends at once")
    store.write([begun])
    assert [(e.id, e.status) for e in follower.poll()] == [(begun.id, "running")]
    store.write([ended])
    store.write([ended_as(before, "cancelled", http_status=None, duration_ms=1.0)])
    assert [(e.id, e.status) for e in follower.poll()] == [
        (before.id, "cancelled"),
        (ended.id, "ok"),
    ]
    store.write([ended_as(begun, "ok", http_status=200, duration_ms=1.0)])
    assert [(e.id, e.status) for e in follower.poll()] == [(begun.id, "ok")]
    assert follower.poll() == []


def test_following_can_be_filtered(store, history, make_begun):
    follower = history.follow(Filter(status="error"))
    begun, other = make_begun(), make_begun()
    store.write([begun, other])
    assert follower.poll() == []
    store.write([ended_as(begun, "error", http_status=502, duration_ms=1.0)])
    store.write([ended_as(other, "ok", http_status=200, duration_ms=1.0)])
    assert ids(follower.poll()) == [begun.id]


def test_reading_neither_writes_nor_waits(store, history, path, make_exchange):
    exchange = make_exchange()
    store.write([exchange])
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        history._conn.execute("delete from proxy_exchanges")
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    assert history.exchange(exchange.id).id == exchange.id
    writer.close()


def test_a_log_without_our_tables_is_empty_until_a_proxy_writes(path, run_llm, make_exchange):
    run_llm("-m", "echo", "hi")
    history = LogReader(path)
    assert history.entries() == []
    follower = history.follow()
    store = Store(path)
    store.write([make_exchange()])
    assert len(history.entries()) == len(follower.poll()) == 1
    store.close()
    history.close()


def newer(path):
    store = Store(path)
    store._conn.execute("update proxy_meta set value = 99 where name = 'schema'")
    store.close()


def no_database(path):
    path.write_text("this is no database " * 100)


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda path: None, "logs.db: nothing is recorded yet; the file does not exist"),
        (no_database, "file is not a database"),
        (newer, f"schema 99, this one knows {SCHEMA_VERSION}.: upgrade llmproxy"),
    ],
    ids=["none", "no database", "newer"],
)
def test_an_unreadable_log_is_one_clear_line(path, spoil, words):
    spoil(path)
    with pytest.raises(Unusable, match=words):
        LogReader(path)
    assert path.exists() == (spoil is no_database or spoil is newer)


@pytest.mark.slow
def test_a_hundred_thousand_exchanges_are_no_slower_than_none(store, history, path, make_begun):
    filler = {
        "status": "ok", "headers": "h" * 600, "query": "", "body": "b" * 1500,
        "timeline": json.dumps("t" * 4000),
    }  # fmt: skip
    alike = columns(make_begun()) | filler

    def row(number):
        return alike | {
            "id": f"{number:026d}",
            "received": timestamp(RECEIVED + timedelta(seconds=number)),
            "client": f"c{number % 7}",
            "model_asked": "rare" if number == 77 else f"m{number % 5}",
        }

    names = list(alike)
    with sqlite3.connect(path) as connection:
        connection.executemany(
            f"insert into proxy_exchanges ({', '.join(names)})"
            f" values ({', '.join(f':{name}' for name in names)})",
            map(row, range(100_000)),
        )

    def took_s(action):
        """The least CPU time of three."""
        times = []
        for _ in range(3):
            began = time.thread_time()
            action()
            times.append(time.thread_time() - began)
        return min(times)

    follower = history.follow()
    for only in (
        Filter(),
        Filter(model="rare"),
        Filter(model="m3", client="c3"),
        Filter(status="error"),
        Filter(until=RECEIVED + timedelta(hours=1)),
        Filter(search="hello"),
        Filter(thread_id="x"),
    ):
        assert took_s(lambda only=only: history.entries(only, last=20)) < 0.25
    assert took_s(follower.poll) < 0.05
    assert took_s(lambda: store.write([make_begun()])) < 0.05


def test_an_exchange_is_found_by_the_id_given_to_its_client(store, path, make_exchange):
    exchange = make_exchange()
    store.write([replace(exchange, turn=replace(exchange.turn, thread_id="01thread"))])
    log = LogReader(path)
    assert log.exchange(f"chatcmpl-{exchange.id}").id == exchange.id
    assert log.exchange(f"msg_{exchange.id}").id == exchange.id
    log.close()


def test_a_threads_id_is_not_an_exchanges(store, path, make_exchange):
    exchange = replace(make_exchange(), thread_id="01thread")
    store.write([exchange])
    log = LogReader(path)
    with pytest.raises(NotFound, match="it is a conversation: log --thread 01thread"):
        log.exchange("01thread")
    log.close()


# ---- search


SEARCHED = [
    ("weather", "天气"),
    ("weather", "今天天气"),
    ("weather", "非常好 出去"),
    ("weather", "Python天气"),
    ("japan", "東京"),
    ("japan", "タワー"),
    ("japan", "ﾀﾜ"),
    ("thai", "สวัสดี"),
    ("korea", "날씨"),
    ("korea", "서울 날씨"),
    ("tool", "crumble"),
    ("tool", "CRUMBLE 42%"),
    ("tool", "天気"),
    ("reminded", "marzipan"),
    ("reminded", "reminder marzipan"),
    ("signs", "🎉"),
    ("signs", "c++"),
    ("signs", "->"),
    ("failed", "never"),
    ("failed", "结果"),
    ("weather", "GOOD"),
    ("accents", "café"),
    ("accents", "CAFE"),
    ("refused", "企鵝"),
    ("refused", "picture 皇帝"),
]


@pytest.fixture
def spoken(store, make_exchange):
    """Exchanges by name, each with words of its own."""
    call = Message("assistant", [ToolCallPart("look", {}, "c1")])

    def result(output):
        return Message("tool", [ToolResultPart("look", output, "c1")])

    reminder = llm.user("a reminder that the client adds")
    exchanges = {
        "weather": make_exchange("今天Python天气怎么样", "今天天气非常好，我们出去吧。 Good."),
        "japan": make_exchange("東京タワーはどこですか", "港区です。ﾀﾜｰ"),
        "thai": make_exchange("สวัสดีครับ", "ครับ"),
        "korea": make_exchange("서울의 날씨가 어때요", "맑아요"),
        "tool": make_exchange(
            messages=[llm.user("look"), call, result("Crumble: 42% 天気予報")], answer="sure"
        ),
        "reminded": make_exchange(
            messages=[llm.user("look"), call, result("marzipan"), reminder], answer="sure"
        ),
        "signs": make_exchange("a -> b in C++", "🎉"),
        "failed": make_exchange("never answered 测试结果", reply=[], status="error", error="down"),
        "accents": make_exchange("un café", "voilà"),
    }
    exchanges["failed"] = replace(exchanges["failed"], thread_id=None)
    refused = make_exchange("皇帝企鵝, a picture", reply=[], status="error", error="unreadable")
    exchanges["refused"] = replace(refused, thread_id=None, turn=None)
    for exchange in exchanges.values():
        store.write([exchange])
    return {exchange.id: name for name, exchange in exchanges.items()}


def test_words_are_found_in_every_script_and_in_results_of_tools(spoken, history):
    found = [
        (name, words)
        for words in dict.fromkeys(words for _, words in SEARCHED)
        for name in (spoken[id] for id in history.ids(Filter(search=words)))
    ]
    assert sorted(found) == sorted(SEARCHED)


def test_the_newest_with_the_words_are_found_without_searching_all(
    store, spoken, history, make_exchange, monkeypatch
):
    again = make_exchange("look", status="ok", reply=[], thread_id=None)
    replayed = next(id for id, name in spoken.items() if name == "tool")
    store.write([replace(again, thread_id=None, replay_of=replayed)])
    filters = [Filter(search=words) for _, words in SEARCHED]
    filters += [Filter(search="look"), Filter(search="a", status="error"), Filter(search="nobody")]
    every = {chosen: history.ids(chosen) for chosen in filters}
    assert len(every[Filter(search="CRUMBLE 42%")]) == 2
    for counts in ((1,), (0, 2, 5), (1_000,)):
        monkeypatch.setattr("llmproxy.recorder.listing.SEARCHED_FIRST", counts)
        for chosen, found in every.items():
            for last in (1, 2, 20):
                assert history.ids(chosen, last=last) == found[-last:], chosen
    monkeypatch.setattr("llmproxy.recorder.listing.SEARCHED_FIRST", (1,))
    read = []
    rows = LogReader.rows
    monkeypatch.setattr(
        LogReader, "rows", lambda self, sql, values: read.append(sql) or rows(self, sql, values)
    )
    assert history.ids(Filter(search="look"), last=1) == every[Filter(search="look")][-1:]
    assert len(read) == 3  # how many there are, since when these came, and these


@pytest.mark.parametrize("words", ["", " ", "\n"])
def test_no_words_select_everything(spoken, history, words):
    assert len(history.ids(Filter(search=words))) == len(spoken)
    assert history.ids(Filter(search=words, status="error")) == history.ids(Filter(status="error"))


@pytest.mark.parametrize(
    "words",
    [
        '"',
        "*",
        "a* OR",
        "NEAR(",
        "'",
        "%%",
        "_",
        "x\0y",
        "\ud800",
        "\udcff天",
        "x " * 3000,
        "x" * 10**6,
    ],
    ids=range(12),
)
def test_any_words_can_be_searched_for(spoken, history, words):
    found = [spoken[id] for id in history.ids(Filter(search=words))]
    assert found == []


def test_following_searches_too(store, spoken, history, make_exchange):
    follower = history.follow(Filter(search="天气"))
    store.write([make_exchange("明天天气呢")])
    store.write([make_exchange("weather")])
    assert [entry.first_words for entry in follower.poll()] == ["明天天气呢"]


def test_what_is_found_can_be_pruned(store, spoken, path, history):
    assert prune(path, Filter(search="天气")).exchanges == 1
    assert history.ids(Filter(search="天气")) == []
