"""Stream framing without IO: Server-Sent Events and newline-delimited JSON, both ways.

Dialects read what is in a frame. Bytes may be split anywhere, also within a line end or a
UTF-8 character.

Specs: https://html.spec.whatwg.org/multipage/server-sent-events.html
       https://github.com/ndjson/ndjson-spec
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Protocol

from ..core.errors import ProtocolError

MAX_FRAME_BYTES = 64 * 2**20  # of one event or line: ten base64 images, as in `limits.body`

# A comment: every client skips it, but even an empty event breaks SDKs.
SSE_PING = b": ping\n\n"

# Characters that JSON allows in strings and some clients take for line ends, as Python's
# str.splitlines does: httpx's iter_lines cuts a frame there.
_LINE_ENDS = [(char.encode(), b"\\u%04x" % ord(char)) for char in "\x85\u2028\u2029"]

_SSE_LINE_END = re.compile(rb"\r\n|\r|\n")  # no others: U+2028 and U+0085 are text
_BOM = b"\xef\xbb\xbf"


class Decoder(Protocol):
    """Cuts a stream into frames: `SSEDecoder` or `NDJSONDecoder`."""

    def feed(self, data: bytes) -> list[Any]: ...
    def end(self) -> list[Any]: ...


@dataclass(frozen=True)
class SSEFrame:
    """One event: its type, its data lines joined by LF, and the stream's latest id."""

    event: str
    data: str
    id: str = ""


def escape_line_ends(json_text: bytes) -> bytes:
    """Escape U+0085, U+2028 and U+2029 in UTF-8 JSON, where they stand only in strings."""
    if not json_text.isascii():
        for raw, escaped in _LINE_ENDS:
            json_text = json_text.replace(raw, escaped)
    return json_text


def encode_sse(data: bytes, event: bytes | str | None = None) -> bytes:
    """Encode an event. `data` is JSON in a single line."""
    assert b"\n" not in data and b"\r" not in data, "SSE data of several lines"
    data = escape_line_ends(data)
    if event is None:
        return b"data: %b\n\n" % data
    name = event.encode() if isinstance(event, str) else event
    return b"event: %b\ndata: %b\n\n" % (name, data)


class SSEDecoder:
    """Reads events as a browser's EventSource does: an event without an end is dropped.

    `retry` fields are ignored: a decoder does not reconnect.
    """

    def __init__(self, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()  # the unfinished line
        self._is_first_line = True
        self._ended_with_cr = False
        self._size = 0  # bytes of the event's lines so far
        self._event = ""
        self._data: list[str] = []
        self._id = ""

    def feed(self, data: bytes) -> list[SSEFrame]:
        """Add bytes and return the events that they complete.

        Raises:
            ProtocolError: an event longer than `max_bytes`.
        """
        if not data:
            return []
        if self._ended_with_cr:
            # The CR ended its line at once: waiting for an LF would hold the event back.
            data = data.removeprefix(b"\n")
            self._ended_with_cr = False
        frames: list[SSEFrame] = []
        start = 0
        for end in _SSE_LINE_END.finditer(data):
            self._buffer += data[start : end.start()]
            self._grow(end.start() - start)
            start = end.end()
            self._end_line(frames)
        self._buffer += data[start:]
        self._grow(len(data) - start)
        self._ended_with_cr = data.endswith(b"\r")
        return frames

    def end(self) -> list[SSEFrame]:
        """Return nothing: an event without its end is none."""
        return []

    def _grow(self, count: int) -> None:
        self._size += count
        if self._size > self._max_bytes:
            raise ProtocolError(f"an event is longer than {self._max_bytes} bytes")

    def _end_line(self, frames: list[SSEFrame]) -> None:
        """Interpret a line as the spec's "event stream interpretation" defines."""
        # Decoding line by line is decoding the whole: no UTF-8 sequence has CR or LF in it.
        raw = self._buffer.removeprefix(_BOM) if self._is_first_line else self._buffer
        line = raw.decode("utf-8", "replace")
        self._is_first_line = False
        self._buffer.clear()
        if not line:
            if self._data:
                frames.append(SSEFrame(self._event or "message", "\n".join(self._data), self._id))
            self._event, self._data, self._size = "", [], 0
            return
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:  # "" for a comment
            case "event":
                self._event = value
            case "data":
                self._data.append(value)
            case "id" if "\0" not in value:
                self._id = value


def encode_ndjson(data: bytes) -> bytes:
    """Encode a line. `data` is JSON without indentation."""
    assert b"\n" not in data, "NDJSON of several lines"
    return escape_line_ends(data) + b"\n"


class NDJSONDecoder:
    """Reads lines of JSON, ended by LF only; empty ones are skipped."""

    def __init__(self, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Add bytes and return the lines that they complete.

        Raises:
            ProtocolError: a line longer than `max_bytes`.
        """
        lines: list[bytes] = []
        *ended, rest = data.split(b"\n")
        for piece in ended:
            self._append(piece)
            lines += self.end()
        self._append(rest)
        return lines

    def end(self) -> list[bytes]:
        """Return the rest as a line: a stream's last one may lack its LF."""
        line = bytes(self._buffer).strip(b" \t\r")
        self._buffer.clear()
        return [line] if line else []

    def _append(self, piece: bytes) -> None:
        self._buffer += piece
        if len(self._buffer) > self._max_bytes:
            raise ProtocolError(f"a line is longer than {self._max_bytes} bytes")
