"""The dashboard: a page about the latest logged exchanges, which reloads itself."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from ..recorder.reader import Filter, LogReader
from ..report.data import Study
from ..report.figures import figures
from ..report.html.page import page
from ..report.load import LOG_TITLE, study_of_log
from ..version import __version__

LAST = 100  # exchanges; a phone still shows such a page at once
REFRESH_S = 10
MIN_AGE_S = 5.0  # a rendered page is reused for this long, for all viewers


class Dashboard:
    """A renderer of the page, with a cache. The log need not exist yet."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._cache: dict[tuple[str, bool], tuple[float, str]] = {}

    def render(self, base_url: str, refreshes: bool) -> str:
        """Return the page as HTML. Blocks, for some tenths of a second if the log is large.

        base_url: this proxy's address, shown while nothing is recorded yet.
        refreshes: whether the page reloads itself.

        Raises:
            Unusable: the log can't be read.
        """
        key = base_url, refreshes
        with self._lock:
            now = time.monotonic()
            self._cache = {key: entry for key, entry in self._cache.items() if now <= entry[0]}
            if key not in self._cache:
                study = self._study()
                text = page(
                    study,
                    figures(study),
                    refresh_s=REFRESH_S if refreshes else None,
                    # Reloading closes the sections that a reader has opened.
                    other=("/?still", "keep still") if refreshes else ("/", "follow the log"),
                    recorded_by=f"llmproxy {__version__}",
                    base_url=base_url,
                )
                self._cache[key] = time.monotonic() + MIN_AGE_S, text
            return self._cache[key][1]

    def _study(self) -> Study:
        if not self._database.exists():
            return Study(title=LOG_TITLE, is_run=False)
        with LogReader(self._database, asks_models=False) as log:
            return study_of_log(log, Filter(), last=LAST)
