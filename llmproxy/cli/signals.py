"""SIGINT and SIGTERM: how a command that runs an event loop stops.

asyncio.run turns Ctrl-C into a KeyboardInterrupt, but not where SIGINT was inherited as ignored:
a script's `&`, nohup, some CI runners. A handler of our own works there too.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LEAVE_S = 1.0  # for models that were cancelled at the end, to clean up


class StopSignals:
    """Stop at the first SIGINT or SIGTERM; end the process at the second.

    stop: called in the event loop, once.
    """

    def __init__(self, stop: Callable[[], object]) -> None:
        self._stop = stop
        self.exit_code = 0  # 128 plus the signal's number once one has come, as a shell has it

    def install(self) -> None:
        """Handle the signals in the running loop, until it is closed."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                loop.add_signal_handler(number, self._handle, number)
            except NotImplementedError:  # Windows
                signal.signal(
                    number, lambda number, _: loop.call_soon_threadsafe(self._handle, number)
                )

    def _handle(self, number: int) -> None:
        if self.exit_code:
            # A model that can't be cancelled would keep the loop from ending.
            end = threading.Timer(LEAVE_S, os._exit, [128 + number])
            end.daemon = True
            end.start()
            raise SystemExit(128 + number)
        self.exit_code = 128 + number
        self._stop()


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt even if SIGINT was inherited as ignored."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
