"""Flags that several commands share, and what they mean."""

from __future__ import annotations

import argparse
import codecs
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
from ..recorder.ids import find_exchanges, find_thread
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
    has_run: add --run too.

    `resolve_ids` has to follow, once the log is open.
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


def resolve_ids(history: LogReader, arguments: argparse.Namespace) -> None:
    """Replace the IDs that were given, in any form in which we show them, by those of the log.

    That is ID, --ids, --thread, and --run (also its name, or "last").

    Raises:
        NotFound: some do not exist; the message names them.
        InvalidRequest: one is the beginning of several.
    """
    if arguments.id is not None:
        (arguments.id,) = find_exchanges(history.rows, [arguments.id])
    if arguments.ids is not None:
        arguments.ids = find_exchanges(history.rows, arguments.ids)
    if arguments.thread_id is not None:
        arguments.thread_id = find_thread(history.rows, arguments.thread_id)
    if arguments.run is not None:
        arguments.run = find_run(history, arguments.run).id


def filter_of(arguments: argparse.Namespace) -> Filter:
    """Return the filter that the arguments describe, without --last."""
    given = vars(arguments)
    values = {field.name: given[field.name] for field in fields(Filter) if field.name in given}
    if arguments.id is not None:
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
    """Read IDs separated by white space, commas or quotes, in UTF-8 or with a byte order mark."""
    try:
        data = sys.stdin.buffer.read() if text == "-" else Path(text).read_bytes()
        is_utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # PowerShell's >
        listed = data.decode("utf-16" if is_utf_16 else "utf-8-sig")
    except OSError as exc:
        raise argparse.ArgumentTypeError(f"{text}: {exc.strerror}") from None
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: not a list of IDs") from None
    return tuple(dict.fromkeys(re.findall(r"[^\s,;\"'\[\]]+", listed)))


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
