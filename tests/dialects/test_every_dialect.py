"""Promises that every dialect keeps: captures both ways, any cut, any value, no shared state."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from operator import attrgetter
from typing import Any, get_args

import llm
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llm.parts import StreamEvent, TextPart

from llmproxy.core import chat, payload
from llmproxy.core.errors import InvalidRequest, ProxyError, UpstreamError
from llmproxy.dialects import DIALECTS, Dialect, DialectName, by_name
from llmproxy.transport.framing import MAX_FRAME_BYTES, SSEFrame
from tests.strategies import event_streams, json_values
from tests.wire_cases import WireCase, envelope, hub_json, wire_cases

every_dialect = pytest.mark.parametrize("dialect", DIALECTS, ids=attrgetter("NAME"))


def captures(*, answered: bool = False) -> pytest.MarkDecorator:
    """Parametrize a test over the captures of all dialects, or those with a response."""
    rows = [
        pytest.param(dialect, case, id=f"{dialect.NAME}-{case.name}")
        for dialect in DIALECTS
        for case in wire_cases(dialect.NAME, answered=answered)
    ]
    return pytest.mark.parametrize("dialect, case", rows)


def stream_of(dialect: Dialect, head: chat.Envelope, events: list[chat.Event]) -> bytes:
    renderer = dialect.StreamRenderer(head)
    return b"".join(renderer.start() + [f for event in events for f in renderer.feed(event)])


def read_stream(dialect: Dialect, stream: bytes, cuts: list[int] | None = None) -> list[chat.Event]:
    decoder, parser = dialect.StreamDecoder(MAX_FRAME_BYTES), dialect.StreamParser()
    places = [0, *sorted(cuts or []), len(stream)]
    events: list[chat.Event] = []
    for start, end in zip(places, places[1:], strict=False):
        for frame in decoder.feed(stream[start:end]):
            events += parser.feed(frame)
    for frame in decoder.end():
        events += parser.feed(frame)
    return events + parser.end()


def frames_of(dialect: Dialect, stream: bytes) -> list[Any]:
    decoder = dialect.StreamDecoder(MAX_FRAME_BYTES)
    return decoder.feed(stream) + decoder.end()


def data_of(frame: SSEFrame | bytes) -> str:
    return frame.data if isinstance(frame, SSEFrame) else frame.decode()


# ---- names


def test_each_dialect_is_found_by_its_name():
    assert get_args(DialectName) == tuple(dialect.NAME for dialect in DIALECTS)
    assert [by_name(dialect.NAME) for dialect in DIALECTS] == list(DIALECTS)
    with pytest.raises(ValueError, match="^unknown dialect 'morse'; the dialects are openai_chat"):
        by_name("morse")


def test_ids_of_each_dialect_can_be_told_apart():
    prefixes = [dialect.ID_PREFIX for dialect in DIALECTS if dialect.ID_PREFIX]
    assert prefixes and len(set(prefixes)) == len(prefixes)


@every_dialect
def test_a_response_has_the_prefix_and_the_model_of_its_envelope(dialect):
    events: list[chat.Event] = [chat.Finish()]
    body = dialect.render_response(chat.collect(events), envelope("m"))
    stream = stream_of(dialect, envelope("m"), events).decode()
    assert body["model"] == "m" and '"model":"m"' in stream
    if dialect.ID_PREFIX:
        assert body["id"] == dialect.ID_PREFIX + envelope().id
        assert f'"{dialect.ID_PREFIX}{envelope().id}"' in stream
    else:
        assert "id" not in body and envelope().id not in stream


@every_dialect
def test_a_system_message_alone_is_a_request(dialect):
    asked = chat.ChatRequest("m", [llm.system("Tell a story.")])
    body, _ = dialect.render_request(asked)
    read = dialect.parse_request(json.loads(payload.encode(body)), {})
    assert read.messages[0].parts == [TextPart("Tell a story.")]


@every_dialect
def test_a_key_is_sent_in_one_header_and_no_key_in_none(dialect):
    with_key, without = dialect.auth_headers("sk-1"), dialect.auth_headers(None)
    [name] = with_key.keys() - without.keys()
    assert with_key[name].removeprefix("Bearer ") == "sk-1"
    assert all(name == name.lower() for name in with_key)
    assert with_key == without | {name: with_key[name]}


# ---- captures


@captures()
def test_a_captured_request_is_parsed_as_noted(dialect, case):
    """B12, B18, B26, B28-B30, B32, B33, B37, C1, C3, C4, C7, C8, C11-C13, C16-C18, d2: see each
    note."""
    assert hub_json(dialect.parse_request(case.request, {})) == case.hub


@captures(answered=True)
def test_a_captured_response_is_rendered_whole_and_streamed(dialect, case):
    request = dialect.parse_request(case.request, {})
    head = envelope(
        request.model,
        include_usage=request.include_usage,
        input_tokens=7,
        form=request.form,
        echo=request.echo,
    )
    assert dialect.render_response(chat.collect(case.events), head) == case.response
    assert stream_of(dialect, head, case.events) == case.stream


@captures(answered=True)
def test_a_captured_stream_is_read_the_same_however_it_is_cut(dialect, case):
    """B18: within a character too."""
    whole = read_stream(dialect, case.stream)
    for size in (1, 2, 3, 7):
        cuts = list(range(size, len(case.stream), size))
        assert read_stream(dialect, case.stream, cuts) == whole


@captures(answered=True)
def test_a_captured_stream_says_what_the_whole_response_says(dialect, case):
    whole = dialect.parse_response(case.response)
    streamed = chat.collect(read_stream(dialect, case.stream))
    of_whole, of_stream = (
        dialect.render_response(response, envelope()) | {"usage": None}
        for response in (whole, streamed)
    )
    assert of_stream == of_whole
    assert streamed.finish.reason == whole.finish.reason
    assert streamed.finish.model == whole.finish.model
    assert (whole.finish.ignored, streamed.finish.ignored) == ((), ())


@captures(answered=True)
def test_values_are_parsed_as_their_frames_are(dialect, case):
    by_frame, by_value = dialect.StreamParser(), dialect.StreamParser()
    for frame in frames_of(dialect, case.stream):
        if data_of(frame) != "[DONE]":
            assert by_value.feed_value(json.loads(data_of(frame))) == by_frame.feed(frame)
    assert by_value.end() == by_frame.end()
    assert by_value.model == by_frame.model


# ---- events


@every_dialect
@given(events=event_streams(), data=st.data())
@settings(max_examples=30, deadline=None)
def test_a_stream_cut_anywhere_reads_the_same(dialect, events, data):
    """B18"""
    stream = stream_of(dialect, envelope(), events)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    assert read_stream(dialect, stream, cuts) == read_stream(dialect, stream)


@every_dialect
@given(events=event_streams())
@settings(max_examples=20, deadline=None)
def test_events_that_are_read_keep_the_invariant(dialect, events):
    """`core.chat` states it: renderers and the log rely on it."""
    read = read_stream(dialect, stream_of(dialect, envelope(), events))
    assert [isinstance(event, chat.Finish) for event in read] == [False] * (len(read) - 1) + [True]
    families: dict[int, str] = {}
    for event in read[:-1]:
        family = event.type.removesuffix("_name").removesuffix("_args")
        if family == "tool_call" and event.part_index not in families:
            assert event.type == "tool_call_name"
        assert families.setdefault(event.part_index, family) == family
        assert event.tool_call_id or family != "tool_call"


@every_dialect
@given(one=event_streams(), other=event_streams(), random=st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_two_renderers_at_once_share_nothing(dialect, one, other, random):
    """B17"""
    renderers = [dialect.StreamRenderer(envelope()) for _ in range(2)]
    streams = [b"".join(renderer.start()) for renderer in renderers]
    left = [list(one), list(other)]
    while any(left):
        turn = random.choice([i for i in range(2) if left[i]])
        streams[turn] += b"".join(renderers[turn].feed(left[turn].pop(0)))
    assert streams == [stream_of(dialect, envelope(), events) for events in (one, other)]


@every_dialect
@given(one=event_streams(), other=event_streams(), random=st.randoms(use_true_random=False))
@settings(max_examples=15, deadline=None)
def test_two_parsers_at_once_share_nothing(dialect, one, other, random):
    """B17"""
    streams = [stream_of(dialect, envelope(), events) for events in (one, other)]
    queues = [frames_of(dialect, stream) for stream in streams]
    parsers = [dialect.StreamParser() for _ in range(2)]
    read: list[list[chat.Event]] = [[], []]
    while any(queues):
        i = random.choice([i for i in range(2) if queues[i]])
        read[i] += parsers[i].feed(queues[i].pop(0))
    assert [events + parser.end() for events, parser in zip(read, parsers, strict=True)] == [
        read_stream(dialect, stream) for stream in streams
    ]


@every_dialect
@given(events=event_streams())
@settings(max_examples=20, deadline=None)
def test_events_after_the_finish_are_not_read(dialect, events):
    stream = stream_of(dialect, envelope(), events)
    assert read_stream(dialect, stream + stream) == read_stream(dialect, stream)


# ---- any value


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    children = value.items() if isinstance(value, dict) else []
    children = enumerate(value) if isinstance(value, list) else children
    for key, child in children:
        yield from places(child, (*path, key))


CASES: dict[str, list[WireCase]] = {dialect.NAME: wire_cases(dialect.NAME) for dialect in DIALECTS}


@st.composite
def damaged_requests(draw: st.DrawFn, name: str) -> Any:
    """A capture with one to three places replaced by anything, or taken from another place."""
    body: Any = copy.deepcopy(draw(st.sampled_from(CASES[name])).request)
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(body))
        path = draw(st.sampled_from(found))
        donor: Any = body
        for key in draw(st.sampled_from(found)):
            donor = donor[key]
        value = draw(json_values(4) | st.just(copy.deepcopy(donor)))
        if not path:
            return value
        parent = body
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = value
        if not isinstance(body, dict | list):
            break
    return body


@every_dialect
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_any_value_is_a_request_or_refused_as_one(dialect, data):
    body = data.draw(json_values() | damaged_requests(dialect.NAME))
    try:
        request = dialect.parse_request(body, {})
    except InvalidRequest as error:
        payload.encode(dialect.render_error(error))
        return
    payload.encode(hub_json(request))
    payload.encode(dialect.render_request(request)[0])


@every_dialect
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_any_value_has_a_normal_form_and_is_not_edited(dialect, data):
    body = data.draw(json_values() | damaged_requests(dialect.NAME))
    before = copy.deepcopy(body)
    payload.encode(dialect.normalize_body(body))
    assert body == before


@every_dialect
@given(value=json_values())
@settings(max_examples=40, deadline=None)
def test_any_value_is_a_response_or_an_error(dialect, value):
    for body in (
        value,
        {"content": [value]},
        {"choices": [value]},
        {"choices": [{"message": value}]},
        {"message": value},
        {"message": {"content": "", "tool_calls": [value]}, "done": True},
        {"error": value},
        {"type": "error", "error": value},
    ):
        try:
            dialect.parse_response(body)
        except ProxyError as error:
            payload.encode(dialect.render_error(error))
    for chunk in (value, {"choices": [value]}, {"choices": [{"delta": value}]}):
        try:
            dialect.StreamParser().feed_value(chunk)
        except ProxyError as error:
            payload.encode(dialect.render_error(error))


@every_dialect
def test_no_frame_has_a_character_at_which_naive_readers_cut(dialect):
    """httpx's iter_lines and str.splitlines end a line at each of these."""
    ends = "a\u0085b\u2028c\u2029d"
    renderer = dialect.StreamRenderer(envelope(ends))
    frames = renderer.start()
    for event in (
        StreamEvent("text", ends, part_index=0),
        StreamEvent("reasoning", ends, part_index=1),
        StreamEvent("tool_call_name", ends, part_index=2, tool_call_id=ends),
        StreamEvent("tool_call_args", f'{{"{ends}": 1}}', part_index=2, tool_call_id=ends),
        chat.Finish(stop_sequence=ends),
    ):
        frames += renderer.feed(event)
    frames += dialect.StreamRenderer(envelope()).fail(InvalidRequest(ends, param=ends))
    stream = b"".join(frames).decode()
    assert stream.splitlines() == stream.removesuffix("\n").split("\n")


@every_dialect
@pytest.mark.parametrize("word", ["error", "network_error", "MALFORMED_FUNCTION_CALL"])
def test_a_response_that_failed_by_its_finish_reason_is_an_error(dialect, word):
    fields = {
        "openai_chat": "finish_reason",
        "anthropic_messages": "stop_reason",
        "openai_responses": 'created_at":1767225600,"status',
        "ollama": "done_reason",
    }
    field = fields[dialect.NAME]
    stream = stream_of(dialect, envelope(), [StreamEvent("text", "a", part_index=0), chat.Finish()])
    ended = b'"%s":"' % field.encode()
    cut = stream.rindex(ended) + len(ended)
    failed = stream[:cut] + word.encode() + stream[stream.index(b'"', cut) :]
    with pytest.raises(UpstreamError, match=f"ended the response with '{word}'"):
        read_stream(dialect, failed)


# ---- tool calls


def called(dialect: Dialect, arguments: str, count: int) -> dict[str, Any]:
    """A request with so many calls, whose arguments are JSON in a string."""
    ids = [f"call_{i}x" for i in range(count)]
    user = {"role": "user", "content": "hi"}
    if dialect.NAME == "openai_chat":
        function = {"name": "f", "arguments": arguments}
        calls = [{"id": id, "type": "function", "function": function} for id in ids]
        results = [{"role": "tool", "tool_call_id": id, "content": "x"} for id in ids]
        return {"messages": [user, {"role": "assistant", "tool_calls": calls}, *results]}
    if dialect.NAME == "ollama":
        calls = [{"id": id, "function": {"name": "f", "arguments": arguments}} for id in ids]
        results = [{"role": "tool", "tool_call_id": id, "content": "x"} for id in ids]
        return {"messages": [user, {"role": "assistant", "tool_calls": calls}, *results]}
    if dialect.NAME == "openai_responses":
        ends = [{"type": "function_call_output", "call_id": id, "output": "x"} for id in ids]
        call = {"type": "function_call", "name": "f", "arguments": arguments}
        return {"input": [user, *(call | {"call_id": id} for id in ids), *ends]}
    calls = [{"type": "tool_use", "id": id, "name": "f", "input": arguments} for id in ids]
    results = [{"type": "tool_result", "tool_use_id": id, "content": "x"} for id in ids]
    replied = {"role": "assistant", "content": calls}
    return {"max_tokens": 5, "messages": [user, replied, {"role": "user", "content": results}]}


@every_dialect
def test_arguments_of_all_calls_have_as_many_values_as_a_body(dialect):
    """Each is a string of the body, which counts as one value, and becomes values too."""
    many = '{"a": [' + "{}," * 100_000 + '"' + ",:[{" * 1_000_000 + '"]}'
    (call,) = dialect.parse_request(called(dialect, many, 1)).messages[1].parts
    assert len(call.arguments["a"]) == 100_001
    with pytest.raises(InvalidRequest, match="have more than 500000 JSON values"):
        dialect.parse_request(called(dialect, many, 3))
