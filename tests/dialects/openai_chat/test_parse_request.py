"""Chat Completions requests, parsed, and their normal form."""

from __future__ import annotations

import base64
import copy
import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llm.parts import (
    AttachmentPart,
    Message,
    ReasoningPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)

from llmproxy.core import chat, payload
from llmproxy.core.errors import (
    InvalidRequest,
    Unsupported,
)
from llmproxy.dialects import openai_chat
from tests.dialects.openai_chat.samples import (
    CASES,
    SERVER,
    USER,
    assistant,
    parse,
    tool_call,
    whole_of,
)
from tests.strategies import (
    AWKWARD,
    conversations,
    event_streams,
    marked_bodies,
)
from tests.wire_cases import hub_json


def test_model_names_are_parsed_unchanged():
    request = parse(USER, model="openrouter/a/b:free", stream=True)
    assert (request.model, request.stream) == ("openrouter/a/b:free", True)
    assert parse(USER, model="").model is None
    assert openai_chat.parse_request({"messages": [USER]}).model is None


def test_headers_are_optional():
    body = {"messages": [USER]}
    assert openai_chat.parse_request(body, {"user-agent": "x"}) == openai_chat.parse_request(body)


CALL = {"id": "c", "function": {"name": "f", "arguments": '{"a": 1}'}}


@pytest.mark.parametrize(
    "call, name, arguments",
    [
        (CALL, "f", {"a": 1}),
        (CALL | {"type": None}, "f", {"a": 1}),
        (CALL | {"type": ""}, "f", {"a": 1}),
        (CALL | {"type": "function", "custom": None}, "f", {"a": 1}),
        ({"id": "c", "function": {"name": "f", "arguments": {"a": 1}}}, "f", {"a": 1}),
        ({"id": "c", "function": {"name": "f", "arguments": "[1]"}}, "f", {"_raw": "[1]"}),
        (
            {"id": "c", "type": "custom", "custom": {"name": "sql", "input": "SELECT 1"}},
            "sql",
            {"input": "SELECT 1"},
        ),
        (
            {"id": "c", "type": "custom", "function": None, "custom": {"name": "s"}},
            "s",
            {"input": ""},
        ),
    ],
)
def test_a_call_in_a_history_is_taken_in_every_form(call, name, arguments):
    result = {"role": "tool", "tool_call_id": "c", "content": "1"}
    request = parse(USER, assistant(tool_calls=[call]), result)
    assert request.messages[1].parts == [ToolCallPart(name, arguments, "c")]
    assert request.messages[2].parts == [ToolResultPart(name, "1", "c")]


def test_a_call_of_nothing_is_refused():
    with pytest.raises(InvalidRequest) as raised:
        parse(USER, assistant(tool_calls=[{"id": "c", "type": "function"}]))
    assert raised.value.param == "messages[1].tool_calls[0].function"


@pytest.mark.parametrize("empty", [None, ""])
def test_an_empty_type_means_the_usual_one(empty):
    tool = {"type": empty, "function": {"name": "f"}}
    request = parse(
        {"role": "user", "content": [{"type": empty, "text": "hi"}]},
        tools=[tool],
        tool_choice=tool,
    )
    assert request.messages[0].parts == [TextPart("hi")]
    assert [tool.name for tool in request.tools] == ["f"]
    assert request.tool_choice == chat.NamedTool("f")


# ---- old and odd forms

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}


@pytest.mark.parametrize(
    "format_, schema, options",
    [
        ({"type": "json_object", "schema": SCHEMA}, SCHEMA, {}),
        ({"type": "json_object", "schema": {}}, None, {"json_object": True}),
        ({"type": "json_object", "schema": None}, None, {"json_object": True}),
        ({"type": "json_object"}, None, {"json_object": True}),
        ({"type": "json_schema", "schema": SCHEMA}, SCHEMA, {}),
        ({"type": "json_schema", "json_schema": {"schema": SCHEMA}}, SCHEMA, {}),
        ({"type": "text"}, None, {}),
    ],
)
def test_a_schema_is_found_where_clients_put_it(format_, schema, options):
    request = parse(USER, response_format=format_)
    assert (request.schema, request.options, request.ignored) == (schema, options, ())


def test_a_schema_format_without_any_schema_is_refused():
    with pytest.raises(InvalidRequest) as raised:
        parse(USER, response_format={"type": "json_schema"})
    assert raised.value.param == "response_format.json_schema"


CHOICE = {"type": "function", "function": {"name": "g"}}


def defined(name: str, description: str | None = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": description}}


@pytest.mark.parametrize(
    "message, roles",
    [
        ({"role": "system", "tools": [defined("g")]}, ["user"]),
        ({"role": "system", "content": "Use g.", "tools": [defined("g")]}, ["user", "system"]),
        ({"role": "user", "content": "Use g.", "tools": [defined("g")]}, ["user", "user"]),
        (
            {"role": "assistant", "content": "I use g.", "tools": [defined("g")]},
            ["user", "assistant"],
        ),
    ],
)
def test_a_tool_defined_inside_a_message_is_offered(message, roles):
    request = parse(USER, message, tools=[defined("f")], tool_choice=CHOICE)
    assert [tool.name for tool in request.tools] == ["f", "g"]
    assert request.tool_choice == chat.NamedTool("g")
    assert [m.role for m in request.messages] == roles
    assert request.ignored == ()


def test_a_message_may_define_a_tool_anew():
    message = {"role": "system", "tools": [defined("f", "new")]}
    [tool] = parse(USER, message, tools=[defined("f")]).tools
    assert tool.description == "new"


@pytest.mark.parametrize(
    "message, param",
    [
        ({"role": "system", "tools": [{"function": {}}]}, "messages[1].tools[0].function.name"),
        ({"role": "system"}, "messages[1].content"),
    ],
)
def test_a_message_that_defines_no_tool_is_refused(message, param):
    with pytest.raises(InvalidRequest) as raised:
        parse(USER, message)
    assert raised.value.param == param


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant"])
def test_parts_of_unknown_types_are_told_as_text(role):
    content = [
        {"type": "output_text", "text": "blue", "annotations": []},
        {"type": "text", "text": "!"},
        {"type": "profile_quote", "of": "Ann", "text": "red"},
    ]
    request = parse(USER, {"role": role, "content": content}, USER)
    first, second, third = (part.text for part in request.messages[1].parts)
    assert (first, second) == ("blue", "!")
    assert json.loads(third) == content[2]
    assert request.ignored == (
        "messages[*].content[*] (output_text)",
        "messages[*].content[*] (profile_quote)",
    )


@pytest.mark.parametrize("thinking", ["hm", [{"type": "text", "text": "hm"}]])
def test_thinking_among_the_parts_is_reasoning(thinking):
    content = [{"type": "thinking", "thinking": thinking}, {"type": "text", "text": "a"}]
    request = parse(USER, assistant(content=content), USER)
    assert request.messages[1].parts == [ReasoningPart("hm"), TextPart("a")]


@pytest.mark.parametrize(
    "call, result",
    [
        ({"tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "c"}),
        ({"function_call": CALL["function"]}, {"role": "function", "name": "f"}),
    ],
    ids=["tool", "function"],
)
def test_a_tools_result_of_unknown_parts_is_its_json(call, result):
    state = {"type": "browser_state", "count": 2}
    request = parse(USER, assistant(**call), result | {"content": [state]})
    assert json.loads(request.messages[2].parts[0].output) == state
    assert request.ignored == ("messages[*].content[*] (browser_state)",)
    texts = [{"type": "text", "text": "a"}, {"type": "output_text", "text": "b"}]
    request = parse(USER, assistant(**call), result | {"content": texts})
    assert request.messages[2].parts[0].output == "ab"


@pytest.mark.parametrize("kind", ["video_url", "input_image", "audio", "document", "marker"])
def test_parts_that_no_text_can_stand_for_are_refused(kind):
    part = {"type": kind} if kind == "marker" else {"type": kind, kind: {"url": "https://x.test"}}
    with pytest.raises(InvalidRequest) as raised:
        parse({"role": "user", "content": [part]})
    assert raised.value.param == "messages[0].content[0].type"


def test_a_forced_custom_tool_is_listed_as_the_tool_is():
    choice = {"type": "custom", "custom": {"name": "sql"}}
    request = parse(USER, tools=[choice], tool_choice=choice)
    assert request.tool_choice == "auto"
    assert request.ignored == ("tools[*].custom", "tool_choice")


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_text_is_parsed_unchanged(text):
    """B18: nothing in text is ours to change."""
    assert parse({"role": "user", "content": text}).messages == [Message("user", [TextPart(text)])]


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_parsed_under_each_of_its_names(name):
    """B12"""
    assert parse(USER, assistant(content="x", **{name: "hm"})).messages[1].parts == [
        ReasoningPart("hm"),
        TextPart("x"),
    ]


def test_reasoning_under_two_names_is_parsed_once():
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


def test_an_empty_assistant_message_is_dropped():
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
def test_stop_is_parsed_as_a_string_or_a_list(stop, sequences, ignored):
    """B30"""
    request = parse(USER, stop=stop)
    assert request.options.get("stop_sequences") == sequences
    assert (request.ignored, request.option_paths["stop_sequences"]) == (ignored, "stop")


def test_unknown_fields_are_listed_once_each():
    tools = [{"type": "function", "function": {"name": n, "x": 1}, "y": 2} for n in "ab"]
    request = parse({**USER, "z": 1}, USER | {"z": 2}, tools=tools, w=None)
    assert request.ignored == ("messages[*].z", "tools[*].function.x", "tools[*].y", "w")


@pytest.mark.parametrize("name", openai_chat.NOT_CARRIED)
def test_fields_that_llm_can_not_carry_are_listed_unless_empty(name):
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
    "an empty list": ({"messages": []}, "must not be empty", "messages"),
    "only an empty answer": (
        {"messages": [{"role": "assistant"}]},
        "no message has any content",
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
def test_an_invalid_request_is_refused_with_the_path_of_the_field(body, message, param):
    with pytest.raises(InvalidRequest) as caught:
        openai_chat.parse_request(body)
    assert type(caught.value) is InvalidRequest
    assert (caught.value.message, caught.value.param) == (message, param)


UNSUPPORTED = {
    "two answers": ({"n": 2}, "only 1 is supported", "n"),
    "no answers": ({"n": 0}, "only 1 is supported", "n"),
    "audio": (
        {"modalities": ["text", "audio"]},
        "only text output is supported, not audio",
        "modalities",
    ),
    "a voice": (
        {"audio": {"voice": "a"}},
        "only text output is supported, not audio",
        "modalities",
    ),
    "a file by its id": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}
            ]
        },
        "files must be sent as file_data; this server stores none",
        "messages[0].content[0].file",
    ),
    "earlier audio by its id": (
        {"messages": [USER, assistant(audio={"id": "audio_1"}), USER]},
        "audio must be sent with the request; this server stores none",
        "messages[1].audio",
    ),
}


@pytest.mark.parametrize("fields, message, param", UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_fields_that_would_silently_change_the_response_are_refused(fields, message, param):
    with pytest.raises(Unsupported) as caught:
        openai_chat.parse_request({"messages": [USER], **fields})
    assert (caught.value.message, caught.value.param) == (message, param)


def visible(messages: list[Message]) -> tuple[str, list[tuple[str, Any, str | None]]]:
    parts = [part for message in messages for part in message.parts]
    return "".join(part.text for part in parts if isinstance(part, TextPart)), [
        (part.name, part.arguments, part.tool_call_id)
        for part in parts
        if isinstance(part, ToolCallPart) and not part.server_executed
    ]


@given(event_streams(), st.booleans())
@settings(max_examples=50)
def test_a_response_sent_back_parses_as_the_same_reply(events, exclude_none):
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


def as_sent(messages: list[Message]) -> list[dict[str, Any]]:
    """Write a conversation as the SDK's users do."""
    sent: list[dict[str, Any]] = []
    for message in messages:
        if message.role == "tool":
            for part in message.parts:
                assert isinstance(part, ToolResultPart)
                sent.append(
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
        sent.append(written)
    return sent


@given(conversations())
@settings(max_examples=50)
def test_a_rendered_conversation_parses_as_itself(messages):
    assert parse(*as_sent(messages)).messages == messages


@given(conversations(), st.booleans())
@settings(max_examples=50)
def test_parsing_is_stable_and_a_longer_history_begins_like_a_shorter_one(messages, without_ids):
    """d6.3: also the ids that we make up."""
    sent = as_sent(messages)
    if without_ids:
        for message in sent:
            message.pop("tool_call_id", None)
            for call in message.get("tool_calls", ()):
                del call["id"]
    read = parse(*sent)
    assert parse(*copy.deepcopy(sent)) == read
    for length in (i for i, message in enumerate(sent) if i and message["role"] == "user"):
        shorter = parse(*sent[:length]).messages
        assert shorter == read.messages[: len(shorter)]


def test_two_parsed_requests_share_no_part():
    """llm's values are mutable: a plugin that edits one may not reach another request."""
    body = {"messages": [USER], "tools": [{"function": {"name": "f"}}]}
    one, other = openai_chat.parse_request(body), openai_chat.parse_request(body)
    one.messages[0].parts.clear()
    one.tools[0].input_schema["x"] = 1
    assert other.messages == [Message("user", [TextPart("hi")])]
    assert other.tools[0].input_schema == {"type": "object", "properties": {}}


MARK = {"cache_control": {"type": "ephemeral"}}
BREAKPOINT = {"prompt_cache_breakpoint": {"mode": "explicit"}}


def test_cache_marks_are_stripped():
    body = {
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "Be brief.", **MARK}]},
            {"role": "user", "content": [{"type": "text", "text": "Hi", **BREAKPOINT}]},
            {"role": "user", "content": "hi", **MARK},
            assistant(content=None, tool_calls=[tool_call("t", "f") | MARK]),
            {"role": "tool", "tool_call_id": "t", "content": "x", **MARK},
        ],
        "tools": [{"type": "function", "function": {"name": "f", **MARK}, **MARK}],
        **MARK,
    }
    kept = payload.encode(openai_chat.normalize_body(body))
    marks = rb',"(cache_control|prompt_cache_breakpoint)":\{[^}]*\}'
    assert kept == re.sub(marks, b"", payload.encode(body))
    assert b"cache" not in kept


def test_openais_own_cache_marks_are_listed_as_others_are_and_change_no_message():
    def read(**mark):
        content = [{"type": "text", "text": "hi", **mark}]
        return openai_chat.parse_request({"messages": [{"role": "user", "content": content}]})

    assert read(**BREAKPOINT).messages == read().messages
    assert read(**BREAKPOINT).ignored == ("messages[*].content[*].prompt_cache_breakpoint",)


@pytest.mark.parametrize(
    "body",
    [
        None,
        [MARK],
        {"messages": "hi", "tools": MARK},
        {"messages": [USER, assistant(tool_calls=[tool_call("t", "f", json.dumps(MARK))])]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": BREAKPOINT}}]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": MARK}}]},
    ],
)
def test_a_normal_body_is_returned_itself(body):
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
def test_a_normalized_body_parses_like_the_original(body):
    before = copy.deepcopy(body)
    kept = openai_chat.normalize_body(body)
    assert but_for_marks(kept) == but_for_marks(body)
    assert body == before
    assert openai_chat.normalize_body(kept) is kept


def test_an_empty_schema_requests_any_json():
    """llm reads {} as no schema: neither honoured nor refused, if it were passed on."""
    asked = {"type": "json_schema", "json_schema": {"name": "any", "schema": {}}}
    request = openai_chat.parse_request(
        {"messages": [{"role": "user", "content": "hi"}], "response_format": asked}
    )
    assert (request.schema, request.options) == (None, {"json_object": True})


@pytest.mark.parametrize("type_", [None, ""])
@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant"])
def test_text_parts_of_any_message_may_have_an_empty_type(role, type_):
    part = {"type": type_, "text": "hi"}
    messages = [{"role": role, "content": [part]}, {"role": "user", "content": "x"}]
    parsed = openai_chat.parse_request({"model": "m", "messages": messages}, {})
    assert parsed.messages[0].parts[0].text == "hi"
