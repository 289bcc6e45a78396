"""Faults while a request is passed on: kills, broken logs, responses without an end, loops."""

from __future__ import annotations

import gzip
import itertools
import json
import signal
import socket
import sqlite3
import time
from contextlib import ExitStack, closing
from urllib.parse import urlsplit

import pytest

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
from tests.cli.test_main import serving as serving_command
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


def test_a_bomb_passes_and_its_copy_is_bounded():
    """Its few kB are megabytes: the copy is left, and marked."""
    bomb = gzip.compress(START + DELTA * 20_000)
    with playing_raw([begin_chunked(headers=[*STREAM, GZIP]), chunk(bomb), end_chunks()]) as far:
        limits = Limits(answer=MOST, shutdown_s=5)
        with running(limits=limits, **settings(far, ANTHROPIC)) as proxy:
            assert ask(proxy)[2] == bomb
            exchange = proxy.wait_for_report()
    assert (exchange.status, exchange.ignored) == ("ok", ("response",))
    assert len(exchange.turn.response_json["raw_response"]) < 2 * 2**20


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
        limits = Limits(answer_s=0.3, shutdown_s=5)
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
