"""Connections to servers: names, addresses, TLS, the environment's proxies, and reuse.

HTTP/1.1 only. `client` sends requests over them.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import math
import os
import re
import socket
import ssl
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..core.errors import NoConnection, SettingsError, UpstreamError, UpstreamTimeout
from ..core.limits import Limits
from .http_grammar import encode_message_head
from .response_parser import ResponseHead, ResponseParser
from .sockets import has_unread

READ_AHEAD_BYTES = 256 * 2**10  # received and not asked for yet; above it, the server has to wait
MAX_IDLE = 32  # connections that are kept; each takes a descriptor
IDLE_S = 15.0  # that one is kept: servers close theirs after 60 and more, gateways after less


# RFC 2068 19.7.1.1; Node's server says 5 seconds in it.
_KEEP_ALIVE_S = re.compile(r"timeout=\"?([0-9]{1,6})", re.IGNORECASE)


@dataclass(frozen=True)
class Deadlines:
    """The longest waits on the server, in seconds.

    Those who pass a client's request on should wait as long as the client does: SDKs wait ten
    minutes for the first byte.
    """

    connect_s: float = 10.0  # name, TCP and TLS
    first_byte_s: float = 300.0  # after the request's last byte: models load, and think
    idle_s: float = 60.0  # between two reads after that, and two writes before; keep-alives count


DEADLINES = Deadlines()


@dataclass(frozen=True)
class Address:
    """The host to connect to, and the target to request there."""

    host: str
    port: int
    is_tls: bool
    authority: str
    target: str
    basic_key: str = field(default="", repr=False)  # a proxy's credentials, encoded

    @classmethod
    def of(cls, url: str) -> Address:
        """Split a URL. One that would need repair is refused: it must not be sent a key.

        Raises:
            ValueError: not an http(s) URL of visible ASCII, or one with a user or fragment.
        """
        # urlsplit drops TAB, CR and LF, wherever they stand.
        if not url.isascii() or not url.isprintable() or " " in url:
            raise ValueError("the URL has characters that must be percent-encoded")
        try:
            parts = urlsplit(url)
            given_port = parts.port
        except ValueError:  # its message quotes what stands there, maybe a part of a password
            raise ValueError("the URL's host or port can't be read") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("the URL does not begin with http:// or https:// and a host")
        # RFC 9110 4.2.4: userinfo is not to be sent; what stands there is a password.
        if "@" in parts.netloc or parts.fragment:
            raise ValueError("the URL has a user or a fragment in it")
        is_tls = parts.scheme == "https"
        target = url.partition("://")[2].removeprefix(parts.netloc)  # exact, as "/a?" is too
        if not target.startswith("/"):
            target = f"/{target}"
        port = (443 if is_tls else 80) if given_port is None else given_port
        return cls(parts.hostname, port, is_tls, parts.netloc, target)


# ---- proxies


@dataclass(frozen=True)
class Proxies:
    """The proxies that the environment names for each scheme of URL, and what goes past them.

    urls: by scheme, as in HTTPS_PROXY; they may have passwords. bypassed: hosts, domains
        (`.example.com`), networks (`10.0.0.0/8`), each with a port if it is for that alone; "*"
        for all.
    """

    urls: Mapping[str, str] = field(default_factory=dict, repr=False)
    bypassed: tuple[str, ...] = ()

    @classmethod
    def of_environment(cls, environ: Mapping[str, str] = os.environ) -> Proxies:
        """Read HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY; lower case comes first."""

        def value(name: str) -> str:
            return (environ.get(name.lower()) or environ.get(name) or "").strip()

        urls = {scheme: value(f"{scheme.upper()}_PROXY") for scheme in ("http", "https")}
        anyway = value("ALL_PROXY")
        return cls(
            {scheme: url or anyway for scheme, url in urls.items() if url or anyway},
            tuple(value("NO_PROXY").lower().replace(",", " ").split()),  # as curl reads it
        )

    def proxy_for(self, address: Address) -> Address | None:
        """Return the proxy for an address; None if it is to be reached directly, as loopback is.

        Raises:
            UpstreamError: the environment names a proxy of another kind than HTTP, or none.
        """
        scheme = "https" if address.is_tls else "http"
        url = self.urls.get(scheme)
        if url is None or _is_loopback(address.host) or self._is_bypassed(address):
            return None
        try:
            return _proxy_at(url)
        except ValueError as exc:
            variables = f"{scheme.upper()}_PROXY or ALL_PROXY"
            raise UpstreamError(f"the environment's proxy ({variables}): {exc}") from None

    def name_for(self, url: str) -> tuple[str, str]:
        """Return the address of the proxy for a URL and why it can't be used, or ""."""
        try:
            proxy = self.proxy_for(Address.of(url))
        except UpstreamError as error:
            return "", error.message
        return proxy.authority if proxy else "", ""

    def _is_bypassed(self, address: Address) -> bool:
        return any(_fits(entry, address) for entry in self.bypassed)


NO_PROXIES = Proxies()


def _proxy_at(url: str) -> Address:
    """Return the address of a proxy and its credentials.

    Raises:
        ValueError: it can't be used; nothing of the URL but its scheme is quoted, since a
            password may be anywhere in one that is malformed.
    """
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError(_NO_PROXY_URL) from None
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"{parts.scheme}:// is not spoken, only http:// and https:// are")
    if not host or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(_NO_PROXY_URL)
    key = ""
    if parts.username is not None:
        words = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        key = base64.b64encode(words.encode()).decode()
    is_tls = parts.scheme == "https"
    port = port or (443 if is_tls else 80)
    return Address(host, port, is_tls, f"{_bracketed(host)}:{port}", "/", key)


_NO_PROXY_URL = (
    "its URL can't be read: http://HOST:PORT; characters such as / # @ in a user or password are"
    " percent-encoded"
)


def _fits(entry: str, address: Address) -> bool:
    if entry == "*":
        return True
    name, port = entry, ""
    if entry.count(":") == 1 or "]:" in entry:
        name, _, port = entry.rpartition(":")
    if port and port != str(address.port):
        return False
    name = name.strip("[]")
    try:
        return ipaddress.ip_address(address.host) in ipaddress.ip_network(name, strict=False)
    except ValueError:
        name = name.removeprefix("*").strip(".")
        return bool(name) and f".{address.host}".endswith(f".{name}")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


# ---- connecting


def trust(ca_file: str | Path | None = None) -> ssl.SSLContext:
    """Return the TLS settings for servers that the system trusts, or a CA file does.

    Takes about 10 ms. OpenSSL's SSL_CERT_FILE and SSL_CERT_DIR replace the system's own.

    Raises:
        SettingsError: the file can't be read, or has no certificate.
    """
    tls = ssl.create_default_context()
    tls.set_alpn_protocols(["http/1.1"])
    if ca_file is not None:
        try:
            tls.load_verify_locations(ca_file)
        except OSError as exc:  # an SSLError too
            is_read = isinstance(exc, ssl.SSLError)
            why = "it has no certificate in PEM" if is_read else exc.strerror
            raise SettingsError(f"{ca_file}: {why}") from exc
    return tls


async def connect(
    address: Address,
    tls: ssl.SSLContext | None,
    deadlines: Deadlines,
    proxy: Address | None = None,
) -> Connection:
    """Open a connection; to an https address by a proxy's tunnel, if one is given.

    tls: the system's trust by default.

    Raises:
        UpstreamError: nobody accepts it, or its certificate is not trusted.
        UpstreamTimeout: it took more than `connect_s`.
    """
    if tls is None and (address.is_tls or (proxy is not None and proxy.is_tls)):
        # Reads the system's certificates: about 10 ms that are not the server's.
        tls = await asyncio.to_thread(trust)
    where = f"{address.host}:{address.port}"
    if proxy is not None:
        where = f"the proxy {proxy.authority}"
    try:
        async with asyncio.timeout(deadlines.connect_s):
            if proxy is None:
                return await _connect_to_any(address, tls, deadlines.connect_s)
            connection = await _connect_to_any(proxy, tls, deadlines.connect_s)
            if address.is_tls:
                where = f"{address.host}:{address.port}"
                await _open_tunnel(connection, address, proxy, tls, deadlines)
            return connection
    except TimeoutError as exc:
        raise UpstreamTimeout(f"no connection to {where} within {deadlines.connect_s:g} s") from exc
    except ssl.SSLCertVerificationError as exc:
        raise UpstreamError(
            f"no secure connection to {where}: its certificate is not accepted:"
            f" {exc.verify_message}"
        ) from exc
    except ssl.SSLError as exc:
        why = exc.reason or "the server does not speak TLS"
        raise UpstreamError(f"no secure connection to {where}: {why}") from exc
    except (OSError, UnicodeError) as exc:  # UnicodeError: not a valid host name
        raise NoConnection(f"no connection to {where}: {_reason(exc)}") from exc


async def _connect_to_any(
    address: Address, tls: ssl.SSLContext | None, within_s: float
) -> Connection:
    """Connect to the first of the host's addresses that accepts; each gets a share of the time.

    One after the other: asyncio's own race of addresses (`happy_eyeballs_delay`) leaves
    tasks behind when it is cancelled, and can fail when two win at once (CPython 3.11).
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + within_s
    found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(where[0]) for *_, where in found))
    for left in range(len(addresses), 0, -1):
        try:
            async with asyncio.timeout((until - loop.time()) / left):
                _, connection = await loop.create_connection(
                    Connection,
                    addresses[-left],
                    address.port,
                    ssl=tls if address.is_tls else None,
                    server_hostname=address.host if address.is_tls else None,
                )
                return connection
        except ssl.SSLError:
            raise  # the next address is the same server
        except OSError:  # a TimeoutError too
            if left == 1:
                raise
    raise OSError("the name has no address")


async def _open_tunnel(
    connection: Connection,
    address: Address,
    proxy: Address,
    tls: ssl.SSLContext | None,
    deadlines: Deadlines,
) -> None:
    """Have a proxy connect us to a server, and speak TLS with that (RFC 9110 9.3.6)."""
    where = f"{_bracketed(address.host)}:{address.port}"
    fields = [("host", where)]
    if proxy.basic_key:
        fields.append(("proxy-authorization", f"Basic {proxy.basic_key}"))
    try:
        await connection.send(
            encode_message_head(f"CONNECT {where} HTTP/1.1".encode(), fields), deadlines
        )
        # An answer to CONNECT has no body if it agrees, and what else it has is not for us.
        parser = ResponseParser(Limits(), method="HEAD")
        while (head := parser.next_piece()) is None:
            if connection.arrived:
                parser.feed(connection.take()[1])
            elif connection.is_over:
                parser.end()
            else:
                await connection.changed(deadlines.connect_s, "the proxy did not answer")
        assert isinstance(head, ResponseHead)
        if not 200 <= head.status < 300:
            raise UpstreamError(
                f"the proxy {proxy.authority} opens no connection to {where}: status {head.status}"
            )
        assert tls is not None
        await connection.start_tls(tls, address.host)
    except BaseException:
        connection.close()
        raise


def _reason(exc: Exception) -> str:
    # asyncio replaces the system's message with "Connect call failed" and the address.
    code = exc.errno if isinstance(exc, OSError) else None
    return os.strerror(code) if code is not None and code > 0 else str(exc)


class Connection(asyncio.Protocol):
    """One connection. Bytes get their time when the loop reads them, not when they are used.

    With a StreamReader, an event's time would be late while its reader is busy with the last.
    """

    def __init__(self) -> None:
        self.arrived: deque[tuple[float, bytes]] = deque()
        self.is_over = False
        self.failure: Exception | None = None
        self._buffered = 0
        self._is_full = False
        self.is_sent = True
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[bool] | None = None
        self._wake_at = math.inf  # when nobody waits any longer
        self._alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._use(transport)

    def _use(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        # So that resume_writing is called when the last byte is gone. Not 0: asyncio's TLS
        # takes an empty buffer for a full one then, and says so until it is used again.
        transport.set_write_buffer_limits(high=1, low=0)

    @property
    def is_untouched(self) -> bool:
        """Whether the server has sent nothing since the last response, and not ended either."""
        return not (self.is_over or self.arrived or self._transport.is_closing())

    @property
    def has_unread(self) -> bool:
        """Whether there is something of the server's that the event loop has not read yet."""
        return has_unread(self._transport)

    def data_received(self, data: bytes) -> None:
        self.arrived.append((time.monotonic(), data))
        self._buffered += len(data)
        if self._buffered > READ_AHEAD_BYTES and not self._is_full:
            self._is_full = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        self.is_over = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_over = True
        self.failure = self.failure or exc
        self._wake()

    def pause_writing(self) -> None:
        self.is_sent = False

    def resume_writing(self) -> None:
        self.is_sent = True
        self._wake()

    def _wake(self, is_changed: bool = True) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(is_changed)

    async def changed(self, within_s: float, what: str) -> None:
        """Wait until something happens on the connection.

        Raises:
            UpstreamTimeout: nothing happened; its message begins with `what`.
        """
        # One timer, set again when it has run out, as in the server: one for each event took
        # a quarter of the CPU that passing an event on takes (30 against 44 µs).
        self._waiter = self._loop.create_future()
        self._wake_at = self._loop.time() + within_s
        if self._alarm is None or self._alarm.when() > self._wake_at:
            self._ring()
        try:
            if not await self._waiter:
                raise UpstreamTimeout(f"{what} within {within_s:g} s")
        finally:
            self._waiter = None
            self._wake_at = math.inf

    def _ring(self) -> None:
        self._silence()
        if self._loop.time() >= self._wake_at:
            self._wake(False)
        elif self._wake_at < math.inf:
            self._alarm = self._loop.call_at(self._wake_at, self._ring)

    def _silence(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    async def send(self, data: bytes, deadlines: Deadlines) -> float:
        """Write a request; return the time when the kernel had all of it.

        A server may refuse a request before reading it all: then this returns at once.
        """
        self._transport.write(data)
        left = len(data) + 1
        while not (self.is_sent or self.arrived or self.is_over):
            try:
                await self.changed(deadlines.idle_s, "the upstream did not take the request")
            except UpstreamTimeout:
                before, left = left, self._transport.get_write_buffer_size()
                if left >= before:
                    raise
        return time.monotonic()

    async def start_tls(self, tls: ssl.SSLContext, host: str) -> None:
        """Speak TLS from here on, with the server that the tunnel leads to."""
        loop = asyncio.get_running_loop()
        try:
            transport = await loop.start_tls(self._transport, self, tls, server_hostname=host)
        except TypeError as exc:
            # CPython 3.12 and before raise this in place of a failed handshake inside TLS.
            if isinstance(exc.__context__, OSError):
                raise exc.__context__ from None
            raise
        assert transport is not None
        self._use(transport)

    def take(self) -> tuple[float, bytes]:
        """Return the first bytes that were received and not taken yet."""
        at, data = self.arrived.popleft()
        self._buffered -= len(data)
        if self._is_full and self._buffered <= READ_AHEAD_BYTES // 2:
            self._is_full = False
            self._transport.resume_reading()
        return at, data

    def close(self) -> None:
        """Abort the connection, even with data left to write or read."""
        self._silence()
        self._transport.abort()


class Pool:
    """Connections that are kept for the next request to the same server.

    tls: the system's trust by default. proxies: none by default.
    """

    def __init__(
        self,
        deadlines: Deadlines,
        tls: ssl.SSLContext | None = None,
        proxies: Proxies = NO_PROXIES,
    ) -> None:
        self._deadlines = deadlines
        self._tls = tls
        self._proxies = proxies
        self._idle: dict[tuple[str, int, bool], list[Connection]] = {}
        self._timers: dict[Connection, asyncio.TimerHandle] = {}

    def proxy_for(self, address: Address) -> Address | None:
        """Return the proxy for an address; see `Proxies.proxy_for`."""
        return self._proxies.proxy_for(address)

    async def open(self, address: Address) -> Connection:
        """Open a connection; see `connect`."""
        if address.is_tls and self._tls is None:
            self._tls = await asyncio.to_thread(trust)
        return await connect(address, self._tls, self._deadlines, self.proxy_for(address))

    def take(self, address: Address) -> Connection | None:
        """Return a kept connection on which nothing has happened since; None if there is none."""
        kept = self._idle.get(_key(address))
        while kept:
            connection = kept.pop()
            self._timers.pop(connection).cancel()
            if connection.is_untouched and not connection.has_unread:
                return connection
            connection.close()
        return None

    def keep(self, address: Address, connection: Connection, keep_alive: str = "") -> None:
        """Keep a connection whose response was whole, for `IDLE_S`.

        keep_alive: that field of the response. A shorter time in it counts, less a second: a
            request must not meet the server's close on its way.
        """
        named = _KEEP_ALIVE_S.search(keep_alive)
        idle_s = min(IDLE_S, int(named[1]) - 1) if named else IDLE_S
        if idle_s <= 0 or len(self._timers) >= MAX_IDLE or not connection.is_untouched:
            connection.close()
            return
        self._idle.setdefault(_key(address), []).append(connection)
        loop = asyncio.get_running_loop()
        self._timers[connection] = loop.call_later(idle_s, self._drop, _key(address), connection)

    def close(self) -> None:
        """Close the connections that are kept."""
        for connection, timer in self._timers.items():
            timer.cancel()
            connection.close()
        self._timers.clear()
        self._idle.clear()

    def _drop(self, key: tuple[str, int, bool], connection: Connection) -> None:
        del self._timers[connection]
        self._idle[key].remove(connection)
        if not self._idle[key]:
            del self._idle[key]
        connection.close()


def _key(address: Address) -> tuple[str, int, bool]:
    return address.host, address.port, address.is_tls
