"""Which module of the package imports which, read from the source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import llmproxy

PACKAGE = Path(llmproxy.__file__).parent


def _modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(parts).removesuffix(".__init__"), path


PATHS = dict(_modules())  # `core.text`, `dialects` (a package's __init__), `__init__`
NAMES = sorted(PATHS)


def is_in(module: str, places: str) -> bool:
    """Whether a module (`core.text`) is at one of the places (`core text|dialects`)."""
    return re.match(rf"({places})\b", module.replace(".", " ")) is not None


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(PATHS[module].read_text("utf-8"))


def ours(module: str) -> set[str]:
    """The package's own modules that a module imports, by their place in the package."""
    return {name for name in _imports(module) if not name.startswith("/")}


def others(module: str) -> set[str]:
    """The other modules that a module imports."""
    return {name[1:] for name in _imports(module) if name.startswith("/")}


@cache
def _imports(module: str) -> frozenset[str]:
    package = module.split(".")
    if PATHS[module].name != "__init__.py":
        package = package[:-1]
    elif module == "__init__":
        package = []
    found: set[str] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found.update(f"/{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(f"/{node.module}")
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            base += node.module.split(".") if node.module else []
            for alias in node.names:
                whole = ".".join([*base, alias.name])
                found.add(whole if whole in PATHS else ".".join(base) or "__init__")
    return frozenset(found)


@cache
def docstrings(module: str) -> set[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (node for node in ast.walk(tree(module)) if isinstance(node, kinds))
    return {ast.get_docstring(node, clean=False) or "" for node in nodes}
