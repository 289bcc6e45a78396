"""Content codings of bodies: gzip and deflate, and zstd where Python has it (since 3.14).

`decode_body(codings, data, limits)` decodes a whole body. A copy of one that is passed on as it
comes is decoded beside it:

    decoder = BodyDecoder(headers.get("content-encoding", ""), max_bytes)
    for piece in body:
        for decoded in decoder.feed(piece): ...
    decoder.end()

Spec: https://www.rfc-editor.org/rfc/rfc9110#section-8.4
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

from ..core.errors import InvalidRequest, ProtocolError, TooLarge, UnsupportedMediaType
from ..core.limits import Limits
from .http_grammar import body_too_large, split_list

try:
    from compression import zstd  # type: ignore[import-not-found,unused-ignore]
except ImportError:
    zstd = None

MAX_MEMBERS = 16  # gzip(1) and every HTTP client write one; each costs a copy of the rest
MAX_STREAM_MEMBERS = 4096  # some servers flush by ending a member, at most one per event
PIECE_BYTES = 64 * 2**10  # of inflated body at once, so that a gzip bomb does not fill the memory
# Of zstd, 8 MB: what RFC 9659 allows over HTTP, and a decoder must keep.
MAX_WINDOW_LOG = 23

# How many bytes a byte can become at most; one of zstd, any number.
INFLATED = 1_032

_ZSTD_REFUSED = (
    "zstd needs Python 3.14 here; with Codex, set features.enable_request_compression=false"
)


def inflater(coding: str, data: bytes) -> zlib._Decompress:
    """Return a decompressor for gzip or deflate, whose data begin with `data`.

    RFC 9110 8.4.1.2: some send deflate without its zlib header, which RFC 1950 2.2 defines by
    the first two bytes.
    """
    if coding != "deflate":
        return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    is_zlib = len(data) > 1 and data[0] & 0x0F == 8 and int.from_bytes(data[:2], "big") % 31 == 0
    return zlib.decompressobj(wbits=zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)


def decode_body(codings: list[str], data: bytes, limits: Limits) -> bytes:
    """Decode a whole body.

    codings: those of `content-encoding`, in lower case; x-gzip is gzip (RFC 9110 8.4.1.3).

    Raises:
        UnsupportedMediaType: another coding, or several; its headers name what is accepted.
        InvalidRequest: a body that is not in this coding, or is cut short.
        TooLarge: more than `limits.body` bytes decoded.
    """
    coding = _known(codings)
    decoded = bytearray()
    for _ in range(MAX_MEMBERS):  # RFC 1952 2.2, RFC 8878 3.1: members simply follow one another
        member = _zstd_inflater() if coding == "zstd" else inflater(coding, data)
        try:
            decoded += member.decompress(data, limits.body + 1 - len(decoded))
        except _ERRORS as error:
            raise InvalidRequest(f"the body is not {coding}") from error
        if len(decoded) > limits.body:
            raise body_too_large(limits)
        if not member.eof:
            raise InvalidRequest(f"the {coding} body is cut short")
        data = member.unused_data
        if not data:
            return bytes(decoded)
        if coding == "deflate":
            raise InvalidRequest("the deflate body continues after its compressed data")
    raise InvalidRequest(f"the {coding} body has more than {MAX_MEMBERS} members")


class BodyDecoder:
    """Decodes a body piece by piece.

    content_encoding: the header's value; "" for a body that is not coded.
    max_bytes: most that the whole body may have decoded.

    Raises:
        UnsupportedMediaType: a coding that is not known here, or several.
    """

    def __init__(self, content_encoding: str, max_bytes: int) -> None:
        codings = [word for word in split_list(content_encoding) if word not in ("", "identity")]
        self._coding = _known(codings) if codings else ""
        self._max_bytes = max_bytes
        self._left = max_bytes
        self._members_left = MAX_STREAM_MEMBERS
        self._inflater: Any = None
        self._held = b""  # bytes whose format is unknown yet

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what the next bytes decode to, at most `PIECE_BYTES` at once.

        The bytes are read as far as the iterator is. After an error the decoder is of no use.

        Raises:
            ProtocolError: bytes that are not in this coding.
            TooLarge: more than `max_bytes` decoded.
        """
        for decoded in self._inflated(data) if self._coding else [data]:
            self._left -= len(decoded)
            if self._left < 0:
                raise TooLarge(f"the body is larger than {self._max_bytes} bytes")
            yield decoded

    def end(self) -> None:
        """Check that the coded data ended with the body.

        Raises:
            ProtocolError: they did not.
        """
        if self._held or (self._inflater is not None and not self._inflater.eof):
            raise ProtocolError("the body ends within its compressed data")

    def _inflated(self, data: bytes) -> Iterator[bytes]:
        data = self._held + data
        self._held = b""
        has_more = bool(data)
        while has_more:
            if self._inflater is None:
                if self._coding == "deflate" and len(data) < 2:
                    self._held = data
                    return
                self._begin_member(data)
            inflater = self._inflater
            try:
                inflated = inflater.decompress(data, PIECE_BYTES)
            except _ERRORS as error:
                raise ProtocolError("the body does not match its content-encoding") from error
            if inflated:
                yield inflated
            if inflater.eof:
                data = inflater.unused_data
                has_more = bool(data)
                if self._coding != "deflate":  # members may follow one another, see above
                    self._inflater = None
                elif data:
                    raise ProtocolError("the body continues after its compressed data")
            elif self._coding == "zstd":  # keeps what it has not read
                data, has_more = b"", not inflater.needs_input
            else:
                data = inflater.unconsumed_tail
                # After a full piece zlib may hold more output, even with no input left.
                has_more = bool(data) or len(inflated) == PIECE_BYTES

    def _begin_member(self, data: bytes) -> None:
        self._members_left -= 1
        if self._members_left < 0:
            raise ProtocolError(f"the body has more than {MAX_STREAM_MEMBERS} members")
        is_zstd = self._coding == "zstd"
        self._inflater = _zstd_inflater() if is_zstd else inflater(self._coding, data)


def _known(codings: list[str]) -> str:
    """Return the coding that `content-encoding` names, if it can be undone here."""
    known = ["gzip", "deflate"] if zstd is None else ["gzip", "deflate", "zstd"]
    coding = "gzip" if codings[0] == "x-gzip" else codings[0]
    if len(codings) > 1 or coding not in known:
        hint = f"; {_ZSTD_REFUSED}" if codings == ["zstd"] else ""
        raise UnsupportedMediaType(
            f"the content codings known are {' and '.join(known)}{hint}",
            headers={"accept-encoding": ", ".join(known)},
        )
    return coding


_ERRORS: tuple[type[Exception], ...] = (zlib.error,)
if zstd is not None:
    _ERRORS += (zstd.ZstdError,)


def _zstd_inflater() -> Any:
    window = {zstd.DecompressionParameter.window_log_max: MAX_WINDOW_LOG}
    return zstd.ZstdDecompressor(options=window)
