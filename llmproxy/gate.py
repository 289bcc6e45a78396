"""How many answers run at one time; who comes later waits for a turn."""

from __future__ import annotations

import asyncio

from .errors import RateLimited

__all__ = ["Gate"]

RETRY_S = 1  # when a client that waited in vain may ask again


class Gate:
    """Lets `running` in at one time, in the order in which they came.

    queue_s: how long one waits for a turn at most.
    """

    def __init__(self, running: int, queue_s: float) -> None:
        self._limit = running
        self._queue_s = queue_s
        self._places = asyncio.Semaphore(running)
        self.running = 0
        self.waiting = 0

    async def enter(self) -> None:
        """Wait for a turn; who has one gives it back by `leave`.

        Raises:
            RateLimited: there was none for so long.
        """
        self.waiting += 1
        try:
            async with asyncio.timeout(self._queue_s):
                await self._places.acquire()
        except TimeoutError:
            raise RateLimited(
                f"{self._limit} answers are running, and none ended for {self._queue_s:g} s",
                headers={"retry-after": f"{RETRY_S}"},
            ) from None
        finally:
            self.waiting -= 1
        self.running += 1

    def leave(self) -> None:
        """Let the next one in."""
        self.running -= 1
        self._places.release()
