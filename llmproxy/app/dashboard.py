"""The log's own traffic as a page that browsers load again and again."""

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

LAST = 100  # exchanges: a page that a phone still shows at once
REFRESH_S = 10
MIN_AGE_S = 5.0  # a page serves all who look at it for this long


class Dashboard:
    """Makes the page of a log, which need not be there yet."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._made: dict[tuple[str, bool], tuple[float, str]] = {}

    def render(self, base_url: str, refreshes: bool) -> str:
        """Write the page; it blocks, for some tenths of a second where there is much.

        base_url: where this proxy listens, for who has recorded nothing yet.

        Raises:
            Unusable: the log can't be read.
        """
        key = base_url, refreshes
        with self._lock:
            now = time.monotonic()
            self._made = {key: made for key, made in self._made.items() if now <= made[0]}
            if key not in self._made:
                study = self._study()
                text = page(
                    study,
                    figures(study),
                    refresh_s=REFRESH_S if refreshes else None,
                    # What a reader has opened is closed each time it is loaded.
                    other=("/?still", "keep still") if refreshes else ("/", "follow the log"),
                    recorded_by=f"llmproxy {__version__}",
                    base_url=base_url,
                )
                self._made[key] = time.monotonic() + MIN_AGE_S, text
            return self._made[key][1]

    def _study(self) -> Study:
        if not self._database.exists():
            return Study(title=LOG_TITLE, is_run=False)
        with LogReader(self._database, asks_models=False) as history:
            return study_of_log(history, Filter(), last=LAST)
