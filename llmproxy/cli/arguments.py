"""Flags that several commands share, and what they mean."""

from __future__ import annotations

import argparse
import codecs
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, get_args

from ..core.dialect_names import DialectName
from ..core.errors import InvalidRequest
from ..core.field_types import closest
from ..core.text import printable
from ..recorder.ids import find_exchanges, find_thread
from ..recorder.listing import Filter, LogListing
from ..recorder.summary import Status
from ..recorder.user_files import user_folder
from .sources import fill_in

if TYPE_CHECKING:
    from ..report.prices import Price

WRONG_ARGUMENTS = 2  # argparse's own, and a shell's

TIME_HELP = (
    "TIME is an ISO date or time (2026-11-21, 2026-11-21T18:30), a time of today (18:30), "
    "today, yesterday, or an age: 90m, 1d12h, 2w."
)

MAX_COUNT = 1_000_000  # of repeats, tokens …: far more than anybody waits for
MAX_ROWS = 2**63 - 1  # SQLite's largest integer: all rows
MAX_MESSAGE_CHARS = 500  # of a usage error, which quotes the argument

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are two lines: the mistake, and the usage without its flags."""

    def error(self, message: str) -> NoReturn:
        """End the process with the exit code for wrong arguments."""
        message += self._hint(message)
        if len(message) > MAX_MESSAGE_CHARS:
            message = f"{message[:MAX_MESSAGE_CHARS]}…"
        words = [self.prog, *self._needed(), "[flags]"]
        usage = f"usage: {' '.join(words)}    (see {self.prog} --help)"
        self.exit(WRONG_ARGUMENTS, f"{self.prog}: error: {printable(message)}\n{usage}\n")

    def _hint(self, message: str) -> str:
        """Name the flag that an unknown one is like."""
        unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        if unknown is None:
            return ""
        flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
        # A beginning is like its flag, however much is left out.
        alike = [flag for flag in flags if flag.startswith(unknown[1])]
        # Without the dashes, which make all flags alike.
        words = [flag[2:] for flag in flags]
        if word := closest(unknown[1][2:], words):
            alike.append(f"--{word}")
        return f"; did you mean {alike[0]}?" if alike else ""

    def _needed(self) -> list[str]:
        """Return the positional arguments and the flags that can't be left out."""
        return [
            " ".join([*action.option_strings[:1], self._shown(action)])
            for action in self._actions
            if action.required or not action.option_strings
        ]

    def _shown(self, action: argparse.Action) -> str:
        name = action.metavar if isinstance(action.metavar, str) else "NAME"
        forms = {"?": f"[{name}]", "+": f"{name}…"}
        return forms.get(str(action.nargs), name)


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
    add("--last", type=_rows, metavar="N", help=last)
    add("--since", type=_time, metavar="TIME", help="received at this time or later")
    add("--until", type=_time, metavar="TIME", help="received before this time")
    add("--model", type=name, help="requested by this name, or answered by the model with this ID")
    add("--client", type=name, help="sent by this program")
    add("--host", type=name, metavar="NAME", help="imported with this --host")
    add("--upstream", type=name, metavar="NAME", help="answered by this upstream")
    add("--dialect", choices=get_args(DialectName), help=dialect)
    add("--status", choices=get_args(Status), help="with this outcome")
    add("--thread", dest="thread_id", type=name, metavar="ID", help=thread)
    add(
        "--search",
        type=name,
        metavar="TEXT",
        help="with all these words in the prompt or the reply",
    )
    add("--ids", type=_ids, metavar="FILE", help="with the IDs listed in FILE; - is standard input")
    if has_run:
        add("--run", type=name, metavar="NAME", help="of this benchmark run")


def resolve_ids(history: LogListing, arguments: argparse.Namespace) -> None:
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
        from ..bench.runs import find_run  # imports llm, 0.3 s

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
        "--database", type=_database, metavar="PATH", help="log file (default: llm's logs.db)"
    )


def database_of(arguments: argparse.Namespace) -> Path:
    """Return the path of the log: llm's own unless --database or another source names one.

    Raises:
        SettingsError: the variable or the file has no path.
    """
    _fill_in(add_database, arguments)
    named: Path | None = arguments.database
    return named or user_folder() / "logs.db"


def _fill_in(
    add_flag: Callable[[argparse.ArgumentParser], None], arguments: argparse.Namespace
) -> None:
    """Take a setting from its variable or the file if its flag is not given."""
    parser = argparse.ArgumentParser(add_help=False)
    add_flag(parser)
    fill_in(parser, arguments)


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
        help='JSON file of prices per million tokens: {"MODEL": {"input": 2.5, "output": 10}}, '
        "or one of llm-prices.com",
    )


def prices_of(arguments: argparse.Namespace) -> Mapping[str, Price]:
    """Read the file of --prices, if given.

    Raises:
        InvalidRequest: it is not a file of prices.
        SettingsError: the variable or the file of settings has no path.
    """
    _fill_in(add_prices, arguments)
    path: Path | None = arguments.prices
    if path is None:
        return {}
    from ..report.prices import load_prices  # imports llm, 0.3 s

    try:
        return load_prices(path.read_bytes())
    except InvalidRequest as exc:
        where = f"{path}: {exc.param}" if exc.param else str(path)
        raise InvalidRequest(exc.message, param=where) from exc


# ---- values


def name(text: str) -> str:
    """Take the name or ID of something, or words to search for."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty")
    return text


def count(text: str) -> int:
    """Parse a number of things, at least one."""
    number = _number(text)
    if not 0 < number <= MAX_COUNT:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to {MAX_COUNT:,}")
    return number


def _rows(text: str) -> int:
    """Parse a number of rows; one that is larger than any log means all."""
    number = _number(text)
    if not number:
        raise argparse.ArgumentTypeError("expected a number above 0")
    return min(number, MAX_ROWS)


def _number(text: str) -> int:
    digits = text.lstrip("0")[:20] if text.isdecimal() else ""  # Python refuses thousands of them
    return int(digits or "0")


def _database(text: str) -> Path:
    """Take the path of a log. Whether it exists, and is one, is known when it is opened."""
    path = Path(name(text))
    try:
        is_folder = path.is_dir()
    except OSError as exc:  # a name that is too long, or a folder that may not be entered
        raise argparse.ArgumentTypeError(f"{exc.strerror}: {text}") from None
    if is_folder:
        raise argparse.ArgumentTypeError(f"{text} is a folder, not a file")
    return path


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
    """Parse a date, a time or an age; local time if it has no zone.

    Beyond the calendar's first or last day it is that day, so that any age means something.
    """
    word, today = text.strip().lower(), datetime.now().date()
    if re.fullmatch(r"(\d+[smhdw])+", word):
        try:
            return datetime.now(UTC) - _age(word)
        except (OverflowError, ValueError):  # ValueError: thousands of digits
            return datetime.min.replace(tzinfo=UTC)
    try:
        if word in ("today", "yesterday"):
            at = datetime.combine(today - timedelta(days=word == "yesterday"), time())
        elif re.match(r"\d\d?:", word):
            at = datetime.combine(
                today, time.fromisoformat(f"{'0' * (word[1] == ':')}{text.strip()}")
            )
        else:
            at = datetime.fromisoformat(text.strip())
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a date, a time or an age, not {text!r}"
        ) from None
    try:
        return at.astimezone(UTC)
    except (OverflowError, ValueError):
        return at.replace(tzinfo=UTC)


def age(text: str) -> timedelta:
    """Parse an age as in `--since`: 90d, 2w, 1d12h; longer than the calendar means its length."""
    word = text.strip().lower()
    if not re.fullmatch(r"(\d+[smhdw])+", word):
        raise argparse.ArgumentTypeError(f"expected an age like 90d or 1d12h, not {text!r}")
    try:
        found = _age(word)
    except (OverflowError, ValueError):  # ValueError: thousands of digits
        return timedelta.max
    if not found:
        raise argparse.ArgumentTypeError("expected an age above 0")
    return found


def age_text(value: timedelta) -> str:
    """Return an age as `age` takes it: 90d, 1d12h."""
    left, pieces = int(value.total_seconds()), []
    for unit in "dhms":
        count, left = divmod(left, int(timedelta(**{_UNITS[unit]: 1}).total_seconds()))
        if count:
            pieces.append(f"{count}{unit}")
    return "".join(pieces)


def _age(text: str) -> timedelta:
    parts = re.findall(r"(?<!\d)(\d++)([smhdw])", text)
    return sum((timedelta(**{_UNITS[unit]: int(digits)}) for digits, unit in parts), timedelta())
