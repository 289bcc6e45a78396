"""The threads of sync models: so many alive at one time, and no more.

A thread can't be stopped. One whose client has gone runs on until its model yields, and
one that blocks for ever does so until the process ends: a client that asked again and
again would fill the process with them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress

from .errors import Unavailable

MAX_THREADS = 256  # the limit `running`, where nobody gives another
ROOM_S = 1.0  # what a model waits for a thread to end: one that was left may yield soon
RETRY_S = 1  # when a client that waited in vain may ask again


class Threads:
    """Starts daemon threads, of which `most` are alive at one time, blocked ones included.

    For one event loop; ask for `room` before each `start`, and await nothing in between.
    """

    def __init__(self, most: int = MAX_THREADS) -> None:
        self._most = most
        self._alive = 0
        self._ended = asyncio.Event()

    async def room(self) -> None:
        """Wait until one more may be started.

        Raises:
            Unavailable: none has ended in time (`ROOM_S`).
        """
        try:
            async with asyncio.timeout(ROOM_S):
                while self._alive >= self._most:
                    self._ended.clear()
                    await self._ended.wait()
        except TimeoutError:
            raise _no_room(f"{self._most} models that can't be stopped run already") from None

    def start(
        self, run: Callable[[], None], name: str, ended: Callable[[], None] | None = None
    ) -> None:
        """Run a function in a thread of its own; `ended` is called in the loop after it.

        Raises:
            Unavailable: the system gives no thread.
        """
        loop = asyncio.get_running_loop()

        def work() -> None:
            try:
                run()
            finally:
                with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    loop.call_soon_threadsafe(self._end, ended)

        try:
            threading.Thread(target=work, name=name, daemon=True).start()
        except RuntimeError as exc:
            raise _no_room("the system gives no thread") from exc
        self._alive += 1

    def _end(self, ended: Callable[[], None] | None) -> None:
        self._alive -= 1
        self._ended.set()
        if ended is not None:
            ended()


def _no_room(words: str) -> Unavailable:
    return Unavailable(words, headers={"retry-after": f"{RETRY_S}"})
