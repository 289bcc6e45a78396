"""So many at one time, in their order."""

from __future__ import annotations

import asyncio

import pytest

from llmproxy.errors import RateLimited
from llmproxy.gate import Gate


def test_who_comes_later_waits_for_a_turn_in_order():
    async def run():
        gate, order = Gate(2, 5.0), []

        async def visit(name):
            await gate.enter()
            order.append(name)

        await visit("a")
        await visit("b")
        waiting = [asyncio.ensure_future(visit(name)) for name in "cd"]
        await asyncio.sleep(0)
        assert (gate.running, gate.waiting, order) == (2, 2, ["a", "b"])
        gate.leave()
        await waiting[0]
        assert (gate.running, gate.waiting, order) == (2, 1, ["a", "b", "c"])
        gate.leave()
        await waiting[1]
        assert order == ["a", "b", "c", "d"]
        gate.leave()
        gate.leave()
        assert (gate.running, gate.waiting) == (0, 0)

    asyncio.run(run())


def test_a_turn_that_does_not_come_is_a_429():
    async def run():
        gate = Gate(1, 0.01)
        await gate.enter()
        with pytest.raises(RateLimited) as caught:
            await gate.enter()
        assert caught.value.message == "1 answers are running, and none ended for 0.01 s"
        assert caught.value.headers == {"retry-after": "1"}
        gate.leave()
        await gate.enter()
        assert (gate.running, gate.waiting) == (1, 0)

    asyncio.run(run())


def test_who_goes_away_while_waiting_takes_no_place():
    async def run():
        gate = Gate(1, 5.0)
        await gate.enter()
        waiting = asyncio.ensure_future(gate.enter())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        assert (gate.running, gate.waiting) == (1, 0)
        gate.leave()
        await asyncio.wait_for(gate.enter(), 1)
        assert gate.running == 1

    asyncio.run(run())
