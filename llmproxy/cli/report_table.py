"""Print a study as a table, for `bench` and `report`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from ..core.text import printable
from ..report.data import Study
from ..report.figures import figures
from ..report.prices import Price, without_model
from ..report.text import table
from .terminal import has_colours, print_error, print_line, width


def print_unpriced(prices: Mapping[str, Price], models: Sequence[str]) -> None:
    """Say which names in the prices no model has, if a model has no price."""
    lost = [printable(name) for name in without_model(prices, models)]
    if lost:
        unpriced = ", ".join(printable(model) for model in models if model not in prices)
        print_error(f"--prices: no model here is called {', '.join(lost)}; no price for {unpriced}")


def print_table(study: Study, prices: Mapping[str, Price]) -> None:
    """Print a study as wide as the terminal, in colour if it is one."""
    colours = has_colours(sys.stdout)
    lines = table(study, figures(study, prices), width=width(), colours=colours)
    print_line("\n".join(lines))
