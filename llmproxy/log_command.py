"""`log`: read back what was recorded, watch it come in, and forget it."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import get_args

import llm

from .dialects import DIALECTS
from .errors import NotFound
from .recorder.exchange import Entry, Status, entry_to_json, to_json
from .recorder.history import Filter, History
from .recorder.prune import prune
from .recorder.store import StoreError
from .terminal import entry_line, exchange_page

__all__ = ["main"]

POLL_S = 0.2  # between two looks of --follow: what a person takes for at once
LAST = 20  # lines, where nobody says how many

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def main(words: Sequence[str], program: str) -> int:
    """Run `log` with these words; give its exit code."""
    parser = _parser(f"{program} log")
    arguments = parser.parse_args(words)
    if arguments.prune and not _narrows(arguments):
        parser.error("--prune takes an ID or a filter, so that it can't forget everything")
    database = arguments.database or llm.user_dir() / "logs.db"
    try:
        if arguments.prune:
            return _prune(database, arguments)
        return _read(History(database), arguments)
    except (StoreError, NotFound) as exc:
        print(f"{program} log: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `log | head`
        sys.stderr.close()
        return 0


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description="List the exchanges that were recorded, the newest last; with an ID, "
        "show one of them whole.",
        epilog="TIME is an ISO date or time (2026-11-21, 2026-11-21T18:30) or an age: 90m, 2h, 7d.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("id", nargs="?", metavar="ID", help="one exchange, whole")
    add("--last", type=_count, metavar="N", help=f"at most so many ({LAST}; all of those pruned)")
    add("--since", type=_time, metavar="TIME", help="received then or later")
    add("--until", type=_time, metavar="TIME", help="received before then")
    add("--model", help="asked for by this name, or answered by the model of this id")
    add("--client", help="the program that asked")
    add("--dialect", choices=[dialect.NAME for dialect in DIALECTS], help="the wire it spoke")
    add("--status", choices=get_args(Status), help="how it ended")
    add("--thread", metavar="ID", help="of one conversation")
    add("--search", metavar="TEXT", help="prompt or answer have all these words")
    add("--follow", action="store_true", help="go on with what comes in, until Ctrl-C")
    add("--json", action="store_true", help="a JSON object for each line")
    add("--prune", action="store_true", help="forget these exchanges, and what only they used")
    add("--dry-run", action="store_true", help="with --prune: only say what would be forgotten")
    add("--database", type=Path, metavar="PATH", help="the log (llm's logs.db)")
    return parser


def _count(word: str) -> int:
    count = int(word) if word.isdecimal() else 0
    if not count:
        raise argparse.ArgumentTypeError("expected a number above 0")
    return count


def _time(word: str) -> datetime:
    """Read a point in time; without a zone it is the terminal's own."""
    if age := re.fullmatch(r"(\d+)([smhdw])", word):
        return datetime.now(UTC) - timedelta(**{_UNITS[age[2]]: int(age[1])})
    try:
        return datetime.fromisoformat(word).astimezone(UTC)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a date, a time or an age, not {word!r}"
        ) from None


def _filter(arguments: argparse.Namespace) -> Filter:
    return Filter(
        since=arguments.since,
        until=arguments.until,
        model=arguments.model,
        client=arguments.client,
        dialect=arguments.dialect,
        status=arguments.status,
        thread_id=arguments.thread,
        search=arguments.search,
        ids=(arguments.id,) if arguments.id else None,
    )


def _narrows(arguments: argparse.Namespace) -> bool:
    return _filter(arguments) != Filter()


def _read(history: History, arguments: argparse.Namespace) -> int:
    try:
        if arguments.id:
            exchange = history.exchange(arguments.id)
            if arguments.json:
                print(json.dumps(to_json(exchange), ensure_ascii=False))
            else:
                print(exchange_page(exchange, colours=sys.stdout.isatty()))
            return 0
        only = _filter(arguments)
        follower = history.follow(only) if arguments.follow else None
        _print(history.entries(only, last=arguments.last or LAST), arguments)
        while follower is not None:
            time.sleep(POLL_S)
            _print(follower.poll(), arguments)
        return 0
    finally:
        history.close()


def _print(entries: Iterable[Entry], arguments: argparse.Namespace) -> None:
    for entry in entries:
        if arguments.json:
            print(json.dumps(entry_to_json(entry), ensure_ascii=False), flush=True)
        else:
            print(entry_line(entry, colours=sys.stdout.isatty()), flush=True)


def _prune(database: Path, arguments: argparse.Namespace) -> int:
    pruned = prune(database, _filter(arguments), dry_run=arguments.dry_run)
    word = "would forget" if arguments.dry_run else "forgot"
    print(
        f"{word} {pruned.exchanges} exchanges, {pruned.turns} turns, "
        f"{pruned.messages} messages, {pruned.contents} parts of requests"
    )
    return 0
