"""The application: takes an HTTP request, runs a model and returns an HTTP response.

It knows nothing of sockets: any server that can call `async (Request) -> Response` may use it.
A stream's status line waits for the model's first event, so that a provider's refusal is sent
with its real status; later events are streamed as they arrive.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypedDict, TypeVar, Unpack, cast

from llm.parts import Message, TextPart

from ..backends.replay import Replay
from ..backends.routing import Routing
from ..backends.upstream_models import UpstreamModels
from ..backends.upstreams import Upstreams
from ..conversations.matching import Matcher
from ..core import chat, payload, token_estimate
from ..core.backend import Backend, Choice, Kind, ModelEntry, Models, Run, Stamped
from ..core.embeddings import Embedder, EmbedRun
from ..core.errors import (
    InvalidRequest,
    NotFound,
    ProxyError,
    RateLimited,
    TooLarge,
    Unsupported,
)
from ..core.fingerprints import request_key
from ..core.known_bodies import Body, KnownBodies
from ..core.known_keys import KnownKeys
from ..core.limiter import Limiter
from ..core.limits import Limits
from ..core.message_facts import keep_facts
from ..dialects import (
    CountingDialect,
    Dialect,
    Renderer,
    ServerDialect,
    StatefulDialect,
)
from ..recorder.capture import Capture
from ..recorder.exchange import Exchange, Match, begun, new_id
from ..recorder.redact import MAX_TEXT_BYTES
from ..recorder.store import logs_on
from ..recorder.writer import Writer
from ..transport.content_coding import INFLATED
from ..transport.http11 import BodyCut, Headers, Request, Response, decode_content
from .access import Access
from .batches import answer_batch
from .dashboard import Dashboard
from .embeddings import EmbeddingRequests
from .large_work import SMALL_BYTES, LargeWork
from .metrics import Metrics
from .passthrough import Passthrough, Steps
from .refusals import Refusal, Refusals
from .responses import StreamBody, json_response, render_error
from .routes import bare_path, dialect_of, find_route
from .running_exchange import Ending, RunningExchange
from .status import State, StatusPages, is_status_path
from .stored_responses import StoredResponses

logger = logging.getLogger(__name__)

MATCH_SHARE = 0.5  # of `log_wait_s` that one request's lookup may take: others wait for its end
BEGIN_LATER_S = 0.002  # before what waits for another server is logged: servers take longer
BEGIN_TURNS = 4  # of the event loop: the model's first step, its others, the reader's, one more
MAX_NESTING = 5  # of a text: list of messages, message, list of parts, part, text
_CORS = "access-control-"
RETRY_S = 1  # sent as `retry-after` when too many models run

T = TypeVar("T")


class _Facts(TypedDict, total=False):
    """What `begun` takes of a request that could be parsed."""

    stream: bool
    model: str | None
    messages: Sequence[Message]
    replay_key: str | None


class App:
    """The request handler for all dialects and for the status pages.

    backend: runs the models. models: lists them.
    writer, matcher: write and search the log; None if nothing is logged.
    keys: API keys, removed from error messages.
    on_exchange: called with each exchange when it has ended. on_refusal: with requests that
        were refused and so are no exchange, see `refusals`.
    stored: the recorded responses, to which requests may refer.
    dashboard: renders the page for browsers. connections: returns the number of open ones.
    replay: as StatusPages takes it. embedder: runs embedding models; None if only recordings
        answer. upstreams: the servers that requests may be sent to.
    """

    def __init__(
        self,
        backend: Backend,
        models: Models,
        writer: Writer | None,
        matcher: Matcher | None,
        *,
        access: Access,
        limits: Limits,
        keys: KnownKeys,
        on_exchange: Callable[[Exchange], None],
        stored: StoredResponses | None = None,
        dashboard: Dashboard | None = None,
        on_refusal: Callable[[Refusal], None] = lambda refusal: None,
        connections: Callable[[], int] = lambda: 0,
        replay: Replay | None = None,
        embedder: Embedder | None = None,
        upstreams: Upstreams | None = None,
    ) -> None:
        self._backend = backend
        self._models = models
        self._writer = writer
        self._matcher = matcher
        self._access = access
        self._limits = limits
        self._keys = keys
        self._on_exchange = on_exchange
        self._stored = stored or StoredResponses(None)
        self._connections = connections
        self._upstreams = upstreams
        self._upstream_models = None if upstreams is None else UpstreamModels(upstreams)
        self._limiter = Limiter(limits.running)
        self._passthrough = self._new_passthrough()
        self._large_work = LargeWork(limits.body)
        self._matching = asyncio.Lock()  # held while a thread looks something up in the log
        self._known_bodies = KnownBodies(threading.Lock())
        self._waiting = 0
        self._counts_tokens: dict[str, bool] = {}  # by model id: whether its last run did
        self._refusals = Refusals(on_refusal, keys)
        self._metrics = Metrics(self._refusals.counts)
        self._status = StatusPages(dashboard, self._metrics, self._state, replay)
        self._handlers: Mapping[Kind, Callable[[Dialect, Request, str], Awaitable[Response]]] = {
            "chat": self._chat,
            "chat_or_load": self._chat_or_load,
            "chat_batch": partial(answer_batch, self._chat, self._work, limits),
            "stateful_chat": self._stateful_chat,
            "compaction": self._compaction,
            "stateful_count": self._stateful_count,
            "stored_response": self._show_response,
            "stored_input": self._show_input,
            "models": self._list_models,
            "model": self._show_model,
            "named_model": self._show_named_model,
            "running_models": self._list_running_models,
            "version": self._tell_version,
            "count_tokens": self._count_tokens,
            "embeddings": EmbeddingRequests(
                embedder,
                limits,
                begin=self._begin,
                work=self._work,
                wait_turn=self._wait_turn,
                end=self._end,
                fail=self._failed,
            ),
        }

    def _new_passthrough(self) -> Passthrough | None:
        # Not where recordings answer first: those are rendered.
        if self._upstreams is None or not isinstance(self._backend, Routing):
            return None
        steps = Steps(
            work=self._work,
            limiter=self._limiter,
            receive=self._receive,
            begin=self._begin,
            log_begin=self._log_begin_later,
            start_finding=self._start_finding,
            start=self._start,
            respond=self._respond,
            end=self._end,
            failed=self._failed,
        )
        return Passthrough(self._upstreams, self._backend, self._limits, steps)

    async def __call__(self, request: Request) -> Response:
        """Respond to one request. Raise only CancelledError, if the client disconnects."""
        refusal = self.admit(request)
        if refusal is not None:
            return refusal
        try:
            if request.method == "OPTIONS":
                response = Response(204)
            elif is_status_path(path := bare_path(request.path) or "/"):
                response = await self._status.respond(path, request)
            else:
                if self._upstreams is not None:
                    self._upstreams.check(request.headers, request.query)
                passed = None if self._passthrough is None else await self._passthrough(request)
                response = await self._answer(request) if passed is None else passed
        except ProxyError as error:
            response = self.refuse(error, request)
        except Exception:
            # The traceback may quote the request: only the operator sees it.
            logger.exception("answering %s %s failed", request.method, request.path)
            response = render_error(ProxyError("internal error"), dialect_of(request))
        cors = self._access.cors_headers(request)
        if not cors:
            return response
        # An upstream's are for its own origin: of two, browsers take none.
        own = (one for one in response.headers if not one[0].lower().startswith(_CORS))
        return replace(response, headers=[*own, *cors])

    async def _answer(self, request: Request) -> Response:
        dialect, kind, argument = find_route(request)
        request = await self._decoded(request)
        return await self._handlers[kind](dialect, request, argument)

    def admit(self, head: Request) -> Response | None:
        """Return the response that refuses a request because of its head, None to go on.

        A foreign Host or Origin, or no good key: known before the body is read.
        """
        cors: list[tuple[str, str]] = []  # none, so that pages of a foreign origin can read nothing
        try:
            self._access.check_source(head)
            cors = self._access.cors_headers(head)
            self._access.check_key(head)
        except ProxyError as error:
            response = self.refuse(error, head)
            return replace(response, headers=[*response.headers, *cors])
        return None

    def streams_body(self, head: Request) -> bool:
        """Return whether this request's body is taken in pieces; see `transport.server.Server`."""
        return self._passthrough is not None and self._passthrough.streams_body(head)

    def refuse(self, error: ProxyError, head: Request | None) -> Response:
        """Return the response to a request that is no exchange, which is counted and reported.

        head: None if the bytes were no request.
        """
        dialect = dialect_of(head) if head else None
        response = render_error(error, dialect)
        client = _client(head.headers) if head else "-"
        reason = self._refusals.add(error, response.status, head, client)
        return replace(response, reason=reason)

    @property
    def unanswered(self) -> int:
        """The number of chat requests that run, or wait for their turn."""
        return self._limiter.running + self._waiting

    def _state(self) -> State:
        log = None if self._writer is None else self._writer.health()
        return State(self._limiter.running, self._waiting, self._connections(), log)

    async def _list_models(self, dialect: Dialect, request: Request, argument: str) -> Response:
        entries = {one.id: one for one in self._models.models()}
        if self._upstream_models is not None:
            there = await self._upstream_models.entries(dialect.NAME, [*request.headers])
            entries |= {one.id: one for one in there}
        return json_response(200, dialect.render_models(entries.values()))

    async def _show_model(self, dialect: Dialect, request: Request, argument: str) -> Response:
        entry = await self._model(dialect, request, argument)
        return json_response(200, dialect.render_model(entry))

    async def _model(self, dialect: Dialect, request: Request, name: str) -> ModelEntry:
        """Return a model of an upstream or of llm by the name that requests have for it."""
        if self._upstream_models is not None:
            there = await self._upstream_models.entry(name, dialect.NAME, [*request.headers])
            if there is not None:
                return there
        return await self._models.model(name)

    async def _show_named_model(
        self, dialect: Dialect, request: Request, argument: str
    ) -> Response:
        named = cast(ServerDialect, dialect)  # as below: only those have the route
        name = await self._work(
            len(request.body),
            lambda: named.parse_model_name(payload.parse(request.body, self._limits)),
        )
        return await self._show_model(dialect, request, name)

    async def _list_running_models(
        self, dialect: Dialect, request: Request, argument: str
    ) -> Response:
        models = self._models.running_models()
        return json_response(200, cast(ServerDialect, dialect).render_running(models))

    async def _tell_version(self, dialect: Dialect, request: Request, argument: str) -> Response:
        return json_response(200, cast(ServerDialect, dialect).render_version())

    async def _stateful_count(self, dialect: Dialect, request: Request, argument: str) -> Response:
        complete = await self._resolver(dialect, request)
        return await self._count_tokens(dialect, request, argument, complete)

    async def _count_tokens(
        self,
        dialect: Dialect,
        request: Request,
        argument: str,
        complete: Callable[[Any], Any] = lambda body: body,
    ) -> Response:
        """Estimate the tokens locally: clients ask dozens of times in a row."""

        def count() -> int:
            body = complete(payload.parse(request.body, self._limits))
            # `parse_request` doesn't require max_tokens, which requests for a count lack.
            return token_estimate.estimate(dialect.parse_request(body, dict(request.headers)))

        counting = cast(CountingDialect, dialect)  # only those have the route
        count_ = await self._work(len(request.body), count)
        return json_response(200, counting.render_count(count_))

    async def _decoded(self, request: Request) -> Request:
        """Return the request with its body inflated."""
        coding = request.headers.get("content-encoding", "")
        most = min(len(request.body) * INFLATED, self._limits.body) if coding else 0
        if "zstd" in coding.lower():
            most = self._limits.body
        return await self._work(most, lambda: decode_content(request, self._limits))

    async def _work(self, size: int, work: Callable[[], T]) -> T:
        """Return the outcome of work on a request of this size, in a thread if it is large.

        Raises:
            RateLimited: other large requests were worked on for too long.
        """
        try:
            return await self._large_work.run(size, work, self._limits.queue_s)
        except TimeoutError:
            raise RateLimited(
                "other large requests are being read, and none ended within"
                f" {self._limits.queue_s:g} s (limit queue_s)",
                headers={"retry-after": f"{RETRY_S}"},
            ) from None

    # ---- chat requests

    async def _chat_or_load(
        self, dialect: Dialect, http_request: Request, argument: str
    ) -> Response:
        server = cast(ServerDialect, dialect)  # only those have the route
        return await self._chat(dialect, http_request, argument, server.as_chat)

    async def _stateful_chat(
        self, dialect: Dialect, http_request: Request, argument: str
    ) -> Response:
        return await self._chat(
            dialect, http_request, argument, await self._resolver(dialect, http_request)
        )

    async def _compaction(self, dialect: Dialect, http_request: Request, argument: str) -> Response:
        stateful = cast(StatefulDialect, dialect)  # only those have the route
        resolve = await self._resolver(dialect, http_request)
        return await self._chat(
            dialect, http_request, argument, lambda body: stateful.compaction_body(resolve(body))
        )

    async def _resolver(self, dialect: Dialect, request: Request) -> Callable[[Any], Any]:
        """Return what makes a request's body complete: with the responses that it refers to."""
        stateful = cast(StatefulDialect, dialect)  # only those have the routes
        ids: tuple[str, ...] = ()
        if stateful.may_refer(request.body):
            with suppress(InvalidRequest):  # it is refused, and logged, when it is parsed

                def find() -> tuple[str, ...]:
                    return stateful.find_references(self._parsed(dialect, request).value)

                ids = await self._work(len(request.body), find)
        if not ids:
            return lambda body: body
        stored = await self._stored.load(dialect, ids)
        most = 2 * self._limits.body  # in memory, where a value takes more than its text

        def complete(body: Any) -> Any:
            resolved = stateful.resolve_references(body, stored)
            if payload.measure(resolved, most)[0] > most:
                raise TooLarge("the conversation is larger than a request may be (limit body)")
            return resolved

        return complete

    async def _show_response(self, dialect: Dialect, request: Request, argument: str) -> Response:
        stateful = cast(StatefulDialect, dialect)  # only those have the route
        if "/" in argument:
            raise NotFound(
                f"{request.path[:200]} is not supported: a recorded response is shown whole"
            )
        if "stream=true" in request.query:
            raise Unsupported("a recorded response is sent whole, not streamed", param="stream")
        return json_response(
            200, stateful.render_stored(await self._stored_one(stateful, argument))
        )

    async def _show_input(self, dialect: Dialect, request: Request, argument: str) -> Response:
        stateful = cast(StatefulDialect, dialect)  # only those have the route
        stored = await self._stored_one(stateful, argument)
        return json_response(200, stateful.render_stored_input(stored, request.query))

    async def _stored_one(self, dialect: StatefulDialect, argument: str) -> chat.StoredResponse:
        id_ = dialect.stored_id(argument)
        found = await self._stored.load(dialect, [] if id_ is None else [id_])
        if id_ not in found:
            raise NotFound(f"Response with id '{argument[:100]}' not found.")
        return found[id_]

    async def _chat(
        self,
        dialect: Dialect,
        http_request: Request,
        argument: str,
        complete: Callable[[Any], Any] = lambda body: body,
    ) -> Response:
        """Respond to a chat request; `complete` makes its body one that refers to nothing."""
        size = len(http_request.body)
        received = datetime.now(UTC), time.monotonic()
        receive = partial(self._receive, dialect, http_request, argument, received, complete)
        try:
            exchange, request, failure = await self._work(size, receive)
        except (RateLimited, asyncio.CancelledError) as exc:  # logged, though nobody has read it
            exchange, request, failure = receive(exc)
        if request is not None and not request.messages:
            return await self._load_model(dialect, exchange, request, http_request)
        self._log_begin_soon(exchange)
        try:
            if request is None:
                assert failure is not None
                raise failure
            choice = await self._backend.choose(request, [*http_request.headers])
            return await self._respond(dialect, exchange, request, choice, size)
        except BaseException as exc:
            return await self._failed(exchange, dialect, exc)
        finally:
            failure = None  # its traceback refers to this frame, and so to the body

    async def _respond(
        self,
        dialect: Dialect,
        exchange: RunningExchange,
        request: chat.ChatRequest,
        choice: Choice,
        size: int,
    ) -> Response:
        """Run what was chosen, and render its events."""
        request = await self._recall(exchange, request, choice)
        prepare = partial(exchange.prepare, choice, request, is_large=size > SMALL_BYTES)
        run = await self._work(size, prepare)
        if run.starts_at_once and self._limiter.has_room:
            await self._start(exchange, run)
            exchange.has_started = True
        else:
            self._log_begin(exchange)
            exchange.starting = asyncio.create_task(self._start(exchange, run))
        if request.stream:
            return await self._stream(dialect, exchange)
        return await self._whole(dialect, exchange)

    async def _failed(
        self, exchange: RunningExchange, dialect: Dialect, exc: BaseException
    ) -> Response:
        """End an exchange that failed before its response began; raise what is no ProxyError."""
        if isinstance(exc, ProxyError):
            exchange.capture.http_status = dialect.error_status(exc)
            await self._end(exchange, "error", exc)
            return render_error(exchange.with_id(exc), dialect)
        await self._end(exchange, "error" if isinstance(exc, Exception) else "cancelled", exc)
        raise exc

    async def _load_model(
        self,
        dialect: Dialect,
        exchange: RunningExchange,
        request: chat.ChatRequest,
        http_request: Request,
    ) -> Response:
        """Respond to a request without messages, which asks that a model be made ready.

        llm loads models when they run, so it is enough that there is one; nothing is logged.
        """
        await self._model(dialect, http_request, request.model or "")
        envelope = chat.Envelope(
            exchange.id, exchange.created, request.model or "", form=request.form
        )
        rendered = dialect.render_response(chat.ChatResponse([], chat.Finish()), envelope)
        return json_response(200, rendered, [(dialect.REQUEST_ID_HEADER, exchange.id)])

    def _receive(
        self,
        dialect: Dialect,
        http_request: Request,
        argument: str,
        received: tuple[datetime, float],
        complete: Callable[[Any], Any],
        failure: BaseException | None = None,
    ) -> tuple[RunningExchange, chat.ChatRequest | None, BaseException | None]:
        """Parse a request; return its exchange, and the request or why there is none.

        received: when, in UTC and by time.monotonic(). failure: why it is not even parsed.
        """
        request: chat.ChatRequest | None = None
        replay_key: str | None = None
        body: Any = http_request.body[:MAX_TEXT_BYTES].decode("utf-8", "replace")
        try:
            if failure is None:
                parsed = self._parsed(dialect, http_request)
                if (whole := complete(parsed.value)) is not parsed.value:
                    parsed = Body(whole)
                body = parsed.normalized(dialect.normalize_body)
                headers = dict(http_request.headers)
                request = dialect.parse_request(parsed.value, headers, parsed.memory)
                if request.model is None and argument:
                    request = replace(request, model=argument)
                replay_key = request_key(request, parsed.memory.hashed if parsed.memory else None)
                keep_facts(request.messages)
                self._known_bodies.remember(parsed, dialect.NAME)
        except Exception as exc:
            failure = exc  # logged with the exchange
            if isinstance(exc, ProxyError):  # no bug, and tracebacks would keep the body
                exc.__traceback__ = exc.__context__ = None
        exchange = self._exchange(
            dialect,
            http_request,
            body,
            received,
            stream=request is not None and request.stream,
            model=request.model if request else _model_of(body, argument),
            messages=request.messages if request else _messages_of(body),
            replay_key=replay_key,
        )
        return exchange, request, failure

    def _parsed(self, dialect: Dialect, request: Request) -> Body:
        return self._known_bodies.parse(
            request.body, self._limits, dialect.NAME, dialect.CONVERSATION
        )

    def _exchange(
        self,
        dialect: Dialect,
        http_request: Request,
        body: Any,
        received: tuple[datetime, float],
        **facts: Unpack[_Facts],
    ) -> RunningExchange:
        begun_ = begun(
            new_id(),
            received[0],
            dialect=dialect.NAME,
            path=http_request.path,
            query=http_request.query,
            client=_client(http_request.headers),
            headers=http_request.headers,
            body=body,
            keys=self._keys,
            **facts,
        )
        capture = Capture(begun_, thread_id=new_id(), began_at=received[1])
        return RunningExchange(
            capture, dialect, is_logged=logs_on(), memory_bytes=self._limits.answer
        )

    def _begin(
        self,
        dialect: Dialect,
        http_request: Request,
        body: Any,
        received: tuple[datetime, float],
        model: str | None,
    ) -> RunningExchange:
        """Return the exchange of a request that is no chat; the log has its beginning."""
        exchange = self._exchange(dialect, http_request, body, received, model=model)
        self._write(exchange, exchange.capture.begun)
        return exchange

    async def _recall(
        self, exchange: RunningExchange, request: chat.ChatRequest, choice: Choice
    ) -> chat.ChatRequest:
        """Return the request with the reasoning and metadata that the log has of its history.

        After `log_wait_s` the request goes on without them.
        """
        capture = exchange.capture
        capture.messages, capture.schema = request.messages, request.schema
        if choice.takes_recall and await self._look_up(exchange, request, choice.model_id):
            return replace(request, messages=capture.messages, recalled=capture.match.recalled)
        return request

    def _start_finding(
        self, exchange: RunningExchange, request: chat.ChatRequest, model_id: str
    ) -> None:
        """Start to look up what a request continues, if there may be anything to find."""
        if self._may_continue(exchange, request):
            finding = self._find_conversation(exchange, request, model_id)
            exchange.finding = asyncio.create_task(finding)

    async def _find_conversation(
        self, exchange: RunningExchange, request: chat.ChatRequest, model_id: str
    ) -> None:
        """Note which recorded conversation a request continues, and keep its own messages.

        After `log_wait_s` the exchange is logged without.
        """
        capture = exchange.capture
        if await self._look_up(exchange, request, model_id) and capture.match.recalled:
            capture.match = replace(capture.match, recalled=frozenset(), history=None)
            capture.messages = request.messages

    async def _look_up(
        self, exchange: RunningExchange, request: chat.ChatRequest, model_id: str
    ) -> bool:
        """Look up in the log which conversation a request continues; return whether it was done."""
        capture = exchange.capture
        matcher = self._matcher
        if matcher is None or not self._may_continue(exchange, request):
            return False
        try:
            async with asyncio.timeout(self._limits.log_wait_s):
                await self._matching.acquire()
                try:
                    matching = matcher.match_in_thread(
                        request.messages,
                        model_id,
                        capture.begun.client,
                        wait_s=MATCH_SHARE * self._limits.log_wait_s,
                    )
                except BaseException:  # there is no thread
                    self._matching.release()
                    raise
                # Whoever stops waiting leaves the thread to itself: the next one begins
                # when it has ended, so there is never more than one.
                matching.add_done_callback(self._has_matched)
                capture.matched(await asyncio.shield(matching))
        except (TimeoutError, RuntimeError):
            logger.warning(
                "could not look up in the log what exchange %s continues", capture.begun.id
            )
        return True

    def _may_continue(self, exchange: RunningExchange, request: chat.ChatRequest) -> bool:
        matcher = self._matcher
        if matcher is None or not exchange.is_logged:
            return False
        return matcher.may_continue(request.messages)

    def _has_matched(self, matching: asyncio.Future[Match]) -> None:
        self._matching.release()
        matching.exception()  # retrieved: its request may have stopped waiting

    async def _start(self, exchange: RunningExchange, run: Run) -> None:
        """Wait for the model and for the limit on running responses, then start the run.

        Raises:
            Unavailable: the model stays busy for too long, or there is no thread for it.
            RateLimited: too many responses are running.
        """
        await self._wait_turn(exchange, run)
        if exchange.begun_written is not None and run.runs_in_process:
            # It may crash this process at any moment, and the log should name what was running.
            assert self._writer is not None
            await self._writer.committed(exchange.begun_written, self._limits.log_wait_s)
        await run.start()
        exchange.started_at = run.started_at
        exchange.until = time.monotonic() + self._limits.answer_s

    async def _wait_turn(self, exchange: RunningExchange, run: Run | EmbedRun) -> None:
        """Wait for the run's model, then for the limit on running responses."""
        exchange.queued_at = time.monotonic()
        self._waiting += 1
        try:
            has_waited = await run.wait_turn(self._limits.queue_s)
            if not exchange.has_entered:  # with an upstream that has refused
                has_waited |= await self._enter()
                exchange.has_entered = True
        finally:
            self._waiting -= 1
        if has_waited:
            exchange.capture.queue_ms = (time.monotonic() - exchange.queued_at) * 1000
        exchange.queued_at = None

    async def _enter(self) -> bool:
        try:
            return await self._limiter.enter(self._limits.queue_s)
        except TimeoutError:
            raise RateLimited(
                f"{self._limiter.limit} responses are running, and none ended within"
                f" {self._limits.queue_s:g} s (limit queue_s)",
                headers={"retry-after": f"{RETRY_S}"},
            ) from None

    async def _whole(self, dialect: Dialect, exchange: RunningExchange) -> Response:
        while await exchange.read():
            pass
        response = exchange.capture.response
        response = replace(response, finish=exchange.for_client(response.finish))
        rendered = dialect.render_response(response, exchange.envelope())
        exchange.capture.http_status = 200
        await self._end(exchange, "ok")
        return json_response(200, rendered, exchange.headers())

    async def _stream(self, dialect: Dialect, exchange: RunningExchange) -> Response:
        first = await exchange.read(self._limits.first_event_s)
        renderer = dialect.StreamRenderer(exchange.envelope())
        headers = [
            ("content-type", dialect.STREAM_TYPE),
            ("cache-control", "no-cache"),
            ("x-accel-buffering", "no"),  # nginx would hold the stream back
            *exchange.headers(is_usage_estimated=self._will_estimate_usage(exchange)),
        ]
        exchange.capture.http_status = 200
        frames = self._frames(dialect, exchange, renderer, first)
        return Response(200, headers, StreamBody(frames, lambda: self._end(exchange, "cancelled")))

    def _will_estimate_usage(self, exchange: RunningExchange) -> bool:
        """Predict, from the model's last run, whether a stream's usage will be an estimate."""
        run = exchange.run
        counts = self._counts_tokens.get(run.model_id, not run.runs_in_process)
        return exchange.shows_usage and not counts

    async def _frames(
        self,
        dialect: Dialect,
        exchange: RunningExchange,
        renderer: Renderer,
        batch: list[Stamped] | None,
    ) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of a stream in batches, its end only after the log has committed it."""
        frames = renderer.start()
        sent_at = time.monotonic()
        try:
            while batch != []:
                for _, event in batch or ():
                    if isinstance(event, chat.Finish):
                        if frames:
                            yield b"".join(frames)
                            frames = []
                        yield b""  # what is there need not wait for what the end takes: 0.1 ms
                        event = exchange.for_client(event)
                        await self._end(exchange, "ok")
                    frames += renderer.feed(event)
                now = time.monotonic()
                # Events that this API does not have send nothing that keeps a connection open.
                if batch is None or (not frames and now - sent_at >= self._limits.keepalive_s):
                    frames += renderer.idle()
                if frames:
                    sent_at = now
                    yield b"".join(frames)
                    frames = []
                batch = await exchange.read(self._limits.keepalive_s)
        except ProxyError as error:
            await self._end(exchange, "error", error)
            yield b"".join(frames + renderer.fail(exchange.with_id(error)))
            if dialect.CUT_AFTER_ERROR:
                raise BodyCut from error

    async def _end(
        self, exchange: RunningExchange, status: Ending, error: BaseException | None = None
    ) -> None:
        """Stop the model, log the end of the exchange and wait for the commit.

        Only the first call counts. Output is logged even if the client has disconnected.
        """
        if exchange.is_over:
            return
        exchange.is_over = True
        written = None
        try:
            ended = exchange.ended(status, error)
            written = self._write(exchange, ended)
            if written is not None and self._matcher is not None:
                self._matcher.learn(ended, exchange.history_bytes)
            # An upstream's models are whatever clients call them, without a bound.
            if status == "ok" and ended.model_used is not None and ended.upstream is None:
                counts = ended.usage.input_tokens, ended.usage.output_tokens
                self._counts_tokens[ended.model_used] = None not in counts
            self._metrics.count(ended)
            self._on_exchange(ended)
        except Exception:  # a bug here or a broken terminal must not fail the response
            logger.exception("could not log or report the end of exchange %s", exchange.id)
        finally:
            try:
                await exchange.stop(has_finished=status == "ok")
            finally:
                if exchange.has_entered:
                    self._limiter.leave()
        if written is not None and status != "cancelled":
            assert self._writer is not None
            await self._writer.committed(written, self._limits.log_wait_s)

    def _log_begin_soon(self, exchange: RunningExchange, turns: int = BEGIN_TURNS) -> None:
        """Log the beginning of an exchange a few turns of the event loop later.

        By then an async model that had something at once has sent it: the writer's thread does
        not compete with it. An exchange that is over by then is written once.
        """
        if turns:
            loop = asyncio.get_running_loop()
            loop.call_soon(self._log_begin_soon, exchange, turns - 1)
        else:
            self._log_begin(exchange)

    def _log_begin_later(self, exchange: RunningExchange) -> None:
        """Log the beginning of an exchange a moment later, while another server works on it."""
        asyncio.get_running_loop().call_later(BEGIN_LATER_S, self._log_begin, exchange)

    def _log_begin(self, exchange: RunningExchange) -> None:
        if exchange.begun_written is None and not exchange.is_over:
            exchange.begun_written = self._write(exchange, exchange.capture.begun)

    def _write(self, exchange: RunningExchange, state: Exchange) -> Future[None] | None:
        if self._writer is None or not exchange.is_logged:
            return None
        return self._writer.write(state)


def _model_of(body: Any, argument: str) -> str | None:
    """Return the model that a request names which could not be read otherwise."""
    model = body.get("model") if isinstance(body, dict) else None
    return model if isinstance(model, str) else argument or None


def _messages_of(body: Any) -> Sequence[Message]:
    """Return the last text of a request that could not be read, for lists of the log."""
    if not isinstance(body, dict):
        return ()
    said: Any = next((body[name] for name in ("messages", "input", "prompt") if body.get(name)), "")
    for _ in range(MAX_NESTING):
        match said:
            case str(text):
                return (Message("user", [TextPart(text)]),)
            case [*_, last]:
                said = last
            case {"content": inner} | {"text": inner} | {"parts": inner}:
                said = inner
            case _:
                break
    return ()


def _client(headers: Headers) -> str:
    """Return the client's name: its x-title, else the product of its user-agent."""
    title = headers.get("x-title")  # aider and others send their SDK's user-agent
    if title:
        return title[:80]
    product, _, version = headers.get("user-agent", "-").partition(" ")[0].partition("/")
    return (product if version[:1].isdigit() or not version else f"{product}/{version}")[:80]
