"""The pages about the log, for browsers: made in threads, and kept for a moment."""

from __future__ import annotations

import asyncio
import secrets
import time
from functools import partial
from html import escape
from pathlib import Path

from ..core.byte_cache import ByteCache
from ..core.threads import in_daemon_thread

MIN_AGE_S = 2.0  # of a page, before it is made anew
MAX_PAGES_BYTES = 4 * 2**20  # of all that are kept
MAX_AT_ONCE = 2  # threads that make pages: each takes a share of the interpreter

ENTRY_BYTES = 1_000  # of what is kept besides a page's text

_Page = tuple[int, bytes]
"""The status and the HTML of a page."""

# Stands for the server's address until a page is sent: each client may know it by another name.
_ADDRESS = f"http://{secrets.token_hex(16)}"


class Dashboard:
    """A renderer of the pages, with a cache. The log need not exist yet."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._made: ByteCache[tuple[str, str], tuple[_Page | RuntimeError, float]] = ByteCache(
            MAX_PAGES_BYTES
        )
        self._being_made: dict[tuple[str, str], asyncio.Task[_Page]] = {}
        self._turns = asyncio.Semaphore(MAX_AT_ONCE)

    async def page(self, path: str, query: str, base_url: str) -> tuple[int, bytes]:
        """Return the status and the HTML of a page, which was made in a thread.

        All viewers of an address get the same page while it is made, and for `MIN_AGE_S` after
        that.

        base_url: this proxy's address, shown while nothing is recorded yet.

        Raises:
            RuntimeError: the log can't be read.
        """
        key = path, query
        kept = self._made.get(key)
        if kept is not None and time.monotonic() - kept[1] < MIN_AGE_S:
            if isinstance(kept[0], RuntimeError):
                raise kept[0]
            status, html = kept[0]
        else:
            task = self._being_made.get(key)
            if task is None:
                task = asyncio.create_task(self._make(key))
                self._being_made[key] = task
                task.add_done_callback(partial(self._ended, key))
            status, html = await asyncio.shield(task)
        return status, html.replace(_ADDRESS.encode(), escape(base_url).encode())

    def _ended(self, key: tuple[str, str], task: asyncio.Task[_Page]) -> None:
        del self._being_made[key]
        if not task.cancelled():
            task.exception()  # all who waited may have gone

    async def _make(self, key: tuple[str, str]) -> _Page:
        try:
            async with self._turns:
                page = await in_daemon_thread(partial(self._render, *key), "llmproxy-dashboard")
        except RuntimeError as exc:
            self._made.put(key, (exc, time.monotonic()), ENTRY_BYTES)
            raise
        size = len(page[1]) + len(key[0]) + len(key[1]) + ENTRY_BYTES
        self._made.put(key, (page, time.monotonic()), size)
        return page

    def _render(self, path: str, query: str) -> _Page:
        # Few servers are asked for a page, and each would start with 60 ms of CPU more.
        from .log_page import log_page

        status, html = log_page(self._database, path, query, _ADDRESS)
        return status, html.encode()
