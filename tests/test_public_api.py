"""What programs may rely on: the names of the package and how they are used."""

import asyncio
import dataclasses
import inspect
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints
from urllib.request import Request, urlopen

import pytest

import llmproxy
from llmproxy import Settings, SettingsError
from llmproxy.app.access import Access
from llmproxy.proxy import Options

ROOT = Path(__file__).parent.parent


def ask(url: str, text: str = "hi", key: str = "any") -> str:
    body = {"model": "demo", "messages": [{"role": "user", "content": text}]}
    request = Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"authorization": f"Bearer {key}"},
    )
    with urlopen(request, timeout=10) as response:
        return json.load(response)["choices"][0]["message"]["content"]


def test_every_public_name_is_there_and_has_a_docstring():
    assert llmproxy.__all__ == sorted(llmproxy.__all__)
    for name in llmproxy.__all__:
        assert inspect.getdoc(getattr(llmproxy, name)), name
        assert name in dir(llmproxy)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = llmproxy.nothing


def test_stable_names_are_declared():
    line = (
        "Only the names in `__all__` here, those of `llmproxy.convert`, and `app` and `App` in "
        "`llmproxy.asgi`, for ASGI servers, are stable."
    )
    assert line in " ".join(llmproxy.__doc__.split())


def test_dir_has_no_names_but_public_ones():
    names = [name for name in dir(llmproxy) if not name.startswith("__")]
    assert names == llmproxy.__all__
    assert "__version__" in dir(llmproxy)


def test_options_are_the_fields_of_settings():
    assert get_type_hints(Options) == get_type_hints(Settings)
    assert list(Options.__annotations__) == [f.name for f in dataclasses.fields(Settings)]


# ---- serve


def test_serve_takes_a_free_port_and_settings_as_keywords(tmp_path):
    async def main():
        async with llmproxy.serve(database=str(tmp_path / "logs.db")) as server:
            assert server.port != Settings().port
            assert server.url == f"http://127.0.0.1:{server.port}"
            return await asyncio.to_thread(ask, server.url)

    assert asyncio.run(main(), debug=True).startswith("You said: hi")
    assert (tmp_path / "logs.db").exists()


def test_keywords_replace_the_fields_of_settings():
    kept = Settings(port=1234, log=False, hosts=["a.example"])
    merged = llmproxy.serve(kept, port=0).settings
    assert merged == dataclasses.replace(kept, port=0)
    assert llmproxy.serve(kept).settings == kept


def test_an_unknown_keyword_is_a_type_error():
    with pytest.raises(TypeError, match="prot"):
        llmproxy.serve(prot=0)


def test_serve_forever_ends_when_the_proxy_is_closed():
    async def main():
        async with llmproxy.serve(log=False) as server:
            port = server.port
            serving = asyncio.create_task(server.serve_forever())
            waiting = asyncio.create_task(server.wait_closed())
            assert await asyncio.to_thread(ask, server.url)
            assert not serving.done() and not waiting.done()
            await server.close()
            await serving
            await waiting
            await server.close()  # again, which changes nothing
            return port

    port = asyncio.run(main(), debug=True)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_serve_forever_closes_the_proxy_when_it_is_cancelled():
    async def main():
        server = llmproxy.serve(log=False)
        with pytest.raises(RuntimeError, match="not running"):
            _ = server.url
        await server.start()
        port = server.port
        serving = asyncio.create_task(server.serve_forever())
        await asyncio.to_thread(ask, server.url)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        await server.wait_closed()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))

    asyncio.run(main(), debug=True)


def test_servers_of_one_program_have_their_own_settings_and_logs(tmp_path):
    async def main():
        async with (
            llmproxy.serve(database=tmp_path / "a.db", keys=["key-of-a"]) as a,
            llmproxy.serve(database=tmp_path / "b.db", keys=["key-of-b"]) as b,
        ):
            first = asyncio.to_thread(ask, a.url, "to a", "key-of-a")
            second = asyncio.to_thread(ask, b.url, "to b", "key-of-b")
            await asyncio.gather(first, second)
            with pytest.raises(OSError, match="401"):
                await asyncio.to_thread(ask, a.url, "to a", "key-of-b")

    asyncio.run(main(), debug=True)
    for name in ("a", "b"):
        with llmproxy.open_log(tmp_path / f"{name}.db") as log:
            entries = log.entries(llmproxy.Filter(status="ok"))
            assert [entry.first_words for entry in entries] == [f"to {name}"]


# ---- running


def test_running_takes_keywords_and_two_may_run_at_once(tmp_path):
    with llmproxy.running(port=0, database=tmp_path / "a.db") as a:
        with llmproxy.running(Settings(port=0, database=tmp_path / "b.db"), recall=False) as b:
            assert ask(a.url, "one").startswith("You said: one")
            assert ask(b.url, "two").startswith("You said: two")
            assert (a.settings.recall, b.settings.recall) == (True, False)
            assert a.port != b.port


def test_environment_is_read_when_settings_are_made(monkeypatch):
    monkeypatch.setenv("LLMPROXY_API_KEY", "one, two,")
    with llmproxy.running(log=False) as proxy:
        assert proxy.settings.keys == ("one", "two")
    monkeypatch.delenv("LLMPROXY_API_KEY")
    with llmproxy.running(log=False) as proxy:
        assert proxy.settings.keys == ()


# ---- run

RUN = """
import sys, llmproxy
llmproxy.run(port=0, log=False, on_start=lambda proxy: print(proxy.url, flush=True))
print("ended", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_serves_until_a_signal(number, monkeypatch):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "LLM_LOAD_PLUGINS": ""}
    with subprocess.Popen(
        [sys.executable, "-c", RUN], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        url = process.stdout.readline().strip()
        assert ask(url).startswith("You said: hi")
        process.send_signal(number)
        rest, _ = process.communicate(timeout=30)
    assert (rest, process.returncode) == ("ended\n", 0)


# ---- errors and warnings


def test_a_port_in_use_is_a_settings_error_and_an_os_error():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError) as caught:
            with llmproxy.running(port=port, log=False):
                pytest.fail("it started")
    assert isinstance(caught.value, OSError)
    assert caught.value.errno is not None
    assert str(caught.value).startswith(f"can't listen on 127.0.0.1, port {port}: ")


def test_errors_are_at_the_top():
    assert issubclass(llmproxy.InvalidRequest, llmproxy.ProxyError)
    assert issubclass(llmproxy.UpstreamError, llmproxy.ProxyError)
    assert issubclass(llmproxy.SettingsError, ValueError)
    error = llmproxy.InvalidRequest("expected a list", param="messages")
    assert (error.status, error.param, str(error)) == (400, "messages", "messages: expected a list")


def test_no_repr_shows_a_key():
    assert "s3cret" not in repr(Settings(keys=["s3cret"]))
    assert "s3cret" not in repr(Access(keys=["s3cret"]))


def test_warnings_go_to_the_logger_by_default(caplog):
    with caplog.at_level(logging.WARNING, "llmproxy"):
        Settings().warn("the log is full: 100%")
    assert caplog.record_tuples == [("llmproxy", logging.WARNING, "the log is full: 100%")]


# ---- open_log


def test_a_log_is_read_by_entries_exchanges_and_conversations(tmp_path):
    path = tmp_path / "logs.db"
    with llmproxy.running(database=path) as proxy:
        ask(proxy.url, "first")
        ask(proxy.url, "second")
        with llmproxy.open_log(str(path)) as log:
            assert [entry.first_words for entry in log.entries()] == ["first", "second"]
            (last,) = log.entries(last=1)
            assert log.entries(llmproxy.Filter(model="nothing")) == []
            exchange = log.exchange(last.id)
            assert exchange.turn.messages[-1].parts[0].text == "second"
            assert exchange.turn.reply[0].parts[0].text.startswith("You said: second")
            assert log.exchange(f"chatcmpl-{last.id}") == exchange
            conversations = log.conversations()
            assert [c.name for c in conversations] == ["first", "second"]
            assert log.conversations(last=1) == conversations[1:]
            with pytest.raises(llmproxy.ProxyError, match="no exchange") as caught:
                log.exchange("nothing")
            assert caught.value.status == 404
    log.close()  # again, which changes nothing


def test_without_a_path_llms_own_log_is_opened(llm_user_path):
    with llmproxy.running() as proxy:
        ask(proxy.url, "where is it?")
    with llmproxy.open_log() as log:
        assert [entry.first_words for entry in log.entries()] == ["where is it?"]


def test_a_log_that_is_not_there_is_an_error_of_the_log(tmp_path):
    with pytest.raises(llmproxy.StoreError):
        llmproxy.open_log(tmp_path / "nothing.db")
    assert not (tmp_path / "nothing.db").exists()


# ---- convert


def test_converters_are_at_the_top_and_take_named_apis():
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "seed": 1}
    apis = {"source": "openai_chat", "target": "anthropic_messages"}
    converted = llmproxy.convert_request(body, **apis)
    assert converted.body["messages"] == [{"role": "user", "content": "hi"}]
    assert converted.ignored == ("seed",)
    for name in ("convert_request", "convert_response", "convert_error", "StreamConverter"):
        assert getattr(llmproxy, name) is getattr(llmproxy.convert, name)
        parameters = inspect.signature(getattr(llmproxy, name)).parameters
        for api in apis:
            assert parameters[api].kind is inspect.Parameter.KEYWORD_ONLY
    with pytest.raises(TypeError):
        llmproxy.convert_request(body, "openai_chat", "anthropic_messages")
