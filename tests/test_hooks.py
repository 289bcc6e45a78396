"""What a program can plug into a proxy: its models, who is served, and what it is told."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from types import SimpleNamespace

import openai
import pytest

import llmproxy
from llmproxy import open_log
from llmproxy.core.errors import SettingsError
from tests.app.test_app import ask, request
from tests.models import AsyncScript, SyncScript, registered, usage
from tests.provider import playing, say_json
from tests.proxies import server

pytestmark = pytest.mark.skipif(server != "own", reason="about the library's own functions")


def wait_until(is_true):
    deadline = time.monotonic() + 10
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_models_need_no_plugin_and_precede_those_of_plugins(llm_user_path):
    own = [AsyncScript("own", "async"), SyncScript("own", "sync"), AsyncScript("m", "ours")]
    with registered(AsyncScript("m", "a plugin's")), llmproxy.running(models=own) as proxy:
        assert ask(proxy, "own").choices[0].message.content == "async"
        assert ask(proxy, "m").choices[0].message.content == "ours"
        client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="x")
        assert {"own", "m", "demo"} <= {model.id for model in client.models.list()}
    with open_log(llm_user_path / "logs.db") as log:
        assert {entry.model_used for entry in log.entries()} == {"own", "m"}
    with pytest.raises(SettingsError, match=r"models\[0\]: expected"):
        llmproxy.Settings(models=["demo"])


def test_authorize_decides_by_the_head_before_the_body_is_read():
    asked = []

    def authorize(head):
        asked.append((head.method, head.path, head.headers.get("x-team")))
        return head.headers.get("x-team") == "red"

    with llmproxy.running(models=[AsyncScript("m", "yes")], authorize=authorize) as proxy:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        refused = request(proxy, "POST", "/v1/messages", body, {"x-team": "blue"})
        served = request(proxy, "POST", "/v1/chat/completions", body, {"x-team": "red"})
        assert request(proxy, "GET", "/healthz")[0] == 200  # monitors have no key
    assert (refused[0], served[0]) == (403, 200)
    assert b'"type":"permission_error"' in refused[2]
    assert asked[0] == ("POST", "/v1/messages", "blue")


def test_authorize_takes_the_place_of_keys_on_other_addresses():
    llmproxy.serve(host="0.0.0.0", authorize=lambda head: True)
    with pytest.raises(SettingsError, match="can be reached by others"):
        llmproxy.serve(host="0.0.0.0")


def test_a_broken_authorize_serves_nobody():
    def authorize(head):
        raise RuntimeError("the database of teams is away")

    with llmproxy.running(models=[AsyncScript("m", "yes")], authorize=authorize) as proxy:
        status, _, body = request(proxy, "GET", "/v1/models")
    assert status == 500
    assert b"teams" not in body


@pytest.mark.parametrize("result", [None, 1, "yes", [False]])
def test_only_true_serves(result):
    with llmproxy.running(log=False, authorize=lambda head: result) as proxy:
        assert request(proxy, "GET", "/v1/models")[0] == 403


@pytest.mark.parametrize("name", ["authorize", "warn", "on_refusal", "access_log"])
def test_what_is_not_awaited_cannot_be_async(name):
    async def hook(value):
        return False  # as a coroutine it would be true

    with pytest.raises(SettingsError, match=f"^{name}: expected a function that is not async$"):
        llmproxy.Settings(**{name: hook})


def test_on_exchange_may_return_anything(caplog):
    told = []
    hook = lambda exchange: told.append(exchange) or len(told)  # noqa: E731
    with llmproxy.running(models=[AsyncScript("m", "yes")], on_exchange=hook, log=False) as proxy:
        ask(proxy, "m")
    assert len(told) == 1
    assert not caplog.records


@pytest.mark.parametrize("is_async", [False, True])
def test_on_exchange_gets_each_exchange_and_may_wait(is_async):
    told = []

    def plain(exchange):
        told.append((exchange.model_asked, exchange.status, threading.current_thread().name))

    async def waiting(exchange):
        await asyncio.sleep(0.05)
        plain(exchange)

    hook = waiting if is_async else plain
    with llmproxy.running(models=[AsyncScript("m", "yes")], on_exchange=hook) as proxy:
        ask(proxy, "m")
        with pytest.raises(openai.NotFoundError):
            ask(proxy, "nosuch")
    assert told == [("m", "ok", "llmproxy"), ("nosuch", "error", "llmproxy")]  # all, when closed


@pytest.mark.parametrize("is_async", [False, True])
def test_a_hook_that_fails_costs_nothing(is_async, caplog, llm_user_path):
    def plain(exchange):
        raise RuntimeError("kaput")

    async def waiting(exchange):
        raise RuntimeError("kaput")

    hook = waiting if is_async else plain
    with llmproxy.running(models=[AsyncScript("m", "yes")], on_exchange=hook) as proxy:
        for _ in range(3):
            assert ask(proxy, "m").choices[0].message.content == "yes"
    assert caplog.text.count("RuntimeError: kaput") == 3
    assert [one.getMessage() for one in caplog.records] == ["on_exchange failed"] * 3
    with open_log(llm_user_path / "logs.db") as log:
        assert [entry.status for entry in log.entries()] == ["ok"] * 3


def test_no_more_calls_of_a_hook_wait_than_allowed(monkeypatch, caplog):
    monkeypatch.setattr("llmproxy.proxy.MAX_HOOKS", 2)
    monkeypatch.setattr("llmproxy.proxy.HOOKS_S", 0.1)
    called = []

    async def never(exchange):
        called.append(exchange)
        await asyncio.sleep(60)

    with llmproxy.running(models=[AsyncScript("m", "yes")], on_exchange=never) as proxy:
        for _ in range(4):
            assert ask(proxy, "m").choices[0].message.content == "yes"
    assert len(called) == 2
    assert caplog.text.count("on_exchange is left out: 2 calls of it still run") == 2


def test_spans_go_to_a_collector(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Basic%20x")
    with playing(lambda body, handler: say_json(handler, {})) as collector:
        models = [AsyncScript("m", "yes", usage(3, 2))]
        with llmproxy.running(models=models, otlp=collector.url) as proxy:
            headers = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
            ask(proxy, "m", extra_headers=headers)
        (span,) = collector.bodies[0]["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert (span["name"], span["traceId"], span["parentSpanId"]) == ("chat m", "a" * 32, "b" * 16)
    assert collector.headers[0]["authorization"] == "Basic x"
    assert "yes" not in str(span)


def test_a_collectors_address_is_checked_at_the_start():
    with pytest.raises(SettingsError, match="otlp: expected a URL"):
        llmproxy.serve(otlp="collector")


def test_a_collector_that_is_away_holds_nothing_up(monkeypatch):
    warnings = []
    monkeypatch.setattr("llmproxy.app.span_export.CLOSE_S", 0.2)
    settings = SimpleNamespace(models=[AsyncScript("m", "yes")], otlp="http://127.0.0.1:9")
    began = time.monotonic()
    with llmproxy.running(**vars(settings), warn=warnings.append) as proxy:
        ask(proxy, "m")
    assert time.monotonic() - began < 8
    assert warnings[-1].startswith("1 spans could not be sent")


def test_a_request_is_found_by_the_ids_that_its_client_gave_it(llm_user_path):
    """They are kept with the other headers, and can be asked for in SQL (docs/deploy.md)."""
    ids = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01", "x-request-id": "8f1c2b7e-5a4d-4c1e"}
    told = []
    with llmproxy.running(models=[AsyncScript("m", "Hi")], on_exchange=told.append) as proxy:
        ask(proxy, "m", extra_headers=ids)
    (exchange,) = told
    assert ids.items() <= exchange.request.headers.items()
    with sqlite3.connect(llm_user_path / "logs.db") as db:
        for name, value in ids.items():
            sql = "select id from proxy_exchanges where headers ->> ? = ?"
            assert db.execute(sql, (name, value)).fetchall() == [(exchange.id,)]
