"""The queue of events between a running model and the reader of its run."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Sequence

from ...core.backend import Stamped
from ...core.chat import Event
from ...core.errors import ProxyError

QUEUED_EVENTS = 512  # a model pauses while a slow client has this many left to read
_new_tuple = tuple.__new__
SPACE_WAIT_S = 1.0  # how often a waiting thread checks for space, whatever happens


class EventQueue:
    """A bounded queue of events, from one model to one reader in the event loop.

    The model may run in the loop or in a thread of its own. It pushes events, then wakes the
    reader (`wake` or `wake_from_thread`), and while the queue `is_full` it waits
    (`wait_for_space` or `wait_for_space_in_thread`). Pushing more anyway loses nothing.

    is_over: the model has ended, or the queue was closed; nothing is pushed after that.
    is_closed: the reader has gone, so that the model should stop.
    """

    def __init__(self) -> None:
        self.is_over = False
        self.is_closed = False
        self._loop: asyncio.AbstractEventLoop  # known from `start` on
        self._events: deque[Stamped] = deque()
        self._error: ProxyError | None = None
        self._has_space = asyncio.Event()
        self._thread_has_space = threading.Event()
        self._waiter: asyncio.Future[None] | None = None
        self._wake_is_due = False
        self._silence_s: float | None = None
        self._silent_since = time.monotonic()
        self._ticker: asyncio.TimerHandle | None = None
        self._ticks_within_s = math.inf  # from any moment on; inf if no ticker is set

    # ---- for the model

    @property
    def is_full(self) -> bool:
        """Return whether the model should wait for space."""
        return len(self._events) >= QUEUED_EVENTS

    def start(self, at: float) -> None:
        """Take events for a reader in the running loop.

        at: the start of the model, from which silence counts, by time.monotonic().
        """
        self._loop = asyncio.get_running_loop()
        self._silent_since = at

    def push(self, events: Sequence[Event]) -> None:
        """Stamp events with the time and queue them, from any thread."""
        self._silent_since = now = time.monotonic()
        for event in events:
            # As Stamped(now, event), which takes 0.2 µs more.
            self._events.append(_new_tuple(Stamped, (now, event)))

    def push_one(self, event: Event) -> None:
        """Do what `push` does for a single event, from any thread."""
        self._silent_since = now = time.monotonic()
        self._events.append(_new_tuple(Stamped, (now, event)))

    def end(self, error: ProxyError | None = None) -> None:
        """End the queue, from any thread; the reader gets the error after all events."""
        self._error = error
        self.is_over = True

    def wake(self) -> None:
        """Wake the reader, from the loop."""
        self._wake_is_due = False
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def wake_from_thread(self) -> None:
        """Wake the reader once for all events that it has not read yet."""
        if self._wake_is_due and not self.is_over:
            return
        self._wake_is_due = True
        try:
            self._loop.call_soon_threadsafe(self.wake)
        except RuntimeError:  # the loop is closed: nothing waits any more
            self.is_closed = True

    async def wait_for_space(self) -> None:
        """Wait until the reader has taken the events, in the loop."""
        self._has_space.clear()
        await self._has_space.wait()

    def wait_for_space_in_thread(self) -> None:
        """Block a thread until the queue is not full, or is closed."""
        while self.is_full and not self.is_closed:
            self._thread_has_space.clear()
            if self.is_full:
                self._thread_has_space.wait(SPACE_WAIT_S)

    # ---- for the reader

    async def read(self, silence_s: float | None = None) -> list[Stamped] | None:
        """Return the events that have come, at least one; [] after the last.

        None after `silence_s` seconds without an event while the model still runs.

        Raises:
            ProxyError: the error that ended the queue; raised after all events.
        """
        self._silence_s = silence_s
        while not self._events:
            if self.is_over:
                if self._events:  # a thread pushes its last event before it ends the queue
                    break
                self._stop_ticking()
                if self._error is not None:
                    raise self._error
                return []
            if silence_s is not None and time.monotonic() - self._silent_since >= silence_s:
                self._silent_since = time.monotonic()
                return None
            # All waits share one ticker: no timer for each event.
            self._waiter = self._loop.create_future()
            if silence_s is not None and silence_s < self._ticks_within_s:
                self._tick()
            try:
                await self._waiter
            finally:
                self._waiter = None
        take = self._events.popleft  # a thread may be pushing at the same time
        events = [take() for _ in range(len(self._events))]
        # Asked first, since setting takes a lock; whoever waits clears it, then looks once more.
        if not self._has_space.is_set():
            self._has_space.set()
        if not self._thread_has_space.is_set():
            self._thread_has_space.set()
        return events

    def close(self) -> None:
        """Drop all events and the error, and let a model that waits for space go on to its end."""
        self.is_over = self.is_closed = True
        self._error = None  # it refers to the frames that raised it, and these to the queue
        self._events.clear()
        self._has_space.set()
        self._thread_has_space.set()
        self._stop_ticking()

    def _tick(self) -> None:
        self._stop_ticking()
        if self.is_over or self._silence_s is None:
            return
        left = self._silent_since + self._silence_s - time.monotonic()
        if left <= 0:
            self.wake()
            left = self._silence_s
        self._ticks_within_s = self._silence_s
        self._ticker = self._loop.call_later(left, self._tick)

    def _stop_ticking(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()  # or it would keep all of this until it runs out
            self._ticker = None
            self._ticks_within_s = math.inf
