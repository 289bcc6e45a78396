"""The sockets out: send one request to a server, stream its answer with the wire's own times.

Each request has a connection of its own, which ends with it: a measured answer then
waits for no other, and what setting up took is known apart. Redirects are never
followed, proxies in the environment (`HTTPS_PROXY`) never used, nothing is tried again:
a key goes to the one address that it was given for. What the bytes mean is
answers.py's.
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

__all__ = ["Answer", "Deadlines", "Times", "sending"]

READ_AHEAD_BYTES = 256 * 2**10  # come and not asked for yet; above it, the server has to wait
_OURS = {"host", "content-length", "transfer-encoding", "accept-encoding", "connection"}


@dataclass(frozen=True)
class Deadlines:
    """How long each wait on the server may take, in seconds."""

    connect_s: float = 10.0  # name, TCP and TLS
    first_byte_s: float = 300.0  # from the request's last byte on: models load, and think
    idle_s: float = 60.0  # between two reads after that, and two writes before; keep-alives count


@dataclass(frozen=True)
class Times:
    """When what happened, by time.monotonic().

    began: before the name was looked up. connected: name, TCP and TLS are done.
    sent: the kernel has taken the request's last byte (under TLS its last 64 KiB
        may still wait), or the server answered before.
    first_byte: the answer's first bytes came, interim answers included. The body's pieces
    have their times beside them.
    """

    began: float
    connected: float
    sent: float
    first_byte: float


class Answer:
    """A server's answer, whose body is still to come.

    Iterate it once, for its body's pieces, decoded, each with the time.monotonic() at
    which its bytes left the socket, however late they are asked for.
    """

    def __init__(self, head: ResponseHead, times: Times, reader: _Reader) -> None:
        self.status = head.status
        self.headers: Headers = head.headers
        self.times = times
        self._reader = reader

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> tuple[float, bytes]:
        """Give the body's next piece as soon as it is there.

        Raises:
            UpstreamError: the body is broken, too large or cut short, after its good pieces.
            UpstreamTimeout: nothing came for `idle_s`.
        """
        piece = await self._reader.next_piece()
        if piece is None:
            raise StopAsyncIteration
        assert isinstance(piece, bytes)
        return self._reader.at, piece


@asynccontextmanager
async def sending(
    url: str,
    headers: Iterable[tuple[str, str]] = (),
    body: bytes = b"",
    *,
    method: str = "POST",
    limits: Limits = Limits(),
    deadlines: Deadlines = Deadlines(),
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Answer]:
    """Send a request, give its answer as soon as the head is there; any status is an answer.

    The connection is cut at once when the block is left, by a cancel too. `limits` are
    those of the answer: `head`, `headers`, `body`. tls: the system's trust by default.

    Raises:
        ValueError: a URL or header field that can't be sent.
        UpstreamError: no connection, or no HTTP answer.
        UpstreamTimeout: the server was slower than its deadlines.
    """
    place = _Place.of(url)
    fields = [("host", place.authority), *headers]
    if doubled := _OURS & {name.lower() for name, _ in fields[1:]}:
        raise ValueError(f"these header fields are the client's own: {', '.join(sorted(doubled))}")
    fields += [("accept-encoding", "identity"), ("connection", "close")]
    if body or method == "POST":  # RFC 9110 8.6: a user agent SHOULD send it, also when it is 0
        fields.append(("content-length", str(len(body))))
    data = encode_request(method, place.target, fields, body)
    began = time.monotonic()
    wire = await _connect(place, tls, deadlines)
    try:
        connected = time.monotonic()
        sent = await wire.send(data, deadlines)
        reader = _Reader(wire, ResponseParser(limits, method=method), deadlines)
        first_byte = await reader.wait_for_first_byte()
        head = await reader.next_piece()
        assert isinstance(head, ResponseHead)  # the parser gives it first, or raises
        yield Answer(head, Times(began, connected, sent, first_byte), reader)
    finally:
        wire.close()


class _Reader:
    """Reads one answer off its wire. `at` is when the bytes came that made the last piece.

    No async generator: what is left in the middle of one is closed by a task of its own.
    """

    def __init__(self, wire: _Wire, parser: ResponseParser, deadlines: Deadlines) -> None:
        self._wire = wire
        self._parser = parser
        self._deadlines = deadlines
        self.at = 0.0

    async def wait_for_first_byte(self) -> float:
        while not (self._wire.arrived or self._wire.is_over):
            await self._wire.changed(self._deadlines.first_byte_s, "the upstream began no answer")
        return self._wire.arrived[0][0] if self._wire.arrived else time.monotonic()

    async def next_piece(self) -> ResponseHead | bytes | None:
        while True:
            piece = self._parser.next_piece()
            if piece is not None or self._parser.is_whole:
                return piece
            if self._wire.arrived:
                self.at, data = self._wire.take()
                self._parser.feed(data)
            elif failure := self._wire.failure:
                raise UpstreamError(f"the connection broke: {failure}") from failure
            elif self._wire.is_over:
                self._parser.end()
            else:
                await self._wire.changed(self._deadlines.idle_s, "the upstream's answer stalled")


# ---- the place


@dataclass(frozen=True)
class _Place:
    """Where a URL points: what to connect to, and what to ask for there."""

    host: str
    port: int
    is_tls: bool
    authority: str
    target: str

    @classmethod
    def of(cls, url: str) -> _Place:
        """Take a URL apart. Only what needs no mending is one: nothing else gets a key.

        Raises:
            ValueError: no http(s) URL of visible ASCII, or one with a user or fragment in it.
        """
        # urlsplit drops TAB, CR and LF, wherever they stand.
        if not url.isascii() or not url.isprintable() or " " in url:
            raise ValueError("the URL has characters that are to be percent-encoded")
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


# ---- the wire


async def _connect(place: _Place, tls: ssl.SSLContext | None, deadlines: Deadlines) -> _Wire:
    if place.is_tls and tls is None:
        # Reads the system's certificates: some 10 ms that are not the server's.
        tls = await asyncio.to_thread(ssl.create_default_context)
    where = f"{place.host}:{place.port}"
    try:
        async with asyncio.timeout(deadlines.connect_s):
            return await _connect_to_any(place, tls, deadlines.connect_s)
    except TimeoutError as exc:
        raise UpstreamTimeout(f"no connection to {where} within {deadlines.connect_s:g} s") from exc
    except ssl.SSLError as exc:
        why = getattr(exc, "verify_message", "") or exc.reason or "it speaks no TLS"
        raise UpstreamError(f"no secure connection to {where}: {why}") from exc
    except (OSError, UnicodeError) as exc:  # UnicodeError: a host that is no name (IDNA)
        raise UpstreamError(f"no connection to {where}: {_reason(exc)}") from exc


async def _connect_to_any(place: _Place, tls: ssl.SSLContext | None, within_s: float) -> _Wire:
    """Connect to the first address of the host that answers; each has its share of the time.

    One after the other: asyncio's own race of addresses (`happy_eyeballs_delay`) leaves
    tasks behind when it is cancelled, and can fail when two win at once (CPython 3.11).
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + within_s
    found = await loop.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
    for left in range(len(addresses), 0, -1):
        try:
            async with asyncio.timeout((until - loop.time()) / left):
                _, wire = await loop.create_connection(
                    _Wire,
                    addresses[-left],
                    place.port,
                    ssl=tls if place.is_tls else None,
                    server_hostname=place.host if place.is_tls else None,
                )
                return wire
        except ssl.SSLError:
            raise  # the next address is the same server
        except OSError:  # a TimeoutError too
            if left == 1:
                raise
    raise OSError("the name has no address")


def _reason(exc: Exception) -> str:
    # asyncio puts "Connect call failed" and the address in the system's words' place.
    code = exc.errno if isinstance(exc, OSError) else None
    return os.strerror(code) if code is not None and code > 0 else str(exc)


class _Wire(asyncio.Protocol):
    """One connection. Bytes are stamped when the loop reads them, not when somebody asks.

    A StreamReader would stamp an event late whenever the reader is busy with the last.
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
        """Wait until something happens on the wire.

        Raises:
            UpstreamTimeout: nothing did, and `what` says what was awaited.
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
        """Write a request; give the time when the kernel had all of it.

        A server may refuse a request that it has not read: then it is not waited for.
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
        """Give the first bytes that came and were not taken yet."""
        at, data = self.arrived.popleft()
        self._buffered -= len(data)
        if self._is_full and self._buffered <= READ_AHEAD_BYTES // 2:
            self._is_full = False
            self._transport.resume_reading()
        return at, data

    def close(self) -> None:
        """Cut the connection, whatever is still to be written or read."""
        self._transport.abort()
