"""Tests of correcting the events of plugins, and of cutting at stop sequences."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm import ToolCall
from llm.parts import StreamEvent

from llmproxy.backends.engine.events import EventReader, StopCutter
from llmproxy.core import chat
from llmproxy.core.errors import UpstreamError


def event(type_: str, chunk: str, part: int = 0, **fields: object) -> StreamEvent:
    return StreamEvent(type_, chunk, part_index=part, **fields)


def read(*events: StreamEvent, announced: tuple[ToolCall, ...] = ()) -> list[StreamEvent]:
    reader = EventReader(iter(["made_up_1", "made_up_2", "made_up_3"]).__next__)
    return [out for each in events for out in reader.feed(each)] + reader.end(announced)


def calls(events: list[StreamEvent]) -> list[tuple[str, str, str]]:
    response = chat.collect(events)
    return [
        (part.tool_call_id, part.name, response.raw_arguments[part.tool_call_id])
        for part in response.parts
        if part.to_dict()["type"] == "tool_call"
    ]


def test_events_that_are_in_order_pass_uncopied():
    first, second = event("text", "a"), event("reasoning", "b", 1)
    assert [id(e) for e in read(first, second)] == [id(first), id(second)]


def test_empty_text_is_dropped():
    assert read(event("text", "")) == []


def test_metadata_without_text_is_kept():
    signature = event("reasoning", "", provider_metadata={"anthropic": {"signature": "s"}})
    assert read(signature) == [signature]


def test_calls_without_ids_get_ids_and_stay_separate():
    out = read(
        event("tool_call_name", "f", 0),
        event("tool_call_args", '{"a":1}', 0),
        event("tool_call_name", "f", 1),
        event("tool_call_args", '{"a":2}', 1),
    )
    assert calls(out) == [("made_up_1", "f", '{"a":1}'), ("made_up_2", "f", '{"a":2}')]
    assert {e.tool_call_id for e in out if e.part_index == 0} == {"made_up_1"}


def test_two_calls_under_one_id_get_an_id_each():
    out = read(
        event("tool_call_name", "f", 0, tool_call_id="x"),
        event("tool_call_args", '{"a":1}', 0, tool_call_id="x"),
        event("tool_call_name", "f", 1, tool_call_id="x"),
        event("tool_call_args", '{"a":2}', 1, tool_call_id="x"),
        announced=(ToolCall("f", {"a": 1}, "x"), ToolCall("f", {"a": 2}, "x")),
    )
    assert calls(out) == [("x", "f", '{"a":1}'), ("made_up_1", "f", '{"a":2}')]


def test_interleaved_arguments_go_to_their_own_call():
    """B1"""
    out = read(
        event("tool_call_name", "f", 0, tool_call_id="x"),
        event("tool_call_name", "g", 1, tool_call_id="y"),
        event("tool_call_args", '{"b"', 1, tool_call_id="y"),
        event("tool_call_args", '{"a"', 0, tool_call_id="x"),
        event("tool_call_args", ":2}", 1, tool_call_id="y"),
        event("tool_call_args", ":1}", 0, tool_call_id="x"),
    )
    assert calls(out) == [("x", "f", '{"a":1}'), ("y", "g", '{"b":2}')]


def test_call_announced_without_events_becomes_events():
    announced = ToolCall("f", {"a": 1}, "tc_1")
    assert calls(read(event("text", "hm"), announced=(announced,))) == [("tc_1", "f", '{"a":1}')]


def test_call_announced_beside_its_events_counts_once():
    out = read(
        event("tool_call_name", "f", 0, tool_call_id="x"),
        event("tool_call_args", '{"a":1}', 0, tool_call_id="x"),
        announced=(ToolCall("f", {"a": 1}, "x"),),
    )
    assert calls(out) == [("x", "f", '{"a":1}')]


def test_call_announced_beside_events_without_id_counts_once():
    """llm makes up an id for the announced call, so name and arguments are compared."""
    out = read(
        event("tool_call_name", "f", 0),
        event("tool_call_args", '{"a": 1}', 0),
        event("tool_call_name", "f", 1),
        event("tool_call_args", '{"a": 2}', 1),
        announced=(ToolCall("f", {"a": 2}, "tc_2"), ToolCall("f", {"a": 1}, "tc_1")),
    )
    assert calls(out) == [("made_up_1", "f", '{"a": 1}'), ("made_up_2", "f", '{"a": 2}')]


def test_arguments_that_were_only_announced_are_added():
    out = read(
        event("tool_call_name", "f", 0, tool_call_id="x"),
        announced=(ToolCall("f", {"a": 1}, "x"),),
    )
    assert calls(out) == [("x", "f", '{"a":1}')]


def test_arguments_before_any_name_open_their_call():
    assert calls(read(event("tool_call_args", "{}", tool_name="f"))) == [("made_up_1", "f", "{}")]


def test_two_families_under_one_number_become_two_parts():
    out = read(
        event("text", "a", 0),
        event("tool_call_name", "f", 0, tool_call_id="x"),
        event("tool_call_args", "{}", 0, tool_call_id="x"),
        event("text", "b", 0),
    )
    assert [(e.type, e.part_index) for e in out] == [
        ("text", 0),
        ("tool_call_name", 1),
        ("tool_call_args", 1),
        ("text", 0),
    ]


def test_space_after_a_call_is_dropped_unless_text_follows():
    """d6.25"""
    call = event("tool_call_name", "f", 0, tool_call_id="x")
    assert [e.type for e in read(call, event("text", " ", 1))] == ["tool_call_name"]
    out = read(call, event("text", " ", 1), event("text", "so", 1))
    assert [e.chunk for e in out] == ["f", " ", "so"]


@given(st.text(st.characters(), max_size=20), st.data())
def test_text_split_inside_surrogate_pairs_is_whole_again(text, data):
    """B18"""
    halves = text.encode("utf-16-le", "surrogatepass")
    units = [
        halves[i : i + 2].decode("utf-16-le", "surrogatepass") for i in range(0, len(halves), 2)
    ]
    cut = data.draw(st.integers(0, len(units)))
    out = read(event("text", "".join(units[:cut])), event("text", "".join(units[cut:])))
    expected = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert "".join(e.chunk for e in out) == expected


def test_lone_halves_become_replacement_characters():
    assert [e.chunk for e in read(event("text", "\udc00a"), event("text", "b\ud800"))] == [
        "\ufffda",
        "b",
        "\ufffd",
    ]


@pytest.mark.parametrize("chunk", [5, b"x", None, ["a"]])
def test_chunk_that_is_not_text_is_an_upstream_error(chunk):
    with pytest.raises(UpstreamError, match=f"yielded {type(chunk).__name__}, not text"):
        read(event("text", chunk))


def test_unknown_type_is_an_upstream_error():
    with pytest.raises(UpstreamError, match="unknown type 'image'"):
        read(event("image", "x"))


# ---- stop sequences


def cut(sequences: list[str], *chunks: str) -> tuple[str, str | None]:
    cutter = StopCutter(sequences)
    events = [out for chunk in chunks for out in cutter.feed(event("text", chunk))]
    events += cutter.end()
    return "".join(e.chunk for e in events), cutter.matched


@given(
    st.text("ab", max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3),
    st.lists(st.integers(0, 12), max_size=4),
)
def test_cut_is_at_the_first_match_however_the_text_is_split(text, sequences, cuts):
    """B30"""
    places = sorted({0, len(text), *(c for c in cuts if c <= len(text))})
    chunks = [text[a:b] for a, b in zip(places, places[1:], strict=False)]
    shown, matched = cut(sequences, *chunks)
    found = [text.find(s) for s in sequences if s in text]
    if matched is None:
        assert (shown, found) == (text, [])
    else:
        assert text.startswith(shown + matched)
        assert len(shown) <= min(found) + 2  # a longer one may begin earlier and end later


def test_text_before_another_part_is_not_held_back():
    cutter = StopCutter(["STOP"])
    assert cutter.feed(event("text", "ST")) == []
    out = cutter.feed(event("reasoning", "x", 1))
    assert [(e.type, e.chunk) for e in out] == [("text", "ST"), ("reasoning", "x")]


def test_half_a_character_stays_in_its_own_part():
    out = read(event("text", "\ud83d", 0), event("tool_call_name", "f", 1, tool_call_id="x"))
    assert [(e.type, e.chunk, e.part_index) for e in out] == [
        ("text", "\ufffd", 0),
        ("tool_call_name", "f", 1),
    ]


@pytest.mark.parametrize(
    "events",
    [
        [("name", ""), ("args", "{"), ("name", "f"), ("args", "}")],
        [("args", "{}"), ("name", "f")],
        [("name", ""), ("name", "f"), ("args", "{}")],
    ],
)
def test_a_name_that_comes_late_comes_before_its_arguments(events):
    out = read(*(event(f"tool_call_{kind}", chunk, tool_call_id="c") for kind, chunk in events))
    assert [each.type for each in out][0] == "tool_call_name"
    assert calls(out) == [("c", "f", "{}")]


def test_a_name_that_is_only_announced_is_the_calls():
    first, second = ("name", ""), ("args", '{"a":1}')
    events = [event(f"tool_call_{kind}", chunk) for kind, chunk in (first, second)]
    assert calls(read(*events, announced=(ToolCall("f", {"a": 1}, "x"),))) == [
        ("made_up_1", "f", '{"a":1}')
    ]


@pytest.mark.parametrize("announced", [(), (ToolCall(None, {}, "c"),), (ToolCall("f", {}, "d"),)])
def test_a_call_without_a_name_is_an_error(announced):
    with pytest.raises(UpstreamError, match="^the model called a tool without naming it$"):
        read(event("tool_call_args", "{}", tool_call_id="c"), announced=announced)
