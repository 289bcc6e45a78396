"""Ask the kernel about a connection before asyncio's event loop has read it."""

from __future__ import annotations

import asyncio
import select


def has_unread(transport: asyncio.BaseTransport) -> bool:
    """Return whether bytes or an end have arrived that the event loop has not read yet.

    True also if the socket is gone: TLS inside TLS learns of its end a turn of the loop later.
    """
    sock = transport.get_extra_info("socket")
    if sock is None or (descriptor := sock.fileno()) < 0:
        return True
    if not hasattr(select, "poll"):  # Windows, where `select` takes descriptors of any number
        return bool(select.select([descriptor], [], [], 0)[0])
    return _has_event(descriptor, select.POLLIN)


def has_hung_up(transport: asyncio.BaseTransport) -> bool:
    """Return whether the other side has closed its end, even if earlier bytes are unread.

    False where there is no POLLRDHUP, such as on macOS and Windows.
    """
    descriptor = transport.get_extra_info("socket").fileno()
    return hasattr(select, "POLLRDHUP") and _has_event(descriptor, select.POLLRDHUP)


def _has_event(descriptor: int, event: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, event)
    return bool(poll.poll(0))  # true for errors too
