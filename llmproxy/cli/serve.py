"""Serve: the command without a subcommand. Runs a `Proxy` until a signal stops it."""

from __future__ import annotations

import argparse
import asyncio
import errno
import gc
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import fields
from functools import partial
from typing import Any, TextIO
from urllib.parse import urlsplit

from ..app.access import is_loopback
from ..backends.replay import MAX_LISTED, RecordingSummary
from ..backends.upstreams import UpstreamStatus
from ..core import limits
from ..core.field_types import closest
from ..core.known_keys import KnownKeys
from ..core.text import printable
from ..proxy import Proxy, Settings, SettingsError, check_together
from ..recorder.store import logs_on
from ..report.numbers import count_of
from ..serving import serve_until_signal
from ..version import __version__
from .arguments import Parser, add_database, add_parallel, age
from .columns import joined
from .completion import SHELLS, Shell
from .line_writer import LineWriter
from .run import run
from .sources import Given, Once, add_config, complete, parse_flags
from .summary_text import ExchangeAligner, refusal_row, summary_line, summary_row
from .terminal import STDOUT, has_colours, print_line, width

MAX_UNUSED = 3  # recordings that were not used, named when the server stops
MAX_QUOTED = 30  # characters of what each was asked
SWITCH_S = 0.0005  # Python's own is 5 ms
COLLECT_S = 60.0  # between full collections of garbage, if nothing runs
GC_ALLOCATIONS = 10_000  # new objects before Python looks for cycles among them; it has 700
LESSER_COLLECTIONS = 100  # of 100,000 new objects each, between full ones if something does


def main(
    argv: Sequence[str],
    program: str,
    keys: KnownKeys,
    commands: Sequence[str],
    completion: Callable[[Shell], str],
) -> int:
    """Serve with these arguments until a signal stops it; return the exit code.

    commands: names of the subcommands, for the message if another word is given.
    completion: returns the script of `--completion`, which knows all commands.
    """
    parser = _parser(program)
    flags, unknown = parse_flags(parser, argv)
    words = [word for word in unknown if not word.startswith("-")]
    if words == unknown and words:
        parser.error(_wrong_word(words[0], argv, commands))
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")

    def serve() -> int:
        if flags.help_limits:
            print_line("\n".join(limits.describe()))
            return 0
        if flags.completion:
            print_line(completion(flags.completion))
            return 0
        given = complete(parser, flags)
        with given.naming_errors(parser):
            return _run(given, keys)

    return run(program, serve)


def _wrong_word(word: str, argv: Sequence[str], commands: Sequence[str]) -> str:
    """Explain a word that is not a flag: a command that comes late, or that does not exist."""
    if word in commands:
        return f"the command {word!r} must come first, before all flags"
    if argv[0] != word:
        return f"unrecognized arguments: {word}"
    alike = closest(word, commands)
    hint = f"did you mean {alike}?" if alike else "without one, it serves"
    return f"there is no command {word!r}: {hint} (the commands are {', '.join(commands)})"


def _run(given: Given, keys: KnownKeys) -> int:
    arguments = given.arguments
    # Kept from the start: plugins replace them while they load a model, and two that do so at
    # once may leave closed streams behind for good.
    with ExitStack() as files:
        err = files.enter_context(LineWriter(sys.stderr))
        warn = partial(_warn, err)
        out = files.enter_context(LineWriter(sys.stdout, partial(_failed, warn, STDOUT)))
        access_log, reopen = err, _do_nothing
        if arguments.access_log not in (None, "-"):
            path = arguments.access_log
            file = files.enter_context(_open_access_log(path))
            failed = partial(_failed, warn, f"access log {path}")
            access_log = files.enter_context(LineWriter(file, failed))
            reopen = partial(_reopen, file, path, failed)
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr:
                handler.setStream(err)
                files.callback(handler.setStream, sys.stderr)
        for line in given.warnings:
            warn(line)
        printers = {} if arguments.quiet else _printers(out)
        settings = settings_from(
            arguments,
            warn=warn,
            access_log=access_log.line if arguments.access_log else None,
            **printers,
        )
        _leave_out_own_address(settings, warn)
        asyncio.run(_serve(settings, keys, out, reopen))
    return 0


def _parser(program: str) -> argparse.ArgumentParser:
    parser = Parser(
        prog=program,
        usage=f"%(prog)s [flags]\n       {program} log [ID] [flags]    (see {program} log --help)"
        f"\n       {program} bench --models A,B [flags]\n       {program} report [RUN] [flags]"
        f"\n       {program} export FILE [flags]\n       {program} import FILE [flags]"
        f"\n       {program} convert --from NAME --to NAME [--kind KIND] [FILE]"
        f"\n       {program} check [flags]",
        description="Serve llm's models to programs that speak a well-known LLM API, "
        "and record every exchange in llm's logs.db.",
        epilog="Each flag is also an environment variable (LLMPROXY_PORT) and a key of the file of "
        "--config (port).",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    # Where a flag sets a field of Settings, its dest is that field's name: see _settings.
    add = parser.add_argument
    add("--version", action="version", version=f"llmproxy {__version__}")
    add_config(parser)
    add("--host", default=Settings.host, help="address to listen on (%(default)s)")
    add(
        "--port",
        type=_port,
        default=Settings.port,
        help="port to listen on, 0 for any free port (%(default)s)",
    )
    add(
        "--map",
        dest="maps",
        metavar="PATTERN=TARGET",
        action="append",
        type=_map,
        default=[],
        help="use TARGET for requested model names that match (* and ? allowed); first match wins. "
        "A model, UPSTREAM:, UPSTREAM:MODEL, or several with commas: the next if one refuses",
    )
    add(
        "--upstream",
        dest="upstreams",
        metavar="NAME[=URL]",
        action="append",
        default=[],
        help="a server that requests may go to: anthropic, openai, codex, NAME=DIALECT+URL",
    )
    add(
        "--passthrough",
        action=Once,
        instead="a --map sends models to another upstream",
        metavar="UPSTREAM",
        help="send it what no --map takes",
    )
    add(
        "--upstream-key",
        dest="upstream_keys",
        metavar="UPSTREAM=SOURCE",
        action="append",
        type=_key_source,
        default=[],
        help="its key: client (the client's own credentials, the default), llm:KEYNAME or "
        "env:VARIABLE",
    )
    add(
        "--upstream-ca",
        action=Once,
        instead="one file can have several certificates",
        metavar="FILE",
        help="trust these certificates too (PEM)",
    )
    add(
        "--upstream-insecure",
        action="store_true",
        help="let --upstream use http:// for public addresses",
    )
    add(
        "--upstream-wait",
        dest="upstream_wait_s",
        metavar="SECONDS",
        type=_seconds,
        default=Settings.upstream_wait_s,
        help="wait at most so long for an upstream that is busy (429) and says when to come again",
    )
    add(
        "--default-model",
        metavar="MODEL",
        help="model to use if a request names none or an unknown one",
    )
    add_parallel(parser)
    add_database(parser)
    add("--no-log", dest="log", action="store_false", help="do not record anything")
    add(
        "--keep",
        type=age,
        metavar="AGE",
        help="delete exchanges that are older (90d, 2w) from the log, at the start and once a day "
        "(default: keep all)",
    )
    add(
        "--no-recall",
        dest="recall",
        action="store_false",
        help="do not put back what a client's API could not carry of earlier replies",
    )
    add(
        "--replay",
        nargs="?",
        const="replay",
        choices=["replay", "replay-or-live"],
        help="answer from the log, or --recordings, instead of from models; "
        "replay-or-live asks a model if nothing recorded matches",
    )
    add(
        "--replay-speed",
        metavar="FACTOR",
        type=_speed,
        default=Settings.replay_speed,
        help='"recorded", a factor (2 is twice as fast), or 0 for no delay',
    )
    add(
        "--recordings",
        metavar="PATH",
        action="append",
        help="answer from this file, written by export, or from all such files and Llama Stack "
        "recordings in this folder (repeatable)",
    )
    add(
        "--ignore",
        metavar="PATTERN",
        action="append",
        default=[],
        help="text that may differ between a request and its recording, as a regular expression "
        "(repeatable)",
    )
    add("--think-tags", action="store_true", help="read <think>…</think> in replies as reasoning")
    add(
        "--remote-images",
        choices=["pass", "refuse"],
        default=Settings.remote_images,
        help="image URLs: pass them to the provider, who fetches them, or refuse (%(default)s)",
    )
    add(
        "--api-key",
        dest="keys",
        metavar="KEY",
        action="append",
        default=[],
        help="require this key from clients (repeatable)",
    )
    add(
        "--allow-host",
        dest="hosts",
        metavar="NAME",
        action="append",
        default=[],
        help="accept this Host besides localhost, loopback addresses, *.localhost, this machine's "
        "NAME.local, host.docker.internal, host.containers.internal",
    )
    add(
        "--allow-origin",
        dest="origins",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="let web pages of this origin use the server (https://example.org)",
    )
    add(
        "--no-auth",
        dest="auth",
        action="store_false",
        help="accept requests without a key, from other machines too",
    )
    add(
        "--limit",
        dest="limits",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="change a limit",
    )
    add("--completion", choices=SHELLS, help="print a script of completions for this shell")
    add("--help-limits", action="store_true", help="list the limits and exit")
    add(
        "--otlp",
        action=Once,
        instead="a collector can send the spans on to others",
        metavar="URL",
        help="send a span of each exchange to this OpenTelemetry collector, with the headers in "
        "OTEL_EXPORTER_OTLP_HEADERS",
    )
    add("--otlp-content", action="store_true", help="spans have the words of the conversations")
    add(
        "--access-log",
        action=Once,
        metavar="FILE",
        help="log each HTTP response to FILE; - is standard error",
    )
    add("--debug", action="store_true", help="print the traceback if a model's plugin fails")
    add("--quiet", action="store_true", help="do not print a line per exchange")
    return parser


def _port(text: str) -> int:
    port = int(text) if text.isdecimal() else -1
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError("a port is a number from 0 to 65535")
    return port


def _speed(text: str) -> float:
    try:
        speed = 1.0 if text == "recorded" else float(text)
    except ValueError:
        speed = -1.0
    if not 0 <= speed < float("inf"):
        raise argparse.ArgumentTypeError('expected a factor, 0 for no delay, or "recorded"')
    return speed


def _key_source(text: str) -> tuple[str, str]:
    name, equals, source = text.partition("=")
    if not (name and equals and source):
        raise argparse.ArgumentTypeError("expected UPSTREAM=SOURCE")  # it may be a key itself
    return name, source


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError("expected seconds, 0 for no wait")
    return seconds


def _map(text: str) -> tuple[str, str]:
    pattern, equals, model = text.partition("=")
    if not (pattern and equals and model):
        raise argparse.ArgumentTypeError(f"expected PATTERN=TARGET, not {text!r}")
    return pattern, model


def settings_from(arguments: argparse.Namespace, **others: Any) -> Settings:
    """Return the settings that the flags describe.

    others: fields that are not the flags' matter, such as `warn`.

    Raises:
        SettingsError: they can't work.
    """
    given = vars(arguments)
    values = {field.name: given[field.name] for field in fields(Settings) if field.name in given}
    return Settings(**values | {"limits": _limits(arguments.limits), "access_log": None} | others)


def settings_of_environment() -> Settings:
    """Return the settings of LLMPROXY_… variables and the file of LLMPROXY_CONFIG.

    For a server that isn't the command's: it has a port and an access log of its own.

    Raises:
        SettingsError: they can't work; it names where each stands.
    """
    parser = _parser("llmproxy")
    flags, _ = parse_flags(parser, [])
    given = complete(parser, flags)
    with given.naming_errors(parser):
        settings = settings_from(given.arguments)
        check_together(settings)
    for line in given.warnings:
        settings.warn(line)
    if source := given.sources.get("access_log"):
        settings.warn(f"{source} is not used: the access log is the ASGI server's")
    return settings


def _leave_out_own_address(settings: Settings, warn: Callable[[str], None]) -> None:
    """Take OLLAMA_HOST out of the environment if it is this server's own address.

    People set it for clients, in the same shell. llm-ollama would list our models as an Ollama
    server's, and after each reload those of that list too.
    """
    host = os.environ.get("OLLAMA_HOST", "")
    try:
        address = urlsplit(host if "//" in host else f"//{host}")
        is_own = address.port == settings.port and is_loopback(address.hostname or "")
    except ValueError:
        return
    if is_own:
        del os.environ["OLLAMA_HOST"]
        warn("OLLAMA_HOST is this server's own address: here llm-ollama does not use it")


def _warn(err: LineWriter, line: str) -> None:
    err.line(f"warning: {printable(line)}")


def _failed(warn: Callable[[str], None], name: str, exc: OSError) -> None:
    """Warn that lines can't be written, unless the stream was closed before we began."""
    if exc.errno != errno.EBADF:
        warn(f"{name}: {exc.strerror}; its lines are lost until it can be written")


def _open_access_log(path: str) -> TextIO:
    """Open a file to append lines to; a new one can be read by its owner only."""
    try:
        return open(path, "a", encoding="ascii", opener=partial(os.open, mode=0o600))
    except OSError as exc:
        raise SettingsError(f"{{access_log}}: {path}: {exc.strerror}") from exc


def _do_nothing() -> None:
    pass


def _reopen(file: TextIO, path: str, failed: Callable[[OSError], None]) -> None:
    """Open a file that was moved away anew, under the same descriptor."""
    try:
        new = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.dup2(new, file.fileno(), inheritable=False)
        os.close(new)
    except OSError as exc:
        failed(exc)


def _limits(assignments: Sequence[str]) -> limits.Limits:
    try:
        return limits.parse_limits(assignments)
    except ValueError as exc:
        raise SettingsError(f"{{limits}}: {exc}") from exc


def _printers(out: LineWriter) -> dict[str, Callable[[Any], None]]:
    """Return what prints exchanges and refusals as lines, in columns on a terminal."""
    if not out.isatty():
        return {
            "on_exchange": lambda exchange: out.line(summary_line(exchange)),
            "on_refusal": lambda refusal: out.line(joined(refusal_row(refusal))),
        }
    aligner = ExchangeAligner(width, colours=has_colours(sys.stdout))
    return {
        "on_exchange": lambda exchange: out.line("".join(aligner.lines([summary_row(exchange)]))),
        "on_refusal": lambda refusal: out.line("".join(aligner.lines([refusal_row(refusal)]))),
    }


def shorten_pauses() -> None:
    """Have the event loop wait less for other threads and for the garbage collector.

    These are settings of the process, so the command makes them, and no program that embeds
    the server. A thread that computes keeps Python for a switch interval each time that the
    loop has slept or written; a full collection looks at every object, for a quarter of a
    second while a request of 80,000 messages is in memory. So what was loaded by now is looked
    at no more, and full collections wait until nothing runs, or for 100 lesser ones. These
    come rarely too: an event costs 5.2 µs of CPU instead of 7.5 in a stream of 10,000.
    """
    sys.setswitchinterval(SWITCH_S)
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, 10, LESSER_COLLECTIONS)


def _collect_when_idle(proxy: Proxy, *, is_due: bool = True) -> None:
    if is_due and not proxy.app.unanswered:
        gc.collect()
    asyncio.get_running_loop().call_later(COLLECT_S, _collect_when_idle, proxy)


async def _serve(
    settings: Settings, keys: KnownKeys, out: LineWriter, reopen: Callable[[], None]
) -> None:
    """Run until a signal says to stop; SIGHUP without a terminal opens the access log again."""

    def on_start(proxy: Proxy) -> None:
        # First, what is there is left out of all collections: looking through it once, as soon as
        # they were enabled, took a twentieth of the start.
        shorten_pauses()
        gc.enable()  # see main.py
        _collect_when_idle(proxy, is_due=False)
        out.line("\n".join(_welcome(proxy)))
        proxies.append(proxy)

    proxies: list[Proxy] = []
    await serve_until_signal(
        settings,
        keys,
        on_start=on_start,
        on_stop=lambda proxy: out.line(_goodbye(proxy.app.unanswered, settings.limits.shutdown_s)),
        on_hang_up=reopen,
    )
    for proxy in proxies:
        if proxy.recording_count <= MAX_LISTED and (unused := proxy.unused_recordings()):
            out.line(unused_text(unused, proxy.recording_count))
    out.line("stopped")


def _goodbye(unanswered: int, shutdown_s: float) -> str:
    if not unanswered:
        return "stopping"
    responses = count_of(unanswered, "response")
    return (
        f"stopping: waiting for {responses}, at most {shutdown_s:g} s; "
        "a second Ctrl-C or SIGTERM stops at once"
    )


def unused_text(unused: Sequence[RecordingSummary], count: int) -> str:
    """Name recordings that nothing has asked for, the first ones by their first words."""
    shown = ", ".join(f"{one.id} ({one.first_words[:MAX_QUOTED]!r})" for one in unused[:MAX_UNUSED])
    left = len(unused) - MAX_UNUSED
    more = f" and {left:,} more" if left > 0 else ""
    of = count_of(count, "recording")
    return f"not used: {len(unused):,} of {of}: {printable(shown)}{more}"


def _welcome(proxy: Proxy) -> list[str]:
    log = f"{proxy.database or 'off (--no-log)'}{' (new)' if proxy.has_new_log else ''}"
    if proxy.database is not None and not logs_on():
        log = "off (turn it on with: llm logs on)"
    key = "any" if not proxy.settings.keys else "YOUR_API_KEY"
    upstreams = proxy.upstreams.describe() if proxy.is_live else []
    # Clients of these send their own keys, which a variable would replace.
    with_own_key = {name for one in upstreams if one.has_key is None for name in one.dialects}
    openai_key = "" if with_own_key & {"openai_chat", "openai_responses"} else " OPENAI_API_KEY="
    anthropic_key = "" if "anthropic_messages" in with_own_key else " ANTHROPIC_API_KEY="
    return [
        f"llmproxy {__version__} listens on {_place(proxy)}",
        f"log: {log}",
        f"models: {_models(proxy)}",
        *map(_upstream, upstreams),
        f"for a client: OPENAI_BASE_URL={proxy.url}/v1{openai_key and openai_key + key}",
        f"or: ANTHROPIC_BASE_URL={proxy.url}{anthropic_key and anthropic_key + key}",
        f"or: OLLAMA_HOST={proxy.url}",
    ]


def _upstream(upstream: UpstreamStatus) -> str:
    key = "clients' own keys" if upstream.has_key is None else f"the key {upstream.key}"
    missing = ", which is not set" if upstream.has_key is False else ""
    proxy = f" by the proxy {upstream.proxy}" if upstream.proxy else ""
    problem = f"; it can't be reached: {upstream.problem}" if upstream.problem else ""
    return f"upstream {upstream.name}: {upstream.url}{proxy} with {key}{missing}{problem}"


def _place(proxy: Proxy) -> str:
    if is_loopback(proxy.settings.host):
        return proxy.url
    places = ", ".join(f"{host} port {port}" for host, port in proxy.addresses)
    return f"{places}, open to other machines; on this one: {proxy.url}"


def _models(proxy: Proxy) -> str:
    recordings = f"{count_of(proxy.recording_count, 'recording')} of {proxy.recordings_name}"
    if not proxy.is_live:
        return f"not used; replaying {recordings}"
    count = sum(model.chats and not model.alias_of for model in proxy.catalog.models())
    listed = (
        "only demo; add more with: llm install llm-anthropic"
        if count == 1
        else f"{count} (llm models lists them); the model demo needs no key"
    )
    if proxy.settings.replay is None:
        return listed
    return f"{listed}\nreplaying {recordings}; a model is asked if none matches"
