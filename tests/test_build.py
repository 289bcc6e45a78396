"""The wheel contains every module, and each can be imported from it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_wheel_has_every_module(tmp_path):
    """Build with the installed backend, so that nothing is fetched."""
    pytest.importorskip("setuptools")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(source)], check=True)
    subprocess.run([*build, "-w", str(tmp_path), str(source)], check=True, timeout=60)
    [wheel] = tmp_path.glob("llm_proxy_recorder-*.whl")
    code = (
        f"import sys; sys.path.insert(0, {str(wheel)!r})\n"
        "import importlib, pkgutil, llmproxy\n"
        f"assert llmproxy.__file__.startswith({str(wheel)!r})\n"
        "names = [m.name for m in pkgutil.walk_packages(llmproxy.__path__, 'llmproxy.')]\n"
        "[importlib.import_module(n) for n in names if not n.endswith('__main__')]\n"
        "from llmproxy.report.html.document import _style\n"
        "assert '--paper' in _style(('base.css',)), 'the style sheet is read from the wheel'\n"
        "print(len(names))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    modules = [p for p in (ROOT / "llmproxy").rglob("*.py") if p.parent != ROOT]
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) == len(modules) - 1, "all but the package's own __init__"
