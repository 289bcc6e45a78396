"""Routes for people, monitors and tests: the dashboard, health, metrics, and the replay's start."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..backends.replay import MAX_LISTED, Replay
from ..core import payload
from ..core.errors import NotFound, Unavailable, Unsupported
from ..recorder.database import StoreError
from ..recorder.writer import Health
from ..report.html.markup import FORM_POLICY
from ..transport.http11 import Request, Response
from ..version import __version__
from .dashboard import Dashboard
from .metrics import METRICS_TYPE, Metrics, Single
from .routes import method_not_allowed

logger = logging.getLogger(__name__)

REWIND = "/replay/rewind"
UNUSED = "/replay/unused"
TEXTS = ("/healthz", "/health", "/metrics", "/api/hello", UNUSED)
PAGES = ("/", "/exchanges/{id}", "/conversations", "/conversations/{id}", "/figures")
_LOG_PAGE = re.compile("|".join(page.replace("{id}", ".+") for page in PAGES), re.DOTALL)


def is_page(path: str) -> bool:
    """Return whether a person may open a path in a browser."""
    return path in TEXTS or _LOG_PAGE.fullmatch(path) is not None


def is_status_path(path: str) -> bool:
    """Return whether a path belongs to the StatusPages, and to no dialect."""
    return path == REWIND or is_page(path)


_HTML_HEADERS = [
    ("content-type", "text/html; charset=utf-8"),
    ("cache-control", "no-store"),
    ("vary", "accept"),
    # Whatever text was logged, the page loads and runs nothing, and can't be framed.
    ("content-security-policy", f"{FORM_POLICY}; frame-ancestors 'none'"),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
]


@dataclass(frozen=True)
class State:
    """The server's state: running responses, waiting requests, open connections, the log.

    log: None if nothing is logged.
    """

    running: int
    waiting: int
    connections: int
    log: Health | None


class StatusPages:
    """The handler of the status paths, which belong to no dialect.

    dashboard: renders the pages for browsers; if None, they get a line of text.
    state: returns the server's current state. replay: None if nothing is replayed.
    """

    def __init__(
        self,
        dashboard: Dashboard | None,
        metrics: Metrics,
        state: Callable[[], State],
        replay: Replay | None = None,
    ) -> None:
        self._dashboard = dashboard
        self._metrics = metrics
        self._state = state
        self._replay = replay

    async def respond(self, path: str, request: Request) -> Response:
        """Respond to a request for one of the status paths.

        Raises:
            MethodNotAllowed: neither GET nor HEAD, or not POST where something is changed.
            NotFound: it is about a replay, and nothing is replayed; or nothing is logged.
            Unavailable: the log can't be read. Unsupported: it is too large.
        """
        if path == REWIND:
            return self._start_replay_again(request)
        if request.method not in ("GET", "HEAD"):
            raise method_not_allowed(request, {"GET", "HEAD"})
        if path in ("/healthz", "/health"):
            body = payload.encode(_health(self._state()))
            return Response(200, [("content-type", "application/json"), _FRESH], body)
        if path == UNUSED:
            return await self._unused()
        if path == "/metrics":
            text = self._metrics.render(_singles(self._state()))
            return Response(200, [("content-type", METRICS_TYPE), _FRESH], text.encode())
        if path not in ("/", *TEXTS) and self._dashboard is None:
            raise NotFound("this server keeps no log")
        accepts_html = "text/html" in request.headers.get("accept", "").lower()
        if self._dashboard and path not in TEXTS and (accepts_html or path != "/"):
            return await self._html(self._dashboard, path, request)
        headers = [("content-type", "text/plain; charset=utf-8"), ("vary", "accept, user-agent")]
        is_ollamas = path == "/" and request.headers.get("user-agent", "").startswith("ollama")
        return Response(200, headers, (_OLLAMA if is_ollamas else _LINES[path]).encode())

    def _start_replay_again(self, request: Request) -> Response:
        if request.method != "POST":
            raise method_not_allowed(request, {"POST"})
        body = payload.encode({"rewound": self._replayed().rewind()})
        return Response(200, [("content-type", "application/json"), _FRESH], body)

    async def _unused(self) -> Response:
        replay = self._replayed()
        try:
            count = await asyncio.to_thread(replay.count)
            if count > MAX_LISTED:
                raise Unsupported(f"of {count:,} recordings the unused ones are not listed")
            unused = [asdict(one) for one in await asyncio.to_thread(replay.unused)]
        except StoreError as exc:
            raise Unavailable("the log can't be read") from exc
        body = payload.encode({"recordings": count, "unused": unused})
        return Response(200, [("content-type", "application/json"), _FRESH], body)

    def _replayed(self) -> Replay:
        if self._replay is None:
            raise NotFound("this server replays nothing; it does with --replay")
        return self._replay

    async def _html(self, dashboard: Dashboard, path: str, request: Request) -> Response:
        try:
            # A web server or an application may have the pages below a path that is not known
            # here, so that they link to each other by relative addresses.
            root = "../" * (request.path.count("/") - 1) or "./"
            # A web server in front, which has TLS, says so.
            is_secure = request.headers.get("x-forwarded-proto", "").lower() == "https"
            scheme = "https" if is_secure else request.scheme
            address = f"{scheme}://{request.host}{request.mount}"
            status, page = await dashboard.page(path, request.query, address, root)
        except RuntimeError as exc:
            logger.warning("could not render the dashboard: %s", exc)
            raise Unavailable("the log can't be read") from exc
        return Response(status, _HTML_HEADERS, page)


_FRESH = ("cache-control", "no-store")

# Its clients compare the whole text; others that look for an Ollama server look for the words.
_OLLAMA = "Ollama is running"
_LINES: Mapping[str, str] = {
    "/": f"llmproxy {__version__} is running. Point a client at this address; OpenAI's with /v1."
    f" For those of Ollama: {_OLLAMA}.\n",
    "/api/hello": "ok\n",  # Claude Code checks that the server is up
}


def _health(state: State) -> dict[str, Any]:
    log = state.log
    return {
        "status": "ok",
        "version": __version__,
        "running": state.running,
        "waiting": state.waiting,
        "log": "off" if log is None else "ok" if log.is_writable else "failing",
        "log_queue": log.queued if log else 0,
        "log_lost": log.lost if log else 0,
    }


def _singles(state: State) -> list[Single]:
    singles = [
        Single("running", "responses being generated", state.running),
        Single("waiting", "requests waiting in the queue", state.waiting),
        Single("connections", "open client connections", state.connections),
    ]
    if state.log is not None:
        singles += [
            Single("log_writable", "1 if the log can be written", state.log.is_writable),
            Single("log_queue", "exchanges not written to the log yet", state.log.queued),
            Single("log_spool_bytes", "size of the spool", state.log.spooled_bytes),
            Single(
                "log_lost_total",
                "exchanges lost while the log could not be written",
                state.log.lost,
                "counter",
            ),
        ]
    return singles
