"""Say what a provider sent where a stream of events, or an answer, was expected.

An SDK skips what is no event, and then reports an empty stream, or fails at an assertion. So
the beginning of a body is kept while the SDK reads it. No SDK is imported: responses of httpx
and its likes are known by their methods.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from ...core import payload
from ...core.error_meanings import error_fields
from ...core.errors import InvalidRequest, ProxyError, UpstreamError
from ...dialects import openai_chat

MAX_BODY_BYTES = 64 * 2**10  # of an error in place of a stream
MAX_QUOTED_CHARS = 200  # of a body, in an error's message
EMPTY = "the provider's response is empty"

_NO_STREAMS = ("application/json", "text/html")  # other wrong types are read anyway
_ANSWERS = {"choices", "output", "content"}  # fields of answers, which are no errors


class SentBody:
    """The body of a response that an SDK reads as a stream; its beginning is kept.

    response: of httpx, whose body nobody has begun to read.
    """

    def __init__(self, response: Any) -> None:
        self._response = response
        self._kept = bytearray()
        self._read, self._read_async = response.iter_bytes, getattr(response, "aiter_bytes", None)
        response.iter_bytes, response.aiter_bytes = self._keep, self._keep_async

    @property
    def media_type(self) -> str:
        """The media type in lower case, "" if the response has none."""
        value = str(self._response.headers.get("content-type", ""))
        return value.partition(";")[0].strip().lower()

    @property
    def is_no_stream(self) -> bool:
        """Whether the media type says so; then `read` or `aread` gets an error from the body."""
        return self.media_type in _NO_STREAMS

    def read(self) -> ProxyError:
        """Read the body's beginning, and return the error that it is."""
        for _ in self._keep():
            if len(self._kept) >= MAX_BODY_BYTES:
                break
        return self.error()

    async def aread(self) -> ProxyError:
        """Do what `read` does, for an async response."""
        async for _ in self._keep_async():
            if len(self._kept) >= MAX_BODY_BYTES:
                break
        return self.error()

    def error(self) -> ProxyError:
        """Return the error that the body is, by what has been read of it: it held no event."""
        return error_in_body(self.media_type, bytes(self._kept))

    def _keep(self, *arguments: Any) -> Iterator[bytes]:
        pieces = self._read(*arguments)
        for piece in pieces:
            self._kept += piece
            yield piece
            if len(self._kept) >= MAX_BODY_BYTES:
                break
        yield from pieces

    async def _keep_async(self, *arguments: Any) -> AsyncIterator[bytes]:
        assert self._read_async is not None
        async for piece in self._read_async(*arguments):
            if len(self._kept) < MAX_BODY_BYTES:
                self._kept += piece
            yield piece


def error_in_body(media_type: str, body: bytes) -> ProxyError:
    """Return the error that a body is, which came with a status of success but is no answer.

    The one that it reports, if it does, else one that quotes its beginning.
    """
    text = body[:MAX_BODY_BYTES].decode(errors="replace").strip()
    events = [line[5:].strip() for line in text.splitlines() if line.startswith("data:")]
    is_json = text[:1] in ("{", "[")
    if not is_json and all(event in ("", "[DONE]") for event in events) and _is_events(text):
        return UpstreamError(EMPTY)
    said = text if is_json or not events else events[0]
    quoted = " ".join(said[: 2 * MAX_QUOTED_CHARS].split())[:MAX_QUOTED_CHARS]
    sent = f"the provider sent {media_type or 'no content type'} instead of an answer: {quoted}"
    try:
        value = payload.parse(said.encode())
    except InvalidRequest:
        return UpstreamError(sent)
    fields = error_fields(value)
    if not isinstance(value, dict | list) or _ANSWERS & fields.keys():
        return UpstreamError(sent)
    if not isinstance(fields.get("message"), str) or not fields["message"]:
        value = {"error": {**fields, "message": sent}}
    return openai_chat.parse_error(200, value)


def _is_events(text: str) -> bool:
    """Return whether a text consists of an event stream's lines, or of nothing."""
    names = ("data", "event", "id", "retry", "")
    return all(line.partition(":")[0] in names for line in text.splitlines())
