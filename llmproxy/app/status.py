"""What is there for people and monitors, beside the wires: a page, health, metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..core import payload
from ..core.errors import Unavailable
from ..core.threads import in_daemon_thread
from ..recorder.writer import Health
from ..report.html.page import POLICY
from ..transport.http11 import Request, Response
from ..version import __version__
from .dashboard import Dashboard
from .metrics import METRICS_TYPE, Gauge, Metrics
from .routes import method_not_allowed

logger = logging.getLogger(__name__)

PATHS = ("/", "/healthz", "/health", "/metrics", "/api/hello")

STILL = "still"
"""The query of a page that does not load itself again."""

_HTML_HEADERS = [
    ("content-type", "text/html; charset=utf-8"),
    ("cache-control", "no-store"),
    ("vary", "accept"),
    # Whatever a client or a model has said, the page loads and runs nothing, and is in no frame.
    ("content-security-policy", f"{POLICY}; frame-ancestors 'none'"),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
]


@dataclass(frozen=True)
class State:
    """How the server is: answers that run, requests that wait for a turn, connections, the log.

    log: None where nothing is kept.
    """

    running: int
    waiting: int
    connections: int
    log: Health | None


class StatusPages:
    """Answers what is no request of a wire.

    page: makes the page that a browser is shown, given the address of this server and
        whether it loads itself again; it blocks. Without it there is a line of text.
    """

    def __init__(
        self,
        dashboard: Dashboard | None,
        metrics: Metrics,
        state: Callable[[], State],
    ) -> None:
        self._dashboard = dashboard
        self._metrics = metrics
        self._state = state

    async def respond(self, path: str, request: Request) -> Response:
        """Answer a request for one of PATHS.

        Raises:
            MethodNotAllowed: it is to be read alone.
            Unavailable: the log can't be read.
        """
        if request.method not in ("GET", "HEAD"):
            raise method_not_allowed(request, {"GET", "HEAD"})
        if path in ("/healthz", "/health"):
            body = payload.encode(_health(self._state()))
            return Response(200, [("content-type", "application/json"), _FRESH], body)
        if path == "/metrics":
            text = self._metrics.render(_gauges(self._state()))
            return Response(200, [("content-type", METRICS_TYPE), _FRESH], text.encode())
        accepted = request.headers.get("accept", "").lower()
        if path == "/" and self._dashboard and "text/html" in accepted:
            return await self._html(self._dashboard, request)
        headers = [("content-type", "text/plain; charset=utf-8"), ("vary", "accept")]
        return Response(200, headers, _LINES[path].encode())

    async def _html(self, dashboard: Dashboard, request: Request) -> Response:
        refreshes = request.query != STILL
        try:
            page = await in_daemon_thread(
                lambda: dashboard.render(f"http://{request.host}", refreshes), "llmproxy-dashboard"
            )
        except RuntimeError as exc:
            logger.warning("the page of the log could not be made: %s", exc)
            raise Unavailable("the log can't be read now") from exc
        return Response(200, _HTML_HEADERS, page.encode())


_FRESH = ("cache-control", "no-store")

_LINES: Mapping[str, str] = {
    "/": f"llmproxy {__version__} is running. Point a client at this address; OpenAI's with /v1.\n",
    "/api/hello": "ok\n",  # Claude Code asks whether anybody is there (B35)
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
    }


def _gauges(state: State) -> list[Gauge]:
    gauges = [
        Gauge("running", "answers that run", state.running),
        Gauge("waiting", "requests that wait for a turn to run", state.waiting),
        Gauge("connections", "connections of clients", state.connections),
    ]
    if state.log is not None:
        gauges += [
            Gauge("log_writable", "1 where the log takes what is written", state.log.is_writable),
            Gauge("log_queue", "exchanges on their way to the log", state.log.queued),
            Gauge("log_spool_bytes", "what waits in the spool", state.log.spooled_bytes),
        ]
    return gauges
