from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import llm
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm.parts import Message, StreamEvent

from llmproxy.core import attachments, chat
from llmproxy.core.usage import Usage
from llmproxy.recorder.exchange import Turn, begun, from_json, to_json
from tests.examples import many_examples
from tests.log_fixtures import ended_as
from tests.strategies import conversations, event_streams, json_values, texts, tools, words

RECEIVED = datetime(2026, 11, 21, 22, 47, 1, 500, tzinfo=UTC)
KEY = "sk-abcdefgh12345678"


def begin(**fields):
    facts = {
        "dialect": "openai_chat",
        "path": "/v1/chat/completions",
        "query": f"beta=true&key={KEY}",
        "client": "OpenAI/Python",
        "headers": [("Authorization", f"Bearer {KEY}"), ("User-Agent", "OpenAI/Python 3.54")],
        "body": {"model": "demo", "messages": [], "api_key": KEY},
        "stream": True,
        "model": "gpt-x",
        "messages": [llm.system("be brief"), llm.user("say\n hello"), llm.system("now")],
    }
    return begun("01jd1", RECEIVED, **facts | fields)


def turn(messages, reply, **fields):
    return Turn(
        id="01jd1",
        thread_id="01jd0",
        model="demo",
        messages=messages,
        reply=reply,
        started=RECEIVED,
        duration_ms=12,
        **fields,
    )


def test_an_exchange_begins_without_its_secrets():
    exchange = begin()
    assert exchange.request.headers == {
        "authorization": "[removed]",
        "user-agent": "OpenAI/Python 3.54",
    }
    assert exchange.request.query == "beta=true&key=%5Bremoved%5D"
    assert exchange.request.body == {"model": "demo", "messages": [], "api_key": "[removed]"}
    assert (exchange.status, exchange.model_asked, exchange.first_words) == (
        "running",
        "gpt-x",
        "say hello",
    )
    assert exchange.finish is None
    assert KEY not in repr(exchange) and KEY not in json.dumps(to_json(exchange))


def test_only_the_start_of_a_text_body_is_kept():
    assert len(begin(body="x" * 10**6).request.body) == 65536


def test_an_ended_exchange_summarizes_its_events():
    events = [
        (250.0, StreamEvent("reasoning", "hm", part_index=0)),
        (300.0, StreamEvent("text", "\n", part_index=1)),
        (310.0, StreamEvent("text", "HELLO", part_index=1)),
    ]
    reply = chat.collect(event for _, event in events).messages
    finish = chat.Finish(
        "length",
        "END",
        Usage(7, 2, 1),
        model="demo-2026",
        response_json={"id": "r1"},
        llm_usage=llm.Usage(7, 2),
    )
    answered = turn(
        [llm.user("hi")],
        reply,
        resolved_model="demo-2026",
        response_json={"id": "r1"},
        usage=llm.Usage(7, 2),
    )
    exchange = ended_as(
        begin(),
        "ok",
        http_status=200,
        duration_ms=312.5,
        turn=answered,
        events=events,
        finish=finish,
        ignored=["top_k"],
    )
    assert exchange.finish == finish
    assert (exchange.ttft_ms, exchange.first_text_ms, exchange.duration_ms) == (250.0, 310.0, 312.5)
    assert (exchange.event_count, exchange.ignored) == (3, ("top_k",))
    assert (exchange.thread_id, exchange.model_used, exchange.first_words) == (
        "01jd0",
        "demo",
        "hi",
    )


@pytest.mark.parametrize(
    "status, reply, thread_id",
    [
        ("ok", [], "01jd0"),
        ("error", [], None),
        ("cancelled", [llm.assistant("HEL")], "01jd0"),
    ],
    ids=["empty answer", "nothing came", "cut short"],
)
def test_an_exchange_with_output_is_a_turn(status, reply, thread_id):
    exchange = ended_as(
        begin(), status, http_status=None, duration_ms=1.0, turn=turn([llm.user("hi")], reply)
    )
    assert (exchange.thread_id, exchange.model_used) == (thread_id, "demo")


def test_an_error_is_kept_without_the_secrets_it_quotes():
    exchange = ended_as(
        begin(headers=[("x-api-key", "my-local-key")]),
        "error",
        http_status=401,
        duration_ms=1.0,
        error="my-local-key is not a key",
    )
    assert exchange.error == "[removed] is not a key"


@st.composite
def exchanges(draw):
    events = draw(event_streams())
    finish = events.pop()
    timed = [(float(i), event) for i, event in enumerate(events)]
    reply = chat.collect(events).messages
    answered = turn(
        draw(conversations()),
        reply,
        options=draw(st.none() | st.just({"temperature": 0.5})),
        tools=tuple(draw(st.lists(tools(), max_size=2))),
        schema=draw(st.none() | st.just({"type": "object"})),
    )
    return ended_as(
        begin(body=draw(json_values()), client=draw(texts()), model=draw(words)),
        draw(st.sampled_from(["ok", "error", "cancelled"])),
        http_status=draw(st.none() | st.just(200)),
        duration_ms=1.5,
        turn=draw(st.just(answered) | st.none() if not events else st.just(answered)),
        events=timed,
        finish=draw(st.none() | st.just(finish)),
        error=draw(st.none() | texts()),
        ignored=draw(st.lists(words, max_size=2)),
    )


@many_examples(20)  # each draws a whole conversation
@given(exchanges())
def test_the_json_form_reads_back_equal(exchange):
    read = from_json(json.loads(json.dumps(to_json(exchange))))
    assert to_json(read) == to_json(exchange)
    same = [(at, replace(event, provider_metadata=None)) for at, event in exchange.events]
    assert [(at, replace(e, provider_metadata=None)) for at, e in read.events] == same
    assert replace(read, events=()) == replace(exchange, events=())


def test_an_attachment_that_is_read_back_stays_where_it_is():
    picture = attachments.attachment_from_url("https://example.invalid/cat.png")
    asked = [llm.user("look", picture)]
    result = llm.parts.ToolResultPart("look", "red", "call_1", attachments=[picture])
    exchange = ended_as(
        begin(),
        "error",
        http_status=502,
        duration_ms=1.0,
        turn=turn([*asked, Message("tool", [result])], []),
    )
    read = from_json(to_json(exchange))
    assert read.turn == exchange.turn
    assert type(read.turn.messages[0].parts[1].attachment) is attachments.RemoteAttachment
    assert type(read.turn.messages[1].parts[0].attachments[0]) is attachments.RemoteAttachment


def test_an_older_versions_line_is_read():
    form = to_json(begin())
    del form["stop_sequence"], form["first_words"]
    assert from_json(form).first_words == ""


@pytest.mark.parametrize("form", [{}, {"id": "x"}], ids=["nothing", "not enough"])
def test_other_json_than_an_exchange_is_refused(form):
    with pytest.raises((ValueError, TypeError, KeyError)):
        from_json(form)
