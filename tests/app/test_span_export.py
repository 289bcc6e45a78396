"""Spans on their way to a collector that is there, away, busy, or says no."""

from __future__ import annotations

import json
import threading
import time
from contextlib import ExitStack
from urllib.request import urlopen

import pytest

from llmproxy.app import span_export
from llmproxy.app.span_export import SpanExporter, headers_of_environment, traces_url
from llmproxy.core.errors import SettingsError
from llmproxy.transport.connections import Proxies
from tests.models import AsyncScript
from tests.provider import playing, say_json
from tests.proxies import running
from tests.raw_provider import playing_raw, relaying, response


@pytest.fixture
def quick(monkeypatch):
    """Let a batch leave at once."""
    monkeypatch.setattr(span_export, "EVERY_S", 0.02)


def spans_of(collector):
    return [
        span
        for body in collector.bodies
        for span in body["resourceSpans"][0]["scopeSpans"][0]["spans"]
    ]


def wait_until(is_true):
    deadline = time.monotonic() + 10
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_spans_arrive_in_batches_with_the_headers(make_exchange):
    exchanges = [make_exchange() for _ in range(600)]
    with playing(lambda body, handler: say_json(handler, {})) as collector:
        exporter = SpanExporter(collector.url, [("authorization", "Basic x")], warn=pytest.fail)
        exporter.start()
        for exchange in exchanges:
            exporter.export(exchange)
        exporter.close()
    assert [span["spanId"] for span in spans_of(collector)] == [
        span_export.span_of(one)["spanId"] for one in exchanges
    ]
    assert 2 <= len(collector.bodies) <= 4
    assert {one["authorization"] for one in collector.headers} == {"Basic x"}
    assert {one["content-type"] for one in collector.headers} == {"application/json"}


@pytest.mark.parametrize("scheme", ["https", "http"])
def test_spans_go_by_the_environments_proxy(scheme, monkeypatch, tmp_path, llm_user_path):
    """By CONNECT for https, else by a request for the whole URL."""
    is_tls = scheme == "https"
    tls = "collector.example" if is_tls else None
    with playing_raw(response(b"{}"), tls=tls) as collector, ExitStack() as stack:
        proxy = collector
        if is_tls:
            proxy = stack.enter_context(relaying(collector.port, answers_connect=True))
            monkeypatch.setenv("SSL_CERT_FILE", str(collector.write_ca(tmp_path)))
        address = f"http://127.0.0.1:{proxy.port}"
        monkeypatch.setenv(f"{scheme}_proxy", address.replace("//", "//user:pass@"))
        monkeypatch.setenv("NO_PROXY", "other.example, 127.0.0.1")
        with running(AsyncScript("m", "Hi"), otlp=f"{scheme}://collector.example") as server:
            body = {"model": "m", "messages": [{"role": "user", "content": "Hi?"}]}
            urlopen(f"{server.url}/v1/chat/completions", json.dumps(body).encode()).close()
            server.wait_for_report()
    assert server.warnings == []
    (sent,) = collector.requests
    assert b'"spanId"' in sent.body
    assert sent.header("host") == "collector.example"
    asked = proxy.received[0] if is_tls else sent.raw
    target = b"CONNECT collector.example:443" if is_tls else b"POST http://collector.example/v1/"
    assert asked.startswith(target)
    assert b"proxy-authorization: Basic dXNlcjpwYXNz\r\n" in asked


def test_spans_go_straight_past_the_proxy_where_they_should(make_exchange):
    """To this machine, and to what NO_PROXY lists."""
    proxies = Proxies({"http": "http://127.0.0.1:9"})
    with playing(lambda body, handler: say_json(handler, {})) as collector:
        exporter = SpanExporter(collector.url, warn=pytest.fail, proxies=proxies)
        exporter.start()
        exporter.export(make_exchange())
        exporter.close()
    assert len(spans_of(collector)) == 1


def test_a_proxy_that_cannot_be_used_is_said_without_its_password(
    make_exchange, monkeypatch, quick
):
    monkeypatch.setattr(span_export, "CLOSE_S", 0.1)
    warnings = []
    proxies = Proxies({"http": "socks5://user:secret@proxy.example"})
    exporter = SpanExporter("http://collector.example", warn=warnings.append, proxies=proxies)
    exporter.start()
    exporter.export(make_exchange())
    wait_until(lambda: warnings)
    exporter.close()
    assert warnings[0] == (
        "spans can't be sent to http://collector.example/v1/traces: the environment's proxy"
        " (HTTP_PROXY or ALL_PROXY): socks5:// is not spoken, only http:// and https:// are"
    )
    assert "secret" not in str(warnings)


def test_a_batch_is_sent_again_while_the_collector_is_busy(make_exchange, quick):
    said = []

    def answer(body, handler):
        said.append(None)
        is_busy = len(said) < 3
        say_json(handler, {}, 503 if is_busy else 200, **({"retry-after": "0"} if is_busy else {}))

    warnings = []
    with playing(answer) as collector:
        exporter = SpanExporter(collector.url, warn=warnings.append)
        exporter.start()
        exporter.export(make_exchange())
        wait_until(lambda: len(said) == 3)
        exporter.close()
    assert len(warnings) == 1
    assert warnings[0].startswith(f"spans can't be sent to {collector.url}/v1/traces: status 503")
    assert exporter.dropped == 0


def test_a_batch_that_is_refused_is_dropped(make_exchange):
    warnings = []
    with playing(lambda body, handler: say_json(handler, {}, 400)) as collector:
        exporter = SpanExporter(collector.url, warn=warnings.append)
        exporter.start()
        exporter.export(make_exchange())
        exporter.close()
    assert len(collector.bodies) == 1
    assert exporter.dropped == 1
    assert [text.partition(" ")[0] for text in warnings] == ["spans", "1"]


def test_a_collector_that_is_away_costs_nothing_but_spans(make_exchange, monkeypatch, quick):
    monkeypatch.setattr(span_export, "MAX_WAITING", 10)
    monkeypatch.setattr(span_export, "CLOSE_S", 0.3)
    warnings = []
    exporter = SpanExporter("http://127.0.0.1:9", warn=warnings.append)
    exporter.start()
    for _ in range(30):
        exporter.export(make_exchange())
    wait_until(lambda: warnings)
    exporter.close()
    assert warnings[1] == "30 spans could not be sent to http://127.0.0.1:9/v1/traces"
    assert not [one for one in threading.enumerate() if one.name == "llmproxy-spans"]


@pytest.mark.parametrize(
    ("url", "whole"),
    [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("http://127.0.0.1:4318/", "http://127.0.0.1:4318/v1/traces"),
        ("https://x.example/api/otel/v1/traces", "https://x.example/api/otel/v1/traces"),
        ("https://x.example/api/otel", "https://x.example/api/otel/v1/traces"),
    ],
)
def test_the_address_of_a_collector_is_as_in_opentelemetrys_settings(url, whole):
    assert traces_url(url) == whole


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("127.0.0.1:4318", "does not begin with http"),
        ("grpc://x", "does not begin with http"),
        ("", "does not begin with http"),
        ("http://[", "host or port can't be read"),
        ("http://me:sec/secret@127.0.0.1", "host or port can't be read"),
        ("http://[me:secret]@127.0.0.1/", "host or port can't be read"),
        ("http://me:secret@127.0.0.1:4318", "has a user"),
    ],
)
def test_an_address_that_is_no_url_is_refused(url, why):
    with pytest.raises(SettingsError, match=f"otlp: expected a URL such as .*: .*{why}") as raised:
        traces_url(url)
    assert "sec" not in str(raised.value)


def test_headers_come_from_opentelemetrys_variable(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Basic%20eA%3D%3D, x-team=a")
    assert headers_of_environment() == [("authorization", "Basic eA=="), ("x-team", "a")]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "sk-secret")
    with pytest.raises(SettingsError) as caught:
        headers_of_environment()
    assert "sk-secret" not in str(caught.value)
