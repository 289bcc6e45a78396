"""The access log: its format, and escaping of what clients send."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from llmproxy.app.access_log import access_line
from llmproxy.transport.http11 import Headers, Request
from llmproxy.transport.server import ServedRequest

AT = datetime(2026, 11, 22, 5, 36, 21, tzinfo=timezone(timedelta(hours=1)))


def line(target="/v1/models", status=200, headers=(), **changes):
    request = Request("GET", target, Headers(headers))
    whole = {"peer": "127.0.0.1", "request": request, "status": status}
    return access_line(
        ServedRequest(**whole | {"body_bytes": 12, "duration_s": 0.25} | changes), AT
    )


def test_a_line_is_apaches_combined_format_plus_the_duration():
    assert line(headers=[("user-agent", "curl/8"), ("referer", "http://a/")]) == (
        '127.0.0.1 - - [22/Nov/2026:05:36:21 +0100] "GET /v1/models HTTP/1.1" 200 12'
        ' "http://a/" "curl/8" 0.250'
    )


def test_unknown_values_are_dashes():
    assert line(request=None, status=None, body_bytes=0) == (
        '127.0.0.1 - - [22/Nov/2026:05:36:21 +0100] "-" - - "-" "-" 0.250'
    )


def test_client_text_is_escaped():
    hostile = 'x" 200 1\r\n\x1b[31m\\\xe9\x7f'
    shown = line(headers=[("user-agent", hostile)])
    assert shown.endswith(r'"x\x22 200 1\x0d\x0a\x1b[31m\x5c\xe9\x7f" 0.250')
    assert shown.isprintable() and shown.isascii()


def test_secrets_in_a_query_are_removed():
    shown = line("/v1/models?beta=true&api_key=sk-very-secret")
    assert "beta=true" in shown and "secret" not in shown


def test_a_long_target_is_cut():
    assert len(line("/" + "a" * 9_000)) < 2_200
