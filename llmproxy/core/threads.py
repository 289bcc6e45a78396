"""The threads of sync models, with a limit on how many are alive at one time.

A thread can't be stopped. If its client has gone it runs until its model yields, and if it
blocks, until the process ends: a client that retries would fill the process with them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import TypeVar, cast

from .errors import Unavailable
from .process_end import ModelThread

T = TypeVar("T")

MAX_THREADS = 256  # the default of the limit `running`
SLOT_WAIT_S = 1.0  # for a thread to end: an abandoned one may yield soon
RETRY_S = 1  # when a client that was refused may retry


class Threads:
    """Starts daemon threads, at most `most` alive at one time, blocked ones included.

    For one event loop. Call `wait_for_slot` before each `start`, and await nothing in between.
    """

    def __init__(self, most: int = MAX_THREADS) -> None:
        self._most = most
        self._alive = 0
        self._ended = asyncio.Event()

    async def wait_for_slot(self) -> None:
        """Wait until another thread may be started.

        Raises:
            Unavailable: no thread ended in time (`SLOT_WAIT_S`).
        """
        try:
            async with asyncio.timeout(SLOT_WAIT_S):
                while self._alive >= self._most:
                    self._ended.clear()
                    await self._ended.wait()
        except TimeoutError:
            raise _unavailable(
                f"{self._most} models that can't be stopped are running already"
            ) from None

    def start(
        self, run: Callable[[], None], name: str, ended: Callable[[], None] | None = None
    ) -> None:
        """Run a function in a new thread, then call `ended` in the loop.

        Raises:
            Unavailable: the system can't start a thread.
        """
        loop = asyncio.get_running_loop()

        def work() -> None:
            try:
                run()
            finally:
                with suppress(RuntimeError):  # the loop is closed: nothing waits any more
                    loop.call_soon_threadsafe(self._end, ended)

        try:
            ModelThread(target=work, name=name, daemon=True).start()
        except RuntimeError as exc:
            raise _unavailable("the system can't start a thread") from exc
        self._alive += 1

    def _end(self, ended: Callable[[], None] | None) -> None:
        self._alive -= 1
        self._ended.set()
        if ended is not None:
            ended()


def _unavailable(message: str) -> Unavailable:
    return Unavailable(message, headers={"retry-after": f"{RETRY_S}"})


def in_daemon_thread(run: Callable[[], T], name: str) -> asyncio.Future[T]:
    """Run blocking code so that a call which never returns does not hold the process.

    asyncio.to_thread would: the interpreter waits for an executor's threads at exit.
    """
    future, work = _to_be_awaited(run)
    threading.Thread(target=work, name=name, daemon=True).start()
    return future


class DaemonWorker:
    """Runs blocking code, one call after another, in a thread that is kept.

    As `in_daemon_thread`, for what is called often: a new thread takes 0.1 ms.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def run(self, run: Callable[[], T]) -> asyncio.Future[T]:
        """Run a function in the thread, which starts with the first.

        Raises:
            RuntimeError: the system can't start a thread.
        """
        if self._thread is None:
            thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            thread.start()
            self._thread = thread
        future, work = _to_be_awaited(run)
        self._calls.put(work)
        return future

    def close(self) -> None:
        """Let the thread end after the calls that it was given."""
        self._calls.put(None)
        self._thread = None

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()


def _to_be_awaited(run: Callable[[], T]) -> tuple[asyncio.Future[T], Callable[[], None]]:
    """Return a future of this loop, and what another thread has to call to complete it."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, failure: RuntimeError | None) -> None:
        if future.done():
            return
        if failure is not None:
            future.set_exception(failure)
        else:
            future.set_result(cast(T, result))

    def work() -> None:
        result, failure = None, None
        try:
            result = run()
        except BaseException as exc:  # a plugin may raise SystemExit
            failure = RuntimeError(f"{type(exc).__name__}: {exc}")
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, failure)

    return future, work
