"""The backend interface, shared by llm's models, recordings and other servers.

The app and the benchmark use a backend in the same steps: `choose` a model, `prepare` a run
of the request, `wait_turn`, `start` it, and `read` its events up to the Finish.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple, Protocol

import llm
from llm.parts import StreamEvent

from . import payload
from .chat import ChatRequest, Event
from .errors import UpstreamError

EVENT_BYTES = 500  # memory an event takes besides its text until its response is logged

GATEWAY_PREFIX = "anthropic/"
"""May stand before any model's name: Claude Code shows only models of such names."""

Kind = Literal[
    "chat",
    "chat_or_load",
    "chat_batch",
    "stateful_chat",
    "compaction",
    "stateful_count",
    "stored_response",
    "stored_input",
    "models",
    "model",
    "named_model",
    "running_models",
    "refused",
    "version",
    "embeddings",
    "count_tokens",
]
"""The purpose of a route; the app has one handler per kind, for all dialects.

chat_or_load: a chat, or without messages a wish to have the model loaded. chat_batch: a chat, or
several in one request. named_model: a model that the body names. running_models: those that are
loaded. refused: what an API has and this server has not; the route says why.
"""

CHAT_KINDS = frozenset({"chat", "chat_or_load", "stateful_chat"})


@dataclass(frozen=True)
class Route:
    """A route of a dialect's API. Its argument is where the path has `{id}`, or ends in `/`.

    refusal: why the server has it not, of the kind `refused`.
    """

    method: str
    path: str
    kind: Kind
    refusal: str = ""


def chat_path(routes: Iterable[Route]) -> str:
    """Return the path at which an API's models answer."""
    return next(route.path for route in routes if route.kind in CHAT_KINDS)


@dataclass(frozen=True)
class ModelEntry:
    """A model in a list of models, with what llm knows of it.

    created: in seconds since 1970. aliases: its other names. alias_of: the id of the model if
    this is another name of it, which the user gave; else "". chats, embeds: what it is for;
    it may be both. is_async, is_sync: the ways in which llm can run it. tools, schema, thinks:
    whether it can call tools, follow a schema, and has an option for reasoning.
    attachment_types: media types that it reads. context_length: in tokens, if known.
    """

    id: str
    owned_by: str
    created: int
    aliases: tuple[str, ...] = ()
    alias_of: str = ""
    chats: bool = True
    embeds: bool = False
    is_async: bool = False
    is_sync: bool = False
    tools: bool = False
    schema: bool = False
    thinks: bool = False
    attachment_types: tuple[str, ...] = ()
    context_length: int | None = None


class Stamped(NamedTuple):
    """An event and its time of arrival, by time.monotonic()."""

    # Not a dataclass, which takes three times as long to make: 0.4 µs of each event.

    at: float
    event: Event


def event_bytes(event: StreamEvent, most: int) -> int:
    """Return about how many bytes of memory an event takes; counting ends beyond `most`."""
    size = EVENT_BYTES + len(event.chunk)
    if event.provider_metadata:
        size += payload.measure(event.provider_metadata, most)[0]
    return size


def too_large() -> UpstreamError:
    """Return the error of a response that takes more memory than it may."""
    return UpstreamError("the response is too large (limit answer)")


@dataclass(frozen=True)
class UpstreamUse:
    """The part that upstreams had in an exchange.

    name: of the one that answered, None if it was llm. refused_by: what was asked before, each
    with the status of its refusal, or "". request_id: the upstream's own id of the request.
    """

    name: str | None = None
    refused_by: str = ""
    request_id: str | None = None


NO_UPSTREAM = UpstreamUse()


class Run(Protocol):
    """A model at work on one request, or a stand-in for one.

    model_id: llm's id of the model. options, tools: as passed to the model.
    ignored: paths of request fields that were not passed to the model.
    started: UTC; started_at: the same moment by time.monotonic(); both set by `start`.
    setup_ms: time to connect before that, if known.
    replay_of: id of the recording that is replayed, None for a live response.
    runs_in_process: the model runs in this process, and may load itself in its first run.
    is_first: this is the first run of such a model.
    starts_at_once: neither `wait_turn` nor `start` will wait for anything.
    upstream: the server that responds, as far as it is known.
    """

    model_id: str
    options: Mapping[str, Any]
    tools: tuple[llm.Tool, ...]
    ignored: tuple[str, ...]
    started: datetime
    started_at: float
    setup_ms: float | None
    replay_of: str | None
    runs_in_process: bool
    is_first: bool
    starts_at_once: bool

    @property
    def upstream(self) -> UpstreamUse: ...

    async def wait_turn(self, wait_s: float | None) -> bool:
        """Wait at most `wait_s` seconds until the model can take another request.

        Return whether it had to wait for other requests.

        Raises:
            Unavailable: the model stays busy for longer.
        """

    async def start(self) -> None:
        """Start the model; call `wait_turn` first.

        Raises:
            ProxyError: it can't be started, or a server refuses the request.
        """

    async def read(self, silence_s: float | None = None) -> list[Stamped] | None:
        """Return the events that have arrived, at least one; [] after the last.

        Return None after `silence_s` seconds without an event.

        Raises:
            ProxyError: the run failed; raised after all earlier events were returned.
        """

    async def stop(self) -> None:
        """Stop the run at any time and drop unread events. A second call does nothing."""


class Choice(Protocol):
    """A backend's choice of a model for a request.

    model_id: llm's id of the model.
    takes_recall: whether reasoning and metadata from the log may be added to the request;
        not for a recording or another server.
    """

    @property
    def model_id(self) -> str: ...
    @property
    def takes_recall(self) -> bool: ...

    def prepare(self, request: ChatRequest) -> Run:
        """Return a run of this request, not started yet.

        Raises:
            ProxyError: the model can't do what the request depends on.
        """


class Backend(Protocol):
    """A source of responses: llm's models, recordings or another server."""

    async def choose(self, request: ChatRequest, headers: Sequence[tuple[str, str]] = ()) -> Choice:
        """Choose a model or recording for a request.

        headers: of the client's request, whose credentials may be for an upstream.

        Raises:
            ProxyError: there is none for it.
        """


class Models(Protocol):
    """The models that a server lists."""

    def models(self) -> list[ModelEntry]:
        """List each model once."""

    def running_models(self) -> list[ModelEntry]:
        """List the models that are loaded in this process."""

    async def model(self, name: str) -> ModelEntry:
        """Return a model by its name.

        Raises:
            ModelNotFound: no model has this name.
        """
