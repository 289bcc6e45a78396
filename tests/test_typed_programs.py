"""Users' type checkers see the public names with their types, and find mistakes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import llmproxy

ROOT = Path(__file__).parent.parent
PROGRAM, WRONG = ROOT / "tests/typed/program.py", ROOT / "tests/typed/wrong.py"


def run(*command: str | Path) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300).stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_mypy_accepts_the_program_and_finds_each_mistake():
    mypy = [sys.executable, "-m", "mypy", "--strict"]
    assert run(*mypy, PROGRAM) == "Success: no issues found in 1 source file\n"
    lines = WRONG.read_text().splitlines()
    expected = {number: line.split("# ")[1] for number, line in enumerate(lines, 1) if "# " in line}
    found = dict(re.findall(r"wrong\.py:(\d+): error: (.*)", run(*mypy, WRONG)))
    assert [int(number) for number in found] == list(expected)
    for number, words in expected.items():
        assert words in found[str(number)]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["pyright", "basedpyright"])
def test_pyright_accepts_the_program(name):
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    said = run(name, "--level", "error", "--pythonpath", sys.executable, PROGRAM)
    assert said.startswith("0 errors"), said


def test_the_program_uses_every_public_name():
    text = PROGRAM.read_text()
    used = {*re.findall(r"llmproxy\.(\w+)", text), *re.findall(r"\w+", text)}
    # Errors, and Proxy, which `serve` and `running` return.
    assert set(llmproxy.__all__) - used <= {"Proxy", "ProxyError", "StoreError", "UpstreamError"}


def test_the_package_says_that_it_is_typed():
    assert (Path(llmproxy.__file__).parent / "py.typed").exists()
