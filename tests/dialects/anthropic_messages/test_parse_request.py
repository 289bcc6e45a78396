"""Messages requests, parsed, and their normal form."""

from __future__ import annotations

import base64
import copy
import json
from dataclasses import replace
from operator import attrgetter
from typing import Any

import llm
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm.parts import (
    Message,
    ReasoningPart,
    TextPart,
    ToolResultPart,
)

from llmproxy.core import chat, payload
from llmproxy.core.errors import (
    InvalidRequest,
    Unsupported,
)
from llmproxy.dialects import anthropic_messages
from tests.dialects.anthropic_messages.samples import (
    ANSWERED,
    CASES,
    PNG,
    tool_result,
    tool_use,
    user,
    words,
)
from tests.strategies import AWKWARD, marked_bodies
from tests.wire_cases import hub_json

USER = {"role": "user", "content": "hi"}


def parse(*messages: dict[str, Any], **fields: Any) -> chat.ChatRequest:
    return anthropic_messages.parse_request({"model": "m", "messages": list(messages), **fields})


def assistant(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


@pytest.mark.parametrize("case", ANSWERED, ids=attrgetter("name"))
def test_a_response_sent_back_parses_as_the_same_message(case):
    """B25, C7: thinking comes back with its signature; what is stored is found again."""
    said = chat.collect(case.events).messages[0]
    echoed = {"role": "assistant", "content": case.response["content"]}
    results = [tool_result(b["id"]) for b in case.response["content"] if b["type"] == "tool_use"]
    read = parse(USER, echoed, user(*results, words("go on")))
    assert read.messages[1] == said
    assert read.ignored == ()


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_text_is_parsed_unchanged(text):
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
def test_the_billing_line_is_stripped_from_the_system_text(system, texts):
    """B32: it differs with each request."""
    messages = [Message("system", [TextPart(t) for t in texts])] if texts else []
    assert parse(USER, system=system).messages == [*messages, Message("user", [TextPart("hi")])]


def test_cache_marks_set_the_cache_option_and_nothing_else():
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


def test_a_mark_in_a_server_tools_result_is_stripped():
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


def test_results_come_before_other_content_of_the_user():
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
def test_an_empty_assistant_message_is_dropped(content):
    """B28"""
    request = parse(USER, {"role": "assistant", "content": content}, USER)
    assert [message.role for message in request.messages] == ["user", "user"]


def test_thinking_without_a_signature_is_plain_reasoning():
    request = parse(USER, assistant({"type": "thinking", "thinking": "hm", "signature": ""}), USER)
    assert request.messages[1].parts == [ReasoningPart("hm")]


def test_unknown_fields_and_blocks_are_listed():
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


TAB = {"id": 1, "title": "Cup", "url": "https://example.com/", "active": True}
STATE = {"type": "browser_state", "tabs": [TAB]}


def test_a_summary_of_the_past_is_told_as_text():
    summary = {
        "type": "compaction",
        "content": "We chose blue.",
        "encrypted_content": "eA==",
        "signature": "c2ln",
        "tool_changes": [],
        **MARK,
    }
    request = parse(USER, assistant(summary, words("Now green.")), USER)
    assert request.messages[1].parts == [TextPart("We chose blue."), TextPart("Now green.")]
    assert request.ignored == ("messages[*].content[*] (compaction)",)
    assert request.options["cache"] is True
    failed = {"type": "compaction", "content": None}
    assert parse(USER, assistant(failed, words("a")), USER).messages[1].parts == [TextPart("a")]


@pytest.mark.parametrize("role", ["user", "assistant", "system"])
def test_unknown_blocks_that_hold_text_are_told(role):
    blocks = [{"type": "note", "text": "blue"}, STATE, {"type": "container_upload", "file_id": "f"}]
    request = parse(USER, {"role": role, "content": blocks}, USER)
    assert request.messages[1].role == role
    note, state, upload = (part.text for part in request.messages[1].parts)
    assert note == "blue"
    assert (json.loads(state), json.loads(upload)) == (STATE, blocks[2])
    assert request.ignored == tuple(
        f"messages[*].content[*] ({kind})" for kind in ("note", "browser_state", "container_upload")
    )


def test_unknown_blocks_of_the_system_text_are_told():
    request = parse(USER, system=[words("Be brief."), {"type": "rule", "content": "No red."}])
    assert request.messages[0].parts == [TextPart("Be brief."), TextPart("No red.")]
    assert request.ignored == ("system[*] (rule)",)


def test_blocks_that_anthropic_shows_to_no_model_are_left_out():
    blocks = [
        {"type": "fallback", "to": {"model": "m"}},
        {"type": "mcp_tool_listing", "mcp_server_name": "notes", "tools": []},
    ]
    request = parse(USER, assistant(*blocks, words("a")), USER)
    assert request.messages[1].parts == [TextPart("a")]
    assert len(request.ignored) == 2


def test_an_unknown_block_of_base64_is_an_attachment_that_a_model_takes_or_refuses():
    clip = {
        "type": "video",
        "source": {"type": "base64", "media_type": "video/mp4", "data": "AAAA"},
    }
    [part] = parse(user(clip)).messages[0].parts
    assert part.attachment == llm.Attachment(type="video/mp4", content=b"\0\0\0")


@pytest.mark.parametrize(
    "content, output",
    [
        ([STATE], json.dumps(STATE)),
        ([{"type": "hologram", "depth": 2}], '{"type": "hologram", "depth": 2}'),
        ([words("Clicked."), STATE], "Clicked.\n" + json.dumps(STATE)),
        ([{"type": "note", "text": "blue"}], "blue"),
        (
            [{"type": "search_result", "source": "s", "title": "t", "content": [words("y")]}],
            "t\ns\n\ny",
        ),
        (
            [{"type": "web_search_tool_result", "tool_use_id": "x", "content": "c"}],
            '{"type": "web_search_tool_result", "tool_use_id": "x", "content": "c"}',
        ),
    ],
)
def test_a_result_of_unknown_blocks_is_never_empty(content, output):
    result = {"type": "tool_result", "tool_use_id": "t", "content": content}
    request = parse(USER, assistant(tool_use("t")), user(result))
    assert request.messages[-1].parts[0].output == output


def search_result(*content: dict[str, Any]) -> dict[str, Any]:
    return {"type": "search_result", "source": "s", "title": "t", "content": list(content)}


def document(*content: dict[str, Any]) -> dict[str, Any]:
    return {"type": "document", "source": {"type": "content", "content": list(content)}}


NESTING = {
    "a search result": lambda *blocks: user(search_result(*blocks)),
    "a document": lambda *blocks: user(document(*blocks)),
    "a tool's result": lambda *blocks: user(tool_result("t", list(blocks))),
    "a search result in a tool's": lambda *blocks: user(tool_result("t", [search_result(*blocks)])),
    "a document in a tool's result": lambda *blocks: user(tool_result("t", [document(*blocks)])),
}
NESTED = [
    STATE,
    {"type": "hologram", "depth": 2},
    {"type": "fallback", "to": {"model": "m"}},
    {"type": "tool_addition", "tool": {"name": "evil"}},
    {"type": "compaction", "tool_changes": [{"type": "tool_addition", "tool": {"name": "evil"}}]},
    {"type": "web_search_tool_result", "tool_use_id": "x", "content": [{"url": "u"}]},
    {"type": "thinking", "thinking": "hm"},
    {"type": "tool_result", "tool_use_id": "x", "content": "y"},
    {"type": "other", "block": {"type": "x"}},
]


def nested_in(nest: Any, *blocks: dict[str, Any]) -> chat.ChatRequest:
    message = nest(*blocks)
    asked = [assistant(tool_use("t"))] if message["content"][0]["type"] == "tool_result" else []
    return parse(USER, *asked, message)


@pytest.mark.parametrize("block", NESTED, ids=lambda block: block["type"])
@pytest.mark.parametrize("nest", NESTING.values(), ids=NESTING)
def test_unknown_blocks_inside_others_are_told_in_words(nest, block):
    request = nested_in(nest, words("before"), block | MARK, words("after"))
    [part, *_] = last = request.messages[-1].parts
    told = part.output if isinstance(part, ToolResultPart) else "\n".join(p.text for p in last)
    before, after = told.index("before"), told.index("after")
    assert json.loads(told[before + 6 : after]) == block
    [ignored] = request.ignored
    assert ignored.endswith(f"content[*] ({block['type']})")
    assert request.options["cache"] is True
    assert request.tools == ()


@pytest.mark.parametrize("nest", NESTING.values(), ids=NESTING)
def test_an_unknown_block_that_is_all_a_block_holds_is_told(nest):
    [part] = nested_in(nest, {"type": "note", "text": "blue"}).messages[-1].parts
    assert "blue" in (part.output if isinstance(part, ToolResultPart) else part.text)


@pytest.mark.parametrize("nest", NESTING.values(), ids=NESTING)
def test_an_image_is_one_wherever_it_stands(nest):
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(PNG).decode()}
    request = nested_in(nest, {"type": "image", "source": source})
    found = [
        attachment
        for part in request.messages[-1].parts
        for attachment in getattr(part, "attachments", None) or [getattr(part, "attachment", None)]
        if attachment is not None
    ]
    assert [attachment.content for attachment in found] == [PNG]
    assert len(request.attachment_paths) == 1


# ---- tools inside messages

RED = {"name": "red", "description": "d", "input_schema": {"type": "object"}}
BLUE = {"name": "blue", "input_schema": {"type": "object"}}


def added(definition: Any) -> dict[str, Any]:
    return {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": definition}}


def changed(kind: str, name: str) -> dict[str, Any]:
    return {"type": kind, "tool": {"type": "tool_reference", "name": name}}


def names(request: chat.ChatRequest) -> list[str]:
    return [tool.name for tool in request.tools]


@pytest.mark.parametrize("role", ["system", "user"])
def test_a_tool_defined_inside_a_message_is_offered(role):
    request = parse(USER, {"role": role, "content": [added(RED), words("go on")]}, tools=[BLUE])
    assert names(request) == ["blue", "red"]
    assert request.tools[1] == llm.Tool("red", "d", {"type": "object"})
    assert request.messages[-1].parts == [TextPart("go on")]
    assert request.ignored == ()


def test_a_tool_that_a_message_added_can_be_chosen():
    request = parse(user(added(RED), words("x")), tool_choice={"type": "tool", "name": "red"})
    assert request.tool_choice == chat.NamedTool("red")


@pytest.mark.parametrize(
    "changes, offered",
    [
        ([changed("tool_removal", "blue")], []),
        ([changed("tool_removal", "blue"), changed("tool_addition", "blue")], ["blue"]),
        ([added(RED), changed("tool_removal", "red")], ["blue"]),
        (
            [added(RED), changed("tool_removal", "red"), changed("tool_addition", "red")],
            ["blue", "red"],
        ),
        ([added(BLUE | {"description": "new"})], ["blue"]),
        ([changed("tool_addition", "blue")], ["blue"]),
    ],
)
def test_messages_change_which_tools_are_offered(changes, offered):
    assert names(parse(user(*changes, words("x")), tools=[BLUE])) == offered


def test_a_summary_has_the_tools_of_the_messages_that_it_stands_for():
    summary = {"type": "compaction", "content": "s", "tool_changes": [added(RED)]}
    assert names(parse(USER, assistant(summary), USER)) == ["red"]


def test_a_providers_tool_can_be_added_too():
    request = parse(user(added({"type": "web_search_20250305", "name": "web_search"}), words("x")))
    [tool] = request.server_tools
    assert (tool.name, tool.path) == ("web_search", "messages[0].content[0].tool.definition")


@pytest.mark.parametrize(
    "definition, param",
    [
        ({"name": 1}, "messages[0].content[0].tool.definition.name"),
        ({"description": "d"}, "messages[0].content[0].tool.definition.name"),
        (None, "messages[0].content[0].tool.definition"),
    ],
)
def test_a_definition_that_is_none_is_refused(definition, param):
    with pytest.raises(InvalidRequest) as raised:
        parse(user(added(definition), words("x")))
    assert raised.value.param == param


def test_a_definition_may_be_the_added_tool_itself():
    addition = {"type": "tool_addition", "tool": RED}
    assert names(parse(user(addition, words("x")), tools=[BLUE])) == ["blue", "red"]


def test_an_addition_of_nothing_is_refused():
    with pytest.raises(InvalidRequest) as raised:
        parse(user({"type": "tool_addition"}, words("x")))
    assert raised.value.param == "messages[0].content[0].tool"


def test_a_providers_tool_is_removed_by_its_own_name():
    editor = {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool"}
    change = changed("tool_removal", editor["name"])
    assert parse(user(change, words("x")), tools=[editor]).server_tools == ()


def test_a_tool_that_is_nowhere_defined_can_not_be_added():
    with pytest.raises(InvalidRequest, match="there is no tool 'red' in this request$") as raised:
        parse(user(changed("tool_addition", "red"), words("x")), tools=[BLUE])
    assert raised.value.param == "messages[0].content[0].tool.name"


@pytest.mark.parametrize(
    "reference", [{"type": "mcp_toolset_reference"}, {"type": "mcp_tool_reference", "name": "add"}]
)
def test_changes_of_an_mcp_servers_tools_are_listed(reference):
    change = {"type": "tool_addition", "tool": {"mcp_server_name": "notes", **reference}}
    assert parse(user(change, words("x"))).ignored == ("messages[*].content[*] (tool_addition)",)


@pytest.mark.parametrize(
    "input_, arguments",
    [
        ({"a": 1}, {"a": 1}),
        (None, {}),
        ("", {}),
        ('{"a": 1}', {"a": 1}),
        ([1, 2], {"_raw": "[1,2]"}),
        ("x", {"_raw": '"x"'}),
        (3, {"_raw": "3"}),
        (True, {"_raw": "true"}),
    ],
)
def test_the_input_of_a_call_is_taken_whatever_it_is(input_, arguments):
    block = {"type": "tool_use", "id": "t", "name": "f", "input": input_}
    request = parse(USER, assistant(block), user(tool_result("t")))
    assert request.messages[1].parts[0].arguments == arguments


@pytest.mark.parametrize("name", anthropic_messages.NOT_CARRIED)
def test_fields_that_llm_can_not_carry_are_listed_unless_empty(name):
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
def test_thinking_is_parsed_in_every_form(thinking, options, ignored):
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
def test_a_tool_choice_is_parsed_and_rendered(choice, read, options):
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
def test_a_user_id_that_is_too_long_for_others_is_listed(length, is_kept):
    request = parse(USER, metadata={"user_id": length * "u"})
    assert request.options == ({"user": length * "u"} if is_kept else {})
    assert request.ignored == (() if is_kept else ("metadata.user_id",))


def test_a_schema_is_parsed_under_both_its_names():
    """C8"""
    schema = {"type": "object"}
    format_ = {"type": "json_schema", "schema": schema}
    assert parse(USER, output_config={"format": format_}).schema == schema
    assert parse(USER, output_format=format_).schema == schema


REFUSED = {
    "no object": ([], "expected an object, got a list", None),
    "no messages": ({}, "this field is required", "messages"),
    "an empty list": ({"messages": []}, "must not be empty", "messages"),
    "a system prompt alone": (
        {"system": "x", "messages": [{"role": "user", "content": ""}]},
        "no message besides the system prompt has content",
        "messages",
    ),
    "a role of another API": (
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
        "tool_use is allowed only in an assistant message",
        "messages[0].content[0]",
    ),
    "an assistant's result": (
        {"messages": [USER, assistant(tool_result("a"))]},
        "tool results are allowed only in a user message",
        "messages[1]",
    ),
    "a file by id": (
        {"messages": [user({"type": "image", "source": {"type": "file", "file_id": "x"}})]},
        "files must be sent as base64 data; this server stores none",
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
        "a system message may contain only text",
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
def test_an_invalid_request_is_refused_with_the_path_of_the_field(body, message, param):
    with pytest.raises(InvalidRequest) as refused:
        anthropic_messages.parse_request(body)
    assert (refused.value.message, refused.value.param) == (message, param)


@pytest.mark.parametrize(
    "fields", [{"thread": {"type": "create"}}, {"previous_message_id": "msg_1", "messages": []}]
)
def test_threads_are_refused_with_the_code_that_makes_the_sdk_send_everything(fields):
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
            "message": f"{next(iter(fields))}: this server stores no threads: "
            "send the whole conversation",
            "details": {"error_code": "thread_unsupported_request"},
        },
    }


MARK = {"cache_control": {"type": "ephemeral"}}


def test_cache_marks_are_stripped():
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


def test_tool_inputs_and_schemas_are_never_stripped():
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
def test_the_billing_line_is_stripped_from_the_body(system, kept):
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
def test_a_normal_body_is_returned_itself(body):
    assert anthropic_messages.normalize_body(body) is body


def but_for_marks(body: Any) -> Any:
    """Give what a request reads as, without the option that marks switch on."""
    read = anthropic_messages.parse_request(body)
    options = {name: value for name, value in read.options.items() if name != "cache"}
    return hub_json(replace(read, options=options))


@given(
    marked_bodies([case.request for case in CASES]), st.sampled_from(["", BILLING, BILLING + "\n"])
)
def test_a_normalized_body_parses_like_the_original(body, line):
    if isinstance(body.get("system"), str):
        body["system"] = line + body["system"]
    before = copy.deepcopy(body)
    kept = anthropic_messages.normalize_body(body)
    assert but_for_marks(kept) == but_for_marks(body)
    assert body == before
    assert anthropic_messages.normalize_body(kept) is kept
