"""What a request leaves behind is freed when it ends, without the garbage collector.

A full collection looks at every object of the process and holds all threads meanwhile. A
cycle that holds a request keeps its memory until then.
"""

from __future__ import annotations

import contextlib
import gc
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from llmproxy.core.limits import Limits
from tests.models import AsyncScript, SyncScript, tool_call, usage
from tests.proxies import Running, running

USER = {"role": "user", "content": "hi"}
HISTORY = [USER, {"role": "assistant", "content": "yes"}] * 5 + [USER]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
LARGE = {f"name-{i}": [i] for i in range(10_000)}

# asyncio's transports refer to themselves, json's functions for encoding in pieces to each other.
SMALL = {"_SelectorSocketTransport", "TransportSocket", "socket", "tuple", "dict", "method"}
SMALL |= {"function", "cell"}
SMALL |= {"FreezableDefaultDict"}  # of importlib.metadata, when the list of models is read again


def chat(**members: Any) -> bytes:
    return json.dumps({"model": "async", "messages": HISTORY} | members).encode()


REQUESTS = {
    "whole": chat(),
    "streamed": chat(stream=True),
    "by a sync model": chat(model="sync"),
    "with a tool": chat(tools=[TOOL]),
    "large": chat(x=LARGE),
    "refused": chat(messages="none"),
    "large and refused": chat(messages="none", x=LARGE),
    "not JSON": chat()[:-1],
    "large and not JSON": chat(x=LARGE)[:-1],
    "too many values": b"[" + b"{}," * 600_000 + b"1]",
    "for an unknown model": chat(model="nobody"),
    "that fails": chat(model="fails"),
    "that fails while streamed": chat(model="fails", stream=True),
    "that fails in a thread": chat(model="sync fails"),
    "whose answer is too large": chat(model="endless"),
}


def send(proxy: Running, body: bytes, *, hangs_up: bool = False) -> None:
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", proxy.port)) as client:
        client.sendall(head.encode() + body)
        if hangs_up:
            client.recv(100)
            return
        while client.recv(2**16):
            pass


def rest(proxy: Running, count: int) -> None:
    """Wait for the end of the exchanges, of their connections and of the log's work."""
    proxy.wait_for_report(count)
    for _ in range(1_000):
        if not proxy.proxy._server.connections and not proxy.proxy._writer.health().queued:
            break
        time.sleep(0.005)
    time.sleep(0.05)  # the writer lets go of what it has written


@contextlib.contextmanager
def kept_garbage() -> Iterator[list[Any]]:
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    found: list[Any] = []
    try:
        yield found
        gc.collect()
        found += gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def error(_: Any) -> None:
    raise ValueError("no")


@pytest.fixture(scope="module")
def proxy() -> Iterator[Running]:
    models = [
        AsyncScript("async", "yes", tool_call("look", {"at": "it"}), usage(1, 1)),
        SyncScript("sync", "yes", usage(1, 1)),
        AsyncScript("fails", "y", error),
        SyncScript("sync fails", "y", error),
        AsyncScript("endless", *["x" * 1_000] * 200),
    ]
    for model in models:
        model._began = lambda *_: None  # keeps what it is given
    with running(*models, limits=Limits(answer=100_000, shutdown_s=5)) as proxy:
        yield proxy


@pytest.mark.parametrize("name, hangs_up", [*((n, False) for n in REQUESTS), ("streamed", True)])
def test_a_request_leaves_no_cycle(proxy, name, hangs_up):
    left: set[str] = set()
    for _ in range(4):  # the first fills caches; once in a while the list of models is read again
        count = len(proxy.reports)
        with kept_garbage() as garbage:
            send(proxy, REQUESTS[name], hangs_up=hangs_up)
            rest(proxy, count + 1)
        left = {type(one).__name__ for one in garbage} - SMALL
        if not left:
            return
    raise AssertionError(left)
