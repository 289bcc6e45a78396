"""A counted gate: at most so many at once, in their order."""

from __future__ import annotations

import asyncio

import pytest

from llmproxy.core.limiter import Limiter


def test_later_callers_wait_in_order():
    async def run():
        gate, order = Limiter(2), []

        async def visit(name):
            order.append((name, await gate.enter(5.0)))

        await visit("a")
        await visit("b")
        waiting = [asyncio.ensure_future(visit(name)) for name in "cd"]
        await asyncio.sleep(0)
        assert (gate.running, order) == (2, [("a", False), ("b", False)])
        gate.leave()
        await waiting[0]
        assert (gate.running, order[2:]) == (2, [("c", True)])
        gate.leave()
        await waiting[1]
        assert order[2:] == [("c", True), ("d", True)]
        gate.leave()
        gate.leave()
        assert gate.running == 0

    asyncio.run(run())


def test_a_place_that_does_not_come_in_time_is_a_timeout():
    async def run():
        gate = Limiter(1)
        await gate.enter(None)
        with pytest.raises(TimeoutError):
            await gate.enter(0.01)
        gate.leave()
        assert await gate.enter(0.01) is False
        assert gate.running == 1

    asyncio.run(run())


def test_a_caller_that_goes_away_while_it_waits_takes_no_place():
    async def run():
        gate = Limiter(1)
        await gate.enter(None)
        waiting = asyncio.ensure_future(gate.enter(None))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        assert gate.running == 1
        gate.leave()
        await asyncio.wait_for(gate.enter(None), 1)
        assert gate.running == 1

    asyncio.run(run())
