"""Responses of other Chat Completions servers, whole and streamed, parsed."""

from __future__ import annotations

import json
from operator import attrgetter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llm.parts import (
    Message,
    StreamEvent,
    TextPart,
)

from llmproxy.core import chat
from llmproxy.core.errors import (
    RateLimited,
    UpstreamError,
)
from llmproxy.core.usage import Usage
from llmproxy.dialects import openai_chat
from llmproxy.transport.framing import SSEDecoder, SSEFrame
from tests.dialects.openai_chat.samples import (
    ANSWERED,
    call_args,
    call_name,
    delta,
    shown,
    stream_of,
    text,
    whole_of,
    written,
)
from tests.strategies import (
    event_streams,
)
from tests.wire_cases import envelope


def read_stream(stream: bytes, sizes: list[int] | None = None) -> list[chat.Event]:
    decoder, parser = SSEDecoder(), openai_chat.StreamParser()
    events: list[chat.Event] = []
    cuts = [0, *sorted(sizes or []), len(stream)]
    for start, end in zip(cuts, cuts[1:], strict=False):
        for frame in decoder.feed(stream[start:end]):
            events += parser.feed(frame)
    return events + parser.end()


def frames_of(*chunks: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks)


@pytest.mark.parametrize("case", ANSWERED, ids=attrgetter("name"))
def test_a_captured_response_parses_whole_and_streamed(case):
    request = openai_chat.parse_request(case.request)
    whole = openai_chat.parse_response(case.response)
    streamed = chat.collect(read_stream(case.stream))
    again = openai_chat.render_response(whole, envelope(request.model))
    calls = case.response["choices"][0]["message"].get("tool_calls")
    if calls and case.response["choices"][0]["finish_reason"] == "stop":
        again["choices"][0]["finish_reason"] = "stop"  # B6: calls say more
    assert again == case.response
    assert shown(written(streamed)) | {"usage": None} == shown(written(whole)) | {"usage": None}
    assert streamed.finish.model == whole.finish.model
    assert (whole.finish.ignored, streamed.finish.ignored) == ((), ())


@given(event_streams(), st.data())
@settings(max_examples=60)
def test_a_rendered_stream_cut_anywhere_parses_as_the_whole_response(events, data):
    """B1 to B7, B18, B40"""
    stream = stream_of(events)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    read = read_stream(stream, cuts)
    assert written(chat.collect(read)) == whole_of(events)
    assert written(openai_chat.parse_response(whole_of(events))) == whole_of(events)


def test_a_stream_cut_at_every_byte_parses_the_same():
    """B18: within each character too."""
    stream = stream_of([text("a渐"), text("🌊b"), chat.Finish()])
    for cut in range(len(stream)):
        assert read_stream(stream, [cut]) == [
            text("a渐"),
            text("🌊b"),
            chat.Finish(model="m"),
        ]


def test_empty_chunks_are_skipped():
    """B8: Azure's preamble, usage alone, a delta of null."""
    stream = frames_of(
        {"choices": [], "model": "", "prompt_filter_results": []},
        {"choices": None},
        {"model": "m-1"},
        {"choices": [{"index": 0, "delta": None}]},
        {"choices": [{"index": 0}]},
        delta(content=None, role="assistant"),
        delta(content="a"),
        {"choices": [], "usage": None},
        delta("stop"),
    )
    assert read_stream(stream) == [
        text("a"),
        chat.Finish(model="m-1", ignored=("prompt_filter_results",)),
    ]


def test_the_last_usage_counts_wherever_it_stands():
    """B8"""
    usages = [{"prompt_tokens": 3, "completion_tokens": n, "total_tokens": 3 + n} for n in range(4)]
    stream = frames_of(
        delta(content="a") | {"usage": usages[0]},
        delta("stop") | {"usage": usages[1]},
        {"choices": [], "usage": usages[2]},
        {
            "choices": [],
            "usage": usages[3] | {"prompt_tokens_details": {"cached_tokens": 2}, "queue_time": 0.1},
        },
    )
    *_, finish = read_stream(stream + b"data: [DONE]\n\n")
    assert finish == chat.Finish(usage=Usage(3, 3, 2), ignored=("usage.queue_time",))


def test_content_of_the_finish_chunk_is_kept():
    """B9"""
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}
    stream = frames_of(delta("tool_calls", content="a", reasoning="hm", tool_calls=[call]))
    assert read_stream(stream) == [
        StreamEvent("reasoning", "hm", part_index=0),
        text("a", 1),
        call_name("f", 2, "c"),
        call_args("{}", 2, "c"),
        chat.Finish("tool_calls"),
    ]


def call_delta(index: int | None, id_: str | None, name: str | None, arguments: Any) -> Any:
    call = {"index": index, "id": id_, "function": {"name": name, "arguments": arguments}}
    return delta(tool_calls=[call])


CALLS = {
    "indexes, interleaved (B1)": [
        call_delta(0, "x", "f", ""),
        call_delta(1, "y", "g", '{"b"'),
        call_delta(0, None, None, '{"a":1}'),
        call_delta(1, None, None, ":2}"),
    ],
    "no indexes": [
        call_delta(None, "x", "f", '{"a"'),
        call_delta(None, "x", None, ":1}"),
        call_delta(None, "y", "g", '{"b":2}'),
    ],
    "neither indexes nor ids after the first": [
        call_delta(None, "x", "f", '{"a"'),
        call_delta(None, None, None, ":1}"),
        call_delta(None, "y", "g", '{"b":2}'),
    ],
    "all under index 0 (B1)": [
        call_delta(0, "x", "f", '{"a":1}'),
        call_delta(0, "y", "g", '{"b":2}'),
    ],
    "id and name on each delta (B3)": [
        call_delta(0, "x", "f", '{"a"'),
        call_delta(0, "x", "f", ":1}"),
        call_delta(1, "y", "g", '{"b":2}'),
    ],
    "empty ids and names after the first": [
        call_delta(0, "x", "f", '{"a"'),
        call_delta(0, "", "", ":1}"),
        call_delta(1, "y", "g", '{"b":2}'),
    ],
    "arguments before the name": [
        call_delta(0, "x", None, '{"a":'),
        call_delta(0, None, "f", "1}"),
        call_delta(1, "y", "g", '{"b":2}'),
    ],
    "arguments as objects": [
        call_delta(0, "x", "f", {"a": 1}),
        call_delta(1, "y", "g", {"b": 2}),
    ],
}


@pytest.mark.parametrize("chunks", CALLS.values(), ids=CALLS)
def test_calls_are_told_apart_however_they_come(chunks):
    response = chat.collect(read_stream(frames_of(*chunks, delta("stop"))))
    assert [(p.name, p.arguments, p.tool_call_id) for p in response.parts] == [
        ("f", {"a": 1}, "x"),
        ("g", {"b": 2}, "y"),
    ]
    assert response.raw_arguments == {"x": '{"a":1}', "y": '{"b":2}'}
    assert response.finish.reason == "tool_calls"  # B6


def test_calls_without_ids_get_ids_derived_from_the_response():
    """Two answers of one conversation may not have the same: Anthropic refuses it."""
    calls = [call_delta(None, None, name, "{}") for name in "fg"]
    stream = frames_of(*({**call, "id": "chatcmpl-7.a:Z"} for call in calls), delta("tool_calls"))
    parts = chat.collect(read_stream(stream)).parts
    assert [part.tool_call_id for part in parts] == ["call_chatcmpl-7aZ_0", "call_chatcmpl-7aZ_1"]


def test_the_old_function_call_is_a_call():
    stream = frames_of(
        delta(function_call={"name": "f", "arguments": "{"}),
        delta(function_call={"arguments": "}"}),
        delta("function_call"),
    )
    assert read_stream(stream) == [
        call_name("f", 0, "call_0"),
        call_args("{", 0, "call_0"),
        call_args("}", 0, "call_0"),
        chat.Finish("tool_calls"),
    ]


REASONS = {"stop": "stop", "length": "length", "content_filter": "content_filter"} | {
    "eos": "stop",
    "tool_calls": "stop",
    "model_length": "length",
}


@pytest.mark.parametrize("said, reason", REASONS.items())
def test_provider_words_become_our_finish_reasons(said, reason):
    assert read_stream(frames_of(delta(said, content="a"))) == [text("a"), chat.Finish(reason)]


def test_fields_of_a_response_that_are_not_carried_are_listed():
    body = {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "logprobs": {"content": []},
                "message": {
                    "role": "assistant",
                    "content": [{"type": "text", "text": "a"}, {"type": "image"}],
                    "refusal": "no",
                    "annotations": [{"type": "url_citation"}],
                },
            },
            {"index": 1, "message": {"content": "b"}, "finish_reason": "stop"},
        ],
        "citations": [],
    }
    response = openai_chat.parse_response(body)
    assert response.messages == [Message("assistant", [TextPart("ano")])]
    assert response.finish == chat.Finish(
        model="m",
        ignored=(
            "citations",
            "choices[*].logprobs",
            "choices[*].message.annotations",
            "choices[*] (content of type image)",
            "choices[1]",
        ),
    )


CUT = {
    "nothing": b"",
    "text alone": frames_of(delta(content="a")),
    "[DONE] without a finish (B10)": frames_of(delta(content="a")) + b"data: [DONE]\n\n",
}


@pytest.mark.parametrize("stream", CUT.values(), ids=CUT)
def test_a_stream_that_was_cut_is_an_error(stream):
    with pytest.raises(UpstreamError) as caught:
        read_stream(stream)
    assert caught.value.message == "the upstream's stream ended before its answer did"


def test_frames_after_the_end_are_skipped():
    stream = stream_of([text("a"), chat.Finish()])
    assert read_stream(stream + frames_of(delta(content="b"))) == read_stream(stream)


def test_an_error_inside_a_stream_is_raised():
    """B8, B11: also beside empty choices."""
    error = {"message": "slow down", "code": 429}
    for chunk in ({"error": error}, {"choices": [], "error": error}):
        with pytest.raises(RateLimited) as caught:
            read_stream(frames_of(delta(content="a"), chunk))
        assert (caught.value.message, caught.value.status) == ("slow down", 429)


NO_ANSWERS = {
    "no choices": ({"choices": []}, "the upstream's answer has no choices"),
    "a list": ([], "the upstream's answer: expected an object, got a list"),
    "choices of text": (
        {"choices": [{"message": "hi"}]},
        "the upstream's answer at choices[0].message: expected an object, got a string",
    ),
}


@pytest.mark.parametrize("body, message", NO_ANSWERS.values(), ids=NO_ANSWERS)
def test_an_invalid_response_is_an_upstream_error(body, message):
    with pytest.raises(UpstreamError) as caught:
        openai_chat.parse_response(body)
    assert (type(caught.value), caught.value.message) == (UpstreamError, message)


def test_a_frame_that_is_not_json_is_an_upstream_error():
    with pytest.raises(UpstreamError, match="^a chunk of the upstream is not JSON: "):
        openai_chat.StreamParser().feed(SSEFrame("message", "<html>"))
