"""Environments for the servers that are compared: virtual environments in a cache folder.

Everything comes from PyPI by pip, except the scripted model, which is in this folder, and
llmproxy itself, which is run from a checkout: its environment has what the checkout's
pyproject.toml depends on. An environment is made once; `--fresh` makes it anew.
"""

from __future__ import annotations

import json
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
    """Return a Python that can run the checkout: what it depends on, and the scripted model."""
    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    return _environment(cache, "llmproxy", [*project["dependencies"], f"{SCRIPTED_MODEL}"])


def python_for_peer(cache: Path) -> Path:
    """Return a Python with the peer and the scripted model."""
    return _environment(cache, "peer", [PEER, f"{SCRIPTED_MODEL}"])


def python_for_litellm(cache: Path) -> Path:
    """Return a Python with LiteLLM's proxy."""
    return _environment(cache, "litellm", [LITELLM])


def installed(python: Path) -> dict[str, str]:
    """Return the versions of all packages of an environment."""
    code = (
        "import json; from importlib.metadata import distributions as d; "
        "print(json.dumps({i.name: i.version for i in d()}))"
    )
    output = subprocess.run([python, "-c", code], check=True, capture_output=True).stdout
    versions: dict[str, str] = json.loads(output)
    return versions


def _environment(cache: Path, name: str, packages: Sequence[str]) -> Path:
    folder = cache / "environments" / f"{name}-{sys.version_info[0]}.{sys.version_info[1]}"
    python = folder / "bin" / "python"
    done = folder / DONE
    source = (SCRIPTED_MODEL / "llm_scripted_model.py").read_text()
    wanted = "\n".join([*packages, source])
    if done.exists() and done.read_text() == wanted:
        return python
    print(f"making {folder} with {', '.join(packages)} …", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages],
        check=True,
    )
    done.write_text(wanted)
    return python
