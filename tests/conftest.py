"""What every test has: a folder of llm's own, far from the user's, and loopback alone."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.async_tests import pytest_pyfunc_call
from tests.log_fixtures import (
    empty_log,
    make_begun,
    make_exchange,
    path,
    run_llm,
    store,
    talk,
)

__all__ = [
    "empty_log",
    "make_begun",
    "make_exchange",
    "path",
    "pytest_pyfunc_call",
    "run_llm",
    "store",
    "talk",
]

# The machines are shared: how long an example takes says nothing of the code. Each run
# tries other examples, so that few of them at a time are many in a week.
hypothesis.settings.register_profile(
    "house",
    deadline=None,
    max_examples=15,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("house")


@pytest.fixture(autouse=True)
def llm_user_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new folder for llm in each test; subprocesses inherit it."""
    path = tmp_path / "llm"
    path.mkdir()
    monkeypatch.setenv("LLM_USER_PATH", str(path))
    return path


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
