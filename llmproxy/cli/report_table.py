"""Print a study as a table, for `bench` and `report`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping

from ..core.text import printable
from ..report.data import Study
from ..report.figures import figures
from ..report.prices import Price
from ..report.text import table
from .terminal import has_colours, print_error, print_line, width


def print_unused_prices(prices: Mapping[str, Price], models: Iterable[str]) -> None:
    """Name on standard error the prices of models that are not among these."""
    if unused := sorted(prices.keys() - set(models)):
        names = printable(", ".join(unused))
        print_error(f"--prices has models that are not in this report: {names}")


def print_table(study: Study, prices: Mapping[str, Price]) -> None:
    """Print a study as wide as the terminal, in colour if it is one."""
    colours = has_colours(sys.stdout)
    lines = table(study, figures(study, prices), width=width(), colours=colours)
    print_line("\n".join(lines))
