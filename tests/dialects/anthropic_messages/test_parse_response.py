"""Responses of other Messages servers, whole and streamed, parsed."""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter
from typing import Any, get_args

import anthropic
import pytest
from llm.parts import (
    ReasoningPart,
    StreamEvent,
    TextPart,
    ToolCallPart,
)

from llmproxy.convert import convert_response
from llmproxy.core import chat
from llmproxy.core.errors import (
    RateLimited,
    UpstreamError,
)
from llmproxy.core.usage import Usage
from llmproxy.dialects import anthropic_messages
from llmproxy.transport.framing import SSEFrame
from tests.dialects.anthropic_messages.samples import (
    ANSWERED,
    events_of,
    frame,
    normal,
    read_of,
)
from tests.wire_cases import WIRE, envelope


def test_anthropics_own_stream_is_parsed():
    """Pings, white space before closing braces, usage in two places."""
    folder = WIRE / "anthropic_messages" / "novel_helper_upstream"
    [case] = [case for case in ANSWERED if case.name == folder.name]
    assert events_of((folder / "upstream.txt").read_bytes()) == case.events


@pytest.mark.parametrize("case", ANSWERED, ids=attrgetter("name"))
def test_a_captured_response_parses_whole_and_streamed(case):
    expected = chat.collect(case.events)
    usage = expected.finish.usage
    if usage.input_tokens is None:
        usage = Usage(7, 0)
    cached, written = usage.cached_tokens or 0, usage.cache_write_tokens or 0
    usage = replace(usage, cached_tokens=cached, cache_write_tokens=written)
    finish = replace(expected.finish, model=case.request["model"], usage=usage)
    assert read_of(case.stream) == normal(replace(expected, finish=finish))
    assert normal(anthropic_messages.parse_response(case.response)) == read_of(case.stream)


def begun(index: int, **block: Any) -> SSEFrame:
    return frame(type="content_block_start", index=index, content_block=block)


def grown(index: int, **delta: Any) -> SSEFrame:
    return frame(type="content_block_delta", index=index, delta=delta)


def ended(index: int) -> SSEFrame:
    return frame(type="content_block_stop", index=index)


END = frame(type="message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 1})


STOP = frame(type="message_stop")


def fed(*frames: SSEFrame) -> chat.ChatResponse:
    parser = anthropic_messages.StreamParser()
    return chat.collect([e for f in frames for e in parser.feed(f)] + parser.end())


CALL = {"type": "tool_use", "id": "a", "name": "f"}


PIECE = {"type": "input_json_delta", "partial_json": '{"x": 1}'}


@pytest.mark.parametrize(
    "frames, raw",
    [
        ([begun(0, **CALL, input={"x": 1}), ended(0)], '{"x":1}'),
        ([begun(0, **CALL, input={"x": 1})], '{"x":1}'),
        ([begun(0, **CALL, input={"x": 1}), grown(0, **PIECE), ended(0)], '{"x": 1}'),
        ([begun(0, **CALL, input={}), grown(0, **PIECE), ended(0)], '{"x": 1}'),
        ([begun(0, **CALL), grown(0, **PIECE)], '{"x": 1}'),
    ],
)
def test_input_is_parsed_from_the_start_or_the_deltas(frames, raw):
    answer = fed(*frames, END, STOP)
    assert answer.parts == [ToolCallPart("f", {"x": 1}, tool_call_id="a")]
    assert answer.raw_arguments == {"a": raw}


def test_unknown_events_and_blocks_are_skipped_and_listed():
    answer = fed(
        frame(type="ping"),
        SSEFrame("message", "[DONE]"),
        frame(type="weather", sun=1),
        begun(0, type="hologram"),
        grown(0, type="text_delta", text="no"),
        ended(0),
        begun(1, type="text", text=""),
        grown(1, type="citations_delta", citation={}),
        grown(1, type="text_delta", text="x"),
        END,
        STOP,
        frame(type="ping"),
    )
    assert answer.parts == [TextPart("x")]
    assert answer.finish.ignored == (
        "(weather)",
        "content[*] (hologram)",
        "content[*] (citations_delta)",
    )


def test_thinking_in_a_text_block_is_reasoning_all_the_same():
    """B19: as other gateways send it."""
    answer = fed(
        begun(0, type="text", text=""),
        grown(0, type="thinking_delta", thinking="hm"),
        grown(0, type="text_delta", text="x"),
        END,
    )
    assert answer.parts == [ReasoningPart("hm"), TextPart("x")]


def test_final_usage_overwrites_the_counts_that_it_has():
    """B24, d3"""
    usage = {"input_tokens": 5, "cache_read_input_tokens": 3, "output_tokens": 1}
    start = frame(type="message_start", message={"model": "c", "usage": usage})
    end = frame(type="message_delta", delta={}, usage={"output_tokens": 9, "input_tokens": None})
    assert fed(start, end).finish == chat.Finish(usage=Usage(8, 9, cached_tokens=3), model="c")


@pytest.mark.parametrize(
    "word, reason",
    [
        ("end_turn", "stop"),
        ("pause_turn", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("new_reason", "stop"),
        (None, "stop"),
    ],
)
def test_provider_words_become_our_finish_reasons(word, reason):
    assert fed(frame(type="message_delta", delta={"stop_reason": word})).finish.reason == reason


@pytest.mark.parametrize("word", [*get_args(anthropic.types.beta.BetaStopReason), "new_reason"])
def test_anthropics_own_reasons_come_back_as_they_were(word):
    """All that its SDK knows and one that it doesn't, streamed and whole."""
    stop = {"stop_reason": word, "stop_sequence": "END" if word == "stop_sequence" else None}
    streamed = fed(frame(type="message_delta", delta=stop))
    whole = anthropic_messages.parse_response({"type": "message", "content": [], **stop})
    for read in (streamed, whole):
        assert anthropic_messages.render_response(read, envelope()).items() >= stop.items()


@pytest.mark.parametrize("frames", [[], [begun(0, type="text", text="x"), ended(0)], [STOP]])
def test_a_stream_that_was_cut_is_an_error(frames):
    """d3: a missing message_delta looks well to naive readers."""
    with pytest.raises(UpstreamError, match="^the upstream's stream ended before its answer did$"):
        fed(*frames)


def test_the_finish_comes_once():
    parser = anthropic_messages.StreamParser()
    assert parser.feed(END) == []
    assert parser.feed(STOP) == [chat.Finish(usage=Usage(output_tokens=1))]
    assert parser.feed(STOP) + parser.end() == []


@pytest.mark.parametrize(
    "data, message",
    [
        ("{", "an event of the upstream is not JSON: Expecting property name"),
        ('{"a": NaN}', "an event of the upstream: NaN is not JSON"),
        ('{"a": 1e999}', "an event of the upstream: a number is too large"),
        ("[" * 500 + "]" * 500, "an event of the upstream nests deeper than "),
        ("[]", "an event of the upstream has no type"),
        ("{}", "an event of the upstream has no type"),
    ],
)
def test_a_frame_that_is_no_event_is_an_upstream_error(data, message):
    with pytest.raises(UpstreamError) as raised:
        anthropic_messages.StreamParser().feed(SSEFrame("message", data))
    assert raised.value.message.startswith(message)


@pytest.mark.parametrize("index", [[], {}, None], ids=repr)
def test_an_index_that_is_no_number_is_one_block(index):
    parser = anthropic_messages.StreamParser()
    place = {"index": index}
    block, delta = {"type": "text", "text": "a"}, {"type": "text_delta", "text": "b"}
    events = parser.feed_value({"type": "content_block_start", "content_block": block, **place})
    events += parser.feed_value({"type": "content_block_delta", "delta": delta, **place})
    events += parser.feed_value({"type": "content_block_stop", **place})
    assert events == [StreamEvent("text", "a", part_index=0), StreamEvent("text", "b", 0)]


def test_an_error_in_place_of_a_response_is_raised():
    with pytest.raises(RateLimited, match="^slow$"):
        anthropic_messages.parse_response(anthropic_messages.render_error(RateLimited("slow")))


@pytest.mark.parametrize("kept", [{"ephemeral_1h_input_tokens": 5}, None, [], {}])
def test_writes_to_a_one_hour_cache_are_counted_apart_and_sent_on(kept):
    counts = {"input_tokens": 1, "cache_creation_input_tokens": 7, "output_tokens": 2}
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "c",
        "content": [{"type": "text", "text": "x"}],
        "stop_reason": "end_turn",
        "usage": counts | {"cache_creation": kept},
    }
    parsed = anthropic_messages.parse_response(message)
    usage = parsed.finish.usage
    assert (usage.input_tokens, usage.cache_write_tokens) == (8, 7)
    assert usage.cache_write_1h_tokens == (5 if kept else None)
    again = convert_response(message, source="anthropic_messages", target="anthropic_messages")
    five = {"ephemeral_1h_input_tokens": 5, "ephemeral_5m_input_tokens": 2}
    assert again.body["usage"]["cache_creation"] == (five if kept else None)
