"""The files of examples/deploy, read by the programs that they are for, and nginx in front."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
import trustme

import llmproxy
from llmproxy import open_log
from tests.commands import run_here
from tests.models import AsyncScript, registered, tool_call, usage
from tests.proxies import running

DEPLOY = Path(__file__).parents[2] / "examples" / "deploy"
CHAT = "/v1/chat/completions"


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


@needs("systemd-analyze")
def test_the_unit_is_one_that_systemd_accepts(tmp_path):
    unit = (DEPLOY / "llmproxy.service").read_text()
    (tmp_path / "llmproxy.service").write_text(unit.replace("/opt/llmproxy/bin/python", "/bin/sh"))
    command = ["systemd-analyze", "verify", str(tmp_path / "llmproxy.service")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=30)
    about_it = [line for line in run.stderr.splitlines() if "llmproxy.service" in line]
    assert about_it == [], run.stderr


def test_the_units_command_is_one_that_we_accept():
    command = re.search(
        r"ExecStart=\S+ -m llmproxy (.*)", (DEPLOY / "llmproxy.service").read_text()
    )
    assert run_here(*command[1].split(), "--help-limits")[0] == 0
    container = re.search(r"CMD (\[.*llmproxy.*\])", (DEPLOY / "Containerfile").read_text())
    assert run_here(*json.loads(container[1])[3:], "--help-limits")[0] == 0


@needs("promtool")
def test_prometheus_reads_the_settings_and_the_rules(tmp_path):
    for name in ("prometheus.yml", "rules.yml"):
        text = (DEPLOY / name).read_text()
        (tmp_path / name).write_text(text.replace("/etc/prometheus/", f"{tmp_path}/"))
    (tmp_path / "llmproxy.key").write_text("sesame")
    for verb, name in (("config", "prometheus.yml"), ("rules", "rules.yml")):
        command = ["promtool", "check", verb, str(tmp_path / name)]
        run = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert run.returncode == 0, run.stdout + run.stderr


def test_the_rules_are_about_metrics_that_there_are():
    named = set(re.findall(r"llmproxy_\w+", (DEPLOY / "rules.yml").read_text()))
    with running(AsyncScript("m", "Hello")) as proxy:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        request(proxy.port, "POST", CHAT, body)
        proxy.wait_for_report()
        metrics = request(proxy.port, "GET", "/metrics")[1].decode()
    assert {name for name in named if not re.search(rf"^{name}[{{ ]", metrics, re.M)} == set()


@needs("logrotate")
def test_logrotate_reads_its_settings(tmp_path):
    text = (DEPLOY / "logrotate").read_text().replace("/var/log/llmproxy", str(tmp_path))
    (tmp_path / "access.log").write_text("a line\n")
    (tmp_path / "settings").write_text(text)
    (tmp_path / "settings").chmod(0o644)
    command = ["logrotate", "-d", "-s", str(tmp_path / "state"), str(tmp_path / "settings")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert "error" not in run.stderr.lower(), run.stderr


# ---- nginx


@contextmanager
def nginx(tmp_path: Path, port: int):
    """nginx in front of a port, as in examples/deploy/nginx.conf; yields its port and trust."""
    authority = trustme.CA()
    issued = authority.issue_cert("llm.example.com", "127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "x.key")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "x.pem")
    with socket.create_server(("127.0.0.1", 0)) as free:
        front = free.getsockname()[1]
    server = (DEPLOY / "nginx.conf").read_text()
    for old, new in (
        ("listen 443", f"listen 127.0.0.1:{front}"),
        ("/etc/ssl/llm.example.com", f"{tmp_path}/x"),
        ("127.0.0.1:11435", f"127.0.0.1:{port}"),
    ):
        assert old in server
        server = server.replace(old, new)
    folders = "".join(
        f"{name}_temp_path {tmp_path}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; pid {tmp_path}/pid; error_log {tmp_path}/error.log;"
        f" events {{}} http {{ access_log off; {folders}\n{server}\n}}"
    )
    command = ["nginx", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
    subprocess.run([*command, "-t"], check=True, capture_output=True, timeout=30)
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", front)).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
        trust = ssl.create_default_context()
        authority.configure_trust(trust)
        yield front, trust
    finally:
        process.terminate()
        process.wait(10)


def ask(port, trust, body):
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=trust)
    headers = {"authorization": "Bearer sesame", "host": "llm.example.com"}
    connection.request("POST", CHAT, json.dumps(body), headers)
    return connection, connection.getresponse()


def request(port, method, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with closing(connection):
        connection.request(method, path, None if body is None else json.dumps(body))
        response = connection.getresponse()
        return response.status, response.read()


@pytest.mark.slow
@needs("nginx")
def test_tokens_come_through_nginx_at_once_and_a_hang_up_too(tmp_path):
    told, stopped = threading.Event(), threading.Event()

    async def wait(response):
        try:
            await asyncio.to_thread(told.wait, 10)
            await asyncio.sleep(30)
        finally:
            stopped.set()

    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    with (
        running(AsyncScript("m", "Hel", wait), keys=["sesame"], hosts=["llm.example.com"]) as proxy,
        nginx(tmp_path, proxy.port) as (port, trust),
    ):
        connection, response = ask(port, trust, body)
        assert response.status == 200
        seen = b""
        while b"Hel" not in seen:  # while the model waits: nothing is held back
            seen += response.readline()
        told.set()
        connection.sock.shutdown(socket.SHUT_RDWR)
        response.close()
        connection.close()
        assert stopped.wait(10)
        assert proxy.wait_for_report().status == "cancelled"


# ---- several hosts


@pytest.mark.slow
def test_the_logs_of_three_hosts_come_together_while_they_are_used(tmp_path):
    """With overlaps, over and over; nothing is lost and nothing is there twice."""
    whole = tmp_path / "whole.db"
    folders = [tmp_path / f"host-{i}" for i in range(3)]
    sent: list[str] = []

    def collect():
        for i, folder in enumerate(folders):
            path = tmp_path / f"{i}.jsonl"
            assert run_here("export", str(path), "--database", str(folder / "logs.db"))[0] == 0
            assert run_here("import", str(path), "--database", str(whole))[0] == 0

    def use(proxy, client):
        """A session with tools, then a longer and longer chat."""
        messages = []
        for turn in range(12):
            messages.append({"role": "user", "content": f"{client} says {turn}"})
            status, data = request(proxy.port, "POST", CHAT, {"model": "m", "messages": messages})
            assert status == 200
            answer = json.loads(data)
            sent.append(answer["id"].removeprefix("chatcmpl-"))
            messages.append(answer["choices"][0]["message"])
            call = messages[-1]["tool_calls"][0]["id"]
            messages.append({"role": "tool", "tool_call_id": call, "content": "found"})

    numbers = iter(range(10_000))

    def say(response):
        tool_call("look", {}, f"call_{next(numbers)}")(response)

    def answer_of(response):
        say(response)
        usage(3, 2)(response)

    for folder in folders:
        folder.mkdir()
    with (
        registered(AsyncScript("m", "Let me look.", answer_of)),
        ExitStack() as stack,
        ThreadPoolExecutor(9) as threads,
    ):
        hosts = [
            stack.enter_context(llmproxy.running(database=folder / "logs.db")) for folder in folders
        ]
        uses = [
            threads.submit(use, proxy, f"{i}-{k}")
            for i, proxy in enumerate(hosts)
            for k in range(3)
        ]
        while not all(one.done() for one in uses):
            collect()
        for one in uses:
            one.result()
        collect()
    with open_log(whole) as log:
        entries = log.entries()
        conversations = log.conversations()
    assert sorted(entry.id for entry in entries) == sorted(sent)
    assert {entry.status for entry in entries} == {"ok"}
    assert len(sent) == len(set(sent)) == 108
    assert len(conversations) == 9
    code, out, err = run_here("log", "--verify", "--database", str(whole))
    assert code == 0, err
