"""The scripts of `--completion` complete the command in the shells themselves."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from llmproxy.cli import main
from llmproxy.cli.completion import SHELLS

# Words before the cursor, the last one begun; what is offered.
CASES = [
    (["lo"], {"log"}),
    (["--allow-"], {"--allow-host", "--allow-origin"}),
    (["log", "--sta"], {"--status"}),
    (["log", "--status", "run"], {"running"}),
    (["--remote-images", ""], {"pass", "refuse"}),
    (["check", "--config", "sett"], {"settings.toml"}),
    (["import", "sett"], {"settings.toml"}),
    (["--port", ""], set()),
]


@pytest.fixture
def complete(tmp_path):
    """Give a function that asks a shell for its completions of a command."""
    (tmp_path / "settings.toml").touch()

    def run(shell, words):
        program = shutil.which(shell)
        if program is None:
            pytest.skip(f"{shell} is not installed")
        (tmp_path / "script").write_text(main._completion(shell))
        line = ["llmproxy", *words]
        done = subprocess.run(
            {
                "bash": [program, "--norc", "-c", BASH, "bash", *line],
                "zsh": [program, "-f", "-c", ZSH, "zsh", " ".join(line)],
                "fish": [program, "--no-config", "-c", FISH, " ".join(line)],
            }[shell],
            cwd=tmp_path,
            env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "TERM": "dumb"},
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.stderr == ""
        return {line.split("\t")[0].strip() for line in done.stdout.splitlines()} - {""}

    return run


BASH = """
source ./script
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_llmproxy llmproxy "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""
FISH = "source ./script; complete --do-complete $argv[1]"
# zsh completes at a terminal only: one is made, and asked to list.
ZSH = """
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell "PROMPT= PS2= ; autoload -U compinit; compinit -u -D; source ./script"
zpty -w shell "zstyle ':completion:*' list-separator '#'; zstyle ':completion:*' menu no"
zpty -w shell "setopt no_beep; LISTMAX=0; bindkey '^D' list-choices; echo read''y"
zpty -r shell seen '*ready*'
zpty -w -n shell "$1"$'\\x04'
sleep 1
while zpty -r -t shell piece; do print -r -- "$piece"; done
"""


@pytest.mark.parametrize("words, offered", CASES, ids=lambda value: " ".join(sorted(value)))
def test_bash_completes(words, offered, complete):
    assert complete("bash", words) == offered


@pytest.mark.slow
@pytest.mark.parametrize("words, offered", CASES, ids=lambda value: " ".join(sorted(value)))
def test_fish_completes(words, offered, complete):
    assert complete("fish", words) == offered


@pytest.mark.slow
def test_zsh_completes(complete):
    found = " ".join(complete("zsh", ["log", "--s"]))
    assert "--search" in found and "--since" in found and "--status" in found
    assert "--port" not in found


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_is_one_that_its_shell_can_read(shell, tmp_path):
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "script").write_text(main._completion(shell))
    subprocess.run([program, "-n", tmp_path / "script"], check=True, timeout=30)
