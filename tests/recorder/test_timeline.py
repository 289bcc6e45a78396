from __future__ import annotations

import base64
import json
from dataclasses import replace

import llm
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm.parts import Message, StreamEvent, TextPart

from llmproxy.core import chat
from llmproxy.recorder.timeline import Tick, decode, encode, ticks
from tests.examples import many_examples
from tests.strategies import event_streams


@st.composite
def timed(draw):
    """Events with rising times in whole tenths of a millisecond, without their Finish."""
    events = draw(event_streams())[:-1]
    gaps = draw(
        st.lists(st.integers(0, 10**7), min_size=len(events), max_size=len(events)),
    )
    return [(sum(gaps[: i + 1]) / 10, event) for i, event in enumerate(events)]


def with_metadata_last(events):
    """Move a part's metadata to its last event, as decode does, if it is in the messages."""
    groups = {}
    for _, event in events:
        groups.setdefault((event.message_index, event.part_index), []).append(event)
    metadata = {}
    for group in groups.values():
        merged = {k: v for event in group for k, v in (event.provider_metadata or {}).items()}
        metadata[id(group[-1])] = (merged or None) if chat.collect(group).messages else None
    return [(at, replace(e, provider_metadata=metadata.get(id(e)))) for at, e in events]


@given(timed())
@many_examples(15)
def test_a_response_is_replayed_event_by_event(events):
    reply = chat.collect(event for _, event in events).messages
    timeline = json.loads(json.dumps(encode(events)))
    played = decode(timeline, reply)
    assert played == with_metadata_last(events)
    assert chat.collect(event for _, event in played).messages == reply
    times_and_lengths = [(tick.at_ms, tick.length) for tick in ticks(timeline)]
    assert times_and_lengths == [(at, len(event.chunk)) for at, event in events]


def test_parts_with_the_same_number_in_two_messages_are_one():
    """As for llm and the common format: what is stored must be readable."""
    events = [
        (float(index), StreamEvent("text", word, part_index=0, message_index=index))
        for index, word in enumerate(["one", "two"])
    ]
    reply = chat.collect(event for _, event in events).messages
    played = decode(encode(events), reply)
    assert [(at_ms, event.chunk) for at_ms, event in played] == [(0.0, "one"), (1.0, "two")]


def test_a_timeline_in_full():
    """The format in every logs.db: what this test contains must stay readable forever."""
    events = [
        (250.0, StreamEvent("reasoning", "hm", part_index=0)),
        (270.04, StreamEvent("text", "Looking.", part_index=1)),
        (290.0, StreamEvent("tool_call_name", "look", part_index=2, tool_call_id="call_1")),
        (300.0, StreamEvent("tool_call_args", '{"at": ', part_index=2, tool_call_id="call_1")),
        (300.0, StreamEvent("tool_call_args", "1.0}", part_index=2, tool_call_id="call_1")),
        (310.0, StreamEvent("reasoning", "", part_index=3, redacted=True)),
    ]
    timeline = encode(events)
    assert timeline == {
        "parts": [
            {},
            {"index": 1},
            {"index": 2, "call": "call_1", "name": "look", "arguments": '{"at": 1.0}'},
            {"index": 3, "redacted": True},
        ],
        "ticks": "xBMBAsgBCAjIARIEZBMHABMEZB0A",
    }
    assert ticks(timeline) == [
        Tick(250.0, "reasoning", 0, 2),
        Tick(270.0, "text", 1, 8),
        Tick(290.0, "tool_call_name", 2, 4),
        Tick(300.0, "tool_call_args", 2, 7),
        Tick(300.0, "tool_call_args", 2, 4),
        Tick(310.0, "redacted", 3, 0),
    ]


def test_an_event_costs_a_few_bytes():
    events = [(i * 21.3, StreamEvent("text", "word ", part_index=0)) for i in range(1000)]
    assert len(json.dumps(encode(events))) < 6000


def test_a_clock_that_goes_back_stands_still():
    events = [(5.0, StreamEvent("text", "a", part_index=0)), (4.0, StreamEvent("text", "b"))]
    events[1][1].part_index = 0
    assert [tick.at_ms for tick in ticks(encode(events))] == [5.0, 5.0]


@pytest.mark.parametrize(
    "reply",
    [
        [],
        [llm.assistant("shorter")],
        [llm.assistant("as long as it was", "and more")],
        [llm.assistant("as long as it was"), llm.assistant("and more")],
        [Message("assistant", [])],
    ],
    ids=["none", "shorter", "more parts", "more messages", "empty"],
)
def test_another_reply_is_refused(reply):
    timeline = encode([(1.0, StreamEvent("text", "as long as it was", part_index=0))])
    with pytest.raises(ValueError, match="the timeline belongs to another reply"):
        decode(timeline, reply)


def test_a_response_without_times_has_no_events():
    assert decode(encode([]), [Message("assistant", [TextPart("imported")])]) == []


@pytest.mark.parametrize(
    "numbers",
    [[0, 6, 1], [0, 7, 1], [0, 8, 1], [0, 0], [0x80] * 9 + [1]],
    ids=["no such kind", "nor this", "no such part", "cut off", "beyond any clock"],
)
def test_an_invalid_timeline_is_refused(numbers):
    """It may come from an untrusted file."""
    ticks = base64.b64encode(bytes(numbers)).decode()
    with pytest.raises(ValueError):
        decode({"parts": [{}], "ticks": ticks}, [llm.assistant("x")])
