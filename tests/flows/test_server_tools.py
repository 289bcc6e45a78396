"""Histories with tools that a provider ran, continued with models of every form.

A call and its result stay together: both reach the provider, or both are told as text.
"""

from __future__ import annotations

import json
from typing import Any

import anthropic
import pytest
from llm.default_plugins.openai_models import AsyncChat, Chat, Responses
from llm.parts import Message, TextPart, ToolCallPart, ToolResultPart
from llm_anthropic import AsyncClaudeMessages, ClaudeMessages
from llm_groq import LLMAsyncGroq, LLMGroq

from llmproxy.backends.engine.prompt import build_prompt
from llmproxy.core import chat
from llmproxy.dialects import anthropic_messages, openai_chat
from tests.models import AsyncScript, SyncScript
from tests.provider import chat_stream, playing
from tests.proxies import running

TOLD = "messages[*] (a server tool's call and result, put into words)"

# Each kind: the id's prefix, the call's type and tool, the result's type and content, and what
# of the result a model must be told.
KINDS = {
    "web_search": (
        "srvtoolu",
        "server_tool_use",
        "web_search",
        "web_search_tool_result",
        [{"type": "web_search_result", "url": "u", "title": "Reds win", "encrypted_content": "e"}],
        "Reds win",
    ),
    "web_search_error": (
        "srvtoolu",
        "server_tool_use",
        "web_search",
        "web_search_tool_result",
        {"type": "web_search_tool_result_error", "error_code": "max_uses_exceeded"},
        "max_uses_exceeded",
    ),
    "code_execution": (
        "srvtoolu",
        "server_tool_use",
        "bash_code_execution",
        "bash_code_execution_tool_result",
        {"type": "bash_code_execution_result", "stdout": "42\n", "stderr": "", "return_code": 0},
        "42",
    ),
    "tool_search": (
        "srvtoolu",
        "server_tool_use",
        "tool_search_tool_regex",
        "tool_search_tool_result",
        {
            "type": "tool_search_tool_search_result",
            "tool_references": [{"type": "tool_reference", "tool_name": "Read"}],
        },
        "Read",
    ),
    "advisor": (
        "srvtoolu",
        "server_tool_use",
        "advisor",
        "advisor_tool_result",
        {"type": "advisor_result", "text": "Ask first."},
        "Ask first.",
    ),
    "never_heard_of": (
        "srvtoolu",
        "server_tool_use",
        "telepathy",
        "telepathy_tool_result",
        [{"type": "thought", "of": "Reds"}],
        "Reds",
    ),
    "mcp": (
        "mcptoolu",
        "mcp_tool_use",
        "note",
        "mcp_tool_result",
        [{"type": "text", "text": "saved"}],
        "saved",
    ),
}


def pair(kind: str) -> list[dict[str, Any]]:
    prefix, call_type, tool, result_type, content, _ = KINDS[kind]
    call = {"type": call_type, "id": f"{prefix}_1", "name": tool, "input": {"q": "cup"}}
    if call_type == "mcp_tool_use":
        call["server_name"] = "notes"
    return [call, {"type": result_type, "tool_use_id": f"{prefix}_1", "content": content}]


def request(*blocks: dict[str, Any], after: tuple[Any, ...] = ()) -> chat.ChatRequest:
    messages = [
        {"role": "user", "content": "who won?"},
        {"role": "assistant", "content": list(blocks)},
        *after,
    ]
    return anthropic_messages.parse_request({"model": "m", "messages": messages})


def answered(kind: str) -> chat.ChatRequest:
    blocks = [*pair(kind), {"type": "text", "text": "The Reds."}]
    return request(*blocks, after=({"role": "user", "content": "and last year?"},))


def openai_model(kind: type[Chat] | type[AsyncChat]) -> Any:
    return kind("m", supports_tools=True)


OTHERS = {
    "chat": lambda: openai_model(Chat),
    "async_chat": lambda: openai_model(AsyncChat),
    "responses": lambda: Responses("m", supports_tools=True),
    "groq": lambda: LLMGroq("m", "m"),
    "async_groq": lambda: LLMAsyncGroq("m", "m"),
    "script": lambda: SyncScript("m"),
    "async_script": lambda: AsyncScript("m"),
    "no_tools": lambda: SyncScript("m", supports_tools=False),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("kind", KINDS)
def test_models_of_others_are_told_the_call_and_its_result(kind, name):
    """In both forms of the history: the messages, and the conversation of older plugins."""
    made = build_prompt(answered(kind), OTHERS[name](), {})
    tool, told = KINDS[kind][2], KINDS[kind][5]
    [reply] = [m for m in made.prompt.messages if m.role == "assistant"]
    assert all(isinstance(part, TextPart) for part in reply.parts)
    [response] = made.conversation.responses
    for text in ("".join(part.text for part in reply.parts), "".join(response._chunks)):
        call, result, rest = text.replace("</tool_result>", "</tool_call>").split("</tool_call>")
        assert call == f'<tool_call>{tool}({{"q": "cup"}})'
        assert result.startswith(f"<tool_result>{tool}: ") and told in result
        assert rest == "The Reds."
        assert "encrypted" not in text
    assert response._tool_calls == []
    assert TOLD in made.ignored


@pytest.mark.parametrize("plugin", [ClaudeMessages, AsyncClaudeMessages])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "mcp"])
def test_claude_is_sent_both_as_they_came(kind, plugin):
    model = plugin("m")
    made = build_prompt(answered(kind), model, {})
    sent = model.build_messages(made.prompt, made.conversation)
    assert sent[1]["content"][:2] == pair(kind)
    assert TOLD not in made.ignored


@pytest.mark.parametrize("plugin", [ClaudeMessages, AsyncClaudeMessages])
def test_claude_is_told_what_it_refuses_without_the_mcp_server(plugin):
    model = plugin("m")
    made = build_prompt(answered("mcp"), model, {})
    sent = model.build_messages(made.prompt, made.conversation)
    assert [block["type"] for block in sent[1]["content"]] == ["text"] * 3
    assert TOLD in made.ignored


def test_a_call_without_its_result_is_told_to_claude_too_unless_the_turn_is_paused():
    call = pair("web_search")[0]
    model = ClaudeMessages("m")
    lost = request(call, after=({"role": "user", "content": "go on"},))
    made = build_prompt(lost, model, {})
    assert made.prompt.messages[1].parts == [
        TextPart('<tool_call>web_search({"q": "cup"})</tool_call>')
    ]
    paused = build_prompt(request(call), model, {})
    assert model.build_messages(paused.prompt, paused.conversation)[1]["content"] == [call]


def test_a_result_may_come_in_a_later_message_than_its_call():
    """Where a call of the client's own stands beside it, the provider waits for that."""
    call, result = pair("web_search")
    own = {"type": "tool_use", "id": "toolu_1", "name": "Read", "input": {}}
    after = (
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "text"}],
        },
        {"role": "assistant", "content": [result, {"type": "text", "text": "The Reds."}]},
        {"role": "user", "content": "and?"},
    )
    claude = ClaudeMessages("m")
    made = build_prompt(request(call, own, after=after), claude, {})
    sent = claude.build_messages(made.prompt, made.conversation)
    assert (sent[1]["content"][0], sent[3]["content"][0]) == (call, result)
    chat_model = openai_model(Chat)
    made = build_prompt(request(call, own, after=after), chat_model, {})
    sent = chat_model.build_messages(made.prompt, made.conversation)
    assert [[c["id"] for c in m.get("tool_calls", [])] for m in sent] == [
        [],
        ["toolu_1"],
        [],
        [],
        [],
    ]
    assert "<tool_call>web_search" in sent[1]["content"]
    assert "<tool_result>web_search" in sent[3]["content"]


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_a_result_without_its_call_is_text_in_any_message(role):
    """As after a client cut the history; and calls of a type that nobody knows."""
    blocks = [
        {"type": "dream_tool_use", "id": "d_1", "name": "dream", "input": {"of": "sheep"}},
        {"type": "dream_tool_result", "tool_use_id": "d_1", "content": "electric"},
    ]
    parsed = anthropic_messages.parse_request(
        {"messages": [{"role": role, "content": blocks}, {"role": "user", "content": "go on"}]}
    )
    call, result = parsed.messages[0].parts
    assert isinstance(call, TextPart) and json.loads(call.text) == blocks[0]
    assert isinstance(result, TextPart) and json.loads(result.text) == blocks[1]
    assert parsed.ignored == (
        "messages[*].content[*] (dream_tool_use)",
        "messages[*].content[*] (dream_tool_result)",
    )


def test_calls_for_the_client_come_after_what_is_told():
    """Anthropic refuses text after them."""
    own = {"type": "tool_use", "id": "toolu_1", "name": "Read", "input": {}}
    after = (
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "text"}],
        },
    )
    made = build_prompt(request(own, *pair("mcp"), after=after), ClaudeMessages("m"), {})
    kinds = [type(part) for part in made.prompt.messages[1].parts]
    assert kinds == [TextPart, TextPart, ToolCallPart]


def test_a_result_in_a_users_message_is_text_as_its_call_becomes():
    call, result = pair("never_heard_of")
    after = ({"role": "user", "content": [result, {"type": "text", "text": "go on"}]},)
    made = build_prompt(request(call, after=after), ClaudeMessages("m"), {})
    told = [part for message in made.prompt.messages[1:] for part in message.parts]
    assert all(isinstance(part, TextPart) for part in told)
    assert "Reds" in told[1].text


def test_both_are_left_out_and_listed_where_a_request_is_converted():
    body, ignored = openai_chat.render_request(answered("never_heard_of"))
    assert body["messages"][1] == {"role": "assistant", "content": "The Reds."}
    assert ignored == ("messages[*] (a server tool's call and result)",)


def test_what_the_log_has_of_a_model_is_sent_back_to_it_with_results_only():
    call = ToolCallPart("code", {"n": 1}, "g_1", server_executed=True)
    lonely = ToolCallPart("code", {"n": 2}, "g_2", server_executed=True)
    result = ToolResultPart("code", "1", "g_1", server_executed=True)
    user = Message("user", [TextPart("q")])
    messages = [user, Message("assistant", [call, result, lonely, TextPart("a")]), user]
    recalled = chat.ChatRequest("m", messages, recalled=frozenset({1}))
    made = build_prompt(recalled, SyncScript("m"), {})
    told = TextPart('<tool_call>code({"n": 2})</tool_call>')
    assert made.prompt.messages[1].parts == [call, result, told, TextPart("a")]
    assert made.ignored == ()
    for model in (openai_model(Chat), Responses("m")):
        made = build_prompt(recalled, model, {})
        assert all(isinstance(part, TextPart) for part in made.prompt.messages[1].parts)


def test_a_history_of_claudes_goes_on_with_an_openai_model():
    """Through Anthropic's SDK, llm's own plugin and OpenAI's API: a search, and a summary."""
    summary = {"type": "compaction", "content": "We speak of football."}
    reply = [summary, *pair("web_search"), {"type": "text", "text": "The Reds."}]
    messages: list[Any] = [
        {"role": "user", "content": "who won?"},
        {"role": "assistant", "content": reply},
        {"role": "user", "content": "and last year?"},
    ]
    with playing(chat_stream({"content": "The Blues."})) as provider:
        model = AsyncChat("m", api_base=provider.url, supports_tools=True)
        model.needs_key = None
        with running(model) as proxy, anthropic.Anthropic(base_url=proxy.url, api_key="k") as sdk:
            answer = sdk.messages.with_raw_response.create(
                model="m", max_tokens=9, messages=messages
            )
    assert answer.parse().content[0].text == "The Blues."
    [body] = provider.bodies
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]
    said = body["messages"][1]
    assert "tool_calls" not in said
    for words in ("We speak of football.", "<tool_call>web_search", "Reds win", "The Reds."):
        assert words in said["content"]
    ignored = answer.headers["x-llmproxy-ignored"]
    assert TOLD in ignored and "messages[*].content[*] (compaction)" in ignored
