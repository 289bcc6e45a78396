"""Serve from your own program: a model that is written here answers an HTTP client.

The server runs inside this asyncio program on a free port, with its log in a temporary
folder, and stops at the end of the `async with`. Leaves out all that makes a model useful.
"""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import llm

import llmproxy


class Shout(llm.AsyncModel):
    """Repeats the prompt, louder."""

    model_id = "shout"
    can_stream = True

    async def execute(
        self, prompt: llm.Prompt, stream: bool, response: Any, conversation: Any
    ) -> AsyncIterator[str]:
        for word in prompt.prompt.split():
            yield word.upper() + "! "


def ask(url: str) -> str:
    body = {"model": "shout", "messages": [{"role": "user", "content": "good morning"}]}
    with urlopen(Request(f"{url}/v1/chat/completions", json.dumps(body).encode())) as response:
        return json.load(response)["choices"][0]["message"]["content"]


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "logs.db"
        async with llmproxy.serve(port=0, database=database, models=[Shout()]) as server:
            print(await asyncio.to_thread(ask, server.url))


asyncio.run(main())
