"""The package under another name, in a zip, and with nothing beside it but what llm needs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent

# Run with -I -S: no site-packages, no current folder, no environment. What may be imported
# besides the standard library is let in by name.
ISOLATION = """
import importlib.abc, sys
sys.path += [{site!r}, {folder!r}]

class OnlyThese(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        is_standard = top in sys.stdlib_module_names or top.startswith("_sysconfigdata")
        if top not in {allowed!r} and not is_standard:
            raise ModuleNotFoundError(f"not to be imported: {{name}}", name=name)

sys.meta_path.insert(0, OnlyThese())
"""

MAIN_JOB = """
import json, sqlite3, urllib.request
from thirdparty._proxy import convert, running

with running(database="session.db", default_model="demo") as proxy:
    body = {"model": "demo", "messages": [{"role": "user", "content": "Tidy the shed."}]}
    for path in ("/v1/chat/completions", "/v1/messages", "/api/chat"):
        request = urllib.request.Request(
            proxy.url + path,
            json.dumps(body | {"max_tokens": 50, "stream": False}).encode(),
            {"content-type": "application/json"},
        )
        assert urllib.request.urlopen(request).status == 200
with running(database="session.db", replay="replay", replay_speed=0) as proxy:
    request.full_url = proxy.url + path
    assert urllib.request.urlopen(request).status == 200
with sqlite3.connect("session.db") as db:
    assert db.execute("select count(*) from turns").fetchone() == (3,)
found = convert.convert_request(body, source="openai_chat", target="anthropic_messages")
assert found.body["messages"][0]["role"] == "user"
assert "llmproxy" not in __import__("sys").modules
print("done")
"""


def modules_of_llm() -> set[str]:
    """Return the top-level modules of llm and of all that it requires."""
    wanted, distributions = ["llm"], set()
    while wanted:
        name = re.sub(r"[-_.]+", "-", wanted.pop()).lower()
        if name in distributions:
            continue
        distributions.add(name)
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # needed on other systems only
            continue
        wanted += [re.match(r"[\w.-]+", one)[0] for one in requires if "extra ==" not in one]
    tops = metadata.packages_distributions()
    return {
        top
        for top, names in tops.items()
        if any(re.sub(r"[-_.]+", "-", name).lower() in distributions for name in names)
    }


def run_isolated(tmp_path: Path, code: str, *, without: set[str] = frozenset()) -> str:
    allowed = (modules_of_llm() - without) | {"thirdparty"}
    site = sysconfig.get_paths()["purelib"]
    script = ISOLATION.format(site=site, folder=str(tmp_path), allowed=allowed) + code
    environment = {
        "LLM_USER_PATH": str(tmp_path / "user"),
        "LLM_LOAD_PLUGINS": "",  # those that are installed here need more than llm does
        "PATH": os.environ["PATH"],
    }
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture
def vendored(tmp_path: Path) -> Path:
    """A folder in which the package is `thirdparty._proxy`."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "llmproxy", tmp_path / "thirdparty" / "_proxy", ignore=ignored)
    return tmp_path


def test_a_copy_under_another_name_does_the_main_job(vendored):
    assert run_isolated(vendored, MAIN_JOB) == "done\n"


def test_a_copys_command_runs(vendored):
    code = (
        "import runpy\nsys.argv = ['x', '--help']\n"
        "try:\n    runpy.run_module('thirdparty._proxy', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code\n"
    )
    assert "--port" in run_isolated(vendored, code)


def test_a_blocked_import_fails_the_job(vendored):
    """The isolation can fail: what the others rely on."""
    with pytest.raises(AssertionError, match="not to be imported: sqlite_utils"):
        run_isolated(vendored, MAIN_JOB, without={"sqlite_utils"})


def test_a_zip_of_it_runs_where_llm_is_installed(tmp_path):
    """As docs/deploy.md says: the package alone; llm has parts in C, which no zip can hold."""
    build = tmp_path / "build"
    shutil.copytree(ROOT / "llmproxy", build / "llmproxy")
    archive = tmp_path / "llmproxy.pyz"
    command = [sys.executable, "-m", "zipapp", str(build), "-m", "llmproxy.cli.main:run"]
    subprocess.run([*command, "-o", str(archive)], check=True, timeout=50)
    assert "llmproxy/cli/main.py" in zipfile.ZipFile(archive).namelist()
    (tmp_path / "request.json").write_text('{"model": "m", "messages": []}')
    run = subprocess.run(
        [sys.executable, str(archive), "--version"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (0, ""), run.stderr
