"""Run a proxy: inside asyncio, in a thread of its own, or in the main thread until a signal."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Unpack

from .core.known_keys import KnownKeys
from .proxy import Options, Proxy, Settings, need_settings

START_S = 60.0  # llm's plugins may be slow to load
EXTRA_S = 5.0  # for the part of closing that `limits.shutdown_s` doesn't count
FEW_CONNECTIONS = 1_000  # fewer than these are worth a word, if more were wanted
OTHER_DESCRIPTORS = 512  # besides connections: those of models, the log, the loop
WARN_AGAIN_S = 60.0  # between two warnings that no descriptors are left
LEAVE_S = 1.0  # for cancelled models to clean up when the process ends


_NO_MORE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_log = logging.getLogger(__name__)


def serve(settings: Settings | None = None, **options: Unpack[Options]) -> Proxy:
    """Return a proxy for a program that uses asyncio; it serves inside `async with`.

        async with llmproxy.serve(database="session.db") as server:
            print(server.url)
            await server.serve_forever()

    options: fields of `Settings`; they replace those of `settings`. Without settings and
        without a `port`, a free port is taken.

    Raises:
        SettingsError: the settings can't work; on entering also that the port is in use,
            which is an OSError too.
    """
    return Proxy(_merged(settings, options, Settings(port=0)))


def run(
    settings: Settings | None = None,
    *,
    on_start: Callable[[Proxy], None] | None = None,
    **options: Unpack[Options],
) -> None:
    """Serve until SIGINT or SIGTERM, as the command does; only the main thread can do that.

    Running requests may then finish within `limits.shutdown_s`, and the log is written. A
    second signal ends the process at once, and so does a model that can't be cancelled.

    on_start: called with the proxy when it listens.
    options: fields of `Settings`; they replace those of `settings`.

    Raises:
        SettingsError: as `serve` does.
    """
    merged = _merged(settings, options, Settings())
    asyncio.run(serve_until_signal(merged, on_start=on_start))


@contextmanager
def running(settings: Settings | None = None, **options: Unpack[Options]) -> Iterator[Proxy]:
    """Run a proxy in a thread of its own while the block lasts.

        with llmproxy.running(database="session.db", replay="replay") as proxy:
            client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="any")

    On exit, wait up to `limits.shutdown_s` for running requests and the log.

    options: as `serve` takes them.

    Raises:
        SettingsError: as `serve` does.
        TimeoutError: it did not start within a minute.
        Exception: whatever ended the proxy, when the block is left.
    """
    settings = _merged(settings, options, Settings(port=0))
    started, stop = threading.Event(), asyncio.Event()
    proxies: list[tuple[Proxy, asyncio.AbstractEventLoop]] = []
    failures: list[BaseException] = []

    async def serve_until_stopped() -> None:
        async with Proxy(settings) as proxy:
            proxies.append((proxy, asyncio.get_running_loop()))
            started.set()
            await stop.wait()

    def main() -> None:
        try:
            asyncio.run(serve_until_stopped())
        except BaseException as exc:  # raised in the caller's thread
            failures.append(exc)
        finally:
            started.set()

    thread = threading.Thread(target=main, name="llmproxy", daemon=True)
    thread.start()
    if not started.wait(START_S):
        raise TimeoutError("the proxy did not start")
    if not proxies:
        raise failures[0]
    proxy, loop = proxies[0]
    try:
        yield proxy
    finally:
        if not failures:
            loop.call_soon_threadsafe(stop.set)
        thread.join(settings.limits.shutdown_s + EXTRA_S)
    if failures:
        raise failures[0]


def _merged(settings: Settings | None, options: Options, default: Settings) -> Settings:
    if settings is not None:
        need_settings(settings)
    return replace(settings or default, **options)


async def serve_until_signal(
    settings: Settings,
    keys: KnownKeys | None = None,
    *,
    on_start: Callable[[Proxy], None] | None = None,
    on_stop: Callable[[Proxy], None] | None = None,
    on_hang_up: Callable[[], object] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; a second one ends the process at once.

    keys: as `Proxy` takes them. on_start, on_stop: called with the proxy when it
        listens, and at the first signal. on_hang_up: as `StopSignals` takes it.

    Raises:
        SettingsError: as `Proxy` and its start do.
    """
    wanted = settings.limits.connections
    connections = _take_descriptors(wanted)
    if connections < min(wanted, FEW_CONNECTIONS):
        settings.warn(
            f"the limit on open files (ulimit -n) leaves room for {connections} connections,"
            f" not {wanted} (limit connections)"
        )
    settings = replace(settings, limits=replace(settings.limits, connections=connections))
    asyncio.get_running_loop().set_exception_handler(_LoopFailures())
    stopped = asyncio.Event()
    signals = StopSignals(stopped.set, on_hang_up)
    signals.install()
    async with Proxy(settings, keys) as proxy:
        if on_start is not None:
            on_start(proxy)
        await stopped.wait()
        if on_stop is not None:
            on_stop(proxy)
    await _leave()
    signals.is_over = True


class StopSignals:
    """Stop at the first SIGINT, SIGTERM or SIGHUP; end the process at the second.

    asyncio.run turns Ctrl-C into a KeyboardInterrupt, but not if SIGINT was inherited as
    ignored: a script's `&`, nohup, some CI runners. Handlers of our own work there too. SIGHUP
    comes when a terminal is closed, often twice, and means nothing under nohup.

    stop: called in the event loop, once. hang_up: called at each SIGHUP instead, if the process
        has no terminal that could have been closed: then the signal is logrotate's, for example.
    """

    def __init__(
        self, stop: Callable[[], object], hang_up: Callable[[], object] | None = None
    ) -> None:
        self._stop = stop
        self._hang_up = hang_up
        self.is_over = False  # the work has ended; what is left ends by itself, or after LEAVE_S
        self.exit_code = 0  # 128 plus the signal's number once one has come, as a shell has it

    def install(self) -> None:
        """Handle the signals in the running loop, until it is closed."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                loop.add_signal_handler(number, self._handle, number)
            except NotImplementedError:  # Windows
                signal.signal(
                    number, lambda number, _: loop.call_soon_threadsafe(self._handle, number)
                )
        if sys.platform == "win32":  # it has no SIGHUP
            return
        if self._hang_up is not None and not _has_terminal():
            loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        elif signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            loop.add_signal_handler(signal.SIGHUP, self._handle, signal.SIGHUP)

    def _handle(self, number: int) -> None:
        if self.exit_code == _HUNG_UP == 128 + number:
            return
        if self.exit_code:
            # A model that can't be cancelled would keep the loop from ending.
            end = threading.Timer(LEAVE_S, os._exit, [128 + number])
            end.daemon = True
            end.start()
            if self.is_over:  # asyncio.run is closing the loop, which must not be interrupted
                return
            raise SystemExit(128 + number)
        self.exit_code = 128 + number
        self._stop()


_HUNG_UP = 129  # 128 plus the number of SIGHUP


def _has_terminal() -> bool:
    return any(map(os.isatty, range(3)))


def _take_descriptors(connections: int) -> int:
    """Raise the limit of open files as far as the connections need it and the system allows.

    Returns how many connections that is enough for: with no descriptors left, neither a
    provider nor the log could be reached.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + OTHER_DESCRIPTORS
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # macOS has further limits of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    if soft == resource.RLIM_INFINITY:
        return connections
    return min(connections, max(soft - OTHER_DESCRIPTORS, soft // 2))


async def _leave() -> None:
    """End the process even if a model won't let itself be cancelled."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    if left and (await asyncio.wait(left, timeout=LEAVE_S))[1]:
        sys.stdout.flush()
        os._exit(0)


class _LoopFailures:
    """Reports failures in the loop; that no connection can be accepted, once a minute.

    asyncio would report that a hundred times a second, each time with its traceback.
    """

    def __init__(self) -> None:
        self._warned_at = -math.inf

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        exc = context.get("exception")
        if isinstance(exc, TypeError) and isinstance(exc.__context__, OSError):
            return  # CPython 3.12 and before; `Connection.start_tls` raises the cause
        if not isinstance(exc, OSError) or exc.errno not in _NO_MORE:
            loop.default_exception_handler(context)
        elif time.monotonic() - self._warned_at >= WARN_AGAIN_S:
            self._warned_at = time.monotonic()
            _log.warning("a connection has to wait: %s", exc.strerror)
