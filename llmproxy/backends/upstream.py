"""Ask another server over its wire, and read its stream as hub events with their times.

Which server and what key is for who asks to say; what is done with the events, and how
long the whole may take, too. One request, never tried again.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from ..core import backend, chat, payload, url_policy
from ..core.errors import InvalidRequest, ProtocolError, ProxyError, UpstreamError, UpstreamTimeout
from ..core.known_keys import KnownKeys
from ..core.limits import Limits
from ..dialects import Dialect
from ..transport import client, framing

__all__ = ["RemoteAnswer", "asking", "chat_url"]

MAX_ERROR_BYTES = 2**20  # of a refusal's body: a page of HTML at the most
MAX_ERROR_CHARS = 1000  # of a refusal that is no JSON, which is shown as it stands


class RemoteAnswer:
    """A server's answer that is streaming in. Iterate it once: events, at the end a Finish.

    ignored: paths of what of the request this wire could not carry.
    times: of the connection and the answer's first byte.
    """

    def __init__(
        self, answer: client.Answer, dialect: Dialect, ignored: tuple[str, ...], limits: Limits
    ) -> None:
        self.ignored = ignored
        self.times = answer.times
        self._answer = answer
        self._parser = dialect.StreamParser()
        self._decoder = framing.SSEDecoder(limits.body)
        self._events: Iterator[backend.Stamped] = iter(())
        self._is_finished = False
        self._at = answer.times.first_byte

    def __aiter__(self) -> RemoteAnswer:
        return self

    async def __anext__(self) -> backend.Stamped:
        """Give the next event with the time at which its last byte came.

        Raises:
            ProxyError: the error that the stream says, UpstreamError where it is broken or
                cut, UpstreamTimeout where it stalls; after all events that came before.
        """
        while True:
            for stamped in self._events:
                self._is_finished |= isinstance(stamped.event, chat.Finish)
                return stamped
            if self._is_finished:  # what a server sends behind the end is not waited for
                raise StopAsyncIteration
            self._events = await self._next_events()

    async def _next_events(self) -> Iterator[backend.Stamped]:
        async for at, data in self._answer:
            self._at = at
            return self._read(data)
        self._is_finished = True
        return iter([backend.Stamped(self._at, event) for event in self._parser.end()])

    def _read(self, data: bytes) -> Iterator[backend.Stamped]:
        """Give events one by one, so that those before a broken frame are had."""
        try:
            frames = self._decoder.feed(data)
        except ProtocolError as exc:
            raise UpstreamError(f"the upstream's stream: {exc.message}") from exc
        for frame in frames:
            for event in self._parser.feed(frame):
                yield backend.Stamped(self._at, event)


@asynccontextmanager
async def asking(
    dialect: Dialect,
    base_url: str,
    request: chat.ChatRequest,
    *,
    key: str | None = None,
    headers: Mapping[str, str] | None = None,
    limits: Limits = Limits(),
    deadlines: client.Deadlines | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[RemoteAnswer]:
    """Send a request to a server, as a stream, and give its answer once it has begun.

    base_url: as `chat_url` takes it. key: sent to it as the dialect's servers expect one.
    headers: more fields. tls: the trust to use, the system's by default; who asks often
    makes one, since reading the system's takes some ten milliseconds. Leaving the block,
    by a cancel too, cuts the connection at once.

    Raises:
        ProxyError: the server's refusal, by its own status; Unsupported for a URL that is
            not to be handed on (it may be a server on this machine); UpstreamError where
            there is no server, no answer or no stream; UpstreamTimeout where it is too slow.
        ValueError: a URL, key or header that can't be sent.
    """
    url_policy.check(request, "pass")
    body, ignored = dialect.render_request(replace(request, stream=True))
    fields = [
        ("content-type", "application/json"),
        ("accept", "text/event-stream"),
        *dialect.auth_headers(key).items(),
        *(headers or {}).items(),
    ]
    try:
        async with client.sending(
            chat_url(dialect, base_url),
            fields,
            payload.encode(body),
            limits=limits,
            deadlines=deadlines or client.Deadlines(),
            tls=tls,
        ) as answer:
            if not 200 <= answer.status < 300:
                raise await _refusal(dialect, answer)
            media_type = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
            # A stream under a wrong type is read all the same; these two can't be one.
            if media_type in ("application/json", "text/html"):
                raise await _no_stream(dialect, answer, media_type)
            yield RemoteAnswer(answer, dialect, ignored, limits)
    except ProxyError as error:  # the server's words, which may quote the key
        raise KnownKeys([key or ""]).cleaned(error) from error


def chat_url(dialect: Dialect, base_url: str) -> str:
    """Give the address of a server's chat route.

    base_url: with or without the version at its end (`http://host`, `http://host/v1`,
        `https://host/api/paas/v4`), or the whole address, as servers need that have
        their routes elsewhere.
    """
    route = next(route.path for route in dialect.ROUTES if route.kind == "chat")
    unversioned = route.removeprefix("/v1")
    parts = urlsplit(base_url)
    path = parts.path.rstrip("/")
    if not path.endswith(unversioned):
        path += unversioned if re.search(r"/v[0-9]+$", path) else route
    return urlunsplit(parts._replace(path=path))


async def _refusal(dialect: Dialect, answer: client.Answer) -> ProxyError:
    if answer.status < 400:
        # Another address could be anybody's, and would be given the key.
        return UpstreamError(f"the upstream redirects (status {answer.status}): give its address")
    return dialect.parse_error(answer.status, await _body(answer), dict(answer.headers))


async def _no_stream(dialect: Dialect, answer: client.Answer, media_type: str) -> ProxyError:
    body = await _body(answer)
    if isinstance(body, dict) and body.get("error"):  # some refuse under status 200
        return dialect.parse_error(200, body, dict(answer.headers))
    return UpstreamError(f"the upstream answered with {media_type} where a stream was asked for")


async def _body(answer: client.Answer) -> Any:
    """Read a refusal's body, as far as it comes: its JSON value, or its text."""
    data = b""
    try:
        async for _, piece in answer:
            data += piece
            if len(data) > MAX_ERROR_BYTES:
                break
    except (UpstreamError, UpstreamTimeout):
        pass  # the status is known, and says more than that its page was cut
    try:
        return payload.parse(data)
    except InvalidRequest:
        return data.decode("utf-8", "replace").strip()[:MAX_ERROR_CHARS]
