"""Requests of /api/chat and /api/generate, and their way back to another server."""

from __future__ import annotations

import json
from operator import attrgetter
from typing import Any

import llm
import ollama as sdk
import pytest
from hypothesis import given
from llm.parts import (
    AttachmentPart,
    Message,
    ReasoningPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)

from llmproxy.core import chat
from llmproxy.core.attachments import RemoteAttachment
from llmproxy.core.errors import InvalidRequest, Unsupported
from llmproxy.dialects import ollama
from tests.examples import many_examples
from tests.strategies import requests
from tests.wire_cases import hub_json, wire_cases

PNG = "iVBORw0KGgphYmM="
USER = {"role": "user", "content": "hi"}
CALL = {"function": {"name": "f", "arguments": {"a": 1}}}


def parse(*messages: dict[str, Any], **fields: Any) -> chat.ChatRequest:
    return ollama.parse_request({"model": "m", "messages": list(messages), **fields})


# ---- the form


@pytest.mark.parametrize(
    "body, form",
    [
        ({"messages": [USER]}, ""),
        ({"prompt": "hi"}, "generate"),
        ({"images": [PNG]}, "generate"),
        ({"prompt": "hi", "messages": None}, "generate"),
        ({"messages": []}, ".load"),
        ({"messages": None}, ".load"),
        ({"messages": [], "keep_alive": 0}, ".unload"),
        ({}, "generate.load"),
        ({"prompt": ""}, "generate.load"),
        ({"prompt": "", "keep_alive": "0s"}, "generate.unload"),
        ({"prompt": "", "keep_alive": 0.0}, "generate.unload"),
        ({"prompt": "", "keep_alive": "10m"}, "generate.load"),
        ({"prompt": "", "keep_alive": "100"}, "generate.load"),
    ],
)
def test_the_form_of_a_request_is_known_by_its_fields(body, form):
    request = ollama.parse_request({"model": "m", **body})
    assert request.form == form
    assert bool(request.messages) == (form in ("", "generate"))


@pytest.mark.parametrize("stream, streams", [({}, True), ({"stream": None}, True)])
def test_a_response_streams_unless_told_otherwise(stream, streams):
    assert parse(USER, **stream).stream is streams
    assert parse(USER, stream=False).stream is False
    assert ollama.parse_request({"prompt": "hi", **stream}).stream is streams


# ---- messages


def test_calls_without_ids_are_counted_over_the_conversation():
    """C23: results by name, by order, and by id."""
    request = parse(
        USER,
        {"role": "assistant", "tool_calls": [CALL, {"function": {"name": "g"}}]},
        {"role": "tool", "tool_name": "g", "content": "of g"},
        {"role": "tool", "content": "of f"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "name": "f", "content": "again"},
    )
    calls = [p for m in request.messages for p in m.parts if isinstance(p, ToolCallPart)]
    results = [p for m in request.messages for p in m.parts if isinstance(p, ToolResultPart)]
    assert [(c.tool_call_id, c.name, c.arguments) for c in calls] == [
        ("call_0", "f", {"a": 1}),
        ("call_1", "g", {}),
        ("call_2", "f", {"a": 1}),
    ]
    assert [(r.tool_call_id, r.name, r.output) for r in results] == [
        ("call_1", "g", "of g"),
        ("call_0", "f", "of f"),
        ("call_2", "f", "again"),
    ]
    assert request.counted_calls == 3


def test_a_client_that_sends_ids_back_keeps_the_models():
    called = {"role": "assistant", "tool_calls": [{"id": "toolu_1", **CALL}]}
    request = parse(USER, called, {"role": "tool", "tool_call_id": "toolu_1", "content": "x"})
    assert request.counted_calls is None
    assert request.messages[1].parts[0].tool_call_id == "toolu_1"


@pytest.mark.parametrize(
    "messages, param",
    [
        ([USER, {"role": "tool", "content": "x"}], "messages[1].tool_name"),
        ([USER, {"role": "tool", "tool_call_id": "t", "content": "x"}], "messages[1].tool_call_id"),
        ([USER, {"role": "assistant", "tool_calls": [CALL]}, USER], "messages[2]"),
        ([USER, {"role": "assistant", "tool_calls": [CALL]}], "messages[2]"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}]}], "messages[0].content"),
        ([{"role": "robot", "content": "a"}], "messages[0].role"),
        ([{"role": "user", "images": ["http://x/y.png"]}], "messages[0].images[0]"),
    ],
)
def test_what_is_no_conversation_is_refused_by_its_place(messages, param):
    with pytest.raises(InvalidRequest) as caught:
        parse(*messages)
    assert caught.value.param == param


def test_arguments_may_be_text_and_images_a_data_url():
    """Converted histories have OpenAI's forms."""
    function = {"name": "f", "arguments": '{"b": [1.5]}'}
    request = parse(
        {"role": "user", "images": [f"data:image/png;base64,{PNG}"]},
        {"role": "assistant", "thinking": "Hm.", "tool_calls": [{"function": function}]},
        {"role": "tool", "content": None, "images": [PNG]},
    )
    assert request.messages[0].parts[0].attachment.type == "image/png"
    assert request.messages[1].parts == [
        ReasoningPart("Hm."),
        ToolCallPart("f", {"b": [1.5]}, tool_call_id="call_0"),
    ]
    assert [a.type for a in request.messages[2].parts[0].attachments] == ["image/png"]
    assert request.attachment_paths == ("messages[0].images[0]", "messages[2].images[0]")


def test_images_that_no_role_shows_are_listed():
    request = parse({"role": "system", "content": "s", "images": [PNG]}, USER)
    assert request.ignored == ("messages[*].images",)


# ---- options


@pytest.mark.parametrize(
    "fields, options, ignored",
    [
        ({"think": True}, {"thinking": True}, ()),
        ({"think": False}, {"thinking": False}, ()),
        ({"think": "max"}, {"reasoning_effort": "max"}, ()),
        ({"think": "a lot"}, {}, ("think",)),
        ({"think": ""}, {}, ()),
        ({"format": "json"}, {"json_object": True}, ()),
        ({"format": {}}, {"json_object": True}, ()),
        ({"format": ""}, {}, ()),
        ({"format": "yaml"}, {}, ("format",)),
        ({"options": None}, {}, ()),
        ({"options": {"num_predict": 5.0, "seed": None}}, {"max_tokens": 5}, ()),
        ({"options": {"num_predict": -2}}, {}, ()),
        ({"options": {"stop": "x"}}, {"stop_sequences": ["x"]}, ()),
        ({"options": {"stop": ["x", " ", ""]}}, {"stop_sequences": ["x"]}, ("options.stop",)),
        ({"options": {"mirostat": 1, "mirostat_tau": None}}, {}, ("options.mirostat",)),
        ({"logprobs": False, "truncate": True}, {}, ("truncate",)),
        ({"keep_alive": -1, "unheard": 1}, {}, ("unheard", "keep_alive")),
    ],
)
def test_options(fields, options, ignored):
    request = parse(USER, **fields)
    assert (dict(request.options), request.ignored) == (options, ignored)


def test_a_suffix_is_refused_and_an_empty_one_is_none():
    with pytest.raises(Unsupported) as caught:
        ollama.parse_request({"prompt": "a", "suffix": "b"})
    assert caught.value.param == "suffix"
    assert ollama.parse_request({"prompt": "a", "suffix": ""}).ignored == ()


def test_every_field_that_is_not_carried_has_a_reason():
    assert all(ollama.NOT_CARRIED.values())


# ---- the way back


@given(asked=requests())
@many_examples(50)
def test_a_rendered_request_is_read_as_it_was(asked):
    body, ignored = ollama.render_request(asked)
    read = ollama.parse_request(json.loads(json.dumps(body)))
    assert read.model == asked.model
    assert (hub_json(read.tools), dict(read.options)) == (
        hub_json(asked.tools),
        dict(asked.options),
    )
    if not ignored:
        roles = [(m.role, hub_json(m.parts)) for m in asked.messages if m.role != "user"]
        assert [(m.role, hub_json(m.parts)) for m in read.messages if m.role != "user"] == roles


@given(asked=requests())
@many_examples(30)
def test_the_python_clients_types_take_a_rendered_request(asked):
    body = ollama.render_request(asked)[0]
    sent = sdk._types.ChatRequest(**body).model_dump(exclude_none=True)
    before, after = ollama.parse_request(body), ollama.parse_request(sent)
    assert [m.role for m in before.messages] == [m.role for m in after.messages]


@pytest.mark.parametrize("case", wire_cases("ollama"), ids=attrgetter("name"))
def test_a_capture_is_rendered_as_a_chat_that_means_the_same(case):
    if not case.hub["messages"]:
        return
    request = ollama.parse_request(case.request)
    again = ollama.parse_request(ollama.render_request(request)[0])
    assert hub_json(again.messages) == hub_json(request.messages)
    assert (again.options, again.schema, again.stream) == (
        request.options,
        request.schema,
        request.stream,
    )


def test_what_this_api_cannot_hold_is_listed():
    remote = RemoteAttachment(type="image/png", url="https://x.test/a.png")
    pdf = llm.Attachment(type="application/pdf", content=b"%PDF-1")
    call = ToolCallPart("web_search", {}, tool_call_id="s", server_executed=True)
    request = chat.ChatRequest(
        "m",
        [
            Message("user", [AttachmentPart(remote), TextPart("a"), AttachmentPart(pdf)]),
            Message(
                "assistant",
                [
                    TextPart("b"),
                    ReasoningPart("c", provider_metadata={"x": 1}),
                    ReasoningPart("", redacted=True),
                    call,
                ],
            ),
            Message("user", [TextPart("d")]),
        ],
        tools=(llm.Tool("f", None, {"type": "object"}),),
        server_tools=(chat.ServerTool("web_search", path="tools[1]"),),
        tool_choice="required",
        options={"verbosity": "low", "reasoning_effort": "xhigh", "thinking": True},
        attachment_paths=("one", "two"),
    )
    body, ignored = ollama.render_request(request)
    assert ignored == (
        "one",
        "two",
        "messages[*] (a provider's own data, as signatures)",
        "messages[*] (reasoning that is opaque)",
        "messages[*] (a server tool's call and result)",
        "messages[*] (the order of an answer's parts)",
        "tool_choice",
        "tools[1]",
        "verbosity",
        "reasoning_effort",
    )
    assert body["messages"] == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "thinking": "c"},
        {"role": "user", "content": "d"},
    ]
    assert body["think"] is True


@pytest.mark.parametrize(
    "options, think, ignored",
    [
        ({"thinking": True}, True, ()),
        ({"thinking": False}, False, ()),
        ({"reasoning_effort": "low"}, "low", ()),
        ({"thinking": True, "reasoning_effort": "low"}, "low", ()),
        ({"reasoning_effort": "low", "thinking": True}, "low", ()),
        ({"reasoning_effort": "low", "thinking": False}, False, ("reasoning_effort",)),
        ({"thinking": True, "reasoning_effort": "minimal"}, True, ("reasoning_effort",)),
        ({"reasoning_effort": "minimal"}, None, ("reasoning_effort",)),
    ],
)
def test_thinking_and_effort_are_one_field(options, think, ignored):
    body, listed = ollama.render_request(chat.ChatRequest("m", [llm.user("a")], options=options))
    assert (body.get("think"), listed) == (think, ignored)


def test_a_tool_that_failed_says_so_in_words():
    call = ToolCallPart("f", {}, tool_call_id="c")
    failed = ToolResultPart(name="f", output="no", tool_call_id="c", exception="error")
    messages = [llm.user("a"), Message("assistant", [call]), Message("tool", [failed])]
    body, ignored = ollama.render_request(chat.ChatRequest("m", messages, tool_choice="none"))
    assert body["messages"][-1]["content"] == "Error: no"
    assert set(ignored) == {"messages[*] (a tool's failure, put into words)", "tool_choice"}
