"""A counted gate: at most so many at once, the others wait in the order in which they came."""

from __future__ import annotations

import asyncio


class Limiter:
    """Let `limit` callers in at one time, first come first served. For one event loop."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._places = asyncio.Semaphore(limit)
        self.running = 0

    async def enter(self, wait_s: float | None) -> bool:
        """Wait for a place, at most `wait_s` seconds; give it back by `leave`.

        Say whether there was none free.

        Raises:
            TimeoutError: none became free in time.
        """
        must_wait = self._places.locked()
        async with asyncio.timeout(wait_s):
            await self._places.acquire()
        self.running += 1
        return must_wait

    def leave(self) -> None:
        """Give the place to the next caller."""
        self.running -= 1
        self._places.release()
