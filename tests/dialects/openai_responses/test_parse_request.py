"""Responses requests: items of every kind, tools of every kind, what is listed or refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from llm.parts import Message, ReasoningPart, TextPart, ToolCallPart, ToolResultPart

from llmproxy.core import chat
from llmproxy.core.errors import InvalidRequest, Unsupported
from llmproxy.dialects import openai_responses
from tests.dialects.openai_responses.samples import USER, call, message, output, parse
from tests.examples import many_examples
from tests.strategies import requests


@given(asked=requests())
@many_examples(40)
def test_a_rendered_request_is_parsed_as_the_request(asked):
    body, ignored = openai_responses.render_request(asked)
    parsed = openai_responses.parse_request(json.loads(json.dumps(body)))
    lost = {"stop_sequences"}
    assert set(ignored) <= lost | {"messages[*] (reasoning that OpenAI did not encrypt)"}
    assert parsed.options == {n: v for n, v in asked.options.items() if n not in lost}
    assert (parsed.tools, parsed.model, parsed.stream) == (asked.tools, asked.model, asked.stream)
    assert _joined(parsed.messages) == _joined(asked.messages)


def _joined(messages: list[Message]) -> list[tuple[str, list[object]]]:
    """What the API carries: replies in a row are one, reasoning without a signature is none."""
    joined: list[tuple[str, list[object]]] = []
    for one in messages:
        parts = [part.to_dict() for part in one.parts if not isinstance(part, ReasoningPart)]
        if one.role == "assistant" and joined and joined[-1][0] == "assistant":
            joined[-1][1].extend(parts)
        elif parts or one.role != "assistant":
            joined.append((one.role, parts))
    return joined


def roles(request: chat.ChatRequest) -> list[str]:
    return [message.role for message in request.messages]


def test_what_the_model_says_in_a_row_is_one_message():
    request = parse(
        USER,
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm"}]},
        message("assistant", "a"),
        call("c1"),
        call("c2", "g", '{"x": 1}'),
        output("c2", "two"),
        output("c1", "one"),
        message("assistant", "b"),
        USER,
    )
    assert roles(request) == ["user", "assistant", "tool", "assistant", "user"]
    assert request.messages[1].parts == [
        ReasoningPart("Hm"),
        TextPart("a"),
        ToolCallPart("f", {}, "c1"),
        ToolCallPart("g", {"x": 1}, "c2"),
    ]
    assert request.messages[2].parts == [
        ToolResultPart("g", "two", tool_call_id="c2"),
        ToolResultPart("f", "one", tool_call_id="c1"),
    ]


def test_calls_at_once_may_each_be_followed_by_their_result():
    request = parse(
        USER, call("c1"), call("c2"), output("c1"), call("c3"), output("c2"), output("c3")
    )
    assert roles(request) == ["user", "assistant", "tool"]
    assert [part.tool_call_id for part in request.messages[1].parts] == ["c1", "c2", "c3"]


def test_further_results_of_a_call_are_added_to_it():
    """Codex's `exec` sends what it tells while it runs (`notify`) as results of the same call."""
    request = parse(
        USER,
        call("c1"),
        *(output("c1", text) for text in ("one", "two", "three")),
        message("assistant", "So."),
        output("c1", "late"),
    )
    assert roles(request) == ["user", "assistant", "tool", "assistant", "user"]
    assert request.messages[2].parts == [ToolResultPart("f", "one\ntwo\nthree", tool_call_id="c1")]
    assert request.messages[4].parts == [TextPart("<tool_result>f: late</tool_result>")]
    assert request.ignored == ("input[*] (a further result of a call)",)


def test_messages_between_a_call_and_its_result_come_after_it():
    image = {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo="}
    request = parse(
        call("c1"),
        {"role": "user", "content": [image]},
        message("developer", "Hurry."),
        {"type": "function_call_output", "call_id": "c1", "output": [image]},
    )
    assert roles(request) == ["assistant", "tool", "user", "system"]
    assert request.attachment_paths == (
        "input[3].output[0].image_url",
        "input[1].content[0].image_url",
    )


@pytest.mark.parametrize(
    "items, param, text",
    [
        ([USER, call("c1")], "input[2]", "expected the results of the tool calls c1"),
        ([call("c1"), USER, call("c2")], "input", "expected the results of the tool calls c1"),
        ([USER, output("c1")], "input[1].call_id", "no tool call 'c1' waits for a result"),
        ([{"role": "user", "content": None}], "input[0].content", "this field is required"),
        ([{"role": "robot", "content": ""}], "input[0].role", "expected one of"),
        ([message("assistant", "")], "input", "nothing in it has any content"),
        ([], "input", "must not be empty"),
        ([{"type": "item_reference", "id": "msg_9"}], "input[0]", "Item with id 'msg_9' not found"),
        ([{"id": "msg_9"}], "input[0]", "Item with id 'msg_9' not found"),
        ([USER, {"type": "compaction", "encrypted_content": "gAAA"}], None, "by another server"),
        (
            [{"role": "user", "content": [{"type": "input_image", "file_id": "file_1"}]}],
            "input[0].content[0].file_id",
            "this server stores none",
        ),
    ],
)
def test_what_is_no_conversation_is_refused(items, param, text):
    with pytest.raises(InvalidRequest, match=text.replace("[", r"\[")) as caught:
        parse(*items)
    assert param is None or caught.value.param == param


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"background": True}, "background"),
        ({"conversation": {"id": "conv_1"}}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ],
)
def test_what_only_openai_has_is_refused(fields, param):
    with pytest.raises(Unsupported) as caught:
        parse(USER, **fields)
    assert caught.value.param == param


def test_b37_a_previous_response_is_never_stripped():
    with pytest.raises(InvalidRequest) as caught:
        parse(USER, previous_response_id="resp_1")
    assert (caught.value.param, caught.value.code, caught.value.status) == (
        "previous_response_id",
        "previous_response_not_found",
        400,
    )


def test_deferred_tools_are_offered_as_plain_ones_and_listed():
    """Those that a search found too, and those of namespaces."""
    later = {
        "type": "function",
        "name": "f",
        "defer_loading": True,
        "parameters": {"type": "object"},
    }
    found = {
        "type": "tool_search_output",
        "call_id": "s",
        "tools": [{"type": "namespace", "name": "n", "description": "", "tools": [later]}],
    }
    request = parse(
        USER,
        {"type": "tool_search_call", "call_id": "s", "arguments": {"query": "q"}},
        found,
        tools=[later, {"type": "tool_search"}],
    )
    assert [tool.name for tool in request.tools] == ["f", "n__f"]
    assert set(request.ignored) == {
        "tools[*].defer_loading",
        "tools[*].tools[*].defer_loading",
        "tools[*] (tool_search)",
    }
    assert request.messages[-1].parts[0].output == "tool found: n__f"


@pytest.mark.parametrize(
    "choice, wanted",
    [
        ("none", "none"),
        ({"type": "function", "name": "f"}, chat.NamedTool("f")),
        ({"type": "custom", "name": "c"}, chat.NamedTool("c")),
        ({"type": "function", "name": "g", "namespace": "n"}, chat.NamedTool("n__g")),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "custom", "name": "c"}]},
            "auto",
        ),
        ({"type": "web_search"}, "auto"),
    ],
)
def test_a_tool_is_chosen_by_its_kind(choice, wanted):
    request = parse(
        USER,
        tools=[
            {"type": "function", "name": "f"},
            {"type": "custom", "name": "c"},
            {"type": "web_search"},
            {"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "g"}]},
        ],
        tool_choice=choice,
    )
    assert request.tool_choice == wanted
    if isinstance(choice, dict) and choice["type"] == "allowed_tools":
        assert [tool.name for tool in request.tools] == ["c"]
    assert ("tool_choice" in request.ignored) == (choice == {"type": "web_search"})


def test_reasoning_that_openai_encrypted_keeps_openais_id_but_none_of_ours():
    """OpenAI refuses an encrypted text under another id than its own."""
    item = {"type": "reasoning", "summary": [], "encrypted_content": "enc"}
    for id_, kept in [
        ("rs_68ab", "rs_68ab"),
        ("rs_01k0anssssssssssssssssssss_0", None),
        (None, None),
    ]:
        [part] = parse(item | {"id": id_}, message("assistant", "")).messages[0].parts
        metadata = {"encrypted_content": "enc"} | ({"id": kept} if kept else {})
        assert part == ReasoningPart("", True, {"openai": metadata})


def test_cache_marks_are_not_part_of_the_normal_form():
    part = {"type": "input_text", "text": "a"}
    body = {"input": [{"role": "user", "content": [part | {"prompt_cache_breakpoint": {}}]}]}
    assert openai_responses.normalize_body(body) == {"input": [{"role": "user", "content": [part]}]}


def test_a_part_of_reasoning_whose_text_is_none_says_nothing():
    parts = [{"type": "new", "text": True}, {"type": "summary_text", "text": "Look."}]
    item = {"type": "reasoning", "id": "rs_1", "summary": parts}
    user = {"role": "user", "content": "hi"}
    request = openai_responses.parse_request({"model": "m", "input": [user, item, user]})
    (reasoning,) = request.messages[1].parts
    assert reasoning.text == "Look."
