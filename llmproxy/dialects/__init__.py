"""The wires: one module for each vendor's API, all with the same names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from ..core import backend, chat
from ..core.errors import ProxyError
from ..transport import framing
from . import anthropic_messages, openai_chat

__all__ = ["DIALECTS", "CountingDialect", "Dialect", "Parser", "Renderer"]


class Renderer(Protocol):
    """Turns hub events into ready bytes of a dialect's stream, fed in order."""

    def __init__(self, request: chat.ChatRequest, id: str, created: int) -> None: ...
    def start(self) -> list[bytes]: ...
    def feed(self, event: chat.Event) -> list[bytes]: ...
    def idle(self) -> list[bytes]: ...
    def fail(self, error: ProxyError) -> list[bytes]: ...


class Parser(Protocol):
    """Turns the frames of another server's stream into hub events, fed in order.

    An error inside the stream, or its early end, is raised as a ProxyError.
    """

    @property
    def model(self) -> str | None: ...
    def feed(self, frame: framing.SSEFrame) -> list[chat.Event]: ...
    def end(self) -> list[chat.Event]: ...


class Dialect(Protocol):
    """What a dialect's module has; app and convert use nothing else of it."""

    NAME: str
    ROUTES: tuple[backend.Route, ...]
    STREAM_TYPE: str
    REQUEST_ID_HEADER: str
    CUT_AFTER_ERROR: bool
    VERSION_HEADER: str

    @property
    def StreamRenderer(self) -> type[Renderer]: ...  # noqa: N802  # the agreed name
    @property
    def StreamParser(self) -> Callable[[], Parser]: ...  # noqa: N802

    def parse_request(self, body: Any, headers: Mapping[str, str]) -> chat.ChatRequest: ...
    def normalize_body(self, body: Any) -> Any: ...
    def render_response(
        self, request: chat.ChatRequest, response: chat.ChatResponse, id: str, created: int
    ) -> dict[str, Any]: ...
    def render_request(
        self, request: chat.ChatRequest
    ) -> tuple[dict[str, Any], tuple[str, ...]]: ...
    def parse_response(
        self, body: Any, headers: Mapping[str, str] | None = None
    ) -> chat.ChatResponse: ...
    def parse_error(
        self, status: int, body: Any, headers: Mapping[str, str] | None = None
    ) -> ProxyError: ...
    def render_error(self, error: ProxyError) -> dict[str, Any]: ...
    def render_models(self, models: Iterable[backend.ModelEntry]) -> dict[str, Any]: ...
    def render_model(self, model: backend.ModelEntry) -> dict[str, Any]: ...


class CountingDialect(Dialect, Protocol):
    """A dialect with a route for counting tokens."""

    def render_count(self, count: int) -> dict[str, Any]: ...


DIALECTS: tuple[Dialect, ...] = (openai_chat, anthropic_messages)
