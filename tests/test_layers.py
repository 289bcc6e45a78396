"""The house's rooms and what each may import: STYLE's table, held against the code."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import llmproxy

PACKAGE = Path(llmproxy.__file__).parent

# Room → the rooms it may import, all of which stand above it here. "" is the package
# itself: its version for anyone, and below all the public API, resolved lazily.
ROOMS: dict[str, set[str]] = {
    "limits": set(),
    "errors": set(),
    "payload": {"errors", "limits"},
    "keys": {"errors"},
    "hub": {"errors", "payload"},
    "remote_images": {"errors", "hub"},
    "tokens": {"hub"},
    "tags": {"hub"},
    "transport": set(),
    "transport.http11": {"errors", "limits"},
    "transport.framing": {"errors"},
    "transport.answers": {"errors", "limits", "transport.http11"},
    "transport.server": {"errors", "limits", "transport.http11"},
    "transport.client": {"errors", "limits", "transport.http11", "transport.answers"},
    "dialects.openai_chat.shapes": set(),
    "dialects.openai_chat.models_and_errors": {"errors", "hub"},
    "dialects.openai_chat.noise": {"payload"},
    "dialects.openai_chat.read_request": {
        "errors",
        "payload",
        "hub",
        "dialects.openai_chat.shapes",
    },
    "dialects.openai_chat.answers": {"payload", "hub"},
    "dialects.openai_chat.stream": {
        "errors",
        "payload",
        "hub",
        "transport.framing",
        "dialects.openai_chat.answers",
        "dialects.openai_chat.models_and_errors",
    },
    "dialects.openai_chat.write_request": {
        "hub",
        "dialects.openai_chat.shapes",
        "dialects.openai_chat.answers",
    },
    "dialects.openai_chat.read_answer": {
        "errors",
        "payload",
        "hub",
        "transport.framing",
        "dialects.openai_chat.shapes",
        "dialects.openai_chat.models_and_errors",
    },
    "dialects.openai_chat": {
        "hub",
        "dialects.openai_chat.shapes",
        "dialects.openai_chat.models_and_errors",
        "dialects.openai_chat.noise",
        "dialects.openai_chat.read_request",
        "dialects.openai_chat.answers",
        "dialects.openai_chat.stream",
        "dialects.openai_chat.write_request",
        "dialects.openai_chat.read_answer",
    },
    "dialects.anthropic_messages.shapes": set(),
    "dialects.anthropic_messages.models_and_errors": {"errors", "hub"},
    "dialects.anthropic_messages.noise": {"payload"},
    "dialects.anthropic_messages.answers": {"hub", "tokens"},
    "dialects.anthropic_messages.read_request": {
        "errors",
        "payload",
        "hub",
        "dialects.anthropic_messages.shapes",
        "dialects.anthropic_messages.answers",
        "dialects.anthropic_messages.noise",
    },
    "dialects.anthropic_messages.write_request": {
        "errors",
        "hub",
        "dialects.anthropic_messages.answers",
    },
    "dialects.anthropic_messages.stream": {
        "errors",
        "payload",
        "hub",
        "transport.framing",
        "dialects.anthropic_messages.models_and_errors",
        "dialects.anthropic_messages.answers",
    },
    "dialects.anthropic_messages.read_answer": {
        "errors",
        "payload",
        "hub",
        "transport.framing",
        "dialects.anthropic_messages.models_and_errors",
        "dialects.anthropic_messages.answers",
    },
    "dialects.anthropic_messages": {
        "hub",
        "dialects.anthropic_messages.shapes",
        "dialects.anthropic_messages.models_and_errors",
        "dialects.anthropic_messages.answers",
        "dialects.anthropic_messages.noise",
        "dialects.anthropic_messages.read_request",
        "dialects.anthropic_messages.write_request",
        "dialects.anthropic_messages.stream",
        "dialects.anthropic_messages.read_answer",
    },
    "dialects": {
        "errors",
        "hub",
        "transport.framing",
        "dialects.openai_chat",
        "dialects.anthropic_messages",
    },
    "convert": {"errors", "payload", "hub", "transport.framing", "dialects"},
    "study": set(),
    "study.stats": set(),
    "study.values": {"errors", "payload"},
    "study.agreement": {"study.values"},
    "study.remote": {
        "errors",
        "limits",
        "payload",
        "hub",
        "keys",
        "remote_images",
        "transport.client",
        "transport.framing",
        "dialects",
    },
    "gate": set(),
    "engine.catalogue": {"errors", "gate", "hub"},
    "engine.events": {"errors", "payload", "hub"},
    "engine.form": {"errors", "hub", "remote_images", "engine.catalogue"},
    "engine.llm_keys": {"keys"},
    "engine.outcome": {"errors", "hub", "keys"},
    "engine.threads": {"errors"},
    "engine.run": {
        "errors",
        "hub",
        "keys",
        "remote_images",
        "tags",
        "engine.catalogue",
        "engine.events",
        "engine.form",
        "engine.llm_keys",
        "engine.outcome",
        "engine.threads",
    },
    "engine": {"engine.catalogue", "engine.llm_keys", "engine.run"},
    "demo": set(),
    "recorder": set(),
    "recorder.timeline": {"hub"},
    "recorder.redact": {"keys"},
    "recorder.folding": set(),
    "recorder.owner": {"errors"},
    "recorder.exchange": {
        "errors",
        "hub",
        "keys",
        "tokens",
        "recorder.redact",
        "recorder.timeline",
    },
    "recorder.lines": {
        "errors",
        "limits",
        "payload",
        "hub",
        "recorder.exchange",
        "recorder.timeline",
    },
    "recorder.filler": {"hub", "recorder.exchange", "recorder.timeline"},
    "recorder.recordings": {
        "errors",
        "payload",
        "hub",
        "transport.framing",
        "dialects",
        "dialects.anthropic_messages",
        "dialects.openai_chat",
    },
    "recorder.write_recording": {
        "errors",
        "payload",
        "hub",
        "transport.framing",
        "dialects",
        "dialects.openai_chat",
        "recorder.exchange",
    },
    "recorder.turns": {"hub", "recorder.exchange"},
    "recorder.chain": {"hub"},
    "recorder.replies": {"recorder.chain"},
    "recorder.store": {
        "errors",
        "hub",
        "recorder.chain",
        "recorder.exchange",
        "recorder.folding",
        "recorder.owner",
        "recorder.replies",
        "recorder.timeline",
        "recorder.turns",
    },
    "recorder.history": {
        "errors",
        "hub",
        "recorder.exchange",
        "recorder.folding",
        "recorder.store",
        "recorder.timeline",
    },
    "recorder.runs": {"errors", "recorder.history", "recorder.owner", "recorder.store"},
    "recorder.memory": {
        "recorder.chain",
        "recorder.exchange",
        "recorder.history",
        "recorder.replies",
        "recorder.store",
    },
    "recorder.tree": {"recorder.exchange"},
    "recorder.conversations": {
        "errors",
        "hub",
        "recorder.exchange",
        "recorder.history",
        "recorder.store",
        "recorder.tree",
    },
    "recorder.prefix": {
        "hub",
        "tokens",
        "recorder.chain",
        "recorder.conversations",
        "recorder.exchange",
        "recorder.history",
        "recorder.store",
    },
    "recorder.verify": {
        "recorder.exchange",
        "recorder.folding",
        "recorder.history",
        "recorder.store",
    },
    "recorder.replay": {"errors", "hub", "recorder.chain", "recorder.timeline"},
    "recorder.sources": {
        "errors",
        "hub",
        "dialects",
        "recorder.chain",
        "recorder.exchange",
        "recorder.history",
        "recorder.recordings",
        "recorder.replay",
    },
    "recorder.moving": {
        "errors",
        "hub",
        "recorder.chain",
        "recorder.exchange",
        "recorder.filler",
        "recorder.history",
        "recorder.lines",
        "recorder.recordings",
        "recorder.store",
        "recorder.write_recording",
    },
    "recorder.prune": {"errors", "recorder.folding", "recorder.history", "recorder.store"},
    "recorder.spool": {"errors", "recorder.exchange", "recorder.owner"},
    "recorder.writer": {"errors", "recorder.exchange", "recorder.spool", "recorder.store"},
    "study.prices": {"errors", "hub", "payload"},
    "study.measured": {"hub", "recorder.exchange"},
    "study.figures": {"hub", "study.agreement", "study.measured", "study.prices", "study.stats"},
    "study.markup": {"study.stats"},
    "study.style": set(),
    "study.differences": set(),
    "study.axes": set(),
    "study.charts": {"study.axes", "study.figures", "study.markup", "study.stats"},
    "study.verdict": {"study.figures", "study.markup", "study.measured", "study.stats"},
    "study.tables": {"study.charts", "study.figures", "study.markup"},
    "study.side_by_side": {
        "study.charts",
        "study.differences",
        "study.markup",
        "study.measured",
    },
    "study.page": {
        "study.charts",
        "study.figures",
        "study.markup",
        "study.measured",
        "study.side_by_side",
        "study.style",
        "study.tables",
        "study.verdict",
    },
    "study.bench": {
        "dialects",
        "errors",
        "hub",
        "recorder.exchange",
        "recorder.store",
        "study.remote",
    },
    "study.reading": {
        "errors",
        "recorder.exchange",
        "recorder.history",
        "recorder.runs",
        "study.bench",
        "study.measured",
    },
    "study.metrics": {"recorder.exchange"},
    "pages": {
        "",
        "payload",
        "engine",
        "errors",
        "recorder.writer",
        "study.metrics",
        "study.page",
        "transport.http11",
    },
    "access_log": {"recorder.redact", "transport.http11", "transport.server"},
    "access": {"errors", "transport.http11"},
    "app": {
        "keys",
        "access",
        "errors",
        "limits",
        "payload",
        "tokens",
        "hub",
        "transport.http11",
        "dialects",
        "engine",
        "recorder.chain",
        "recorder.exchange",
        "recorder.memory",
        "recorder.writer",
        "study.metrics",
        "gate",
        "pages",
    },
    "live_page": {
        "",
        "recorder.history",
        "study.figures",
        "study.measured",
        "study.page",
        "study.reading",
    },
    "assemble": {
        "keys",
        "access",
        "access_log",
        "app",
        "demo",
        "engine",
        "errors",
        "hub",
        "limits",
        "live_page",
        "recorder.exchange",
        "recorder.history",
        "recorder.memory",
        "recorder.owner",
        "recorder.replay",
        "recorder.sources",
        "recorder.spool",
        "recorder.store",
        "recorder.writer",
        "remote_images",
        "transport.server",
    },
    "background": {"assemble"},
    "terminal": {"hub", "payload", "recorder.exchange", "recorder.timeline"},
    "terminal_threads": {
        "recorder.chain",
        "recorder.conversations",
        "recorder.prefix",
        "recorder.tree",
        "recorder.verify",
        "terminal",
    },
    "study.report": {"study.figures", "study.measured", "terminal"},
    "command": {"errors"},
    "filters": {"dialects", "recorder.exchange", "recorder.history", "recorder.runs"},
    "log_command": {
        "command",
        "filters",
        "recorder.conversations",
        "recorder.exchange",
        "recorder.history",
        "recorder.prefix",
        "recorder.prune",
        "recorder.store",
        "recorder.verify",
        "terminal",
        "terminal_threads",
    },
    "convert_command": {"command", "convert", "dialects", "payload"},
    "moving_commands": {
        "command",
        "filters",
        "recorder.history",
        "recorder.moving",
        "recorder.store",
    },
    "report_command": {
        "",
        "command",
        "errors",
        "filters",
        "recorder.history",
        "recorder.runs",
        "recorder.store",
        "study.figures",
        "study.measured",
        "study.page",
        "study.prices",
        "study.reading",
        "study.report",
    },
    "bench_command": {
        "assemble",
        "command",
        "dialects",
        "engine",
        "errors",
        "filters",
        "hub",
        "recorder.exchange",
        "recorder.history",
        "recorder.runs",
        "recorder.sources",
        "recorder.store",
        "report_command",
        "study.bench",
        "study.prices",
        "study.reading",
        "terminal",
        "tokens",
    },
    "cli": {
        "",
        "engine",
        "filters",
        "keys",
        "access",
        "assemble",
        "bench_command",
        "convert_command",
        "limits",
        "log_command",
        "moving_commands",
        "recorder.exchange",
        "recorder.store",
        "report_command",
        "terminal",
    },
    "__main__": {"cli"},
    "plugin": {"cli", "demo"},
    "": {"assemble", "background", "convert", "limits"},
}

# Ids, times and bytes come in as arguments, so that a test can say them.
PURE = (
    "limits errors payload hub tags transport.http11 transport.answers transport.framing"
    " keys remote_images dialects dialects.openai_chat dialects.openai_chat.shapes"
    " dialects.openai_chat.models_and_errors dialects.openai_chat.noise"
    " dialects.openai_chat.read_request dialects.openai_chat.write_request"
    " dialects.openai_chat.answers dialects.openai_chat.stream dialects.openai_chat.read_answer"
    " dialects.anthropic_messages"
    " dialects.anthropic_messages.shapes dialects.anthropic_messages.models_and_errors"
    " dialects.anthropic_messages.noise"
    " dialects.anthropic_messages.answers dialects.anthropic_messages.read_request"
    " dialects.anthropic_messages.write_request dialects.anthropic_messages.stream"
    " dialects.anthropic_messages.read_answer"
    " engine.events engine.form engine.outcome recorder.timeline recorder.redact"
    " recorder.folding recorder.exchange recorder.lines recorder.filler recorder.recordings"
    " recorder.write_recording"
    " recorder.chain recorder.tree access terminal terminal_threads study.metrics"
    # study.stats draws at random, from a seed that it is given.
    " study.values study.agreement study.prices study.measured study.figures"
    " study.markup study.style study.differences study.axes study.charts study.verdict"
    " study.tables study.side_by_side study.page"
    " study.report"
).split()
IMPURE_MODULES = (
    "asyncio logging mimetypes os pathlib random secrets socket sqlite3 subprocess tempfile"
    " threading time urllib.request uuid"
).split()

# What the log's own rooms alone touch. `sqlite_utils` is llm's: its API takes its Database.
_SQL = {
    "recorder.store",
    "recorder.replies",
    "recorder.turns",
    "recorder.history",
    "recorder.prune",
    "recorder.verify",
}
ONLY_IN = {
    "sqlite_utils": _SQL,
    "sqlite3": _SQL | {"recorder.owner", "recorder.spool"},
    "socket": {"transport.server", "transport.client"},
    "click": set(),
}


def rooms() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(parts).removesuffix("__init__").removesuffix("."), path


PATHS = dict(rooms())


@cache
def imports(room: str) -> frozenset[tuple[int, str]]:
    """Give each imported module with its level: how many dots there are before it."""
    return frozenset(_imports(room))


def _imports(room: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(PATHS[room].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield 0, alias.name
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                yield 0, node.module or ""
                continue
            for alias in node.names:
                whole = _absolute(room, node.level, node.module, alias.name)
                yield node.level, whole if whole in PATHS else whole.rpartition(".")[0]


def _absolute(room: str, level: int, module: str | None, name: str) -> str:
    package = room.split(".") if PATHS[room].name == "__init__.py" else room.split(".")[:-1]
    kept = package[: len(package) - level + 1]
    return ".".join([part for part in (*kept, module, name) if part])


def test_every_room_is_in_the_table():
    assert set(PATHS) <= set(ROOMS)


def test_the_table_reads_downwards():
    above = {""}
    for room, allowed in ROOMS.items():
        assert allowed <= above, room
        above.add(room)


@pytest.mark.parametrize("room", PATHS)
def test_a_room_imports_only_what_the_table_allows(room):
    ours = {module for level, module in imports(room) if level}
    assert ours <= ROOMS[room]


@pytest.mark.parametrize("room", PATHS)
def test_ours_is_imported_relatively(room):
    """So that the package can be vendored under another name."""
    absolute = {module.partition(".")[0] for level, module in imports(room) if not level}
    assert "llmproxy" not in absolute


@pytest.mark.parametrize("room", PATHS)
def test_the_stdlib_and_llm_are_all_that_runs_it(room):
    absolute = {module.partition(".")[0] for level, module in imports(room) if not level}
    shared = {name for name, users in ONLY_IN.items() if room in users}
    assert absolute - sys.stdlib_module_names <= {"llm"} | shared


@pytest.mark.parametrize("module", ONLY_IN)
def test_what_one_room_alone_touches(module):
    users = {room for room in PATHS if (0, module) in imports(room)}
    assert users <= ONLY_IN[module]


@pytest.mark.parametrize("room", sorted(PATHS.keys() & set(PURE)))
def test_a_pure_room_does_no_io_and_knows_no_clock(room):
    used = {module for level, module in imports(room) if not level}
    assert used.isdisjoint(IMPURE_MODULES)


def test_no_module_bears_the_name_of_another():
    names = {part for room in PATHS for part in room.split(".")} - {"", "__main__"}
    sdks = {"anthropic", "openai", "ollama", "groq", "httpx", "llm", "mistralai", "google"}
    assert names.isdisjoint(sys.stdlib_module_names | sdks)


PROBE = """
import importlib, sys, threading
for room in {rooms!r}:
    importlib.import_module("llmproxy" + room)
    assert threading.active_count() == 1, room
    import llm.plugins
    assert not llm.plugins._loaded, room + " loads the plugins"
    import asyncio
    assert asyncio._get_running_loop() is None
"""


def test_importing_any_room_starts_nothing():
    """No thread, no plugin, no file of the user's; and no output."""
    names = [f".{room}" if room else "" for room in PATHS if room != "__main__"]
    probe = PROBE.format(rooms=names)
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=50)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


@pytest.mark.parametrize("module", ["llmproxy", "llmproxy.plugin"])
def test_importing_the_package_or_its_plugin_imports_no_room(module):
    """Each `llm` command pays for it: no server, no asyncio for `llm --help`."""
    probe = (
        f"import sys, llm; before = set(sys.modules); import {module};"
        "print(*sorted(set(sys.modules) - before))"
    )
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=50)
    assert set(run.stdout.split()) - set(sys.stdlib_module_names) == {"llmproxy", module}
