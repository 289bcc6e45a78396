"""Work on large requests, done in threads so that other requests are not delayed by it.

A thread shares the interpreter with the event loop: Python gives it away every few
milliseconds, but only between steps. So a piece of work may be long, and no single call into C
that it makes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from ..core.threads import in_daemon_thread

T = TypeVar("T")

SMALL_BYTES = 64 * 2**10  # handled in a millisecond or two: hardly more than a thread costs
MOST_THREADS = 4  # each takes its share of the time that the loop needs


class LargeWork:
    """Runs work on large requests in threads, within a budget of bytes that all share.

    budget: bytes of the requests that are worked on at one time; a larger one is worked on
        alone. First come, first served. For one event loop.
    """

    def __init__(self, budget: int) -> None:
        self._budget = self._free = budget
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def run(self, size: int, work: Callable[[], T], wait_s: float) -> T:
        """Return what `work` returns: at once for a small size, else from a thread.

        size: of the request, in bytes. Who stops waiting leaves the thread to itself, and the
            bytes count until it has ended.

        Raises:
            TimeoutError: no bytes became free within `wait_s` seconds.
            Exception: whatever `work` raises.
        """
        if size <= SMALL_BYTES:
            return work()
        size = min(max(size, self._budget // MOST_THREADS), self._budget)
        await self._take(size, wait_s)
        try:
            working = in_daemon_thread(lambda: _outcome(work), "llmproxy-large-request")
        except RuntimeError:  # the system can't start a thread: better late than never
            try:
                return work()
            finally:
                self._give_back(size)
        working.add_done_callback(lambda _: self._give_back(size))
        result, failure = await asyncio.shield(working)
        if failure is not None:
            try:
                raise failure
            finally:
                failure = None  # its traceback refers to this frame
        return result  # type: ignore[return-value]  # a T if there is no failure

    async def _take(self, size: int, wait_s: float) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        self._admit()
        try:
            async with asyncio.timeout(wait_s):
                await turn
        except BaseException:
            if not turn.cancelled():  # its turn came in the same moment
                self._free += size
            self._admit()
            raise

    def _give_back(self, size: int) -> None:
        self._free += size
        self._admit()

    def _admit(self) -> None:
        while self._waiting:
            size, turn = self._waiting[0]
            if not turn.done():
                if size > self._free:
                    return
                self._free -= size
                turn.set_result(None)
            self._waiting.popleft()


def _outcome(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return work(), None
    except Exception as exc:
        return None, exc
