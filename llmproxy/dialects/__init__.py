"""The dialects: one module per vendor API, all with the same names.

A dialect converts its API's requests, responses, streams and errors to and from the common
types of `core.chat`. Dialects never import each other; `Dialect` lists what each has. Each is
imported when it is asked for: who converts between two of them needs no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, get_args

from ..core import backend, chat
from ..core.dialect_names import DialectName
from ..core.embeddings import Embeddings, EmbedRequest
from ..core.errors import ProxyError
from ..core.known_bodies import ItemMemory
from ..transport import framing

__all__ = [
    "DIALECTS",
    "BatchDialect",
    "CountingDialect",
    "Dialect",
    "DialectName",
    "EmbeddingDialect",
    "Parser",
    "Renderer",
    "ServerDialect",
    "StatefulDialect",
    "by_name",
]


class Renderer(Protocol):
    """Renders a response's events as the bytes of a dialect's stream. Feed them in order."""

    def start(self) -> list[bytes]: ...
    def feed(self, event: chat.Event) -> list[bytes]: ...
    def idle(self) -> list[bytes]: ...
    def fail(self, error: ProxyError) -> list[bytes]: ...


class Parser(Protocol):
    """Parses another server's stream into events. Feed its frames, or their values, in order.

    A frame is what the dialect's `StreamDecoder` returns.

    An error inside the stream, or its early end, is raised as a ProxyError.
    """

    @property
    def model(self) -> str | None: ...
    def feed(self, frame: Any) -> list[chat.Event]: ...
    def feed_value(self, value: Any) -> list[chat.Event]: ...
    def end(self) -> list[chat.Event]: ...


class Dialect(Protocol):
    """The names that a dialect's module has; nothing else of it is used outside its folder.

    STREAM_TYPE, StreamDecoder: the media type of its streams, and what cuts them into frames.
    ID_PREFIX: stands before an exchange's id in a response; "" if responses have none.
    VERSION_HEADER: a request header that only this API's clients send, or "". CUT_AFTER_ERROR:
    after an error frame the body must be cut, since clients take a proper end for success.
    STARTS_WITH_USAGE: a stream begins with a count of input tokens, so the envelope needs an
    estimate. CONVERSATION: the member of a chat's body that is the list of its messages.
    """

    NAME: DialectName
    ROUTES: tuple[backend.Route, ...]
    STREAM_TYPE: str
    ID_PREFIX: str
    REQUEST_ID_HEADER: str
    VERSION_HEADER: str
    CUT_AFTER_ERROR: bool
    STARTS_WITH_USAGE: bool
    CONVERSATION: str

    @property
    def StreamDecoder(self) -> Callable[[int], framing.Decoder]: ...  # noqa: N802  # agreed name
    @property
    def StreamRenderer(self) -> Callable[[chat.Envelope], Renderer]: ...  # noqa: N802
    @property
    def StreamParser(self) -> Callable[[], Parser]: ...  # noqa: N802

    def parse_request(
        self, body: Any, headers: Mapping[str, str], memory: ItemMemory | None = None
    ) -> chat.ChatRequest: ...
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


class StatefulDialect(Dialect, Protocol):
    """A dialect whose requests may refer to recorded responses, and ask for them.

    A body that refers to some is made complete before it is parsed (`resolve_references`), so
    that what is stored says everything by itself. All ids are those of exchanges.
    """

    def may_refer(self, body: bytes) -> bool: ...
    def find_references(self, body: Any) -> tuple[str, ...]: ...
    def resolve_references(self, body: Any, stored: Mapping[str, chat.StoredResponse]) -> Any: ...
    def stored_id(self, argument: str) -> str | None: ...
    def render_stored(self, stored: chat.StoredResponse) -> dict[str, Any]: ...
    def render_stored_input(self, stored: chat.StoredResponse, query: str) -> dict[str, Any]: ...
    def compaction_body(self, body: Any) -> Any: ...


class BatchDialect(Dialect, Protocol):
    """A dialect with a route that takes several chats in one request."""

    def split_batch(self, body: Any) -> list[Any]: ...
    def join_batch(self, responses: list[dict[str, Any]]) -> dict[str, Any]: ...


class EmbeddingDialect(Dialect, Protocol):
    """A dialect with a route for embeddings."""

    def parse_embeddings(self, body: Any) -> EmbedRequest: ...
    def render_embeddings(
        self, embeddings: Embeddings, request: EmbedRequest
    ) -> dict[str, Any]: ...


class ServerDialect(Dialect, Protocol):
    """A dialect with routes about the server, and about models that a body names.

    as_chat: makes a body that lacks messages one of a chat, if it came by a chat's route.
    """

    def as_chat(self, body: Any) -> Any: ...
    def parse_model_name(self, body: Any) -> str: ...
    def render_running(self, models: Iterable[backend.ModelEntry]) -> dict[str, Any]: ...
    def render_version(self) -> dict[str, Any]: ...


if TYPE_CHECKING:
    from . import anthropic_messages, ollama, openai_chat, openai_responses

    DIALECTS: tuple[Dialect, ...] = (openai_chat, anthropic_messages, openai_responses, ollama)
else:

    def __getattr__(name: str) -> Any:
        if name != "DIALECTS":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = tuple(map(by_name, get_args(DialectName)))
        return globals()[name]


def by_name(name: str) -> Dialect:
    """Return the dialect of this name.

    Raises:
        ValueError: there is none; the message lists those that there are.
    """
    names = get_args(DialectName)
    if name not in names:
        raise ValueError(f"unknown dialect {name!r}; the dialects are {', '.join(names)}")
    dialect: Dialect = import_module(f".{name}", __name__)
    return dialect
