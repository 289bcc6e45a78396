"""Requests that go to an upstream byte for byte, and their responses."""

from __future__ import annotations

import gzip
import json
import socket
from operator import attrgetter
from typing import Any
from urllib.parse import urlsplit

import pytest

from llmproxy import dialects
from llmproxy.core import backend
from llmproxy.dialects import DIALECTS
from tests.proxies import running
from tests.raw_provider import (
    CLOSE,
    begin_chunked,
    chunk,
    end_chunks,
    playing_raw,
    response,
    single_bytes,
)
from tests.wire_cases import wire_cases

KEY = "sk-canary-of-the-client-0123456789"
WAIT_S = 20
CASES = [(dialect, case) for dialect in DIALECTS for case in wire_cases(dialect.NAME)]


def settings(provider: Any, dialect: Any, **more: Any) -> dict[str, Any]:
    return {
        "upstreams": [f"far={dialect.NAME}+{provider.url}"],
        "passthrough": "far",
        **more,
    }


def send(
    url: str,
    path: str,
    body: bytes,
    headers: tuple[tuple[str, str], ...] = (),
    method: str = "POST",
) -> bytes:
    """Send a request on a connection of its own; return all bytes of the response."""
    where = urlsplit(url)
    fields = [
        ("Host", "localhost"),
        ("User-Agent", "odd/1"),
        ("X-Api-Key", KEY),
        ("X-Odd-CASE", "a,  b"),
        ("anthropic-beta", "one-2025-01-01,two"),
        ("Content-Type", "application/json"),
        *headers,
        ("Connection", "close"),
    ]
    if method == "POST":
        fields.append(("Content-Length", str(len(body))))
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields), "", ""]
    with socket.create_connection((where.hostname, where.port), WAIT_S) as connection:
        connection.sendall("\r\n".join(lines).encode() + body)
        received = b""
        while data := connection.recv(2**16):
            received += data
    return received


def parts(received: bytes) -> tuple[bytes, list[bytes], bytes]:
    """Return status line, fields and decoded body of a response."""
    head, _, body = received.partition(b"\r\n\r\n")
    status, *fields = head.split(b"\r\n")
    is_chunked = any(field.lower().startswith(b"transfer-encoding") for field in fields)
    if is_chunked:
        rest, body = body, b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size.partition(b";")[0], 16)
            if not length:
                break
            body += rest[:length]
            rest = rest[length + 2 :]
    hop = (b"transfer-encoding", b"connection")
    return status, [field for field in fields if not field.lower().startswith(hop)], body


def path_of(dialect: Any) -> str:
    return backend.chat_path(dialect.ROUTES)


def compact(value: Any) -> bytes:
    """JSON with spaces and escapes that no renderer of ours would write."""
    return json.dumps(value, indent=1, ensure_ascii=True).encode()


FRAMINGS = {
    "whole": lambda body: [begin_chunked(), chunk(body), end_chunks()],
    "bytes": lambda body: [
        begin_chunked(),
        *(chunk(piece, b";name=value") for piece in single_bytes(body)),
        end_chunks(b"X-Trailer: 1\r\n"),
    ],
    "until the end": lambda body: [
        b"HTTP/1.1 200 Fine\r\nContent-Type: text/event-stream\r\n\r\n" + body,
        CLOSE,
    ],
    "gzip": lambda body: [
        begin_chunked(
            headers=[("Content-Type", "text/event-stream"), ("Content-Encoding", "gzip")]
        ),
        chunk(gzip.compress(body)),
        end_chunks(),
    ],
    "length": lambda body: [response(body, headers=[("Content-Type", "text/event-stream")])],
}


@pytest.mark.parametrize(
    ("dialect", "case"), CASES, ids=[f"{one.NAME}-{case.name}" for one, case in CASES]
)
def test_a_captured_exchange_passes_byte_for_byte(dialect, case):
    request = compact(case.request)
    whole = compact(case.response or {"odd": ["of", "last week"]})
    stream = case.stream or b": nothing\n\nevent: odd\ndata: {}\n\n"
    answers = [
        [response(whole, headers=[("Content-Type", "application/json"), ("Request-Id", "r1")])],
        FRAMINGS["whole"](stream),
    ]
    with playing_raw(*answers, *answers) as provider:
        with running(**settings(provider, dialect)) as proxy:
            path = path_of(dialect) + "?beta=true"
            through = [send(proxy.url, path, request) for _ in answers]
            exchanges = (proxy.wait_for_report(2), proxy.reports)[1]
        direct = [send(provider.url, path, request) for _ in answers]
    for here, there in zip(through, direct, strict=True):
        assert parts(here) == parts(there)
    for here, there in zip(provider.requests[:2], provider.requests[2:], strict=True):
        assert (here.method, here.target, here.body) == (there.method, there.target, there.body)
        own = ("host", "connection", "accept-encoding", "x-llmproxy-via")
        sent, direct_sent = (
            [field for field in one.headers if field[0].lower() not in own] for one in (here, there)
        )
        assert sent == direct_sent
    assert [one.http_status for one in exchanges] == [200, 200]
    assert {one.upstream for one in exchanges} == {"far"}
    if case.stream and case.response:
        assert {one.status for one in exchanges} == {"ok"}, [one.error for one in exchanges]
        reply, streamed = (one.turn.reply for one in exchanges)
        assert reply == streamed
        assert reply
