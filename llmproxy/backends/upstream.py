"""The upstream backend: another server, used over its own API.

Its stream is parsed to events with their times of arrival. Requests are never retried, and
the caller limits the duration of a whole response.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from ..core import backend, chat, payload, url_policy
from ..core.errors import (
    InvalidRequest,
    ProtocolError,
    ProxyError,
    UpstreamError,
    UpstreamTimeout,
    with_date,
)
from ..core.known_keys import KnownKeys, is_secret_name
from ..core.limits import Limits
from ..dialects import Dialect
from ..transport import client
from ..transport.connections import NO_PROXIES, Deadlines, Proxies
from ..transport.http11 import Headers

MAX_ERROR_BYTES = 2**20  # of an error's body: at most a page of HTML
REQUEST_IDS = ("request-id", "x-request-id", "x-amzn-requestid", "cf-ray")  # Anthropic's, OpenAI's
MAX_ID_CHARS = 200
MAX_ERROR_CHARS = 1000  # of an error that is not JSON, quoted in ours


class Upstream:
    """A server that speaks one of our dialects.

    base_url: see `chat_url`. key: sent in the dialect's own header, unless `fields` are given.
    fields: header fields, those with the credentials among them.
    client: keeps connections; without it each request has one of its own, so that the time to
        connect is known. name: of the upstream; None for a server that is only measured.
    tls: the trust store, the system's by default. Loading that takes about ten milliseconds,
        so callers with many requests should pass their own.
    proxies: for the connections of its own requests; a client has its own.
    """

    def __init__(
        self,
        dialect: Dialect,
        base_url: str,
        *,
        key: str | None = None,
        limits: Limits = Limits(),
        deadlines: Deadlines | None = None,
        tls: ssl.SSLContext | None = None,
        proxies: Proxies = NO_PROXIES,
        fields: Sequence[tuple[str, str]] | None = None,
        client: client.Client | None = None,
        name: str | None = None,
    ) -> None:
        self.dialect = dialect
        self.url = chat_url(dialect, base_url)
        own = dialect.auth_headers(key).items()
        self.fields = [*(own if fields is None else fields)]
        self.client = client
        self.name = name
        self.limits = limits
        self.deadlines = deadlines or Deadlines()
        self.tls = tls
        self.proxies = proxies
        secrets = [value for name, value in self.fields if is_secret_name(name)]
        self.keys = KnownKeys([key for value in secrets for key in (value, *value.split())])

    async def choose(
        self, request: chat.ChatRequest, headers: Sequence[tuple[str, str]] = ()
    ) -> UpstreamChoice:
        """Choose the server for any model: only the server knows its models."""
        return UpstreamChoice(self, request.model or "")


@dataclass(frozen=True)
class UpstreamChoice:
    """A server and the name of a model on it; see backend.Choice.

    model: the name to ask it for; None: as the request has it.
    """

    upstream: Upstream
    model_id: str
    model: str | None = None
    takes_recall: bool = False

    def prepare(self, request: chat.ChatRequest) -> UpstreamRun:
        """Return a run whose request is not sent yet.

        Raises:
            Unsupported: the request has a URL that must not be passed on (it may point to this
                machine).
        """
        url_policy.check(request, "pass")
        if self.model is not None:
            request = replace(request, model=self.model)
        return UpstreamRun(self.upstream, request, self.model_id)


class UpstreamRun:
    """A request to a server and its response; see backend.Run.

    times: of the connection and the response's first byte; None before `start`.
    """

    def __init__(self, upstream: Upstream, request: chat.ChatRequest, model_id: str) -> None:
        dialect = upstream.dialect
        body, ignored = dialect.render_request(replace(request, stream=True))
        self._upstream = upstream
        self._body = payload.encode(body)
        self.model_id = model_id
        self.options: Mapping[str, Any] = request.options
        self.tools = request.tools
        self.ignored = ignored
        self.started = datetime.now(UTC)
        self.started_at = time.monotonic()
        self.setup_ms: float | None = None
        self.replay_of: str | None = None
        self.runs_in_process = False
        self.starts_at_once = False
        self.is_first = False
        self.upstream = backend.UpstreamUse(upstream.name)
        self.times: client.Times | None = None
        self._connection = AsyncExitStack()
        self._response: client.UpstreamResponse | None = None
        self._parser = dialect.StreamParser()
        self._decoder = dialect.StreamDecoder(upstream.limits.body)
        self._reading: asyncio.Task[list[backend.Stamped]] | None = None
        self._error: ProxyError | None = None
        self._is_over = False
        self._last_at = self.started_at

    async def wait_turn(self, wait_s: float | None) -> bool:
        """Return at once: the server limits its clients itself."""
        return False

    async def start(self) -> None:
        """Send the request and wait for the response's head.

        Raises:
            ProxyError: the server's error, with its status.
            UpstreamError: there is no server, no response or no stream.
            UpstreamTimeout: the server is too slow.
            ValueError: the URL or key has characters that can't be sent.
        """
        upstream = self._upstream
        try:
            with naming(upstream.name):
                response = await self._connection.enter_async_context(self._send())
            self.upstream = backend.UpstreamUse(
                upstream.name, request_id=request_id(response.headers, upstream.keys.remove)
            )
            if not 200 <= response.status < 300:
                raise await _refusal(upstream.dialect, response)
            media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            # A stream with a wrong type is read anyway, unless it is one of these.
            if media_type in ("application/json", "text/html"):
                raise await _no_stream(upstream.dialect, response, media_type)
        except ProxyError as error:
            raise self._cleaned(error) from error
        self._response, self.times = response, response.times
        self._last_at = response.times.first_byte
        self.started += timedelta(seconds=response.times.connected - self.started_at)
        self.started_at = response.times.connected
        self.setup_ms = (response.times.connected - response.times.began) * 1000

    def _send(self) -> AbstractAsyncContextManager[client.UpstreamResponse]:
        upstream = self._upstream
        fields = [
            ("content-type", "application/json"),
            ("accept", upstream.dialect.STREAM_TYPE.partition(";")[0]),
            *upstream.fields,
        ]
        if upstream.client is not None:
            return upstream.client.send(
                "POST", upstream.url, fields, self._body, limits=upstream.limits
            )
        return client.send_request(
            upstream.url,
            fields,
            self._body,
            limits=upstream.limits,
            deadlines=upstream.deadlines,
            tls=upstream.tls,
            proxies=upstream.proxies,
        )

    async def read(self, silence_s: float | None = None) -> list[backend.Stamped] | None:
        """Return events, each with the arrival time of its last byte; see backend.Run."""
        while True:
            if self._error is not None:
                raise self._error
            if self._is_over:  # don't wait for data after the Finish
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
        """Close the connection at once."""
        self._is_over = True
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait({self._reading})
            self._reading = None
        await self._connection.aclose()

    async def _next_events(self) -> list[backend.Stamped]:
        """Return the events of the next bytes, including those before a broken frame."""
        assert self._response is not None
        events: list[backend.Stamped] = []
        try:
            async for at, data in self._response:
                self._last_at = at
                for frame in self._decoder.feed(data):
                    events += [backend.Stamped(at, event) for event in self._parser.feed(frame)]
                self._is_over = any(isinstance(one.event, chat.Finish) for one in events)
                return events
            self._is_over = True
            rest = [event for frame in self._decoder.end() for event in self._parser.feed(frame)]
            return [backend.Stamped(self._last_at, e) for e in (*rest, *self._parser.end())]
        except ProtocolError as exc:
            self._error = UpstreamError(f"the upstream's stream is broken: {exc.message}")
        except ProxyError as error:
            self._error = self._cleaned(error)
        return events

    def _cleaned(self, error: ProxyError) -> ProxyError:
        """Remove the key from an error of the server, which may quote it."""
        return self._upstream.keys.redact_error(error)


def chat_url(dialect: Dialect, base_url: str) -> str:
    """Return the URL of a server's chat route.

    base_url: with or without a version at its end (`http://host`, `http://host/v1`,
        `https://host/api/paas/v4`), or the whole URL, for servers with other paths.
    """
    route = backend.chat_path(dialect.ROUTES)
    unversioned = route.removeprefix("/v1")
    parts = urlsplit(base_url)
    path = parts.path.rstrip("/")
    if not path.endswith(unversioned):
        if unversioned == route:  # Ollama's: its paths begin with `/api`, and have no version
            path = re.sub(r"/(?:v1|api)$", "", path)
        path += unversioned if re.search(r"/v[0-9]+$", path) else route
    return urlunsplit(parts._replace(path=path))


async def _refusal(dialect: Dialect, response: client.UpstreamResponse) -> ProxyError:
    if response.status < 400:
        # Not followed: the key must not be sent to another server.
        return UpstreamError(
            f"the upstream redirects (status {response.status}): use the address it redirects to"
        )
    return dialect.parse_error(response.status, await _body(response), _headers(response))


@contextmanager
def naming(upstream: str | None) -> Iterator[None]:
    """Name the upstream, if it has a name, in an error of its connection or response head."""
    try:
        yield
    except (UpstreamError, UpstreamTimeout) as error:
        if upstream is None:
            raise
        raise type(error)(f"upstream {upstream}: {error.message}") from error


def request_id(headers: Headers, without_keys: Callable[[str], str] = str) -> str | None:
    """Return a provider's own id of a request, unless it is too long or not printable.

    A long one is left out rather than cut: a cut key would not be recognised and removed.

    without_keys: removes the keys that were sent, which anything may quote.
    """
    found = next((without_keys(id) for name in REQUEST_IDS if (id := headers.get(name))), "")
    is_usable = 0 < len(found) <= MAX_ID_CHARS and found.isascii() and found.isprintable()
    return found if is_usable else None


def _headers(response: client.UpstreamResponse) -> dict[str, str]:
    return with_date(dict(response.headers), datetime.now(UTC))


async def _no_stream(
    dialect: Dialect, response: client.UpstreamResponse, media_type: str
) -> ProxyError:
    body = await _body(response)
    if isinstance(body, dict) and body.get("error"):  # some send errors with status 200
        return dialect.parse_error(200, body, _headers(response))
    return UpstreamError(f"the upstream sent {media_type} instead of a stream")


async def _body(response: client.UpstreamResponse) -> Any:
    """Return an error's body, as far as it arrives: its JSON value, else its text."""
    data = b""
    try:
        async for _, piece in response:
            data += piece
            if len(data) > MAX_ERROR_BYTES:
                break
    except (UpstreamError, UpstreamTimeout):
        pass  # the status is more useful than an error about the body
    try:
        return payload.parse(data)
    except InvalidRequest:
        return data.decode("utf-8", "replace").strip()[:MAX_ERROR_CHARS]
