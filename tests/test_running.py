"""A proxy in a thread of its own, for scripts and test suites."""

import json
import socket
import threading
from urllib.request import urlopen

import pytest

import llmproxy
from llmproxy import Settings, SettingsError


def test_proxy_serves_while_the_block_lasts():
    with llmproxy.running(Settings(port=0, log=False)) as proxy:
        with urlopen(f"{proxy.url}/v1/models") as answer:
            assert "demo" in {model["id"] for model in json.load(answer)["data"]}
        host, port = proxy.addresses[0]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, port))
    assert "llmproxy" not in {thread.name for thread in threading.enumerate()}


def test_a_failed_start_is_raised():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"can't listen on 127.0.0.1, port {port}"):
            with llmproxy.running(Settings(port=port, log=False)):
                pytest.fail("it started")


def test_an_error_in_the_block_is_passed_on():
    with pytest.raises(ZeroDivisionError):
        with llmproxy.running(Settings(port=0, log=False)):
            raise ZeroDivisionError


def test_an_error_while_closing_is_raised(monkeypatch):
    async def closed_badly(proxy):
        await close(proxy)
        raise RuntimeError("it closed badly")

    close = llmproxy.Proxy.close
    monkeypatch.setattr(llmproxy.Proxy, "close", closed_badly)
    with pytest.raises(RuntimeError, match="it closed badly"):
        with llmproxy.running(Settings(port=0, log=False)):
            pass


@pytest.mark.parametrize("make", [llmproxy.Proxy, llmproxy.serve])
def test_settings_of_another_type_are_refused(make):
    with pytest.raises(llmproxy.SettingsError, match="^settings: expected Settings, not dict$"):
        make({"port": 0})
