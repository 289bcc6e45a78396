"""What the kernel knows of a connection before asyncio's event loop has read it."""

from __future__ import annotations

import asyncio
import select


def has_unread(transport: asyncio.BaseTransport) -> bool:
    """Return whether bytes or an end have arrived that the event loop has not read yet."""
    descriptor = transport.get_extra_info("socket").fileno()
    if not hasattr(select, "poll"):  # Windows, where `select` takes descriptors of any number
        return bool(select.select([descriptor], [], [], 0)[0])
    return _is(descriptor, select.POLLIN)


def has_hung_up(transport: asyncio.BaseTransport) -> bool:
    """Return whether the other side has ended, even behind bytes that nobody reads.

    False where the system can't tell, which is everywhere but on Linux.
    """
    descriptor = transport.get_extra_info("socket").fileno()
    return hasattr(select, "POLLRDHUP") and _is(descriptor, select.POLLRDHUP)


def _is(descriptor: int, event: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, event)
    return bool(poll.poll(0))  # errors too
