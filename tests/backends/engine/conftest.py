"""Helpers that run the engine with scripted models."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from llm.parts import Message, TextPart

from llmproxy.backends.engine import Catalog, Engine, EngineRun
from llmproxy.core import chat
from tests.models import registered


def user(text: str = "hi") -> Message:
    return Message("user", [TextPart(text)])


def assistant(text: str) -> Message:
    return Message("assistant", [TextPart(text)])


def system(text: str) -> Message:
    return Message("system", [TextPart(text)])


@dataclass
class Outcome:
    """The events of one run, and the error that ended it, if any."""

    events: list[chat.Event]
    error: BaseException | None
    run: EngineRun | None

    @property
    def finish(self) -> chat.Finish:
        assert isinstance(self.events[-1], chat.Finish), self
        return self.events[-1]

    @property
    def text(self) -> str:
        return "".join(e.chunk for e in self.events if getattr(e, "type", "") == "text")


async def started(engine: Engine, request: chat.ChatRequest) -> EngineRun:
    run = (await engine.choose(request)).prepare(request)
    await run.wait_turn(None)
    await run.start()
    return run


class Runner:
    """A runner that sends a model one request and reads all its events."""

    def ask(self, model: Any, messages: Sequence[Message] | None = None, **request: Any) -> Outcome:
        name = model if isinstance(model, str) else model.model_id
        models = [] if isinstance(model, str) else [model]
        messages = list(messages or [user()])
        chat_request = chat.ChatRequest(model=name, messages=messages, **request)
        with registered(*models):
            return asyncio.run(self._ask(chat_request), debug=True)

    async def _ask(self, request: chat.ChatRequest) -> Outcome:
        catalog = Catalog()
        catalog.load()
        outcome = Outcome([], None, None)
        try:
            outcome.run = await started(Engine(catalog), request)
            while batch := await outcome.run.read():
                outcome.events += [stamped.event for stamped in batch]
        except Exception as exc:
            outcome.error = exc
        return outcome


@pytest.fixture
def engine() -> Runner:
    return Runner()
