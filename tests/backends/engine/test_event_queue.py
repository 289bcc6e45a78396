"""Tests of the queue between a model, in the loop or in a thread, and its reader."""

import asyncio
import threading
import time

import pytest
from llm.parts import StreamEvent

from llmproxy.backends.engine.event_queue import QUEUED_EVENTS, EventQueue
from llmproxy.core.errors import UpstreamError


def text(chunk: str) -> StreamEvent:
    return StreamEvent("text", chunk, part_index=0)


def chunks(batch):
    return [stamped.event.chunk for stamped in batch]


async def push_in_loop(queue: EventQueue, events: list[StreamEvent]) -> None:
    for event in events:
        if queue.is_closed:
            break
        queue.push([event])
        queue.wake()
        if queue.is_full:
            await queue.wait_for_space()
    queue.end()
    queue.wake()


def push_in_thread(queue: EventQueue, events: list[StreamEvent]) -> None:
    for event in events:
        if queue.is_closed:
            break
        queue.push([event])
        queue.wake_from_thread()
        queue.wait_for_space_in_thread()
    queue.end()
    queue.wake_from_thread()


def start(kind: str, queue: EventQueue, events: list[StreamEvent]) -> asyncio.Task[None]:
    """Start a model that pushes events, in the loop or in a thread."""
    if kind == "loop":
        return asyncio.create_task(push_in_loop(queue, events))
    return asyncio.create_task(asyncio.to_thread(push_in_thread, queue, events))


async def until_full(queue: EventQueue) -> None:
    async with asyncio.timeout(10):
        while not queue.is_full:
            await asyncio.sleep(0)


def started_queue():
    queue = EventQueue()
    queue.start(time.monotonic())
    return queue


KINDS = pytest.mark.parametrize("kind", ["loop", "thread"])


def test_read_returns_all_events_then_nothing():
    async def main():
        queue = started_queue()
        began = time.monotonic()
        queue.push([text("a"), text("b")])
        queue.push([text("c")])
        queue.end()
        batch = await queue.read()
        assert chunks(batch) == ["a", "b", "c"]
        assert began <= batch[0].at == batch[1].at <= batch[2].at <= time.monotonic()
        assert [await queue.read(), await queue.read(0.0)] == [[], []]

    asyncio.run(main(), debug=True)


def test_the_error_is_raised_after_all_events():
    async def main():
        queue = started_queue()
        queue.push([text("a")])
        queue.end(UpstreamError("no"))
        assert chunks(await queue.read()) == ["a"]
        for _ in range(2):
            with pytest.raises(UpstreamError, match="no"):
                await queue.read()

    asyncio.run(main(), debug=True)


@KINDS
def test_the_queue_is_bounded_and_loses_no_event(kind):
    count = QUEUED_EVENTS * 3 + 5

    async def main():
        queue = started_queue()
        model = start(kind, queue, [text(str(i)) for i in range(count)])
        await until_full(queue)
        received = []
        while batch := await queue.read():
            assert len(batch) <= QUEUED_EVENTS
            received += chunks(batch)
        await model
        return received

    assert asyncio.run(main(), debug=True) == [str(i) for i in range(count)]


@KINDS
def test_close_drops_all_events_and_ends_a_model_that_waits_for_space(kind):
    async def main():
        queue = started_queue()
        model = start(kind, queue, [text("x")] * (QUEUED_EVENTS + 1))
        await until_full(queue)
        queue.close()
        await asyncio.wait_for(model, 10)
        return await queue.read()

    assert asyncio.run(main(), debug=True) == []


@KINDS
def test_a_waiting_reader_gets_a_push_and_the_end(kind):
    async def main():
        queue = started_queue()
        reading = asyncio.create_task(queue.read())
        await asyncio.sleep(0)
        model = start(kind, queue, [text("a")])
        assert chunks(await asyncio.wait_for(reading, 10)) == ["a"]
        assert await asyncio.wait_for(queue.read(), 10) == []
        await model

    asyncio.run(main(), debug=True)


def test_silence_counts_from_the_start_and_again_from_each_push_and_report():
    async def main():
        queue = started_queue()
        queue.start(time.monotonic() - 60)
        assert await queue.read(30) is None
        queue.push([text("a")])
        assert chunks(await queue.read(0.02)) == ["a"]
        began = time.monotonic()
        assert await queue.read(0.02) is None
        assert await queue.read(0.02) is None
        assert time.monotonic() - began >= 0.03

    asyncio.run(main(), debug=True)


def test_all_reads_share_one_timer(monkeypatch):
    async def main():
        queue, loop = started_queue(), asyncio.get_running_loop()
        timers = []
        call_later = loop.call_later
        monkeypatch.setattr(loop, "call_later", lambda *a: timers.append(a) or call_later(*a))
        for _ in range(50):
            reading = asyncio.create_task(queue.read(60))
            await asyncio.sleep(0)
            queue.push([text("a")])
            queue.wake()
            await reading
        queue.close()
        return len(timers)

    assert asyncio.run(main()) == 1


def test_a_thread_wakes_the_loop_once_for_all_unread_events(monkeypatch):
    async def main():
        queue, loop = started_queue(), asyncio.get_running_loop()
        wakes = []
        monkeypatch.setattr(loop, "call_soon_threadsafe", wakes.append)
        for _ in range(3):
            queue.push([text("a")])
            queue.wake_from_thread()
        assert wakes == [queue.wake]
        queue.wake()
        queue.push([text("b")])
        queue.wake_from_thread()
        assert wakes == [queue.wake] * 2

    asyncio.run(main())


def test_a_thread_that_outlives_the_loop_finds_the_queue_closed():
    async def main():
        return started_queue()

    queue = asyncio.run(main())
    thread = threading.Thread(target=push_in_thread, args=(queue, [text("a")] * QUEUED_EVENTS))
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert queue.is_closed
