"""The writer: a daemon thread that writes exchanges to logs.db in the order they arrive.

It never costs a client its response. `write` returns at once. What can't be written is kept
and retried, with one warning when that begins and one when it is over: at first in memory,
then in the spool, or in memory again if the spool can't be written either. What is written more
slowly than it comes goes to the spool too, once it is too much for memory. The store decides
what an error means; there is no SQL here.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from ..core.backend import event_bytes
from ..core.byte_cache import message_bytes, value_bytes
from .database import Locked, StoreError, Unusable
from .exchange import Exchange
from .spool import Spool, read
from .store import Store
from .summary import ExchangeSummary

GROUP = 32  # exchanges written in one transaction at most
MAX_PENDING = 256  # exchanges kept in memory if neither logs.db nor the spool can be written
MAX_PENDING_BYTES = 256 * 2**20  # of their content: each may hold a whole conversation
SPOOL_ABOVE_BYTES = 64 * 2**20  # of content that waits for a log that is slow but works
SLOW_S = 0.5  # that the oldest has waited for; what comes until then is not counted
SPOOL_AFTER_S = 0.5  # of being locked: before clients stop waiting for their commit
LOCKED_WARNING_S = 5.0  # a lock held this long is worth a warning
FIRST_PAUSE_S = 0.01  # before the second attempt; doubled for each further one …
MAX_LOCKED_PAUSE_S = 0.25  # … up to this if locked: other programs' writes are short
MAX_UNUSABLE_PAUSE_S = 30.0  # … or this: somebody has to fix a full or broken disk
# Between two groups, for the `llm` command: it fails if a commit falls between its read and
# its write. While clients wait for their commits there is no gap, except for one now and then.
GAP_S = 0.02
# Each gap delays all that wait: 3 % of the requests of 16 connections met one every half second,
# which was their p99. Beside such a load, a write like llm's succeeded as often with either.
MAX_BUSY_S = 2.0
MAX_NAMED = 5  # exchanges that a warning lists
IDLE_S = 1.0  # without new exchanges, before the write-ahead log is emptied


@dataclass(frozen=True)
class Health:
    """The log's state: whether it can be written, and how much waits in memory and spool.

    lost: number of exchanges for which there was no room, since the start.
    """

    is_writable: bool
    queued: int
    spooled_bytes: int
    lost: int


class _Written(Future[None]):
    """Done when an exchange is written; also wakes what waits for that in event loops."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[asyncio.Future[None]] = []


@dataclass(frozen=True)
class _Job:
    exchange: Exchange
    size_bytes: int
    queued_at: float
    written: _Written = field(default_factory=_Written)


class Writer:
    """Writes exchanges in a thread of its own, in order, each once.

    open_store: opens the database; called in the thread, and again if it has to be reopened.
    warn: is given one line to show to the user; called from the thread.
    spool: where exchanges go while the database can't be written; None keeps them in memory.
    """

    def __init__(
        self,
        open_store: Callable[[], Store],
        *,
        warn: Callable[[str], None],
        spool: Spool | None = None,
    ) -> None:
        self._open_store = open_store
        self._warn = warn
        self._spool = spool
        self._changed = threading.Condition()  # guards the next six
        self._jobs: deque[_Job] = deque()
        self._awaited = 0  # commits that clients wait for
        self._queued_bytes = 0
        self._lost = 0  # exchanges: those whose end was refused
        self._unbegun: set[str] = set()  # ids whose beginning was refused, while they run
        self._unended: set[str] = set()  # ids of which the log gets the beginning alone
        self._closing = threading.Event()
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._run, name="llmproxy-writer", daemon=True)
        self._worth_waiting = True
        # The attributes below are used by the thread only.
        self._store: Store | None = None
        self._has_inherited = False
        self._unflushed = False
        self._has_retried_at_end = False
        self._one_by_one = 0  # write this many of the next singly, since their group has failed
        self._pause_s = FIRST_PAUSE_S
        self._last_gap_at = 0.0
        self._failing_since: float | None = None
        self._spooling = False
        self._warned = False
        self._reported_lost = 0
        self._has_warned_of_loss = False

    def start(self) -> None:
        """Start the thread, once."""
        self._thread.start()

    def write(self, exchange: Exchange) -> Future[None]:
        """Queue an exchange, begun or ended, to be written; returns at once.

        The future is done when the exchange is in logs.db or, if that is impossible, in the
        spool. It has an exception if the exchange was given up: the database can't store it,
        there is no more room to keep it, or the writer is closed.
        """
        is_failing, now = self._failing_since is not None, time.monotonic()
        # Otherwise it is written in a moment, and need not be measured.
        size_bytes = _size_bytes(exchange) if is_failing or self._is_slow(now) else 0
        job = _Job(exchange, size_bytes, now)
        job.written.set_running_or_notify_cancel()  # so that a cancelled waiter can't cancel it
        with self._changed:
            is_full = (is_failing and len(self._jobs) >= MAX_PENDING) or (
                size_bytes > 0 and self._queued_bytes + size_bytes > MAX_PENDING_BYTES
            )
            if is_full or self._closing.is_set():
                self._refuse(exchange)
                job.written.set_exception(StoreError("there is no room to keep it"))
            else:
                if self._unbegun:
                    self._unbegun.discard(exchange.id)
                self._jobs.append(job)
                self._queued_bytes += job.size_bytes
                self._changed.notify()
        return job.written

    def _refuse(self, exchange: Exchange) -> None:
        """Count an exchange that is lost: with its end, which has all that its beginning has."""
        if exchange.status == "running":
            self._unbegun.add(exchange.id)
            return
        self._lost += 1
        if exchange.id in self._unbegun:
            self._unbegun.remove(exchange.id)
        else:
            self._unended.add(exchange.id)
        self._changed.notify()

    def _is_slow(self, now: float) -> bool:
        try:
            return now - self._jobs[0].queued_at > SLOW_S
        except IndexError:  # nothing waits, or no longer
            return False

    async def committed(self, written: Future[None], wait_s: float) -> None:
        """Wait until an exchange is written, at most `wait_s`; never raises if that fails.

        After a timeout, calls return at once until a write succeeds.
        """
        assert isinstance(written, _Written)
        # A group wakes all that wait for it by one call, where asyncio.wait_for would make a
        # future and a call for each: 0.2 ms less for an exchange, which waits twice.
        loop = asyncio.get_running_loop()
        waiting = loop.create_future()
        with self._changed:
            if written.done() or not self._worth_waiting:
                return
            written.waiting.append(waiting)
            self._awaited += 1
            self._changed.notify()
        timer = loop.call_later(wait_s, _wake, [waiting])
        try:
            await waiting
            if not written.done():
                self._worth_waiting = False
        finally:
            timer.cancel()
            with self._changed:
                self._awaited -= 1

    def health(self) -> Health:
        """Return the log's current state; can be called from any thread."""
        spooled = 0 if self._spool is None else self._spool.size()
        return Health(self._failing_since is None, len(self._jobs), spooled, self._lost)

    def close(self, timeout_s: float) -> None:
        """Write what is left, for at most `timeout_s`, and stop. Further calls do nothing."""
        with self._changed:
            self._deadline = min(self._deadline, time.monotonic() + timeout_s)
            self._closing.set()
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    # ---- the thread

    def _run(self) -> None:
        while not self._is_over():
            group: list[_Job] = []
            error: Exception | None = None
            try:
                self._spool_excess()
                store = self._ready_store()
                with self._changed:
                    group = list(islice(self._jobs, 1 if self._one_by_one else GROUP))
                if len(group) == 1:
                    count, error = 1, self._write_one(store, group[0].exchange)
                else:
                    count = store.write([job.exchange for job in group]) if group else 0
                if self._unended:
                    self._interrupt_unended(store, count)
            except StoreError as exc:
                self._wait_out(exc)
            except Exception:  # the database can't store one of them
                self._one_by_one = len(group)
            else:
                # If the file was deleted meanwhile, nothing was kept: write them again.
                if store.is_current():
                    self._recovered()
                    self._settle(count, error)
                    group.clear()  # their content would be kept until there is more to write
                    self._rest(count)
        self._stop()

    def _write_one(self, store: Store, exchange: Exchange) -> Exception | None:
        """Write an exchange, without what the database can't store of its response.

        Raises:
            StoreError: the database is the cause.
        """
        try:
            store.write([exchange])
        except StoreError:
            raise
        except Exception as exc:  # whatever an unusual response makes llm raise
            return self._write_rest(store, exchange, exc)
        return None

    def _write_rest(self, store: Store, exchange: Exchange, exc: Exception) -> Exception | None:
        """Write an exchange without the provider's raw response, else without its turn."""
        cause = f"{type(exc).__name__}: {exc}"
        if exchange.turn is not None and exchange.turn.response_json is not None:
            try:
                store.write([replace(exchange, turn=replace(exchange.turn, response_json=None))])
            except StoreError:
                raise
            except Exception:
                pass  # it was not the cause
            else:
                self._warn(f"the raw response of exchange {exchange.id} was not logged: {cause}")
                return None
        self._warn(f"a response was not logged: {cause}")
        with suppress(Exception):  # there was a warning already
            store.write([replace(exchange, turn=None, thread_id=None, events=())])
        return exc

    def _interrupt_unended(self, store: Store, written: int) -> None:
        """Mark exchanges whose end was lost, as far as the log has their beginning by now.

        written: number of the next jobs that it has already.

        Raises:
            StoreError: as `Store.write`.
        """
        with self._changed:
            ids, is_all = list(self._unended), len(self._jobs) <= written
        marked = store.interrupt(ids)
        with self._changed:
            self._unended.difference_update(ids if is_all else marked)

    def _is_over(self) -> bool:
        if not self._closing.is_set():
            return False
        if self._jobs and time.monotonic() <= self._deadline:
            return False
        if self._spool is None or self._spool.is_empty() or self._has_retried_at_end:
            return True
        # The spool is safe, and read at the next start. But the database may be writable
        # again, so there is one more attempt.
        self._has_retried_at_end = True
        return False

    def _ready_store(self) -> Store:
        """Open the database if it is not open, and write what was spooled to it.

        Raises:
            StoreError: it can't be opened or written.
        """
        if self._store is not None and not self._store.is_current():
            self._drop_store()
        try:
            store = self._store = self._store or self._open_store()
            if self._spool is not None:
                if not self._has_inherited:
                    self._inherit(store, self._spool)
                    self._has_inherited = True
                if not self._spool.is_empty():
                    self._write_spool(store, self._spool.path)
                    self._spool.clear()
        except StoreError:
            raise
        except Exception as exc:  # not caused by an exchange that is to be written
            raise Unusable(f"{type(exc).__name__}: {exc}") from exc
        return store

    def _inherit(self, store: Store, spool: Spool) -> None:
        """Write the spools of processes that are gone, and warn of what they left running."""
        written, killed = [], set()
        for id in spool.owner.dead():
            try:
                self._write_spool(store, spool.owner.spool_path(id))
            except OSError as exc:  # another user's, say
                self._warn(f"the spool of another llmproxy can't be read: {exc}")
            else:
                written.append(id)
            if spool.owner.was_killed(id):
                killed.add(id)
        interrupted = store.interrupt_orphans()
        if running := [entry for entry in interrupted if entry.owner in killed]:
            were = "exchange was" if len(running) == 1 else "exchanges were"
            self._warn(
                f"llmproxy was killed or crashed while {len(running)} {were} running:"
                f" {_named(running)}"
            )
        if unended := [entry for entry in interrupted if entry.owner not in killed]:
            of, ran = "1 exchange", "it ran"
            if len(unended) > 1:
                of, ran = f"{len(unended)} exchanges", "they ran"
            self._warn(
                f"the log has no end of {of}, because it could not be written or was copied while"
                f" {ran}: {_named(unended)}"
            )
        for id in written:
            spool.owner.forget(id)

    def _write_spool(self, store: Store, path: Path) -> None:
        if not path.exists():
            return
        group: list[Exchange] = []
        for exchange in read(path):
            if exchange is None:
                self._warn(f"{path} has a line that is not an exchange; it was skipped")
                continue
            group.append(exchange)
            if len(group) == GROUP:
                self._write_all(store, group)
                group = []
                self._spool_excess()  # what is appended here will be read as well
        self._write_all(store, group)
        if not store.is_current():
            raise Locked(f"{store.path} was replaced")

    def _write_all(self, store: Store, exchanges: list[Exchange]) -> None:
        while exchanges:
            try:
                exchanges = exchanges[store.write(exchanges) :]
            except StoreError:
                raise
            except Exception:
                for exchange in exchanges:
                    self._write_one(store, exchange)
                return
            self._closing.wait(GAP_S)

    def _wait_out(self, exc: StoreError) -> None:
        """Pause after a failed attempt, longer each time, so that its cause can go away."""
        locked = isinstance(exc, Locked)
        if not locked:
            self._drop_store()
            if self._closing.is_set():
                self._deadline = 0.0  # the user has to fix it, and waits for us to stop
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        lasted_s = now - self._failing_since
        if self._spool is not None and (not locked or lasted_s > SPOOL_AFTER_S):
            self._spooling = self._spool.is_possible()
        if not self._warned and (not locked or lasted_s > LOCKED_WARNING_S):
            self._warned = True
            # A full disk takes an empty file, and then nothing.
            spool = f" and, when possible, in {self._spool.path}" if self._spool else ""
            self._warn(f"can't write the log ({exc}); keeping exchanges in memory{spool}")
        self._spool_all()
        self._pause(now + self._pause_s)
        longest_s = MAX_LOCKED_PAUSE_S if locked else MAX_UNUSABLE_PAUSE_S
        self._pause_s = min(2 * self._pause_s, longest_s)

    def _pause(self, until: float) -> None:
        while not self._closing.is_set() and (left_s := until - time.monotonic()) > 0:
            with self._changed:
                self._changed.wait_for(
                    lambda: (
                        self._closing.is_set()
                        or (self._spooling and self._jobs)
                        or self._is_first_loss()
                    ),
                    left_s,
                )
            self._spool_all()
            if self._is_first_loss():
                self._has_warned_of_loss = True
                self._warn(
                    "there is no more room to keep exchanges: until the log can be written,"
                    " requests are answered, but not logged"
                )

    def _is_first_loss(self) -> bool:
        return self._lost > self._reported_lost and not self._has_warned_of_loss

    def _spool_excess(self) -> None:
        """Move queued exchanges to the spool while there are too many for memory."""
        if self._spool is not None and self._queued_bytes > SPOOL_ABOVE_BYTES:
            self._spooling = True
            self._spool_all(SPOOL_ABOVE_BYTES)
            self._spooling = False

    def _spool_all(self, except_bytes: int = -1) -> None:
        """Move queued exchanges to the spool if spooling is on, until so many bytes are left."""
        while (
            self._spooling
            and self._spool is not None
            and self._jobs
            and self._queued_bytes > except_bytes
        ):
            try:
                self._spool.append(self._jobs[0].exchange)
            except OSError:
                self._spooling = False
            except Exception as exc:  # it has no JSON form
                self._warn(f"a response was not logged: {type(exc).__name__}: {exc}")
                self._settle(1, exc)
            else:
                self._worth_waiting = True
                self._settle(1)

    def _recovered(self) -> None:
        self._worth_waiting = True
        self._pause_s = FIRST_PAUSE_S
        self._failing_since = None
        self._spooling = False
        self._has_warned_of_loss = False
        lost = self._lost - self._reported_lost
        self._reported_lost += lost
        if self._warned:
            self._warned = False
            self._warn(f"the log can be written again; {_exchanges(lost)} lost")
        elif lost:
            self._warn(f"the log is written too slowly; {_exchanges(lost)} lost")

    def _settle(self, count: int, error: Exception | None = None) -> None:
        """Complete the first `count` jobs of the queue."""
        self._one_by_one = max(0, self._one_by_one - count)
        waiting: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
        with self._changed:
            settled = [self._jobs.popleft() for _ in range(count)]
            self._queued_bytes -= sum(job.size_bytes for job in settled)
            for job in settled:
                if error is None:
                    job.written.set_result(None)
                else:
                    job.written.set_exception(error)
                for one in job.written.waiting:
                    waiting.setdefault(one.get_loop(), []).append(one)
        for loop, those in waiting.items():
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(_wake, those)

    def _rest(self, wrote: int) -> None:
        """Wait for something to write; when idle for a while, empty the write-ahead log."""
        if wrote:
            self._unflushed = True
            self._leave_gap()
        while True:
            wait_s = IDLE_S if self._unflushed else None
            with self._changed:
                if self._changed.wait_for(lambda: self._jobs or self._closing.is_set(), wait_s):
                    return
            self._flush()

    def _leave_gap(self) -> None:
        """Let other programs write, until a client waits for a commit."""
        began = time.monotonic()
        is_due = began - self._last_gap_at > MAX_BUSY_S
        with self._changed:
            was_cut = self._changed.wait_for(
                lambda: self._closing.is_set() or (self._awaited and self._jobs and not is_due),
                GAP_S,
            )
        if not was_cut:
            self._last_gap_at = began + GAP_S

    def _flush(self) -> None:
        self._unflushed = False
        if self._store is not None and self._store.is_current():
            with suppress(StoreError):  # the next write fails the same way, and warns
                self._store.flush()

    def _drop_store(self) -> None:
        self._has_inherited = False
        if self._store is not None:
            self._store.close()
            self._store = None

    def _stop(self) -> None:
        self._spooling = True
        self._spool_all()
        with self._changed:
            left = {job.exchange.id for job in self._jobs} - self._unended
            count = len(left) + self._lost - self._reported_lost
        if count:
            self._warn(f"{_exchanges(count)} not logged")
        self._settle(len(self._jobs), StoreError("the writer was closed first"))
        self._flush()
        self._drop_store()
        if self._spool is not None:
            self._spool.owner.release()


def _wake(waiting: Sequence[asyncio.Future[None]]) -> None:
    for one in waiting:
        if not one.done():  # cancelled
            one.set_result(None)


def _size_bytes(exchange: Exchange) -> int:
    size = value_bytes(exchange.request.body)
    size += sum(event_bytes(event, MAX_PENDING_BYTES) for _, event in exchange.events)
    if (turn := exchange.turn) is not None:
        size += message_bytes(turn.messages) + message_bytes(turn.reply)
        size += value_bytes(turn.response_json)
    return size


def _named(entries: Sequence[ExchangeSummary]) -> str:
    """List exchanges with their models: one may be the cause of a crash."""
    shown = [
        f"{entry.id} ({entry.client}, {entry.model_asked or 'the default model'})"
        for entry in entries[:MAX_NAMED]
    ]
    more = f" and {len(entries) - MAX_NAMED} more" if len(entries) > MAX_NAMED else ""
    return f"{', '.join(shown)}{more}"


def _exchanges(count: int) -> str:
    return "1 exchange was" if count == 1 else f"{count or 'no'} exchanges were"
