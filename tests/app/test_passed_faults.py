"""Faults while a request is passed on: kills, broken logs, responses without an end, loops."""

from __future__ import annotations

import gzip
import itertools
import json
import signal
import socket
import sqlite3
import time
from contextlib import ExitStack, closing, contextmanager
from urllib.parse import urlsplit

import pytest

from llmproxy import Settings, serving
from llmproxy.backends.passthrough import RAW_BYTES
from llmproxy.core.limits import Limits
from tests.app.test_passthrough import (
    ANTHROPIC,
    BODY,
    FRAMINGS,
    HEAD,
    MESSAGES,
    WAIT_S,
    ask,
    parts,
    send,
    settings,
)
from tests.app.test_upstreams import free_ports
from tests.cli.test_main import serving as serving_command
from tests.empty_log import put_empty_log
from tests.proxies import running
from tests.raw_provider import begin_chunked, chunk, end_chunks, playing_raw

# ---- the log


def logged(path, columns="status"):
    with closing(sqlite3.connect(path)) as log:
        return log.execute(f"select {columns} from proxy_exchanges order by received").fetchall()


def wait_until(is_true):
    deadline = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_a_kill_while_a_response_passes_leaves_an_interrupted_exchange(llm_user_path):
    path = llm_user_path / "logs.db"
    half = MESSAGES.stream[: len(MESSAGES.stream) // 2]

    def stalling(request):
        yield begin_chunked()
        yield chunk(half)
        request.wait_for_hang_up()

    with playing_raw(*[FRAMINGS["whole"](MESSAGES.stream)] * 2, stalling) as provider:
        words = ["--upstream", f"far=anthropic_messages+{provider.url}", "--passthrough", "far"]
        with serving_command(*words) as (process, url, _):
            for target in ("/v1/messages", "/v1/files"):
                assert parts(send(url, target, BODY))[2] == MESSAGES.stream
            where = urlsplit(url)
            with ExitStack() as held:
                for target in (b"/v1/messages", b"/v1/files"):
                    client = socket.create_connection((where.hostname, where.port), WAIT_S)
                    held.enter_context(client)
                    client.sendall(HEAD.replace(b"/v1/messages", target) + BODY)
                    received = b""
                    while half[-50:] not in received:
                        received += client.recv(2**16)
                wait_until(lambda: logged(path) == [("ok",)] * 2 + [("running",)] * 2)
                process.send_signal(signal.SIGKILL)
                process.wait(10)
        with serving_command(*words) as (_, url, _):
            wait_until(lambda: logged(path) == [("ok",)] * 2 + [("interrupted",)] * 2)
    assert logged(path, "path")[2:] == [("/v1/messages",), ("/v1/files",)]


def test_a_log_that_can_not_be_written_fails_no_response_and_loses_none(tmp_path):
    path = tmp_path / "logs.db"
    path.symlink_to(tmp_path / "nowhere" / "logs.db")  # where it can't be made
    with playing_raw(FRAMINGS["whole"](MESSAGES.stream)) as provider:
        with running(**settings(provider, ANTHROPIC), database=path) as proxy:
            for target in ("/v1/messages", "/v1/files"):
                assert ask(proxy, path=target)[2] == MESSAGES.stream
            ids = [one.id for one in (proxy.wait_for_report(2), proxy.reports)[1]]
            (spool,) = tmp_path.glob("*.jsonl")
            spooled = spool.read_text()
            assert all(one in spooled for one in ids)
            (tmp_path / "nowhere").mkdir()
            assert ask(proxy)[2] == MESSAGES.stream
            ids.append(proxy.wait_for_report(3).id)
    assert logged(path, "id, status") == [(one, "ok") for one in ids]
    with closing(sqlite3.connect(path)) as log:
        turns = log.execute("select id from turns").fetchall()
    assert sorted(turns) == sorted([(ids[0],), (ids[2],)])
    assert not list(tmp_path.glob("*.jsonl"))
    assert len(proxy.warnings) == 2, proxy.warnings


# ---- responses without an end

MOST = 200_000
START = MESSAGES.stream.partition(b"event: content_block_stop")[0]
DELTA = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"type":"text_delta","text":"' + b"x" * 1000 + b'"}}\n\n'
)
STREAM = [("Content-Type", "text/event-stream")]
JSON = [("Content-Type", "application/json")]
GZIP = ("Content-Encoding", "gzip")
ENDLESS = {
    "events": (STREAM, START, DELTA),
    "comments": (STREAM, b"", b": wait" + b"x" * 1000 + b"\n\n"),
    "a line": (STREAM, START + b"data: ", b"x" * 1000),
    "a name": (STREAM, START, b"x" * 1000),
    "an event of many lines": (STREAM, START, b"data: x\n" * 100),
    "JSON": (JSON, b'{"a":"', b"x" * 1000),
    "small pieces": (JSON, b'{"a":"', b"x" * 10),
    "no such kind": ([("Content-Type", "x/y")], b"", b"\xff" * 1000),
    "unknown coding": ([*STREAM, ("Content-Encoding", "br")], b"", b"\xff" * 1000),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_an_endless_response_is_cut_at_the_limit(kind, monkeypatch):
    """It passes until then, the exchange has an error, and what the copy keeps is bounded."""
    fields, start, more = ENDLESS[kind]
    monkeypatch.setattr("llmproxy.backends.passthrough.RAW_BYTES", 20_000)
    sent = bytearray()

    def endless(request):
        yield begin_chunked(headers=fields)
        for data in itertools.chain([start], itertools.repeat(more)):
            if data:
                sent.extend(data)
                yield chunk(data)

    with playing_raw(endless) as provider:
        with running(limits=Limits(body=MOST, shutdown_s=5), **settings(provider, ANTHROPIC)) as p:
            received = send(p.url, "/v1/messages", BODY)
            exchange = p.wait_for_report()
            assert provider.hung_up.wait(WAIT_S)
    body = parts(received)[2]
    assert not received.endswith(b"0\r\n\r\n")
    assert MOST - 2 * len(start + more) < len(body) <= MOST
    assert sent.startswith(body)
    assert (exchange.status, exchange.http_status) == ("error", 200)
    assert "the body is larger than" in exchange.error
    assert len(json.dumps(exchange.turn.response_json)) < 40_000


def head_without_end(request):
    yield b"HTTP/1.1 200 OK\r\nX-Odd: "
    while True:
        yield b"x" * 1000


def fields_without_end(request):
    yield b"HTTP/1.1 200 OK\r\n"
    while True:
        yield b"X-Odd: 1\r\n"


def interim_without_end(request):
    while True:
        yield b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"


def extension_without_end(request):
    yield begin_chunked() + b"10;x="
    while True:
        yield b"x" * 1000


def extensions_without_end(request):
    yield begin_chunked()
    while True:
        yield chunk(b": \n", b";x=" + b"y" * 1000)


def trailers_without_end(request):
    yield begin_chunked() + chunk(START) + b"0\r\n"
    while True:
        yield b"X-Odd: 1\r\n"


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/files"])
@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (head_without_end, 502),
        (fields_without_end, 502),
        (interim_without_end, 502),
        (extension_without_end, 200),
        (extensions_without_end, 200),
        (trailers_without_end, 200),
    ],
)
def test_framing_without_end_is_cut(answer, status, path):
    with playing_raw(answer) as provider:
        with running(**settings(provider, ANTHROPIC)) as proxy:
            received = send(proxy.url, path, BODY)
            exchange = proxy.wait_for_report()
            assert provider.hung_up.wait(WAIT_S)
    assert received.startswith(b"HTTP/1.1 %d " % status)
    assert status == 502 or not received.endswith(b"0\r\n\r\n")
    assert (exchange.status, exchange.http_status) == ("error", status)
    assert "the upstream" in exchange.error


@pytest.mark.parametrize("is_coded", [False, True], ids=["events", "gzip bomb"])
def test_what_goes_beyond_the_copys_memory_passes_and_is_marked(is_coded):
    body = START + DELTA * 2_000 + MESSAGES.stream.removeprefix(START)
    fields = [*STREAM, GZIP] if is_coded else STREAM
    sent = gzip.compress(body, 1) if is_coded else body
    with playing_raw([begin_chunked(headers=fields), chunk(sent), end_chunks()]) as provider:
        limits = Limits(answer=MOST, shutdown_s=5)
        with running(limits=limits, **settings(provider, ANTHROPIC)) as proxy:
            assert ask(proxy)[2] == sent
            exchange = proxy.wait_for_report()
    assert (exchange.status, exchange.ignored) == ("ok", ("response",))
    assert len(exchange.turn.response_json["raw_response"]) <= RAW_BYTES


SILENT = {
    "before the head": [],
    "after the head": [begin_chunked()],
    "in the stream": [begin_chunked(), chunk(START)],
    "between a comment and the next": [begin_chunked(), chunk(b": wait\n\n")],
}


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/files"])
@pytest.mark.parametrize("kind", SILENT)
def test_a_response_that_stalls_is_cut_after_its_time(kind, path):
    def answer(request):
        yield from SILENT[kind]
        request.wait_for_hang_up()

    with playing_raw(answer) as provider:
        limits = Limits(answer_s=0.15, shutdown_s=5)
        with running(limits=limits, **settings(provider, ANTHROPIC)) as proxy:
            received = send(proxy.url, path, BODY)
            exchange = proxy.wait_for_report()
    status = 200 if SILENT[kind] else 504
    assert received.startswith(b"HTTP/1.1 %d " % status)
    assert status == 504 or not received.endswith(b"0\r\n\r\n")
    assert (exchange.status, exchange.http_status) == ("error", status)
    assert "(limit answer_s)" in exchange.error


def test_a_converted_response_has_that_time_too():
    """Also where not even a head comes, for which an upstream may take ten minutes."""
    body = b'{"model": "m", "messages": [{"role": "user", "content": "Hi?"}]}'
    with playing_raw(lambda request: [b""] * request.wait_for_hang_up()) as provider:
        limits = Limits(answer_s=0.2, shutdown_s=5)
        with running(limits=limits, **settings(provider, ANTHROPIC)) as proxy:
            received = send(proxy.url, "/v1/chat/completions", body)
    assert received.startswith(b"HTTP/1.1 504 ") and b"(limit answer_s)" in received


# ---- interim responses and trailers

PATHS = ["/v1/messages", "/v1/files"]  # read for the log, and streamed


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunks"])
def test_an_expectation_is_met_here_and_trailers_stay_here(path, is_chunked):
    framing, body = f"Content-Length: {len(BODY)}", BODY
    if is_chunked:
        framing = "Transfer-Encoding: chunked\r\nTrailer: X-Late"
        body = chunk(BODY[:9], b";x=y") + chunk(BODY[9:]) + end_chunks(b"X-Late: 1\r\n")
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nConnection: close\r\n"
    )
    with playing_raw(FRAMINGS["whole"](MESSAGES.stream)) as provider:
        with running(**settings(provider, ANTHROPIC)) as proxy:
            with socket.create_connection(("127.0.0.1", proxy.port), WAIT_S) as client:
                client.sendall(f"{head}{framing}\r\n\r\n".encode())
                interim = client.recv(2**16)
                client.sendall(body)
                received = b"".join(iter(lambda: client.recv(2**16), b""))
            exchange = proxy.wait_for_report()
    assert interim == b"HTTP/1.1 100 Continue\r\n\r\n"
    status, _, data = parts(received)
    assert (status, data) == (b"HTTP/1.1 200 OK", MESSAGES.stream)
    (request,) = provider.requests
    assert request.body == BODY
    assert not {"expect", "trailer", "x-late"} & {name.lower() for name, _ in request.headers}
    assert b"X-Late" not in request.raw
    assert exchange.status == "ok"


@pytest.mark.parametrize("path", PATHS)
def test_interim_responses_and_trailers_of_an_upstream_stay_here(path):
    interim = (
        b"HTTP/1.1 100 Continue\r\n\r\n"
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\nX-Early: 1\r\n\r\n"
    )
    fields = [*STREAM, ("Trailer", "X-Late")]
    answer = [interim, interim, *FRAMINGS["whole"](MESSAGES.stream)[1:-1]]
    answer.insert(2, begin_chunked(headers=fields))
    with playing_raw([*answer, end_chunks(b"X-Late: 1\r\n")]) as provider:
        with running(**settings(provider, ANTHROPIC)) as proxy:
            received = [send(proxy.url, path, BODY) for _ in range(2)]
            exchanges = (proxy.wait_for_report(2), proxy.reports)[1]
    for one in received:
        assert one.startswith(b"HTTP/1.1 200 OK\r\n")
        assert parts(one)[2] == MESSAGES.stream
        assert not any(word in one for word in (b"103", b"X-Early", b"X-Late"))
    assert [one.status for one in exchanges] == ["ok", "ok"]
    assert [one.connection for one in provider.requests] == [0, 0]  # it was kept


# ---- loops and chains


@contextmanager
def instances(tmp_path, urls, name="far=anthropic_messages+", **more):
    """Run an instance for each URL, with that as its upstream; yield their exchanges."""
    reports = [[] for _ in urls]
    with ExitStack() as stack:
        for number, (port, url) in enumerate(urls):
            one = Settings(
                port=port,
                upstreams=[f"{name}{url}"],
                database=tmp_path / f"{number}.db",
                on_exchange=reports[number].append,
                **more,
            )
            put_empty_log(one.database)
            stack.enter_context(serving.running(one))
        yield reports


LOOPED = [
    ("POST", "/v1/messages"),
    ("POST", "/v1/messages/count_tokens"),
    ("POST", "/v1/files"),
    ("GET", "/v1/models"),
]


@pytest.mark.own_server
@pytest.mark.parametrize("count", [1, 2], ids=["itself", "two in a ring"])
@pytest.mark.parametrize("name", ["far=anthropic_messages+", "anthropic="])
def test_a_loop_of_passed_requests_is_refused_and_logged(count, name, tmp_path):
    ports = free_ports(count)
    ring = [
        (here, f"http://127.0.0.1:{there}")
        for here, there in zip(ports, [*ports[1:], ports[0]], strict=True)
    ]
    passthrough = name.partition("=")[0]
    with instances(tmp_path, ring, name, passthrough=passthrough) as reports:
        received = [
            parts(send(f"http://127.0.0.1:{ports[0]}", path, BODY, method=method))
            for method, path in LOOPED
        ]
    for status, _, body in received:
        assert b" 400 " in status
        assert b"leads back to this server" in body
    for number in range(count):  # none is asked twice
        assert [one.path for one in reports[number]] == [path for _, path in LOOPED]
        assert {one.status for one in reports[number]} == {"error"}
        assert all("leads back" in one.error for one in reports[number])
        assert logged(tmp_path / f"{number}.db", "status, http_status") == [("error", 400)] * 4


@pytest.mark.own_server
def test_two_instances_that_list_each_others_models_end(tmp_path):
    first, second = free_ports(2)
    ring = [(first, f"http://127.0.0.1:{second}"), (second, f"http://127.0.0.1:{first}")]
    with instances(tmp_path, ring):
        status, _, body = parts(send(f"http://127.0.0.1:{first}", "/v1/models", b"", method="GET"))
    assert b" 200 " in status
    assert b'"demo"' in body


@pytest.mark.own_server
def test_a_chain_of_two_instances_passes_and_both_log(tmp_path):
    first, second = free_ports(2)
    with playing_raw(FRAMINGS["whole"](MESSAGES.stream)) as provider:
        chain = [(first, f"http://127.0.0.1:{second}"), (second, provider.url)]
        with instances(tmp_path, chain, passthrough="far") as reports:
            for path in PATHS:
                received = send(f"http://127.0.0.1:{first}", path, BODY)
                assert parts(received)[2] == MESSAGES.stream
    for request in provider.requests:
        assert request.body == BODY
        assert len(set((request.header("x-llmproxy-via") or "").split(", "))) == 2
    for number in range(2):
        assert [(one.status, one.upstream) for one in reports[number]] == [("ok", "far")] * 2
        assert logged(tmp_path / f"{number}.db") == [("ok",)] * 2
    (here, _), (there, _) = reports
    assert here.turn.reply == there.turn.reply != []
