"""Requests as other people's parsers read them: llhttp, which is Node's, and h11."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import h11
import httptools

from llmproxy.core.errors import ProxyError
from llmproxy.core.limits import Limits
from llmproxy.transport.http11 import Request, RequestParser


@dataclass(frozen=True)
class Read:
    """One request, as far as two readers must agree on it."""

    method: bytes
    target: bytes
    fields: tuple[tuple[bytes, bytes], ...]
    body: bytes


@dataclass
class Reading:
    """What a reader makes of a connection's bytes: whole requests, and what stopped it.

    refusal: its words, None while it would read on. stopped: it reads no more, by its own rules.
    """

    requests: list[Read] = field(default_factory=list)
    refusal: str | None = None
    stopped: bool = False


def read_by_us(data: bytes, limits: Limits) -> tuple[Reading, list[Request]]:
    """Read up to the request that ends the connection, as the server does."""
    parser, reading, requests = RequestParser(limits), Reading(), []
    parser.feed(data)
    try:
        while not reading.stopped and (request := parser.next_request()):
            fields = tuple((n.encode(), v.encode("latin-1")) for n, v in request.headers)
            method, target = request.method.encode(), request.target.encode()
            reading.requests.append(Read(method, target, fields, request.body))
            requests.append(request)
            reading.stopped = not request.keep_alive
    except ProxyError as error:
        reading.refusal = error.message
    return reading, requests


class _Heard:
    """What llhttp calls back with."""

    def __init__(self) -> None:
        self.reading = Reading()
        self.parser: Any = None

    def on_message_begin(self) -> None:
        self.target = self.body = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.in_body = False

    def on_url(self, data: bytes) -> None:
        self.target += data

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.in_body:  # else it is a trailer
            # The span ends with the line; Node takes the white space away.
            self.fields.append((name.lower(), (value or b"").strip(b" \t")))

    def on_headers_complete(self) -> None:
        self.in_body = True

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        read = Read(self.parser.get_method(), self.target, tuple(self.fields), self.body)
        self.reading.requests.append(read)


def read_by_llhttp(data: bytes) -> Reading:
    """Read as Node does."""
    heard = _Heard()
    heard.parser = httptools.HttpRequestParser(heard)
    try:
        heard.parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        heard.reading.stopped = True
    except httptools.HttpParserError as error:
        heard.reading.refusal = str(error) or type(error).__name__
    return heard.reading


def read_by_h11(data: bytes) -> Reading:
    """Read as h11's server does (uvicorn's, hypercorn's)."""
    connection, reading = h11.Connection(h11.SERVER), Reading()
    connection.receive_data(data)
    head, body = h11.Request(method="GET", target="/", headers=[("host", "a")]), b""
    try:
        while (event := connection.next_event()) is not h11.NEED_DATA:
            match event:
                case h11.Request():
                    head, body = event, b""
                case h11.Data():
                    body += bytes(event.data)
                case h11.EndOfMessage():
                    fields = tuple((bytes(n), bytes(v)) for n, v in head.headers)
                    read = Read(bytes(head.method), bytes(head.target), fields, body)
                    reading.requests.append(read)
                    connection.send(h11.Response(status_code=200, headers=[]))
                    connection.send(h11.EndOfMessage())
                    connection.start_next_cycle()
                case _:
                    reading.stopped = True
                    break
    except h11.RemoteProtocolError as error:
        reading.refusal = str(error)
    except h11.LocalProtocolError:  # the connection is not to be used again
        reading.stopped = True
    return reading
