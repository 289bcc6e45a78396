"""A whole proxy, made from its settings: the app, its backend, its log and its sockets."""

from __future__ import annotations

import asyncio
import errno
import inspect
import logging
import math
import os
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal, TypedDict

import llm

from .app.access import Access, is_loopback
from .app.access_log import access_line
from .app.app import App
from .app.dashboard import Dashboard
from .app.refusals import Refusal
from .app.span_export import SpanExporter, headers_of_environment, traces_url
from .app.stored_responses import StoredResponses
from .backends.engine import AnyModel, Catalog, Engine, ModelEmbedder
from .backends.engine.demo import AsyncDemo, Demo
from .backends.ignored_text import IgnoredText
from .backends.llm_keys import known_keys
from .backends.log_source import Log
from .backends.replay import MAX_LISTED, RecordingSummary, Replay, Source
from .backends.routing import Routing
from .backends.upstreams import Upstreams
from .conversations.matching import Matcher
from .core import backend
from .core.errors import InvalidRequest
from .core.errors import SettingsError as SettingsError
from .core.field_types import find_wrong_field, name_unknown_fields
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
from .transport.connections import Proxies
from .transport.http11 import Request
from .transport.server import ServedRequest, Server

MAX_HOOKS = 1_000  # calls of an async hook at a time; each holds an exchange
HOOKS_S = 5.0  # for async hooks to end when the proxy is closed

_log = logging.getLogger("llmproxy")


class ListenError(SettingsError, OSError):
    """The address can't be listened on: its port is in use, or it is not this machine's."""

    def __init__(self, message: str, errno: int | None) -> None:
        SettingsError.__init__(self, message)
        OSError.__init__(self, errno, str(self.args[0]))

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
    models: Sequence[AnyModel] = (),
) -> Catalog:
    """Return llm's models, `models`, and the demo model even if our plugin is not installed."""
    return Catalog(
        maps=maps,
        default_model=default_model,
        parallel=parallel,
        extra_models=[(Demo(), AsyncDemo())],
        models=models,
    )


def log_writer(database: Path, warn: Callable[[str], None]) -> Writer:
    """Return the writer for a log, with its process lock and its spool beside the file."""
    owner = ProcessLock(database, new_id())
    return Writer(lambda: Store(database, owner), warn=warn, spool=Spool(owner))


def _ignore(_: object) -> None:
    pass


@name_unknown_fields
@dataclass(frozen=True)
class Settings:
    """How a proxy is set up; docs/settings.md has the command's flag for each field.

    host: The address to listen on.
    port: The port to listen on; 0 takes a free one.
    maps: (pattern, target) pairs: the target answers requests for names that fit the pattern.
        It is a model of llm, an upstream (`NAME:`) or a model there (`NAME:MODEL`), or several
        with commas between them: the next one answers if the first refuses. The first pattern
        that fits counts.
    upstreams: Servers to which requests may go: `anthropic`, `openai` or `codex`, these with
        another URL (`NAME=URL`), or others (`NAME=DIALECT+URL`).
    passthrough: The upstream that gets all requests which no map takes.
    upstream_keys: (upstream, source) pairs: the source of its key is `client`, which passes the
        client's own credentials on (the default), `llm:KEYNAME` or `env:VARIABLE`.
    upstream_ca: A file of certificates that upstreams may have, besides the system's.
    upstream_insecure: True lets upstreams on public addresses be reached by http, in plain
        text.
    upstream_wait_s: The most seconds to wait for an upstream that is busy (429) and says when
        to come again.
    default_model: Answers if a request names no model, or an unknown one.
    parallel: (pattern, count) pairs: at most so many requests to matching models run at once;
        by default one for models that run in this process.
    database: The log's file; llm's own logs.db if None.
    log: False records nothing. A replay then changes nothing on disk.
    keep: Delete older exchanges from the log, at the start and once a day; None keeps all.
    recall: Give models back the parts of their replies that clients' APIs could not carry.
    replay: Answer from recordings. With "replay-or-live", models answer what was not recorded.
    replay_speed: 1 for the recorded speed, 2 for twice as fast, 0 for no delay.
    recordings: Files written by `export`, Llama Stack recordings, or folders of these, to
        answer from instead of the log. Without `replay`, as with "replay".
    ignore: Regular expressions for text that may differ between a request and its recording.
    think_tags: Read `<think>…</think>` in responses as reasoning.
    remote_images: Images by URL: "pass" leaves opening them to the provider, "refuse" rejects
        them.
    hosts: Names to accept as Host besides the proxy's own.
    origins: Origins (scheme://host[:port]) of web pages that may use the proxy.
    keys: Clients must send one of them, if there are any; by default those in LLMPROXY_API_KEY.
    auth: False admits everyone without a key, on an address that others can reach too.
    limits: Limits on sizes, times and numbers.
    debug: Log the traceback of each failure of a model's plugin, without keys, to the logger
        "llmproxy".
    warn: Called with each warning, from any thread; by default it is logged to "llmproxy".
    models: Models to serve besides those of llm's plugins, as objects; one of each kind may
        have the same id.
    authorize: Called with the head of each request, which is refused unless it returns True. It
        may be asked twice, and can't be async.
    on_exchange: Called with each exchange when it has ended; awaited if it is async.
    on_refusal: Called with each request that was refused before any model was asked (a wrong
        key, an unknown path), of a flood only with how many. They are not in the log.
    otlp: The URL of an OpenTelemetry collector, which gets a span for each exchange.
    otlp_content: Spans have the words of the conversations.
    access_log: Called with one line per HTTP response.
    """

    host: str = "127.0.0.1"
    """The address to listen on."""
    port: int = 11435
    """The port to listen on; 0 takes a free one."""
    maps: Sequence[tuple[str, str]] = ()
    """(pattern, target) pairs: the target answers requests for names that fit the pattern. It is a
    model of llm, an upstream (`NAME:`) or a model there (`NAME:MODEL`), or several with commas
    between them: the next one answers if the first refuses. The first pattern that fits counts."""
    upstreams: Sequence[str] = ()
    """Servers to which requests may go: `anthropic`, `openai` or `codex`, these with another URL
    (`NAME=URL`), or others (`NAME=DIALECT+URL`)."""
    passthrough: str | None = None
    """The upstream that gets all requests which no map takes."""
    upstream_keys: Sequence[tuple[str, str]] = ()
    """(upstream, source) pairs: the source of its key is `client`, which passes the client's own
    credentials on (the default), `llm:KEYNAME` or `env:VARIABLE`."""
    upstream_ca: Path | str | None = None
    """A file of certificates that upstreams may have, besides the system's."""
    upstream_insecure: bool = False
    """True lets upstreams on public addresses be reached by http, in plain text."""
    upstream_wait_s: float = 0.0
    """The most seconds to wait for an upstream that is busy (429) and says when to come again."""
    default_model: str | None = None
    """Answers if a request names no model, or an unknown one."""
    parallel: Sequence[tuple[str, int]] = ()
    """(pattern, count) pairs: at most so many requests to matching models run at once; by default
    one for models that run in this process."""
    database: Path | str | None = None
    """The log's file; llm's own logs.db if None."""
    log: bool = True
    """False records nothing. A replay then changes nothing on disk."""
    keep: timedelta | None = None
    """Delete older exchanges from the log, at the start and once a day; None keeps all."""
    recall: bool = True
    """Give models back the parts of their replies that clients' APIs could not carry."""
    replay: Literal["replay", "replay-or-live"] | None = None
    """Answer from recordings. With "replay-or-live", models answer what was not recorded."""
    replay_speed: float = 1.0
    """1 for the recorded speed, 2 for twice as fast, 0 for no delay."""
    recordings: Path | str | Sequence[Path | str] | None = None
    """Files written by `export`, Llama Stack recordings, or folders of these, to answer from
    instead of the log. Without `replay`, as with "replay"."""
    ignore: Sequence[str] = ()
    """Regular expressions for text that may differ between a request and its recording."""
    think_tags: bool = False
    """Read `<think>…</think>` in responses as reasoning."""
    remote_images: RemoteImages = "pass"
    """Images by URL: "pass" leaves opening them to the provider, "refuse" rejects them."""
    hosts: Sequence[str] = ()
    """Names to accept as Host besides the proxy's own."""
    origins: Sequence[str] = ()
    """Origins (scheme://host[:port]) of web pages that may use the proxy."""
    keys: Sequence[str] = field(default_factory=keys_of_environment, repr=False)
    """Clients must send one of them, if there are any; by default those in LLMPROXY_API_KEY."""
    auth: bool = True
    """False admits everyone without a key, on an address that others can reach too."""
    limits: Limits = Limits()
    """Limits on sizes, times and numbers."""
    debug: bool = False
    """Log the traceback of each failure of a model's plugin, without keys, to the logger
    "llmproxy"."""
    warn: Callable[[str], None] = _log.warning
    """Called with each warning, from any thread; by default it is logged to "llmproxy"."""
    models: Sequence[AnyModel] = ()
    """Models to serve besides those of llm's plugins, as objects; one of each kind may have the
    same id."""
    authorize: Callable[[Request], bool] | None = None
    """Called with the head of each request, which is refused unless it returns True. It may be
    asked twice, and can't be async."""
    on_exchange: Callable[[Exchange], Awaitable[object] | None] = _ignore
    """Called with each exchange when it has ended; awaited if it is async."""
    on_refusal: Callable[[Refusal], None] = _ignore
    """Called with each request that was refused before any model was asked (a wrong key, an
    unknown path), of a flood only with how many. They are not in the log."""
    otlp: str | None = None
    """The URL of an OpenTelemetry collector, which gets a span for each exchange."""
    otlp_content: bool = False
    """Spans have the words of the conversations."""
    access_log: Callable[[str], None] | None = None
    """Called with one line per HTTP response."""

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
            return f"{{port}}: expected a number from 0 to 65535, not {self.port}"
        if not 0 <= self.replay_speed < math.inf:
            return (
                f"{{replay_speed}}: expected a factor, or 0 for no delay, not {self.replay_speed}"
            )
        if not 0 <= self.upstream_wait_s < math.inf:
            return f"{{upstream_wait_s}}: expected seconds, not {self.upstream_wait_s}"
        if not all(count > 0 for _, count in self.parallel):
            return "{parallel}: expected (pattern, count) pairs, the count above 0"
        if not all(key.strip() for key in self.keys):
            return "{keys}: an API key can't be empty"
        if any(key != key.strip() for key in self.keys):  # a file's last line break, often
            return "{keys}: an API key can't begin or end with white space"
        if not all(re.fullmatch(r"[^\s/]+", host) for host in self.hosts):
            return "{hosts}: a host is a name, such as llm.example.com, or *"
        if self.keep is not None and self.keep <= timedelta():
            return "{keep}: expected a time above 0"
        for origin in self.origins:
            if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/]+/?", origin, re.I):
                return f"{{origins}}: an origin is scheme://host[:port], not {origin!r}"
        if self.otlp_content and self.otlp is None:
            return "{otlp_content}: nothing is sent without {otlp}"
        if self.database == "":  # it would mean llm's own log
            return "{database}: a file's name can't be empty"
        if self.recordings is not None and not all(map(str, self.recording_paths)):
            return "{recordings}: a file's name can't be empty"
        if self.recordings is not None and not self.recording_paths:
            return "{recordings}: expected at least one file or folder"
        if self.otlp is not None:
            traces_url(self.otlp)
        for name in ("warn", "authorize", "on_refusal", "access_log"):  # nobody would await it
            if inspect.iscoroutinefunction(getattr(self, name)):
                return f"{{{name}}}: expected a function that is not async"
        try:
            IgnoredText(self.ignore)
        except ValueError as exc:
            return f"{{ignore}}: {exc}"
        if not self.log and self.keep is not None:
            return "{log=False} and {keep} exclude each other"
        reads_log = self.replay is not None and self.recordings is None
        if not self.log and self.database is not None and not reads_log:
            return "{log=False} and {database} exclude each other without {replay}"
        if self.ignore and self.replay is None and self.recordings is None:
            return "{ignore}: only a replay ignores differences: set {replay} too"
        return None

    @property
    def recording_paths(self) -> list[Path | str]:
        """The files and folders of `recordings`, as a list."""
        paths = self.recordings
        if paths is None:
            return []
        return [paths] if isinstance(paths, Path | str) else list(paths)

    @property
    def is_live(self) -> bool:
        """Whether models answer, if only what was not recorded."""
        return self.replay != "replay" and (self.recordings is None or self.replay is not None)

    @property
    def needs_recordings(self) -> bool:
        """Whether a start without any recording is refused: every request would fail."""
        return not self.is_live

    @property
    def how_to_record(self) -> str:
        """The end of the message for a request without a recording."""
        if self.recordings is not None:
            return "record it first, in a log without --recordings, and export that to a file"
        log = f" --database {self.database}" if self.database else ""
        return f"record it first: llmproxy{log} --replay=replay-or-live"


class Options(TypedDict, total=False):
    """The fields of `Settings` as keyword arguments, for type checkers and editors."""

    host: str
    port: int
    maps: Sequence[tuple[str, str]]
    upstreams: Sequence[str]
    passthrough: str | None
    upstream_keys: Sequence[tuple[str, str]]
    upstream_ca: Path | str | None
    upstream_insecure: bool
    upstream_wait_s: float
    default_model: str | None
    parallel: Sequence[tuple[str, int]]
    database: Path | str | None
    log: bool
    keep: timedelta | None
    recall: bool
    replay: Literal["replay", "replay-or-live"] | None
    replay_speed: float
    recordings: Path | str | Sequence[Path | str] | None
    ignore: Sequence[str]
    think_tags: bool
    remote_images: RemoteImages
    hosts: Sequence[str]
    origins: Sequence[str]
    keys: Sequence[str]
    auth: bool
    limits: Limits
    debug: bool
    warn: Callable[[str], None]
    models: Sequence[AnyModel]
    authorize: Callable[[Request], bool] | None
    on_exchange: Callable[[Exchange], Awaitable[object] | None]
    on_refusal: Callable[[Refusal], None]
    otlp: str | None
    otlp_content: bool
    access_log: Callable[[str], None] | None


def need_settings(value: object) -> None:
    """Check that a value is a `Settings`.

    Raises:
        SettingsError: it is not.
    """
    if not isinstance(value, Settings):
        raise SettingsError(f"settings: expected Settings, not {type(value).__name__}")


def check_together(settings: Settings) -> None:
    """Check that settings work together.

    Raises:
        SettingsError: they don't.
    """
    is_open = not settings.keys and settings.authorize is None
    if not is_loopback(settings.host) and is_open and settings.auth:
        raise SettingsError(
            f"{settings.host or 'every address'} can be reached by others, who would spend "
            "your keys: give {keys}, or listen on 127.0.0.1; {auth=False} lets all of them in"
        )
    if settings.keys and not settings.auth:
        is_outside = tuple(settings.keys) == keys_of_environment()
        keys = "LLMPROXY_API_KEY" if is_outside else "{keys}"
        raise SettingsError(f"{{auth=False}} and {keys} exclude each other")


def _reason(error: StoreError | OSError | InvalidRequest) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return error.full_message if isinstance(error, InvalidRequest) else str(error)


def upstreams_of(settings: Settings) -> Upstreams:
    """Return the upstreams that settings name, and what goes there.

    Raises:
        SettingsError: one can't be used; the message names the field.
    """
    return Upstreams(
        settings.upstreams,
        maps=settings.maps,
        passthrough=settings.passthrough,
        keys=settings.upstream_keys,
        ca=settings.upstream_ca,
        insecure=settings.upstream_insecure,
        wait_s=settings.upstream_wait_s,
        own_keys=settings.keys,
    )


def recorded_source(settings: Settings, database: Path, *, writes_nothing: bool = False) -> Source:
    """Open what a replay answers from: files, or else the log.

    writes_nothing: leave even SQLite's files beside the log alone, as without a log of our own.

    Raises:
        StoreError, OSError, InvalidRequest: it can't be read.
    """
    if settings.recordings is None:
        return Log(database, writes_nothing=writes_nothing or not settings.log)
    # Few servers need these.
    from .transfer.llama_stack.folder import add_recording
    from .transfer.recordings import read_recordings

    paths = [Path(path) for path in settings.recording_paths]
    return read_recordings(paths, settings.warn, add_recording)


def need_recordings(replay: Replay, settings: Settings, database: Path) -> None:
    """Check that a replay has what its settings need.

    Raises:
        SettingsError: there is no recording, and no model may be asked.
        StoreError: the log can't be read.
    """
    if settings.needs_recordings and not replay.count():
        where = recordings_name(settings, database)
        raise SettingsError(
            f"there is nothing to replay: no recordings in {where}; {settings.how_to_record}"
        )


def recordings_name(settings: Settings, database: Path) -> str:
    """Return the files and folders that are replayed, to be shown."""
    return ", ".join(map(str, settings.recording_paths or [database]))


class Proxy:
    """A server with its models and its log; it runs inside `async with`.

    catalog: the models, none of which is loaded unless `is_live`: recordings may answer instead.
    database: the log's file, None without a log. has_new_log: whether it is made now.
    """

    def __init__(self, settings: Settings, keys: KnownKeys | None = None) -> None:
        """Connect the parts. Only recordings are read, and nothing is started yet.

        keys: kept out of errors and log lines; those of the settings are added.

        Raises:
            SettingsError: an address that others can reach, without a key; an empty key; an
                invalid origin; no recordings to replay.
        """
        need_settings(settings)
        check_together(settings)
        is_local = is_loopback(settings.host)
        self.settings = settings
        self._known_keys = keys or known_keys()
        self._known_keys.learn(settings.keys)
        self._known_keys.look()
        self.upstreams = upstreams_of(settings)
        self._known_keys.learn(self.upstreams.secrets())
        self.catalog = all_models(
            self.upstreams.maps_of_llm, settings.default_model, settings.parallel, settings.models
        )
        self._exporter = self._new_exporter()
        self._hooks: set[asyncio.Future[object]] = set()  # that run; the loop forgets its tasks
        self.database: Path | None = None
        self._writer: Writer | None = None
        self._matcher: Matcher | None = None
        self._replay: Replay | None = None
        self._deleting: asyncio.Task[None] | None = None
        self._is_closing = False
        self._closed = asyncio.Event()
        self._unused: list[RecordingSummary] | None = None
        database = Path(settings.database or llm.user_dir() / "logs.db")
        self._log_path = database
        self.has_new_log = settings.log and not database.exists()
        if os.path.isdir(database):  # False if it can't be looked at
            raise SettingsError(f"{{database}}: {database} is a folder, not a file")
        if settings.log:
            self.database = database
            self._writer = log_writer(database, settings.warn)
            self._matcher = Matcher(database, recall=settings.recall)
        self.is_live = settings.is_live
        backend, models = self._backend(database)
        self.app = App(
            backend,
            models,
            self._writer,
            self._matcher,
            access=Access(
                is_local, settings.hosts, settings.origins, settings.keys, settings.authorize
            ),
            limits=settings.limits,
            keys=self._known_keys,
            on_exchange=self._tell,
            on_refusal=settings.on_refusal,
            stored=StoredResponses(self.database),
            dashboard=Dashboard(self.database) if self.database else None,
            connections=lambda: self._server.connections,
            replay=self._replay,
            embedder=self._embedder() if self.is_live else None,
            upstreams=self.upstreams if self.is_live else None,
        )
        self._server = Server(
            self.app,
            render_error=self.app.refuse,
            admit=self.app.admit,
            limits=settings.limits,
            on_response=self.report_response if settings.access_log else None,
            streams=self.app.streams_body,
        )

    def _backend(self, database: Path) -> tuple[backend.Backend, backend.Models]:
        """Return what answers, the models or the recordings in their place, and what is listed.

        Raises:
            SettingsError: there are no recordings.
        """
        settings = self.settings
        live = self._live() if self.is_live else None
        if settings.replay is None and settings.recordings is None:
            assert live is not None, "something answers"
            return live, self.catalog
        try:
            if settings.recordings is None and not database.exists():
                if live is None or not settings.log:
                    raise SettingsError(
                        f"there is nothing to replay: {database} does not exist; "
                        'record it first, without {replay}, or with {replay="replay-or-live"}'
                    )
                Store(database).close()  # live responses will be recorded there
            self._replay = Replay(
                recorded_source(settings, database),
                speed=settings.replay_speed,
                live=live,
                clean=IgnoredText(settings.ignore) if settings.ignore else None,
                advice=settings.how_to_record,
            )
            need_recordings(self._replay, settings, database)
        except SettingsError:
            self._close_readers()
            raise
        except (StoreError, OSError, InvalidRequest) as exc:
            self._close_readers()
            advice = f"; {settings.how_to_record}" if isinstance(exc, FileNotFoundError) else ""
            raise SettingsError(f"there is nothing to replay: {_reason(exc)}{advice}") from exc
        return self._replay, self.catalog if live else self._replay

    def _new_exporter(self) -> SpanExporter | None:
        """Return what sends spans, if they are wanted.

        Raises:
            SettingsError: the URL or the environment's headers can't be used.
        """
        settings = self.settings
        if settings.otlp is None:
            return None
        return SpanExporter(
            settings.otlp,
            headers_of_environment(),
            content=settings.otlp_content,
            warn=settings.warn,
            proxies=Proxies.of_environment(),
        )

    def _live(self) -> backend.Backend:
        models = self._models()
        if not self.upstreams.is_used:
            return models
        return Routing(self.upstreams, models, self.settings.limits)

    def _models(self) -> Engine:
        return Engine(
            self.catalog,
            think_tags=self.settings.think_tags,
            remote_images=self.settings.remote_images,
            threads=self.settings.limits.running,
            keys=self._known_keys,
            answer_bytes=self.settings.limits.answer,
            debug=self.settings.debug,
        )

    def _embedder(self) -> ModelEmbedder:
        limits = self.settings.limits
        return ModelEmbedder(
            self.catalog,
            self._known_keys,
            threads=limits.running,
            answer_bytes=limits.answer,
            debug=self.settings.debug,
        )

    @property
    def recording_count(self) -> int:
        """The number of recordings that can be replayed, 0 if nothing is replayed."""
        return self._replay.count() if self._replay is not None else 0

    @property
    def recordings_name(self) -> str:
        """The files and folders that are replayed, to be shown."""
        return recordings_name(self.settings, self._log_path)

    def unused_recordings(self) -> list[RecordingSummary]:
        """List the recordings that have answered no request, in their order.

        Each has `id`, `model_asked`, `model_used` and `first_words`. Those that were recorded
        since the start are left out. It may be called from any thread, also after `close` if
        there were at most 10,000.

        Raises:
            StoreError: the log can't be read any more.
            RuntimeError: the proxy is closed, and there were more.
        """
        if self._unused is not None or self._replay is None:
            return self._unused or []
        if self._closed.is_set():
            raise RuntimeError(f"the proxy is closed, and had more than {MAX_LISTED:,} recordings")
        return self._replay.unused()

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

    def report_response(self, served: ServedRequest) -> None:
        """Write a response's line to the access log, if there is one."""
        if self.settings.access_log:
            line = access_line(served, datetime.now().astimezone(), self._known_keys)
            self.settings.access_log(line)

    async def start(self) -> None:
        """Load llm's models, open the log, and listen.

        Raises:
            SettingsError: as `open` does. If the port is in use or the host is not this
                machine's, the error is an OSError too.
        """
        await self.open(self._listen)

    async def open(self, listen: Callable[[], Awaitable[None]] | None = None) -> None:
        """Load llm's models and open the log, for a server of another kind.

        listen: awaited before the log is written to, so that its failure leaves nothing.

        Raises:
            SettingsError: `maps` or `default_model` name an unknown model; the log's file is no
                database.
        """
        try:
            await self._prepare()
            if listen is not None:
                await listen()
        except BaseException:
            self._close_readers()
            raise
        if self._writer is not None:
            self._writer.start()
        if self.database is not None and self.settings.keep is not None:
            deleting = delete_daily(self.database, self.settings.keep, self.settings.warn)
            self._deleting = asyncio.create_task(deleting)
        if self._exporter is not None:
            self._exporter.start()

    async def _prepare(self) -> None:
        if self.is_live:  # otherwise no plugin is loaded: some ask their servers for models
            # In a thread that may be left behind: a plugin may hang while it is loaded.
            await in_daemon_thread(self.catalog.load, "llmproxy-catalog")
        unknown = self._unknown_targets() if self.is_live else []
        if unknown:
            raise SettingsError(f"llm has no model {unknown[0]!r} (llm models lists them)")
        for pattern in self.catalog.unmatched_parallel() if self.is_live else ():
            self.settings.warn(f"parallel: {pattern} matches no model")
        await asyncio.to_thread(self._update_log)

    def _unknown_targets(self) -> list[str]:
        return self.catalog.unknown_targets() + [
            model for model in self.upstreams.models_of_llm if not self.catalog.has(model)
        ]

    async def _listen(self) -> None:
        host, port = self.settings.host, self.settings.port
        try:
            await self._server.start(host, port)
        except OSError as exc:
            code = exc.errno or 0
            reason = os.strerror(code) if code > 0 else exc.strerror
            place = f"{host or 'every address'}, port {port}"
            is_taken = exc.errno == errno.EADDRINUSE
            hint = "; perhaps llmproxy runs there already ({port} 0 takes a free one)"
            hint = hint if is_taken else ""
            raise ListenError(f"can't listen on {place}: {reason}{hint}", exc.errno) from exc

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

    def _tell(self, exchange: Exchange) -> None:
        """Give an exchange that has ended to the collector and to the hook."""
        if self._exporter is not None:
            self._exporter.export(exchange)
        if len(self._hooks) >= MAX_HOOKS:
            raise RuntimeError(f"on_exchange is left out: {MAX_HOOKS} calls of it still run")
        try:
            waiting = self.settings.on_exchange(exchange)
        except Exception as exc:
            _log.error("on_exchange failed", exc_info=exc)
            return
        if inspect.isawaitable(waiting):
            hook = asyncio.ensure_future(waiting)
            self._hooks.add(hook)
            hook.add_done_callback(self._has_told)

    def _has_told(self, hook: asyncio.Future[object]) -> None:
        self._hooks.discard(hook)
        if not hook.cancelled() and (error := hook.exception()):
            _log.error("on_exchange failed", exc_info=error)

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
                if self._hooks:
                    await asyncio.wait(set(self._hooks), timeout=HOOKS_S)
                self.upstreams.client.close()
                if self._exporter is not None:
                    await asyncio.to_thread(self._exporter.close)
                await asyncio.to_thread(self._keep_unused)
                self._close_readers()
            finally:
                self._closed.set()
        await self._closed.wait()

    def _keep_unused(self) -> None:
        if self._replay is not None:
            with suppress(StoreError):
                if self._replay.count() <= MAX_LISTED:
                    self._unused = self._replay.unused()

    def _close_readers(self) -> None:
        for reader in (self._matcher, self._replay):
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
