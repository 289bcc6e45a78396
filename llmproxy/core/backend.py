"""What can answer a request: the interface that the app, bench and replay share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Protocol

import llm

from .chat import ChatRequest, Event

Kind = Literal["chat", "models", "model", "count_tokens"]
"""What a route is for; app has one function per kind and none per dialect."""


@dataclass(frozen=True)
class Route:
    """A place of a dialect's API. A path that ends in `/` takes the rest as its argument."""

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
    """An event and when it came, by time.monotonic()."""

    at: float
    event: Event


class Run(Protocol):
    """An answer that comes in, wherever from.

    Wait for its turn, begin it, read it to its Finish; or stop it, at any time.

    model_id: llm's id of what answers; options, tools: as the model was given them.
    ignored: paths of what of the request it was not given.
    started: UTC; started_at: the same moment by time.monotonic(); both set by `begin`.
    replay_of: the id of what was recorded, where it is no model that answers.
    is_first: the first run of a model in this process that loads itself then, as far as can
        be told. runs_in_process: such a model, first run or not.
    """

    model_id: str
    options: Mapping[str, Any]
    tools: tuple[llm.Tool, ...]
    ignored: tuple[str, ...]
    started: datetime
    started_at: float
    replay_of: str | None
    is_first: bool
    runs_in_process: bool

    async def wait_turn(self, wait_s: float | None) -> bool:
        """Wait until its model may take one more request; at most `wait_s` seconds.

        Say whether others were first.

        Raises:
            Unavailable: the model is busy for longer.
        """

    async def begin(self) -> None:
        """Start, once its turn has come.

        Raises:
            Unavailable: there is no thread to run it in.
        """

    async def read(self, silence_s: float | None = None) -> list[Stamped] | None:
        """Give the events that have come, at least one; [] when all were given.

        None after `silence_s` seconds without an event.

        Raises:
            ProxyError: how it failed, after all events that came before it.
        """

    async def stop(self) -> None:
        """End it, and drop what is not read."""


Recollect = Callable[[str], Awaitable[ChatRequest]]
"""Gives a request as it is for the model of this id: with what the log knows of it."""


class Models(Protocol):
    """The models that there are, by their names."""

    def models(self) -> list[ModelEntry]: ...

    async def model(self, name: str) -> ModelEntry:
        """Show a model under one of its names.

        Raises:
            ModelNotFound: no model has it.
        """


class Backend(Protocol):
    """What answers requests: models, or recordings in their place."""

    @property
    def catalog(self) -> Models: ...

    async def answer(self, request: ChatRequest, recollect: Recollect | None = None) -> Run:
        """Begin to answer.

        Raises:
            ProxyError: nothing here answers that.
        """
