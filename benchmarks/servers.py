"""The servers that are compared: started on one core, paused while others are measured.

Each has a fresh folder with a fresh LLM_USER_PATH. What a server costs is read from /proc, so
this runs on Linux alone.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from . import environments, load, requests

START_S = 300.0  # LiteLLM takes six seconds of CPU
REST_S = 0.06
REST_MS = 0.5  # of CPU in this time, or less: all that comes after a response is done
LIMIT_SERVERS = Path(__file__).parent / "limit_servers.py"


@dataclass(frozen=True)
class Kind:
    """A kind of server.

    command: makes its command line of the port and of a folder of its own. has_llm: it runs
    llm's models and logs to the logs.db of LLM_USER_PATH. environment: variables besides.
    program: the beginning of other commands, which read the log.
    upstream: it forwards to an L1 server, which runs on the load generator's core.
    """

    name: str
    title: str
    command: Callable[[int, Path], Sequence[str | Path]]
    has_llm: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    upstream: int = 0
    program: Sequence[str | Path] = ()

    def with_arguments(self, *arguments: str) -> Kind:
        """Return the same with more arguments on its command line."""
        return replace(self, command=lambda *where: [*self.command(*where), *arguments])


def ours(name: str, python: Path, checkout: Path) -> Kind:
    """Return llmproxy as it is in a checkout."""
    return Kind(
        name,
        f"llmproxy ({checkout})",
        lambda port, _: [python, "-m", "llmproxy", "--port", f"{port}", "--quiet"],
        has_llm=True,
        environment={"PYTHONPATH": f"{checkout}{os.pathsep}{environments.SCRIPTED_MODEL}"},
        program=[python, "-m", "llmproxy"],
    )


def peer(python: Path) -> Kind:
    """Return the closest peer, another server of llm's models."""
    return Kind(
        "peer",
        environments.PEER,
        lambda port, _: [python, "-m", "llm", "chat-completions-server", "-p", f"{port}"],
        has_llm=True,
        environment={"PYTHONPATH": f"{environments.SCRIPTED_MODEL}"},
    )


def litellm(python: Path) -> Kind:
    """Return LiteLLM's proxy before an L1 server.

    It has no model of its own, and its mock responses skip its HTTP client; forwarding is what
    people run it for. So it forwards to the fastest upstream there is, whose CPU is not counted.
    It logs to no database.
    """
    upstream = free_port()

    def command(port: int, folder: Path) -> Sequence[str | Path]:
        config = folder / "litellm.yaml"
        config.write_text(
            "model_list:\n"
            '  - model_name: "*"\n'
            "    litellm_params:\n"
            '      model: "openai/*"\n'
            f'      api_base: "http://127.0.0.1:{upstream}/v1"\n'
            '      api_key: "none"\n'
            "litellm_settings:\n  telemetry: false\n"
        )
        program = python.parent / "litellm"
        return [program, "--config", config, "--host", "127.0.0.1", "--port", f"{port}"]

    environment = {
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }
    return Kind("LiteLLM", environments.LITELLM, command, False, environment, upstream)


def limit(name: str, kind: str, python: Path) -> Kind:
    """Return L1 ("raw") or L2 ("streams"), see limit_servers.py."""
    return Kind(name, kind, lambda port, _: [python, LIMIT_SERVERS, kind, f"{port}"])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


class Server:
    """A running server; a context manager that ends it."""

    def __init__(self, kind: Kind, folder: Path, core: int, upstream_core: int) -> None:
        """Start it, and wait for the answer to a first request.

        core: what it runs on. upstream_core: what its upstream runs on, if it has one.
        """
        self.kind = kind
        self.port = free_port()
        self.user_path = folder / "llm"
        self.user_path.mkdir(parents=True, exist_ok=True)
        self._output = (folder / "output.txt").open("wb")
        self._core = core
        self._folder = folder
        self._upstream: subprocess.Popen[bytes] | None = None
        if kind.upstream:
            arguments = [sys.executable, LIMIT_SERVERS, "raw", f"{kind.upstream}"]
            self._upstream = self._start(arguments, upstream_core)
        began = time.monotonic()
        self._process = self._start(kind.command(self.port, folder), core)
        self._wait_for_answer()
        self.start_s = time.monotonic() - began
        self.start_cpu_ms = self.cpu_ms()
        self.start_rss_mib = self.memory_mib("VmRSS")

    def _start(self, command: Sequence[str | Path], core: int) -> subprocess.Popen[bytes]:
        variables = {**self.kind.environment, "LLM_USER_PATH": f"{self.user_path}"}
        return subprocess.Popen(
            ["taskset", "-c", f"{core}", *command],
            cwd=self._folder,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    def command(self, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start another command of its program, on its core."""
        return self._start([*self.kind.program, *arguments], self._core)

    def _wait_for_answer(self) -> None:
        request = next(requests.questions("scripted-20", False))
        end = time.monotonic() + START_S
        while time.monotonic() < end and self._process.poll() is None:
            try:
                outcome = load.run(self.port, iter([request]), 1, 20)
            except ConnectionRefusedError:
                time.sleep(0.002)
                continue
            if outcome.answered:
                return
            time.sleep(0.05)
        self.stop()
        output = Path(self._output.name).read_text(errors="replace")
        raise RuntimeError(f"{self.kind.name} did not start:\n{output[-4000:]}")

    @property
    def pid(self) -> int:
        return self._process.pid

    def cpu_ms(self) -> float:
        """Return the CPU time that its process has used, ended threads included."""
        # The clock that clock_getcpuclockid(3) names; /proc/PID/stat counts in 10 ms.
        return time.clock_gettime_ns((~self.pid << 3) | 2) / 1e6

    def rest(self) -> None:
        """Wait until it uses no more CPU and wants none, at most five seconds."""
        end = time.monotonic() + 5
        before = -math.inf
        while time.monotonic() < end:
            now = self.cpu_ms()
            # On a busy machine, work may be waiting for its turn.
            if now - before < REST_MS and not self._is_runnable():
                return
            before = now
            time.sleep(REST_S)

    def _is_runnable(self) -> bool:
        """Whether one of its threads runs, waits for a core, or for the disk."""
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
                state = (task / "stat").read_text().rsplit(")", 1)[1].split()[0]
                if state in "RD":
                    return True
        return False

    def memory_mib(self, name: str) -> float:
        """Return VmRSS (now) or VmHWM (the peak)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        words = dict(line.split(":", 1) for line in status.splitlines())
        return int(words[name].split()[0]) / 1024

    def logged(self) -> int:
        """Return how many turns are in its log."""
        path = self.user_path / "logs.db"
        if not path.exists():
            return 0
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as database:
            count: int = database.execute("select count(*) from turns").fetchone()[0]
            return count

    def pause(self) -> None:
        """Let it use no CPU while others are measured."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """Ask it to end, and wait until it has."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(START_S)

    def stop(self) -> None:
        for process in (self._process, self._upstream):
            if process is not None:
                process.kill()
                process.wait()
        self._output.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
