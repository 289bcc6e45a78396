"""HTTP/1.1 for servers, without IO: parse bytes into requests, encode responses to bytes.

Wherever RFC 9112 lets a server either repair or refuse a malformed message, this one
refuses: two readers that repair one message differently are what request smuggling lives
on. `server` has the sockets, the deadlines and the order of responses.

Spec: https://www.rfc-editor.org/rfc/rfc9112 (messages), rfc9110 (semantics)
"""

from __future__ import annotations

import ipaddress
import re
import sys
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from http import HTTPStatus
from typing import Literal, overload
from urllib.parse import unquote

from ..core.errors import ProtocolError, ProxyError, TooLarge
from ..core.known_keys import is_secret_name
from ..core.limits import Limits
from .content_coding import decode_body
from .http_grammar import (
    MAX_LENGTH_DIGITS,
    TOKEN,
    MessageBuffer,
    encode_message_head,
    end_to_end,
    parse_content_length,
    read_chunks,
    read_fields,
    read_length,
    split_list,
)

_REQUEST_LINE_SPARE = 64  # bytes for method, version and spaces besides the longest target
_MAX_EMPTY_LINES = 8  # old clients send one after a POST's body, never several

# RFC 9112 3: single spaces only. A target is visible ASCII; a fragment ("#") is never sent.
_REQUEST_LINE = re.compile(rb"(" + TOKEN + rb") ([!\"$-~]+) HTTP/([0-9])\.([0-9])")
_LINE_STARTS = frozenset(
    byte for byte in range(256) if re.match(TOKEN + rb"|[\r\n]", bytes([byte]))
)
_TLS_HANDSHAKE = 0x16  # RFC 8446 5.1: the first byte of a client's first record
# RFC 3986 3.2.2 without userinfo (RFC 9110 4.2.4) and the unused IPvFuture.
_AUTHORITY = re.compile(
    r"(\[[0-9A-Fa-f:.]+\]|(?:[0-9A-Za-z._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::([0-9]*))?"
)
_ABSOLUTE_FORM = re.compile(r"[Hh][Tt][Tt][Pp][Ss]?://([^/?]*)(/[^?]*)?(?:\?(.*))?")
# RFC 9110 15, and RFC 9110's names also where Python's HTTPStatus has older ones (3.12 and
# before have "Request Entity Too Large"): the same bytes on every Python.
_REASONS = {status.value: status.phrase for status in HTTPStatus} | {
    413: "Content Too Large",
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    422: "Unprocessable Content",
    529: "Overloaded",
}


_REASON_PHRASE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")  # RFC 9112 4


class Headers:
    """The header fields of a message in order: pairs of lower-case name and value.

    Immutable. Values are latin-1 text, so that any byte a client may send survives.
    `repr` hides secrets, since it ends up in logs and tracebacks.

    as_received: the pairs with each name in the case in which it came.
    """

    __slots__ = ("_pairs", "as_received")

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        self.as_received = tuple(pairs)
        self._pairs = tuple((name.lower(), value) for name, value in self.as_received)

    @overload
    def get(self, name: str) -> str | None: ...
    @overload
    def get(self, name: str, default: str) -> str: ...
    def get(self, name: str, default: str | None = None) -> str | None:
        """Return the field's value; several lines of one name are joined with ", ".

        RFC 9110 5.3 defines several lines so. A field that is not a list but was sent twice
        (two `authorization`) then equals neither of its values.
        """
        values = self.get_all(name)
        return ", ".join(values) if values else default

    def get_all(self, name: str) -> list[str]:
        """Return the values of the field's lines, in order."""
        wanted = name.lower()
        return [value for name, value in self._pairs if name == wanted]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __eq__(self, other: object) -> bool:
        return self._pairs == other._pairs if isinstance(other, Headers) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._pairs)

    def __repr__(self) -> str:
        shown = [(name, "…" if is_secret_name(name) else value) for name, value in self._pairs]
        return f"Headers({shown!r})"


@dataclass(frozen=True)
class Request:
    """A request. `target` is as it was sent; `version` is "1.0" or "1.1".

    scheme: of the client's connection, as far as it is known. mount: the path before the target,
    in an application of which we are a part. body_stream: instead of `body`, if the request is
    streamed; see `server.Server`.
    """

    method: str
    target: str
    headers: Headers
    body: bytes = field(default=b"", repr=False)
    version: str = "1.1"
    scheme: str = "http"
    mount: str = ""
    body_stream: AsyncIterator[bytes] | None = field(default=None, repr=False, compare=False)

    @property
    def path(self) -> str:
        """The target's path, percent-decoded as UTF-8; "*" for `OPTIONS *`, "" for CONNECT."""
        return unquote(self._split_target[1])

    @property
    def target_path(self) -> str:
        """The target's path as it was sent."""
        return self._split_target[1]

    @property
    def query(self) -> str:
        """The target's part after "?", not decoded; "" if there is none."""
        return self._split_target[2]

    @property
    def host(self) -> str:
        """The host and port that the client requested, in lower case; "" if it named none.

        An absolute target's authority takes precedence over the Host field (RFC 9112 3.2.2).
        """
        return self._split_target[0].lower()

    @property
    def keep_alive(self) -> bool:
        """Whether the client wants to reuse the connection (RFC 9112 9.3)."""
        options = split_list(self.headers.get("connection", ""))
        return "close" not in options and (self.version == "1.1" or "keep-alive" in options)

    @cached_property
    def _split_target(self) -> tuple[str, str, str]:
        if self.method == "CONNECT":
            return self.target, "", ""
        if absolute := _ABSOLUTE_FORM.fullmatch(self.target):
            authority, path, query = absolute.groups("")
            return authority, path or "/", query
        # Not urlsplit: it would read "//name/path" as an authority, which it is not in a target.
        path, _, query = self.target.partition("?")
        return self.headers.get("host", ""), path, query


@dataclass(frozen=True)
class Response:
    """A response of an app. The server adds the framing fields (`content-length` …).

    A body that is an iterator is streamed: items go out when it waits for something, or when it
    yields b"". It may raise `BodyCut`.
    reason: why the request was refused, for the access log; it is not sent.
    reason_phrase: what to send behind the status; the usual words by default.
    is_relayed: the headers are an upstream's as they came. All but hop-by-hop ones are sent, in
        their order and case, and nothing is added but what frames the body; its content-length
        is kept, which a streamed body has to match.
    """

    status: int
    headers: Sequence[tuple[str, str]] = ()
    body: bytes | AsyncIterator[bytes] = b""
    reason: str = ""
    reason_phrase: str | None = None
    is_relayed: bool = False


class BodyCut(Exception):
    """Raised by a body's iterator to cut the connection after what it has yielded.

    The body must look broken, not ended, if its format can't express an error.
    """


class RequestParser:
    """Parses a connection's bytes into requests, in linear time however they are split.

    A malformed request raises when it is reached, after the good ones before it, and again
    at each further call: its end is unknown, so the next request has no start.

    streams: tells by its head whether a request is to be streamed. It is asked only where the
        body has not all arrived. `next_request` returns a streamed request without its body,
        whose pieces `next_piece` gives then; `limits.body` does not count for it.
    """

    def __init__(self, limits: Limits, streams: Callable[[Request], bool] | None = None) -> None:
        self._input = _RequestBuffer()
        self._requests = _read_requests(self._input, limits, streams)
        self._error: ProxyError | None = None

    def feed(self, data: bytes) -> None:
        """Add bytes from the client; `next_request` parses them."""
        if self._error is None:
            self._input.buffer += data

    def next_request(self) -> Request | None:
        """Return the next request; None if it is not complete yet.

        Raises:
            ProtocolError: not a request (400), another version (505) or an unknown transfer
                coding (501).
            TooLarge: target (414), head (431) or body (413) over its limit, as soon as known.
        """
        request = self._next()
        assert not isinstance(request, bytes)
        return request

    def next_piece(self) -> bytes | None:
        """Return the next piece of a streamed body: b"" at its end, None if it has to arrive.

        Raises:
            ProtocolError: the body's chunks are malformed.
        """
        piece = self._next()
        assert not isinstance(piece, Request)
        return piece

    def _next(self) -> Request | bytes | None:
        if self._error is not None:
            raise self._error.with_traceback(None)
        try:
            return next(self._requests)
        except ProxyError as error:
            self._error = error
            self._input.buffer.clear()
            raise

    def take_continue(self) -> bool:
        """Return, once per request, whether its client waits for CONTINUE to send the body."""
        wanted, self._input.wants_continue = self._input.wants_continue, False
        return wanted

    def take_head(self) -> Request | None:
        """Return, once per request, the head of one whose body has not arrived yet."""
        if self._input.stage != "body" or self._input.is_head_taken:
            return None
        self._input.is_head_taken = True
        return self.head

    @property
    def head(self) -> Request | None:
        """The current or malformed request without its body, as far as it is known.

        None without a request line; malformed header fields are left out.
        """
        return None if self._input.head is None else Request(*self._input.head)

    @property
    def is_tls(self) -> bool:
        """Whether the client began with TLS instead of a request."""
        return self._input.is_tls

    @property
    def begun(self) -> bool:
        """Whether part of a request has arrived, and the rest has not."""
        return self._input.stage != "start" or bool(self._input.buffer)

    @property
    def is_streaming(self) -> bool:
        """Whether a streamed request's body has not been read to its end."""
        return self._input.stage == "streamed"

    @property
    def in_body(self) -> bool:
        """Whether a request's head is complete and its body is not."""
        return self._input.stage == "body"

    @property
    def method(self) -> str:
        """The method of the current or malformed request; "" if not known yet."""
        return self._input.method

    @property
    def buffered(self) -> int:
        """The number of bytes that were fed and are not parsed yet."""
        return len(self._input.buffer)


class _RequestBuffer(MessageBuffer):
    """The buffer of a connection's requests, and how far the current one is read.

    Apart from the parser, so that it and its generator make no reference cycle: a dead
    connection's buffers are freed at once, not when the garbage collector next runs.
    """

    def __init__(self) -> None:
        super().__init__(is_strict=True)
        self.stage: Literal["start", "head", "body", "streamed"] = "start"
        self.wants_continue = False
        self.is_head_taken = False
        self.is_tls = False
        self.head: tuple[str, str, Headers, bytes, str] | None = None  # the fields of a Request
        self.method = ""


_Streams = Callable[[Request], bool] | None


def _read_requests(
    source: _RequestBuffer, limits: Limits, streams: _Streams
) -> Generator[Request | bytes | None, None, None]:
    while True:  # without a variable: an idle connection must not keep the last request's body
        yield (yield from _read_request(source, limits, streams))


def _read_request(
    source: _RequestBuffer, limits: Limits, streams: _Streams
) -> Generator[Request | bytes | None, None, Request | bytes]:
    line = yield from _read_request_line(source, limits)
    source.method = _first_word(line)
    method, target, version = _parse_request_line(line, limits)
    source.stage, source.is_head_taken = "head", False
    source.head = (method, target, Headers(), b"", version)  # for errors in the fields
    headers = Headers((yield from read_fields(source, limits, limits.head - len(line))))
    source.head = (method, target, headers, b"", version)
    _check_host(headers, version)
    try:
        length = _body_length(headers, version, limits)
        has_arrived = length is not None and length <= len(source.buffer)
        is_streamed = streams is not None and not has_arrived and streams(Request(*source.head))
    except TooLarge:
        is_streamed = streams is not None and streams(Request(*source.head))
        if not is_streamed:
            raise
    if is_streamed:
        limits = replace(limits, body=sys.maxsize)
        length = _body_length(headers, version, limits)
    body = bytearray()
    source.stage = "streamed" if is_streamed else "body"
    # RFC 9110 10.1.1: from HTTP/1.0 it MUST be ignored; useless once the body arrives.
    source.wants_continue = (
        length != 0
        and not source.buffer
        and version == "1.1"
        and "100-continue" in split_list(headers.get("expect", ""))
    )
    pieces = read_chunks(source, limits) if length is None else read_length(source, length)
    if is_streamed:
        yield Request(*source.head)
        yield from pieces
        source.stage, source.method, source.head = "start", "", None
        return b""
    for piece in pieces:
        if piece is None:
            yield None
        else:
            body += piece
    source.stage, source.method, source.head = "start", "", None
    return Request(method, target, headers, bytes(body), version)


def _read_request_line(source: _RequestBuffer, limits: Limits) -> Generator[None, None, bytes]:
    # RFC 9112 2.2: empty lines before a request line SHOULD be ignored.
    most = limits.target + _REQUEST_LINE_SPARE
    while not source.buffer:
        yield from source.more()
    # Bytes of another protocol may never have a line end: don't wait for one.
    if source.buffer[0] not in _LINE_STARTS:
        if source.buffer[0] == _TLS_HANDSHAKE:
            source.is_tls = True
            raise ProtocolError("this port speaks HTTP, not TLS: the URL must begin with http://")
        raise ProtocolError("malformed request line")
    for _ in range(_MAX_EMPTY_LINES + 1):
        line = yield from source.read_line(most)
        if line is None:
            # Of what any split of the bytes has by now, so that none changes the method.
            word, space, _rest = bytes(source.buffer[:most]).partition(b" ")
            source.method = word.decode("latin-1") if space else ""
            raise _target_too_long(limits)
        if line:
            return line
    raise ProtocolError("empty lines in place of a request")


def _first_word(line: bytes) -> str:
    return line.partition(b" ")[0].decode("latin-1")


def _parse_request_line(line: bytes, limits: Limits) -> tuple[str, str, str]:
    """Return method, target and version (RFC 9112 3)."""
    parts = _REQUEST_LINE.fullmatch(line)
    if parts is None:
        raise ProtocolError("malformed request line")
    method, target, major, minor = (part.decode("ascii") for part in parts.groups())
    if major != "1":
        raise ProtocolError(f"HTTP/{major}.{minor} is not supported, HTTP/1.1 is", status=505)
    if len(target) > limits.target:
        raise _target_too_long(limits)
    if not _is_target(method, target):
        raise ProtocolError("malformed request target")
    # RFC 9110 2.5: a higher minor version is to be read as the highest one known.
    return method, target, "1.0" if minor == "0" else "1.1"


def _is_target(method: str, target: str) -> bool:
    """Check that this is one of the four forms of RFC 9112 3.2 that the method allows."""
    if method == "CONNECT":
        authority = _match_authority(target)
        if authority is None or not _is_port(authority[2] or ""):
            return False  # RFC 9110 9.3.6: a MUST
    elif target == "*":
        return method == "OPTIONS"
    elif absolute := _ABSOLUTE_FORM.fullmatch(target):
        authority = _match_authority(absolute[1])
    else:
        return target.startswith("/")
    return authority is not None and authority[1] != ""  # RFC 9110 4.2.1: a host is a MUST


def _match_authority(text: str) -> re.Match[str] | None:
    """Match an authority (RFC 3986 3.2): host is group 1, port is group 2."""
    authority = _AUTHORITY.fullmatch(text)
    if authority is not None and authority[1].startswith("["):
        try:
            ipaddress.IPv6Address(authority[1][1:-1])
        except ValueError:
            return None
    return authority


def _is_port(digits: str) -> bool:
    digits = digits.lstrip("0")
    return 0 < len(digits) <= 5 and int(digits) <= 65_535


def _target_too_long(limits: Limits) -> TooLarge:
    return TooLarge(f"the request target is longer than {limits.target} bytes", status=414)


def _check_host(headers: Headers, version: str) -> None:
    """Refuse a missing (1.1), repeated or malformed Host (RFC 9112 3.2, a MUST)."""
    hosts = headers.get_all("host")
    if not hosts and version == "1.1":
        raise ProtocolError("the host header is missing")
    if len(hosts) > 1:
        raise ProtocolError("there is more than one host header")
    if hosts and not _match_authority(hosts[0]):
        raise ProtocolError("malformed host header")


def _body_length(headers: Headers, version: str, limits: Limits) -> int | None:
    """Return the body's length in bytes, None if it is chunked (RFC 9112 6.3)."""
    lengths = headers.get_all("content-length")
    coding = headers.get("transfer-encoding")
    if coding is not None:
        if lengths:
            raise ProtocolError("content-length beside transfer-encoding")
        if version == "1.0":  # RFC 9112 6.1: some proxy did not understand it
            raise ProtocolError("transfer-encoding in HTTP/1.0")
        *others, last = split_list(coding)
        if last != "chunked" or "chunked" in others:
            raise ProtocolError("transfer-encoding must end with chunked, once")
        if others:
            raise ProtocolError("the only transfer coding known is chunked", status=501)
        return None
    if not lengths:
        return 0
    # RFC 9110 8.6 would let us take a list of equal lengths as one; its sender is broken.
    if len(lengths) > 1:
        raise ProtocolError("malformed content-length")
    return parse_content_length(lengths[0], limits)


def decode_content(request: Request, limits: Limits) -> Request:
    """Return the request with its body decoded, if it has a `content-encoding`.

    The fields about the coding (`content-encoding`, `content-length`) are removed. Time
    grows with the decoded size, up to `limits.body`: about 0.1 s for 64 MiB.

    Raises:
        UnsupportedMediaType: a coding that we can't undo; its headers name what is accepted.
        InvalidRequest: a body that is not in its coding, or is cut short.
        TooLarge: more than `limits.body` bytes decoded.

    Spec: https://www.rfc-editor.org/rfc/rfc9110#section-8.4
    """
    codings = [word for word in split_list(request.headers.get("content-encoding", "")) if word]
    if not request.body or all(coding == "identity" for coding in codings):
        return request
    body = decode_body(codings, request.body, limits)
    coded = ("content-encoding", "content-length")
    headers = Headers(pair for pair in request.headers if pair[0] not in coded)
    return replace(request, headers=headers, body=body)


@dataclass(frozen=True)
class Framed:
    """A response's encoded head, and how to send its body."""

    head: bytes
    has_body: bool  # if not, nothing may follow the head, whatever the response has
    chunked: bool  # if not, the body is sent as it is
    keep_alive: bool  # if not, the connection is closed after the body, which may mark its end
    length: int | None = None  # that a streamed body has to have


def frame_response(
    response: Response, request: Request | None, *, date: str, close: bool = False, method: str = ""
) -> Framed:
    """Decide a response's framing (RFC 9112 6.1 to 6.3) and encode its head.

    request: None if the bytes received were not a request.
    date: the `date` field's value. close: end the connection, whatever the client wants.
    method: that of a malformed request, as far as known: a response to HEAD has no body.

    Raises:
        ValueError: a header field that can't be written.
    """
    method, version = (request.method, request.version) if request else (method, "1.1")
    # 6.1 and RFC 9110 8.6: these have neither length nor coding (a 304 MAY have).
    bodiless = response.status < 200 or response.status in (204, 304)
    # A response to HEAD has the fields of GET without the body (RFC 9110 9.3.2).
    has_body = not bodiless and method != "HEAD"
    whole = isinstance(response.body, bytes)
    length: int | None = None
    if response.is_relayed:
        fields, length = relayed_fields(response, has_body=has_body)
    else:
        fields = [("date", date), *response.headers]
    # What a relayed response to HEAD would have had for GET is not known.
    is_framed = length is not None or bodiless or (response.is_relayed and not has_body)
    chunked = not is_framed and not whole and version == "1.1"
    if chunked:
        fields.append(("transfer-encoding", "chunked"))
    elif isinstance(response.body, bytes) and not is_framed:
        fields.append(("content-length", str(len(response.body))))
    # To 1.0, a stream ends with the connection.
    ends_itself = whole or chunked or not has_body or length is not None
    keep_alive = request is not None and request.keep_alive and ends_itself and not close
    if not keep_alive:
        fields.append(("connection", "close"))
    elif version == "1.0":
        fields.append(("connection", "keep-alive"))
    head = encode_head(response.status, fields, response.reason_phrase)
    return Framed(head, has_body, chunked, keep_alive, length if has_body and not whole else None)


def relayed_fields(
    response: Response, *, has_body: bool
) -> tuple[list[tuple[str, str]], int | None]:
    """Return the fields of a relayed response that are to be sent, and its content-length.

    The length is left out where there can be none (RFC 9110 8.6), where a transfer coding
    overrode it, and where it is malformed; the same value several times is sent once.
    """
    received = Headers(response.headers)
    distinct = set(split_list(received.get("content-length", "")))
    value = distinct.pop() if len(distinct) == 1 else ""
    length: int | None = None
    if (
        response.status >= 200
        and response.status != 204
        and received.get("transfer-encoding") is None
        and value.isdecimal()
        and value.isascii()
        and len(value) <= MAX_LENGTH_DIGITS
    ):
        length = int(value)
        if has_body and isinstance(response.body, bytes):
            length = len(response.body)
    fields: list[tuple[str, str]] = []
    is_missing = length is not None
    for name, words in end_to_end(response.headers):
        if name.lower() != "content-length":
            fields.append((name, words))
        elif is_missing:
            fields.append((name, str(length)))
            is_missing = False
    return fields, None if is_missing else length


def encode_head(
    status: int, headers: Iterable[tuple[str, str]], reason_phrase: str | None = None
) -> bytes:
    """Encode a status line and its fields, up to the empty line.

    Raises:
        ValueError: a field or reason phrase that can't be written.
    """
    if reason_phrase is None:
        reason_phrase = _REASONS.get(status, "Unknown")
    if not _REASON_PHRASE.fullmatch(reason_phrase):
        raise ValueError("the reason phrase can't be written")
    line = f"HTTP/1.1 {status} {reason_phrase}".encode("latin-1")
    return encode_message_head(line, headers)


def encode_chunk(data: bytes) -> bytes:
    """Encode one chunk; b"" for no data, since an empty chunk would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


CONTINUE = encode_head(100, ())
LAST_CHUNK = b"0\r\n\r\n"
