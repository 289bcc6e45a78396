"""The server on real sockets of the loopback: order, hang-ups, deadlines, back-pressure, ends."""

import asyncio
import errno
import hashlib
import http.client
import json
import re
import shutil
import socket
import struct
import weakref
from contextlib import asynccontextmanager

import pytest

from llmproxy.core.errors import RateLimited
from llmproxy.core.limits import Limits
from llmproxy.transport import server as server_module
from llmproxy.transport.http11 import CONTINUE, BodyCut, Response
from llmproxy.transport.server import Server

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LAST_GET = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
PLAIN = ("content-type", "text/plain")


def render_error(error, head=None):
    body = json.dumps({"error": error.message}).encode()
    return Response(
        error.status, [("content-type", "application/json"), *error.headers.items()], body
    )


@asynccontextmanager
async def serving(app, **limits):
    """A server on a free port, and its port."""
    server = Server(app, render_error=render_error, limits=Limits(**limits))
    await server.start("127.0.0.1", 0)
    try:
        yield server, server.addresses[0][1]
    finally:
        await server.close()


@asynccontextmanager
async def connected(port, **options):
    reader, writer = await asyncio.open_connection("127.0.0.1", port, **options)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def exchange(port, *pieces):
    """Send pieces, give all that comes until the server closes; dates are cut out."""
    async with connected(port) as (reader, writer):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        return without_dates(await reader.read())


def logged(caplog):
    """What the server logged; asyncio's debug mode may have noted slow steps as well."""
    return [each.message for each in caplog.records if each.name == server_module.__name__]


def without_dates(data):
    return re.sub(rb"date: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT\r\n", b"", data)


async def read_answer(reader):
    """Read one answer that has a content-length; give its body."""
    head = await reader.readuntil(b"\r\n\r\n")
    return await reader.readexactly(int(re.search(rb"content-length: (\d+)", head)[1]))


async def echo(request):
    return Response(200, [PLAIN], request.target.encode() + b" " + request.body)


def whole(body, status=b"200 OK", *lines):
    fields = [b"content-type: text/plain", b"content-length: %d" % len(body), *lines]
    return b"HTTP/1.1 " + status + b"\r\n" + b"\r\n".join(fields) + b"\r\n\r\n" + body


def refused(status, text, *lines):
    body = json.dumps({"error": text}).encode()
    fields = [b"content-type: application/json", *lines, b"content-length: %d" % len(body)]
    return b"\r\n".join([b"HTTP/1.1 " + status, *fields, b"connection: close", b"", body])


class Stream:
    """A body of these items, then of what `then` does; knows when it was closed."""

    def __init__(self, *items, then=None):
        self.items = list(items)
        self.then = then
        self.taken = 0
        self.stopped = asyncio.Event()
        self.closed = asyncio.Event()

    def __aiter__(self):
        return self

    async def __anext__(self):
        if self.taken < len(self.items):
            self.taken += 1
            return self.items[self.taken - 1]
        if self.then is not None:
            try:
                await self.then()
            finally:
                self.stopped.set()
        raise StopAsyncIteration

    async def aclose(self):
        self.closed.set()


def answering(body, status=200):
    async def app(request):
        return Response(status, [PLAIN], body)

    return app


async def forever():
    await asyncio.Event().wait()


# One exchange


async def test_response_is_written_completely():
    async with serving(echo) as (_, port):
        request = b"POST /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi"
        assert await exchange(port, request) == whole(b"/a hi", b"200 OK", b"connection: close")


async def test_date_is_there():
    async with serving(echo) as (_, port):
        async with connected(port) as (reader, writer):
            writer.write(GET)
            head = await reader.readuntil(b"\r\n\r\n")
    assert without_dates(head) != head


async def test_request_is_read_byte_by_byte():
    async with serving(echo) as (_, port):
        request = b"POST /a HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi"
        pieces = [request[at : at + 1] for at in range(len(request))]
        assert await exchange(port, *pieces) == whole(b"/a hi", b"200 OK", b"connection: close")


async def test_stream_is_chunked():
    body = Stream(b"one", b"", b"two " * 5)
    async with serving(answering(body)) as (_, port):
        assert await exchange(port, LAST_GET) == (
            b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n"
            b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n"
            b"3\r\none\r\n14\r\ntwo two two two two \r\n0\r\n\r\n"
        )
        assert body.closed.is_set()


async def test_stream_to_http_1_0_ends_with_the_connection():
    body = Stream(b"one", b"two")
    async with serving(answering(body)) as (_, port):
        request = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
        assert await exchange(port, request) == (
            b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\nonetwo"
        )


async def test_http_1_0_may_keep_the_connection():
    async with serving(echo) as (_, port):
        kept = b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
        assert await exchange(port, kept, b"GET /b HTTP/1.0\r\n\r\n") == (
            whole(b"/a ", b"200 OK", b"connection: keep-alive")
            + whole(b"/b ", b"200 OK", b"connection: close")
        )


async def test_head_gets_no_body_and_a_stream_is_closed_unread():
    body = Stream(b"one")
    async with serving(answering(body)) as (_, port):
        async with connected(port) as (reader, writer):
            writer.write(GET.replace(b"GET", b"HEAD"))
            assert without_dates(await reader.readuntil(b"\r\n\r\n")) == (
                b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n"
            )
            await body.closed.wait()
            assert body.taken == 0
            writer.write(GET.replace(b"GET", b"HEAD"))
            assert await reader.readuntil(b"\r\n\r\n")


async def test_items_are_sent_as_they_come():
    more = asyncio.Event()
    body = Stream(b"one", then=more.wait)
    async with serving(answering(body)) as (_, port):
        async with connected(port) as (reader, writer):
            writer.write(GET)
            await reader.readuntil(b"3\r\none\r\n")
            more.set()
            assert await reader.readexactly(5) == b"0\r\n\r\n"


# A connection's requests


async def test_small_writes_do_not_wait_for_the_client():
    """Without TCP_NODELAY, a second small write waits up to 40 ms for an acknowledgement."""
    async with serving(echo) as (server, port), connected(port) as (reader, writer):
        writer.write(GET)
        await read_answer(reader)
        (connection,) = server._connections.values()
        sock = connection._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_what_comes_without_a_wait_is_one_write(monkeypatch):
    """The head and the end of the body with it: each call of the kernel takes its time."""
    writes = []
    transport = asyncio.selector_events._SelectorSocketTransport
    write = transport.write
    monkeypatch.setattr(transport, "write", lambda t, d: writes.append(bytes(d)) or write(t, d))

    async def body():
        yield b"a"
        yield b"b"
        await asyncio.sleep(0)
        yield b"c"
        yield b""  # sends what is there
        yield b"d"

    async def app(request):
        return Response(200, [], body())

    async with serving(app) as (_, port):
        await exchange(port, LAST_GET)
    sent = [data for data in writes if data != LAST_GET]
    assert [data.partition(b"\r\n\r\n")[2] or data for data in sent] == [
        b"1\r\na\r\n1\r\nb\r\n",
        b"1\r\nc\r\n",
        b"1\r\nd\r\n0\r\n\r\n",
    ]


async def test_connection_is_kept():
    async with serving(echo) as (_, port):
        client = http.client.HTTPConnection("127.0.0.1", port)

        def talk():
            client.connect()
            sockets, bodies = {client.sock}, []
            for body in (b"1", None, b"x" * 2**20):
                client.request("POST", "/a", body)
                bodies.append(client.getresponse().read())
                sockets.add(client.sock)
            client.close()
            return len(sockets), bodies

        assert await asyncio.to_thread(talk) == (1, [b"/a 1", b"/a ", b"/a " + b"x" * 2**20])


async def test_pipelined_requests_are_served_in_order_one_at_a_time():
    go_on, running = asyncio.Event(), []

    async def app(request):
        running.append(request.target)
        if request.target == "/1":
            await go_on.wait()
        return Response(200, [], request.target.encode())

    async with serving(app) as (_, port):
        async with connected(port) as (reader, writer):
            writer.write(b"".join(GET.replace(b"/ ", b"/%d " % number) for number in range(4)))
            assert await read_answer(reader) == b"/0"
            assert running == ["/0", "/1"]
            go_on.set()
            assert [await read_answer(reader) for _ in range(3)] == [b"/1", b"/2", b"/3"]


async def test_good_request_before_a_bad_one_is_served():
    async with serving(echo) as (_, port):
        assert await exchange(port, GET + b"rubbish\r\n\r\n" + GET) == (
            whole(b"/ ") + refused(b"400 Bad Request", "malformed request line")
        )


async def test_continue_is_sent_when_the_client_waits_for_it():
    async with serving(echo) as (_, port):
        async with connected(port) as (reader, writer):
            for _ in range(2):
                writer.write(b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n")
                writer.write(b"Content-Length: 2\r\n\r\n")
                assert await reader.readexactly(len(CONTINUE)) == CONTINUE
                writer.write(b"hi")
                assert await read_answer(reader) == b"/ hi"


async def test_continue_waits_for_the_previous_response():
    body_of_first = Stream(b"one", then=(more := asyncio.Event()).wait)

    async def app(request):
        return Response(200, [], body_of_first if request.method == "GET" else request.body)

    async with serving(app) as (_, port):
        async with connected(port) as (reader, writer):
            writer.write(GET + b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n")
            writer.write(b"Content-Length: 2\r\n\r\n")
            await reader.readuntil(b"one\r\n")
            more.set()
            assert await reader.readexactly(5 + len(CONTINUE)) == b"0\r\n\r\n" + CONTINUE
            writer.write(b"hi")
            assert await read_answer(reader) == b"hi"


async def test_reading_ahead_is_bounded_during_a_response():
    go_on = asyncio.Event()

    async def app(request):
        await go_on.wait()
        return Response(200, [], b"%d" % len(request.body))

    size = 32 * 2**20
    async with serving(app) as (_, port):
        async with connected(port) as (reader, writer):
            writer.write(GET + b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
            writer.write(bytes(size))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await writer.drain()
            assert writer.transport.get_write_buffer_size() > size // 2
            go_on.set()
            assert [await read_answer(reader) for _ in range(2)] == [b"0", b"%d" % size]


async def test_idle_connection_does_not_keep_its_last_request():
    seen = []

    async def app(request):
        seen.append(weakref.ref(request))
        return await echo(request)

    async with serving(app) as (_, port):
        async with connected(port) as (reader, writer):
            writer.write(GET)
            await read_answer(reader)
            await exchange(port, LAST_GET)
            assert seen[0]() is None


async def test_fifty_connections_at_once():
    everybody = asyncio.Barrier(50)

    async def app(request):
        await everybody.wait()
        return await echo(request)

    async def ask(port, number):
        request = b"PUT /%d HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx"
        return (await exchange(port, request % number)).endswith(b"\r\n\r\n/%d x" % number)

    async with serving(app) as (_, port):
        assert all(await asyncio.gather(*(ask(port, number) for number in range(50))))


# Hang-ups


class Awaited:
    """An app that never answers, and tells how it ended."""

    def __init__(self):
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def __call__(self, request):
        self.started.set()
        try:
            await forever()
        finally:
            await asyncio.sleep(0)  # what it does in the end is awaited
            self.cancelled.set()


def hang_up(writer):
    writer.transport.abort()


def close_sending_side(writer):
    writer.write_eof()


def reset(writer):
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


LEAVING = pytest.mark.parametrize("leave", [hang_up, close_sending_side, reset])


@LEAVING
async def test_hang_up_before_the_response_cancels_the_app(leave):
    app = Awaited()
    async with serving(app) as (_, port):
        async with connected(port) as (_, writer):
            writer.write(GET)
            await app.started.wait()
            leave(writer)
            async with asyncio.timeout(1):
                await app.cancelled.wait()


@LEAVING
async def test_hang_up_while_streaming_cancels_and_closes_the_body(leave):
    body = Stream(b"one", then=forever)
    async with serving(answering(body)) as (_, port):
        async with connected(port) as (reader, writer):
            writer.write(GET)
            await reader.readuntil(b"one\r\n")
            leave(writer)
            async with asyncio.timeout(1):
                await body.stopped.wait()
                await body.closed.wait()


@LEAVING
async def test_hang_up_of_a_client_that_reads_nothing_closes_the_body(leave):
    body = Stream(*[bytes(2**16)] * 1000)
    async with serving(answering(body)) as (_, port):
        async with connected(port, limit=2**10) as (reader, writer):
            writer.write(GET)
            await reader.readexactly(10)
            leave(writer)
            async with asyncio.timeout(1):
                await body.closed.wait()
            assert body.taken < 1000


async def test_hang_up_with_the_next_request_half_sent_cancels_the_app():
    app = Awaited()
    async with serving(app) as (_, port):
        async with connected(port) as (_, writer):
            writer.write(GET + GET[:10])
            await app.started.wait()
            writer.transport.abort()
            async with asyncio.timeout(1):
                await app.cancelled.wait()


async def test_hang_up_between_requests_is_nothing_special(caplog):
    async with serving(echo) as (_, port):
        for piece in (
            b"",
            GET[:5],
            GET,
            b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nx",
        ):
            async with connected(port) as (_, writer):
                writer.write(piece)
        assert (await exchange(port, GET.replace(b"1.1", b"1.0"))).startswith(b"HTTP/1.1 200 OK")
    assert logged(caplog) == []


# Deadlines


async def test_slow_head_is_a_408():
    async with serving(echo, header_s=0.1) as (_, port):
        assert await exchange(port, b"GET") == (
            refused(b"408 Request Timeout", "the head took more than 0.1 s")
        )


async def test_head_that_trickles_in_is_a_408():
    async with serving(echo, header_s=0.1) as (_, port):
        async with connected(port) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nX: ")
            answer = asyncio.create_task(reader.read())
            while not answer.done():
                writer.write(b"x")
                await asyncio.wait({answer}, timeout=0.01)
            assert answer.result().startswith(b"HTTP/1.1 408 ")


async def test_slow_body_is_a_408():
    async with serving(echo, body_s=0.1, header_s=0.01) as (_, port):
        request = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nabc"
        assert await exchange(port, request) == (
            refused(b"408 Request Timeout", "the body came too slowly for 0.1 s")
        )


async def test_idle_connection_is_closed_without_a_word():
    async with serving(echo, idle_s=0.05) as (_, port):
        assert await exchange(port) == b""
        assert await exchange(port, GET) == whole(b"/ ")


async def test_a_response_has_no_read_deadline():
    more = asyncio.Event()
    body = Stream(b"one", then=more.wait)
    async with serving(answering(body), idle_s=0.01, header_s=0.01, body_s=0.01) as (_, port):
        async with connected(port) as (reader, writer):
            writer.write(GET + b"GET")
            await reader.readuntil(b"one\r\n")
            asyncio.get_running_loop().call_later(0.1, more.set)
            assert await reader.readexactly(5) == b"0\r\n\r\n"
            assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 408 ")


async def test_client_that_reads_nothing_is_given_up_and_holds_the_body_back():
    body = Stream(*[bytes(2**16)] * 1000)
    async with serving(answering(body), stall_s=0.2) as (_, port):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(GET)
            async with asyncio.timeout(5):
                await body.closed.wait()
            assert (
                body.taken * 2**16 < 16 * 2**20
            )  # what the kernel's buffers hold, and little more


async def test_slow_reader_gets_everything():
    pieces = [hashlib.sha256(b"%d" % number).digest() * 2**11 for number in range(200)]
    async with serving(answering(Stream(*pieces)), stall_s=1) as (_, port):
        async with connected(port, limit=2**12) as (reader, writer):
            writer.write(GET.replace(b"1.1", b"1.0"))
            await reader.readuntil(b"\r\n\r\n")
            received = hashlib.sha256()
            while data := await reader.read(2**12):
                received.update(data)
                await asyncio.sleep(0)
            assert received.digest() == hashlib.sha256(b"".join(pieces)).digest()


async def test_large_response_is_read_completely_by_a_slow_client():
    body = bytes(20 * 2**20)
    async with serving(answering(body), idle_s=0.05) as (_, port):
        async with connected(port) as (reader, writer):
            writer.write(LAST_GET)
            await asyncio.sleep(0.2)  # longer than every wait but the one for reading
            assert (await reader.read()).endswith(b"\r\n\r\n" + body)


async def test_body_that_never_waits_leaves_others_their_turn():
    stop = asyncio.Event()

    async def app(request):
        if request.target == "/stop":
            stop.set()
            return await echo(request)

        async def body():
            while not stop.is_set():
                yield b"x"

        return Response(200, [], body())

    def read_all(port):
        client = http.client.HTTPConnection("127.0.0.1", port)
        client.request("GET", "/")
        answer = client.getresponse().read()
        client.close()
        return answer

    async with serving(app) as (_, port):
        endless = asyncio.create_task(asyncio.to_thread(read_all, port))
        assert (await exchange(port, b"GET /stop HTTP/1.0\r\n\r\n")).endswith(b"/stop ")
        assert set(await endless) <= set(b"x")


# Errors


async def fail():
    raise ZeroDivisionError("a secret")


async def cut():
    raise BodyCut


@pytest.mark.parametrize("then, messages", [(cut, []), (fail, ["the response failed"])])
async def test_body_that_fails_is_cut_not_ended(then, messages, caplog):
    body = Stream(b"one", b"two", then=then)
    async with serving(answering(body)) as (_, port):

        def talk():
            client = http.client.HTTPConnection("127.0.0.1", port)
            client.request("GET", "/")
            with pytest.raises(http.client.IncompleteRead) as info:
                client.getresponse().read()
            client.close()
            return info.value.partial

        assert await asyncio.to_thread(talk) == b"onetwo"
        assert body.closed.is_set()
    assert logged(caplog) == messages


async def test_cut_body_arrives_as_far_as_it_was_written():
    piece = bytes(2**20)
    async with serving(answering(Stream(*[piece] * 20, then=cut))) as (_, port):
        assert (await exchange(port, GET)).endswith(b"100000\r\n" + piece + b"\r\n")


async def test_bug_in_the_app_is_a_500_and_is_logged(caplog):
    async def app(request):
        if request.target == "/":
            await fail()
        return await echo(request)

    async with serving(app) as (_, port):
        async with connected(port) as (reader, writer):
            writer.write(GET + GET.replace(b"/ ", b"/x "))
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
            assert await reader.readexactly(27) == b'{"error": "internal error"}'
            assert await read_answer(reader) == b"/x "
    assert logged(caplog) == ["the app failed at GET '/'"]
    assert caplog.records[0].exc_info[0] is ZeroDivisionError


async def test_error_of_the_app_is_rendered(caplog):
    async def app(request):
        raise RateLimited("slowly", headers={"retry-after": "3"})

    async with serving(app) as (_, port):
        request = b"GET / HTTP/1.0\r\n\r\n"
        assert await exchange(port, request) == (
            refused(b"429 Too Many Requests", "slowly", b"retry-after: 3")
        )
    assert logged(caplog) == []


async def test_header_that_can_not_be_written_is_our_bug(caplog):
    async def app(request):
        return Response(200, [("x", "1\r\ny: 2")], Stream(b"one"))

    async with serving(app) as (_, port):
        assert await exchange(port, GET) == b""
    assert logged(caplog) == ["the response failed"]


async def test_body_that_fails_to_close_is_logged(caplog):
    class Stubborn(Stream):
        async def aclose(self):
            await fail()

    async with serving(answering(Stubborn(b"one"))) as (_, port):
        assert (await exchange(port, LAST_GET)).endswith(b"\r\n3\r\none\r\n0\r\n\r\n")
    assert logged(caplog) == ["a body failed to close"]


async def test_refused_client_can_read_why_though_it_is_still_sending():
    async with serving(echo, body=1000) as (_, port):

        def talk():
            client = http.client.HTTPConnection("127.0.0.1", port)
            client.request("POST", "/", bytes(20 * 2**20))
            response = client.getresponse()
            return response.status, response.read(), response.getheader("connection")

        assert await asyncio.to_thread(talk) == (
            413,
            b'{"error": "the body is larger than 1000 bytes"}',
            "close",
        )


async def test_client_that_never_closes_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(server_module, "LINGER_S", 0.05)
    async with serving(echo) as (_, port):
        async with connected(port) as (reader, writer):
            writer.write(b"rubbish\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
            with pytest.raises(ConnectionError):
                while True:
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(0.01)


async def test_limits_of_the_head_are_kept():
    async with serving(echo, head=100, target=20) as (_, port):
        assert await exchange(port, b"GET / HTTP/1.1\r\nX: " + b"x" * 100) == refused(
            b"431 Request Header Fields Too Large", "the head is larger than 100 bytes"
        )
        assert await exchange(port, GET.replace(b"/", b"/" + b"x" * 20, 1)) == refused(
            b"414 URI Too Long", "the request target is longer than 20 bytes"
        )


def test_system_exit_is_not_swallowed():
    async def app(request):
        raise SystemExit(3)

    async def main():
        async with serving(app) as (_, port):
            await exchange(port, GET)

    with pytest.raises(SystemExit, match="3"):
        asyncio.run(main())


# Start and end


async def test_port_in_use_is_an_os_error():
    async with serving(echo) as (_, port):
        other = Server(echo, render_error=render_error)
        with pytest.raises(OSError) as info:
            await other.start("127.0.0.1", port)
        assert info.value.errno == errno.EADDRINUSE
        assert other.addresses == []


async def test_unknown_host_is_an_os_error():
    with pytest.raises(OSError):
        await Server(echo, render_error=render_error).start("nowhere.invalid", 0)


async def test_address_of_another_machine_is_an_os_error():
    with pytest.raises(OSError) as info:
        await Server(echo, render_error=render_error).start("192.0.2.1", 0)
    assert info.value.errno == errno.EADDRNOTAVAIL


async def test_all_addresses_of_a_name_have_one_port():
    server = Server(echo, render_error=render_error)
    await server.start("localhost", 0)
    ports = {port for _, port in server.addresses}
    assert len(ports) == 1
    for host, port in server.addresses:
        _, writer = await asyncio.open_connection(host, port)
        writer.transport.abort()
    await server.close()
    assert server.addresses == []


async def test_address_that_this_machine_lacks_is_left_out(monkeypatch):
    async def getaddrinfo(*args, **kwargs):
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0))
            for host in ("192.0.2.1", "127.0.0.1", "127.0.0.1")
        ]

    server = Server(echo, render_error=render_error)
    loop = asyncio.get_running_loop()
    real = loop.getaddrinfo

    async def of_localhost(host, *args, **kwargs):
        return await (getaddrinfo() if host == "localhost" else real(host, *args, **kwargs))

    monkeypatch.setattr(loop, "getaddrinfo", of_localhost)
    await server.start("localhost", 0)
    assert [host for host, _ in server.addresses] == ["127.0.0.1"]
    await server.close()


async def test_ipv6():
    server = Server(echo, render_error=render_error)
    try:
        await server.start("::1", 0)
    except OSError:
        pytest.skip("no IPv6 here")
    [(host, port)] = server.addresses
    assert host == "::1"
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(GET)
    assert await read_answer(reader) == b"/ "
    writer.transport.abort()
    await server.close()


async def test_close_ends_idle_connections_and_refuses_new_ones():
    async with serving(echo) as (server, port):
        async with connected(port) as (reader, writer), connected(port) as (unused, _):
            writer.write(GET)
            await read_answer(reader)
            async with asyncio.timeout(1):
                await server.close()
            assert (await reader.read(), await unused.read()) == (b"", b"")
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)
            await server.close()


async def test_close_lets_running_responses_end():
    more, started = asyncio.Event(), asyncio.Event()
    body = Stream(b"one", then=more.wait)

    async def app(request):
        if request.target == "/stream":
            return Response(200, [], body)
        started.set()
        await more.wait()
        return Response(200, [], b"late")

    async with serving(app) as (server, port):
        async with connected(port) as (reader, writer), connected(port) as (other, other_writer):
            writer.write(GET.replace(b"/ ", b"/stream ") + GET)
            other_writer.write(GET)
            await reader.readuntil(b"one\r\n")
            await started.wait()
            closing = [asyncio.create_task(server.close()) for _ in range(2)]
            await asyncio.sleep(0)
            more.set()
            assert await reader.read() == b"0\r\n\r\n"
            assert without_dates(await other.read()) == (
                b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\nlate"
            )
            async with asyncio.timeout(1):
                await asyncio.gather(*closing)


async def test_close_cuts_responses_that_take_too_long():
    body, app = Stream(b"one", then=forever), Awaited()
    apps = {"/": app, "/stream": answering(body)}
    async with serving(lambda request: apps[request.target](request), shutdown_s=0.05) as started:
        server, port = started
        async with connected(port) as (reader, writer), connected(port) as (_, other_writer):
            writer.write(GET.replace(b"/ ", b"/stream "))
            other_writer.write(GET)
            await reader.readuntil(b"one\r\n")
            await app.started.wait()
            async with asyncio.timeout(1):
                await server.close()
            assert (body.stopped.is_set(), body.closed.is_set()) == (True, True)
            assert app.cancelled.is_set()
            assert await reader.read() == b""


async def test_server_that_was_never_started_can_be_closed():
    await Server(echo, render_error=render_error).close()


# Clients


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not here")
async def test_curl_streams_and_uploads():
    body = Stream(b"one\n", b"two\n")

    async def app(request):
        if request.method == "GET":
            return Response(200, [PLAIN], body)
        return Response(200, [PLAIN], b"%d" % len(request.body))

    async def curl(*arguments, data=b""):
        process = await asyncio.create_subprocess_exec(
            "curl", "-sS", "--noproxy", "*", *arguments, stdin=-1, stdout=-1
        )
        return (await process.communicate(data))[0]

    async with serving(app) as (_, port):
        url = f"http://127.0.0.1:{port}/"
        assert await curl("-N", url) == b"one\ntwo\n"
        size = 3 * 2**20  # curl sends `Expect: 100-continue` above 1 MB (WIRE d7)
        assert await curl("--data-binary", "@-", url, data=bytes(size)) == b"%d" % size
        chunked = ("-H", "Transfer-Encoding: chunked", "--data-binary", "@-", url)
        assert await curl(*chunked, data=bytes(size)) == b"%d" % size
        assert (await curl("-I", url)).startswith(b"HTTP/1.1 200 OK\r\n")


# ---- requests that are refused by their head

PUT = b"PUT /secret HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"


def refusing(head):
    if head.headers.get("x-api-key") != "good":
        return Response(401, [PLAIN], b"no key for " + head.target.encode() + head.body)
    return None


@asynccontextmanager
async def admitting(served=None, **limits):
    server = Server(
        echo,
        render_error=render_error,
        admit=refusing,
        limits=Limits(**limits),
        on_response=served,
    )
    await server.start("127.0.0.1", 0)
    try:
        yield server.addresses[0][1]
    finally:
        await server.close()


REFUSED = whole(b"no key for /secret", b"401 Unauthorized", b"connection: close")


async def test_a_request_is_refused_when_its_head_is_there_whatever_its_body():
    served = []
    async with admitting(served.append) as port:
        for body in (b"", b"a", bytes(2**20)):
            assert await exchange(port, PUT % 60_000_000 + body) == REFUSED
        chunked = b"PUT /secret HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n"
        assert await exchange(port, chunked) == REFUSED
    assert [(one.request.target, one.request.body, one.status) for one in served] == (
        [("/secret", b"", 401)] * 4
    )


async def test_a_refused_client_is_not_told_to_continue():
    expecting = PUT.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n") % 9
    async with admitting() as port:
        assert await exchange(port, expecting) == REFUSED
        async with connected(port) as (reader, writer):
            writer.write(expecting.replace(b"Host", b"X-Api-Key: good\r\nHost"))
            assert await reader.readexactly(len(CONTINUE)) == CONTINUE
            writer.write(b"123456789")
            assert await read_answer(reader) == b"/secret 123456789"


async def test_a_refusal_comes_after_the_responses_before_it_and_ends_the_connection():
    async with admitting() as port:
        answer = await exchange(port, GET + PUT % 500 + b"a" + GET)
    assert answer == whole(b"/ ") + REFUSED


async def test_a_refusal_to_head_has_no_body():
    async with admitting() as port:
        answer = await exchange(port, PUT.replace(b"PUT", b"HEAD") % 5)
    assert answer == REFUSED.removesuffix(b"no key for /secret")


@pytest.mark.parametrize(
    ("request_", "path"),
    [
        (PUT % 10**12, "/secret"),  # 413
        (
            b"PUT /secret HTTP/1.1\r\nHost: a\r\nX-Api-Key: good\r\nContent-Length: x\r\n\r\n",
            "/secret",
        ),
        (b"GET /secret HTTP/1.1\r\nHost : a\r\n\r\n", "/secret"),
        (b"GET /secret HTTP/1.1\r\n" + b"a: b\r\n" * 200, "/secret"),  # 431
        (b"GET /secret HTTP/1.1\r\n\r\n", "/secret"),
        (b"BREW /secret HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "/secret"),  # 501
        (b"rubbish\r\n\r\n", None),
        (GET + b"rubbish\r\n\r\n", None),
    ],
)
async def test_an_error_is_rendered_for_the_path_that_was_asked_for(request_, path):
    heads = []

    def render(error, head):
        heads.append(head and head.path)
        return render_error(error)

    server = Server(echo, render_error=render)
    await server.start("127.0.0.1", 0)
    await exchange(server.addresses[0][1], request_)
    await server.close()
    assert heads == [path]


# ---- other protocols, and silence

HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)


async def test_a_tls_client_is_refused_at_once_and_named_once(caplog):
    async with serving(echo, header_s=60) as (_, port):
        for _ in range(3):
            async with asyncio.timeout(5):
                assert await exchange(port, HELLO) == refused(
                    b"400 Bad Request",
                    "this port speaks HTTP, not TLS: the URL must begin with http://",
                )
    assert logged(caplog) == [
        "a client at 127.0.0.1 speaks TLS to this port, which speaks HTTP: its URL must begin with"
        " http://, not https://"
    ]


@pytest.mark.parametrize("first", [b"\x05\x01\x00", b"\x03\x00\x00\x13", b"\x00", b"\xff", b" "])
async def test_bytes_that_begin_no_request_are_refused_at_once(first, caplog):
    """SOCKS, RDP, and others without a line end."""
    async with serving(echo, header_s=60) as (_, port):
        async with asyncio.timeout(5):
            assert await exchange(port, first) == (
                refused(b"400 Bad Request", "malformed request line")
            )
    assert logged(caplog) == []


@pytest.mark.parametrize("first", [b"", b"\r\n"])
async def test_a_connection_without_a_request_is_dropped_within_a_minute(first, monkeypatch):
    assert server_module.FIRST_REQUEST_S < 60
    monkeypatch.setattr(server_module, "FIRST_REQUEST_S", 0.05)
    async with serving(echo, idle_s=3600) as (_, port):
        async with asyncio.timeout(5):
            assert await exchange(port, first) == b""
        async with connected(port) as (reader, writer):
            writer.write(GET)
            assert await read_answer(reader) == b"/ "
            await asyncio.sleep(0.15)  # longer: it is a kept-alive one now
            writer.write(GET)
            assert await read_answer(reader) == b"/ "
