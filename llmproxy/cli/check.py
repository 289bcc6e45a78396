"""`check`: say what the server would use, and whether it can work; send and write nothing."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import llm

from ..app.span_export import headers_of_environment
from ..backends.ignored_text import IgnoredText
from ..backends.replay import Replay
from ..core.errors import ProxyError, SettingsError
from ..core.text import printable
from ..proxy import (
    Settings,
    all_models,
    check_together,
    need_recordings,
    recorded_source,
    recordings_name,
    upstreams_of,
)
from ..recorder.database import SCHEMA_VERSION, StoreError
from ..recorder.listing import open_for_reading
from ..recorder.store import logs_on
from ..recorder.user_files import user_folder_path
from ..report.numbers import count_of
from ..transport.connections import Proxies
from .arguments import add_prices, age_text, prices_of
from .run import FAILED, run
from .serve import _parser as server_parser
from .serve import settings_from
from .sources import Given, complete, is_secret, parse_flags, settings_of
from .terminal import print_line

_FAILURES = (SettingsError, StoreError, ProxyError, OSError)


def main(argv: Sequence[str], program: str) -> int:
    """Check what the server would do with these arguments; return the exit code."""
    name = f"{program} check"
    parser = _parser(name)
    flags, unknown = parse_flags(parser, argv)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")

    def check() -> int:
        given = complete(parser, flags)
        for line in _settings(parser, given, is_all=flags.with_defaults):
            print_line(printable(line))
        print_line("")
        with given.naming_errors(parser):
            settings = settings_from(given.arguments, warn=lambda line: None)
        is_well = True
        for subject, found in _findings(settings, given):
            try:
                with given.naming_errors(parser):
                    result, text = "ok", found()
            except _FAILURES as exc:
                result, text, is_well = "failed", _reason(exc), False
            print_line(printable(f"{result}: {subject}: {text}"))
        return 0 if is_well else FAILED

    return run(name, check)


def _parser(program: str) -> argparse.ArgumentParser:
    parser = server_parser(program)
    parser.usage = "%(prog)s [the server's flags]"
    parser.description = (
        "Say what the server would use with these flags, and where each value comes from; "
        "check that it can work. Nothing is sent to a provider, and nothing is written."
    )
    add_prices(parser)
    parser.add_argument(
        "--defaults",
        action="store_true",
        dest="with_defaults",
        help="show the settings that have their defaults too",
    )
    return parser


def _settings(parser: argparse.ArgumentParser, given: Given, *, is_all: bool) -> Iterator[str]:
    """Yield a line for each setting, and for what is odd in the environment.

    is_all: those that have their defaults too, which are only counted otherwise.
    """
    yield f"config: {given.config or 'none'}"
    defaults = 0
    for key, action in settings_of(parser).items():
        value = given.values[action.dest]
        if not is_all and action.dest not in given.sources:
            defaults += 1
            continue
        shown = _shown(value != action.default) if action.nargs == 0 else _shown(value)
        if is_secret(action):
            count = f"{len(value)} " if isinstance(value, list) else ""
            shown = f"{count}set" if value else "not set"
        yield f"{key}: {shown} ({given.sources.get(action.dest, 'default')})"
    if defaults:
        yield f"{count_of(defaults, 'more setting')} with the default (--defaults shows them)"
    for warning in given.warnings:
        yield f"warning: {warning}"


def _shown(value: Any) -> str:
    if value is None or value == []:
        return "not set"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(
            "=".join(map(str, one)) if isinstance(one, tuple) else one for one in value
        )
    return age_text(value) if isinstance(value, timedelta) else f"{value}"


def _findings(settings: Settings, given: Given) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield what is checked, each with a function that returns what it found or raises."""
    database = Path(settings.database or user_folder_path() / "logs.db")
    yield "settings", lambda: _together(settings)
    if settings.is_live:
        yield "models", lambda: _models(settings)
    if settings.upstreams or settings.upstream_keys or settings.passthrough:
        yield "upstreams", lambda: _upstreams(settings)
    if not settings.is_live or settings.replay is not None:
        yield "recordings", lambda: _recordings(settings, database)
    yield "log", lambda: _log(settings, database)
    if settings.log:
        yield "spool", lambda: _spool(database)
    if given.values["access_log"] not in (None, "-"):
        yield "access log", lambda: _access_log(Path(given.values["access_log"]))
    if settings.otlp is not None:
        yield "collector", lambda: _collector(settings.otlp or "")
    if given.values["prices"] is not None:
        yield "prices", lambda: _prices(given.arguments)


def _together(settings: Settings) -> str:
    check_together(settings)
    changed = sum(
        getattr(settings.limits, one.name) != one.default for one in fields(settings.limits)
    )
    return f"they work together; {count_of(changed, 'limit')} changed"


def _models(settings: Settings) -> str:
    """Check that the models that are named exist, and have their keys."""
    upstreams = upstreams_of(settings)
    maps = upstreams.maps_of_llm
    catalog = all_models(maps, settings.default_model, settings.parallel)
    catalog.load()
    in_chains = [name for name in upstreams.models_of_llm if not catalog.has(name)]
    if unknown := [*catalog.unknown_targets(), *in_chains]:
        raise SettingsError(f"llm has no model {unknown[0]!r} (llm models lists them)")
    named = [model for _, model in maps] + upstreams.models_of_llm + [settings.default_model or ""]
    for name in filter(None, named):
        if (reason := catalog.missing_key(name)) is not None:
            raise SettingsError(f"{name}: {reason}")
    count = sum(model.chats and not model.alias_of for model in catalog.models())
    default = settings.default_model or llm.get_default_model()
    without = catalog.missing_key(default) is not None
    note = f"; the default, {default}, has no key" if without else ""
    return f"{count}, those that are named have what keys they need{note}"


def _upstreams(settings: Settings) -> str:
    """Check that the keys that we send to upstreams are there, and can be sent."""
    upstreams = upstreams_of(settings).describe()
    for one in upstreams:
        if one.has_key is False:
            raise SettingsError(f"{one.name}: the key {one.key} is not set")
        if one.problem:
            raise SettingsError(f"{one.name}: {one.problem}")
    return ", ".join(
        f"{one.name} at {one.url}"
        + (f" by the proxy {one.proxy}" if one.proxy else "")
        + f" with the key {one.key}"
        for one in upstreams
    )


def _recordings(settings: Settings, database: Path) -> str:
    if settings.recordings is None and not database.exists() and settings.is_live and settings.log:
        return "none yet; models are asked, and recorded"
    replay = Replay(
        recorded_source(settings, database, writes_nothing=True),
        clean=IgnoredText(settings.ignore) if settings.ignore else None,
    )
    try:
        need_recordings(replay, settings, database)
        count = replay.count()
    finally:
        replay.close()
    return f"{count_of(count, 'recording')} in {recordings_name(settings, database)}"


def _log(settings: Settings, database: Path) -> str:
    """Check that the log can be written, or made, and that its tables are no newer than ours."""
    if not settings.log:
        return "off"
    if not logs_on():
        return "off (turn it on with: llm logs on)"
    if database.is_dir():
        raise SettingsError(f"{{database}}: {database} is a folder, not a file")
    _need_folder(database)
    if not database.exists():
        return f"{database} will be made"
    if not os.access(database, os.W_OK):
        raise SettingsError(f"{database} can't be written")
    try:
        connection, _, version = open_for_reading(database, writes_nothing=True)
        connection.close()
    except StoreError:
        raise
    except Exception as exc:  # of SQLite, which only the recorder knows
        raise SettingsError(f"{database}: {exc}") from exc
    current = version == SCHEMA_VERSION
    will = "" if current else f", and will be brought from schema {version} to {SCHEMA_VERSION}"
    return f"{database} can be written{will or f', schema {version}'}"


def _need_folder(path: Path) -> None:
    """Check that a file can be made beside this one; llm makes its own folder.

    Raises:
        SettingsError: it can't.
    """
    folder = path.absolute().parent
    if path == user_folder_path() / path.name:
        while not folder.exists():
            folder = folder.parent
    if not folder.is_dir():
        raise SettingsError(f"{folder} is no folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SettingsError(f"nothing can be written to the folder {folder}")


def _spool(database: Path) -> str:
    _need_folder(database)
    spools = list(database.absolute().parent.glob(f"{database.name}-llmproxy-*.jsonl"))
    waiting = sum(path.stat().st_size for path in spools)
    left = f"; {count_of(waiting, 'byte')} wait to be written to the log" if waiting else ""
    return f"beside the log{left}"


def _access_log(path: Path) -> str:
    _need_folder(path)
    if path.exists() and not os.access(path, os.W_OK):
        raise SettingsError(f"{{access_log}}: {path} can't be written")
    return f"{path} can be written"


def _collector(url: str) -> str:
    count = len(headers_of_environment())
    proxy, problem = Proxies.of_environment().name_for(url)
    if problem:
        raise SettingsError(problem)
    way = f" by the proxy {proxy}" if proxy else ""
    return f"{url}{way}, with {count_of(count, 'header')} of OTEL_EXPORTER_OTLP_HEADERS"


def _prices(arguments: argparse.Namespace) -> str:
    return f"of {count_of(len(prices_of(arguments)), 'model')} in {arguments.prices}"


def _reason(error: Exception) -> str:
    if isinstance(error, ProxyError):
        return error.full_message
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)
