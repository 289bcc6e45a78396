"""`log`: read back what was recorded, watch it come in, and forget it."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from ..conversations.prompt_cache import prefixes
from ..conversations.threads import thread_of, threads, tree
from ..recorder.exchange import ExchangeSummary, summary_to_json, to_json
from ..recorder.prune import prune
from ..recorder.reader import Filter, LogReader
from ..recorder.store import StoreError
from ..recorder.verify import verify
from .arguments import (
    TIME_HELP,
    add_database,
    add_filters,
    add_run,
    check_run,
    database_of,
    filter_of,
)
from .exchange_text import exchange_page, summary_line
from .run import run
from .thread_text import prefix_lines, thread_line, tree_lines, verified_lines

POLL_S = 0.2  # between two looks of --follow: what a person takes for at once
LAST = 20  # lines, where nobody says how many


def main(words: Sequence[str], program: str) -> int:
    """Run `log` with these words; give its exit code."""
    parser = _parser(f"{program} log")
    arguments = parser.parse_args(words)
    if arguments.prune and not _narrows(arguments):
        parser.error("--prune takes an ID or a filter, so that it can't forget everything")
    if arguments.verify and (_narrows(arguments) or arguments.last):
        parser.error("--verify looks at all there is, and takes no filter")
    return run(f"{program} log", lambda: _log(arguments), StoreError)


def _log(arguments: argparse.Namespace) -> int:
    database = database_of(arguments)
    if arguments.verify:
        return _verify(database, arguments)
    history = LogReader(database)
    try:
        check_run(history, arguments)
        return _prune(database, arguments) if arguments.prune else _read(history, arguments)
    finally:
        history.close()


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description="List the exchanges that were recorded, the newest last; with an ID, "
        "show one of them whole; with --thread ID alone, show a conversation with all that "
        "forked from it, as a tree.",
        epilog=TIME_HELP,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("id", nargs="?", metavar="ID", help="one exchange, whole")
    add_filters(
        parser,
        last=f"at most so many lines or conversations ({LAST}; all of those pruned)",
        thread="of one conversation, by its id or by that of an exchange in it; alone or with "
        "--database it is shown as a tree",
    )
    add("--json", action="store_true", help="a JSON object for each line")
    instead = parser.add_mutually_exclusive_group().add_argument
    instead("--follow", action="store_true", help="go on with what comes in, until Ctrl-C")
    instead("--threads", action="store_true", help="list conversations, not exchanges")
    instead(
        "--cache",
        action="store_true",
        help="say which requests did not begin with all that the one before them sent, so that "
        "a provider's cache was of no use, and what was changed",
    )
    instead(
        "--verify", action="store_true", help="hash all that is stored again; exit code 1: broken"
    )
    instead("--prune", action="store_true", help="forget these exchanges, and what only they used")
    add("--dry-run", action="store_true", help="with --prune: only say what would be forgotten")
    add_run(parser)
    add_database(parser)
    return parser


def _narrows(arguments: argparse.Namespace) -> bool:
    return filter_of(arguments) != Filter()


def _read(history: LogReader, arguments: argparse.Namespace) -> int:
    if arguments.threads or arguments.cache:
        _conversations(history, arguments)
    elif arguments.id:
        exchange = history.exchange(arguments.id)
        page = exchange_page(exchange, colours=sys.stdout.isatty())
        _say([page], [to_json(exchange)], arguments)
    elif _is_tree(arguments):
        thread_id = thread_of(history, arguments.thread)
        lines = tree_lines(tree(history, thread_id), thread_id, colours=sys.stdout.isatty())
        _say(lines, (), arguments)
    else:
        _exchanges(history, arguments)
    return 0


def _conversations(history: LogReader, arguments: argparse.Namespace) -> None:
    only, last = filter_of(arguments), arguments.last or LAST
    if arguments.threads:
        found = threads(history, only, last=last)
        _say(map(thread_line, found), map(_values, found), arguments)
    else:
        held = prefixes(history, only, last=last)
        lines = prefix_lines(held, colours=sys.stdout.isatty())
        _say(lines, map(_values, held), arguments)


def _is_tree(arguments: argparse.Namespace) -> bool:
    """A filter, a number or a form beside --thread mean a list of exchanges."""
    is_alone = filter_of(arguments) == Filter(thread_id=arguments.thread)
    is_list = arguments.last or arguments.follow or arguments.json
    return arguments.thread is not None and is_alone and not is_list


def _exchanges(history: LogReader, arguments: argparse.Namespace) -> None:
    only = filter_of(arguments)
    follower = history.follow(only) if arguments.follow else None
    _print(history.entries(only, last=arguments.last or LAST), arguments)
    while follower is not None:
        time.sleep(POLL_S)
        _print(follower.poll(), arguments)


def _values(shape: Any) -> Any:
    """Give a dataclass as JSON values."""
    return json.loads(json.dumps(asdict(shape), default=datetime.isoformat))


def _say(lines: Iterable[str], forms: Iterable[Any], arguments: argparse.Namespace) -> None:
    for line in forms if arguments.json else lines:
        print(json.dumps(line, ensure_ascii=False) if arguments.json else line, flush=True)


def _print(entries: Iterable[ExchangeSummary], arguments: argparse.Namespace) -> None:
    colours = sys.stdout.isatty()
    lines = (summary_line(entry, colours=colours) for entry in entries)
    _say(lines, map(summary_to_json, entries), arguments)


def _verify(database: Path, arguments: argparse.Namespace) -> int:
    verified = verify(database)
    _say(verified_lines(verified), [asdict(verified)], arguments)
    return 1 if verified.broken else 0


def _prune(database: Path, arguments: argparse.Namespace) -> int:
    pruned = prune(database, filter_of(arguments), dry_run=arguments.dry_run)
    word = "would forget" if arguments.dry_run else "forgot"
    print(
        f"{word} {pruned.exchanges} exchanges, {pruned.turns} turns, "
        f"{pruned.messages} messages, {pruned.contents} parts of requests"
    )
    return 0
