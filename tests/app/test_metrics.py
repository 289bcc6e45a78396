"""Metrics in Prometheus' text format, read with Prometheus' own client."""

from __future__ import annotations

from datetime import UTC, datetime

from prometheus_client.parser import text_string_to_metric_families

from llmproxy.app.metrics import MAX_UPSTREAM_MODELS, Metrics, Single
from llmproxy.core.usage import Usage
from llmproxy.recorder.summary import ExchangeSummary


def make_summary(**changes):
    whole = {
        "id": "01a",
        "received": datetime(2026, 11, 22, tzinfo=UTC),
        "dialect": "openai_chat",
        "path": "/v1/chat/completions",
        "client": "tests",
        "model_asked": "asked",
        "model_used": "m",
        "status": "ok",
        "http_status": 200,
        "ttft_ms": 300.0,
        "duration_ms": 4000.0,
        "usage": Usage(10, 3, cached_tokens=4),
    }
    return ExchangeSummary(**whole | changes)


def read(metrics, *gauges):
    families = text_string_to_metric_families(metrics.render(gauges))
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def test_requests_are_counted_by_dialect_model_and_status():
    metrics = Metrics()
    for _ in range(2):
        metrics.count(make_summary())
    metrics.count(make_summary(status="error", http_status=404, model_used=None, usage=Usage()))
    values = read(metrics)
    labels = ("code", "200"), ("dialect", "openai_chat"), ("model", "m"), ("status", "ok")
    assert values[("llmproxy_requests_total", *labels)] == 2
    labels = ("code", "404"), ("dialect", "openai_chat"), ("model", ""), ("status", "error")
    assert values[("llmproxy_requests_total", *labels)] == 1
    of_m = ("dialect", "openai_chat"), ("model", "m")
    tokens = {key[-1][1]: value for key, value in values.items() if "tokens" in key[0]}
    assert tokens == {"input": 20, "output": 6, "cached": 8}
    assert values[("llmproxy_time_to_first_event_seconds_sum", *of_m)] == 0.6


def test_a_histogram_counts_values_up_to_each_bound():
    metrics = Metrics()
    for ms in (50.0, 50.1, 60_000.0, 60_000.1):
        metrics.count(make_summary(ttft_ms=ms, duration_ms=None))
    metrics.count(make_summary(ttft_ms=None, duration_ms=None))
    values = read(metrics)
    below = {
        dict(key[1:])["le"]: value
        for key, value in values.items()
        if key[0] == "llmproxy_time_to_first_event_seconds_bucket"
    }
    assert (below["0.05"], below["0.1"], below["30"], below["60"], below["+Inf"]) == (1, 2, 2, 3, 4)
    assert list(below.values()) == sorted(below.values())
    assert not [key for key in values if "duration" in key[0]]


def test_replays_are_counted_apart_from_use():
    metrics = Metrics()
    metrics.count(make_summary(tokens_per_second=30.0))
    used = read(metrics)
    metrics.count(make_summary(replay_of="01recorded", tokens_per_second=30.0, queue_ms=5.0))
    values = read(metrics)
    labels = ("code", "200"), ("dialect", "openai_chat"), ("model", "m"), ("status", "ok")
    assert values.pop(("llmproxy_replays_total", *labels)) == 1
    assert values == used


def test_rates_are_those_of_the_log_and_estimates_are_marked():
    metrics = Metrics()
    for rate, estimate in ((30.0, None), (26.0, None), (40.0, 120), (None, 3)):
        metrics.count(make_summary(tokens_per_second=rate, output_tokens_estimate=estimate))
    sums = {
        dict(key[1:])["counted_by"]: value
        for key, value in read(metrics).items()
        if key[0] == "llmproxy_tokens_per_second_sum"
    }
    assert sums == {"provider": 56.0, "estimate": 40.0}


def test_hostile_names_are_escaped_in_labels():
    metrics = Metrics()
    name = 'a"b\\c\nllmproxy_evil 1\ud800'
    metrics.count(make_summary(model_used=name))
    metrics.render().encode()
    models = {dict(key[1:]).get("model") for key in read(metrics)}
    assert models == {name.replace("\ud800", "?")}
    assert not any(line.startswith("llmproxy_evil") for line in metrics.render().splitlines())


def test_names_that_clients_give_an_upstreams_models_are_few_labels():
    metrics = Metrics()
    for number in range(1_000):
        metrics.count(make_summary(model_used=f"far/{number}", upstream="far", status="error"))
    for number in range(1_000):
        metrics.count(make_summary(model_used=f"far/{number}", upstream="far"))
    models = {dict(labels)["model"] for _, *labels in read(metrics) if "model" in dict(labels)}
    assert models == {"far", *(f"far/{number}" for number in range(MAX_UPSTREAM_MODELS))}


def test_single_metrics_are_rendered_with_all_their_digits():
    running = Single("running", "responses being generated", 3)
    lost = Single("log_lost_total", "exchanges lost", 1_234_567, "counter")
    assert read(Metrics(), running, lost) == {
        ("llmproxy_running",): 3,
        ("llmproxy_log_lost_total",): 1_234_567,
    }
