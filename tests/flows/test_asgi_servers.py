"""The ASGI application under the servers that people run: uvicorn, hypercorn, granian."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
import trustme

from llmproxy import open_log

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
BODY = {"model": "demo", "messages": [{"role": "user", "content": "Tidy the shed."}]}
FAILING = """
import llm
from llmproxy.asgi import App

class Failing(llm.AsyncModel):
    model_id = "failing"
    can_stream = True
    async def execute(self, prompt, stream, response, conversation=None):
        yield "Hel"
        raise RuntimeError("kaput")

@llm.hookimpl
def register_models(register):
    register(None, Failing())

import sys
from llm.plugins import load_plugins, pm
load_plugins()
pm.register(sys.modules[__name__])
app = App()
"""


@contextmanager
def serving(tmp_path, *command, scheme="http", verify=True, http2=False):
    """Run a server on a free port; yield a client for it. It has to stop by itself."""
    (tmp_path / "served.py").write_text(FAILING)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [word.replace("PORT", str(port)) for word in command]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-m", *words],
        env=environment,
        stderr=subprocess.STDOUT,
        stdout=(tmp_path / "output").open("w"),
    )
    try:
        with httpx.Client(
            base_url=f"{scheme}://127.0.0.1:{port}", verify=verify, http2=http2, timeout=20
        ) as client:
            deadline = time.monotonic() + 40
            while True:
                assert process.poll() is None, (tmp_path / "output").read_text()
                assert time.monotonic() < deadline
                try:
                    client.get("/healthz")
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            yield client
        process.send_signal(signal.SIGTERM)  # after the client: they wait for open connections
        process.wait(30)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture
def certificate(tmp_path):
    """A certificate for 127.0.0.1 and who trusts it."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    for i, blob in enumerate(issued.cert_chain_pems):
        blob.write_to_path(tmp_path / "cert.pem", append=bool(i))
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    return tmp_path / "cert.pem", tmp_path / "key.pem", trust


def ask(client):
    """Ask whole and streamed; return both answers and the protocol's version."""
    whole = client.post(CHAT, json=BODY)
    with client.stream("POST", CHAT, json=BODY | {"stream": True}) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    streamed = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks)
    return whole.json()["choices"][0]["message"]["content"], streamed, whole.http_version


def check_failure(client):
    """A stream that fails ends cut, so that no client takes it for whole."""
    with pytest.raises(httpx.RemoteProtocolError):
        with client.stream("POST", CHAT, json=BODY | {"model": "failing", "stream": True}) as r:
            list(r.iter_bytes())


def check_log(llm_user_path, count):
    with open_log(llm_user_path / "logs.db") as log:
        statuses = [one.status for one in log.entries()]
    assert len(statuses) == count
    assert statuses.count("error") == 1


def test_uvicorn_with_several_workers_on_one_log(tmp_path, llm_user_path):
    command = "uvicorn served:app --port PORT --workers 3".split()
    with serving(tmp_path, *command) as client:
        whole, streamed, _ = ask(client)
        assert whole == streamed != ""
        check_failure(client)

        def post(_):
            return httpx.post(f"{client.base_url}{CHAT}", json=BODY, timeout=30).status_code

        with ThreadPoolExecutor(12) as threads:
            assert list(threads.map(post, range(60))) == [200] * 60
    assert sorted(path.name for path in llm_user_path.glob("logs.db*")) == ["logs.db"]
    check_log(llm_user_path, 63)


@pytest.mark.parametrize(
    "command",
    [
        "hypercorn served:app --bind 127.0.0.1:PORT --certfile CERT --keyfile KEY",
        "granian served:app --interface asgi --host 127.0.0.1 --port PORT"
        " --ssl-certificate CERT --ssl-keyfile KEY",
    ],
    ids=["hypercorn", "granian"],
)
@pytest.mark.parametrize("http2", [False, True], ids=["http/1.1", "http/2"])
def test_other_servers_with_tls(command, http2, certificate, tmp_path, llm_user_path):
    cert, key, trust = certificate
    words = command.replace("CERT", str(cert)).replace("KEY", str(key)).split()
    with serving(tmp_path, *words, scheme="https", verify=trust, http2=http2) as client:
        whole, streamed, version = ask(client)
        assert whole == streamed != ""
        assert version == ("HTTP/2" if http2 else "HTTP/1.1")
        check_failure(client)
    check_log(llm_user_path, 3)
