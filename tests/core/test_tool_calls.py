"""Tool calls that wait for their results."""

from __future__ import annotations

import pytest
from llm.parts import Message, TextPart, ToolCallPart, ToolResultPart

from llmproxy.core.errors import InvalidRequest
from llmproxy.core.tool_calls import PendingToolCalls, append_result


def test_a_result_answers_its_call_once():
    pending = PendingToolCalls()
    pending.add("a", "f")
    pending.add("b", "g")
    assert (pending.oldest(), pending.oldest("g"), pending.oldest("h")) == ("a", "b", None)
    assert pending.take("b", "here") == "g"
    with pytest.raises(
        InvalidRequest, match="^messages.3.: no tool call 'b' waits for a result here$"
    ) as raised:
        pending.take("b", "messages[3]")
    assert raised.value.param == "messages[3]"
    assert pending.take("a", "here") == "f"
    assert not pending


def test_calls_without_a_result_are_refused_by_their_ids():
    pending = PendingToolCalls()
    pending.check_empty("messages[0]")
    pending.add("a", "f")
    pending.add("b", "g")
    with pytest.raises(
        InvalidRequest, match="^messages.1.: expected the results of .* calls a, b here$"
    ) as raised:
        pending.check_empty("messages[1]")
    assert raised.value.param == "messages[1]"


def test_results_in_a_row_share_one_message():
    results = [ToolResultPart(name="f", output="x", tool_call_id=id_) for id_ in "ab"]
    asked, answer = Message("user", [TextPart("hi")]), Message("assistant", [ToolCallPart("f", {})])
    messages = [asked, answer]
    for result in results:
        append_result(messages, result)
    assert messages == [asked, answer, Message("tool", list(results))]
