"""The client against servers that play on loopback: times, deadlines, cuts, cancels, TLS."""

import asyncio
import contextlib
import gc
import gzip
import shutil
import socket
import ssl
import subprocess
import time
from contextlib import asynccontextmanager

import pytest

from llmproxy.core.errors import ProtocolError, UpstreamError, UpstreamTimeout
from llmproxy.core.limits import Limits
from llmproxy.transport import connections
from llmproxy.transport.client import send_request
from llmproxy.transport.connections import Deadlines
from llmproxy.transport.http11 import RequestParser, Response
from llmproxy.transport.server import Server

OK = b"HTTP/1.1 200 OK\r\n"
QUICK = Deadlines(connect_s=5, first_byte_s=0.1, idle_s=0.1)


class Played:
    """One connection that a playing server took."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer

    async def request(self):
        parser = RequestParser(Limits())
        while (request := parser.next_request()) is None:
            data = await self.reader.read(2**16)
            assert data
            parser.feed(data)
        return request

    async def say(self, data):
        self.writer.write(data)
        await self.writer.drain()

    async def until_hung_up(self):
        try:
            while await self.reader.read(2**16):
                pass
        except ConnectionError:
            pass


@asynccontextmanager
async def playing(play, **options):
    """A server that plays to each connection; gives its address and what was asked."""
    requests, tasks = [], []

    async def connection(reader, writer):
        tasks.append(asyncio.current_task())
        played = Played(reader, writer)
        try:
            requests.append(await played.request())
            await play(played)
        except (ConnectionError, ProtocolError):
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        finally:
            writer.close()

    server = await asyncio.start_server(connection, "127.0.0.1", 0, **options)
    scheme = "https" if options else "http"
    try:
        yield f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}", requests
    finally:
        server.close()
        await asyncio.gather(*tasks, return_exceptions=True)


def playing_bytes(*pieces, **options):
    async def play(played):
        for piece in pieces:
            await played.say(piece)

    return playing(play, **options)


@asynccontextmanager
async def hanging():
    """A server that takes a connection and says nothing; when it does, and when it is hung up."""
    taken, hung_up = asyncio.Event(), asyncio.Event()

    async def connection(reader, writer):
        taken.set()
        await Played(reader, writer).until_hung_up()
        hung_up.set()
        writer.close()

    server = await asyncio.start_server(connection, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", taken, hung_up
    finally:
        server.close()


async def read(url, **options):
    async with send_request(url, **options) as answer:
        return answer.status, b"".join([data async for _, data in answer])


async def test_a_request_is_sent_as_given():
    async with playing_bytes(OK + b"Content-Length: 2\r\n\r\nhi") as (url, requests):
        fields = [("authorization", "Bearer k")]
        assert await read(f"{url}/base/v1/chat?x=%20y", headers=fields, body=b"{}") == (200, b"hi")
    (request,) = requests
    assert (request.method, request.target, request.body) == ("POST", "/base/v1/chat?x=%20y", b"{}")
    assert list(request.headers) == [
        ("host", url.removeprefix("http://")),
        ("authorization", "Bearer k"),
        ("accept-encoding", "identity"),
        ("connection", "close"),
        ("content-length", "2"),
    ]


async def test_an_empty_body_has_a_length_and_the_root_a_slash():
    async with playing_bytes(OK + b"\r\nhi") as (url, requests):
        assert await read(url) == (200, b"hi")
    assert (requests[0].target, requests[0].headers.get("content-length")) == ("/", "0")


async def test_our_own_server_is_read():
    async def app(request):
        async def body():
            for word in (b"one ", b"two ", request.body):
                yield word

        return Response(200, [("content-type", "text/plain")], body())

    server = Server(app, render_error=lambda error, head: Response(error.status))
    await server.start("127.0.0.1", 0)
    try:
        for host in ("127.0.0.1", "localhost"):
            url = f"http://{host}:{server.addresses[0][1]}"
            assert await read(url, body=b"x" * 10) == (200, b"one two " + b"x" * 10)
    finally:
        await server.close()


async def test_interim_responses_trailers_and_gzip_over_a_socket():
    body = gzip.compress(b"abc")
    data = (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n"
        + OK + b"Transfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n\r\n"
        + b"".join(b"1;x=y\r\n%b\r\n" % body[i : i + 1] for i in range(len(body)))
        + b"0\r\nX: y\r\n\r\n"
    )  # fmt: skip
    async with playing_bytes(*(data[i : i + 5] for i in range(0, len(data), 5))) as (url, _):
        assert await read(url) == (200, b"abc")


async def test_any_status_is_a_response_and_redirects_are_not_followed():
    head = b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://127.0.0.1:1/\r\n"
    async with playing_bytes(head + b"Content-Length: 4\r\n\r\nmove") as (url, requests):
        assert await read(url) == (307, b"move")
    assert len(requests) == 1


async def test_the_environments_proxy_is_not_used(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with playing_bytes(OK + b"\r\nhi") as (url, _):
        assert await read(url) == (200, b"hi")


# ---- times


async def test_times_are_in_order_and_each_piece_has_its_own():
    gate = asyncio.Event()
    said = []

    async def play(played):
        await asyncio.sleep(0.05)
        await played.say(OK + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(3):
            await gate.wait()
            gate.clear()
            said.append(time.monotonic())
            await played.say(b"1\r\nx\r\n")
        await played.say(b"0\r\n\r\n")

    async with playing(play) as (url, _), send_request(url) as answer:
        came = []
        gate.set()
        async for at, data in answer:
            came.append((at, data))
            await asyncio.sleep(0.02)
            gate.set()
    times = answer.times
    assert times.began <= times.connected <= times.sent <= times.first_byte <= came[0][0]
    assert times.first_byte - times.sent >= 0.04
    assert [data for _, data in came] == [b"x"] * 3
    assert all(before <= at for before, (at, _) in zip(said, came, strict=True))
    assert [at for at, _ in came] == sorted(at for at, _ in came)


async def test_a_busy_reader_does_not_make_the_stamps_late():
    """Bytes are stamped when the loop reads them, not when they are asked for."""
    said = asyncio.Event()

    async def play(played):
        await played.say(OK + b"\r\none")
        await asyncio.sleep(0.02)
        await played.say(b"two")
        said.set()

    async with playing(play) as (url, _), send_request(url) as answer:
        await said.wait()
        await asyncio.sleep(0.2)
        asked = time.monotonic()
        came = [item async for item in answer]
    assert [data for _, data in came] == [b"one", b"two"]
    assert came[1][0] - came[0][0] >= 0.015
    assert came[1][0] < asked - 0.1


async def test_a_slow_reader_holds_the_server_back():
    sizes = []

    async def play(played):
        await played.say(OK + b"\r\n")
        for _ in range(64):
            await played.say(b"x" * 2**18)

    async with playing(play) as (url, _), send_request(url) as answer:
        await asyncio.sleep(0.1)
        wire = answer._reader._connection
        assert wire._buffered <= connections.READ_AHEAD_BYTES + 2**18
        async for _, data in answer:
            sizes.append(len(data))
    assert sum(sizes) == 64 * 2**18


async def test_a_long_request_is_sent_while_the_server_reads():
    body = b"x" * (8 * 2**20)
    async with playing_bytes(OK + b"\r\nhi") as (url, requests):
        assert await read(url, body=body) == (200, b"hi")
    assert requests[0].body == body


# ---- what goes wrong


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "the upstream closed the connection without a response"),
        (b"SSH-2.0-OpenSSH\r\n", "the upstream's response is not HTTP/1.1"),
        (
            OK + b"Content-Length: 9\r\n\r\nabc",
            "the upstream cut the connection before its response was complete",
        ),
        (
            OK + b"X: " + b"y" * 70000,
            "the upstream's response can't be read: the head is larger than 65536 bytes",
        ),
    ],
)
async def test_a_malformed_response_is_an_upstream_error(data, message):
    async with playing_bytes(data) as (url, _):
        with pytest.raises(UpstreamError) as failure:
            await read(url)
    assert failure.value.message == message


async def test_a_reset_is_the_upstreams_failure_behind_what_came():
    pieces = []

    async def play(played):
        await played.say(OK + b"\r\nabc")
        await got.wait()
        played.writer.transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
        )
        played.writer.transport.abort()

    got = asyncio.Event()
    async with playing(play) as (url, _), send_request(url) as answer:
        with pytest.raises(UpstreamError, match="the connection broke: .*reset"):
            async for _, data in answer:
                pieces.append(data)
                got.set()
    assert pieces == [b"abc"]


async def test_a_refusal_is_read_though_the_request_was_not():
    """A 413 may come before the body is sent; the server reads no more of it."""

    async def refuse(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno")
        await writer.drain()
        await over.wait()
        writer.transport.abort()

    over = asyncio.Event()
    server = await asyncio.start_server(refuse, "127.0.0.1", 0, limit=2**12)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        assert await read(url, body=b"x" * (32 * 2**20)) == (413, b"no")
    finally:
        over.set()
        server.close()
        await asyncio.sleep(0)


async def test_a_refused_connection_is_an_upstream_error():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(
            UpstreamError, match=f"^no connection to 127.0.0.1:{port}: Connection refused$"
        ):
            await read(f"http://127.0.0.1:{port}/")


async def test_no_such_host(monkeypatch):
    async def getaddrinfo(*args, **options):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    with pytest.raises(UpstreamError, match="^no connection to nowhere.invalid:80: .*not known"):
        await read("http://nowhere.invalid/")


async def test_a_connection_has_a_deadline(monkeypatch):
    async def getaddrinfo(*args, **options):
        await asyncio.sleep(60)

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    with pytest.raises(UpstreamTimeout, match="^no connection to slow.invalid:80 within 0.05 s$"):
        await read("http://slow.invalid/", deadlines=Deadlines(connect_s=0.05))


async def test_a_full_backlog_has_a_deadline():
    """The connection is neither taken nor refused."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(UpstreamTimeout, match="^no connection to .* within 0.1 s$"):
            await read(url, deadlines=Deadlines(connect_s=0.1))


async def test_a_tls_handshake_has_a_deadline():
    async with hanging() as (url, _, hung_up):
        with pytest.raises(UpstreamTimeout, match="^no connection to .* within 0.1 s$"):
            await read(url.replace("http:", "https:"), deadlines=Deadlines(connect_s=0.1))
        async with asyncio.timeout(1):
            await hung_up.wait()


async def test_a_cancel_while_connecting_hangs_up():
    async with hanging() as (url, taken, hung_up):
        task = asyncio.create_task(read(url.replace("http:", "https:")))
        await taken.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(1):
            await hung_up.wait()


@pytest.mark.parametrize("is_hanging", [False, True])
async def test_an_address_that_does_not_respond_leaves_time_for_the_next(monkeypatch, is_hanging):
    async def getaddrinfo(*args, **options):
        if args[0] != "both.invalid":
            return await found(*args, **options)
        return [(socket.AF_INET, 0, 0, "", (address, 0)) for address in ("127.0.0.2", "127.0.0.1")]

    async def connect(sock, address):
        if is_hanging and address[0] == "127.0.0.2":
            await asyncio.sleep(60)
        await connected(sock, address)

    loop = asyncio.get_running_loop()
    found, connected = loop.getaddrinfo, loop.sock_connect
    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(loop, "sock_connect", connect)
    async with playing_bytes(OK + b"\r\nhi") as (url, requests):
        url = url.replace("127.0.0.1", "both.invalid")
        assert await read(url, deadlines=Deadlines(connect_s=1)) == (200, b"hi")
    assert requests[0].host == url.removeprefix("http://")


async def test_a_response_that_never_begins_has_a_deadline():
    async with playing(Played.until_hung_up) as (url, _):
        with pytest.raises(UpstreamTimeout, match="^the upstream began no response within 0.1 s$"):
            await read(url, deadlines=QUICK)


@pytest.mark.parametrize("data", [b"HTTP/1.1 2", OK + b"X: y\r\n", OK + b"\r\nabc"])
async def test_a_response_that_stalls_has_a_deadline(data):
    async def play(played):
        await played.say(data)
        await played.until_hung_up()

    async with playing(play) as (url, _):
        with pytest.raises(UpstreamTimeout, match="^the upstream's response stalled within 0.1 s$"):
            await read(url, deadlines=QUICK)


async def test_a_server_that_does_not_take_the_request_has_a_deadline():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        message = "^the upstream did not take the request within 0.1 s$"
        with pytest.raises(UpstreamTimeout, match=message):
            await read(url, body=b"x" * (64 * 2**20), deadlines=QUICK)


@pytest.mark.parametrize("said", [b"", OK, OK + b"\r\nabc"])
async def test_a_cancel_hangs_up_at_once(said):
    begun, hung_up = asyncio.Event(), asyncio.Event()

    async def play(played):
        await played.say(said)
        begun.set()
        await played.until_hung_up()
        hung_up.set()

    async with playing(play) as (url, _):
        task = asyncio.create_task(read(url))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(1):
            await hung_up.wait()


async def test_leaving_the_block_early_hangs_up():
    hung_up = asyncio.Event()

    async def play(played):
        await played.say(OK + b"\r\nabc")
        await played.until_hung_up()
        hung_up.set()

    async with playing(play) as (url, _):
        async with send_request(url) as answer:
            async for _, data in answer:
                assert data == b"abc"
                break
        async with asyncio.timeout(1):
            await hung_up.wait()
    gc.collect()


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a/",
        "a:80",
        "http:///x",
        "http://user:sesame@a/",
        "http://a/#sesame",
        "http://a/b c",
        "http://a/\r\nsesame: b",
        "http://a/\u00e9",
        "http://a:99999/",
    ],
)
async def test_what_is_no_url_of_a_server_is_refused(url):
    with pytest.raises(ValueError) as refusal:
        await read(url)
    assert "sesame" not in str(refusal.value)


async def test_a_field_that_is_the_clients_own_is_refused():
    with pytest.raises(ValueError, match="itself: connection, host$"):
        await read("http://a/", headers=[("Host", "b"), ("Connection", "x")])


# ---- TLS


@pytest.fixture
def certificate(tmp_path):
    """A self-made certificate for 127.0.0.1, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: no certificate to play with")
    paths = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1"
    command += f" -addext subjectAltName=IP:127.0.0.1 -out {paths[0]} -keyout {paths[1]}"
    subprocess.run(command.split(), check=True, capture_output=True)
    return paths


def serving_tls(certificate):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    return context


async def test_a_self_made_certificate_is_refused_and_nothing_sent(certificate):
    # asyncio tells of the server's handshake, which is to fail.
    asyncio.get_running_loop().set_exception_handler(lambda loop, report: None)
    async with playing_bytes(OK + b"\r\nhi", ssl=serving_tls(certificate)) as (url, requests):
        with pytest.raises(UpstreamError, match="^no secure connection to .*: self-signed"):
            await read(url, headers=[("authorization", "Bearer k")])
        await asyncio.sleep(0.01)
    assert requests == []


async def test_a_trusted_certificate_is_accepted_and_its_times_reported(certificate):
    body = b"x" * (4 * 2**20)
    async with playing_bytes(OK + b"\r\n", b"h", b"i", ssl=serving_tls(certificate)) as (url, _):
        trust = ssl.create_default_context(cafile=certificate[0])
        async with send_request(url, body=body, tls=trust) as answer:
            assert b"".join([data async for _, data in answer]) == b"hi"
        times = answer.times
        assert times.began < times.connected < times.sent <= times.first_byte


async def test_time_to_send_under_tls_is_not_response_time(certificate):
    """asyncio's TLS told of an emptied buffer only with the next read, at a mark of 0."""

    async def play(played):
        await asyncio.sleep(0.2)
        await played.say(OK + b"\r\nhi")

    async with playing(play, ssl=serving_tls(certificate)) as (url, _):
        trust = ssl.create_default_context(cafile=certificate[0])
        async with send_request(url, body=b"{}", tls=trust) as answer:
            assert answer.times.first_byte - answer.times.sent > 0.15


async def test_a_server_without_tls_is_no_secure_one():
    async with playing_bytes() as (url, _):
        with pytest.raises(UpstreamError, match="^no secure connection to "):
            await read(url.replace("http:", "https:"), deadlines=Deadlines(connect_s=2))
