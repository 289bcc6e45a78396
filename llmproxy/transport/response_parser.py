"""The client's half of HTTP/1.1 without IO: a request into bytes, bytes into its answer.

Written for one request on a connection: after the answer nothing may follow, so what
a server must refuse for fear of request smuggling is read here as RFC 9112 lets a user
agent read it. What can't be read is the upstream's failure. Sockets are client.py's.

Spec: https://www.rfc-editor.org/rfc/rfc9112
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import TypeVar

from ..core.errors import ProxyError, UpstreamError
from ..core.limits import Limits
from .http11 import Headers

__all__ = ["AnswerHead", "AnswerParser", "encode_request"]

_T = TypeVar("_T")
_Reading = Generator[bytes | None, None, _T]  # gives body bytes, and None while it needs more

MAX_INTERIM_ANSWERS = 16  # 100 and 103 come once or twice; a stream of them is no answer
MAX_GZIP_MEMBERS = 4096  # a flush that ends its member makes one per event, and no more
PIECE_BYTES = 64 * 2**10  # of inflated body given at once: a thousandfold bomb fills no memory
_MAX_LENGTH_DIGITS = 18  # int() itself refuses 4,300; no limit of ours needs more
_MAX_CHUNK_DIGITS = 16  # hex digits: 64 bits, zeros in front included

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110 5.6.2
_FIELD = re.compile(rb"(" + _TOKEN + rb"):([\t\x20-\x7e\x80-\xff]*)")
# RFC 9112 4: the space stands there without a reason too; old servers leave both out.
_STATUS_LINE = re.compile(rb"HTTP/1\.([0-9]) ([1-5][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})((?:[\t ]*;[\t\x20-\x7e\x80-\xff]*)?)[\t ]*")
_TARGET = re.compile(r"/[!\"$-~]*")  # visible ASCII without "#" (RFC 9112 3.2.1)


@dataclass(frozen=True)
class AnswerHead:
    """Status and fields of an answer, as they came: its body is given decoded."""

    status: int
    headers: Headers


def encode_request(
    method: str, target: str, headers: Iterable[tuple[str, str]], body: bytes
) -> bytes:
    """Write a whole request.

    Raises:
        ValueError: a target or field that can't be written; values are secret and not shown.
    """
    if not re.fullmatch(_TOKEN, method.encode()) or not _TARGET.fullmatch(target):
        raise ValueError("the method or target can't be written")
    lines = [f"{method} {target} HTTP/1.1".encode()]
    for name, value in headers:
        try:
            line = f"{name}: {value}".encode("latin-1")
        except UnicodeEncodeError:
            line = b""
        parts = _FIELD.fullmatch(line)  # no CR, LF or NUL: a value never becomes a field
        if parts is None or parts.end(1) != len(name):
            raise ValueError(f"the header field {name!r} can't be written") from None
        lines.append(line)
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


class AnswerParser:
    """Turn a connection's bytes into one answer: its head, then pieces of its body.

    Interim answers (100, 103) are skipped, chunks and gzip undone, trailers dropped. A
    broken answer raises when it is reached, after the good pieces before it, and again
    at each further call.
    """

    def __init__(self, limits: Limits, *, method: str = "POST") -> None:
        self._input = _Input()
        self._pieces = _read_answer(self._input, limits, method)
        self._error: ProxyError | None = None
        self.is_whole = False  # the answer's end is reached; what follows it is not read

    def feed(self, data: bytes) -> None:
        """Take bytes as they came from the server; nothing is read before `next_piece`."""
        if self._error is None and not self.is_whole:
            self._input.buffer += data
            self._input.has_begun = self._input.has_begun or bool(data)

    def end(self) -> None:
        """Say that the server has ended the connection."""
        self._input.is_ended = True

    def next_piece(self) -> AnswerHead | bytes | None:
        """Give the head, then each piece of the body; None if there is no more for now.

        Raises:
            UpstreamError: bytes that are no answer, one over the limits for a head (`head`,
                `headers`) or a body (`body`, inflated), or one whose end is missing.
        """
        if self._error is not None:
            raise self._error.with_traceback(None)
        try:
            return next(self._pieces)
        except StopIteration:
            self.is_whole = True
            self._input.buffer.clear()
            return None
        except ProxyError as error:
            self._error = error
            self._input.buffer.clear()
            raise


class _Input:
    """Bytes that came and are not read yet; whether more can come."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.has_begun = False
        self.is_ended = False

    def more(self) -> Generator[None, None, None]:
        """Wait for more bytes, where the answer can't be over yet."""
        if self.is_ended and not self.has_begun:
            raise UpstreamError("the upstream closed the connection without an answer")
        if self.is_ended:
            raise UpstreamError("the upstream cut the connection before its answer was whole")
        yield None

    def line(self, most: int) -> Generator[None, None, bytes | None]:
        """Take a line and give it without its end; None if it is longer than `most` bytes."""
        searched = 0
        while (end := self.buffer.find(b"\n", searched, most + 2)) < 0:
            searched = len(self.buffer)
            if searched >= most + 2:
                return None
            yield from self.more()
        # RFC 9112 2.2: a recipient MAY take a single LF for a line's end. Small servers send it.
        line = bytes(self.buffer[:end]).removesuffix(b"\r")
        del self.buffer[: end + 1]
        return line if len(line) <= most else None

    def take(self, most: int) -> bytes:
        """Take at most so many of the bytes that are there."""
        data = bytes(self.buffer[:most])
        del self.buffer[:most]
        return data


def _read_answer(
    source: _Input, limits: Limits, method: str
) -> Generator[AnswerHead | bytes | None, None, None]:
    for _ in range(MAX_INTERIM_ANSWERS + 1):
        head = yield from _read_head(source, limits)
        # RFC 9110 15.2: a client MUST be able to parse these before the final answer.
        if head.status >= 200:
            break
        if head.status == 101:
            raise UpstreamError("the upstream switched protocols, which nobody asked for")
    else:
        raise UpstreamError(f"the upstream sent more than {MAX_INTERIM_ANSWERS} interim answers")
    yield head  # before its body is looked at: a refusal counts, whatever its page is coded in
    coded = _coded_body(source, head, limits, method)
    decoder = _decoder(head.headers)
    room = limits.body
    for piece in coded:
        for data in _decoded(decoder, piece):
            if data is not None:
                room -= len(data)
            if room < 0:
                raise UpstreamError(f"the upstream's answer is larger than {limits.body} bytes")
            yield data
    if decoder is not None:
        decoder.end()


def _read_head(source: _Input, limits: Limits) -> Generator[None, None, AnswerHead]:
    line = yield from source.line(limits.head)
    parts = None if line is None else _STATUS_LINE.fullmatch(line)
    if line is None or parts is None:
        # RFC 9112 4: any major version but 1 is another protocol.
        raise UpstreamError("the upstream's answer is not HTTP/1.1")
    headers = yield from _read_fields(source, limits, limits.head - len(line))
    return AnswerHead(int(parts[2]), headers)


def _read_fields(source: _Input, limits: Limits, room: int) -> Generator[None, None, Headers]:
    """Read field lines up to the empty one; `room` is what they may take together."""
    pairs: list[tuple[str, str]] = []
    lines = 0  # folded ones too: joining them takes time that grows with their number
    while True:
        line = yield from source.line(max(room, 0))
        if line is None:
            raise UpstreamError(f"the upstream's head is larger than {limits.head} bytes")
        if not line:
            return Headers(pairs)
        room -= len(line) + 2
        lines += 1
        if lines > limits.headers:
            raise UpstreamError(f"the upstream sent more than {limits.headers} header fields")
        if line[0] in b" \t" and pairs:
            # RFC 9112 5.2: a user agent MUST replace the fold with spaces.
            name, value = pairs.pop()
            line = f"{name}: {value} ".encode("latin-1") + line.strip(b" \t")
        parts = _FIELD.fullmatch(line)
        if parts is None:
            raise UpstreamError("the upstream sent a malformed header line")
        pairs.append((parts[1].decode("ascii"), parts[2].strip(b" \t").decode("latin-1")))


# ---- the body's borders


def _coded_body(
    source: _Input, head: AnswerHead, limits: Limits, method: str
) -> Generator[bytes | None, None, None]:
    """Choose how the body's end is known, in the order of RFC 9112 6.3."""
    if method == "HEAD" or head.status in (204, 304):
        return _no_body()
    # 6.3: a transfer coding overrides a length beside it; 6.1: also in an answer of HTTP/1.0,
    # after which the connection is not to be used again.
    coding = head.headers.get("transfer-encoding")
    if coding is not None:
        if coding.lower() != "chunked":  # 7.4: others only for who asks for them, by `te`
            raise UpstreamError("the upstream used a transfer coding other than chunked")
        return _read_chunks(source, limits)
    lengths = head.headers.get("content-length")
    if lengths is None:
        return _read_to_the_end(source)
    # RFC 9110 8.6: a list of the same length, again and again, is that length.
    words = {word.strip(" \t") for word in lengths.split(",")}
    word = words.pop()
    if words or not re.fullmatch("[0-9]+", word):
        raise UpstreamError("the upstream sent a malformed content-length")
    if len(word) > _MAX_LENGTH_DIGITS or int(word) > limits.body:
        raise UpstreamError(f"the upstream's answer is larger than {limits.body} bytes")
    return _read_length(source, int(word))


def _no_body() -> Generator[bytes | None, None, None]:
    yield from ()


def _read_length(source: _Input, count: int) -> Generator[bytes | None, None, None]:
    while count:
        while not source.buffer:
            yield from source.more()
        data = source.take(count)
        count -= len(data)
        yield data


def _read_to_the_end(source: _Input) -> Generator[bytes | None, None, None]:
    while source.buffer or not source.is_ended:
        yield source.take(len(source.buffer)) or None


def _read_chunks(source: _Input, limits: Limits) -> Generator[bytes | None, None, None]:
    """Read a chunked body; extensions and trailers are dropped (RFC 9112 7.1)."""
    room = limits.head  # 7.1.1: a recipient ought to limit extensions, all of a body together
    while True:
        line = yield from source.line(_MAX_CHUNK_DIGITS + room)
        parts = None if line is None else _CHUNK_LINE.fullmatch(line)
        if parts is None:
            raise UpstreamError("the upstream sent a malformed chunk size")
        room -= len(parts[2])
        size = int(parts[1], 16)
        if size == 0:
            # 7.1.2: trailers may be dropped; they MUST NOT be merged into the head unasked.
            yield from _read_fields(source, limits, limits.head)
            return
        yield from _read_length(source, size)
        while len(source.buffer) < 2:
            yield from source.more()
        if source.take(2) != b"\r\n":
            raise UpstreamError("the upstream sent a chunk longer than its size")


# ---- the body's coding


class _Decoder:
    """Undo one content coding piece by piece (RFC 9110 8.4.1)."""

    def __init__(self, coding: str) -> None:
        self._is_gzip = coding != "deflate"
        self._members_left = MAX_GZIP_MEMBERS
        self._inflater: zlib._Decompress | None = None
        self._held = b""  # bytes whose format is not known yet

    def feed(self, data: bytes) -> Generator[bytes, None, None]:
        """Take coded bytes, give what they say, at most PIECE_BYTES at once.

        Raises:
            UpstreamError: bytes that are not of the coding.
        """
        data = self._held + data
        self._held = b""
        has_more = bool(data)
        while has_more:
            if self._inflater is None:
                if not self._is_gzip and len(data) < 2:
                    self._held = data
                    return
                self._inflater = self._begun(data)
            try:
                inflated = self._inflater.decompress(data, PIECE_BYTES)
            except zlib.error as error:
                raise UpstreamError("the upstream's body is not of its content-encoding") from error
            if inflated:
                yield inflated
            data = self._inflater.unconsumed_tail
            if self._inflater.eof:
                data = self._inflater.unused_data
                if self._is_gzip:  # RFC 1952 2.2: members simply follow one another
                    self._inflater = None
                elif data:
                    raise UpstreamError("the upstream's body goes on behind its content-encoding")
            # A full piece can leave a copy half done inside zlib, with no input left.
            has_more = bool(data) or (len(inflated) == PIECE_BYTES and self._inflater is not None)

    def end(self) -> None:
        """Take the body's end.

        Raises:
            UpstreamError: the coded data were not at their end.
        """
        if self._held or (self._inflater is not None and not self._inflater.eof):
            raise UpstreamError("the upstream's body ends within its content-encoding")

    def _begun(self, data: bytes) -> zlib._Decompress:
        self._members_left -= 1
        if self._members_left < 0:
            raise UpstreamError(f"the upstream's body has more than {MAX_GZIP_MEMBERS} members")
        if self._is_gzip:
            return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        # RFC 9110 8.4.1.2: some send deflate without the zlib format round it. RFC 1950 2.2
        # knows that by its first two bytes.
        is_zlib = data[0] & 0x0F == 8 and int.from_bytes(data[:2], "big") % 31 == 0
        return zlib.decompressobj(wbits=zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)


def _decoder(headers: Headers) -> _Decoder | None:
    words = [word.strip(" \t").lower() for word in headers.get("content-encoding", "").split(",")]
    codings = [word for word in words if word not in ("", "identity")]
    if not codings:
        return None
    if codings not in (["gzip"], ["x-gzip"], ["deflate"]):
        raise UpstreamError("the upstream used a content coding that was not asked for")
    return _Decoder(codings[0])


def _decoded(decoder: _Decoder | None, piece: bytes | None) -> Iterable[bytes | None]:
    return [piece] if decoder is None or piece is None else decoder.feed(piece)
