"""Every reader reads a log that can only be read, and says so if there is none yet."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing, contextmanager
from pathlib import Path

import llm
import pytest
from llm.logs import LogStore
from sqlite_utils import Database

import llmproxy
from llmproxy.app.dashboard import Dashboard
from llmproxy.backends.log_source import Log
from llmproxy.conversations.matching import Matcher
from llmproxy.core import chat
from llmproxy.recorder.database import META, MIGRATIONS, SCHEMA_VERSION
from llmproxy.recorder.reader import LogReader
from llmproxy.recorder.store import Store
from llmproxy.recorder.verify import verify
from tests.commands import run_here

NOBODY = 65534


@contextmanager
def without_privileges():
    """Root may write everywhere, whatever the mode says: act as somebody else meanwhile."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def folder(monkeypatch):
    """A folder that others may look into, which pytest's own are not; llm's is in it."""
    with tempfile.TemporaryDirectory(prefix="llmproxy-tests-") as name:
        folder = Path(name)
        monkeypatch.setenv("LLM_USER_PATH", name)
        yield folder
        make_writable(folder, True)


def make_writable(folder, is_writable):
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o755 if path.is_dir() else 0o644) if is_writable else 0o555)


FILES = {  # what is beside logs.db, with the last exchange in the write-ahead log or not
    "alone": ((), False),
    "with an empty write-ahead log": (("-wal",), False),
    "with its write-ahead log": (("-wal",), True),
    "with both files of SQLite": (("-wal", "-shm"), True),
}


@pytest.fixture(params=FILES)
def read_only(request, folder, store, path, make_exchange, talk):
    """A copy of a log of two exchanges, in a folder that can't be written."""
    endings, is_in_wal = FILES[request.param]
    first = talk("capital of France?")
    second = talk("and of Spain?", first)
    if not is_in_wal:
        store.flush()
    copy = folder / "logs.db"
    for ending in ("", *endings):
        shutil.copy(f"{path}{ending}", f"{copy}{ending}")
    store.close()
    make_writable(folder, False)
    return copy, first, second


def readers(database, id):
    """Run every command that reads; give what each said."""
    log = "--database", str(database)
    commands = [
        ("log",),
        ("log", "--json"),
        ("log", "--search", "Spain"),
        ("log", id),
        ("log", "--thread", id),
        ("log", "--threads"),
        ("log", "--cache"),
        ("log", "--verify"),
        ("report", "--csv"),
        ("report", "--html", "-"),
        ("export", "-"),
        ("bench", "--models", "demo", "--dry-run"),
    ]
    return {words: run_here(*words, *log) for words in commands}


def test_every_reader_reads_it(read_only, path):
    copy, first, second = read_only
    expected = readers(path, second.id)  # where everything can be written; imports modules, too
    with without_privileges():
        with pytest.raises(OSError):
            (copy.parent / "new").touch()
        assert readers(copy, second.id) == expected
        assert {code for code, _, _ in expected.values()} == {0}
        assert verify(copy).broken == ()
        with llmproxy.open_log(copy) as log:
            assert [entry.id for entry in log.entries()] == [first.id, second.id]
        with Log(copy) as source:
            assert source.models() == ["demo"]
            assert [*source.near(chat.ChatRequest("demo", [llm.user("hm?")]))]
        assert (
            b"and of Spain?"
            in asyncio.run(Dashboard(copy).page("/", "", "http://127.0.0.1:1", "./"))[1]
        )
        matcher = Matcher(copy)
        history = [*second.turn.messages, *second.turn.reply, llm.user("thanks")]
        assert matcher.match(history, "demo", "tests").previous_id == second.id
        matcher.close()


def test_changes_by_somebody_else_are_followed(folder, path, store, make_exchange):
    """As with a folder that a container mounts to read, and the proxy outside to write."""
    store.write([make_exchange("before")])
    store.flush()
    copy = folder / "logs.db"
    shutil.copy(path, copy)
    make_writable(folder, False)
    with without_privileges():
        reader = LogReader(copy)
        follower = reader.follow()
        assert follower.poll() == []
    make_writable(folder, True)
    later = make_exchange("after")
    with Store(copy) as writer:
        writer.write([later])
    make_writable(folder, False)
    with without_privileges(), closing(reader):
        assert [entry.id for entry in follower.poll()] == [later.id]


def make_older_log(path, version):
    """Write a log of one exchange as the llmproxy of this version of the tables did."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("pragma journal_mode = wal")
        LogStore(Database(connection, execute_plugins=False))
        connection.execute(META)
        for statements in MIGRATIONS[:version]:
            for statement in statements:
                connection.execute(statement)
        connection.execute("insert into proxy_meta values ('schema', ?)", (version,))
        row = {
            "id": "01jd0000000000000000000001", "received": "2026-11-21T22:47:01.000500+00:00",
            "dialect": "openai_chat", "path": "/v1/chat/completions", "client": "old",
            "stream": 0, "status": "ok", "event_count": 0, "ignored": "[]",
            "first_words": "of old", "headers": "{}", "query": "", "body": "{}",
            "model_used": "demo",
        }  # fmt: skip
        connection.execute(
            f"insert into proxy_exchanges ({', '.join(row)})"
            f" values ({', '.join(f':{name}' for name in row)})",
            row,
        )


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
def test_an_older_versions_log_is_read_without_migrating_it(folder, version):
    database = folder / "logs.db"
    make_older_log(database, version)
    run_here("log", "--database", str(folder / "none.db"))
    make_writable(folder, False)
    before = database.read_bytes()
    with without_privileges():
        with LogReader(database) as reader:
            (entry,) = reader.entries()
            assert (entry.client, entry.damage, entry.queue_ms) == ("old", (), None)
            assert reader.exchange(entry.id).request.body == {}
        assert verify(database).broken == ()
        for words in (("log",), ("log", "--threads"), ("report",), ("export", "-")):
            assert run_here(*words, "--database", str(database))[0] == 0
    assert database.read_bytes() == before


# ---- before the first request


@pytest.mark.parametrize(
    "words",
    [
        ("log",),
        ("log", "--threads"),
        ("log", "01x"),
        ("log", "--verify"),
        ("log", "--prune", "--status", "error"),
        ("report",),
        ("export", "-"),
        ("bench", "--models", "demo"),
    ],
    ids=" ".join,
)
def test_readers_say_that_nothing_is_there_yet(llm_user_path, words):
    code, out, err = run_here(*words)
    path = llm_user_path / "logs.db"
    assert (code, out) == (1, b"")
    assert err == f"llmproxy {words[0]}: {path}: nothing is recorded yet; the file does not exist\n"
    assert not path.exists()


@pytest.mark.parametrize("words", [("log",), ("log", "--threads"), ("log", "--json"), ("report",)])
def test_an_empty_log_is_no_failure(store, words):
    code, _, err = run_here(*words)
    assert (code, err) == (0, "nothing is recorded yet\n")


def test_a_filter_that_selects_nothing_is_told_from_an_empty_log(store, make_exchange):
    store.write([make_exchange()])
    assert run_here("log", "--client", "nobody") == (0, b"", "nothing matches\n")
    code, out, err = run_here("log", "--search", "nowhere")
    assert (code, out) == (0, b"")
    assert err == (
        "nothing matches; --search looks in the last prompt or tool result of each request,"
        " and in its reply's text\n"
    )


def test_a_follower_waits_for_the_file(llm_user_path, make_exchange):
    database = llm_user_path / "logs.db"
    command = [sys.executable, "-m", "llmproxy", "log", "--follow", "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        said = process.stderr.readline()
        assert said == f"nothing is recorded yet; waiting for {database}\n"
        exchange = make_exchange()
        with Store(database) as store:
            store.write([exchange])
        assert json.loads(process.stdout.readline())["id"] == exchange.id
        process.terminate()
