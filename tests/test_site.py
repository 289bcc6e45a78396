"""The site that Sphinx makes of docs/ is whole, and needs no other server."""

import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

import llmproxy
from llmproxy import convert

ROOT = Path(__file__).parent.parent


class Links(HTMLParser):
    """Collects what a page links to and what it loads."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.ids: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        if "href" in values and tag == "a":
            self.links.add(values["href"])
        elif "href" in values and values.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.add(values["href"])
        self.loaded |= {values[name] for name in ("src", "srcset") if name in values}


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("sphinx", reason="needs the extra `docs`")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "--quiet"]
    command += ["-c", "docs", "-d", str(tmp_path / "cache"), ".", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=55)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    site = tmp_path / "site"
    pages = {path: Links(path.read_text()) for path in site.rglob("*.html")}
    for path, page in pages.items():
        for target in page.loaded:
            assert not re.match(r"(https?:)?//", target), f"{path.name} loads {target}"
        for target in page.links | page.loaded:
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = unescape(target).partition("#")
            other = (path.parent / name.partition("?")[0]).resolve() if name else path
            assert other.exists(), f"{path.name}: {target}"
            if anchor:
                assert anchor in pages[other].ids, f"{path.name}: {target}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(\W*(https?:)?//", style.read_text()), style.name

    named = pages[site / "docs/reference.html"].ids
    public = {f"llmproxy.{name}" for name in llmproxy.__all__}
    public -= {f"llmproxy.{name}" for name in convert.__all__} | {"llmproxy.convert"}
    public |= {f"llmproxy.convert.{name}" for name in convert.__all__}
    public |= {"llmproxy.asgi.App", "llmproxy.pytest_plugin.llmproxy_server"}
    assert public <= named, public - named
