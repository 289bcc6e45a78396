"""Every field of Settings is documented once: where it is declared.

`help(llmproxy.Settings)` and the table of docs/settings.md repeat that text, the table with the
flag, the variable and the file's key for each; `python -m tests.test_settings` rewrites both.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

import llmproxy
from llmproxy import Settings, SettingsError, asgi, proxy
from llmproxy.cli import serve, sources
from tests.commands import run_here

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
SOURCE = Path(proxy.__file__)
FIELDS = [field.name for field in dataclasses.fields(Settings)]
WIDTH = 96


def docs() -> dict[str, str]:
    """Return the string below each field, on one line."""
    (body,) = (
        node.body
        for node in ast.parse(SOURCE.read_text("utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == "Settings"
    )
    return {
        field.target.id: " ".join(below.value.value.split())
        for field, below in zip(body, body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
    }


def listed() -> str:
    """Return the list for the class's docstring."""
    lines = []
    for name, text in docs().items():
        lines += textwrap.wrap(
            f"{name}: {text}",
            WIDTH,
            initial_indent="    ",
            subsequent_indent="        ",
            break_on_hyphens=False,
        )
    return "\n".join(lines) + "\n"


def rows() -> str:
    """Return the table: settings in the order of --help, then those of programs only."""
    parser = serve._parser("llmproxy")
    texts, own = docs(), parser._get_formatter()
    lines = ["| flag | variable | key | field | default | |", "|---|---|---|---|---|---|"]
    for key, action in sources.settings_of(parser).items():
        name = action.dest
        text = texts.pop(name, None) or own._expand_help(action).replace("<", "&lt;")
        flag = own._format_action_invocation(action).replace("|", "\\|")
        default = "" if action.default in (None, []) else f"`{action.default}`".lower()
        default = "off" if action.nargs == 0 else default
        field = f"`{name}`" if name in FIELDS else ""
        lines.append(
            f"| `{flag}` | `{sources.variable_of(key)}` | `{key}` | {field} | {default} | {text} |"
        )
    lines += [f"| | | | `{name}` | | {text} |" for name, text in texts.items()]
    return "\n".join(lines) + "\n"


def test_each_field_has_a_docstring():
    assert list(docs()) == FIELDS
    for name, text in docs().items():
        assert text.endswith(".") and len(text) > 10, name


def test_help_shows_each_of_them():
    assert inspect.cleandoc(listed()) in inspect.getdoc(Settings)


def test_the_page_has_the_table_of_fields_and_flags():
    assert rows() in PAGE.read_text("utf-8")


def test_each_flag_of_the_server_is_a_setting():
    """Or does something that is the command's own."""
    flags = sources.flags_of(serve._parser("llmproxy"))
    names = {name.partition("=")[0] for name in flags}
    own = {"help", "version", "config", "completion", "help_limits", "quiet"}
    assert names - set(FIELDS) == own
    assert set(FIELDS) - names == {"authorize", "models", "on_exchange", "on_refusal", "warn"}


@pytest.mark.parametrize(
    "settings, arguments, python, command",
    [
        (
            {"host": "0.0.0.0"},
            ["--host", "0.0.0.0"],
            "give keys, or listen on 127.0.0.1; auth=False lets all of them in",
            "give --api-key, or listen on 127.0.0.1; --no-auth lets all of them in",
        ),
        (
            {"auth": False, "keys": ["k"]},
            ["--no-auth", "--api-key", "k"],
            "auth=False and keys exclude each other",
            "--no-auth and --api-key exclude each other",
        ),
        (
            {"origins": ["here"]},
            ["--allow-origin", "here"],
            "origins: an origin is scheme://host[:port], not 'here'",
            "--allow-origin: an origin is scheme://host[:port], not 'here'",
        ),
        (
            {"keys": [""]},
            ["--api-key", ""],
            "keys: an API key can't be empty",
            "--api-key: an API key can't be empty",
        ),
        (
            {"recordings": ""},
            ["--recordings", ""],
            "recordings: a file's name can't be empty",
            "--recordings: a file's name can't be empty",
        ),
        (
            {"log": False, "database": "x.db"},
            ["--no-log", "--database", "x.db"],
            "log=False and database exclude each other without replay",
            "--no-log and --database exclude each other without --replay",
        ),
        (
            {"log": False, "keep": timedelta(1)},
            ["--no-log", "--keep", "1d"],
            "log=False and keep exclude each other",
            "--no-log and --keep exclude each other",
        ),
        (
            {"ignore": ["x"]},
            ["--ignore", "x"],
            "ignore: only a replay ignores differences: set replay too",
            "--ignore: only a replay ignores differences: set --replay too",
        ),
    ],
)
def test_errors_speak_of_fields_in_python_and_of_flags_in_the_command(
    settings, arguments, python, command
):
    with pytest.raises(SettingsError) as caught:
        llmproxy.serve(**settings)
    assert str(caught.value).endswith(python)
    code, _, err = run_here("--port", "0", *arguments)
    assert (code, err.endswith(f"{command}\n")) == (2, True), err


@pytest.mark.parametrize("name", ["database", "recordings"])
def test_a_path_may_be_a_string_but_not_an_empty_one(name, tmp_path):
    """An empty one meant llm's own log, and the current folder."""
    assert getattr(Settings(**{name: "x.db"}), name) == "x.db"
    with pytest.raises(SettingsError, match=f"^{name}: a file's name can't be empty$"):
        Settings(**{name: ""})


def test_a_folder_is_no_log(tmp_path):
    with pytest.raises(SettingsError, match="is a folder, not a file$"):
        llmproxy.serve(database=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def write() -> None:
    source = SOURCE.read_text("utf-8")
    head, _, rest = source.partition("for each field.\n\n    host: ")
    tail = rest.partition('    """\n')[2]
    SOURCE.write_text(f'{head}for each field.\n\n{listed()}    """\n{tail}', "utf-8")
    page = PAGE.read_text("utf-8")
    table = re.compile(r"^\| flag \| variable \|.*\n(\|.*\n)+", re.MULTILINE)
    PAGE.write_text(table.sub(lambda _: rows(), page), "utf-8")


if __name__ == "__main__":
    write()


@pytest.mark.parametrize(
    "wrong",
    [
        {"otlp": "x"},
        {"otlp": ""},
        {"otlp": "ftp://x"},
        {"otlp": "http://["},
        {"hosts": ["http://a.example"]},
        {"hosts": [""]},
        {"keys": ["secret\n"]},
    ],
)
def test_a_value_that_could_never_work_is_refused_when_it_is_set(wrong):
    with pytest.raises(SettingsError, match=f"^{next(iter(wrong))}: ") as caught:
        Settings(**wrong)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "made",
    [
        llmproxy.Settings,
        partial(dataclasses.replace, Settings()),
        llmproxy.serve,
        llmproxy.run,
        partial(llmproxy.serve, Settings()),
        lambda **options: llmproxy.running(**options).__enter__(),
        asgi.App,
    ],
)
@pytest.mark.parametrize(
    ("name", "hint"),
    [("prot", "; did you mean 'port'?"), ("databse", "; did you mean 'database'?"), ("x", "")],
)
def test_an_unknown_field_names_the_one_that_it_is_like(made, name, hint):
    with pytest.raises(TypeError) as raised:
        made(**{name: 1})
    assert str(raised.value) == f"Settings has no field {name!r}{hint}"


def test_limits_and_filters_name_a_field_that_an_unknown_one_is_like():
    for made, name, alike in (
        (llmproxy.Limits, "bdy", "body"),
        (llmproxy.Filter, "stauts", "status"),
    ):
        with pytest.raises(TypeError) as raised:
            made(**{name: 1})
        said = f"{made.__name__} has no field {name!r}; did you mean {alike!r}?"
        assert str(raised.value) == said
        assert list(inspect.signature(made).parameters) == [
            f.name for f in dataclasses.fields(made)
        ]
