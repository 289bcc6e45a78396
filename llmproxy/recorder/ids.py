"""Find the id that a user means, in any form in which it was ever shown.

Clients see an exchange's id with their API's prefix (`chatcmpl-…`, `msg_…`), some tools print
ids in upper case, and people copy only the beginning of one.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from ..core.errors import InvalidRequest, NotFound

MIN_BEGINNING_CHARS = 4  # ULIDs begin with the time, so that fewer are hardly ever unique
MAX_NAMED = 20  # ids in one error
MAX_OF_SEVERAL = 4  # of those that begin with a text
SHORT_ID_CHARS = 13  # of an id in a narrow list: ten have the time in milliseconds

EXCHANGES = "select id, id as meant from proxy_exchanges"
EXCHANGES_AND_TURNS = f"{EXCHANGES} union all select id, id from turns"
# A failure belongs to the conversation of what it would have continued. Turns may have been
# deleted, and may be llm's own. The `+` keeps SQLite from reading all failures by their thread.
_THREADS = """
    select id, thread_id as meant from turns where thread_id is not null
    union all select id, thread_id from proxy_exchanges where thread_id is not null
    union all select failed.id, turns.thread_id from proxy_exchanges as failed
        join turns on turns.id = failed.previous_id
        where +failed.thread_id is null and turns.thread_id is not null
    union all select failed.id, before.thread_id from proxy_exchanges as failed
        join proxy_exchanges as before on before.id = failed.previous_id
        where +failed.thread_id is null and before.thread_id is not null
    union all select id, id from threads
    union all select thread_id, thread_id from proxy_exchanges where thread_id is not null
"""
_OTHERS = (
    ("threads", "a conversation", "--thread"),
    ("turns", "a turn of llm itself", "--thread"),
    ("proxy_runs", "a benchmark run", "--run"),
)
_CLIENT_PREFIX = re.compile(r"\A[a-z]+[-_](?=[0-9a-z]{1,26}\Z)")
# Of an item of a response, whose id has that of its exchange.
_PLACE_IN_OUTPUT = re.compile(r"(?<=[a-z]_[0-9a-z]{26})_\d{1,6}\Z")

Query = Callable[[str, Mapping[str, Any]], Sequence[Any]]
"""Runs SQL with named values on the log, and returns the rows."""


def find_id(query: Query, table: str, text: str) -> str | None:
    """Return the id that a text means, or None if it means none.

    The text may be an id, have a client's prefix, upper case, blanks or quotes around it, be
    the beginning of only one id, or count exchanges from the end: `last`, `-1`, `-2`.

    table: SQL of rows (id, meant): an id, and the one to return for it.

    Raises:
        InvalidRequest: several ids begin with it.
    """
    text = _counted_back(query, text) or text
    plain = _plain(text)
    for id in dict.fromkeys((text, plain)):
        sql = f"select meant from ({table}) where id = :id and meant is not null limit 1"
        for row in query(sql, {"id": id}):
            return str(row[0])
    if len(plain) < MIN_BEGINNING_CHARS:
        return None
    selected = f"from ({table}) where id >= :first and id < :last and meant is not null"
    values = {"first": plain, "last": f"{plain}\U0010ffff"}
    sql = f"select distinct meant {selected} order by meant limit {MAX_OF_SEVERAL + 1}"
    found = [str(row[0]) for row in query(sql, values)]
    if len(found) > 1:
        ((count,),) = query(f"select count(distinct meant) {selected}", values)
        more = count - MAX_OF_SEVERAL
        named = ", ".join(_told_apart(found)[:MAX_OF_SEVERAL])
        and_more = f" and {more:,} more" if more > 0 else ""
        raise InvalidRequest(f"several ids begin with {plain}: {named}{and_more}")
    return found[0] if found else None


def _told_apart(ids: Sequence[str]) -> list[str]:
    """Shorten sorted ids to beginnings of one length that differ, as short as lists have them."""
    same = [len(os.path.commonprefix(two)) for two in pairwise(ids)]
    chars = max(SHORT_ID_CHARS, *(chars + 1 for chars in same))
    return [id[:chars] for id in ids]


def _counted_back(query: Query, text: str) -> str | None:
    """Return the id of the newest exchange for `last` and `-1`, of the one before for `-2` …"""
    found = re.fullmatch(r"last|-0*([1-9]\d{0,17})", text)
    if found is None:
        return None
    rows = query(
        "select id from proxy_exchanges order by received desc, number desc limit 1 offset :newer",
        {"newer": int(found[1] or 1) - 1},
    )
    return str(rows[0][0]) if rows else None


def find_exchanges(query: Query, texts: Iterable[str]) -> tuple[str, ...]:
    """Return the ids of the exchanges that the texts mean, each once.

    Raises:
        NotFound: some mean none; the message names them.
        InvalidRequest: one is the beginning of several ids.
    """
    found = {text: find_id(query, EXCHANGES, text) for text in texts}
    unknown = [text for text, id in found.items() if id is None]
    if unknown:
        raise NotFound(_unknown_exchanges(query, unknown))
    return tuple(dict.fromkeys(id for id in found.values() if id is not None))


def find_thread(query: Query, text: str) -> str:
    """Return the id of a conversation, given by its own id or that of a turn or exchange in it.

    Raises:
        NotFound: there is none.
        InvalidRequest: the text is the beginning of ids in several conversations.
    """
    id = find_id(query, _THREADS, text)
    if id is None:
        raise NotFound(f"the log has no conversation {text or repr(text)}{_too_short(text)}")
    return id


def _plain(text: str) -> str:
    plain = text.strip(" \t\r\n\"'`,\ufeff").lower()
    return _CLIENT_PREFIX.sub("", _PLACE_IN_OUTPUT.sub("", plain))


def _unknown_exchanges(query: Query, texts: Sequence[str]) -> str:
    if len(texts) > 1:
        more = f" and {len(texts) - MAX_NAMED:,} more" if len(texts) > MAX_NAMED else ""
        return f"the log has no exchanges {', '.join(texts[:MAX_NAMED])}{more}"
    (text,) = texts
    for table, kind, flag in _OTHERS:
        for (id,) in query(f"select id from {table} where id = :id", {"id": _plain(text)}):
            return f"the log has no exchange {text}; it is {kind}: log {flag} {id}"
    return f"the log has no exchange {text or repr(text)}{_too_short(text)}"


def _too_short(text: str) -> str:
    is_beginning = re.fullmatch(rf"[0-9a-z]{{1,{MIN_BEGINNING_CHARS - 1}}}", _plain(text))
    least = f"; the beginning of an ID must have at least {MIN_BEGINNING_CHARS} characters"
    return least if is_beginning else ""
