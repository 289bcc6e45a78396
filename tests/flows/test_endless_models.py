"""Models that never end: a disconnect stops them, and few threads can be blocked."""

import http.client
import itertools
import json
import socket
import sqlite3
import threading
import time

import pytest

from llmproxy.core.limits import Limits
from tests.flows.test_strange_models import PATHS, QUESTION, ClientResponse, ask, error_of, text_of
from tests.models import AsyncScript, SyncScript
from tests.proxies import running


class Endless(SyncScript):
    """A model that yields until it is stopped."""

    def execute(self, prompt, stream, response, conversation):
        self._began(prompt, conversation)
        try:
            yield from itertools.repeat("on and ")
        finally:
            self.closed += 1


class AsyncEndless(AsyncScript):
    async def execute(self, prompt, stream, response, conversation):
        self._began(prompt, conversation)
        try:
            for word in itertools.repeat("on and "):
                yield word
        finally:
            self.closed += 1


class Blocked(SyncScript):
    """A model that blocks its thread until the test releases it."""

    def __init__(self, model_id):
        # With a key it is a provider's client, which may run many requests in parallel.
        super().__init__(model_id, lambda _: self._block(), "freed", needs_key="a-provider")
        self.begun = threading.Semaphore(0)
        self.free = threading.Event()

    def _block(self):
        self.begun.release()
        self.free.wait(60)


def begin(proxy, model, *, stream=True):
    """Send a request; return the socket."""
    body = json.dumps({"model": model, "messages": QUESTION, "stream": stream}).encode()
    client = socket.create_connection(("127.0.0.1", proxy.port), timeout=20)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}"
    client.sendall(head.encode() + b"\r\n\r\n" + body)
    return client


def wait_until(condition, seconds=20):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("kind", [Endless, AsyncEndless])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_an_endless_model_is_stopped_by_a_disconnect(kind, stream):
    model = kind("endless")
    with running(model, limits=Limits(running=1, shutdown_s=5)) as proxy:
        with begin(proxy, "endless", stream=stream) as client:
            if stream:
                assert client.recv(1000).startswith(b"HTTP/1.1 200")
            else:
                wait_until(lambda: model.prompts)
        assert proxy.wait_for_report().status == "cancelled"
        wait_until(lambda: model.closed)
        assert text_of("openai", ask(proxy.port, "demo"), False)


def test_blocked_threads_are_limited(llm_user_path):
    """They outlive their clients; async models keep working meanwhile."""
    model = Blocked("blocked")
    with running(model, limits=Limits(running=2, shutdown_s=5)) as proxy:
        for i in range(2):
            with begin(proxy, "blocked", stream=bool(i)):
                assert model.begun.acquire(timeout=20)
            proxy.wait_for_report(i + 1)
        for api in PATHS:
            connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=20)
            body = {"model": "blocked", "messages": QUESTION, "max_tokens": 9, "stream": True}
            connection.request("POST", PATHS[api], json.dumps(body))
            refused = connection.getresponse()
            answer = ClientResponse(refused.status, refused.read(), True)
            connection.close()
            assert (refused.status, refused.getheader("retry-after")) == (503, "1")
            assert error_of(api, answer, is_late=False) == (
                "2 models that can't be stopped are running already"
            )
        assert len(model.prompts) == 2
        assert text_of("openai", ask(proxy.port, "demo"), False)
        model.free.set()
        assert text_of("openai", ask(proxy.port, "blocked"), False) == "freed"
    with sqlite3.connect(llm_user_path / "logs.db") as db:
        logged = db.execute("select status from proxy_exchanges order by id").fetchall()
    assert [row[0] for row in logged] == ["cancelled"] * 2 + ["error"] * 2 + ["ok"] * 2
