"""The proxy as an ASGI application: what differs from the command's server.

That it answers in the same way is tested by the flows (`pytest --server uvicorn tests/flows`).
"""

from __future__ import annotations

import asyncio
import html
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urldefrag, urljoin

import openai
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from llmproxy import asgi, open_log
from llmproxy.asgi import App, _BodyStream, _Sender
from llmproxy.core.errors import ProtocolError, SettingsError, Timeout
from llmproxy.core.limits import Limits
from llmproxy.transport.http11 import Headers, Request, Response
from tests.models import AsyncScript, registered, usage
from tests.under_uvicorn import under_uvicorn

BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
CHAT = "/v1/chat/completions"
HEAD = Request("POST", "/v1/files", Headers())


def ask(port, path=CHAT, body=BODY, headers=()):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST", path, json.dumps(body), dict(headers))
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def scope_of(path=CHAT, *, client="127.0.0.1", headers=(), **more):
    fields = {"host": "localhost", "content-type": "application/json"} | dict(headers)
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in fields.items()],
        "client": (client, 1),
    } | more


async def call(app, scope, *received):
    """Call an application; return what it sent. The client stays until it is answered."""
    messages = list(received) or [{"type": "http.request", "body": json.dumps(BODY).encode()}]
    sent = []

    async def receive():
        if messages:
            return messages.pop(0)
        await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    return sent


@contextmanager
def app_of(*models, **settings):
    with registered(*models):
        yield App(warn=pytest.fail, **settings)


def test_an_sdk_is_answered_and_the_log_is_whole_when_the_server_has_stopped(llm_user_path):
    with app_of(AsyncScript("m", "Hel", "lo", usage(3, 2))) as app, under_uvicorn(app) as port:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x")
        assert client.chat.completions.create(**BODY).choices[0].message.content == "Hello"
        pieces = client.chat.completions.create(**BODY, stream=True)
        assert "".join(one.choices[0].delta.content or "" for one in pieces) == "Hello"
    assert not (llm_user_path / "logs.db-wal").exists()
    with open_log(llm_user_path / "logs.db") as log:
        assert [one.status for one in log.entries()] == ["ok", "ok"]


def test_it_is_mounted_below_a_path_of_another_application(llm_user_path):
    async def home(request):
        return PlainTextResponse("home")

    with app_of(AsyncScript("m", "Hello")) as app:
        whole = Starlette(routes=[Route("/", home), Mount("/llm", app)], lifespan=app.lifespan)
        with under_uvicorn(whole) as port:
            client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/llm/v1", api_key="x")
            assert client.chat.completions.create(**BODY).choices[0].message.content == "Hello"
            assert ask(port, "/llm/nothing")[1]["error"]["message"].startswith(
                "/nothing is not supported;"
            )
            assert ask(port, f"/llm{CHAT}", headers={"host": "evil.example"})[0] == 403


def test_pages_below_a_path_link_to_each_other_there(llm_user_path):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello"}]
    with app_of(AsyncScript("m", "Hello")) as app:
        whole = Starlette(routes=[Mount("/llm", app)], lifespan=app.lifespan)
        with under_uvicorn(whole) as port:
            root = f"http://127.0.0.1:{port}/llm/"
            empty, _ = page_at(root)
            assert {f"{root}conversations", f"{root}figures"} <= empty
            for _ in range(2):
                ask(port, f"/llm{CHAT}")
            ask(port, f"/llm{CHAT}", BODY | {"messages": [*turns, turns[0]]})
            time.sleep(2)  # an answer may be written, and a page kept, for so long
            seen: dict[str, str] = {}
            found = [root, f"{root}v1/conversations/", f"{root}exchanges/nosuch"]
            while found:
                address = found.pop()
                if address not in seen:
                    links, seen[address] = page_at(address)
                    found += links
    assert all(address.startswith(root) for address in seen)
    for part in ("exchanges/0", "conversations/0", "?live=1", "?client=", "?model=m", "figures"):
        assert any(address.startswith(f"{root}{part}") for address in seen), part
    assert [address for address, text in seen.items() if ">Not found<" in text] == [
        f"{root}exchanges/nosuch"
    ]


def page_at(address):
    request = urllib.request.Request(address, headers={"accept": "text/html"})
    try:
        with urllib.request.urlopen(request) as response:
            text = response.read().decode()
    except urllib.error.HTTPError as error:
        text = error.read().decode()
    links = re.findall(r'(?:href|action)="([^"]*)"', text)
    return {urldefrag(urljoin(address, html.unescape(link)))[0] for link in links}, text


@pytest.mark.parametrize(
    "more, headers, url",
    [
        ({"scheme": "https"}, {}, "https://localhost"),
        ({}, {"x-forwarded-proto": "https"}, "https://localhost"),
        ({"root_path": "/llm", "path": "/llm/", "raw_path": b"/llm/"}, {}, "http://localhost/llm"),
    ],
)
async def test_the_page_shows_the_address_that_the_client_knows(more, headers, url, llm_user_path):
    """Behind TLS and below a path too."""
    with app_of() as app:
        scope = scope_of("/", headers=headers | {"accept": "text/html"}, method="GET") | more
        _, body = await call(app, scope)
        await app.close()
    assert f"OPENAI_BASE_URL={url}/v1" in body["body"].decode()


async def test_without_a_lifespan_the_first_requests_open_it_once(llm_user_path):
    with app_of(AsyncScript("m", "Hello")) as app:
        answers = await asyncio.gather(*(call(app, scope_of()) for _ in range(3)))
        assert [sent[0]["status"] for sent in answers] == [200] * 3
        await app.close()
    with open_log(llm_user_path / "logs.db") as log:
        assert len(list(log.entries())) == 3


async def test_a_proxy_that_cannot_start_says_why(llm_user_path):
    app = App(default_model="nosuch")
    sent = await call(app, {"type": "lifespan"}, {"type": "lifespan.startup"})
    assert sent == [
        {
            "type": "lifespan.startup.failed",
            "message": "llm has no model 'nosuch' (llm models lists them)",
        }
    ]
    with pytest.raises(SettingsError, match="port: expected"):
        App(port=-1)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_hang_up_stops_the_model(stream, llm_user_path):
    asked = asyncio.Event()
    hung_up = asyncio.Event()

    async def wait(response):
        asked.set()
        await asyncio.sleep(60)

    with app_of(model := AsyncScript("m", "Hel", wait)) as app:
        body = json.dumps(BODY | {"stream": stream}).encode()
        messages = [{"type": "http.request", "body": body}]

        async def receive():
            if messages:
                return messages.pop(0)
            await hung_up.wait()
            return {"type": "http.disconnect"}

        sent = []

        async def send(message):
            sent.append(message)

        call = asyncio.create_task(app(scope_of(), receive, send))
        await asyncio.wait_for(asked.wait(), 10)
        hung_up.set()
        await asyncio.wait_for(call, 10)
        await app.close()
    assert model.closed == 1
    assert [one["type"] for one in sent[:1]] == (["http.response.start"] if stream else [])
    with open_log(llm_user_path / "logs.db") as log:
        assert [one.status for one in log.entries()] == ["cancelled"]


async def test_a_client_that_leaves_in_its_body_is_no_error(llm_user_path):
    with app_of() as app:
        first = {"type": "http.request", "body": b"{", "more_body": True}
        assert await call(app, scope_of(), first, {"type": "http.disconnect"}) == []
        await app.close()


def test_a_stream_that_fails_is_cut_not_ended(llm_user_path):
    with app_of(AsyncScript("m", "Hel", RuntimeError("kaput"))) as app:
        with under_uvicorn(app) as port:
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
                connection.request("POST", CHAT, json.dumps(BODY | {"stream": True}))
                with pytest.raises(http.client.IncompleteRead) as caught:
                    connection.getresponse().read()
    assert b"kaput" in caught.value.partial


async def test_a_body_over_its_limit_is_refused_by_its_length_or_its_bytes(llm_user_path):
    with app_of(limits=Limits(body=100)) as app:
        told = await call(app, scope_of(headers={"content-length": "101"}), None)
        piece = {"type": "http.request", "body": b" " * 60, "more_body": True}
        counted = await call(app, scope_of(), piece, piece, None)
        await app.close()
    for start, body in (told, counted):
        assert start["status"] == 413
        message = json.loads(body["body"])["error"]["message"]
        assert message == "the body is larger than 100 bytes"


@pytest.mark.parametrize(
    ("settings", "client", "headers", "status"),
    [
        ({}, "127.0.0.1", {}, 200),
        ({}, "192.0.2.1", {}, 403),  # behind a server that listens for others too
        ({}, "127.0.0.1", {"host": "evil.example"}, 403),
        ({"hosts": ["llm.example"]}, "127.0.0.1", {"host": "llm.example"}, 200),
        ({"keys": ["sesame"]}, "192.0.2.1", {}, 401),
        ({"keys": ["sesame"]}, "192.0.2.1", {"authorization": "Bearer sesame"}, 200),
        ({"auth": False, "host": "0.0.0.0"}, "192.0.2.1", {"host": "any.example"}, 200),
    ],
)
async def test_who_is_let_in(settings, client, headers, status, llm_user_path):
    with app_of(AsyncScript("m", "Hello"), **settings) as app:
        sent = await call(app, scope_of(client=client, headers=headers))
        await app.close()
    assert sent[0]["status"] == status


async def test_a_websocket_is_refused_as_the_command_refuses_it(llm_user_path):
    upgrade = {"upgrade": "websocket", "connection": "Upgrade"}
    scope = scope_of("/v1/responses", headers=upgrade) | {"type": "websocket"}
    del scope["method"]
    with app_of() as app:
        closed = await call(app, scope, {"type": "websocket.connect"})
        scope["extensions"] = {"websocket.http.response": {}}
        start, body = await call(app, scope, {"type": "websocket.connect"})
        await app.close()
    assert closed == [{"type": "websocket.close"}]
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 426)
    assert "HTTP POST" in json.loads(body["body"])["error"]["message"]


async def test_http_2_gets_no_fields_about_the_connection(llm_user_path):
    upgrade = {"upgrade": "websocket"}
    scope = scope_of("/v1/responses", headers=upgrade, http_version="2", method="GET")
    with app_of() as app:
        start, _ = await call(app, scope)
        await app.close()
    assert start["status"] == 426
    assert not {b"connection", b"upgrade"} & dict(start["headers"]).keys()


async def test_a_target_keeps_its_bytes_and_its_query(llm_user_path):
    lines = []
    with app_of(AsyncScript("m", "Hello"), access_log=lines.append) as app:
        scope = scope_of("/v1/models/a%2Fb", query_string=b"x=%20y", method="GET")
        start, body = await call(app, scope)
        below = scope_of("/a b/v1/models", raw_path=None, root_path="/a b", method="GET")
        assert (await call(app, below))[0]["status"] == 200
        await app.close()
    assert start["status"] == 404
    assert "a/b" in json.loads(body["body"])["error"]["message"]
    assert ['"GET /v1/models/a%2Fb?x=%20y HTTP/1.1" 404' in lines[0], len(lines)] == [True, 2]


def test_two_processes_worth_of_apps_share_a_log(llm_user_path):
    with app_of(AsyncScript("m", "Hello")) as first:
        second = App(warn=pytest.fail)
        with under_uvicorn(first) as one, under_uvicorn(second) as other:
            threads = [
                threading.Thread(target=ask, args=[port]) for port in (one, other) for _ in range(5)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    with open_log(llm_user_path / "logs.db") as log:
        assert [one.status for one in log.entries()] == ["ok"] * 10


def test_app_has_the_settings_of_the_environment(tmp_path, monkeypatch, caplog):
    """They are read when a server asks for it, not when the module is imported."""
    monkeypatch.delitem(asgi.__dict__, "app", raising=False)
    monkeypatch.setenv("LLMPROXY_CONFIG", str(tmp_path / "s.toml"))
    with pytest.raises(SettingsError, match="^LLMPROXY_CONFIG: .*s.toml: No such file"):
        _ = asgi.app
    (tmp_path / "s.toml").write_text('database = "a.db"\nport = 1\naccess-log = "x.log"')
    monkeypatch.setenv("LLMPROXY_API_KEY", "one")
    monkeypatch.setenv("LLMPROXY_PROT", "1")
    app = asgi.app
    assert asgi.app is app
    assert (app._settings.database, app._settings.keys) == (tmp_path / "a.db", ["one"])
    assert not (tmp_path / "a.db").exists()
    assert [record.getMessage() for record in caplog.records] == [
        "LLMPROXY_PROT: there is no such setting; did you mean LLMPROXY_PORT?",
        f"{tmp_path / 's.toml'}: access-log is not used: the access log is the ASGI server's",
    ]
    monkeypatch.delitem(asgi.__dict__, "app")
    monkeypatch.delenv("LLMPROXY_API_KEY")
    monkeypatch.setenv("LLMPROXY_HOST", "0.0.0.0")
    with pytest.raises(SettingsError, match="give --api-key"):
        _ = asgi.app
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = asgi.nothing


@pytest.mark.slow
def test_workers_of_an_import_string_share_a_log(tmp_path, llm_user_path):
    """As in docs/deploy.md: `uvicorn llmproxy.asgi:app --workers 2`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "uvicorn", "llmproxy.asgi:app", "--workers", "2"]
    settings = {"LLMPROXY_DATABASE": str(tmp_path / "team.db"), "LLMPROXY_API_KEY": "k"}
    server = subprocess.Popen(
        [*words, "--port", str(port), "--log-level", "warning"],
        env=os.environ | settings,
        cwd=Path(__file__).parents[1],
    )
    try:
        body = {"model": "demo", "messages": BODY["messages"]}
        deadline = time.monotonic() + 40
        while True:
            try:
                first = ask(port, body=body)
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
        assert first[0] == 401
        for _ in range(8):  # each on a connection of its own
            assert ask(port, body=body, headers={"authorization": "Bearer k"})[0] == 200
    finally:
        server.terminate()
        server.wait(40)
    with open_log(tmp_path / "team.db") as log:
        assert [one.status for one in log.entries()] == ["ok"] * 8


# ---- requests that are streamed, and relayed responses


def receiving(*messages):
    left = [{"type": "http.request", "body": data, "more_body": True} for data in messages[:-1]]
    last = messages[-1]
    if last is None:
        left.append({"type": "http.disconnect"})
    else:
        left.append({"type": "http.request", "body": last})

    async def receive():
        return left.pop(0) if left else {"type": "http.disconnect"}

    return receive


async def test_a_streamed_body_comes_in_pieces_and_the_hang_up_after_it():
    stream = _BodyStream(receiving(b"", b"one", b"", b"two"), 5)
    request = await stream.begin(HEAD)
    assert request.body_stream is stream
    watching = asyncio.create_task(stream.receive_after())
    assert [piece async for piece in stream] == [b"one", b"two"]
    assert await watching == {"type": "http.disconnect"}


async def test_a_body_that_comes_at_once_is_not_streamed():
    request = await _BodyStream(receiving(b"one"), 5).begin(HEAD)
    assert (request.body, request.body_stream) == (b"one", None)


async def test_a_streamed_body_that_is_cut_or_late_is_the_clients_error():
    request = await _BodyStream(receiving(b"one", None), 5).begin(HEAD)
    with pytest.raises(ProtocolError, match="the client left before its body was whole"):
        [piece async for piece in request.body_stream]
    with pytest.raises(Timeout, match="the body came too slowly for 0.01 s"):
        await _BodyStream(asyncio.Event().wait, 0.01).begin(HEAD)


@pytest.mark.parametrize(("method", "length"), [("POST", b"2"), ("HEAD", b"99")])
async def test_a_relayed_response_keeps_its_fields_in_lower_case(method, length):
    sent = []

    async def send(message):
        sent.append(message)

    fields = [("X-Id", "1"), ("Connection", "close"), ("Content-Length", "99")]
    request = replace(HEAD, method=method)
    body = b"" if method == "HEAD" else b"hi"
    await _Sender(send, "http.response", request).send_response(
        Response(200, fields, body, is_relayed=True)
    )
    assert sent[0]["headers"] == [(b"x-id", b"1"), (b"content-length", length)]
