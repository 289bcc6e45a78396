"""The HTTP client: send one request, stream the response, record when its bytes arrived.

Each request has a connection of its own: a measured response waits for no other, and the
time to connect is known separately. Redirects are never followed, proxies from the
environment (`HTTPS_PROXY`) never used, nothing is retried: a key is sent only to the
address that it was given for. `response_parser` reads the bytes.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from ..core.errors import UpstreamError, UpstreamTimeout
from ..core.limits import Limits
from .http11 import Headers
from .response_parser import ResponseHead, ResponseParser, encode_request

READ_AHEAD_BYTES = 256 * 2**10  # received and not asked for yet; above it, the server has to wait
_OWN_FIELDS = {"host", "content-length", "transfer-encoding", "accept-encoding", "connection"}


@dataclass(frozen=True)
class Deadlines:
    """The longest waits on the server, in seconds."""

    connect_s: float = 10.0  # name, TCP and TLS
    first_byte_s: float = 300.0  # after the request's last byte: models load, and think
    idle_s: float = 60.0  # between two reads after that, and two writes before; keep-alives count


@dataclass(frozen=True)
class Times:
    """The moments of one request, by time.monotonic().

    began: before the name was looked up. connected: name, TCP and TLS are done.
    sent: the kernel has taken the request's last byte (under TLS its last 64 KiB
        may still wait), or the server responded earlier.
    first_byte: the response's first bytes arrived, interim responses included. The body's
        pieces come with their own times.
    """

    began: float
    connected: float
    sent: float
    first_byte: float


class UpstreamResponse:
    """A server's response whose body is still to be read.

    Iterate over it once to get the decoded body in pieces, each with the time.monotonic() at
    which its bytes left the socket, however late they are asked for.
    """

    def __init__(self, head: ResponseHead, times: Times, reader: _Reader) -> None:
        self.status = head.status
        self.headers: Headers = head.headers
        self.times = times
        self._reader = reader

    def __aiter__(self) -> UpstreamResponse:
        return self

    async def __anext__(self) -> tuple[float, bytes]:
        """Return the body's next piece as soon as it arrives.

        Raises:
            UpstreamError: the body is malformed, too large or cut short; good pieces come first.
            UpstreamTimeout: nothing arrived for `idle_s`.
        """
        piece = await self._reader.next_piece()
        if piece is None:
            raise StopAsyncIteration
        assert isinstance(piece, bytes)
        return self._reader.at, piece


@asynccontextmanager
async def send_request(
    url: str,
    headers: Iterable[tuple[str, str]] = (),
    body: bytes = b"",
    *,
    limits: Limits = Limits(),
    deadlines: Deadlines = Deadlines(),
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[UpstreamResponse]:
    """POST a request and yield its response, of any status, as soon as the head has arrived.

    The connection is cut when the block is left, also by a cancel. `limits` are those of the
    response: `head`, `headers`, `body`. tls: the system's trust by default.

    Raises:
        ValueError: a URL or header field that can't be sent.
        UpstreamError: no connection, or no HTTP response.
        UpstreamTimeout: the server was slower than its deadlines.
    """
    address = _Address.of(url)
    fields = [("host", address.authority), *headers]
    if doubled := _OWN_FIELDS & {name.lower() for name, _ in fields[1:]}:
        raise ValueError(
            f"the client sets these header fields itself: {', '.join(sorted(doubled))}"
        )
    fields += [("accept-encoding", "identity"), ("connection", "close")]
    fields.append(("content-length", str(len(body))))  # RFC 9110 8.6: SHOULD be sent, even if 0
    data = encode_request("POST", address.target, fields, body)
    began = time.monotonic()
    connection = await _connect(address, tls, deadlines)
    try:
        connected = time.monotonic()
        sent = await connection.send(data, deadlines)
        reader = _Reader(connection, ResponseParser(limits), deadlines)
        first_byte = await reader.wait_for_first_byte()
        head = await reader.next_piece()
        assert isinstance(head, ResponseHead)  # the parser gives it first, or raises
        yield UpstreamResponse(head, Times(began, connected, sent, first_byte), reader)
    finally:
        connection.close()


class _Reader:
    """Reads one response off its connection. `at`: when the last piece's bytes arrived.

    Not an async generator: one that is left halfway is closed by a task of its own.
    """

    def __init__(
        self, connection: _Connection, parser: ResponseParser, deadlines: Deadlines
    ) -> None:
        self._connection = connection
        self._parser = parser
        self._deadlines = deadlines
        self.at = 0.0

    async def wait_for_first_byte(self) -> float:
        while not (self._connection.arrived or self._connection.is_over):
            await self._connection.changed(
                self._deadlines.first_byte_s, "the upstream began no response"
            )
        return self._connection.arrived[0][0] if self._connection.arrived else time.monotonic()

    async def next_piece(self) -> ResponseHead | bytes | None:
        while True:
            piece = self._parser.next_piece()
            if piece is not None or self._parser.is_whole:
                return piece
            if self._connection.arrived:
                self.at, data = self._connection.take()
                self._parser.feed(data)
            elif failure := self._connection.failure:
                raise UpstreamError(f"the connection broke: {failure}") from failure
            elif self._connection.is_over:
                self._parser.end()
            else:
                await self._connection.changed(
                    self._deadlines.idle_s, "the upstream's response stalled"
                )


# ---- the address


@dataclass(frozen=True)
class _Address:
    """The host to connect to, and the target to request there."""

    host: str
    port: int
    is_tls: bool
    authority: str
    target: str

    @classmethod
    def of(cls, url: str) -> _Address:
        """Split a URL. One that would need repair is refused: it must not be sent a key.

        Raises:
            ValueError: not an http(s) URL of visible ASCII, or one with a user or fragment.
        """
        # urlsplit drops TAB, CR and LF, wherever they stand.
        if not url.isascii() or not url.isprintable() or " " in url:
            raise ValueError("the URL has characters that must be percent-encoded")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("the URL does not begin with http:// or https:// and a host")
        # RFC 9110 4.2.4: userinfo is not to be sent; what stands there is a password.
        if "@" in parts.netloc or parts.fragment:
            raise ValueError("the URL has a user or a fragment in it")
        is_tls = parts.scheme == "https"
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        port = (443 if is_tls else 80) if parts.port is None else parts.port
        return cls(parts.hostname, port, is_tls, parts.netloc, target)


# ---- the connection


async def _connect(
    address: _Address, tls: ssl.SSLContext | None, deadlines: Deadlines
) -> _Connection:
    if address.is_tls and tls is None:
        # Reads the system's certificates: about 10 ms that are not the server's.
        tls = await asyncio.to_thread(ssl.create_default_context)
    where = f"{address.host}:{address.port}"
    try:
        async with asyncio.timeout(deadlines.connect_s):
            return await _connect_to_any(address, tls, deadlines.connect_s)
    except TimeoutError as exc:
        raise UpstreamTimeout(f"no connection to {where} within {deadlines.connect_s:g} s") from exc
    except ssl.SSLError as exc:
        why = getattr(exc, "verify_message", "") or exc.reason or "the server does not speak TLS"
        raise UpstreamError(f"no secure connection to {where}: {why}") from exc
    except (OSError, UnicodeError) as exc:  # UnicodeError: not a valid host name
        raise UpstreamError(f"no connection to {where}: {_reason(exc)}") from exc


async def _connect_to_any(
    address: _Address, tls: ssl.SSLContext | None, within_s: float
) -> _Connection:
    """Connect to the first of the host's addresses that accepts; each gets a share of the time.

    One after the other: asyncio's own race of addresses (`happy_eyeballs_delay`) leaves
    tasks behind when it is cancelled, and can fail when two win at once (CPython 3.11).
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + within_s
    found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(where[0]) for *_, where in found))
    for left in range(len(addresses), 0, -1):
        try:
            async with asyncio.timeout((until - loop.time()) / left):
                _, connection = await loop.create_connection(
                    _Connection,
                    addresses[-left],
                    address.port,
                    ssl=tls if address.is_tls else None,
                    server_hostname=address.host if address.is_tls else None,
                )
                return connection
        except ssl.SSLError:
            raise  # the next address is the same server
        except OSError:  # a TimeoutError too
            if left == 1:
                raise
    raise OSError("the name has no address")


def _reason(exc: Exception) -> str:
    # asyncio replaces the system's message with "Connect call failed" and the address.
    code = exc.errno if isinstance(exc, OSError) else None
    return os.strerror(code) if code is not None and code > 0 else str(exc)


class _Connection(asyncio.Protocol):
    """One connection. Bytes get their time when the loop reads them, not when they are used.

    With a StreamReader, an event's time would be late while its reader is busy with the last.
    """

    def __init__(self) -> None:
        self.arrived: deque[tuple[float, bytes]] = deque()
        self.is_over = False
        self.failure: Exception | None = None
        self._buffered = 0
        self._is_full = False
        self._is_sent = True
        self._waiter: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        # So that resume_writing is called when the last byte is gone. Not 0: asyncio's TLS
        # takes an empty buffer for a full one then, and says so until it is used again.
        transport.set_write_buffer_limits(high=1, low=0)

    def data_received(self, data: bytes) -> None:
        self.arrived.append((time.monotonic(), data))
        self._buffered += len(data)
        if self._buffered > READ_AHEAD_BYTES and not self._is_full:
            self._is_full = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        self.is_over = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_over = True
        self.failure = self.failure or exc
        self._wake()

    def pause_writing(self) -> None:
        self._is_sent = False

    def resume_writing(self) -> None:
        self._is_sent = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def changed(self, within_s: float, what: str) -> None:
        """Wait until something happens on the connection.

        Raises:
            UpstreamTimeout: nothing happened; its message begins with `what`.
        """
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(within_s):
                await self._waiter
        except TimeoutError as exc:
            raise UpstreamTimeout(f"{what} within {within_s:g} s") from exc
        finally:
            self._waiter = None

    async def send(self, data: bytes, deadlines: Deadlines) -> float:
        """Write a request; return the time when the kernel had all of it.

        A server may refuse a request before reading it all: then this returns at once.
        """
        self._transport.write(data)
        left = len(data) + 1
        while not (self._is_sent or self.arrived or self.is_over):
            try:
                await self.changed(deadlines.idle_s, "the upstream did not take the request")
            except UpstreamTimeout:
                before, left = left, self._transport.get_write_buffer_size()
                if left >= before:
                    raise
        return time.monotonic()

    def take(self) -> tuple[float, bytes]:
        """Return the first bytes that were received and not taken yet."""
        at, data = self.arrived.popleft()
        self._buffered -= len(data)
        if self._is_full and self._buffered <= READ_AHEAD_BYTES // 2:
            self._is_full = False
            self._transport.resume_reading()
        return at, data

    def close(self) -> None:
        """Abort the connection, even with data left to write or read."""
        self._transport.abort()
