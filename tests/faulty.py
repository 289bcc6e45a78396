"""Plugins of llm for servers in processes of their own: some do well, some do not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

GOOD = """
import asyncio, itertools, time, llm

class Ticking(llm.AsyncModel):
    model_id, can_stream = "ticking", True
    async def execute(self, prompt, stream, response, conversation):
        for i in range(20):
            yield f"{i} "
            await asyncio.sleep(0.1)

class Stubborn(llm.AsyncModel):
    model_id, can_stream = "stubborn", True
    async def execute(self, prompt, stream, response, conversation):
        yield "so far"
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                pass

class Blocked(llm.Model):
    model_id, can_stream = "blocked", True
    def execute(self, prompt, stream, response, conversation):
        yield "so far"
        while True:
            time.sleep(60)

@llm.hookimpl
def register_models(register):
    register(None, Ticking())
    register(None, Stubborn())
    register(Blocked())
"""

BROKEN = {
    "fails": "raise RuntimeError('fails')",
    "leaves": "raise SystemExit(3)",
    "misses": "import a_module_that_is_nowhere",
    "is_no_python": "def (",
    "registers_and_leaves": """
import llm
class Half(llm.Model):
    model_id = "half"
@llm.hookimpl
def register_models(register):
    register(Half())
    raise SystemExit(4)
""",
    "registers_rubbish": """
import llm
@llm.hookimpl
def register_models(register):
    register(5)
    register(None, None)
    register("a", "b", aliases=7)
""",
}


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, **modules: str) -> None:
    """Have processes that are started from now on find these modules as plugins of llm."""
    for name, source in modules.items():
        (folder / f"{name}.py").write_text(source)
        info = folder / f"{name}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[llm]\n{name} = {name}\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.getcwd()]))
    monkeypatch.delenv("LLM_LOAD_PLUGINS")
