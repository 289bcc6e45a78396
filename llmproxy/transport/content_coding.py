"""Content codings of bodies: gzip and deflate, and zstd where Python has it (since 3.14).

Spec: https://www.rfc-editor.org/rfc/rfc9110#section-8.4
"""

from __future__ import annotations

import zlib
from typing import Any

from ..core.errors import InvalidRequest, UnsupportedMediaType
from ..core.limits import Limits
from .http_grammar import body_too_large

try:
    from compression import zstd  # type: ignore[import-not-found,unused-ignore]
except ImportError:
    zstd = None

MAX_MEMBERS = 16  # gzip(1) and every HTTP client write one; each costs a copy of the rest
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
    known = ["gzip", "deflate"] if zstd is None else ["gzip", "deflate", "zstd"]
    coding = codings[0].removeprefix("x-") if codings[0] == "x-gzip" else codings[0]
    if len(codings) > 1 or coding not in known:
        hint = f"; {_ZSTD_REFUSED}" if codings == ["zstd"] else ""
        raise UnsupportedMediaType(
            f"the content codings known are {' and '.join(known)}{hint}",
            headers={"accept-encoding": ", ".join(known)},
        )
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


_ERRORS: tuple[type[Exception], ...] = (zlib.error,)
if zstd is not None:
    _ERRORS += (zstd.ZstdError,)


def _zstd_inflater() -> Any:
    window = {zstd.DecompressionParameter.window_log_max: MAX_WINDOW_LOG}
    return zstd.ZstdDecompressor(options=window)
