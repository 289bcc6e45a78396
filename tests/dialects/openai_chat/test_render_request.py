"""Chat Completions requests, rendered for another server."""

from __future__ import annotations

import json
from operator import attrgetter
from typing import Any

import pytest
from hypothesis import given, settings
from llm.parts import (
    AttachmentPart,
    Message,
    ReasoningPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)

from llmproxy.core import attachments, chat
from llmproxy.dialects import openai_chat
from tests.dialects.openai_chat.samples import CASES, USER, assistant, parse, tool_call
from tests.strategies import (
    requests,
)
from tests.wire_cases import hub_json


@given(requests())
@settings(max_examples=50)
def test_a_rendered_request_parses_as_itself(request_):
    body, ignored = openai_chat.render_request(request_)
    read = openai_chat.parse_request(json.loads(json.dumps(body)))
    names = ("model", "messages", "tools", "tool_choice", "options", "schema", "stream")
    for name in names:
        assert hub_json(getattr(read, name)) == hub_json(getattr(request_, name)), name
    assert (ignored, read.ignored) == ((), ())


@pytest.mark.parametrize("case", CASES, ids=attrgetter("name"))
def test_a_capture_parsed_and_rendered_parses_the_same(case):
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


def test_a_request_is_rendered_in_its_shortest_form():
    assert write(USER_MESSAGE) == ({"model": "m", "messages": [USER]}, ())
    assert openai_chat.render_request(chat.ChatRequest(None, [USER_MESSAGE])) == (
        {"messages": [USER]},
        (),
    )


def test_a_stream_is_requested_with_its_usage_by_default():
    assert write(USER_MESSAGE, stream=True)[0]["stream_options"] == {"include_usage": True}
    body, _ = write(USER_MESSAGE, stream=True, include_usage=False)
    assert body == {"model": "m", "messages": [USER], "stream": True}


def test_the_token_limit_keeps_its_newer_name():
    for name in ("max_tokens", "max_completion_tokens"):
        request = parse(USER, **{name: 5})
        assert openai_chat.render_request(request)[0][name] == 5


def test_options_unknown_to_openai_are_listed_by_their_path():
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


def test_parts_that_this_api_lacks_are_listed():
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


def test_arguments_that_are_no_object_are_rendered_unchanged():
    """B4: truncated JSON does not become a call with an argument called _raw."""
    call = ToolCallPart("f", {"_raw": '{"a": '}, tool_call_id="c")
    body, _ = write(Message("assistant", [call]))
    assert body["messages"][0]["tool_calls"] == [tool_call("c", "f", '{"a": ')]
