"""Send a span of each exchange to an OpenTelemetry collector, by OTLP over HTTP with JSON.

A thread sends them in batches. Whatever happens to a collector, no response waits for it: spans
that it does not take in time are dropped, counted, and the user is warned once.

Spec: https://opentelemetry.io/docs/specs/otlp/#otlphttp
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from ..core.errors import SettingsError, retry_after_s
from ..recorder.exchange import Exchange
from ..recorder.spans import export_request, span_of
from ..transport.client import send_request
from ..transport.connections import NO_PROXIES, Address, Deadlines, Proxies

MAX_WAITING = 2_048  # spans, as in OpenTelemetry's own batch processor; about 2 kB each
MAX_WAITING_BYTES = 32 * 2**20  # of those with content
MAX_BATCH = 512
EVERY_S = 5.0  # that a batch is sent if it is not full before
CLOSE_S = 5.0  # for what is left when the proxy is closed
RETRY_S = 30.0  # at most, between two attempts to send a batch
DEADLINES = Deadlines(connect_s=5, first_byte_s=10, idle_s=10)
RETRYABLE = (429, 502, 503, 504)
TRACES = "/v1/traces"


def headers_of_environment() -> list[tuple[str, str]]:
    """Return the header fields in OTEL_EXPORTER_OTLP_HEADERS (`name=value,…`, percent-encoded).

    Raises:
        SettingsError: a part of it is not `name=value`. The value may be secret: it is not
            in the error.
    """
    fields = []
    for pair in os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", "").split(","):
        name, equals, value = pair.partition("=")
        if equals and name.strip():
            fields.append((unquote(name.strip()).lower(), unquote(value.strip())))
        elif pair.strip():
            raise SettingsError("OTEL_EXPORTER_OTLP_HEADERS: expected name=value,name=value")
    return fields


def traces_url(url: str) -> str:
    """Return the URL for traces of a collector's base URL (`http://127.0.0.1:4318`).

    Raises:
        SettingsError: it is no http(s) URL, or one that can't be sent to.
    """
    try:
        Address.of(url)
    except ValueError as exc:  # the URL is not quoted: it may have a password
        expected = "{otlp}: expected a URL such as http://127.0.0.1:4318"
        raise SettingsError(f"{expected}: {exc}") from None
    parts = urlsplit(url)
    path = parts.path.rstrip("/")
    return urlunsplit(parts._replace(path=path if path.endswith(TRACES) else path + TRACES))


class SpanExporter:
    """Sends exchanges to a collector, from `start` to `close`.

    url: of the collector, see `traces_url`. headers: sent with each batch.
    content: with the words of the conversations. warn: called from the exporter's thread.
    proxies: those by which collectors are reached; none by default.

    Raises:
        SettingsError: the URL can't be used.
    """

    def __init__(
        self,
        url: str,
        headers: Iterable[tuple[str, str]] = (),
        *,
        content: bool = False,
        warn: Callable[[str], None],
        proxies: Proxies = NO_PROXIES,
    ) -> None:
        self._url = traces_url(url)
        self._headers = [*headers, ("content-type", "application/json")]
        self._content = content
        self._warn = warn
        self._proxies = proxies
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._change = threading.Condition()
        self._closes_at: float | None = None
        self._is_failing = False
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="llmproxy-spans", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def export(self, exchange: Exchange) -> None:
        """Take an exchange that has ended; it costs a few microseconds, and never waits."""
        span = span_of(exchange, content=self._content)
        if span is None:
            return
        data = json.dumps(span, separators=(",", ":")).encode()
        with self._change:
            is_full = len(self._waiting) >= MAX_WAITING
            if is_full or self._bytes + len(data) > MAX_WAITING_BYTES:
                self.dropped += 1
                return
            self._waiting.append(data)
            self._bytes += len(data)
            if len(self._waiting) >= MAX_BATCH:
                self._change.notify()

    def close(self) -> None:
        """Send what is left, at most for `CLOSE_S`; call `start` first."""
        with self._change:
            self._closes_at = time.monotonic() + CLOSE_S
            self._change.notify()
        self._thread.join(CLOSE_S + 1)
        if left := self.dropped + len(self._waiting):
            self._warn(f"{left} spans could not be sent to {self._url}")

    def _run(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(
                    lambda: self._closes_at is not None or len(self._waiting) >= MAX_BATCH, EVERY_S
                )
                batch = [self._waiting[i] for i in range(min(MAX_BATCH, len(self._waiting)))]
                if not batch and self._closes_at is not None:
                    return
            if batch:
                self._send(batch)
                with self._change:
                    for data in batch:
                        self._waiting.popleft()
                        self._bytes -= len(data)

    def _send(self, batch: list[bytes]) -> None:
        """Send a batch; try again while the collector is away or asks to wait."""
        frame = json.dumps(export_request([]), separators=(",", ":")).encode()
        before, _, after = frame.rpartition(b'"spans":[]')
        body = b"".join([before, b'"spans":[', b",".join(batch), b"]", after])
        pause_s = 1.0
        while True:
            try:
                status, headers = asyncio.run(self._post(body))
                reason = f"status {status}"
            except Exception as exc:  # whatever it is, the next batch is to be sent
                status, headers, reason = 0, {}, str(exc)
            if 200 <= status < 300:
                self._is_failing = False
                return
            if not self._is_failing:
                self._is_failing = True
                self._warn(f"spans can't be sent to {self._url}: {reason}")
            if status and status not in RETRYABLE:
                self.dropped += len(batch)
                return
            wait_s = retry_after_s(headers) or pause_s
            pause_s = min(2 * pause_s, RETRY_S)
            with self._change:
                # Waiting ends at once when the proxy is closed; then there is one more attempt.
                is_closing = self._change.wait_for(lambda: self._closes_at is not None, wait_s)
            if is_closing:
                if time.monotonic() >= (self._closes_at or 0):
                    self.dropped += len(batch)
                    return
                time.sleep(0.2)

    async def _post(self, body: bytes) -> tuple[int, Mapping[str, Any]]:
        async with send_request(
            self._url, self._headers, body, deadlines=DEADLINES, proxies=self._proxies
        ) as response:
            async for _ in response:
                pass
            return response.status, dict(response.headers)
