"""The load generator: requests over sockets and epoll, by hand, so that it costs little.

The client must be faster than the fastest server (L1), or it would measure itself; asyncio
and HTTP clients are not. It does what it needs and no more: HTTP/1.1 with kept connections,
bodies that have a length or are chunked. Every response is checked: its status, and that it
has each chunk of the scripted model.

`python -m benchmarks load PORT [--connections N] [--chunks N] [--stream] [--seconds S]` puts such
a load on a server that is running, for a profiler to look at.
"""

from __future__ import annotations

import argparse
import re
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from . import requests as rendered
from .stats import percentile

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
LAST_CHUNK = b"0\r\n\r\n"  # within JSON, line breaks are escaped
BEGAN = re.compile(rb"\^(\d+)\^")
STAMP = re.compile(rb"@(\d+)@")
RECEIVE_BYTES = 2**16
ANSWER_S = 120.0  # without any byte of any response


@dataclass
class Outcome:
    """What came of the requests; times in milliseconds.

    lags_ms: of each paced chunk, from when it was made until it was here. stalls_ms: of each
    stream, the longest wait for its next bytes. outside_ms: of each stream, from the request to
    when the model began, and from its last chunk to the end. generator_share: the part of the
    time in which the load generator itself was busy.
    """

    answered: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    generator_share: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    lags_ms: list[float] = field(default_factory=list)
    stalls_ms: list[float] = field(default_factory=list)
    outside_ms: list[float] = field(default_factory=list)

    @property
    def failed(self) -> int:
        return self.failures.total()


class Connection:
    """A connection of the load generator, and the response that it waits for."""

    __slots__ = (
        "buffer",
        "end",
        "first",
        "last",
        "made",
        "port",
        "scanned",
        "sent",
        "socket",
        "stall",
    )

    def __init__(self, port: int) -> None:
        self.port = port
        self.socket: socket.socket | None = None

    def connect(self) -> int:
        """Connect; return the socket's descriptor."""
        self.socket = socket.create_connection(("127.0.0.1", self.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Not settimeout, which makes each read poll first.
        timeout = struct.pack("ll", int(ANSWER_S), 0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
        return self.socket.fileno()

    def send(self, request: bytes) -> None:
        """Send a request."""
        assert self.socket is not None
        self.buffer: bytes | bytearray = b""
        self.end = 0  # of the response: 0 until its head is here, -1 if it is chunked
        self.scanned = 0
        self.first = self.stall = self.made = 0.0
        self.sent = self.last = time.monotonic()
        self.socket.sendall(request)

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def feed(self, data: bytes) -> bool:
        """Take bytes of the response; return whether it is complete."""
        # A small response comes at once and needs no copy.
        buffer = self.buffer
        if not buffer:
            self.buffer = buffer = data
        else:
            if not isinstance(buffer, bytearray):
                self.buffer = buffer = bytearray(buffer)
            buffer += data
        if not self.end:
            head = buffer.find(b"\r\n\r\n")
            if head < 0:
                return False
            length = LENGTH.search(buffer, 0, head)
            self.end = head + 4 + int(length[1]) if length else -1
        return buffer.endswith(LAST_CHUNK) if self.end < 0 else len(buffer) >= self.end


def run(
    port: int,
    requests: Iterator[bytes],
    connections: int = 1,
    tokens: int | None = None,
    stamped: bool = False,
) -> Outcome:
    """Send requests over some connections until there are no more, and wait for all responses.

    tokens: the chunks of the scripted model that a response must have. stamped: chunks bear
    times; their lags are taken.
    """
    outcome = Outcome()
    poll = select.epoll()
    waiting: dict[int, Connection] = {}
    for _ in range(connections):
        _connect(Connection(port), poll, waiting)
    began, began_cpu = time.monotonic(), time.process_time()
    for descriptor, connection in list(waiting.items()):
        _send_next(descriptor, connection, requests, poll, waiting, outcome)
    while waiting:
        ready = poll.poll(ANSWER_S)
        if not ready:
            outcome.failures["no answer"] += len(waiting)
            break
        for descriptor, _ in ready:
            connection = waiting[descriptor]
            if _receive(connection, outcome, tokens, stamped):
                _send_next(descriptor, connection, requests, poll, waiting, outcome)
    for connection in waiting.values():
        connection.close()
    poll.close()
    outcome.seconds = time.monotonic() - began
    outcome.generator_share = (time.process_time() - began_cpu) / outcome.seconds
    return outcome


def _connect(connection: Connection, poll: select.epoll, waiting: dict[int, Connection]) -> int:
    descriptor = connection.connect()
    poll.register(descriptor, select.EPOLLIN)
    waiting[descriptor] = connection
    return descriptor


def _send_next(
    descriptor: int,
    connection: Connection,
    requests: Iterator[bytes],
    poll: select.epoll,
    waiting: dict[int, Connection],
    outcome: Outcome,
) -> None:
    """Send the next request, on a new connection if the server has closed; or close."""
    for request in requests:
        if connection.socket is None:
            del waiting[descriptor]
            descriptor = _connect(connection, poll, waiting)
        try:
            connection.send(request)
            return
        except OSError as error:
            outcome.failures[type(error).__name__] += 1
            connection.close()
    del waiting[descriptor]
    connection.close()  # which takes it from the poll


def _receive(connection: Connection, outcome: Outcome, tokens: int | None, stamped: bool) -> bool:
    """Read what is there; whether the response has ended, one way or another."""
    assert connection.socket is not None
    try:
        data = connection.socket.recv(RECEIVE_BYTES)
    except OSError:
        data = b""
    now = time.monotonic()
    if not data:
        outcome.failures["connection closed"] += 1
        connection.close()
        return True
    if not connection.first and b"lorem" in data:
        connection.first = now
    elif now - connection.last > connection.stall:
        connection.stall = now - connection.last
    connection.last = now
    is_complete = connection.feed(data)
    if stamped:
        for stamp in STAMP.finditer(connection.buffer, connection.scanned):
            connection.made = int(stamp[1]) / 1e9
            outcome.lags_ms.append((now - connection.made) * 1000)
            connection.scanned = stamp.end()
    if not is_complete:
        return False
    buffer = connection.buffer
    if not buffer.startswith(b"HTTP/1.1 200"):
        outcome.failures[buffer[9:12].decode()] += 1
    elif b'data: {"error"' in buffer:
        outcome.failures["error in the stream"] += 1
    elif tokens is not None and buffer.count(b"lorem") != tokens:
        outcome.failures["incomplete"] += 1
    else:
        outcome.answered += 1
        outcome.latencies_ms.append((now - connection.sent) * 1000)
        outcome.first_ms.append((connection.first - connection.sent) * 1000)
        outcome.stalls_ms.append(connection.stall * 1000)
        if began := BEGAN.search(buffer) if stamped else None:
            before_s = int(began[1]) / 1e9 - connection.sent
            outcome.outside_ms.append((before_s + now - connection.made) * 1000)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("port", type=int, help="of a server on this machine that has the scripted models")
    add("--connections", type=int, default=16, help="(%(default)s)")
    add("--chunks", type=int, choices=(20, 200), default=20, help="of a response (%(default)s)")
    add("--stream", action="store_true", help="ask for streams")
    add("--seconds", type=float, default=10.0, help="(%(default)s)")
    chosen = parser.parse_args()
    questions = rendered.questions(f"scripted-{chosen.chunks}", chosen.stream)
    asked = rendered.for_seconds(questions, chosen.seconds)
    outcome = run(chosen.port, asked, chosen.connections, chosen.chunks)
    print(
        f"{outcome.answered / outcome.seconds:,.0f} responses/s,"
        f" latency p50 {percentile(outcome.latencies_ms, 50):.2f} ms,"
        f" p99 {percentile(outcome.latencies_ms, 99):.2f} ms,"
        f" own CPU {100 * outcome.generator_share:.0f} %, failed: {dict(outcome.failures) or 0}"
    )
