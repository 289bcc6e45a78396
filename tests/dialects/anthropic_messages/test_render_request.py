"""Messages requests, rendered for another server."""

from __future__ import annotations

import base64
from dataclasses import replace
from operator import attrgetter

import llm
import pytest
from hypothesis import given, settings
from llm.parts import (
    AttachmentPart,
    Message,
    ReasoningPart,
    TextPart,
    ToolCallPart,
)

from llmproxy.core import attachments, chat
from llmproxy.core.errors import (
    InvalidRequest,
)
from llmproxy.dialects import anthropic_messages
from tests.dialects.anthropic_messages.samples import (
    CASES,
    PNG,
    rendered,
    result,
    said,
    tool_result,
    tool_use,
    user,
    words,
)
from tests.strategies import requests

GO_ON = said("user", "go on")


@given(requests())
@settings(max_examples=80, deadline=None)
def test_a_rendered_request_parses_as_itself(request_):
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
def test_a_capture_parsed_and_rendered_parses_the_same(case):
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
    # Anthropic refuses top_p beside temperature; a server tool's date is the plugin's to choose.
    assert lost <= {"top_p", *(tool.path for tool in request.server_tools)}
    assert again.options == {n: v for n, v in request.options.items() if n not in lost}
    assert (again.tools, again.schema) == (request.tools, request.schema)


def test_a_request_has_the_body_that_servers_expect():
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


def test_results_share_one_message_and_come_before_text():
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


def test_a_system_message_after_a_reply_becomes_marked_text():
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
def test_the_first_and_last_turn_are_the_users(messages, roles, ignored):
    """B28, B29: our clean-up makes no prefill."""
    body, listed = rendered(*messages)
    assert [message["role"] for message in body["messages"]] == roles
    assert listed == ((FILLED,) if ignored is None else ignored)
    assert body["messages"][-1]["content"] in ("x", "go on", anthropic_messages.PLACEHOLDER)


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
def test_options_unknown_to_anthropic_are_listed(options, fields, ignored):
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


def test_reasoning_and_tools_of_other_providers_are_left_out_and_listed():
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
