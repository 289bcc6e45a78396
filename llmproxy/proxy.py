"""Settings to a running whole: the app, its engine, its log and its sockets, wired here alone."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal

import llm
from llm.utils import monotonic_ulid

from .app.access import Access, is_loopback
from .app.access_log import access_line
from .app.app import App, render_error
from .app.dashboard import LivePage
from .backends.engine import Catalog, Engine, in_daemon_thread, known_keys
from .backends.engine.demo import AsyncDemo, Demo
from .backends.log_source import Log
from .backends.replay import Replay, Source
from .conversations.matching import Matcher
from .core import backend
from .core.known_keys import KnownKeys
from .core.limits import Limits
from .core.url_policy import RemoteImages
from .recorder.exchange import Exchange
from .recorder.process_lock import ProcessLock
from .recorder.reader import LogReader
from .recorder.spool import Spool
from .recorder.store import Store, StoreError, logs_on
from .recorder.writer import Writer
from .transfer.llama_stack.folder import Folder
from .transport.server import ServedRequest, Server

__all__ = [
    "Proxy",
    "Settings",
    "SettingsError",
    "all_models",
    "keys_of_environment",
    "log_writer",
    "new_id",
]


class SettingsError(ValueError):
    """Settings that make no sense together, in one line for the person who chose them."""


def keys_of_environment() -> tuple[str, ...]:
    """The keys that LLMPROXY_API_KEY names, comma separated."""
    words = os.environ.get("LLMPROXY_API_KEY", "").split(",")
    return tuple(word.strip() for word in words if word.strip())


def new_id() -> str:
    """Give a lower-case ULID, larger than all before it."""
    return str(monotonic_ulid()).lower()


def all_models(
    maps: Sequence[tuple[str, str]] = (),
    default_model: str | None = None,
    parallel: Sequence[tuple[str, int]] = (),
) -> Catalog:
    """llm's models, and the demo, which answers also where our plugin is not installed."""
    return Catalog(
        maps=maps,
        default_model=default_model,
        parallel=parallel,
        extra_models=[(Demo(), AsyncDemo())],
    )


def log_writer(database: Path, warn: Callable[[str], None]) -> Writer:
    """A writer for a log, as a process of its own, with its spool beside the file."""
    owner = ProcessLock(database, new_id())
    return Writer(lambda: Store(database, owner), warn=warn, spool=Spool(owner))


def _ignore(_: object) -> None:
    pass


@dataclass(frozen=True)
class Settings:
    """What a server is to be; the same names as the command's flags.

    maps: (pattern, model) pairs. parallel: (pattern, count) pairs: how many requests models of
        such a name run at one time; by default one each for those that run in this process.
    database: logs.db of llm where None.
    recall: give models back what they said and clients' wires could not carry.
    replay: answer from the log instead of from models; by "replay-or-live" they answer what
        was not recorded. replay_speed: 1 as it was recorded, 2 twice as fast, 0 at once.
    recordings: a folder of Llama Stack's recordings to answer from, in place of the log.
    think_tags: read `<think>…</think>` in answers as reasoning.
    remote_images: "refuse" takes no images by URL, "pass" leaves them to the provider to open.
    auth: False lets everybody in who reaches an address that is not loopback, without a key.
    warn, report: take a line of warning, from any thread, and each exchange when it is over.
    access_log: takes a line for each HTTP answer.
    """

    host: str = "127.0.0.1"
    port: int = 11435
    maps: Sequence[tuple[str, str]] = ()
    default_model: str | None = None
    parallel: Sequence[tuple[str, int]] = ()
    database: Path | None = None
    log: bool = True
    recall: bool = True
    replay: Literal["replay", "replay-or-live"] | None = None
    replay_speed: float = 1.0
    recordings: Path | None = None
    think_tags: bool = False
    remote_images: RemoteImages = "pass"
    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()
    keys: Sequence[str] = field(default_factory=keys_of_environment)
    auth: bool = True
    limits: Limits = Limits()
    warn: Callable[[str], None] = _ignore
    report: Callable[[Exchange], None] = _ignore
    access_log: Callable[[str], None] | None = None


def _check(settings: Settings) -> None:
    if not is_loopback(settings.host) and not settings.keys and settings.auth:
        raise SettingsError(
            f"{settings.host or 'every address'} can be reached by others, who would spend "
            "your keys: give --api-key KEY, or listen on 127.0.0.1; --no-auth lets all of them in"
        )
    if settings.keys and not settings.auth:
        raise SettingsError("--no-auth and --api-key or LLMPROXY_API_KEY exclude each other")
    if not all(isinstance(count, int) and count > 0 for _, count in settings.parallel):
        raise SettingsError("parallel takes (pattern, count) pairs, the count above 0")
    if not all(key.strip() for key in settings.keys):
        raise SettingsError("an empty key lets nobody in")
    for origin in settings.origins:
        if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/]+/?", origin, re.I):
            raise SettingsError(f"an origin is scheme://host[:port], not {origin!r}")


def _tell(write: Callable[[str], None], answered: ServedRequest) -> None:
    write(access_line(answered, datetime.now().astimezone()))


class Proxy:
    """A server with all its parts; `async with Proxy(settings) as proxy:` runs it.

    app: the same as `async (Request) -> Response`, for other servers.
    catalog: the models, none of which is loaded unless `is_live`: recordings may stand
        in their place. database: where the log is, None without one.
    """

    def __init__(self, settings: Settings, keys: KnownKeys | None = None) -> None:
        """Wire the parts. Nothing but recordings is read, and nothing started yet.

        keys: to be kept out of errors; those of the settings join them.

        Raises:
            SettingsError: an address that others can reach, without a key; an empty
                key; an origin that is none; no recordings where they are to be played.
        """
        _check(settings)
        is_local = is_loopback(settings.host)
        self.settings = settings
        self._known_keys = keys or known_keys()
        self._known_keys.learn(settings.keys)
        self.catalog = all_models(settings.maps, settings.default_model, settings.parallel)
        self.database: Path | None = None
        self._writer: Writer | None = None
        self._memory: Matcher | None = None
        self._recorded: Log | None = None
        database = settings.database or llm.user_dir() / "logs.db"
        if settings.log:
            self.database = database
            self._writer = log_writer(database, settings.warn)
            self._memory = Matcher(database, recall=settings.recall)
        self.is_live = settings.replay != "replay" and not (
            settings.recordings and settings.replay is None
        )
        self.app = App(
            self._engine(database),
            self._writer,
            self._memory,
            access=Access(is_local, settings.hosts, settings.origins, settings.keys),
            limits=settings.limits,
            new_id=new_id,
            keys=self._known_keys,
            log_is_on=logs_on,
            report=settings.report,
            page=LivePage(self.database).render if self.database else None,
            connections=lambda: self._server.connections,
        )
        tell = settings.access_log and partial(_tell, settings.access_log)
        self._server = Server(
            self.app, render_error=render_error, limits=settings.limits, on_response=tell
        )

    def _engine(self, database: Path) -> backend.Backend:
        """Models, or recordings in their place.

        Raises:
            SettingsError: there are none to read.
        """
        settings = self.settings
        live = self._models() if self.is_live else None
        if settings.replay is None and settings.recordings is None:
            assert live is not None, "something answers"
            return live
        try:
            source: Source
            if settings.recordings is not None:
                source = Folder(settings.recordings, settings.warn)
            else:
                if live is not None and not database.exists():
                    Store(database).close()  # what is live will be recorded there
                source = self._recorded = Log(database)
        except (StoreError, OSError) as exc:
            raise SettingsError(f"there is nothing to replay: {exc}") from exc
        return Replay(source, speed=settings.replay_speed, live=live)

    def _models(self) -> Engine:
        return Engine(
            self.catalog,
            think_tags=self.settings.think_tags,
            remote_images=self.settings.remote_images,
            threads=self.settings.limits.running,
            keys=self._known_keys,
        )

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where it listens: hosts and real ports."""
        return self._server.addresses

    @property
    def url(self) -> str:
        """The address to give to a client on this machine, without a path."""
        host, port = self.addresses[0]
        if host in ("0.0.0.0", "::"):
            host = "127.0.0.1"
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def start(self) -> None:
        """Load llm's models, open the log, and listen.

        Raises:
            SettingsError: `maps` or `default_model` name a model that is not there; the
                port is in use, or the host is not this machine's.
        """
        if self.is_live:  # else not even a plugin is loaded: some ask their servers for models
            # In a thread that may be left behind: a plugin may hang while it is loaded.
            await in_daemon_thread(self.catalog.load, "llmproxy-catalog")
        unknown = self.catalog.unknown_targets() if self.is_live else []
        if unknown:
            raise SettingsError(f"llm has no model {unknown[0]!r} (llm models lists them)")
        await asyncio.to_thread(self._update_log)
        host, port = self.settings.host, self.settings.port
        try:
            await self._server.start(host, port)
        except OSError as exc:
            code = exc.errno or 0
            reason = os.strerror(code) if code > 0 else exc.strerror
            place = f"{host or 'every address'}, port {port}"
            raise SettingsError(f"can't listen on {place}: {reason}") from exc
        if self._writer is not None:
            self._writer.start()

    def _update_log(self) -> None:
        """Bring an older llmproxy's tables up to date: requests ask them from the first on."""
        if self.database is not None and self.database.exists():
            with suppress(StoreError):  # the writer meets the same, and says it
                LogReader(self.database).close()

    async def close(self) -> None:
        """Take nothing new, let running answers end for `limits.shutdown_s`, flush the log."""
        await self._server.close()
        if self._writer is not None:
            await asyncio.to_thread(self._writer.close, self.settings.limits.shutdown_s)
        for reader in (self._memory, self._recorded):
            if reader is not None:
                reader.close()

    async def __aenter__(self) -> Proxy:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
