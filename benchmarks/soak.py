"""Send a hundred thousand requests to one server and see whether it grows.

A real `python -m llmproxy` answers by its demo model: two wires, streamed and whole,
over kept and new connections, with clients that hang up and requests that are refused
in between. One request of `HOSTILE` is an attack on its memory: many JSON values in
little gzip, a large body, an id of a megabyte, a model that goes on with empty events and
spaces, long replies that come back to be recalled. At intervals its memory, file
descriptors, threads and write-ahead log are printed, and what of the memory Python's objects
(in blocks) and malloc have in use; the rest are gaps, which are used again; and how much of
that the caches of content count for theirs. It ends with
whether they stayed flat after a warm-up, and with exit code 1 where they did not, or where
any answer was wrong:
`python -m benchmarks soak [--requests N] [--no-log]`.
Linux alone: what a process holds is read from /proc.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import gzip
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import llm
import llm.plugins
from llm.parts import StreamEvent

from llmproxy.cli.main import run
from llmproxy.core.byte_cache import ByteCache

WARM_UP = 0.3  # of all requests: caches fill, the allocator finds its size
MORE_MEMORY = 0.05  # of what it is after the warm-up, that is no growth yet …
MORE_MEMORY_MIB = 4.0  # … nor is this
MORE_WAL_MIB = 64.0  # a write-ahead log is as long as its longest time between checkpoints
TURNS = 5  # of each conversation, sent again with one more each time, as clients do
NEW_CONNECTION = 7  # each so many'th request of a client has a connection of its own
ANSWER_S = 60.0
HOSTILE = 40  # each so many'th request is an attack
ENDLESS, LONG, MEMORY = "endless", "long", "memory"
SERVE = "--serve"  # as the first argument


@dataclass(frozen=True)
class Sample:
    """What the server's process holds after so many requests."""

    requests: int
    seconds: float
    memory_mib: float
    descriptors: int
    threads: int
    wal_mib: float
    blocks: int
    malloc_mib: float
    caches: dict[str, list[int]]  # bytes in use, and at most, by name


@dataclass(frozen=True)
class Asked:
    """A request, the status it is to have, what its answer ends with, and how it is read."""

    data: bytes
    status: int
    said: bytes
    last: bytes = b""
    hangs_up: bool = False


def asked(i: int, client: int, said: str) -> Asked:
    """The i'th request of a client: its kind goes round, its conversation goes on."""
    if i % HOSTILE == HOSTILE - 1:
        return attack(i // HOSTILE, client)
    messages = []
    for turn in range(i // 8 % TURNS):
        messages += [
            {"role": "user", "content": f"client {client}, turn {turn} before {said}"},
            {"role": "assistant", "content": f"answer {turn}"},
        ]
    messages.append({"role": "user", "content": said})
    body = {"model": "demo", "messages": messages, "max_tokens": 100}
    said_back = f"You said: {said}".encode()
    chat, messages_path = "/v1/chat/completions", "/v1/messages"
    match i % 8:
        case 0 | 5:
            last = b"data: [DONE]\n\n"
            return Asked(post(chat, body | {"stream": True}), 200, b"", last)
        case 1:
            last = b'data: {"type":"message_stop"}\n\n'
            return Asked(post(messages_path, body | {"stream": True}), 200, b"", last)
        case 2:
            return Asked(post(chat, body), 200, said_back)
        case 3:
            return Asked(post(messages_path, body), 200, said_back)
        case 4:
            data = post(chat, body | {"stream": True})
            return Asked(data, 200, b"", hangs_up=i % 16 < 8)
        case 6:
            return Asked(post(chat, body | {"model": f"nobody {i}"}), 404, b"there is no model")
    if i % 16 < 8:
        return Asked(post(messages_path, {"messages": "none"}), 400, b"invalid_request_error")
    return Asked(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n", 200, b'"demo"')


def attack(i: int, client: int) -> Asked:
    """The i'th request that is made to take memory."""
    chat = "/v1/chat/completions"
    said = f"attack {i} of client {client}"
    messages = [{"role": "user", "content": said}]
    body = {"model": "demo", "messages": messages}
    match i % 6:
        case 0:
            data = gzip.compress(b"[" + b"{}," * 1_000_000 + b"1]", 1)
            return Asked(post(chat, data, "content-encoding: gzip\r\n"), 400, b"JSON values")
        case 1:
            members = {f"member-{number}": said for number in range(20_000)}
            return Asked(post(chat, body | {"metadata": members}), 200, said.encode())
        case 2:
            result = {"role": "tool", "tool_call_id": "x" * 1_000_000, "content": ""}
            return Asked(post(chat, body | {"messages": [*messages, result]}), 400, b"waits for a")
        case 3:
            return Asked(post(chat, body | {"model": ENDLESS}), 502, b"limit answer")
    messages = [{"role": "user", "content": f"long {i // 6} of client {client}"}]
    if i % 6 == 5:
        reply = {"role": "assistant", "content": long_reply(messages[0]["content"])}
        messages = [*messages, reply, {"role": "user", "content": said}]
    return Asked(post(chat, body | {"model": LONG, "messages": messages}), 200, b"long ")


def post(path: str, body: object, fields: str = "") -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\n{fields}content-length: {len(data)}\r\n\r\n"
    return head.encode() + data


def long_reply(prompt: str) -> str:
    return f"{prompt}: " + "long " * 40_000


class Endless(llm.AsyncModel):
    """A model that calls a tool, and then goes on with nothing."""

    model_id = ENDLESS

    async def execute(self, *_: Any, **__: Any) -> AsyncIterator[StreamEvent]:
        yield StreamEvent("tool_call_name", "look", tool_call_id="x")
        while True:
            yield StreamEvent("text", " ")
            yield StreamEvent("text", "")


class Long(llm.AsyncModel):
    """A model whose replies are long."""

    model_id = LONG

    async def execute(self, prompt: llm.Prompt, *_: Any, **__: Any) -> AsyncIterator[str]:
        yield long_reply(prompt.prompt)


class Memory(llm.AsyncModel):
    """Answers how many blocks Python has allocated, how many bytes malloc, and the caches."""

    model_id = MEMORY

    async def execute(self, *_: Any, **__: Any) -> AsyncIterator[str]:
        gc.collect()
        info = ctypes.CDLL(None).mallinfo2
        info.restype = MallocInfo
        seen = info()
        yield json.dumps([sys.getallocatedblocks(), seen.uordblks + seen.hblkhd, caches()])


def caches() -> dict[str, list[int]]:
    """Find all caches of content: their sizes, and what these may be."""
    return {
        f"{type(owner).__name__}.{name}": [value.size_bytes, value.max_bytes]
        for owner in gc.get_objects()
        if type(owner).__module__.startswith("llmproxy.")
        for name, value in getattr(owner, "__dict__", {}).items()
        if isinstance(value, ByteCache)
    }


class MallocInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`; see mallinfo(3)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
        )
    ]


class Plugin:
    """What makes llm know these models."""

    @staticmethod
    @llm.hookimpl
    def register_models(register: Any) -> None:
        for model in (Endless(), Long(), Memory()):
            register(None, model)


def serve() -> None:
    """Be the server: the command, with the models above."""
    llm.plugins.pm.register(Plugin(), "soak")
    run([*sys.argv[2:]])


class Client:
    """One client, which asks one request after the other and checks each answer."""

    def __init__(self, number: int, port: int) -> None:
        self._number = number
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def run(self, requests: Iterator[int]) -> None:
        for i in requests:
            await asyncio.wait_for(self._ask(i), ANSWER_S)
        self._close()

    async def _ask(self, i: int) -> None:
        if i % NEW_CONNECTION == 0:
            self._close()
        request = asked(i, self._number, f"word {i}")
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=2**20)
        reader, writer = self._streams
        writer.write(request.data)
        if request.hangs_up:
            await asyncio.sleep(0.001 * (i % 5))
            self._close()
            return
        status, body = await answer(reader)
        if status != request.status or request.said not in body or not body.endswith(request.last):
            raise AssertionError(f"request {i} was answered {status} {body[-500:]!r}")

    def _close(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Read a whole answer: its status and its body, that of a stream without its chunks."""
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head[9:12])
    if length := re.search(rb"content-length: (\d+)", head):
        return status, await reader.readexactly(int(length[1]))
    body = bytearray()
    while size := int((await reader.readuntil(b"\r\n")), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
    return status, bytes(body)


def sample(
    process: subprocess.Popen[str], port: int, log: Path, requests: int, seconds: float
) -> Sample:
    folder = Path("/proc") / str(process.pid)
    words = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    memory_mib = int(words["VmRSS"].split()[0]) / 1024
    descriptors = len(list((folder / "fd").iterdir()))
    wal = log.with_name(f"{log.name}-wal")
    wal_mib = wal.stat().st_size / 2**20 if wal.exists() else 0.0
    messages = [{"role": "user", "content": "memory"}]
    body = json.dumps({"model": MEMORY, "messages": messages}).encode()
    with urlopen(f"http://127.0.0.1:{port}/v1/chat/completions", body, ANSWER_S) as response:
        text = json.load(response)["choices"][0]["message"]["content"]
    blocks, malloc_bytes, caches = json.loads(text)
    return Sample(
        requests,
        seconds,
        memory_mib,
        descriptors,
        int(words["Threads"]),
        wal_mib,
        blocks,
        malloc_bytes / 2**20,
        caches,
    )


class Soak:
    """All the clients of one server, and what was seen of it."""

    def __init__(
        self, process: subprocess.Popen[str], port: int, log: Path, concurrency: int
    ) -> None:
        self._process = process
        self._port = port
        self._log = log
        self._concurrency = concurrency
        self._began = time.monotonic()
        self._seen = Sample(0, 0.0, 0.0, 0, 0, 0.0, 0, 0.0, {})
        self._sent = 0

    async def run(self, requests: int) -> tuple[Sample, Sample]:
        """Send all of them; give what the server holds at rest after the warm-up and at the end."""
        print(
            " requests  seconds  rate/s  RSS (MiB)  descriptors  threads  WAL (MiB)"
            "   blocks  malloc (MiB)  caches (MiB)"
        )
        self._look()
        warm = await self._send(round(requests * WARM_UP), requests // 20)
        return warm, await self._send(requests, requests // 20)

    async def _send(self, until: int, step: int) -> Sample:
        numbers = self._numbers(until)
        clients = [Client(n, self._port).run(numbers) for n in range(self._concurrency)]
        running = asyncio.gather(*clients)
        while not running.done():
            await asyncio.wait({running}, timeout=0.05)
            if self._sent >= self._seen.requests + step:
                self._look()
        await running
        await rest(self._port)
        return self._look("at rest")

    def _numbers(self, until: int) -> Iterator[int]:
        while self._sent < until:
            self._sent += 1
            yield self._sent - 1

    def _look(self, words: str = "") -> Sample:
        before = self._seen
        seconds = time.monotonic() - self._began
        seen = sample(self._process, self._port, self._log, self._sent, seconds)
        self._seen = seen
        rate = (seen.requests - before.requests) / (seen.seconds - before.seconds)
        print(
            f"{seen.requests:9} {seen.seconds:8.0f} {rate:7.0f} {seen.memory_mib:10.1f}"
            f" {seen.descriptors:12} {seen.threads:8} {seen.wal_mib:10.1f}"
            f" {seen.blocks:8} {seen.malloc_mib:13.1f} {cached_mib(seen):13.1f}  {words}",
            flush=True,
        )
        return seen


def cached_mib(sample: Sample) -> float:
    return sum(size for size, _ in sample.caches.values()) / 2**20


async def rest(port: int) -> None:
    """Wait until the server has seen all hang-ups and its log has everything."""
    for _ in range(600):
        await asyncio.sleep(0.1)
        health = json.loads(await asyncio.to_thread(get, port, "/healthz"))
        gauges = (await asyncio.to_thread(get, port, "/metrics")).decode()
        connections = re.search(r"^llmproxy_connections (\d+)", gauges, re.M)
        assert connections is not None
        if not health["running"] and not health["log_queue"] and connections[1] == "1":
            await asyncio.sleep(1.0)  # until that one, of the question, is closed too
            return
    raise AssertionError(f"the server did not come to rest: {health}")


def get(port: int, path: str) -> bytes:
    with urlopen(f"http://127.0.0.1:{port}{path}", timeout=ANSWER_S) as response:
        return bytes(response.read())


def growth(warm: Sample, last: Sample) -> list[str]:
    """Say what has grown since the warm-up."""
    grown = []
    more_mib = last.memory_mib - warm.memory_mib
    if more_mib > max(MORE_MEMORY * warm.memory_mib, MORE_MEMORY_MIB):
        per_request = more_mib * 2**20 / (last.requests - warm.requests)
        grown.append(f"memory, by {per_request:.0f} bytes a request")
    if last.blocks > (1 + MORE_MEMORY) * warm.blocks:
        grown.append(f"Python's blocks, by {last.blocks - warm.blocks}")
    if last.wal_mib > max(2 * warm.wal_mib, MORE_WAL_MIB):
        grown.append("the write-ahead log")
    if last.descriptors > warm.descriptors:
        grown.append("descriptors")
    if last.threads > warm.threads:
        grown.append("threads")
    return grown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--requests", type=int, default=100_000, help="how many (%(default)s)")
    parser.add_argument("--concurrency", type=int, default=16, help="clients (%(default)s)")
    parser.add_argument("--no-log", action="store_true", help="keep nothing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        limits = ["--limit", "answer=2000000"]
        command = [sys.executable, __file__, SERVE, "--port", "0", "--quiet", *limits]
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
            log = Path(folder) / "logs.db"
            soak = Soak(process, int(place[1]), log, arguments.concurrency)
            warm, last = asyncio.run(soak.run(arguments.requests))
            process.send_signal(signal.SIGTERM)
            code = process.wait(ANSWER_S)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        if not arguments.no_log:
            with sqlite3.connect(Path(folder) / "logs.db") as database:
                counts = "select status, count(*) from proxy_exchanges group by status"
                print(f"log: {dict(database.execute(counts).fetchall())}")
    for name, (size, most) in sorted(last.caches.items()):
        before, _ = warm.caches.get(name, (0, most))
        print(f"{name:22} {before / 2**20:6.1f} → {size / 2**20:5.1f} of {most / 2**20:3.0f} MiB")
    grown = growth(warm, last)
    print(f"grew: {', '.join(grown)}" if grown else "memory, descriptors and threads stayed flat")
    if code != 0:
        print(f"the server ended with {code}")
    return 1 if grown or code != 0 else 0


if __name__ == "__main__":
    if sys.argv[1:2] == [SERVE]:
        serve()
    sys.exit(main())
