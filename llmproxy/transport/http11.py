"""HTTP/1.1 without IO: bytes into requests, responses into bytes.

The server's half of RFC 9112 (messages) with what it needs of RFC 9110 (semantics).
Wherever the RFC lets a server either mend or refuse a malformed message, this one
refuses: two readers that mend one message differently are what request smuggling
lives on. Sockets, deadlines and the order of answers are left to server.py.
"""

from __future__ import annotations

import ipaddress
import re
import zlib
from collections.abc import AsyncIterator, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from http import HTTPStatus
from typing import Literal, TypeVar, overload
from urllib.parse import unquote

from ..core.errors import InvalidRequest, ProtocolError, ProxyError, TooLarge, UnsupportedMediaType
from ..core.limits import Limits

__all__ = [
    "CONTINUE",
    "LAST_CHUNK",
    "BodyCut",
    "Framed",
    "Headers",
    "Request",
    "RequestParser",
    "Response",
    "decode_content",
    "encode_chunk",
    "encode_head",
    "frame_response",
]

_T = TypeVar("_T")
_Reading = Generator[None, None, _T]  # yields while it needs more bytes, returns what it read

_REQUEST_LINE_SPARE = 64  # bytes for method, version and spaces beside the longest target
_MAX_EMPTY_LINES = 8  # old clients send one after a POST's body; more is no client of ours
_MAX_LENGTH_DIGITS = 18  # int() itself refuses 4,300; no limit of ours needs more
_MAX_CHUNK_DIGITS = 16  # hex digits: 64 bits, zeros in front included
_MAX_GZIP_MEMBERS = 16  # gzip(1) and every HTTP client make one; each costs a copy of the rest

# RFC 9110 5.6.2 token; 5.5 field values: HTAB, SP, visible ASCII, obs-text, and no other control.
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_FIELD = re.compile(rb"(" + _TOKEN + rb"):([\t\x20-\x7e\x80-\xff]*)")
# RFC 9112 3: single spaces only. A target is visible ASCII; a fragment ("#") is never sent.
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([!\"$-~]+) HTTP/([0-9])\.([0-9])")
_QUOTED = rb"\"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*+\""
# RFC 9112 7.1 and 7.1.1. Possessive, so that no backtracking makes time more than linear.
_CHUNK_LINE = re.compile(
    rb"([0-9A-Fa-f]{1,16})((?:[\t ]*+;[\t ]*+%b+(?:[\t ]*+=[\t ]*+(?:%b+|%b))?+)*+)"
    % (_TOKEN, _TOKEN, _QUOTED)
)
_CONTENT_LENGTH = re.compile(r"[0-9]+")
# RFC 3986 3.2.2 without userinfo (RFC 9110 4.2.4) and IPvFuture, which nobody has.
_AUTHORITY = re.compile(
    r"(\[[0-9A-Fa-f:.]+\]|(?:[0-9A-Za-z._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::([0-9]*))?"
)
_ABSOLUTE_FORM = re.compile(r"[Hh][Tt][Tt][Pp][Ss]?://([^/?]*)(/[^?]*)?(?:\?(.*))?")
_SECRETS = {"authorization", "proxy-authorization", "cookie", "x-api-key", "api-key"}
_REASONS = {status.value: status.phrase for status in HTTPStatus} | {529: "Overloaded"}


class Headers:
    """The fields of a message in their order: pairs of lower-case name and value.

    Immutable. Values are latin-1 text, so that any byte a client may send survives.
    `repr` leaves secrets out, since it ends up in logs and tracebacks.
    """

    __slots__ = ("_pairs",)

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        self._pairs = tuple((name.lower(), value) for name, value in pairs)

    @overload
    def get(self, name: str) -> str | None: ...
    @overload
    def get(self, name: str, default: str) -> str: ...
    def get(self, name: str, default: str | None = None) -> str | None:
        """Give the field's value; lines of one name are joined with ", ".

        RFC 9110 5.3: that is what several lines mean, and a field that is no list,
        sent twice (two `authorization`), then equals neither of its values.
        """
        values = self.get_all(name)
        return ", ".join(values) if values else default

    def get_all(self, name: str) -> list[str]:
        """Give the values of the field's lines, in their order."""
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
        shown = [(name, "…" if name in _SECRETS else value) for name, value in self._pairs]
        return f"Headers({shown!r})"


@dataclass(frozen=True)
class Request:
    """One request, whole. The target is as it was sent; `version` is "1.0" or "1.1"."""

    method: str
    target: str
    headers: Headers
    body: bytes = field(default=b"", repr=False)
    version: str = "1.1"

    @property
    def path(self) -> str:
        """The target's path, percent-decoded as UTF-8; "*" for `OPTIONS *`, "" for CONNECT."""
        return unquote(self._split_target[1])

    @property
    def query(self) -> str:
        """What follows the target's "?", not decoded; "" where there is none."""
        return self._split_target[2]

    @property
    def host(self) -> str:
        """Host and port that the client asked for, in lower case; "" where it named none.

        An absolute target's authority goes before the Host field (RFC 9112 3.2.2).
        """
        return self._split_target[0].lower()

    @property
    def keep_alive(self) -> bool:
        """Whether the client wants to go on using the connection (RFC 9112 9.3)."""
        options = _words(self.headers.get("connection", ""))
        return "close" not in options and (self.version == "1.1" or "keep-alive" in options)

    @cached_property
    def _split_target(self) -> tuple[str, str, str]:
        if self.method == "CONNECT":
            return self.target, "", ""
        if absolute := _ABSOLUTE_FORM.fullmatch(self.target):
            authority, path, query = absolute.groups("")
            return authority, path or "/", query
        # Not urlsplit: it takes "//name/path" for an authority, which in a target it is not.
        path, _, query = self.target.partition("?")
        return self.headers.get("host", ""), path, query


@dataclass(frozen=True)
class Response:
    """What an app answers. Its framing fields (`content-length` …) are the server's to add.

    A body that is an iterator is streamed, each item at once; it may raise `BodyCut`.
    """

    status: int
    headers: Sequence[tuple[str, str]] = ()
    body: bytes | AsyncIterator[bytes] = b""


class BodyCut(Exception):
    """Raised by a body's iterator: send what there is, then cut the connection.

    The body must look broken, not ended, where its format has no way to say so (B11).
    """


class RequestParser:
    """Turn a connection's bytes into its requests, in linear time however they are cut.

    A broken request raises when it is reached, after the good ones before it, and
    again at each further call: where one request's end is unknown, the next has no start.
    """

    def __init__(self, limits: Limits) -> None:
        self._input = _Input()
        self._requests = _read_requests(self._input, limits)
        self._error: ProxyError | None = None

    def feed(self, data: bytes) -> None:
        """Take bytes as they came from the client; nothing is read before `next_request`."""
        if self._error is None:
            self._input.buffer += data

    def next_request(self) -> Request | None:
        """Give the next request; None if it is not whole yet.

        Raises:
            ProtocolError: bytes that are no request (400), another version (505) or
                an unknown transfer coding (501).
            TooLarge: target (414), head (431) or body (413) over its limit, as soon as known.
        """
        if self._error is not None:
            raise self._error.with_traceback(None)
        try:
            return next(self._requests)
        except ProxyError as error:
            self._error = error
            self._input.buffer.clear()
            raise

    def take_continue(self) -> bool:
        """Say, once for each request, that its client waits for CONTINUE to send the body."""
        wanted, self._input.wants_continue = self._input.wants_continue, False
        return wanted

    @property
    def begun(self) -> bool:
        """Whether part of a request has come, and the rest has not."""
        return self._input.stage != "start" or bool(self._input.buffer)

    @property
    def in_body(self) -> bool:
        """Whether a request's head is read and its body is awaited."""
        return self._input.stage == "body"

    @property
    def method(self) -> str:
        """The method of the request that is being read, or broke; "" where there is none yet."""
        return self._input.method

    @property
    def buffered(self) -> int:
        """How many bytes were fed and are not read yet."""
        return len(self._input.buffer)


class _Input:
    """Bytes that came and are not read yet, and how far reading is.

    Apart from the parser, so that it and its generator make no reference cycle: a dead
    connection's buffers go at once, not when the garbage collector next runs.
    """

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.stage: Literal["start", "head", "body"] = "start"
        self.wants_continue = False
        self.method = ""

    def line(self, most: int) -> _Reading[bytes | None]:
        """Take a line and give it without its CRLF; None if it is longer than `most` bytes."""
        searched = 0
        while (end := self.buffer.find(b"\n", searched, most + 2)) < 0:
            searched = len(self.buffer)
            if searched >= most + 2:
                return None
            yield
        # RFC 9112 2.2: a server MAY take a bare LF for a line's end. A proxy in front of us
        # might not, and a bare CR must never do: the patterns for lines have no CR.
        if end == 0 or self.buffer[end - 1] != 0x0D:
            raise ProtocolError("a line ends without CR LF")
        line = bytes(self.buffer[: end - 1])
        del self.buffer[: end + 1]
        return line

    def move(self, count: int, into: bytearray) -> _Reading[None]:
        """Append the next `count` bytes to `into` as they come, so that none is copied twice."""
        while count:
            if not self.buffer:
                yield
            part = self.buffer[:count]
            into += part
            del self.buffer[: len(part)]
            count -= len(part)


def _read_requests(source: _Input, limits: Limits) -> Generator[Request | None, None, None]:
    while True:  # no name for the request: an idle connection must not keep the last one's body
        yield (yield from _read_request(source, limits))


def _read_request(source: _Input, limits: Limits) -> _Reading[Request]:
    line = yield from _read_request_line(source, limits)
    source.method = _first_word(line)
    method, target, version = _parse_request_line(line, limits)
    source.stage = "head"
    headers = yield from _read_fields(source, limits, limits.head - len(line))
    _check_host(headers, version)
    length = _body_length(headers, version, limits)
    body = bytearray()
    source.stage = "body"
    # RFC 9110 10.1.1: from HTTP/1.0 it MUST be ignored; it is of no use once the body comes.
    source.wants_continue = (
        length != 0
        and not source.buffer
        and version == "1.1"
        and "100-continue" in _words(headers.get("expect", ""))
    )
    if length is None:
        yield from _read_chunks(source, limits, body)
    else:
        yield from source.move(length, body)
    source.stage, source.method = "start", ""
    return Request(method, target, headers, bytes(body), version)


def _read_request_line(source: _Input, limits: Limits) -> _Reading[bytes]:
    # RFC 9112 2.2: empty lines before a request line SHOULD be ignored.
    for _ in range(_MAX_EMPTY_LINES + 1):
        line = yield from source.line(limits.target + _REQUEST_LINE_SPARE)
        if line is None:
            source.method = _first_word(source.buffer)
            raise _target_too_long(limits)
        if line:
            return line
    raise ProtocolError("empty lines in place of a request")


def _first_word(line: bytes | bytearray) -> str:
    return line.partition(b" ")[0].decode("latin-1")


def _parse_request_line(line: bytes, limits: Limits) -> tuple[str, str, str]:
    """Give method, target and version (RFC 9112 3)."""
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
    """Say whether this is one of the four forms of RFC 9112 3.2, and the method's own."""
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
    """Give the host as group 1 and the port as 2, if this is an authority (RFC 3986 3.2)."""
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


def _read_fields(source: _Input, limits: Limits, room: int) -> _Reading[Headers]:
    """Read field lines up to the empty one; `room` is what they may take together."""
    pairs: list[tuple[str, str]] = []
    while True:
        line = yield from source.line(max(room, 0))
        if line is None:
            raise TooLarge(f"the request head is larger than {limits.head} bytes", status=431)
        if not line:
            return Headers(pairs)
        room -= len(line) + 2
        if len(pairs) == limits.headers:
            raise TooLarge(f"there are more than {limits.headers} header fields", status=431)
        if line[0] in b" \t":
            raise ProtocolError("a header line is folded, or begins with a space")  # RFC 9112 5.2
        parts = _FIELD.fullmatch(line)
        if parts is None:
            raise ProtocolError("malformed header line")
        pairs.append((parts[1].decode("ascii"), parts[2].strip(b" \t").decode("latin-1")))


def _check_host(headers: Headers, version: str) -> None:
    """Refuse what RFC 9112 3.2 says a server MUST: no Host in 1.1, several, a malformed one."""
    hosts = headers.get_all("host")
    if not hosts and version == "1.1":
        raise ProtocolError("the host header is missing")
    if len(hosts) > 1:
        raise ProtocolError("there is more than one host header")
    if hosts and not _match_authority(hosts[0]):
        raise ProtocolError("malformed host header")


def _body_length(headers: Headers, version: str, limits: Limits) -> int | None:
    """Say how many bytes of body follow, None for a chunked one (RFC 9112 6.3)."""
    lengths = headers.get_all("content-length")
    coding = headers.get("transfer-encoding")
    if coding is not None:
        if lengths:
            raise ProtocolError("content-length beside transfer-encoding")
        if version == "1.0":  # RFC 9112 6.1: whoever passed it on did not understand it
            raise ProtocolError("transfer-encoding in HTTP/1.0")
        *others, last = _words(coding)
        if last != "chunked" or "chunked" in others:
            raise ProtocolError("transfer-encoding must end with chunked, once")
        if others:
            raise ProtocolError("the only transfer coding known is chunked", status=501)
        return None
    if not lengths:
        return 0
    # RFC 9110 8.6 lets us take a list of equal lengths as one; whoever sends it is broken.
    if len(lengths) > 1 or not _CONTENT_LENGTH.fullmatch(lengths[0]):
        raise ProtocolError("malformed content-length")
    digits = lengths[0].lstrip("0") or "0"
    if len(digits) > _MAX_LENGTH_DIGITS or int(digits) > limits.body:
        raise _body_too_large(limits)
    return int(digits)


def _read_chunks(source: _Input, limits: Limits, body: bytearray) -> _Reading[None]:
    """Read a chunked body into `body`; extensions and trailers are dropped (RFC 9112 7.1)."""
    room = limits.head  # 7.1.1: a server ought to limit extensions, all of a body together
    while True:
        line = yield from source.line(_MAX_CHUNK_DIGITS + room)
        if line is None:
            raise TooLarge(f"the chunk extensions are larger than {limits.head} bytes")
        parts = _CHUNK_LINE.fullmatch(line)
        if parts is None:
            raise ProtocolError("malformed chunk size")
        room -= len(parts[2])
        size = int(parts[1], 16)
        if size == 0:
            # 7.1.2: a trailer MUST NOT be merged into the headers unless its field allows it.
            yield from _read_fields(source, limits, limits.head)
            return
        if len(body) + size > limits.body:
            raise _body_too_large(limits)
        yield from source.move(size, body)
        end = bytearray()
        yield from source.move(2, end)
        if end != b"\r\n":
            raise ProtocolError("a chunk is longer than its size")


def _body_too_large(limits: Limits) -> TooLarge:
    return TooLarge(f"the body is larger than {limits.body} bytes")


def _words(value: str) -> list[str]:
    """Split a comma-separated list of case-insensitive words.

    Only SP and HTAB are white space here: str.strip() alone would take NBSP away too,
    and read "chunked\\xa0" as a coding that the server before us did not see.
    """
    return [word.strip(" \t").lower() for word in value.split(",")]


def decode_content(request: Request, limits: Limits) -> Request:
    """Give the request with its body inflated, if it came with `content-encoding: gzip`.

    The fields that told of the coding (`content-encoding`, `content-length`) are gone
    then. Time grows with the inflated size, up to `limits.body`: some 0.1 s for 64 MiB.

    Raises:
        UnsupportedMediaType: another coding; its headers say what is accepted.
        InvalidRequest: a body that is not gzip, or not all of it.
        TooLarge: more than `limits.body` bytes inflated.

    Spec: https://www.rfc-editor.org/rfc/rfc9110#section-8.4
    """
    codings = [word for word in _words(request.headers.get("content-encoding", "")) if word]
    if not request.body or all(coding == "identity" for coding in codings):
        return request
    if codings not in (["gzip"], ["x-gzip"]):  # RFC 9110 8.4.1.3: x-gzip is the same
        raise UnsupportedMediaType(
            "the only content coding known is gzip", headers={"accept-encoding": "gzip"}
        )
    coded = ("content-encoding", "content-length")
    headers = Headers(pair for pair in request.headers if pair[0] not in coded)
    return replace(request, headers=headers, body=_inflate(request.body, limits))


def _inflate(data: bytes, limits: Limits) -> bytes:
    inflated = bytearray()
    for _ in range(_MAX_GZIP_MEMBERS):  # RFC 1952 2.2: members simply follow one another
        member = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        try:
            inflated += member.decompress(data, limits.body + 1 - len(inflated))
        except zlib.error as error:
            raise InvalidRequest("the body is not gzip") from error
        if len(inflated) > limits.body:
            raise _body_too_large(limits)
        if not member.eof:
            raise InvalidRequest("the gzip body is cut short")
        data = member.unused_data
        if not data:
            return bytes(inflated)
    raise InvalidRequest(f"the gzip body has more than {_MAX_GZIP_MEMBERS} members")


@dataclass(frozen=True)
class Framed:
    """How a response goes out: its head, and what is to become of its body."""

    head: bytes
    has_body: bool  # if not, nothing may follow the head, whatever the response holds
    chunked: bool  # if not, the body goes out as it is
    keep_alive: bool  # if not, the connection ends after the body, and may thereby end it


def frame_response(
    response: Response, request: Request | None, *, date: str, close: bool = False, method: str = ""
) -> Framed:
    """Settle a response's framing (RFC 9112 6.1 to 6.3) and write its head.

    request: the one answered; None for the answer to bytes that were none.
    date: the `date` field's value. close: end the connection, whatever the client wants.
    method: the one that a broken request began with, since to HEAD goes no body.

    Raises:
        ValueError: a header field of the response that can't be written.
    """
    method, version = (request.method, request.version) if request else (method, "1.1")
    fields = [("date", date), *response.headers]
    # 6.1 and RFC 9110 8.6: these have neither length nor coding (a 304 MAY, and need not).
    bodiless = response.status < 200 or response.status in (204, 304)
    whole = isinstance(response.body, bytes)
    chunked = not bodiless and not whole and version == "1.1"
    if chunked:
        fields.append(("transfer-encoding", "chunked"))
    elif isinstance(response.body, bytes) and not bodiless:
        fields.append(("content-length", str(len(response.body))))
    # For HEAD the fields are those of GET, and the body is left out (RFC 9110 9.3.2).
    has_body = not bodiless and method != "HEAD"
    ends_itself = whole or chunked or not has_body  # to 1.0, a stream ends with the connection
    keep_alive = request is not None and request.keep_alive and ends_itself and not close
    if not keep_alive:
        fields.append(("connection", "close"))
    elif version == "1.0":
        fields.append(("connection", "keep-alive"))
    return Framed(encode_head(response.status, fields), has_body, chunked, keep_alive)


def encode_head(status: int, headers: Iterable[tuple[str, str]]) -> bytes:
    """Write a status line and its fields, up to the empty line.

    A field that our own parser would refuse (CR, LF and NUL above all) is never
    written: a value that came from elsewhere must not become a field of its own.

    Raises:
        ValueError: such a field, or one that is not latin-1.
    """
    lines = [b"HTTP/1.1 %d %b" % (status, _REASONS.get(status, "Unknown").encode())]
    for name, value in headers:
        line = f"{name}: {value}".encode("latin-1")
        parts = _FIELD.fullmatch(line)
        if parts is None or parts.end(1) != len(name):
            raise ValueError(f"the header field {name!r} can't be written")  # its value is secret
        lines.append(line)
    return b"\r\n".join(lines) + b"\r\n\r\n"


def encode_chunk(data: bytes) -> bytes:
    """Write one chunk; nothing for no data, since an empty chunk would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


CONTINUE = encode_head(100, ())
LAST_CHUNK = b"0\r\n\r\n"
