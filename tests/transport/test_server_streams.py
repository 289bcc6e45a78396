"""Requests that are read while they arrive, and responses with an upstream's own headers."""

import asyncio
import hashlib
import sys
from contextlib import asynccontextmanager

import pytest

from llmproxy.core.limits import Limits
from llmproxy.transport.http11 import CONTINUE, Headers, Request, Response, frame_response
from llmproxy.transport.server import READ_AHEAD_BYTES, Server

PUT = b"PUT /up HTTP/1.1\r\nHost: a\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


@asynccontextmanager
async def serving(app, streams=lambda head: True, **limits):
    server = Server(
        app,
        render_error=lambda error, head: Response(error.status, [], error.message.encode()),
        limits=Limits(**limits),
        streams=streams,
    )
    await server.start("127.0.0.1", 0)
    try:
        yield server
    finally:
        await server.close()


@asynccontextmanager
async def connected(server):
    reader, writer = await asyncio.open_connection(*server.addresses[0])
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def digest(request):
    """Answer how the body came, its length and its hash."""
    if request.body_stream is None:
        return Response(200, [], b"whole %d" % len(request.body))
    found, count = hashlib.sha256(), 0
    async for piece in request.body_stream:
        assert piece
        found.update(piece)
        count += len(piece)
    return Response(200, [], b"streamed %d %b" % (count, found.hexdigest().encode()))


async def read_answer(reader):
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
    return head, await reader.readexactly(length)


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_an_upload_may_be_larger_than_a_body_and_the_connection_goes_on(is_chunked):
    data = bytes(range(256)) * 2**14
    framing = CHUNKED if is_chunked else b"Content-Length: %d\r\n\r\n" % len(data)
    async with serving(digest, body=1000) as server, connected(server) as (reader, writer):
        for _ in range(2):
            writer.write(PUT + framing)
            for at in range(0, len(data), 100_000):
                piece = data[at : at + 100_000]
                writer.write(b"%x;x=y\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece)
                await writer.drain()
            writer.write(b"0\r\nX: trailer\r\n\r\n" if is_chunked else b"")
            _, body = await read_answer(reader)
            assert body.decode() == f"streamed {len(data)} {hashlib.sha256(data).hexdigest()}"
        writer.write(PUT + b"Content-Length: 2\r\n\r\nhi")  # nothing to wait for
        assert (await read_answer(reader))[1] == b"whole 2"


async def test_only_what_is_wanted_is_streamed():
    async with serving(digest, lambda head: head.path == "/other", body=1000) as server:
        async with connected(server) as (reader, writer):
            writer.write(PUT + b"Content-Length: 2000\r\n\r\n")
            assert (await read_answer(reader))[0].startswith("http/1.1 413 ")


async def test_a_client_waits_while_nobody_asks_for_more():
    go_on, taken = asyncio.Event(), []

    async def app(request):
        async for piece in request.body_stream:
            taken.append(len(piece))
            await go_on.wait()
        return Response(204)

    size = 64 * 2**20  # more than the sockets of both sides take
    async with serving(app) as server, connected(server) as (reader, writer):
        writer.write(PUT + b"Content-Length: %d\r\n\r\n" % size)
        writer.write(bytes(size))
        (connection,) = server._connections.values()
        while connection._is_reading:
            await asyncio.sleep(0.01)
        assert len(taken) == 1 and connection._parser.buffered < 3 * READ_AHEAD_BYTES
        go_on.set()
        assert (await reader.readuntil(b"\r\n")) == b"HTTP/1.1 204 No Content\r\n"
    assert sum(taken) == size


async def test_continue_is_sent_when_the_body_is_asked_for():
    head = PUT + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    async with serving(digest) as server, connected(server) as (reader, writer):
        writer.write(head)
        assert await reader.readexactly(len(CONTINUE)) == CONTINUE
        writer.write(b"hi")
        assert (await read_answer(reader))[1].startswith(b"streamed 2 ")


async def test_a_body_that_is_not_read_is_the_connections_last():
    async def refuse(request):
        return Response(401, [], b"no")

    head = PUT + b"Expect: 100-continue\r\nContent-Length: 2000000\r\n\r\n"
    async with serving(refuse) as server, connected(server) as (reader, writer):
        writer.write(head)
        data = await reader.read()
        assert data.startswith(b"HTTP/1.1 401 ") and b"\r\nconnection: close\r\n" in data


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (CHUNKED + b"2\r\nhi\r\nx\r\n", 400, "malformed chunk size"),
        (b"Content-Length: 9\r\n\r\nhi", 408, "the body came too slowly"),
    ],
)
async def test_a_bad_body_is_an_error_of_the_client(data, status, words):
    async with serving(digest, body_s=0.05) as server, connected(server) as (reader, writer):
        writer.write(PUT + data)
        answer = (await reader.read()).decode()
        assert answer.startswith(f"HTTP/1.1 {status} ") and words in answer
        assert "connection: close" in answer


async def test_a_slow_drip_ends_though_each_byte_is_in_time(monkeypatch):
    async def drip(writer):
        while True:
            writer.write(b"x")
            await asyncio.sleep(0.02)

    async with serving(digest, body_s=0.1) as server, connected(server) as (reader, writer):
        writer.write(PUT + b"Content-Length: 999\r\n\r\n")
        dripping = asyncio.create_task(drip(writer))
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 408 ")
        dripping.cancel()


async def test_a_hang_up_cancels_the_reader_also_in_another_task():
    cancelled, raised = asyncio.Event(), []

    async def read(request):
        try:
            async for _ in request.body_stream:
                pass
        except Exception as error:
            raised.append(str(error))

    async def app(request):
        reading = asyncio.create_task(read(request))
        try:
            await asyncio.wait([reading])
        except asyncio.CancelledError:
            await reading
            cancelled.set()
            raise
        raise AssertionError

    async with serving(app) as server:
        async with connected(server) as (_, writer):
            writer.write(PUT + b"Content-Length: 9\r\n\r\nhi")
            await writer.drain()
            while not server.connections:
                await asyncio.sleep(0)
            await asyncio.sleep(0.02)
        await asyncio.wait_for(cancelled.wait(), 5)
    assert raised == ["the client left before its body was whole"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems don't tell")
@pytest.mark.parametrize("streams", [True, False], ids=["upload", "next request"])
@pytest.mark.parametrize("ending", ["shutdown", "close", "reset"])
async def test_a_hang_up_behind_unread_bytes_cancels_the_response(ending, streams):
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def app(request):
        began.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with serving(app, lambda head: streams) as server:
        _, writer = await asyncio.open_connection(*server.addresses[0])
        writer.write(PUT + b"Content-Length: %d\r\n\r\n" % (2**30 if streams else 0))
        await began.wait()
        writer.write(bytes(READ_AHEAD_BYTES + 2**16))
        (connection,) = server._connections.values()
        while connection._is_reading:
            await asyncio.sleep(0.01)
        await writer.drain()
        if ending == "shutdown":
            writer.write_eof()
        elif ending == "close":
            writer.close()
        else:
            writer.transport.abort()
        await asyncio.wait_for(cancelled.wait(), 5)
        writer.close()


# ---- relayed responses


async def stream(*pieces):
    for piece in pieces:
        yield piece


RELAYED = [
    ("Content-Type", "text/event-stream"),
    ("X-Request-ID", "r"),
    ("set-cookie", "a"),
    ("Connection", "keep-alive, X-Hop"),
    ("X-Hop", "1"),
    ("Keep-Alive", "timeout=5"),
    ("Trailer", "x"),
    ("Set-Cookie", "b"),
]
SENT = "Content-Type: text/event-stream|X-Request-ID: r|set-cookie: a|Set-Cookie: b"


CODED = ("Transfer-Encoding", "chunked")
TWO = ("Content-Length", "2")
STREAM = "stream"
CHUNKS = "|transfer-encoding: chunked"


@pytest.mark.parametrize(
    ("method", "version", "status", "extra", "body", "sent"),
    [
        ("POST", "1.1", 200, [], STREAM, CHUNKS),
        ("POST", "1.1", 200, [CODED], STREAM, CHUNKS),
        ("POST", "1.1", 200, [TWO], STREAM, "|Content-Length: 2"),
        ("POST", "1.1", 200, [("Content-Length", "2, 2"), TWO], STREAM, "|Content-Length: 2"),
        ("POST", "1.1", 200, [TWO, CODED], STREAM, CHUNKS),
        ("POST", "1.1", 200, [("Content-Length", "+2")], STREAM, CHUNKS),
        ("POST", "1.1", 200, [("Content-Length", "99")], b"hi", "|Content-Length: 2"),
        ("POST", "1.1", 200, [CODED], b"hi", "|content-length: 2"),
        ("POST", "1.0", 200, [], STREAM, "|connection: close"),
        ("POST", "1.0", 200, [TWO], STREAM, "|Content-Length: 2|connection: close"),
        ("HEAD", "1.1", 200, [("Content-Length", "99")], b"", "|Content-Length: 99"),
        ("HEAD", "1.1", 200, [CODED], b"", ""),
        ("GET", "1.1", 304, [("Content-Length", "99")], b"", "|Content-Length: 99"),
        ("GET", "1.1", 304, [], STREAM, ""),
        ("DELETE", "1.1", 204, [("Content-Length", "0")], b"", ""),
    ],
)  # fmt: skip
def test_a_relayed_response_keeps_its_fields(method, version, status, extra, body, sent):
    request = Request(method, "/", Headers([("host", "a")]), version=version)
    said = stream(b"hi") if body == STREAM else body
    response = Response(status, [*RELAYED, *extra], said, reason_phrase="", is_relayed=True)
    framed = frame_response(response, request, date="now")
    line, *fields = framed.head.decode().removesuffix("\r\n\r\n").split("\r\n")
    assert line == f"HTTP/1.1 {status} "
    assert "|".join(fields) == SENT + sent
    assert framed.has_body == (method != "HEAD" and status not in (204, 304))
    assert framed.keep_alive == ("close" not in sent)


def test_a_reason_phrase_can_be_no_second_line():
    with pytest.raises(ValueError, match="reason phrase"):
        frame_response(Response(200, reason_phrase="OK\r\nx: y"), None, date="now")


@pytest.mark.parametrize("pieces", [[b"h"], [b"hi", b"!"]])
async def test_a_body_of_another_length_than_announced_ends_the_connection(pieces):
    async def app(request):
        fields = [("Content-Length", "2")]
        return Response(200, fields, stream(*pieces), reason_phrase="Fine", is_relayed=True)

    async with serving(app) as server, connected(server) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        head = b"HTTP/1.1 200 Fine\r\nContent-Length: 2\r\n\r\n"
        assert await reader.read() == head + b"".join(pieces)
