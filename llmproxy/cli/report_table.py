"""Print a study as a table, for `bench` and `report`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping

from ..report.data import Study
from ..report.figures import figures
from ..report.prices import Price
from ..report.text import table


def print_table(study: Study, prices: Mapping[str, Price]) -> None:
    """Print a study as wide as the terminal, in colour if it is one."""
    width = shutil.get_terminal_size().columns
    lines = table(study, figures(study, prices), width=width, colours=sys.stdout.isatty())
    print("\n".join(lines), flush=True)
