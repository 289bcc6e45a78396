"""A proxy under uvicorn, in a thread of its own."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn


class _Server(uvicorn.Server):
    """One whose start and failure can be waited for."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_up = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.is_up.set()


@contextmanager
def under_uvicorn(app: Any, **config: Any) -> Iterator[int]:
    """Serve an ASGI application on a free port, which is yielded, while the block lasts."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        options = {"log_level": "critical", "timeout_graceful_shutdown": 5} | config
        server = _Server(uvicorn.Config(app, lifespan="on", **options))
        thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listener]}, name="llmproxy", daemon=True
        )
        thread.start()
        deadline = time.monotonic() + 30
        while not server.is_up.wait(0.01):
            assert thread.is_alive() and time.monotonic() < deadline, "uvicorn did not start"
        assert not server.should_exit, "the application refused to start"
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
