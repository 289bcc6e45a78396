"""Messages responses, whole and streamed, read by Anthropic's own SDK."""

from __future__ import annotations

import json
from operator import attrgetter
from typing import Any

import anthropic
import pytest
from anthropic.types import Message as SDKMessage
from hypothesis import given, settings
from hypothesis import strategies as st
from llm.parts import (
    StreamEvent,
)

from llmproxy.core import chat
from llmproxy.core.errors import (
    Overloaded,
)
from llmproxy.core.usage import Usage
from llmproxy.dialects import anthropic_messages
from llmproxy.transport.framing import SSEDecoder
from tests.dialects.anthropic_messages.samples import (
    ANSWERED,
    SERVER,
    normal,
    read_of,
    stream_of,
    text,
)
from tests.strategies import event_streams
from tests.wire_cases import ANSWER_ID, envelope


def whole_of(events: list[chat.Event], model: str | None = "m") -> dict[str, Any]:
    response = chat.collect(events)
    return anthropic_messages.render_response(response, envelope(model, input_tokens=7))


def frames_of(stream: bytes) -> list[dict[str, Any]]:
    """Give the events of a stream, each named twice alike (d3)."""
    frames = SSEDecoder().feed(stream)
    values = [json.loads(frame.data) for frame in frames]
    assert [frame.event for frame in frames] == [value["type"] for value in values]
    return values


def reasoning(chunk: str, index: int = 0, signature: str | None = None) -> StreamEvent:
    metadata = {"anthropic": {"signature": signature}} if signature else None
    return StreamEvent("reasoning", chunk, part_index=index, provider_metadata=metadata)


def call_name(name: str, index: int, id_: str) -> StreamEvent:
    return StreamEvent("tool_call_name", name, part_index=index, tool_call_id=id_)


def call_args(chunk: str, index: int, id_: str) -> StreamEvent:
    return StreamEvent("tool_call_args", chunk, part_index=index, tool_call_id=id_)


@pytest.mark.parametrize("case", ANSWERED, ids=attrgetter("name"))
def test_the_sdk_reads_a_response_the_same_whole_and_streamed(case):
    assert SERVER.whole(case.response) == case.response
    assert SERVER.accumulated(case.stream) == case.response


@pytest.mark.parametrize("case", ANSWERED, ids=attrgetter("name"))
def test_responses_satisfy_the_sdks_types_and_have_every_key(case):
    """C6: the SDK itself does not check what it reads; others generated from it do."""
    SDKMessage.model_validate(case.response)
    assert {"stop_details", "container"} <= case.response.keys()
    assert {
        "cache_creation",
        "inference_geo",
        "output_tokens_details",
        "server_tool_use",
        "service_tier",
    } <= case.response["usage"].keys()
    for block in case.response["content"]:
        assert block.get("citations", []) == []
        assert block["type"] != "tool_use" or block["caller"] == {"type": "direct"}


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("case", ANSWERED, ids=attrgetter("name"))
def test_a_stream_cut_anywhere_reads_the_same(case, size):
    """B18: also within a character."""
    pieces = [case.stream[i : i + size] for i in range(0, len(case.stream), size)]
    assert SERVER.accumulated(*pieces) == case.response


NOT_CACHED = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}


def test_a_stream_begins_with_an_estimate_that_is_not_zero():
    """B23, B19"""
    renderer = anthropic_messages.StreamRenderer(envelope(input_tokens=9))
    [start] = frames_of(b"".join(renderer.start()))
    assert start["message"]["usage"]["input_tokens"] == 9
    assert NOT_CACHED.items() <= start["message"]["usage"].items()
    empty = anthropic_messages.StreamRenderer(envelope(input_tokens=0))
    [start] = frames_of(b"".join(empty.start()))
    assert start["message"]["usage"]["input_tokens"] == 1


def kinds(events: list[chat.Event]) -> list[str]:
    """Tell the blocks of a stream: their kinds with their text."""
    shown: list[str] = []
    for frame in frames_of(stream_of(events)):
        match frame:
            case {"content_block": block, "index": index}:
                assert index == len(shown)
                shown.append(block["type"])
            case {"delta": {"type": _, **fields}}:
                shown[-1] += ":" + "".join(fields.values())
    return shown


@pytest.mark.parametrize(
    "events, blocks",
    [
        ([], []),
        ([call_name("f", 0, "a")], ["tool_use"]),
        ([text(" ", 0), call_name("f", 1, "a")], ["tool_use"]),
        (
            [reasoning("hm", 0, "sig"), call_name("f", 1, "a"), call_args("{}", 1, "a")],
            ["thinking:hm:sig", "tool_use:{}"],
        ),
        ([text("x", 0), reasoning("hm", 1)], ["text:x", "thinking:hm"]),
        (
            [reasoning("a", 0), text("x", 1), reasoning("b", 2)],
            ["thinking:a", "text:x", "thinking:b"],
        ),
        ([reasoning("", 0, "sig")], ["thinking:sig"]),
        ([reasoning("", 0, "s"), reasoning("hm", 0, "t")], ["thinking:hm:t"]),
        ([text("x", 0), text("y", 1)], ["text:x", "text:y"]),
        (
            [call_name("f", 0, "a"), call_args(" ", 0, "a"), call_args("", 0, "a"), text("x", 1)],
            ["tool_use", "text:x"],
        ),
        ([StreamEvent("reasoning", "", 0, redacted=True), text("x", 1)], ["text:x"]),
    ],
)
def test_blocks_follow_one_another(events, blocks):
    """B19, B20, B21, B28: no empty text block, thinking is closed by what follows it."""
    assert kinds([*events, chat.Finish()]) == blocks


def test_redacted_thinking_is_a_block_of_its_own():
    """B25"""
    metadata = {"anthropic": {"type": "redacted_thinking", "data": "b3BhcXVl"}}
    events = [
        reasoning("hm", 0),
        StreamEvent("reasoning", "", 1, provider_metadata=metadata),
        reasoning("so", 2),
        chat.Finish(),
    ]
    content = [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "redacted_thinking", "data": "b3BhcXVl"},
        {"type": "thinking", "thinking": "so", "signature": ""},
    ]
    assert whole_of(events)["content"] == content
    assert SERVER.accumulated(stream_of(events))["content"] == content


def test_a_call_alone_is_sent_as_it_comes():
    renderer = anthropic_messages.StreamRenderer(envelope())
    assert renderer.feed(call_name("f", 0, "a")) == []
    start, delta = frames_of(b"".join(renderer.feed(call_args('{"x":', 0, "a"))))
    assert start["content_block"]["name"] == "f"
    assert delta["delta"] == {"type": "input_json_delta", "partial_json": '{"x":'}


def test_a_whole_call_is_ended_when_the_next_one_begins():
    renderer = anthropic_messages.StreamRenderer(envelope())
    renderer.feed(call_name("f", 0, "a"))
    renderer.feed(call_args('{"x":1}', 0, "a"))
    assert frames_of(b"".join(renderer.feed(call_name("g", 1, "b")))) == [
        {"type": "content_block_stop", "index": 0}
    ]


@pytest.mark.parametrize(
    "finish, stop",
    [
        (chat.Finish("stop"), ("end_turn", None)),
        (chat.Finish("stop", stop_sequence="END"), ("stop_sequence", "END")),
        (chat.Finish("length"), ("max_tokens", None)),
        (chat.Finish("tool_calls"), ("tool_use", None)),
        (chat.Finish("content_filter"), ("refusal", None)),
        (chat.Finish("stop", provider_reason="pause_turn"), ("pause_turn", None)),
        (
            chat.Finish("length", provider_reason="model_context_window_exceeded"),
            ("model_context_window_exceeded", None),
        ),
        (chat.Finish("stop", provider_reason="compaction"), ("compaction", None)),
    ],
)
def test_the_stop_reason_is_anthropics(finish, stop):
    """B30, B22: usage comes with the end, which Finish is."""
    whole = whole_of([text("x"), finish])
    assert (whole["stop_reason"], whole["stop_sequence"]) == stop
    *_, delta, last = frames_of(stream_of([text("x"), finish]))
    assert (delta["delta"]["stop_reason"], delta["delta"]["stop_sequence"]) == stop
    assert delta["usage"] == {"input_tokens": 7, "output_tokens": 0, **NOT_CACHED}
    assert last == {"type": "message_stop"}


@pytest.mark.parametrize(
    "usage, counts",
    [
        (Usage(), {"input_tokens": 7, "output_tokens": 0, **NOT_CACHED}),
        (Usage(10, 3), {"input_tokens": 10, "output_tokens": 3, **NOT_CACHED}),
        (
            Usage(10, 3, 8, 2),
            {
                "input_tokens": 0,
                "output_tokens": 3,
                "cache_read_input_tokens": 8,
                "cache_creation_input_tokens": 2,
            },
        ),
        (
            Usage(1, 3, 8),
            {"input_tokens": 0, "output_tokens": 3, **NOT_CACHED, "cache_read_input_tokens": 8},
        ),
        (
            Usage(9, 3, reasoning_tokens=2),
            {
                "input_tokens": 9,
                "output_tokens": 3,
                "output_tokens_details": {"thinking_tokens": 2},
                **NOT_CACHED,
            },
        ),
    ],
)
def test_cached_input_is_counted_apart(usage, counts):
    """B24: never negative; the API's types require both, so what is unknown is 0."""
    *_, delta, _ = frames_of(stream_of([chat.Finish(usage=usage)]))
    assert delta["usage"] == counts
    shown = whole_of([chat.Finish(usage=usage)])["usage"]
    assert {name: count for name, count in shown.items() if count is not None} == counts


@given(st.tuples(*4 * [st.integers(0, 2**40)]))
def test_rendered_counts_parse_as_themselves(counts):
    """B24"""
    plain, output_tokens, cached, written = counts
    usage = Usage(plain + cached + written, output_tokens, cached, written)
    read = anthropic_messages.parse_response(whole_of([chat.Finish(usage=usage)]))
    assert read.finish.usage == usage


@given(event_streams())
@settings(max_examples=60, deadline=None)
def test_a_stream_has_the_content_of_the_whole_response(events):
    whole = whole_of(events)
    SDKMessage.model_validate(whole)
    assert read_of(stream_of(events)) == normal(anthropic_messages.parse_response(whole))


def test_a_keep_alive_may_come_anywhere():
    """B13"""
    renderer = anthropic_messages.StreamRenderer(envelope())
    [ping] = renderer.idle()
    stream = stream_of([text("x"), chat.Finish()])
    frames = [frame + b"\n\n" for frame in stream.split(b"\n\n")[:-1]]
    assert SERVER.accumulated(ping, *(f + ping for f in frames)) == SERVER.accumulated(stream)


def test_an_error_inside_a_stream_reaches_the_sdk():
    renderer = anthropic_messages.StreamRenderer(envelope())
    stream = renderer.start() + renderer.feed(text("x")) + renderer.fail(Overloaded("too many"))
    with pytest.raises(anthropic.APIStatusError) as raised:
        SERVER.accumulated(*stream)
    assert raised.value.body == {
        "type": "error",
        "error": {"type": "overloaded_error", "message": "too many"},
        "request_id": ANSWER_ID,
    }
    with pytest.raises(Overloaded, match="^too many$"):
        read_of(b"".join(stream))


def test_text_between_the_pieces_of_arguments_waits_until_they_are_whole():
    """B20: blocks are strictly sequential, and nothing of either is lost."""
    events = [
        StreamEvent("tool_call_name", "f", part_index=0, tool_call_id="toolu_1"),
        StreamEvent("tool_call_args", '{"a": ', part_index=0, tool_call_id="toolu_1"),
        StreamEvent("text", "mean", part_index=1),
        StreamEvent("text", "while", part_index=1),
        StreamEvent("tool_call_args", "1}", part_index=0, tool_call_id="toolu_1"),
        StreamEvent("text", "!", part_index=1),
        chat.Finish("tool_calls"),
    ]
    renderer = anthropic_messages.StreamRenderer(envelope())
    data = b"".join(frame for event in events for frame in renderer.feed(event))
    deltas = [
        json.loads(line.removeprefix(b"data: "))["delta"]
        for line in data.split(b"\n")
        if line.startswith(b"data: ") and b"content_block_delta" in line
    ]
    assert "".join(d["partial_json"] for d in deltas if "partial_json" in d) == '{"a": 1}'
    assert "".join(d["text"] for d in deltas if "text" in d) == "meanwhile!"
