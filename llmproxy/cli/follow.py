"""`log --follow` on a terminal: exchanges as they end, and below them those that run.

The running ones are the last rows, drawn anew as their time goes by. Elsewhere each exchange
is a line when it begins and one when it has ended.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from ..core.text import visible
from ..recorder.listing import Follower
from ..recorder.summary import ExchangeSummary
from .summary_text import ExchangeAligner, summary_row

POLL_S = 0.2  # between two polls: fast enough to seem immediate
REDRAW_S = 1.0  # of running exchanges, whose time goes by
SHARE = 0.5  # of the terminal's height that running exchanges may take


def follow_live(
    follower: Follower, found: Sequence[ExchangeSummary], aligner: ExchangeAligner
) -> NoReturn:
    """Show exchanges on a terminal until Ctrl-C: those found at first, then what begins or ends."""
    rows = LiveList(aligner)
    try:
        while True:
            rows.show(found)
            time.sleep(POLL_S)
            found = follower.poll()
    finally:
        rows.close()


class LiveList:
    """A list on a terminal whose last rows are the exchanges that run."""

    def __init__(self, aligner: ExchangeAligner) -> None:
        self._aligner = aligner
        self._running: dict[str, ExchangeSummary] = {}
        self._drawn = 0  # rows of running exchanges on the screen
        self._drawn_at = 0.0

    def show(self, found: Sequence[ExchangeSummary]) -> None:
        """Print those of these that have ended, and draw the running ones below."""
        ended = [entry for entry in found if entry.status != "running"]
        self._running |= {entry.id: entry for entry in found if entry.status == "running"}
        for entry in ended:
            self._running.pop(entry.id, None)
        is_due = self._running and time.monotonic() - self._drawn_at >= REDRAW_S
        if found or is_due:
            self._draw(ended)

    def close(self) -> None:
        """Take the running ones from the screen."""
        self._running.clear()
        self._draw([])

    def _draw(self, ended: Sequence[ExchangeSummary]) -> None:
        most = max(int(shutil.get_terminal_size().lines * SHARE), 1)
        running = [*self._running.values()]
        rows = self._aligner.lines([*map(summary_row, [*ended, *running[-most:]])])
        erased = f"\x1b[{self._drawn}A\x1b[J" if self._drawn else ""
        sys.stdout.write(erased + "".join(f"{visible(row)}\n" for row in rows))
        sys.stdout.flush()
        self._drawn = len(rows) - len(ended)
        self._drawn_at = time.monotonic()
