"""`report`: summarize a benchmark run, or the recorded traffic, as a table, JSON, CSV or a page."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from functools import partial

from ..bench.runs import find_run
from ..recorder.database import StoreError
from ..recorder.listing import Filter
from ..recorder.reader import LogReader
from ..report.data import Study
from ..report.figures import figures
from ..report.html.page import page
from ..report.load import study_of_log, study_of_run
from ..report.numbers import count_of
from ..report.prices import Price
from ..report.text import report_csv, report_json
from ..version import __version__
from .arguments import (
    TIME_HELP,
    Parser,
    add_database,
    add_filters,
    add_prices,
    database_of,
    filter_of,
    name,
    prices_of,
    resolve_ids,
)
from .report_table import print_table, print_unused_prices
from .run import run
from .summary_text import damage_lines
from .terminal import print_error, print_json, write_text

NEWEST = 1000  # exchanges of recorded traffic, by default: takes some seconds


def main(argv: Sequence[str], program: str) -> int:
    """Run `report` with these arguments and return its exit code."""
    command = f"{program} report"
    parser = _parser(command)
    arguments = parser.parse_args(argv)
    if arguments.run is not None and (arguments.last or _filter(arguments) != Filter()):
        parser.error("filters select recorded traffic; a run is always reported whole")
    return run(command, lambda: _report(arguments), StoreError)


def _parser(program: str) -> argparse.ArgumentParser:
    parser = Parser(
        prog=program,
        description="Report how fast, how well and at what cost models answered: in a benchmark "
        "run, or in recorded traffic, which filters select.",
        epilog=TIME_HELP,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "run", nargs="?", type=name, metavar="RUN", help='name or ID of a run; "last" is the newest'
    )
    add_filters(parser, last=f"the newest N ({NEWEST:,})")
    output = parser.add_mutually_exclusive_group().add_argument
    output("--json", action="store_true", help="print figures and responses as one JSON object")
    output("--csv", action="store_true", help="print a row per response")
    output("--html", metavar="FILE", help="write a page with charts; - is standard output")
    add_prices(parser)
    add_database(parser)
    parser.set_defaults(id=None)
    return parser


def _filter(arguments: argparse.Namespace) -> Filter:
    return filter_of(argparse.Namespace(**vars(arguments) | {"run": None}))


def _report(arguments: argparse.Namespace) -> int:
    prices = prices_of(arguments)
    # Models are not asked: their plugins take seconds to load.
    with LogReader(database_of(arguments), asks_models=False) as history:
        study = _study(history, arguments)
        is_empty = not (study.answers or history.ids(last=1))
    if is_empty:
        print_error("nothing is recorded yet")
    for line in damage_lines(study.damaged):
        print_error(line)
    print_unused_prices(prices, (answer.model for answer in study.answers))
    if arguments.json:
        print_json(report_json(study, figures(study, prices)))
    elif arguments.csv:
        write_text(report_csv(study))
        if study.is_partial:
            shown = count_of(len(study.answers), "response")
            print_error(f"only the newest {shown}; --last N reads more")
    elif arguments.html == "-":
        write_text(_page(study, prices))  # its head says UTF-8, whatever the terminal
    elif arguments.html:
        text = _page(study, prices)
        try:
            with open(
                arguments.html, "w", encoding="utf-8", opener=partial(os.open, mode=0o600)
            ) as file:
                file.write(text)
        except OSError as exc:  # a full disk's has no file name
            raise OSError(exc.errno, exc.strerror, arguments.html) from exc
        print_error(f"wrote {arguments.html}")
    else:
        print_table(study, prices)
    return 0


def _study(history: LogReader, arguments: argparse.Namespace) -> Study:
    if arguments.run is not None:
        return study_of_run(history, find_run(history, arguments.run))
    resolve_ids(history, arguments)
    return study_of_log(history, _filter(arguments), last=arguments.last or NEWEST)


def _page(study: Study, prices: Mapping[str, Price]) -> str:
    return page(study, figures(study, prices), recorded_by=f"llmproxy {__version__}")
