"""Print a study as a table, for `bench` and `report`."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from ..report.data import Study
from ..report.figures import figures
from ..report.prices import Price
from ..report.text import table
from .terminal import has_colours, print_line, width


def print_table(study: Study, prices: Mapping[str, Price]) -> None:
    """Print a study as wide as the terminal, in colour if it is one."""
    colours = has_colours(sys.stdout)
    lines = table(study, figures(study, prices), width=width(), colours=colours)
    print_line("\n".join(lines))
