"""The engine: runs one model per request and contains all its failures.

An `EngineRun` is a running model, whose events wait in an `EventQueue` until they are
read. An async model runs in a task, a sync one in a daemon thread; whatever either
raises ends only this run.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
import traceback
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from json import JSONDecodeError
from types import TracebackType
from typing import Any

import llm
from llm.parts import StreamEvent

from ...core import backend, chat, payload
from ...core.backend import EVENT_BYTES, event_bytes, too_large
from ...core.errors import ProxyError, UpstreamError
from ...core.known_keys import KnownKeys
from ...core.limits import Limits
from ...core.think_tags import ThinkTagSplitter
from ...core.threads import MAX_THREADS, Threads
from ...core.url_policy import RemoteImages
from ..llm_keys import keys_of_model, known_keys
from . import outcome
from .catalog import Catalog, CatalogEntry, model_turn
from .event_queue import QUEUED_EVENTS, EventQueue
from .events import EventReader, StopCutter
from .model_events import ModelEvents
from .openai_streams import with_corrected_streams
from .prompt import Call, build_prompt, has_read_history

logger = logging.getLogger(__name__)

STOP_S = 1.0  # time for a cancelled model to clean up before it is abandoned

_ASYNC = (llm.AsyncModel, llm.AsyncKeyModel)


class Engine:
    """A backend that answers requests with llm's models.

    think_tags: read `<think>…</think>` in a model's text as reasoning.
    remote_images: whether models are given URLs of images and files.
    threads: how many sync models may run at one time, including those that were stopped
        but have not ended: each holds a thread, which can't be interrupted.
    keys: redacted from errors; llm's own by default.
    answer_bytes: of memory that a response may take, all that its plugin yields counted, also
        what is held back or left out.
    debug: log the traceback of whatever a model raises.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        think_tags: bool = False,
        remote_images: RemoteImages = "pass",
        threads: int = MAX_THREADS,
        keys: KnownKeys | None = None,
        answer_bytes: int = Limits().answer,
        debug: bool = False,
    ) -> None:
        self.catalog = catalog
        self._think_tags = think_tags
        self._remote_images = remote_images
        self._threads = Threads(threads)
        self._read_history: set[str] = set()  # models whose plugin read a conversation's responses
        self._keys = keys or known_keys()
        self._answer_bytes = answer_bytes
        self._debug = debug

    async def choose(
        self, request: chat.ChatRequest, headers: Sequence[tuple[str, str]] = ()
    ) -> EngineChoice:
        """Find the model that a request asks for.

        Raises:
            ModelNotFound: llm has no such model.
        """
        return EngineChoice(self, await self.catalog.choose(request.model))

    def prepare(self, entry: CatalogEntry, request: chat.ChatRequest) -> EngineRun:
        """Return a run of a model, not started yet.

        Raises:
            Unsupported: the model lacks a feature that the request depends on.
            ProxyError: the model's plugin refuses the request.
        """
        defaults = self.catalog.options(entry.model_id)
        self._keys.look()  # before the model reads its key, which may have changed when it fails
        self._keys.learn(keys_of_model(entry.model))
        try:
            reads_history = entry.model_id in self._read_history
            call = build_prompt(
                request, entry.model, defaults, self._remote_images, reads_history=reads_history
            )
            splitter = ThinkTagSplitter() if self._think_tags else None
            return EngineRun(
                call,
                entry,
                self._keys,
                self._threads,
                self.catalog.ran,
                self._read_history,
                splitter,
                answer_bytes=self._answer_bytes,
                counted_calls=request.counted_calls,
                debug=self._debug,
                is_streamed=request.stream,
            )
        except BaseException as exc:
            # A plugin's Options or Response may raise anything.
            raise outcome.translate(exc, self._keys, entry.model_id, debug=self._debug) from exc


class EngineChoice:
    """A model of the catalog, chosen for a request; see backend.Choice."""

    takes_recall = True

    def __init__(self, engine: Engine, entry: CatalogEntry) -> None:
        self.model_id = entry.model_id
        self._engine = engine
        self._entry = entry

    def prepare(self, request: chat.ChatRequest) -> EngineRun:
        """Return a run of this model, not started yet; see Engine.prepare."""
        return self._engine.prepare(self._entry, request)


class EngineRun:
    """A model at work on one request; see backend.Run."""

    def __init__(
        self,
        call: Call,
        entry: CatalogEntry,
        keys: KnownKeys,
        threads: Threads,
        ran: dict[str, object],
        read_history: set[str],
        splitter: ThinkTagSplitter | None = None,
        *,
        answer_bytes: int,
        counted_calls: int | None = None,
        debug: bool = False,
        is_streamed: bool = False,
    ) -> None:
        prompt = call.prompt
        self._entry = entry
        self._keys = keys
        self._threads = threads
        self._ran = ran
        self._read_history = read_history
        self._has_turn = False
        self._has_begun = False
        self.runs_in_process = entry.runs_in_process
        self.is_first = False
        self.replay_of: str | None = None
        self.setup_ms: float | None = None
        self.model_id: str = prompt.model.model_id
        self.options: Mapping[str, Any] = call.options
        self.tools = call.tools
        self.ignored = call.ignored
        self.started = datetime.now(UTC)
        self.started_at = time.monotonic()
        self._bytes_left = answer_bytes
        self._debug = debug
        self._queue = EventQueue()
        self._reader = EventReader(lambda: f"call_{secrets.token_hex(12)}", counted_calls)
        self._splitter = splitter
        self._cutter = StopCutter(call.stop_sequences) if call.stop_sequences else None
        self._is_streamed = is_streamed
        self.upstream = backend.NO_UPSTREAM
        self._shows_all = self._splitter is None and self._cutter is None
        self._task: asyncio.Task[None] | None = None
        self._response = _response(call)
        is_async = isinstance(self._response, llm.AsyncResponse)
        self.starts_at_once = is_async and entry.limiter is None

    # ---- start

    async def wait_turn(self, wait_s: float | None) -> bool:
        """Wait for the model's limiter, if it has one; see backend.Run."""
        limiter = self._entry.limiter
        if limiter is None:
            return False
        has_waited = await model_turn(limiter, self.model_id, wait_s)
        self._has_turn = True
        return has_waited

    async def start(self) -> None:
        """Start the model; see backend.Run."""
        response = self._response
        if isinstance(response, llm.Response):
            await self._threads.wait_for_slot()
        if self._queue.is_closed:
            return
        self.started = datetime.now(UTC)
        self.started_at = time.monotonic()
        self._queue.start(self.started_at)
        if isinstance(response, llm.AsyncResponse):
            self._task = asyncio.create_task(self._run_async(response))
            self._task.add_done_callback(lambda _: self._leave())
        else:
            run = partial(self._run_sync, response)
            self._threads.start(run, f"llmproxy-{self.model_id}", self._leave)
        # From here on only the end of the model itself releases its turn, possibly long
        # after a `stop`.
        self._has_begun = True
        if self.runs_in_process:  # a reload of the catalog makes new models, which load again
            self.is_first = self._ran.get(self.model_id) is not self._entry.model
            self._ran[self.model_id] = self._entry.model

    def _leave(self) -> None:
        """Release the turn for the next request, and the memory of this one."""
        # A conversation and its responses refer to one another: without this they would stay
        # until a full garbage collection, which holds all threads the longer the more they are.
        if (conversation := self._response.conversation) is not None:
            self._response.conversation = None
            if has_read_history(conversation):
                self._read_history.add(self.model_id)
                for response in conversation.responses:
                    response.conversation = None
        if self._has_turn:
            self._has_turn = False
            assert self._entry.limiter is not None
            self._entry.limiter.leave()

    # ---- for the reader

    def read(
        self, silence_s: float | None = None
    ) -> Coroutine[Any, Any, list[backend.Stamped] | None]:
        """Return the events that have come, at least one; [] after the last.

        None after `silence_s` seconds without an event while the model still runs.

        Raises:
            ProxyError: the model failed; raised after all events that came before.
        """
        assert self._has_begun
        return self._queue.read(silence_s)

    async def stop(self) -> None:
        """Stop the model and drop unread events; wait at most `STOP_S` for it to end.

        Stopping an async model also ends its request to the provider. A sync one ends at
        its next yield: a thread can't be interrupted.
        """
        was_over = self._queue.is_over
        self._queue.close()
        if not self._has_begun:
            self._leave()
        if self._task is not None and not self._task.done():
            if not was_over:  # otherwise it is already closing the model
                self._task.cancel()
            await asyncio.wait({self._task}, timeout=STOP_S)

    # ---- events of the model

    def _take(self, event: StreamEvent) -> bool:
        """Queue an event of the plugin; return whether the model should go on.

        Raises:
            UpstreamError: the response is too large, or the event is none.
        """
        if self._shows_all and self._reader.is_more(event):  # most are: 0.4 µs less for each
            self._queue.push_one(event)
            self._bytes_left -= EVENT_BYTES + len(event.chunk)
            if self._bytes_left < 0:
                raise too_large()
            return not self._queue.is_closed
        if event.provider_metadata:
            event = replace(event, provider_metadata=self._kept(event.provider_metadata))
        clean = self._reader.feed(event)
        if self._shows_all:
            if clean:  # empty events don't count as a sign of life
                self._queue.push(clean)
        else:
            for one in clean:
                self._push(one)
                if self._cutter is not None and self._cutter.matched is not None:
                    return False
        # Counted here, since not all of them reach a reader: some are empty or held back.
        self._bytes_left -= event_bytes(event, self._bytes_left)
        if self._bytes_left < 0:
            raise too_large()
        return not self._queue.is_closed

    def _kept(
        self, value: dict[str, Any], name: str = "provider_metadata"
    ) -> dict[str, Any] | None:
        """Return a plugin's value; leave out and list one too deep to be stored."""
        size, depth = payload.measure(value, self._bytes_left)
        if size > self._bytes_left:
            raise too_large()
        if depth <= payload.MAX_DEPTH:
            return value
        if name not in self.ignored:
            self.ignored += (name,)
        return None

    def _push(self, event: StreamEvent) -> None:
        self._show([event] if self._splitter is None else self._splitter.feed(event))

    def _show(self, events: list[chat.Event]) -> None:
        if self._cutter is not None:
            cutter = self._cutter
            events = [
                shown
                for event in events
                if isinstance(event, StreamEvent)
                for shown in cutter.feed(event)
            ]
        if events:
            # Neither does text that is held back.
            self._queue.push(events)

    def _close_with(
        self, response: llm.Response | llm.AsyncResponse, exc: BaseException | None
    ) -> None:
        """Finish the stream even if the plugin left invalid data in its response."""
        try:
            self._finish(response, exc)
        except ProxyError as error:
            self._queue.end(error)
        except BaseException as failure:
            logger.debug("a response could not be finished", exc_info=failure)
            told = outcome.translate(failure, self._keys, self.model_id, debug=self._debug)
            said = f"the model's plugin left an invalid response: {told.message}"
            self._queue.end(UpstreamError(said))

    def _finish(
        self, response: llm.Response | llm.AsyncResponse, exc: BaseException | None
    ) -> None:
        """End the stream with a Finish, or with the error for an exception."""
        cut = self._cutter is not None and self._cutter.matched is not None
        if isinstance(exc, ProxyError):  # of ours, but it may quote the provider
            self._queue.end(self._keys.redact_error(exc))
            return
        if exc is not None and not self._is_normal_end(exc):
            self._queue.end(outcome.translate(exc, self._keys, self.model_id, debug=self._debug))
            return
        if not cut:
            for event in self._reader.end([] if exc else response._tool_calls):
                self._push(event)
            if self._splitter is not None:
                self._show(self._splitter.end())
            if self._cutter is not None:
                self._queue.push(self._cutter.end())
        self._queue.push([self._finish_event(response, exc, cut)])
        self._queue.end()

    def _is_normal_end(self, exc: BaseException) -> bool:
        """Return whether an exception marks the end of a response rather than a failure."""
        # Plugins parse a call's arguments after the stream. Arguments that a token limit
        # cut raise then, after all events have been yielded.
        causes = (exc, exc.__cause__)
        about_json = any(isinstance(cause, JSONDecodeError) for cause in causes)
        return (about_json and self._reader.is_cut_in_call) or outcome.is_refusal(exc)

    def _finish_event(
        self, response: llm.Response | llm.AsyncResponse, exc: BaseException | None, cut: bool
    ) -> chat.Finish:
        if exc is None and not cut:
            outcome.check_whole(response)
        raw = response.response_json
        counted = llm.Usage(response.input_tokens, response.output_tokens, response.token_details)
        reason = outcome.finish_reason(response.response_json, has_calls=self._reader.has_calls)
        if cut:
            reason = "stop"
        elif exc is not None and outcome.is_refusal(exc):
            reason = "content_filter"
        elif exc is not None and response.response_json is None:
            reason = "length"
        return chat.Finish(
            reason=reason,
            stop_sequence=(
                self._cutter.matched
                if cut and self._cutter
                else outcome.stop_sequence(response.response_json)
            ),
            usage=outcome.usage(counted),
            model=response.resolved_model,
            response_json=None if raw is None else self._kept(raw, "response_json"),
            llm_usage=counted,
            provider_reason=None if cut else outcome.provider_reason(response.response_json),
        )

    # ---- an async model

    async def _run_async(self, response: llm.AsyncResponse) -> None:
        queue = self._queue
        raised: BaseException | None = None
        events: ModelEvents | None = None
        is_open = True
        # A stream's first event goes out before the model makes more.
        since_pause = QUEUED_EVENTS - 1 if self._is_streamed else 0
        try:
            events = ModelEvents(response)
            step, next_event = events.step, events.event
            while True:
                try:
                    chunk = await step()
                except StopAsyncIteration:
                    is_open = False
                    await events.finish()
                    break
                goes_on = self._take(next_event(chunk))
                queue.wake()
                if not goes_on:
                    break
                since_pause += 1
                if queue.is_full:
                    await queue.wait_for_space()
                elif since_pause >= QUEUED_EVENTS:
                    since_pause = 0
                    await asyncio.sleep(0)  # the model itself may never await anything
        except asyncio.CancelledError as exc:
            if not queue.is_closed:  # the model cancelled itself
                raised, is_open = exc, False
        except BaseException as exc:
            raised = exc  # maybe ours, and the model would go on
        if not queue.is_closed:
            self._close_with(response, raised)
        raised = None  # its traceback refers to this frame
        queue.wake()
        if is_open and events is not None:
            await _close(events.generator)

    # ---- a sync model

    def _run_sync(self, response: llm.Response) -> None:
        queue = self._queue
        events: Iterator[StreamEvent] = response.stream_events()
        raised: BaseException | None = None
        try:
            for event in events:
                if not self._take(event):
                    break
                queue.wake_from_thread()
                if queue.is_full:
                    queue.wait_for_space_in_thread()
        except BaseException as exc:
            raised = exc
        tracebacks = _tracebacks(raised)
        if not queue.is_closed:
            self._close_with(response, raised)
        raised = None  # its traceback refers to this frame
        queue.wake_from_thread()
        _close_in_this_thread(events, tracebacks)
        tracebacks.clear()


def _response(call: Call) -> llm.Response | llm.AsyncResponse:
    model: Any = with_corrected_streams(call.prompt.model)
    kind: Any = llm.AsyncResponse if isinstance(model, _ASYNC) else llm.Response
    made: llm.Response | llm.AsyncResponse = kind(
        call.prompt, model, model.can_stream, conversation=call.conversation
    )
    return made


def _close_in_this_thread(events: Any, tracebacks: list[TracebackType]) -> None:
    """Close a sync model's generators in the thread that ran them."""
    # Native code may abort the process if another thread closes it, as the garbage collector
    # does. So also close what the frames of an exception still hold.
    try:
        events.close()
    except BaseException as exc:
        logger.debug("a model's generator did not close: %r", exc)
    for failed_at in tracebacks:
        traceback.clear_frames(failed_at)


def _tracebacks(exc: BaseException | None) -> list[TracebackType]:
    """Return the tracebacks of an exception and its causes, before the event loop sees them."""
    # The loop may raise the same exception again: its traceback then begins with coroutines,
    # which must not be cleared.
    found: list[TracebackType] = []
    left = [exc]
    seen: set[int] = set()
    while left:
        one = left.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            found += [one.__traceback__] if one.__traceback__ else []
            left += (one.__cause__, one.__context__)
    return found


async def _close(events: Any) -> None:
    """Close a model's generator so that its request to the provider ends too."""
    # aclose() alone leaves OpenAI's HTTP stream open until it is garbage-collected;
    # cancelling a step that has begun closes it at once.

    async def step() -> None:
        try:
            await anext(events)
        except BaseException:  # a cancelled model may raise anything
            pass

    stepping = asyncio.ensure_future(step())
    await asyncio.sleep(0)
    stepping.cancel()
    await asyncio.wait({stepping}, timeout=STOP_S)
    try:
        await events.aclose()
    except BaseException as exc:
        logger.debug("a model's generator did not close: %r", exc)
