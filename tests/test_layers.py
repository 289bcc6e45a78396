"""The layout of DESIGN 1: who may import whom, and what only some folders may touch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import llmproxy

PACKAGE = Path(llmproxy.__file__).parent

# A folder imports from lines above its own, never from one beside it.
ORDER = """
version
core
transport recorder
dialects conversations
backends convert log
bench transfer
report
app
proxy
serving
cli
plugin __main__ __init__
""".split("\n")[1:-1]
RANK = {folder: rank for rank, line in enumerate(ORDER) for folder in line.split()}

PURE = (
    "core (?!threads|limiter)|dialects|transport http11|transport http_grammar"
    "|transport response_parser|transport framing|report stats"
)
IMPURE_MODULES = set(
    "asyncio logging mimetypes os pathlib random secrets socket sqlite3 subprocess tempfile"
    " threading time urllib.request uuid".split()
) - {"random"}  # report/stats draws from a seed that it is given
SOCKETS = "transport (server|client)$"
SQL = "recorder|conversations|backends log_source|bench runs"
ENGINE = "backends engine"
MODELS_OF_LLM = set(
    "Model AsyncModel KeyModel AsyncKeyModel Prompt Response AsyncResponse Conversation"
    " get_model get_models get_async_model get_models_with_aliases".split()
)
LLAMA_STACK = "transfer llama_stack"  # one foreign project's files: nothing hangs on them


def is_in(module: str, places: str) -> bool:
    """Whether a module (`core.text`) is at one of the places (`core text|dialects`)."""
    return re.match(rf"({places})\b", module.replace(".", " ")) is not None


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(parts).removesuffix(".__init__"), path


PATHS = dict(modules())
NAMES = sorted(PATHS)


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(PATHS[module].read_text("utf-8"))


@cache
def imports(module: str) -> frozenset[str]:
    """Give what a module imports: ours by their place in the package, others as they are."""
    return frozenset(_imports(module))


def _imports(module: str) -> Iterator[str]:
    package = module.split(".")
    if PATHS[module].name != "__init__.py":
        package = package[:-1]
    elif module == "__init__":
        package = []
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from (f"/{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield f"/{node.module}"
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            base += node.module.split(".") if node.module else []
            for alias in node.names:
                whole = ".".join([*base, alias.name])
                yield whole if whole in PATHS else ".".join(base) or "__init__"


def ours(module: str) -> set[str]:
    return {name for name in imports(module) if not name.startswith("/")}


def others(module: str) -> set[str]:
    return {name[1:] for name in imports(module) if name.startswith("/")}


def tops(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def test_a_folder_imports_only_from_folders_below_it():
    wrong = [
        f"{module} imports {name}"
        for module in NAMES
        for name in ours(module)
        if (here := module.partition(".")[0]) != (there := name.partition(".")[0])
        and RANK[there] >= RANK[here]
    ]  # fmt: skip
    assert wrong == []


def test_there_is_no_circle():
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " → ".join([*path, module])
        if module not in done:
            for name in sorted(ours(module) & PATHS.keys()):
                # A package's __init__ gathers its modules, which import one another past it.
                if PATHS[name].name != "__init__.py":
                    visit(name, (*path, module))
            done.add(module)

    for module in NAMES:
        visit(module, ())


def test_dialects_do_not_import_each_other():
    for module in NAMES:
        if module.startswith("dialects."):
            own = module.split(".")[1]
            foreign = {name.split(".")[1] for name in ours(module) if name.startswith("dialects.")}
            assert foreign <= {own}, module


def test_only_the_command_and_the_proxy_know_llama_stack():
    users = {m for m in NAMES if any(is_in(name, LLAMA_STACK) for name in ours(m))}
    assert {m for m in users if not is_in(m, f"{LLAMA_STACK}|cli|proxy")} == set()


def test_pure_modules_do_no_io_and_know_no_clock():
    impure = {m: others(m) & IMPURE_MODULES for m in NAMES if is_in(m, PURE)}
    assert {m: found for m, found in impure.items() if found} == {}


def test_only_the_transport_touches_sockets():
    assert [m for m in NAMES if "socket" in others(m) and not is_in(m, SOCKETS)] == []


def test_sql_stands_only_where_the_log_is_read_and_written():
    statement = re.compile(r"\s*(select|insert|update|delete from|create|alter|pragma) ", re.I)
    found = {
        module
        for module in NAMES
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        and statement.match(node.value)
        and re.search(r"\b(from|into|set|table|index|column)\b", node.value)
        and node.value not in docstrings(module)
    }  # fmt: skip
    assert {m for m in found if not is_in(m, SQL)} == set()
    users = {m for m in NAMES if others(m) & {"sqlite3", "sqlite_utils"}}
    assert {m for m in users if not is_in(m, SQL)} == set()


@cache
def docstrings(module: str) -> set[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (node for node in ast.walk(tree(module)) if isinstance(node, kinds))
    return {ast.get_docstring(node, clean=False) or "" for node in nodes}


def test_only_the_engine_runs_models():
    users = {
        module
        for module in NAMES
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        and node.value.id == "llm" and node.attr in MODELS_OF_LLM
    }  # fmt: skip
    assert {m for m in users if not is_in(m, ENGINE)} == set()


def test_only_the_standard_library_and_llm_are_imported():
    for module in NAMES:
        allowed = {"llm", "sqlite_utils"} if is_in(module, SQL) else {"llm"}
        # Never ourselves by name: the package can be vendored under another one.
        assert tops(others(module)) - sys.stdlib_module_names <= allowed, module


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


@pytest.mark.parametrize("module", ["llmproxy", "llmproxy.plugin"])
def test_importing_the_package_or_its_plugin_imports_no_other_module(module):
    """Each `llm` command pays for it: no server, no asyncio for `llm --help`."""
    done = run(
        f"import sys, llm; before = set(sys.modules); import {module};"
        "print(*sorted(set(sys.modules) - before))"
    )
    loaded = set(done.stdout.split()) - set(sys.stdlib_module_names)
    assert loaded - {"llmproxy.version"} == {"llmproxy", module}
