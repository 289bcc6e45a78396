"""`export` and `import`: bring exchanges from one log to another, or into a bug report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..recorder.reader import LogReader
from ..recorder.store import StoreError
from ..transfer.export import Exported, Unreadable, export_lines, export_recordings, export_to
from ..transfer.import_ import import_files
from .arguments import (
    TIME_HELP,
    add_database,
    add_filters,
    add_run,
    check_run,
    database_of,
    filter_of,
)
from .run import run


def export_main(words: Sequence[str], program: str) -> int:
    """Run `export` with these words; give its exit code."""
    name = f"{program} export"
    parser = _export_parser(name)
    arguments = parser.parse_args(words)
    if arguments.format == "llama-stack" and arguments.file == "-":
        parser.error("--format llama-stack writes a folder, not standard output")
    return run(name, lambda: _export(arguments), StoreError, Unreadable)


def _export_parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description="Write exchanges to a file, a line of JSON each, in the order in which they "
        "were received. What is still running is left out.",
        epilog=TIME_HELP,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("file", metavar="FILE", help="- is standard output; of --format llama-stack a folder")
    add("id", nargs="?", metavar="ID", help="one exchange")
    add_filters(
        parser,
        last="at most so many, the newest",
        thread="of one conversation, by its id or by that of an exchange in it",
    )
    add(
        "--redact",
        action="store_true",
        help="put filler of the same length for all text; times, counts and structure stay",
    )
    add(
        "--format",
        choices=("jsonl", "llama-stack"),
        default="jsonl",
        help="%(default)s, or a folder of Llama Stack's recordings",
    )
    add_run(parser)
    add_database(parser)
    return parser


def _export(arguments: argparse.Namespace) -> int:
    path = Path(arguments.file)
    how = {"last": arguments.last, "redact": arguments.redact}
    history = LogReader(database_of(arguments))
    try:
        check_run(history, arguments)
        only = filter_of(arguments)
        if arguments.format == "llama-stack":
            exported = export_recordings(history, path, only, **how)
        elif arguments.file == "-":
            exported = export_lines(history, sys.stdout.buffer, only, **how)
            sys.stdout.buffer.flush()
        else:
            exported = export_to(history, path, only, **how)
    finally:
        history.close()
    print(_exported(exported), file=sys.stderr)
    return 0


def _exported(exported: Exported) -> str:
    said = [f"exported {exported.exchanges} exchanges"]
    if exported.running:
        said.append(f"{exported.running} are still running")
    if exported.skipped:
        said.append(f"{exported.skipped} are no chats that came to their end")
    if exported.replaced:
        said.append(f"{exported.replaced} were asked again later, and the last answer stands")
    return "; ".join(said)


def import_main(words: Sequence[str], program: str) -> int:
    """Run `import` with these words; give its exit code."""
    name = f"{program} import"
    arguments = _import_parser(name).parse_args(words)
    return run(name, lambda: _import(arguments), StoreError, Unreadable)


def _import_parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description="Take in what export wrote, and Llama Stack's recordings. All files are "
        "checked before anything is written; what is there already is left as it is.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="- is standard input")
    add("--dry-run", action="store_true", help="only check, and say what would come in")
    add_database(parser)
    return parser


def _import(arguments: argparse.Namespace) -> int:
    paths = [Path("/dev/stdin" if file == "-" else file) for file in arguments.files]
    imported = import_files(paths, database_of(arguments), dry_run=arguments.dry_run)
    word = "would import" if arguments.dry_run else "imported"
    print(
        f"{word} {imported.new} exchanges; {imported.there} were there already; "
        f"{imported.skipped} recordings of something else than a chat were left out"
    )
    return 0
