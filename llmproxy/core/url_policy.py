"""The policy for attachments that a client names by URL: only public addresses are passed on.

We never open them. But the model that does may run on this machine or in a provider's own
network, and must not read for the client what the client itself can't reach.

Spec: https://url.spec.whatwg.org/#host-parsing
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from typing import Literal
from urllib.parse import urlsplit

import llm
from llm.parts import Message

from . import chat
from .attachments import find_attachments
from .errors import Unsupported
from .message_facts import total

RemoteImages = Literal["pass", "refuse"]
"""Whether URLs are passed on at all."""

# Names that are never in public DNS (RFC 6761, 6762, 8375, ICANN's .internal), and endings that
# routers and companies use.
LOCAL_ENDINGS = (
    ".localhost", ".local", ".internal",
    ".home.arpa", ".localdomain", ".lan", ".home", ".corp", ".intranet", ".private",
)  # fmt: skip

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
# A last label that is a number makes the whole an IPv4 address to browsers and to
# inet_aton: 127.1, 0x7f.1, 2130706433.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_ASSIGNED = ipaddress.IPv6Network("2000::/3")  # mapped, local and multicast ones are not in it
_TUNNELS = (  # Teredo and 6to4: IPv6 addresses that lead to an IPv4 one inside
    ipaddress.IPv6Network("2001::/32"),
    ipaddress.IPv6Network("2002::/16"),
)


def locate_attachments(request: chat.ChatRequest) -> Iterator[tuple[llm.Attachment, str]]:
    """Yield a request's attachments, each with the path of the field that it came from."""
    if not total(request.messages, "attachments", _count_attachments):
        return iter(())
    paths = chain(request.attachment_paths, repeat("messages"))
    attachments = chain.from_iterable(map(find_attachments, request.messages))
    return zip(attachments, paths, strict=False)


def _count_attachments(messages: Sequence[Message]) -> int:
    return sum(len(find_attachments(message)) for message in messages)


def check(request: chat.ChatRequest, remote_images: RemoteImages) -> None:
    """Check that every URL of a request's attachments may be passed on.

    Raises:
        Unsupported: one may not, at its `param`.
    """
    for attachment, path in locate_attachments(request):
        if attachment.url is None:
            continue
        if remote_images == "refuse":
            raise Unsupported("URLs are not accepted here: send base64 data", param=path)
        reason = why_not_public(attachment.url)
        if reason is not None:
            raise Unsupported(f"URL refused: {reason}", param=path)


def why_not_public(url: str) -> str | None:
    """Return the reason why a URL is not public, or None.

    Refused are addresses of this machine and its networks, local names, and any spelling that
    programs read differently (numbers for addresses, backslashes, user names, percent signs
    in a host). No name is looked up: one that resolves to 127.0.0.1 passes, and so does a
    redirect to it.
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
    if not parts.netloc.isascii():  # can be read as several names, even as 127.0.0.1
        return "its host is not ASCII (xn--…)"
    if "@" in parts.netloc:
        return "it has a user name"
    if parts.netloc.startswith("["):
        return _why_not_public_v6(host)
    return _why_not_public_name(host)


def is_local(host: str) -> bool:
    """Return whether a host is on this machine or a private network, by its address or name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        host = host.lower().removesuffix(".")
        is_number = _NUMBER.fullmatch(host.rpartition(".")[2]) is not None
        is_local_name = "." not in host or f".{host}".endswith(LOCAL_ENDINGS)
        return is_local_name and not is_number
    mapped = getattr(address, "ipv4_mapped", None)
    return not (mapped or address).is_global


def _why_not_public_name(host: str) -> str | None:
    if not _NAME.fullmatch(host):
        return "its host is not a valid name"
    host = host.removesuffix(".")
    if _NUMBER.fullmatch(host.rpartition(".")[2]):
        try:
            address = ipaddress.IPv4Address(host)  # four decimal numbers, and nothing else
        except ValueError:
            return "its host is a number, but not a plain address"
        is_public = address.is_global and not address.is_multicast and not address.is_reserved
        return None if is_public else "its host is not a public address"
    if "." not in host or f".{host}".endswith(LOCAL_ENDINGS):
        return "its host is a local name"
    return None


def _why_not_public_v6(host: str) -> str | None:
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return "its host is not a valid address"
    is_public = (
        address in _ASSIGNED
        and address.is_global
        and address.scope_id is None
        and not any(address in tunnel for tunnel in _TUNNELS)
    )
    return None if is_public else "its host is not a public address"
