"""Broken plugins, load, slow clients, signals and disks: the server goes on or ends cleanly."""

import http.client
import itertools
import json
import os
import re
import resource
import signal
import socket
import sqlite3
import statistics
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from llmproxy.core.limits import Limits
from tests.cli.test_main import COMMAND, serving
from tests.faulty import BROKEN, GOOD, install
from tests.models import AsyncScript, SyncScript
from tests.proxies import running

PATH = "/v1/chat/completions"


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, good=GOOD)


def port_of(url):
    return int(url.rpartition(":")[2])


def ask(port, said="hi", stream=False, model="demo", timeout=60):
    """Send a chat request; return status, id and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    body = {"model": model, "messages": [{"role": "user", "content": said}], "stream": stream}
    try:
        connection.request("POST", PATH, json.dumps(body))
        response = connection.getresponse()
        return response.status, response.getheader("x-request-id"), response.read()
    finally:
        connection.close()


def get(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def begin(port, model, **fields):
    """Send a request for a stream; return the socket."""
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": True}
    data = json.dumps(body | fields).encode()
    client = socket.create_connection(("127.0.0.1", port), timeout=60)
    head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(data)}\r\n\r\n"
    client.sendall(head.encode() + data)
    return client


def read_until(client, expected):
    """Read until some bytes have arrived; return everything that was read."""
    data = b""
    while expected not in data:
        more = client.recv(2**16)
        assert more, data[-500:]
        data += more
    return data


def rows(folder, columns, more=""):
    with sqlite3.connect(Path(folder) / "logs.db") as db:
        if not db.execute("select 1 from sqlite_master where name = 'proxy_exchanges'").fetchone():
            return []  # the writer is about to make it
        return db.execute(f"select {columns} from proxy_exchanges {more}").fetchall()


def is_refused(port):
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) != 0


def wait_until(condition, seconds=30):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@contextmanager
def load(port, clients=8):
    """Run clients that send requests in a loop during the block; yield responses and failures.

    A response is a pair of the time at which the request was sent, and its id.
    """
    over = threading.Event()
    answered: list[tuple[float, str]] = []
    failures: list[object] = []

    def ask_on(client):
        for i in itertools.count():
            if over.is_set():
                return
            asked_at, said = time.monotonic(), f"client {client} word {i}"
            try:
                status, id_, body = ask(port, said, stream=i % 2 == 1)
            except (OSError, http.client.HTTPException) as exc:
                failures.append(exc)
                return
            whole = b"[DONE]" in body if i % 2 else said.encode() in body
            if status != 200 or not whole:
                failures.append((status, body))
                return
            answered.append((asked_at, id_))

    with ThreadPoolExecutor(clients) as pool:
        for client in range(clients):
            pool.submit(ask_on, client)
        try:
            yield answered, failures
        finally:
            over.set()


# ---- plugins


@pytest.mark.slow
def test_broken_plugins_affect_their_own_models_only(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, good=GOOD, **BROKEN)
    with serving("--limit", "shutdown_s=1") as (process, url, _):
        port = port_of(url)
        models = {model["id"] for model in json.loads(get(port, "/v1/models")[1])["data"]}
        assert {"demo", "ticking", "stubborn", "blocked"} <= models
        assert ask(port)[0] == 200
        assert b"19 " in ask(port, model="ticking")[2]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        warnings = process.stderr.read()
    for name in BROKEN:
        assert f"plugin {name} could not " in warnings


# ---- load


@pytest.mark.slow
def test_idle_connections_do_not_slow_requests():
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 3_000:
        pytest.skip("so many connections may not be opened here")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 3_000), hard))

    def median_s(port):
        times = []
        for _ in range(40):
            began = time.monotonic()
            assert ask(port)[0] == 200
            times.append(time.monotonic() - began)
        return statistics.median(times)

    with serving("--quiet") as (_, url, _), ExitStack() as held:
        port = port_of(url)
        alone_s = median_s(port)
        for i in range(2_000):
            client = held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
            if i % 2:  # half of them have sent a request before, like kept connections
                client.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
                read_until(client, b'"log_queue"')
        assert b"llmproxy_connections 2001" in get(port, "/metrics")[1]
        beside_s = median_s(port)
    assert beside_s < 5 * alone_s + 0.05, (alone_s, beside_s)


@pytest.mark.slow
def test_two_hundred_streams_at_once(plugins, llm_user_path):
    """All at the same time: each takes two seconds."""

    def stream(i):
        return ask(port, f"I am {i}", stream=True, model="ticking" if i % 2 else "demo")

    with serving("--quiet") as (process, url, _):
        port = port_of(url)
        with ThreadPoolExecutor(200) as pool:
            answers = list(pool.map(stream, range(200)))
        for i, (status, _, body) in enumerate(answers):
            datas = [line[6:] for line in body.splitlines() if line.startswith(b"data: {")]
            choices = [choice for data in datas for choice in json.loads(data)["choices"]]
            text = "".join(choice["delta"].get("content") or "" for choice in choices)
            assert (status, body[-14:]) == (200, b"data: [DONE]\n\n")
            expected = "".join(f"{n} " for n in range(20)) if i % 2 else f"You said: I am {i}\n"
            assert text.startswith(expected) and (text == expected or not i % 2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert rows(llm_user_path, "status, count(*)", "group by 1") == [("ok", 200)]


class Counting(SyncScript):
    """A model that yields ten kilobytes at a time forever, and counts them."""

    yielded = 0

    def execute(self, prompt, stream, response, conversation):
        try:
            while True:
                self.yielded += 1
                yield "x" * 10_000
        finally:
            self.closed += 1


class AsyncCounting(AsyncScript):
    yielded = 0

    async def execute(self, prompt, stream, response, conversation):
        try:
            while True:
                self.yielded += 1
                yield "x" * 10_000
        finally:
            self.closed += 1


@pytest.mark.parametrize("kind", [Counting, AsyncCounting])
def test_slow_reader_pauses_a_fast_model(kind):
    """The queue, our buffers and the kernel's fill up at most; a disconnect stops the model."""
    model = kind("m")
    with running(model, log=False) as proxy:
        client = begin(proxy.port, "m")
        read_bytes, before = 0, -1
        for _ in range(3):
            while model.yielded != before:  # until it pauses
                before = model.yielded
                time.sleep(0.5)
            assert 10_000 * model.yielded < read_bytes + 25_000_000
            for _ in range(100):
                read_bytes += len(client.recv(20_000))
        assert not model.closed
        client.close()
        wait_until(lambda: model.closed)
        assert proxy.wait_for_report().status == "cancelled"


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Counting, AsyncCounting])
def test_endless_stream_does_not_starve_other_requests(kind):
    model = kind("m")
    with running(model, log=False, limits=Limits(answer=2**40, shutdown_s=5)) as proxy:
        client = begin(proxy.port, "m")
        is_read = threading.Thread(target=lambda: [None for _ in iter(read_some(client), b"")])
        is_read.start()
        for _ in range(2):
            before = model.yielded
            for path in ("/v1/models", "/healthz", "/metrics"):
                began = time.monotonic()
                assert get(proxy.port, path)[0] == 200
                assert time.monotonic() - began < 5
            began = time.monotonic()
            assert b"[DONE]" in ask(proxy.port, stream=True)[2]
            assert time.monotonic() - began < 5
            wait_until(lambda before=before: model.yielded > before)
        client.shutdown(socket.SHUT_RDWR)
        is_read.join()
        client.close()
        wait_until(lambda: model.closed)


def read_some(client):
    def read():
        try:
            return client.recv(2**18)
        except OSError:
            return b""

    return read


# ---- slow clients


@pytest.mark.slow
def test_slow_clients_are_disconnected_and_others_served():
    model = AsyncCounting("m")
    limits = Limits(header_s=0.5, body_s=0.5, stall_s=1.0, idle_s=1.0, shutdown_s=5)
    with running(model, log=False, limits=limits) as proxy, ExitStack() as held:

        def connect(data):
            address = ("127.0.0.1", proxy.port)
            client = held.enter_context(socket.create_connection(address, timeout=20))
            client.sendall(data)
            return client

        heads = [connect(b"POST / HTTP/1.1\r\nhost:") for _ in range(20)]
        head = b"POST /v1/messages HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{"
        bodies = [connect(head) for _ in range(20)]
        idle = [connect(b"") for _ in range(20)]
        readers = [held.enter_context(begin(proxy.port, "m")) for _ in range(5)]
        for _ in range(10):
            assert ask(proxy.port)[0] == 200
        for client in heads + bodies:
            assert read_until(client, b"\r\n\r\n").startswith(b"HTTP/1.1 408 ")
        for client in idle:
            assert client.recv(1) == b""
        wait_until(lambda: model.closed == len(readers))
        for client in heads + bodies:
            client.close()
        wait_until(lambda: proxy.proxy._server.connections == 0)
        assert ask(proxy.port)[0] == 200


# ---- signals


@pytest.mark.slow
def test_sigterm_lets_running_responses_end(plugins, llm_user_path):
    with serving("--quiet") as (process, url, lines), ExitStack() as held:
        port = port_of(url)
        clients = [held.enter_context(begin(port, "ticking")) for _ in range(50)]
        begun = [read_until(client, b'"0 "') for client in clients]
        process.send_signal(signal.SIGTERM)
        while "stopping" not in lines.get(timeout=30):
            pass
        wait_until(lambda: is_refused(port))  # it prints that before it stops listening
        for client, data in zip(clients, begun, strict=True):
            while more := client.recv(2**16):
                data += more
            assert data.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
            assert data.count(b'"content":"19 "') == 1
        assert process.wait(30) == 0
        assert process.stderr.read() == ""
    assert rows(llm_user_path, "status, count(*)", "group by 1") == [("ok", 50)]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["ticking", "stubborn", "blocked"])
def test_second_signal_ends_at_once(plugins, model):
    with serving("--limit", "shutdown_s=120") as (process, url, lines):
        with begin(port_of(url), model) as client:
            read_until(client, b"content")
            process.send_signal(signal.SIGTERM)
            while "stopping" not in lines.get(timeout=30):
                pass
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 128 + signal.SIGTERM


@pytest.mark.slow
@pytest.mark.parametrize("model", ["stubborn", "blocked"])
@pytest.mark.parametrize("leaves", [False, True], ids=["waits", "hangs up"])
def test_a_blocked_model_does_not_keep_the_process_alive(plugins, model, leaves, llm_user_path):
    with serving("--limit", "shutdown_s=1") as (process, url, _):
        client = begin(port_of(url), model)
        read_until(client, b"so far")
        if leaves:
            client.close()
            wait_until(lambda: rows(llm_user_path, "status") == [("cancelled",)])
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        client.close()
    assert rows(llm_user_path, "status") == [("cancelled",)]


@pytest.mark.slow
def test_kill_under_load_loses_no_complete_response(plugins, llm_user_path):
    with serving("--quiet") as (process, url, _), ExitStack() as held:
        port = port_of(url)
        running_still = [held.enter_context(begin(port, "stubborn")) for _ in range(5)]
        for client in running_still:
            read_until(client, b"so far")
        with load(port) as (answered, _):
            wait_until(lambda: len(answered) > 200, 60)
            process.kill()
            process.wait(30)
    with serving("--quiet") as (_, url, _):
        assert ask(port_of(url))[0] == 200
        status_of = dict(rows(llm_user_path, "id, status"))
    assert {status_of[id_.removeprefix("req_")] for _, id_ in answered} == {"ok"}
    assert set(status_of.values()) == {"ok", "interrupted"}
    assert list(status_of.values()).count("interrupted") >= 5


# ---- disks


def assert_each_is_there_once(folder, ids):
    kept = dict(rows(folder, "id, status"))
    assert {kept.get(id_.removeprefix("req_")) for id_ in ids} == {"ok"}
    with sqlite3.connect(Path(folder) / "logs.db") as db:
        assert db.execute("pragma integrity_check").fetchall() == [("ok",)]
        turns = db.execute("select id from turns").fetchall()
    assert sorted(turns) == sorted((id_,) for id_, status in kept.items() if status == "ok")
    assert not list(Path(folder).glob("*.jsonl"))


@pytest.mark.slow
def test_locked_log_under_load_fails_no_response(llm_user_path):
    with serving("--quiet") as (process, url, _):
        with load(port_of(url)) as (answered, failures):
            wait_until(lambda: len(answered) > 20)
            with sqlite3.connect(llm_user_path / "logs.db", isolation_level=None) as db:
                db.execute("begin immediate")
                before = len(answered)
                time.sleep(3)
                beside = len(answered) - before
                db.execute("commit")
            db.close()
            wait_until(lambda: len(answered) > before + beside + 20)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert not failures
    assert beside > 20
    assert_each_is_there_once(llm_user_path, [id_ for _, id_ in answered])


@pytest.mark.slow
@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_log_removed_under_load_fails_no_response(how, llm_user_path):
    path = llm_user_path / "logs.db"
    with serving("--quiet") as (process, url, _):
        port = port_of(url)
        ask(port, "the first")
        wait_until(lambda: rows(llm_user_path, "status") == [("ok",)])
        other = llm_user_path / "other.db"
        with sqlite3.connect(path) as db:
            db.execute("vacuum into ?", [str(other)])
        db.close()
        with load(port) as (answered, failures):
            wait_until(lambda: len(answered) > 30)
            if how == "deleted":
                path.unlink()
            else:
                other.rename(path)
            gone_at = time.monotonic()
            wait_until(lambda: len([at for at, _ in answered if at > gone_at + 0.5]) > 30)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert not failures
    assert_each_is_there_once(llm_user_path, [id_ for at, id_ in answered if at > gone_at + 0.5])


@contextmanager
def limited(kind, most, *arguments):
    """Run the server as a process with a resource limit of the system."""
    process = subprocess.Popen(
        [*COMMAND, "--port", "0", "--quiet", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(kind, most),
    )
    try:
        yield process, int(re.search(r":(\d+)$", process.stdout.readline().strip())[1])
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits can't be raised from outside")
def test_full_disk_under_load_fails_no_response(llm_user_path):
    """Files are limited to 2 MB; later the limit is lifted."""
    unlimited = resource.RLIM_INFINITY
    with limited(resource.RLIMIT_FSIZE, (2_000_000, unlimited)) as (process, port):
        with ThreadPoolExecutor(8) as pool:
            futures = [pool.submit(ask, port, f"{i} " + "x" * 40_000) for i in range(80)]
            answers = [each.result() for each in futures]
        assert {status for status, _, _ in answers} == {200}
        assert json.loads(get(port, "/healthz")[1])["log"] == "failing"
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert_each_is_there_once(llm_user_path, [id_ for _, id_, _ in answers])


# ---- descriptors


@pytest.mark.slow
def test_server_without_descriptors_waits_until_some_are_free():
    with limited(resource.RLIMIT_NOFILE, (64, 64)) as (process, port), ExitStack() as held:
        assert ask(port)[0] == 200
        for _ in range(200):  # most wait for the kernel or in its queue
            client = held.enter_context(socket.socket())
            client.setblocking(False)
            with suppress(BlockingIOError):
                client.connect(("127.0.0.1", port))
        time.sleep(1)
        before_s = cpu_s(process)
        time.sleep(4)
        assert cpu_s(process) - before_s < 1.0
        assert process.poll() is None
        held.close()
        wait_until(lambda: is_answered(port))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        said = process.stderr.read().splitlines()
    assert said.pop(0) == few_connections(32)
    assert said in ([], ["llmproxy: a connection has to wait: Too many open files"])


@pytest.mark.slow
def test_connections_leave_descriptors_for_other_uses():
    with limited(resource.RLIMIT_NOFILE, (600, 600)) as (process, port), ExitStack() as held:
        for _ in range(300):
            held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
        refused = held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
        assert refused.recv(2**16).startswith(b"HTTP/1.1 503 ")
        held.close()
        wait_until(lambda: is_answered(port))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stderr.read() == few_connections(300) + "\n"


def few_connections(count):
    return (
        f"warning: the limit on open files (ulimit -n) leaves room for {count} connections,"
        " not 4000 (limit connections)"
    )


def is_answered(port):
    try:
        return ask(port)[0] == 200
    except ConnectionError:  # still too many
        return False


def cpu_s(process):
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
