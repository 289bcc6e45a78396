"""A proxy in a thread of its own, for programs that block: scripts, notebooks, test suites."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .proxy import Proxy, Settings

__all__ = ["running"]

START_S = 60.0  # llm's plugins may be slow to load
EXTRA_S = 5.0  # for closing what `limits.shutdown_s` does not count


@contextmanager
def running(settings: Settings = Settings(port=0)) -> Iterator[Proxy]:  # noqa: B008  # it is frozen
    """Run a proxy while the block lasts; `proxy.url` is what its clients are given.

        with llmproxy.running(Settings(port=0, database=path, replay="replay")) as proxy:
            client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="any")

    At the end running answers may end, and the log is written, for `limits.shutdown_s`.

    Raises:
        SettingsError: whatever `Proxy` and its start refuse; at the end whatever ended it.
        TimeoutError: it did not start within a minute.
    """
    started, stop = threading.Event(), asyncio.Event()
    made: list[tuple[Proxy, asyncio.AbstractEventLoop]] = []
    failures: list[BaseException] = []

    async def serve() -> None:
        async with Proxy(settings) as proxy:
            made.append((proxy, asyncio.get_running_loop()))
            started.set()
            await stop.wait()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as exc:  # raised where it is waited for
            failures.append(exc)
        finally:
            started.set()

    thread = threading.Thread(target=run, name="llmproxy", daemon=True)
    thread.start()
    if not started.wait(START_S):
        raise TimeoutError("the proxy did not start")
    if not made:
        raise failures[0]
    proxy, loop = made[0]
    try:
        yield proxy
    finally:
        if not failures:
            loop.call_soon_threadsafe(stop.set)
        thread.join(settings.limits.shutdown_s + EXTRA_S)
    if failures:
        raise failures[0]
