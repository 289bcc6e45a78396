"""Commands in a real terminal (a pty), and in a pipe that is closed."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
from dataclasses import replace

import pytest

from llmproxy.cli.columns import display_width
from llmproxy.recorder.store import Store

WIDE = "日本語の長い質問です 👍 " * 9
COMMANDS = {
    "list": ["log"],
    "follow": ["log", "--follow"],
    "one": ["log", "last"],
    "bench": ["bench", "--models", "demo", "--dry-run"],
}
ENVIRONMENTS = {"colours": {}, "NO_COLOR": {"NO_COLOR": "1"}, "dumb": {"TERM": "dumb"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, empty_log):
    folder = tmp_path_factory.mktemp("terminal")
    shutil.copy(empty_log, folder / "logs.db")
    return folder


@pytest.fixture
def filled(folder, make_exchange):
    with Store(folder / "logs.db") as store:
        store.write([replace(make_exchange(WIDE), last_message=WIDE, client="aider-日本")])
    return folder


def environment(folder, **more):
    given = {
        name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")
    }
    own = {"LLM_USER_PATH": str(folder), "TERM": "xterm", "LLM_LOAD_PLUGINS": ""}
    return given | own | more


def run_on_pty(folder, columns, words, **more):
    """Run a command on a terminal of so many columns; one that follows gets Ctrl-C."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "llmproxy", *words],
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment(folder, **more),
    )  # fmt: skip
    os.close(theirs)
    output, is_told = b"", False
    try:
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # Linux: nobody has the other end any more
                break
            if not data:
                break
            output += data
            if "--follow" in words and b"\n" in output and not is_told:
                is_told = True
                process.send_signal(signal.SIGINT)
        code = process.wait(30)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    return code, output.decode()


@pytest.mark.slow
@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_no_line_is_wider_than_a_real_terminal(words, columns, filled):
    names = list(ENVIRONMENTS)
    name = names[(columns // 40 + list(COMMANDS.values()).index(words)) % len(names)]
    code, output = run_on_pty(filled, columns, words, **ENVIRONMENTS[name])
    assert code == (130 if "--follow" in words else 0), output
    assert ("\x1b[3" in output or "\x1b[1m" in output) <= (name == "colours")
    plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", output).replace("\r", "")
    # The request and the plan of a benchmark are to be copied: they are not broken.
    for line in plain.split("\n"):
        if words[0] == "log" and not line.startswith(("{", "warning")):
            assert display_width(line) <= columns, line
    assert "Traceback" not in output


@pytest.mark.slow
@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_pipe_that_is_closed_ends_a_command_quietly(words, filled):
    process = subprocess.Popen(
        [sys.executable, "-m", "llmproxy", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(filled),
    )  # fmt: skip
    process.stdout.close()
    try:
        error = process.stderr.read().decode()
        assert process.wait(30) in (0, 1, 141, -13), error
        assert "Traceback" not in error and "BrokenPipe" not in error
    finally:
        process.kill()
        process.wait()
