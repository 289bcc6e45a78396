"""`report`: summarize a benchmark run, or the recorded traffic, as a table, JSON, CSV or a page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence

from ..bench.runs import find_run
from ..core.errors import InvalidRequest
from ..recorder.database import StoreError
from ..recorder.listing import Filter
from ..recorder.reader import LogReader
from ..report.data import Study
from ..report.figures import figures
from ..report.html.comparison_page import comparison_page
from ..report.html.page import page
from ..report.json_and_csv import report_csv, report_json
from ..report.load import study_of_log, study_of_run
from ..report.numbers import count_of
from ..report.prices import Price
from ..report.run_comparison import (
    compare_runs,
    comparison_csv,
    comparison_json,
    comparison_lines,
)
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
from .page_file import write_page
from .report_table import prices_for, print_table
from .run import run
from .summary_text import damage_lines
from .terminal import has_colours, print_error, print_json, print_line, width, write_text

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
    add(
        "other",
        nargs="?",
        type=name,
        metavar="OTHER",
        help="name or ID of another run: say how each model changed from RUN to OTHER",
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
    if arguments.other is not None:
        return _compare(arguments, prices)
    # Models are not asked: their plugins take seconds to load.
    with LogReader(database_of(arguments), asks_models=False) as history:
        study = _study(history, arguments)
        is_empty = not (study.answers or study.unnamed or history.ids(last=1))
    if is_empty:
        print_error("nothing is recorded yet")
    for line in damage_lines(study.damaged, study.unnamed):
        print_error(line)
    prices = prices_for(prices, study.models)
    if arguments.json:
        print_json(report_json(study, figures(study, prices), prices))
    elif arguments.csv:
        write_text(report_csv(study, prices))
        if study.is_partial:
            shown = count_of(len(study.answers), "response")
            print_error(f"only the newest {shown}; --last N reads more")
    elif arguments.html:
        write_page(arguments.html, _page(study, prices))
    else:
        print_table(study, prices)
    return 0


def _compare(arguments: argparse.Namespace, prices: Mapping[str, Price]) -> int:
    with LogReader(database_of(arguments), asks_models=False) as history:
        found = [find_run(history, text) for text in (arguments.run, arguments.other)]
        if found[0].id == found[1].id:
            raise InvalidRequest(f"{found[0].name} is compared with itself: name another run")
        first, second = (study_of_run(history, run) for run in found)
    for study in (first, second):
        for line in damage_lines(study.damaged, study.unnamed):
            print_error(line)
    models = [*first.models, *second.models]
    runs = compare_runs(first, second, prices_for(prices, models))
    if not runs.models:
        print_error("no model is in both runs")
    if arguments.json:
        print_json(comparison_json(runs))
    elif arguments.csv:
        write_text(comparison_csv(runs))
    elif arguments.html:
        write_page(arguments.html, comparison_page(runs, f"llmproxy {__version__}"))
    else:
        lines = comparison_lines(runs, width=width(), colours=has_colours(sys.stdout))
        print_line("\n".join(lines))
    return 0


def _study(history: LogReader, arguments: argparse.Namespace) -> Study:
    if arguments.run is not None:
        return study_of_run(history, find_run(history, arguments.run))
    resolve_ids(history, arguments)
    return study_of_log(history, _filter(arguments), last=arguments.last or NEWEST)


def _page(study: Study, prices: Mapping[str, Price]) -> str:
    return page(study, figures(study, prices), recorded_by=f"llmproxy {__version__}")
