"""The server over real sockets against RFC 9112, row by row; its answers by others' parsers."""

import asyncio
import http.client
import io
import json
import random
import re
import shutil
import socket

import h11
import httptools
import pytest

from llmproxy.app.app import render_error
from llmproxy.core.errors import InvalidRequest
from llmproxy.transport.http11 import BodyCut, Response
from llmproxy.transport.server import Server
from tests.proxies import running
from tests.transport.rfc9112_rows import CONTINUE, LIMITS, ROWS, STREAMED, said

PROBE = b"GET /probe HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
PROBED = said("GET", "/probe", "connection=close", connection="close")
DATE = re.compile(rb"date: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT\r\n")
FRAMING = {"host", "content-length", "transfer-encoding", "expect"}


async def stream(cut):
    for item in STREAMED:
        yield item
    if cut:
        raise BodyCut


async def app(request):
    """Say what was understood of a request."""
    if request.path in ("/stream", "/cut"):
        return Response(200, [("content-type", "text/plain")], stream(request.path == "/cut"))
    if request.path == "/204":
        return Response(204)
    if request.path == "/400":
        raise InvalidRequest("no")
    target = request.path + ("?" + request.query if request.query else "")
    line = f"{request.method} {target} to {request.host} in {request.version}"
    pairs = [f"{name}={value}" for name, value in request.headers if name not in FRAMING]
    text = "\n".join([line, *pairs, ""]).encode("latin-1")
    return Response(200, [("content-type", "text/plain")], text + request.body)


@pytest.fixture(scope="module")
def runner():
    """One loop for the whole table; the server and its clients take turns in it."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def port(runner):
    server = Server(app, render_error=lambda error, _: render_error(error), limits=LIMITS)
    runner.run(server.start("127.0.0.1", 0))
    yield server.addresses[0][1]
    runner.run(server.close())


async def exchange(port, pieces):
    """Send pieces, each read by itself, and give all that comes until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        for piece in pieces:
            writer.write(piece)
            for _ in range(3 if len(pieces) > 1 else 0):  # to the socket, out of it, to the parser
                await asyncio.sleep(0)
        async with asyncio.timeout(5):
            return await reader.read()
    finally:
        writer.transport.abort()


def without_dates(data, count):
    """Cut the dates out, which are in every answer (9110 6.6.1)."""
    data, found = DATE.subn(b"", data)
    assert found == count
    return data


def in_pieces(data, size):
    return [data[at : at + size] for at in range(0, len(data), size)]


def at_random(data):
    cuts = random.Random(data)
    borders = sorted(cuts.randint(0, len(data)) for _ in range(cuts.randint(1, 6)))
    return [data[a:b] for a, b in zip([0, *borders], [*borders, len(data)], strict=True)]


CASES = [
    pytest.param(sent, answers, id=f"{section}: {says}")
    for section, rows in ROWS.items()
    for says, sent, *answers in rows
]


@pytest.mark.parametrize("sent, answers", CASES)
def test_row(runner, port, sent, answers):
    """Whole, byte by byte and cut at random; then a request shows whether one is taken still."""
    if not (answers and answers[-1].is_last):
        answers = [*answers, PROBED]
    ways = ([sent + PROBE], [*in_pieces(sent, 1), PROBE], [*at_random(sent), PROBE])
    whole, *cut = runner.run(at_once(exchange(port, pieces) for pieces in ways))
    expected = b"".join(answer.wire for answer in answers)
    assert without_dates(whole, len(answers)) == expected
    for received in cut:
        # 9110 10.1.1: the body was not there yet, so it is asked for.
        if b"100-continue" in sent.lower():
            received = received.replace(CONTINUE, b"")
        assert without_dates(received, len(answers)) == expected
    read_by_others(whole, answers)


async def at_once(talks):
    return await asyncio.gather(*talks)


# The whole app's routes

MODELS, CHAT, NOWHERE = "/v1/models", "/v1/chat/completions", "/nowhere"
ALLOW_READ, ALLOW_CHAT = {"allow": "GET, HEAD"}, {"allow": "POST"}

# (section, method, target, status, fields, the error's words begin so)
ROUTES = [
    ("9110 15.5.5", "GET", NOWHERE, 404, {}, "/nowhere is not supported; "),
    ("9110 15.5.5", "POST", NOWHERE, 404, {}, "/nowhere is not supported; "),
    ("9110 9.3.2", "HEAD", NOWHERE, 404, {}, None),
    ("9112 3.2.2", "GET", f"http://localhost{NOWHERE}", 404, {}, "/nowhere is not supported; "),
    ("9112 3", "GET", "/" + "x" * 8_000, 404, {}, "/xxx"),
    ("9112 3", "GET", "/" + "x" * 9_000, 414, {}, "the request target is longer than 8192 bytes"),
    (
        "9110 15.5.6",
        "POST",
        MODELS,
        405,
        ALLOW_READ,
        "/v1/models takes GET, HEAD, not POST",
    ),
    (
        "9110 15.5.6",
        "DELETE",
        MODELS,
        405,
        ALLOW_READ,
        "/v1/models takes GET, HEAD, not DELETE",
    ),
    (
        "9110 15.5.6",
        "PUT",
        CHAT,
        405,
        ALLOW_CHAT,
        "/v1/chat/completions takes POST, not PUT",
    ),
    (
        "9110 15.5.6",
        "GET",
        CHAT,
        405,
        ALLOW_CHAT,
        "/v1/chat/completions takes POST, not GET",
    ),
    ("9110 9.3.2", "HEAD", CHAT, 405, ALLOW_CHAT, None),
    ("9110 9.3.8", "TRACE", "/", 405, ALLOW_READ, "/ takes GET, HEAD, not TRACE"),
    ("9110 9.1", "BREW", MODELS, 501, {}, "the method BREW is not known here"),
    ("9110 9.3.6", "CONNECT", "localhost:80", 501, {}, "the method CONNECT is not known here"),
    ("9110 9.3.7", "OPTIONS", "*", 204, {}, None),
    ("9110 9.3.7", "OPTIONS", MODELS, 204, {}, None),
    ("9110 15.6.6", "GET", "/ HTTP/2.0\r\nX: ", 505, {}, "HTTP/2.0 is not supported"),
    ("9110 15.5.1", "POST", CHAT, 400, {}, "the body is empty"),
]


@pytest.fixture(scope="module")
def whole_app(tmp_path_factory):
    with running(log=False) as proxy:
        yield proxy.port


@pytest.mark.parametrize("section, method, target, status, fields, words", ROUTES)
def test_route(runner, whole_app, section, method, target, status, fields, words):
    """Errors of the app and of the server alike are JSON, and say what is allowed."""
    sent = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    ways = ([sent.encode()], in_pieces(sent.encode(), 1 if len(sent) < 1000 else 700))
    whole, cut = runner.run(at_once(exchange(whole_app, pieces) for pieces in ways))
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("host", "a")]))
    client.send(h11.EndOfMessage())
    client.receive_data(whole)
    client.receive_data(b"")
    head, body = client.next_event(), b""
    while isinstance(event := client.next_event(), h11.Data):
        body += bytes(event.data)
    assert isinstance(event, h11.EndOfMessage)
    answered = {name.decode(): value.decode() for name, value in head.headers}
    assert head.status_code == status
    assert {name: answered.get(name) for name in fields} == fields
    assert (answered["connection"], "date" in answered) == ("close", True)
    if status != 204:
        assert answered["content-type"] == "application/json"
        assert int(answered["content-length"]) > 0
    if words is None:
        assert body == b""
    else:
        assert json.loads(body)["error"]["message"].startswith(words)
        assert len(body) == int(answered["content-length"])
    hide = re.compile(rb"(x-request-id|server-timing): [^\r]+\r\n")  # each has its own
    assert hide.sub(b"", without_dates(cut, 1)) == hide.sub(b"", without_dates(whole, 1))


def test_there_are_rows_enough():
    assert len(CASES) >= 200


# Answers as others read them


def read_by_others(data, answers):
    """Assert that h11, llhttp and http.client read these answers in these bytes, and no more."""
    expected = [(each.status, each.body) for each in answers]
    methods = ["HEAD" if each.to_head else "GET" for each in answers]
    is_cut = answers[-1].is_cut
    assert read_by_h11(data, methods) == (expected, is_cut)
    assert read_by_http_client(data, methods) == (expected, is_cut)
    if "HEAD" not in methods:  # httptools can't be told of it
        assert read_by_llhttp(data, is_cut) == (expected, is_cut)


def read_by_h11(data, methods):
    read = []
    for method in methods:
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method=method, target="/", headers=[("host", "a")]))
        client.send(h11.EndOfMessage())
        client.receive_data(data)
        client.receive_data(b"")
        head, body = client.next_event(), b""
        try:
            while isinstance(event := client.next_event(), h11.Data):
                body += bytes(event.data)
        except h11.RemoteProtocolError:
            return [*read, (head.status_code, body)], True
        assert isinstance(event, h11.EndOfMessage)
        read.append((head.status_code, body))
        data, _ = client.trailing_data
    assert data == b""
    return read, False


def read_by_http_client(data, methods):
    class Socket(io.BytesIO):
        def makefile(self, mode):
            return self

        def close(self):
            pass

    received, read = Socket(data), []
    for method in methods:
        response = http.client.HTTPResponse(received, method=method)
        response.begin()
        try:
            read.append((response.status, response.read()))
        except http.client.IncompleteRead as error:
            return [*read, (response.status, error.partial)], True
    assert received.read() == b""
    return read, False


class Heard:
    """What llhttp calls back with."""

    def __init__(self):
        self.read = []
        self.body = b""
        self.is_within = False

    def on_message_begin(self):
        self.body, self.is_within = b"", True

    def on_body(self, data):
        self.body += data

    def on_message_complete(self):
        self.read.append((self.parser.get_status_code(), self.body))
        self.is_within = False


def read_by_llhttp(data, is_cut):
    heard = Heard()
    heard.parser = httptools.HttpResponseParser(heard)
    heard.parser.feed_data(data)
    if heard.is_within:
        heard.read.append((heard.parser.get_status_code(), heard.body))
    return heard.read, heard.is_within and is_cut


NODE = shutil.which("node")
NODES_CLIENT = """
const http = require("http");
const agent = new http.Agent({keepAlive: true, maxSockets: 1});
const ask = (method, path) => new Promise((done) => {
  const request = http.request({port: process.argv[1], agent, method, path}, (response) => {
    let body = "";
    response.on("data", (data) => { body += data; });
    response.on("error", () => done([response.statusCode, body, "cut"]));
    response.on("end", () => done([response.statusCode, body, request.reusedSocket]));
  });
  request.on("error", (error) => done(error.code));
  request.end();
});
(async () => {
  const answers = [];
  for (const [method, path] of JSON.parse(process.argv[2])) answers.push(await ask(method, path));
  console.log(JSON.stringify(answers));
  agent.destroy();
})();
"""


@pytest.mark.skipif(NODE is None, reason="there is no node here")
def test_node_reads_responses_of_every_kind_on_one_connection(runner, port):
    """Node itself, which knows what HEAD is."""
    asked = [
        "HEAD /",
        "GET /stream",
        "HEAD /stream",
        "GET /204",
        "HEAD /400",
        "GET /400",
        "GET /cut",
    ]
    words = json.dumps([each.split() for each in asked])

    async def talk():
        process = await asyncio.create_subprocess_exec(
            NODE, "-e", NODES_CLIENT, str(port), words, stdout=asyncio.subprocess.PIPE
        )
        return json.loads((await process.communicate())[0])

    whole = b"".join(STREAMED).decode()
    error = json.dumps(
        {"error": {"message": "no", "type": "invalid_request_error", "param": None, "code": None}},
        separators=(",", ":"),
    )
    assert runner.run(talk()) == [
        [200, "", False],
        [200, whole, True],
        [200, "", True],
        [204, "", True],
        [400, "", True],
        [400, error, True],
        [200, whole, "cut"],
    ]
