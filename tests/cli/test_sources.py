"""Settings come from flags, variables and a file, the same ones in each."""

from __future__ import annotations

import argparse
import json
from datetime import timedelta
from pathlib import Path

import pytest

from llmproxy.cli import serve, sources
from llmproxy.core.errors import SettingsError
from llmproxy.recorder.store import Store
from tests.commands import run_here

PARSER = serve._parser("llmproxy")
SETTINGS = sources.settings_of(PARSER)
# A value of each setting that is no switch, as a word.
WORDS = {
    "host": "::1",
    "port": "80",
    "map": "a*=demo",
    "default-model": "demo",
    "parallel": "a*=2",
    "database": "/x.db",
    "keep": "1d12h",
    "replay": "replay-or-live",
    "replay-speed": "2",
    "recordings": "/r,1.jsonl",
    "ignore": r"\d{1,3}",
    "remote-images": "refuse",
    "api-key": "s3cret",
    "allow-host": "a.example",
    "allow-origin": "https://a.example",
    "limit": "body=5",
    "upstream": "local=ollama+http://127.0.0.1:1",
    "passthrough": "anthropic",
    "upstream-key": "anthropic=env:A",
    "upstream-ca": "/ca.pem",
    "upstream-wait": "2",
    "otlp": "http://127.0.0.1:1",
    "access-log": "/x.log",
}


def given(*argv, variables=None):
    flags, unknown = sources.parse_flags(PARSER, argv)
    assert unknown == []
    return sources.complete(PARSER, flags, variables or {})


@pytest.fixture
def config(tmp_path):
    """Give a function that writes a file of settings, and returns the flag for it."""

    def write(text):
        path = tmp_path / "settings.toml"
        path.write_text(text, "utf-8")
        return "--config", str(path)

    return write


def error(*argv, variables=None):
    with pytest.raises(SettingsError) as caught:
        given(*argv, variables=variables)
    return str(caught.value)


@pytest.mark.parametrize("key", SETTINGS)
def test_each_flag_is_a_variable_and_a_key_with_the_same_value(key, config):
    """Also a flag that is added later: a value for it is all that this test needs."""
    action = SETTINGS[key]
    if action.nargs == 0:
        flag, variable, line = [f"--{key}"], "1", "true"
    else:
        word = WORDS.get(key) or pytest.fail(f"WORDS needs a value of {key}")
        flag, variable, line = [f"--{key}={word}"], word, json.dumps(word)
    name = sources.variable_of(key)
    by_flag = given(*flag)
    by_variable = given(variables={name: variable})
    by_file = given(*config(f"{key} = {line}"))
    dest = action.dest
    assert by_flag.values[dest] == by_variable.values[dest] == by_file.values[dest]
    assert by_flag.values[dest] != given().values[dest] == action.default
    assert by_flag.sources == {dest: f"--{key}"}
    assert by_variable.sources == {dest: name}
    assert by_file.sources == {dest: f"{by_file.config}: {key}"}


def test_the_flag_wins_then_the_variable_then_the_file(config):
    """A list is replaced, not added to."""
    file = config('port = 1\nhost = "a"\nkeep = "1d"\napi-key = ["file"]\nno-log = true')
    outside = {
        "LLMPROXY_PORT": "2",
        "LLMPROXY_HOST": "b",
        "LLMPROXY_API_KEY": "one, two,",
        "LLMPROXY_NO_LOG": "off",
    }
    found = given(*file, "--port", "3", variables=outside).values
    assert (found["port"], found["host"], found["keep"]) == (3, "b", timedelta(1))
    assert (found["keys"], found["log"]) == (["one", "two"], True)
    assert given("--api-key", "flag", variables=outside).values["keys"] == ["flag"]
    assert (
        given("--port", "3", variables={"LLMPROXY_PORT": "tcp://10.0.0.1:80"}).values["port"] == 3
    )
    assert given(variables={"LLMPROXY_PORT": ""}).values["port"] == 11435


def test_the_file_may_be_named_by_a_variable(config, tmp_path):
    _, path = config("port = 1")
    (tmp_path / "other.toml").write_text("port = 2")
    assert given(variables={"LLMPROXY_CONFIG": path}).values["port"] == 1
    other = given("--config", str(tmp_path / "other.toml"), variables={"LLMPROXY_CONFIG": path})
    assert other.values["port"] == 2


def test_lists(config):
    lines = {"LLMPROXY_MAP": "a,b*=demo\nc=demo\n", "LLMPROXY_IGNORE": "a,b\nc"}
    found = given(variables=lines).values
    assert found["maps"] == [("a,b*", "demo"), ("c", "demo")]
    assert found["ignore"] == ["a,b", "c"]
    table = config('[map]\n"gpt-*" = "demo"\nb = "c"\n[limit]\nbody = 5\nstall_s = 2.5')
    found = given(*table).values
    assert found["maps"] == [("gpt-*", "demo"), ("b", "c")]
    assert found["limits"] == ["body=5", "stall_s=2.5"]
    assert given(*config('map = ["x=y"]')).values["maps"] == [("x", "y")]


def test_paths_of_the_file_are_relative_to_it(config, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    file = config('database = "a.db"\nrecordings = ["b", "/c", "~/d"]\naccess-log = "-"')
    found = given(*file).values
    assert found["database"] == tmp_path / "a.db"
    assert found["recordings"] == [str(tmp_path / "b"), "/c", "/home/me/d"]
    assert found["access_log"] == "-"
    assert given(variables={"LLMPROXY_DATABASE": "a.db"}).values["database"] == Path("a.db")


@pytest.mark.parametrize(
    "name, value, text",
    [
        ("LLMPROXY_PORT", "http", "a port is a number from 0 to 65535"),
        ("LLMPROXY_NO_LOG", "maybe", "expected true or false"),
        ("LLMPROXY_KEEP", "soon", "expected an age like 90d or 1d12h, not 'soon'"),
        ("LLMPROXY_REPLAY", "live", "expected replay or replay-or-live, not 'live'"),
        ("LLMPROXY_MAP", "x", "expected PATTERN=TARGET, not 'x'"),
        ("LLMPROXY_CONFIG", "/nowhere.toml", "/nowhere.toml: No such file or directory"),
    ],
)
def test_a_wrong_variable_is_named(name, value, text):
    assert error(variables={name: value}) == f"{name}: {text}"


@pytest.mark.parametrize(
    "line, text",
    [
        ("port = true", "port: expected a string or a number, not true or false"),
        ("port = [1]", "port: expected a string or a number, not an array"),
        ("keep = 2026-01-01", "keep: expected a string or a number, not a date"),
        ("port = -1", "port: a port is a number from 0 to 65535"),
        ("[host]\na = 1", "host: expected a string or a number, not a table"),
        ("allow-host = [['a']]", "allow-host: expected a string or a number, not an array"),
        ("prot = 1", "prot: there is no such setting; did you mean port?"),
        ("replay_speed = 1", "replay_speed: there is no such setting; did you mean replay-speed?"),
        ("config = 'x'", "config: there is no such setting"),
        ("port = ", "it is not TOML: Invalid value (at end of document)"),
    ],
)
def test_a_wrong_line_of_the_file_is_named(line, text, config):
    flag, path = config(line)
    shown = error(flag, path)
    assert shown.removeprefix(f"{flag}: ") == f"{path}: {text}"


def test_an_error_of_the_settings_names_where_the_value_stands(config, monkeypatch):
    """They are checked later, and together."""
    monkeypatch.setenv("LLMPROXY_HOST", "0.0.0.0")
    monkeypatch.setenv("LLMPROXY_NO_AUTH", "1")
    flag, path = config("api-key = ['x']")
    code, _, err = run_here(flag, path)
    assert (code, err) == (
        2,
        f"llmproxy: LLMPROXY_NO_AUTH and {path}: api-key exclude each other\n",
    )
    monkeypatch.setenv("LLMPROXY_LIMIT", "bodies=1")
    assert "llmproxy: LLMPROXY_LIMIT: unknown limit 'bodies'" in run_here(flag, path)[2]


def test_an_unknown_variable_is_a_warning():
    """Clusters set some for every service."""
    found = given(variables={"LLMPROXY_PROT": "1", "LLMPROXY_DATABASE": "x.db", "LLM_X": "1"})
    text = "LLMPROXY_PROT: there is no such setting; did you mean LLMPROXY_PORT?"
    assert found.warnings == [text]


def test_no_message_quotes_a_key():
    parser = argparse.ArgumentParser()
    parser.add_argument("--some-key", metavar="NAME=KEY", action="append", type=int)
    parser.add_argument("--config")
    flags, _ = sources.parse_flags(parser, [])
    with pytest.raises(SettingsError, match="^LLMPROXY_SOME_KEY: expected NAME=KEY$"):
        sources.complete(parser, flags, {"LLMPROXY_SOME_KEY": "a=s3cret"})


def test_every_command_takes_the_log_of_the_variable_or_the_file(
    config, tmp_path, monkeypatch, llm_user_path
):
    Store(tmp_path / "a.db").close()
    _, path = config('database = "a.db"\nkeep = "1s"')
    nothing = "llmproxy log: " + str(llm_user_path / "logs.db")
    assert run_here("log")[2].startswith(nothing)
    monkeypatch.setenv("LLMPROXY_CONFIG", path)
    assert run_here("log")[::2] == (0, "nothing is recorded yet\n")
    monkeypatch.setenv("LLMPROXY_DATABASE", str(tmp_path / "b.db"))
    assert "b.db" in run_here("log")[2]
    assert run_here("log", "--database", str(tmp_path / "a.db"))[0] == 0
    monkeypatch.setenv("LLMPROXY_DATABASE", str(tmp_path))
    code, _, err = run_here("log")
    assert (code, err) == (
        2,
        f"llmproxy log: LLMPROXY_DATABASE: {tmp_path} is a folder, not a file\n",
    )
