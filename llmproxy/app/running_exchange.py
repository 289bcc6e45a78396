"""A request in progress: what is captured of it for the log, its run, and their limits."""

from __future__ import annotations

import asyncio
import math
import time
from concurrent.futures import Future
from dataclasses import replace
from functools import cached_property
from typing import Literal

from ..core import chat, token_estimate
from ..core.backend import Choice, Run, Stamped, event_bytes, too_large
from ..core.byte_cache import message_bytes
from ..core.errors import ProxyError, UpstreamTimeout
from ..core.message_facts import total
from ..core.usage import ESTIMATED, Usage
from ..dialects import Dialect
from ..recorder.capture import Capture
from ..recorder.exchange import Exchange
from .responses import ignored_header, server_timing, upstream_headers

Ending = Literal["ok", "error", "cancelled"]


class RunningExchange:
    """A chat request in progress: its capture for the log, its run, and their limits.

    starting: the task that waits for the model and starts the run; None if nothing has to wait.
    finding: the task that looks up what the request continues, where nothing waits for it but
        the log; None if there is none.
    queued_at: start of that wait, by time.monotonic(). has_entered: counted by the limiter.
    started_at: when the run was started, by time.monotonic(); None before. finished_at: when an
        embedding model had its vectors; of a chat, the run's last event has the time.
    until: the deadline of the response, by time.monotonic().
    history_bytes: about how much memory the conversation takes; 0 until it was prepared.
    begun_written: done when the log has the beginning; None if it was not given to the log.
    """

    def __init__(
        self, capture: Capture, dialect: Dialect, *, is_logged: bool, memory_bytes: int
    ) -> None:
        self.capture = capture
        self.id = capture.begun.id
        self.created = int(capture.begun.received.timestamp())
        self.is_logged = is_logged
        self.starting: asyncio.Task[None] | None = None
        self.finding: asyncio.Task[None] | None = None
        self.has_started = False
        self.queued_at: float | None = None
        self.has_entered = False
        self.started_at: float | None = None
        self.finished_at: float | None = None
        self.until = math.inf
        self.is_over = False
        self.begun_written: Future[None] | None = None
        self._memory_bytes = memory_bytes
        self._dialect = dialect
        self._request: chat.ChatRequest | None = None
        self.history_bytes = 0

    @property
    def run(self) -> Run:
        assert self.capture.run is not None
        return self.capture.run

    def take(self, request: chat.ChatRequest) -> None:
        """Note the request, where no choice prepares a run of it."""
        self._request = request
        self.history_bytes = total(self.capture.messages, "all bytes", message_bytes)

    def prepare(self, choice: Choice, request: chat.ChatRequest, *, is_large: bool) -> Run:
        """Prepare the request for what was chosen; raise as `Choice.prepare` does.

        is_large: this is called in a thread. Whatever else has to look at each message is
            done here too: 80,000 of them would hold the event loop for 90 ms at the end.
        """
        self._request = request
        self.capture.run = run = choice.prepare(request)
        self.history_bytes = total(self.capture.messages, "all bytes", message_bytes)
        if self._dialect.STARTS_WITH_USAGE or (is_large and self.shows_usage):
            self.input_estimate  # noqa: B018
        return run

    @cached_property
    def input_estimate(self) -> int:
        """Our estimate of the request's tokens."""
        assert self._request is not None
        return token_estimate.estimate(self._request)

    def envelope(self) -> chat.Envelope:
        """Return what renderers need besides the events; the model as the client named it."""
        request = self._request
        assert request is not None
        return chat.Envelope(
            self.id,
            self.created,
            request.model or self.run.model_id,
            request.include_usage,
            self.input_estimate if self._dialect.STARTS_WITH_USAGE else 0,
            request.form,
            request.echo,
        )

    @property
    def shows_usage(self) -> bool:
        """Whether the response includes token counts."""
        request = self._request
        return request is None or not request.stream or request.include_usage

    def for_client(self, finish: chat.Finish) -> chat.Finish:
        """Return the Finish with its times, and estimates of tokens that were not counted.

        What the client can't be shown is listed: in the header of a whole response, in the log
        also of a stream, whose headers have been sent.
        """
        left_out = self._dialect.left_out(self.capture.response, self.envelope())
        self.capture.ignored_late += left_out
        usage = finish.usage
        if self.shows_usage and None in (usage.input_tokens, usage.output_tokens):
            self.capture.ignored_late += (ESTIMATED,)
            usage = self._with_estimates(usage)
        return replace(finish, durations=self._durations(), usage=usage)

    def _with_estimates(self, usage: Usage) -> Usage:
        input_tokens, output_tokens = usage.input_tokens, usage.output_tokens
        if input_tokens is None:
            input_tokens = self.input_estimate
        if output_tokens is None:
            output_tokens = token_estimate.estimate_reply(self.capture.response.messages)
        return replace(usage, input_tokens=input_tokens, output_tokens=output_tokens)

    def _durations(self) -> chat.Durations:
        began, started = self.capture.began_at, self.run.started_at
        first, last = self.capture.first_at, self.capture.last_at
        assert first is not None and last is not None
        spans = (last - began, started - began, first - started, last - first)
        return chat.Durations(*(max(int(span * 1e9), 0) for span in spans))

    def headers(self, *, is_usage_estimated: bool = False) -> list[tuple[str, str]]:
        """Return the headers of a successful response."""
        ignored = self.capture.ignored + ((ESTIMATED,) if is_usage_estimated else ())
        return [*self._facts().items(), *ignored_header(ignored)]

    def with_id(self, error: ProxyError) -> ProxyError:
        """Add the exchange's id and its times to an error's headers."""
        error.headers = {**error.headers, **self._facts()}
        return error

    def _facts(self) -> dict[str, str]:
        timing = server_timing(self._overhead_ms(), self.capture.queue_ms)
        facts = {self._dialect.REQUEST_ID_HEADER: self.id, "server-timing": timing}
        capture = self.capture
        return facts | upstream_headers(capture.run.upstream if capture.run else capture.upstream)

    def _overhead_ms(self) -> float:
        """Return the time that the proxy itself has taken so far.

        From the request to the start of the run, without waiting for its turn, and since the
        run's Finish, or since the vectors were there.
        """
        capture, now = self.capture, time.monotonic()
        before_s = (self.started_at or now) - capture.began_at
        finished_at = capture.last_at if capture.finish else self.finished_at
        after_s = now - finished_at if finished_at else 0.0
        return max((before_s + after_s) * 1000 - (capture.queue_ms or 0.0), 0.0)

    async def read(self, silence_s: float | None = None) -> list[Stamped] | None:
        """Wait until the run has started, then return its next events and keep them.

        Return None after `silence_s` seconds without an event, [] after the last.

        Raises:
            ProxyError: the run could not start, or failed.
            UpstreamTimeout: the response took longer than `answer_s`.
            UpstreamError: the response is too large.
        """
        if not self.has_started:
            waiting_since = time.monotonic()
            if not await self._wait_for_start(silence_s):
                return None
            if silence_s is not None:
                silence_s = max(silence_s - (time.monotonic() - waiting_since), 0.0)
        run = self.capture.run
        assert run is not None
        if self.until == math.inf:
            batch = await run.read(silence_s)
            if batch:
                self._keep(batch)
            return batch
        while True:
            left_s = max(self.until - time.monotonic(), 0.0)
            batch = await run.read(left_s if silence_s is None else min(left_s, silence_s))
            if batch:
                self._keep(batch)
            is_over = batch == [] or (batch and isinstance(batch[-1].event, chat.Finish))
            if not is_over and time.monotonic() >= self.until:
                raise UpstreamTimeout("the response did not end in time (limit answer_s)")
            # The silence began at the last event, so it can be over before the deadline is.
            if batch is not None or silence_s is not None:
                return batch

    async def _wait_for_start(self, silence_s: float | None) -> bool:
        assert self.starting is not None
        await asyncio.wait({self.starting}, timeout=silence_s)
        if not self.starting.done():
            return False
        self.starting.result()
        self.has_started = True
        return True

    def _keep(self, batch: list[Stamped]) -> None:
        """Keep events for the log, up to the memory limit of a response."""
        self.capture.add(batch)
        for _, event in batch:
            if not isinstance(event, chat.Finish):
                self._memory_bytes -= event_bytes(event, self._memory_bytes)
        if self._memory_bytes < 0:
            raise too_large()

    async def has_found(self, within_s: float | None = None) -> None:
        """Wait until `finding` has ended."""
        if self.finding is not None:
            await asyncio.wait({self.finding}, timeout=within_s)

    def ended(self, status: Ending, error: BaseException | None) -> Exchange:
        """Return the exchange as it ended."""
        if self.queued_at is not None:  # still waiting
            self.capture.queue_ms = (time.monotonic() - self.queued_at) * 1000
        self.capture.overhead_ms = self._overhead_ms()
        return self.capture.ended(status, error)

    async def stop(self, *, has_finished: bool) -> None:
        """Cancel the start if it is still waiting, and stop the model if it has not finished."""
        if self.starting is not None:
            if not self.starting.done():
                self.starting.cancel()
                await asyncio.wait({self.starting})
            if not self.starting.cancelled():
                self.starting.exception()  # retrieved: the client has it, or is gone
        if self.capture.run is not None and not has_finished:
            await self.capture.run.stop()
