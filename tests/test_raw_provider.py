"""The played provider against the standard library's client."""

import gzip
import http.client
import socket
import ssl

import pytest

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

HELLO = [begin_chunked(), chunk(b"hel", b";x=1"), chunk(b"lo"), end_chunks(b"X: y\r\n")]


def ask(port, body=b"{}", tls=None):
    kind = http.client.HTTPSConnection if tls else http.client.HTTPConnection
    client = kind("127.0.0.1", port, timeout=10, **({"context": tls} if tls else {}))
    client.request("POST", "/v1?x", body, {"X-Case": "é".encode("latin-1")})
    answer = client.getresponse()
    try:
        return answer.status, answer.reason, answer.read()
    finally:
        client.close()


def test_answers_are_given_in_turn_and_requests_kept_as_they_came():
    limited = response(b"{}", 429, [("Retry-After", "7")], reason="Slow down")
    with playing_raw(limited, HELLO, lambda request: response(request.body)) as provider:
        assert ask(provider.port) == (429, "Slow down", b"{}")
        assert ask(provider.port) == (200, "OK", b"hello")
        assert ask(provider.port, iter([b"a", b"b"]))[2] == b"ab"
        ask(provider.port, b"last")
    assert [one.body for one in provider.requests] == [b"{}", b"{}", b"ab", b"last"]
    assert [one.raw for one in provider.requests] == [bytes(one) for one in provider.received]
    first = provider.requests[0]
    assert (first.method, first.target, first.header("x-case")) == ("POST", "/v1?x", "é")
    assert ("X-Case", "é") in first.headers


def test_single_bytes_gzip_tls_and_a_relay(tmp_path):
    packed = gzip.compress(b"hi")
    said = response(packed, headers=[("Content-Encoding", "gzip")])
    with playing_raw(lambda request: single_bytes(said), tls="127.0.0.1") as provider:
        trust = ssl.create_default_context(cafile=provider.write_ca(tmp_path))
        with relaying(provider.port) as relay:
            assert ask(relay.port, tls=trust)[2] == packed
        with pytest.raises(ssl.SSLCertVerificationError):
            ask(provider.port, tls=ssl.create_default_context())
    assert len(provider.requests) == 1


def test_a_proxy_leads_its_tunnels_to_the_provider():
    with (
        playing_raw(response(b"hi")) as provider,
        relaying(provider.port, answers_connect=True) as proxy,
    ):
        client = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
        client.set_tunnel("api.example.com", 443)
        client.request("GET", "/")
        assert client.getresponse().read() == b"hi"
        client.close()
    assert proxy.received[0].startswith(b"CONNECT api.example.com:443 ")
    assert provider.requests[0].method == "GET"


@pytest.mark.parametrize("end", [CLOSE, RESET])
def test_an_answer_may_break_off(end):
    with playing_raw([begin_chunked(), chunk(b"hel"), end]) as provider:
        with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
            ask(provider.port)


def test_an_endless_answer_ends_with_the_hang_up():
    def endless(request):
        yield begin_chunked()
        while True:
            yield chunk(b"x" * 1000)

    def silent(request):
        yield begin_chunked()
        assert request.wait_for_hang_up()

    with playing_raw(endless, silent) as provider:
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", provider.port)) as peer:
                peer.sendall(b"GET / HTTP/1.1\r\n\r\n")
                assert peer.recv(100)
            assert provider.hung_up.wait(10) or len(provider.requests) == 2


def test_a_body_can_be_left_unread():
    with playing_raw(response()) as provider:
        provider.may_read.clear()
        with socket.create_connection(("127.0.0.1", provider.port)) as peer:
            peer.settimeout(0.2)
            with pytest.raises(TimeoutError):
                while True:
                    peer.send(b"x" * 2**16)
