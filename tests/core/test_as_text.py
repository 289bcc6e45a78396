"""Content without a form of its own, put into words."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from llm.parts import ToolCallPart, ToolResultPart

from llmproxy.core.as_text import (
    MAX_DATA_CHARACTERS,
    block_text,
    call_text,
    holds_text,
    result_text,
)
from tests.strategies import json_values

TAB = {"id": 1, "title": "Cup", "url": "https://example.com/", "active": True}


@pytest.mark.parametrize(
    "block, text",
    [
        ({"type": "compaction", "content": "We chose blue."}, "We chose blue."),
        (
            {
                "type": "compaction",
                "content": "We chose blue.",
                "encrypted_content": "eA==",
                "signature": "c2ln",
                "cache_control": {"type": "ephemeral"},
            },
            "We chose blue.",
        ),
        ({"type": "compaction", "content": None}, ""),
        ({"type": "marker"}, ""),
        ({"type": "note", "text": "blue"}, "blue"),
        ({"type": "notes", "content": [{"type": "text", "text": "a"}, "b"]}, "a\nb"),
        ({"type": "advisor_result", "text": "wait", "stop_reason": None}, "wait"),
        ({"type": "browser_state", "tabs": [TAB]}, {"type": "browser_state", "tabs": [TAB]}),
        ({"type": "note", "title": "T", "text": "x"}, {"type": "note", "title": "T", "text": "x"}),
        (
            [{"type": "found", "url": "u", "encrypted_content": "eA=="}],
            [{"type": "found", "url": "u"}],
        ),
        ({"type": "shot", "count": 0}, {"type": "shot", "count": 0}),
        (False, False),
    ],
)
def test_a_block_is_told_as_its_text_or_else_as_json(block, text):
    told = block_text(block)
    assert (told if isinstance(text, str) else json.loads(told)) == text


def test_data_is_not_read_out():
    """An image as base64 would cost a hundred thousand tokens, and say nothing."""
    block = {"type": "shot", "png": "A" * (MAX_DATA_CHARACTERS + 1), "alt": "a " * 4000}
    assert json.loads(block_text(block)) == block | {"png": "(4097 characters of data)"}
    url = "data:image/png;base64," + "iVBOR/+=" * 600
    assert block_text({"type": "shot", "text": url}) == f"({len(url)} characters of data)"
    lines = ("A" * 76 + "\r\n") * 60
    assert block_text({"type": "shot", "text": lines}) == f"({len(lines)} characters of data)"


@pytest.mark.parametrize("words", ["前に話した内容です。", "对话的总结", "สรุปการสนทนา", "a,b;"])
def test_words_without_white_space_are_no_data(words):
    summary = words * MAX_DATA_CHARACTERS
    assert block_text({"type": "compaction", "content": summary}) == summary


@pytest.mark.parametrize(
    "block, holds",
    [
        ({"type": "hologram", "data": 1}, False),
        ({"type": "marker", "signature": "eA=="}, False),
        ({"type": "container_upload", "file_id": "file_1"}, True),
        ({"type": "deep", "a": [{"type": "b", "c": {"d": "words"}}]}, True),
    ],
)
def test_a_block_holds_text_if_any_string_says_something(block, holds):
    assert holds_text(block) is holds


@given(json_values())
def test_any_value_is_told(value):
    assert isinstance(block_text(value), str)
    if holds_text(value):
        assert block_text(value)


def test_a_call_and_its_result_are_marked_text():
    call = ToolCallPart("web_search", {"query": "Pokal ü"}, "srvtoolu_1", server_executed=True)
    assert call_text(call) == '<tool_call>web_search({"query": "Pokal ü"})</tool_call>'
    assert result_text(ToolResultPart("f", "4", "c")) == "<tool_result>f: 4</tool_result>"
    assert result_text(ToolResultPart("f", "4", "c", exception="x")) == (
        "<tool_result>f: Error: 4</tool_result>"
    )


@pytest.mark.parametrize(
    "output, told",
    [
        ('[{"type": "text", "text": "saved"}]', "saved"),
        (
            '{"type": "code_execution_result", "stdout": "4"}',
            '{"type": "code_execution_result", "stdout": "4"}',
        ),
        (
            '[{"type": "web_search_result", "url": "u", "encrypted_content": "eA=="}]',
            '[{"type": "web_search_result", "url": "u"}]',
        ),
        ("no JSON", "no JSON"),
        ("", ""),
    ],
)
def test_the_result_of_a_providers_tool_is_what_can_be_read_of_it(output, told):
    result = ToolResultPart("mcp", output, "mcptoolu_1", server_executed=True)
    assert result_text(result, "note") == f"<tool_result>note: {told}</tool_result>"
