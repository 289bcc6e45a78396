"""The dashboard: a page about the latest logged exchanges, which reloads itself."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from functools import partial
from html import escape
from pathlib import Path

from ..core.threads import in_daemon_thread

MIN_AGE_S = 5.0  # of a page, before another one is rendered


# Stands for the server's address until a page is sent: each client may know it by another name.
_ADDRESS = f"http://{secrets.token_hex(16)}"


class Dashboard:
    """A renderer of the page, with a cache. The log need not exist yet."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._pages: dict[bool, asyncio.Future[str]] = {}  # by whether it reloads itself
        self._ended_at: dict[bool, float] = {}

    async def page(self, base_url: str, refreshes: bool) -> str:
        """Return the page as HTML; a large log takes some tenths of a second, in a thread.

        All viewers get the same page while it is rendered, and for `MIN_AGE_S` after that.

        base_url: this proxy's address, shown while nothing is recorded yet.
        refreshes: whether the page reloads itself.

        Raises:
            RuntimeError: the log can't be read.
        """
        page = self._pages.get(refreshes)
        if page is None or (page.done() and self._age(refreshes) >= MIN_AGE_S):
            page = in_daemon_thread(partial(self._render, refreshes), "llmproxy-dashboard")
            page.add_done_callback(lambda _: self._ended_at.update({refreshes: time.monotonic()}))
            self._pages[refreshes] = page
        return (await asyncio.shield(page)).replace(_ADDRESS, escape(base_url))

    def _age(self, refreshes: bool) -> float:
        return time.monotonic() - self._ended_at.get(refreshes, -math.inf)

    def _render(self, refreshes: bool) -> str:
        # Few servers are asked for a page, and each would start with 60 ms of CPU more.
        from .log_page import log_page

        return log_page(self._database, _ADDRESS, refreshes=refreshes)
