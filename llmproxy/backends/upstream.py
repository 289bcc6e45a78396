"""Another server as a backend: asked over its own API, its stream read as events with times.

One request, never tried again. What the whole may take is the caller's to limit.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from ..core import backend, chat, payload, url_policy
from ..core.errors import InvalidRequest, ProtocolError, ProxyError, UpstreamError, UpstreamTimeout
from ..core.known_keys import KnownKeys
from ..core.limits import Limits
from ..dialects import Dialect
from ..transport import client, framing

MAX_ERROR_BYTES = 2**20  # of a refusal's body: a page of HTML at the most
MAX_ERROR_CHARS = 1000  # of a refusal that is no JSON, which is shown as it stands


class Upstream:
    """A server that speaks one of our dialects.

    base_url: as `chat_url` takes it. key: sent as the dialect's servers expect it.
    tls: the trust to use, the system's by default; reading that takes some ten
        milliseconds, so callers that ask often make one.
    """

    def __init__(
        self,
        dialect: Dialect,
        base_url: str,
        *,
        key: str | None = None,
        limits: Limits = Limits(),
        deadlines: client.Deadlines | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.dialect = dialect
        self.url = chat_url(dialect, base_url)
        self.key = key
        self.limits = limits
        self.deadlines = deadlines or client.Deadlines()
        self.tls = tls

    async def choose(self, request: chat.ChatRequest) -> UpstreamChoice:
        """Choose the server, whatever the model: it alone knows its models."""
        return UpstreamChoice(self, request.model or "")


@dataclass(frozen=True)
class UpstreamChoice:
    """A server and a model's name on it, as backend.Choice has it."""

    upstream: Upstream
    model_id: str
    takes_recall: bool = False

    def prepare(self, request: chat.ChatRequest) -> UpstreamRun:
        """Return a run whose request has not been sent.

        Raises:
            Unsupported: a URL that must not be handed on (it may be a server on this machine).
        """
        url_policy.check(request, "pass")
        return UpstreamRun(self.upstream, request)


class UpstreamRun:
    """A request to a server and its response, as backend.Run has it.

    times: of the connection and the response's first byte, once it has started.
    """

    def __init__(self, upstream: Upstream, request: chat.ChatRequest) -> None:
        dialect = upstream.dialect
        body, ignored = dialect.render_request(replace(request, stream=True))
        self._upstream = upstream
        self._body = payload.encode(body)
        self.model_id = request.model or ""
        self.options: Mapping[str, Any] = request.options
        self.tools = request.tools
        self.ignored = ignored
        self.started = datetime.now(UTC)
        self.started_at = time.monotonic()
        self.setup_ms: float | None = None
        self.replay_of: str | None = None
        self.runs_in_process = False
        self.is_first = False
        self.times: client.Times | None = None
        self._connection = AsyncExitStack()
        self._answer: client.UpstreamResponse | None = None
        self._parser = dialect.StreamParser()
        self._decoder = framing.SSEDecoder(upstream.limits.body)
        self._reading: asyncio.Task[list[backend.Stamped]] | None = None
        self._error: ProxyError | None = None
        self._is_over = False
        self._last_at = self.started_at

    async def wait_turn(self, wait_s: float | None) -> bool:
        """Return at once: the server limits its clients by itself."""
        return False

    async def start(self) -> None:
        """Send the request, and wait for the head of the response.

        Raises:
            ProxyError: the server's refusal, by its own status; UpstreamError if there is no
                server, response or stream; UpstreamTimeout if it is too slow.
            ValueError: a URL or key that can't be sent.
        """
        upstream = self._upstream
        fields = [
            ("content-type", "application/json"),
            ("accept", "text/event-stream"),
            *upstream.dialect.auth_headers(upstream.key).items(),
        ]
        try:
            answer = await self._connection.enter_async_context(
                client.send_request(
                    upstream.url,
                    fields,
                    self._body,
                    limits=upstream.limits,
                    deadlines=upstream.deadlines,
                    tls=upstream.tls,
                )
            )
            if not 200 <= answer.status < 300:
                raise await _refusal(upstream.dialect, answer)
            media_type = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
            # A stream under a wrong type is read all the same; these two can't be one.
            if media_type in ("application/json", "text/html"):
                raise await _no_stream(upstream.dialect, answer, media_type)
        except ProxyError as error:
            raise self._cleaned(error) from error
        self._answer, self.times = answer, answer.times
        self._last_at = answer.times.first_byte
        self.started += timedelta(seconds=answer.times.connected - self.started_at)
        self.started_at = answer.times.connected
        self.setup_ms = (answer.times.connected - answer.times.began) * 1000

    async def read(self, silence_s: float | None = None) -> list[backend.Stamped] | None:
        """Return events with the time at which the last byte of each came; see backend.Run."""
        while True:
            if self._error is not None:
                raise self._error
            if self._is_over:  # what a server sends after the end is not waited for
                return []
            if self._reading is None:
                self._reading = asyncio.create_task(self._next_events())
            await asyncio.wait({self._reading}, timeout=silence_s)
            if not self._reading.done():
                return None
            reading, self._reading = self._reading, None
            if events := reading.result():
                return events

    async def stop(self) -> None:
        """Cut the connection, at once."""
        self._is_over = True
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait({self._reading})
            self._reading = None
        await self._connection.aclose()

    async def _next_events(self) -> list[backend.Stamped]:
        """Return the events of the next bytes, those before a broken frame included."""
        assert self._answer is not None
        events: list[backend.Stamped] = []
        try:
            async for at, data in self._answer:
                self._last_at = at
                for frame in self._decoder.feed(data):
                    events += [backend.Stamped(at, event) for event in self._parser.feed(frame)]
                self._is_over = any(isinstance(one.event, chat.Finish) for one in events)
                return events
            self._is_over = True
            return [backend.Stamped(self._last_at, event) for event in self._parser.end()]
        except ProtocolError as exc:
            self._error = UpstreamError(f"the upstream's stream: {exc.message}")
        except ProxyError as error:
            self._error = self._cleaned(error)
        return events

    def _cleaned(self, error: ProxyError) -> ProxyError:
        """Take the key out of a server's words, which may quote it."""
        return KnownKeys([self._upstream.key or ""]).redact_error(error)


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


async def _refusal(dialect: Dialect, answer: client.UpstreamResponse) -> ProxyError:
    if answer.status < 400:
        # Another address could be anybody's, and would be given the key.
        return UpstreamError(f"the upstream redirects (status {answer.status}): give its address")
    return dialect.parse_error(answer.status, await _body(answer), dict(answer.headers))


async def _no_stream(
    dialect: Dialect, answer: client.UpstreamResponse, media_type: str
) -> ProxyError:
    body = await _body(answer)
    if isinstance(body, dict) and body.get("error"):  # some refuse under status 200
        return dialect.parse_error(200, body, dict(answer.headers))
    return UpstreamError(f"the upstream answered with {media_type} where a stream was asked for")


async def _body(answer: client.UpstreamResponse) -> Any:
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
