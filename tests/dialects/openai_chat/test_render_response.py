"""Chat Completions responses, whole and streamed, read by OpenAI's own SDK."""

from __future__ import annotations

import json
from operator import attrgetter
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given, settings
from llm.parts import (
    Message,
    ReasoningPart,
    StreamEvent,
    TextPart,
    ToolCallPart,
)
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from llmproxy.core import chat
from llmproxy.core.errors import (
    RateLimited,
)
from llmproxy.core.usage import Usage
from llmproxy.dialects import openai_chat
from llmproxy.transport.framing import SSEDecoder
from tests.dialects.openai_chat.samples import (
    ANSWERED,
    SERVER,
    Pieces,
    call_args,
    call_name,
    shown,
    stream_of,
    text,
    tool_call,
    whole_of,
)
from tests.strategies import (
    event_streams,
)
from tests.wire_cases import ANSWER_CREATED, ANSWER_ID, envelope


def chunks_of(stream: bytes) -> list[dict[str, Any]]:
    """Give the chunks of a stream that ends as it should."""
    *frames, last = SSEDecoder().feed(stream)
    assert (last.event, last.data) == ("message", "[DONE]")
    return [json.loads(frame.data) for frame in frames]


@pytest.mark.parametrize("case", ANSWERED, ids=attrgetter("name"))
def test_the_sdk_reads_a_response_the_same_whole_and_streamed(case):
    written = shown(case.response)
    assert shown(SERVER.whole(case.response).model_dump(exclude_unset=True)) == written
    streamed = shown(SERVER.accumulated(Pieces([case.stream])))
    streamed["head"]["object"] = "chat.completion"
    asked_for = case.hub.get("include_usage", True)
    assert streamed == (written if asked_for else written | {"usage": None})  # B7


@pytest.mark.parametrize("case", ANSWERED, ids=attrgetter("name"))
def test_captured_responses_satisfy_the_sdks_types(case):
    """C20 and d2: the SDK itself does not check what it reads; others generated from it do."""
    ChatCompletion.model_validate(case.response)
    for chunk in chunks_of(case.stream):
        ChatCompletionChunk.model_validate(chunk)
    assert case.response["choices"][0]["message"]["annotations"] == []


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("case", ANSWERED, ids=attrgetter("name"))
def test_a_stream_cut_anywhere_reads_the_same(case, size):
    """B18: also within a character."""
    pieces = [case.stream[i : i + size] for i in range(0, len(case.stream), size)]
    assert list(SERVER.chunks(Pieces(pieces))) == list(SERVER.chunks(Pieces([case.stream])))


def test_only_the_first_chunk_has_the_role():
    """B3"""
    first, *others = chunks_of(stream_of([text("a"), text("b"), chat.Finish()]))
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert all("role" not in c["delta"] for chunk in others for c in chunk["choices"])


def deltas_of_calls(events: list[chat.Event]) -> list[dict[str, Any]]:
    return [
        delta
        for chunk in chunks_of(stream_of(events))
        for choice in chunk["choices"]
        for delta in choice["delta"].get("tool_calls", [])
    ]


def test_calls_are_counted_from_0_and_keep_their_own_arguments():
    """B1, B2, B3: whatever part of the answer they are."""
    events = [
        StreamEvent("reasoning", "hm", part_index=0),
        text("a", 1),
        call_name("f", 5, "c5"),
        call_name("g", 3, "c3"),
        call_args('{"x":', 5, "c5"),
        call_args('{"y":2}', 3, "c3"),
        call_args("1}", 5, "c5"),
        chat.Finish("tool_calls"),
    ]
    assert deltas_of_calls(events) == [
        {"index": 0, "id": "c5", "type": "function", "function": {"name": "f", "arguments": ""}},
        {"index": 1, "id": "c3", "type": "function", "function": {"name": "g", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"x":'}},
        {"index": 1, "function": {"arguments": '{"y":2}'}},
        {"index": 0, "function": {"arguments": "1}"}},
    ]


@pytest.mark.parametrize("arguments", [[], [call_args("{}", 1, "c1")]])
def test_a_name_in_pieces_is_whole_in_the_first_delta(arguments):
    """Clients take the name from there only."""
    events = [
        call_name("", 0, "c0"),
        call_name("wea", 0, "c0"),
        call_name("tides", 1, "c1"),
        call_name("ther", 0, "c0"),
        text("a", 2),
        *arguments,
        chat.Finish("tool_calls"),
    ]
    firsts = [delta for delta in deltas_of_calls(events) if "id" in delta]
    assert [(one["index"], one["id"], one["function"]["name"]) for one in firsts] == [
        (0, "c0", "weather"),
        (1, "c1", "tides"),
    ]


@pytest.mark.parametrize("pieces", [[], [""], [" "], ["\n", "\t"]])
def test_a_call_without_arguments_is_given_an_empty_object(pieces):
    """B4"""
    events = [
        call_name("f", 0, "c"),
        *(call_args(piece, 0, "c") for piece in pieces),
        chat.Finish(),
    ]
    assert "".join(d["function"]["arguments"] for d in deltas_of_calls(events)) == "{}"
    [call] = whole_of(events)["choices"][0]["message"]["tool_calls"]
    assert call["function"]["arguments"] == "{}"


def test_arguments_are_rendered_as_the_model_wrote_them():
    """B4, B40: key order, spaces and truncation stay."""
    raw = '\n {"b": 1,  "a": "x'
    events = [call_name("f", 0, "c"), *(call_args(c, 0, "c") for c in raw), chat.Finish("length")]
    assert "".join(d["function"]["arguments"] for d in deltas_of_calls(events)) == raw
    [call] = whole_of(events)["choices"][0]["message"]["tool_calls"]
    assert call["function"]["arguments"] == raw


def test_arguments_without_their_raw_text_are_encoded():
    """An answer that was not collected from a stream has Parts alone."""
    part = ToolCallPart("f", {"a": 1, "b": ["x"]}, tool_call_id="c")
    response = chat.ChatResponse([Message("assistant", [part])], chat.Finish("tool_calls"))
    rendered = openai_chat.render_response(response, envelope())
    assert rendered["choices"][0]["message"]["tool_calls"] == [
        tool_call("c", "f", '{"a":1,"b":["x"]}')
    ]


@given(event_streams())
@settings(max_examples=50)
def test_every_chunk_has_the_same_head_and_a_finish_reason(events):
    """B5, B10: null until the one chunk that ends it."""
    chunks = chunks_of(stream_of(events, include_usage=False))
    heads = [{key: chunk[key] for key in ("id", "object", "created", "model")} for chunk in chunks]
    assert heads == len(chunks) * [
        {
            "id": f"chatcmpl-{ANSWER_ID}",
            "object": "chat.completion.chunk",
            "created": ANSWER_CREATED,
            "model": "m",
        }
    ]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + [events[-1].reason]


@pytest.mark.parametrize("reason", ["stop", "length", "tool_calls", "content_filter"])
def test_the_reason_is_the_same_streamed_and_whole(reason):
    """B6: it is decided once, by the engine."""
    events = [text("a"), chat.Finish(reason)]
    assert chunks_of(stream_of(events))[-2]["choices"][0]["finish_reason"] == reason
    assert whole_of(events)["choices"][0]["finish_reason"] == reason


USAGES = {
    "unknown": (Usage(), None),
    "plain": (
        Usage(3, 4),
        {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
    ),
    "one side": (
        Usage(output_tokens=4),
        {"prompt_tokens": 0, "completion_tokens": 4, "total_tokens": 4},
    ),
    "details": (
        Usage(10, 5, 8, 0, 2),
        {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "total_tokens": 15,
            "prompt_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 2},
        },
    ),
}


@pytest.mark.parametrize("usage, shown", USAGES.values(), ids=USAGES)
def test_usage_has_a_chunk_of_its_own_on_request(usage, shown):
    """B7, C16: with no choices, after the finish, null before; a whole answer always has it."""
    events = [text("a"), chat.Finish(usage=usage)]
    *others, finish, last = chunks_of(stream_of(events))
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert (last["choices"], last["usage"]) == ([], shown)
    assert [chunk["usage"] for chunk in (*others, finish)] == [None] * (len(others) + 1)
    assert all("usage" not in c for c in chunks_of(stream_of(events, include_usage=False)))
    assert whole_of(events)["usage"] == shown


def test_a_failure_is_a_frame_without_an_end():
    """B11: the SDK raises it; what was cut after it was not a success either."""
    renderer = openai_chat.StreamRenderer(envelope())
    frames = renderer.start() + renderer.feed(text("a"))
    frames += renderer.fail(RateLimited("slow down"))
    assert frames[-1] == (
        b'data: {"error":{"message":"slow down","type":"rate_limit_error",'
        b'"param":null,"code":"rate_limit_exceeded"}}\n\n'
    )
    assert openai_chat.CUT_AFTER_ERROR
    with pytest.raises(openai.APIError) as caught:
        list(SERVER.chunks(Pieces(frames)))
    assert (caught.value.message, caught.value.type) == ("slow down", "rate_limit_error")


def test_a_cut_body_is_no_success():
    """B11: where the error frame itself was lost."""
    cut = httpx2.RemoteProtocolError("peer closed connection without sending complete message")
    with pytest.raises(openai.APIConnectionError):
        list(SERVER.chunks(Pieces([stream_of([text("a")])], cut)))


def test_a_keep_alive_is_a_comment_that_the_sdk_skips():
    """B13"""
    renderer = openai_chat.StreamRenderer(envelope())
    ping = renderer.idle()
    assert ping == [b": ping\n\n"]
    frames = [*ping, *renderer.start(), *ping, *renderer.feed(text("a")), *ping]
    frames += renderer.feed(chat.Finish())
    assert shown(SERVER.accumulated(Pieces(frames)))["text"] == "a"


def test_a_delta_of_a_megabyte_is_one_frame():
    long = "渐" * 2**20
    chunks = chunks_of(stream_of([text(long), chat.Finish()]))
    assert chunks[1]["choices"][0]["delta"] == {"content": long}


@given(event_streams())
@settings(max_examples=50)
def test_a_stream_accumulated_by_the_sdk_is_the_whole_response(events):
    """B1 to B7, B18: text, reasoning, calls, finish reason and usage."""
    streamed = shown(SERVER.accumulated(Pieces([stream_of(events)])))
    whole = shown(whole_of(events))
    streamed["head"]["object"] = "chat.completion"
    assert streamed == whole


@given(event_streams())
@settings(max_examples=50)
def test_the_sdk_reads_what_collect_gives(events):
    response = chat.collect(events)
    read = shown(SERVER.accumulated(Pieces([stream_of(events)])))
    parts = [part for part in response.parts if not getattr(part, "server_executed", False)]
    assert read["text"] == "".join(p.text for p in parts if isinstance(p, TextPart))
    assert read["reasoning"] == "".join(p.text for p in parts if isinstance(p, ReasoningPart))
    assert [(id_, name, chat.parse_arguments(raw)) for id_, _, name, raw in read["calls"]] == [
        (p.tool_call_id, p.name, p.arguments) for p in parts if isinstance(p, ToolCallPart)
    ]


@given(event_streams())
@settings(max_examples=50)
def test_any_response_satisfies_the_sdks_types(events):
    ChatCompletion.model_validate(whole_of(events))
    for chunk in chunks_of(stream_of(events)):
        ChatCompletionChunk.model_validate(chunk)
