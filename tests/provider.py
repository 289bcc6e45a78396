"""A provider's side of the wire, played on loopback for plugins that would call the real one."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Say = Callable[[bytes], None]


@dataclass
class Provider:
    """What was asked, and what to answer: `answer(body, say, handler)` for each POST."""

    url: str
    answer: Callable[[dict[str, Any], BaseHTTPRequestHandler], None]
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    hung_up: threading.Event = field(default_factory=threading.Event)


@contextmanager
def playing(
    answer: Callable[[dict[str, Any], BaseHTTPRequestHandler], None],
    tls: ssl.SSLContext | None = None,
) -> Iterator[Provider]:
    """Run a provider on a free port of loopback, over TLS if this is given."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"  # the end of the connection ends a stream

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            provider.bodies.append(body)
            provider.headers.append({k.lower(): v for k, v in self.headers.items()})
            try:
                provider.answer(body, self)
            except OSError:
                provider.hung_up.set()

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    scheme = "http" if tls is None else "https"
    provider = Provider(f"{scheme}://127.0.0.1:{server.server_port}", answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield provider
    finally:
        server.shutdown()
        server.server_close()


def say_json(
    handler: BaseHTTPRequestHandler, value: Any, status: int = 200, **headers: str
) -> None:
    """Answer with a JSON body."""
    text = json.dumps(value).encode()
    handler.send_response(status)
    handler.send_header("content-type", "application/json")
    handler.send_header("content-length", str(len(text)))
    for name, word in headers.items():
        handler.send_header(name.replace("_", "-"), word)
    handler.end_headers()
    handler.wfile.write(text)


def begin_sse(handler: BaseHTTPRequestHandler) -> None:
    """Begin an event stream."""
    handler.send_response(200)
    handler.send_header("content-type", "text/event-stream")
    handler.end_headers()


def say_event(handler: BaseHTTPRequestHandler, data: Any, event: str | None = None) -> None:
    """Send one event of a stream."""
    name = f"event: {event}\n" if event else ""
    text = data if isinstance(data, str) else json.dumps(data)
    handler.wfile.write(f"{name}data: {text}\n\n".encode())
    handler.wfile.flush()


def chat_chunk(delta: dict[str, Any], finish_reason: str | None = None, **extra: Any) -> Any:
    """One chunk as OpenAI sends it."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    chunk = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "real-model"}
    return chunk | {"choices": [choice]} | extra


def chat_stream(*deltas: dict[str, Any], finish_reason: str = "stop", **extra: Any) -> Any:
    """An answer that streams these deltas as OpenAI does, usage at the end."""

    def answer(body: dict[str, Any], handler: BaseHTTPRequestHandler) -> None:
        begin_sse(handler)
        say_event(handler, chat_chunk({"role": "assistant", "content": ""}))
        for delta in deltas:
            say_event(handler, chat_chunk(delta))
        say_event(handler, chat_chunk({}, finish_reason, **extra))
        counts = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
        say_event(handler, chat_chunk({}) | {"choices": [], "usage": counts})
        say_event(handler, "[DONE]")

    return answer
