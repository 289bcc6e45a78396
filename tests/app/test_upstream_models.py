"""Lists of models with those of upstreams."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from llmproxy.backends import upstream_models
from llmproxy.dialects import DIALECTS
from tests.app.test_upstreams import post
from tests.proxies import running

LISTS = {
    "openai_chat": {"data": [{"id": "m-1", "created": 7}, {"id": "m-2", "context_length": 4096}]},
    "openai_responses": {"models": [{"slug": "m-1"}, {"slug": "m-2"}, 3]},
    "anthropic_messages": {
        "data": [{"id": "m-1", "created_at": "2026-02-19T00:00:00Z"}, {"id": "m-2"}, {}]
    },
    "ollama": {"models": [{"name": "m-1", "modified_at": "nonsense"}, {"model": "m-2"}]},
}
ROUTES = {
    "openai_chat": ("/v1/models", {}),
    "anthropic_messages": ("/v1/models", {"anthropic-version": "2023-06-01"}),
    "ollama": ("/api/tags", {}),
}


@contextmanager
def listing(value, status=200, wait=None):
    """Run a provider that answers each GET with this; yield its URL and what it was sent."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            asked.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
            if wait is not None:
                wait.wait(10)
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def names(data):
    value = json.loads(data)
    return [one.get("id") or one.get("name") for one in value.get("data") or value["models"]]


@pytest.mark.parametrize("far", DIALECTS, ids=lambda far: far.NAME)
def test_a_list_in_any_dialect_has_an_upstreams_models(far):
    with listing(LISTS[far.NAME]) as (url, asked):
        with running(
            upstreams=[f"far={far.NAME}+{url}"],
            upstream_keys=[("far", "env:HOME")],
            maps=[("m-1", "far:")],
        ) as proxy:
            for path, headers in ROUTES.values():
                status, _, data = post(proxy, path, None, headers)
                assert status == 200
                assert {"m-1", "far:m-2", "demo"} <= {
                    n.removesuffix(":latest") for n in names(data)
                }
            status, _, data = post(proxy, "/v1/models/far:m-2", None)
            assert (status, json.loads(data)["id"]) == (200, "far:m-2")
            assert post(proxy, "/v1/models/far:unlisted", None)[0] == 200
            assert post(proxy, "/v1/models/nowhere", None)[0] == 404
            # an upstream of the same API is asked for more than its list, and this one has no more
            shown = 501 if far.NAME == "ollama" else 200
            assert post(proxy, "/api/show", {"model": "m-1"})[0] == shown
    assert len(asked) == 1  # it is kept


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ((b"no JSON",), "the list is not JSON"),
        (({"error": "sk-canary-0123456789"}, 401), "status 401"),
        (({"x": 1},), "there are no models in the response"),
        ((b"[" * 5_000_000,), "larger than 2097152 bytes"),
    ],
)
def test_an_upstream_without_a_list_is_left_out_and_logged(answer, why, caplog):
    with listing(*answer) as (url, asked):
        with running(upstreams=[f"far=openai_chat+{url}"]) as proxy:
            status, _, data = post(proxy, "/v1/models", None)
            assert post(proxy, "/v1/models", None)[0] == 200
    assert status == 200 and "demo" in names(data)
    assert len(asked) == 1
    (line,) = [one.message for one in caplog.records if "list of the models" in one.message]
    assert line.startswith("no list of the models of far: ") and why in line
    assert "canary" not in caplog.text


def test_a_slow_upstream_holds_a_list_for_a_bounded_time(monkeypatch, caplog):
    monkeypatch.setattr(upstream_models, "ASK_S", 0.1)
    with_end = threading.Event()
    with listing({}, wait=with_end) as (url, _):
        with running(upstreams=[f"far=openai_chat+{url}"]) as proxy:
            assert post(proxy, "/v1/models", None)[0] == 200
        with_end.set()
    assert "no list of the models of far: no list within 0.1 s" in caplog.text


def test_a_clients_key_is_shown_to_the_one_upstream_of_its_api():
    key = {"authorization": "Bearer client-words-123", "x-other": "x"}
    with listing(LISTS["openai_chat"]) as (one, asked_one):
        with listing(LISTS["anthropic_messages"]) as (two, asked_two):
            upstreams = [f"one=openai_chat+{one}", f"two=anthropic_messages+{two}"]
            with running(upstreams=upstreams) as proxy:
                _, _, data = post(proxy, "/v1/models", None, key)
            assert {"one:m-1", "two:m-1"} <= set(names(data))
            assert asked_one[0][1]["authorization"] == key["authorization"]
            assert "client-words-123" not in str(asked_two)
            with running(upstreams=[*upstreams, f"three=openai_chat+{one}"]) as proxy:
                post(proxy, "/v1/models", None, key)
            assert "client-words-123" not in str(asked_one[1:])
