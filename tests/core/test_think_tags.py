"""Thinking in tags, whole and at any split."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llm.parts import ReasoningPart, StreamEvent, TextPart

from llmproxy.core import chat
from llmproxy.core.think_tags import ThinkTagSplitter, split_thinking
from tests.examples import many_examples
from tests.strategies import event_streams, texts


def split(*events: chat.Event) -> list[chat.Event]:
    splitter = ThinkTagSplitter()
    return [out for event in events for out in splitter.feed(event)] + splitter.end()


def text(chunk: str, index: int = 0) -> StreamEvent:
    return StreamEvent("text", chunk, part_index=index)


def reasoning(chunk: str, index: int = 0) -> StreamEvent:
    return StreamEvent("reasoning", chunk, part_index=index)


WHOLE = {
    "": ("", ""),
    "plain": ("", "plain"),
    "<think>hm</think>yes": ("hm", "yes"),
    "<thinking>hm</thinking>yes": ("hm", "yes"),
    "<think>\nhm\n</think>\n\nyes\n": ("\nhm\n", "yes\n"),
    "before <think>hm</think> after": ("hm", "before after"),
    "<think></think>\n\nyes": ("", "yes"),
    "<think>never closed": ("never closed", ""),
    "<think>hm</thinking></think>yes": ("hm</thinking>", "yes"),
    "<thinking>a <think> b</think></thinking>c": ("a <think> b</think>", "c"),
    "<think>a</think>b<think>c</think>d": ("ac", "bd"),
    "a < b, <b>bold</b>, <thin>, <": ("", "a < b, <b>bold</b>, <thin>, <"),
    "not opened</think>yes": ("", "not opened</think>yes"),
    "<think>a </thin b": ("a </thin b", ""),
    "<<think>hm<</think>>": ("hm<", "<>"),
    "<thinkin": ("", "<thinkin"),
    "<THINK>loud</THINK>": ("", "<THINK>loud</THINK>"),
}


@pytest.mark.parametrize("whole, parts", WHOLE.items())
def test_a_whole_text_is_split_into_thinking_and_response(whole, parts):
    assert split_thinking(whole) == parts


tagged = st.lists(
    texts()
    | st.sampled_from(["<think>", "</think>", "<thinking>", "</thinking>", "<", "\n", "thi"]),
    max_size=8,
).map("".join)


@given(tagged | st.sampled_from(list(WHOLE)), st.data())
@settings(max_examples=200)
def test_a_text_in_chunks_splits_like_the_whole(whole, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert both(split(*map(text, pieces))) == split_thinking(whole)
    assert both(split(*map(text, whole))) == split_thinking(whole)
    assert chat.collect(split(*map(text, pieces))) == chat.collect(split(text(whole)))


def both(events: list[chat.Event]) -> tuple[str, str]:
    reasoning, said = (
        "".join(event.chunk for event in events if event.type == type_)
        for type_ in ("reasoning", "text")
    )
    return reasoning, said


def test_each_run_is_a_part_of_its_own():
    events = split(text("a<think>b"), text("c</think>"), text("  d"), chat.Finish())
    assert events == [text("a"), reasoning("b", 1), reasoning("c", 1), text("d", 2), chat.Finish()]
    assert chat.collect(events).parts == [TextPart("a"), ReasoningPart("bc"), TextPart("d")]


def test_no_more_is_held_back_than_may_be_a_tag():
    splitter = ThinkTagSplitter()
    assert splitter.feed(text("a <thi")) == [text("a ")]
    assert splitter.feed(text("s")) == [text("<this")]
    assert splitter.feed(text(" b <")) == [text(" b ")]
    assert splitter.feed(text("think>c</")) == [reasoning("c", 1)]
    assert splitter.feed(text("div>")) == [reasoning("</div>", 1)]
    assert splitter.feed(text("</thinkin")) == [reasoning("</thinkin", 1)]
    assert splitter.feed(text("</think")) == []
    assert splitter.end() == [reasoning("</think", 1)]
    assert splitter.end() == []


def test_what_follows_the_text_comes_after_what_was_held_back():
    call = StreamEvent("tool_call_name", "f", part_index=1, tool_call_id="c")
    assert split(text("<think>hm</think>a <"), call, chat.Finish("tool_calls")) == [
        reasoning("hm"),
        text("a ", 1),
        text("<", 1),
        StreamEvent("tool_call_name", "f", part_index=2, tool_call_id="c"),
        chat.Finish("tool_calls"),
    ]


def test_each_text_part_is_split_by_itself():
    call = StreamEvent("tool_call_name", "f", part_index=1, tool_call_id="c")
    assert split(text("<think>open"), call, text("a</think>", 2)) == [
        reasoning("open"),
        StreamEvent("tool_call_name", "f", part_index=1, tool_call_id="c"),
        text("a</think>", 2),
    ]


def test_data_of_the_provider_stays_with_its_part():
    signed = StreamEvent("text", "<think>a", part_index=0, provider_metadata={"x": {"s": 1}})
    alone = StreamEvent("text", "", part_index=0, provider_metadata={"x": {"t": 2}})
    assert split(signed, alone) == [
        StreamEvent("reasoning", "a", part_index=0, provider_metadata={"x": {"s": 1}}),
        StreamEvent("reasoning", "", part_index=0, provider_metadata={"x": {"t": 2}}),
    ]


@given(event_streams())
@many_examples(60)
def test_a_stream_without_tags_is_unchanged(events):
    if any("<think" in getattr(event, "chunk", "") for event in events):
        return
    given_events = [repr(event) for event in events]
    assert chat.collect(split(*events)) == chat.collect(events)
    assert [repr(event) for event in events] == given_events


@given(event_streams(), st.lists(tagged, max_size=3))
@many_examples(60)
def test_events_keep_the_streams_invariant(events, more):
    start = 1 + max((event.part_index for event in events[:-1]), default=-1)
    added = [text(chunk, start + i % 2) for i, chunk in enumerate(more)]
    out = split(*events[:-1], *added, events[-1])
    assert out[-1] == events[-1]
    families: dict[int, str] = {}
    for event in out[:-1]:
        family = event.type.removesuffix("_name").removesuffix("_args")
        assert families.setdefault(event.part_index, family) == family
    assert sorted(families) == list(range(len(families)))
