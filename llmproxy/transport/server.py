"""The HTTP server: serve any `async (Request) -> Response` over an asyncio transport.

Bytes are fed to a connection's parser as they arrive, and one task responds, strictly in
order. The end of reading is a hang-up: it cancels the response, streamed or not, and with it
the model. `http11` reads and writes the bytes, `render_error` decides what an error looks like.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import socket
import time
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from dataclasses import dataclass, replace
from email.utils import formatdate
from functools import lru_cache
from typing import Any, TypeVar

from ..core.errors import ProtocolError, ProxyError, Timeout, Unavailable
from ..core.limits import Limits
from . import http11
from .http11 import BodyCut, Request, RequestParser, Response
from .sockets import has_hung_up

App = Callable[[Request], Awaitable[Response]]
RenderError = Callable[[ProxyError, Request | None], Response]
Admit = Callable[[Request], Response | None]
T = TypeVar("T")

READ_AHEAD_BYTES = 256 * 2**10  # beyond the current request; above it, reading waits
HANG_UP_S = 0.5  # between two looks whether the client of a connection that is not read has left
LINGER_S = 5.0  # for a client to read our last response and close before we do
CHUNKS_IN_A_ROW = 64  # that a body yields without waiting, before other connections get a turn
MAX_REFUSING = 64  # connections over the limit that get a 503; the rest are cut at once
RETRY_S = 1  # when one of those may retry
FIRST_REQUEST_S = 50.0  # for a new connection to send something: browsers open some ahead
WARN_AGAIN_S = 60.0  # between warnings of clients that speak TLS: they retry
MIN_BODY_BYTES_PER_S = 1_000  # on average: a modem is three times as fast
# RFC 9110 9.1: any other method is a 501; one of these that a route lacks is the app's 405.
# Not CONNECT, which would turn the connection into a tunnel.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"})

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServedRequest:
    """A request whose response has ended.

    peer: the client's address. request: None if the bytes were not a request.
    status: as sent; None if the client had left before. body_bytes: of the response.
    reason: why it was refused, if it was.
    """

    peer: str
    request: Request | None
    status: int | None
    body_bytes: int
    duration_s: float
    reason: str = ""


class Server:
    """Listens, passes each request to `app`, and writes each response as it is produced.

    render_error: makes the response to malformed or slow requests and to a bug in `app`,
        from facts that are safe to show, and from the request's head if it is known.
    admit: given the head of a request whose body has not arrived, returns a response that
        refuses it, or None. The connection is closed then, since nobody reads the body. A
        request that arrives at once is given to `app` only, which has to check it too.
    streams: given the head of a request whose body has not all arrived, tells whether `app` takes
        it in pieces. `app` then gets the request at once, and its body, of any size, by iterating
        over `request.body_stream`; while it does not ask, the client has to wait. A client that
        expects 100-continue gets it when the first piece is asked for. If a body is not read to
        its end before the response begins, the connection is closed after it. The iterator
        raises a ProxyError where the body is malformed, too slow or cut.
    on_response: called after each response, however it ended.
    """

    def __init__(
        self,
        app: App,
        *,
        render_error: RenderError,
        admit: Admit | None = None,
        limits: Limits | None = None,
        on_response: Callable[[ServedRequest], None] | None = None,
        streams: Callable[[Request], bool] | None = None,
    ) -> None:
        self._app = app
        self._render_error = render_error
        self._admit = admit
        self._streams = streams
        self._warned_of_tls_at = -math.inf
        self._limits = limits or Limits()
        self._on_response = on_response
        self._listeners: list[asyncio.Server] = []
        self._connections: dict[asyncio.Task[None], _Connection] = {}
        self._closing = False

    async def start(self, host: str, port: int) -> None:
        """Listen on every address of `host` ("" for all); port 0 picks a free one.

        Raises:
            OSError: the port is in use, the host unknown or not of this machine.
        """
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        missing: OSError | None = None
        # A name may be in /etc/hosts twice, and so may each of its addresses.
        for family, address in dict.fromkeys((family, where[0]) for family, *_, where in found):
            try:
                # Not asyncio's own: it hides which error there was (3.12 and later).
                sock = socket.create_server((str(address), port), family=family)
            except OSError as error:
                # "localhost" is also ::1, even if the kernel has no IPv6 (containers).
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    await self.close()
                    raise
                missing = error
            else:
                self._listeners.append(await loop.create_server(self._new_connection, sock=sock))
                port = self.addresses[0][1]  # the same port for all, also if any is free to choose
        if missing is not None and not self._listeners:
            raise missing

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._connections)

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """The addresses and actual ports that the server listens on."""
        sockets = (sock for listener in self._listeners for sock in listener.sockets)
        return [sock.getsockname()[:2] for sock in sockets]

    async def close(self) -> None:
        """Stop listening, and give running responses `limits.shutdown_s` to end.

        Connections without a running response are closed at once, late ones are cut.
        Returns when all are closed. May be called again, also while it runs.
        """
        self._closing = True
        for listener in self._listeners:
            listener.close()
        for task, connection in self._connections.items():
            if not connection.is_responding:
                task.cancel()
            connection.is_last_response = True
        if running := set(self._connections):
            try:
                await asyncio.wait(running, timeout=self._limits.shutdown_s)
            finally:  # also where this is cancelled, as by a second signal
                late = {task for task in running if not task.done()}
                for task in late:
                    task.cancel()
                if late:
                    await asyncio.wait(late)
        for listener in self._listeners:
            await listener.wait_closed()

    def _new_connection(self) -> _Connection:
        return _Connection(
            self._app,
            self._render_error,
            self._admit,
            self._limits,
            self._accept,
            self._on_response,
            self._warn_of_tls,
            self._streams,
        )

    def _accept(self, connection: _Connection) -> asyncio.Task[None] | None:
        """Serve a connection that was made; return its task, None if it is to be cut."""
        beyond = len(self._connections) - self._limits.connections
        if self._closing or beyond >= MAX_REFUSING:  # closing: accepted in the same turn
            return None
        if beyond >= 0:
            connection.refusal = Unavailable(
                f"there are {self._limits.connections} connections already",
                headers={"retry-after": str(RETRY_S)},
            )
        task = asyncio.get_running_loop().create_task(connection.serve())
        self._connections[task] = connection
        task.add_done_callback(self._forget)
        return task

    def _warn_of_tls(self, peer: str) -> None:
        now = time.monotonic()
        if now - self._warned_of_tls_at >= WARN_AGAIN_S:
            self._warned_of_tls_at = now
            _log.warning(
                "a client at %s speaks TLS to this port, which speaks HTTP: its URL must begin"
                " with http://, not https://",
                peer,
            )

    def _forget(self, task: asyncio.Task[None]) -> None:
        del self._connections[task]
        if not task.cancelled() and (error := task.exception()):
            _log.error("a connection failed", exc_info=error)


class _Gone(Exception):
    """The client has left, or has read nothing for too long."""


class _Refused(Exception):
    """A request is refused by its head."""

    def __init__(self, response: Response, head: Request) -> None:
        self.response = response
        self.head = head


class _Connection(asyncio.Protocol):
    """One client's connection.

    is_last_response: close it after the running response. refusal: the response to
        whatever a client over the limit requests.
    """

    # A protocol, since StreamReader and StreamWriter need a second task that reads, and copy
    # each byte once more: a small request took a third longer.

    def __init__(
        self,
        app: App,
        render_error: RenderError,
        admit: Admit | None,
        limits: Limits,
        accept: Callable[[_Connection], asyncio.Task[None] | None],
        on_response: Callable[[ServedRequest], None] | None,
        warn_of_tls: Callable[[str], None],
        streams: Callable[[Request], bool] | None,
    ) -> None:
        self._app = app
        self._accept = accept
        self._on_response = on_response
        self._warn_of_tls = warn_of_tls
        self._render_error = render_error
        self._admit = admit
        self._limits = limits
        self._parser = RequestParser(limits, streams)
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._task: asyncio.Task[None] | None = None
        self._waiter: asyncio.Future[None] | None = None  # of the task, for bytes or for room
        self._wake_at = math.inf  # when the task waits no longer
        self._alarm: asyncio.TimerHandle | None = None
        self._body_waiter: asyncio.Future[None] | None = None  # of who reads a streamed body
        self._is_wanted = True  # reading may continue, however much is buffered
        self._is_reading = True
        self._hang_up_timer: asyncio.TimerHandle | None = None
        self._is_hung_up = False
        self._is_lost = False
        self._is_over = False  # the last response is sent; further bytes are dropped
        self._is_new = True  # there was no request yet
        self._has_begun = False  # the response is being sent
        self._received_bytes = 0
        self._sent_bytes = 0
        self._unsent: list[bytes] = []  # what is written when the body has to wait
        self.is_responding = False
        self.is_last_response = False
        self.refusal: ProxyError | None = None

    # ---- called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._high_water = transport.get_write_buffer_limits()[1]
        # asyncio does so only for the sockets that it makes itself. Otherwise each small write
        # waits until the client has acknowledged the one before: 40 ms, if that has no data.
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._task = self._accept(self)
        if self._task is None:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._is_over:
            return
        self._received_bytes += len(data)
        self._parser.feed(data)
        self._wake()
        if self._parser.buffered > READ_AHEAD_BYTES and not self._is_wanted:
            self._is_reading = False
            self._transport.pause_reading()
            if self._hang_up_timer is None:
                self._hang_up_timer = self._loop.call_later(HANG_UP_S, self._look_for_hang_up)

    def eof_received(self) -> None:
        """Cut the connection.

        A client that closes only its sending side counts as gone too: until we write, it
        looks the same as one that closed its socket because the user cancelled.
        """
        self._hang_up()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        self._hang_up()
        self._wake()

    def resume_writing(self) -> None:
        self._wake()

    def _look_for_hang_up(self) -> None:
        """Ask the kernel as long as nothing is read: an end may be behind what is unread."""
        self._hang_up_timer = None
        if self._is_reading or self._is_hung_up:
            return
        if has_hung_up(self._transport):
            self._hang_up()
        else:
            self._hang_up_timer = self._loop.call_later(HANG_UP_S, self._look_for_hang_up)

    def _hang_up(self) -> None:
        self._transport.abort()
        if self._is_hung_up or self._task is None:
            return
        self._is_hung_up = True
        if self._is_over:
            self._wake()
        else:
            self._task.cancel()

    # ---- the task

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self._body_waiter is not None and not self._body_waiter.done():
            self._body_waiter.set_result(None)

    async def _wait(self, until: float) -> None:
        """Wait until something happens on the connection, at most until a time of the loop."""
        # One timer, set again when it has run out: another for each request took 10 µs.
        self._waiter = self._loop.create_future()
        self._wake_at = until
        if self._alarm is None or self._alarm.when() > until:
            self._ring()
        try:
            await self._waiter
        finally:
            self._waiter = None
            self._wake_at = math.inf

    def _ring(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self._loop.time() >= self._wake_at:
            self._wake()
        elif self._wake_at < math.inf:
            self._alarm = self._loop.call_at(self._wake_at, self._ring)

    async def serve(self) -> None:
        """Read and respond until either is done, then close."""
        try:
            await self._respond_to_all()
            if self._is_over and not self.is_last_response:
                # RFC 9112 9.6: closing with unread bytes would reset the connection, and the
                # client might lose its response. It has our FIN; read until its FIN.
                until = self._loop.time() + LINGER_S
                while not self._is_hung_up and self._loop.time() < until:
                    await self._wait(until)
        finally:
            self._is_hung_up = True  # by us: nothing is to be cancelled
            self._transport.abort()
            while not self._is_lost:
                await self._wait(math.inf)
            if self._alarm is not None:
                self._alarm.cancel()
            self._task = None  # a cancelled one keeps the traceback, which refers to us

    async def _respond_to_all(self) -> None:
        try:
            while await self._respond_to_next():
                pass
            await self._finish()
        except _Gone:
            self._transport.abort()
        self.is_responding = False

    async def _respond_to_next(self) -> bool:
        """Serve one request; return whether the connection can take another."""
        try:
            if self.refusal is not None:
                raise self.refusal
            request = await self._next_request()
        except ProxyError as error:
            if self._parser.is_tls:
                self._warn_of_tls(self._peer)
            response = self._render_error(error, self._parser.head)
            return await self._refuse(response, None)
        except _Refused as refused:
            return await self._refuse(refused.response, refused.head)
        if request is None:
            return False
        self._is_new = False
        self._has_begun = False
        self.is_responding = True
        self._is_wanted = False
        if self._parser.is_streaming:
            request = replace(request, body_stream=_BodyStream(self, self._received_bytes))
        began_at = time.monotonic()
        try:
            response = await self._call_app(request)
        except asyncio.CancelledError:
            self._report(request, None, began_at, "")
            raise
        keep_alive = await self._send(response, request, began_at)
        self.is_responding = not keep_alive  # the last response has not ended until it is sent
        if self._parser.buffered:
            await asyncio.sleep(0)  # many small pipelined requests must not block the loop
        return keep_alive

    async def next_body_piece(self, since: _BodyStream) -> bytes:
        """Return the next piece of a streamed request's body; b"" at its end.

        Raises:
            ProxyError: it is malformed, too slow or cut.
        """
        while (piece := self._parser.next_piece()) is None:
            if self._is_hung_up:  # noticed by another task than the one that is cancelled
                raise ProtocolError("the client left before its body was whole")
            if self._parser.take_continue() and not self._has_begun:
                self._write(http11.CONTINUE)
            limit_s, began_at = self._limits.body_s, self._loop.time()
            # As in _next_request, without the time in which nobody asked for more.
            received_bytes = self._received_bytes - since.received_bytes
            slowest_s = limit_s + received_bytes / MIN_BODY_BYTES_PER_S - since.waited_s
            self._body_waiter = self._loop.create_future()
            self._want_more()
            try:
                async with asyncio.timeout(min(limit_s, slowest_s)):
                    await self._body_waiter
            except TimeoutError:
                raise Timeout(f"the body came too slowly for {limit_s:g} s") from None
            finally:
                self._is_wanted = False
                self._body_waiter = None
            since.waited_s += self._loop.time() - began_at
        return piece

    def _want_more(self) -> None:
        """Read on, however much is buffered."""
        self._is_wanted = True
        if not self._is_reading:
            self._is_reading = True
            self._transport.resume_reading()

    async def _refuse(self, response: Response, head: Request | None) -> bool:
        """Send a response to a request that was not read to its end: it is the last."""
        self.is_responding = True
        await self._send(response, head, time.monotonic(), close=True)
        return False

    async def _next_request(self) -> Request | None:
        """Wait for a request; None if the connection is to end without a response.

        Raises:
            ProxyError: the bytes are not a request, or arrived too slowly.
            _Refused: the request may not be made; its body has not arrived.
        """
        now = self._loop.time
        limits = self._limits
        idle_s = min(limits.idle_s, FIRST_REQUEST_S) if self._is_new else limits.idle_s
        idle_until = now() + idle_s
        head_until: float | None = None
        body_since: tuple[float, int] | None = None
        self._want_more()
        while not self.is_last_response:
            if request := self._parser.next_request():
                return request
            if self._admit is not None and (head := self._parser.take_head()):
                if response := self._admit(head):
                    raise _Refused(response, head)
            if self._parser.take_continue():
                self._write(http11.CONTINUE)
            if self._parser.in_body:
                body_since = body_since or (now(), self._received_bytes)
                body_bytes = self._received_bytes - body_since[1]
                # Else a byte now and then would hold a connection for ever.
                slowest = body_since[0] + limits.body_s + body_bytes / MIN_BODY_BYTES_PER_S
                until = min(now() + limits.body_s, slowest)
            elif self._parser.begun:
                until = head_until = head_until or now() + limits.header_s
            else:
                until = idle_until
            received_bytes = self._received_bytes
            await self._wait(until)
            if self._received_bytes == received_bytes and now() >= until:
                if self._parser.in_body:
                    raise Timeout(f"the body came too slowly for {limits.body_s:g} s") from None
                if self._parser.begun:
                    raise Timeout(f"the head took more than {limits.header_s:g} s") from None
                return None  # RFC 9112 9.5: an idle connection may be closed at any time
        return None

    async def _call_app(self, request: Request) -> Response:
        if request.method not in METHODS:
            message = f"the method {request.method[:20]} is not known here"
            return self._render_error(ProtocolError(message, status=501), request)
        try:
            return await self._app(request)
        except ProxyError as error:
            return self._render_error(error, request)
        except Exception:
            _log.exception("the app failed at %s %r", request.method, request.path)
            return self._render_error(ProxyError("internal error"), request)

    async def _send(
        self,
        response: Response,
        request: Request | None,
        began_at: float,
        *,
        close: bool = False,
    ) -> bool:
        """Write a response; return whether the connection can take another.

        A body that fails is cut: what it yielded is sent, the mark of its end is not.
        """
        body = response.body
        status: int | None = None
        self._sent_bytes = 0
        self._has_begun = True
        try:
            date = _date(int(time.time()))
            framed = http11.frame_response(
                response,
                request,
                date=date,
                close=close or self.is_last_response or self._parser.is_streaming,
                method=self._parser.method,
            )
            if isinstance(body, bytes) or not framed.has_body:
                whole = body if framed.has_body and isinstance(body, bytes) else b""
                self._write(framed.head + whole)
                status, self._sent_bytes = response.status, len(whole)
                await self._drain()
            else:
                self._unsent = [framed.head]
                status = response.status
                await self._stream(body, framed.chunked)
            return framed.keep_alive and framed.length in (None, self._sent_bytes)
        except BodyCut:
            return False
        except _Gone:
            raise
        except Exception:
            _log.exception("the response failed")
            return False
        finally:
            await _close_body(body)
            self._report(request, status, began_at, response.reason)

    def _report(
        self, request: Request | None, status: int | None, began_at: float, reason: str
    ) -> None:
        if self._on_response is None:
            return
        duration_s = time.monotonic() - began_at
        try:
            self._on_response(
                ServedRequest(self._peer, request, status, self._sent_bytes, duration_s, reason)
            )
        except Exception:  # such as a full disk, which is no fault of this connection
            _log.exception("reporting a response failed")

    @property
    def _peer(self) -> str:
        return str((self._transport.get_extra_info("peername") or ("-",))[0])

    async def _stream(self, body: AsyncIterator[bytes], chunked: bool) -> None:
        """Write the items as they come. The loop runs once per token: keep it small.

        Whatever the body yields without waiting is one write, the head and the end with it:
        each call of the kernel takes as long as some ten tokens.
        """
        in_a_row = written_bytes = 0
        step, unsent = body.__anext__, self._unsent
        try:
            while True:
                data = await _before_waiting(step(), self._write_unsent)
                if not data:
                    self._write_unsent()
                    continue
                unsent.append(http11.encode_chunk(data) if chunked else data)
                self._sent_bytes += len(data)
                in_a_row += 1
                if self._sent_bytes - written_bytes > self._high_water:
                    written_bytes = self._sent_bytes
                    self._write_unsent()
                if self._transport.get_write_buffer_size() > self._high_water:
                    self._write_unsent()
                    await self._drain()
                # A body that never waits would block the loop and hide hang-ups.
                if in_a_row == CHUNKS_IN_A_ROW:
                    in_a_row = 0
                    self._write_unsent()
                    await asyncio.sleep(0)
                if self._transport.is_closing():
                    raise _Gone
        except StopAsyncIteration:
            if chunked:
                unsent.append(http11.LAST_CHUNK)
        finally:
            self._write_unsent()

    def _write_unsent(self) -> None:
        if self._unsent and not self._transport.is_closing():
            self._transport.write(b"".join(self._unsent))
        self._unsent.clear()

    def _write(self, data: bytes) -> None:
        if self._transport.is_closing():
            raise _Gone
        self._transport.write(data)

    async def _drain(self) -> None:
        """Wait until no more than the high-water mark is unsent; give up if nothing is read."""
        while (unsent := self._transport.get_write_buffer_size()) > self._high_water:
            until = self._loop.time() + self._limits.stall_s
            await self._wait(until)
            if self._is_lost:
                raise _Gone
            is_late = self._loop.time() >= until
            if is_late and self._transport.get_write_buffer_size() >= unsent:
                raise _Gone

    async def _finish(self) -> None:
        """Flush everything to the kernel, and close our side."""
        self._high_water = 0
        self._transport.set_write_buffer_limits(high=0)
        await self._drain()
        self._is_over = True
        self._want_more()
        try:
            self._transport.write_eof()
        except OSError:
            raise _Gone from None


class _BodyStream:
    """The body of a streamed request; see `Server`.

    received_bytes: of the connection when it began. waited_s: for the client.
    """

    # Not an async generator: one that is left halfway is closed by a task of its own.

    def __init__(self, connection: _Connection, received_bytes: int) -> None:
        self._connection = connection
        self._is_ended = False
        self.received_bytes = received_bytes
        self.waited_s = 0.0

    def __aiter__(self) -> _BodyStream:
        return self

    async def __anext__(self) -> bytes:
        if not self._is_ended and (piece := await self._connection.next_body_piece(self)):
            return piece
        self._is_ended = True  # what follows belongs to the next request
        raise StopAsyncIteration


@types.coroutine
def _before_waiting(step: Awaitable[T], call: Callable[[], None]) -> Generator[Any, Any, T]:
    """Await a step, but call `call` first if it has to wait, and only then.

    It is `yield from step` with a look at the first thing that comes from it.
    """
    steps = step.__await__()
    try:
        waits_for = steps.send(None)
        call()
        while True:
            try:
                sent = yield waits_for
            except BaseException as exc:  # such as a cancel
                waits_for = steps.throw(exc)
            else:
                waits_for = steps.send(sent)
    except StopIteration as end:
        result: T = end.value
        return result


async def _close_body(body: bytes | AsyncIterator[bytes]) -> None:
    """Let a generator run its `finally`, wherever it stopped."""
    aclose = getattr(body, "aclose", None)
    if aclose is not None:
        try:
            await aclose()
        except Exception:
            _log.exception("a body failed to close")


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    """Format the `date` field (RFC 9110 6.6.1), once per second."""
    return formatdate(second, usegmt=True)
