"""A whole proxy in a thread of its own, for clients that block."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llm

from llmproxy import asgi, serving
from llmproxy.core.limits import Limits
from llmproxy.proxy import Proxy, Settings
from llmproxy.recorder.exchange import Exchange
from tests.empty_log import put_empty_log
from tests.models import registered
from tests.under_uvicorn import under_uvicorn

server = "own"  # that `running` uses; set by the option --server


@dataclass
class Running:
    """Where it listens, and what it said."""

    url: str
    port: int
    proxy: Proxy
    reports: list[Exchange] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    reported: threading.Condition = field(default_factory=threading.Condition)

    def wait_for_report(self, count: int = 1) -> Exchange:
        """Wait until so many exchanges are over; give the last."""
        with self.reported:
            assert self.reported.wait_for(lambda: len(self.reports) >= count, timeout=10)
        return self.reports[-1]


@contextmanager
def running(*models: Any, limits: Limits | None = None, **settings: Any) -> Iterator[Running]:
    """Run a proxy on a free port, with these models besides llm's own.

    Where it would make a new log to write to, it finds an empty one instead, which is
    faster. What it makes itself is tested with the store and with the command.
    """
    reports: list[Exchange] = []
    warnings: list[str] = []
    condition = threading.Condition()

    def report(exchange: Exchange) -> None:
        with condition:
            reports.append(exchange)
            condition.notify_all()

    chosen = Settings(
        port=0,
        limits=limits or Limits(shutdown_s=5),
        on_exchange=report,
        warn=warnings.append,
        **settings,
    )

    if chosen.log and chosen.replay is None and chosen.recordings is None:
        database = chosen.database or Path(llm.user_dir()) / "logs.db"
        if database.parent.is_dir() and not os.path.lexists(database):
            put_empty_log(database)
    with registered(*models), _SERVERS[server](chosen) as (port, proxy):
        yield Running(f"http://127.0.0.1:{port}", port, proxy, reports, warnings, condition)


@contextmanager
def _own(settings: Settings) -> Iterator[tuple[int, Proxy]]:
    with serving.running(settings) as proxy:
        yield proxy.port, proxy


@contextmanager
def _uvicorn(settings: Settings) -> Iterator[tuple[int, Proxy]]:
    app = asgi.App(settings)
    with under_uvicorn(app) as port:
        assert app._proxy is not None, "the lifespan has begun"
        yield port, app._proxy


_SERVERS = {"own": _own, "uvicorn": _uvicorn}
