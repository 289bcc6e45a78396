"""Exchanges as OpenTelemetry spans, read by OpenTelemetry's own messages and constants."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes

from llmproxy.core.usage import Usage
from llmproxy.recorder.spans import export_request, span_of

SECRET = "the parrot is dead"
NEWER = {"gen_ai.usage.cache_write.input_tokens"}  # than the published constants, see spans.py


def parsed(*spans):
    """Read an export request as protobuf; in OTLP's JSON only, ids are hexadecimal."""
    request = json.loads(json.dumps(export_request(spans)))
    for span in request["resourceSpans"][0]["scopeSpans"][0]["spans"]:
        for name in ("traceId", "spanId", "parentSpanId"):
            if name in span:
                span[name] = base64.b64encode(bytes.fromhex(span[name])).decode()
    (resource,) = json_format.ParseDict(request, ExportTraceServiceRequest()).resource_spans
    assert resource.resource.attributes[0].value.string_value == "llmproxy"
    return list(resource.scope_spans[0].spans)


def attributes(span):
    def value(any_value):
        kind = any_value.WhichOneof("value")
        found = getattr(any_value, kind)
        return [value(one) for one in found.values] if kind == "array_value" else found

    return {one.key: value(one.value) for one in span.attributes}


@pytest.fixture
def exchange(make_exchange):
    made = make_exchange(SECRET, f"no, {SECRET} resting", options={"temperature": 1, "seed": 7})
    return replace(
        made,
        received=datetime(2026, 11, 27, 8, 0, 0, 250_001, UTC),
        model_asked="m",
        model_used="anthropic/claude-x",
        thread_id=made.id,
        finish_reason="length",
        stream=True,
        ttft_ms=125.5,
        duration_ms=1500.5,
        usage=Usage(100, 20, 50, 25, 5),
    )


def test_a_span_has_the_names_and_types_of_the_conventions(exchange):
    (span,) = parsed(span_of(exchange))
    assert (span.name, span.kind) == ("chat m", span.SPAN_KIND_CLIENT)
    assert (len(span.trace_id), len(span.span_id), span.parent_span_id) == (16, 8, b"")
    assert span.start_time_unix_nano == 1_795_766_400_250_001_000
    assert span.end_time_unix_nano - span.start_time_unix_nano == 1_500_500_000
    found = attributes(span)
    assert {name: one for name, one in found.items() if name.startswith("gen_ai.")} == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "anthropic",
        "gen_ai.request.model": "m",
        "gen_ai.response.model": "anthropic/claude-x",
        "gen_ai.response.id": exchange.id,
        "gen_ai.conversation.id": exchange.id,
        "gen_ai.request.stream": True,
        "gen_ai.request.temperature": 1.0,
        "gen_ai.request.seed": 7,
        "gen_ai.usage.input_tokens": 100,
        "gen_ai.usage.output_tokens": 20,
        "gen_ai.usage.cache_read.input_tokens": 50,
        "gen_ai.usage.cache_write.input_tokens": 25,
        "gen_ai.usage.reasoning.output_tokens": 5,
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.response.time_to_first_chunk": 0.1255,
    }
    known = {one for one in vars(gen_ai_attributes).values() if isinstance(one, str)}
    assert {name for name in found if name.startswith("gen_ai.")} - known == NEWER
    assert found["llmproxy.status"] == "ok"
    assert span.status.code == span.status.STATUS_CODE_UNSET


def test_words_are_sent_only_if_asked_for(exchange):
    failed = replace(exchange, status="error", error=f"I can't say {SECRET}", error_kind="upstream")
    (span,) = parsed(span_of(failed))
    assert SECRET not in str(span)
    assert span.status.code == span.status.STATUS_CODE_ERROR
    assert attributes(span)["error.type"] == "upstream"
    (span,) = parsed(span_of(failed, content=True))
    assert span.status.message == f"I can't say {SECRET}"
    found = attributes(span)
    assert json.loads(found["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": SECRET}]}
    ]
    assert json.loads(found["gen_ai.output.messages"])[0]["role"] == "assistant"


TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("header", "trace", "parent"),
    [
        (f"00-{TRACE}-{PARENT}-01", TRACE, PARENT),
        (f" 00-{TRACE}-{PARENT}-03 ", TRACE, PARENT),
        (f"01-{TRACE}-{PARENT}-01-more", TRACE, PARENT),  # a later version
        (f"00-{TRACE}-{PARENT}-01-more", None, ""),
        (f"ff-{TRACE}-{PARENT}-01", None, ""),
        (f"00-{'0' * 32}-{PARENT}-01", None, ""),
        (f"00-{TRACE}-{'0' * 16}-01", None, ""),
        (f"00-{TRACE.upper()}-{PARENT}-01", None, ""),
        ("00-" * 10_000, None, ""),
        ("", None, ""),
    ],
)
def test_a_clients_trace_is_continued(header, trace, parent, exchange):
    headers = {"traceparent": header, "tracestate": "vendor=1"}
    exchange = replace(exchange, request=replace(exchange.request, headers=headers))
    (span,) = parsed(span_of(exchange))
    assert span.parent_span_id.hex() == parent
    assert (span.trace_id.hex() == trace) == (trace is not None)
    assert span.trace_state == ("vendor=1" if parent else "")


def test_a_trace_that_its_client_does_not_sample_gets_no_span(exchange):
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    assert span_of(replace(exchange, request=replace(exchange.request, headers=headers))) is None


def test_each_exchange_has_a_trace_of_its_own(make_exchange):
    spans = [span_of(make_exchange()) for _ in range(50)]
    assert len({span["traceId"] for span in spans}) == 50
    assert len({span["spanId"] for span in spans}) == 50


@pytest.mark.parametrize(
    ("path", "operation"),
    [
        ("/v1/messages", "chat"),
        ("/v1/chat/completions", "chat"),
        ("/v1/completions", "text_completion"),
        ("/api/generate", "text_completion"),
        ("/api/embed", "embeddings"),
        ("/v1/embeddings", "embeddings"),
    ],
)
def test_the_operation_is_known_by_the_route(path, operation, exchange):
    span = span_of(replace(exchange, path=path))
    assert span["name"] == f"{operation} m"
