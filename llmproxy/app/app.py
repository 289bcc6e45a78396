"""One HTTP request in, one response out: the route, the dialect, the engine, the log.

The app knows no socket: anything that speaks `async (Request) -> Response` serves it.
An answer's status waits for the model's first event, so that a provider's refusal is
a real status; what comes after streams as it comes (DESIGN 5).
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
)
from concurrent.futures import Future
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Any, Literal, cast

from ..backends.engine import in_daemon_thread
from ..conversations.matching import Match, Matcher
from ..core import backend, chat, payload, token_estimate
from ..core.errors import NotFound, ProxyError, RateLimited, UpstreamError, UpstreamTimeout
from ..core.fingerprints import request_key
from ..core.known_keys import KnownKeys
from ..core.limiter import Limiter
from ..core.limits import Limits
from ..dialects import DIALECTS, CountingDialect, Dialect, Renderer
from ..recorder.exchange import Exchange, Turn, begun
from ..recorder.writer import Writer
from ..transport.http11 import BodyCut, Headers, Request, Response, decode_content
from .access import Access
from .metrics import Metrics
from .status import PATHS, Pages, State, not_allowed

__all__ = ["App", "render_error"]

logger = logging.getLogger(__name__)

IGNORED_HEADER_BYTES = 2_000  # some clients and proxies take 8 kB for all headers

RECALLS = 16  # threads that ask the log at one time

RETRY_S = 1  # when a client that waited in vain may ask again

EVENT_BYTES = 500  # that an event takes besides its text, while its answer runs

Ending = Literal["ok", "error", "cancelled"]


class App:
    """Answer requests of every dialect.

    writer: takes the exchanges, where there is a log; `log_is_on` is asked for each.
    memory: knows the log's conversations again, where there is one.
    new_id: gives lower-case ULIDs, each larger than the one before.
    keys: to be kept out of what is said of a failure.
    report: is told of every exchange once, when it is over.
    page: as `Pages` has it. connections: says how many there are.
    """

    def __init__(
        self,
        engine: backend.Backend,
        writer: Writer | None,
        memory: Matcher | None,
        *,
        access: Access,
        limits: Limits,
        new_id: Callable[[], str],
        keys: KnownKeys,
        log_is_on: Callable[[], bool],
        report: Callable[[Exchange], None],
        page: Callable[[str, bool], str] | None = None,
        connections: Callable[[], int] = lambda: 0,
    ) -> None:
        self._engine = engine
        self._writer = writer
        self._memory = memory
        self._access = access
        self._limits = limits
        self._new_id = new_id
        self._keys = keys
        self._log_is_on = log_is_on
        self._report = report
        self._connections = connections
        self._gate = Limiter(limits.running)
        self._recalls = asyncio.Semaphore(RECALLS)
        self._waiting = 0
        self._counts_tokens: dict[str, bool] = {}  # by model id: did its last run count any?
        self._metrics = Metrics()
        self._pages = Pages(page, self._metrics, self._state)
        self._handlers: Mapping[
            backend.Kind, Callable[[Dialect, Request, str], Awaitable[Response]]
        ]
        self._handlers = {
            "chat": self._chat,
            "models": self._models,
            "model": self._model,
            "count_tokens": self._count_tokens,
        }

    async def __call__(self, request: Request) -> Response:
        """Answer one request; only a hang-up's CancelledError comes out."""
        dialect: Dialect | None = None
        cors: list[tuple[str, str]] = []  # a page of a foreign origin is told nothing
        try:
            self._access.check_source(request)
            cors = self._access.cors_headers(request)
            self._access.check_key(request)
            if request.method == "OPTIONS":
                response = Response(204)
            elif (path := _bare(request.path) or "/") in PATHS:
                response = await self._pages.answer(path, request)
            else:
                dialect, kind, argument = _route(request)
                request = decode_content(request, self._limits)
                response = await self._handlers[kind](dialect, request, argument)
        except ProxyError as error:
            response = render_error(error, dialect)
        except Exception:
            # The traceback is for the operator; it may quote the request, so not for anyone else.
            logger.exception("answering %s %s failed", request.method, request.path)
            response = render_error(ProxyError("internal error"), dialect)
        return replace(response, headers=[*response.headers, *cors])

    def _state(self) -> State:
        log = None if self._writer is None else self._writer.health()
        return State(self._gate.running, self._waiting, self._connections(), log)

    async def _models(self, dialect: Dialect, request: Request, argument: str) -> Response:
        models = self._engine.catalog.models()
        return _json(200, dialect.render_models(models))

    async def _model(self, dialect: Dialect, request: Request, argument: str) -> Response:
        return _json(200, dialect.render_model(await self._engine.catalog.model(argument)))

    async def _count_tokens(self, dialect: Dialect, request: Request, argument: str) -> Response:
        """Count locally, as an estimate: clients ask dozens of times in a row (B34)."""
        body = payload.parse(request.body, self._limits)
        # A count needs no answer, and its body has no limit for one.
        asked = dialect.parse_request(body, dict(request.headers))
        counting = cast(CountingDialect, dialect)  # it has the route
        return _json(200, counting.render_count(token_estimate.estimate(asked)))

    async def _chat(self, dialect: Dialect, request: Request, argument: str) -> Response:
        exchange = _Exchange(
            self._new_id(),
            dialect,
            request,
            self._keys,
            is_logged=self._log_is_on(),
            room_bytes=self._limits.answer,
        )
        try:
            try:
                body = payload.parse(request.body, self._limits)
                exchange.body = dialect.normalize_body(body)
                exchange.request = dialect.parse_request(body, dict(request.headers))
            finally:
                begun = self._write(exchange, exchange.begin())
            exchange.answer = await self._engine.answer(
                exchange.request, partial(self._recollect, exchange)
            )
            exchange.beginning = asyncio.create_task(self._begin(exchange, exchange.answer, begun))
            if exchange.request.stream:
                return await self._stream(dialect, exchange)
            return await self._whole(dialect, exchange)
        except ProxyError as error:
            await self._end(exchange, "error", error)
            return render_error(exchange.named(error), dialect)
        except BaseException as exc:
            bug = isinstance(exc, Exception)
            await self._end(exchange, "error" if bug else "cancelled", exc)
            raise

    async def _begin(
        self, exchange: _Exchange, answer: backend.Run, begun: Future[None] | None
    ) -> None:
        """Begin an answer when its model's turn has come, and a place among all that run.

        begun: ends when the log has that the exchange began. A model in this process may end
        it at any moment, and the log is to say then what was running.

        Raises:
            Unavailable: others hold the model for too long, or there is no thread for it.
            RateLimited: too many answers run.
        """
        exchange.queued_at = time.monotonic()
        self._waiting += 1
        try:
            has_waited = await answer.wait_turn(self._limits.queue_s)
            has_waited |= await self._enter()
            exchange.has_entered = True
        finally:
            self._waiting -= 1
        if has_waited:
            exchange.queue_ms = (time.monotonic() - exchange.queued_at) * 1000
        exchange.queued_at = None
        if begun is not None and answer.runs_in_process:
            assert self._writer is not None
            await self._writer.committed(begun, self._limits.log_wait_s)
        await answer.begin()
        exchange.until = time.monotonic() + self._limits.answer_s

    async def _enter(self) -> bool:
        try:
            return await self._gate.enter(self._limits.queue_s)
        except TimeoutError:
            raise RateLimited(
                f"{self._gate.limit} answers are running, and none ended for"
                f" {self._limits.queue_s:g} s",
                headers={"retry-after": f"{RETRY_S}"},
            ) from None

    async def _recollect(self, exchange: _Exchange, model: str) -> chat.ChatRequest:
        """Find the conversation in the log; a log that can't be asked soon costs no answer."""
        assert exchange.request is not None
        if self._memory is not None and exchange.is_logged:
            messages, recollect = exchange.request.messages, self._memory.recollect
            try:
                async with asyncio.timeout(self._limits.log_wait_s), self._recalls:
                    asked = in_daemon_thread(
                        lambda: recollect(messages, model, exchange.client), "llmproxy-memory"
                    )
                    exchange.recollected(await asked)
            except (TimeoutError, RuntimeError):
                logger.warning("the log did not say what exchange %s goes on from", exchange.id)
        return exchange.request

    async def _whole(self, dialect: Dialect, exchange: _Exchange) -> Response:
        while await exchange.read():
            pass
        response = exchange.response
        response = replace(response, finish=exchange.counted(response.finish))
        rendered = dialect.render_response(response, exchange.envelope)
        exchange.http_status = 200
        await self._end(exchange, "ok")
        return _json(200, rendered, _headers(dialect, exchange))

    def _expects_no_counts(self, exchange: _Exchange) -> bool:
        """Whether the usage of a stream will be an estimate, as far as can be told before."""
        answer = exchange.answer
        assert answer is not None
        counts = self._counts_tokens.get(answer.model_id, not answer.runs_in_process)
        return exchange.shows_usage and not counts

    async def _stream(self, dialect: Dialect, exchange: _Exchange) -> Response:
        first = await exchange.read(self._limits.first_event_s)
        renderer = dialect.StreamRenderer(exchange.envelope)
        headers = [
            ("content-type", dialect.STREAM_TYPE),
            ("cache-control", "no-cache"),
            ("x-accel-buffering", "no"),  # nginx would hold the stream back
            *_headers(dialect, exchange, is_estimated=self._expects_no_counts(exchange)),
        ]
        exchange.http_status = 200
        frames = self._frames(dialect, exchange, renderer, first)
        return Response(200, headers, _Body(frames, lambda: self._end(exchange, "cancelled")))

    async def _frames(
        self,
        dialect: Dialect,
        exchange: _Exchange,
        renderer: Renderer,
        batch: list[backend.Stamped] | None,
    ) -> AsyncGenerator[bytes, None]:
        """Give the bytes of a stream: what is ready together at once, the end after its commit."""
        frames = renderer.start()
        sent_at = time.monotonic()
        try:
            while batch != []:
                for stamped in batch or ():
                    event = stamped.event
                    if isinstance(event, chat.Finish):
                        if frames:
                            yield b"".join(frames)
                            frames = []
                        event = exchange.counted(event)
                        await self._end(exchange, "ok")
                    frames += renderer.feed(event)
                now = time.monotonic()
                # Events that this wire does not show keep nobody's connection open.
                if batch is None or (not frames and now - sent_at >= self._limits.keepalive_s):
                    frames += renderer.idle()
                if frames:
                    sent_at = now
                    yield b"".join(frames)
                    frames = []
                batch = await exchange.read(self._limits.keepalive_s)
        except ProxyError as error:
            await self._end(exchange, "error", error)
            yield b"".join(frames + renderer.fail(exchange.named(error)))
            if dialect.CUT_AFTER_ERROR:
                raise BodyCut from error

    async def _end(
        self, exchange: _Exchange, status: Ending, error: BaseException | None = None
    ) -> None:
        """Stop the model, log how it ended and wait for that, and report; only the first counts.

        What the model had produced is kept, also when nobody waits for it any more.
        """
        if exchange.is_over:
            return
        exchange.is_over = True
        written = None
        try:
            ended = exchange.end(status, error, self._new_id)
            written = self._write(exchange, ended)
            if written is not None and self._memory is not None:
                self._memory.learn(ended)
            if status == "ok" and ended.model_used is not None:
                self._counts_tokens[ended.model_used] = ended.usage.output_tokens is not None
            self._metrics.count(ended)
            self._report(ended)
        except Exception:  # neither a bug here nor a broken terminal costs an answer
            logger.exception("the end of exchange %s could not be told", exchange.id)
        finally:
            try:
                await exchange.stop_beginning()
                if exchange.answer is not None and status != "ok":
                    await exchange.answer.stop()
            finally:
                if exchange.has_entered:
                    self._gate.leave()
        if written is not None and status != "cancelled":
            assert self._writer is not None
            await self._writer.committed(written, self._limits.log_wait_s)

    def _write(self, exchange: _Exchange, state: Exchange) -> Future[None] | None:
        if self._writer is None or not exchange.is_logged:
            return None
        return self._writer.write(state)


class _Exchange:
    """One chat request from its arrival to its end: what is kept of it as it goes on.

    body: the JSON as it came, or the bytes as text where it is none.
    http_status: once there is one to send. has_entered: it has one of the running places.
    beginning: waits for the answer's turn and begins it. queued_at: since when it waits, by
        time.monotonic(); queue_ms: how long it waited, None where nobody was first.
    until: when it must have ended, by time.monotonic().
    """

    def __init__(
        self,
        id_: str,
        dialect: Dialect,
        http_request: Request,
        keys: KnownKeys,
        *,
        is_logged: bool,
        room_bytes: int,
    ) -> None:
        self.id = id_
        self.is_logged = is_logged
        self.received = datetime.now(UTC)
        self.received_at = time.monotonic()
        self.created = int(self.received.timestamp())
        self.client = _client(http_request.headers)
        self.recollection = Match([])
        self.body: Any = http_request.body.decode("utf-8", "replace")
        self.request: chat.ChatRequest | None = None
        self.answer: backend.Run | None = None
        self.stamped: list[backend.Stamped] = []
        self.http_status: int | None = None
        self.has_entered = False
        self.beginning: asyncio.Task[None] | None = None
        self.queued_at: float | None = None
        self.queue_ms: float | None = None
        self.is_usage_estimated = False
        self.until = math.inf
        self.is_over = False
        self._begun: Exchange | None = None
        self._room_bytes = room_bytes
        self._dialect = dialect
        self._http_request = http_request
        self._keys = keys

    @cached_property
    def response(self) -> chat.ChatResponse:
        """What the model produced, asked for when there is no more to come."""
        return chat.collect(stamped.event for stamped in self.stamped)

    @property
    def envelope(self) -> chat.Envelope:
        """The facts round the response, under the model name that was asked for, if any."""
        assert self.request is not None and self.answer is not None
        return chat.Envelope(
            self.id,
            self.created,
            self.request.model or self.answer.model_id,
            self.request.include_usage,
            token_estimate.estimate(self.request) if self._dialect.STARTS_WITH_USAGE else 0,
        )

    @property
    def shows_usage(self) -> bool:
        """Whether the client is shown how many tokens there were."""
        request = self.request
        return request is None or not request.stream or request.include_usage

    def counted(self, finish: chat.Finish) -> chat.Finish:
        """Give the end as the client is shown it: our estimate of tokens that nobody counted."""
        usage = finish.usage
        if not self.shows_usage or None not in (usage.input_tokens, usage.output_tokens):
            return finish
        assert self.request is not None
        self.is_usage_estimated = True
        if usage.input_tokens is None:
            usage = replace(usage, input_tokens=token_estimate.estimate(self.request))
        if usage.output_tokens is None:
            usage = replace(
                usage, output_tokens=token_estimate.estimate_reply(self.response.messages)
            )
        return replace(finish, usage=usage)

    async def stop_beginning(self) -> None:
        """Wait no more for a turn."""
        if self.beginning is not None and not self.beginning.done():
            self.beginning.cancel()
            await asyncio.wait({self.beginning})
        if self.beginning is not None and not self.beginning.cancelled():
            self.beginning.exception()  # looked at: the client is told, or has gone

    async def read(self, silence_s: float | None = None) -> list[backend.Stamped] | None:
        """Read from the model, keeping what comes; wait for its turn before.

        Raises:
            ProxyError: its turn did not come, or it failed.
            UpstreamTimeout: it has not ended in time.
            UpstreamError: it is too large.
        """
        assert self.answer is not None and self.beginning is not None
        if not self.beginning.done():
            asked_at = time.monotonic()
            await asyncio.wait({self.beginning}, timeout=silence_s)
            if not self.beginning.done():
                return None
            if silence_s is not None:
                silence_s = max(silence_s - (time.monotonic() - asked_at), 0.0)
        self.beginning.result()
        if self.until == math.inf:
            batch = await self.answer.read(silence_s)
        else:
            left_s = max(self.until - time.monotonic(), 0.0)
            batch = await self.answer.read(min(left_s, silence_s or math.inf))
        self.stamped += batch or ()
        self._keep_within(batch or ())
        is_over = batch == [] or (batch and isinstance(batch[-1].event, chat.Finish))
        if not is_over and time.monotonic() >= self.until:
            raise UpstreamTimeout("the answer did not end in time (limit answer_s)")
        return batch

    def _keep_within(self, batch: Iterable[backend.Stamped]) -> None:
        """Hold a model that never stops to its room, however fast its client reads."""
        for stamped in batch:
            self._room_bytes -= EVENT_BYTES
            if not isinstance(stamped.event, chat.Finish):
                self._room_bytes -= len(stamped.event.chunk)
        if self._room_bytes < 0:
            raise UpstreamError("the answer is too large (limit answer)")

    def recollected(self, recollection: Match) -> None:
        """Go on with what the log knows of the request."""
        assert self.request is not None
        self.recollection = recollection
        self.request = replace(
            self.request, messages=recollection.messages, recalled=recollection.recalled
        )

    def named(self, error: ProxyError) -> ProxyError:
        """Give an error the id under which the log has it."""
        error.headers = {**error.headers, self._dialect.REQUEST_ID_HEADER: self.id}
        return error

    def begin(self) -> Exchange:
        """The exchange as the log has it while it runs."""
        read: dict[str, Any] = {}
        if self.request is not None:
            request = self.request
            read = {
                "stream": request.stream,
                "model": request.model,
                "messages": request.messages,
                "replay_key": request_key(request),
            }
        self._begun = begun(
            self.id,
            self.received,
            dialect=self._dialect.NAME,
            path=self._http_request.path,
            query=self._http_request.query,
            client=self.client,
            headers=self._http_request.headers,
            body=self.body,
            keys=self._keys,
            **read,
        )
        return self._begun

    def end(
        self, status: Ending, error: BaseException | None, new_id: Callable[[], str]
    ) -> Exchange:
        """The exchange as it ended; its turn where a model was asked, whatever came of it."""
        finish = self.stamped[-1].event if self.stamped else None
        if status == "error" and self.http_status is None:
            self.http_status = getattr(error, "status", 500)
        return (self._begun or self.begin()).ended(
            status,
            http_status=self.http_status,
            duration_ms=self._since(time.monotonic()),
            turn=self._turn(new_id),
            events=[
                (self._since(stamped.at), stamped.event)
                for stamped in self.stamped
                if not isinstance(stamped.event, chat.Finish)
            ],
            finish=finish if isinstance(finish, chat.Finish) else None,
            error=_in_words(error),
            ignored=self.ignored,
            queue_ms=self._waited_ms(),
            is_first_run=self.answer is not None and self.answer.is_first,
            previous_id=self.recollection.previous_id,
            link=self.recollection.link,
            recalled=len(self.recollection.recalled),
            model_used=self.answer.model_id if self.answer else None,
            replay_of=self.answer.replay_of if self.answer else None,
        )

    @property
    def ignored(self) -> tuple[str, ...]:
        """Paths of what was not carried, the usage among them where it is our estimate."""
        if self.answer is None:
            return ()
        return self.answer.ignored + (("usage",) if self.is_usage_estimated else ())

    def _waited_ms(self) -> float | None:
        if self.queued_at is not None:  # it ended while it waited
            return self._since(time.monotonic()) - self._since(self.queued_at)
        return self.queue_ms

    def _turn(self, new_id: Callable[[], str]) -> Turn | None:
        if self.request is None or self.answer is None or self.answer.replay_of is not None:
            return None
        response = self.response
        answered_at = self.stamped[-1].at if self.stamped else time.monotonic()
        return Turn(
            id=self.id,
            thread_id=new_id(),
            model=self.answer.model_id,
            resolved_model=response.finish.model,
            messages=self.request.messages,
            reply=response.messages,
            options=dict(self.answer.options),
            tools=self.answer.tools,
            schema=self.request.schema,
            usage=response.finish.llm_usage,
            response_json=response.finish.response_json,
            started=self.answer.started,
            duration_ms=int((answered_at - self.answer.started_at) * 1000),
        )

    def _since(self, at: float) -> float:
        return (at - self.received_at) * 1000


def _client(headers: Headers) -> str:
    """Name the program that asks: as it says itself, else the product of its user-agent."""
    title = headers.get("x-title")  # aider and others that have an SDK's user-agent
    if title:
        return title[:80]
    product, _, version = headers.get("user-agent", "-").partition(" ")[0].partition("/")
    return (product if version[:1].isdigit() or not version else f"{product}/{version}")[:80]


def _in_words(error: BaseException | None) -> str | None:
    match error:
        case None | asyncio.CancelledError():
            return None
        case ProxyError():
            return error.words
    return f"{type(error).__name__}: {error}"


class _Body:
    """A stream's body, whose end is told also if nobody ever asked for a byte of it."""

    def __init__(
        self, frames: AsyncGenerator[bytes, None], end: Callable[[], Awaitable[None]]
    ) -> None:
        self._frames = frames
        self._end = end

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    def __anext__(self) -> Awaitable[bytes]:
        return self._frames.__anext__()

    async def aclose(self) -> None:
        """Close the stream; where the model had not finished, this is a hang-up."""
        await self._frames.aclose()
        await self._end()


# ---- routes


def _bare(path: str) -> str:
    """A path without what clients add or leave out: /v1, once or twice, and a last slash (d7)."""
    while path.startswith("/v1/"):
        path = path[3:]
    return path.rstrip("/")


_ROUTES = [(dialect, route) for dialect in DIALECTS for route in dialect.ROUTES]


def _route(request: Request) -> tuple[Dialect, backend.Kind, str]:
    """Find the dialect, what is asked of it, and the rest of the path where that is open.

    Raises:
        NotFound, MethodNotAllowed: no such path, or not by this method.
    """
    path = _bare(request.path)
    method = "GET" if request.method == "HEAD" else request.method
    allowed: set[str] = set()
    for dialect, route in _routes_for(request):
        bare, rest = _bare(route.path), ""
        if route.path.endswith("/") and path.startswith(bare + "/"):
            rest = path.removeprefix(bare + "/")
        elif path != bare or route.path.endswith("/"):
            continue
        if route.method == method:
            return dialect, route.kind, rest
        allowed |= {route.method} | ({"HEAD"} if route.method == "GET" else set())
    if allowed:
        raise not_allowed(request, allowed)
    there = ", ".join(dict.fromkeys(f"{route.method} {route.path}" for _, route in _ROUTES))
    raise NotFound(f"there is nothing at {request.path[:200]}; there is {there}")


def _routes_for(request: Request) -> list[tuple[Dialect, backend.Route]]:
    """All routes, those of the dialect whose client this is first: some are shared."""
    return sorted(_ROUTES, key=lambda place: not _is_client_of(place[0], request))


def _is_client_of(dialect: Dialect, request: Request) -> bool:
    return bool(dialect.VERSION_HEADER) and dialect.VERSION_HEADER in dict(request.headers)


# ---- responses


def render_error(error: ProxyError, dialect: Dialect | None = None) -> Response:
    """Answer an error in a dialect's shape, the first one's where none was asked yet."""
    rendered = (dialect or DIALECTS[0]).render_error(error)
    return _json(error.status, rendered, [*error.headers.items()])


def _json(status: int, value: object, headers: list[tuple[str, str]] | None = None) -> Response:
    return Response(
        status, [("content-type", "application/json"), *(headers or [])], payload.encode(value)
    )


def _headers(
    dialect: Dialect, exchange: _Exchange, *, is_estimated: bool = False
) -> list[tuple[str, str]]:
    headers = [(dialect.REQUEST_ID_HEADER, exchange.id)]
    ignored = exchange.ignored + (("usage",) if is_estimated else ())
    if ignored:
        headers.append(("x-llmproxy-ignored", _ignored_header(ignored)))
    return headers


def _ignored_header(ignored: tuple[str, ...]) -> str:
    """List the paths, escaped as JSON escapes, cut after a whole one where there are too many."""
    words = [json.dumps(path)[1:-1] for path in ignored]
    shown = ""
    for i, word in enumerate(words):
        longer = f"{shown}, {word}" if shown else word
        if len(longer) > IGNORED_HEADER_BYTES:
            return f"{shown}, and {len(words) - i} more".lstrip(", ")
        shown = longer
    return shown
