"""The load generator: requests over sockets and epoll, by hand, so that it costs little.

The client must be faster than the fastest server (L1), or it would measure itself; asyncio
and HTTP clients are not. It does what it needs and no more: HTTP/1.1 with kept connections,
bodies that have a length or are chunked. Every response is checked: its status, and that it
has each chunk of the scripted model.
"""

from __future__ import annotations

import json
import re
import select
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

STAMP = re.compile(rb"@(\d+)@")
RECEIVE_BYTES = 2**18
ANSWER_S = 120.0  # without any byte of any response


@dataclass
class Outcome:
    """What came of the requests; times in milliseconds.

    lags_ms: of each paced chunk, from when it was made until it was here. stalls_ms: of each
    stream, the longest wait for its next bytes. generator_share: the part of the time in which
    the load generator itself was busy.
    """

    answered: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    generator_share: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    lags_ms: list[float] = field(default_factory=list)
    stalls_ms: list[float] = field(default_factory=list)

    @property
    def failed(self) -> int:
        return self.failures.total()


def post(body: Any, path: str = "/v1/chat/completions") -> bytes:
    """Render a request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nuser-agent: benchmark\r\n"
        f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def questions(model: str, stream: bool) -> Iterator[bytes]:
    """Yield requests of one message without end; each asks something else."""
    messages = [{"role": "user", "content": "question %08d"}]
    template = json.dumps({"model": model, "stream": stream, "messages": messages}).encode()
    length = len(template % 0)
    request = post(template).replace(b": %d\r\n" % len(template), b": %d\r\n" % length)
    number = time.monotonic_ns() // 1000 % 90_000_000  # not what another round has asked
    while True:
        number += 1
        yield request % number


def for_seconds(requests: Iterator[bytes], seconds: float) -> Iterator[bytes]:
    """Yield requests until the time is over, and at least one."""
    end = time.monotonic() + seconds
    yield next(requests)
    while time.monotonic() < end:
        yield next(requests)


class Connection:
    """A connection of the load generator, and the response that it waits for."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.buffer = bytearray()
        self.socket: socket.socket | None = None

    def send(self, request: bytes) -> int:
        """Send a request, on a new connection if the server has closed; return the descriptor."""
        self.buffer = bytearray()
        self.end = 0  # of the response: 0 until its head is here, -1 if it is chunked
        self.scanned = 0
        self.first = 0.0
        self.stall = 0.0
        if self.socket is None:
            self.socket = socket.create_connection(("127.0.0.1", self.port))
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent = self.last = time.monotonic()
        self.socket.sendall(request)
        return self.socket.fileno()

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def is_complete(self) -> bool:
        """Whether the response is all here."""
        if not self.end:
            head = self.buffer.find(b"\r\n\r\n")
            if head < 0:
                return False
            _, found, rest = bytes(self.buffer[:head]).lower().partition(b"\r\ncontent-length:")
            self.end = head + 4 + int(rest.split(b"\r\n", 1)[0]) if found else -1
        if self.end < 0:
            return self.buffer.endswith(b"0\r\n\r\n")
        return len(self.buffer) >= self.end


def run(
    port: int, requests: Iterator[bytes], connections: int, tokens: int, stamped: bool = False
) -> Outcome:
    """Send requests over some connections until there are no more, and wait for all responses.

    tokens: the chunks of the scripted model that a response must have. stamped: chunks bear
    times; their lags are taken.
    """
    outcome = Outcome()
    poll = select.epoll()
    waiting: dict[int, Connection] = {}
    began, began_cpu = time.monotonic(), time.process_time()
    for _ in range(connections):
        request = next(requests, None)
        if request is None:
            break
        _send(Connection(port), request, poll, waiting)
    while waiting:
        ready = poll.poll(ANSWER_S)
        if not ready:
            outcome.failures["no answer"] += len(waiting)
            break
        for descriptor, _ in ready:
            connection = waiting[descriptor]
            if not _receive(connection, outcome, tokens, stamped):
                continue
            request = next(requests, None)
            if request is not None and connection.socket is not None:
                connection.send(request)
                continue
            del waiting[descriptor]
            if connection.socket is not None:
                poll.unregister(descriptor)
                connection.close()
            if request is not None:
                _send(connection, request, poll, waiting)
    for connection in waiting.values():
        connection.close()
    poll.close()
    outcome.seconds = time.monotonic() - began
    outcome.generator_share = (time.process_time() - began_cpu) / outcome.seconds
    return outcome


def _send(
    connection: Connection, request: bytes, poll: select.epoll, waiting: dict[int, Connection]
) -> None:
    descriptor = connection.send(request)
    poll.register(descriptor, select.EPOLLIN)
    waiting[descriptor] = connection


def _receive(connection: Connection, outcome: Outcome, tokens: int, stamped: bool) -> bool:
    """Read what is there; whether the response has ended, one way or another."""
    assert connection.socket is not None
    try:
        data = connection.socket.recv(RECEIVE_BYTES)
    except ConnectionError:
        data = b""
    now = time.monotonic()
    if not data:
        outcome.failures["connection closed"] += 1
        connection.close()
        return True
    buffer = connection.buffer
    buffer += data
    if not connection.first and b"token" in data:
        connection.first = now
    elif now - connection.last > connection.stall:
        connection.stall = now - connection.last
    connection.last = now
    if stamped:
        for stamp in STAMP.finditer(buffer, connection.scanned):
            outcome.lags_ms.append(now * 1000 - int(stamp[1]) / 1e6)
            connection.scanned = stamp.end()
    if not connection.is_complete():
        return False
    if not buffer.startswith(b"HTTP/1.1 200"):
        outcome.failures[buffer[9:12].decode()] += 1
    elif buffer.count(b"token ") != tokens:
        outcome.failures["error in the stream" if b'"error"' in buffer else "incomplete"] += 1
    elif b'data: {"error"' in buffer:
        outcome.failures["error in the stream"] += 1
    else:
        outcome.answered += 1
        outcome.latencies_ms.append((now - connection.sent) * 1000)
        outcome.first_ms.append((connection.first - connection.sent) * 1000)
        outcome.stalls_ms.append(connection.stall * 1000)
    return True
