"""The proxy as an ASGI application, for the servers and frameworks that people run already.

    uvicorn llmproxy.asgi:app
    Starlette(routes=[Mount("/llm", proxy)], lifespan=proxy.lifespan)

`app` has the settings of `LLMPROXY_…` variables and of the file in LLMPROXY_CONFIG, which are
read when it is first asked for; `App` has those that it is given.

The server does what `transport` does for the command: sockets, TLS, HTTP/2, limits of heads and
connections. Everything else is the same, the log included; several workers may share a file.

Spec: https://asgi.readthedocs.io/en/latest/specs/www.html (3.0)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Unpack
from urllib.parse import quote

from .app.access import is_loopback
from .core.errors import Forbidden, ProtocolError, ProxyError, SettingsError, Timeout
from .proxy import Options, Proxy, Settings
from .transport.http11 import BodyCut, Headers, Request, Response, encode_head, relayed_fields
from .transport.http_grammar import body_too_large, parse_content_length
from .transport.server import ServedRequest

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_OF_CONNECTIONS = ("connection", "upgrade")  # fields that HTTP/2 forbids (RFC 9113 8.2.2)


class _Gone(Exception):
    """The client has left before its request was whole."""


class App:
    """An ASGI application that answers as the command's server does.

    settings, options: as `llmproxy.serve` takes them. `port` is the server's matter. So is
    `host`, but it decides who is let in: while it is a loopback address, as by default, only
    requests with a loopback Host, and without a key only clients on this machine.

    The models are loaded and the log is opened when the server begins its lifespan, or at
    the first request where it has none.

    Raises:
        SettingsError: the settings can't work.
    """

    def __init__(self, settings: Settings | None = None, **options: Unpack[Options]) -> None:
        self._settings = replace(settings or Settings(), **options)
        is_open = not self._settings.keys and self._settings.authorize is None
        self._needs_local_clients = is_open and self._settings.auth
        # Not made yet: a server may fork after this, and each process has a log of its own.
        self._proxy: Proxy | None = None
        self._opening = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's scope.

        Raises:
            SettingsError: the proxy can't start, and the server has no lifespan to say so in.
        """
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._serve(_request_of(scope), scope, receive, send)
        elif scope["type"] == "websocket":
            await self._refuse_websocket(scope, receive, send)

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """Open the proxy for a while: for frameworks, which keep the server's lifespan.

        Raises:
            SettingsError: as `Proxy.open` does.
        """
        await self._opened()
        try:
            yield
        finally:
            await self.close()

    async def close(self) -> None:
        """Write the log to its end. The next request opens everything again."""
        if self._proxy is not None:
            proxy, self._proxy = self._proxy, None
            await proxy.close()

    async def _opened(self) -> Proxy:
        async with self._opening:
            if self._proxy is None:
                proxy = Proxy(self._settings)
                await proxy.open()
                self._proxy = proxy
        return self._proxy

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self._opened()
        except SettingsError as exc:
            await send({"type": "lifespan.startup.failed", "message": str(exc)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _serve(self, head: Request, scope: Scope, receive: Receive, send: Send) -> None:
        proxy = self._proxy or await self._opened()
        peer = _peer_of(scope)
        sender = _Sender(send, "http.response", head)
        began_at = time.monotonic()
        try:
            if refusal := self._refusal(proxy, head, peer):
                await sender.send_response(refusal)
                return
            stream: _BodyStream | None = None
            try:
                if proxy.app.streams_body(head):
                    stream = _BodyStream(receive, self._settings.limits.body_s)
                    request, receive = await stream.begin(head), stream.receive_after
                else:
                    request = replace(head, body=await self._body(head, receive))
            except ProxyError as error:
                await sender.send_response(proxy.app.refuse(error, head))
                return
            await _until_hang_up(_answer(proxy, request, stream, sender), receive)
        except _Gone:
            pass
        finally:
            duration_s = time.monotonic() - began_at
            proxy.report_response(
                ServedRequest(
                    peer, head, sender.status, sender.body_bytes, duration_s, sender.reason
                )
            )

    def _refusal(self, proxy: Proxy, head: Request, peer: str) -> Response | None:
        """Return the response to a request that its head forbids."""
        if self._needs_local_clients and peer != "-" and not is_loopback(peer):
            error = Forbidden("this server has no API key, and serves this machine only")
            return proxy.app.refuse(error, head)
        return proxy.app.admit(head)

    async def _body(self, head: Request, receive: Receive) -> bytes:
        limits = self._settings.limits
        if (length := head.headers.get("content-length")) is not None:
            parse_content_length(length, limits)
        pieces: list[bytes] = []
        left = limits.body
        try:
            while True:
                async with asyncio.timeout(limits.body_s):
                    message = await receive()
                if message["type"] == "http.disconnect":
                    raise _Gone
                pieces.append(message.get("body", b""))
                left -= len(pieces[-1])
                if left < 0:
                    raise body_too_large(limits)
                if not message.get("more_body", False):
                    return b"".join(pieces)
        except TimeoutError:
            raise Timeout(f"the body came too slowly for {limits.body_s:g} s") from None

    async def _refuse_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse as the command's server does, where the server lets us choose the response."""
        await receive()
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close"})
            return
        proxy = self._proxy or await self._opened()
        head = _request_of(scope)
        response = self._refusal(proxy, head, _peer_of(scope)) or await proxy.app(head)
        await _Sender(send, "websocket.http.response", head).send_response(response)


async def _answer(
    proxy: Proxy, request: Request, stream: _BodyStream | None, sender: _Sender
) -> None:
    response = await proxy.app(request)
    if stream is not None:
        stream.end()  # nobody reads on
    await sender.send_response(response)


class _BodyStream:
    """The body of a request that is streamed, as `transport.server` has it."""

    def __init__(self, receive: Receive, within_s: float) -> None:
        self._receive = receive
        self._within_s = within_s
        self._first = b""
        self._ended = asyncio.Event()

    async def begin(self, head: Request) -> Request:
        """Return the request: with its body, if that comes at once, else with this stream."""
        try:
            self._first = await self._next_message()
        except ProtocolError:
            raise _Gone from None
        if self._ended.is_set():
            return replace(head, body=self._first)
        return replace(head, body_stream=self)

    def __aiter__(self) -> _BodyStream:
        return self

    async def __anext__(self) -> bytes:
        data, self._first = self._first, b""
        while not data and not self._ended.is_set():
            data = await self._next_message()
        if not data:
            raise StopAsyncIteration
        return data

    async def _next_message(self) -> bytes:
        try:
            async with asyncio.timeout(self._within_s):
                message = await self._receive()
        except TimeoutError:
            raise Timeout(f"the body came too slowly for {self._within_s:g} s") from None
        if message["type"] == "http.disconnect":
            raise ProtocolError("the client left before its body was whole")
        if not message.get("more_body", False):
            self.end()
        data: bytes = message.get("body", b"")
        return data

    def end(self) -> None:
        """Note that nothing more is wanted of the body."""
        self._ended.set()

    async def receive_after(self) -> Message:
        """Receive what comes after the body."""
        await self._ended.wait()
        return await self._receive()


async def _until_hang_up(work: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Do the work, but cancel it once the client has left."""
    working = asyncio.ensure_future(work)
    hang_up = asyncio.ensure_future(_wait_for_hang_up(receive))
    try:
        await asyncio.wait({working, hang_up}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        hang_up.cancel()
        if not working.done():
            working.cancel()
        await asyncio.wait({working, hang_up})
    if not working.cancelled():
        working.result()


async def _wait_for_hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Sender:
    """Sends one response by a server's `send`.

    status: as sent, None if nothing was. body_bytes: sent so far. reason: of a refusal.
    """

    def __init__(self, send: Send, kind: str, request: Request) -> None:
        self._send = send
        self._kind = kind
        self._request = request
        self.status: int | None = None
        self.body_bytes = 0
        self.reason = ""

    async def send_response(self, response: Response) -> None:
        """Send a response, whole or as its body yields.

        A body that is cut ends without its last message: a server closes the connection then,
        and the client sees that the response is broken.
        """
        body = response.body
        self.reason = response.reason
        is_whole = isinstance(body, bytes)
        try:
            await self._send_head(response)
            if isinstance(body, bytes):
                await self._send_body(body, more=False)
                return
            async for data in body:
                if data:
                    await self._send_body(data, more=True)
            await self._send_body(b"", more=False)
        except BodyCut:
            pass
        finally:
            if not is_whole and (close := getattr(body, "aclose", None)):
                await close()

    async def _send_head(self, response: Response) -> None:
        fields, status = list(response.headers), response.status
        length: int | None = None
        has_body = status not in (204, 304)
        if response.is_relayed:
            has_body = has_body and self._request.method != "HEAD"
            fields, length = relayed_fields(response, has_body=has_body)
            fields = [(name.lower(), value) for name, value in fields]  # an ASGI rule
        if isinstance(response.body, bytes) and has_body and length is None:
            fields.append(("content-length", str(len(response.body))))
        if not self._request.version.startswith("1"):
            fields = [field for field in fields if field[0] not in _OF_CONNECTIONS]
        encode_head(response.status, fields)  # raises if one can't be written: not all servers do
        await self._send(
            {
                "type": f"{self._kind}.start",
                "status": response.status,
                "headers": [(name.encode(), value.encode("latin-1")) for name, value in fields],
            }
        )
        self.status = response.status

    async def _send_body(self, data: bytes, *, more: bool) -> None:
        await self._send({"type": f"{self._kind}.body", "body": data, "more_body": more})
        self.body_bytes += len(data)


def _request_of(scope: Scope) -> Request:
    """Return a scope's request without its body; its target begins below the mount's path."""
    raw = scope.get("raw_path")
    path = raw.decode("latin-1").partition("?")[0] if raw else quote(scope["path"])
    root = quote(scope.get("root_path", "").rstrip("/"))
    if root and (path == root or path.startswith(f"{root}/")):
        path = path[len(root) :] or "/"
    query = scope.get("query_string", b"").decode("latin-1")
    headers = Headers(
        (name.decode("latin-1").lower(), value.decode("latin-1"))
        for name, value in scope["headers"]
    )
    target = f"{path}?{query}" if query else path
    return Request(
        scope.get("method", "GET"),
        target,
        headers,
        version=scope.get("http_version", "1.1"),
        scheme=scope.get("scheme", "http"),
        mount=root,
    )


def _peer_of(scope: Scope) -> str:
    return str((scope.get("client") or ("-",))[0])


def _get(name: str) -> App:
    """Make `app` when a server asks for it: an import alone reads no setting."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .cli.serve import settings_of_environment

    made = globals()["app"] = App(settings_of_environment())
    return made


if TYPE_CHECKING:
    app: App
else:  # to a type checker every name would exist
    __getattr__ = _get
