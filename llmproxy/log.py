"""Read a log from a program: its exchanges and its conversations."""

from __future__ import annotations

import os
from pathlib import Path

import llm

from .conversations.threads import Thread, threads
from .recorder.exchange import Exchange
from .recorder.listing import Filter
from .recorder.reader import LogReader
from .recorder.summary import ExchangeSummary

_EVERYTHING = Filter()


class Log:
    """A log that is open for reading, by one thread at a time; close it, or use `with`."""

    def __init__(self, path: Path) -> None:
        self._reader = LogReader(path)

    def entries(
        self, filter: Filter = _EVERYTHING, *, last: int | None = None
    ) -> list[ExchangeSummary]:
        """List exchanges in the order in which they were received, at most the `last` ones.

        Raises:
            ProxyError: the log has no exchange or thread with an id of the filter (a 404).
            StoreError: the file can't be read any more.
        """
        return self._reader.entries(self._reader.resolve(filter), last=last)

    def exchange(self, id: str) -> Exchange:
        """Read one exchange completely: request, messages, reply and timeline.

        What can't be read has its default, and is named in `damage`.

        id: of the exchange, as its client was given it (`chatcmpl-…`, `msg_…`), or the
            beginning of one.

        Raises:
            ProxyError: the log has no such exchange (a 404).
            StoreError: the file can't be read any more.
        """
        return self._reader.exchange(id)

    def conversations(
        self, filter: Filter = _EVERYTHING, *, last: int | None = None
    ) -> list[Thread]:
        """List the conversations with an exchange that passes the filter, newest activity last.

        Raises:
            ProxyError: the log has no exchange or thread with an id of the filter (a 404).
            StoreError: the file can't be read any more.
        """
        return threads(self._reader, self._reader.resolve(filter), last=last)

    def close(self) -> None:
        """Close the file."""
        self._reader.close()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_log(path: str | os.PathLike[str] | None = None) -> Log:
    """Open a log for reading, also beside a running proxy; llm's own logs.db without a path.

        with llmproxy.open_log() as log:
            for entry in log.entries(llmproxy.Filter(status="error"), last=20):
                print(entry.received, entry.client, entry.error)

    Raises:
        StoreError: there is no such file, it is no database, or a newer llmproxy's.
    """
    return Log(Path(path) if path is not None else llm.user_dir() / "logs.db")
