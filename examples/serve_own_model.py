"""Serve from a script of one's own: a model written here, asked by a client over HTTP.

The server runs inside this asyncio program on a free port, with a log of its own in a
temporary folder, and ends with the `async with`. Leaves out everything that a model
needs to be of use.
"""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import llm
from llm.plugins import pm

from llmproxy import Proxy, Settings


class Shout(llm.AsyncModel):
    """Say it louder."""

    model_id = "shout"
    can_stream = True

    async def execute(
        self, prompt: llm.Prompt, stream: bool, response: Any, conversation: Any
    ) -> AsyncIterator[str]:
        for word in prompt.prompt.split():
            yield word.upper() + "! "


class Plugin:
    @llm.hookimpl
    def register_models(self, register: Any) -> None:
        register(None, Shout())


def ask(url: str) -> str:
    body = {"model": "shout", "messages": [{"role": "user", "content": "good morning"}]}
    with urlopen(Request(f"{url}/v1/chat/completions", json.dumps(body).encode())) as answer:
        return json.load(answer)["choices"][0]["message"]["content"]


async def main() -> None:
    pm.register(Plugin())
    with tempfile.TemporaryDirectory() as folder:
        async with Proxy(Settings(port=0, database=Path(folder) / "logs.db")) as proxy:
            print(await asyncio.to_thread(ask, proxy.url))


asyncio.run(main())
