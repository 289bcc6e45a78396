"""Requests that go to an upstream byte for byte, and their responses."""

from __future__ import annotations

import gzip
import json
import socket
import sqlite3
import urllib.request
from contextlib import closing, suppress
from typing import Any
from urllib.parse import urlsplit

import pytest

from llmproxy import dialects
from llmproxy.core import backend, chat
from llmproxy.core.limits import Limits
from llmproxy.dialects import DIALECTS, anthropic_messages, ollama
from tests import proxies
from tests.flows.test_secrets import kept
from tests.models import AsyncScript
from tests.proxies import running
from tests.raw_provider import (
    CLOSE,
    begin_chunked,
    chunk,
    end_chunks,
    playing_raw,
    response,
    single_bytes,
)
from tests.wire_cases import wire_cases

KEY = "sk-canary-of-the-client-0123456789"
WAIT_S = 5
CASES = [(dialect, case) for dialect in DIALECTS for case in wire_cases(dialect.NAME)]


def settings(provider: Any, dialect: Any, **more: Any) -> dict[str, Any]:
    return {
        "upstreams": [f"far={dialect.NAME}+{provider.url}"],
        "passthrough": "far",
        **more,
    }


def send(
    url: str,
    path: str,
    body: bytes,
    headers: tuple[tuple[str, str], ...] = (),
    method: str = "POST",
) -> bytes:
    """Send a request on a connection of its own; return all bytes of the response."""
    where = urlsplit(url)
    fields = [
        ("Host", "localhost"),
        ("User-Agent", "odd/1"),
        ("X-Api-Key", KEY),
        ("X-Odd-CASE", "a,  b"),
        ("anthropic-version", "2023-06-01"),
        ("anthropic-beta", "one-2025-01-01,two"),
        ("Content-Type", "application/json"),
        *headers,
        ("Connection", "close"),
    ]
    if method == "POST":
        fields.append(("Content-Length", str(len(body))))
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields), "", ""]
    with socket.create_connection((where.hostname, where.port), WAIT_S) as connection:
        connection.sendall("\r\n".join(lines).encode() + body)
        received = b""
        while data := connection.recv(2**16):
            received += data
    return received


def parts(received: bytes) -> tuple[bytes, list[bytes], bytes]:
    """Return status line, fields and decoded body of a response.

    Under another server than our own, without what ASGI can't carry: reason phrase and case of
    names, and without the server's own fields.
    """
    head, _, body = received.partition(b"\r\n\r\n")
    status, *fields = head.split(b"\r\n")
    is_chunked = any(field.lower().startswith(b"transfer-encoding") for field in fields)
    if is_chunked:
        rest, body = body, b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size.partition(b";")[0], 16)
            if not length:
                break
            body += rest[:length]
            rest = rest[length + 2 :]
    hop = (b"transfer-encoding", b"connection")
    fields = [field for field in fields if not field.lower().startswith(hop)]
    if proxies.server == "own":
        return status, fields, body
    named = [field.partition(b": ") for field in fields]
    kept = [
        name.lower() + b": " + value
        for name, _, value in named
        if name.lower() not in (b"date", b"server")
    ]
    return status[: len(b"HTTP/1.1 200")], kept, body


def path_of(dialect: Any) -> str:
    return backend.chat_path(dialect.ROUTES)


def compact(value: Any) -> bytes:
    """JSON with spaces and escapes that no renderer of ours would write."""
    return json.dumps(value, indent=1, ensure_ascii=True).encode()


FRAMINGS = {
    "whole": lambda body: [begin_chunked(), chunk(body), end_chunks()],
    "bytes": lambda body: [
        begin_chunked(),
        *(chunk(piece, b";name=value") for piece in single_bytes(body)),
        end_chunks(b"X-Trailer: 1\r\n"),
    ],
    "until the end": lambda body: [
        b"HTTP/1.1 200 Fine\r\nContent-Type: text/event-stream\r\n\r\n" + body,
        CLOSE,
    ],
    "gzip": lambda body: [
        begin_chunked(
            headers=[("Content-Type", "text/event-stream"), ("Content-Encoding", "gzip")]
        ),
        chunk(gzip.compress(body)),
        end_chunks(),
    ],
    "length": lambda body: [response(body, headers=[("Content-Type", "text/event-stream")])],
}


@pytest.mark.parametrize(
    ("dialect", "case"), CASES, ids=[f"{one.NAME}-{case.name}" for one, case in CASES]
)
def test_a_captured_exchange_passes_byte_for_byte(dialect, case):
    request = compact(case.request)
    whole = compact(case.response or {"odd": ["of", "last week"]})
    stream = case.stream or b": nothing\n\nevent: odd\ndata: {}\n\n"
    answers = [
        [response(whole, headers=[("Content-Type", "application/json"), ("Request-Id", "r1")])],
        FRAMINGS["whole"](stream),
    ]
    with playing_raw(*answers, *([*answer, CLOSE] for answer in answers)) as provider:
        with running(**settings(provider, dialect)) as proxy:
            path = path_of(dialect) if "prompt" not in case.request else "/api/generate"
            path += "?beta=true"
            through = [send(proxy.url, path, request) for _ in answers]
            exchanges = (proxy.wait_for_report(2), proxy.reports)[1]
        direct = [send(provider.url, path, request) for _ in answers]
    for here, there in zip(through, direct, strict=True):
        assert parts(here) == parts(there)
    for here, there in zip(provider.requests[:2], provider.requests[2:], strict=True):
        assert (here.method, here.target, here.body) == (there.method, there.target, there.body)
        own = ("host", "connection", "accept-encoding", "x-llmproxy-via")
        sent, direct_sent = (
            [
                (name if proxies.server == "own" else name.lower(), value)
                for name, value in one.headers
                if name.lower() not in own
            ]
            for one in (here, there)
        )
        assert sent == direct_sent
    assert [one.http_status for one in exchanges] == [200, 200]
    assert {one.upstream for one in exchanges} == {"far"}
    if case.stream and case.response:
        assert {one.status for one in exchanges} == {"ok"}, [one.error for one in exchanges]
        reply, streamed = (one.turn.reply for one in exchanges)
        frames = dialect.StreamDecoder(10**9).feed(case.stream)
        parser = dialect.StreamParser()
        events = [event for frame in frames for event in parser.feed(frame)] + parser.end()
        assert reply == dialect.parse_response(case.response).messages
        assert streamed == chat.collect(events).messages


MESSAGES = next(
    case
    for case in wire_cases("anthropic_messages", answered=True)
    if case.name == "claude_code_agent"
)
ANTHROPIC = dialects.by_name("anthropic_messages")
BODY = json.dumps(MESSAGES.request | {"model": "claude-odd-1", "stream": True}).encode()

HEAD = b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(BODY)


def ask(proxy, body=BODY, headers=(), path="/v1/messages", method="POST"):
    return parts(send(proxy.url, path, body, headers, method))


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_stream_passes_in_any_framing(framing):
    with playing_raw(FRAMINGS[framing](MESSAGES.stream)) as provider:
        with running(**settings(provider, ANTHROPIC)) as proxy:
            status, _, body = ask(proxy)
            exchange = proxy.wait_for_report()
    assert (
        gzip.decompress(body) == MESSAGES.stream if framing == "gzip" else body == MESSAGES.stream
    )
    assert (exchange.status, exchange.finish_reason) == ("ok", "tool_calls")
    assert exchange.usage.output_tokens is not None
    assert exchange.turn.model == "far/claude-odd-1"
    assert not exchange.ignored
    if proxies.server == "own":
        assert b"200 Fine" in status if framing == "until the end" else b"200 OK" in status


def test_an_early_close_is_one_for_the_client_too():
    half = MESSAGES.stream[: len(MESSAGES.stream) // 2]
    with playing_raw([begin_chunked(), chunk(half), CLOSE]) as provider:
        with running(**settings(provider, ANTHROPIC)) as proxy:
            received = send(proxy.url, "/v1/messages", BODY)
            exchange = proxy.wait_for_report()
    assert not received.endswith(b"0\r\n\r\n")
    assert parts(received)[2] == half
    assert (exchange.status, exchange.http_status) == ("error", 200)
    assert exchange.turn.reply


@pytest.mark.parametrize("stream", [True, False])
def test_an_error_passes_with_its_headers(stream):
    said = b'{"type":"error","error":{"type":"rate_limit_error","message":"slow  down"}}'
    fields = [
        ("Content-Type", "application/json"),
        ("Retry-After", "7"),
        ("anthropic-ratelimit-requests-remaining", "0"),
        ("request-id", "req_7"),
    ]
    with playing_raw(response(said, 429, fields, reason="Too Many")) as provider:
        with running(**settings(provider, ANTHROPIC)) as proxy:
            status, headers, body = ask(proxy)
            exchange = proxy.wait_for_report()
    assert status == parts(b"HTTP/1.1 429 Too Many\r\n\r\n")[0]
    assert body == said
    assert parts(response(said, 429, fields, reason="Too Many"))[1] == headers
    assert (exchange.status, exchange.http_status, exchange.error_status) == ("error", 429, 429)
    assert (exchange.retry_after_s, exchange.upstream_request_id) == (7.0, "req_7")
    assert "slow  down" in exchange.error


UNREAD = {
    "no JSON": [response(b"what {is} this", headers=[("Content-Type", "application/json")])],
    "no message": [response(b'{"new":"kind"}')],
    "unknown coding": [
        response(
            b"\x1b\xff", headers=[("Content-Encoding", "br"), ("Content-Type", "text/event-stream")]
        )
    ],
    "an event without a type": [
        begin_chunked(),
        chunk(b'data: {"of": "next year"}\n\n' + MESSAGES.stream),
        end_chunks(),
    ],
    "an event of another kind": [
        begin_chunked(), chunk(b'data: [1]\n\n'), chunk(MESSAGES.stream), end_chunks()
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", UNREAD)
def test_a_response_that_can_not_be_read_is_marked_and_kept(kind):
    with playing_raw(UNREAD[kind], [*UNREAD[kind], CLOSE]) as provider:
        with running(**settings(provider, ANTHROPIC)) as proxy:
            here = ask(proxy)
            exchange = proxy.wait_for_report()
        assert here == parts(send(provider.url, "/v1/messages", BODY))
    assert exchange.status == "ok"
    assert exchange.ignored == ("response",)
    assert list(exchange.turn.response_json)[0].startswith("raw_response")


def test_a_request_that_can_not_be_read_passes_too():
    odd = b"\x28\xb5\x2f\xfd no zstd at all"
    with playing_raw(FRAMINGS["whole"](MESSAGES.stream)) as provider:
        with running(**settings(provider, ANTHROPIC)) as proxy:
            _, _, body = ask(proxy, odd, (("Content-Encoding", "zstd"),))
            exchange = proxy.wait_for_report()
    assert (provider.requests[0].body, body) == (odd, MESSAGES.stream)
    assert exchange.ignored == ("request",)
    assert exchange.request.body["content_encoding"] == "zstd"
    assert exchange.turn.reply
    assert exchange.model_used == f"far/{exchange.turn.resolved_model}"  # as the provider says


def test_only_the_models_name_is_replaced():
    body = (
        b'{ "messages":[{"role":"user","content":"\\u00e9 \\"model\\": \\"a\\""}],'
        b'\n"model" : "a", "x":1.0, "max_tokens":5}'
    )
    with playing_raw(FRAMINGS["whole"](MESSAGES.stream)) as provider:
        with running(
            upstreams=[f"far=anthropic_messages+{provider.url}"], maps=[("a", "far:b-2")]
        ) as proxy:
            ask(proxy, body)
            exchange = proxy.wait_for_report()
    assert provider.requests[0].body == body.replace(b'"model" : "a"', b'"model" : "b-2"')
    assert (exchange.model_asked, exchange.model_used) == ("a", "far/b-2")


def test_a_hang_up_cancels_the_upstream():
    gone = []

    def endless(request):
        yield begin_chunked()
        yield chunk(MESSAGES.stream[:200])
        gone.append(request.wait_for_hang_up(3))

    with playing_raw(endless) as provider:
        with running(**settings(provider, ANTHROPIC)) as proxy:
            where = urlsplit(proxy.url)
            with socket.create_connection((where.hostname, where.port), WAIT_S) as connection:
                connection.sendall(HEAD + BODY)
                assert connection.recv(2**16)
            exchange = proxy.wait_for_report()
    assert exchange.status == "cancelled"
    assert gone == [True]


def test_a_slow_client_makes_the_upstream_wait():
    sent = []

    def large(request):
        yield begin_chunked()
        for _ in range(400):
            sent.append(1)
            yield chunk(b": " + b"x" * 100_000 + b"\n\n")

    with playing_raw(large) as provider:
        with running(**settings(provider, ANTHROPIC)) as proxy:
            where = urlsplit(proxy.url)
            with socket.create_connection((where.hostname, where.port), WAIT_S) as connection:
                connection.sendall(HEAD + BODY)
                connection.recv(100)
                count = -1
                while count != len(sent):
                    count = len(sent)
                    provider.hung_up.wait(0.3)
                assert count < 300
            proxy.wait_for_report()


OTHER = [
    ("GET", "/v1/files?limit=2"),
    ("POST", "/v1/messages/batches"),
    ("DELETE", "/v1/messages/batches/msgbatch_1"),
    ("GET", "/v1/files/file%2F1/content"),
    ("POST", "/v1/messages/count_tokens"),
    ("GET", "/v1/models?limit=3"),
    ("HEAD", "/v1/files"),
]


@pytest.mark.parametrize(("method", "path"), OTHER)
def test_a_path_without_a_handler_passes_as_an_exchange_without_a_turn(method, path):
    said = response(b'{"any": 1.0}' if method != "HEAD" else b"", headers=[("X-Odd", "1")])
    body = BODY if method == "POST" else b""
    with playing_raw(said, [said, CLOSE]) as provider:
        with running(**settings(provider, ANTHROPIC)) as proxy:
            here = ask(proxy, body, path=path, method=method)
            exchange = proxy.wait_for_report()
        there = parts(send(provider.url, path, body, (), method))
    assert here == there
    first, second = provider.requests
    assert (first.method, first.target, first.body) == (second.method, second.target, second.body)
    assert (exchange.status, exchange.turn, exchange.upstream) == ("ok", None, "far")
    assert KEY not in repr(exchange)


@pytest.mark.parametrize(
    ("upstream", "passthrough", "paths"),
    [
        ("codex={}/backend-api/codex", "codex", ["/v1/models?client_version=0.171.0", "/v1/files"]),
        ("far=openai_responses+{}/v1", None, ["/v1/files", "/v1/audio/transcriptions"]),
        ("far=openai_chat+{}/v1", None, ["/v1/files", "/v1/batches"]),
    ],
)
def test_openais_two_dialects_are_one_api(upstream, passthrough, paths):
    """Codex's own list of models has a form of its own, and comes from the provider."""
    said = b'{"models": [{"slug": "gpt-5.5", "base_instructions": "x"}]}'
    with playing_raw(response(said)) as provider:
        with running(upstreams=[upstream.format(provider.url)], passthrough=passthrough) as proxy:
            for path in paths:
                with urllib.request.urlopen(proxy.url + path, timeout=WAIT_S) as answer:
                    assert answer.read() == said
    base = "/backend-api/codex" if passthrough else "/v1"
    assert [one.target for one in provider.requests] == [
        base + path.removeprefix("/v1") for path in paths
    ]


def test_an_upload_and_a_download_of_any_size_pass():
    large = b"0123456789" * 3_000_000
    with playing_raw(response(large, headers=[("Content-Type", "x/y")])) as provider:
        with running(limits=Limits(body=10_000_000), **settings(provider, ANTHROPIC)) as proxy:
            _, _, body = ask(proxy, large, path="/v1/files")
            exchange = proxy.wait_for_report()
    assert provider.requests[0].body == large
    assert body == large
    assert (exchange.status, exchange.request.body) == ("ok", None)


@pytest.mark.parametrize(
    ("path", "body", "is_chat"),
    [
        ("/api/chat", {"model": "m"}, False),
        ("/api/chat", {"model": "m", "messages": [], "keep_alive": 0}, False),
        ("/api/chat", {"model": "m", "format": '"messages"'}, False),
        ("/api/generate", {"model": "m", "prompt": ""}, False),
        ("/api/generate", {"model": "m", "prompt": "x"}, True),
        ("/api/chat", {"model": "m", "messages": [{"role": "user", "content": "x"}]}, True),
    ],
)
def test_a_wish_to_load_a_model_is_no_chat(path, body, is_chat):
    said = {"model": "m", "created_at": "2026-01-01T00:00:00Z", "done": True, "done_reason": "stop"}
    said |= {"message": {"role": "assistant", "content": "y"}, "response": "y"}
    with playing_raw(response(json.dumps(said).encode())) as provider:
        with running(**settings(provider, ollama)) as proxy:
            ask(proxy, compact(body).replace(b"messages", b"mess\\u0061ges"), path=path)
            exchange = proxy.wait_for_report()
    assert (exchange.status, exchange.turn is not None, exchange.ignored) == ("ok", is_chat, ())


def test_a_slow_upstream_makes_an_upload_wait():
    size, sent = 100_000_000, 0
    head = b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % size
    with playing_raw(response(b"{}")) as provider:
        provider.may_read.clear()
        with running(**settings(provider, ANTHROPIC)) as proxy:
            where = urlsplit(proxy.url)
            with socket.create_connection((where.hostname, where.port), WAIT_S) as connection:
                connection.sendall(head)
                connection.settimeout(0.3)
                with suppress(TimeoutError):
                    while sent < size:
                        sent += connection.send(b"x" * 100_000)
            provider.may_read.set()
            exchange = proxy.wait_for_report()
    assert sent < size / 2
    assert exchange.status != "ok"


INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/files"])
def test_interim_responses_and_expectations_stay_on_their_connection(path):
    """The client is told to go on by us; a trailer of either side is dropped."""
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n" % path.encode()
    coded = head + b"Transfer-Encoding: chunked\r\nTrailer: X-Late\r\n\r\n"
    answer = [
        b"HTTP/1.1 100 Continue\r\n\r\n" + INTERIM,
        INTERIM,
        begin_chunked(),
        chunk(MESSAGES.stream),
        end_chunks(b"X-Late: 1\r\n"),
    ]
    with playing_raw(answer) as provider:
        with running(**settings(provider, ANTHROPIC)) as proxy:
            where = urlsplit(proxy.url)
            with socket.create_connection((where.hostname, where.port), WAIT_S) as connection:
                connection.sendall(coded)
                received = connection.recv(2**16)
                assert received == b"HTTP/1.1 100 Continue\r\n\r\n"
                connection.sendall(chunk(BODY) + end_chunks(b"X-Late: 1\r\n"))
                received = b""
                while not received.endswith(b"0\r\n\r\n"):
                    assert (data := connection.recv(2**16)), received
                    received += data
            exchange = proxy.wait_for_report()
    status, headers, body = parts(received)
    assert b" 200" in status and body == MESSAGES.stream
    assert b"link" not in b"".join(headers).lower() and b"X-Late" not in received
    (request,) = provider.requests
    assert request.body == BODY
    assert request.header("expect") is None and b"X-Late: 1" not in request.raw
    assert exchange.status == "ok"


def test_credentials_are_passed_and_stored_nowhere(llm_user_path):
    canaries = [f"sk-canary-{number}-0123456789abcdef" for number in range(6)]
    own = "our-own-key-0123456789"
    headers = tuple(
        zip(
            ("Authorization", "Api-Key", "X-Goog-Api-Key", "Cookie", "X-Auth-Token"),
            (f"Bearer {canaries[0]}", *canaries[1:5]),
            strict=True,
        )
    )
    said = json.dumps({"type": "error", "error": {"message": f"bad {canaries[0]}"}}).encode()
    with playing_raw(FRAMINGS["whole"](MESSAGES.stream), response(said, 401)) as provider:
        with running(**settings(provider, ANTHROPIC, keys=[own])) as proxy:
            for path in ("/v1/messages", "/v1/files"):
                ask(proxy, BODY, (*headers, ("X-Api-Key", own)), f"{path}?key={canaries[5]}")
            proxy.wait_for_report(2)
            shown = repr(proxy.reports) + repr(proxy.warnings)
    for request in provider.requests:
        sent = request.raw.decode("latin-1")
        assert all(canary in sent for canary in canaries)
        assert own not in sent
    held = kept(llm_user_path)
    for canary in (*canaries, KEY, own):
        assert canary not in shown
        assert canary.encode() not in held


def test_a_key_of_the_server_is_not_shown_though_it_comes_in_pieces(monkeypatch):
    monkeypatch.setenv("FAR_KEY", "environs.4be2a9")
    said = b'{"error":{"message":"bad environs.4be2a9, environs.4be2a environs.4be2a9"}}'
    with playing_raw([*single_bytes(response(said, 401)), CLOSE]) as provider:
        with running(
            **settings(provider, ANTHROPIC), upstream_keys=[("far", "env:FAR_KEY")]
        ) as proxy:
            _, _, body = ask(proxy)
            exchange = proxy.wait_for_report()
    assert body == said.replace(b"environs.4be2a9", b"*" * 15)
    assert (exchange.status, exchange.error_status) == ("error", 401)


def test_the_next_target_is_asked_if_the_first_refuses():
    refusal = response(b'{"type":"error","error":{"message":"no"}}', 529, reason="Overloaded")
    answer = FRAMINGS["whole"](MESSAGES.stream)
    with playing_raw(refusal) as first, playing_raw(answer) as second:
        with running(
            upstreams=[
                f"a=anthropic_messages+{first.url}",
                f"b=anthropic_messages+{second.url}",
            ],
            maps=[("claude-*", "a:,b:")],
        ) as proxy:
            _, headers, body = ask(proxy)
            exchange = proxy.wait_for_report()
    assert body == MESSAGES.stream
    assert b"x-llmproxy-refused-by: a: 529" in headers
    assert (exchange.upstream, exchange.refused_by, exchange.status) == ("b", "a: 529", "ok")


def test_the_next_target_is_asked_for_what_is_no_chat_too():
    counted = response(b'{"input_tokens": 7}')
    with playing_raw(response(b"{}", 503)) as first, playing_raw(counted, CLOSE) as second:
        with running(
            upstreams=[
                f"a=anthropic_messages+{first.url}",
                f"b=anthropic_messages+{second.url}",
            ],
            maps=[("claude-*", "a:,llm:demo,b:claude-other")],
        ) as proxy:
            _, headers, body = ask(proxy, path="/v1/messages/count_tokens")
            exchange = proxy.wait_for_report()
    assert body == b'{"input_tokens": 7}'
    assert b"x-llmproxy-refused-by: a: 503" in headers
    assert json.loads(second.requests[0].body) == json.loads(BODY) | {"model": "claude-other"}
    assert (exchange.upstream, exchange.refused_by, exchange.status) == ("b", "a: 503", "ok")
    assert exchange.model_used == "b/claude-other"


@pytest.mark.parametrize("path", ["/v1/messages/count_tokens", "/v1/messages"])
def test_the_next_target_is_asked_if_the_first_can_not_be_reached(path):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with playing_raw(response(b'{"input_tokens": 3}')) as second:
        urls = [
            f"a=anthropic_messages+http://127.0.0.1:{port}",
            f"b=anthropic_messages+{second.url}",
        ]
        with running(upstreams=urls, maps=[("claude-*", "a:,b:")]) as proxy:
            status, headers, _ = ask(proxy, path=path)
            exchange = proxy.wait_for_report()
    assert b"200" in status
    assert b"x-llmproxy-refused-by: a: 502" in headers
    assert (exchange.upstream, exchange.refused_by) == ("b", "a: 502")


EMBEDDING = b'{"model":"vec-1","input":"Hi","encoding_format":"float"}'


def test_requests_that_are_no_chats_have_fallbacks_too():
    """Of the targets, those that speak the API; each under the model's name there."""
    answer = response(b'{"data":[],"model":"x"}')
    with playing_raw(response(b'{"error":{}}', 429)) as first, playing_raw(answer) as second:
        urls = [
            f"a=openai_chat+{first.url}",
            f"x=ollama+{first.url}",
            f"b=openai_chat+{second.url}",
        ]
        maps = [("vec-*", "a:,x:,llm:echo,b:other"), ("last-*", "a:,x:")]
        with running(upstreams=urls, maps=maps) as proxy:
            status, headers, _ = ask(proxy, EMBEDDING, path="/v1/embeddings")
            ask(proxy, EMBEDDING.replace(b"vec", b"last"), path="/v1/embeddings")
            exchanges = (proxy.wait_for_report(2), proxy.reports)[1]
    assert b"200" in status
    assert b"x-llmproxy-refused-by: a: 429" in headers
    assert second.requests[0].body == EMBEDDING.replace(b"vec-1", b"other")
    assert [(one.upstream, one.model_used, one.refused_by) for one in exchanges] == [
        ("b", "b/other", "a: 429"),
        ("a", "a/last-1", None),
    ]
    assert [one.http_status for one in exchanges] == [200, 429]
    assert [one.turn for one in exchanges] == [None, None]


def waiting_stream(request):
    yield begin_chunked()
    request.wait_for_hang_up(WAIT_S)


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_our_own_limit_is_no_refusal_of_an_upstream(path):
    with playing_raw(waiting_stream) as first, playing_raw(response(b"{}")) as second:
        urls = [f"a=anthropic_messages+{first.url}", f"b=anthropic_messages+{second.url}"]
        with running(
            limits=Limits(running=1, queue_s=0.05), upstreams=urls, maps=[("claude-*", "a:,b:")]
        ) as proxy:
            where = urlsplit(proxy.url)
            with socket.create_connection((where.hostname, where.port), WAIT_S) as running_one:
                head = b"POST /v1/messages/count_tokens HTTP/1.1\r\nHost: localhost\r\n"
                running_one.sendall(head + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY)
                assert running_one.recv(2**16).startswith(b"HTTP/1.1 200")
                status, _, body = ask(proxy, path=path)
                exchange = proxy.wait_for_report()
    assert b" 429" in status and b"limit queue_s" in body
    assert (exchange.status, exchange.refused_by) == ("error", None)
    assert second.requests == []


def test_a_body_that_was_not_kept_is_sent_once():
    large = b"0123456789" * 3_000_000
    with playing_raw(response(b"{}", 429, headers=[("Retry-After", "0")])) as provider:
        with running(
            limits=Limits(body=10_000_000), upstream_wait_s=9.0, **settings(provider, ANTHROPIC)
        ) as proxy:
            status, _, _ = ask(proxy, large, path="/v1/files")
    assert b"429" in status
    assert len(provider.requests) == 1


BUSY_EVENT = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error"}}\n\n'
BAD_EVENT = BUSY_EVENT.replace(b"overloaded_error", b"invalid_request_error")


@pytest.mark.parametrize(
    ("stream", "refused_by"),
    [
        (BUSY_EVENT, "a: 529"),
        (b": wait\n\n" + BUSY_EVENT, "a: 529"),
        (b"", "a: 502"),
        (BAD_EVENT, None),
        (MESSAGES.stream.partition(b"event: content_block_start")[0] + BUSY_EVENT, None),
    ],
    ids=["busy", "busy after a comment", "nothing", "bad request", "busy after the start"],
)
def test_a_stream_that_begins_with_a_refusal_is_one(stream, refused_by):
    """What is passed on is all that came, also where nothing else is asked."""
    pieces = [begin_chunked(), *(chunk(one) for one in single_bytes(stream))]
    ending = [end_chunks()] if stream else [CLOSE]
    with (
        playing_raw([*pieces, *ending]) as first,
        playing_raw(FRAMINGS["whole"](MESSAGES.stream)) as second,
    ):
        urls = [f"a=anthropic_messages+{first.url}", f"b=anthropic_messages+{second.url}"]
        with running(upstreams=urls, maps=[("claude-*", "a:,b:")]) as proxy:
            _, _, body = ask(proxy)
            exchange = proxy.wait_for_report()
    assert body == (MESSAGES.stream if refused_by else stream)
    assert exchange.refused_by == refused_by
    assert exchange.status == ("ok" if refused_by else "error")


def test_the_next_target_may_be_a_model_of_llm():
    with playing_raw(response(b"{}", 503)) as first:
        with running(
            AsyncScript("here", "Hi"),
            upstreams=[f"a=anthropic_messages+{first.url}"],
            maps=[("claude-*", "a:,llm:here")],
        ) as proxy:
            status, headers, body = ask(proxy)
            exchange = proxy.wait_for_report()
    assert b"200" in status and b"Hi" in body
    assert (exchange.model_used, exchange.refused_by) == ("here", "a: 503")


def test_a_conversation_is_continued_in_the_log():
    first = {"model": "claude-x", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi?"}]}
    cases = wire_cases("anthropic_messages", answered=True)
    stream = next(case.stream for case in cases if case.name == "sdk_stop_sequence")
    with playing_raw(FRAMINGS["whole"](stream)) as provider:
        with running(**settings(provider, ANTHROPIC)) as proxy:
            ask(proxy, json.dumps(first).encode())
            said = proxy.wait_for_report().turn.reply
            request = chat.ChatRequest("claude-x", [*proxy.reports[0].turn.messages, *said])
            body, _ = anthropic_messages.render_request(request)
            ask(proxy, json.dumps(body | {"max_tokens": 9}).encode())
            proxy.wait_for_report(2)
            one, two = proxy.reports
    assert (two.previous_id, two.recalled) == (one.id, 0)
    assert two.turn.messages[: len(one.turn.messages)] == one.turn.messages


def test_a_client_has_a_stream_whole_only_once_the_log_has_it(llm_user_path):
    """Its last byte waits for the commit, also where the stream's end comes byte by byte."""
    path = llm_user_path / "logs.db"

    def answer(request):
        yield begin_chunked()
        yield from (chunk(piece) for piece in single_bytes(MESSAGES.stream))
        request.wait_for_hang_up(WAIT_S)  # never the end of the body

    with playing_raw(answer) as provider:
        with running(**settings(provider, ANTHROPIC)) as proxy:
            where = urlsplit(proxy.url)
            with socket.create_connection((where.hostname, where.port), WAIT_S) as connection:
                connection.sendall(HEAD + BODY)
                received = b""
                while parts(received + b"0\r\n\r\n")[2] != MESSAGES.stream:
                    received += connection.recv(2**16)
                with closing(sqlite3.connect(path)) as log:
                    rows = log.execute("select status from proxy_exchanges").fetchall()
    assert rows == [("ok",)]
