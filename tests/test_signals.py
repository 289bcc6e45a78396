"""Signals that stop a server or a benchmark, or open the access log again."""

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from llmproxy import Settings, serving

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")


@pytest.fixture
def ends(monkeypatch):
    """What would end the process, instead of ending it."""
    found = []

    class Timer:
        def __init__(self, seconds, function, arguments):
            found.append(arguments)

        def start(self):
            pass

    monkeypatch.setattr(serving.threading, "Timer", Timer)
    return found


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setattr(serving, "_has_terminal", lambda: True)


@pytest.fixture
def no_terminal(monkeypatch):
    monkeypatch.setattr(serving, "_has_terminal", lambda: False)


async def send(number, count=1):
    for _ in range(count):
        signal.raise_signal(number)  # in this thread: `os.kill` may take another, and later
        for _ in range(3):  # turns of the loop, in which its handlers are called
            await asyncio.sleep(0)


async def test_a_closed_terminal_stops_once_however_often_it_is_told(terminal, ends):
    stops, reopened = [], []
    signals = serving.StopSignals(lambda: stops.append(1), lambda: reopened.append(1))
    signals.install()
    await send(signal.SIGHUP, 3)
    assert (stops, reopened, signals.exit_code, ends) == ([1], [], 129, [])


def test_a_second_signal_after_the_end_leaves_no_traceback(ends):
    """As `timeout` sends it, and a shell to the whole group."""

    async def serve():
        await serving.serve_until_signal(
            Settings(port=0, log=False),
            on_start=lambda proxy: os.kill(os.getpid(), signal.SIGTERM),
        )
        os.kill(os.getpid(), signal.SIGTERM)

    asyncio.run(serve())
    assert ends in ([], [[143]])


async def test_without_a_terminal_it_is_a_request_to_open_files_again(no_terminal):
    stops, reopened = [], []
    signals = serving.StopSignals(lambda: stops.append(1), lambda: reopened.append(1))
    signals.install()
    await send(signal.SIGHUP, 2)
    assert (stops, reopened, signals.exit_code) == ([], [1, 1], 0)
    await send(signal.SIGTERM)
    assert (stops, signals.exit_code) == ([1], 143)


async def test_a_benchmark_stops_with_or_without_a_terminal(no_terminal):
    stops = []
    signals = serving.StopSignals(lambda: stops.append(1))
    signals.install()
    await send(signal.SIGHUP)
    assert (stops, signals.exit_code) == ([1], 129)


def test_under_nohup_a_closed_terminal_means_nothing(terminal):
    async def survive():
        stops = []
        serving.StopSignals(lambda: stops.append(1)).install()
        await send(signal.SIGHUP)
        return stops

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert asyncio.run(survive()) == []
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_was_inherited_as_ignored_stops(number):
    async def stop():
        stops = []
        serving.StopSignals(lambda: stops.append(1)).install()
        await send(number)
        return stops

    before = signal.signal(number, signal.SIG_IGN)
    try:
        assert asyncio.run(stop()) == [1]
    finally:
        signal.signal(number, before)


@pytest.mark.slow
def test_a_server_whose_terminal_is_closed_ends_cleanly(tmp_path, llm_user_path):
    """The kernel sends SIGHUP to the terminal's session; the exit code was 129."""
    fcntl, pty, termios = (pytest.importorskip(name) for name in ("fcntl", "pty", "termios"))
    master, slave = pty.openpty()

    def take_terminal():
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [sys.executable, "-m", "llmproxy", "--port", "0"],
        stdin=slave, stdout=slave, stderr=slave, preexec_fn=take_terminal,
    )  # fmt: skip
    os.close(slave)
    shown = b""
    while b"OLLAMA_HOST" not in shown:
        shown += os.read(master, 4096)
    os.close(master)
    assert process.wait(30) == 0
