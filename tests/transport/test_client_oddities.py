"""The client as what passes bytes on, against a provider that is played byte by byte."""

import asyncio
import gzip
import socket
import threading
import time

import pytest

from llmproxy.core.errors import SettingsError, UpstreamError, UpstreamTimeout
from llmproxy.core.limits import Limits
from llmproxy.transport.client import Client, send_request
from llmproxy.transport.connections import Deadlines, Proxies, trust
from tests.raw_provider import (
    CLOSE,
    RESET,
    begin_chunked,
    chunk,
    end_chunks,
    playing_raw,
    relaying,
    response,
    single_bytes,
)

PACKED = gzip.compress(b"hello")


async def ask(provider, *, target="/v1/messages", body=b"{}", limits=Limits(), **options):
    """Give status, reason, fields and bytes of a response, as they come."""
    client = Client(**options)
    url = provider.url + target
    try:
        async with client.send("POST", url, (), body, limits=limits, is_decoded=False) as answer:
            data = b"".join([piece async for _, piece in answer])
            return answer.status, answer.reason_phrase, answer.headers.as_received, data
    finally:
        client.close()


CODED = ("Transfer-Encoding", "chunked")
EVENTS = ("Content-Type", "text/event-stream")
GZIP = ("Content-Encoding", "gzip")
LIMITED = [("Retry-After", "7"), ("X-Rate", "a"), ("x-rate", "b")]
ELSEWHERE = ("Location", "http://127.0.0.1:1/")


def length(count):
    return ("Content-Length", str(count))


# By name: the pieces, then status, reason phrase, fields and body.
ODD = {
    "chunk extensions and trailers": (
        [
            begin_chunked(),
            chunk(b"he", b";a=b;c"),
            chunk(b"llo", b' ; q="x"'),
            end_chunks(b"A: b\r\n"),
        ],
        (200, "OK", [EVENTS, CODED], b"hello"),
    ),
    "gzip although identity was asked": (
        [response(PACKED, headers=[GZIP])],
        (200, "OK", [GZIP, length(len(PACKED))], PACKED),
    ),
    "a refusal": (
        [response(b"{}", 429, LIMITED, reason="")],
        (429, "", [*LIMITED, length(2)], b"{}"),
    ),
    "interim responses": (
        [
            b"HTTP/1.1 100 Continue\r\n\r\n",
            b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n",
            response(b"hi", headers=()),
        ],
        (200, "OK", [length(2)], b"hi"),
    ),
    "a redirect": (
        [response(b"", 307, [ELSEWHERE])],
        (307, "Temporary Redirect", [ELSEWHERE, length(0)], b""),
    ),
    "a body that ends with the connection": (
        [b"HTTP/1.1 200\r\n\r\nhi", CLOSE],
        (200, "", [], b"hi"),
    ),
}


@pytest.mark.parametrize("tls", [None, "127.0.0.1"])
@pytest.mark.parametrize("name", ODD)
async def test_what_comes_is_given_as_it_came(name, tls, tmp_path):
    pieces, (status, reason, fields, body) = ODD[name]

    def answer(request):
        for piece in pieces:
            yield from [piece] if piece is CLOSE else single_bytes(piece)

    with playing_raw(answer, tls=tls) as provider:
        context = trust(provider.write_ca(tmp_path)) if tls else None
        assert await ask(provider, tls=context) == (status, reason, tuple(fields), body)


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([begin_chunked(), chunk(b"hel"), CLOSE], "before its response was complete"),
        ([response(b"hello")[:-1], CLOSE], "before its response was complete"),
        ([begin_chunked(), chunk(b"hel"), RESET], "the connection broke"),
        ([CLOSE], "without a response"),
        ([b"SSH-2.0-OpenSSH_9.6\r\n"], "not HTTP/1.1"),
        ([b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000], "the head is larger than 65536 bytes"),
        ([b"HTTP/1.1 101 Switching Protocols\r\n\r\n"], "switched protocols unasked"),
    ],
)
async def test_what_is_cut_or_no_response_is_an_error(pieces, message):
    with playing_raw(pieces) as provider:
        with pytest.raises(UpstreamError, match=message):
            await ask(provider)
    assert len(provider.requests) == 1


def endless(request):
    yield begin_chunked()
    while True:
        yield chunk(b"x" * 1000)


async def test_an_endless_body_has_limits():
    with playing_raw(endless) as provider:
        with pytest.raises(UpstreamError, match="the body is larger than 100000 bytes"):
            await ask(provider, limits=Limits(body=100_000))
        assert await asyncio.to_thread(provider.hung_up.wait, 1)
        with pytest.raises(UpstreamTimeout, match="limit answer_s"):
            await ask(provider, limits=Limits(body=10**12, answer_s=0.2))


async def test_a_response_that_waits_has_a_limit_of_its_own():
    def wait(request):
        yield begin_chunked()
        request.wait_for_hang_up()

    with playing_raw(wait) as provider:
        with pytest.raises(UpstreamTimeout, match="limit answer_s"):
            await ask(provider, limits=Limits(answer_s=0.1))
        with pytest.raises(UpstreamTimeout, match="stalled within 0.1 s"):
            await ask(provider, deadlines=Deadlines(idle_s=0.1), limits=Limits(answer_s=5))


@pytest.mark.parametrize("tls", [None, "127.0.0.1"])
async def test_a_cancel_ends_the_upstreams_work_within_a_second(tls, tmp_path):
    gone = []

    def wait(request):
        yield begin_chunked() + chunk(b"first")
        began = time.monotonic()
        gone.append(request.wait_for_hang_up() and time.monotonic() - began)

    with playing_raw(wait, tls=tls) as provider:
        client = Client(tls=trust(provider.write_ca(tmp_path)) if tls else None)
        begun = asyncio.Event()

        async def read():
            async with client.send("POST", provider.url) as answer:
                async for _ in answer:
                    begun.set()

        reading = asyncio.create_task(read())
        await begun.wait()
        reading.cancel()
        await asyncio.wait([reading])
        while not gone:
            await asyncio.sleep(0.01)
    assert gone[0] is not False and gone[0] < 1


@pytest.mark.parametrize(
    ("name", "is_trusted", "words"),
    [
        ("127.0.0.1", False, "unable to get local issuer certificate"),
        ("other.example", True, "IP address mismatch"),
    ],
)
async def test_a_certificate_that_fails_is_an_error_in_words(name, is_trusted, words, tmp_path):
    with playing_raw(response(b"hi"), tls=name) as provider:
        context = trust(provider.write_ca(tmp_path) if is_trusted else None)
        with pytest.raises(UpstreamError, match=f"certificate is not accepted: .*{words}") as error:
            await ask(provider, tls=context)
    assert error.value.status == 502 and provider.requests == []


def test_a_ca_file_without_a_certificate_is_a_wrong_setting(tmp_path):
    (tmp_path / "ca.pem").write_text("hello")
    with pytest.raises(SettingsError, match="ca.pem: it has no certificate in PEM"):
        trust(tmp_path / "ca.pem")
    with pytest.raises(SettingsError, match="none.pem: No such file"):
        trust(tmp_path / "none.pem")


async def test_an_ipv6_literal_is_an_address():
    with playing_raw(response(b"hi"), host="::1") as provider:
        assert (await ask(provider))[3] == b"hi"
    assert provider.requests[0].header("host") == provider.url.removeprefix("http://")


@pytest.mark.parametrize("tls", [None, "127.0.0.1"], ids=["http", "https"])
async def test_the_environments_proxy_leads_to_the_provider(tls, tmp_path, monkeypatch):
    large = b"0123456789" * 100_000
    with (
        playing_raw(response(large), tls="api.example.com") as provider,
        relaying(provider.port, answers_connect=True, tls=tls) as proxy,
    ):
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("//", "//user:pass@"))
        monkeypatch.setenv("NO_PROXY", "other.example")
        where = {"tls": trust(provider.write_ca(tmp_path)), "proxies": Proxies.of_environment()}
        client = Client(**where)
        url = "https://api.example.com/v1/messages"
        async with client.send("POST", url, body=large) as answer:
            assert b"".join([data async for _, data in answer]) == large
        client.close()
        async with send_request(url, body=b"{}", **where) as answer:
            assert b"".join([data async for _, data in answer]) == large
    assert len(proxy.received) == 2
    assert proxy.received[0].startswith(b"CONNECT api.example.com:443 HTTP/1.1\r\n")
    assert b"proxy-authorization: Basic dXNlcjpwYXNz\r\n" in proxy.received[0]
    assert provider.requests[0].body == large
    assert provider.requests[0].header("proxy-authorization") is None
    assert provider.requests[0].header("host") == "api.example.com"


async def test_a_proxy_that_is_not_trusted_gets_no_request(monkeypatch):
    with relaying(1, answers_connect=True, tls="127.0.0.1") as proxy:
        client = Client(proxies=Proxies({"https": proxy.url.replace("//", "//user:pass@")}))
        with pytest.raises(
            UpstreamError, match=f"no secure connection to the proxy 127.*{proxy.port}"
        ):
            async with client.send("GET", "https://api.example.com/"):
                pass
    assert not any(proxy.received)


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["end", "http"])
@pytest.mark.parametrize("tls", [None, "127.0.0.1"], ids=["http", "https"])
async def test_a_tunnel_whose_handshake_fails_is_named(tls, said, tmp_path):
    # CPython 3.12 and before tells of its own mistake there.
    asyncio.get_running_loop().set_exception_handler(lambda loop, report: None)

    def end():
        with ending.accept()[0] as peer:
            peer.recv(2**16)
            peer.sendall(said)

    with (
        socket.create_server(("127.0.0.1", 0)) as ending,
        playing_raw(b"", tls="api.example.com") as trusted,  # for its CA
        relaying(ending.getsockname()[1], answers_connect=True, tls=tls) as proxy,
    ):
        threading.Thread(target=end, daemon=True).start()
        context = trust(trusted.write_ca(tmp_path))
        client = Client(tls=context, proxies=Proxies({"https": proxy.url}))
        with pytest.raises(UpstreamError, match=r"no (secure )?connection to api.example.com:443"):
            async with client.send("GET", "https://api.example.com/"):
                pass


async def test_a_kept_connection_through_an_https_proxy_is_not_used_when_it_breaks(tmp_path):
    with (
        playing_raw(response(b"hi"), tls="api.example.com") as provider,
        relaying(provider.port, answers_connect=True, tls="127.0.0.1") as proxy,
    ):
        context = trust(provider.write_ca(tmp_path))
        client = Client(tls=context, proxies=Proxies({"https": proxy.url}))
        for _ in range(2):
            async with client.send("GET", "https://api.example.com/") as answer:
                assert b"".join([data async for _, data in answer]) == b"hi"
            ((kept,),) = client._pool._idle.values()
            outer = kept._transport._ssl_protocol._transport._ssl_protocol._transport
            outer._force_close(ConnectionResetError())
            await asyncio.sleep(0)  # TLS inside TLS has not heard of it
        client.close()
    assert len(proxy.received) == 2


async def test_a_provider_that_reads_slowly_holds_the_request_back():
    sent = 0

    async def body():
        nonlocal sent
        for _ in range(64):
            sent += 1
            yield bytes(2**18)

    with playing_raw(response(b"hi")) as provider:
        provider.may_read.clear()
        asking = asyncio.create_task(ask(provider, body=body()))
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(0.05)
        assert 0 < sent < 60
        provider.may_read.set()
        assert (await asking)[3] == b"hi"
    assert len(provider.requests[0].body) == 64 * 2**18
