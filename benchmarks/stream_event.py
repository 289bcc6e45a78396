"""What one streamed event costs on its way from a model to bytes, beside llm alone.

No sockets: the app's body is read as the server reads it. `python benchmarks/stream_event.py`
prints microseconds for an event, llm's own share of them, and the ratio; the best of five
runs, since machines are shared. For another API, name its route: `/v1/messages`, `/api/chat`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from typing import Any

os.environ["LLM_USER_PATH"] = tempfile.mkdtemp()

import llm
from llm.plugins import pm

from llmproxy import Proxy, Settings
from llmproxy.transport.http11 import Headers, Request

EVENTS = 20_000
ROUTE = sys.argv[1] if len(sys.argv) > 1 else "/v1/chat/completions"


class Steady(llm.AsyncModel):
    """Yields words, waiting between them as for a network, or not."""

    can_stream = True

    def __init__(self, model_id: str, waits: bool) -> None:
        self.model_id = model_id
        self.waits = waits

    async def execute(
        self, prompt: llm.Prompt, stream: bool, response: Any, conversation: Any
    ) -> AsyncIterator[str]:
        for _ in range(EVENTS):
            yield "token "
            if self.waits:
                await asyncio.sleep(0)


MODELS = [Steady("in batches", waits=False), Steady("one by one", waits=True)]


class Plugin:
    @llm.hookimpl
    def register_models(self, register: Any) -> None:
        for model in MODELS:
            register(None, model)


async def alone(model: Steady) -> float:
    response = llm.AsyncResponse(llm.Prompt("hi", model=model), model, True)
    began = time.perf_counter()
    async for _ in response.astream_events():
        pass
    return time.perf_counter() - began


async def proxied(proxy: Proxy, model: Steady) -> float:
    messages = [{"role": "user", "content": "hi"}]
    body = json.dumps({"model": model.model_id, "stream": True, "messages": messages}).encode()
    headers = Headers([("host", "localhost")])
    began = time.perf_counter()
    response = await proxy.app(Request("POST", ROUTE, headers, body))
    async for _ in response.body:
        pass
    return time.perf_counter() - began


async def main() -> None:
    pm.register(Plugin())
    proxy = Proxy(Settings(log=False))
    proxy.catalog.load()
    for model in MODELS:
        # Side by side in each run, so that a busy machine slows both.
        runs = [(await alone(model), await proxied(proxy, model)) for _ in range(5)]
        llm_us, all_us = (min(times) / EVENTS * 1e6 for times in zip(*runs, strict=True))
        print(f"{model.model_id}: {all_us:.1f} µs, llm alone {llm_us:.1f}, {all_us / llm_us:.2f}×")


asyncio.run(main())
