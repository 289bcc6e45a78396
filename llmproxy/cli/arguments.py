"""Flags that several commands share, and what they mean."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import get_args

import llm

from ..bench.runs import find_run
from ..core.errors import InvalidRequest
from ..dialects import DIALECTS
from ..recorder.exchange import Status
from ..recorder.reader import Filter, LogReader
from ..report.prices import Price, load_prices

TIME_HELP = "TIME is an ISO date or time (2026-11-21, 2026-11-21T18:30) or an age: 90m, 2h, 7d."

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

# ---- which exchanges


def add_filters(
    parser: argparse.ArgumentParser,
    *,
    last: str,
    thread: str = "in this conversation, given by its ID or that of any exchange in it",
    dialect: str = "sent to this API",
    has_run: bool = False,
) -> None:
    """Add the flags that select exchanges; the dest of each is its field of `Filter`.

    last, thread, dialect: help texts that differ between commands.
    has_run: add --run too, to be checked with `check_run`.
    """
    add = parser.add_argument_group("which exchanges").add_argument
    add("--last", type=count, metavar="N", help=last)
    add("--since", type=_time, metavar="TIME", help="received at this time or later")
    add("--until", type=_time, metavar="TIME", help="received before this time")
    add("--model", help="requested by this name, or answered by the model with this ID")
    add("--client", help="sent by this program")
    add("--dialect", choices=[known.NAME for known in DIALECTS], help=dialect)
    add("--status", choices=get_args(Status), help="with this outcome")
    add("--thread", dest="thread_id", metavar="ID", help=thread)
    add("--search", metavar="TEXT", help="with all these words in the prompt or the reply")
    add("--ids", type=_ids, metavar="FILE", help="with the IDs listed in FILE; - is standard input")
    if has_run:
        add("--run", metavar="NAME", help="of this benchmark run")


def check_run(history: LogReader, arguments: argparse.Namespace) -> None:
    """Check that the run of --run exists, and replace its name ("last" too) by its ID.

    Raises:
        NotFound: it does not.
    """
    if arguments.run is not None:
        arguments.run = find_run(history, arguments.run).id


def filter_of(arguments: argparse.Namespace) -> Filter:
    """Return the filter that the arguments describe, without --last."""
    given = vars(arguments)
    values = {field.name: given[field.name] for field in fields(Filter) if field.name in given}
    if arguments.id:
        values["ids"] = (arguments.id, *(arguments.ids or ()))
    return Filter(**values)


def add_database(parser: argparse.ArgumentParser) -> None:
    """Add the flag that names another log."""
    parser.add_argument(
        "--database", type=Path, metavar="PATH", help="log file (default: llm's logs.db)"
    )


def database_of(arguments: argparse.Namespace) -> Path:
    """Return the path of the log: llm's own unless --database names another."""
    named: Path | None = arguments.database
    return named or llm.user_dir() / "logs.db"


# ---- how models are asked, and what they cost


def add_parallel(parser: argparse.ArgumentParser) -> None:
    """Add the flag that limits how many requests a model runs at a time."""
    parser.add_argument(
        "--parallel",
        metavar="PATTERN=N",
        action="append",
        type=_parallel,
        default=[],
        help="run at most N requests at a time on each model that matches; first match wins "
        "(default: 1 for a model in this process, else unlimited)",
    )


def _parallel(text: str) -> tuple[str, int]:
    pattern, equals, number = text.rpartition("=")
    if not (pattern and equals and number.isdecimal() and int(number)):
        raise argparse.ArgumentTypeError(f"expected PATTERN=N, N above 0, not {text!r}")
    return pattern, int(number)


def add_prices(parser: argparse.ArgumentParser) -> None:
    """Add the flag that names a file of prices."""
    parser.add_argument(
        "--prices",
        type=Path,
        metavar="FILE",
        help='JSON file of prices per million tokens: {"MODEL": {"input": 2.5, "output": 10}}',
    )


def prices_of(arguments: argparse.Namespace) -> Mapping[str, Price]:
    """Read the file of --prices, if given.

    Raises:
        InvalidRequest: it is not a file of prices.
    """
    path: Path | None = arguments.prices
    if path is None:
        return {}
    try:
        return load_prices(path.read_bytes())
    except InvalidRequest as exc:
        where = f"{path}: {exc.param}" if exc.param else str(path)
        raise InvalidRequest(exc.message, param=where) from exc


# ---- values


def count(text: str) -> int:
    """Parse a number of things, at least one."""
    number = int(text) if text.isdecimal() else 0
    if not number:
        raise argparse.ArgumentTypeError("expected a number above 0")
    return number


def _ids(text: str) -> tuple[str, ...]:
    """Read IDs separated by white space or commas."""
    try:
        listed = sys.stdin.read() if text == "-" else Path(text).read_text("utf-8")
    except (OSError, ValueError) as exc:
        raise argparse.ArgumentTypeError(f"{text}: {exc}") from None
    return tuple(dict.fromkeys(listed.replace(",", " ").split()))


def _time(text: str) -> datetime:
    """Parse a date, a time or an age; local time if it has no zone."""
    if age := re.fullmatch(r"(\d+)([smhdw])", text):
        return datetime.now(UTC) - timedelta(**{_UNITS[age[2]]: int(age[1])})
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a date, a time or an age, not {text!r}"
        ) from None
