"""The dialects: one module per vendor API, all with the same names.

A dialect converts its API's requests, responses, streams and errors to and from the common
types of `core.chat`. Dialects never import each other; `Dialect` lists what each has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from ..core import backend, chat
from ..core.dialect_names import DialectName
from ..core.errors import ProxyError
from ..transport import framing
from . import anthropic_messages, openai_chat

__all__ = [
    "DIALECTS",
    "CountingDialect",
    "Dialect",
    "DialectName",
    "Parser",
    "Renderer",
    "by_name",
]


class Renderer(Protocol):
    """Renders a response's events as the bytes of a dialect's stream. Feed them in order."""

    def __init__(self, envelope: chat.Envelope) -> None: ...
    def start(self) -> list[bytes]: ...
    def feed(self, event: chat.Event) -> list[bytes]: ...
    def idle(self) -> list[bytes]: ...
    def fail(self, error: ProxyError) -> list[bytes]: ...


class Parser(Protocol):
    """Parses another server's stream into events. Feed its frames, or their values, in order.

    An error inside the stream, or its early end, is raised as a ProxyError.
    """

    @property
    def model(self) -> str | None: ...
    def feed(self, frame: framing.SSEFrame) -> list[chat.Event]: ...
    def feed_value(self, value: Any) -> list[chat.Event]: ...
    def end(self) -> list[chat.Event]: ...


class Dialect(Protocol):
    """The names that a dialect's module has; nothing else of it is used outside its folder.

    ID_PREFIX: stands before an exchange's id in a response. VERSION_HEADER: a request header
    that only this API's clients send, or "". CUT_AFTER_ERROR: after an error frame the body
    must be cut, since clients take a proper end for success. STARTS_WITH_USAGE: a stream
    begins with a count of input tokens, so the envelope needs an estimate.
    """

    NAME: DialectName
    ROUTES: tuple[backend.Route, ...]
    STREAM_TYPE: str
    ID_PREFIX: str
    REQUEST_ID_HEADER: str
    VERSION_HEADER: str
    CUT_AFTER_ERROR: bool
    STARTS_WITH_USAGE: bool

    @property
    def StreamRenderer(self) -> type[Renderer]: ...  # noqa: N802  # the agreed name
    @property
    def StreamParser(self) -> Callable[[], Parser]: ...  # noqa: N802

    def parse_request(self, body: Any, headers: Mapping[str, str]) -> chat.ChatRequest: ...
    def normalize_body(self, body: Any) -> Any: ...
    def render_response(
        self, response: chat.ChatResponse, envelope: chat.Envelope
    ) -> dict[str, Any]: ...
    def left_out(self, response: chat.ChatResponse, envelope: chat.Envelope) -> tuple[str, ...]: ...
    def render_request(
        self, request: chat.ChatRequest
    ) -> tuple[dict[str, Any], tuple[str, ...]]: ...
    def auth_headers(self, key: str | None) -> dict[str, str]: ...
    def parse_response(
        self, body: Any, headers: Mapping[str, str] | None = None
    ) -> chat.ChatResponse: ...
    def parse_error(
        self, status: int, body: Any, headers: Mapping[str, str] | None = None
    ) -> ProxyError: ...
    def error_status(self, error: ProxyError) -> int: ...
    def render_error(self, error: ProxyError) -> dict[str, Any]: ...
    def render_models(self, models: Iterable[backend.ModelEntry]) -> dict[str, Any]: ...
    def render_model(self, model: backend.ModelEntry) -> dict[str, Any]: ...


class CountingDialect(Dialect, Protocol):
    """A dialect with a route for counting tokens."""

    def render_count(self, count: int) -> dict[str, Any]: ...


DIALECTS: tuple[Dialect, ...] = (openai_chat, anthropic_messages)


def by_name(name: str) -> Dialect:
    """Return the dialect of this name.

    Raises:
        ValueError: there is none; the message lists those that there are.
    """
    for dialect in DIALECTS:
        if dialect.NAME == name:
            return dialect
    names = ", ".join(dialect.NAME for dialect in DIALECTS)
    raise ValueError(f"unknown dialect {name!r}; the dialects are {names}")
