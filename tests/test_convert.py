"""Conversion between every pair of dialects, both ways, whole and streamed."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llm.parts import ReasoningPart, StreamEvent, TextPart, ToolCallPart

import llmproxy
from llmproxy import convert
from llmproxy.core import chat, payload
from llmproxy.core.errors import (
    InvalidRequest,
    Overloaded,
    ProxyError,
    RateLimited,
    Unauthorized,
    UpstreamError,
)
from llmproxy.core.usage import Usage
from llmproxy.dialects import DIALECTS, Dialect, by_name
from llmproxy.transport.framing import MAX_FRAME_BYTES, SSEFrame
from tests.examples import many_examples
from tests.strategies import event_streams, requests
from tests.wire_cases import hub_json, wire_cases

NAMES = [dialect.NAME for dialect in DIALECTS]
PAIRS = [(source, target) for source in NAMES for target in NAMES]
ID, CREATED = "01k0converted", 1_767_225_600

dialects = st.sampled_from(DIALECTS)


ENVELOPE = chat.Envelope(ID, CREATED, "m")


def stream_of(dialect: Dialect, events: list[chat.Event]) -> bytes:
    renderer = dialect.StreamRenderer(ENVELOPE)
    return b"".join(renderer.start() + [f for event in events for f in renderer.feed(event)])


def whole_of(dialect: Dialect, events: list[chat.Event]) -> dict[str, Any]:
    return dialect.render_response(chat.collect(events), ENVELOPE)


def converted(source: str, target: str, stream: bytes, cuts: list[int] | None = None) -> bytes:
    converter = convert.StreamConverter(source=source, target=target, id=ID, created=CREATED)
    places = [0, *sorted(cuts or []), len(stream)]
    pieces = [stream[a:b] for a, b in zip(places, places[1:], strict=False)]
    return b"".join(map(converter.feed, pieces)) + converter.end()


def said(dialect: Dialect, body: dict[str, Any]) -> dict[str, Any]:
    """What a client can see of an answer, in no API's terms."""
    answer = dialect.parse_response(body)
    parts = [part for part in answer.parts if not getattr(part, "server_executed", False)]
    return {
        "text": "".join(part.text for part in parts if isinstance(part, TextPart)),
        "reasoning": "".join(part.text for part in parts if isinstance(part, ReasoningPart)),
        "calls": [
            (part.tool_call_id, part.name, part.arguments)
            for part in parts
            if isinstance(part, ToolCallPart)
        ],
        "reason": answer.finish.reason,
    }


def text(chunk: str, index: int = 0) -> StreamEvent:
    return StreamEvent("text", chunk, part_index=index)


# ---- requests


@pytest.mark.parametrize("source, target", PAIRS)
@given(asked=requests())
@many_examples(20)
def test_a_request_converted_there_and_back_loses_only_what_is_listed(source, target, asked):
    body, _ = by_name(source).render_request(asked)
    there = convert.convert_request(body, source=source, target=target)
    back = convert.convert_request(there.body, source=target, target=source)
    before = by_name(source).parse_request(json.loads(json.dumps(body)), {})
    after = by_name(source).parse_request(json.loads(json.dumps(back.body)), {})
    listed = there.ignored + back.ignored
    for name in ("model", "tools", "tool_choice", "schema", "stream"):
        is_kept = hub_json(getattr(after, name)) == hub_json(getattr(before, name))
        assert is_kept or name in listed, (name, listed)
    is_whole = not any(path.startswith("messages") for path in listed)
    kept = ["user", "tool"] if not is_whole else ["system", "user", "tool", "assistant"]
    assert spoken(after.messages, kept) == spoken(before.messages, kept)
    for name, value in before.options.items():
        path = before.option_paths.get(name, name)
        assert after.options.get(name) == value or path in listed, (name, listed)


def spoken(messages: list[Any], roles: list[str]) -> list[tuple[str, list[Any]]]:
    """What is said by whom: turns of one role that follow one another are one (Anthropic)."""
    turns: list[tuple[str, list[Any]]] = []
    for message in hub_json([message for message in messages if message.role in roles]):
        if not turns or turns[-1][0] != message["role"]:
            turns.append((message["role"], []))
        turns[-1][1].extend(message["parts"])
    return turns


# Only Ollama's clients ask for a model to be loaded.
CAPTURES = [(name, case) for name in NAMES for case in wire_cases(name) if case.hub["messages"]]


@pytest.mark.parametrize("target", NAMES)
@pytest.mark.parametrize(
    "source, case", CAPTURES, ids=[f"{name}-{case.name}" for name, case in CAPTURES]
)
def test_a_converted_capture_is_a_request_of_the_target(source, case, target):
    there = convert.convert_request(case.request, source=source, target=target)
    read = by_name(target).parse_request(json.loads(json.dumps(there.body)), {})
    before = by_name(source).parse_request(case.request, {})
    assert read.model == before.model
    # Ollama's API has no other way to say that no tool may be called.
    has_no_choice = target == "ollama" and before.tool_choice == "none"
    offered = () if has_no_choice else before.tools
    assert [tool.name for tool in read.tools] == [tool.name for tool in offered]
    assert set(before.ignored) <= set(there.ignored)


@pytest.mark.parametrize("target", NAMES)
@pytest.mark.parametrize("body", [{"model": "m", "prompt": ""}, {"model": "m", "messages": []}])
def test_a_request_to_load_a_model_is_ollamas_alone(body, target):
    if target == "ollama":
        there = convert.convert_request(body, source="ollama", target=target)
        assert there.body["messages"] == []
    else:
        with pytest.raises(InvalidRequest, match="no message to convert"):
            convert.convert_request(body, source="ollama", target=target)


def test_a_request_can_be_converted_to_its_own_dialect():
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [tool],
        "max_tokens": 9,
        "seed": 1,
        "logprobs": True,
    }
    assert convert.convert_request(
        body, source="openai_chat", target="openai_chat"
    ) == convert.Converted(
        {key: value for key, value in body.items() if key != "logprobs"}, ("logprobs",)
    )


def test_the_model_and_a_missing_token_limit_can_be_set():
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    there = convert.convert_request(
        body, source="openai_chat", target="openai_chat", model="n", max_tokens=7
    )
    assert there.body == body | {"model": "n", "max_tokens": 7}
    limited = convert.convert_request(
        body | {"max_tokens": 5}, source="openai_chat", target="openai_chat", max_tokens=7
    )
    assert limited.body == body | {"max_tokens": 5}


@pytest.mark.parametrize("source", NAMES)
def test_what_json_can_not_say_is_refused(source):
    body = {"messages": [{"role": "user", "content": "x"}], "temperature": float("nan")}
    with pytest.raises(InvalidRequest, match="temperature: a number is too large"):
        convert.convert_request(body, source="openai_chat", target=source)
    deep: list[object] = []
    for _ in range(200):
        deep = [deep]
    with pytest.raises(InvalidRequest, match="nests deeper than 100 levels"):
        convert.convert_request({"metadata": deep}, source=source, target="openai_chat")
    with pytest.raises(UpstreamError, match="nests deeper than 100 levels"):
        convert.convert_response({"output": deep}, source=source, target="openai_chat")


@pytest.mark.parametrize("data", ["text", 5, None, []])
def test_what_is_no_piece_of_a_stream_is_a_type_error(data):
    stream = convert.StreamConverter(source="openai_chat", target="anthropic_messages")
    with pytest.raises(
        TypeError, match="^expected bytes, a frame, its JSON object or an event, not"
    ):
        stream.feed(data)


@pytest.mark.parametrize("status", ["429", 9999, None, True])
def test_an_error_needs_a_status(status):
    with pytest.raises(ValueError, match="status: expected a number from 100 to 599, not"):
        convert.convert_error({}, source="openai_chat", target="ollama", status=status)


def test_what_is_no_request_names_its_field():
    with pytest.raises(InvalidRequest) as caught:
        convert.convert_request({"messages": "hi"}, source="openai_chat", target="openai_chat")
    assert (caught.value.message, caught.value.param) == (
        "expected a list, got a string",
        "messages",
    )


def test_it_is_part_of_the_public_api():
    assert llmproxy.convert is convert
    assert "convert" in llmproxy.__all__


def test_an_unknown_dialect_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="^unknown dialect 'x'; the dialects are openai_chat"):
        convert.convert_request({}, source="x", target="openai_chat")
    with pytest.raises(ValueError, match="^unknown dialect 'x'"):
        convert.StreamConverter(source="openai_chat", target="x")


# ---- answers


@pytest.mark.parametrize("source, target", PAIRS)
@given(events=event_streams())
@many_examples(20)
def test_a_converted_response_loses_only_what_is_listed(source, target, events):
    body = whole_of(by_name(source), events)
    there = convert.convert_response(body, source=source, target=target, id=ID, created=CREATED)
    before, after = said(by_name(source), body), said(by_name(target), there.body)
    names = {"text": "text", "reasoning": "reasoning", "calls": "tool calls"}
    for name, words in names.items():
        assert before[name] == after[name] or words in there.ignored
    assert before["reason"] == after["reason"]
    if source == target:
        assert there.ignored == ()


@pytest.mark.parametrize("source, target", PAIRS)
@given(events=event_streams(), data=st.data())
@many_examples(20)
def test_a_converted_stream_is_the_converted_whole_response(source, target, events, data):
    """B18: cut anywhere."""
    stream = stream_of(by_name(source), events)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=6))
    there = converted(source, target, stream, cuts)
    assert there == converted(source, target, stream)
    collected = convert.collect([there], source=target, id=ID, created=CREATED)
    body = whole_of(by_name(source), events)
    whole = convert.convert_response(body, source=source, target=target, id=ID, created=CREATED)
    streamed = said(by_name(target), collected.body)
    assert without_space(streamed) == without_space(said(by_name(target), whole.body))


def without_space(what_is_said: dict[str, Any]) -> dict[str, Any]:
    """A text of white space alone is no block for Anthropic (B28), where it stands by itself:
    in a stream, but not in a whole answer of OpenAI's, which has all text in one."""
    words = {name: "".join(what_is_said[name].split()) for name in ("text", "reasoning")}
    return what_is_said | words


@pytest.mark.parametrize("source, target", PAIRS)
def test_a_stream_split_within_each_character_is_the_same(source, target):
    """B18"""
    stream = stream_of(by_name(source), [text("渐a🌊"), chat.Finish(usage=Usage(3, 2))])
    whole = converted(source, target, stream)
    # Long frames without such characters are cut at some places only.
    near = {at + step for at, byte in enumerate(stream) if byte > 127 for step in range(-2, 3)}
    for cut in sorted(near | set(range(0, len(stream), 1 + len(stream) // 1_000))):
        assert converted(source, target, stream, [cut]) == whole


@pytest.mark.parametrize("source, target", PAIRS)
@given(one=event_streams(), other=event_streams(), random=st.randoms(use_true_random=False))
@many_examples(15)
def test_two_converters_at_once_share_nothing(source, target, one, other, random):
    """B17"""
    streams = [stream_of(by_name(source), events) for events in (one, other)]
    left = [[stream[i : i + 40] for i in range(0, len(stream), 40)] for stream in streams]
    converters = [
        convert.StreamConverter(source=source, target=target, id=ID, created=CREATED)
        for _ in streams
    ]
    out = [b"", b""]
    while any(left):
        i = random.choice([i for i in range(2) if left[i]])
        out[i] += converters[i].feed(left[i].pop(0))
    out = [done + converter.end() for done, converter in zip(out, converters, strict=True)]
    assert out == [converted(source, target, stream) for stream in streams]


@pytest.mark.parametrize("source, target", PAIRS)
@given(events=event_streams())
@many_examples(20)
def test_what_a_stream_lost_is_all_that_it_lost(source, target, events):
    converter = convert.StreamConverter(source=source, target=target, id=ID, created=CREATED)
    there = b"".join(map(converter.feed, events)) + converter.end()
    before, after = chat.collect(events), convert.collect([there], source=target).response
    for kind, words in ((TextPart, "text"), (ReasoningPart, "reasoning")):
        texts = ["".join(p.text for p in a.parts if isinstance(p, kind)) for a in (before, after)]
        assert texts[0] == texts[1] or words in converter.ignored
    assert calls_of(before) == calls_of(after) or "tool calls" in converter.ignored


def calls_of(answer: chat.ChatResponse) -> list[tuple[Any, ...]]:
    calls = [part for part in answer.parts if isinstance(part, ToolCallPart)]
    return [(c.tool_call_id, c.name, c.arguments) for c in calls if not c.server_executed]


def test_a_stream_of_one_wire_to_itself_is_itself():
    stream = stream_of(by_name("openai_chat"), [text("a"), text("b"), chat.Finish()])
    assert converted("openai_chat", "openai_chat", stream) == stream


def test_each_piece_is_converted_as_it_arrives():
    converter = convert.StreamConverter(
        source="openai_chat", target="openai_chat", id=ID, created=CREATED
    )
    renderer = by_name("openai_chat").StreamRenderer(ENVELOPE)
    assert converter.idle() == b""
    for frames in (renderer.start(), renderer.feed(text("a")), renderer.feed(chat.Finish())):
        assert converter.feed(b"".join(frames)) == b"".join(frames)
        assert converter.idle() == b": ping\n\n"
    assert (converter.end(), converter.end(), converter.failed) == (b"", b"", None)


def frames_of(name: str, stream: bytes) -> list[Any]:
    decoder = by_name(name).StreamDecoder(MAX_FRAME_BYTES)
    return decoder.feed(stream) + decoder.end()


def values_of(name: str, stream: bytes) -> list[Any]:
    frames = frames_of(name, stream)
    texts = [f.data if isinstance(f, SSEFrame) else f.decode() for f in frames]
    return [json.loads(text) for text in texts if text != "[DONE]"]


FEEDS = {
    "bytes": lambda name, stream: [stream],
    "frames": lambda name, stream: [
        frame if isinstance(frame, SSEFrame) else frame + b"\n" for frame in frames_of(name, stream)
    ],
    "values": values_of,
}


@pytest.mark.parametrize("form", FEEDS.values(), ids=FEEDS)
@pytest.mark.parametrize("source, target", PAIRS)
def test_a_stream_is_taken_in_every_form(source, target, form):
    stream = stream_of(by_name(source), [text("a"), text("b"), chat.Finish()])
    converter = convert.StreamConverter(source=source, target=target, id=ID, created=CREATED)
    fed = b"".join(map(converter.feed, form(source, stream)))
    assert fed + converter.end() == converted(source, target, stream)


@pytest.mark.parametrize("name", NAMES)
def test_events_of_the_hub_are_rendered_as_they_are(name):
    events = [text("a"), text("b"), chat.Finish()]
    converter = convert.StreamConverter(source=name, target=name, model="m", id=ID, created=CREATED)
    out = b"".join(map(converter.feed, events)) + converter.end()
    assert out == stream_of(by_name(name), events)


def test_the_responses_model_is_shown_unless_another_is_given():
    body = whole_of(by_name("openai_chat"), [text("a"), chat.Finish()])
    stream = stream_of(by_name("openai_chat"), [text("a"), chat.Finish()])
    for target in NAMES:
        assert (
            convert.convert_response(body, source="openai_chat", target=target).body["model"] == "m"
        )
        assert (
            convert.convert_response(body, source="openai_chat", target=target, model="n").body[
                "model"
            ]
            == "n"
        )
        assert b'"model":"m"' in converted("openai_chat", target, stream)
        converter = convert.StreamConverter(source="openai_chat", target=target, model="n")
        assert b'"model":"n"' in converter.feed(stream)


def test_random_ids_are_used_by_default():
    body = whole_of(by_name("openai_chat"), [text("a"), chat.Finish()])
    ids = {
        convert.convert_response(body, source="openai_chat", target="openai_chat").body["id"]
        for _ in range(2)
    }
    assert len(ids) == 2


def test_what_a_stream_lost_is_listed():
    server = {"tool_call_id": "srv", "server_executed": True}
    events = [
        StreamEvent("reasoning", "hm", part_index=0, provider_metadata={"x": {"signature": "s"}}),
        StreamEvent("tool_call_name", "search", part_index=1, **server),
        StreamEvent("tool_result", "found", part_index=2, tool_name="search", **server),
        text("a", 3),
        StreamEvent("reasoning", "", part_index=4, redacted=True),
        chat.Finish(stop_sequence="END", usage=Usage(3, 2, 1), ignored=("citations",)),
    ]
    converter = convert.StreamConverter(source="openai_chat", target="openai_chat")
    for event in events:
        converter.feed(event)
    assert converter.ignored == (
        "citations",
        "reasoning that is opaque",
        "signatures and other data of the provider",
        "server tools' calls",
        "server tools' results",
        "the stop sequence",
    )


# ---- failures


ERRORS = [RateLimited("slow down"), Overloaded("busy"), InvalidRequest("no", code="x")]


def error_in(value: dict[str, Any]) -> Any:
    """The error of a frame, which one API has inside a response that failed."""
    return value.get("response", value)["error"]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("source, target", PAIRS)
def test_an_error_inside_a_stream_is_the_targets_error_frame(source, target, error):
    renderer = by_name(source).StreamRenderer(ENVELOPE)
    frames = renderer.start() + renderer.feed(text("a"))
    converter = convert.StreamConverter(source=source, target=target, id=ID, created=CREATED)
    begun = b"".join(map(converter.feed, frames))
    failed = converter.feed(b"".join(renderer.fail(error)))
    [value] = values_of(target, failed)
    said_of_it = error_in(value)
    assert (said_of_it if target == "ollama" else said_of_it["message"]) == error.message
    assert b'"a"' in begun
    assert converter.failed is not None
    assert converter.failed.message == error.message
    after = stream_of(by_name(source), [text("b"), chat.Finish()])
    assert (converter.feed(after), converter.end(), converter.idle()) == (b"", b"", b"")


@pytest.mark.parametrize("source, target", PAIRS)
def test_what_came_before_an_error_in_one_piece_is_not_lost(source, target):
    renderer = by_name(source).StreamRenderer(ENVELOPE)
    frames = renderer.start() + renderer.feed(text("a")) + renderer.fail(RateLimited("later"))
    together = converted(source, target, b"".join(frames))
    converter = convert.StreamConverter(source=source, target=target, id=ID, created=CREATED)
    assert together == b"".join(map(converter.feed, frames)) + converter.end()
    assert b'"a"' in together


@pytest.mark.parametrize("source, target", PAIRS)
def test_a_stream_that_is_cut_ends_in_an_error_frame(source, target):
    renderer = by_name(source).StreamRenderer(ENVELOPE)
    converter = convert.StreamConverter(source=source, target=target, id=ID, created=CREATED)
    converter.feed(b"".join(renderer.start() + renderer.feed(text("a"))))
    [value] = values_of(target, converter.end())
    assert error_in(value)
    assert type(converter.failed) is UpstreamError


@pytest.mark.parametrize("source, target", PAIRS)
def test_an_error_in_place_of_a_response_is_raised(source, target):
    body = by_name(source).render_error(RateLimited("later"))
    with pytest.raises(RateLimited, match="^later$"):
        convert.convert_response(body, source=source, target=target)


@pytest.mark.parametrize("source, target", PAIRS)
@pytest.mark.parametrize(
    "error",
    [
        RateLimited("later", headers={"retry-after": "3"}),
        Unauthorized("who?"),
        Overloaded("busy", headers={"x-should-retry": "true"}),
        UpstreamError("broken", status=500),
        InvalidRequest("no such field"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_keeps_its_class_and_headers(source, target, error):
    """B39"""
    body, status = by_name(source).render_error(error), by_name(source).error_status(error)
    there = convert.convert_error(
        body, source=source, target=target, status=status, headers=error.headers
    )
    assert (there.status, there.headers) == (by_name(target).error_status(error), error.headers)
    read = by_name(target).parse_error(there.status, there.body, there.headers)
    assert (type(read), read.message) == (type(error), error.message)


# ---- collecting


@pytest.mark.parametrize("name", NAMES)
@given(events=event_streams())
@many_examples(20)
def test_a_collected_stream_is_its_whole_response(name, events):
    collected = convert.collect(
        [stream_of(by_name(name), events)], source=name, id=ID, created=CREATED
    )
    whole = whole_of(by_name(name), events)
    assert said(by_name(name), collected.body) == said(by_name(name), whole)
    assert collected.usage == by_name(name).parse_response(whole).finish.usage


def test_times_are_measured_by_the_callers_clock():
    frames = [StreamEvent("reasoning", "hm", part_index=0), text("a", 1), chat.Finish()]
    times = iter([10.0, 10.5, 11.0, 11.25, 13.0])
    collected = convert.collect(frames, source="openai_chat", clock=lambda: next(times))
    # The text came after the reasoning, so it was not the first event.
    assert (collected.ttft_ms, collected.first_text_ms, collected.duration_ms) == (
        500.0,
        1000.0,
        1250.0,
    )
    started = convert.collect(
        [text("a"), chat.Finish()], source="openai_chat", clock=lambda: 9.0, started=8
    )
    assert (started.ttft_ms, started.first_text_ms, started.duration_ms) == (1000.0, 1000.0, 1000.0)


def test_without_a_clock_nothing_is_measured():
    collected = convert.collect([text("a"), chat.Finish()], source="openai_chat")
    assert (collected.ttft_ms, collected.first_text_ms, collected.duration_ms) == (None, None, None)
    assert collected.response == chat.collect([text("a"), chat.Finish()])


def test_a_collector_keeps_what_came_before_an_error():
    collector = convert.Collector(source="openai_chat")
    collector.feed({"choices": [{"index": 0, "delta": {"content": "a"}}]})
    with pytest.raises(RateLimited):
        collector.feed({"error": {"message": "later", "type": "rate_limit_error"}})
    assert collector.events == [text("a")]
    with pytest.raises(UpstreamError):
        collector.end()


# ---- who drives it


def test_it_runs_in_a_thread_and_in_asyncio_as_in_a_loop():
    stream = stream_of(by_name("openai_chat"), [text("渐"), text("b"), chat.Finish()])
    pieces = [stream[i : i + 7] for i in range(0, len(stream), 7)]
    looped = converted("openai_chat", NAMES[-1], stream)

    def drive(out: list[bytes]) -> None:
        converter = convert.StreamConverter(
            source="openai_chat", target=NAMES[-1], id=ID, created=CREATED
        )
        out += [converter.feed(piece) for piece in pieces]
        out.append(converter.end())

    async def upstream():
        for piece in pieces:
            await asyncio.sleep(0)
            yield piece

    async def drive_async() -> bytes:
        converter = convert.StreamConverter(
            source="openai_chat", target=NAMES[-1], id=ID, created=CREATED
        )
        return b"".join([converter.feed(piece) async for piece in upstream()]) + converter.end()

    threaded: list[bytes] = []
    thread = threading.Thread(target=drive, args=(threaded,))
    thread.start()
    thread.join()
    assert b"".join(threaded) == looped
    assert asyncio.run(drive_async()) == looped


@given(st.binary(max_size=200), dialects, dialects)
@settings(max_examples=100)
def test_any_bytes_are_converted_or_end_in_an_error_frame(data, source, target):
    converter = convert.StreamConverter(source=source.NAME, target=target.NAME)
    out = converter.feed(data) + converter.end()
    assert isinstance(converter.failed, ProxyError)
    assert values_of(target.NAME, out)[-1]["error"]
    payload.encode(converter.ignored)
