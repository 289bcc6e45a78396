"""List exchanges page by page, newest first, within a bounded time however long the log is.

A rare value of a column, or a rare word, may stand anywhere in a million exchanges. So a page
looks through windows of the log that grow towards the past, stops when its time is over, and
says how far it came: the next page goes on from there.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain, repeat
from typing import Any

from ..core.errors import NotFound
from .database import Unusable
from .listing import Filter, LogListing
from .summary import SUMMARY_COLUMNS, ExchangeSummary, time_of_id
from .text_search import indexed_words

WINDOWS = (1_000, 10_000)  # exchanges; the windows after these are as large as MAX_WINDOW
MAX_WINDOW = 100_000
STEPS = 10_000  # instructions of SQLite between two looks at the clock, about 0.1 ms
RECENT = 1_000  # exchanges whose clients and models are offered as filters


@dataclass(frozen=True)
class Page:
    """Some exchanges, newest first.

    before: the ID from which the next page goes on to the past; None at the end of the log.
    is_cut: the time was over before enough was found.
    searched_to: then, how far it came; None if not even through the newest exchanges.
    is_index_only: words were looked up in the index of prompts and replies for what is older
        than the newest windows, and not in results of tools.
    """

    entries: Sequence[ExchangeSummary]
    before: str | None = None
    is_cut: bool = False
    searched_to: datetime | None = None
    is_index_only: bool = False


@dataclass(frozen=True)
class Choices:
    """The clients and the models of the newest exchanges, the most frequent first."""

    clients: Sequence[str]
    models: Sequence[str]


def choices(reader: LogListing) -> Choices:
    """Return what the newest exchanges could be filtered by.

    Raises:
        Unusable: the file can't be read any more.
    """
    newest = "select {} as name from proxy_exchanges order by received desc limit :recent"
    counted = (
        "select name, count(*) as count from ({newest}) where name is not null"
        " group by name order by count desc, name limit 12"
    )
    clients, models = (
        [
            str(row["name"])
            for row in reader.rows(counted.format(newest=newest.format(column)), {"recent": RECENT})
        ]
        for column in ("client", "model_used")
    )
    return Choices(clients, models)


def page_of(
    reader: LogListing, chosen: Filter, *, before: str | None, count: int, time_s: float
) -> Page:
    """Return the newest exchanges that a filter selects, at most `count`, within about `time_s`.

    before: the ID of an exchange; only older ones are returned.

    Raises:
        NotFound: there is no such exchange.
        Unusable: the file can't be read any more.
    """
    start = None if before is None else _place(reader, before)
    deadline = time.monotonic() + time_s
    words = indexed_words(chosen.search or "")
    found: list[ExchangeSummary] = []
    for size in chain(WINDOWS, repeat(MAX_WINDOW)):
        missing = count + 1 - len(found)
        window = _window(
            reader, chosen, start, size, missing, deadline - (time_s / 2 if words else 0)
        )
        if window is None:
            return _rest(reader, chosen, words, found, start, count, deadline)
        found += window.entries
        if len(found) > count:
            return Page(found[:count], before=found[count - 1].id)
        if window.least is None:
            break
        start = window.least
    return Page(found)


_Place = tuple[str, int]
"""The time and the number of an exchange."""


def _place(reader: LogListing, id: str) -> _Place:
    sql = "select received, number from proxy_exchanges where id = :id"
    for row in reader.rows(sql, {"id": id}):
        return row["received"], row["number"]
    raise NotFound(f"the log has no exchange {id}")


@dataclass(frozen=True)
class _Window:
    """What was found in a window; least: its oldest place, None if it reaches to the end."""

    entries: Sequence[ExchangeSummary]
    least: _Place | None


def _window(
    reader: LogListing,
    chosen: Filter,
    start: _Place | None,
    size: int,
    count: int,
    deadline: float,
) -> _Window | None:
    """Look through the next `size` exchanges; None if there was no time for that."""
    window: _Window | None = None
    with time_limit(reader, deadline):
        among, values = _between(start, None)
        ends = reader.rows(_AT.format(among), values | {"before": size - 1})
        least = (ends[0]["received"], ends[0]["number"]) if ends else None
        among, values = _between(start, least)
        condition, more = chosen.where(among)
        rows = reader.rows(_NEWEST.format(_COLUMNS, condition), values | more | {"count": count})
        window = _Window(reader.summaries(rows), least)
    return window


_AT = (
    "select received, number from proxy_exchanges where {}"
    " order by received desc, number desc limit 1 offset :before"
)
_COLUMNS = ", ".join(SUMMARY_COLUMNS)
_NEWEST = (
    "select {} from proxy_exchanges where number in (select number from proxy_exchanges"
    " where {} order by received desc, number desc limit :count)"
    " order by received desc, number desc"
)


def _between(start: _Place | None, least: _Place | None) -> tuple[str, dict[str, Any]]:
    conditions, values = ["true"], dict[str, Any]()
    if start is not None:
        conditions.append("received <= :start and (received < :start or number < :start_number)")
        values |= {"start": start[0], "start_number": start[1]}
    if least is not None:
        conditions.append("received >= :least and (received > :least or number >= :least_number)")
        values |= {"least": least[0], "least_number": least[1]}
    return " and ".join(conditions), values


@contextmanager
def time_limit(reader: LogListing, deadline: float) -> Iterator[Callable[[], bool]]:
    """End the block when a query runs beyond a monotonic time.

    Gives a function that says, afterwards, whether the block was completed.
    """
    is_complete = True
    with reader.until(lambda: time.monotonic() > deadline, STEPS):
        try:
            yield lambda: is_complete
        except Unusable as exc:
            if getattr(exc.__cause__, "sqlite_errorcode", None) != sqlite3.SQLITE_INTERRUPT:
                raise
            is_complete = False


def _rest(
    reader: LogListing,
    chosen: Filter,
    words: str | None,
    found: list[ExchangeSummary],
    start: _Place | None,
    count: int,
    deadline: float,
) -> Page:
    """Look for words in the index of what is older than `start`, where the time was over."""
    reached = None if start is None else _id_at(reader, start)
    searched_to = None if start is None else time_of_id(reached or "")
    if words is None:
        return Page(found, before=reached, is_cut=True, searched_to=searched_to)
    among, values = _between(start, None)
    condition, more = replace(chosen, search=None).where(among)
    sql = _INDEXED.format(_COLUMNS, condition)
    values |= more | {"words": words, "count": count + 1 - len(found)}
    rows: list[sqlite3.Row] = []
    with time_limit(reader, deadline) as is_complete:
        rows = reader.rows(sql, values)
    if not is_complete():
        return Page(found, before=reached, is_cut=True, searched_to=searched_to)
    found += reader.summaries(rows)
    if len(found) > count:
        return Page(found[:count], before=found[count - 1].id, is_index_only=True)
    return Page(found, is_index_only=True)


# The index gives its rows by their numbers, which are in the order of writing.
_INDEXED = """
    select {} from proxy_exchanges where number in (
        select number from turn_search_fts
        cross join (select id as place, turn_id from turn_search) on place = turn_search_fts.rowid
        cross join proxy_exchanges on proxy_exchanges.id = turn_id
        where turn_search_fts match :words and {} order by turn_search_fts.rowid desc limit :count
    ) order by received desc, number desc
"""


def _id_at(reader: LogListing, place: _Place) -> str | None:
    sql = "select id from proxy_exchanges where number = :number"
    for row in reader.rows(sql, {"number": place[1]}):
        return str(row["id"])
    return None
