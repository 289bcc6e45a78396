"""What the README promises is there: every flag, every route, every file it names."""

import re
from pathlib import Path

from llmproxy.app import _PAGES
from llmproxy.cli import _parser
from llmproxy.dialects import DIALECTS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_every_flag_is_in_the_readme_and_the_other_way_round():
    flags = {word for action in _parser("x")._actions for word in action.option_strings}
    flags.remove("-h")
    section = README.partition("## The command")[2].partition("### Routes")[0]
    assert set(re.findall(r"--[a-z][a-z-]+", section)) == flags


def test_every_route_is_in_the_readme():
    for dialect in DIALECTS:
        for route in dialect.ROUTES:
            assert f"`{route.method} {route.path}" in README
    for page in _PAGES:
        assert f"`GET {page}`" in README


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_nobody_is_told_to_install_somebody_elses_package():
    assert not re.search(r"install\s+llmproxy\b", README)
