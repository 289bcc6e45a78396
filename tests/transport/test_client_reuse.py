"""A client that keeps its connections, sends bodies piece by piece, and goes by proxies."""

from __future__ import annotations

import asyncio
import base64
import gzip
import ssl
from contextlib import asynccontextmanager

import pytest
import trustme

from llmproxy.core.errors import ProtocolError, UpstreamError
from llmproxy.core.limits import Limits
from llmproxy.transport import connections
from llmproxy.transport.client import Client
from llmproxy.transport.connections import Address, Deadlines, Proxies
from llmproxy.transport.http11 import RequestParser

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"


@asynccontextmanager
async def playing(answers, *, tls=None):
    """A server that gives each request the next answer; None ends the connection.

    Yields its address, the requests, and for each the number of its connection.
    """
    answers, requests, tasks = list(answers), [], []
    count = 0

    async def connection(reader, writer):
        nonlocal count
        count += 1
        number = count
        tasks.append(asyncio.current_task())
        parser = RequestParser(Limits())
        try:
            while True:
                while (request := parser.next_request()) is None:
                    data = await reader.read(2**16)
                    if not data:
                        return
                    parser.feed(data)
                requests.append((number, request))
                answer = answers.pop(0)
                if answer is None:
                    return
                writer.write(answer)
                await writer.drain()
        finally:
            writer.close()

    server = await asyncio.start_server(connection, "127.0.0.1", 0, ssl=tls)
    try:
        scheme = "https" if tls else "http"
        yield f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}/x", requests
    finally:
        server.close()
        await asyncio.gather(*tasks, return_exceptions=True)


async def read(client, method, url, body=b"", headers=(), **options):
    async with client.send(method, url, headers, body, **options) as response:
        return response.status, b"".join([data async for _, data in response])


@asynccontextmanager
async def client_of(**options):
    client = Client(**options)
    try:
        yield client
    finally:
        client.close()
        await asyncio.sleep(0.01)


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"


@pytest.mark.parametrize("answer", [OK, CHUNKED])
async def test_a_connection_is_used_again(answer):
    async with playing([answer] * 3) as (url, requests), client_of() as client:
        for _ in range(3):
            assert await read(client, "POST", url, b"{}") == (200, b"hi")
        assert [number for number, _ in requests] == [1, 1, 1]


@pytest.mark.parametrize(
    "answer",
    [
        OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"),
        OK.replace(b"1.1", b"1.0"),
        OK + b"HTTP/1.1 200 OK\r\n",  # what nobody asked for could be read as the next response
        CHUNKED.replace(b"transfer", b"content-length: 2\r\ntransfer"),
    ],
)
async def test_a_connection_is_left_after_a_response_that_may_not_be_followed(answer):
    async with playing([answer, OK]) as (url, requests), client_of() as client:
        for _ in range(2):
            assert await read(client, "POST", url, b"{}") == (200, b"hi")
        assert [number for number, _ in requests] == [1, 2]


async def test_a_response_that_is_left_early_cuts_its_connection():
    async with playing([OK, OK]) as (url, requests), client_of() as client:
        async with client.send("POST", url) as response:
            assert response.status == 200
        await read(client, "POST", url)
        assert [number for number, _ in requests] == [1, 2]


async def test_a_kept_connection_that_the_server_ended_is_not_used():
    ending = OK.replace(b"\r\n\r\n", b"\r\nkeep-alive: timeout=0\r\n\r\n")

    async def end_after_each(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ending)
        writer.close()

    server = await asyncio.start_server(end_after_each, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with server, client_of() as client:
        for _ in range(20):
            assert (await read(client, "POST", url))[0] == 200
            await asyncio.sleep(0.005)  # for the end to arrive: it can't be known before


async def test_a_request_that_may_have_been_acted_on_is_not_sent_again():
    async with playing([OK, None, OK]) as (url, requests), client_of() as client:
        await read(client, "POST", url)
        with pytest.raises(UpstreamError, match="without a response"):
            await read(client, "POST", url, b"pay")
        assert [(number, one.body) for number, one in requests] == [(1, b""), (1, b"pay")]


async def test_a_safe_request_is_sent_again_on_a_new_connection():
    async with playing([OK, None, OK]) as (url, requests), client_of() as client:
        await read(client, "GET", url)
        assert await read(client, "GET", url) == (200, b"hi")
        assert [number for number, _ in requests] == [1, 1, 2]
        with pytest.raises(IndexError):
            requests[3]


async def test_no_more_connections_are_kept_than_allowed_and_none_for_ever(monkeypatch):
    monkeypatch.setattr(connections, "MAX_IDLE", 2)
    monkeypatch.setattr(connections, "IDLE_S", 0.05)
    async with playing([OK] * 8) as (url, requests), client_of() as client:
        await asyncio.gather(*(read(client, "POST", url) for _ in range(4)))
        assert len(client._pool._timers) == 2
        await asyncio.sleep(0.1)
        assert not client._pool._timers and not client._pool._idle
        await read(client, "POST", url)
        assert len({number for number, _ in requests}) == 5


@pytest.mark.parametrize(("seconds", "kept"), [("5", 4), ("1", None), ("600", 15)])
async def test_a_connection_is_not_kept_as_long_as_the_server_keeps_it(seconds, kept):
    said = OK.replace(b"\r\n\r\n", b"\r\nKeep-Alive: max=9, timeout=%b\r\n\r\n" % seconds.encode())
    async with playing([said]) as (url, _), client_of() as client:
        await read(client, "POST", url)
        now = asyncio.get_running_loop().time()
        left = [round(timer.when() - now) for timer in client._pool._timers.values()]
    assert left == ([] if kept is None else [kept])


async def test_a_body_is_sent_as_it_comes():
    async def pieces():
        for piece in (b"one ", b"", b"two"):
            yield piece
            await asyncio.sleep(0)

    async with playing([OK, OK]) as (url, requests), client_of() as client:
        await read(client, "POST", url, pieces())
        await read(client, "PUT", url, pieces(), [("content-length", "7")])
    fields = [dict(request.headers) for _, request in requests]
    assert [request.body for _, request in requests] == [b"one two"] * 2
    assert fields[0]["transfer-encoding"] == "chunked" and "content-length" not in fields[0]
    assert fields[1]["content-length"] == "7" and "transfer-encoding" not in fields[1]
    assert [number for number, _ in requests] == [1, 1]


async def test_methods_without_a_body_have_no_length():
    async with playing([OK.replace(b"hi", b""), OK]) as (url, requests), client_of() as client:
        await read(client, "HEAD", url)
        await read(client, "GET", url)
    assert all(request.headers.get("content-length") is None for _, request in requests)
    assert [(number, request.method) for number, request in requests] == [(1, "HEAD"), (1, "GET")]


async def test_a_body_is_left_in_its_coding_if_asked():
    packed = gzip.compress(b"hello")
    head = f"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {len(packed)}\r\n\r\n"
    async with playing([head.encode() + packed] * 2) as (url, _), client_of() as client:
        assert await read(client, "GET", url) == (200, b"hello")
        assert await read(client, "GET", url, is_decoded=False) == (200, packed)


# ---- what is passed on


async def test_header_fields_keep_their_order_case_and_repetitions():
    given = [
        ("X-Stainless-OS", "Linux"),
        ("Host", "127.0.0.1:8080"),
        ("Connection", "keep-alive, X-Hop"),
        ("X-Hop", "1"),
        ("anthropic-beta", "a"),
        ("Transfer-Encoding", "chunked"),
        ("Content-Length", "99"),
        ("Anthropic-Beta", "b"),
        ("TE", "trailers"),
        ("Upgrade", "h2c"),
        ("Expect", "100-continue"),
        ("Accept-Encoding", "gzip, br"),
        ("Proxy-Authorization", "Basic x"),
        ("X-Latin", "caf\xe9"),
    ]
    async with playing([OK]) as (url, requests), client_of() as client:
        await read(client, "PATCH", url, b"{}", given)
    assert requests[0][1].headers.as_received == (
        ("X-Stainless-OS", "Linux"),
        ("Host", url.removeprefix("http://").removesuffix("/x")),
        ("anthropic-beta", "a"),
        ("Content-Length", "2"),
        ("Anthropic-Beta", "b"),
        ("Accept-Encoding", "gzip, br"),
        ("X-Latin", "caf\xe9"),
    )


@pytest.mark.parametrize("target", ["/", "/a?", '//a//b;c?q=%2F&q=[{|}]"<>`^', "/a:b@c?d?e"])
async def test_a_target_is_sent_as_it_is(target):
    async with playing([OK]) as (url, requests), client_of() as client:
        await read(client, "GET", url.removesuffix("/x") + target)
    assert requests[0][1].target == target


async def test_a_response_is_given_as_it_came():
    raw = (
        b"HTTP/1.1 429 Slow  down\r\nX-RateLimit: 1\r\nSet-Cookie: a\r\nRetry-After:  7 \r\n"
        b"set-cookie: b\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nhi\r\n0\r\nX: t\r\n\r\n"
    )
    async with playing([raw]) as (url, _), client_of() as client:
        async with client.send("POST", url, is_decoded=False) as response:
            body = [data async for _, data in response]
    assert (response.status, response.reason_phrase, body) == (429, "Slow  down", [b"hi"])
    assert response.headers.as_received == (
        ("X-RateLimit", "1"),
        ("Set-Cookie", "a"),
        ("Retry-After", "7"),
        ("set-cookie", "b"),
        ("Transfer-Encoding", "chunked"),
    )


@pytest.mark.parametrize("words", [[b"one"], [b"one", b"two!"]])
async def test_an_iterated_body_of_another_length_is_an_error(words):
    async def pieces():
        for word in words:
            yield word

    async with playing([OK]) as (url, requests), client_of() as client:
        with pytest.raises(ProtocolError, match="not as long as its content-length"):
            await read(client, "PUT", url, pieces(), [("content-length", "6")])
    assert requests == []


async def test_an_iterated_body_is_not_sent_twice():
    async def pieces():
        yield b"once"

    async with playing([OK, None, OK]) as (url, requests), client_of() as client:
        await read(client, "GET", url)
        with pytest.raises(UpstreamError):
            await read(client, "GET", url, pieces())
    assert [request.body for _, request in requests] == [b"", b"once"]


# ---- proxies


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


def contexts(authority):
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "api.example.com").configure_cert(server)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    return server, trust


@asynccontextmanager
async def tunnelling(target_port, answer=b"HTTP/1.1 200 Connection established\r\n\r\n"):
    """A proxy that leads every tunnel to one port; gives its address and what it was asked."""
    heads, tasks = [], []

    async def copy(reader, writer):
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def connection(reader, writer):
        tasks.append(asyncio.current_task())
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(answer)
        if b" 200 " in answer:
            there_reader, there = await asyncio.open_connection("127.0.0.1", target_port)
            await asyncio.gather(
                copy(reader, there), copy(there_reader, writer), return_exceptions=True
            )
        writer.close()

    server = await asyncio.start_server(connection, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", heads
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def port_of(url):
    return int(url.split(":")[2].partition("/")[0])


async def test_https_goes_through_a_proxys_tunnel(authority):
    served, trust = contexts(authority)
    async with (
        playing([OK, OK], tls=served) as (url, requests),
        tunnelling(port_of(url)) as (
            proxy,
            heads,
        ),
    ):
        proxies = Proxies({"https": f"http://us%65r:p%40ss@{proxy}"})
        async with client_of(tls=trust, proxies=proxies) as client:
            for _ in range(2):
                answer = await read(client, "POST", "https://api.example.com/v1", b"{}")
                assert answer == (200, b"hi")
        assert len(heads) == 1  # the tunnel is kept
    assert heads[0].startswith("CONNECT api.example.com:443 HTTP/1.1\r\nhost: api.example.com:443")
    assert "proxy-authorization: Basic dXNlcjpwQHNz\r\n" in heads[0]
    assert [request.target for _, request in requests] == ["/v1", "/v1"]
    assert requests[0][1].headers.get("proxy-authorization") is None


async def test_a_proxy_that_refuses_is_named():
    async with tunnelling(0, b"HTTP/1.1 407 No\r\ncontent-length: 5\r\n\r\nhello") as (proxy, _):
        async with client_of(proxies=Proxies({"https": proxy})) as client:
            with pytest.raises(UpstreamError) as caught:
                await read(client, "POST", "https://api.example.com/v1")
    assert caught.value.message == (
        f"the proxy {proxy} opens no connection to api.example.com:443: status 407"
    )


async def test_a_tunnel_to_a_server_that_is_not_trusted_sends_nothing(authority):
    # asyncio tells of the server's handshake, which is to fail.
    asyncio.get_running_loop().set_exception_handler(lambda loop, report: None)
    served, _ = contexts(authority)
    async with playing([OK], tls=served) as (url, requests), tunnelling(port_of(url)) as (proxy, _):
        async with client_of(proxies=Proxies({"https": proxy})) as client:
            with pytest.raises(UpstreamError, match="no secure connection to api.example.com:443"):
                await read(client, "POST", "https://api.example.com/v1")
    assert requests == []


async def test_a_proxy_that_says_nothing_has_a_deadline():
    async with tunnelling(0, b"") as (proxy, _):
        deadlines = Deadlines(connect_s=0.1)
        async with client_of(proxies=Proxies({"https": proxy}), deadlines=deadlines) as client:
            with pytest.raises(UpstreamError):
                await read(client, "POST", "https://api.example.com/v1")


async def test_http_is_asked_of_the_proxy_by_its_whole_url():
    async with playing([OK]) as (url, requests):
        proxies = Proxies({"http": url.removesuffix("/x").replace("//", "//user:pass@")})
        async with client_of(proxies=proxies) as client:
            assert await read(client, "GET", "http://api.example.com/v1?a=b") == (200, b"hi")
    assert requests[0][1].target == "http://api.example.com/v1?a=b"
    assert requests[0][1].headers.get("host") == "api.example.com"
    assert requests[0][1].headers.get("proxy-authorization") == "Basic dXNlcjpwYXNz"


ENVIRONMENT = {
    "HTTPS_PROXY": "http://upper:1",
    "https_proxy": "http://lower:2",
    "ALL_PROXY": "http://all:3",
    "NO_PROXY": "internal.example, .corp.example,10.0.0.0/8,[2001:db8::1],[2001:db8::2]:8443,"
    "port.example:8443 *.star.example 2001:db8:1::/48 Case.example. .",
}


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("https://api.example.com", 2),
        ("http://api.example.com", 3),
        ("https://internal.example", None),
        ("https://a.internal.example", None),
        ("https://notinternal.example", 2),
        ("https://a.corp.example", None),
        ("https://10.1.2.3", None),
        ("https://11.1.2.3", 2),
        ("https://port.example:8443", None),
        ("https://port.example", 2),
        ("http://127.0.0.1:8000", None),
        ("http://localhost", None),
        ("http://[::1]:80", None),
        ("http://[2001:db8::1]", None),
        ("http://[2001:db8::2]:8443", None),
        ("http://[2001:db8::2]", 3),
        ("http://[2001:db8:0::2]:8443", None),
        ("http://[2001:db8:1::7]", None),
        ("https://a.star.example", None),
        ("https://CASE.example", None),
    ],
)
def test_the_environment_says_what_goes_by_a_proxy(url, port):
    proxy = Proxies.of_environment(ENVIRONMENT).proxy_for(Address.of(url))
    assert (proxy and proxy.port) == port


def test_a_proxy_may_have_an_ipv6_address():
    proxies = Proxies({"https": "http://u:p@[2001:db8::9]:3128"})
    proxy = proxies.proxy_for(Address.of("https://api.example.com"))
    assert (proxy.host, proxy.port, proxy.authority) == (
        "2001:db8::9",
        3128,
        "[2001:db8::9]:3128",
    )


def test_all_may_go_past_the_proxy():
    assert Proxies({"http": "p"}, ("*",)).proxy_for(Address.of("http://x")) is None


@pytest.mark.parametrize(
    ("url", "found"),
    [
        (" http://user:secret@p:3128/ ", "http p 3128"),
        ("user:secret@p:3128", "http p 3128"),
        ("HTTPS://user:secret@p", "https p 443"),
        ("socks5://user:secret@p:1080", "socks5:// is not spoken, only http:// and https:// are"),
        ("http://user:12/secret@p:3128", "its URL can't be read"),  # not: port 12 of the host user
        ("http://user:secret#1@p:3128", "its URL can't be read"),
        ("http://user:secret@p:port", "its URL can't be read"),
        ("http://user:secret@:3128", "its URL can't be read"),
        ("http://user:secret@[::1", "its URL can't be read"),
    ],
)
def test_a_proxys_password_is_never_shown(url, found):
    proxies = Proxies.of_environment({"HTTPS_PROXY": url})
    try:
        proxy = proxies.proxy_for(Address.of("https://api.example.com"))
    except UpstreamError as error:
        shown = f"{error.full_message}{error.__cause__}{error.__context__}"
        assert f"the environment's proxy (HTTPS_PROXY or ALL_PROXY): {found}" in shown
    else:
        assert f"{'https' if proxy.is_tls else 'http'} {proxy.host} {proxy.port}" == found
        assert base64.b64decode(proxy.basic_key) == b"user:secret"
        shown = repr(proxy)
    for secret in ("secret", "dXNlcjpzZWNyZXQ"):
        assert secret not in f"{shown}{proxies}"
