"""The command: `python -m llmproxy`, `llmproxy`, `llm proxy`."""

from __future__ import annotations

import argparse
import asyncio
import errno
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from ..app.access import is_loopback
from ..backends.engine import known_keys
from ..core import limits
from ..core.known_keys import KnownKeys
from ..core.text import printable
from ..proxy import Proxy, Settings, SettingsError, keys_of_environment
from ..recorder.exchange import Exchange
from ..recorder.store import logs_on
from ..version import __version__
from .arguments import add_parallel
from .exchange_text import summary_line

__all__ = ["main"]

OTHER_DESCRIPTORS = 512  # besides connections: models' own, the log, the loop
SAY_AGAIN_S = 60.0  # that there are no descriptors left
LEAVE_S = 1.0  # for models that were cancelled at the end, to clean up

_NO_MORE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_log = logging.getLogger(__name__)


def main(words: Sequence[str] | None = None, program: str = "llmproxy") -> int:
    """Run the command with these words (the process's own where None); give its exit code."""
    words = sys.argv[1:] if words is None else list(words)
    keys = known_keys()
    _log_to_stderr(program, keys)
    if words[:1] == ["log"]:
        from . import log  # the server does not need it

        return log.main(words[1:], program)
    if words[:1] == ["convert"]:
        from . import convert

        return convert.main(words[1:], program)
    if words[:1] == ["export"]:
        from . import export_import

        return export_import.export_main(words[1:], program)
    if words[:1] == ["import"]:
        from . import export_import

        return export_import.import_main(words[1:], program)
    if words[:1] == ["bench"]:
        from . import bench

        return bench.main(words[1:], program)
    if words[:1] == ["report"]:
        from . import report

        return report.main(words[1:], program)
    arguments = _parser(program).parse_args(words)
    if arguments.help_limits:
        print("\n".join(limits.describe()))
        return 0
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal that can't show what a client says
            stream.reconfigure(errors="backslashreplace")
    try:
        settings = _settings(arguments)
        asyncio.run(_serve(settings, keys))
    except (SettingsError, OSError) as exc:
        return _fail(program, str(exc))
    except KeyboardInterrupt:  # before our own handlers were in place
        return 130
    return 0


class _Formatter(logging.Formatter):
    """Keeps keys out of what is logged, tracebacks of other people's code included."""

    def __init__(self, program: str, keys: KnownKeys) -> None:
        super().__init__(f"{program}: %(message)s")
        self._keys = keys

    def format(self, record: logging.LogRecord) -> str:
        return self._keys.redact_foreign(super().format(record))


def _log_to_stderr(program: str, keys: KnownKeys) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter(program, keys))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)


def _fail(program: str, message: str) -> int:
    print(f"{program}: {message}", file=sys.stderr)
    return 2


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        usage=f"%(prog)s [flags]\n       {program} log [ID] [flags]    (see {program} log --help)"
        f"\n       {program} bench --models A,B [flags]\n       {program} report [RUN] [flags]"
        f"\n       {program} export FILE [flags]\n       {program} import FILE [flags]"
        f"\n       {program} convert --from NAME --to NAME [--kind KIND] [FILE]",
        description="Serve every llm model to programs that speak an LLM wire, "
        "and keep every exchange in llm's logs.db.",
        epilog="keys of your own clients may also come from LLMPROXY_API_KEY, comma separated.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--version", action="version", version=f"llmproxy {__version__}")
    add("--host", default=Settings.host, help="address to listen on (%(default)s)")
    add("--port", type=_port, default=Settings.port, help="port, 0 for a free one (%(default)s)")
    add(
        "--map",
        dest="maps",
        metavar="PATTERN=MODEL",
        action="append",
        type=_map,
        default=[],
        help="answer for models of this name, * and ? allowed, by MODEL; the first that fits",
    )
    add("--default-model", metavar="MODEL", help="answers where no model or an unknown is named")
    add_parallel(parser)
    add("--database", type=Path, metavar="PATH", help="where to log (llm's logs.db)")
    add("--no-log", action="store_true", help="keep nothing")
    add(
        "--no-recall",
        action="store_true",
        help="never give a model back what its client's wire could not carry",
    )
    add(
        "--replay",
        nargs="?",
        const="replay",
        choices=["replay", "replay-or-live"],
        help="answer from the log, not from models; or from models what was not recorded",
    )
    add(
        "--replay-speed",
        metavar="FACTOR",
        type=_speed,
        default=Settings.replay_speed,
        help='"recorded", twice as fast (2), or at once (0)',
    )
    add(
        "--recordings",
        type=Path,
        metavar="DIR",
        help="answer from Llama Stack's recordings in this folder",
    )
    add("--think-tags", action="store_true", help="read <think>…</think> in answers as reasoning")
    add(
        "--remote-images",
        choices=["pass", "refuse"],
        default=Settings.remote_images,
        help="URLs of images go to the provider, who opens them, or are refused (%(default)s)",
    )
    add("--api-key", metavar="KEY", action="append", default=[], help="clients must send it")
    add(
        "--allow-host",
        metavar="NAME",
        action="append",
        default=[],
        help="a Host besides localhost, loopback addresses, *.localhost, *.local, *.internal",
    )
    add(
        "--allow-origin",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="pages of this origin may use the server from a browser (https://example.org)",
    )
    add("--no-auth", action="store_true", help="let in who has no key, from other machines too")
    add("--limit", metavar="NAME=VALUE", action="append", default=[], help="change a limit")
    add("--help-limits", action="store_true", help="list the limits, and exit")
    add("--access-log", metavar="FILE", help="a line for each HTTP answer; - is standard error")
    add("--quiet", action="store_true", help="no line for each exchange")
    return parser


def _port(word: str) -> int:
    port = int(word) if word.isdecimal() else -1
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError("a port is a number from 0 to 65535")
    return port


def _speed(word: str) -> float:
    try:
        speed = 1.0 if word == "recorded" else float(word)
    except ValueError:
        speed = -1.0
    if not 0 <= speed < float("inf"):
        raise argparse.ArgumentTypeError('expected a factor, 0 for at once, or "recorded"')
    return speed


def _map(word: str) -> tuple[str, str]:
    pattern, equals, model = word.partition("=")
    if not (pattern and equals and model):
        raise argparse.ArgumentTypeError(f"expected PATTERN=MODEL, not {word!r}")
    return pattern, model


def _settings(arguments: argparse.Namespace) -> Settings:
    if arguments.no_log and arguments.database:
        raise SettingsError("--no-log and --database PATH exclude each other")
    return Settings(
        host=arguments.host,
        port=arguments.port,
        maps=arguments.maps,
        default_model=arguments.default_model,
        parallel=arguments.parallel,
        database=arguments.database,
        log=not arguments.no_log,
        recall=not arguments.no_recall,
        replay=arguments.replay,
        replay_speed=arguments.replay_speed,
        recordings=arguments.recordings,
        think_tags=arguments.think_tags,
        remote_images=arguments.remote_images,
        hosts=arguments.allow_host,
        origins=arguments.allow_origin,
        keys=[*arguments.api_key, *keys_of_environment()],
        auth=not arguments.no_auth,
        limits=_limits(arguments.limit),
        warn=lambda line: print(f"warning: {printable(line)}", file=sys.stderr, flush=True),
        report=_say_nothing if arguments.quiet else _say,
        access_log=arguments.access_log and _lines_to(arguments.access_log),
    )


def _lines_to(path: str) -> Callable[[str], None]:
    """Open a file for lines that are seen at once.

    Raises:
        OSError: it can't be written.
    """
    file = sys.stderr if path == "-" else open(path, "a", encoding="ascii", buffering=1)
    return lambda line: print(line, file=file, flush=True)


def _limits(words: Sequence[str]) -> limits.Limits:
    try:
        return limits.parse_limits(words)
    except ValueError as exc:
        raise SettingsError(str(exc)) from exc


def _say_nothing(exchange: Exchange) -> None:
    pass


def _say(exchange: Exchange) -> None:
    print(summary_line(exchange, colours=sys.stdout.isatty(), id=False), flush=True)


def _take_descriptors(connections: int) -> int:
    """Take as many file descriptors as the connections need, as far as the system lets us.

    Gives the connections that there are enough for: with none left, neither a provider
    nor the log could be reached.
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


async def _serve(settings: Settings, keys: KnownKeys) -> None:
    """Run until a signal says to stop; a second one ends at once."""
    connections = _take_descriptors(settings.limits.connections)
    settings = replace(settings, limits=replace(settings.limits, connections=connections))
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_Failures())
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        _on_signal(loop, number, stopped)
    async with Proxy(settings, keys) as proxy:
        for line in _welcome(proxy):
            print(line, flush=True)
        await stopped.wait()
        print("stopping: running answers may end; again to stop at once", flush=True)
    await _leave()


async def _leave() -> None:
    """End the process although a model won't let itself be cancelled."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    if left and (await asyncio.wait(left, timeout=LEAVE_S))[1]:
        sys.stdout.flush()
        os._exit(0)


class _Failures:
    """Reports what fails in the loop, and once a minute that no connection can be taken.

    asyncio would say that a hundred times a second, each time with its traceback.
    """

    def __init__(self) -> None:
        self._said_at = -math.inf

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        exc = context.get("exception")
        if not isinstance(exc, OSError) or exc.errno not in _NO_MORE:
            loop.default_exception_handler(context)
        elif time.monotonic() - self._said_at >= SAY_AGAIN_S:
            self._said_at = time.monotonic()
            _log.warning("a connection has to wait: %s", exc.strerror)


def _on_signal(
    loop: asyncio.AbstractEventLoop, number: signal.Signals, stopped: asyncio.Event
) -> None:
    try:
        loop.add_signal_handler(number, _stop, number, stopped)
    except NotImplementedError:  # Windows
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(_stop, number, stopped))


def _stop(number: signal.Signals, stopped: asyncio.Event) -> None:
    if stopped.is_set():
        # A model that won't let itself be cancelled would hold the loop's own end.
        end = threading.Timer(LEAVE_S, os._exit, [128 + number])
        end.daemon = True
        end.start()
        raise SystemExit(128 + number)
    stopped.set()


def _welcome(proxy: Proxy) -> list[str]:
    if proxy.is_live:
        count = len(proxy.catalog.models())
        models = (
            f"models: {count}, and demo needs no key; `llm models` lists them"
            if count > 1
            else "models: demo alone; `llm install llm-anthropic` adds more"
        )
    else:
        models = f"models: not asked; answers come from {proxy.settings.recordings or 'the log'}"
    place = proxy.url
    if not is_loopback(proxy.settings.host):
        places = ", ".join(f"{host} port {port}" for host, port in proxy.addresses)
        place = f"{places}, for all who reach it; here: {proxy.url}"
    log = str(proxy.database or "off (--no-log)")
    if proxy.database is not None and not logs_on():
        log = "off (llm logs on turns it on)"
    key = "any key" if not proxy.settings.keys else "your --api-key"
    return [
        f"llmproxy {__version__} listens on {place}",
        f"log: {log}",
        models,
        f"for a client: OPENAI_BASE_URL={proxy.url}/v1 OPENAI_API_KEY=<{key}>",
        f"or: ANTHROPIC_BASE_URL={proxy.url} ANTHROPIC_API_KEY=<{key}>",
    ]
