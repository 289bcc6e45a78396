"""Any type of value in any column of an edited log: each reader goes on, or says why not."""

from __future__ import annotations

import shutil
import sqlite3
from collections import defaultdict
from contextlib import closing
from unittest.mock import patch

import pytest

from llmproxy.app.log_page import log_page
from llmproxy.recorder.database import StoreError
from tests.commands import run_here
from tests.flows.test_damaged_log import recorded_once

__all__ = ["recorded_once"]  # a fixture

VALUES = {
    "NULL": "null",
    "a BLOB": "x'00ff80'",
    "a number": "-1e300",
    "a long text": "printf('%.*c', 100000, '[')",
}
COMMANDS = [
    "log",
    "log --threads --json",
    "log --cache",
    "log --verify",
    "log ID",
    "log --thread ID --search pudding",
    "log --thread ID",
    "report --html -",
    "export -",
]
PAGES = ["", "conversations", "exchanges/ID", "conversations/ID"]


def columns(path):
    """List the tables that have rows, without those of the search index, and their columns."""
    with closing(sqlite3.connect(path)) as log:
        tables = log.execute(
            "select name from sqlite_master where type = 'table' and sql not like '%virtual%'"
            " and name not like '%fts%' and name not like 'sqlite_%'"
        ).fetchall()
        return [
            (table, column)
            for (table,) in tables
            if log.execute(f"select 1 from [{table}] limit 1").fetchone()
            for (column,) in log.execute("select name from pragma_table_info(?)", (table,))
        ]


def relaxed(source, path):
    """Copy a log whose tables then allow NULL in any column."""
    shutil.copy(source, path)
    with closing(sqlite3.connect(path)) as log, log:
        log.execute("pragma writable_schema = on")
        log.execute(
            "update sqlite_master set sql ="
            " replace(replace(sql, ' NOT NULL', ''), ' not null', '') where type = 'table'"
        )
    return path


def edit(source, path, table, column, value, id):
    """Copy a log and set a column of one row; return whether SQLite could."""
    shutil.copy(source, path)
    with closing(sqlite3.connect(path)) as log, log:
        log.execute("pragma synchronous = off")
        return _edit(log, table, column, value, id)


def _edit(log, table, column, value, id):
    info = log.execute("select name, pk from pragma_table_info(?)", (table,)).fetchall()
    keys = ", ".join(f"[{name}]" for name, pk in info if pk) or "rowid"
    where = "where id = :id" if table in ("turns", "proxy_exchanges") else ""
    row = f"({keys}) in (select {keys} from [{table}] {where} limit 1)"
    try:
        log.execute(f"update [{table}] set [{column}] = {value} where {row}", {"id": id})
    except (sqlite3.IntegrityError, sqlite3.OperationalError):  # a row's number, a key
        return False
    return True


@pytest.fixture(scope="module")
def source(recorded_once, tmp_path_factory):
    return relaxed(recorded_once.path, tmp_path_factory.mktemp("relaxed") / "logs.db")


def run_command(path, id, command):
    code, _, err = run_here(*command.replace("ID", id).split())
    assert code in (0, 1), (command, code, err)
    assert "Traceback" not in err and (code == 0 or err or "verify" in command), command


def get_page(path, id, page):
    try:
        status, _ = log_page(path, f"/{page.replace('ID', id)}", "", "http://localhost:9", "./")
    except StoreError:
        return  # answered with a page that says why
    assert status in (200, 400, 404), page


READERS = [(run_command, command) for command in COMMANDS] + [(get_page, page) for page in PAGES]


def check_readers(path, id, readers=READERS):
    for read, what in readers:
        read(path, id, what)


def readers_by_column(path, id):
    """Find the readers that read each column; what others print can't depend on it."""
    found = defaultdict(list)
    connect = sqlite3.connect
    for reader in READERS:
        read = set()

        def note(action, table, column, *more, read=read):
            if action == sqlite3.SQLITE_READ:
                read.add((table, column))
            return sqlite3.SQLITE_OK

        def watched(*given, note=note, **options):
            connection = connect(*given, **options)
            connection.set_authorizer(note)
            return connection

        with patch("sqlite3.connect", watched):
            check_readers(path, id, [reader])
        assert ("proxy_exchanges", "id") in read, reader
        for place in read:
            found[place].append(reader)
    return found


# Keys by which rows are found: they were read without a check.
KEYS = [("proxy_exchanges", "id"), ("proxy_exchanges", "thread_id"), ("turns", "id")]
KEYS += [("turns", "thread_id"), ("threads", "id"), ("attachments", "content")]
KEYS += [("attachments", "type"), ("proxy_meta", "value")]


@pytest.mark.parametrize("table, column", KEYS)
def test_a_key_of_another_type_ends_no_reader(table, column, source, recorded_once, llm_user_path):
    path = llm_user_path / "logs.db"
    assert edit(source, path, table, column, VALUES["a BLOB"], recorded_once.id)
    check_readers(path, recorded_once.id)


@pytest.mark.slow
@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_no_value_of_any_column_ends_a_reader(value, source, recorded_once, llm_user_path):
    path = llm_user_path / "logs.db"
    shutil.copy(recorded_once.path, path)
    readers = readers_by_column(path, recorded_once.id)
    for table, column in columns(source):
        if edit(source, path, table, column, value, recorded_once.id):
            try:
                check_readers(path, recorded_once.id, readers[table, column])
            except Exception as exc:
                exc.add_note(f"{table}.{column}")
                raise


@pytest.mark.parametrize("value", ["null", "x'00ff80'", "cast(x'66ff6f' as text)"])
def test_an_exchange_without_a_readable_id_is_counted_as_left_out(
    value, source, recorded_once, llm_user_path
):
    path = llm_user_path / "logs.db"
    assert edit(source, path, "proxy_exchanges", "id", value, recorded_once.id)
    left_out = "left out 1 exchange whose id can't be read"
    for words in (["export", "-"], ["report"], ["report", "--html", "-"]):
        code, out, err = run_here(*words)
        assert code == (words[0] == "export") and left_out in err, (code, err)
        assert ("--html" in words) == (b"Left out 1 exchange" in out)
