"""Requests that go to an upstream byte for byte, and the responses that come back so.

Each is an exchange of the log, a chat with its turn. A piece of a response is sent on as soon as
it has come, and its copy read for the log then; only one after which a client may take the
response for complete waits until the log has it.
"""

from __future__ import annotations

import asyncio
import base64
import sys
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

from ..backends.passthrough import (
    UNREAD_RESPONSE,
    PassedRun,
    ResponseCopy,
    fields_to_send,
)
from ..backends.routing import Attempts, Routing
from ..backends.upstreams import NamedUpstream, Target, Upstreams
from ..core import chat, payload
from ..core.backend import CHAT_KINDS, Choice, Kind, Run, Stamped
from ..core.embeddings import without_inputs
from ..core.errors import (
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    ProxyError,
    RateLimited,
    Unsupported,
)
from ..core.json_member import replace_string, string_members
from ..core.limiter import Limiter
from ..core.limits import Limits
from ..dialects import Dialect, StatefulDialect
from ..recorder.capture import raw_response_json
from ..recorder.exchange import changed
from ..transport.http11 import BodyCut, Request, Response, decode_content
from .large_work import SMALL_BYTES
from .responses import StreamBody
from .routes import dialect_of, find_route, is_below_api, without_vendor
from .running_exchange import Ending, RunningExchange

UNREAD_REQUEST = "request"  # in `ignored`: the copy could not be read
MAX_RAW_BYTES = 2**20  # kept of a request whose copy could not be read

LEFT_FINDING_S = 0.1  # that the log waits for what a request continues, when its client has left

T = TypeVar("T")

Received = tuple[RunningExchange, chat.ChatRequest | None, BaseException | None]

_Early = tuple[PassedRun, "asyncio.Task[None]"]

# The body of these names a model.
_BY_MODEL = CHAT_KINDS | {
    "chat_batch",
    "compaction",
    "stateful_count",
    "count_tokens",
    "embeddings",
    "named_model",
}
# These are about the server: of one to which all models go, its own answers are passed on.
_OF_SERVER = frozenset({"models", "model", "running_models", "version"})

_WITHOUT_BODY = frozenset({204, 304})


@dataclass(frozen=True)
class Steps:
    """The app's steps that requests to upstreams share with all others.

    start_finding: looks up in the log what a chat continues, for the log alone.
    respond: runs a choice and renders what comes.
    """

    work: Callable[[int, Callable[[], Any]], Awaitable[Any]]
    limiter: Limiter
    receive: Callable[..., Received]
    begin: Callable[[Dialect, Request, Any, tuple[datetime, float], str | None], RunningExchange]
    log_begin: Callable[[RunningExchange], None]
    start_finding: Callable[[RunningExchange, chat.ChatRequest, str], None]
    start: Callable[[RunningExchange, Run], Coroutine[Any, Any, None]]
    respond: Callable[
        [Dialect, RunningExchange, chat.ChatRequest, Choice, int], Awaitable[Response]
    ]
    end: Callable[..., Awaitable[None]]
    failed: Callable[[RunningExchange, Dialect, BaseException], Awaitable[Response]]


class Passthrough:
    """Passes requests on to the upstreams that speak their dialects.

    routing: chooses where what can't be passed on goes, when an upstream has refused it.
    """

    def __init__(
        self, upstreams: Upstreams, routing: Routing, limits: Limits, steps: Steps
    ) -> None:
        self._upstreams = upstreams
        self._routing = routing
        self._limits = limits
        self._steps = steps

    def streams_body(self, head: Request) -> bool:
        """Return whether a request's body is passed on as it comes, however large it is."""
        try:
            find_route(head)
        except (NotFound, MethodNotAllowed, Unsupported):
            return self._without_route(head) is not None
        except ProxyError:
            pass
        return False

    async def __call__(self, request: Request) -> Response | None:
        """Respond to a request, or return None if it is not for an upstream as it is.

        Raises:
            ProxyError: it can't be passed on.
        """
        received = datetime.now(UTC), time.monotonic()
        try:
            dialect, kind, argument = find_route(request)
        except (NotFound, MethodNotAllowed, Unsupported):
            upstream = self._without_route(request)
            if upstream is None:
                return None
            passed = _Passed(dialect_of(request), request, received)
            return await self._pass_other(passed, [Target(upstream)])
        if kind in _BY_MODEL:
            return await self._by_model(dialect, kind, request, argument, received)
        other: NamedUpstream | None = None
        if kind in ("stored_response", "stored_input"):
            # Ours have ids of their own; a DELETE of one never comes here.
            if cast(StatefulDialect, dialect).stored_id(argument.partition("/")[0]) is None:
                other = self._speaking(dialect)
        elif kind in _OF_SERVER and self._upstreams.takes_all(dialect.NAME):
            other = self._upstreams.passthrough
        if other is None:
            return None
        return await self._pass_other(_Passed(dialect, request, received), [Target(other)])

    def _speaking(self, dialect: Dialect) -> NamedUpstream | None:
        """Return the upstream for what names no model: the one for all, else the first."""
        return self._upstreams.speaking(dialect.NAME)

    def _without_route(self, request: Request) -> NamedUpstream | None:
        """Return the upstream for a path that has no handler here, if any."""
        if request.method in ("OPTIONS", "CONNECT"):
            return None
        if is_below_api(request):
            found = self._upstreams.serving(dialect_of(request).NAME)
            return found or self._upstreams.passthrough
        return self._upstreams.passthrough

    # ---- requests that name a model

    async def _by_model(
        self,
        dialect: Dialect,
        kind: Kind,
        request: Request,
        argument: str,
        received: tuple[datetime, float],
    ) -> Response | None:
        passed = _Passed(dialect, request, received)
        if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
            try:
                passed.copy = await self._steps.work(
                    self._limits.body, lambda: decode_content(request, self._limits)
                )
            except ProxyError as exc:
                exc.__traceback__ = None
                passed.failure = exc
        if passed.failure is None:
            text = passed.copy.body
            member = await self._steps.work(
                len(text), lambda: next(string_members(text, "model"), None)
            )
            passed.model = member.value if member else None
            targets = self._upstreams.route(passed.model)
        else:
            targets = (Target(self._speaking(dialect)),)
        if not self._takes(targets[0], dialect):
            return None
        if kind in CHAT_KINDS and not _loads_model(dialect, passed.copy):
            return await self._pass_chat(passed, argument, targets)
        alike = [target for target in targets if self._takes(target, dialect)]
        return await self._pass_other(passed, alike, is_embedding=kind == "embeddings")

    def _takes(self, target: Target, dialect: Dialect) -> bool:
        return target.upstream is not None and dialect.NAME in target.upstream.dialects

    async def _renamed(self, passed: _Passed, target: Target) -> bytes | None:
        """Return the body with the model's name at the target; None if it goes on as it came.

        Raises:
            ProxyError: the body can't be read.
        """
        name = target.model
        if name is None or name == passed.model:
            return None
        if passed.failure is not None:
            raise passed.failure
        body = passed.copy.body
        renamed: bytes = await self._steps.work(
            len(body), lambda: replace_string(body, "model", name)
        )
        return renamed

    async def _pass_chat(
        self, passed: _Passed, argument: str, targets: Sequence[Target]
    ) -> Response:
        dialect, copy = passed.dialect, passed.copy
        steps, size = self._steps, len(copy.body)
        attempts = Attempts(targets, self._upstreams.wait_s)
        early: _Early | None = None

        def receive(failure: BaseException | None = passed.failure) -> Received:
            return steps.receive(
                dialect, copy, argument, passed.received, lambda body: body, failure
            )

        try:
            early = await self._send_early(passed, attempts)
            if early is not None:  # a small request is sent in this turn, on a kept connection
                await asyncio.sleep(0)
            exchange, request, failure = await steps.work(size, receive)
        except (ProxyError, asyncio.CancelledError) as exc:
            exchange, request, failure = receive(exc)
        capture = exchange.capture
        if early is not None:
            exchange.has_entered = True
            capture.run, exchange.starting = early
        if passed.failure is not None:
            capture.begun = _with_raw_body(capture.begun, copy)
        if request is not None:
            capture.messages, capture.schema = request.messages, request.schema
            exchange.take(request)
        else:
            capture.ignored_late += (UNREAD_REQUEST,)
        steps.log_begin(exchange)
        try:
            if isinstance(failure, asyncio.CancelledError):
                raise failure
            run = await self._answering(passed, exchange, request, attempts)
            if run is None:  # the next one is asked in another way
                if request is None:
                    assert failure is not None
                    raise failure
                await exchange.has_found()
                choice = await self._routing.choose_among(
                    attempts.rest, request, [*passed.request.headers], attempts.refused_by
                )
                return await steps.respond(dialect, exchange, request, choice, size)
            is_stream = request is not None and request.stream
            return await self._relay(passed, exchange, run, is_stream=is_stream)
        except BaseException as exc:
            return await self._failed(exchange, dialect, exc)
        finally:
            failure = None  # its traceback refers to this frame, and so to the body

    async def _failed(
        self, exchange: RunningExchange, dialect: Dialect, exc: BaseException
    ) -> Response:
        if isinstance(exc, ProxyError):
            try:
                await exchange.has_found()
            except asyncio.CancelledError as cancelled:
                exc = cancelled
        return await self._steps.failed(exchange, dialect, exc)

    async def _send_early(self, passed: _Passed, attempts: Attempts) -> _Early | None:
        """Send a request before its copy is read for the log; None if it has to wait its turn.

        What can't be sent raises its error when the exchange is there that has it.
        """
        if not self._steps.limiter.has_room:
            return None
        try:
            run = await self._run(passed, attempts)
        except ProxyError:
            return None
        if not self._steps.limiter.has_room:  # others came while a large body was renamed
            return None
        await self._steps.limiter.enter(None)
        return run, asyncio.create_task(run.start())

    async def _answering(
        self,
        passed: _Passed,
        exchange: RunningExchange,
        request: chat.ChatRequest | None,
        attempts: Attempts,
    ) -> PassedRun | None:
        """Return the run of the upstream that does not refuse; None if another kind comes next."""
        steps = self._steps
        while self._takes(attempts.target, passed.dialect):
            run = cast("PassedRun | None", exchange.capture.run)
            if exchange.starting is None or run is None:
                run = await self._run(passed, attempts)
                exchange.capture.run = run
                exchange.starting = asyncio.create_task(self._start(exchange, run))
            if request is not None:
                run.take(request)
                if exchange.finding is None:  # while the upstream works
                    steps.start_finding(exchange, request, run.model_id)
            try:
                await exchange.starting  # a cancel goes into the start, which lets it through
            except ProxyError as error:
                if not exchange.has_entered:  # refused by our own limit
                    raise
                if not await attempts.go_on(error.status, error.headers):
                    raise
                await run.stop()
                exchange.starting = None
                continue
            response = run.response
            assert response is not None
            status, headers = response.status, dict(response.headers)
            if attempts.has_next and request is not None and request.stream:
                copy = ResponseCopy(passed.dialect, response, self._limits, is_stream=True)
                if (refusal := await copy.first_error(response)) is not None:
                    status, headers = refusal.status, dict(refusal.headers)
            if not await attempts.go_on(status, headers):
                exchange.has_started = True
                exchange.started_at = run.started_at
                return run
            await run.stop()
            exchange.starting = None
        exchange.capture.run = exchange.starting = None
        return None

    async def _start(self, exchange: RunningExchange, run: PassedRun) -> None:
        """Start a run; the first of an exchange when it is its turn."""
        if exchange.has_entered:
            await run.start()
        else:
            await self._steps.start(exchange, run)

    async def _run(self, passed: _Passed, attempts: Attempts, *, is_turn: bool = True) -> PassedRun:
        """Return a request to the target of an attempt, not sent yet.

        is_turn: its response is read for the log; that of another may be of any size.

        Raises:
            ProxyError: it can't be sent.
        """
        target = attempts.target
        upstream = target.upstream
        assert upstream is not None
        renamed = await self._renamed(passed, target)
        http_request = passed.request
        body: bytes | AsyncIterator[bytes] = http_request.body
        if http_request.body_stream is not None:
            body = http_request.body_stream
        path = without_vendor(http_request, passed.dialect)
        if ".." in http_request.path.split("/"):
            raise InvalidRequest("a path with .. in it is not passed on")
        headers = http_request.headers.as_received
        return PassedRun(
            self._upstreams.client,
            upstream,
            http_request.method,
            upstream.url_for(path, http_request.query),
            fields_to_send(
                self._upstreams,
                upstream,
                headers,
                keeps_coding=not is_turn and upstream.key.source == "client",
                is_decoded=renamed is not None,
            ),
            body if renamed is None else renamed,
            limits=self._limits if is_turn else replace(self._limits, body=sys.maxsize),
            model=target.model or passed.model,
            refused_by=attempts.refused_by,
        )

    # ---- responses

    async def _relay(
        self, passed: _Passed, exchange: RunningExchange, run: PassedRun, *, is_stream: bool
    ) -> Response:
        response = run.response
        assert response is not None
        copy = ResponseCopy(passed.dialect, response, self._limits, is_stream=is_stream)
        exchange.capture.http_status = response.status
        body: Any = b""
        if response.status in _WITHOUT_BODY:
            await run.close()
            copy.end(response.times.first_byte)
            await self._over(exchange, run, copy, "ok")
        else:
            pieces = self._pieces(exchange, run, copy)
            body = StreamBody(pieces, lambda: self._over(exchange, run, copy, "cancelled"))
        return _response(run, body)

    async def _pieces(
        self, exchange: RunningExchange, run: PassedRun, copy: ResponseCopy
    ) -> AsyncGenerator[bytes, None]:
        """Yield a response's pieces as they come. The loop runs once per piece: keep it small."""
        response, capture = run.response, exchange.capture
        assert response is not None
        run.is_relayed = True
        left = _length(response.headers.get("content-length"))
        at = response.times.first_byte
        try:
            async for at, data in run.pieces():
                left -= len(data)
                safe = copy.safe_bytes(data) if left > 0 else 0
                if safe:
                    yield data if safe == len(data) else data[:safe]
                    yield b""  # send it before it is read
                capture.add(copy.feed(at, data))
                if safe < len(data):
                    if left <= 0:
                        capture.add(await self._end_of(copy, at))
                    if left <= 0 or copy.has_ended or copy.error is not None:
                        await self._over(exchange, run, copy, "ok")
                    yield data[safe:]
            capture.add(await self._end_of(copy, at))
            await self._over(exchange, run, copy, "ok")
        except ProxyError as error:
            # What came is sent, and the end looks as the upstream's did: cut.
            await self._over(exchange, run, copy, "error", error)
            raise BodyCut from error
        finally:
            run.is_relayed = False
            await run.close()

    async def _end_of(self, copy: ResponseCopy, at: float) -> list[Stamped]:
        """Return the last events of a copy: all of them, of a response that is no stream.

        A large one is read in a thread.
        """
        return await self._read_late(copy.left_bytes, lambda: copy.end(at))

    async def _read_late(self, size: int, read: Callable[[], T]) -> T:
        try:
            result: T = await self._steps.work(size, read)
        except RateLimited:  # late, which is better than to cut the client's response
            result = read()
        return result

    async def _over(
        self,
        exchange: RunningExchange,
        run: PassedRun,
        copy: ResponseCopy,
        status: Ending,
        error: BaseException | None = None,
    ) -> None:
        """End an exchange as its copy says; only the first call counts."""
        if exchange.is_over:
            return
        await exchange.has_found(LEFT_FINDING_S if status == "cancelled" else None)
        capture = exchange.capture
        if (raw := copy.raw) is not None:
            redactor = capture.begun.redactor
            kept = await self._read_late(len(raw), lambda: raw_response_json(raw, redactor))
            if exchange.is_over:
                return
            capture.ignored_late += (UNREAD_RESPONSE,)
            capture.raw_response = kept
        if capture.finish is not None:
            capture.ignored_late += capture.finish.ignored
            run.take_model(capture.finish.model)
        if copy.error is not None and status == "ok":
            status, error = "error", copy.error
        if capture.finish is not None and status == "cancelled":
            status = "ok"
        await self._steps.end(exchange, status, error)

    # ---- everything else

    async def _pass_other(
        self, passed: _Passed, targets: Sequence[Target], *, is_embedding: bool = False
    ) -> Response:
        """Pass on a request that is no chat: an exchange without a turn.

        targets: that take it as it comes; the next one if the first refuses.
        """
        dialect, request, model = passed.dialect, passed.request, passed.model
        body = await self._json(request, is_embedding=is_embedding)
        exchange = self._steps.begin(dialect, request, body, passed.received, model)
        attempts = Attempts(targets, self._upstreams.wait_s)
        run: PassedRun | None = None
        try:
            while True:
                run = await self._run(passed, attempts, is_turn=False)
                exchange.capture.model_id = run.model_id if model else None
                try:
                    await self._start(exchange, run)
                except ProxyError as error:
                    if not exchange.has_entered:  # refused by our own limit
                        raise
                    if not await self._goes_on(passed, attempts, error.status, error.headers):
                        raise
                else:
                    assert run.response is not None
                    status, headers = run.response.status, dict(run.response.headers)
                    if not await self._goes_on(passed, attempts, status, headers):
                        break
                await run.close()
        except BaseException as exc:
            if run is not None:
                exchange.capture.upstream = run.upstream
                await run.close()
            return await self._steps.failed(exchange, dialect, exc)
        exchange.capture.upstream = run.upstream
        return await self._relay_other(dialect, request, exchange, run)

    async def _goes_on(
        self, passed: _Passed, attempts: Attempts, status: int, headers: Mapping[str, str]
    ) -> bool:
        """Return whether a target is to be asked after this response; see `Attempts.go_on`.

        A request with a streamed body can't be sent a second time.
        """
        return passed.request.body_stream is None and await attempts.go_on(status, headers)

    async def _relay_other(
        self, dialect: Dialect, request: Request, exchange: RunningExchange, run: PassedRun
    ) -> Response:
        response = run.response
        assert response is not None
        exchange.capture.http_status = response.status
        copy: ResponseCopy | None = None
        if response.status >= 400:
            copy = ResponseCopy(dialect, response, self._limits, is_stream=False)
        body: Any = b""
        if request.method == "HEAD" or response.status in _WITHOUT_BODY:
            await run.close()
            await self._steps.end(exchange, "error" if response.status >= 400 else "ok")
        else:

            async def cut() -> None:
                await run.close()
                await self._steps.end(exchange, "cancelled")

            body = StreamBody(self._other_pieces(exchange, run, copy), cut)
        return _response(run, body)

    async def _other_pieces(
        self, exchange: RunningExchange, run: PassedRun, copy: ResponseCopy | None
    ) -> AsyncGenerator[bytes, None]:
        response = run.response
        assert response is not None
        at = response.times.first_byte
        left = _length(response.headers.get("content-length"))

        async def end() -> None:
            if copy is not None:
                copy.end(at)
                if copy.error is not None:
                    return await self._steps.end(exchange, "error", copy.error)
            await self._steps.end(exchange, "ok")

        try:
            async for at, data in run.pieces():
                if copy is not None:
                    copy.feed(at, data)
                left -= len(data)
                if left <= 0:
                    await end()
                yield data
            await end()
        except ProxyError as error:
            await self._steps.end(exchange, "error", error)
            raise BodyCut from error
        finally:
            await run.close()

    async def _json(self, request: Request, *, is_embedding: bool) -> Any:
        """Return a small body's JSON for the log; None of any other."""
        if not 0 < len(request.body) <= SMALL_BYTES:
            return None
        try:
            value = payload.parse(decode_content(request, self._limits).body, self._limits)
        except ProxyError:
            return None
        return without_inputs(value) if is_embedding else value


class _Passed:
    """A request that is passed on.

    received: when, in UTC and by time.monotonic().
    copy: the request as it is read here, without its content-encoding.
    failure: why it can't be read. model: the one that it names, as far as that is read.
    """

    def __init__(
        self, dialect: Dialect, request: Request, received: tuple[datetime, float]
    ) -> None:
        self.dialect = dialect
        self.request = request
        self.received = received
        self.copy = request
        self.failure: ProxyError | None = None
        self.model: str | None = None


def _loads_model(dialect: Dialect, request: Request) -> bool:
    """Return whether a request says nothing: to Ollama, a wish to load or unload a model."""
    if dialect.NAME != "ollama" or len(request.body) > SMALL_BYTES:
        return False
    try:
        body = payload.parse(request.body)
    except InvalidRequest:
        return False
    return isinstance(body, dict) and not (body.get("messages") or body.get("prompt"))


def _response(run: PassedRun, body: Any) -> Response:
    """Return the upstream's response unchanged, with a header naming one that refused before."""
    response, refused_by = run.response, run.upstream.refused_by
    assert response is not None
    own = [("x-llmproxy-refused-by", refused_by)] if refused_by else []
    return Response(
        response.status,
        run.header_fields + own,
        body,
        reason_phrase=response.reason_phrase,
        is_relayed=True,
    )


def _with_raw_body(begun: Any, request: Request) -> Any:
    kept = {
        "content_encoding": request.headers.get("content-encoding", ""),
        "base64": base64.b64encode(request.body[:MAX_RAW_BYTES]).decode(),
    }
    return changed(begun, request=replace(begun.request, body=kept))


def _length(value: str | None) -> int:
    """Return how many bytes a body has; more than any, if it doesn't say."""
    is_number = value is not None and value.isascii() and value.isdecimal()
    return int(value[:18]) if value and is_number else sys.maxsize
