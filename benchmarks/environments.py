"""Environments for the servers that are compared: virtual environments in a cache folder.

Everything comes from PyPI by pip, except llmproxy itself, which is run from a checkout (its
environment has what the checkout's pyproject.toml depends on), and the scripted models, a plugin
of llm that is found by PYTHONPATH. An environment is made once, and again when it needs
something else.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
CHECKOUT = HERE.parent
SCRIPTED_MODEL = HERE / "scripted_model"
DONE = "benchmark-environment"  # a file in the environment: what was installed

PEER = "llm-chat-completions-server==0.1a0"
LITELLM = "litellm[proxy]"


def default_cache() -> Path:
    """Return the folder for environments and recorded databases, as XDG says."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "llmproxy-benchmarks"


def python_for_ours(cache: Path, checkout: Path) -> Path:
    """Return a Python that can run the checkout."""
    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    return _environment(cache, "llmproxy", project["dependencies"])


def compile_modules(python: Path, *folders: Path) -> None:
    """Compile what is run from a checkout, as pip does with what it installs.

    Else each start would compile it again, wherever PYTHONDONTWRITEBYTECODE is set.
    """
    subprocess.run([python, "-m", "compileall", "-q", *folders], check=True)


def python_for_peer(cache: Path) -> Path:
    """Return a Python with the peer."""
    return _environment(cache, "peer", [PEER])


def python_for_litellm(cache: Path) -> Path:
    """Return a Python with LiteLLM's proxy."""
    return _environment(cache, "litellm", [LITELLM])


def folder_of(cache: Path, name: str) -> Path:
    """Return the folder of an environment, which is of this Python's version."""
    return cache / "environments" / f"{name}-{sys.version_info[0]}.{sys.version_info[1]}"


def _environment(cache: Path, name: str, packages: Sequence[str]) -> Path:
    folder = folder_of(cache, name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    wanted = "\n".join(packages)
    with (folder.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two benchmarks may have been started
        done = folder / DONE
        if not done.exists() or done.read_text() != wanted:
            print(f"making {folder} with {', '.join(packages)} …", file=sys.stderr, flush=True)
            shutil.rmtree(folder, ignore_errors=True)
            venv.create(folder, with_pip=True)
            pip = [f"{folder}/bin/python", "-m", "pip", "--disable-pip-version-check"]
            subprocess.run([*pip, "install", "--quiet", *packages], check=True)
            done.write_text(wanted)
    return folder / "bin" / "python"
