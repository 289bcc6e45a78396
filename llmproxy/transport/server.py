"""The sockets of the server: any `async (Request) -> Response` over asyncio streams.

Each connection has two tasks. One reads for the connection's whole life and feeds
the parser; one answers, strictly in order. The end of reading is a hang-up, which
cancels the answer, and with it the model, whether it streams or is awaited still.
What the bytes mean is http11.py's, what an error looks like is `render_error`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache

from ..core.errors import ProtocolError, ProxyError, Timeout, Unavailable
from ..core.limits import Limits
from . import http11
from .http11 import BodyCut, Request, RequestParser, Response

App = Callable[[Request], Awaitable[Response]]

READ_BYTES = 64 * 2**10  # of one read: as much as a StreamReader holds
READ_AHEAD_BYTES = 256 * 2**10  # behind the request being answered; above it, reading waits
LINGER_S = 5.0  # for a client to read our last answer and close, before we do
CHUNKS_IN_A_ROW = 64  # that a body gives without waiting, before others have their turn
MAX_REFUSING = 64  # connections that are told that there are too many; the rest is cut at once
RETRY_S = 1  # when one of those may try again
MIN_BODY_BYTES_PER_S = 1_000  # on an average: a modem is three times as fast
# RFC 9110 9.1: any other is a 501; one of these that a route has not is the app's 405. There
# is no CONNECT, which would make a tunnel of the connection.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"})

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answered:
    """A request whose answer is over.

    peer: the client's address; request: None for bytes that were none.
    status: as it was sent, None where the client had gone before. body_bytes: of the answer.
    """

    peer: str
    request: Request | None
    status: int | None
    body_bytes: int
    duration_s: float


class Server:
    """Listen, and give each request to `app`; each answer is written as it is made.

    render_error: makes the answer to bytes that are no request, to one that came too
        slowly, and to a bug in `app`, from facts that are safe to show.
    tell: is told of each answer when it is over, however it ended.
    """

    def __init__(
        self,
        app: App,
        *,
        render_error: Callable[[ProxyError], Response],
        limits: Limits | None = None,
        tell: Callable[[Answered], None] | None = None,
    ) -> None:
        self._app = app
        self._render_error = render_error
        self._limits = limits or Limits()
        self._tell = tell
        self._listeners: list[asyncio.Server] = []
        self._connections: dict[asyncio.Task[None], _Connection] = {}
        self._closing = False

    async def start(self, host: str, port: int) -> None:
        """Listen on every address of `host` ("" for all); port 0 takes a free one.

        Raises:
            OSError: the port is in use, the host unknown or not this machine's.
        """
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        missing: OSError | None = None
        # A name may stand twice in /etc/hosts, and with it each of its addresses.
        for family, address in dict.fromkeys((family, where[0]) for family, *_, where in found):
            try:
                # Not asyncio's own: it hides which error there was (3.12 and later).
                sock = socket.create_server((str(address), port), family=family)
            except OSError as error:
                # "localhost" is ::1 too, even where the kernel has no IPv6 (containers).
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    await self.close()
                    raise
                missing = error
            else:
                self._listeners.append(await asyncio.start_server(self._accept, sock=sock))
                port = self.addresses[0][1]  # one port for all of them, also if any will do
        if missing is not None and not self._listeners:
            raise missing

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._connections)

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """The addresses and real ports that are listened on."""
        sockets = (sock for listener in self._listeners for sock in listener.sockets)
        return [sock.getsockname()[:2] for sock in sockets]

    async def close(self) -> None:
        """Stop: nothing new is taken, running answers may end for `limits.shutdown_s`.

        Connections without a running answer are closed at once, later ones are cut.
        Returns when all is over. It may be called again, also meanwhile.
        """
        self._closing = True
        for listener in self._listeners:
            listener.close()
        for task, connection in self._connections.items():
            if not connection.is_answering:
                task.cancel()
            connection.is_last_answer = True
        if running := set(self._connections):
            _, late = await asyncio.wait(running, timeout=self._limits.shutdown_s)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        for listener in self._listeners:
            await listener.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._closing:  # accepted in the same turn of the loop
            writer.transport.abort()
            return
        connection = _Connection(
            self._app, self._render_error, self._limits, reader, writer, self._tell
        )
        beyond = len(self._connections) - self._limits.connections
        if beyond >= MAX_REFUSING:
            writer.transport.abort()
            return
        if beyond >= 0:
            connection.refusal = Unavailable(
                f"there are {self._limits.connections} connections already",
                headers={"retry-after": str(RETRY_S)},
            )
        task = asyncio.get_running_loop().create_task(connection.serve())
        self._connections[task] = connection
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        del self._connections[task]
        if not task.cancelled() and (error := task.exception()):
            _log.error("a connection failed", exc_info=error)


class _Gone(Exception):
    """The client can't be written to any more, or has read nothing for too long."""


class _Connection:
    """One client's connection.

    `is_last_answer` ends it after the answer that is running; `refusal` is all that a
    client is told for whom there is no room, whatever it asks.
    """

    def __init__(
        self,
        app: App,
        render_error: Callable[[ProxyError], Response],
        limits: Limits,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        tell: Callable[[Answered], None] | None,
    ) -> None:
        self._app = app
        self._tell = tell
        self._render_error = render_error
        self._limits = limits
        self._reader = reader
        self._writer = writer
        self._transport = writer.transport
        self._high_water = self._transport.get_write_buffer_limits()[1]
        self._parser = RequestParser(limits)
        self._fed = asyncio.Event()  # there are new bytes for the parser
        self._wanted = asyncio.Event()  # reading may go on, however much is buffered
        self._is_over = False  # the last answer is out, what still comes is thrown away
        self._received_bytes = 0
        self._sent_bytes = 0
        self.is_answering = False
        self.is_last_answer = False
        self.refusal: ProxyError | None = None

    async def serve(self) -> None:
        """Read and answer until either is done, then close."""
        loop = asyncio.get_running_loop()
        reading = loop.create_task(self._read())
        answering = loop.create_task(self._answer_all())
        both = {reading, answering}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if self._is_over and not self.is_last_answer:
                # RFC 9112 9.6: to close with bytes unread would reset the connection, and
                # the client might lose its answer. It has our FIN; read until we have its.
                await asyncio.wait({reading}, timeout=LINGER_S)
        finally:
            self._transport.abort()
            for task in both:
                task.cancel()
            await asyncio.wait(both)
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        if not answering.cancelled():
            answering.result()  # None, or the bug that ended it

    async def _read(self) -> None:
        """Feed the parser until the client hangs up.

        A client that closes only its sending side counts as gone too: until we write, it
        looks just like one that closed its socket, as programs do when the user cancels.
        """
        try:
            while data := await self._reader.read(READ_BYTES):
                if self._is_over:
                    continue
                self._received_bytes += len(data)
                self._parser.feed(data)
                self._fed.set()
                if self._parser.buffered > READ_AHEAD_BYTES:
                    # A hang-up is not seen from here on, until an answer can't be written.
                    await self._wanted.wait()
        except OSError:  # reset, timed out, unreachable: hang-ups all the same
            pass

    async def _answer_all(self) -> None:
        try:
            while await self._answer_next():
                pass
            await self._finish()
        except _Gone:
            self._transport.abort()  # which ends the reading
        self.is_answering = False

    async def _answer_next(self) -> bool:
        """Wait for a request and answer it; say whether the connection can take another."""
        try:
            if self.refusal is not None:
                raise self.refusal
            request = await self._next_request()
        except ProxyError as error:
            self.is_answering = True
            return await self._send(self._render_error(error), None, time.monotonic())
        if request is None:
            return False
        self.is_answering = True
        self._wanted.clear()
        began_at = time.monotonic()
        try:
            response = await self._call_app(request)
        except asyncio.CancelledError:
            self._tell_answered(request, None, began_at)
            raise
        keep_alive = await self._send(response, request, began_at)
        self.is_answering = not keep_alive  # the last answer is not over until it is sent
        await asyncio.sleep(0)  # many small ones, pipelined, must not keep the loop
        return keep_alive

    async def _next_request(self) -> Request | None:
        """Wait for a request; None if the connection is to end without another word.

        Raises:
            ProxyError: what came is none, or came too slowly.
        """
        now = asyncio.get_running_loop().time
        limits = self._limits
        idle_until = now() + limits.idle_s
        head_until: float | None = None
        body_since: tuple[float, int] | None = None
        self._wanted.set()
        while not self.is_last_answer:
            self._fed.clear()
            if request := self._parser.next_request():
                return request
            if self._parser.take_continue():
                self._write(http11.CONTINUE)
            if self._parser.in_body:
                body_since = body_since or (now(), self._received_bytes)
                came_bytes = self._received_bytes - body_since[1]
                # A byte now and then would keep a connection for as long as it likes.
                slowest = body_since[0] + limits.body_s + came_bytes / MIN_BODY_BYTES_PER_S
                until = min(now() + limits.body_s, slowest)
            elif self._parser.begun:
                until = head_until = head_until or now() + limits.header_s
            else:
                until = idle_until
            try:
                async with asyncio.timeout_at(until):
                    await self._fed.wait()
            except TimeoutError:
                if self._fed.is_set():
                    continue  # bytes came in the same turn of the loop
                if self._parser.in_body:
                    raise Timeout(f"the body came too slowly for {limits.body_s:g} s") from None
                if self._parser.begun:
                    raise Timeout(f"the head took more than {limits.header_s:g} s") from None
                return None  # RFC 9112 9.5: an idle connection may be closed at any time
        return None

    async def _call_app(self, request: Request) -> Response:
        if request.method not in METHODS:
            message = f"the method {request.method[:20]} is not known here"
            return self._render_error(ProtocolError(message, status=501))
        try:
            return await self._app(request)
        except ProxyError as error:
            return self._render_error(error)
        except Exception:
            _log.exception("the app failed at %s %r", request.method, request.path)
            return self._render_error(ProxyError("internal error"))

    async def _send(self, response: Response, request: Request | None, began_at: float) -> bool:
        """Write a response; say whether the connection can take another.

        A body that fails is cut: what it gave is sent, what would end it is not.
        """
        body = response.body
        status: int | None = None
        self._sent_bytes = 0
        try:
            date = _date(int(time.time()))
            framed = http11.frame_response(
                response,
                request,
                date=date,
                close=self.is_last_answer,
                method=self._parser.method,
            )
            whole = body if framed.has_body and isinstance(body, bytes) else b""
            self._write(framed.head + whole)
            status, self._sent_bytes = response.status, len(whole)
            if whole:
                await self._drain()
            elif framed.has_body and not isinstance(body, bytes):
                await self._stream(body, framed.chunked)
            return framed.keep_alive
        except BodyCut:
            return False
        except _Gone:
            raise
        except Exception:
            _log.exception("the answer failed")
            return False
        finally:
            await _close_body(body)
            self._tell_answered(request, status, began_at)

    def _tell_answered(self, request: Request | None, status: int | None, began_at: float) -> None:
        if self._tell is None:
            return
        peer = self._writer.get_extra_info("peername") or ("-",)
        duration_s = time.monotonic() - began_at
        try:
            self._tell(Answered(str(peer[0]), request, status, self._sent_bytes, duration_s))
        except Exception:  # a full disk, say, which is no fault of this connection
            _log.exception("an answer could not be told")

    async def _stream(self, body: AsyncIterator[bytes], chunked: bool) -> None:
        """Write each item as it comes. What is in the loop is paid for each token."""
        in_a_row = 0
        async for data in body:
            self._write(http11.encode_chunk(data) if chunked else data)
            self._sent_bytes += len(data)
            if self._transport.get_write_buffer_size() > self._high_water:
                await self._drain()
            # A body that never waits would keep the loop, and hang-ups would go unseen.
            in_a_row += 1
            if in_a_row == CHUNKS_IN_A_ROW:
                in_a_row = 0
                await asyncio.sleep(0)
        if chunked:
            self._write(http11.LAST_CHUNK)

    def _write(self, data: bytes) -> None:
        if self._transport.is_closing():
            raise _Gone
        self._transport.write(data)

    async def _drain(self) -> None:
        """Wait while more than the high-water mark is unsent, as long as the client reads."""
        while (unsent := self._transport.get_write_buffer_size()) > self._high_water:
            try:
                async with asyncio.timeout(self._limits.stall_s):
                    await self._writer.drain()
            except TimeoutError:
                if self._transport.get_write_buffer_size() >= unsent:
                    raise _Gone from None
            except OSError:
                raise _Gone from None

    async def _finish(self) -> None:
        """Hand all that is written to the kernel, and close our side."""
        self._high_water = 0
        self._transport.set_write_buffer_limits(high=0)
        await self._drain()
        self._is_over = True
        self._wanted.set()
        try:
            self._transport.write_eof()
        except OSError:
            raise _Gone from None


async def _close_body(body: bytes | AsyncIterator[bytes]) -> None:
    """Let a generator run its `finally`, wherever it was left."""
    aclose = getattr(body, "aclose", None)
    if aclose is not None:
        try:
            await aclose()
        except Exception:
            _log.exception("a body failed to close")


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    """Write the `date` field's value (RFC 9110 6.6.1), once a second."""
    return formatdate(second, usegmt=True)
