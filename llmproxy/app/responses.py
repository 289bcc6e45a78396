"""HTTP responses: JSON, errors in a dialect's format, and streaming bodies."""

from __future__ import annotations

import copy
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

from ..core import payload
from ..core.backend import UpstreamUse
from ..core.errors import LLM_LISTS_THEM, ModelNotFound, ProxyError
from ..dialects import DIALECTS, Dialect
from ..transport.http11 import Response

IGNORED_HEADER_BYTES = 2_000  # some clients and proxies take 8 kB for all headers


def render_error(error: ProxyError, dialect: Dialect | None = None) -> Response:
    """Return an error response; in the first dialect's format if none is known."""
    dialect = dialect or DIALECTS[0]
    if isinstance(error, ModelNotFound):
        error = copy.copy(error)
        error.message = error.message.replace(LLM_LISTS_THEM, f"{_LISTS[dialect.NAME]} lists them")
    rendered = dialect.render_error(error)
    return json_response(dialect.error_status(error), rendered, [*error.headers.items()])


_LISTS = {
    dialect.NAME: next(
        (f"{route.method} {route.path}" for route in dialect.ROUTES if route.kind == "models"),
        "GET /v1/models",  # of OpenAI's other dialect
    )
    for dialect in DIALECTS
}
"""The routes that list models, by dialect."""


def json_response(
    status: int, value: object, headers: list[tuple[str, str]] | None = None
) -> Response:
    """Return a response with a JSON body."""
    return Response(
        status, [("content-type", "application/json"), *(headers or [])], payload.encode(value)
    )


def ignored_header(ignored: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return the header that lists ignored fields, escaped as in JSON; cut if too long."""
    shown = ""
    paths = [json.dumps(path)[1:-1] for path in ignored]
    for i, path in enumerate(paths):
        longer = f"{shown}, {path}" if shown else path
        if len(longer) > IGNORED_HEADER_BYTES:
            shown = f"{shown}, and {len(paths) - i} more".lstrip(", ")
            break
        shown = longer
    return [("x-llmproxy-ignored", shown)] if shown else []


def upstream_headers(use: UpstreamUse) -> dict[str, str]:
    """Return the headers that name the upstream which answered, and those that refused before.

    They are escaped as in JSON: a model's name can be the client's.
    """
    named = {
        "x-llmproxy-upstream": use.name,
        "x-llmproxy-refused-by": use.refused_by,
        "x-llmproxy-upstream-request-id": use.request_id,
    }
    return {name: json.dumps(value)[1:-1] for name, value in named.items() if value}


def server_timing(overhead_ms: float, queue_ms: float | None) -> str:
    """Return the value of a server-timing header: what the proxy took, and a wait for a turn.

    Spec: https://www.w3.org/TR/server-timing/
    """
    queue = "" if queue_ms is None else f", queue;dur={queue_ms:.2f}"
    return f"overhead;dur={overhead_ms:.2f}{queue}"


class StreamBody:
    """A streaming body that closes its exchange even if it is never read."""

    def __init__(
        self, frames: AsyncGenerator[bytes, None], close: Callable[[], Awaitable[None]]
    ) -> None:
        self._frames = frames
        self._close = close

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    def __anext__(self) -> Awaitable[bytes]:
        return self._frames.__anext__()

    async def aclose(self) -> None:
        """Close the stream and the exchange; an unfinished one counts as cancelled."""
        await self._frames.aclose()
        await self._close()
