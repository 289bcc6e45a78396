"""Deferred tools (tool search) reach models of other providers as plain tools, all of them."""

from __future__ import annotations

import anthropic
import pytest

from llmproxy import convert
from tests.models import AsyncScript, SyncScript, usage
from tests.proxies import running
from tests.wire_cases import wire_cases

CASES = {case.name: case.request for case in wire_cases("anthropic_messages")}
BY_CLIENT, BY_PROVIDER = "claude_code_tool_search", "tool_search_by_the_provider"
TOOLS = {BY_CLIENT: ["ToolSearch", "TaskList", "WebFetch"], BY_PROVIDER: ["get_weather"]}


@pytest.mark.parametrize("kind", [AsyncScript, SyncScript])
@pytest.mark.parametrize("name", TOOLS)
def test_a_model_of_another_provider_is_given_every_tool_with_its_schema(llm_user_path, name, kind):
    """C3, C4: the list says what it was that the model was not told."""
    body = {**CASES[name], "model": "m", "stream": False, "max_tokens": 100}
    with running(m := kind("m", "Fine.", usage(1, 1))) as proxy:
        sdk = anthropic.Anthropic(base_url=proxy.url, api_key="any", max_retries=0)
        raw = sdk.messages.with_raw_response.create(**body, extra_body={})
        exchange = proxy.wait_for_report()
    given = {tool.name: tool.input_schema for tool in m.prompts[0].tools}
    asked = {t["name"]: t["input_schema"] for t in body["tools"] if "input_schema" in t}
    assert given == asked
    assert list(given) == TOOLS[name]
    assert "tools[*].defer_loading" in exchange.ignored
    assert "tools[*].defer_loading" in raw.headers["x-llmproxy-ignored"]
    if name == BY_CLIENT:
        assert "messages[*].content[*].content[*] (tool_reference)" in exchange.ignored
        [result] = [p for m_ in m.prompts[0].messages if m_.role == "tool" for p in m_.parts]
        assert result.output == "tool found: TaskList\ntool found: WebFetch"
    else:
        assert "tools[0]" in exchange.ignored
        told = str(m.prompts[0].messages[1])
        assert "tool_search_tool_regex" in told and "get_weather" in told


@pytest.mark.parametrize("target", ["openai_chat", "ollama"])
@pytest.mark.parametrize("name", TOOLS)
def test_a_converted_request_has_plain_tools(name, target):
    there = convert.convert_request(CASES[name], source="anthropic_messages", target=target)
    assert [tool["function"]["name"] for tool in there.body["tools"]] == TOOLS[name]
    assert "defer_loading" not in str(there.body)
    assert "tools[*].defer_loading" in there.ignored
