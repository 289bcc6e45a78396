"""The writer: one daemon thread that writes turns to logs.db, in the order they come.

It never costs an answer. `write` returns at once; what can't be written now is kept
and tried again, with one warning when that begins and one when it is over. Which
errors mean that is the store's to say; there is no SQL here.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

from .exchange import Turn
from .store import Locked, Store, StoreError, Unusable

__all__ = ["Writer"]

GROUP_TURNS = 32  # written in one transaction at most
MAX_PENDING_TURNS = 2_000  # kept in memory while the file can't be written
FIRST_PAUSE_S = 0.01  # before the second try; doubled for each further one …
MAX_LOCKED_PAUSE_S = 0.25  # … up to this: another program's write is soon over
MAX_UNUSABLE_PAUSE_S = 30.0  # … or this: a full or broken disk takes a person
LOCKED_WARNING_S = 5.0  # a lock held this long is worth a warning
# Between two groups, for the `llm` command beside us: it fails where a commit falls
# between its read and its write.
GAP_S = 0.02
IDLE_S = 1.0  # without a new turn, before the write-ahead log is emptied


@dataclass(frozen=True)
class _Job:
    turn: Turn
    written: Future[None] = field(default_factory=Future)


class Writer:
    """Writes turns in a thread of its own, each in order and once.

    open_store: opens the database; called in the thread, again whenever that must be.
    warn: takes one line for the person at the terminal; called from the thread.
    """

    def __init__(self, open_store: Callable[[], Store], *, warn: Callable[[str], None]) -> None:
        self._open_store = open_store
        self._warn = warn
        self._changed = threading.Condition()  # guards the next two
        self._jobs: deque[_Job] = deque()
        self._refused = 0
        self._closing = threading.Event()
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._run, name="llmproxy-writer", daemon=True)
        self._worth_waiting = True
        # What follows belongs to the thread.
        self._store: Store | None = None
        self._unflushed = False
        self._one_by_one = 0  # so many of the next turns, after their group has failed
        self._pause_s = FIRST_PAUSE_S
        self._failing_since: float | None = None
        self._warned = False

    def start(self) -> None:
        """Start the thread, once."""
        self._thread.start()

    def write(self, turn: Turn) -> Future[None]:
        """Hand over a turn, without waiting; the future ends after its commit.

        It ends with an exception where the turn was given up: the database can't take
        this one, there is no more room to keep it, or the writer was closed before.
        """
        job = _Job(turn)
        job.written.set_running_or_notify_cancel()  # a waiter that goes away can't cancel it
        with self._changed:
            if self._closing.is_set() or len(self._jobs) >= MAX_PENDING_TURNS:
                self._refused += 1
                job.written.set_exception(StoreError("no room to keep what can't be written"))
            else:
                self._jobs.append(job)
                self._changed.notify()
        return job.written

    async def committed(self, written: Future[None], wait_s: float) -> None:
        """Wait for a turn's commit, at most `wait_s`, and never raise for its failure.

        After one wait that was in vain nobody waits until a commit has succeeded again.
        """
        if written.done() or not self._worth_waiting:
            return
        ended = asyncio.wrap_future(written)
        if (await asyncio.wait({ended}, timeout=wait_s))[0]:
            ended.exception()  # looked at, so that asyncio doesn't report it: we warned of it
        else:
            self._worth_waiting = False
            ended.cancel()

    def close(self, timeout_s: float) -> None:
        """Write what is left, for at most `timeout_s`, and stop. A second call does nothing."""
        with self._changed:
            self._deadline = min(self._deadline, time.monotonic() + timeout_s)
            self._closing.set()
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            self._current_store()  # at once, so that a warning comes at the start
        except StoreError as exc:
            self._wait_out(exc)
        while group := self._next_group():
            try:
                store = self._current_store()
                count = store.write([job.turn for job in group])
            except StoreError as exc:
                self._wait_out(exc)
            except Exception as exc:  # whatever a strange row makes llm raise
                if len(group) > 1:
                    self._one_by_one = len(group)
                else:
                    self._warn(f"one answer was not logged: {type(exc).__name__}: {exc}")
                    self._settle(1, exc)
            else:
                # A file that was deleted meanwhile has taken nothing: once more then.
                if store.is_current():
                    self._recovered()
                    self._settle(count, None)
                    self._closing.wait(GAP_S)
        self._stop()

    def _next_group(self) -> list[_Job]:
        """Wait for turns; an empty group says that it is time to stop."""
        while True:
            with self._changed:
                wait_s = IDLE_S if self._unflushed else None
                if self._changed.wait_for(lambda: self._jobs or self._closing.is_set(), wait_s):
                    if time.monotonic() > self._deadline:
                        return []
                    return list(islice(self._jobs, 1 if self._one_by_one else GROUP_TURNS))
            self._flush()

    def _current_store(self) -> Store:
        if self._store is not None and not self._store.is_current():
            self._drop_store()
        if self._store is None:
            try:
                self._store = self._open_store()
            except StoreError:
                raise
            except Exception as exc:  # no row is to blame for what happens here
                raise Unusable(f"{type(exc).__name__}: {exc}") from exc
        return self._store

    def _drop_store(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    def _flush(self) -> None:
        self._unflushed = False
        if self._store is not None and self._store.is_current():
            with suppress(StoreError):  # the next write meets the same, and says it
                self._store.flush()

    def _wait_out(self, exc: StoreError) -> None:
        """Pause after a try in vain: longer each time, so that what is in our way can end."""
        locked = isinstance(exc, Locked)
        if not locked:
            self._drop_store()
            if self._closing.is_set():
                self._deadline = 0.0  # it takes a person, who waits for us to stop
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        if not self._warned and (not locked or now - self._failing_since > LOCKED_WARNING_S):
            self._warned = True
            self._warn(f"the log can't be written now and is kept in memory: {exc}")
        self._closing.wait(self._pause_s)
        longest_s = MAX_LOCKED_PAUSE_S if locked else MAX_UNUSABLE_PAUSE_S
        self._pause_s = min(2 * self._pause_s, longest_s)

    def _recovered(self) -> None:
        self._unflushed = True
        self._worth_waiting = True
        self._pause_s = FIRST_PAUSE_S
        self._failing_since = None
        if self._warned:
            self._warned = False
            lost, self._refused = self._refused, 0
            self._warn(f"the log is written again; {lost or 'no'} answers were lost")

    def _settle(self, count: int, error: Exception | None) -> None:
        """End the first `count` jobs; their order is the queue's."""
        self._one_by_one = max(0, self._one_by_one - count)
        with self._changed:
            settled = [self._jobs.popleft() for _ in range(count)]
        for job in settled:
            if error is None:
                job.written.set_result(None)
            else:
                job.written.set_exception(error)

    def _stop(self) -> None:
        if left := len(self._jobs):
            self._warn(f"{left} answers were not logged")
            self._settle(left, StoreError("the writer was closed before"))
        self._flush()
        self._drop_store()
