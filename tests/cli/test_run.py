"""Exit codes are the same in every command."""

import pytest

from llmproxy.cli.run import run
from llmproxy.core.errors import NotFound
from llmproxy.proxy import SettingsError
from tests.commands import run_here

COMMANDS = {
    "serve": [],
    "log": ["log"],
    "export": ["export", "out.jsonl"],
    "import": ["import", "nowhere.jsonl"],
    "bench": ["bench", "--models", "demo"],
    "report": ["report"],
    "convert": ["convert", "--from", "openai_chat", "--to", "openai_chat"],
}


@pytest.mark.parametrize("argv", COMMANDS.values(), ids=COMMANDS)
def test_an_unknown_flag_is_2(argv, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, err = run_here(*argv, "--nonsense")
    assert (code, out) == (2, b"")
    assert err.splitlines()[0].endswith("unrecognized arguments: --nonsense")


@pytest.mark.parametrize("argv", [*COMMANDS.values()][1:6], ids=[*COMMANDS][1:6])
def test_a_file_that_is_not_there_is_1(argv, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    database = [] if argv[0] == "import" else ["--database", "nowhere.db"]
    code, out, err = run_here(*argv, *database)
    assert (code, out, err.count("\n")) == (1, b"", 1)
    assert err.startswith(f"llmproxy {argv[0]}: nowhere.")


def test_an_access_log_that_can_not_be_written_is_a_wrong_setting(tmp_path):
    path = tmp_path / "no" / "access.log"
    code, _, err = run_here("--port", "0", "--access-log", str(path))
    assert code == 2
    assert err == f"llmproxy: --access-log: {path}: No such file or directory\n"


@pytest.mark.parametrize(
    "error, code, message",
    [
        (SettingsError("no"), 2, "x: no\n"),
        (NotFound("gone"), 1, "x: gone\n"),
        (LookupError("lost"), 1, "x: lost\n"),
        (OSError(2, "No such file", "here"), 1, "x: here: No such file\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_a_failure_is_a_line_and_an_exit_code(error, code, message, capsys):
    def fail():
        raise error

    assert run("x", fail, LookupError) == code
    assert capsys.readouterr().err == message
