"""What every test has: a folder of llm's own, far from the user's, and loopback alone."""

from __future__ import annotations

import gc
import itertools
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.async_tests import pytest_pyfunc_call
from tests.log_fixtures import (
    empty_log,
    llm_process,
    make_begun,
    make_exchange,
    path,
    run_llm,
    store,
    talk,
)

__all__ = [
    "empty_log",
    "llm_process",
    "make_begun",
    "make_exchange",
    "path",
    "pytest_pyfunc_call",
    "run_llm",
    "store",
    "talk",
]
from tests import examples, proxies

# The machines are shared: how long an example takes says nothing of the code. Each run
# tries other examples, so that few of them at a time are many in a week.
hypothesis.settings.register_profile(
    "house",
    deadline=None,
    max_examples=15,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("house")


_numbers = itertools.count(1)

SLOW_TIMEOUT_S = 240  # some take 40 on an idle machine, and others may have its cores

os.environ["TZ"] = "UTC"  # so that the times that tests expect are right on every machine
time.tzset()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the flows run under another server."""
    parser.addoption(
        "--server", choices=["own", "uvicorn"], default="own", help="what proxies run in"
    )


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Start one worker more than there are cores: many tests wait for deadlines."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None  # xdist reads it
    return len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else None


def pytest_configure(config: pytest.Config) -> None:
    """Tell costly properties how many examples to try, and proxies what they run in."""
    proxies.server = config.getoption("--server")
    examples.is_slow_run = config.option.markexpr == "slow"
    gc.disable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give slow tests more time, and leave out those of our own server if another is used."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT_S))
    if proxies.server != "own":
        for item in items:
            if item.get_closest_marker("own_server"):
                item.add_marker(pytest.mark.skip(reason="about the server of the command"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave what was imported out of garbage collections: some tests make one each."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def own_llm_folder(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Point llm, in subprocesses too, to a folder of this test alone, made when it is used."""
    path = tmp_path_factory.getbasetemp() / f"llm-of-test-{next(_numbers)}"
    monkeypatch.setenv("LLM_USER_PATH", str(path))
    return path


@pytest.fixture
def in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Set the time zone of this process, and of those that it starts: UTC+01:00 in winter."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield
    time.tzset()


@pytest.fixture
def llm_user_path(own_llm_folder: Path) -> Path:
    """Make the folder that llm uses in this test; subprocesses inherit it."""
    own_llm_folder.mkdir(exist_ok=True)
    return own_llm_folder


@pytest.fixture
def every_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have subprocesses load all plugins that are installed, as they do for a user."""
    monkeypatch.delenv("LLM_LOAD_PLUGINS")


@pytest.fixture(autouse=True)
def only_loopback(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail on any connection that leaves this machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            host = address[0]
            assert host in ("localhost", "::1") or host.startswith("127."), f"left for {host}"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    yield
