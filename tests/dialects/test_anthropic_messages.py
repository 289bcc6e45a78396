"""Anthropic's Messages: captures both ways, the real SDK as the reader, properties."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from operator import attrgetter
from typing import Any

import anthropic
import httpx2
import llm
import pytest
from anthropic.types import Message as SDKMessage
from anthropic.types import MessageTokensCount, ModelInfo
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

from llmproxy.core import attachments, backend, chat, payload
from llmproxy.core.errors import (
    Forbidden,
    InvalidRequest,
    ModelNotFound,
    NotFound,
    Overloaded,
    ProxyError,
    RateLimited,
    TooLarge,
    Unauthorized,
    Unavailable,
    Unsupported,
    UpstreamError,
    UpstreamTimeout,
)
from llmproxy.dialects import anthropic_messages
from llmproxy.transport.framing import SSEDecoder, SSEFrame
from tests.strategies import AWKWARD, event_streams, json_values, marked_bodies, requests
from tests.wire_cases import ANSWER_ID, WIRE, envelope, hub_json, wire_cases

CASES = wire_cases("anthropic_messages")
ANSWERED = wire_cases("anthropic_messages", answered=True)

USER = {"role": "user", "content": "hi"}
PNG = b"\x89PNG\r\n\x1a\nshot"


def parse(*messages: dict[str, Any], **fields: Any) -> chat.ChatRequest:
    return anthropic_messages.parse_request({"model": "m", "messages": list(messages), **fields})


def user(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def words(text: str, **fields: Any) -> dict[str, Any]:
    return {"type": "text", "text": text, **fields}


def tool_use(id_: str, name: str = "f", **input_: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": id_, "name": name, "input": input_}


def tool_result(id_: str, content: Any = "x", **fields: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": id_, "content": content, **fields}


def stream_of(events: list[chat.Event], model: str | None = "m") -> bytes:
    renderer = anthropic_messages.StreamRenderer(envelope(model, input_tokens=7))
    return b"".join(renderer.start() + [f for event in events for f in renderer.feed(event)])


def whole_of(events: list[chat.Event], model: str | None = "m") -> dict[str, Any]:
    response = chat.collect(events)
    return anthropic_messages.render_response(response, envelope(model, input_tokens=7))


def frames_of(stream: bytes) -> list[dict[str, Any]]:
    """Give the events of a stream, each named twice alike (d3)."""
    frames = SSEDecoder().feed(stream)
    values = [json.loads(frame.data) for frame in frames]
    assert [frame.event for frame in frames] == [value["type"] for value in values]
    return values


def text(chunk: str, index: int = 0) -> StreamEvent:
    return StreamEvent("text", chunk, part_index=index)


def reasoning(chunk: str, index: int = 0, signature: str | None = None) -> StreamEvent:
    metadata = {"anthropic": {"signature": signature}} if signature else None
    return StreamEvent("reasoning", chunk, part_index=index, provider_metadata=metadata)


def call_name(name: str, index: int, id_: str) -> StreamEvent:
    return StreamEvent("tool_call_name", name, part_index=index, tool_call_id=id_)


def call_args(chunk: str, index: int, id_: str) -> StreamEvent:
    return StreamEvent("tool_call_args", chunk, part_index=index, tool_call_id=id_)


# ---- the real SDK as the reader


class Pieces(httpx2.SyncByteStream):
    """A body in pieces."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        yield from self._pieces


class Server:
    """Answers the SDK's next request with what it was given."""

    def __init__(self) -> None:
        self.answer = httpx2.Response(404)
        http = httpx2.Client(transport=httpx2.MockTransport(lambda request: self.answer))
        self.client = anthropic.Anthropic(
            base_url="http://proxy.test", api_key="none", max_retries=0, http_client=http
        )

    def accumulated(self, *pieces: bytes) -> dict[str, Any]:
        """Give what the SDK itself makes of a stream."""
        headers = {"content-type": anthropic_messages.STREAM_TYPE}
        self.answer = httpx2.Response(200, headers=headers, stream=Pieces(list(pieces)))
        with self.client.messages.stream(model="m", max_tokens=9, messages=[]) as stream:
            return stream.get_final_message().to_dict()

    def json(self, value: dict[str, Any], status: int = 200, **headers: str) -> None:
        fields = {"content-type": "application/json", **headers}
        self.answer = httpx2.Response(status, headers=fields, content=payload.encode(value))

    def whole(self, body: dict[str, Any]) -> dict[str, Any]:
        self.json(body)
        return self.client.messages.create(model="m", max_tokens=9, messages=[]).to_dict()


SERVER = Server()


# ---- captures


@pytest.mark.parametrize("case", CASES, ids=attrgetter("name"))
def test_request_capture_reads(case):
    """B18, B26, B28-B30, B32, B33, C1, C3, C4, C7, C8: each capture's note says what is odd."""
    assert hub_json(anthropic_messages.parse_request(case.request)) == case.hub


@pytest.mark.parametrize("case", ANSWERED, ids=attrgetter("name"))
def test_answer_capture_renders_whole_and_streamed(case):
    model = anthropic_messages.parse_request(case.request).model
    assert whole_of(case.events, model) == case.response
    assert stream_of(case.events, model) == case.stream


@pytest.mark.parametrize("case", ANSWERED, ids=attrgetter("name"))
def test_the_sdk_reads_both_forms_of_an_answer_as_they_were_written(case):
    assert SERVER.whole(case.response) == case.response
    assert SERVER.accumulated(case.stream) == case.response


@pytest.mark.parametrize("case", ANSWERED, ids=attrgetter("name"))
def test_answers_are_valid_by_the_sdks_own_types_and_have_every_key(case):
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


@pytest.mark.parametrize("case", ANSWERED, ids=attrgetter("name"))
def test_an_answer_sent_back_is_the_message_that_was_answered(case):
    """B25, C7: thinking comes back with its signature; what is stored is found again."""
    said = chat.collect(case.events).messages[0]
    echoed = {"role": "assistant", "content": case.response["content"]}
    results = [tool_result(b["id"]) for b in case.response["content"] if b["type"] == "tool_use"]
    read = parse(USER, echoed, user(*results, words("go on")))
    assert read.messages[1] == said
    assert read.ignored == ()


# ---- requests


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_text_reaches_the_hub_as_it_is(text):
    """B18: nothing in text is ours to change."""
    assert parse({"role": "user", "content": text}).messages == [Message("user", [TextPart(text)])]


BILLING = "x-anthropic-billing-header: cc_version=2.1; cch=00ff;"


@pytest.mark.parametrize(
    "system, texts",
    [
        (BILLING, []),
        (BILLING + "\nBe brief.", ["Be brief."]),
        ([words(BILLING), words("Be brief.")], ["Be brief."]),
        ([words("It says " + BILLING)], ["It says " + BILLING]),
        ([], []),
        ("", []),
        (None, []),
    ],
)
def test_the_billing_line_is_no_part_of_the_system_text(system, texts):
    """B32: it differs with each request."""
    messages = [Message("system", [TextPart(t) for t in texts])] if texts else []
    assert parse(USER, system=system).messages == [*messages, Message("user", [TextPart("hi")])]


def test_cache_marks_ask_for_caching_and_leave_no_other_trace():
    """C3, d6.2"""
    mark = {"type": "ephemeral"}
    plain = parse(user(words("hi")))
    for marked in (
        parse(user(words("hi", cache_control=mark))),
        parse(user(words("hi")), cache_control=mark),
        parse(user(words("hi")), tools=[{"name": "f", "input_schema": {}, "cache_control": mark}]),
        parse(user(words("hi")), tools=[{"type": "bash_20250124", "cache_control": mark}]),
    ):
        assert marked.messages == plain.messages
        assert (marked.options, marked.ignored) == ({"cache": True}, ())
    assert parse(user(words("hi", cache_control=None))).options == {}


def test_a_mark_in_what_a_server_gave_is_no_part_of_it():
    """C3: an MCP server's text is marked as any other block; what is stored must not change."""

    def answered(**mark: Any) -> chat.ChatRequest:
        shown = {"tool_use_id": "mcptoolu_1", "content": [words("3 notes", **mark)]}
        call = {"type": "mcp_tool_use", "id": "mcptoolu_1", "name": "note", "server_name": "notes"}
        return parse(USER, assistant(call, {"type": "mcp_tool_result", **shown}), USER)

    marked, plain = answered(cache_control={"type": "ephemeral"}), answered()
    assert marked.messages == plain.messages
    assert (marked.options, plain.options) == ({"cache": True}, {})


def test_inline_system_messages_keep_their_place():
    """B31, C1"""
    system = {"role": "system", "content": [words("now")]}
    request = parse(USER, assistant(tool_use("a")), system, user(tool_result("a")), system)
    assert [m.role for m in request.messages] == ["user", "assistant", "system", "tool", "system"]


def test_results_come_before_what_the_user_says_beside_them():
    """B27"""
    request = parse(
        USER,
        assistant(tool_use("a"), tool_use("b", "g")),
        user(words("and"), tool_result("b", "2"), tool_result("a", "1")),
    )
    assert request.messages[2:] == [
        Message(
            "tool",
            [
                ToolResultPart("g", "2", tool_call_id="b"),
                ToolResultPart("f", "1", tool_call_id="a"),
            ],
        ),
        Message("user", [TextPart("and")]),
    ]


def test_results_in_several_turns_are_one():
    """B27: the API joins turns of one role."""
    calls = assistant(tool_use("a"), tool_use("b"))
    request = parse(USER, calls, user(tool_result("a")), user(tool_result("b")))
    assert request == parse(USER, calls, user(tool_result("a"), tool_result("b")))


@pytest.mark.parametrize(
    "content, output",
    [("x", "x"), (None, ""), ([], ""), ([words("x"), words("y")], "x\ny")],
)
def test_a_results_content_is_text(content, output):
    request = parse(USER, assistant(tool_use("a")), user(tool_result("a", content)))
    assert request.messages[2].parts == [ToolResultPart("f", output, tool_call_id="a")]


def test_an_image_in_a_result_is_an_attachment_of_it():
    """B26"""
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(PNG).decode()}
    content = [{"type": "image", "source": source}]
    request = parse(USER, assistant(tool_use("a")), user(tool_result("a", content)))
    assert request.messages[2].parts[0].attachments == [
        llm.Attachment(type="image/png", content=PNG)
    ]
    assert request.attachment_paths == ("messages[2].content[0].content[0].source.data",)


@pytest.mark.parametrize("content", ["", [], [words("")], [{"type": "thinking", "thinking": ""}]])
def test_an_answer_that_says_nothing_is_dropped(content):
    """B28"""
    request = parse(USER, {"role": "assistant", "content": content}, USER)
    assert [message.role for message in request.messages] == ["user", "user"]


def test_thinking_without_a_signature_is_reasoning_of_nobodys():
    request = parse(USER, assistant({"type": "thinking", "thinking": "hm", "signature": ""}), USER)
    assert request.messages[1].parts == [ReasoningPart("hm")]


def test_unknown_things_are_accepted_and_listed():
    """B33"""
    request = parse(
        user(words("hi", sparkle=1), {"type": "hologram", "depth": 2}),
        tools=[{"name": "f", "input_schema": {}, "color": "red"}, {"type": "laser_20990101"}],
        betas=["x"],
        fallback_models=None,
    )
    assert request.ignored == (
        "messages[*].content[*].sparkle",
        "tools[*].color",
        "betas",
        "fallback_models",
        "messages[*].content[*] (hologram)",
    )
    assert request.server_tools == (chat.ServerTool("laser", {}, "tools[1]"),)


@pytest.mark.parametrize("name", anthropic_messages.NOT_CARRIED)
def test_fields_that_llm_can_not_carry_are_listed_unless_they_say_nothing(name):
    assert parse(USER, **{name: "x"}).ignored == (name,)
    assert parse(USER, **{name: None}).ignored == ()


@pytest.mark.parametrize("name", anthropic_messages.TOOL_NOT_CARRIED)
def test_fields_of_tools_that_llm_can_not_carry_are_listed(name):
    tool = {"name": "f", "input_schema": {}, name: True}
    assert parse(USER, tools=[tool]).ignored == (f"tools[*].{name}",)
    assert parse(USER, tools=[tool | {name: None}]).ignored == ()


@pytest.mark.parametrize(
    "thinking, options, ignored",
    [
        ({"type": "enabled", "budget_tokens": 9}, {"thinking": True, "thinking_budget": 9}, ()),
        ({"type": "adaptive", "display": "omitted"}, {"thinking": True}, ("thinking.display",)),
        ({"type": "between_tools"}, {"thinking": True}, ()),
        ({"type": "disabled"}, {"thinking": False}, ()),
        (None, {}, ()),
    ],
)
def test_thinking_is_read_in_every_form(thinking, options, ignored):
    """C3: also a budget above max_tokens."""
    request = parse(USER, thinking=thinking, max_tokens=5)
    assert (request.options, request.ignored) == (options | {"max_tokens": 5}, ignored)


@pytest.mark.parametrize(
    "choice, read, options",
    [
        (None, "auto", {}),
        ({"type": "auto"}, "auto", {}),
        ({"type": "any"}, "required", {}),
        ({"type": "none"}, "none", {}),
        ({"type": "tool", "name": "f"}, chat.NamedTool("f"), {}),
        (
            {"type": "any", "disable_parallel_tool_use": True},
            "required",
            {"parallel_tool_calls": False},
        ),
    ],
)
def test_a_tool_choice_is_read_and_written(choice, read, options):
    """C8"""
    request = parse(USER, tools=[{"name": "f", "input_schema": {}}], tool_choice=choice)
    assert (request.tool_choice, request.options) == (read, options)
    written = anthropic_messages.render_request(request)[0].get("tool_choice")
    assert written == (None if choice == {"type": "auto"} else choice)


def test_a_choice_of_the_providers_tool_is_listed():
    tools = [{"type": "web_search_20250305", "name": "web_search"}]
    request = parse(USER, tools=tools, tool_choice={"type": "tool", "name": "web_search"})
    assert (request.tool_choice, request.ignored) == ("auto", ("tool_choice",))


@pytest.mark.parametrize("length, is_kept", [(64, True), (65, False)])
def test_a_user_id_that_others_refuse_is_listed(length, is_kept):
    request = parse(USER, metadata={"user_id": length * "u"})
    assert request.options == ({"user": length * "u"} if is_kept else {})
    assert request.ignored == (() if is_kept else ("metadata.user_id",))


def test_a_schema_is_read_under_both_its_names():
    """C8"""
    schema = {"type": "object"}
    format_ = {"type": "json_schema", "schema": schema}
    assert parse(USER, output_config={"format": format_}).schema == schema
    assert parse(USER, output_format=format_).schema == schema


REFUSED = {
    "no object": ([], "expected an object, got a list", None),
    "no messages": ({}, "this field is required", "messages"),
    "an empty list": ({"messages": []}, "there is no message to answer", "messages"),
    "a system prompt alone": (
        {"system": "x", "messages": [{"role": "user", "content": ""}]},
        "there is no message to answer",
        "messages",
    ),
    "a role of another wire": (
        {"messages": [{"role": "tool", "content": "x"}]},
        "expected one of 'assistant', 'system', 'user', got 'tool'",
        "messages[0].role",
    ),
    "a result without a call (B27)": (
        {"messages": [user(tool_result("a"))]},
        "no tool call 'a' waits for a result here",
        "messages[0].content[0].tool_use_id",
    ),
    "a call without its result (B27)": (
        {"messages": [USER, assistant(tool_use("a")), USER]},
        "expected the results of the tool calls a here",
        "messages[2]",
    ),
    "a call at the end": (
        {"messages": [USER, assistant(tool_use("a"))]},
        "expected the results of the tool calls a here",
        "messages[2]",
    ),
    "a user's call": (
        {"messages": [user(tool_use("a"))]},
        "tool_use stands in an assistant's message",
        "messages[0].content[0]",
    ),
    "an assistant's result": (
        {"messages": [USER, assistant(tool_result("a"))]},
        "tool results stand in a user's message",
        "messages[1]",
    ),
    "a file by id": (
        {"messages": [user({"type": "image", "source": {"type": "file", "file_id": "x"}})]},
        "files are taken as base64 data; no files are kept here",
        "messages[0].content[0].source.file_id",
    ),
    "a local file": (
        {"messages": [user({"type": "image", "source": {"type": "url", "url": "/etc/passwd"}})]},
        "expected an http(s) or data: URL",
        "messages[0].content[0].source.url",
    ),
    "an image of the system": (
        {
            "messages": [
                {
                    "role": "system",
                    "content": [{"type": "image", "source": {"type": "url", "url": "http://x/"}}],
                }
            ]
        },
        "a system message has text alone",
        "messages[0].content[0]",
    ),
    "a tool that is not there": (
        {"messages": [USER], "tool_choice": {"type": "tool", "name": "f"}},
        "there is no tool 'f' in this request",
        "tool_choice.name",
    ),
    "temperature as text": (
        {"messages": [USER], "temperature": "1"},
        "expected a number, got a string",
        "temperature",
    ),
}


@pytest.mark.parametrize("body, message, param", REFUSED.values(), ids=REFUSED)
def test_what_says_no_request_is_refused_with_its_place(body, message, param):
    with pytest.raises(InvalidRequest) as refused:
        anthropic_messages.parse_request(body)
    assert (refused.value.message, refused.value.param) == (message, param)


@pytest.mark.parametrize(
    "fields", [{"thread": {"type": "create"}}, {"previous_message_id": "msg_1", "messages": []}]
)
def test_threads_are_refused_in_the_words_that_make_the_sdk_send_everything(fields):
    """C5"""
    with pytest.raises(Unsupported) as refused:
        parse(USER, **fields) if "messages" not in fields else (
            anthropic_messages.parse_request(fields)
        )
    assert refused.value.status == 400
    assert anthropic_messages.render_error(refused.value) == {
        "type": "error",
        "error": {
            "type": "invalid_request_error",
            "message": f"{next(iter(fields))}: no threads are kept here: "
            "send the whole conversation",
            "details": {"error_code": "thread_unsupported_request"},
        },
    }


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    children = value.items() if isinstance(value, dict) else []
    children = enumerate(value) if isinstance(value, list) else children
    for key, child in children:
        yield from places(child, (*path, key))


@st.composite
def damaged_requests(draw: st.DrawFn) -> Any:
    """A capture with one to three places replaced by anything."""
    body: Any = copy.deepcopy(draw(st.sampled_from(CASES)).request)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(body))[1:]))
        parent = body
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = draw(json_values(4))
    return body


@given(json_values() | damaged_requests())
@settings(max_examples=150)
def test_any_value_is_read_or_refused(body):
    try:
        request = anthropic_messages.parse_request(body)
    except InvalidRequest as error:
        payload.encode(anthropic_messages.render_error(error))
        return
    payload.encode(hub_json(request))
    payload.encode(anthropic_messages.render_request(request)[0])


# ---- what of a request is kept


MARK = {"cache_control": {"type": "ephemeral"}}


def test_marks_are_no_part_of_what_is_kept():
    result = tool_result("t", [words("x", **MARK)], **MARK)
    found = {"type": "search_result", "content": [words("y", **MARK)], "source": "s", "title": "t"}
    pages = {"type": "document", "source": {"type": "content", "content": [words("z", **MARK)]}}
    body = {
        "system": [words("Be brief.", **MARK)],
        "messages": [user(result, found | MARK, pages, tool_result("u", [found, pages]))],
        "tools": [{"name": "f", "input_schema": {}, **MARK}],
        **MARK,
    }
    kept = payload.encode(anthropic_messages.normalize_body(body))
    assert kept == payload.encode(body).replace(b',"cache_control":{"type":"ephemeral"}', b"")
    assert b"cache_control" not in kept


def test_what_a_tool_is_given_and_its_schema_are_kept_whole():
    body = {
        "system": "Be brief.",
        "messages": [assistant(tool_use("t", **MARK, content=[MARK]))],
        "tools": [{"name": "f", "input_schema": {"properties": MARK, **MARK}}],
    }
    assert anthropic_messages.normalize_body(body) is body


@pytest.mark.parametrize(
    "system, kept",
    [
        (BILLING, ""),
        (BILLING + "\n\nBe brief.", "Be brief."),
        ([words(BILLING), words("Be brief.")], [words("Be brief.")]),
        ([words(BILLING + "\nBe brief.", **MARK)], [words("Be brief.")]),
        ([words(BILLING, **MARK)], []),
    ],
)
def test_the_billing_line_is_no_part_of_what_is_kept(system, kept):
    """B32"""
    assert anthropic_messages.normalize_body({"system": system}) == {"system": kept}


@pytest.mark.parametrize(
    "body",
    [
        None,
        BILLING,
        [MARK],
        {"system": "It says " + BILLING, "messages": [user(words(BILLING))]},
        {"system": [words("It says " + BILLING), words(""), BILLING, None, {"text": 1}]},
        {"system": {"text": BILLING}, "messages": "hi", "tools": MARK},
    ],
)
def test_what_has_no_noise_is_kept_itself(body):
    assert anthropic_messages.normalize_body(body) is body


def but_for_marks(body: Any) -> Any:
    """Give what a request reads as, without the option that marks switch on."""
    read = anthropic_messages.parse_request(body)
    options = {name: value for name, value in read.options.items() if name != "cache"}
    return hub_json(replace(read, options=options))


@given(
    marked_bodies([case.request for case in CASES]), st.sampled_from(["", BILLING, BILLING + "\n"])
)
def test_what_is_kept_reads_as_the_whole_does(body, line):
    if isinstance(body.get("system"), str):
        body["system"] = line + body["system"]
    before = copy.deepcopy(body)
    kept = anthropic_messages.normalize_body(body)
    assert but_for_marks(kept) == but_for_marks(body)
    assert body == before
    assert anthropic_messages.normalize_body(kept) is kept


@given(json_values() | damaged_requests())
def test_any_value_has_something_to_keep(body):
    before = copy.deepcopy(body)
    payload.encode(anthropic_messages.normalize_body(body))
    assert body == before


# ---- answers


def test_a_stream_begins_with_an_estimate_that_is_not_zero():
    """B23, B19"""
    renderer = anthropic_messages.StreamRenderer(envelope(input_tokens=9))
    [start] = frames_of(b"".join(renderer.start()))
    assert start["message"]["usage"]["input_tokens"] == 9
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
    ],
)
def test_the_end_is_told_in_anthropics_words(finish, stop):
    """B30, B22: usage comes with the end, which Finish is."""
    whole = whole_of([text("x"), finish])
    assert (whole["stop_reason"], whole["stop_sequence"]) == stop
    *_, delta, last = frames_of(stream_of([text("x"), finish]))
    assert (delta["delta"]["stop_reason"], delta["delta"]["stop_sequence"]) == stop
    assert delta["usage"] == {"input_tokens": 7, "output_tokens": 0}
    assert last == {"type": "message_stop"}


@pytest.mark.parametrize(
    "usage, counts",
    [
        (chat.Usage(), {"input_tokens": 7, "output_tokens": 0}),
        (chat.Usage(10, 3), {"input_tokens": 10, "output_tokens": 3}),
        (
            chat.Usage(10, 3, 8, 2),
            {
                "input_tokens": 0,
                "output_tokens": 3,
                "cache_read_input_tokens": 8,
                "cache_creation_input_tokens": 2,
            },
        ),
        (
            chat.Usage(1, 3, 8),
            {"input_tokens": 0, "output_tokens": 3, "cache_read_input_tokens": 8},
        ),
        (
            chat.Usage(9, 3, reasoning_tokens=2),
            {
                "input_tokens": 9,
                "output_tokens": 3,
                "output_tokens_details": {"thinking_tokens": 2},
            },
        ),
    ],
)
def test_cached_input_is_counted_apart(usage, counts):
    """B24: never negative, what is unknown is left out."""
    *_, delta, _ = frames_of(stream_of([chat.Finish(usage=usage)]))
    assert delta["usage"] == counts
    shown = whole_of([chat.Finish(usage=usage)])["usage"]
    assert {name: count for name, count in shown.items() if count is not None} == counts


@given(st.tuples(*4 * [st.integers(0, 2**40)]))
def test_counts_written_and_read_are_what_they_were(counts):
    """B24"""
    plain, output_tokens, cached, written = counts
    usage = chat.Usage(plain + cached + written, output_tokens, cached, written)
    read = anthropic_messages.parse_response(whole_of([chat.Finish(usage=usage)]))
    assert read.finish.usage == usage


@given(event_streams())
@settings(max_examples=150, deadline=None)
def test_a_stream_says_what_the_whole_answer_says(events):
    whole = whole_of(events)
    SDKMessage.model_validate(whole)
    assert read_of(stream_of(events)) == normal(anthropic_messages.parse_response(whole))


@given(event_streams(), event_streams(), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_two_answers_at_once_share_nothing(one, other, random):
    """B17"""
    renderers = [anthropic_messages.StreamRenderer(envelope(input_tokens=7)) for _ in range(2)]
    streams = [b"".join(renderer.start()) for renderer in renderers]
    left = [list(one), list(other)]
    while any(left):
        turn = random.choice([i for i in range(2) if left[i]])
        streams[turn] += b"".join(renderers[turn].feed(left[turn].pop(0)))
    assert streams == [stream_of(one), stream_of(other)]


def test_a_keep_alive_may_stand_anywhere():
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


# ---- counts, models, errors


def test_counts_and_models_are_what_the_sdk_wants():
    """B34: the count's shape; that no model is asked is the app's."""
    assert MessageTokensCount.model_validate(anthropic_messages.render_count(5)).input_tokens == 5
    entry = backend.ModelEntry("openrouter/a/b", "openrouter", 1_700_000_000)
    shown = {
        "type": "model",
        "id": "openrouter/a/b",
        "display_name": "openrouter/a/b",
        "created_at": "2023-11-14T22:13:20Z",
        "lifecycle": "active",
    }
    assert anthropic_messages.render_model(entry) == shown
    ModelInfo.model_validate(shown)
    assert anthropic_messages.render_models([]) == {
        "data": [],
        "has_more": False,
        "first_id": None,
        "last_id": None,
    }
    SERVER.json(anthropic_messages.render_models([entry]))
    assert [model.id for model in SERVER.client.models.list()] == ["openrouter/a/b"]


ERRORS = [
    (InvalidRequest("bad", param="messages[0]"), "invalid_request_error", "BadRequestError"),
    (Unauthorized("no key"), "authentication_error", "AuthenticationError"),
    (Forbidden("no"), "permission_error", "PermissionDeniedError"),
    (ModelNotFound("no model x"), "not_found_error", "NotFoundError"),
    (TooLarge("too large"), "request_too_large", "RequestTooLargeError"),
    (RateLimited("slow", headers={"retry-after": "3"}), "rate_limit_error", "RateLimitError"),
    (ProxyError("internal error"), "api_error", "InternalServerError"),
    (UpstreamError("broke"), "api_error", "InternalServerError"),
    (Unavailable("not now"), "overloaded_error", "InternalServerError"),
    (UpstreamTimeout("late"), "timeout_error", "InternalServerError"),
    (Overloaded("too many"), "overloaded_error", "OverloadedError"),
]


@pytest.mark.parametrize("error, type_, sdk_class", ERRORS)
def test_errors_are_anthropics_object_and_the_sdks_classes(error, type_, sdk_class):
    """B39, C9"""
    rendered = anthropic_messages.render_error(error)
    SERVER.json(rendered, error.status, **{"request-id": "req"}, **error.headers)
    with pytest.raises(anthropic.APIStatusError) as raised:
        SERVER.client.messages.create(model="m", max_tokens=9, messages=[])
    assert type(raised.value).__name__ == sdk_class
    assert (raised.value.body["error"]["type"], raised.value.request_id) == (type_, "req")


@pytest.mark.parametrize("error", [error for error, *_ in ERRORS if type(error) is not ProxyError])
def test_an_error_written_and_read_is_what_it_was(error):
    """B39"""
    rendered = anthropic_messages.render_error(error)
    read = anthropic_messages.parse_error(error.status, rendered, error.headers)
    kind = NotFound if isinstance(error, ModelNotFound) else type(error)
    assert (type(read), read.status, read.code) == (kind, error.status, error.code)
    assert read.message == rendered["error"]["message"]
    assert read.headers == error.headers


@pytest.mark.parametrize("body", ["<html>", None, [], {"error": 1}, {"error": {"message": None}}])
def test_an_error_of_any_form_is_an_error(body):
    read = anthropic_messages.parse_error(418, body)
    assert (type(read), read.status) == (UpstreamError, 418)


def test_an_error_with_a_request_id_says_it():
    error = ProxyError("x", headers={"request-id": "req_1"})
    assert anthropic_messages.render_error(error)["request_id"] == "req_1"


# ---- the other side: requests


def rendered(*messages: Message, **fields: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    return anthropic_messages.render_request(chat.ChatRequest("m", list(messages), **fields))


def said(role: str, *texts: str) -> Message:
    return Message(role, [TextPart(t) for t in texts])


GO_ON = said("user", "go on")


@given(requests())
@settings(max_examples=80, deadline=None)
def test_a_request_written_and_read_is_what_it_was(request_):
    """B24-B28: save what is listed, and reasoning that nobody signed."""
    request_ = replace(
        request_,
        options={"max_tokens": 4096, **request_.options},
        messages=[signed(message) for message in request_.messages],
    )
    body, ignored = anthropic_messages.render_request(request_)
    read = anthropic_messages.parse_request(body)
    kept = {name: value for name, value in request_.options.items() if name not in ignored}
    assert (read.messages, read.options) == (request_.messages, kept)
    assert (read.tools, read.tool_choice) == (request_.tools, request_.tool_choice)
    assert (read.model, read.stream, read.ignored) == (request_.model, request_.stream, ())


def signed(message: Message) -> Message:
    metadata = {"anthropic": {"signature": "c2ln"}}
    return Message(
        message.role,
        [
            ReasoningPart(p.text, provider_metadata=metadata) if isinstance(p, ReasoningPart) else p
            for p in message.parts
        ],
    )


@pytest.mark.parametrize("case", CASES, ids=attrgetter("name"))
def test_a_capture_written_anew_reads_as_the_capture(case):
    """B25: signatures and opaque thinking go back verbatim and in order."""
    request = anthropic_messages.parse_request(case.request)
    body, ignored = anthropic_messages.render_request(request)
    again = anthropic_messages.parse_request(body)
    if case.name == "prefill":
        assert again.messages[-1].parts == [TextPart("Old pond")]
        assert ignored == ()
        return
    assert again.messages == request.messages
    lost = set(ignored)
    assert lost <= {"top_p"}  # which Anthropic refuses beside temperature
    assert again.options == {n: v for n, v in request.options.items() if n not in lost}
    assert (again.tools, again.schema) == (request.tools, request.schema)


def test_the_body_that_another_server_expects():
    body, ignored = rendered(
        said("system", "Be brief."),
        said("user", "a"),
        said("user", "b", " "),
        said("assistant", "c"),
        GO_ON,
    )
    assert (body, ignored) == (
        {
            "model": "m",
            "max_tokens": 4096,
            "system": "Be brief.",
            "messages": [
                {"role": "user", "content": [words("a"), words("b")]},
                {"role": "assistant", "content": "c"},
                {"role": "user", "content": "go on"},
            ],
        },
        (),
    )
    request = chat.ChatRequest(None, [GO_ON])
    assert anthropic_messages.render_request(request, max_tokens=9)[0] == {
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "go on"}],
    }


CALLS = Message(
    "assistant", [ToolCallPart("f", {}, tool_call_id="a"), ToolCallPart("f", {}, tool_call_id="b")]
)


def result(id_: str, **fields: Any) -> Message:
    return Message("tool", [ToolResultPart("f", "x", tool_call_id=id_, **fields)])


def test_results_stand_in_one_message_before_any_text():
    """B27, B31: a system message from between comes after them."""
    body, ignored = rendered(
        GO_ON, CALLS, result("a"), said("system", "now"), result("b", exception="e"), GO_ON
    )
    assert body["messages"][2:] == [
        {"role": "user", "content": [tool_result("a"), tool_result("b", is_error=True)]},
        {"role": "system", "content": "now"},
        {"role": "user", "content": "go on"},
    ]
    assert ignored == ()


def test_a_system_message_after_an_answer_is_marked_text():
    """B31"""
    body, ignored = rendered(GO_ON, said("assistant", "x"), said("system", "now"), GO_ON)
    assert body["messages"][2] == user(words("<system>\nnow\n</system>"), words("go on"))
    assert ignored == ("messages[*] (a system message, made part of a user's)",)


@pytest.mark.parametrize(
    "messages, message",
    [
        ([GO_ON, result("a")], "no tool call 'a' waits for a result here"),
        ([GO_ON, CALLS, result("a"), GO_ON], "expected the results of the tool calls b here"),
        ([GO_ON, CALLS], "expected the results of the tool calls a, b here"),
    ],
)
def test_calls_and_results_that_do_not_belong_together_are_refused(messages, message):
    """B27"""
    with pytest.raises(InvalidRequest) as refused:
        rendered(*messages)
    assert refused.value.message == message


FILLED = "messages[*] (a user's turn put in, which Anthropic asks for)"
FILLER = {"role": "user", "content": anthropic_messages.FILLER}


@pytest.mark.parametrize(
    "messages, roles, ignored",
    [
        ([said("assistant", "x"), GO_ON], ["user", "assistant", "user"], (FILLED,)),
        ([said("system", "x")], ["user"], (FILLED,)),
        ([GO_ON, said("assistant", "x"), said("user", " ")], ["user", "assistant", "user"], None),
        ([GO_ON, said("assistant", "x \n")], ["user", "assistant"], ()),
        ([GO_ON, said("assistant", " ")], ["user"], ()),
    ],
)
def test_both_ends_are_as_anthropic_wants_them(messages, roles, ignored):
    """B28, B29: our clean-up makes no prefill."""
    body, listed = rendered(*messages)
    assert [message["role"] for message in body["messages"]] == roles
    assert listed == ((FILLED,) if ignored is None else ignored)
    assert body["messages"][-1]["content"] in ("x", "go on", anthropic_messages.FILLER)


@pytest.mark.parametrize(
    "options, fields, ignored",
    [
        ({"thinking": True, "thinking_budget": 99}, {"type": "enabled", "budget_tokens": 1024}, ()),
        (
            {"thinking": True, "thinking_budget": 9_999, "temperature": 0.5, "top_k": 3},
            {"type": "enabled", "budget_tokens": 1999},
            ("temperature", "top_k"),
        ),
        ({"thinking": True}, {"type": "adaptive"}, ()),
        ({"thinking": False}, {"type": "disabled"}, ()),
        ({"thinking_budget": 1500}, {"type": "enabled", "budget_tokens": 1500}, ()),
        ({"thinking": True, "thinking_budget": 99, "max_tokens": 1024}, None, ("thinking",)),
        ({"reasoning_effort": "none"}, {"type": "disabled"}, ()),
    ],
)
def test_thinking_keeps_anthropics_rules(options, fields, ignored):
    body, listed = rendered(GO_ON, options={"max_tokens": 2000, **options})
    assert (body.get("thinking"), listed) == (fields, ignored)


@pytest.mark.parametrize(
    "options, fields, ignored",
    [
        ({"temperature": 1.5, "seed": 1}, {}, ("temperature", "seed")),
        ({"temperature": 0.5, "top_p": 0.5}, {"temperature": 0.5}, ("top_p",)),
        ({"top_p": 0.5}, {"top_p": 0.5}, ()),
        ({"frequency_penalty": 0, "presence_penalty": 0}, {}, None),
        ({"stop_sequences": ["a", "\n"]}, {"stop_sequences": ["a"]}, ("stop",)),
        ({"reasoning_effort": "minimal"}, {"output_config": {"effort": "low"}}, ()),
        ({"reasoning_effort": "x"}, {}, ("reasoning_effort",)),
        ({"user": "u"}, {"metadata": {"user_id": "u"}}, ()),
        ({"cache": True}, {"cache_control": {"type": "ephemeral"}}, ()),
    ],
)
def test_options_that_anthropic_has_not_are_named(options, fields, ignored):
    body, listed = rendered(GO_ON, options=options, option_paths={"stop_sequences": "stop"})
    base = {"model": "m", "max_tokens": 4096, "messages": [{"role": "user", "content": "go on"}]}
    assert (body, listed) == (base | fields, tuple(options) if ignored is None else ignored)


def test_names_of_tools_are_fitted_only_if_needed_and_listed():
    schema = {"type": "object", "properties": {}}
    tools = tuple(llm.Tool(name, None, schema) for name in ("a.b", "a_b", "ok", 70 * "x"))
    call = Message("assistant", [ToolCallPart("a.b", {}, tool_call_id="c:1")])
    request = chat.ChatRequest(
        "m",
        [GO_ON, call, result("c:1")],
        tools=tools,
        tool_choice=chat.NamedTool("a.b"),
    )
    body, ignored = anthropic_messages.render_request(request)
    assert [tool["name"] for tool in body["tools"]] == ["a_b_2", "a_b", "ok", 64 * "x"]
    assert body["tool_choice"] == {"type": "tool", "name": "a_b_2"}
    assert body["messages"][1]["content"] == [tool_use("c_1", "a_b_2")]
    assert body["messages"][2]["content"] == [tool_result("c_1")]
    assert ignored == ("tools[*].name (a.b)", f"tools[*].name ({70 * 'x'})")
    names = anthropic_messages.tool_names(request)
    assert len(set(names.values())) == len(tools)


def test_attachments_are_blocks_or_listed_and_never_opened():
    """B26"""
    parts = [
        AttachmentPart(attachment)
        for attachment in (
            llm.Attachment(type="image/png", content=PNG),
            attachments.RemoteAttachment(type="image/*", url="https://example.com/x"),
            llm.Attachment(type="application/pdf", content=b"%PDF-"),
            llm.Attachment(type="text/plain", content=b"abc"),
            llm.Attachment(type="audio/wav", content=b"RIFF"),
            llm.Attachment(type="image/png", path="/etc/passwd"),
        )
    ]
    paths = tuple(f"p{i}" for i in range(6))
    body, ignored = rendered(Message("user", parts), attachment_paths=paths)
    data = base64.b64encode(PNG).decode()
    assert body["messages"][0]["content"] == [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}},
        {"type": "image", "source": {"type": "url", "url": "https://example.com/x"}},
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="},
        },
        {
            "type": "document",
            "source": {"type": "text", "media_type": "text/plain", "data": "abc"},
        },
    ]
    assert ignored == ("p4", "p5")


def test_what_others_signed_or_ran_is_left_out_and_listed():
    """B25"""
    parts = [
        ReasoningPart("hm"),
        ReasoningPart("", provider_metadata={"openai": {"encrypted_content": "x"}}),
        ToolCallPart("search", {}, tool_call_id="ws_1", server_executed=True),
        TextPart("x"),
    ]
    body, ignored = rendered(GO_ON, Message("assistant", parts), GO_ON)
    assert body["messages"][1] == {"role": "assistant", "content": "x"}
    assert ignored == (
        "messages[*] (reasoning that Anthropic did not sign)",
        "messages[*] (a server tool's call and result)",
    )


# ---- the other side: answers


def events_of(stream: bytes) -> list[chat.Event]:
    parser = anthropic_messages.StreamParser()
    events = [event for frame in SSEDecoder().feed(stream) for event in parser.feed(frame)]
    return events + parser.end()


def normal(response: chat.ChatResponse) -> chat.ChatResponse:
    """An answer without the letters of its arguments, which a whole one does not keep."""
    return replace(response, raw_arguments={})


def read_of(stream: bytes) -> chat.ChatResponse:
    return normal(chat.collect(events_of(stream)))


def test_anthropics_own_stream_is_read():
    """Pings, white space before closing braces, usage in two places."""
    folder = WIRE / "anthropic_messages" / "novel_helper_upstream"
    [case] = [case for case in ANSWERED if case.name == folder.name]
    assert events_of((folder / "upstream.txt").read_bytes()) == case.events


@pytest.mark.parametrize("case", ANSWERED, ids=attrgetter("name"))
def test_an_answer_capture_reads_back_whole_and_streamed(case):
    expected = chat.collect(case.events)
    usage = expected.finish.usage
    if usage.input_tokens is None:
        usage = chat.Usage(7, 0)
    finish = replace(expected.finish, model=case.request["model"], usage=usage)
    assert read_of(case.stream) == normal(replace(expected, finish=finish))
    assert normal(anthropic_messages.parse_response(case.response)) == read_of(case.stream)


@given(event_streams(), st.data())
@settings(max_examples=60, deadline=None)
def test_a_rendered_stream_cut_anywhere_is_read_the_same(events, data):
    """B18"""
    stream = stream_of(events)
    cut = data.draw(st.integers(0, len(stream)))
    decoder, parser = SSEDecoder(), anthropic_messages.StreamParser()
    frames = decoder.feed(stream[:cut]) + decoder.feed(stream[cut:])
    assert [e for frame in frames for e in parser.feed(frame)] + parser.end() == events_of(stream)


def frame(**fields: Any) -> SSEFrame:
    return SSEFrame(fields["type"], json.dumps(fields))


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
def test_input_is_read_from_the_start_or_the_deltas(frames, raw):
    answer = fed(*frames, END, STOP)
    assert answer.parts == [ToolCallPart("f", {"x": 1}, tool_call_id="a")]
    assert answer.raw_arguments == {"a": raw}


def test_unknown_events_and_blocks_are_passed_over_and_listed():
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


def test_usage_of_the_end_overwrites_and_what_it_omits_stays():
    """B24, d3"""
    usage = {"input_tokens": 5, "cache_read_input_tokens": 3, "output_tokens": 1}
    start = frame(type="message_start", message={"model": "c", "usage": usage})
    end = frame(type="message_delta", delta={}, usage={"output_tokens": 9, "input_tokens": None})
    assert fed(start, end).finish == chat.Finish(usage=chat.Usage(8, 9, cached_tokens=3), model="c")


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
def test_the_reason_is_said_in_the_hubs_words(word, reason):
    assert fed(frame(type="message_delta", delta={"stop_reason": word})).finish.reason == reason


@pytest.mark.parametrize("frames", [[], [begun(0, type="text", text="x"), ended(0)], [STOP]])
def test_a_stream_that_was_cut_is_an_error(frames):
    """d3: a missing message_delta looks well to naive readers."""
    with pytest.raises(UpstreamError, match="^the upstream's stream ended before its answer did$"):
        fed(*frames)


def test_finish_is_given_once():
    parser = anthropic_messages.StreamParser()
    assert parser.feed(END) == []
    assert parser.feed(STOP) == [chat.Finish(usage=chat.Usage(output_tokens=1))]
    assert parser.feed(STOP) + parser.end() == []


@pytest.mark.parametrize(
    "data, message",
    [
        ("{", "an event of the upstream is no JSON: the body is not JSON: "),
        ("[]", "an event of the upstream has no type"),
        ("{}", "an event of the upstream has no type"),
    ],
)
def test_a_frame_that_is_no_event_is_the_upstreams_error(data, message):
    with pytest.raises(UpstreamError) as raised:
        anthropic_messages.StreamParser().feed(SSEFrame("message", data))
    assert raised.value.message.startswith(message)


@given(json_values())
def test_any_answer_is_read_or_refused(value):
    for body in (value, {"content": [value]}, {"type": "error", "error": value}):
        try:
            anthropic_messages.parse_response(body)
        except ProxyError:
            pass
    try:
        anthropic_messages.StreamParser().feed_value(value)
    except ProxyError:
        pass


@pytest.mark.parametrize("index", [[], {}, None], ids=repr)
def test_an_index_that_is_no_number_is_one_block(index):
    parser = anthropic_messages.StreamParser()
    place = {"index": index}
    block, delta = {"type": "text", "text": "a"}, {"type": "text_delta", "text": "b"}
    events = parser.feed_value({"type": "content_block_start", "content_block": block, **place})
    events += parser.feed_value({"type": "content_block_delta", "delta": delta, **place})
    events += parser.feed_value({"type": "content_block_stop", **place})
    assert events == [StreamEvent("text", "a", part_index=0), StreamEvent("text", "b", 0)]


def test_an_error_for_an_answer_is_raised():
    with pytest.raises(RateLimited, match="^slow$"):
        anthropic_messages.parse_response(anthropic_messages.render_error(RateLimited("slow")))


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
