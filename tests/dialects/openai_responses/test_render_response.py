"""Responses, whole and streamed: the order of events, items, calls of every kind, failures."""

from __future__ import annotations

from operator import attrgetter
from typing import Any, get_args

import openai
import pytest
from hypothesis import given
from llm.parts import StreamEvent
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response, ResponseStreamEvent

from llmproxy.core import chat
from llmproxy.core.errors import ContextTooLong, InvalidRequest, Overloaded, RateLimited
from llmproxy.dialects import openai_responses
from tests.dialects.openai_responses.samples import (
    ANSWERED,
    USER,
    call_args,
    call_name,
    head,
    parse,
    reasoning,
    stream_of,
    text,
    values_of,
    whole_of,
)
from tests.examples import many_examples
from tests.strategies import event_streams

EVENTS: dict[str, Any] = {
    get_args(cls.model_fields["type"].annotation)[0]: cls
    for cls in get_args(get_args(ResponseStreamEvent)[0])
}


def checked(value: dict[str, Any]) -> Any:
    """Give an event of the stream as the SDK's class for it, which checks its fields."""
    return EVENTS[value["type"]].model_validate(value)


def types_of(stream: bytes) -> list[str]:
    return [value["type"].removeprefix("response.") for value in values_of(stream)]


@pytest.mark.parametrize("case", ANSWERED, ids=attrgetter("name"))
def test_captured_responses_satisfy_the_sdks_types(case):
    """C15: the SDK itself does not check what it reads; others generated from it do."""
    Response.model_validate(case.response)
    for value in values_of(case.stream):
        checked(value)


@given(events=event_streams())
@many_examples(40)
def test_b36_any_stream_is_one_that_the_sdk_reads_as_the_whole_response(events):
    """Each item begins before its deltas, ends once, and has one id and place throughout."""
    stream = stream_of(events)
    state = ResponseStreamState(input_tools=[], text_format=openai.omit)
    open_items: dict[int, str] = {}
    ended: dict[int, dict] = {}
    said: dict[tuple[int, str], str] = {}
    values = values_of(stream)
    for value in values:
        state.handle_event(checked(value))
        index = value.get("output_index")
        match value["type"].removeprefix("response."):
            case "output_item.added":
                assert index == len(open_items)
                open_items[index] = value["item"]["id"]
            case "output_item.done":
                assert open_items[index] == value["item"]["id"] and index not in ended
                ended[index] = value["item"]
            case _ if index is not None:
                assert open_items[index] == value["item_id"] and index not in ended
                if "delta" in value:
                    place = index, value["type"]
                    said[place] = said.get(place, "") + value["delta"]
    assert ended.keys() == open_items.keys()
    last = values[-1]["response"]
    assert last == whole_of(events)
    for (index, type_), text_ in said.items():
        match ended[index]:
            case {"type": "message", "content": [{"text": whole}]}:
                assert text_ == whole
            case {"type": "reasoning", "summary": [{"text": whole}]}:
                assert text_ == whole
            case {"type": "function_call", "arguments": whole}:
                assert text_ == whole, type_


def test_a_message_between_calls_and_the_last_one_have_their_phases():
    events = [
        text("I look.", 0),
        call_name("f", 1, "c1"),
        call_args("{}", 1, "c1"),
        text("Done.", 2),
        chat.Finish("tool_calls"),
    ]
    done = [v["item"] for v in values_of(stream_of(events)) if v["type"].endswith("item.done")]
    assert [item.get("phase") for item in done] == ["commentary", None, "final_answer"]
    assert whole_of(events)["output"] == done


def test_text_between_the_pieces_of_arguments_waits_for_them():
    events = [
        call_name("f", 0, "c"),
        call_args('{"a"', 0, "c"),
        text("So.", 1),
        call_args(": 1}", 0, "c"),
        chat.Finish("tool_calls"),
    ]
    values = values_of(stream_of(events))
    assert [v["item"]["type"] for v in values if "item" in v] == [
        *("function_call", "function_call", "message", "message")
    ]
    assert values[-1]["response"]["output"][0]["arguments"] == '{"a": 1}'
    assert values[-1]["response"] == whole_of(events)


TOOLS = [
    {"type": "custom", "name": "patch"},
    {"type": "namespace", "name": "mcp__a__", "description": "A.", "tools": [
        {"type": "function", "name": "read"}, {"type": "custom", "name": "write"}]},
    {"type": "tool_search", "execution": "client", "parameters": {"type": "object"}},
]  # fmt: skip


@pytest.mark.parametrize(
    "name, arguments, item",
    [
        ("patch", '{"input": "a\\nb"}', {"type": "custom_tool_call", "input": "a\nb"}),
        ("patch", "a\nb", {"type": "custom_tool_call", "input": "a\nb"}),
        ("patch", "", {"type": "custom_tool_call", "input": ""}),
        (
            "mcp__a__read",
            '{"x": 1}',
            {"type": "function_call", "name": "read", "namespace": "mcp__a__"},
        ),
        (
            "mcp__a__write",
            '{"input": "w"}',
            {"type": "custom_tool_call", "name": "write", "namespace": "mcp__a__", "input": "w"},
        ),
        (
            "tool_search",
            '{"query": "q"}',
            {"type": "tool_search_call", "execution": "client", "arguments": {"query": "q"}},
        ),
        ("other", " ", {"type": "function_call", "name": "other", "arguments": "{}"}),
    ],
)
def test_a_call_has_the_form_of_its_tool(name, arguments, item):
    request = parse(USER, tools=TOOLS)
    events = [call_name(name, 0, "c"), call_args(arguments, 0, "c"), chat.Finish("tool_calls")]
    stream = stream_of(events, request)
    [found] = values_of(stream)[-1]["response"]["output"]
    assert item.items() <= found.items()
    assert whole_of(events, request)["output"] == [found]


def test_encrypted_reasoning_is_shown_with_and_without_a_summary():
    """B37"""
    events = [
        reasoning("", 0, id="rs_1", encrypted_content="one"),
        reasoning("Hm.", 1),
        reasoning("", 1, id="rs_2", encrypted_content="two"),
        text("So.", 2),
        reasoning("", 1, id="rs_2", encrypted_content="newer"),
        StreamEvent("reasoning", "", redacted=True, part_index=3),
        chat.Finish(),
    ]
    values = values_of(stream_of(events))
    first, second, _ = values[-1]["response"]["output"]
    assert (first["summary"], first["encrypted_content"]) == ([], "one")
    assert [part["text"] for part in second["summary"]] == ["Hm."]
    # The whole response has the last text that OpenAI sent, as llm's log has it.
    assert second["encrypted_content"] == "newer"
    assert whole_of(events)["output"] == values[-1]["response"]["output"]


@pytest.mark.parametrize(
    "error, code",
    [
        (RateLimited("a"), "rate_limit_exceeded"),
        (Overloaded("a"), "server_is_overloaded"),
        (ContextTooLong("a"), "context_length_exceeded"),
        (InvalidRequest("a"), "invalid_request_error"),
    ],
)
def test_a_failure_ends_the_stream_with_what_came_before(error, code):
    renderer = openai_responses.StreamRenderer(head())
    frames = renderer.start()
    for event in [text("a", 0), call_name("f", 1, "c"), call_args("{", 1, "c")]:
        frames += renderer.feed(event)
    last = values_of(b"".join(frames + renderer.fail(error)))[-1]
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert last["response"]["error"]["code"] == code
    assert [item["type"] for item in last["response"]["output"]] == ["message"]
    checked(last | {"response": last["response"] | {"error": None}})


def test_a_failure_before_the_start_is_an_error_event():
    [frame] = openai_responses.StreamRenderer(head()).fail(RateLimited("slow down"))
    [value] = values_of(frame)
    assert (value["type"], value["code"]) == ("error", "rate_limit_exceeded")
    assert value["error"]["message"] == value["message"] == "slow down"


@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_a_cut_call_is_incomplete(reason):
    events = [call_name("f", 0, "c"), call_args('{"a', 0, "c"), chat.Finish(reason)]
    stream = stream_of(events)
    *_, done, last = values_of(stream)
    assert (last["type"], done["item"]["status"]) == ("response.incomplete", "incomplete")
    assert last["response"] == whole_of(events)
    assert types_of(stream)[-2] == "output_item.done"
