"""`report`: what a benchmark, or the log's own traffic, comes to in numbers and pictures."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..bench.runs import find_run
from ..core.errors import InvalidRequest
from ..recorder.reader import Filter, LogReader
from ..recorder.store import StoreError
from ..report.data import Study
from ..report.figures import figures
from ..report.html.page import page
from ..report.load import study_of_log, study_of_run
from ..report.prices import Price, load_prices
from ..report.text import report_csv, report_json, table
from ..version import __version__
from .arguments import TIME_HELP, add_database, add_filters, database_of, filter_of
from .run import run

NEWEST = 1000  # of the log's own traffic, where nobody says how many: some seconds


def main(words: Sequence[str], program: str) -> int:
    """Run `report` with these words; give its exit code."""
    name = f"{program} report"
    parser = _parser(name)
    arguments = parser.parse_args(words)
    if arguments.run is not None and (arguments.last or _only(arguments) != Filter()):
        parser.error("a run is reported whole: filters are for the log's own traffic")
    return run(name, lambda: _report(arguments), StoreError)


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description="Say how models answered: those of a benchmark's run, or of the log's own "
        "traffic, which filters narrow.",
        epilog=TIME_HELP,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("run", nargs="?", metavar="RUN", help='the name or id of a run; "last" is the last one')
    add_filters(
        parser,
        last=f"at most so many, the newest ({NEWEST:,})",
        thread="of one conversation, by its id or by that of an exchange in it",
    )
    instead = parser.add_mutually_exclusive_group().add_argument
    instead("--json", action="store_true", help="figures and answers as one JSON object")
    instead("--csv", action="store_true", help="a row for each answer")
    instead("--html", metavar="FILE", help="a page with pictures; - is standard output")
    add_prices(parser)
    add_database(parser)
    parser.set_defaults(id=None)
    return parser


def add_prices(parser: argparse.ArgumentParser) -> None:
    """Add the flag that names a file of prices."""
    parser.add_argument(
        "--prices",
        type=Path,
        metavar="FILE",
        help='prices for a million tokens, as JSON: {"MODEL": {"input": 2.5, "output": 10}}',
    )


def prices_of(arguments: argparse.Namespace) -> Mapping[str, Price]:
    """Read the file of prices, where one is named.

    Raises:
        InvalidRequest: it is no such file.
    """
    path: Path | None = arguments.prices
    if path is None:
        return {}
    try:
        return load_prices(path.read_bytes())
    except InvalidRequest as exc:
        where = f"{path}: {exc.param}" if exc.param else str(path)
        raise InvalidRequest(exc.message, param=where) from exc


def _only(arguments: argparse.Namespace) -> Filter:
    return filter_of(argparse.Namespace(**vars(arguments) | {"run": None}))


def _report(arguments: argparse.Namespace) -> int:
    prices = prices_of(arguments)
    history = LogReader(database_of(arguments), asks_models=False)  # whose plugins take seconds
    try:
        study = _study(history, arguments)
    finally:
        history.close()
    if arguments.json:
        print(json.dumps(report_json(study, figures(study, prices))))
    elif arguments.csv:
        sys.stdout.buffer.write(report_csv(study).encode())
        sys.stdout.buffer.flush()
    elif arguments.html == "-":
        print(_page(study, prices))
    elif arguments.html:
        Path(arguments.html).write_text(_page(study, prices), "utf-8")
        print(f"wrote {arguments.html}", file=sys.stderr)
    else:
        print_table(study, prices)
    return 0


def _study(history: LogReader, arguments: argparse.Namespace) -> Study:
    if arguments.run is not None:
        return study_of_run(history, find_run(history, arguments.run))
    return study_of_log(history, _only(arguments), last=arguments.last or NEWEST)


def _page(study: Study, prices: Mapping[str, Price]) -> str:
    return page(study, figures(study, prices), recorded_by=f"llmproxy {__version__}")


def print_table(study: Study, prices: Mapping[str, Price]) -> None:
    """Print a study for the terminal that there is."""
    width = shutil.get_terminal_size().columns
    lines = table(study, figures(study, prices), width=width, colours=sys.stdout.isatty())
    print("\n".join(lines), flush=True)
