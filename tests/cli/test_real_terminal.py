"""Commands in a real terminal (a pty), and in a pipe that is closed."""

from __future__ import annotations

import fcntl
import json
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
    own = {"LLM_USER_PATH": str(folder), "TERM": "xterm", "LLM_LOAD_PLUGINS": ""}
    return os.environ | own | more


# Commands one after the other: a process of its own would cost each half a second of CPU.
SCRIPT = """
import json, sys
from llmproxy.cli.main import main
for words in json.loads(sys.argv[1]):
    code = main(words)
    print(f"{words} ended with {code}", flush=True)
"""


def run_on_pty(folder, columns, commands, **more):
    """Run commands on a terminal of so many columns; the last one gets Ctrl-C."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(commands)],
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment(folder, **more),
    )  # fmt: skip
    os.close(theirs)
    output, is_told = b"", False
    before = f"{commands[-2]} ended".encode()
    try:
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # Linux: nobody has the other end any more
                break
            if not data:
                break
            output += data
            if not is_told and before in output and output.split(before)[1].count(b"\n") > 1:
                is_told = True
                process.send_signal(signal.SIGINT)
        process.wait(30)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    return output.decode()


@pytest.mark.slow
@pytest.mark.parametrize("columns, name", [*zip([40, 80, 200], ENVIRONMENTS, strict=True)])
def test_no_line_is_wider_than_a_real_terminal(columns, name, filled):
    commands = [words for words in COMMANDS.values() if "--follow" not in words]
    commands.append(COMMANDS["follow"])
    output = run_on_pty(filled, columns, commands, **ENVIRONMENTS[name])
    assert "Traceback" not in output
    plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", output).replace("\r", "")
    begin = 0
    for words in commands:
        code = 130 if "--follow" in words else 0
        ending = f"{words} ended with {code}\n"
        assert ending in plain, output
        lines = plain[begin : plain.index(ending)].split("\n")
        begin = plain.index(ending) + len(ending)
        assert len(lines) > 1, words
        # The request and the plan of a benchmark are to be copied: they are not broken.
        for line in lines:
            if words[0] == "log" and not line.startswith(("{", "warning")):
                assert display_width(line) <= columns, line
    assert ("\x1b[3" in output or "\x1b[1m" in output) == (name == "colours")


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
