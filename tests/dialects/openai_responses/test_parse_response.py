"""Other servers' responses, whole and streamed, in the forms that they take."""

from __future__ import annotations

from typing import Any

import pytest
from llm.parts import ReasoningPart, TextPart, ToolCallPart

from llmproxy.core import chat
from llmproxy.core.errors import ContextTooLong, ProxyError, RateLimited, UpstreamError
from llmproxy.core.usage import Usage
from llmproxy.dialects import openai_responses

MESSAGE = {
    "type": "message",
    "id": "msg_1",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "output_text", "text": "Hello", "annotations": []}],
}
CALL = {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": '{"a": 1}'}
USAGE = {
    "input_tokens": 5,
    "input_tokens_details": {"cached_tokens": 3},
    "output_tokens": 2,
    "output_tokens_details": {"reasoning_tokens": 1},
    "total_tokens": 7,
}


def read(*values: dict[str, Any]) -> chat.ChatResponse:
    parser = openai_responses.StreamParser()
    events = [event for value in values for event in parser.feed_value(value)]
    return chat.collect(events + parser.end())


def event(type_: str, **fields: Any) -> dict[str, Any]:
    return {"type": f"response.{type_}", **fields}


def completed(*output: dict[str, Any], **fields: Any) -> dict[str, Any]:
    response = {"status": "completed", "output": list(output), "model": "m", **fields}
    return event("completed", response=response)


@pytest.mark.parametrize(
    "values",
    [
        [completed(MESSAGE)],
        [event("output_item.done", output_index=0, item=MESSAGE), completed()],
        [
            event("created", response={"model": "m"}),
            event("output_item.added", output_index=0, item={**MESSAGE, "content": []}),
            event("output_text.delta", output_index=0, content_index=0, delta="Hel"),
            event("output_text.delta", output_index=0, content_index=0, delta="lo"),
            event("output_text.done", output_index=0, content_index=0, text="Hello"),
            event("output_item.done", output_index=0, item=MESSAGE),
            completed(MESSAGE),
        ],
        # Without places: by the item's id.
        [
            event("output_text.delta", item_id="msg_1", delta="Hello"),
            event("output_item.done", item=MESSAGE),
            completed(),
        ],
    ],
)
def test_a_message_is_read_from_whatever_says_it(values):
    response = read(*values)
    assert response.parts == [TextPart("Hello")]
    assert (response.finish.reason, response.finish.ignored) == ("stop", ())


def test_a_call_is_read_from_its_beginning_deltas_or_end():
    begun = event("output_item.added", output_index=0, item={**CALL, "arguments": ""})
    piece = event("function_call_arguments.delta", output_index=0, delta='{"a": 1}')
    done = event("output_item.done", output_index=0, item=CALL)
    for values in ([begun, piece, done], [done], [begun, done], []):
        response = read(*values, completed(CALL, usage=USAGE))
        assert response.parts == [ToolCallPart("f", {"a": 1}, "c")]
        assert response.finish.reason == "tool_calls"
        assert response.finish.usage == Usage(5, 2, 3, None, 1)


def test_reasoning_keeps_its_encrypted_text_and_summary():
    """B37"""
    summary = [{"type": "summary_text", "text": "Hm"}, {"type": "summary_text", "text": "."}]
    item = {"type": "reasoning", "id": "rs_1", "summary": summary, "encrypted_content": "enc"}
    streamed = read(
        event("reasoning_summary_text.delta", output_index=0, delta="Hm"),
        event("reasoning_summary_text.delta", output_index=0, delta="."),
        event("output_item.done", output_index=0, item=item),
        completed(),
    )
    metadata = {"openai": {"id": "rs_1", "encrypted_content": "enc", "summary": summary}}
    assert streamed.parts == [ReasoningPart("Hm.", provider_metadata=metadata)]
    assert openai_responses.parse_response({"output": [item], "status": "completed"}).parts == (
        streamed.parts
    )
    opaque = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "enc"}
    [part] = read(completed(opaque)).parts
    assert (part.text, part.redacted) == ("", True)


@pytest.mark.parametrize(
    "fields, reason",
    [
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, "length"),
        (
            {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}},
            "content_filter",
        ),
        ({"status": "incomplete"}, "length"),
        ({"status": "completed"}, "stop"),
        ({}, "stop"),
    ],
)
def test_the_reason_is_in_the_status_or_its_details(fields, reason):
    assert openai_responses.parse_response({"output": [MESSAGE], **fields}).finish.reason == reason


@pytest.mark.parametrize(
    "value, error",
    [
        (
            event("failed", response={"error": {"code": "rate_limit_exceeded", "message": "a"}}),
            RateLimited,
        ),
        (
            {"type": "error", "code": "context_length_exceeded", "message": "a", "param": None},
            ContextTooLong,
        ),
        ({"type": "error", "error": {"code": "rate_limit_exceeded", "message": "a"}}, RateLimited),
        ({"error": {"message": "a"}}, UpstreamError),
        (event("failed", response={}), UpstreamError),
        ({"no": "type"}, UpstreamError),
    ],
)
def test_a_failure_is_raised(value, error):
    with pytest.raises(ProxyError) as caught:
        read(event("output_text.delta", output_index=0, delta="Hel"), value)
    assert type(caught.value) is error


def test_a_stream_that_is_cut_is_an_error():
    with pytest.raises(UpstreamError, match="ended before its answer did"):
        read(event("output_text.delta", output_index=0, delta="Hel"))


def test_what_has_no_common_form_is_listed():
    noted = {**MESSAGE["content"][0], "annotations": [{"type": "url_citation"}]}
    response = read(
        event("new_event"),
        event("web_search_call.searching", output_index=0),
        completed({**MESSAGE, "content": [noted]}, {"type": "new_item", "id": "x"}),
    )
    assert response.finish.ignored == (
        "(response.new_event)",
        "output[*].content[*].annotations",
        "output[*] (new_item)",
    )
