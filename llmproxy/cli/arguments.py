"""The words by which commands say which exchanges are meant."""

from __future__ import annotations

import argparse
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import get_args

import llm

from ..bench.runs import find_run
from ..dialects import DIALECTS
from ..recorder.exchange import Status
from ..recorder.reader import Filter, LogReader

TIME_HELP = "TIME is an ISO date or time (2026-11-21, 2026-11-21T18:30) or an age: 90m, 2h, 7d."

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def add_filters(
    parser: argparse.ArgumentParser, *, last: str, thread: str, dialect: str = "the wire it spoke"
) -> None:
    """Add the flags that narrow exchanges.

    last, thread, dialect: what these mean to the command.
    """
    add = parser.add_argument
    add("--last", type=count, metavar="N", help=last)
    add("--since", type=_time, metavar="TIME", help="received then or later")
    add("--until", type=_time, metavar="TIME", help="received before then")
    add("--model", help="asked for by this name, or answered by the model of this id")
    add("--client", help="the program that asked")
    add("--dialect", choices=[known.NAME for known in DIALECTS], help=dialect)
    add("--status", choices=get_args(Status), help="how it ended")
    add("--thread", metavar="ID", help=thread)
    add("--search", metavar="TEXT", help="prompt or answer have all these words")
    add("--ids", type=_ids, metavar="FILE", help="these, by their ids; - is standard input")


def add_parallel(parser: argparse.ArgumentParser) -> None:
    """Add the flag that says how many requests a model runs at one time."""
    parser.add_argument(
        "--parallel",
        metavar="PATTERN=N",
        action="append",
        type=_parallel,
        default=[],
        help="requests that models of this name run at one time, the first pattern that fits"
        " (1 for a model in this process, else no limit)",
    )


def _parallel(word: str) -> tuple[str, int]:
    pattern, equals, number = word.rpartition("=")
    if not (pattern and equals and number.isdecimal() and int(number)):
        raise argparse.ArgumentTypeError(f"expected PATTERN=N, N above 0, not {word!r}")
    return pattern, int(number)


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the flag that narrows exchanges to a benchmark's."""
    parser.add_argument("--run", metavar="NAME", help="what this benchmark was answered")


def check_run(history: LogReader, arguments: argparse.Namespace) -> None:
    """See that there is the run that is named; "last" comes to mean the one that it is.

    Raises:
        NotFound: there is none.
    """
    if arguments.run is not None:
        arguments.run = find_run(history, arguments.run).id


def filter_of(arguments: argparse.Namespace) -> Filter:
    """Say which exchanges are meant, --last apart."""
    ids = (arguments.id,) if arguments.id else None
    if arguments.ids is not None:
        ids = (*(ids or ()), *arguments.ids)
    return Filter(
        since=arguments.since,
        until=arguments.until,
        model=arguments.model,
        client=arguments.client,
        dialect=arguments.dialect,
        status=arguments.status,
        thread_id=arguments.thread,
        search=arguments.search,
        ids=ids,
        run=arguments.run,
    )


def add_database(parser: argparse.ArgumentParser) -> None:
    """Add the flag that names another log."""
    parser.add_argument("--database", type=Path, metavar="PATH", help="the log (llm's logs.db)")


def database_of(arguments: argparse.Namespace) -> Path:
    """Say where the log is: llm's own unless another is named."""
    named: Path | None = arguments.database
    return named or llm.user_dir() / "logs.db"


def count(word: str) -> int:
    """Read a flag's number of things, at least one."""
    number = int(word) if word.isdecimal() else 0
    if not number:
        raise argparse.ArgumentTypeError("expected a number above 0")
    return number


def _ids(word: str) -> tuple[str, ...]:
    """Read ids, one after another, white space or commas between them."""
    try:
        text = sys.stdin.read() if word == "-" else Path(word).read_text("utf-8")
    except (OSError, ValueError) as exc:
        raise argparse.ArgumentTypeError(f"{word}: {exc}") from None
    return tuple(dict.fromkeys(text.replace(",", " ").split()))


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
