"""Print a study as a table, for `bench` and `report`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from ..core.text import printable
from ..report.data import Study
from ..report.figures import figures
from ..report.prices import Price, of_models, without_model
from ..report.text import table
from .terminal import has_colours, print_error, print_line, width

MAX_NAMED = 10  # a published file has hundreds


def prices_for(prices: Mapping[str, Price], models: Sequence[str]) -> dict[str, Price]:
    """Return the prices of these models; say which have none, and which names fit no model."""
    found = of_models(prices, models)
    if lost := without_model(prices, models):
        unpriced = ", ".join(printable(model) for model in models if model not in found)
        names = ", ".join(map(printable, lost[:MAX_NAMED])) + ", …" * (len(lost) > MAX_NAMED)
        print_error(f"--prices: no model here is called {names}; no price for {unpriced}")
    return found


def print_table(study: Study, prices: Mapping[str, Price]) -> None:
    """Print a study as wide as the terminal, in colour if it is one."""
    colours = has_colours(sys.stdout)
    lines = table(study, figures(study, prices), width=width(), colours=colours)
    print_line("\n".join(lines))
