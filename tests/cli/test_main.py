"""The command as a person runs it: a process, its words, its signals, its exit code."""

import json
import os
import queue
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from importlib import metadata
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

from llmproxy import Settings
from llmproxy.cli import serve
from llmproxy.core.limits import describe
from tests.commands import run_here

COMMAND = [sys.executable, "-m", "llmproxy"]


def run(*words: str, command: list[str] = COMMAND) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command, *words], capture_output=True, text=True, timeout=30)


@contextmanager
def serving(*words: str):
    """Run the command on a free port; give the process, its URL, and its lines as they come."""
    process = subprocess.Popen(
        [*COMMAND, "--port", "0", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines: queue.Queue[str] = queue.Queue()
    reader = threading.Thread(target=lambda: [lines.put(line) for line in process.stdout])
    reader.start()
    try:
        first = lines.get(timeout=30)
        yield process, re.search(r"http://\S+", first)[0], lines
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()
        process.stderr.close()


def chat(url: str, stream: bool = False, model: str = "demo", **fields):
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    request = Request(f"{url}/v1/chat/completions", json.dumps(body | fields).encode())
    return urlopen(request, timeout=20)


def test_version_and_help():
    assert re.fullmatch(r"llmproxy \d+\.\d+\.\d+\n", run("--version").stdout)
    assert "--help-limits" in run_here("--help")[1].decode()
    assert run_here("--help-limits")[1].decode().splitlines() == describe()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--map", "a=nope"], "llm has no model 'nope' (llm models lists them)"),
        (["--map", "nope"], "argument --map: expected PATTERN=TARGET, not 'nope'"),
        (["--default-model", "nope"], "llm has no model 'nope' (llm models lists them)"),
        (["--port", "70000"], "argument --port: a port is a number from 0 to 65535"),
        (["--port", "x"], "argument --port: a port is a number from 0 to 65535"),
        (["--limit", "body=x"], "limit body takes a number above 0, not 'x'"),
        (["--limit", "nope=1"], "unknown limit 'nope'; limits are: body, "),
        (["--no-log", "--database", "x"], "--no-log and --database exclude each other"),
        (["--host", "0.0.0.0"], "0.0.0.0 can be reached by others"),
        (["--allow-origin", "foo"], "an origin is scheme://host[:port], not 'foo'"),
        (["--api-key", ""], "an API key can't be empty"),
        (["--qiet"], "unrecognized arguments: --qiet"),
        (["lgo"], "there is no command 'lgo': did you mean log? (the commands are log, export, "),
        (["serve"], "there is no command 'serve': without one, it serves (the commands are log, "),
        (["--port", "0", "log"], "the command 'log' must come first, before all flags"),
        (["--quiet", "extra"], "unrecognized arguments: extra"),
        (
            ["--passthrough", "anthropic", "--passthrough", "openai"],
            "argument --passthrough: it takes one value, not two; a --map sends models to",
        ),
        (
            ["--upstream-ca", "a.pem", "--upstream-ca=b.pem"],
            "argument --upstream-ca: it takes one value, not two; one file can have",
        ),
        (["--otlp", "http://a", "--otlp", "http://b"], "argument --otlp: it takes one value, not"),
        (["--access-log", "-", "--access-log", "x"], "argument --access-log: it takes one value"),
        (["--config", "a.toml", "--config", "b.toml"], "argument --config: it takes one value, "),
        (["check", "--config", "a.toml", "--config", "b.toml"], "argument --config: it takes one"),
        (["--database", ""], "argument --database: it is empty"),
        (["--database", "/"], "argument --database: / is a folder, not a file"),
    ],
)
def test_words_that_make_no_sense_are_one_clear_line(words, error):
    code, out, err = run_here(*words)
    assert (code, out) == (2, b"")
    last = err.splitlines()[0]
    assert last.startswith(("llmproxy: ", "llmproxy: error: ", "llmproxy check: error: "))
    assert error in last


def test_the_same_value_twice_and_a_later_one_that_overrides_are_taken():
    words = ["--passthrough", "openai", "--upstream", "openai", "--passthrough=openai"]
    code, out, err = run_here("check", *words, "--port", "1", "--port", "0")
    assert (code, err) == (0, "")
    assert b"passthrough: openai" in out and b"port: 0" in out


def test_port_in_use_is_one_clear_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run("--port", str(port))
    assert result.returncode == 2
    assert result.stderr == (
        f"llmproxy: can't listen on 127.0.0.1, port {port}: Address already in use"
        "; perhaps llmproxy runs there already (--port 0 takes a free one)\n"
    )


@pytest.mark.parametrize(
    "host, stays",
    [
        ("127.0.0.1:1234", False),
        ("http://localhost:1234", False),
        ("http://[::1]:1234/", False),
        ("http://127.0.0.1:11434", True),
        ("gpu.lan:1234", True),
        ("127.0.0.1", True),
        ("http://[:1234", True),
        ("a:b", True),
        ("", True),
    ],
)
def test_llm_ollama_is_not_pointed_at_this_server_itself(host, stays, monkeypatch):
    monkeypatch.setenv("OLLAMA_HOST", host)
    said = []
    serve._leave_out_own_address(Settings(port=1234), said.append)
    assert (os.environ.get("OLLAMA_HOST") == host, said == []) == (stays, stays)


def test_start_prints_the_address_and_a_line_per_exchange(llm_user_path):
    with serving() as (process, url, lines):
        assert lines.get(timeout=5) == f"log: {llm_user_path / 'logs.db'} (new)\n"
        assert re.match(
            r"models: \d+ \(llm models lists them\); the model demo needs no key$",
            lines.get(timeout=5),
        )
        paste = f"for a client: OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY=any\n"
        assert lines.get(timeout=5) == paste
        assert lines.get(timeout=5) == f"or: ANTHROPIC_BASE_URL={url} ANTHROPIC_API_KEY=any\n"
        assert lines.get(timeout=5) == f"or: OLLAMA_HOST={url}\n"
        chat(url).read()
        line = lines.get(timeout=5)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    pattern = (
        r"\w{26}  \S+ \S+  Python-urllib  openai_chat  demo  ok  total \S+s  first \S+s"
        r"  1→\d+ tokens  (\S+/s  )?hi  You said: hi .*\n"
    )
    assert re.fullmatch(pattern, line)
    assert [lines.get(timeout=5) for _ in range(2)] == ["stopping\n", "stopped\n"]
    with sqlite3.connect(llm_user_path / "logs.db") as db:
        assert db.execute("select model from turns").fetchall() == [("demo",)]


def test_quiet_prints_no_exchanges():
    with serving("--quiet", "--no-log") as (process, url, lines):
        assert lines.get(timeout=5) == "log: off (--no-log)\n"
        [lines.get(timeout=5) for _ in range(4)]
        chat(url).read()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert lines.get(timeout=5) == "stopping\n"


@pytest.mark.parametrize("flags", [[], ["--replay"]])
def test_a_file_that_is_no_database_is_refused_at_the_start(flags, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("Buy milk. " * 100)
    code, out, err = run_here("--port", "0", "--database", str(path), *flags)
    what = "there is nothing to replay" if flags else "the log can't be used"
    assert (code, out) == (2, b"")
    assert err == f"llmproxy: {what}: {path}: file is not a database\n"
    assert [*tmp_path.iterdir()] == [path]


def test_log_that_cannot_be_written_is_a_warning_and_it_serves(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with serving("--database", str(tmp_path / "file" / "logs.db")) as (process, url, _):
        assert json.load(chat(url))["model"] == "demo"
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0
        assert process.stderr.read().count("warning: ") >= 1


def test_a_running_response_may_finish_after_a_signal(tmp_path, llm_user_path, monkeypatch):
    """The log has it too: it is flushed after the last answer."""
    plugin = tmp_path / "slow_plugin.py"
    plugin.write_text(
        "import llm, os, time\n"
        "class Slow(llm.Model):\n"
        "    model_id = 'slow'\n"
        "    can_stream = True\n"
        "    def execute(self, *a, **k):\n"
        "        yield 'one '\n"
        f"        while not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)\n"
        "        yield 'two'\n"
        "@llm.hookimpl\n"
        "def register_models(register): register(Slow())\n"
    )
    info = tmp_path / "slow_plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slow-plugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[llm]\nslow = slow_plugin\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.getcwd()]))
    monkeypatch.setenv("LLM_LOAD_PLUGINS", "slow-plugin")
    with serving() as (process, url, lines):
        response = chat(url, stream=True, model="slow")
        while b"one " not in response.readline():
            pass
        process.send_signal(signal.SIGTERM)
        while not lines.get(timeout=10).startswith("stopping"):
            pass
        (tmp_path / "go").touch()
        assert response.read().endswith(b"data: [DONE]\n\n")
        assert process.wait(20) == 0
    with sqlite3.connect(llm_user_path / "logs.db") as db:
        sql = "select text from turns join parts on message_hash = tip_message_hash"
        assert db.execute(sql).fetchall() == [("one two",)]


@pytest.mark.skipif(
    not any(metadata.distributions(name="llm-proxy-recorder")),
    reason="not installed, so llm does not know our entry point",
)
def test_the_same_command_is_an_llm_plugin(monkeypatch):
    monkeypatch.setenv("LLM_LOAD_PLUGINS", "llm-proxy-recorder")
    result = run("proxy", "--version", command=[sys.executable, "-m", "llm"])
    assert result.stdout.startswith("llmproxy ")
    assert "proxy" in run("--help", command=[sys.executable, "-m", "llm"]).stdout
    shown = run("-m", "demo", "hi there", command=[sys.executable, "-m", "llm"])
    assert shown.stdout.startswith("You said: hi there")


@pytest.mark.parametrize("stdout", ["/dev/full", "closed"])
def test_a_server_without_standard_output_serves(stdout, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    target = ">&-" if stdout == "closed" else f"> {stdout}"
    command = f"exec {sys.executable} -m llmproxy --port {port} {target}"
    process = subprocess.Popen(["bash", "-c", command], stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 30
        while True:
            try:
                chat(f"http://127.0.0.1:{port}").read()
                break
            except URLError:
                assert time.monotonic() < until
                time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        warning = (
            "warning: standard output: No space left on device;"
            " its lines are lost until it can be written\n"
        )
        assert process.stderr.read() == ("" if stdout == "closed" else warning)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
