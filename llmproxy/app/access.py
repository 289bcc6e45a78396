"""Access rules: hosts, origins and API keys, checked before a request is handled.

Every web page in the user's browser can reach a server on a loopback port: by DNS
rebinding (a foreign Host) and by plain cross-site requests (a foreign Origin, or none and a
Sec-Fetch-Site). The server spends the user's API keys, so all of them are refused.

Spec: https://fetch.spec.whatwg.org/#http-cors-protocol, https://www.w3.org/TR/fetch-metadata/
"""

from __future__ import annotations

import base64
import hmac
import ipaddress
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache

from ..core.errors import Forbidden, Unauthorized
from ..transport.http11 import Request
from .status import is_page

# As containers call the machine that they run on; they don't resolve on the network.
CONTAINER_HOSTS = ("host.docker.internal", "host.containers.internal")
MAX_ADDRESS_CHARS = 100  # an IPv6 address has 39, and perhaps a zone
OPEN_PATHS = ("/healthz", "/health", "/api/hello")  # for monitors without a key


def is_loopback(host: str) -> bool:
    """Return whether a name or address, with or without brackets, is a loopback one."""
    host = host.strip("[]").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    return len(host) <= MAX_ADDRESS_CHARS and _is_loopback_address(host)


@lru_cache(16)  # each request has the same one, and reading it takes 12 µs
def _is_loopback_address(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Access:
    """The access rules of a server.

    is_local: listens on loopback only; the Host is checked then.
    hosts, origins: allowed besides the server's own; "*" allows any.
    keys: a request must send one of them; if empty, none is needed.
    authorize: called with the head of a request that has a key, if one is needed; what is
        not True refuses it, so that a coroutine or a mistake lets nobody in.
    """

    is_local: bool = True
    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()
    keys: Sequence[str] = field(default=(), repr=False)
    authorize: Callable[[Request], bool] | None = None

    def check_source(self, request: Request) -> None:
        """Reject a foreign Host or Origin, and what a page of another site makes a browser send.

        Such a page may open the page of the log, as a link does.

        Raises:
            Forbidden: neither the server's own nor an allowed one.
        """
        host = _without_port(request.host)
        if self.is_local and not self._is_our_host(host):
            raise Forbidden(
                f"the host {host[:80]!r} is not this server's; to allow it, set --allow-host, "
                "LLMPROXY_ALLOW_HOST or Settings(hosts=…)"
            )
        origin = request.headers.get("origin")
        if origin is not None and not self._is_our_origin(origin, request.host):
            raise Forbidden(
                f"pages of {origin[:80]!r} may not use this server; to allow them, set "
                "--allow-origin, LLMPROXY_ALLOW_ORIGIN or Settings(origins=…)"
            )
        is_from_other_site = request.headers.get("sec-fetch-site", "").lower() == "cross-site"
        may_be = origin is not None or "*" in self.origins or _opens_page(request)
        if is_from_other_site and not may_be:
            raise Forbidden("pages of another site may not use this server")

    def check_key(self, request: Request) -> None:
        """Reject a request without a valid key; a CORS preflight can't send one.

        Raises:
            Unauthorized: no key, or only wrong ones.
            Forbidden: `authorize` refuses it.
        """
        if request.path in OPEN_PATHS or _is_preflight(request):
            return
        if self.keys and not self._has_key(request):
            raise Unauthorized(
                "a valid API key is needed, as a bearer token in authorization or in x-api-key",
                headers={"www-authenticate": 'Basic realm="llmproxy", charset="UTF-8"'},
            )
        if self.authorize is not None and self.authorize(request) is not True:
            raise Forbidden("this request is not authorized")

    def cors_headers(self, request: Request) -> list[tuple[str, str]]:
        """Return the headers that let a page read the response; call `check_source` first."""
        origin = request.headers.get("origin")
        if origin is None:
            return []
        headers = [("access-control-allow-origin", origin), ("vary", "origin")]
        if _is_preflight(request):
            requested = request.headers.get("access-control-request-headers")
            headers += [
                ("access-control-allow-methods", "GET, POST, HEAD, OPTIONS"),
                ("access-control-max-age", "600"),
            ]
            if requested:
                headers.append(("access-control-allow-headers", requested))
            # Browsers send this before a public page may reach a private network.
            if request.headers.get("access-control-request-private-network") == "true":
                headers.append(("access-control-allow-private-network", "true"))
        else:
            headers.append(("access-control-expose-headers", "*"))
        return headers

    def _is_our_host(self, host: str) -> bool:
        # HTTP/1.0 may omit the Host; no browser uses that version.
        return (
            not host
            or is_loopback(host)
            or host in CONTAINER_HOSTS
            or _is_own_name(host)
            or _is_listed(host, self.hosts)
        )

    def _is_our_origin(self, origin: str, host: str) -> bool:
        own = (f"http://{host}", f"https://{host}")
        return origin.lower() in own or _is_listed(origin.lower(), self.origins)

    def _has_key(self, request: Request) -> bool:
        # All are compared, in constant time: timing must not reveal a near match.
        return any(
            [
                hmac.compare_digest(sent, key.encode())
                for sent in _sent_keys(request)
                for key in self.keys
            ]
        )


def _is_listed(name: str, allowed: Sequence[str]) -> bool:
    return "*" in allowed or name in [entry.lower().rstrip("/") for entry in allowed]


def _is_own_name(host: str) -> bool:
    """Return whether it is this machine's own name in the local network (mDNS)."""
    name = platform.node().partition(".")[0].lower()
    return name not in ("", "localhost") and host == f"{name}.local"


def _opens_page(request: Request) -> bool:
    """Return whether a browser is to show a page of ours, as when a link is followed."""
    is_navigation = request.headers.get("sec-fetch-mode", "").lower() == "navigate"
    return is_navigation and request.method == "GET" and is_page(request.path)


def _is_preflight(request: Request) -> bool:
    return request.method == "OPTIONS"


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


def _sent_keys(request: Request) -> Iterator[bytes]:
    """Yield what OpenAI's, Azure's and Anthropic's clients send as a key, and browsers (Basic).

    Clients send several: Claude Code its own login beside the key for this server. One that
    fits is enough.
    """
    # Header values are bytes decoded as latin-1; keys are compared as UTF-8 bytes.
    for value in request.headers.get_all("authorization"):
        scheme, _, credentials = value.partition(" ")
        if scheme.lower() == "bearer":
            yield credentials.strip().encode("latin-1")
        elif scheme.lower() == "basic":
            with suppress(ValueError):
                yield base64.b64decode(credentials).partition(b":")[2]
    for name in ("x-api-key", "api-key"):
        for value in request.headers.get_all(name):
            yield value.encode("latin-1")
