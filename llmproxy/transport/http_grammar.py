"""The grammar of HTTP/1.1 messages that requests and responses share, without IO.

A server must read strictly: two readers that repair one malformed message differently are
what request smuggling lives on. A client has one request per connection, and repairs what
RFC 9112 lets it (`is_strict=False`): bare LF, folded header lines, loose chunk extensions.

The readers are generators: they yield None while they need more bytes, and return what
they read. Wherever a message is malformed they raise ProtocolError or TooLarge.

Spec: https://www.rfc-editor.org/rfc/rfc9112
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable

from ..core.errors import ProtocolError, TooLarge
from ..core.limits import Limits

MAX_LENGTH_DIGITS = 18  # int() itself refuses 4,300; no limit of ours needs more
MAX_CHUNK_DIGITS = 16  # hex digits: 64 bits, leading zeros included

# RFC 9110 5.6.2 token; 5.5 field values: HTAB, SP, visible ASCII, obs-text, and no other control.
TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_FIELD = re.compile(rb"(" + TOKEN + rb"):([\t\x20-\x7e\x80-\xff]*)")
_FIELD_LINES = re.compile(rb"(?:" + TOKEN + rb":[\t\x20-\x7e\x80-\xff]*+\r\n)*+")
_QUOTED = rb"\"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*+\""
# RFC 9112 7.1 and 7.1.1. Possessive, so that no backtracking makes time more than linear.
_STRICT_CHUNK_LINE = re.compile(
    rb"([0-9A-Fa-f]{1,16})((?:[\t ]*+;[\t ]*+%b+(?:[\t ]*+=[\t ]*+(?:%b+|%b))?+)*+)"
    % (TOKEN, TOKEN, _QUOTED)
)
_LOOSE_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})((?:[\t ]*;[\t\x20-\x7e\x80-\xff]*)?)[\t ]*")
_DIGITS = re.compile(r"[0-9]+")

_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


class MessageBuffer:
    """Bytes that were received and are not read yet, and how strictly to read them."""

    def __init__(self, *, is_strict: bool) -> None:
        self.buffer = bytearray()
        self.is_strict = is_strict

    def more(self) -> Generator[None, None, None]:
        """Wait for more bytes."""
        yield None

    def read_line(self, max_bytes: int) -> Generator[None, None, bytes | None]:
        """Take a line and return it without its end; None if it is longer than `max_bytes`."""
        searched = 0
        while (end := self.buffer.find(b"\n", searched, max_bytes + 2)) < 0:
            searched = len(self.buffer)
            if searched >= max_bytes + 2:
                return None
            yield from self.more()
        line = bytes(self.buffer[:end])
        # RFC 9112 2.2: a recipient MAY take a bare LF as the end of a line. Small servers send
        # it. From a client we refuse it, since a proxy in front of us might not take it. A bare
        # CR must never do: the patterns for lines have no CR.
        if self.is_strict and not line.endswith(b"\r"):
            raise ProtocolError("a line ends without CR LF")
        del self.buffer[: end + 1]
        line = line.removesuffix(b"\r")
        return line if len(line) <= max_bytes else None

    def take(self, max_bytes: int) -> bytes:
        """Take at most so many of the buffered bytes."""
        data = bytes(self.buffer[:max_bytes])
        del self.buffer[:max_bytes]
        return data


def read_fields(
    source: MessageBuffer, limits: Limits, max_bytes: int
) -> Generator[None, None, list[tuple[str, str]]]:
    """Read header lines up to the empty one; together they may take `max_bytes`."""
    if (whole := _take_fields(source, limits, max_bytes)) is not None:
        return whole
    pairs: list[tuple[str, str]] = []
    lines = 0  # folded ones too: joining them takes time that grows with their number
    while True:
        line = yield from source.read_line(max(max_bytes, 0))
        if line is None:
            raise TooLarge(f"the head is larger than {limits.head} bytes", status=431)
        if not line:
            return pairs
        max_bytes -= len(line) + 2
        lines += 1
        if lines > limits.headers:
            raise TooLarge(f"there are more than {limits.headers} header fields", status=431)
        if line[0] in b" \t":
            # RFC 9112 5.2: a server may refuse a fold; a user agent MUST replace it with spaces.
            if source.is_strict or not pairs:
                raise ProtocolError("a header line is folded, or begins with a space")
            name, value = pairs.pop()
            line = f"{name}: {value} ".encode("latin-1") + line.strip(b" \t")
        parts = _FIELD.fullmatch(line)
        if parts is None:
            raise ProtocolError("malformed header line")
        pairs.append((parts[1].decode("ascii"), parts[2].strip(b" \t").decode("latin-1")))


def _take_fields(
    source: MessageBuffer, limits: Limits, max_bytes: int
) -> list[tuple[str, str]] | None:
    """Take header lines that are all there and well-formed; None if they are not.

    Read one by one, those of an SDK's request took 20 µs instead of 6.
    """
    end = source.buffer.find(b"\r\n\r\n", 0, max(max_bytes, 0)) + 2
    if end < 2:
        return None
    block = bytes(source.buffer[:end])
    if block.count(b"\n") > limits.headers or not _FIELD_LINES.fullmatch(block):
        return None
    del source.buffer[: end + 2]
    lines = block.decode("latin-1").split("\r\n")
    return [
        (name, value.strip(" \t"))
        for name, _, value in (line.partition(":") for line in lines[:-1])
    ]


def read_length(source: MessageBuffer, count: int) -> Generator[bytes | None, None, None]:
    """Yield the next `count` bytes, in pieces as they arrive."""
    while count:
        while not source.buffer:
            yield from source.more()
        data = source.take(count)
        count -= len(data)
        yield data


def read_chunks(source: MessageBuffer, limits: Limits) -> Generator[bytes | None, None, None]:
    """Yield a chunked body in pieces; extensions and trailers are dropped (RFC 9112 7.1)."""
    chunk_line = _STRICT_CHUNK_LINE if source.is_strict else _LOOSE_CHUNK_LINE
    extension_bytes = limits.head  # 7.1.1: a recipient ought to limit a body's, all together
    body_bytes = limits.body
    while True:
        line = yield from source.read_line(MAX_CHUNK_DIGITS + extension_bytes)
        if line is None:
            raise TooLarge(f"the chunk extensions are larger than {limits.head} bytes")
        parts = chunk_line.fullmatch(line)
        if parts is None:
            raise ProtocolError("malformed chunk size")
        extension_bytes -= len(parts[2])
        size = int(parts[1], 16)
        if size == 0:
            # 7.1.2: a trailer MUST NOT be merged into the headers unless its field allows it.
            yield from read_fields(source, limits, limits.head)
            return
        body_bytes -= size
        if body_bytes < 0:
            raise body_too_large(limits)
        yield from read_length(source, size)
        while len(source.buffer) < 2:
            yield from source.more()
        if source.take(2) != b"\r\n":
            raise ProtocolError("a chunk is longer than its size")


def parse_content_length(value: str, limits: Limits) -> int:
    """Return a content-length as a number.

    Raises:
        ProtocolError: anything but digits.
        TooLarge: more than a body may have.
    """
    if not _DIGITS.fullmatch(value):
        raise ProtocolError("malformed content-length")
    digits = value.lstrip("0") or "0"
    if len(digits) > MAX_LENGTH_DIGITS or int(digits) > limits.body:
        raise body_too_large(limits)
    return int(digits)


def body_too_large(limits: Limits) -> TooLarge:
    """Make the error for a body over its limit."""
    return TooLarge(f"the body is larger than {limits.body} bytes")


def split_list(value: str) -> list[str]:
    """Split a comma-separated list of case-insensitive words.

    Only SP and HTAB are white space here: str.strip() alone would take NBSP away too,
    and read "chunked\\xa0" as a coding that the server before us did not see.
    """
    return [word.strip(" \t").lower() for word in value.split(",")]


def end_to_end(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the header fields that are not about one connection, in their order and case.

    Those that `connection` names are left out too, and `trailer`, since trailers are dropped.

    Spec: https://www.rfc-editor.org/rfc/rfc9110#section-7.6.1
    """
    fields = [(name.lower(), name, value) for name, value in headers]
    dropped = _HOP_BY_HOP.union(
        *(split_list(value) for lower, _, value in fields if lower == "connection")
    )
    return [(name, value) for lower, name, value in fields if lower not in dropped]


def encode_message_head(start_line: bytes, headers: Iterable[tuple[str, str]]) -> bytes:
    """Encode a start line and header fields, up to and including the empty line.

    A field that our own parser would refuse (CR, LF and NUL above all) is never written: a
    value that came from elsewhere must not become a field of its own.

    Raises:
        ValueError: such a field, or one that is not latin-1. The value may be secret: it is
            not in the error.
    """
    fields = list(headers)
    try:
        # All at once first: one by one they take twice as long.
        lines = "".join([f"{name}: {value}\r\n" for name, value in fields]).encode("latin-1")
    except UnicodeEncodeError:
        lines = b""
    is_good = lines.count(b"\n") == len(fields) and _FIELD_LINES.fullmatch(lines)
    for name, value in fields:
        if ":" in name or not (is_good or _can_be_written(name, value)):
            raise ValueError(f"the header field {name!r} can't be written")
    return b"%b\r\n%b\r\n" % (start_line, lines)


def _can_be_written(name: str, value: str) -> bool:
    try:
        return _FIELD.fullmatch(f"{name}: {value}".encode("latin-1")) is not None
    except UnicodeEncodeError:
        return False
