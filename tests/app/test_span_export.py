"""Spans on their way to a collector that is there, away, busy, or says no."""

from __future__ import annotations

import threading
import time

import pytest

from llmproxy.app import span_export
from llmproxy.app.span_export import SpanExporter, headers_of_environment, traces_url
from llmproxy.core.errors import SettingsError
from tests.provider import playing, say_json


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


@pytest.mark.parametrize("url", ["127.0.0.1:4318", "grpc://x", ""])
def test_an_address_that_is_no_url_is_refused(url):
    with pytest.raises(SettingsError, match="otlp: expected a URL"):
        traces_url(url)


def test_headers_come_from_opentelemetrys_variable(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Basic%20eA%3D%3D, x-team=a")
    assert headers_of_environment() == [("authorization", "Basic eA=="), ("x-team", "a")]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "sk-secret")
    with pytest.raises(SettingsError) as caught:
        headers_of_environment()
    assert "sk-secret" not in str(caught.value)
