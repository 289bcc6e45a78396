"""docs/cli.md lists each command's flags as `--help` does; docs/compare.md runs as written.

`python -m tests.cli.test_docs` rewrites the lists.
"""

import argparse
import os
import re
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from llmproxy.cli import bench, check, convert, export_import, log, main, report, serve
from llmproxy.cli.run import FAILED, INTERRUPTED, WRONG_SETTINGS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "cli.md"
COMPARE = (ROOT / "docs" / "compare.md").read_text("utf-8")
PARSERS = {
    "llmproxy": serve._parser,
    "llmproxy log": log._parser,
    "llmproxy export": export_import._export_parser,
    "llmproxy import": export_import._import_parser,
    "llmproxy bench": bench._parser,
    "llmproxy report": report._parser,
    "llmproxy convert": convert._parser,
    "llmproxy check": check._parser,
}


def rows(name):
    """Give a row of the page for each argument, in the order of --help.

    `check` has the server's, which are not listed twice.
    """
    parser = PARSERS[name](name)
    formatter = parser._get_formatter()
    listed = serve._parser("").format_help() if name == "llmproxy check" else ""
    return [
        f"| `{formatter._format_action_invocation(action)}` | {_help(formatter, action)} |"
        for action in parser._actions
        if action.dest != "help"
        and action.help != argparse.SUPPRESS
        and f"  {formatter._format_action_invocation(action)}" not in listed
    ]


def _help(formatter, action):
    return formatter._expand_help(action).replace("<", "&lt;")


def section(page, name):
    return re.search(rf"^## `{name}[^\n]*`\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)[1]


def test_every_subcommand_has_a_section():
    names = {name.partition(" ")[2] for name in PARSERS} - {""}
    assert names == set(main._SUBCOMMANDS)


@pytest.mark.parametrize("name", PARSERS)
def test_flags_are_on_the_page_as_in_help(name):
    shown = re.findall(r"^\| `.*$", section(PAGE.read_text("utf-8"), name), re.MULTILINE)
    assert shown == rows(name)


def test_exit_codes_are_on_the_page():
    shown = re.findall(r"^\| (\d+) \|", PAGE.read_text("utf-8"), re.MULTILINE)
    assert shown == [str(code) for code in (0, FAILED, WRONG_SETTINGS, 129, INTERRUPTED, 143)]


def test_the_story_of_a_benchmark_runs_as_written(tmp_path, monkeypatch):
    """With models that need no key in place of the named ones."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = COMPARE.partition("```sh\n")[2].partition("```")[0]
    names = "gpt-4o-mini,claude-haiku-4.5"
    assert names in script
    script = script.replace("11435", str(port)).replace("python -m", f"{sys.executable} -m")
    monkeypatch.setenv("LLM_LOAD_PLUGINS", "llm-echo")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = subprocess.run(
        ["bash", "-ec", script.replace(names, "demo,echo") + "kill %1; wait %1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    assert "friday: 1 request, 6 of 6 responses" in done.stdout
    assert done.stderr.endswith("as a page: report friday --html FILE\nwrote friday.html\n")
    assert "Name three colours." in (tmp_path / "friday.html").read_text("utf-8")
    query = COMPARE.partition("```sql\n")[2].partition("```")[0]
    with sqlite3.connect(Path(os.environ["LLM_USER_PATH"]) / "logs.db") as db:
        assert len(db.execute(query).fetchall()) == 6


def test_links_of_both_pages_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)", PAGE.read_text("utf-8") + COMPARE):
        assert (ROOT / "docs" / target).exists(), target
    for image in re.findall(r'(?:src|srcset)="([^"]+)"', COMPARE):
        assert (ROOT / "docs" / image).exists(), image


def test_every_flag_in_compare_exists():
    flags = {
        word for name in PARSERS for a in PARSERS[name](name)._actions for word in a.option_strings
    }
    story = COMPARE.replace("--retry-connrefused", "").replace("--retry 9", "")
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", story)) <= flags


def write():
    page = PAGE.read_text("utf-8")
    for name in PARSERS:
        old = section(page, name)
        listed = "\n".join(["| argument | |", "|---|---|", *rows(name)])
        new = re.sub(
            r"^\| argument \| \|\n(\|.*\n)+", lambda _, new=listed: new + "\n", old, flags=re.M
        )
        page = page.replace(old, new)
    PAGE.write_text(page, "utf-8")


if __name__ == "__main__":
    write()
