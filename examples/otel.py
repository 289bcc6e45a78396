"""Send a span of each exchange with OpenTelemetry's own SDK, in a program that uses it already.

`llmproxy --otlp URL` needs no SDK and sends the same. This is for who wants exporters, resources
and processors of their own. Needs opentelemetry-sdk; prints the spans instead of sending them.
"""

import json
import tempfile
from typing import Any
from urllib.request import Request, urlopen

try:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError:
    raise SystemExit("this example needs a package: pip install opentelemetry-sdk") from None

import llmproxy

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
tracer = provider.get_tracer("llmproxy")


def on_exchange(exchange: Any) -> None:
    """Make a span of an exchange that has ended, in its client's trace."""
    started_ns = int(exchange.received.timestamp() * 1e9)
    span = tracer.start_span(
        f"chat {exchange.model_asked}",
        context=TraceContextTextMapPropagator().extract(exchange.request.headers),
        kind=trace.SpanKind.CLIENT,
        start_time=started_ns,
        attributes={
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "llm",
            "gen_ai.request.model": exchange.model_asked or "",
            "gen_ai.response.model": exchange.model_used or "",
            "gen_ai.conversation.id": exchange.thread_id or "",
        },
    )
    for name in ("input_tokens", "output_tokens"):
        if (count := getattr(exchange.usage, name)) is not None:
            span.set_attribute(f"gen_ai.usage.{name}", count)
    if exchange.status == "error":
        span.set_status(trace.StatusCode.ERROR)
    span.end(started_ns + int(exchange.duration_ms * 1e6))


def ask(url: str) -> None:
    body = {"model": "demo", "messages": [{"role": "user", "content": "good morning"}]}
    headers = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
    urlopen(Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)).close()


with tempfile.TemporaryDirectory() as folder:
    with llmproxy.running(database=f"{folder}/logs.db", on_exchange=on_exchange) as server:
        ask(server.url)
