"""Tests of a running model: read to its end, stopped at any time, its failures contained."""

import asyncio
import json
import threading
import time

import pytest
from llm.parts import StreamEvent, ToolCallPart

from llmproxy.backends.engine import Catalog, Engine
from llmproxy.backends.engine import run as run_module
from llmproxy.backends.engine.event_queue import QUEUED_EVENTS
from llmproxy.core import chat
from llmproxy.core.errors import ModelNotFound, Unsupported, UpstreamError
from llmproxy.core.usage import Usage
from tests.backends.engine.conftest import started, user
from tests.models import (
    AsyncScript,
    StopOptions,
    SyncScript,
    registered,
    response_json,
    tool_call,
    usage,
)

KINDS = pytest.mark.parametrize("kind", [SyncScript, AsyncScript])


@KINDS
def test_a_run_yields_its_events_and_one_finish(engine, kind):
    counted = usage(11, 7, prompt_tokens_details={"cached_tokens": 4})
    model = kind("m", "a", "b", counted, response_json(finish_reason="length"))
    outcome = engine.ask(model)
    assert outcome.error is None
    assert [e.chunk for e in outcome.events[:-1]] == ["a", "b"]
    assert outcome.finish.reason == "length"
    assert outcome.finish.usage == Usage(11, 7, cached_tokens=4)
    assert outcome.finish.response_json == {"finish_reason": "length"}
    assert outcome.finish.llm_usage.details == {"prompt_tokens_details": {"cached_tokens": 4}}


@KINDS
def test_an_empty_response_is_valid(engine, kind):
    assert engine.ask(kind("m")).events == [chat.Finish()]


@KINDS
@pytest.mark.parametrize(
    "raised",
    [
        RuntimeError("no"),
        SystemExit("no"),
        KeyboardInterrupt("no"),
        GeneratorExit("no"),
        asyncio.CancelledError("no"),
        RecursionError("no"),
    ],
    ids=lambda exc: type(exc).__name__,
)
def test_an_exception_of_a_model_is_raised_after_its_events(engine, kind, raised):
    """d6.30"""
    outcome = engine.ask(kind("m", "so far", raised))
    assert outcome.text == "so far"
    assert isinstance(outcome.error, UpstreamError)
    assert outcome.error.message == f"the model 'm' failed: {type(raised).__name__}: no"


@KINDS
@pytest.mark.parametrize("chunk", [None, 5, b"bytes", object(), StreamEvent("text", 5)])
def test_an_invalid_chunk_is_an_upstream_error(engine, kind, chunk):
    assert isinstance(engine.ask(kind("m", chunk)).error, UpstreamError)


@KINDS
def test_call_that_was_only_announced_is_an_event(engine, kind):
    outcome = engine.ask(kind("m", tool_call("f", {"a": 1}, "c")))
    assert [(e.type, e.chunk, e.tool_call_id) for e in outcome.events[:-1]] == [
        ("tool_call_name", "f", "c"),
        ("tool_call_args", '{"a":1}', "c"),
    ]
    assert outcome.finish.reason == "tool_calls"


@KINDS
def test_arguments_cut_by_a_token_limit_end_in_length(engine, kind):
    """d6.10: plugins parse them after the stream, and raise."""
    name = StreamEvent("tool_call_name", "f", tool_call_id="c")
    cut = StreamEvent("tool_call_args", '{"a": "b', tool_call_id="c")
    outcome = engine.ask(kind("m", name, cut, lambda _: json.loads('{"a": "b')))
    assert (outcome.error, outcome.finish.reason) == (None, "length")


@KINDS
def test_a_refusal_is_not_a_failure(engine, kind):
    """d6.7: llm-anthropic raises it after the stream."""
    from llm_anthropic import ClaudeRefusal

    outcome = engine.ask(kind("m", "I", usage(3, 1), ClaudeRefusal({"category": "bio"})))
    assert (outcome.error, outcome.text) == (None, "I")
    assert outcome.finish.reason == "content_filter"
    assert outcome.finish.usage == Usage(3, 1)


@KINDS
def test_the_engine_cuts_at_a_stop_sequence_and_stops_the_model(engine, kind):
    """B30"""
    model = kind("m", "one tw", "o three", "never shown")
    outcome = engine.ask(model, options={"stop_sequences": ["two", "nine"]})
    assert outcome.text == "one "
    assert (outcome.finish.reason, outcome.finish.stop_sequence) == ("stop", "two")
    wait_until_closed(model)


def wait_until_closed(model):
    """A sync model's thread closes its generator when the answer has been given."""
    until = time.monotonic() + 10
    while model.closed != 1:
        assert time.monotonic() < until
        time.sleep(0.001)


@KINDS
def test_text_held_back_for_a_stop_sequence_is_returned_at_the_end(engine, kind):
    outcome = engine.ask(kind("m", "one tw"), options={"stop_sequences": ["two", "x"]})
    assert (outcome.text, outcome.finish.stop_sequence) == ("one tw", None)


def test_stop_sequences_are_left_to_a_model_with_that_option(engine):
    model = AsyncScript("m", "one two", Options=StopOptions)
    outcome = engine.ask(model, options={"stop_sequences": ["two"]})
    assert outcome.text == "one two"
    assert model.prompts[0].options.stop == "two"


def test_unknown_model_and_unsupported_request_are_errors_before_the_run(engine):
    assert isinstance(engine.ask("nobody").error, ModelNotFound)
    refused = engine.ask(AsyncScript("m", supports_schema=False), schema={"type": "object"})
    assert isinstance(refused.error, Unsupported)


def test_models_stream_even_if_the_client_does_not(engine):
    seen = []
    model = AsyncScript("m", lambda response: seen.append(response.stream))
    engine.ask(model, stream=False)
    assert seen == [True]


# ---- while it runs


def running(model, use, **request):
    """Start a model in an event loop and call `use` with the run."""

    async def main():
        catalog = Catalog()
        catalog.load()
        chat_request = chat.ChatRequest(model="m", messages=[user()], **request)
        return await use(await started(Engine(catalog), chat_request))

    with registered(model):
        return asyncio.run(main(), debug=True)


async def forever(_response):
    await asyncio.Event().wait()


@pytest.mark.parametrize("before", [(), ("a",)], ids=["before the first event", "after it"])
def test_stop_ends_an_async_model_at_once(before):
    """B15, B16"""
    model = AsyncScript("m", *before, forever)

    async def use(run):
        if before:
            await run.read()
        else:
            await asyncio.sleep(0)
        await run.stop()
        assert model.closed == 1
        return await run.read()

    assert running(model, use) == []


def test_stop_ends_an_async_model_that_waits_for_its_reader():
    model = AsyncScript("m", *["x"] * (QUEUED_EVENTS * 3))

    async def use(run):
        while not run._queue.is_full:
            await asyncio.sleep(0)
        await run.stop()
        assert model.closed == 1

    running(model, use)


@KINDS
def test_a_slow_reader_makes_its_model_wait(kind):
    given = []
    count = QUEUED_EVENTS * 4
    steps = [step for i in range(count) for step in (lambda _, i=i: given.append(i), "x")]
    model = kind("m", *steps)

    async def use(run):
        while not run._queue.is_full:
            await asyncio.sleep(0.001)
        assert len(given) <= QUEUED_EVENTS + 1
        read = 0
        while batch := await run.read():
            read += len(batch)
        return read

    assert running(model, use) == count + 1


def test_sync_model_ends_at_its_next_yield():
    may_go_on, closed = threading.Event(), threading.Event()

    class Model(SyncScript):
        def execute(self, *arguments, **more):
            try:
                yield "a"
                may_go_on.wait(10)
                yield "b"
                yield "c"
            finally:
                closed.set()

    async def use(run):
        await run.read()
        began = time.monotonic()
        await run.stop()
        assert time.monotonic() - began < 5
        may_go_on.set()
        assert await asyncio.to_thread(closed.wait, 10)

    running(Model("m"), use)


def test_model_that_ignores_its_cancel_is_abandoned(monkeypatch):
    monkeypatch.setattr(run_module, "STOP_S", 0.05)
    freed = []

    async def stubborn(_response):
        event = asyncio.Event()
        freed.append(event)
        while not event.is_set():
            try:
                await event.wait()
            except asyncio.CancelledError:
                pass

    async def use(run):
        await asyncio.sleep(0)
        await run.stop()
        freed[0].set()
        await asyncio.sleep(0)

    running(AsyncScript("m", stubborn), use)


@KINDS
def test_read_reports_silence_until_the_next_event(kind):
    """B13"""
    go_on = threading.Event()

    async def wait_async(_response):
        while not go_on.is_set():
            await asyncio.sleep(0.01)

    wait = wait_async if kind is AsyncScript else (lambda _: go_on.wait(10))
    model = kind("m", wait, "a", "b")

    async def use(run):
        heard = [await run.read(0.03), await run.read(0.03)]
        go_on.set()
        while batch := await run.read(5):
            heard += [s.event.chunk for s in batch if isinstance(s.event, StreamEvent)]
        return heard

    assert running(model, use) == [None, None, "a", "b"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_streams_first_event_is_read_before_the_model_makes_more(stream):
    model = AsyncScript("m", "a", "b", "c")

    async def use(run):
        sizes = []
        while batch := await run.read():
            sizes.append(len(batch))
        return sizes

    sizes = running(model, use, stream=stream)
    assert sizes == ([1, 3] if stream else [4])


def test_events_are_stamped_in_order():
    async def use(run):
        stamps = [run.started_at]
        while batch := await run.read():
            stamps += [stamped.at for stamped in batch]
        return stamps

    stamps = running(AsyncScript("m", "a", lambda _: asyncio.sleep(0.01), "b"), use)
    assert stamps == sorted(stamps)
    assert len(stamps) == 4


def test_many_runs_of_a_sync_model_with_a_key_run_at_once():
    barrier = threading.Barrier(20, timeout=10)
    model = SyncScript("m", lambda _: barrier.wait(), "a", needs_key="of-a-provider")

    async def main():
        catalog = Catalog()
        catalog.load()
        engine = Engine(catalog)
        request = chat.ChatRequest(model="m", messages=[user()])
        runs = [await started(engine, request) for _ in range(20)]
        return [len(await run.read()) for run in runs]

    with registered(model):
        assert all(asyncio.run(main()))


@KINDS
@pytest.mark.parametrize(
    "leave",
    [
        tool_call("f", {"a": {1}}),
        lambda r: r.set_usage(input="3", details={"cache_read_input_tokens": 4}),
        lambda r: r.set_usage(input=3, details=["a"]),
    ],
    ids=["a set", "an invalid count", "invalid details"],
)
def test_invalid_data_left_in_the_response_is_an_upstream_error(engine, kind, leave):
    outcome = engine.ask(kind("m", "so far", leave))
    assert outcome.text == "so far"
    assert isinstance(outcome.error, UpstreamError)
    said = "the model's plugin left an invalid response: the model 'm' failed: "
    assert outcome.error.message.startswith(said)
    assert len(outcome.error.message) > len(said) + 20


@KINDS
def test_an_announced_call_is_read_as_one_that_was_streamed(engine, kind):
    """A plugin has its arguments, its name and its id from the provider's JSON."""
    outcome = engine.ask(
        kind("m", tool_call("f\ud83d", {"a": float("nan"), "b": "\ud83d"}, "\udf0a"))
    )
    assert outcome.error is None
    [call] = chat.collect(outcome.events).parts
    assert call == ToolCallPart("f\ufffd", {"a": "NaN", "b": "\ufffd"}, tool_call_id="\ufffd")


def test_each_read_has_its_own_silence_limit():
    """The wait for the first event may be long, and the later ones, for keep-alives, short."""

    async def use(run):
        assert await run.read(0.3) is None
        first = time.monotonic() - run.started_at  # silence is counted from there
        assert await run.read(0.02) is None
        return first, time.monotonic() - run.started_at - first

    first, second = running(AsyncScript("m", forever), use)
    assert first >= 0.3
    assert second < 0.25


@pytest.mark.parametrize(
    ("event", "request_"),
    [("", {}), ("EN", {"options": {"stop_sequences": ["END"]}})],
    ids=["empty text", "text that is held back"],
)
def test_events_without_visible_text_do_not_end_a_silence(event, request_):
    async def pause(_response):
        await asyncio.sleep(0.02)

    model = AsyncScript("m", event, *[pause, ""] * 200)

    async def use(run):
        return await run.read(0.1)

    assert running(model, use, **request_) is None


def test_a_model_that_never_awaits_does_not_block_the_loop():
    model = AsyncScript("m", *[""] * (QUEUED_EVENTS * 6))

    async def use(run):
        turns = 0
        reading = asyncio.create_task(run.read())
        while not reading.done():
            turns += 1
            await asyncio.sleep(0)
        return turns

    assert running(model, use) >= 5


@KINDS
def test_calls_under_one_id_are_separated(engine, kind):
    """B1: llm gives both the same number, since it numbers calls by their ids."""
    steps = [
        StreamEvent("tool_call_name", "f", tool_call_id="1"),
        StreamEvent("tool_call_args", '{"a":1}', tool_call_id="1"),
        StreamEvent("tool_call_name", "g", tool_call_id="1"),
        StreamEvent("tool_call_args", '{"b":2}', tool_call_id="1"),
    ]
    parts = chat.collect(engine.ask(kind("m", *steps)).events).parts
    assert [(part.name, part.arguments) for part in parts] == [("f", {"a": 1}), ("g", {"b": 2})]
    assert len({part.tool_call_id for part in parts}) == 2
