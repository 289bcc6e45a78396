from __future__ import annotations

import json

import pytest

from llmproxy.recorder.redact import REMOVED, Redactor

KEY = "sk-proj-abcdefgh12345678"


@pytest.mark.parametrize(
    "name",
    "Authorization authorization Proxy-Authorization x-api-key X-Goog-Api-Key api-key Cookie"
    " Set-Cookie openai-api-token X-Amz-Security-Token x-client-secret x-hub-signature".split(),
)
def test_the_value_of_a_secret_header_is_removed(name):
    assert Redactor().headers([(name, f"Bearer {KEY}")]) == {name.lower(): REMOVED}


def test_other_headers_are_kept_by_lower_case_name():
    fields = [("User-Agent", "a/1"), ("x-stainless-retry-count", "0"), ("Via", "a"), ("via", "b")]
    assert Redactor().headers(fields) == {
        "user-agent": "a/1",
        "x-stainless-retry-count": "0",
        "via": "a, b",
    }


def test_the_secrets_of_a_query_are_removed():
    query = f"beta=true&key={KEY}&alt=sse&empty=&api_key=x"
    assert Redactor().query(query) == (
        "beta=true&key=%5Bremoved%5D&alt=sse&empty=&api_key=%5Bremoved%5D"
    )


def test_the_secret_fields_of_a_body_are_removed_and_nothing_else():
    body = {
        "model": "m",
        "max_tokens": 5,
        "prompt_cache_key": "session-1",
        "api_key": KEY,
        "mcp_servers": [
            {
                "type": "url",
                "url": f"https://user:{KEY}@mcp.example/sse?token={KEY}&v=1",
                "authorization_token": KEY,
            }
        ],
        "tools": [
            {"type": "mcp", "server_url": "https://mcp.example/?v=1", "headers": {"X-Any": KEY}},
            {"name": "login", "input_schema": {"properties": {"password": {"type": "string"}}}},
        ],
        "metadata": {"clientSecret": KEY, "user_id": "u1"},
        "messages": [{"role": "user", "content": "my token", "token": "said"}],
    }
    before = json.dumps(body)
    assert Redactor().body(body) == {
        "model": "m",
        "max_tokens": 5,
        "prompt_cache_key": "session-1",
        "api_key": REMOVED,
        "mcp_servers": [
            {
                "type": "url",
                "url": "https://[removed]@mcp.example/sse?token=%5Bremoved%5D&v=1",
                "authorization_token": REMOVED,
            }
        ],
        "tools": [
            {
                "type": "mcp",
                "server_url": "https://mcp.example/?v=1",
                "headers": {"X-Any": REMOVED},
            },
            {"name": "login", "input_schema": {"properties": {"password": {"type": "string"}}}},
        ],
        "metadata": {"clientSecret": REMOVED, "user_id": "u1"},
        "messages": [{"role": "user", "content": "my token", "token": "said"}],
    }
    assert json.dumps(body) == before


@pytest.mark.parametrize("body", ["no JSON", None, 5, [{"token": KEY}]])
def test_a_body_that_is_not_an_object_is_kept(body):
    assert Redactor().body(body) == body


def test_an_error_that_quotes_the_clients_key_does_not():
    redactor = Redactor()
    redactor.headers([("authorization", "Bearer local-Key:9"), ("cookie", "a=12345678; b=x")])
    words = "no access for local-Key:9 (cookie 12345678), b=x"
    assert redactor.text(words) == "no access for [removed] (cookie [removed]), b=x"


@pytest.mark.parametrize(
    "key",
    [
        KEY,
        "sk-ant-api03-AbC_d-123456789",
        "sk-proj-****************abcd",
        "gsk_abcdefgh12345678",
        "AIzaSyA1234567890abcdefghijk",
        "hf_abcdefghijkl",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln",
    ],
)
def test_an_error_that_quotes_a_providers_key_does_not(key):
    said = Redactor().text(f"Incorrect API key provided: {key}. You can find yours at …")
    assert key not in said and said.startswith(f"Incorrect API key provided: {REMOVED}")


def test_the_rest_of_an_error_message_is_kept():
    words = "model claude-sonnet-4 is overloaded; see https://example.com/a@b, task-force sk-ip"
    assert Redactor().text(words) == words
