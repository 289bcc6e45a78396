"""The log of exchanges however they end, with real sockets, signals and processes."""

import asyncio
import http.client
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from llm.logs import LogStore
from sqlite_utils import Database

from llmproxy.core.limits import Limits
from tests.cli.test_main import chat, serving
from tests.models import AsyncScript, SyncScript, usage
from tests.proxies import running

QUESTION = [{"role": "user", "content": "what I asked"}]


def rows(llm_user_path, columns, table="proxy_exchanges"):
    with sqlite3.connect(llm_user_path / "logs.db") as db:
        return db.execute(f"select {columns} from {table} order by 1").fetchall()


def logged_replies(llm_user_path):
    """Return the replies in the log, each with its exchange's status."""
    return rows(
        llm_user_path,
        "status, parts.text",
        "proxy_exchanges join turns using (id) join parts"
        " on parts.message_hash = turns.tip_message_hash",
    )


def logged_prompts(llm_user_path):
    """Return the prompts in llm's tree of messages."""
    return rows(
        llm_user_path,
        "status, parts.text",
        "proxy_exchanges e join parts on parts.message_hash = e.message_hash",
    )


def post(proxy, model="m", headers=None, query="", **fields):
    body = {"model": model, "messages": QUESTION} | fields
    url = f"{proxy.url}/v1/chat/completions{query}"
    request = Request(url, json.dumps(body).encode(), headers or {})
    try:
        with urlopen(request, timeout=20) as response:
            return response.status, response.read()
    except HTTPError as error:
        with error:
            return error.code, error.read()


class Overloaded(Exception):
    status_code = 529


@pytest.mark.parametrize("kind", [SyncScript, AsyncScript])
def test_failure_before_any_output_logs_the_prompt(kind, llm_user_path):
    with running(kind("m", Overloaded("try later"))) as proxy:
        assert post(proxy)[0] == 503
    assert rows(llm_user_path, "status, http_status, error, thread_id") == [
        ("error", 503, "the model 'm' failed: Overloaded: try later", None)
    ] or rows(llm_user_path, "status, http_status, error, thread_id") == [
        ("error", 503, "try later", None)
    ]
    assert logged_prompts(llm_user_path) == [("error", "what I asked")]
    assert rows(llm_user_path, "id", "turns") == []


def test_failure_in_a_stream_logs_the_partial_reply(llm_user_path):
    with running(AsyncScript("m", "so far", RuntimeError("gone"))) as proxy:
        with pytest.raises(http.client.IncompleteRead):
            post(proxy, stream=True)
        post(proxy)
    assert rows(llm_user_path, "http_status, status, event_count, finish_reason") == [
        (200, "error", 1, None),
        (502, "error", 1, None),
    ]
    assert logged_replies(llm_user_path) == [("error", "so far")] * 2


@pytest.mark.parametrize("raised", [SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError()])
def test_any_exception_of_a_model_is_an_error_and_the_server_goes_on(raised, llm_user_path):
    with running(AsyncScript("m", raised), AsyncScript("n", "well")) as proxy:
        assert post(proxy)[0] == 502
        assert post(proxy, "n")[0] == 200
    assert rows(llm_user_path, "status") == [("error",), ("ok",)]


def test_a_models_refusal_is_a_response(llm_user_path):
    from llm_anthropic import ClaudeRefusal

    with running(AsyncScript("m", "I", usage(3, 1), ClaudeRefusal({}))) as proxy:
        assert post(proxy)[0] == 200
    assert rows(llm_user_path, "status, finish_reason") == [("ok", "content_filter")]


def test_an_invalid_request_is_logged_as_sent(llm_user_path):
    with running() as proxy:
        assert post(proxy, "nobody")[0] == 404
        assert post(proxy, messages=[{"role": "robot"}])[0] == 400
        with pytest.raises(HTTPError) as broken:
            urlopen(f"{proxy.url}/v1/chat/completions", b"{not json")
        broken.value.close()
    found = rows(llm_user_path, "received, http_status, error, body")
    assert [row[1] for row in found] == [404, 400, 400]
    assert found[1][2].startswith("messages[0].role: expected one of ")
    assert json.loads(found[2][3]) == "{not json"


@pytest.mark.parametrize("before", [(), ("so far",)], ids=["silent", "after text"])
def test_a_disconnect_is_logged_as_cancelled_with_the_partial_reply(before, llm_user_path):
    began = threading.Event()

    async def wait(_response):
        began.set()
        await asyncio.Event().wait()

    with running(AsyncScript("m", *before, wait)) as proxy:
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
        body = json.dumps({"model": "m", "messages": QUESTION, "stream": True})
        connection.request("POST", "/v1/chat/completions", body)
        assert began.wait(10)
        connection.close()
        proxy.wait_for_report()
    [(status, http_status, error)] = rows(llm_user_path, "status, http_status, error")
    assert (status, error) == ("cancelled", None)
    assert http_status in ((200, None) if before else (None,))
    assert logged_replies(llm_user_path) == [("cancelled", text) for text in before]
    assert logged_prompts(llm_user_path) == [("cancelled", "what I asked")]


def test_shutdown_cuts_responses_that_do_not_end(llm_user_path):
    began = threading.Event()

    async def wait(_response):
        began.set()
        await asyncio.Event().wait()

    with running(AsyncScript("m", "so far", wait), limits=Limits(shutdown_s=1.0)) as proxy:
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
        body = json.dumps({"model": "m", "messages": QUESTION, "stream": True})
        connection.request("POST", "/v1/chat/completions", body)
        connection.getresponse().readline()
        assert began.wait(10)
    connection.close()
    assert logged_replies(llm_user_path) == [("cancelled", "so far")]


def test_follow_shows_a_disconnect_live(llm_user_path):
    began = threading.Event()

    async def wait(_response):
        began.set()
        await asyncio.Event().wait()

    command = [sys.executable, "-u", "-m", "llmproxy", "log", "--follow"]
    with running(AsyncScript("m", wait)) as proxy:
        follower = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
            body = json.dumps({"model": "m", "messages": QUESTION})
            connection.request("POST", "/v1/chat/completions", body)
            assert began.wait(10)
            assert re.search(r"  running \d+s  what I asked", follower.stdout.readline())
            connection.close()
            assert re.search(r"  cancelled  .*what I asked", follower.stdout.readline())
        finally:
            follower.kill()
            follower.wait()
            follower.stdout.close()


SLOW_PLUGIN = """
import asyncio, llm
class Slow(llm.AsyncModel):
    model_id = "slow"
    can_stream = True
    async def execute(self, prompt, stream, response, conversation):
        yield "so far"
        await asyncio.Event().wait()
@llm.hookimpl
def register_models(register): register(None, Slow())
"""


@pytest.fixture
def slow_plugin(tmp_path, monkeypatch):
    """Install a model that never ends, for servers in their own processes."""
    (tmp_path / "slow_plugin.py").write_text(SLOW_PLUGIN)
    info = tmp_path / "slow_plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slow-plugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[llm]\nslow = slow_plugin\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.getcwd()]))
    monkeypatch.setenv("LLM_LOAD_PLUGINS", "slow-plugin")


def statuses(llm_user_path):
    return [status for _, status in rows(llm_user_path, "received, status")]


@pytest.mark.slow
def test_after_a_kill_complete_responses_are_logged_and_others_marked(slow_plugin, llm_user_path):
    with serving() as (killed, url, _), serving() as (neighbour, other_url, _):
        chat(url).read()
        cut = chat(url, stream=True, model="slow")
        running_beside = chat(other_url, stream=True, model="slow")
        for response in (cut, running_beside):
            while b"so far" not in response.readline():
                pass
        deadline = time.monotonic() + 10
        while statuses(llm_user_path) != ["ok", "running", "running"]:
            assert time.monotonic() < deadline
        killed.send_signal(signal.SIGKILL)
        killed.wait(10)
        with serving() as (_, third_url, _):
            chat(third_url).read()
            assert statuses(llm_user_path) == ["ok", "interrupted", "running", "ok"]
        cut.close()
        running_beside.close()
        while statuses(llm_user_path)[2] == "running":
            assert time.monotonic() < deadline + 10
        assert statuses(llm_user_path)[2] == "cancelled"
        neighbour.send_signal(signal.SIGTERM)
        assert neighbour.wait(20) == 0
    assert rows(llm_user_path, "*", "pragma_integrity_check") == [("ok",)]
    assert LogStore(Database(llm_user_path / "logs.db")).verify() == []
    beside = {path.name for path in llm_user_path.iterdir() if path.name.startswith("logs.db-")}
    assert not [name for name in beside if name.endswith(".jsonl")]


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of two megabytes; yield it with a function to enlarge it."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("may not mount a file system here")
    grow = ["mount", "-o", "remount,size=64m", str(folder)]
    yield folder, lambda: subprocess.run(grow, check=True)
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_full_disk_fails_no_response_and_loses_nothing(small_disk):
    folder, grow = small_disk
    with serving("--database", str(folder / "logs.db")) as (process, url, _):
        for i in range(40):
            messages = [{"role": "user", "content": f"{i} " + "x" * 40_000}]
            began = time.monotonic()
            chat(url, messages=messages).read()
            assert time.monotonic() - began < 5
        assert len(statuses(folder)) < 40, "the disk was meant to be full"
        grow()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        warnings = process.stderr.read()
    assert statuses(folder) == ["ok"] * 40
    assert rows(folder, "count(*)", "turns") == [(40,)]
    assert rows(folder, "*", "pragma_integrity_check") == [("ok",)]
    assert warnings.count("warning: ") >= 1
    assert not list(folder.glob("*.jsonl"))


SECRETS = [
    "sk-client-9f8e7d6c5b4a",
    "cookie-1a2b3c4d5e6f",
    "query-0f1e2d3c4b5a",
    "mcp-7a8b9c0d1e2f",
]


def test_no_secret_reaches_the_file(llm_user_path):
    """Neither from header, query or body, nor from a provider's error that quotes it."""
    quoting = AsyncScript("m", "a", RuntimeError(f"bad key {SECRETS[0]} or {SECRETS[1]}"))
    headers = {
        "authorization": f"Bearer {SECRETS[0]}",
        "cookie": f"session={SECRETS[1]}",
        "x-api-key": SECRETS[0],
    }
    servers = [{"type": "url", "url": "https://x.example", "authorization_token": SECRETS[3]}]
    with running(quoting) as proxy:
        post(proxy, headers=headers, query=f"?key={SECRETS[2]}", mcp_servers=servers)
        assert rows(llm_user_path, "count(*)") == [(1,)]
        files = [path for path in llm_user_path.iterdir() if path.name.startswith("logs.db")]
        kept = b"".join(path.read_bytes() for path in files)
    assert b"what I asked" in kept
    for secret in SECRETS:
        assert secret.encode() not in kept
    assert not any(secret in str(proxy.reports[0]) for secret in SECRETS)
