"""OpenAI's Chat Completions: captures both ways, the real SDK as the reader, properties."""

from __future__ import annotations

import base64
import contextlib
import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from operator import attrgetter
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llm.parts import (
    AttachmentPart,
    Message,
    ReasoningPart,
    StreamEvent,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)
from openai.types import Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from llmproxy.core import attachments, backend, chat, payload
from llmproxy.core.errors import (
    InvalidRequest,
    ModelNotFound,
    NotFound,
    Overloaded,
    ProxyError,
    RateLimited,
    Unauthorized,
    Unavailable,
    Unsupported,
    UpstreamError,
)
from llmproxy.dialects import DIALECTS, openai_chat
from llmproxy.transport.framing import SSEDecoder, SSEFrame
from tests.strategies import (
    AWKWARD,
    conversations,
    event_streams,
    json_values,
    marked_bodies,
    requests,
)
from tests.wire_cases import ANSWER_CREATED, ANSWER_ID, envelope, hub_json, wire_cases

CASES = wire_cases("openai_chat")
ANSWERED = wire_cases("openai_chat", answered=True)


def parse(*messages: dict[str, Any], **fields: Any) -> chat.ChatRequest:
    return openai_chat.parse_request({"model": "m", "messages": list(messages), **fields})


USER = {"role": "user", "content": "hi"}


def tool_call(id_: str | None, name: str, arguments: str = "{}") -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


def assistant(**fields: Any) -> dict[str, Any]:
    return {"role": "assistant", **fields}


def stream_of(events: list[chat.Event], *, include_usage: bool = True) -> bytes:
    renderer = openai_chat.StreamRenderer(envelope(include_usage=include_usage))
    return b"".join(renderer.start() + [f for event in events for f in renderer.feed(event)])


def whole_of(events: list[chat.Event]) -> dict[str, Any]:
    response = chat.collect(events)
    return openai_chat.render_response(response, envelope())


def chunks_of(stream: bytes) -> list[dict[str, Any]]:
    """Give the chunks of a stream that ends as it should."""
    *frames, last = SSEDecoder().feed(stream)
    assert (last.event, last.data) == ("message", "[DONE]")
    return [json.loads(frame.data) for frame in frames]


def text(chunk: str, index: int = 0) -> StreamEvent:
    return StreamEvent("text", chunk, part_index=index)


def call_name(name: str, index: int, id_: str) -> StreamEvent:
    return StreamEvent("tool_call_name", name, part_index=index, tool_call_id=id_)


def call_args(chunk: str, index: int, id_: str) -> StreamEvent:
    return StreamEvent("tool_call_args", chunk, part_index=index, tool_call_id=id_)


# ---- the real SDK as the reader


class Pieces(httpx2.SyncByteStream):
    """A body in pieces, which may end in a broken connection."""

    def __init__(self, pieces: list[bytes], error: Exception | None = None) -> None:
        self._pieces, self._error = pieces, error

    def __iter__(self) -> Iterator[bytes]:
        yield from self._pieces
        if self._error is not None:
            raise self._error


class Server:
    """Answers the SDK's next request with what it was given."""

    def __init__(self) -> None:
        self.answer = httpx2.Response(404)
        http = httpx2.Client(transport=httpx2.MockTransport(lambda request: self.answer))
        self.client = openai.OpenAI(
            base_url="http://proxy.test/v1", api_key="none", max_retries=0, http_client=http
        )

    def chunks(self, body: Pieces) -> Iterator[ChatCompletionChunk]:
        self.answer = sse(body)
        return self.client.chat.completions.create(model="m", messages=[], stream=True)

    def accumulated(self, body: Pieces) -> dict[str, Any]:
        """Give what the SDK itself makes of a stream."""
        self.answer = sse(body)
        with self.client.chat.completions.stream(model="m", messages=[]) as stream:
            snapshots = [event.snapshot for event in stream if event.type == "chunk"]
        return snapshots[-1].model_dump(exclude_unset=True)

    def whole(self, body: dict[str, Any]) -> ChatCompletion:
        self.answer = httpx2.Response(200, content=payload.encode(body))
        self.answer.headers["content-type"] = "application/json"
        return self.client.chat.completions.create(model="m", messages=[])


def sse(body: Pieces) -> httpx2.Response:
    return httpx2.Response(200, headers={"content-type": openai_chat.STREAM_TYPE}, stream=body)


SERVER = Server()


def shown(completion: dict[str, Any]) -> dict[str, Any]:
    """What a completion says; content that is null and empty say the same."""
    [choice] = completion["choices"]
    message = choice["message"]
    return {
        "head": {key: completion[key] for key in ("id", "object", "created", "model")},
        "role": message["role"],
        "text": message["content"] or "",
        "reasoning": message.get("reasoning_content") or "",
        "calls": [
            (call["id"], call["type"], call["function"]["name"], call["function"]["arguments"])
            for call in message.get("tool_calls") or ()
        ],
        "finish_reason": choice["finish_reason"],
        "usage": completion["usage"],
    }


# ---- captures


@pytest.mark.parametrize("case", CASES, ids=attrgetter("name"))
def test_request_capture_reads(case):
    """C16, C17, C18, d2, B12, B30: each capture's note says what is odd."""
    assert hub_json(openai_chat.parse_request(case.request)) == case.hub


@pytest.mark.parametrize("case", ANSWERED, ids=attrgetter("name"))
def test_answer_capture_renders_whole_and_streamed(case):
    request = openai_chat.parse_request(case.request)
    head = envelope(request.model, include_usage=request.include_usage)
    whole = chat.collect(case.events)
    renderer = openai_chat.StreamRenderer(head)
    frames = renderer.start() + [f for event in case.events for f in renderer.feed(event)]
    assert openai_chat.render_response(whole, head) == case.response
    assert b"".join(frames) == case.stream


@pytest.mark.parametrize("case", ANSWERED, ids=attrgetter("name"))
def test_the_sdk_reads_both_forms_of_an_answer_as_they_were_written(case):
    written = shown(case.response)
    assert shown(SERVER.whole(case.response).model_dump(exclude_unset=True)) == written
    streamed = shown(SERVER.accumulated(Pieces([case.stream])))
    streamed["head"]["object"] = "chat.completion"
    asked_for = case.hub.get("include_usage", True)
    assert streamed == (written if asked_for else written | {"usage": None})  # B7


@pytest.mark.parametrize("case", ANSWERED, ids=attrgetter("name"))
def test_answers_are_valid_by_the_sdks_own_types(case):
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


# ---- requests


def test_names_of_a_request_are_read_as_they_stand():
    request = parse(USER, model="openrouter/a/b:free", stream=True)
    assert (request.model, request.stream) == ("openrouter/a/b:free", True)
    assert parse(USER, model="").model is None
    assert openai_chat.parse_request({"messages": [USER]}).model is None


def test_headers_are_taken_and_not_needed():
    body = {"messages": [USER]}
    assert openai_chat.parse_request(body, {"user-agent": "x"}) == openai_chat.parse_request(body)


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_text_reaches_the_hub_as_it_is(text):
    """B18: nothing in text is ours to change."""
    assert parse({"role": "user", "content": text}).messages == [Message("user", [TextPart(text)])]


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_read_under_each_of_its_names(name):
    """B12"""
    assert parse(USER, assistant(content="x", **{name: "hm"})).messages[1].parts == [
        ReasoningPart("hm"),
        TextPart("x"),
    ]


def test_reasoning_under_two_names_is_read_once():
    """B12: a proxy that emits both gets both back."""
    message = assistant(content="x", reasoning_content="hm", reasoning="hm")
    assert parse(USER, message).messages[1].parts == [ReasoningPart("hm"), TextPart("x")]


@pytest.mark.parametrize("arguments", ["", " ", "\n\t", "{}", "{ }"])
def test_a_call_without_arguments_has_an_empty_object(arguments):
    """B4"""
    request = parse(
        USER,
        assistant(content=None, tool_calls=[tool_call("c", "f", arguments)]),
        {"role": "tool", "tool_call_id": "c", "content": "x"},
    )
    assert request.messages[1].parts == [ToolCallPart("f", {}, tool_call_id="c")]


@pytest.mark.parametrize("content", [None, "", [], [{"type": "text", "text": ""}]])
def test_empty_content_beside_calls_is_none(content):
    """B28"""
    request = parse(
        USER,
        assistant(content=content, tool_calls=[tool_call("c", "f")]),
        {"role": "tool", "tool_call_id": "c", "content": "x"},
    )
    assert request.messages[1].parts == [ToolCallPart("f", {}, tool_call_id="c")]


def test_an_answer_that_says_nothing_is_dropped():
    """B28"""
    assert parse(USER, assistant(content=""), assistant(), USER).messages == 2 * [
        Message("user", [TextPart("hi")])
    ]


@pytest.mark.parametrize("path, limit", [("max_tokens", 5), ("max_completion_tokens", 6)])
def test_both_names_of_the_token_limit_are_one_option(path, limit):
    request = parse(USER, **{path: limit})
    assert request.options == {"max_tokens": limit}
    assert request.option_paths["max_tokens"] == path


def test_the_newer_of_two_token_limits_counts():
    request = parse(USER, max_tokens=5, max_completion_tokens=6)
    assert (request.options, request.ignored) == ({"max_tokens": 6}, ("max_tokens",))


@pytest.mark.parametrize("limit", [0, -1, -2])
def test_a_token_limit_below_1_means_none(limit):
    request = parse(USER, max_tokens=limit)
    assert (request.options, request.ignored) == ({}, ("max_tokens",))


@pytest.mark.parametrize(
    "stop, sequences, ignored",
    [
        ("END", ["END"], ()),
        (["a", " b"], ["a", " b"], ()),
        ([], None, ()),
        ("", None, ()),
        (["", "a"], ["a"], ()),
        (" \n", None, ("stop",)),
        (["a", "\n"], ["a"], ("stop",)),
    ],
)
def test_stop_is_read_in_every_form(stop, sequences, ignored):
    """B30"""
    request = parse(USER, stop=stop)
    assert request.options.get("stop_sequences") == sequences
    assert (request.ignored, request.option_paths["stop_sequences"]) == (ignored, "stop")


def test_fields_that_nobody_knows_are_listed_once_each():
    tools = [{"type": "function", "function": {"name": n, "x": 1}, "y": 2} for n in "ab"]
    request = parse({**USER, "z": 1}, USER | {"z": 2}, tools=tools, w=None)
    assert request.ignored == ("messages[*].z", "tools[*].function.x", "tools[*].y", "w")


@pytest.mark.parametrize("name", openai_chat.NOT_CARRIED)
def test_fields_that_llm_can_not_carry_are_listed_unless_they_say_nothing(name):
    value = 2 if name == "top_logprobs" else True
    assert parse(USER, **{name: value}).ignored == (name,)
    assert parse(USER, **{name: None}).ignored == ()


def test_none_withholds_and_auto_is_the_default():
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert parse(USER, tools=tools).tool_choice == "auto"
    assert parse(USER, tools=tools, tool_choice="none").tool_choice == "none"
    assert parse(USER, functions=[{"name": "f"}], function_call="none").tool_choice == "none"
    assert parse(USER, tools=[], tool_choice="auto").tools == ()


REFUSED = {
    "no object": ([], "expected an object, got a list", None),
    "no messages": ({}, "this field is required", "messages"),
    "an empty list": ({"messages": []}, "there is no message to answer", "messages"),
    "only an empty answer": (
        {"messages": [{"role": "assistant"}]},
        "there is no message to answer",
        "messages",
    ),
    "messages as text": ({"messages": "hi"}, "expected a list, got a string", "messages"),
    "no role": ({"messages": [{"content": "x"}]}, "this field is required", "messages[0].role"),
    "a misspelt role": (
        {"messages": [{"role": "usr", "content": "x"}]},
        "expected one of 'assistant', 'developer', 'function', 'system', 'tool', 'user', got 'usr'",
        "messages[0].role",
    ),
    "content null": (
        {"messages": [{"role": "user", "content": None}]},
        "expected a string or a list, got null",
        "messages[0].content",
    ),
    "a part of no kind": (
        {"messages": [{"role": "user", "content": [{"type": "video"}]}]},
        "expected one of 'file', 'image_url', 'input_audio', 'refusal', 'text', got 'video'",
        "messages[0].content[0].type",
    ),
    "a local file as an image": (
        {
            "messages": [
                USER,
                USER,
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "/etc/passwd"}}],
                },
            ]
        },
        "expected an http(s) or data: URL",
        "messages[2].content[0].image_url.url",
    ),
    "audio of no bytes": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}
                    ],
                }
            ]
        },
        "expected base64 data, got none",
        "messages[0].content[0].input_audio.data",
    ),
    "a word as the stream flag": (
        {"messages": [USER], "stream": "yes"},
        "expected a boolean, got a string",
        "stream",
    ),
    "temperature as text": (
        {"messages": [USER], "temperature": "0.5"},
        "expected a number, got a string",
        "temperature",
    ),
    "an unknown tool choice": (
        {"messages": [USER], "tool_choice": "any"},
        "expected one of 'auto', 'none', 'required', got 'any'",
        "tool_choice",
    ),
    "a tool that is not there": (
        {"messages": [USER], "tool_choice": {"type": "function", "function": {"name": "f"}}},
        "there is no tool 'f' in this request",
        "tool_choice.function.name",
    ),
    "a function that is not there": (
        {"messages": [USER], "functions": [{"name": "g"}], "function_call": {"name": "f"}},
        "there is no tool 'f' in this request",
        "function_call.name",
    ),
    "a schema without a schema": (
        {
            "messages": [USER],
            "response_format": {"type": "json_schema", "json_schema": {"name": "x"}},
        },
        "this field is required",
        "response_format.json_schema.schema",
    ),
    "a result without a call (B27)": (
        {"messages": [USER, {"role": "tool", "tool_call_id": "c", "content": "x"}]},
        "no tool call 'c' waits for a result here",
        "messages[1].tool_call_id",
    ),
    "a second result of one call (B27)": (
        {
            "messages": [
                assistant(tool_calls=[tool_call("c", "f")]),
                {"role": "tool", "tool_call_id": "c", "content": "x"},
                {"role": "tool", "tool_call_id": "c", "content": "x"},
            ]
        },
        "no tool call 'c' waits for a result here",
        "messages[2].tool_call_id",
    ),
    "a call without its result (B27)": (
        {
            "messages": [
                assistant(tool_calls=[tool_call("c", "f"), tool_call("d", "f")]),
                {"role": "tool", "tool_call_id": "d", "content": "x"},
                USER,
            ]
        },
        "expected the results of the tool calls c here",
        "messages[2]",
    ),
    "a call at the end (B27)": (
        {"messages": [USER, assistant(tool_calls=[tool_call("c", "f"), tool_call("d", "f")])]},
        "expected the results of the tool calls c, d here",
        "messages[2]",
    ),
    "a function's result without a call (B27)": (
        {"messages": [USER, {"role": "function", "name": "f", "content": "x"}]},
        "no call of 'f' waits for a result here",
        "messages[1].name",
    ),
}


@pytest.mark.parametrize("body, message, param", REFUSED.values(), ids=REFUSED)
def test_what_is_no_request_is_refused_by_its_path(body, message, param):
    with pytest.raises(InvalidRequest) as caught:
        openai_chat.parse_request(body)
    assert type(caught.value) is InvalidRequest
    assert (caught.value.message, caught.value.param) == (message, param)


UNSUPPORTED = {
    "two answers": ({"n": 2}, "only n: 1 is answered", "n"),
    "no answers": ({"n": 0}, "only n: 1 is answered", "n"),
    "audio": ({"modalities": ["text", "audio"]}, "only text is answered, not audio", "modalities"),
    "a voice": ({"audio": {"voice": "a"}}, "only text is answered, not audio", "modalities"),
    "a file by its id": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}
            ]
        },
        "files are taken as file_data; no files are kept here",
        "messages[0].content[0].file",
    ),
    "earlier audio by its id": (
        {"messages": [USER, assistant(audio={"id": "audio_1"}), USER]},
        "no audio is kept here",
        "messages[1].audio",
    ),
}


@pytest.mark.parametrize("fields, message, param", UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_what_would_change_the_answer_in_silence_is_refused(fields, message, param):
    with pytest.raises(Unsupported) as caught:
        openai_chat.parse_request({"messages": [USER], **fields})
    assert (caught.value.message, caught.value.param) == (message, param)


# ---- streams


def test_the_role_is_in_the_first_chunk_alone():
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


def test_arguments_are_the_models_own_text():
    """B4, B40: key order, spaces and truncation stay."""
    raw = '\n {"b": 1,  "a": "x'
    events = [call_name("f", 0, "c"), *(call_args(c, 0, "c") for c in raw), chat.Finish("length")]
    assert "".join(d["function"]["arguments"] for d in deltas_of_calls(events)) == raw
    [call] = whole_of(events)["choices"][0]["message"]["tool_calls"]
    assert call["function"]["arguments"] == raw


def test_arguments_that_came_without_their_text_are_written_anew():
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
    "unknown": (chat.Usage(), None),
    "plain": (
        chat.Usage(3, 4),
        {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
    ),
    "one side": (
        chat.Usage(output_tokens=4),
        {"prompt_tokens": 0, "completion_tokens": 4, "total_tokens": 4},
    ),
    "details": (
        chat.Usage(10, 5, 8, 0, 2),
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
def test_usage_comes_in_a_chunk_of_its_own_if_asked_for(usage, shown):
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
        b'"param":null,"code":null}}\n\n'
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


@given(event_streams(), event_streams(), st.randoms(use_true_random=False))
@settings(max_examples=30)
def test_two_streams_at_once_share_nothing(one, other, random):
    """B17"""
    renderers = [openai_chat.StreamRenderer(envelope()) for _ in range(2)]
    streams = [renderer.start() for renderer in renderers]
    queues = [list(one), list(other)]
    while any(queues):
        i = random.choice([i for i in range(2) if queues[i]])
        streams[i] += renderers[i].feed(queues[i].pop(0))
    assert [b"".join(frames) for frames in streams] == [stream_of(one), stream_of(other)]


def test_a_delta_of_a_megabyte_is_one_frame():
    long = "渐" * 2**20
    chunks = chunks_of(stream_of([text(long), chat.Finish()]))
    assert chunks[1]["choices"][0]["delta"] == {"content": long}


# ---- properties


@given(event_streams())
@settings(max_examples=50)
def test_a_stream_accumulated_by_the_sdk_is_the_whole_answer(events):
    """B1 to B7, B18: text, reasoning, calls, finish reason and usage."""
    streamed = shown(SERVER.accumulated(Pieces([stream_of(events)])))
    whole = shown(whole_of(events))
    streamed["head"]["object"] = "chat.completion"
    assert streamed == whole


@given(event_streams())
@settings(max_examples=50)
def test_the_sdk_reads_what_the_hub_collects(events):
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
def test_any_answer_is_valid_by_the_sdks_own_types(events):
    ChatCompletion.model_validate(whole_of(events))
    for chunk in chunks_of(stream_of(events)):
        ChatCompletionChunk.model_validate(chunk)


def visible(messages: list[Message]) -> tuple[str, list[tuple[str, Any, str | None]]]:
    parts = [part for message in messages for part in message.parts]
    return "".join(part.text for part in parts if isinstance(part, TextPart)), [
        (part.name, part.arguments, part.tool_call_id)
        for part in parts
        if isinstance(part, ToolCallPart) and not part.server_executed
    ]


@given(event_streams(), st.booleans())
@settings(max_examples=50)
def test_an_answer_sent_back_is_read_as_what_it_was(events, exclude_none):
    """C17: by the SDK's own dump of it, which is what most programs keep as their history."""
    message = SERVER.whole(whole_of(events)).choices[0].message
    echo = json.loads(message.model_dump_json(exclude_none=exclude_none))
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": "x"}
        for call in echo.get("tool_calls") or ()
    ]
    read = parse(USER, echo, *results, USER).messages
    replies = [message for message in read if message.role == "assistant"]
    assert visible(replies) == visible(chat.collect(events).messages)


def as_wire(messages: list[Message]) -> list[dict[str, Any]]:
    """Write a conversation as the SDK's users do."""
    wire: list[dict[str, Any]] = []
    for message in messages:
        if message.role == "tool":
            for part in message.parts:
                assert isinstance(part, ToolResultPart)
                wire.append(
                    {"role": "tool", "tool_call_id": part.tool_call_id, "content": part.output}
                )
            continue
        written: dict[str, Any] = {"role": message.role, "content": []}
        for part in message.parts:
            match part:
                case TextPart(text=words):
                    written["content"].append({"type": "text", "text": words})
                case AttachmentPart(attachment=image):
                    data = base64.b64encode(image.content).decode()
                    url = f"data:image/png;base64,{data}"
                    written["content"].append({"type": "image_url", "image_url": {"url": url}})
                case ReasoningPart(text=words):
                    written["reasoning_content"] = words
                case ToolCallPart():
                    call = tool_call(part.tool_call_id, part.name, json.dumps(part.arguments))
                    written.setdefault("tool_calls", []).append(call)
        wire.append(written)
    return wire


@given(conversations())
@settings(max_examples=50)
def test_a_conversation_written_on_this_wire_is_read_as_it_is(messages):
    assert parse(*as_wire(messages)).messages == messages


@given(conversations(), st.booleans())
@settings(max_examples=50)
def test_reading_is_stable_and_a_longer_history_begins_as_the_shorter(messages, without_ids):
    """d6.3: also the ids that we make up."""
    wire = as_wire(messages)
    if without_ids:
        for message in wire:
            message.pop("tool_call_id", None)
            for call in message.get("tool_calls", ()):
                del call["id"]
    read = parse(*wire)
    assert parse(*copy.deepcopy(wire)) == read
    for length in (i for i, message in enumerate(wire) if i and message["role"] == "user"):
        shorter = parse(*wire[:length]).messages
        assert shorter == read.messages[: len(shorter)]


def test_no_part_is_shared_between_two_readings():
    """llm's values are mutable: a plugin that edits one may not reach another request."""
    body = {"messages": [USER], "tools": [{"function": {"name": "f"}}]}
    one, other = openai_chat.parse_request(body), openai_chat.parse_request(body)
    one.messages[0].parts.clear()
    one.tools[0].input_schema["x"] = 1
    assert other.messages == [Message("user", [TextPart("hi")])]
    assert other.tools[0].input_schema == {"type": "object", "properties": {}}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    children = value.items() if isinstance(value, dict) else []
    children = enumerate(value) if isinstance(value, list) else children
    for key, child in children:
        yield from places(child, (*path, key))


@st.composite
def damaged_requests(draw: st.DrawFn) -> Any:
    """A capture with one to three places replaced by anything, or taken from another place."""
    body: Any = copy.deepcopy(draw(st.sampled_from(CASES)).request)
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


def check_read_or_refused(body: Any) -> None:
    try:
        request = openai_chat.parse_request(body)
    except InvalidRequest as error:
        payload.encode(openai_chat.render_error(error))
        return
    assert isinstance(request, chat.ChatRequest)
    payload.encode(hub_json(request))


@given(json_values() | damaged_requests())
@settings(max_examples=100)
def test_any_value_is_read_or_refused(body):
    check_read_or_refused(body)


# ---- what of a request is kept

MARK = {"cache_control": {"type": "ephemeral"}}


def test_marks_are_no_part_of_what_is_kept():
    body = {
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "Be brief.", **MARK}]},
            {"role": "user", "content": "hi", **MARK},
            assistant(content=None, tool_calls=[tool_call("t", "f") | MARK]),
            {"role": "tool", "tool_call_id": "t", "content": "x", **MARK},
        ],
        "tools": [{"type": "function", "function": {"name": "f", **MARK}, **MARK}],
        **MARK,
    }
    kept = payload.encode(openai_chat.normalize_body(body))
    assert kept == payload.encode(body).replace(b',"cache_control":{"type":"ephemeral"}', b"")
    assert b"cache_control" not in kept


@pytest.mark.parametrize(
    "body",
    [
        None,
        [MARK],
        {"messages": "hi", "tools": MARK},
        {"messages": [USER, assistant(tool_calls=[tool_call("t", "f", json.dumps(MARK))])]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": MARK}}]},
    ],
)
def test_what_has_no_noise_is_kept_itself(body):
    assert openai_chat.normalize_body(body) is body


def but_for_marks(body: Any) -> Any:
    """Give what a request reads as, without the marks that are listed as not carried."""
    try:
        read = openai_chat.parse_request(body)
    except InvalidRequest as error:  # a mark in logit_bias
        return error.message, error.param
    ignored = [path for path in read.ignored if not path.endswith("cache_control")]
    return hub_json(replace(read, ignored=tuple(ignored)))


@given(marked_bodies([case.request for case in CASES]))
def test_what_is_kept_reads_as_the_whole_does(body):
    before = copy.deepcopy(body)
    kept = openai_chat.normalize_body(body)
    assert but_for_marks(kept) == but_for_marks(body)
    assert body == before
    assert openai_chat.normalize_body(kept) is kept


@given(json_values() | damaged_requests())
def test_any_value_has_something_to_keep(body):
    before = copy.deepcopy(body)
    payload.encode(openai_chat.normalize_body(body))
    assert body == before


# ---- models, errors, routes

ENTRY = backend.ModelEntry("openrouter/a/b", "openrouter", 1_700_000_000)


def test_models_are_listed_as_the_sdk_wants_them():
    listed = openai_chat.render_models([ENTRY])
    assert listed == {
        "object": "list",
        "data": [
            {
                "id": "openrouter/a/b",
                "object": "model",
                "created": 1_700_000_000,
                "owned_by": "openrouter",
            }
        ],
    }
    Model.model_validate(openai_chat.render_model(ENTRY))
    assert openai_chat.render_models([]) == {"object": "list", "data": []}


ERRORS = {
    "a bad field": (
        InvalidRequest("expected a string", param="messages[0].content"),
        {"type": "invalid_request_error", "param": "messages[0].content", "code": None},
        openai.BadRequestError,
    ),
    "no such model": (
        ModelNotFound("no model is called x", param="model"),
        {"type": "invalid_request_error", "param": "model", "code": "model_not_found"},
        openai.NotFoundError,
    ),
    "too many": (
        RateLimited("later", headers={"retry-after": "1"}),
        {"type": "rate_limit_error", "param": None, "code": None},
        openai.RateLimitError,
    ),
    "a broken model": (
        UpstreamError("it broke"),
        {"type": "server_error", "param": None, "code": None},
        openai.InternalServerError,
    ),
    "an overloaded one": (
        Overloaded("busy"),
        {"type": "server_error", "param": None, "code": None},
        openai.InternalServerError,
    ),
    "a bug of ours": (
        ProxyError("internal error"),
        {"type": "server_error", "param": None, "code": None},
        openai.InternalServerError,
    ),
}


@pytest.mark.parametrize("error, fields, sdk_class", ERRORS.values(), ids=ERRORS)
def test_errors_are_openais_object_and_the_sdks_classes(error, fields, sdk_class):
    rendered = openai_chat.render_error(error)
    assert rendered == {"error": {"message": error.message, **fields}}
    SERVER.answer = httpx2.Response(error.status, json=rendered)
    with pytest.raises(sdk_class) as caught:
        SERVER.client.models.list()
    assert caught.value.body == rendered["error"]
    assert error.message in str(caught.value)


def test_it_is_a_dialect_with_the_agreed_names():
    assert openai_chat in DIALECTS
    assert (openai_chat.NAME, openai_chat.REQUEST_ID_HEADER) == ("openai_chat", "x-request-id")
    assert openai_chat.ROUTES == (
        backend.Route("POST", "/v1/chat/completions", "chat"),
        backend.Route("GET", "/v1/models", "models"),
        backend.Route("GET", "/v1/models/", "model"),
    )


def test_a_schema_that_says_nothing_asks_for_json():
    """llm reads {} as no schema: neither honoured nor refused, if it were passed on."""
    asked = {"type": "json_schema", "json_schema": {"name": "any", "schema": {}}}
    request = openai_chat.parse_request(
        {"messages": [{"role": "user", "content": "hi"}], "response_format": asked}
    )
    assert (request.schema, request.options) == (None, {"json_object": True})


# ---- the client's side: requests to another server


@given(requests())
@settings(max_examples=50)
def test_a_request_written_and_read_is_what_it_was(request_):
    body, ignored = openai_chat.render_request(request_)
    read = openai_chat.parse_request(json.loads(json.dumps(body)))
    names = ("model", "messages", "tools", "tool_choice", "options", "schema", "stream")
    for name in names:
        assert hub_json(getattr(read, name)) == hub_json(getattr(request_, name)), name
    assert (ignored, read.ignored) == ((), ())


@pytest.mark.parametrize("case", CASES, ids=attrgetter("name"))
def test_a_capture_written_anew_reads_as_the_capture(case):
    request = openai_chat.parse_request(case.request)
    body, ignored = openai_chat.render_request(request)
    read = openai_chat.parse_request(body)
    moved = any("image" in path for path in ignored)
    if not moved:
        assert hub_json(read.messages) == hub_json(request.messages)
    assert set(ignored) <= {
        "messages[*] (a tool's image, moved into a user message)",
        "tool_choice",
    }
    if "tool_choice" not in ignored:
        assert read.tool_choice == request.tool_choice
    assert read.tools == request.tools
    assert (read.options, read.schema) == (request.options, request.schema)


def write(*messages: Message, **fields: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    return openai_chat.render_request(chat.ChatRequest("m", list(messages), **fields))


USER_MESSAGE = Message("user", [TextPart("hi")])


def test_a_request_is_written_in_its_shortest_form():
    assert write(USER_MESSAGE) == ({"model": "m", "messages": [USER]}, ())
    assert openai_chat.render_request(chat.ChatRequest(None, [USER_MESSAGE])) == (
        {"messages": [USER]},
        (),
    )


def test_a_stream_is_asked_for_with_its_usage_unless_told_otherwise():
    assert write(USER_MESSAGE, stream=True)[0]["stream_options"] == {"include_usage": True}
    body, _ = write(USER_MESSAGE, stream=True, include_usage=False)
    assert body == {"model": "m", "messages": [USER], "stream": True}


def test_the_token_limit_keeps_its_newer_name():
    for name in ("max_tokens", "max_completion_tokens"):
        request = parse(USER, **{name: 5})
        assert openai_chat.render_request(request)[0][name] == 5


def test_options_of_no_name_here_are_listed_by_their_path():
    options = {"top_k": 5, "thinking_budget": 9, "user": 65 * "u", "seed": 1}
    body, ignored = write(
        USER_MESSAGE,
        options=options,
        option_paths={"thinking_budget": "thinking.budget_tokens", "user": "metadata.user_id"},
        server_tools=(chat.ServerTool("web_search", path="tools[0]"),),
    )
    assert body == {"model": "m", "messages": [USER], "top_k": 5, "seed": 1}
    assert ignored == ("tools[0]", "thinking.budget_tokens", "metadata.user_id")


def test_the_greatest_effort_is_called_xhigh_here():
    body, ignored = write(
        USER_MESSAGE,
        options={"reasoning_effort": "max"},
        option_paths={"reasoning_effort": "output_config.effort"},
    )
    assert (body["reasoning_effort"], ignored) == ("xhigh", ("output_config.effort",))


def test_what_an_answer_had_and_this_wire_has_not_is_listed():
    signed = ReasoningPart("hm", provider_metadata={"anthropic": {"signature": "s"}})
    server = ToolCallPart("search", {}, tool_call_id="s", server_executed=True)
    said = Message("assistant", [signed, server, TextPart("a"), ReasoningPart("", redacted=True)])
    body, ignored = write(USER_MESSAGE, said, USER_MESSAGE)
    assert body["messages"][1] == assistant(content="a", reasoning_content="hm")
    assert ignored == (
        "messages[*] (a provider's own data, as signatures)",
        "messages[*] (a server tool's call and result)",
        "messages[*] (reasoning that is opaque)",
    )


def test_parts_in_another_order_are_sorted_and_listed():
    call = ToolCallPart("f", {"a": 1}, tool_call_id="c")
    result = Message("tool", [ToolResultPart("f", "x", tool_call_id="c")])
    body, ignored = write(USER_MESSAGE, Message("assistant", [call, TextPart("a")]), result)
    assert body["messages"][1:] == [
        assistant(content="a", tool_calls=[tool_call("c", "f", '{"a":1}')]),
        {"role": "tool", "tool_call_id": "c", "content": "x"},
    ]
    assert ignored == ("messages[*] (the order of an answer's parts)",)


def test_an_image_of_a_tool_follows_all_results_in_a_user_message():
    """B26"""
    calls = [ToolCallPart("f", {}, tool_call_id=id_) for id_ in "ab"]
    image = attachments.attachment_from_url("https://x.test/a.png")
    results = [
        ToolResultPart("f", "one", tool_call_id="a", attachments=[image]),
        ToolResultPart("f", "two", tool_call_id="b", exception="ValueError"),
    ]
    body, ignored = write(Message("assistant", calls), Message("tool", results))
    assert body["messages"][1:] == [
        {"role": "tool", "tool_call_id": "a", "content": "one"},
        {"role": "tool", "tool_call_id": "b", "content": "Error: two"},
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "https://x.test/a.png"}}],
        },
    ]
    assert ignored == (
        "messages[*] (a tool's image, moved into a user message)",
        "messages[*] (a tool's failure, put into words)",
    )


def test_a_document_that_only_has_an_address_is_listed_by_its_path():
    pdf = attachments.attachment_from_url("https://x.test/a.pdf")
    path = "messages[0].content[1].source.url"
    body, ignored = write(
        Message("user", [TextPart("hi"), AttachmentPart(pdf)]), attachment_paths=(path,)
    )
    assert (body["messages"], ignored) == ([USER], (path,))


def test_arguments_that_were_no_object_are_written_as_they_were():
    """B4: truncated JSON does not become a call with an argument called _raw."""
    call = ToolCallPart("f", {"_raw": '{"a": '}, tool_call_id="c")
    body, _ = write(Message("assistant", [call]))
    assert body["messages"][0]["tool_calls"] == [tool_call("c", "f", '{"a": ')]


# ---- the client's side: answers of another server


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


def delta(finish_reason: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish_reason}]}


def written(response: chat.ChatResponse) -> dict[str, Any]:
    return openai_chat.render_response(response, envelope())


@pytest.mark.parametrize("case", ANSWERED, ids=attrgetter("name"))
def test_an_answer_capture_reads_back_whole_and_streamed(case):
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
def test_a_rendered_stream_cut_anywhere_is_read_as_the_whole_answer(events, data):
    """B1 to B7, B18, B40"""
    stream = stream_of(events)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    read = read_stream(stream, cuts)
    assert written(chat.collect(read)) == whole_of(events)
    assert written(openai_chat.parse_response(whole_of(events))) == whole_of(events)


@given(event_streams())
@settings(max_examples=40)
def test_events_read_keep_the_hubs_invariant(events):
    read = read_stream(stream_of(events))
    assert [isinstance(event, chat.Finish) for event in read] == [False] * (len(read) - 1) + [True]
    families: dict[int, str] = {}
    for event in read[:-1]:
        family = event.type.removesuffix("_name").removesuffix("_args")
        if family == "tool_call" and event.part_index not in families:
            assert event.type == "tool_call_name"
        assert families.setdefault(event.part_index, family) == family
        assert event.tool_call_id or family != "tool_call"


def test_a_stream_cut_at_every_byte_reads_the_same():
    """B18: within each character too."""
    stream = stream_of([text("a渐"), text("🌊b"), chat.Finish()])
    for cut in range(len(stream)):
        assert read_stream(stream, [cut]) == [
            text("a渐"),
            text("🌊b"),
            chat.Finish(model="m"),
        ]


@given(event_streams(), event_streams(), st.randoms(use_true_random=False))
@settings(max_examples=30)
def test_two_parsers_at_once_share_nothing(one, other, random):
    """B17"""
    queues = [SSEDecoder().feed(stream_of(events)) for events in (one, other)]
    parsers = [openai_chat.StreamParser() for _ in range(2)]
    read: list[list[chat.Event]] = [[], []]
    while any(queues):
        i = random.choice([i for i in range(2) if queues[i]])
        read[i] += parsers[i].feed(queues[i].pop(0))
    assert read == [read_stream(stream_of(one)), read_stream(stream_of(other))]


def test_chunks_that_say_nothing_are_passed_over():
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
    assert finish == chat.Finish(usage=chat.Usage(3, 3, 2), ignored=("usage.queue_time",))


def test_what_the_finish_chunk_says_is_not_lost():
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


F, G = ("f", '{"a":1}'), ("g", '{"b":2}')
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


def test_calls_without_ids_are_given_some_of_the_answers_own():
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
def test_the_reason_is_said_in_the_hubs_words(said, reason):
    assert read_stream(frames_of(delta(said, content="a"))) == [text("a"), chat.Finish(reason)]


def test_what_the_hub_does_not_hold_of_an_answer_is_listed():
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


def test_frames_after_the_end_are_passed_over():
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
def test_what_is_no_answer_is_the_upstreams_error(body, message):
    with pytest.raises(UpstreamError) as caught:
        openai_chat.parse_response(body)
    assert (type(caught.value), caught.value.message) == (UpstreamError, message)


def test_a_frame_that_is_no_json_is_the_upstreams_error():
    with pytest.raises(UpstreamError, match="^a chunk of the upstream is no JSON: "):
        openai_chat.StreamParser().feed(SSEFrame("message", "<html>"))


@given(json_values())
@settings(max_examples=100)
def test_any_answer_is_read_or_refused(value):
    with contextlib.suppress(ProxyError):
        openai_chat.parse_response(value)
    with contextlib.suppress(ProxyError):
        read_stream(frames_of(value, {"choices": [value]}, {"choices": [{"delta": value}]}))


@pytest.mark.parametrize("error", [row[0] for row in ERRORS.values()], ids=ERRORS)
def test_an_error_written_and_read_is_what_it_was(error):
    read = openai_chat.parse_error(error.status, openai_chat.render_error(error), error.headers)
    assert (read.status, read.message, read.param, read.code, read.headers) == (
        error.status,
        error.message,
        error.param,
        error.code,
        error.headers,
    )
    assert read.kind == ("upstream" if error.kind == "internal" else error.kind)


FOREIGN_ERRORS = {
    "ollama": (404, {"error": "no such model"}, NotFound, 404, "no such model"),
    "fastapi": (401, {"detail": "who are you?"}, Unauthorized, 401, "who are you?"),
    "gemini": (503, [{"error": {"message": "later", "code": 503}}], Unavailable, 503, "later"),
    "mistral": (422, {"object": "error", "message": "no"}, InvalidRequest, 422, "no"),
    "text": (500, "Internal Server Error", UpstreamError, 500, "Internal Server Error"),
    "nothing": (502, None, UpstreamError, 502, "the upstream failed without giving a reason"),
    "in a stream, by its type": (
        200,
        {"error": {"message": "x", "type": "rate_limit_error"}},
        RateLimited,
        429,
        "x",
    ),
    "in a stream, by nothing": (200, {"error": {"message": "x"}}, UpstreamError, 502, "x"),
}


@pytest.mark.parametrize(
    "status, body, kind, own, message", FOREIGN_ERRORS.values(), ids=FOREIGN_ERRORS
)
def test_errors_of_every_server_keep_their_class(status, body, kind, own, message):
    """B39"""
    error = openai_chat.parse_error(status, body, {"Retry-After": "3", "Set-Cookie": "x"})
    assert (type(error), error.status, error.message) == (kind, own, message)
    assert error.headers == {"retry-after": "3"}


def test_a_code_beside_the_message_is_kept():
    fields = {"message": "no", "type": "NotFoundError", "param": "model", "code": "model_not_found"}
    error = openai_chat.parse_error(200, {"object": "error", **fields})
    assert (type(error), error.status, error.message) == (NotFound, 404, "no")
    assert (error.param, error.code) == ("model", "model_not_found")
