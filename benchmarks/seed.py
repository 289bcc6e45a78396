"""Large logs, made in minutes: some real exchanges, recorded by a server, and many copies.

A server records about a thousand exchanges of several kinds. Then plain SQL copies the rows of
all tables as often as needed: each copy has ids, hashes and times of its own, minutes apart,
and a word of its own in its searched text. So the database has the shape, the indexes and the
sizes of a real one; only its hashes are not those of the content.

Files stay in the cache folder, by the schema that the server made. A server that is started on
one adds an exchange to it, no more.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import shutil
import sqlite3
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

from . import load, requests
from .servers import Kind, Server

RECORDED = 1_000  # exchanges that the server records itself
MINUTES = 15  # between two copies of these
RARE_WORD = "copy7"  # in the exchanges of one copy
COMMON_WORD = "question"  # in every one
ULID_DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

_IDS = {"id", "thread_id", "turn_id", "previous_id", "recorded_id", "forked_from", "tool_call_id"}
_TIMES = {"received", "datetime_utc"}
# In the order of their references; whatever else has rows is small, and is copied once.
_COPIED = (
    "threads",
    "messages",
    "parts",
    "turns",
    "turn_search",
    "proxy_replies",
    "proxy_calls",
    "proxy_exchanges",
)


def seeded(kind: Kind, cache: Path, folder: Path, count: int, cores: tuple[int, int]) -> Path:
    """Return a logs.db of so many exchanges, in the cache.

    folder: where the server may record what is copied.
    """
    recorded = _record(kind, folder, cores)
    with closing(sqlite3.connect(recorded)) as source:
        schema = "\n".join(sql for (sql,) in source.execute("select sql from sqlite_master") if sql)
    name = f"{hashlib.sha256(schema.encode()).hexdigest()[:12]}-{count}.db"
    path = cache / "logs" / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        multiply(recorded, unfinished, count)
        unfinished.rename(path)
    return path


def _record(kind: Kind, folder: Path, cores: tuple[int, int]) -> Path:
    """Record exchanges: questions, streams, conversations, and failures."""
    with Server(kind, folder, *cores) as server:
        load.run(server.port, _varied(RECORDED - 1), 8)
        server.rest()
        server.end()
    return folder / "llm" / "logs.db"


def _varied(count: int) -> itertools.chain[bytes]:
    """Return requests as a user's programs send them, so many."""
    varied: list[bytes] = []
    number = 0
    while len(varied) < count:
        number += 1
        question = f"{COMMON_WORD} {number} about {requests.text(300, number)}"
        messages = [requests.user(question)]
        extra = {"stream": random.Random(number).random() < 0.5}
        model = {"model": "unknown"} if number % 20 == 0 else {}
        varied += requests.resent(messages, 1 + number % 4, extra | model)
    return itertools.chain(varied[:count])


def multiply(source: Path, path: Path, count: int) -> None:
    """Copy a log's exchanges into a new file until it has about so many."""
    path.unlink(missing_ok=True)
    shutil.copy(source, path)
    with closing(sqlite3.connect(path, isolation_level=None)) as target:
        target.create_function("copied_id", 2, copied_id, deterministic=True)
        target.create_function("copied_hash", 2, copied_hash, deterministic=True)
        target.create_function("copied_time", 2, copied_time, deterministic=True)
        target.execute("pragma journal_mode = off")
        target.execute("pragma synchronous = off")
        target.execute("pragma cache_size = -1000000")
        target.execute("attach ? as source", (f"{source}",))
        target.execute("begin")
        for table in reversed(_COPIED):
            target.execute(f"delete from main.{table}")
        exchanges = target.execute("select count(*) from source.proxy_exchanges").fetchone()[0]
        statements = [_copy_of(target, table) for table in _COPIED]
        for number in reversed(range(-(-count // exchanges))):
            for statement in statements:
                target.execute(statement, {"copy": number})
        target.execute("commit")
        target.execute("detach source")
        target.execute("pragma journal_mode = wal")


def _copy_of(target: sqlite3.Connection, table: str) -> str:
    """Return the SQL that inserts a copy of all rows of a table."""
    names, values = [], []
    for _, name, kind, _, _, is_key in target.execute(f"pragma table_info({table})"):
        if is_key and kind.lower() == "integer":
            continue
        names.append(name)
        if name in _IDS:
            values.append(f"copied_id({name}, :copy)")
        elif name in _TIMES:
            values.append(f"copied_time({name}, :copy)")
        elif name == "hash" or name.endswith(("_hash", "_key")):
            values.append(f"copied_hash({name}, :copy)")
        elif table == "turn_search" and name == "prompt":
            values.append("prompt || ' copy' || :copy")
        else:
            values.append(name)
    order = "order by number" if table == "proxy_exchanges" else ""
    return (
        f"insert into main.{table} ({', '.join(names)})"
        f" select {', '.join(values)} from source.{table} {order}"
    )


def copied_id(id: str | None, copy: int) -> str | None:
    """Return the ULID of some minutes before, with the copy's number after its time."""
    if id is None or len(id) != 26:
        return id and f"{id}-{copy}"
    ms = -copy * MINUTES * 60_000
    for place, digit in enumerate(reversed(id[:10].upper())):
        ms += ULID_DIGITS.index(digit) * 32**place
    time = "".join(ULID_DIGITS[ms // 32**place % 32] for place in range(9, -1, -1))
    moved = time + f"{copy:05d}" + id[15:]
    return moved.lower() if id.islower() else moved


def copied_hash(hash: str | None, copy: int) -> str | None:
    # The number comes first, or all copies of a row would be neighbours in an index.
    return hash and f"{copy * 2654435761 % 2**32:08x}{hash[8:]}"


def copied_time(text: str | None, copy: int) -> str | None:
    if text is None:
        return None
    moved = datetime.fromisoformat(text) - timedelta(minutes=copy * MINUTES)
    return moved.isoformat(timespec="microseconds")
