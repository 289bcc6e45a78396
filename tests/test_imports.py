"""What importing the package costs and needs: no other library, no thread, no file."""

from __future__ import annotations

import subprocess
import sys

import pytest

from .imports import NAMES, is_in, others
from .test_layers import SQL

NEWER = {"compression"}  # in the standard library since Python 3.14


def test_only_the_standard_library_and_llm_are_imported():
    for module in NAMES:
        allowed = {"llm", "sqlite_utils"} if is_in(module, SQL) else {"llm"}
        if module == "pytest_plugin":  # pytest alone imports it
            allowed = {"pytest"}
        # Never ourselves by name: the package can be vendored under another one.
        top = {name.partition(".")[0] for name in others(module)}
        assert top - sys.stdlib_module_names - NEWER <= allowed, module


PROBE = """
import importlib, sys, threading
for module in {modules!r}:
    importlib.import_module("llmproxy" + module)
    assert threading.active_count() == 1, module
    import llm.plugins
    assert not llm.plugins._loaded, module + " loads the plugins"
    import asyncio
    assert asyncio._get_running_loop() is None
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)


def test_importing_any_module_starts_nothing():
    """No thread, no plugin, no file of the user's; and no output."""
    names = ["", *(f".{module}" for module in NAMES if module not in ("__main__", "__init__"))]
    done = run(PROBE.format(modules=names))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "arguments", ["log", "log --threads", "log --search x --json", "log --help"]
)
def test_lists_of_the_log_are_printed_without_llm(arguments, path, store, make_exchange):
    """Its import takes 0.3 s, the rest of such a command 0.1 s."""
    exchange = make_exchange("x")
    store.write([exchange])
    done = run(
        "import atexit, sys; from llmproxy.cli.main import run\n"
        "names = {'llm', 'pydantic', 'sqlite_utils', 'asyncio', 'httpx', 'click'}\n"
        "atexit.register(lambda: print('imported:', *names.intersection(sys.modules)))\n"
        f"run([*{arguments.split()!r}, '--database', {str(path)!r}])"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "imported:"
    assert "--help" in arguments or exchange.id in done.stdout or exchange.thread_id in done.stdout


CONVERT = """
import sys, llm
before = set(sys.modules)
import llmproxy.convert
imported = set(sys.modules) - before
body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
llmproxy.convert.convert_request(body, source="openai_chat", target="anthropic_messages")
print(*sorted(imported))
print(*sorted(set(sys.modules) - before - imported))
"""


IMPORTED = """
    convert core core.argument_text core.attachments core.backend core.byte_cache core.chat
    core.dialect_names core.embeddings core.errors core.field_types core.json_pieces
    core.known_bodies core.limits core.message_facts core.payload core.token_estimate core.usage
    dialects transport transport.framing version
"""
USED = "core.as_text core.error_meanings core.finish_reasons core.openai_api core.tool_calls"


def test_converting_imports_only_what_it_needs():
    """No server, log or model, and of the dialects only the two; see docs/convert.md.

    Of other libraries only llm, whose own imports are before it: `llm.parts` has the vocabulary,
    and to import it is to import all of llm.
    """
    imported, used = (
        {name.removeprefix("llmproxy.") for name in line.split()} - set(sys.stdlib_module_names)
        for line in run(CONVERT).stdout.splitlines()
    )
    assert {name for name in imported if is_ours(name)} == {"llmproxy", *IMPORTED.split()}
    assert {name.partition(".")[0] for name in imported | used if not is_ours(name)} <= (
        set(sys.stdlib_module_names) | NEWER
    )
    dialects = {name for name in used if name.startswith("dialects.")}
    assert {name.split(".")[1] for name in dialects} == {"openai_chat", "anthropic_messages"}
    assert {name for name in used - dialects if is_ours(name)} == set(USED.split())


def is_ours(name):
    return name == "llmproxy" or name in NAMES


@pytest.mark.parametrize("module", ["llmproxy", "llmproxy.plugin"])
def test_importing_the_package_or_its_plugin_imports_no_other_module(module):
    """Each `llm` command pays for it: no server, no asyncio for `llm --help`."""
    done = run(
        f"import sys, llm; before = set(sys.modules); import {module};"
        "print(*sorted(set(sys.modules) - before))"
    )
    loaded = set(done.stdout.split()) - set(sys.stdlib_module_names)
    assert loaded - {"llmproxy.version"} == {"llmproxy", module}
