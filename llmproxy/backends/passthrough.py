"""Requests that are passed on to an upstream byte for byte, and the parsed copies of responses.

What the client sent goes on as it came, what the upstream sends goes back as it came; nothing here
changes either. The log's copy of a response is parsed beside it: a copy that can't be read is a
mark on the exchange, never an error of the client's.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import llm

from ..core import backend, chat, payload
from ..core.errors import InvalidRequest, ProxyError, UpstreamError, with_date
from ..core.limits import Limits
from ..core.response_events import events_of
from ..dialects import Dialect
from ..transport.client import Client, UpstreamResponse
from ..transport.content_coding import BodyDecoder
from .upstream import MAX_ERROR_BYTES, MAX_ERROR_CHARS, naming, request_id
from .upstreams import CREDENTIAL_FIELDS, LOOP_HEADER, NamedUpstream, Upstreams

RAW_BYTES = 2**20  # kept of a response until it is known that its copy can be read
UNREAD_RESPONSE = "response"  # in `ignored`: the copy could not be read, and is kept raw

# With these words a client may take a stream for complete. Text may have them too: that costs it
# nothing but being parsed before it is sent on. Looked for one by one, which is five times as
# fast as a pattern of all.
_MAY_END = (
    b"message_stop",
    b"[DONE]",
    b"response.completed",
    b"response.failed",
    b"response.incomplete",
    b'"error"',
)
_DONE = re.compile(rb'"done"[ \t]*:[ \t]*t')
_TAIL_BYTES = 32  # of the pieces before, so that a word that is split is found


def fields_to_send(
    upstreams: Upstreams,
    upstream: NamedUpstream,
    headers: Sequence[tuple[str, str]],
    *,
    keeps_coding: bool,
    is_decoded: bool = False,
) -> list[tuple[str, str]]:
    """Return a client's header fields as an upstream is to get them: in their order and case.

    Left out are credentials that are not for the upstream, and `accept-encoding`, so that every
    response can be read for the log; the client for upstreams then asks for identity. Fields of
    one connection, `host` and the framing are the transport's.

    keeps_coding: pass `accept-encoding` on: nobody reads the response.
    is_decoded: the body is sent without its content-encoding.

    Raises:
        Unauthorized: the upstream's key is not set.
    """
    credentials = upstreams.credentials(upstream, headers)
    own = credentials if upstream.key.source == "client" else []
    fields = []
    for field in headers:
        name = field[0].lower()
        is_left_out = (
            (name in CREDENTIAL_FIELDS and field not in own)
            or (name == "accept-encoding" and not keeps_coding)
            or (name == "content-encoding" and is_decoded)
            or name == LOOP_HEADER
        )
        if not is_left_out:
            fields.append(field)
    if upstream.key.source != "client":
        fields += credentials
    return fields + upstreams.loop_header(upstream, headers)


class PassedRun:
    """A request that is passed on; for the log and the app it is a run, see backend.Run.

    It has no events of its own: `response` is what came, and `ResponseCopy` reads it.

    is_relayed: set while the response goes to the client, to whom it goes on whatever the log
        makes of it.
    """

    def __init__(
        self,
        client: Client,
        upstream: NamedUpstream,
        method: str,
        url: str,
        fields: Iterable[tuple[str, str]],
        body: bytes | AsyncIterator[bytes],
        *,
        limits: Limits,
        model: str | None = None,
        refused_by: str = "",
    ) -> None:
        self._client = client
        self._named = upstream
        self._refused_by = refused_by
        self._sending = method, url, [*fields], body
        self._own_key = "" if upstream.key.source == "client" else _own_key(self._sending[2])
        self._limits = limits
        self._connection = AsyncExitStack()
        self._is_named = model is not None
        self.model_id = upstream.model_id(model or "unknown")
        self.options: Mapping[str, Any] = {}
        self.tools: tuple[llm.Tool, ...] = ()
        self.ignored: tuple[str, ...] = ()
        self.started = datetime.now(UTC)
        self.started_at = time.monotonic()
        self.setup_ms: float | None = None
        self.replay_of: str | None = None
        self.runs_in_process = False
        self.is_first = False
        self.starts_at_once = False
        self.upstream = backend.UpstreamUse(upstream.name, refused_by)
        self.response: UpstreamResponse | None = None
        self.is_relayed = False

    def take(self, request: chat.ChatRequest) -> None:
        """Note for the log what the copy of the request says."""
        self.options, self.tools = request.options, request.tools

    async def wait_turn(self, wait_s: float | None) -> bool:
        """Return at once: the server limits its clients itself."""
        return False

    async def start(self) -> None:
        """Send the request and wait for the response's head, of any status.

        Raises:
            UpstreamError, UpstreamTimeout: there is none.
            InvalidRequest: the client's header fields or target can't be sent.
        """
        method, url, fields, body = self._sending
        try:
            sending = self._client.send(
                method, url, fields, body, limits=self._limits, is_decoded=False
            )
            with naming(self._named.name):
                response = await self._connection.enter_async_context(sending)
        except ValueError as exc:
            raise InvalidRequest(f"the request can't be passed on: {exc}") from exc
        self._sending = method, url, [], b""  # what was sent need not be kept while it is answered
        times = response.times
        self.response = response
        self.upstream = backend.UpstreamUse(
            self._named.name, self._refused_by, request_id(response.headers)
        )
        self.started += timedelta(seconds=times.connected - self.started_at)
        self.started_at = times.connected
        self.setup_ms = (times.connected - times.began) * 1000

    def take_model(self, name: str | None) -> None:
        """Take the provider's name of the model if the request could not be read."""
        if name and not self._is_named:
            self.model_id = self._named.model_id(name)

    @property
    def header_fields(self) -> list[tuple[str, str]]:
        """The response's header fields for the client, without a key that is not its own."""
        assert self.response is not None
        fields, key = self.response.headers.as_received, self._own_key
        if not key:
            return [*fields]
        return [(name, value.replace(key, "*" * len(key))) for name, value in fields]

    def pieces(self) -> AsyncIterator[tuple[float, bytes]]:
        """Return the response's body for the client: an error without a key that is not its own.

        A provider quotes the key that it refuses, which clients of this server may not know.
        """
        assert self.response is not None
        if self._own_key and self.response.status >= 400:
            return _without_key(self.response, self._own_key.encode())
        return self.response

    async def read(self, silence_s: float | None = None) -> list[backend.Stamped] | None:
        """Return no events; see the class."""
        return []

    async def stop(self) -> None:
        """Close the connection, unless the response is being passed on; `close` does so then."""
        if not self.is_relayed:
            await self.close()

    async def close(self) -> None:
        """Close the connection, or keep it for the next request if the response was whole."""
        await self._connection.aclose()


def _own_key(fields: Iterable[tuple[str, str]]) -> str:
    """Return the key among the credentials of a request, without its scheme."""
    found = (value for name, value in fields if name.lower() in CREDENTIAL_FIELDS)
    return next(found, "").rpartition(" ")[2]


async def _without_key(
    response: UpstreamResponse, key: bytes
) -> AsyncIterator[tuple[float, bytes]]:
    """Yield a body's pieces with asterisks for a key, so that its length is the same."""
    held, at = b"", response.times.first_byte
    async for at, data in response:
        held = (held + data).replace(key, b"*" * len(key))
        end = max(len(held) - len(key) + 1, 0)  # what follows may begin the key
        if end:
            yield at, held[:end]
            held = held[end:]
    if held:
        yield at, held


class ResponseCopy:
    """Reads the copy of a chat's response, piece by piece; never raises.

    error: what the upstream said, or why its stream is cut; None as long as all is well.
    raw: the response, if its copy could not be read; None otherwise.
    has_begun: a frame has come, not only comments that keep the connection alive.
    has_ended: the Finish has come.
    """

    def __init__(
        self, dialect: Dialect, response: UpstreamResponse, limits: Limits, *, is_stream: bool
    ) -> None:
        self._dialect = dialect
        self._status = response.status
        self._headers, self._received = response.headers, datetime.now(UTC)
        media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        self._is_failure = not 200 <= response.status < 300
        if media_type in ("application/json", "text/html"):  # a page is never a stream
            is_stream = False
        elif media_type in ("text/event-stream", "application/x-ndjson"):
            is_stream = True
        self.is_stream = is_stream and not self._is_failure
        self._parser = dialect.StreamParser()
        self._frames = dialect.StreamDecoder(limits.body)
        self._max_bytes = MAX_ERROR_BYTES if self._is_failure else limits.answer
        self._left = limits.answer
        self._kept = bytearray()
        self._tail = b""
        self._is_unread = False
        self.has_begun = False
        self._begins_with_error = False
        self.has_ended = False
        self.error: ProxyError | None = None
        self._coding = response.headers.get("content-encoding", "")
        self._decoder: BodyDecoder | None = None
        if self._coding.strip().lower() not in ("", "identity"):
            try:
                self._decoder = BodyDecoder(self._coding, self._max_bytes)
            except ProxyError:
                self._is_unread = True
        self._is_watched = self._decoder is not None  # each piece may be the last

    @property
    def left_bytes(self) -> int:
        """How much `end` has to read: all of a response that is no stream."""
        return 0 if self.is_stream or self._is_unread else len(self._kept)

    @property
    def raw(self) -> bytes | None:
        """The response up to `RAW_BYTES`, if it could not be read; inflated if that can be done.

        Keys are taken out of it for the log, and can't be found in compressed bytes.
        """
        if not self._is_unread:
            return None
        data = self._kept
        if self._decoder is not None:
            data = bytearray()
            with suppress(ProxyError):  # damaged, or longer: what came before is kept
                for piece in BodyDecoder(self._coding, self._max_bytes).feed(bytes(self._kept)):
                    data += piece
                    if len(data) >= RAW_BYTES:
                        break
        if len(data) < RAW_BYTES:
            return bytes(data)
        cut = max(data.rfind(mark, 0, RAW_BYTES) for mark in b' "\n')
        return bytes(data[: cut + 1])  # half of a key would not be recognised and removed

    def safe_bytes(self, data: bytes) -> int:
        """Return how many of a piece's bytes a client can have before they are read.

        With those after them it may take the response for complete: the log is to have that first.
        """
        if not self.is_stream:
            return len(data)
        if self._is_watched:
            return 0
        searched = self._tail + data
        starts = [searched.find(word) for word in _MAY_END if word in searched]
        if done := _DONE.search(searched):
            starts.append(done.start())
        if not starts:
            self._tail = searched[-_TAIL_BYTES:]
            return len(data)
        self._is_watched = True
        whole_lines = searched.rfind(b"\n", 0, min(starts)) + 1
        return max(whole_lines - len(self._tail), 0)

    async def first_error(self, response: UpstreamResponse) -> ProxyError | None:
        """Return the error that a stream begins with, if it does; all of it is still to be read.

        An upstream that is busy may say so only here, after a status of 200.
        """
        pieces: list[tuple[float, bytes]] = []
        try:
            while not (self.has_begun or self._is_unread) and self.is_stream:
                pieces.append(await anext(response))
                self.feed(*pieces[-1])
        except StopAsyncIteration:
            pass
        except ProxyError as error:
            return error
        response.put_back(pieces)
        return self.error if self._begins_with_error else None

    def feed(self, at: float, data: bytes) -> list[backend.Stamped]:
        """Read the next piece, which came `at` this time; return the events that it ends."""
        if self.has_ended or self.error is not None:
            return []
        if len(self._kept) < (RAW_BYTES if self.is_stream or self._is_unread else self._max_bytes):
            self._kept += data
        if self._is_unread or not self.is_stream:
            return []
        events: list[backend.Stamped] = []
        try:
            if self._decoder is None:
                self._read(at, data, events)
            else:
                for piece in self._decoder.feed(data):
                    self._read(at, piece, events)
        except ProxyError:
            self._is_unread = True
        return events

    def end(self, at: float) -> list[backend.Stamped]:
        """Read what is left when the response is whole; return the events."""
        if self.has_ended or self.error is not None or self._is_unread:
            return []
        events: list[backend.Stamped] = []
        if self.is_stream:
            try:
                for frame in self._frames.end():
                    self._read_frame(at, frame, events)
                if not self.has_ended and self.error is None and not self._is_unread:
                    self._take(at, self._parser.end(), events)
            except ProxyError as error:  # it ended too early
                self.error = error
            except Exception:
                self._is_unread = True
            return events
        self._read_whole(at, events)
        return events

    def _read_whole(self, at: float, events: list[backend.Stamped]) -> None:
        data = bytes(self._kept)
        value: Any
        try:
            if self._decoder is not None:
                data = b"".join(self._decoder.feed(data))
            value = payload.parse(data)
        except ProxyError:
            value = data.decode("utf-8", "replace").strip()[:MAX_ERROR_CHARS]
            self._is_unread = not self._is_failure
        if 300 <= self._status < 400:
            self.error = UpstreamError(f"the upstream redirects (status {self._status})")
        elif self._is_failure:
            self.error = self._dialect.parse_error(self._status, value, self._dated_headers())
        elif not self._is_unread:
            try:
                response = self._dialect.parse_response(value, self._dated_headers())
            except ProxyError as error:
                self._failed(error, b'"error"' in data)
            except Exception:
                self._is_unread = True
            else:
                self._take(at, list(events_of(response)), events)

    def _dated_headers(self) -> dict[str, str]:
        return with_date(dict(self._headers), self._received)

    def _read(self, at: float, data: bytes, events: list[backend.Stamped]) -> None:
        for frame in self._frames.feed(data):
            self._read_frame(at, frame, events)

    def _read_frame(self, at: float, frame: Any, events: list[backend.Stamped]) -> None:
        if self.has_ended or self.error is not None or self._is_unread:
            return
        is_first, self.has_begun = not self.has_begun, True
        try:
            self._take(at, self._parser.feed(frame), events)
        except ProxyError as error:
            self._begins_with_error = is_first
            text = frame if isinstance(frame, bytes) else frame.data.encode()
            self._failed(error, b'"error"' in text or b"failed" in text)
        except Exception:  # a value of an unknown kind, where a parser expected another
            self._is_unread = True

    def _failed(self, error: ProxyError, is_said: bool) -> None:
        """Keep the upstream's own error; one of our parser is a mark."""
        if is_said:
            self.error = error
        else:
            self._is_unread = True

    def _take(self, at: float, found: list[chat.Event], events: list[backend.Stamped]) -> None:
        for event in found:
            if isinstance(event, chat.Finish):
                self.has_ended = True
                self._kept.clear()
            else:
                self._left -= backend.event_bytes(event, self._left)
                if self._left < 0:  # the client's copy goes on
                    self._is_unread = True
                    return
            events.append(backend.Stamped(at, event))
