"""Errors for clients at the server's limits, and what the operator sees of them."""

import asyncio
import itertools
import json
import re
import socket
import stat
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection
from types import SimpleNamespace

import anthropic
import openai
import pytest
from llm.parts import StreamEvent
from prometheus_client.parser import text_string_to_metric_families

from llmproxy import open_log
from llmproxy.app.running_exchange import RunningExchange
from llmproxy.core.chat import parse_arguments
from llmproxy.core.limits import Limits
from llmproxy.proxy import Settings, SettingsError
from llmproxy.serving import running as running_proxy
from tests.models import AsyncScript, SyncScript, response_json, usage
from tests.proxies import running

LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
BODY = {"messages": [{"role": "user", "content": "hi"}], "model": "m"}


def post(proxy, path="/v1/chat/completions", **fields):
    connection = HTTPConnection("127.0.0.1", proxy.port, timeout=20)
    try:
        connection.request("POST", path, json.dumps(BODY | fields).encode())
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def get(proxy, path):
    connection = HTTPConnection("127.0.0.1", proxy.port, timeout=20)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()
    finally:
        connection.close()


class Held(AsyncScript):
    """A model that responds when the test allows it."""

    def __init__(self, *steps):
        super().__init__("m", lambda _: self.wait(), *steps)
        self.begun = threading.Semaphore(0)
        self.may_go = threading.Event()

    async def wait(self):
        self.begun.release()
        while not self.may_go.is_set():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_request_over_the_limit_waits_and_then_gets_a_429(stream):
    model = Held("a")
    with running(model, limits=Limits(running=1, queue_s=0.2, shutdown_s=5)) as proxy:
        first = threading.Thread(target=post, args=(proxy,))
        first.start()
        assert model.begun.acquire(timeout=10)
        client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="x", max_retries=0)
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(**BODY, stream=stream)
        other = anthropic.Anthropic(base_url=proxy.url, api_key="x", max_retries=0)
        with pytest.raises(anthropic.RateLimitError):
            other.messages.create(**BODY, max_tokens=9, stream=stream)
        health = json.loads(get(proxy, "/healthz")[2])
        model.may_go.set()
        first.join()
        assert post(proxy)[0] == 200
    assert caught.value.response.headers["retry-after"] == "1"
    assert "1 responses are running" in caught.value.message
    assert (health["running"], health["waiting"], health["status"]) == (1, 0, "ok")


def test_a_disconnect_frees_a_place():
    model = Held("a")
    with running(model, limits=Limits(running=1, queue_s=10, shutdown_s=5)) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port)) as gone:
            body = json.dumps(BODY).encode()
            head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length"
            gone.sendall(f"{head}: {len(body)}\r\n\r\n".encode() + body)
            assert model.begun.acquire(timeout=10)
        model.may_go.set()
        assert post(proxy)[0] == 200


@pytest.mark.parametrize("script", [AsyncScript, SyncScript])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_response_that_takes_too_long_is_cut(script, stream):
    def forever(response):
        if script is SyncScript:
            return time.sleep(0.01)
        return asyncio.sleep(0.01)

    model = script("m")
    model.steps = itertools.cycle(["word ", forever])
    with running(model, limits=Limits(answer_s=1.0, shutdown_s=5)) as proxy:
        client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="x", max_retries=0)
        with pytest.raises(openai.APIError) as caught:
            list(client.chat.completions.create(**BODY, stream=stream))
        ended = proxy.wait_for_report()
    assert "the response did not end in time (limit answer_s)" in str(caught.value)
    assert ended.status == "error" and ended.turn.reply
    assert ended.duration_ms >= 1000


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_silence_longer_than_what_is_left_of_the_time_does_not_end_a_response(stream):
    def hold_the_loop(response):
        time.sleep(0.7)
        return asyncio.sleep(10)

    model = AsyncScript("m", "word ", hold_the_loop, "more")
    with running(model, limits=Limits(answer_s=1.0, shutdown_s=5)) as proxy:
        client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="x", max_retries=0)
        with pytest.raises(openai.APIError, match="did not end in time"):
            list(client.chat.completions.create(**BODY, stream=stream))
        assert proxy.wait_for_report().status == "error"


async def test_silence_that_is_used_up_is_no_silence_without_end():
    class Silent:
        async def read(self, silence_s):
            await asyncio.sleep(silence_s)

    exchange = RunningExchange.__new__(RunningExchange)
    exchange.capture, exchange.has_started = SimpleNamespace(run=Silent()), True
    exchange.until = time.monotonic() + 60
    assert await asyncio.wait_for(exchange.read(0.0), 5) is None


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("word", ["word ", "long " * 1000], ids=["short", "long"])
def test_an_endless_model_is_held_to_its_memory_limit(stream, word):
    """However fast its client reads: events are kept until they are logged."""
    model = AsyncScript("m")
    model.steps = itertools.cycle([word])
    with running(model, limits=Limits(answer=10**6, shutdown_s=5)) as proxy:
        client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="x", max_retries=0)
        with pytest.raises(openai.APIError) as caught:
            list(client.chat.completions.create(**BODY, stream=stream))
        ended = proxy.wait_for_report()
        assert get(proxy, "/healthz")[0] == 200
    assert "the response is too large (limit answer)" in str(caught.value)
    assert ended.status == "error" and model.closed == 1
    assert ended.event_count <= 10**6 / 500 + 1024


METADATA = {"signature": "s" * 10_000}


def hold_back():
    """Give pieces of a call's arguments, whose name never comes."""
    return [StreamEvent("tool_call_args", "[", tool_call_id="c")]


@pytest.mark.parametrize("kind", [SyncScript, AsyncScript])
@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([""], id="empty"),
        pytest.param([" " * 100], id="space after a call"),
        pytest.param(hold_back(), id="held-back arguments"),
        pytest.param([StreamEvent("reasoning", "", provider_metadata=METADATA)], id="metadata"),
        pytest.param([StreamEvent("text", "x", provider_metadata=METADATA)], id="with metadata"),
        pytest.param([StreamEvent("tool_call_args", "", tool_call_id="x")], id="empty arguments"),
    ],
)
def test_whatever_a_model_yields_counts_for_its_memory_limit(kind, steps):
    """Also what is held back, or never shown: the model would go on forever."""
    model = kind("m")
    call = StreamEvent("tool_call_name", "look", tool_call_id="x")
    model.steps = itertools.chain([call], itertools.cycle(steps))
    with running(model, limits=Limits(answer=10**6, shutdown_s=5)) as proxy:
        client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="x", max_retries=0)
        with pytest.raises(openai.APIError, match=r"the response is too large \(limit answer\)"):
            client.chat.completions.create(**BODY)
        assert proxy.wait_for_report().status == "error"
    assert model.closed == 1


@pytest.mark.parametrize("size", [10**5, 2 * 10**6])
def test_a_raw_response_counts_for_the_memory_limit(size):
    model = AsyncScript("m", "yes", response_json(pieces=["x" * 1_000] * (size // 1_000)))
    with running(model, limits=Limits(answer=10**6)) as proxy:
        client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="x", max_retries=0)
        if size < 10**6:
            assert client.chat.completions.create(**BODY).choices[0].message.content == "yes"
        else:
            with pytest.raises(openai.APIError, match="the response is too large"):
                client.chat.completions.create(**BODY)
        assert proxy.wait_for_report().status == ("ok" if size < 10**6 else "error")


def nested(levels):
    value: dict[str, object] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize("levels", [900, 5_000])
def test_what_nests_too_deep_is_left_out_and_listed(levels, llm_user_path):
    """The rest of the turn is logged: the log's encoder would end in a RecursionError."""
    listed = ("provider_metadata", "response_json")
    deep = '{"a":' * levels + "1" + "}" * levels
    model = AsyncScript(
        "m",
        StreamEvent("text", "yes", provider_metadata=nested(levels)),
        StreamEvent("tool_call_name", "look", tool_call_id="x"),
        StreamEvent("tool_call_args", deep, tool_call_id="x"),
        response_json(finish_reason="stop", raw=nested(levels)),
        usage(1, 1),
    )
    with running(model) as proxy:
        client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="x", max_retries=0)
        answer = client.chat.completions.with_raw_response.create(**BODY, tools=[LOOK])
        ended = proxy.wait_for_report()
        assert proxy.warnings == []
    assert answer.headers["x-llmproxy-ignored"] == ", ".join(listed)
    assert answer.parse().choices[0].message.tool_calls[0].function.arguments == deep
    assert (ended.status, ended.ignored) == ("ok", listed)
    with open_log(llm_user_path / "logs.db") as log:
        turn = log.exchange(ended.id).turn
    read = parse_arguments(deep)  # the innermost values as a text
    assert [part.to_dict() for part in turn.reply[0].parts] == [
        {"type": "text", "text": "yes"},
        {"type": "tool_call", "name": "look", "arguments": read, "tool_call_id": "x"},
    ]
    assert turn.response_json is None


@pytest.mark.own_server
def test_connections_beyond_the_limit_get_a_503_at_once():
    with running(limits=Limits(connections=2, shutdown_s=5)) as proxy:
        held = [socket.create_connection(("127.0.0.1", proxy.port)) for _ in range(2)]
        until = time.monotonic() + 10
        while proxy.proxy._server.connections < 2:
            assert time.monotonic() < until
        status, headers, body = get(proxy, "/v1/models")
        for one in held:
            one.close()
        while proxy.proxy._server.connections:
            assert time.monotonic() < until
        assert get(proxy, "/v1/models")[0] == 200
    assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
    assert json.loads(body)["error"]["message"] == "there are 2 connections already"


def test_health_and_metrics_count_requests_and_show_no_content(llm_user_path):
    secret = "sk-a-key-that-nobody-may-see"
    model = AsyncScript("m", "a", usage(3, 2))
    with running(model, keys=[secret]) as proxy:
        client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key=secret, max_retries=0)
        client.chat.completions.create(**BODY)
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(**BODY | {"model": "nobody\nevil 1"})
        assert get(proxy, "/metrics")[0] == 401
        raw = client.get("/metrics", cast_to=str)
        status, headers, health = get(proxy, "/healthz")
    found = {
        (sample.name, sample.labels.get("status"), sample.labels.get("code")): sample.value
        for family in text_string_to_metric_families(raw)
        for sample in family.samples
    }
    assert found[("llmproxy_requests_total", "ok", "200")] == 1
    assert found[("llmproxy_requests_total", "error", "404")] == 1
    assert found[("llmproxy_log_writable", None, None)] == 1
    assert found[("llmproxy_running", None, None)] == 0
    assert (status, headers["content-type"]) == (200, "application/json")
    assert set(json.loads(health)) == {
        "status", "version", "running", "waiting", "log", "log_queue", "log_lost",
    }  # fmt: skip
    assert json.loads(health)["log"] == "ok"
    for text in (raw, health):
        assert secret not in text and str(llm_user_path) not in text and "evil" not in text


def test_health_reports_a_log_that_can_not_be_written(llm_user_path):
    # It leads nowhere: SQLite can't make the file.
    (llm_user_path / "logs.db").symlink_to(llm_user_path / "nowhere" / "logs.db")
    with running(AsyncScript("m", "a")) as proxy:
        assert post(proxy)[0] == 200
        until = time.monotonic() + 10
        while json.loads(get(proxy, "/healthz")[2])["log"] != "failing":
            assert time.monotonic() < until
        metrics = get(proxy, "/metrics")[2]
        assert "llmproxy_log_writable 0" in metrics
        assert "# TYPE llmproxy_log_lost_total counter\nllmproxy_log_lost_total 0" in metrics
    with running(log=False) as proxy:
        assert json.loads(get(proxy, "/healthz")[2])["log"] == "off"
        assert "log_" not in get(proxy, "/metrics")[2]


def test_no_auth_accepts_requests_without_a_key():
    with pytest.raises(SettingsError, match="auth=False lets all of them in"):
        with running_proxy(Settings(host="0.0.0.0", port=0)):
            pass
    with running_proxy(Settings(host="0.0.0.0", port=0, auth=False)) as proxy:
        connection = HTTPConnection("127.0.0.1", proxy.addresses[0][1], timeout=10)
        connection.request("GET", "/v1/models", headers={"host": "any.example"})
        assert connection.getresponse().status == 200
        connection.close()
    with pytest.raises(SettingsError, match="exclude each other"):
        with running_proxy(Settings(port=0, auth=False, keys=["k"])):
            pass


def test_the_access_log_has_a_line_for_each_response(tmp_path):
    """From the command, to a file; on the port that it prints."""
    path = tmp_path / "access.log"
    command = [sys.executable, "-m", "llmproxy", "--port", "0", "--access-log", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        port = int(re.search(r":(\d+)$", process.stdout.readline().strip())[1])
        connection = HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/v1/models?api_key=secret", headers={"user-agent": 'a"\x80'})
        connection.getresponse().read()
        connection.request("GET", "/nowhere")
        connection.getresponse().read()
        connection.close()
    finally:
        process.terminate()
        process.communicate(timeout=20)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first, second = path.read_text().splitlines()
    assert re.fullmatch(
        r'127\.0\.0\.1 - - \[\S+ [+-]\d{4}\] "GET /v1/models\?api_key=\S+ HTTP/1\.1" 200 \d+'
        r' "-" "a\\x22\\x80" \d\.\d{3}',
        first,
    )
    assert "secret" not in first and ' "GET /nowhere HTTP/1.1" 404 ' in second
