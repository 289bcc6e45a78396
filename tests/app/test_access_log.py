"""The access log: its format, and escaping of what clients send."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

import pytest

from llmproxy.app.access_log import access_line
from llmproxy.core.known_keys import KnownKeys
from llmproxy.transport.http11 import Headers, Request
from llmproxy.transport.server import ServedRequest

AT = datetime(2026, 11, 22, 5, 36, 21, tzinfo=timezone(timedelta(hours=1)))


def line(target="/v1/models", status=200, headers=(), keys=None, **changes):
    request = Request("GET", target, Headers(headers))
    whole = {"peer": "127.0.0.1", "request": request, "status": status}
    return access_line(
        ServedRequest(**whole | {"body_bytes": 12, "duration_s": 0.25} | changes), AT, keys
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


@pytest.mark.parametrize(
    "target",
    [
        "/cb?code={}",
        "/a?x=1&sig={}&v=2",
        "/a?x=1;token={}",
        "/a;jsessionid={}",
        "/cb?to=https%3A%2F%2Fa%2F%3Fcode%3D{}",
        "http://me:{}@127.0.0.1/v1/models",
    ],
)
def test_secrets_in_a_target_are_removed(target):
    shown = line(target.format("0a1B2c3D"))
    assert "0a1B2c3D" not in shown and "removed" in shown
    assert f'"GET {target[:3]}' in shown


@pytest.mark.parametrize("name", ["referer", "user-agent"])
@pytest.mark.parametrize(
    "value",
    [
        "https://app/cb?code={}",
        "https://me:{}@app/",
        "https://app/#access_token={}",
        "known.to-us.4711",
        "tool/1 (Authorization: Bearer {})",
        "sk-proj-{}",
    ],
)
def test_secrets_in_a_header_are_removed(name, value):
    shown = line(headers=[(name, value.format("0a1B2c3D"))], keys=KnownKeys(["known.to-us.4711"]))
    assert not re.search("0a1B2c3D|known", shown) and "removed" in shown


def test_a_known_key_in_a_path_is_removed():
    shown = line("/v1/known.to-us.4711/chat", keys=KnownKeys(["known.to-us.4711"]))
    assert '"GET /v1/[removed]/chat HTTP/1.1"' in shown


def test_a_long_target_is_cut():
    assert len(line("/" + "a" * 9_000)) < 2_200
