"""Tests that an async model's events, and its response, are what llm's own code makes of them."""

import copy
from collections.abc import Coroutine
from typing import Any

import llm
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm.parts import StreamEvent

from llmproxy.backends.engine import model_events
from llmproxy.backends.engine.model_events import ModelEvents, is_known_llm

from ...models import AsyncScript

OWN = "id", "model", "prompt", "_start", "_start_utcnow", "_end"  # of each response

texts = st.builds(
    StreamEvent,
    st.sampled_from(["text", "reasoning"]),
    st.text(max_size=3),
    part_index=st.sampled_from([None, None, None, 0, 1, 5]),
    message_index=st.sampled_from([0, 0, 0, 1]),
    redacted=st.booleans(),
)
others = st.builds(
    StreamEvent,
    st.sampled_from(["tool_call_name", "tool_call_args", "tool_result", "unknown"]),
    st.text(max_size=3),
    part_index=st.sampled_from([None, None, 0, 7]),
    tool_call_id=st.sampled_from([None, "", "a", "b"]),
    message_index=st.sampled_from([0, 0, 1]),
)
chunks = st.lists(st.one_of(st.text(max_size=3), st.text(max_size=3), texts, others), max_size=12)


def response_of(yielded: list[object]) -> llm.AsyncResponse:
    model = AsyncScript("script", *copy.deepcopy(yielded))
    return llm.AsyncResponse(llm.Prompt("hi", model), model, True)


async def read_by_llm(response: llm.AsyncResponse) -> list[StreamEvent]:
    return [event async for event in response.astream_events()]


async def read_by_us(response: llm.AsyncResponse) -> list[StreamEvent]:
    events, found = ModelEvents(response), []
    while True:
        try:
            chunk = await events.step()
        except StopAsyncIteration:
            await events.finish()
            return found
        found.append(events.event(chunk))


def result_of(reading: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that waits for nothing; an event loop for each example takes longer."""
    try:
        reading.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waited")


def state(response: llm.AsyncResponse) -> dict[str, object]:
    return {name: value for name, value in vars(response).items() if name not in OWN}


def test_the_installed_llm_is_known():
    # If not, its events are read by its own code, at 1.8 µs instead of 0.5. Read what it does
    # now, follow it in model_events, and take the new number.
    assert model_events.code_number() == model_events._KNOWN_CODE


@given(chunks)
def test_events_and_response_are_as_llm_makes_them(yielded):
    theirs, ours = response_of(yielded), response_of(yielded)
    assert result_of(read_by_us(ours)) == result_of(read_by_llm(theirs))
    assert state(ours) == state(theirs)
    assert None not in (ours._start, ours._end, ours._start_utcnow)


async def test_callbacks_run_when_the_response_is_done():
    response, done = response_of(["a"]), []
    await response.on_done(done.append)
    assert [event.chunk for event in await read_by_us(response)] == ["a"]
    assert done == [response]


async def test_a_model_that_yields_none_is_refused_as_by_llm():
    events = ModelEvents(response_of([None]))
    with pytest.raises(AssertionError):
        events.event(await events.step())
    await events.generator.aclose()


async def test_an_llm_of_other_code_is_used_as_it_is(monkeypatch):
    monkeypatch.setattr(model_events, "_KNOWN_CODE", -1)
    is_known_llm.cache_clear()
    try:
        response = response_of(["a", "b"])
        assert not ModelEvents(response_of([]))._is_known
        found = await read_by_us(response)
    finally:
        is_known_llm.cache_clear()
    assert [(event.chunk, event.part_index) for event in found] == [("a", 0), ("b", 0)]
    assert response._done


async def test_an_llm_without_these_methods_is_not_known(monkeypatch):
    monkeypatch.delattr(llm.AsyncResponse, "_async_finalize")
    assert model_events.code_number() == -1
