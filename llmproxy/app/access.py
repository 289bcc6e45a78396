"""Who may come in: hosts, origins and keys, looked at before anything is done.

A server on a loopback port is in reach of every web page in its owner's browser: by
a name that its own DNS turns to 127.0.0.1 (the Host is foreign then), and by plain
cross-site requests (the Origin is). It spends its owner's keys, so both are refused.

Spec: https://fetch.spec.whatwg.org/#http-cors-protocol
"""

from __future__ import annotations

import base64
import hmac
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..core.errors import Forbidden, Unauthorized
from ..core.url_policy import RESERVED_ENDINGS
from ..transport.http11 import Request

__all__ = ["Access", "is_loopback"]

OPEN_PATHS = ("/healthz", "/health", "/api/hello")  # for monitors, which have no key


def is_loopback(host: str) -> bool:
    """Whether a name or address, with or without brackets, means this machine alone."""
    host = host.strip("[]").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Access:
    """The rules of one server.

    is_local: bound to loopback alone, where the Host is checked.
    hosts, origins: allowed besides the server's own; "*" allows any.
    keys: one of them must be sent, where there are any.
    """

    is_local: bool = True
    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()
    keys: Sequence[str] = field(default=(), repr=False)

    def check_source(self, request: Request) -> None:
        """Let a request pass by where it comes from, or raise.

        Raises:
            Forbidden: a Host or an Origin that is not ours.
        """
        host = _without_port(request.host)
        if self.is_local and not self._is_our_host(host):
            raise Forbidden(
                f"the host {host[:80]!r} is not this server's; allow it by --allow-host"
            )
        origin = request.headers.get("origin")
        if origin is not None and not self._is_our_origin(origin, request.host):
            raise Forbidden(
                f"pages of {origin[:80]!r} may not use this server; allow it by --allow-origin"
            )

    def check_key(self, request: Request) -> None:
        """Let a request pass by its key, or raise; a preflight can't carry one.

        Raises:
            Unauthorized: no key, or a wrong one.
        """
        needs_key = self.keys and request.path not in OPEN_PATHS and not _is_preflight(request)
        if needs_key and not self._has_key(request):
            raise Unauthorized(
                "a key is needed: authorization: Bearer <key>, or x-api-key",
                headers={"www-authenticate": 'Basic realm="llmproxy", charset="UTF-8"'},
            )

    def cors_headers(self, request: Request) -> list[tuple[str, str]]:
        """The fields that let a page read the answer, once `check_source` has let it pass."""
        origin = request.headers.get("origin")
        if origin is None:
            return []
        headers = [("access-control-allow-origin", origin), ("vary", "origin")]
        if _is_preflight(request):
            asked = request.headers.get("access-control-request-headers")
            headers += [
                ("access-control-allow-methods", "GET, POST, HEAD, OPTIONS"),
                ("access-control-max-age", "600"),
            ]
            if asked:
                headers.append(("access-control-allow-headers", asked))
            # Browsers ask so before a page of the internet reaches into a private network.
            if request.headers.get("access-control-request-private-network") == "true":
                headers.append(("access-control-allow-private-network", "true"))
        else:
            headers.append(("access-control-expose-headers", "*"))
        return headers

    def _is_our_host(self, host: str) -> bool:
        # HTTP/1.0 may leave it out; no browser speaks that.
        return (
            not host
            or is_loopback(host)
            or host.endswith(RESERVED_ENDINGS)
            or _is_listed(host, self.hosts)
        )

    def _is_our_origin(self, origin: str, host: str) -> bool:
        own = (f"http://{host}", f"https://{host}")
        return origin.lower() in own or _is_listed(origin.lower(), self.origins)

    def _has_key(self, request: Request) -> bool:
        sent = _sent_key(request)
        if not sent:
            return False
        # Each is compared in full, so that time tells nothing of which one nearly fits.
        return any([hmac.compare_digest(sent, key.encode()) for key in self.keys])


def _is_listed(word: str, allowed: Sequence[str]) -> bool:
    return "*" in allowed or word in [entry.lower().rstrip("/") for entry in allowed]


def _is_preflight(request: Request) -> bool:
    return request.method == "OPTIONS"


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


def _sent_key(request: Request) -> bytes:
    """The key that a client sends: as OpenAI's, Anthropic's and a browser's user would."""
    # Fields are latin-1 text of whatever bytes there were: those of the key in UTF-8.
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip().encode("latin-1")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(credentials).partition(b":")[2]
        except ValueError:
            return b""
    return request.headers.get("x-api-key", "").encode("latin-1")
