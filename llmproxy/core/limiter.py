"""A limiter: at most so many callers at once, the others wait in order of arrival."""

from __future__ import annotations

import asyncio


class Limiter:
    """Lets `limit` callers in at one time, first come first served. For one event loop."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._places = asyncio.Semaphore(limit)
        self.running = 0

    @property
    def has_room(self) -> bool:
        """Return whether `enter` would return at once."""
        return not self._places.locked()

    async def enter(self, wait_s: float | None) -> bool:
        """Wait for a place, at most `wait_s` seconds; return whether it had to wait.

        `leave` gives the place back.

        Raises:
            TimeoutError: no place became free in time.
        """
        must_wait = not self.has_room
        if must_wait:
            async with asyncio.timeout(wait_s):
                await self._places.acquire()
        else:
            await self._places.acquire()  # at once
        self.running += 1
        return must_wait

    def leave(self) -> None:
        """Release the place for the next caller."""
        self.running -= 1
        self._places.release()
