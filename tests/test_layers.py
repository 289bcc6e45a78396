"""The layout of DESIGN 1: who may import whom, and what only some folders may touch."""

from __future__ import annotations

import ast
import re

from .imports import NAMES, PATHS, docstrings, is_in, others, ours, tree

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
asgi
plugin pytest_plugin __main__ __init__
""".split("\n")[1:-1]
RANK = {folder: rank for rank, line in enumerate(ORDER) for folder in line.split()}

PURE = (
    "core (?!threads|limiter|process_end)|dialects|transport http11|transport http_grammar"
    "|transport response_parser|transport framing|transport content_coding|report stats"
)
IMPURE_MODULES = set(
    "asyncio logging mimetypes os pathlib random secrets socket sqlite3 subprocess tempfile"
    " threading time urllib.request uuid".split()
) - {"random"}  # report/stats draws from a seed that it is given
SOCKETS = "transport (server|connections)$"
SQL = "recorder|conversations|backends log_source|bench runs"
ENGINE = "backends engine"
MODELS_OF_LLM = set(
    "Model AsyncModel KeyModel AsyncKeyModel Prompt Response AsyncResponse Conversation"
    " get_model get_models get_async_model get_models_with_aliases".split()
)
LLAMA_STACK = "transfer llama_stack"  # one foreign project's files: nothing hangs on them


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


# Of builtins, and of modules that pure ones may import: open(path), datetime.now() …
IMPURE_CALLS = set(
    "now utcnow today environ getenv open read_text read_bytes write_text write_bytes print input"
    " breakpoint urandom".split()
)


def test_pure_modules_read_no_clock_environment_or_file():
    """What they need of those is passed in."""
    found = {
        f"{module}:{node.lineno} {name}"
        for module in NAMES
        if is_in(module, PURE)
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Call)
        for name in [getattr(node.func, "attr", None) or getattr(node.func, "id", None)]
        if name in IMPURE_CALLS
    }
    assert found == set()


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


def test_only_the_engine_runs_models():
    users = {
        module
        for module in NAMES
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        and node.value.id == "llm" and node.attr in MODELS_OF_LLM
    }  # fmt: skip
    assert {m for m in users if not is_in(m, ENGINE)} == set()
