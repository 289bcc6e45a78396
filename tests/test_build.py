"""A source distribution and a wheel are built, installed, and do the main job."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent

MAIN_JOB = """
import json, sys, urllib.request
from importlib import metadata
import llmproxy

assert llmproxy.__file__.startswith(sys.argv[1]), llmproxy.__file__
with llmproxy.running(port=0, database="session.db") as server:
    body = {"model": "demo", "messages": [{"role": "user", "content": "Hello!"}]}
    url = f"{server.url}/v1/chat/completions"
    with urllib.request.urlopen(url, json.dumps(body).encode()) as got:
        print(json.load(got)["choices"][0]["message"]["content"])
with llmproxy.open_log("session.db") as log:
    assert [one.status for one in log.entries()] == ["ok"]
(found,) = metadata.distributions(name="llm-proxy-recorder", path=[sys.argv[1]])
assert {"llm", "pytest11", "console_scripts"} == {one.group for one in found.entry_points}
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build both with what is installed, so that nothing is fetched; the wheel from the sdist."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("built")
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder / "source")], check=True)
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder)]
    run = subprocess.run(
        [*words, str(folder / "source")], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


def test_wheel_has_every_module(built, tmp_path):
    [wheel] = built.glob("llm_proxy_recorder-*.whl")
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


def test_the_sdist_has_what_a_packager_needs(built):
    """Every file of the repository but those of the checks: its tests can be run."""
    [sdist] = built.glob("llm_proxy_recorder-*.tar.gz")
    with tarfile.open(sdist) as archive:
        there = {name.partition("/")[2] for name in archive.getnames()}
    listed = subprocess.run(
        ["git", "ls-files"], cwd=built / "source", capture_output=True, text=True, check=True
    )
    missing = set(listed.stdout.splitlines()) - there
    assert missing == {".gitignore", ".ci/run"}


@pytest.mark.parametrize("pattern", ["*.whl", "*.tar.gz"], ids=["wheel", "sdist"])
def test_it_is_installed_and_does_the_main_job(pattern, built, tmp_path, monkeypatch):
    [archive] = built.glob(pattern)
    target = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run(
        [*pip, "--no-build-isolation", "--target", str(target), str(archive)],
        check=True,
        timeout=120,
    )
    monkeypatch.setenv("PYTHONPATH", str(target))
    run = subprocess.run(
        [sys.executable, "-c", MAIN_JOB, str(target)], cwd=tmp_path, capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("You said: Hello!")
    command = [str(target / "bin" / "llmproxy"), "log", "--database", "session.db"]
    if os.name == "posix":
        listed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert "Hello!" in listed.stdout, listed.stderr
