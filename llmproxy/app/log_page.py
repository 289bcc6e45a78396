"""Render the page about the latest logged exchanges. Imported when it is asked for."""

from __future__ import annotations

from pathlib import Path

from ..recorder.listing import Filter
from ..recorder.reader import LogReader
from ..report.data import Study
from ..report.figures import figures
from ..report.html.page import page
from ..report.load import LOG_TITLE, study_of_log
from ..version import __version__

LAST = 100  # exchanges; a phone still shows such a page at once
REFRESH_S = 10


def log_page(database: Path, base_url: str, *, refreshes: bool) -> str:
    """Return the page as HTML; the log need not exist yet.

    base_url: this proxy's address, shown while nothing is recorded yet.
    refreshes: whether the page reloads itself.
    """
    study = _study(database)
    return page(
        study,
        figures(study),
        refresh_s=REFRESH_S if refreshes else None,
        # Reloading closes the sections that a reader has opened.
        other=("/?still", "keep still") if refreshes else ("/", "follow the log"),
        recorded_by=f"llmproxy {__version__}",
        base_url=base_url,
    )


def _study(database: Path) -> Study:
    if not database.exists():
        return Study(title=LOG_TITLE, is_run=False)
    with LogReader(database, asks_models=False) as log:
        return study_of_log(log, Filter(), last=LAST)
