"""What can answer a request: the interface that models, recordings and other servers share.

The app and the benchmark use a backend in the same steps: `choose` what answers, `prepare`
the request for it, wait for its turn, `start` it, `read` its events up to the Finish.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Protocol

import llm

from .chat import ChatRequest, Event

Kind = Literal["chat", "models", "model", "count_tokens"]
"""What a route is for; the app has one handler per kind and none per dialect."""


@dataclass(frozen=True)
class Route:
    """A route of a dialect's API. A path that ends in `/` takes the rest as its argument."""

    method: str
    path: str
    kind: Kind


@dataclass(frozen=True)
class ModelEntry:
    """A model as a list of models shows it; `created` in seconds since 1970."""

    id: str
    owned_by: str
    created: int


@dataclass(frozen=True, slots=True)
class Stamped:
    """An event and the time at which it came, by time.monotonic()."""

    at: float
    event: Event


class Run(Protocol):
    """A model at work on one request, or something that stands in for one.

    model_id: llm's id of what answers; options, tools: as the model was given them.
    ignored: paths of what the model was not given of the request.
    started: UTC; started_at: the same moment by time.monotonic(); both set by `start`.
    setup_ms: time to connect before that, if known.
    replay_of: the id of the recording that is replayed, None for a live answer.
    runs_in_process: the model runs in this process, and may load itself in its first run.
    is_first: this is the first run of such a model.
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

    async def wait_turn(self, wait_s: float | None) -> bool:
        """Wait at most `wait_s` seconds until the model may take one more request.

        Return whether others were first.

        Raises:
            Unavailable: the model is busy for longer.
        """

    async def start(self) -> None:
        """Start the model, once its turn has come.

        Raises:
            ProxyError: it can't be started, or a server refuses the request.
        """

    async def read(self, silence_s: float | None = None) -> list[Stamped] | None:
        """Return the events that have come, at least one; [] after the last.

        None after `silence_s` seconds without an event.

        Raises:
            ProxyError: the run failed; raised after all events that came before.
        """

    async def stop(self) -> None:
        """End the run at any time, and drop what is not read. A second call does nothing."""


class Choice(Protocol):
    """What a backend has chosen to answer a request.

    model_id: llm's id of it.
    takes_recall: it may be given back what its model said before; a recording is not.
    """

    @property
    def model_id(self) -> str: ...
    @property
    def takes_recall(self) -> bool: ...

    def prepare(self, request: ChatRequest) -> Run:
        """Return a run of this request that has not started.

        Raises:
            ProxyError: the model can't do what the request depends on.
        """


class Backend(Protocol):
    """Anything that answers requests."""

    async def choose(self, request: ChatRequest) -> Choice:
        """Choose what answers a request.

        Raises:
            ProxyError: nothing here answers it.
        """


class Models(Protocol):
    """The models that a server lists, by their names."""

    def models(self) -> list[ModelEntry]:
        """List each model once."""

    async def model(self, name: str) -> ModelEntry:
        """Return the model of a name.

        Raises:
            ModelNotFound: no model has it.
        """
