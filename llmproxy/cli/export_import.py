"""`export` and `import`: move exchanges between logs, or into a bug report."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, cast

from ..core.text import printable
from ..recorder.database import StoreError
from ..recorder.reader import LogReader
from ..report.numbers import count_of
from ..transfer.export import Exported, Unreadable, export_file, export_jsonl
from ..transfer.import_ import import_files
from ..transfer.llama_stack.as_exchange import read_recording
from ..transfer.llama_stack.folder import export_recordings
from .arguments import (
    TIME_HELP,
    Parser,
    add_database,
    add_filters,
    database_of,
    filter_of,
    name,
    resolve_ids,
)
from .run import FAILED, run
from .summary_text import damage_lines
from .terminal import JsonOutput, print_error, print_line


def export_main(argv: Sequence[str], program: str) -> int:
    """Run `export` with these arguments and return its exit code."""
    command = f"{program} export"
    parser = _export_parser(command)
    arguments = parser.parse_args(argv)
    if arguments.format == "llama-stack" and arguments.file == "-":
        parser.error("--format llama-stack writes a folder, not standard output")
    if arguments.format == "llama-stack" and arguments.pretty:
        parser.error("--format llama-stack is always written with a member on each line")
    return run(command, lambda: _export(arguments), StoreError, Unreadable)


def _export_parser(program: str) -> argparse.ArgumentParser:
    parser = Parser(
        prog=program,
        description="Write exchanges to a file, a line of JSON each, in the order they were "
        "received. Running exchanges are left out.",
        epilog=TIME_HELP,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "file",
        metavar="FILE",
        help="output, - for standard output; a folder with --format llama-stack",
    )
    add("id", nargs="?", type=name, metavar="ID", help="export only this exchange")
    add_filters(parser, last="the newest N", has_run=True)
    add(
        "--anonymize",
        action="store_true",
        help="replace all text with placeholders of the same length; keep times, counts, structure",
    )
    add("--pretty", action="store_true", help="write a member on each line, to be reviewed")
    add("--redact", dest="anonymize", action="store_true", help=argparse.SUPPRESS)  # the old name
    add(
        "--format",
        choices=("jsonl", "llama-stack"),
        default="jsonl",
        help="%(default)s, or a folder of Llama Stack recordings",
    )
    add_database(parser)
    return parser


def _export(arguments: argparse.Namespace) -> int:
    path = Path(arguments.file)
    how = {"last": arguments.last, "anonymized": arguments.anonymize}
    with LogReader(database_of(arguments)) as history:
        resolve_ids(history, arguments)
        only = filter_of(arguments)
        if arguments.format == "llama-stack":
            exported = export_recordings(history, path, only, **how)
        elif arguments.file == "-":
            output = JsonOutput()
            exported = export_jsonl(
                history, cast(BinaryIO, output), only, **how, indented=arguments.pretty
            )
            output.flush()
        else:
            exported = export_file(history, path, only, **how, indented=arguments.pretty)
    for line in damage_lines(exported.damaged, exported.unnamed):
        print_error(line)
    print_error(_exported(exported))
    return FAILED if exported.damaged or exported.unnamed else 0


def _exported(exported: Exported) -> str:
    parts = [f"exported {count_of(exported.exchanges, 'exchange')}"]
    if exported.running:
        parts.append(f"skipped {exported.running} that are still running")
    if exported.skipped:
        parts.append(f"skipped {exported.skipped} that are not finished chats")
    if exported.replaced:
        parts.append(f"skipped {exported.replaced} with a later response to the same request")
    return "; ".join(parts)


def import_main(argv: Sequence[str], program: str) -> int:
    """Run `import` with these arguments and return its exit code."""
    name = f"{program} import"
    arguments = _import_parser(name).parse_args(argv)
    return run(name, lambda: _import(arguments, name), StoreError, Unreadable)


def _import_parser(program: str) -> argparse.ArgumentParser:
    parser = Parser(
        prog=program,
        description="Import files written by export, or Llama Stack recordings. Exchanges that "
        "exist already are left as they are. Files and lines that can't be read are named, the "
        "others are imported, and the exit code is 1.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="input files, - for standard input")
    add("--host", type=name, metavar="NAME", help="keep this name of where they were recorded")
    add("--strict", action="store_true", help="import nothing if anything can't be read")
    add("--dry-run", action="store_true", help="only check, and print what would be imported")
    add_database(parser)
    return parser


def _import(arguments: argparse.Namespace, name: str) -> int:
    files = dict.fromkeys(arguments.files)  # named twice, one is read once
    paths = [Path("/dev/stdin" if file == "-" else file) for file in files]
    imported = import_files(
        paths,
        database_of(arguments),
        read_recording=read_recording,
        strict=arguments.strict,
        dry_run=arguments.dry_run,
        host=arguments.host,
    )
    for failure in imported.failures:
        print_error(f"{name}: {printable(failure)}")
    if imported.unreadable and not (imported.new or imported.there or imported.skipped):
        return FAILED
    verb = "would import" if arguments.dry_run else "imported"
    parts = [f"{verb} {count_of(imported.new, 'exchange')}"]
    if imported.there:
        parts.append(f"{imported.there:,} existed already")
    if imported.skipped:
        skipped = count_of(imported.skipped, "recording")
        parts.append(f"skipped {skipped} of something other than a chat")
    if imported.unreadable:
        parts.append(f"{imported.unreadable:,} could not be read")
    print_line("; ".join(parts))
    return FAILED if imported.unreadable else 0
