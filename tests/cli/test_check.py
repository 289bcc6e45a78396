"""`check` says what would be used and whether it can work, and changes nothing."""

from __future__ import annotations

import os
import sqlite3

import pytest

from llmproxy.recorder.store import Store
from tests.commands import run_here
from tests.models import AsyncScript, registered


@pytest.fixture
def here(tmp_path, monkeypatch, llm_user_path):
    """Run in a folder of this test's own, with a function for `check`: code, lines."""
    monkeypatch.chdir(tmp_path)

    def check(*argv):
        code, out, err = run_here("check", *argv)
        assert err == ""
        return code, out.decode().splitlines()

    return check


def files(folder):
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_it_says_what_would_be_used_and_from_where(here, tmp_path, llm_user_path, monkeypatch):
    (tmp_path / "s.toml").write_text('keep = "2d"\nport = 1\n[map]\n"a*" = "demo"')
    monkeypatch.setenv("LLMPROXY_CONFIG", "s.toml")
    monkeypatch.setenv("LLMPROXY_API_KEY", "s3cret,other")
    monkeypatch.setenv("LLMPROXY_PROT", "1")
    before = files(tmp_path) | files(llm_user_path)
    code, lines = here("--port", "0", "--limit", "body=5")
    assert code == 0
    assert lines[:2] == ["config: s.toml", "port: 0 (--port)"]
    assert "map: a*=demo (s.toml: map)" in lines
    assert "keep: 2d (s.toml: keep)" in lines
    assert "api-key: 2 set (LLMPROXY_API_KEY)" in lines
    assert not any("default)" in line for line in lines)
    defaults = next(line for line in lines if "--defaults" in line)
    unknown = "LLMPROXY_PROT: there is no such setting; did you mean LLMPROXY_PORT?"
    assert f"warning: {unknown}" in lines
    assert "s3cret" not in str(lines)
    assert "ok: settings: they work together; 1 limit changed" in lines
    assert f"ok: log: {llm_user_path / 'logs.db'} will be made" in lines
    assert files(tmp_path) | files(llm_user_path) == before
    code, all_lines = here("--port", "0", "--limit", "body=5", "--defaults")
    shown = [line for line in all_lines if line.endswith(" (default)")]
    assert {"host: 127.0.0.1 (default)", "no-log: false (default)"} < set(shown)
    assert defaults == f"{len(shown)} more settings with the default (--defaults shows them)"


@pytest.mark.parametrize("text", ["90d", "1d12h", "1h1m1s", "6d23h"])
def test_an_age_is_shown_as_it_was_given(here, text):
    assert f"keep: {text} (--keep)" in here("--keep", text)[1]


def test_a_log_is_looked_at_and_left_as_it_is(here, tmp_path):
    Store(tmp_path / "a.db").close()
    (tmp_path / "a.db-llmproxy-x1.jsonl").write_text("{}\n")
    older = sqlite3.connect(tmp_path / "older.db")
    older.execute("create table x (y)")
    older.close()
    before = files(tmp_path)
    code, lines = here("--database", "a.db", "--replay", "replay-or-live")
    assert code == 0
    assert lines[-3].startswith("ok: recordings: 0 recordings in a.db")
    assert lines[-2].startswith("ok: log: a.db can be written, schema ")
    assert lines[-1] == "ok: spool: beside the log; 3 bytes wait to be written to the log"
    code, lines = here("--database", "older.db")
    assert (code, "brought from schema 0 to" in lines[-2]) == (0, True)
    assert files(tmp_path) == before


class NeedsKey(AsyncScript):
    needs_key = "nobody"
    key_env_var = "NOBODYS_KEY"


@pytest.mark.parametrize(
    "argv, line",
    [
        (["--host", "::"], "settings: :: can be reached by others"),
        (["--default-model", "nope"], "models: llm has no model 'nope'"),
        (["--map", "a=k"], "models: k: No key found - add one using 'llm keys set nobody'"),
        (["--replay"], "recordings: "),
        (["--recordings", "no.jsonl"], "recordings: no.jsonl: No such file or directory"),
        (
            ["--recordings", "empty.jsonl"],
            "recordings: there is nothing to replay: no recordings in empty.jsonl; record it",
        ),
        (["--database", "text.db"], "log: text.db: file is not a database"),
        (["--database", "no/x.db"], "log: {folder}/no is no folder"),
        (["--access-log", "no/x.log"], "access log: {folder}/no is no folder"),
        (["--prices", "empty.jsonl"], "prices: "),
        (["--prices", "nope.json"], "prices: nope.json: No such file or directory"),
    ],
)
def test_what_can_not_work_is_named(argv, line, here, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "text.db").write_text("no database, but long enough to be looked at. " * 9)
    before = files(tmp_path)
    with registered(NeedsKey("k", "x")):
        code, lines = here(*argv)
    failed = [text for text in lines if text.startswith("failed: ")]
    assert code == 1, lines
    assert failed[0].startswith(f"failed: {line.format(folder=tmp_path)}"), failed
    assert files(tmp_path) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_a_log_that_can_not_be_written_is_a_failure(here, tmp_path):
    Store(tmp_path / "a.db").close()
    (tmp_path / "a.db").chmod(0o400)
    assert "failed: log: a.db can't be written" in here("--database", "a.db")[1]


def test_wrong_settings_end_it_as_they_end_the_server(monkeypatch):
    monkeypatch.setenv("LLMPROXY_PORT", "x")
    code, out, err = run_here("check")
    assert (code, out) == (2, b"")
    assert err == "llmproxy check: LLMPROXY_PORT: a port is a number from 0 to 65535\n"


@pytest.mark.parametrize(
    ("variable", "found"),
    [
        ("https://user:secret@proxy.example", "ok: upstreams: openai at https://api.openai.com/v1"
         " by the proxy proxy.example:443 with the key client"),
        ("http://user:1/secret@proxy.example", "openai: the environment's proxy (HTTPS_PROXY or"),
    ],
)  # fmt: skip
def test_it_says_by_which_proxy_others_are_reached(variable, found, here, monkeypatch):
    monkeypatch.setenv("https_proxy", variable)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    code, lines = here("--upstream", "openai", "--otlp", "https://collector.example")
    (line,) = [line for line in lines if "upstreams: openai" in line]
    assert found in line and "secret" not in str(lines)
    assert code == (0 if line.startswith("ok") else 1)
    (line,) = [line for line in lines if "collector: " in line]
    assert ("https://collector.example by the proxy proxy.example:443, with 0" in line) == (
        not code
    )
    assert code == 0 or "collector: the environment's proxy (HTTPS_PROXY or ALL_PROXY): " in line
