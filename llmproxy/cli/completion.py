"""Scripts that let bash, zsh and fish complete the command, made from its parsers."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Mapping
from typing import Literal, get_args

Shell = Literal["bash", "zsh", "fish"]
SHELLS = get_args(Shell)
FILES = ("PATH", "FILE")  # metavars of values that are files


def script(shell: Shell, parsers: Mapping[str, argparse.ArgumentParser]) -> str:
    """Return a script for the shell's start-up file.

    parsers: by the commands' names, "" for the one without a subcommand.
    """
    lines = {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](parsers)
    return "\n".join(lines)


def _flags(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    for action in parser._actions:
        if action.option_strings and action.help != argparse.SUPPRESS:
            yield action.option_strings[-1], action


def _takes_file(action: argparse.Action) -> bool:
    return action.metavar in FILES


def _has_file(parser: argparse.ArgumentParser) -> bool:
    return any(not one.option_strings and _takes_file(one) for one in parser._actions)


def _choices(action: argparse.Action) -> str:
    return " ".join(map(str, action.choices or ()))


def _subcommands(parsers: Mapping[str, argparse.ArgumentParser]) -> str:
    return " ".join(filter(None, parsers))


def _help(action: argparse.Action) -> str:
    text = (action.help or "") % vars(action)
    return text.partition(" (")[0].partition(":")[0].partition(";")[0].replace("[", "(")


def _bash(parsers: Mapping[str, argparse.ArgumentParser]) -> Iterator[str]:
    yield "_llmproxy() {"
    yield "    local word=$2 before=$3 command= words="
    yield "    if [ $COMP_CWORD -gt 1 ]; then case ${COMP_WORDS[1]} in"
    yield f"        {'|'.join(filter(None, parsers))}) command=${{COMP_WORDS[1]}} ;;"
    yield "    esac; fi"
    yield '    case "$command $before" in'
    for name, parser in parsers.items():
        for flag, action in _flags(parser):
            pattern = f'        "{name} {flag}")'
            if choices := _choices(action):
                yield f'{pattern} COMPREPLY=($(compgen -W "{choices}" -- "$word")); return ;;'
            elif _takes_file(action):
                yield f"{pattern} _llmproxy_files; return ;;"
            elif action.nargs != 0:
                yield f"{pattern} COMPREPLY=(); return ;;"
    yield "    esac"
    yield '    case "$command" in'
    for name, parser in parsers.items():
        words = " ".join(flag for flag, _ in _flags(parser))
        yield f'        "{name}") words="{words}" ;;'
    yield "    esac"
    yield f'    [ $COMP_CWORD -eq 1 ] && words+=" {_subcommands(parsers)}"'
    with_files = "|".join(name for name, parser in parsers.items() if _has_file(parser))
    yield '    case "$command" in'
    yield f"        {with_files}) [[ $word != -* ]] && _llmproxy_files && return ;;"
    yield "    esac"
    yield '    COMPREPLY=($(compgen -W "$words" -- "$word"))'
    yield "}"
    yield "_llmproxy_files() {"
    yield "    compopt -o filenames 2>/dev/null"
    yield '    mapfile -t COMPREPLY < <(compgen -f -- "$word")'
    yield "}"
    yield "complete -F _llmproxy llmproxy"


def _zsh(parsers: Mapping[str, argparse.ArgumentParser]) -> Iterator[str]:
    yield "#compdef llmproxy"
    yield "_llmproxy() {"
    yield "    local command="
    yield "    (( CURRENT > 2 )) && command=$words[2]"
    yield '    case "$command" in'
    for name, parser in parsers.items():
        if name:
            specs = list(_zsh_specs(parser)) + ["'*:file:_files'"] * _has_file(parser)
            yield f"        {name}) shift words; (( CURRENT-- )); _arguments {' '.join(specs)} ;;"
    yield f"        *) _arguments {' '.join(_zsh_specs(parsers['']))} \\"
    yield f"            '1:command:({_subcommands(parsers)})' ;;"
    yield "    esac"
    yield "}"
    yield "compdef _llmproxy llmproxy"


def _zsh_specs(parser: argparse.ArgumentParser) -> Iterator[str]:
    for flag, action in _flags(parser):
        spec = f"{flag}[{_help(action).replace(']', ')')}]"
        if choices := _choices(action):
            spec += f":value:({choices})"
        elif action.nargs != 0:
            spec += ":file:_files" if _takes_file(action) else ":value: "
        yield shlex.quote(f"*{spec}")


def _fish(parsers: Mapping[str, argparse.ArgumentParser]) -> Iterator[str]:
    names = _subcommands(parsers)
    yield f"complete -c llmproxy -f -n '__fish_is_first_arg' -a '{names}'"
    for name, parser in parsers.items():
        seen = f"__fish_seen_subcommand_from {name}"
        condition = seen if name else f"not __fish_seen_subcommand_from {names}"
        yield f"complete -c llmproxy -n '{condition}' {'-F' if _has_file(parser) else '-f'}"
        for flag, action in _flags(parser):
            line = f"complete -c llmproxy -n '{condition}' -l {flag[2:]}"
            line += f" -d {shlex.quote(_help(action))}"
            if choices := _choices(action):
                line += f" -x -a '{choices}'"
            elif action.nargs != 0:
                line += " -r -F" if _takes_file(action) else " -x"
            yield line
