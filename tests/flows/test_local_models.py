"""Models that run in this process: one request at a time, and the server survives them."""

from __future__ import annotations

import asyncio
import gc
import http.client
import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from urllib.request import urlopen

import llm
import pytest
from openai import OpenAI

from llmproxy.backends.engine import Catalog
from llmproxy.cli import bench
from llmproxy.core.limits import Limits
from llmproxy.transport import framing
from tests.flows.test_endless_models import begin, wait_until
from tests.flows.test_strange_models import ask, error_of, text_of
from tests.models import AsyncScript, NativeScript, SyncScript, registered, usage
from tests.proxies import running

APIS = pytest.mark.parametrize("api", ["openai", "anthropic"])


@pytest.fixture
def faults():
    """Collect misuses of native models that would crash the process; fail if there are any."""
    faults = []
    yield faults
    gc.collect()
    assert faults == []


class Held(NativeScript):
    """A model that yields a chunk, then waits for the test, once per request."""

    def __init__(self, model_id, faults, *, before=(), after=("done",)):
        super().__init__(model_id, *before, lambda _: self._wait(), *after, crash=faults.append)
        self.entered = threading.Semaphore(0)
        self.gone_on = threading.Semaphore(0)

    def _wait(self):
        self.entered.release()
        self.gone_on.acquire(timeout=30)


def rows(folder, sql):
    with sqlite3.connect(folder / "logs.db") as db:
        return db.execute(sql).fetchall()


def health(proxy):
    with urlopen(f"{proxy.url}/healthz") as response:
        return json.loads(response.read())


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_parallel_clients_of_both_apis_are_served_one_by_one(faults, stream):
    model = NativeScript("m", "a", lambda _: time.sleep(0.02), "b", crash=faults.append)
    with running(model) as proxy, ThreadPoolExecutor(8) as pool:
        apis = ["openai", "anthropic"] * 4
        answers = list(pool.map(lambda api: ask(proxy.port, "m", api, stream), apis))
    assert [text_of(w, a, stream) for w, a in zip(apis, answers, strict=True)] == ["ab"] * 8
    assert model.closed == 8


def test_requests_run_in_order_of_arrival(faults):
    model = Held("m", faults)
    with running(model) as proxy, ThreadPoolExecutor(5) as pool:
        futures = []
        for i in range(5):
            body = {"model": "m", "messages": [{"role": "user", "content": f"{i}"}]}
            futures.append(pool.submit(client(proxy).chat.completions.create, **body))
            wait_until(lambda i=i: health(proxy)["waiting"] == i and model.prompts)
            assert health(proxy)["running"] == 1
        for _ in futures:
            model.gone_on.release()
        assert all(one.result().choices[0].message.content == "done" for one in futures)
    assert [prompt.prompt for prompt in model.prompts] == ["0", "1", "2", "3", "4"]


def client(proxy):
    return OpenAI(base_url=f"{proxy.url}/v1", api_key="any", max_retries=0)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_client_that_leaves_the_queue_reaches_no_model(faults, stream, llm_user_path):
    model = Held("m", faults)
    with running(model) as proxy:
        with begin(proxy, "m"):
            assert model.entered.acquire(timeout=10)
            with begin(proxy, "m", stream=stream):
                wait_until(lambda: health(proxy)["waiting"] == 1)
            assert proxy.wait_for_report(1).status == "cancelled"
            wait_until(lambda: health(proxy)["waiting"] == 0)
            model.gone_on.release()
            proxy.wait_for_report(2)
        model.gone_on.release()
        assert text_of("openai", ask(proxy.port, "m"), False) == "done"
    assert len(model.prompts) == 2  # the request of the one that left never ran
    ((queue_ms,),) = rows(
        llm_user_path, "select queue_ms from proxy_exchanges where status = 'cancelled'"
    )
    assert queue_ms > 0


@pytest.mark.parametrize(
    "before", [(), ("word ",)], ids=["before the first event", "in the stream"]
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@APIS
def test_after_a_disconnect_the_next_waits_until_the_model_is_closed(faults, before, stream, api):
    """A model is closed in its own thread at its next event; only then does the next run start."""
    model = Held("m", faults, before=before)
    with running(model) as proxy, ThreadPoolExecutor(1) as pool:
        with begin(proxy, "m", stream=stream):
            assert model.entered.acquire(timeout=10)
        assert proxy.wait_for_report().status == "cancelled"
        following = pool.submit(ask, proxy.port, "m", api, stream)
        wait_until(lambda: health(proxy)["waiting"] == 1)
        assert model.closed == 0
        model.gone_on.release(2)
        assert text_of(api, following.result(), stream) == "".join(before) + "done"
    assert model.closed == 2


def test_a_model_that_fails_in_its_library_is_closed_in_its_thread(faults):
    """The exception's traceback refers to frames that keep the library's generator open."""
    closed_in = []

    def library():
        thread = threading.get_ident()
        try:
            yield "chunk"
            yield "more"
        finally:
            if threading.get_ident() != thread:
                faults.append("closed in another thread")
            closed_in.append(thread)

    def fail(_):
        chunks = library()
        for chunk in chunks:
            raise KeyError(chunk)

    with running(NativeScript("m", "a", fail, crash=faults.append)) as proxy:
        for _ in range(3):
            assert ask(proxy.port, "m").status == 502
            gc.collect()
    assert len(closed_in) == 3


class Deaf(SyncScript):
    """A model that ignores its close; its library's handle is freed with its frame."""

    def __init__(self, model_id, faults):
        super().__init__(model_id)
        self.entered = threading.Event()
        self.handles = 0
        self._faults = faults

    def execute(self, prompt, stream, response, conversation):
        self._began(prompt, conversation)
        handle = Handle(self)  # noqa: F841
        if self.handles > 1:
            self._faults.append("two at once")
        while len(self.prompts) == 1:
            with suppress(GeneratorExit):
                self.entered.set()
                yield "word "
            time.sleep(0.01)
        yield "done"


class Handle:
    def __init__(self, model):
        self._model, self._thread = model, threading.get_ident()
        model.handles += 1

    def __del__(self):
        self._model.handles -= 1
        if threading.get_ident() != self._thread:
            self._model._faults.append("freed in another thread")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_model_that_ignores_its_close_ends_with_its_thread(faults):
    model = Deaf("m", faults)
    with running(model) as proxy:
        with begin(proxy, "m"):
            assert model.entered.wait(10)
        assert proxy.wait_for_report().status == "cancelled"
        for _ in range(2):
            assert text_of("openai", ask(proxy.port, "m"), False) == "done"
    assert model.handles == 0


@APIS
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_waiting_for_a_blocked_model_ends_with_a_503_that_names_it(faults, api, stream):
    model = Held("blocked", faults)
    limits = Limits(queue_s=0.2, running=2, shutdown_s=5)
    with running(model, AsyncScript("other", "fine"), limits=limits) as proxy:
        with begin(proxy, "blocked"), ThreadPoolExecutor(4) as pool:
            assert model.entered.acquire(timeout=10)
            behind = [pool.submit(ask, proxy.port, "blocked", api, stream) for _ in range(3)]
            # Queued requests don't count as running, so other models work.
            assert text_of(api, ask(proxy.port, "other", api, stream), stream) == "fine"
            for answer in behind:
                assert answer.result().status == 503
                assert error_of(api, answer.result(), is_late=False) == (
                    "the model 'blocked' runs one request at a time, and this one's turn did not"
                    " come within 0.2 s (limit queue_s)"
                )
        # Its client is gone, but it is still running.
        assert ask(proxy.port, "blocked", api, stream).status == 503
        model.gone_on.release(2)
        wait_until(lambda: ask(proxy.port, "blocked", api, stream).status == 200)


@APIS
def test_keep_alives_are_sent_while_a_stream_waits(faults, api, llm_user_path):
    model = Held("m", faults)
    limits = Limits(first_event_s=0.05, keepalive_s=0.05, queue_s=10, shutdown_s=5)
    with running(model, limits=limits) as proxy, ThreadPoolExecutor(1) as pool:
        with begin(proxy, "m"):
            assert model.entered.acquire(timeout=10)
            waiting = pool.submit(ask, proxy.port, "m", api, True)
            wait_until(lambda: health(proxy)["waiting"] == 1)
            time.sleep(0.3)
            model.gone_on.release(2)
            answer = waiting.result()
        proxy.wait_for_report(2)
        metrics = urlopen(f"{proxy.url}/metrics").read().decode()
    idle = framing.SSE_PING if api == "openai" else b"event: ping\n"
    assert answer.data.count(idle) >= 3
    assert text_of(api, answer, True) == "done"
    ((queue_ms, ttft_ms),) = rows(
        llm_user_path, "select queue_ms, ttft_ms from proxy_exchanges where queue_ms is not null"
    )
    assert 300 <= queue_ms <= ttft_ms
    name = "openai_chat" if api == "openai" else "anthropic_messages"
    assert f'llmproxy_queue_seconds_count{{dialect="{name}",model="m"}} 1' in metrics
    assert "\nllmproxy_waiting 0\n" in metrics


def test_a_queue_timeout_after_the_status_is_an_error_in_the_stream(faults):
    model = Held("m", faults)
    limits = Limits(first_event_s=0.05, keepalive_s=0.05, queue_s=0.3, shutdown_s=5)
    with running(model, limits=limits) as proxy, begin(proxy, "m"):
        assert model.entered.acquire(timeout=10)
        late = ask(proxy.port, "m", "anthropic", True)
        assert late.status == 200
        assert "runs one request at a time" in error_of("anthropic", late, is_late=True)
        model.gone_on.release()


def test_the_first_run_of_a_process_is_marked(faults, llm_user_path):
    with running(NativeScript("m", "a", crash=faults.append), AsyncScript("n", "a")) as proxy:
        for name in ("m", "m", "n"):
            ask(proxy.port, name)
    assert rows(
        llm_user_path, "select model_used, is_first_run from proxy_exchanges order by id"
    ) == [("m", 1), ("m", 0), ("n", 0)]


# ---- which models, and how many


def test_aliases_and_reloads_share_the_models_queue(faults):
    class Plugin:
        @llm.hookimpl
        def register_models(self, register):
            register(NativeScript("m", crash=faults.append), aliases=("n",))

    catalog = Catalog()
    llm.plugins.pm.register(Plugin(), name="aliased")
    try:
        catalog.load()
        gates = {catalog._find(name).limiter for name in ("m", "n")}
        catalog.load()
        gates |= {catalog._find(name).limiter for name in ("m", "n")}
    finally:
        llm.plugins.pm.unregister(name="aliased")
    (gate,) = gates
    assert gate.limit == 1


@pytest.mark.parametrize(
    "make, parallel, limit",
    [
        (lambda: NativeScript("m"), (), 1),
        (lambda: NativeScript("m", needs_key="a-provider"), (), None),
        (lambda: AsyncScript("m"), (), None),
        (lambda: NativeScript("m"), [("x*", 5), ("m*", 2), ("*", 3)], 2),
        (lambda: AsyncScript("m"), [("m", 4)], 4),
    ],
    ids=["in process", "with a key", "async", "the first pattern", "async by a pattern"],
)
def test_number_of_parallel_runs(make, parallel, limit):
    catalog = Catalog(parallel=parallel)
    with registered(make()):
        catalog.load()
    gate = catalog._find("m").limiter
    assert (gate.limit if gate else None) == limit


def test_parallel_allows_several_runs(llm_user_path):
    together = threading.Barrier(2, timeout=10)
    model = NativeScript("m", lambda _: together.wait(), "a", crash=lambda _: None)
    with running(model, parallel=[("m", 2)]) as proxy, ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: ask(proxy.port, "m"), range(2)))
    assert [answer.status for answer in answers] == [200, 200]


def test_parallel_can_limit_an_async_model_to_one_run():
    at_work: list[int] = [0]

    async def work(_):
        at_work.append(at_work[-1] + 1)
        await asyncio.sleep(0.02)
        at_work.append(at_work[-1] - 1)

    model = AsyncScript("m", work, "a")
    with running(model, parallel=[("m", 1)]) as proxy, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: ask(proxy.port, "m"), range(4)))
    assert [answer.status for answer in answers] == [200] * 4
    assert at_work == [0] + [1, 0] * 4


# ---- tokens that are not counted


@APIS
def test_uncounted_usage_is_estimated(faults, api, llm_user_path):
    model = NativeScript("m", "Twelve ", "characters", crash=faults.append)
    path = "/v1/chat/completions" if api == "openai" else "/v1/messages"
    with running(model) as proxy:
        body = {
            "model": "m",
            "max_tokens": 9,
            "messages": [{"role": "user", "content": "How many tokens are there in this?"}],
        }
        whole = post(proxy, path, body)
        extra = {"stream_options": {"include_usage": True}} if api == "openai" else {}
        streamed = post(proxy, path, body | {"stream": True} | extra)
    if api == "openai":
        counts = json.loads(whole[1])["usage"]
        assert (counts["prompt_tokens"], counts["completion_tokens"]) == (13, 5)
        assert b'"usage":{"prompt_tokens":13,"completion_tokens":5,"total_tokens":18' in streamed[1]
    else:
        counts = json.loads(whole[1])["usage"]
        assert (counts["input_tokens"], counts["output_tokens"]) == (13, 5)
        assert b'"output_tokens":5' in streamed[1]
    assert "usage" in whole[0]["x-llmproxy-ignored"].split(", ")
    assert "usage" in streamed[0]["x-llmproxy-ignored"].split(", ")
    sql = "select output_tokens, input_tokens, output_tokens_estimate from proxy_exchanges"
    assert rows(llm_user_path, sql) == [(None, None, 5)] * 2


def post(proxy, path, body):
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=20)
    connection.request("POST", path, json.dumps(body))
    response = connection.getresponse()
    headers = {name.lower(): value for name, value in response.getheaders()}
    data = response.read()
    connection.close()
    return headers, data


def test_counted_or_unrequested_usage_is_not_marked_as_estimated(faults):
    counted = NativeScript("counted", "a", usage(3, 2), crash=faults.append)
    silent = NativeScript("silent", "a", crash=faults.append)
    with running(counted, silent) as proxy:
        body = {"messages": [{"role": "user", "content": "q"}]}
        path = "/v1/chat/completions"
        whole, _ = post(proxy, path, body | {"model": "counted"})
        asks = {"stream": True, "stream_options": {"include_usage": True}}
        stream, _ = post(proxy, path, body | {"model": "counted"} | asks)
        unasked, _ = post(proxy, path, body | {"model": "silent", "stream": True})
    assert not any("x-llmproxy-ignored" in headers for headers in (whole, stream, unasked))


# ---- bench, report, replay


@pytest.fixture
def no_plugins(monkeypatch):
    monkeypatch.setattr("llmproxy.backends.engine.catalog._load_plugins", lambda: False)


@pytest.mark.usefixtures("no_plugins")
def test_a_concurrent_bench_runs_a_local_model_one_by_one(faults, llm_user_path, capsys):
    pauses = [lambda _: time.sleep(0.05)] * 2  # with one, there would be no rate
    slow = NativeScript("m", "one ", pauses[0], "more ", pauses[1], "word", crash=faults.append)
    with running(AsyncScript("recorded", "a word", usage(3, 2))) as proxy:
        for _ in range(4):
            ask(proxy.port, "recorded")
    with registered(slow):
        arguments = ["--models", "m", "--concurrency", "4", "--timeout", "5", "--warmup", "0"]
        assert bench.main([*arguments, "--name", "local"], "llmproxy") == 0
    sql = "select queue_ms, ttft_ms, is_first_run from proxy_exchanges where run_id is not null"
    found = sorted(rows(llm_user_path, sql), key=lambda row: row[0] or 0)
    assert [queue_ms is None for queue_ms, *_ in found] == [True, False, False, False]
    assert found[3][0] >= 300  # after three others
    assert sorted(first for *_, first in found) == [0, 0, 0, 1]
    printed = capsys.readouterr().out
    assert "waiting (not in other times)" in printed
    assert "m: 1 of 4 responses was the first in its process" in printed
    assert "m: none of 4 responses had token counts; ~ marks rates by our estimate" in printed
    # Without waiting, the first event takes no time; with it the median would be 150 ms.
    (in_short,) = [line for line in printed.splitlines() if line.startswith("m ") and "~" in line]
    assert float(in_short.split()[4]) < 60, in_short


@pytest.mark.usefixtures("no_plugins")
def test_a_replay_leaves_out_the_wait(faults, llm_user_path):
    model = Held("m", faults)
    with running(model) as proxy, ThreadPoolExecutor(1) as pool:
        with begin(proxy, "m", stream=False):
            assert model.entered.acquire(timeout=10)
            behind = pool.submit(ask, proxy.port, "m")
            wait_until(lambda: health(proxy)["waiting"] == 1)
            time.sleep(1.0)
            model.gone_on.release(2)
            behind.result()
        proxy.wait_for_report(2)
    with sqlite3.connect(llm_user_path / "logs.db") as db:
        db.execute("delete from proxy_exchanges where queue_ms is null")
    with running(replay="replay") as proxy:
        began = time.monotonic()
        assert text_of("openai", ask(proxy.port, "m"), False) == "done"
        assert time.monotonic() - began < 0.8


# ---- crashes of the process

CRASHES = """
import os, sys
sys.path.insert(0, {root!r})
from tests.models import NativeScript, registered
from llmproxy.cli.main import main
with registered(NativeScript("m", "a", lambda _: os._exit(134)), NativeScript("n", "fine")):
    sys.exit(main(["--port", "0", "--database", {database!r}]))
"""


@contextmanager
def started(database, script=CRASHES, **values):
    root = str(Path(__file__).parents[2])
    server = subprocess.Popen(
        [sys.executable, "-c", script.format(root=root, database=str(database), **values)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"LLM_LOAD_PLUGINS": ""},
    )
    try:
        yield server, int(re.search(r":(\d+)$", server.stdout.readline().strip())[1])
    finally:
        server.kill()
        server.communicate()


@pytest.mark.slow
def test_after_a_crash_the_next_start_names_the_running_model(tmp_path):
    database = tmp_path / "logs.db"
    with started(database) as (server, port), begin(SimpleNamespace(port=port), "m"):
        assert server.wait(10) == 134
    ((id,),) = rows(tmp_path, "select id from proxy_exchanges")
    with started(database) as (server, port):
        assert text_of("openai", ask(port, "n"), False) == "fine"
        assert rows(tmp_path, "select status from proxy_exchanges order by id") == [
            ("interrupted",),
            ("ok",),
        ]
        server.terminate()
        _, err = server.communicate(timeout=10)
    said = f"llmproxy was killed or crashed while 1 exchange was running: {id} (-, m)"
    assert [line for line in err.splitlines() if "killed or crashed" in line] == [
        f"warning: {said}"
    ]


# A library's destructors run at the interpreter's end, and crash while one of its calls runs.
COMPUTES = """
import atexit, os, sys, time
sys.path.insert(0, {root!r})
from tests.models import NativeScript, registered
from llmproxy.cli.main import run
model = NativeScript("m", "a", lambda _: time.sleep(60))
atexit.register(lambda: len(model.prompts) > model.closed and os._exit(139))
with registered(model):
    run(["--port", "0", "--database", {database!r}, "--limit", "shutdown_s={shutdown_s}"])
"""


@pytest.mark.parametrize(
    "signals, shutdown_s, code", [(1, 0.2, 0), (2, 30, 143)], ids=["late answers", "at once"]
)
def test_a_stop_while_native_code_runs_does_not_crash(tmp_path, signals, shutdown_s, code):
    database = tmp_path / "logs.db"
    with started(database, COMPUTES, shutdown_s=shutdown_s) as (server, port):
        proxy = SimpleNamespace(port=port, url=f"http://127.0.0.1:{port}")
        with begin(proxy, "m") as running_one, begin(proxy, "m"):
            assert running_one.recv(100).startswith(b"HTTP/1.1 200 ")
            wait_until(lambda: health(proxy)["waiting"] == 1)
            for _ in range(signals):
                server.terminate()
                while "stopping" not in server.stdout.readline() and server.poll() is None:
                    pass
            assert server.wait(10) == code
        assert server.stderr.read() == ""
    assert rows(tmp_path, "select status from proxy_exchanges") == [("cancelled",)] * 2


# Two plugins silence their libraries during loading at once: each restores what it found.
HUSHES = """
import io, sys, threading
sys.path.insert(0, {root!r})
from contextlib import redirect_stderr, redirect_stdout
from tests.models import NativeScript, registered
from llmproxy.cli.main import run
inside, left = threading.Barrier(2), threading.Event()
def hush(name):
    if name == "b":
        inside.wait()
    with io.StringIO() as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        if name == "a":
            inside.wait()
            second.wait(10)
        else:
            second.set()
            left.wait(10)
    left.set()
second = threading.Event()
with registered(*[NativeScript(name, lambda _, name=name: hush(name), "x") for name in "ab"]):
    run(["--port", "0", "--database", {database!r}])
"""


def test_plugins_that_replace_stdout_lose_no_line(tmp_path):
    with started(tmp_path / "logs.db", HUSHES) as (server, port), ThreadPoolExecutor(2) as pool:
        for answer in pool.map(lambda name: ask(port, name), "ab"):
            assert answer.status == 200
        assert ask(port, "demo").status == 200
        server.terminate()
        out, err = server.communicate(timeout=10)
    assert err == ""
    said = [line.split("  ")[4] for line in out.splitlines() if " openai_chat " in line]
    assert sorted(said) == ["a", "b", "demo"]
    assert "stopping" in out
