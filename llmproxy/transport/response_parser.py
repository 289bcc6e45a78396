"""HTTP/1.1 for clients, without IO: encode a request, parse the bytes of its response.

Nothing follows a response unasked, so malformed messages that a server must refuse (request
smuggling) are repaired as RFC 9112 allows a user agent; their connection is not used again. A
response that can't be read is an UpstreamError. `client` has the sockets.

Spec: https://www.rfc-editor.org/rfc/rfc9112
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field

from ..core.errors import ProtocolError, TooLarge, UnsupportedMediaType, UpstreamError
from ..core.limits import Limits
from .content_coding import BodyDecoder
from .http11 import Headers
from .http_grammar import (
    TOKEN,
    MessageBuffer,
    body_too_large,
    encode_message_head,
    parse_content_length,
    read_chunks,
    read_fields,
    read_length,
    split_list,
)

MAX_INTERIM_RESPONSES = 16  # 100 and 103 come once or twice; an endless stream of them is abuse
# RFC 9112 4 requires the space even without a reason phrase; old servers omit both.
_STATUS_LINE = re.compile(rb"HTTP/1\.([0-9]) ([1-5][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?")
_TARGET = re.compile(r"(?:http://[^/]+)?/[!\"$-~]*")  # visible ASCII without "#" (RFC 9112 3.2)


@dataclass(frozen=True)
class ResponseHead:
    """Status and header fields of a response, as received.

    reason_phrase: what stands behind the status, "" if nothing.
    ends_connection: whether no other response can follow it.
    """

    status: int
    headers: Headers
    ends_connection: bool = field(default=False, compare=False)
    reason_phrase: str = field(default="", compare=False)


def encode_request(
    method: str, target: str, headers: Iterable[tuple[str, str]], body: bytes = b""
) -> bytes:
    """Encode a request, complete or as far as its body is known.

    target: a path with its query, or the whole URL for a proxy.

    Raises:
        ValueError: a target or field that can't be written, without its value.
    """
    if not re.fullmatch(TOKEN, method.encode()) or not _TARGET.fullmatch(target):
        raise ValueError("the method or target can't be written")
    return encode_message_head(f"{method} {target} HTTP/1.1".encode(), headers) + body


class ResponseParser:
    """Parses a connection's bytes into one response: its head, then pieces of its body.

    Interim responses (100, 103) are skipped, chunks and gzip decoded (the latter if
    `is_decoded`), trailers dropped. has_rest: whether more came than the response. A
    malformed response raises when the fault is reached, after the good pieces before it, and
    again at each further call.
    """

    def __init__(self, limits: Limits, *, method: str = "POST", is_decoded: bool = True) -> None:
        self._input = _ResponseBuffer()
        self._pieces = _read_response(self._input, limits, method, is_decoded)
        self._error: UpstreamError | None = None
        self.is_whole = False  # the response has ended; what follows is not read
        self.has_rest = False

    def feed(self, data: bytes) -> None:
        """Add bytes from the server; `next_piece` parses them."""
        if self._error is None and not self.is_whole:
            self._input.buffer += data
            self._input.has_begun = self._input.has_begun or bool(data)

    def end(self) -> None:
        """Note that the server has closed the connection."""
        self._input.is_ended = True

    def next_piece(self) -> ResponseHead | bytes | None:
        """Return the head, then each piece of the body; None if there is no more for now.

        Raises:
            UpstreamError: not a response, one over the limits for a head (`head`, `headers`)
                or a body (`body`, inflated), or one that is cut short.
        """
        if self._error is not None:
            raise self._error.with_traceback(None)
        try:
            return next(self._pieces)
        except StopIteration:
            self.is_whole = True
            self.has_rest = self.has_rest or bool(self._input.buffer)
            self._input.buffer.clear()
            return None
        except (ProtocolError, TooLarge) as error:
            failure = UpstreamError(f"the upstream's response can't be read: {error.message}")
            self._fail(failure)
            raise failure from error
        except UpstreamError as error:
            self._fail(error)
            raise

    def _fail(self, error: UpstreamError) -> None:
        self._error = error
        self._input.buffer.clear()


class _ResponseBuffer(MessageBuffer):
    """The buffer of one response, and whether more can arrive."""

    def __init__(self) -> None:
        super().__init__(is_strict=False)
        self.has_begun = False
        self.is_ended = False

    def more(self) -> Generator[None, None, None]:
        """Wait for more bytes, unless the connection has ended."""
        if self.is_ended and not self.has_begun:
            raise UpstreamError("the upstream closed the connection without a response")
        if self.is_ended:
            raise UpstreamError("the upstream cut the connection before its response was complete")
        yield None


def _read_response(
    source: _ResponseBuffer, limits: Limits, method: str, is_decoded: bool
) -> Generator[ResponseHead | bytes | None, None, None]:
    for _ in range(MAX_INTERIM_RESPONSES + 1):
        head = yield from _read_head(source, limits)
        # RFC 9110 15.2: a client MUST be able to parse these before the final response.
        if head.status >= 200:
            break
        if head.status == 101:
            raise UpstreamError("the upstream switched protocols unasked")
    else:
        most = MAX_INTERIM_RESPONSES
        raise UpstreamError(f"the upstream sent more than {most} interim responses")
    # A head is passed on when it is given, so a body of unknown length has to be an error before.
    coded = None if is_decoded else _coded_body(source, head, limits, method)
    yield head  # before its body is read: an error status counts, whatever its page is encoded in
    if coded is None:
        coded = _coded_body(source, head, limits, method)
    decoder = _decoder(head.headers, limits) if is_decoded else None
    room = limits.body
    for piece in coded if decoder is None else _decoded(decoder, coded):
        if piece is not None:
            room -= len(piece)
            if room < 0:
                raise body_too_large(limits)
        yield piece


def _read_head(source: _ResponseBuffer, limits: Limits) -> Generator[None, None, ResponseHead]:
    line = yield from source.read_line(limits.head)
    parts = None if line is None else _STATUS_LINE.fullmatch(line)
    if line is None or parts is None:
        # RFC 9112 4: any major version but 1 is another protocol.
        raise UpstreamError("the upstream's response is not HTTP/1.1")
    pairs = yield from read_fields(source, limits, limits.head - len(line))
    headers = Headers(pairs)
    # RFC 9112 9.3: what ends with the connection, and what an old server sends, is the last.
    lengths = [headers.get(name) for name in ("content-length", "transfer-encoding")]
    ends = (
        parts[1] == b"0"
        or "close" in split_list(headers.get("connection", ""))
        or (lengths.count(None) != 1 and int(parts[2]) not in (204, 304))
    )
    return ResponseHead(int(parts[2]), headers, ends, (parts[3] or b"").decode("latin-1"))


# ---- the body's length


def _coded_body(
    source: _ResponseBuffer, head: ResponseHead, limits: Limits, method: str
) -> Generator[bytes | None, None, None]:
    """Choose how the body ends, in the order of RFC 9112 6.3."""
    if method == "HEAD" or head.status in (204, 304):
        return _no_body()
    # 6.3: a transfer coding overrides a length beside it; 6.1: also in HTTP/1.0, after
    # which the connection must not be reused.
    coding = head.headers.get("transfer-encoding")
    if coding is not None:
        if coding.lower() != "chunked":  # 7.4: others only if requested by `te`
            raise UpstreamError("the upstream used a transfer coding other than chunked")
        return read_chunks(source, limits)
    lengths = head.headers.get("content-length")
    if lengths is None:
        return _read_to_the_end(source)
    # RFC 9110 8.6: a list that repeats one length means that length.
    distinct = set(split_list(lengths))
    if len(distinct) > 1:
        raise ProtocolError("malformed content-length")
    return read_length(source, parse_content_length(distinct.pop(), limits))


def _no_body() -> Generator[bytes | None, None, None]:
    yield from ()


def _read_to_the_end(source: _ResponseBuffer) -> Generator[bytes | None, None, None]:
    while source.buffer or not source.is_ended:
        yield source.take(len(source.buffer)) or None


# ---- the body's coding


def _decoder(headers: Headers, limits: Limits) -> BodyDecoder | None:
    coding = headers.get("content-encoding", "")
    try:
        return BodyDecoder(coding, limits.body) if coding else None
    except UnsupportedMediaType as error:
        raise UpstreamError("the upstream used a content coding that was not requested") from error


def _decoded(
    decoder: BodyDecoder, pieces: Iterable[bytes | None]
) -> Generator[bytes | None, None, None]:
    for piece in pieces:
        if piece is None:
            yield None
            continue
        try:
            yield from decoder.feed(piece)
        except ProtocolError as error:
            raise _of_upstream(error) from error
    try:
        decoder.end()
    except ProtocolError as error:
        raise _of_upstream(error) from error


def _of_upstream(error: ProtocolError) -> UpstreamError:
    return UpstreamError(f"the upstream's {error.message.removeprefix('the ')}")
