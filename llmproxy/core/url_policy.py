"""Images and files that a client names by URL: which of them may be handed on.

We open none of them. But whoever does may stand where we stand (a model server on this
machine, a provider's own network), and what the client can't reach must not be read for it.

Spec: https://url.spec.whatwg.org/#host-parsing
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from itertools import chain, repeat
from typing import Literal
from urllib.parse import urlsplit

import llm

from . import chat
from .attachments import find_attachments
from .errors import Unsupported

RemoteImages = Literal["pass", "refuse"]
"""Whether URLs are handed on at all."""

# Names that no public DNS gives away: RFC 6761, 6762 and ICANN's .internal.
RESERVED_ENDINGS = (".localhost", ".local", ".internal")
# And RFC 8375's, and those that routers and companies make up.
LOCAL_ENDINGS = (
    *RESERVED_ENDINGS,
    ".home.arpa", ".localdomain", ".lan", ".home", ".corp", ".intranet", ".private",
)  # fmt: skip

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
# A last label that is a number makes the whole an IPv4 address to browsers and to
# inet_aton: 127.1, 0x7f.1, 2130706433.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_GIVEN_OUT = ipaddress.IPv6Network("2000::/3")  # mapped, local and multicast ones are not in it
_TUNNELS = (  # Teredo and 6to4: IPv6 addresses that lead to an IPv4 one inside
    ipaddress.IPv6Network("2001::/32"),
    ipaddress.IPv6Network("2002::/16"),
)


def located(request: chat.ChatRequest) -> Iterator[tuple[llm.Attachment, str]]:
    """Yield a request's attachments, each with the path of the field that it came from."""
    paths = chain(request.attachment_paths, repeat("messages"))
    attachments = chain.from_iterable(map(find_attachments, request.messages))
    return zip(attachments, paths, strict=False)


def check(request: chat.ChatRequest, remote_images: RemoteImages) -> None:
    """Let a request pass if every URL of its attachments may be handed on.

    Raises:
        Unsupported: one may not; its field is named.
    """
    for attachment, path in located(request):
        if attachment.url is None:
            continue
        if remote_images == "refuse":
            raise Unsupported("URLs are not taken here: send base64 data", param=path)
        reason = why_not_public(attachment.url)
        if reason is not None:
            raise Unsupported(f"a URL that is not passed on: {reason}", param=path)


def why_not_public(url: str) -> str | None:
    """Say why a URL is not one of a public place; None where nothing speaks against it.

    Addresses of this machine and of networks behind it, names that only those know, and
    every spelling that one program reads otherwise than another (numbers for addresses,
    backslashes, user names, percent signs in a host) are refused. No name is looked up:
    one that its DNS turns into 127.0.0.1 passes, and a redirect to there is not seen.
    """
    if re.search(r"[\x00-\x20\x7f\\]", url):
        return "it has spaces, control characters or backslashes"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return "its host or port can't be read"
    if not re.match("https?://", url, re.IGNORECASE):
        return "it is not http:// or https://"
    if not parts.netloc.isascii():  # that can be read as many a name, and as 127.0.0.1 too
        return "its host is not ASCII (xn--…)"
    if "@" in parts.netloc:
        return "it has a user name"
    if parts.netloc.startswith("["):
        return _why_not_public_v6(host)
    return _why_not_public_name(host)


def _why_not_public_name(host: str) -> str | None:
    if not _NAME.fullmatch(host):
        return "its host is no name"
    host = host.removesuffix(".")
    if _NUMBER.fullmatch(host.rpartition(".")[2]):
        try:
            address = ipaddress.IPv4Address(host)  # four decimal numbers, and nothing else
        except ValueError:
            return "its host is a number, but no plain address"
        is_public = address.is_global and not address.is_multicast and not address.is_reserved
        return None if is_public else "its host is not a public address"
    if "." not in host or f".{host}".endswith(LOCAL_ENDINGS):
        return "its host is a local name"
    return None


def _why_not_public_v6(host: str) -> str | None:
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return "its host is no address"
    is_public = (
        address in _GIVEN_OUT
        and address.is_global
        and address.scope_id is None
        and not any(address in tunnel for tunnel in _TUNNELS)
    )
    return None if is_public else "its host is not a public address"
