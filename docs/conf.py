"""Settings of Sphinx, which makes the site of these pages: see CONTRIBUTING.md.

The source folder is the root of the repository, so that links between docs/, README.md and
examples/ work on the site as they do in a checkout.
"""

import re
import shutil
import sys
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from llmproxy import __version__ as release  # noqa: E402

project = "llmproxy"
root_doc = "docs/index"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "tests/README.md"]
exclude_patterns = [".*", "build", "site"]  # not searched for pages

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4  # links to headings, as on GitHub
default_role = "code"  # docstrings have `names` in single backticks
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 80

html_theme = "furo"  # without web fonts
html_title = f"llmproxy {release}"
html_show_copyright = False
html_show_sphinx = False

_PICTURES = ("report.png", "report-dark.png")  # named in HTML, which Sphinx doesn't read


def add_navigation(app: Sphinx, docname: str, source: list[str]) -> None:
    """Make the site's navigation of the links on the index page, a group for each heading."""
    if docname != root_doc:
        return
    for section in source[0].split("\n## ")[1:]:
        heading = section.partition("\n")[0]
        links = re.findall(r"\[([^]]+)\]\(([\w./]+)\.md\)", section)
        pages = [(title, re.sub(r"^\.\./", "/", path)) for title, path in links]
        source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {heading}\n\n"
        source[0] += "\n".join(f"{title} <{path}>" for title, path in pages) + "\n```\n"


def format_docstring(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Mark indented blocks as code, and `name: description` as items of a list."""
    formatted: list[str] = []
    before, is_list = "", False
    for line in lines:
        item = re.fullmatch(r"([a-z]\w*(?:, \w+)*): (.+)", line)
        if item and (is_list or not before):
            formatted += ["", f"- `{item[1]}`: {item[2]}"]
            is_list = True
        elif is_list and line:
            formatted.append("  " + line.lstrip())
        else:
            if line.startswith("    ") and not before:
                formatted += ["::", ""]
            formatted.append(line)
            is_list = False
        before = line
    lines[:] = formatted


def shorten_signature(
    app: Sphinx,
    what: str,
    name: str,
    obj: object,
    options: object,
    signature: str | None,
    result: str | None,
) -> tuple[str | None, str | None]:
    """Leave out the fields of a default that is an object, and values that are no Python."""
    if signature is not None:
        signature = re.sub(r"= (?:~[\w.]+\.)?(Limits|Filter)\([^()]*\)", r"= \1()", signature)
        signature = re.sub(r"= <(?:[^<>]|<[^<>]*>)*>", "= ...", signature)
    return signature, result


def finish(app: Sphinx, error: Exception | None) -> None:
    """Copy the pictures, and lead from the root of the site to the index."""
    if error is None:
        for name in _PICTURES:
            shutil.copyfile(ROOT / "docs" / name, Path(app.outdir, "docs", name))
        page = '<!doctype html><meta http-equiv="refresh" content="0; url=docs/index.html">\n'
        Path(app.outdir, "index.html").write_text(page)


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_navigation)
    app.connect("autodoc-process-docstring", format_docstring, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", shorten_signature)
    app.connect("build-finished", finish)
