"""Upstreams that answer with wrong things, or that are llmproxys themselves."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack

import pytest

from llmproxy import Settings, serving
from tests.app.test_passthrough import ANTHROPIC, BODY, FRAMINGS, MESSAGES, ask, send, settings
from tests.proxies import running
from tests.raw_provider import CLOSE, begin_chunked, chunk, playing_raw, response

GOOD = FRAMINGS["whole"](MESSAGES.stream)
HTML = b"<html><title>Log in to the hotel</title></html>"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"

# What passes as it is: (answer, status of the exchange, its `ignored`)
PASSED = {
    "a page": (response(HTML, headers=[("Content-Type", "text/html")]), "ok", ("response",)),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", "error", ()),
    "a redirect": (
        response(b"", 302, [("Location", "http://127.0.0.1:1/")], reason="Found"),
        "error",
        (),
    ),
    "an empty body": (response(b""), "ok", ("response",)),
}


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
@pytest.mark.parametrize("name", PASSED)
def test_a_response_of_a_wrong_kind_passes(name, path):
    answer, status, ignored = PASSED[name]
    with playing_raw(answer, [answer, CLOSE]) as provider:
        with running(**settings(provider, ANTHROPIC)) as proxy:
            here = ask(proxy, path=path)
            exchange = proxy.wait_for_report()
        there = ask(provider, path=path)
    assert here == there
    assert exchange.http_status == int(here[0].split()[1])
    if path == "/v1/messages":
        assert (exchange.status, exchange.ignored) == (status, ignored)


REFUSED = {
    "HTTP/0.9": HTML,
    "HTTP/2": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00d",
    "nothing": b"",
    "status 999": b"HTTP/1.1 999 No\r\nContent-Length: 0\r\n\r\n",
    "a space in a name": HEAD + b"X Odd: 1\r\nContent-Length: 2\r\n\r\n{}",
    "a space before a colon": HEAD + b"Content-Length : 2\r\nContent-Length: 5\r\n\r\n{}",
    "two lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 5\r\n\r\n{}abc",
    "no length": HEAD + b"Content-Length: two\r\n\r\n{}",
    "another coding": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n{}",
    "an upgrade": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n",
    "interim responses only": b"HTTP/1.1 100 Continue\r\n\r\n" * 20,
    "an endless head": HEAD + b"X-Odd: " + b"x" * 200_000,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_response_is_a_502_that_says_so(name):
    with playing_raw([REFUSED[name], CLOSE]) as provider:
        with running(**settings(provider, ANTHROPIC)) as proxy:
            status, _, body = ask(proxy)
            exchange = proxy.wait_for_report()
            other = ask(proxy, path="/v1/messages/count_tokens")
            proxy.wait_for_report(2)
    for said, text in ((status, body), (other[0], other[2])):
        assert b" 502" in said, text
        message = json.loads(text)["error"]["message"]
        assert "the upstream" in message and "far" in message, message
    assert (exchange.status, exchange.error_status, exchange.upstream) == ("error", 502, "far")


CUT = {
    "too short": HEAD + b"Content-Length: 50\r\n\r\n{}",
    "a chunk of no size": begin_chunked() + chunk(b": a\n\n") + b"zz\r\n",
    "chunks that end": begin_chunked() + chunk(b": a\n\n"),
    "an endless chunk extension": begin_chunked() + chunk(b": a\n\n") + b"5;" + b"x" * 200_000,
}


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/files"])
@pytest.mark.parametrize("name", CUT)
def test_a_response_that_is_cut_is_cut_for_the_client(name, path):
    with playing_raw([CUT[name], CLOSE]) as provider:
        with running(**settings(provider, ANTHROPIC)) as proxy:
            received = send(proxy.url, path, BODY)
            exchange = proxy.wait_for_report()
    assert received.endswith(b"{}" if name == "too short" else b": a\n\n\r\n")
    assert (exchange.status, exchange.http_status) == ("error", 200)


SMUGGLED = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled"
TWO_FRAMINGS = {
    "more than its length": (HEAD + b"Content-Length: 2\r\n\r\n{}" + SMUGGLED, b"{}"),
    "a length and chunks": (
        HEAD
        + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{ 1 }\r\n0\r\n\r\n"
        + SMUGGLED,
        b"{ 1 }",
    ),
    "a 204 with a body": (b"HTTP/1.1 204 No Content\r\nContent-Length: 99\r\n\r\n" + SMUGGLED, b""),
}


@pytest.mark.parametrize("name", TWO_FRAMINGS)
def test_nothing_is_smuggled_behind_a_response(name):
    """The next request has a connection of its own, and the client one response of one length."""
    answer, body = TWO_FRAMINGS[name]
    with playing_raw([answer], GOOD) as provider:
        with running(**settings(provider, ANTHROPIC)) as proxy:
            received = send(proxy.url, "/v1/messages", BODY)
            second = ask(proxy)
    head = received.partition(b"\r\n\r\n")[0].lower()
    assert (b"transfer-encoding" in head) + (b"content-length" in head) <= 1
    assert received.count(b"HTTP/1.1") == 1 and b"smuggled" not in received
    assert body in received
    assert second[2] == MESSAGES.stream
    assert [one.connection for one in provider.requests] == [0, 1]


# ---- llmproxys


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/files", "/v1/messages/count_tokens"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_ring_of_byte_for_byte_upstreams_is_refused(count, path, llm_user_path):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    reports = []
    with ExitStack() as stack:
        for port, following in zip(ports, [*ports[1:], ports[0]], strict=True):
            chosen = Settings(
                port=port,
                upstreams=[f"far=anthropic_messages+http://127.0.0.1:{following}"],
                passthrough="far",
                database=llm_user_path / f"{port}.db",
                on_exchange=reports.append,
            )
            proxy = stack.enter_context(serving.running(chosen))
        status, _, body = ask(proxy, path=path)
    assert b" 400" in status
    assert b"leads back to this server" in body
    assert [(one.status, one.error_status) for one in reports] == [("error", 400)] * count


# ---- large responses


def test_a_chat_of_more_bytes_than_the_limit_is_a_502_at_once():
    answer = [HEAD + b"Content-Length: 10000000000\r\n\r\n{"]
    with playing_raw(answer) as provider, running(**settings(provider, ANTHROPIC)) as proxy:
        status, _, body = ask(proxy)
        exchange = proxy.wait_for_report()
    assert b" 502" in status and b"larger than" in body
    assert (exchange.status, exchange.error_status) == ("error", 502)
