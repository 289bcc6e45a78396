"""The HTTP client: send one request, stream the response, record when its bytes arrived.

`Client` keeps connections for the next request; `send_request` has one of its own for each.
What a client sent can be passed on, and what comes back, byte for byte:

    client = Client(tls=connections.trust(ca_file), proxies=Proxies.of_environment())
    async with client.send(
        request.method,
        base_url + request.target,
        request.headers.as_received,
        request.body,  # or an async iterator of bytes
        limits=limits,
        is_decoded=False,
    ) as response:
        response.status, response.reason_phrase, response.headers.as_received
        async for arrived_at, data in response: ...

`content_coding.BodyDecoder` decodes a copy of such a body.
Redirects are never followed: a key is sent only to the address that it was given for.
`response_parser` reads the bytes, `connections` has the sockets.
"""

from __future__ import annotations

import ssl
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from ..core.errors import ProtocolError, UpstreamError, UpstreamTimeout
from ..core.limits import Limits
from .connections import (
    DEADLINES,
    NO_PROXIES,
    Address,
    Connection,
    Deadlines,
    Pool,
    Proxies,
    connect,
)
from .http11 import LAST_CHUNK, Headers, encode_chunk
from .http_grammar import end_to_end, parse_content_length
from .response_parser import ResponseHead, ResponseParser, encode_request

# Of `send_request`: set by it, or about its connection.
OWN_FIELDS = frozenset(
    {"host", "content-length", "transfer-encoding", "accept-encoding", "connection"}
)
JOINED_BYTES = 64 * 2**10  # of chunks that are read as one piece; inflated, one is as large
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_BODILESS = _SAFE | {"DELETE"}


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

    Iterate over it once to get the body in pieces, each with the time.monotonic() at
    which its bytes left the socket, however late they are asked for.
    """

    def __init__(self, head: ResponseHead, times: Times, reader: _Reader) -> None:
        self.status = head.status
        self.reason_phrase = head.reason_phrase
        self.headers: Headers = head.headers
        self.times = times
        self._reader = reader
        self._put_back: list[tuple[float, bytes]] = []  # the last one comes first

    def put_back(self, pieces: Sequence[tuple[float, bytes]]) -> None:
        """Return these pieces again, before those that have not come yet."""
        self._put_back += reversed(pieces)

    def __aiter__(self) -> UpstreamResponse:
        return self

    async def __anext__(self) -> tuple[float, bytes]:
        """Return the body's next piece as soon as it arrives.

        Raises:
            UpstreamError: the body is malformed, too large or cut short; good pieces come first.
            UpstreamTimeout: nothing arrived for `idle_s`.
        """
        if self._put_back:
            return self._put_back.pop()
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
    deadlines: Deadlines = DEADLINES,
    tls: ssl.SSLContext | None = None,
    proxies: Proxies = NO_PROXIES,
) -> AsyncIterator[UpstreamResponse]:
    """POST a request over a connection of its own; see `Client.send`.

    A measured response waits for no other then, and the time to connect is known.

    headers: without `OWN_FIELDS`. tls: the system's trust by default.
    proxies: those to be used; none by default.

    Raises:
        ValueError: a URL or header field that can't be sent, or one of `OWN_FIELDS`.
    """
    address = Address.of(url)
    fields = list(headers)
    if own := OWN_FIELDS.intersection(name.lower() for name, _ in fields):
        raise ValueError(f"the client sets these header fields itself: {', '.join(sorted(own))}")
    fields += [("accept-encoding", "identity"), ("connection", "close")]
    proxy = proxies.proxy_for(address)
    request = _Request.of("POST", address, fields, body, None if address.is_tls else proxy)
    began = time.monotonic()
    connection = await connect(address, tls, deadlines, proxy)
    try:
        exchange = _Exchange(connection, request, limits, deadlines, is_decoded=True)
        yield await exchange.begin(began)
    finally:
        connection.close()


class Client:
    """Sends requests to servers, and keeps connections for the next ones.

    tls: the system's trust by default. proxies: those to be used; none by default.
    """

    def __init__(
        self,
        *,
        deadlines: Deadlines = DEADLINES,
        tls: ssl.SSLContext | None = None,
        proxies: Proxies = NO_PROXIES,
    ) -> None:
        self._deadlines = deadlines
        self._pool = Pool(deadlines, tls, proxies)

    @asynccontextmanager
    async def send(
        self,
        method: str,
        url: str,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes | AsyncIterator[bytes] = b"",
        *,
        limits: Limits = Limits(),
        is_decoded: bool = True,
    ) -> AsyncIterator[UpstreamResponse]:
        """Send a request and yield its response, of any status, as soon as the head has arrived.

        The connection is cut when the block is left before the response has ended, also by
        a cancel. A kept connection that the server has closed in the meantime is not used at
        all. If one ends after the request was written and before a byte of the response, the
        server may have acted on the request and died: only a safe method (RFC 9110 9.2.1) is
        sent again then, once, on a new connection.

        headers: sent in their order and case, hop-by-hop ones and `expect` left out. `host` and
            `content-length` get the right value in their place, or are added. Without
            `accept-encoding`, identity is requested.
        body: an iterated one is sent piece by piece, as the server takes it: chunked, unless
            there is a `content-length`, which it has to match.
        limits: those of the response: `head`, `headers`, `body`; `answer_s` from when the
            request is sent.
        is_decoded: undo the response's content-encoding.

        Raises:
            ValueError: a URL or header field that can't be sent.
            UpstreamError: no connection, or no HTTP response.
            UpstreamTimeout: the server was slower than its deadlines.
            ProtocolError: an iterated body that is not as long as its content-length.
        """
        address = Address.of(url)
        proxy = None if address.is_tls else self._pool.proxy_for(address)
        fields = [field for field in end_to_end(headers) if field[0].lower() != "expect"]
        if not any(name.lower() == "accept-encoding" for name, _ in fields):
            fields.append(("accept-encoding", "identity"))
        request = _Request.of(method, address, fields, body, proxy)
        began = time.monotonic()
        kept = self._pool.take(address)
        connection = kept or await self._pool.open(address)
        is_whole = False
        try:
            exchange = _Exchange(connection, request, limits, self._deadlines, is_decoded)
            try:
                response = await exchange.begin(began)
            except UpstreamError:
                is_again = kept is not None and method in _SAFE and isinstance(body, bytes)
                if not (is_again and exchange.is_unanswered):
                    raise
                connection.close()
                connection = await self._pool.open(address)
                exchange = _Exchange(connection, request, limits, self._deadlines, is_decoded)
                response = await exchange.begin(began)
            yield response
            is_whole = exchange.leaves_connection
        finally:
            if is_whole:
                self._pool.keep(address, connection, response.headers.get("keep-alive", ""))
            else:
                connection.close()

    def close(self) -> None:
        """Close the connections that are kept."""
        self._pool.close()


@dataclass(frozen=True)
class _Request:
    """The bytes of a request's head, and its body.

    length: of an iterated body; None if it is sent in chunks.
    """

    method: str
    head: bytes
    body: bytes | AsyncIterator[bytes]
    length: int | None

    @classmethod
    def of(
        cls,
        method: str,
        address: Address,
        headers: Iterable[tuple[str, str]],
        body: bytes | AsyncIterator[bytes],
        proxy: Address | None = None,
    ) -> _Request:
        """Encode a request's head, with the fields that say whom and how long it is for.

        proxy: the one that is asked for the whole URL.

        Raises:
            ValueError: a field that can't be sent, without its value.
        """
        fields = list(headers)
        names = {name.lower() for name, _ in fields}
        own = {"host": address.authority}
        if "host" not in names:
            fields.insert(0, ("host", ""))
        length: int | None = None
        if isinstance(body, bytes):
            length = len(body)
            # RFC 9110 8.6: SHOULD be sent, even if 0
            if "content-length" in names or body or method not in _BODILESS:
                own["content-length"] = str(length)
        elif "content-length" in names:
            value = next(value for name, value in fields if name.lower() == "content-length")
            length = parse_content_length(value, Limits(body=sys.maxsize))
            own["content-length"] = str(length)
        else:
            own["transfer-encoding"] = "chunked"
        target = address.target
        if proxy is not None:
            target = f"http://{address.authority}{target}"
            if proxy.basic_key:
                own["proxy-authorization"] = f"Basic {proxy.basic_key}"
        encoded = encode_request(method, target, _with_own(fields, own))
        return cls(method, encoded, body, length)


def _with_own(fields: list[tuple[str, str]], own: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Give fields their own values, once each; those that are missing come last."""
    left = dict(own)
    for name, value in fields:
        if (lower := name.lower()) not in own:
            yield name, value
        elif lower in left:
            yield name, left.pop(lower)
    yield from left.items()


class _Exchange:
    """One request and its response on a connection."""

    def __init__(
        self,
        connection: Connection,
        request: _Request,
        limits: Limits,
        deadlines: Deadlines,
        is_decoded: bool,
    ) -> None:
        self._connection = connection
        self._request = request
        self._deadlines = deadlines
        self._limits = limits
        self._parser = ResponseParser(limits, method=request.method, is_decoded=is_decoded)
        self._head: ResponseHead | None = None
        self._is_sent = False
        self.is_unanswered = True  # no byte of a response has come

    async def begin(self, began: float) -> UpstreamResponse:
        """Send the request, and return the response when its head has come."""
        connected = time.monotonic()
        sent = await self._send()
        until = time.monotonic() + self._limits.answer_s
        reader = _Reader(self._connection, self._parser, self._deadlines, until)
        first_byte = await reader.wait_for_first_byte()
        self.is_unanswered = not self._connection.arrived
        head = await reader.next_piece()
        assert isinstance(head, ResponseHead)  # the parser gives it first, or raises
        self._head = head
        return UpstreamResponse(head, Times(began, connected, sent, first_byte), reader)

    async def _send(self) -> float:
        """Write the request; return when the kernel had all of it, or the server responded."""
        request, connection = self._request, self._connection
        if isinstance(request.body, bytes):
            sent = await connection.send(request.head + request.body, self._deadlines)
        else:
            sent = await connection.send(request.head, self._deadlines)
            left = request.length
            async for data in request.body:
                if connection.arrived or connection.is_over:
                    return sent  # refused before it was read
                if left is None:
                    sent = await connection.send(encode_chunk(data), self._deadlines)
                else:
                    # More would be taken for the next request on this connection.
                    left -= len(data)
                    if left < 0:
                        break
                    sent = await connection.send(data, self._deadlines)
            if left:
                raise ProtocolError("the body is not as long as its content-length")
            if left is None:
                sent = await connection.send(LAST_CHUNK, self._deadlines)
        self._is_sent = connection.is_sent
        return sent

    @property
    def leaves_connection(self) -> bool:
        """Whether the connection can take another request."""
        return (
            self._is_sent
            and self._parser.is_whole
            and not self._parser.has_rest
            and self._head is not None
            and not self._head.ends_connection
        )


class _Reader:
    """Reads one response off its connection. `at`: when the last piece's bytes arrived.

    Not an async generator: one that is left halfway is closed by a task of its own.
    """

    def __init__(
        self,
        connection: Connection,
        parser: ResponseParser,
        deadlines: Deadlines,
        until: float,
    ) -> None:
        self._connection = connection
        self._parser = parser
        self._deadlines = deadlines
        self._until = until
        self.at = 0.0

    async def wait_for_first_byte(self) -> float:
        while not (self._connection.arrived or self._connection.is_over):
            await self._wait(self._deadlines.first_byte_s, "the upstream began no response")
        return self._connection.arrived[0][0] if self._connection.arrived else time.monotonic()

    async def next_piece(self) -> ResponseHead | bytes | None:
        while True:
            piece = self._parser.next_piece()
            if isinstance(piece, bytes):
                return self._with_rest(piece)
            if piece is not None or self._parser.is_whole:
                return piece
            if self._connection.arrived:
                self.at, data = self._connection.take()
                if self.at > self._until:
                    raise _too_long()
                self._parser.feed(data)
            elif failure := self._connection.failure:
                raise UpstreamError(f"the connection broke: {failure}") from failure
            elif self._connection.is_over:
                self._parser.end()
            else:
                await self._wait(self._deadlines.idle_s, "the upstream's response stalled")

    def _with_rest(self, piece: bytes) -> bytes:
        """Return a piece of the body with those that came in the same read.

        A server that is faster than we are sends many chunks at once: passed on one by one, 200
        chunks took 17 ms of CPU, 9 of them for sending.
        """
        pieces, size = [piece], len(piece)
        while size < JOINED_BYTES:
            try:
                more = self._parser.next_piece()
            except UpstreamError:  # raised again when the next one is asked for
                break
            if not isinstance(more, bytes):
                break
            pieces.append(more)
            size += len(more)
        return b"".join(pieces)

    async def _wait(self, within_s: float, what: str) -> None:
        left_s = self._until - time.monotonic()
        if within_s <= left_s:
            await self._connection.changed(within_s, what)
            return
        try:
            await self._connection.changed(max(left_s, 0), what)
        except UpstreamTimeout as error:
            raise _too_long() from error


def _too_long() -> UpstreamTimeout:
    return UpstreamTimeout("the upstream's response did not end in time (limit answer_s)")
