"""Measure how long a large request stalls the others.

A server runs one stream of an event every 10 ms. While it runs, another client sends large
bodies of several shapes, plain and as gzip. For each shape, this prints the longest delay of

- an event in the server: how late the event loop was, in wall time, and in CPU time of the
  server, which other programs on the machine don't disturb,
- an event at the client that reads the stream, and a small request (`GET /v1/models`),

and what the large request itself took. `python -m benchmarks stall [--rounds N] [--no-log]
[--only SHAPE]`; the median of the rounds counts.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import gzip
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from statistics import median
from typing import Any, NamedTuple

import llm
import llm.plugins

from llmproxy.cli.main import run

TICK_S = 0.01
SERVE = "--serve"  # as the first argument
CHAT = "/v1/chat/completions"


def _chat(messages: list[Any], **members: Any) -> bytes:
    return json.dumps({"model": "answers", "messages": messages} | members).encode()


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def conversation() -> bytes:
    """A long session of an agent: 3.5 MB of tool calls and their results."""
    words = random.Random(1)
    messages = [_user("fix the tests")]
    for i in range(500):
        arguments = json.dumps({"command": ["sed", "-n", f"{i},{i + 99}p", f"src/file_{i}.py"]})
        call = {
            "id": f"call_{i}x",
            "type": "function",
            "function": {"name": "sh", "arguments": arguments},
        }
        text = "\n".join(f"def f{words.randrange(10**9)}(a, b): return a" for _ in range(180))
        messages += [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": f"call_{i}x", "content": text},
        ]
    return _chat([*messages, _user("go on")])


def _tool(i: int) -> dict[str, Any]:
    properties = {
        f"argument_{n}": {"type": "string", "description": f"the {n}th argument " * 5}
        for n in range(20)
    }
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": f"tool_{i}", "parameters": parameters}}


def _image() -> bytes:
    data = base64.b64encode(random.Random(2).randbytes(3_700_000)).decode()
    url = {"url": f"data:image/png;base64,{data}"}
    return _chat([{"role": "user", "content": [{"type": "image_url", "image_url": url}]}])


SHAPES: dict[str, Callable[[], bytes]] = {
    "200,000 members": lambda: _chat([_user("hi")], x={f"name-{i}": i for i in range(200_000)}),
    "200,000 objects": lambda: _chat([_user("hi")], x=[{} for _ in range(200_000)]),
    "deep lists of numbers": lambda: _chat([_user("hi")], x=[[[[1.5] * 10] * 10] * 100] * 40),
    "one string": lambda: _chat([_user("long " * 1_000_000)]),
    "one escaped string": lambda: _chat([_user("é\n" * 600_000)]),
    "80,000 messages": lambda: _chat([_user(f"{i}") for i in range(80_000)]),
    "2,000 tools": lambda: _chat([_user("hi")], tools=[_tool(i) for i in range(2_000)]),
    "a conversation": conversation,
    "an image": _image,
    "not JSON": lambda: conversation()[:-1],
}


class Ticking(llm.AsyncModel):
    """Yields how late the event loop was for each event: in ms, and in ms of CPU time."""

    model_id = "ticks"

    async def execute(self, *_: Any, **__: Any) -> AsyncIterator[str]:
        while True:
            wall, cpu = time.monotonic(), time.process_time()
            await asyncio.sleep(TICK_S)
            wall_ms = (time.monotonic() - wall - TICK_S) * 1000
            cpu_ms = (time.process_time() - cpu - TICK_S) * 1000
            yield f"{wall_ms:.1f} {max(cpu_ms, 0):.1f};"


class Answering(llm.AsyncModel):
    """Answers with a word, whatever it is asked."""

    model_id = "answers"
    supports_tools = True
    attachment_types = frozenset({"image/png"})

    async def execute(self, *_: Any, **__: Any) -> AsyncIterator[str]:
        yield "yes"


class Plugin:
    """What makes llm know these models."""

    @staticmethod
    @llm.hookimpl
    def register_models(register: Any) -> None:
        for model in (Ticking(), Answering()):
            register(None, model)


def serve() -> None:
    """Be the server: the command, with the models above."""
    llm.plugins.pm.register(Plugin(), "stall")
    run([*sys.argv[2:]])


def post(path: str, body: bytes, fields: str = "") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\n{fields}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def answer(port: int, data: bytes) -> int:
    """Send a request over a connection of its own; return the status of its whole answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    try:
        writer.write(data)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None, head
        await reader.readexactly(int(length[1]))
        return int(head[9:12])
    finally:
        writer.transport.abort()


class Stalls(NamedTuple):
    """The longest delays beside one large request, in ms; `took` is its own time."""

    loop: float
    loop_cpu: float
    event: float
    small: float
    took: float


class Watch:
    """Reads the stream, and sends small requests, noting the longest delays."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._loop = self._loop_cpu = self._event = self._small = 0.0

    async def read_stream(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=2**20)
        body = {"model": "ticks", "stream": True, "messages": [_user("hi")]}
        writer.write(post(CHAT, json.dumps(body).encode()))
        await reader.readuntil(b"\r\n\r\n")
        last: float | None = None
        while line := await reader.readline():
            if not (lag := re.search(rb'"content":"([\d.]+) ([\d.]+);', line)):
                continue
            now = time.monotonic()
            if last is not None:
                self._event = max(self._event, (now - last - TICK_S) * 1000)
            last = now
            self._loop = max(self._loop, float(lag[1]))
            self._loop_cpu = max(self._loop_cpu, float(lag[2]))

    async def ask(self) -> None:
        data = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n"
        while True:
            began = time.monotonic()
            await answer(self._port, data)
            self._small = max(self._small, (time.monotonic() - began) * 1000)
            await asyncio.sleep(TICK_S)

    def take(self, took_s: float) -> Stalls:
        """Return the longest delays since the last call."""
        seen = Stalls(self._loop, self._loop_cpu, self._event, self._small, took_s * 1000)
        self._loop = self._loop_cpu = self._event = self._small = 0.0
        return seen


async def measure(port: int, rounds: int, only: str | None) -> None:
    requests: dict[str, tuple[bytes, set[int]]] = {"nothing": (b"", set())}
    for name, make in SHAPES.items():
        if only is None or only in name:
            body = make()
            fits = {400} if name == "not JSON" else {200}
            requests[f"{name}, {len(body) / 1e6:.1f} MB"] = post(CHAT, body), fits
            coded = gzip.compress(body, 6)
            coded_name = f"{name}, gzip of {len(coded) / 1e3:.0f} kB"
            requests[coded_name] = post(CHAT, coded, "content-encoding: gzip\r\n"), fits
    watch = Watch(port)
    watching = [asyncio.create_task(work) for work in (watch.read_stream(), watch.ask())]
    await asyncio.sleep(1)
    seen: dict[str, list[Stalls]] = {name: [] for name in requests}
    for _ in range(rounds):
        for name, (data, fits) in requests.items():
            watch.take(0.0)
            began = time.monotonic()
            if data:
                status = await answer(port, data)
                assert status in fits, f"{name}: {status}"
            took_s = time.monotonic() - began
            await asyncio.sleep(0.5)  # what the log still writes counts too
            seen[name].append(watch.take(took_s))
    for task in watching:
        task.cancel()
    await asyncio.gather(*watching, return_exceptions=True)
    print(f"{'ms, the median of the rounds':42} loop  its CPU  event  small request     took")
    for name, stalls in seen.items():
        loop, cpu, event, small, took = map(median, zip(*stalls, strict=True))
        print(f"{name:42} {loop:4.0f} {cpu:8.0f} {event:6.0f} {small:14.0f} {took:8.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=3, help="how many (%(default)s)")
    parser.add_argument("--only", metavar="SHAPE", help="shapes with this in their name")
    parser.add_argument("--no-log", action="store_true", help="keep nothing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, SERVE, "--port", "0", "--quiet"]
        process = subprocess.Popen(
            [*command, "--no-log"] if arguments.no_log else command,
            env=os.environ | {"LLM_USER_PATH": folder},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        try:
            place = re.search(r"http://127\.0\.0\.1:(\d+)", process.stdout.readline())
            assert place is not None, "the server did not start"
            asyncio.run(measure(int(place[1]), arguments.rounds, arguments.only))
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


if __name__ == "__main__":
    if sys.argv[1:2] == [SERVE]:
        serve()
    main()
