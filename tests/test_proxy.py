"""A proxy starts from its settings, or refuses them with one clear line."""

import asyncio
import json
from urllib.request import Request, urlopen

import pytest

import llmproxy
from llmproxy import Limits, Proxy, Settings, SettingsError


def serve(use, **settings):
    async def main():
        async with Proxy(Settings(port=0, **settings)) as proxy:
            return await use(proxy)

    return asyncio.run(main(), debug=True)


def test_a_program_can_serve_and_send_itself_a_request(tmp_path):
    def ask(url):
        messages = [{"role": "user", "content": "hi"}]
        body = json.dumps({"model": "demo", "messages": messages}).encode()
        with urlopen(Request(f"{url}/v1/chat/completions", body), timeout=10) as answer:
            return json.load(answer)["model"]

    async def use(proxy):
        assert proxy.url == f"http://127.0.0.1:{proxy.addresses[0][1]}"
        return await asyncio.to_thread(ask, proxy.url)

    database = tmp_path / "deep" / "logs.db"
    assert serve(use, database=database) == "demo"
    assert database.stat().st_mode & 0o777 == 0o600


def test_localhost_may_be_two_addresses_on_one_port():
    async def use(proxy):
        return {port for _, port in proxy.addresses}

    assert len(serve(use, host="localhost", log=False)) == 1


def test_the_url_of_a_server_on_every_address_works_on_this_machine():
    async def use(proxy):
        return proxy.url

    url = serve(use, host="0.0.0.0", keys=["k"], log=False)
    assert url.startswith("http://127.0.0.1:")


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"host": "0.0.0.0"}, "0.0.0.0 can be reached by others"),
        ({"host": ""}, "every address can be reached by others"),
        ({"maps": [("a", "nobody")]}, "llm has no model 'nobody'"),
        ({"default_model": "nobody"}, "llm has no model 'nobody'"),
        ({"host": "no.such.host.invalid", "keys": ["k"]}, "can't listen on no.such.host.invalid"),
    ],
)
def test_settings_that_can_not_work_are_refused(settings, error):
    async def use(proxy):
        raise AssertionError("it started")

    with pytest.raises(SettingsError) as caught:
        serve(use, **settings)
    assert error in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"keys": "s3cret"}, "keys: expected Sequence[str], not str"),  # each letter a key
        ({"keys": ["s3cret", None]}, "keys[1]: expected str, not NoneType"),
        ({"keys": ["good", " "]}, "keys: an API key can't be empty"),
        ({"hosts": "here"}, "hosts: expected Sequence[str], not 'here'"),
        ({"origins": "https://a.example"}, "origins: expected Sequence[str], not 'https://a.exam"),
        ({"origins": ["a.example"]}, "origins: an origin is scheme://host[:port], not 'a.example'"),
        ({"replay": "yes"}, "replay: expected 'replay' or 'replay-or-live' or None, not 'yes'"),
        ({"replay": True}, "replay: expected 'replay' or 'replay-or-live' or None, not True"),
        ({"replay_speed": float("nan")}, "replay_speed: expected float, not nan"),
        ({"replay_speed": -1}, "replay_speed: expected a factor, or 0 for no delay, not -1"),
        ({"remote_images": "open"}, "remote_images: expected 'pass' or 'refuse', not 'open'"),
        ({"limits": {"body": 1}}, "limits: expected Limits, not {'body': 1}"),
        ({"maps": {"a": "b"}}, "maps: expected Sequence[tuple[str, str]], not {'a': 'b'}"),
        ({"maps": [("a",)]}, "maps[0]: expected tuple[str, str], not ('a',)"),
        (
            {"parallel": [("a", True)]},
            "parallel[0]: expected tuple[str, int], not",
        ),
        ({"parallel": [("a", 0)]}, "parallel: expected (pattern, count) pairs, the count above 0"),
        ({"database": 3}, "database: expected Path or str or None, not 3"),
        ({"port": "1"}, "port: expected int, not '1'"),
        ({"port": 65536}, "port: expected a number from 0 to 65535, not 65536"),
        ({"log": "no"}, "log: expected bool, not 'no'"),
        ({"warn": "x" * 1000}, f"warn: expected Callable[[str], None], not '{'x' * 79}…"),
    ],
)
def test_a_wrong_field_is_named_when_the_settings_are_made(settings, error):
    with pytest.raises(SettingsError) as caught:
        Settings(**settings)
    assert str(caught.value).startswith(error)
    assert "s3cret" not in str(caught.value)


def test_settings_may_come_from_json():
    assert Settings(maps=[["a", "b"]], database="x.db", replay_speed=2).maps == [["a", "b"]]


def test_keys_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("LLMPROXY_API_KEY", "one, two,")
    assert Settings().keys == ("one", "two")


def test_public_names_are_there_and_no_others():
    assert set(llmproxy.__all__) >= {"Limits", "Proxy", "Settings", "SettingsError"}
    for name in llmproxy.__all__:
        assert getattr(llmproxy, name) is not None
    assert Limits().body == 64 * 2**20
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = llmproxy.nothing
