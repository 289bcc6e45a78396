"""Servers that do as little as a server in Python can: the limits that others are compared with.

`python limit_servers.py raw PORT` (L1) is an asyncio Protocol that writes ready bytes, a
write per chunk. `… streams PORT` (L2) uses asyncio's streams and `json.dumps` for each
chunk. Both read the request's JSON, for the model's name, and answer as the scripted models
do (scripted_model/). Neither has errors, limits, a log, or llm.

`… relay PORT UPSTREAM` is the limit of what passes bytes on: it copies them to another port and
back, and knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from functools import cache
from typing import Any

BUFFER_BYTES = 2**20  # of the stream reader
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: "
STREAM_HEAD = HEAD + b"text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LAST = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


def script(model: str) -> tuple[int, float]:
    """Return how many chunks a model yields, and its pause before each in seconds."""
    _, chunks, *pause = model.split("-")
    return int(chunks), int(pause[0].removesuffix("ms")) / 1000 if pause else 0.0


def frame(model: str, text: str, finish: str | None = None) -> bytes:
    """Render a chunk of a stream as OpenAI has it."""
    choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": finish}
    chunk = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": model,
        "choices": [choice],
    }
    data = b"data: %b\n\n" % json.dumps(chunk, separators=(",", ":")).encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


def whole(model: str, text: str) -> bytes:
    """Render a whole response."""
    message = {"role": "assistant", "content": text, "refusal": None}
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    }
    data = json.dumps(body, separators=(",", ":")).encode()
    return HEAD + b"application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(data), data)


@cache
def ready_whole(model: str) -> bytes:
    return whole(model, "lorem lorem, " * (script(model)[0] // 2))


@cache
def ready_frames(model: str) -> tuple[bytes, bytes]:
    return frame(model, "lorem "), frame(model, "lorem, ")


@cache
def ready_last(model: str) -> bytes:
    return frame(model, "", "stop") + LAST


@cache
def ready_stamped(model: str) -> tuple[bytes, bytes]:
    before, after = frame(model, f"@{time.monotonic_ns()}@ lorem ").split(b"@")[::2]
    return before, after


class Raw(asyncio.Protocol):
    """L1: a connection that writes ready bytes."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._end = 0  # of the request in the buffer; 0 if its head is not all there
        self._transport: asyncio.Transport
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        if not self._end:
            head = buffer.find(b"\r\n\r\n")
            if head < 0:
                return
            self._body = head + 4
            self._end = self._body + content_length(buffer[:head])
        if len(buffer) < self._end:
            return
        body = json.loads(buffer[self._body : self._end])
        del buffer[: self._end]
        self._end = 0
        self._answer(body["model"], body.get("stream", False))

    def _answer(self, model: str, is_stream: bool) -> None:
        write = self._transport.write
        if not is_stream:
            write(ready_whole(model))
            return
        chunks, pause_s = script(model)
        write(STREAM_HEAD)
        if pause_s:
            self._task = asyncio.create_task(self._pace(model, chunks, pause_s))
            return
        first, second = ready_frames(model)
        for _ in range(chunks // 2):
            write(first)
            write(second)
        write(ready_last(model))

    async def _pace(self, model: str, chunks: int, pause_s: float) -> None:
        before, after = ready_stamped(model)
        for _ in range(chunks):
            await asyncio.sleep(pause_s)
            self._transport.write(b"%b@%d@%b" % (before, time.monotonic_ns(), after))
        self._transport.write(ready_last(model))


def content_length(head: bytes | bytearray) -> int:
    """Return the length of a request's body, 0 if its head gives none."""
    _, found, rest = bytes(head).lower().partition(b"content-length:")
    return int(rest.split(b"\r\n", 1)[0]) if found else 0


async def texts(model: str) -> AsyncIterator[str]:
    """Yield the chunks of a scripted model."""
    chunks, pause_s = script(model)
    for i in range(chunks):
        if pause_s:
            await asyncio.sleep(pause_s)
            yield f"@{time.monotonic_ns()}@ lorem "
        else:
            yield "lorem, " if i % 2 else "lorem "


async def serve_streams(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """L2: a connection on asyncio's streams that renders each chunk with json.dumps."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            body: dict[str, Any] = json.loads(await reader.readexactly(content_length(head)))
            model = body["model"]
            if not body.get("stream", False):
                writer.write(whole(model, "".join([text async for text in texts(model)])))
                await writer.drain()
                continue
            writer.write(STREAM_HEAD)
            async for text in texts(model):
                writer.write(frame(model, text))
                await writer.drain()
            writer.write(frame(model, "", "stop") + LAST)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


class Relay(asyncio.Protocol):
    """One side of a relayed connection; the client's connects the other."""

    def __init__(self, upstream: int, other: Relay | None = None) -> None:
        self._upstream = upstream
        self._other = other
        self._early: list[bytes] = []
        self._transport: asyncio.Transport
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._other is None:
            self._task = asyncio.create_task(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        _, self._other = await loop.create_connection(
            lambda: Relay(self._upstream, self), "127.0.0.1", self._upstream
        )
        self._other._transport.write(b"".join(self._early))

    def data_received(self, data: bytes) -> None:
        if self._other is None:
            self._early.append(data)
        else:
            self._other._transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._other is not None:
            self._other._transport.close()


async def main(kind: str, port: int, upstream: int = 0) -> None:
    loop = asyncio.get_running_loop()
    if kind == "relay":
        server: asyncio.Server = await loop.create_server(
            lambda: Relay(upstream), "127.0.0.1", port, backlog=1024
        )
    elif kind == "raw":
        server = await loop.create_server(Raw, "127.0.0.1", port, backlog=1024)
    else:
        server = await asyncio.start_server(
            serve_streams, "127.0.0.1", port, limit=BUFFER_BYTES, backlog=1024
        )
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:])))
