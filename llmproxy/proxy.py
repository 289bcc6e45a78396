"""A whole proxy, made from its settings: the app, its backend, its log and its sockets."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Literal, TypedDict

import llm

from .app.access import Access, is_loopback
from .app.access_log import access_line
from .app.app import App
from .app.dashboard import Dashboard
from .app.refusals import Refusal
from .app.stored_responses import StoredResponses
from .backends.engine import Catalog, Engine, ModelEmbedder
from .backends.engine.demo import AsyncDemo, Demo
from .backends.llm_keys import known_keys
from .backends.log_source import Log
from .backends.replay import Replay, Source
from .conversations.matching import Matcher
from .core import backend
from .core.errors import SettingsError as SettingsError
from .core.field_types import find_wrong_field
from .core.known_keys import KnownKeys
from .core.limits import Limits
from .core.threads import in_daemon_thread
from .core.url_policy import RemoteImages
from .recorder.database import StoreError, is_no_database
from .recorder.exchange import Exchange, new_id
from .recorder.process_lock import ProcessLock
from .recorder.reader import LogReader
from .recorder.retention import delete_daily
from .recorder.spool import Spool
from .recorder.store import Store
from .recorder.writer import Writer
from .transport.server import ServedRequest, Server

_log = logging.getLogger("llmproxy")


class ListenError(SettingsError, OSError):
    """The address can't be listened on: its port is in use, or it is not this machine's."""

    def __init__(self, message: str, errno: int | None) -> None:
        OSError.__init__(self, errno, message)

    def __str__(self) -> str:
        return str(self.strerror)


def keys_of_environment() -> tuple[str, ...]:
    """Return the keys in LLMPROXY_API_KEY, which are separated by commas."""
    keys = os.environ.get("LLMPROXY_API_KEY", "").split(",")
    return tuple(key.strip() for key in keys if key.strip())


def all_models(
    maps: Sequence[tuple[str, str]] = (),
    default_model: str | None = None,
    parallel: Sequence[tuple[str, int]] = (),
) -> Catalog:
    """Return llm's models, and the demo model even if our plugin is not installed."""
    return Catalog(
        maps=maps,
        default_model=default_model,
        parallel=parallel,
        extra_models=[(Demo(), AsyncDemo())],
    )


def log_writer(database: Path, warn: Callable[[str], None]) -> Writer:
    """Return the writer for a log, with its process lock and its spool beside the file."""
    owner = ProcessLock(database, new_id())
    return Writer(lambda: Store(database, owner), warn=warn, spool=Spool(owner))


def _ignore(_: object) -> None:
    pass


@dataclass(frozen=True)
class Settings:
    """How a proxy is set up; the fields are named like the command's flags.

    host, port: the address to listen on. Port 0 takes a free one.
    maps: (pattern, model) pairs. A model name that fits the pattern is answered by the model.
    default_model: answers if a request names no model, or an unknown one.
    parallel: (pattern, count) pairs. At most this many requests to matching models run at once;
        by default one for models that run in this process.
    database: the log; llm's logs.db if None. log: False records nothing.
    keep: delete older exchanges from the log, at the start and once a day; None keeps all.
    recall: give models back the parts of their replies that clients' APIs could not carry.
    replay: answer from the log. With "replay-or-live", models answer what was not recorded.
    replay_speed: 1 as recorded, 2 twice as fast, 0 at once.
    recordings: a folder of Llama Stack recordings to answer from instead of the log.
    think_tags: read `<think>…</think>` in responses as reasoning.
    remote_images: "refuse" rejects images by URL; "pass" leaves opening them to the provider.
    hosts, origins: accepted as Host and Origin besides the proxy's own.
    keys: clients must send one of them, if there are any; by default those in LLMPROXY_API_KEY.
    auth: False admits everyone without a key, on an address that others can reach too.
    warn: called with each warning, from any thread. By default it logs to "llmproxy".
    report: called with each exchange when it has ended.
    refused: called with requests that were refused before any model was asked (a wrong key, an
        unknown path); of a flood, only with how many. They are not in the log.
    access_log: called with one line per HTTP response.
    """

    host: str = "127.0.0.1"
    port: int = 11435
    maps: Sequence[tuple[str, str]] = ()
    default_model: str | None = None
    parallel: Sequence[tuple[str, int]] = ()
    database: Path | str | None = None
    log: bool = True
    keep: timedelta | None = None
    recall: bool = True
    replay: Literal["replay", "replay-or-live"] | None = None
    replay_speed: float = 1.0
    recordings: Path | str | None = None
    think_tags: bool = False
    remote_images: RemoteImages = "pass"
    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()
    keys: Sequence[str] = field(default_factory=keys_of_environment, repr=False)
    auth: bool = True
    limits: Limits = Limits()
    warn: Callable[[str], None] = _log.warning
    report: Callable[[Exchange], None] = _ignore
    refused: Callable[[Refusal], None] = _ignore
    access_log: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        """Check each field by itself; a proxy checks that they work together.

        Raises:
            SettingsError: a field has the wrong type or an impossible value.
        """
        wrong = find_wrong_field(self) or self._find_wrong_value()
        if wrong:
            raise SettingsError(wrong)

    def _find_wrong_value(self) -> str | None:
        if not 0 <= self.port <= 65535:
            return f"port: expected a number from 0 to 65535, not {self.port}"
        if not 0 <= self.replay_speed < math.inf:
            return f"replay_speed: expected a factor, or 0 for no delay, not {self.replay_speed}"
        if not all(count > 0 for _, count in self.parallel):
            return "parallel: expected (pattern, count) pairs, the count above 0"
        if not all(key.strip() for key in self.keys):
            return "keys: an API key can't be empty"
        if self.keep is not None and self.keep <= timedelta():
            return "keep: expected a time above 0"
        for origin in self.origins:
            if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/]+/?", origin, re.I):
                return f"origins: an origin is scheme://host[:port], not {origin!r}"
        return None


class Options(TypedDict, total=False):
    """The fields of `Settings` as keyword arguments, for type checkers and editors."""

    host: str
    port: int
    maps: Sequence[tuple[str, str]]
    default_model: str | None
    parallel: Sequence[tuple[str, int]]
    database: Path | str | None
    log: bool
    keep: timedelta | None
    recall: bool
    replay: Literal["replay", "replay-or-live"] | None
    replay_speed: float
    recordings: Path | str | None
    think_tags: bool
    remote_images: RemoteImages
    hosts: Sequence[str]
    origins: Sequence[str]
    keys: Sequence[str]
    auth: bool
    limits: Limits
    warn: Callable[[str], None]
    report: Callable[[Exchange], None]
    refused: Callable[[Refusal], None]
    access_log: Callable[[str], None] | None


def _check(settings: Settings) -> None:
    """Check that settings work together.

    Raises:
        SettingsError: they don't.
    """
    if not is_loopback(settings.host) and not settings.keys and settings.auth:
        raise SettingsError(
            f"{settings.host or 'every address'} can be reached by others, who would spend "
            "your keys: give --api-key KEY, or listen on 127.0.0.1; --no-auth lets all of them in"
        )
    if settings.keys and not settings.auth:
        raise SettingsError("--no-auth and --api-key or LLMPROXY_API_KEY exclude each other")


def _reason(error: StoreError | OSError) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _write_access(write: Callable[[str], None], keys: KnownKeys, request: ServedRequest) -> None:
    write(access_line(request, datetime.now().astimezone(), keys))


class Proxy:
    """A server with its models and its log; it runs inside `async with`.

    catalog: the models, none of which is loaded unless `is_live`: recordings may answer instead.
    database: the log's file, None without a log.
    """

    def __init__(self, settings: Settings, keys: KnownKeys | None = None) -> None:
        """Connect the parts. Only recordings are read, and nothing is started yet.

        keys: kept out of errors and log lines; those of the settings are added.

        Raises:
            SettingsError: an address that others can reach, without a key; an empty key; an
                invalid origin; no recordings to replay.
        """
        _check(settings)
        is_local = is_loopback(settings.host)
        self.settings = settings
        self._known_keys = keys or known_keys()
        self._known_keys.learn(settings.keys)
        self._known_keys.look()
        self.catalog = all_models(settings.maps, settings.default_model, settings.parallel)
        self.database: Path | None = None
        self._writer: Writer | None = None
        self._matcher: Matcher | None = None
        self._recorded: Log | None = None
        self._replay: Replay | None = None
        self._deleting: asyncio.Task[None] | None = None
        self._is_closing = False
        self._closed = asyncio.Event()
        database = Path(settings.database or llm.user_dir() / "logs.db")
        if settings.log:
            self.database = database
            self._writer = log_writer(database, settings.warn)
            self._matcher = Matcher(database, recall=settings.recall)
        self.is_live = settings.replay != "replay" and not (
            settings.recordings and settings.replay is None
        )
        backend, models = self._backend(database)
        self.app = App(
            backend,
            models,
            self._writer,
            self._matcher,
            access=Access(is_local, settings.hosts, settings.origins, settings.keys),
            limits=settings.limits,
            keys=self._known_keys,
            on_exchange=settings.report,
            on_refusal=settings.refused,
            stored=StoredResponses(self.database),
            dashboard=Dashboard(self.database) if self.database else None,
            connections=lambda: self._server.connections,
            rewind=self._replay and self._replay.rewind,
            embedder=self._embedder() if self.is_live else None,
        )
        tell = settings.access_log and partial(_write_access, settings.access_log, self._known_keys)
        self._server = Server(
            self.app,
            render_error=self.app.refuse,
            admit=self.app.admit,
            limits=settings.limits,
            on_response=tell,
        )

    def _backend(self, database: Path) -> tuple[backend.Backend, backend.Models]:
        """Return what answers, the models or the recordings in their place, and what is listed.

        Raises:
            SettingsError: there are no recordings.
        """
        settings = self.settings
        live = self._models() if self.is_live else None
        if settings.replay is None and settings.recordings is None:
            assert live is not None, "something answers"
            return live, self.catalog
        try:
            source: Source
            if settings.recordings is not None:
                from .transfer.llama_stack.folder import Folder  # few servers need it

                source = Folder(Path(settings.recordings), settings.warn)
            else:
                if live is not None and not database.exists():
                    Store(database).close()  # live responses will be recorded there
                source = self._recorded = Log(database)
        except (StoreError, OSError) as exc:
            raise SettingsError(f"there is nothing to replay: {_reason(exc)}") from exc
        self._replay = Replay(source, speed=settings.replay_speed, live=live)
        return self._replay, self.catalog if live else self._replay

    def _models(self) -> Engine:
        return Engine(
            self.catalog,
            think_tags=self.settings.think_tags,
            remote_images=self.settings.remote_images,
            threads=self.settings.limits.running,
            keys=self._known_keys,
            answer_bytes=self.settings.limits.answer,
        )

    def _embedder(self) -> ModelEmbedder:
        limits = self.settings.limits
        return ModelEmbedder(
            self.catalog, self._known_keys, threads=limits.running, answer_bytes=limits.answer
        )

    def rewind(self) -> int:
        """Replay the recordings of each request from the first one again.

        It may be called from any thread, between two tests for example. Returns how many
        recordings had been served, 0 if nothing is replayed.
        """
        return self._replay.rewind() if self._replay is not None else 0

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """The hosts and ports on which it listens; none unless it is running."""
        return self._server.addresses

    @property
    def port(self) -> int:
        """The port on which it listens, also if the settings ask for a free one.

        Raises:
            RuntimeError: it doesn't listen, not yet or no longer.
        """
        return self._address[1]

    @property
    def url(self) -> str:
        """The address for clients on this machine, without a path.

        Raises:
            RuntimeError: it doesn't listen, not yet or no longer.
        """
        host, port = self._address
        if host in ("0.0.0.0", "::"):
            host = "127.0.0.1"
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def _address(self) -> tuple[str, int]:
        if not self.addresses:
            raise RuntimeError("the proxy is not running")
        return self.addresses[0]

    async def start(self) -> None:
        """Load llm's models, open the log, and listen.

        Raises:
            SettingsError: `maps` or `default_model` name an unknown model; the log's file is no
                database. If the port is in use or the host is not this machine's, the error is
                an OSError too.
        """
        try:
            await self._start()
        except BaseException:
            self._close_readers()
            raise

    async def _start(self) -> None:
        if self.is_live:  # otherwise no plugin is loaded: some ask their servers for models
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
            is_taken = exc.errno == errno.EADDRINUSE
            hint = "; perhaps llmproxy runs there already (--port 0 takes a free one)"
            hint = hint if is_taken else ""
            raise ListenError(f"can't listen on {place}: {reason}{hint}", exc.errno) from exc
        if self._writer is not None:
            self._writer.start()
        if self.database is not None and self.settings.keep is not None:
            deleting = delete_daily(self.database, self.settings.keep, self.settings.warn)
            self._deleting = asyncio.create_task(deleting)

    def _update_log(self) -> None:
        """Migrate an older llmproxy's tables before the first request reads them.

        Raises:
            SettingsError: the file is something other than a database.
        """
        if self.database is None or not self.database.exists():
            return
        try:
            LogReader(self.database).close()
        except StoreError as exc:  # the writer will fail in the same way, and warn
            if is_no_database(exc):
                raise SettingsError(f"the log can't be used: {exc}") from exc

    async def close(self) -> None:
        """Stop accepting requests, wait up to `limits.shutdown_s` for running ones, flush the log.

        It may be called more than once; every call returns when the proxy is closed.
        """
        if not self._is_closing:
            self._is_closing = True
            if self._deleting is not None:
                self._deleting.cancel()
                await asyncio.wait({self._deleting})
            try:
                try:
                    await self._server.close()
                finally:  # if this is cancelled, the log gets what was running
                    if self._writer is not None:
                        timeout_s = self.settings.limits.shutdown_s
                        await asyncio.to_thread(self._writer.close, timeout_s)
                self._close_readers()
            finally:
                self._closed.set()
        await self._closed.wait()

    def _close_readers(self) -> None:
        for reader in (self._matcher, self._recorded):
            if reader is not None:
                reader.close()

    async def wait_closed(self) -> None:
        """Wait until `close` has finished."""
        await self._closed.wait()

    async def serve_forever(self) -> None:
        """Wait until the proxy is closed; if this task is cancelled, close it first."""
        try:
            await self.wait_closed()
        finally:
            await self.close()

    async def __aenter__(self) -> Proxy:
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()
