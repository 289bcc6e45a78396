"""The frame of every page: its head, its style and, where it is served, the links to the others.

A page has no script and loads nothing, whoever wrote the texts in it.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

from ..numbers import shortened
from . import markup

STUDY_STYLE = ("base.css", "study.css")
LOG_STYLE = ("base.css", "log.css")
ALL_STYLES = ("base.css", "study.css", "log.css")

_PLACES = (("/", "Exchanges"), ("/conversations", "Conversations"), ("/figures", "Figures"))


def document(
    title: str,
    body: str,
    *,
    styles: tuple[str, ...] = STUDY_STYLE,
    refresh_s: int | None = None,
    has_form: bool = False,
) -> str:
    """Return a whole document that encodes as UTF-8.

    body: HTML. refresh_s: the browser reloads the page after this many seconds; None for never.
    has_form: the page may send a form to its own server.
    """
    policy = markup.FORM_POLICY if has_form else markup.POLICY
    again = "" if refresh_s is None else f'<meta http-equiv="refresh" content="{refresh_s:d}">\n'
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<meta name="referrer" content="no-referrer">\n{again}'
        f"<title>{markup.text(shortened(title, markup.MAX_NAME_CHARS))}</title>\n"
        f"<style>{_style(styles)}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )


def served(
    title: str,
    body: str,
    *,
    place: str = "",
    styles: tuple[str, ...] = LOG_STYLE,
    refresh_s: int | None = None,
    has_form: bool = False,
) -> str:
    """Return a page of the server: a document with links to the other pages above its body.

    place: the path of the page, if it is one of these.
    """
    links = "".join(
        f'<a href="{path}"{_current(path == place)}>{name}</a>' for path, name in _PLACES
    )
    bar = (
        '<a class="skip" href="#content">Skip to the content</a>'
        f'<nav class="places" aria-label="Pages"><b>llmproxy</b>{links}</nav>'
    )
    return document(
        f"{title} · llmproxy",
        f'<div class="bar">{bar}</div>\n<main id="content">\n{body}</main>\n',
        styles=styles,
        refresh_s=refresh_s,
        has_form=has_form,
    )


def failure(title: str, reason: str) -> str:
    """Return the page of the server that says why there is no other."""
    body = (
        f"<h1>{markup.text(title)}</h1><p>{markup.text(reason)}</p>"
        '<p><a href="/">All exchanges</a></p>'
    )
    return served(title, body)


def _current(is_it: bool) -> str:
    return ' aria-current="page"' if is_it else ""


@cache
def _style(names: tuple[str, ...]) -> str:
    """Read the style sheets beside this module."""
    folder = resources.files(__package__)
    return "".join(folder.joinpath(name).read_text("utf-8") for name in names)
