"""Replay of recordings, without a server."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from dataclasses import replace

import llm
import pytest
from hypothesis import given
from llm.parts import Message, StreamEvent, TextPart

from llmproxy.backends.log_source import Log
from llmproxy.backends.replay import Recorded, Replay, ReplayRun, differences
from llmproxy.core import chat
from llmproxy.core.errors import ModelNotFound, NotRecorded, RateLimited, UpstreamError
from llmproxy.core.fingerprints import request_key, request_keys
from llmproxy.dialects import DIALECTS, anthropic_messages, openai_chat
from llmproxy.recorder import timeline
from tests import strategies
from tests.log_fixtures import make_version_4

SAID = [
    (10.0, StreamEvent("text", "Hel", part_index=0)),
    (250.0, StreamEvent("text", "lo", part_index=0)),
]
REQUEST = chat.ChatRequest("m", [llm.system("s"), llm.user("q")], options={"temperature": 1})


def recorded(events=SAID, *, error=None, ended_ms=300.0, id="r1"):
    return Recorded(id, "m", events, None if error else chat.Finish(), error, ended_ms)


def play_all(run, silence_s=None):
    async def play():
        batches = []
        try:
            while batch := await run.read(silence_s):
                batches.append(batch)
        except UpstreamError as error:
            return batches, error
        return batches, batch

    return asyncio.run(play())


def events_in(batches):
    return [stamped.event for batch in batches for stamped in batch]


# ---- playing


@pytest.mark.parametrize("speed", [1, 2, 0])
def test_events_come_at_their_recorded_times(speed):
    """Never early, and late by no more than a busy machine explains."""
    run = ReplayRun(recorded(ended_ms=700.0), speed)
    batches, end = play_all(run)
    assert events_in(batches) == [*(event for _, event in SAID), chat.Finish()]
    assert end == []
    due = [at / 1000 / speed if speed else 0 for at in (10, 250, 700)]
    came = [stamped.at - run.started_at for batch in batches for stamped in batch]
    assert all(0 <= late - at < 1 for late, at in zip(came, due, strict=True))
    assert len(batches) == (1 if speed == 0 else 3)


def test_silence_returns_none():
    async def play():
        run = ReplayRun(recorded([(150.0, SAID[0][1])], ended_ms=150.0), 1)
        return [await run.read(0.1), await run.read(0.1)]

    first, second = asyncio.run(play())
    assert first is None
    assert events_in([second]) == [SAID[0][1], chat.Finish()]


def test_failure_comes_after_the_events_before_it():
    batches, error = play_all(ReplayRun(recorded(error=UpstreamError("no more")), 0))
    assert events_in(batches) == [event for _, event in SAID]
    assert str(error) == "no more"


def test_stopped_replay_returns_no_more_events():
    async def play():
        run = ReplayRun(recorded(error=UpstreamError("no more")), 0)
        await run.stop()
        return await run.read()

    assert asyncio.run(play()) == []


@pytest.mark.parametrize("dialect", DIALECTS, ids=[dialect.NAME for dialect in DIALECTS])
@given(events=strategies.event_streams())
def test_a_stored_response_renders_byte_for_byte_as_the_original(dialect, events):
    """The metadata of a part is stored, but not its position among the events."""
    *said, finish = events
    last = {event.part_index: number for number, event in enumerate(said)}
    said = [
        event
        if event.provider_metadata is None or last[event.part_index] == number
        else replace(event, provider_metadata=None)
        for number, event in enumerate(said)
    ]
    kept = timeline.encode([(0.0, event) for event in said])
    reply = chat.collect(said).messages
    again = [event for _, event in timeline.decode(json.loads(json.dumps(kept)), reply)]

    def rendered(events):
        renderer = dialect.StreamRenderer(chat.Envelope("01", 0, "m"))
        frames = [*renderer.start()]
        for event in (*events, finish):
            frames += renderer.feed(event)
        return b"".join(frames)

    assert rendered(again) == rendered(said)


# ---- finding


@pytest.fixture
def log(store, path, make_exchange):
    """Return a function that records an exchange, with a replay of that log."""

    def record(prompt="q", answer="A", **fields):
        body = {"model": "m", "messages": [{"role": "user", "content": prompt}]}
        body |= fields.pop("body", {})
        request = openai_chat.parse_request(body, {})
        begins = {"body": body, "model": body["model"], "replay_key": request_key(request)}
        begins |= fields.pop("request_fields", {})
        exchange = make_exchange(prompt, answer, request=begins, model="real", **fields)
        store.write([exchange])
        return exchange.id

    record.replay = Replay(Log(path), speed=0)
    record.store = store
    return record


def request(**body):
    defaults = {"model": "m", "messages": [{"role": "user", "content": "q"}]}
    return openai_chat.parse_request(defaults | body, {})


def start_run(log, request):
    async def start():
        run = (await log.replay.choose(request)).prepare(request)
        await run.start()
        return run

    return asyncio.run(start())


def miss_of(log, request):
    with pytest.raises(NotRecorded) as missed:
        start_run(log, request)
    assert (missed.value.status, missed.value.code) == (422, "not_recorded")
    return missed.value.message, missed.value.param


def test_recordings_of_one_request_are_served_in_turn(log):
    ids = [log(answer=answer) for answer in "ABC"]
    assert [start_run(log, request()).replay_of for _ in range(4)] == [*ids, ids[0]]


def test_response_is_as_recorded(log):
    id = log(answer="Hello")
    run = start_run(log, request())
    batches, _ = play_all(run)
    *said, finish = events_in(batches)
    assert chat.collect(said).messages == [llm.assistant("Hello")]
    assert (finish.reason, run.model_id, run.replay_of) == ("stop", "real", id)


@pytest.mark.parametrize("model", ["m", "real"])
def test_model_is_found_by_its_requested_name_and_its_own(model, log):
    log()
    assert start_run(log, request(model=model)).model_id == "real"


def test_replays_and_cancelled_responses_are_not_replayed(log, make_exchange):
    log(status="cancelled")
    key = log.store._conn.execute("select replay_key from proxy_exchanges").fetchone()[0]
    begins = {"model": "m", "replay_key": key}
    replayed = replace(make_exchange(request=begins), replay_of="x", turn=None, thread_id=None)
    log.store.write([replayed])
    assert miss_of(log, request()) == (
        "there are no recordings of the model 'm': record it first", None
    )  # fmt: skip


def test_failure_is_replayed_if_no_success_was_recorded(log):
    log(status="error", error="too fast", reply=[])
    log.store._conn.execute("update proxy_exchanges set http_status = 429")
    with pytest.raises(RateLimited) as raised:
        asyncio.run(start_run(log, request()).read())
    assert (raised.value.message, raised.value.status) == ("too fast", 429)
    id = log()
    assert [start_run(log, request()).replay_of for _ in range(2)] == [id, id]


@pytest.mark.parametrize("http_status", [429, 200], ids=["instead of an answer", "in a stream"])
def test_failure_is_replayed_with_its_class_code_field_and_wait(http_status, log):
    details = {"error_status": 429, "error_code": "rate_limit_exceeded", "error_param": "model"}
    id = log(status="error", error="model: too fast", reply=[])
    changes = ", ".join(f"{name} = '{value}'" for name, value in details.items())
    log.store._conn.execute(
        f"update proxy_exchanges set http_status = ?, retry_after_s = 6.5, {changes}", [http_status]
    )
    run = start_run(log, request())
    with pytest.raises(RateLimited) as raised:
        asyncio.run(run.read())
    error = raised.value
    assert (error.message, error.status, error.param) == ("too fast", 429, "model")
    assert (error.code, run.replay_of) == ("rate_limit_exceeded", id)
    assert error.headers == {"retry-after": "7", "retry-after-ms": "6500"}


DEFAULTS = {"parallel_tool_calls": True, "presence_penalty": 0, "logit_bias": {}, "n": 1}


def test_requests_that_mean_the_same_have_the_same_recordings(log):
    ids = [log(), log(body=DEFAULTS)]
    replayed = [start_run(log, request(**fields)).replay_of for fields in ({}, DEFAULTS, {})]
    assert replayed == [*ids, ids[0]]


def as_an_older_version_wrote(log, id, body):
    (_, older) = request_keys(request(**body))
    log.store._conn.execute("update proxy_exchanges set replay_key = ? where id = ?", [older, id])


def test_recordings_of_an_older_version_match(log):
    """Their keys took defaults for differences; a request that says less is compared."""
    log("something else")
    id = log(body=DEFAULTS)
    as_an_older_version_wrote(log, id, DEFAULTS)
    assert start_run(log, request(**DEFAULTS)).replay_of == id
    assert start_run(log, request()).replay_of == id
    assert start_run(log, request(temperature=1, **DEFAULTS)).replay_of == id
    assert "differs" not in miss_of(log, request(temperature=0.5))[0]


def test_a_log_of_an_older_version_is_migrated_and_replayed(log, path):
    """Its failures have no details, and its keys are those of that version."""
    id = log(body=DEFAULTS)
    failed = log("fails", status="error", error="model: too fast", reply=[])
    as_an_older_version_wrote(log, id, DEFAULTS)
    execute = log.store._conn.execute
    execute("update proxy_exchanges set http_status = 429 where id = ?", [failed])
    make_version_4(log.store._conn)
    log.store.close()
    with Log(path) as older:
        log.replay = Replay(older, speed=0)
        assert start_run(log, request(**DEFAULTS)).replay_of == id
        assert start_run(log, request()).replay_of == id
        with pytest.raises(RateLimited) as raised:
            fails = request(messages=[{"role": "user", "content": "fails"}])
            asyncio.run(start_run(log, fails).read())
    assert (raised.value.message, raised.value.headers) == ("model: too fast", {})


def test_a_live_model_is_asked_rather_than_older_recordings_compared(log, path):
    class Live:
        async def choose(self, request, headers=()):
            return "live"

    id = log(body=DEFAULTS)
    as_an_older_version_wrote(log, id, DEFAULTS)
    replay = Replay(Log(path), speed=0, live=Live())
    assert asyncio.run(replay.choose(request())) == "live"
    assert asyncio.run(replay.choose(request(**DEFAULTS))).model_id == "real"


def test_rewound_it_starts_from_the_first_recordings_again(log):
    ids = [log(answer=answer) for answer in "ABC"]
    assert log.replay.rewind() == 0
    assert [start_run(log, request()).replay_of for _ in range(2)] == ids[:2]
    assert log.replay.rewind() == 2
    assert start_run(log, request()).replay_of == ids[0]


def test_recorded_models_are_listed(log):
    log()
    assert [model.id for model in log.replay.models()] == ["m", "real"]
    assert asyncio.run(log.replay.model("real")).id == "real"
    with pytest.raises(ModelNotFound):
        asyncio.run(log.replay.model("other"))


# ---- misses


@pytest.mark.parametrize(
    "body, param, difference",
    [
        ({"temperature": 0.5}, "temperature", "temperature was none and is 0.5"),
        ({"max_completion_tokens": 9}, "max_completion_tokens",
         "max_completion_tokens was none and is 9"),
        ({"model": "other"}, "model", 'model was "m" and is "other"'),
        ({"tool_choice": "required"}, "tool_choice", 'tool_choice was "auto" and is "required"'),
        ({"tools": [{"type": "function", "function": {"name": "look"}}]}, "tools",
         "tools differ (look added)"),
        ({"messages": [{"role": "user", "content": "quo"}]}, "messages[0]",
         "messages[0] (user) differs at character 1: it was 'q' and is 'quo'"),
        ({"messages": [{"role": "system", "content": "q"}]}, "messages[0]",
         "messages[0] had role user and has role system"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "user", "content": "r"}]},
         "messages[1]", "messages were 1 and are 2"),
    ],
)  # fmt: skip
def test_error_names_the_nearest_recording_and_the_difference(body, param, difference, log):
    log("something else altogether")
    id = log()
    assert miss_of(log, request(**body)) == (
        f"no recording matches this request; the nearest is {id}, where {difference}"
        "; record it first",
        param,
    )


def test_nearest_has_the_longest_history(log):
    history = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": "and now?"},
    ]
    messages = [llm.user("q"), llm.assistant("A"), llm.user("and now?")]
    id = log("and now?", body={"messages": history}, messages=messages)
    for number in range(5):
        log(f"and now, {number}?")
    changed = [*history[:2], {"role": "user", "content": "and then?"}]
    message, param = miss_of(log, request(messages=changed))
    assert (id in message, param) == (True, "messages[2]")
    assert "differs at character 4: it was 'and now?' and is 'and then?'" in message


def test_options_count_for_what_is_nearest(log):
    id = log("mode ok", body={"max_completion_tokens": 50})
    log("mode later")
    body = {"messages": [{"role": "user", "content": "mode never"}], "max_completion_tokens": 50}
    message, param = miss_of(log, request(**body))
    assert (f"the nearest is {id}" in message, param) == (True, "messages[0]")


def test_recording_of_an_unknown_dialect_is_skipped(log):
    id = log("quite another prompt")
    log("q!", request_fields={"dialect": "gopher"})
    message, _ = miss_of(log, request())
    assert id in message


def test_a_different_image_of_the_same_size_is_a_different_request():
    def read(data, is_result):
        image = {"type": "base64", "media_type": "image/png", "data": data}
        said = [{"type": "image", "source": image}]
        call = {"type": "tool_use", "id": "c1", "name": "look", "input": {}}
        result = {"type": "tool_result", "tool_use_id": "c1", "content": said}
        messages = [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": [result]},
        ]
        if not is_result:
            messages = [{"role": "user", "content": said}]
        body = {"model": "m", "max_tokens": 9, "messages": messages}
        return anthropic_messages.parse_request(body, {})

    for is_result in (False, True):
        one, other = (read(data, is_result) for data in ("iVBORw0KGgo=", "iVBORw0KGgA="))
        assert request_key(one) != request_key(other)
        ((path, text),) = differences(one, other)
        assert text.endswith(" has a different attachment") and path in text


def test_damaged_recording_is_an_error_and_never_the_nearest(log, path):
    id, damaged = log(), log("q!")
    connection = sqlite3.connect(path)
    connection.execute("update proxy_exchanges set timeline = '{' where id = ?", [damaged])
    connection.commit()
    connection.close()
    with pytest.raises(
        UpstreamError, match=f"recording {damaged} is damaged; see `llmproxy log --verify`"
    ):
        start_run(log, request(messages=[{"role": "user", "content": "q!"}]))
    message, _ = miss_of(log, request(messages=[{"role": "user", "content": "q?"}]))
    assert f"the nearest is {id}" in message


def test_differences_other_than_text():
    """Ids of calls, server tools and duplicate tools count; reasoning does not."""

    def read(id="c1", uses=3, tools=1, thought="hm", word="so"):
        tool = {"name": "look", "input_schema": {"type": "object"}}
        said = [
            {"type": "thinking", "thinking": thought, "signature": "s"},
            {"type": "text", "text": word},
            {"type": "tool_use", "id": id, "name": "look", "input": {}},
        ]
        body = {
            "model": "m",
            "max_tokens": 9,
            "tools": [
                *[tool] * tools,
                {"type": "web_search_20250305", "name": "web_search", "max_uses": uses},
            ],
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": said},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": id}]},
            ],
        }
        return anthropic_messages.parse_request(body, {})

    def texts(**changes):
        return [text for _, text in differences(read(**changes), read())]

    assert texts(thought="oh") == []
    assert texts(id="c2") == [
        "messages[1] (assistant) has different tool call ids: they were 'c1' and are 'c2'"
    ]
    assert texts(uses=4) == ["tools differ (web_search changed)"]
    assert texts(tools=2) == ["tools differ (number of duplicates changed)"]
    assert texts(thought="oh", word="to") == [
        "messages[1] (assistant) differs at character 0: it was 'solook({})' and is 'tolook({})'"
    ]


def test_equal_requests_have_no_differences():
    assert list(differences(REQUEST, REQUEST)) == []
    hidden = Message("assistant", [TextPart(" a ")])
    one = replace(REQUEST, messages=[llm.user("q"), llm.assistant("a")])
    assert list(differences(one, replace(one, messages=[llm.user("q"), hidden]))) == []


def test_the_nearest_in_a_large_log_is_found_soon(log):
    for number in range(300):
        log(f"prompt {number}")
    began = time.monotonic()
    assert "differs" in miss_of(log, request())[0]
    assert time.monotonic() - began < 5
