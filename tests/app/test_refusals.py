"""Requests that are refused: by their head, before the body, in the shape of the path's API."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from contextlib import contextmanager

import anthropic
import openai
import pytest

from llmproxy.app import refusals
from llmproxy.core.errors import NotFound, Unauthorized
from llmproxy.core.known_keys import KnownKeys
from llmproxy.core.limits import Limits
from llmproxy.transport.http11 import Headers, Request
from tests import proxies
from tests.app.test_app import request
from tests.models import AsyncScript
from tests.proxies import running

QUESTION = [{"role": "user", "content": "hi"}]


def begin(proxy, path, headers=(), body=b'{"a":', length=50_000_000):
    """Send a head and the beginning of a body; return status, headers and body of the answer."""
    fields = [("host", f"127.0.0.1:{proxy.port}"), ("content-length", f"{length}"), *headers]
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as client:
        lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields)]
        client.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        response = http.client.HTTPResponse(client)
        response.begin()
        return response.status, response.headers, json.loads(response.read())


def type_of(body):
    """Return the type of Anthropic's error object, None for OpenAI's."""
    return body["error"]["type"] if body.get("type") == "error" else None


def test_a_client_that_sends_its_own_login_beside_the_key_is_let_in():
    """Claude Code sends both, and so does the SDK if both are set."""
    with running(AsyncScript("m", "a"), keys=["sesame"]) as proxy:
        client = anthropic.Anthropic(
            base_url=proxy.url, api_key="sesame", auth_token="foreign", max_retries=0
        )
        answer = client.messages.create(model="m", max_tokens=9, messages=QUESTION)
        headers = {"x-api-key": "sesame"}
        openais = openai.OpenAI(
            base_url=f"{proxy.url}/v1", api_key="foreign", default_headers=headers, max_retries=0
        )
        other = openais.chat.completions.create(model="m", messages=QUESTION)
    assert (answer.content[0].text, other.choices[0].message.content) == ("a", "a")


@pytest.mark.parametrize(
    ("path", "type_"),
    [
        ("/v1/messages", "authentication_error"),
        ("/messages?beta=true", "authentication_error"),
        ("/v1/messages/count_tokens", "authentication_error"),
        ("/v1/messages/batches", "authentication_error"),
        ("/v1/chat/completions", None),
        ("/v1/unknown", None),
        ("/", None),
    ],
)
def test_a_wrong_key_is_refused_before_the_body_in_the_paths_shape(path, type_):
    with running(keys=["sesame"]) as proxy:
        early = begin(proxy, path, [("x-api-key", "wrong")])
        late = request(proxy, "POST", path, {}, {"x-api-key": "wrong"})
    assert early[0] == 401
    if proxies.server == "own":
        assert early[1]["connection"] == "close"
    assert early[1]["www-authenticate"].startswith("Basic ")
    assert type_of(early[2]) == type_
    assert (late[0], json.loads(late[2])) == (401, early[2])
    if type_ is None:
        assert early[2]["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("headers", [[("origin", "https://evil.example")], []])
def test_a_foreign_host_or_origin_is_refused_before_the_body(headers):
    with running() as proxy:
        if headers:
            status, fields, body = begin(proxy, "/v1/messages", headers)
        else:
            with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as client:
                client.sendall(
                    b"POST /v1/messages HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 9\r\n\r\n"
                )
                response = http.client.HTTPResponse(client)
                response.begin()
                status, fields = response.status, response.headers
                body = json.loads(response.read())
    assert (status, type_of(body)) == (403, "permission_error")
    assert "access-control-allow-origin" not in fields


def test_a_page_that_may_ask_can_read_an_early_401():
    origin = ("origin", "https://good.example")
    with running(keys=["sesame"], origins=[origin[1]]) as proxy:
        status, fields, _ = begin(proxy, "/v1/messages", [origin])
    assert (status, fields["access-control-allow-origin"]) == (401, origin[1])


def test_a_client_that_waits_for_continue_is_refused_instead():
    with running(keys=["sesame"]) as proxy:
        headers = [("expect", "100-continue"), ("x-api-key", "wrong")]
        assert begin(proxy, "/v1/messages", headers, b"")[0] == 401


REFUSED = {
    "no such path": ("POST", "/v1/messages/batches", {}, {}, 404, "not_found_error"),
    "no such method": ("GET", "/v1/messages", None, {}, 405, "invalid_request_error"),
    "a coding": (
        "POST",
        "/v1/messages",
        {},
        {"content-encoding": "br"},
        415,
        "invalid_request_error",
    ),
    "a model": (
        "GET",
        "/v1/models/nobody",
        None,
        {"anthropic-version": "2023-06-01"},
        404,
        "not_found_error",
    ),
    "an unknown path": (
        "GET",
        "/v1/nothing",
        None,
        {"anthropic-version": "2023-06-01"},
        404,
        "not_found_error",
    ),
    "OpenAI's path": ("GET", "/v1/chat/completions", None, {}, 405, None),
    "OpenAI's below": ("GET", "/v1/chat/completions/x", None, {}, 404, None),
    "a shared path": ("GET", "/v1/models/nobody", None, {}, 404, None),
}


@pytest.mark.parametrize(
    "method, path, body, headers, status, type_", REFUSED.values(), ids=REFUSED
)
def test_every_refusal_has_the_shape_of_the_path(method, path, body, headers, status, type_):
    with running() as proxy:
        answer = request(proxy, method, path, body, headers)
    assert (answer[0], type_of(json.loads(answer[2]))) == (status, type_)


def test_what_the_server_itself_refuses_has_the_shape_of_the_path_too():
    with running(limits=Limits(body=1000, body_s=0.2, shutdown_s=5)) as proxy:
        large = begin(proxy, "/v1/messages", length=1001)
        slow = begin(proxy, "/v1/messages", length=100)
        other = begin(proxy, "/v1/chat/completions", length=1001)
    assert (large[0], type_of(large[2])) == (413, "request_too_large")
    assert (slow[0], type_of(slow[2])) == (408, "timeout_error")
    assert (other[0], type_of(other[2])) == (413, None)


@contextmanager
def recorded_refusals(**settings):
    """Run a proxy; yield it, and the refusals that it reported."""
    found = []
    with running(AsyncScript("m", "a"), on_refusal=found.append, **settings) as proxy:
        yield proxy, found


def test_a_refusal_is_reported_with_its_reason_and_counted():
    lines = []
    with recorded_refusals(keys=["sesame"], access_log=lines.append) as (proxy, found):
        key = {"authorization": "Bearer sesame", "user-agent": "tool/1"}
        assert request(proxy, "POST", "/v1/images/generations", {}, key)[0] == 404
        assert request(proxy, "GET", "/v1/chat/completions", None, key)[0] == 405
        assert request(proxy, "GET", "/v1/models", None, {"authorization": "Bearer x"})[0] == 401
        assert request(proxy, "GET", "/v1/models", None, key | {"host": "evil.example"})[0] == 403
        assert begin(proxy, "/v1/messages", key.items(), length=10**12)[0] == 413
        metrics = request(proxy, "GET", "/metrics", None, key)[2].decode()
    assert [(each.status, each.what) for each in found] == [
        (404, "POST /v1/images/generations"),
        (405, "GET /v1/chat/completions"),
        (401, "GET /v1/models"),
        (403, "GET /v1/models"),
        (413, "POST /v1/messages"),
    ]
    assert found[0].client == "tool" and "sesame" not in str(found)
    assert found[0].reason.startswith(
        "/v1/images/generations is not supported (OpenAI's images); set the client to"
        " /v1/chat/completions, "
    )
    assert found[1].reason == "/v1/chat/completions takes POST, not GET"
    assert 'llmproxy_refused_total{code="401",reason="authentication"} 1\n' in metrics
    assert 'llmproxy_refused_total{code="403",reason="permission"} 1\n' in metrics
    (line,) = (line for line in lines if '" 405 ' in line)
    assert line.endswith(' "/v1/chat/completions takes POST, not GET"')
    assert '"' not in next(line for line in lines if "/metrics" in line).rpartition('" ')[2]


async def test_a_flood_is_summed_up(monkeypatch):
    monkeypatch.setattr(refusals, "WINDOW_S", 0.05)
    found, told = [], asyncio.Event()
    refused = refusals.Refusals(
        lambda each: (found.append(each), each.what or told.set()), KnownKeys()
    )
    for number in range(100):
        head = Request("GET", f"/{number}", Headers([]))
        refused.add(NotFound("no"), 404, head, "c")
        refused.add(Unauthorized("no"), 401, head, "c")
    assert len(found) == refusals.MAX_REPORTED
    assert refused.counts == {(404, "not_found"): 100, (401, "authentication"): 100}
    await asyncio.wait_for(told.wait(), 10)
    assert (found[-1].status, found[-1].what) == (None, "")
    assert found[-1].reason == "190 more in the last minute: 95 × 404, 95 × 401"
    refused.add(NotFound("no"), 404, head, "c")
    assert found[-1].what == "GET /99"


def test_a_browsers_icon_is_counted_only():
    with recorded_refusals() as (proxy, found):
        assert request(proxy, "GET", "/favicon.ico")[0] == 404
        assert 'refused_total{code="404"' in request(proxy, "GET", "/metrics")[2].decode()
    assert found == []
