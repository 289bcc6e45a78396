"""Models that do as a script says, and the plugin that registers them with llm."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import llm
from llm.plugins import pm
from pydantic import Field

Step = Any
"""Something to yield, an exception to raise, or a function of the response to call (and await)."""


class ScriptOptions(llm.Options):
    """As OpenAI's plugin has them, one string to stop at included."""

    max_tokens: int | None = Field(default=None)
    temperature: float | None = Field(default=None, ge=0, le=1)
    top_p: float | None = Field(default=None)


class StopOptions(ScriptOptions):
    stop: str | None = Field(default=None)


class _Script:
    can_stream = True
    supports_tools = True
    supports_schema = True
    attachment_types = frozenset({"image/png", "image/jpeg"})
    Options = ScriptOptions

    def __init__(self, model_id: str, *steps: Step, **attributes: Any) -> None:
        self.model_id = model_id
        self.steps = steps
        self.prompts: list[llm.Prompt] = []
        self.conversations: list[Any] = []
        self.closed = 0
        vars(self).update(attributes)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.model_id}>"

    def _began(self, prompt: llm.Prompt, conversation: Any) -> None:
        self.prompts.append(prompt)
        self.conversations.append(conversation)


class SyncScript(_Script, llm.Model):
    def execute(self, prompt, stream, response, conversation):  # type: ignore[no-untyped-def]
        self._began(prompt, conversation)
        try:
            for step in self.steps:
                if isinstance(step, BaseException):
                    raise step
                if callable(step):
                    step(response)
                else:
                    yield step
        finally:
            self.closed += 1


class NativeScript(SyncScript):
    """As native code is: it ends the process if two requests run at once, or if a request is
    closed by another thread than the one that ran it.

    crash: takes what was done wrong, in place of the end of the process.
    """

    def __init__(self, model_id: str, *steps: Step, crash: Any = None, **attributes: Any) -> None:
        super().__init__(model_id, *steps, **attributes)
        self._crash = crash or (lambda _: os._exit(134))
        self._thread: int | None = None

    def execute(self, prompt, stream, response, conversation):  # type: ignore[no-untyped-def]
        if self._thread is not None:
            self._crash("two at once")
        thread = self._thread = threading.get_ident()
        try:
            # As a plugin has it, which reads the library's own generator in its own.
            yield from super().execute(prompt, stream, response, conversation)
        finally:
            if threading.get_ident() != thread:
                self._crash("closed in another thread")
            self._thread = None


class AsyncScript(_Script, llm.AsyncModel):
    async def execute(self, prompt, stream, response, conversation):  # type: ignore[no-untyped-def]
        self._began(prompt, conversation)
        try:
            for step in self.steps:
                if isinstance(step, BaseException):
                    raise step
                if callable(step):
                    result = step(response)
                    if inspect.isawaitable(result):
                        await result
                else:
                    yield step
        finally:
            self.closed += 1


class EmbeddingScript(llm.EmbeddingModel):
    """An embedding model: a text's vector is its length and then counts up.

    batches: the texts that it was given, by batch. fails: raised in place of a batch's vectors.
    before: called with each batch, in the thread of the model.
    """

    def __init__(self, model_id: str, size: int = 3, **attributes: Any) -> None:
        self.model_id = model_id
        self.size = size
        self.batches: list[list[Any]] = []
        self.fails: BaseException | None = None
        self.before: Callable[[list[Any]], None] = lambda batch: None
        vars(self).update(attributes)

    def embed_batch(self, items, *, key=None):  # type: ignore[no-untyped-def]
        batch = list(items)
        self.batches.append(batch)
        self.before(batch)
        if self.fails is not None:
            raise self.fails
        size = getattr(self, "dimensions", None) or self.size
        for item in batch:
            yield [float(len(item) + i) for i in range(size)]


@contextmanager
def registered(*models: Any) -> Iterator[None]:
    """Have llm know these models, as a plugin of its own would tell it."""

    class Plugin:
        @llm.hookimpl
        def register_models(self, register: Callable[..., None]) -> None:
            for model in models:
                if isinstance(model, EmbeddingScript):
                    continue
                if isinstance(model, llm.AsyncModel | llm.AsyncKeyModel):
                    register(None, model)
                else:
                    register(model)

        @llm.hookimpl
        def register_embedding_models(self, register: Callable[..., None]) -> None:
            for model in models:
                if isinstance(model, EmbeddingScript):
                    register(model, aliases=[f"{model.model_id}-alias"])

    plugin = Plugin()
    pm.register(plugin, name="scripts")
    try:
        yield
    finally:
        pm.unregister(plugin)


def usage(input: int, output: int, **details: Any) -> Callable[[Any], None]:
    """A step that sets the usage."""
    return lambda response: response.set_usage(input=input, output=output, details=details or None)


def response_json(**payload: Any) -> Callable[[Any], None]:
    """A step that leaves the provider's payload, as plugins do at the end."""
    return lambda response: setattr(response, "response_json", payload)


def tool_call(name: str, arguments: dict[str, Any], id: str | None = None) -> Callable[[Any], None]:
    """A step that announces a tool call without any event."""
    return lambda response: response.add_tool_call(llm.ToolCall(name, arguments, id))
