"""Models of llm that cost nothing: a known number of chunks, at once or at a steady pace.

A model's name says what it does: `scripted-20` yields 20 chunks without a pause,
`scripted-200-10ms` yields 200 and sleeps 10 ms before each. Chunks of the first kind are
`lorem ` and `lorem, ` in turn (LiteLLM ends a stream that says the same 100 times). Those of
the second are the time at which they were made, `@<ns>@ lorem `, by time.monotonic_ns(),
which all processes of a machine share; the first one begins with `^<ns>^`, when the model began.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import llm

NAMES = (
    "scripted-20",
    "scripted-200",
    "scripted-10000",
    "scripted-100000",
    "scripted-20-10ms",
    "scripted-200-10ms",
)


class _Script:
    can_stream = True
    supports_tools = True
    attachment_types = {"image/png"}

    def __init__(self, model_id: str) -> None:
        self.model_id = model_id
        _, chunks, *pause = model_id.split("-")
        self._chunks = int(chunks)
        self._pause_s = int(pause[0].removesuffix("ms")) / 1000 if pause else 0.0


class AsyncScripted(_Script, llm.AsyncModel):
    """A model that yields what its name says; this is the one that servers use."""

    async def execute(self, *_: Any, **__: Any) -> AsyncIterator[str]:
        if not self._pause_s:
            for _ in range(self._chunks // 2):
                yield "lorem "
                yield "lorem, "
            return
        began = f"^{time.monotonic_ns()}^"
        for _ in range(self._chunks):
            await asyncio.sleep(self._pause_s)
            yield f"{began}@{time.monotonic_ns()}@ lorem "
            began = ""


class Scripted(_Script, llm.Model):
    """The same as llm's command can use it, without pauses; llm wants one of each name."""

    def execute(self, *_: Any, **__: Any) -> Iterator[str]:
        return iter(["lorem ", "lorem, "] * (self._chunks // 2))


@llm.hookimpl
def register_models(register: Any) -> None:
    """Register the models under their names."""
    for name in NAMES:
        register(Scripted(name), AsyncScripted(name))
