"""`log`: list, show, follow, verify and delete what was recorded."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from ..conversations.threads import selected, threads, tree
from ..recorder.database import StoreError
from ..recorder.listing import Filter, LogListing
from ..recorder.summary import summary_to_json
from ..report.numbers import count_of
from ..version import __version__
from .arguments import (
    TIME_HELP,
    Parser,
    add_database,
    add_filters,
    age,
    database_of,
    filter_of,
    name,
    resolve_ids,
)
from .columns import Aligner, Cell, folded, joined
from .follow import POLL_S, follow_live
from .page_file import write_page
from .run import FAILED, run
from .summary_text import ExchangeAligner, summary_row
from .terminal import has_colours, has_cursor, print_error, print_json, print_line, width
from .thread_text import THREAD_OMITTED, prefix_lines, thread_row, tree_rows, verified_lines

LAST = 20  # lines, by default
SEARCH_LIMITS = (
    "--search looks in the last prompt or tool result of each request, and in its reply's text"
)


def main(argv: Sequence[str], program: str) -> int:
    """Run `log` with these arguments and return its exit code."""
    parser = _parser(f"{program} log")
    arguments = parser.parse_args(argv)
    if arguments.keep is not None:
        if arguments.until is not None:
            parser.error("--keep and --until exclude each other")
        from ..recorder.retention import oldest_kept  # imports llm, 0.3 s

        arguments.prune, arguments.until = True, oldest_kept(arguments.keep)
    if arguments.prune and not (_narrows(arguments) or arguments.last):
        parser.error("--prune needs an ID or a filter, so that it can't delete everything")
    if arguments.html and not (_is_tree(arguments) and not _has_mode(arguments)):
        parser.error("--html writes one conversation: it needs --thread ID, and no other filter")
    if arguments.verify and (_narrows(arguments) or arguments.last):
        parser.error("--verify checks the whole log, and takes no filter")
    return run(f"{program} log", lambda: _log(arguments), StoreError)


def _log(arguments: argparse.Namespace) -> int:
    database = database_of(arguments)
    if arguments.verify:
        return _verify(database, arguments)
    if arguments.follow and not database.exists():
        print_error(f"nothing is recorded yet; waiting for {database}")
        while not database.exists():
            time.sleep(POLL_S)
    with LogListing(database) as history:
        resolve_ids(history, arguments)
        if arguments.prune:
            chosen = filter_of(arguments)
            if arguments.last is not None:
                chosen = Filter(ids=tuple(history.ids(chosen, last=arguments.last)))
            return _prune(database, chosen, dry_run=arguments.dry_run)
        if arguments.html:
            return _write_page(database, arguments)
        if arguments.cache or arguments.id is not None and not arguments.threads:
            return _read_messages(database, arguments)
        _list(history, arguments)
        return 0


def _parser(program: str) -> argparse.ArgumentParser:
    parser = Parser(
        prog=program,
        description="List recorded exchanges, newest last. With an ID, show that exchange in "
        "full. With only --thread ID, show a conversation and its forks as a tree.",
        epilog=TIME_HELP,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "id",
        nargs="?",
        type=name,
        metavar="ID",
        help="show this exchange in full; last, -1, -2 … count from the end",
    )
    add_filters(
        parser,
        last=f"the newest N exchanges or conversations ({LAST}; with --prune, all)",
        thread="in this conversation, given by its ID or that of any exchange in it; "
        "without other filters, show it as a tree",
        has_run=True,
    )
    add("--json", action="store_true", help="print a JSON object per line")
    add(
        "--html",
        metavar="FILE",
        help="with only --thread: write the conversation and its forks as a page that loads "
        "nothing, to be sent to somebody; - is standard output",
    )
    mode = parser.add_mutually_exclusive_group().add_argument
    mode("--follow", action="store_true", help="keep printing new exchanges until Ctrl-C")
    mode("--threads", action="store_true", help="list conversations instead of exchanges")
    mode(
        "--cache",
        action="store_true",
        help="show which requests broke the provider's prompt cache by changing what an earlier "
        "request had sent, and what they changed",
    )
    mode(
        "--verify",
        action="store_true",
        help="check everything stored against its hashes; exit code 1 if any differs",
    )
    mode("--prune", action="store_true", help="delete these exchanges and what only they use")
    mode(
        "--keep",
        type=age,
        metavar="AGE",
        help="delete exchanges that are older than this (90d, 2w), as --prune --until AGE does",
    )
    add(
        "--dry-run",
        action="store_true",
        help="with --prune or --keep: only print what would be deleted",
    )
    add_database(parser)
    return parser


def _narrows(arguments: argparse.Namespace) -> bool:
    return filter_of(arguments) != Filter()


def _list(history: LogListing, arguments: argparse.Namespace) -> None:
    """Show what needs no messages, and so nothing of llm, whose import takes 0.3 s."""
    if arguments.threads:
        conversations = threads(history, filter_of(arguments), last=arguments.last or LAST)
        if not conversations:
            _say_why(history, arguments)
        colours = has_colours(sys.stdout)
        aligner = Aligner(width, THREAD_OMITTED, ids=True, colours=colours)
        lines = _lines([*map(thread_row, conversations)], aligner)
        _print(lines, map(_values, conversations), arguments)
    elif _is_tree(arguments):
        thread_id = arguments.thread_id
        rows = tree_rows(tree(history, thread_id), thread_id)
        branches = ExchangeAligner(width, keeps_ids=True, colours=has_colours(sys.stdout))
        _print(_lines(rows, branches), (), arguments)
    else:
        _exchanges(history, arguments)


def _read_messages(database: Path, arguments: argparse.Namespace) -> int:
    from ..conversations.prompt_cache import find_cache_misses
    from ..recorder.exchange import to_json
    from ..recorder.reader import LogReader
    from .exchange_text import exchange_page

    with LogReader(database) as history:
        if arguments.cache:
            chosen, last = filter_of(arguments), arguments.last or LAST
            compared = find_cache_misses(history, chosen, last=last)
            lines = prefix_lines(compared, colours=has_colours(sys.stdout), width=_width())
            if len(selected(history, chosen, last + 1)) > last:
                lines.append(
                    f"only the newest {count_of(last, 'conversation')}; --last N reads more"
                )
            _print(lines, map(_values, compared), arguments)
        else:
            exchange = history.exchange(arguments.id)
            page = exchange_page(exchange, colours=has_colours(sys.stdout), width=_width())
            _print([page], [to_json(exchange)], arguments)
    return 0


def _write_page(database: Path, arguments: argparse.Namespace) -> int:
    from ..recorder.reader import LogReader
    from ..report.conversation import load_conversation
    from ..report.html.conversation_page import conversation_file

    with LogReader(database, asks_models=False) as history:
        conversation = load_conversation(history, arguments.thread_id)
    page = conversation_file(conversation, f"llmproxy {__version__}")
    write_page(arguments.html, page)
    return 0


def _has_mode(arguments: argparse.Namespace) -> bool:
    modes = ("threads", "cache", "verify", "prune", "dry_run")
    return any(getattr(arguments, mode) for mode in modes)


def _is_tree(arguments: argparse.Namespace) -> bool:
    """Return whether --thread is the only filter; --last, --follow and --json mean a list too."""
    is_alone = filter_of(arguments) == Filter(thread_id=arguments.thread_id)
    is_list = arguments.last or arguments.follow or arguments.json
    return arguments.thread_id is not None and is_alone and not is_list


def _exchanges(history: LogListing, arguments: argparse.Namespace) -> None:
    chosen = filter_of(arguments)
    follower = history.follow(chosen) if arguments.follow else None
    aligner = ExchangeAligner(width, colours=has_colours(sys.stdout))
    found = history.entries(chosen, last=arguments.last or LAST)
    if not found:
        _say_why(history, arguments)
    is_live = has_cursor(sys.stdout) and not arguments.json
    if follower is not None and is_live:
        follow_live(follower, found, aligner)
    while True:
        lines = _lines([*map(summary_row, found)], aligner)
        _print(lines, map(summary_to_json, found), arguments)
        if follower is None:
            return
        time.sleep(POLL_S)
        found = follower.poll()


def _width() -> int:
    """Return the width of the terminal, or one that nothing exceeds."""
    return width() if sys.stdout.isatty() else sys.maxsize


def _lines(rows: Sequence[Sequence[Cell]], aligner: Aligner | ExchangeAligner) -> Iterable[str]:
    """Align the rows of a list if they go to a terminal."""
    return aligner.lines(rows) if sys.stdout.isatty() else map(joined, rows)


def _say_why(history: LogListing, arguments: argparse.Namespace) -> None:
    """Say on stderr why there is nothing to list."""
    if not history.ids(last=1):
        reason = "nothing is recorded yet"
    elif arguments.search:
        reason = f"nothing matches; {SEARCH_LIMITS}"
    else:
        reason = "nothing matches"
    waiting = "; waiting" if arguments.follow else ""
    print_error(reason + waiting)


def _values(record: Any) -> Any:
    """Return a dataclass as JSON values."""
    return json.loads(json.dumps(asdict(record), default=datetime.isoformat))


def _print(lines: Iterable[str], values: Iterable[Any], arguments: argparse.Namespace) -> None:
    """Print either the lines or, with --json, the values."""
    if arguments.json:
        for value in values:
            print_json(value)
    else:
        for line in lines:
            print_line(line)


def _verify(database: Path, arguments: argparse.Namespace) -> int:
    from ..recorder.verify import verify

    verified = verify(database)
    with suppress(BrokenPipeError):  # the exit code tells what the lines would have told
        lines = (folded(line, _width(), 2) for line in verified_lines(verified))
        _print(lines, [asdict(verified)], arguments)
    return FAILED if verified.broken else 0


def _prune(database: Path, chosen: Filter, *, dry_run: bool) -> int:
    from ..recorder.prune import prune

    pruned = prune(database, chosen, dry_run=dry_run)
    verb = "would delete" if dry_run else "deleted"
    print_line(f"{verb} {pruned}")
    for remnant in pruned.remnants:
        print_error(f"warning: deleted content may be left: {remnant}")
    return FAILED if pruned.remnants else 0
