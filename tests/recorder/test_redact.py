from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.core.known_keys import KnownKeys
from llmproxy.recorder.redact import MAX_TEXT_CHARS, REMOVED, Redactor

KEY = "sk-proj-abcdefgh12345678"
KNOWN = "known.to-us.4711"  # neither of these looks like a key
OWN = "0a1B2c3D.4e5F"


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
            {"type": "http", "uri": f"https://a.example/?code={KEY}", "http_headers": {"b": KEY}},
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
            {
                "type": "http",
                "uri": "https://a.example/?code=%5Bremoved%5D",
                "http_headers": {"b": REMOVED},
            },
            {"name": "login", "input_schema": {"properties": {"password": {"type": "string"}}}},
        ],
        "metadata": {"clientSecret": REMOVED, "user_id": "u1"},
        "messages": [{"role": "user", "content": "my token", "token": "said"}],
    }
    assert json.dumps(body) == before


@pytest.mark.parametrize("body", ["no JSON", None, 5, True, [1, "a", {"model": "m"}]])
def test_a_body_that_is_not_an_object_is_kept(body):
    assert Redactor().body(body) == body


def test_the_secret_fields_of_a_list_are_removed():
    body = [{"token": KEY, "v": 1}, [{"api_key": KEY}], {"url": f"https://a/?sig={OWN}&v=1"}]
    assert Redactor().body(body) == [
        {"token": REMOVED, "v": 1},
        [{"api_key": REMOVED}],
        {"url": "https://a/?sig=%5Bremoved%5D&v=1"},
    ]


@pytest.mark.parametrize(
    "name, value, kept",
    [
        ("Referer", f"https://app/cb?code={OWN}&v=1", "https://app/cb?code=%5Bremoved%5D&v=1"),
        ("Referer", f"https://me:{OWN}@app/", f"https://{REMOVED}@app/"),
        ("Referer", f"https://app/#access_token={OWN}", "https://app/#access_token=%5Bremoved%5D"),
        ("referer", f"/files/{KEY}/x", f"/files/{REMOVED}/x"),
        ("X-Original-Uri", f"/v1/x?sig={OWN}", "/v1/x?sig=%5Bremoved%5D"),
        ("X-Forwarded-Uri", f"/v1/x;token={OWN}", "/v1/x;token=%5Bremoved%5D"),
        (
            "Link",
            f"<https://a/?token={OWN}>; rel=next",
            "<https://a/?token=%5Bremoved%5D>; rel=next",
        ),
        ("Forwarded", f"for=10.0.0.1;secret={OWN}", "for=10.0.0.1;secret=%5Bremoved%5D"),
        ("Baggage", f"user=1,session={OWN},b=2", "user=1,session=[removed],b=2"),
        ("X-Params", f'token="{OWN}", v=1', 'token="[removed]", v=1'),
        ("User-Agent", f"curl/8 (key {KEY})", f"curl/8 (key {REMOVED})"),
        ("X-Upstream", f"Authorization: Bearer {OWN}", "Authorization: [removed]"),
        ("X-Known", KNOWN, REMOVED),
    ],
)
def test_secrets_in_other_headers_are_removed(name, value, kept):
    redactor = Redactor(KnownKeys([KNOWN]))
    fields = [("accept", "a/b;q=0.9"), (name, value), ("x-app", "cli")]
    expected = {"accept": "a/b;q=0.9", name.lower(): kept, "x-app": "cli"}
    assert redactor.headers(fields) == expected
    assert Redactor().headers(expected.items()) == expected
    if OWN in value and "@" not in value:
        assert redactor.text(f"refused: {OWN}.") == f"refused: {REMOVED}."


def test_headers_that_are_no_secrets_are_kept_as_they_came():
    fields = {
        "content-type": 'multipart/form-data; boundary="a=b:c"',
        "cache-control": "max-age=0, no-cache",
        "x-claude-code-session-id": "0a1b2c3d-0000-4000-8000-000000000000",
        "anthropic-beta": "claude-code-20250219,token-efficient-tools-2025-02-19",
        "sec-ch-ua": '"Chromium";v="1", "Not=A?Brand";v="24"',
        "referer": "http://localhost:3000/chat?model=m&decode=1#top",
        "user-agent": "Mozilla/5.0 (X11; Linux x86_64; rv:1.0)",
        "prefer": "return=minimal; wait=10",
    }
    assert Redactor(KnownKeys([KNOWN])).headers(fields.items()) == fields


@pytest.mark.parametrize(
    "query, kept",
    [
        (f"code={OWN}&state=1", "code=%5Bremoved%5D&state=1"),
        (f"sv=1&sig={OWN}%3D", "sv=1&sig=%5Bremoved%5D"),
        (f"a=1;token={OWN}", "a=1;token=%5Bremoved%5D"),
        (f"to%6ben={OWN}", "to%6ben=%5Bremoved%5D"),
        (f"Code={OWN}&&x", "Code=%5Bremoved%5D&&x"),
        (f"?code={OWN}", "?code=%5Bremoved%5D"),
        (f"to=https%3A%2F%2Fa%2F%3Fcode%3D{OWN}", "to=https%3A%2F%2Fa%2F%3Fcode%3D%5Bremoved%5D"),
        (KEY, REMOVED),
        (f"x={KNOWN}", f"x={REMOVED}"),
        ("beta=true&q=a+b%20c&empty=", "beta=true&q=a+b%20c&empty="),
        ("", ""),
    ],
)
def test_a_query_loses_its_secrets_and_nothing_else(query, kept):
    assert Redactor(KnownKeys([KNOWN])).query(query) == kept
    assert Redactor().query(kept) == kept


# Each with a secret at {}, and with something after it that is kept.
TEXTS = {
    "a form": "grant_type=refresh&code={}&client_id=me",
    "a form, its secret first": "client_secret={}&client_id=me",
    "a form with escapes": "api%5Fkey={}&prompt=hi",
    "JSON that was cut": '{{"model": "m", "api_key": "{}", "mess',
    "JSON that was cut in the secret": '{{"model": "m", "api_key": "{}',
    "JSON with a comma too many": '{{"api_key": "{}", "model": "m",}}',
    "JSON with single quotes": "{{'model': 'm', 'api_key': '{}'}}",
    "JavaScript": "{{model: 'm', apiKey: '{}', n: 1}}",
    "Python": "dict(api_key='{}', model='m')",
    "Ruby": '{{:api_key => "{}", :model => "m"}}',
    "JSON in JSON": '"{{\\"api_key\\": \\"{}\\", \\"model\\": \\"m\\"}}',
    "two lines of JSON": '{{"access_token": "{}"}}\n{{"model": "m"}}',
    "a quote in the secret": '{{"password": "{}\\"x", "model": "m",,}}',
    "YAML": "model: m\napi_key: {}\nmessages: []",
    "headers": "POST /v1 HTTP/1.1\r\nAuthorization: Bearer {}\r\nAccept: */*\r\n\r\n",
    "cookies": "Cookie: a=1; b={}\nAccept: */*",
    "curl": "curl -H 'Authorization: Bearer {}' -d '{{}}' https://host/v1",
    "curl with a cookie": 'curl -H "Cookie: a=1; b={}" https://host/v1',
    "several parts": (
        '--x\r\nContent-Disposition: form-data; name="api_key"\r\n\r\n{}\r\n'
        '--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--x--'
    ),
    "several parts with types": (
        "--x\nContent-Disposition: form-data; name=token\nContent-Type: text/plain\n\n{}\n--x--"
    ),
    "XML": "<request><api_key>{}</api_key><model>m</model></request>",
    "XML with attributes": '<r><a:Token type="b">{}</a:Token><login password="{}"/></r>',
    "a URL": "see https://host/a?sig={}&v=1 for more",
    "prose": "my token: {} is wrong",
    "UTF-16": "\0".join("api_key=") + "\0{}\0&\0x",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("secret", [OWN, "Zm9v/YmFy+bA==", "pässwörd-9"])
def test_a_body_that_is_not_json_loses_its_secrets_and_nothing_else(text, secret):
    redactor = Redactor()
    secret = secret if "\0" not in text else "\0".join(secret)
    kept = redactor.body(text.format(*[secret] * text.count("{}")))
    secret = secret.replace("\0", "")
    assert secret not in kept and secret[1:-1] not in kept and secret[:8] not in kept
    assert "removed" in kept
    before, *between, after = text.replace("\0", "").format(*["|"] * text.count("{}")).split("|")
    assert kept.startswith(before.removesuffix("Bearer ").removesuffix("a=1; b=")[:-4])
    assert kept.endswith(after.lstrip('\\"x')[1:])
    assert Redactor().body(kept) == kept


@pytest.mark.parametrize(
    "body",
    [
        '{"model": "m", "max_tokens": 100, "stop_sequences": ["token"], "mess',
        '{"messages": [{"role": "user", "content": "what is a token or a key?"}],,}',
        "model=m&prompt=how+are+you&max_tokens=5".replace("max_tokens", "limit"),
        "<html><body><code>print(1)</code></body></html>",
        "def decode(text): return text\nauthor: Bob\nkeyboard: us\n",
    ],
)
def test_a_body_without_secrets_is_kept_as_it_came(body):
    assert Redactor().body(body) == body


@given(st.text(alphabet=st.sampled_from("abk\"'\\=:&;? \n\r<>[]{}%/@-_.token"), max_size=200))
def test_any_text_is_searched_and_what_was_removed_stays_so(text):
    once = Redactor().body(text)
    assert Redactor().body(once) == once


def test_a_long_body_is_cut_and_leaves_no_part_of_a_secret():
    for place in range(MAX_TEXT_CHARS - 40, MAX_TEXT_CHARS + 10, 7):
        kept = Redactor(KnownKeys([KNOWN])).body(" " * place + KNOWN + " " + "x" * 10_000)
        assert MAX_TEXT_CHARS - 20 < len(kept) <= MAX_TEXT_CHARS
        assert KNOWN[:4] not in kept.replace(REMOVED, "")
    shrunk = f"token={'s' * 9000} {KNOWN} " * 12
    kept = Redactor(KnownKeys([KNOWN])).body(shrunk)
    assert "ss" not in kept and KNOWN[:4] not in kept


@pytest.mark.parametrize(
    "piece",
    ["a", "name=a ", "name=a\n", "token=", "token: ", '"token":"', '\\"token\\":\\"', "<a ", "&a",
     "?a=%3Fb%3D", "://a", "%25", "sk-", "eyJ", "bearer "],
)  # fmt: skip
def test_any_body_is_searched_in_linear_time(piece):
    began = time.process_time()
    Redactor(KnownKeys([KNOWN])).body(piece * (MAX_TEXT_CHARS // len(piece)))
    assert time.process_time() - began < 5


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


def test_a_key_that_becomes_known_later_is_removed_from_what_was_clean_before():
    keys = KnownKeys()
    value = "Client of plain-words-company"
    assert Redactor(keys).headers([("user-agent", value)]) == {"user-agent": value}
    assert Redactor(keys).headers([("user-agent", value)]) == {"user-agent": value}
    keys.learn(["plain-words-company"])
    assert Redactor(keys).headers([("user-agent", value)]) == {"user-agent": f"Client of {REMOVED}"}
