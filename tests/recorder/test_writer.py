from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import llm
import pytest
import sqlite_utils
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from llm.logs import LogStore

from llmproxy.recorder import writer as writer_module
from llmproxy.recorder.database import StoreError
from llmproxy.recorder.exchange import to_json
from llmproxy.recorder.process_lock import ProcessLock
from llmproxy.recorder.reader import LogReader
from llmproxy.recorder.spool import Spool, read
from llmproxy.recorder.store import NOT_LOGGED, Store
from llmproxy.recorder.writer import Writer
from tests.examples import many_examples
from tests.log_fixtures import ended_as


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def writer(path, warnings, empty_log):
    shutil.copy(empty_log, path)
    writer = Writer(lambda: Store(path), warn=warnings.append)
    writer.start()
    yield writer
    writer.close(10)


def texts(path):
    """Return the prompts of all turns in the order of their ids; check the whole file."""
    with sqlite_utils.Database(path) as database:
        log = LogStore(database)
        assert log.verify() == []
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
        tips = database.execute("select parent_message_hash from turns order by id").fetchall()
        return [log.load_chain(tip)[-1].parts[0].text for (tip,) in tips]


@contextlib.contextmanager
def lock(path):
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    yield
    connection.execute("ROLLBACK")
    connection.close()


def test_turns_are_written_when_their_futures_are_done(writer, path, warnings, make_exchange):
    written = [writer.write(make_exchange(str(number))) for number in range(100)]
    for future in written:
        assert future.result(10) is None
    assert texts(path) == [str(number) for number in range(100)]
    assert warnings == []


def test_a_commit_that_a_client_waits_for_is_not_delayed(writer, make_exchange, monkeypatch):
    """Other programs are left a gap between two commits, but no client waits for it."""
    assert writer.write(make_exchange("opens the log")).result(10) is None
    monkeypatch.setattr(writer_module, "GAP_S", 60.0)
    monkeypatch.setattr(writer_module, "MAX_BUSY_S", 1_000_000.0)

    async def answer(number: int) -> None:
        begun, ended = (writer.write(make_exchange(f"{number} {end}")) for end in "ab")
        await writer.committed(ended, 30)
        assert begun.done() and ended.done()

    for number in range(3):
        asyncio.run(answer(number))


def test_the_gap_is_left_now_and_then_although_clients_wait(writer, make_exchange, monkeypatch):
    monkeypatch.setattr(writer_module, "GAP_S", 0.3)
    monkeypatch.setattr(writer_module, "MAX_BUSY_S", 0.0)
    assert writer.write(make_exchange()).result(10) is None  # a gap follows
    began = time.monotonic()
    asyncio.run(writer.committed(writer.write(make_exchange()), 30))
    assert time.monotonic() - began > 0.2


def test_closing_writes_what_is_left(writer, path, make_exchange):
    written = [writer.write(make_exchange(str(number))) for number in range(40)]
    writer.close(10)
    assert all(future.done() for future in written)
    assert len(texts(path)) == 40
    assert not path.with_name("logs.db-wal").exists()


def test_a_turn_after_the_close_is_refused(writer, make_exchange):
    writer.close(10)
    writer.close(10)
    assert isinstance(writer.write(make_exchange()).exception(1), StoreError)


def test_the_lock_of_another_writer_loses_nothing(writer, path, warnings, make_exchange):
    assert writer.write(make_exchange("before")).result(10) is None
    with lock(path):
        written = [writer.write(make_exchange(str(number))) for number in range(50)]
        time.sleep(2)  # longer than any pause: the lock's own length is what is tested
        assert not any(future.done() for future in written)
    assert [future.result(10) for future in written] == [None] * 50
    assert texts(path) == ["before", *(str(number) for number in range(50))]
    assert warnings == []


def test_a_long_lock_is_reported_once_and_again_when_it_ends(
    writer, path, warnings, make_exchange, monkeypatch
):
    monkeypatch.setattr(writer_module, "LOCKED_WARNING_S", 0.2)
    assert writer.write(make_exchange()).result(10) is None
    with lock(path):
        written = writer.write(make_exchange())
        wait_until(lambda: warnings)
    assert written.result(10) is None
    wait_until(lambda: len(warnings) == 2)
    assert warnings == [
        f"can't write the log ({path}: database is locked); keeping exchanges in memory",
        "the log can be written again; no exchanges were lost",
    ]


def wait_until(true):
    until = time.monotonic() + 10
    while not true():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_a_bad_row_affects_only_itself(path, warnings, make_exchange):
    writer = Writer(lambda: Store(path), warn=warnings.append)
    turns = [make_exchange(str(number)) for number in range(5)] + [make_exchange("bad \ud800")]
    turns += [make_exchange(str(number)) for number in range(5, 10)]
    written = [writer.write(turn) for turn in turns]
    writer.start()
    errors = [future.exception(10) for future in written]
    assert [type(error) for error in errors if error] == [UnicodeEncodeError]
    assert errors.index(next(filter(None, errors))) == 5
    assert texts(path) == [str(number) for number in range(10)]
    assert [warning.partition("Error")[0] for warning in warnings] == [
        "a response was not logged: UnicodeEncode"
    ]
    writer.close(10)


def test_a_response_that_can_not_be_stored_leaves_its_request(writer, path, make_exchange):
    exchange = make_exchange(reply=[llm.assistant("bad \ud800")])
    assert isinstance(writer.write(exchange).exception(10), UnicodeEncodeError)
    with contextlib.closing(LogReader(path)) as history:
        read = history.exchange(exchange.id)
    assert (read.status, read.request, read.turn) == ("ok", exchange.request, None)


def nested(levels):
    value = {}
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize("raw", [nested(900), nested(5_000)], ids=["900", "5000"])
def test_a_raw_response_that_can_not_be_stored_leaves_the_turn(
    writer, path, warnings, make_exchange, raw
):
    exchange = make_exchange("question", "answer", response_json=raw)
    assert writer.write(exchange).exception(10) is None
    with contextlib.closing(LogReader(path)) as history:
        read = history.exchange(exchange.id)
    assert [part.text for message in read.turn.reply for part in message.parts] == ["answer"]
    assert read.turn.response_json is None
    assert len(warnings) == 1
    assert warnings[0].startswith(f"the raw response of exchange {exchange.id} was not logged: ")


def test_a_deleted_file_is_created_again(writer, path, warnings, make_exchange):
    assert writer.write(make_exchange("gone with the file")).result(10) is None
    for file in path.parent.iterdir():
        file.unlink()
    assert writer.write(make_exchange("in the new file")).result(10) is None
    assert texts(path) == ["in the new file"]
    assert warnings == []


def test_a_deleted_file_whose_write_ahead_log_stays_is_created_again(writer, path, make_exchange):
    assert writer.write(make_exchange("gone with the file")).result(10) is None
    path.unlink()
    assert writer.write(make_exchange("in the new file")).result(10) is None
    assert texts(path) == ["in the new file"]


def test_a_replaced_file_is_continued_from_its_content(writer, path, tmp_path, make_exchange):
    """d6.22: SQLite would apply the rest of the write-ahead log to the other file."""
    assert writer.write(make_exchange("in the backup")).result(10) is None
    backup = tmp_path / "backup.db"
    with sqlite3.connect(path) as source, sqlite3.connect(backup) as target:
        source.backup(target)
    assert writer.write(make_exchange("after the backup")).result(10) is None
    wait_until(lambda: path.with_name("logs.db-wal").stat().st_size == 0)  # idle
    backup.rename(path)
    assert writer.write(make_exchange("after the restore")).result(10) is None
    assert texts(path) == ["in the backup", "after the restore"]


@pytest.mark.parametrize("how", ["replaced", "moved"])
def test_a_file_that_goes_takes_its_write_ahead_log_along(how, path, tmp_path, make_exchange):
    """Under load the log is never emptied, and SQLite would apply it to the next file."""
    backup, moved = tmp_path / "backup.db", tmp_path / "moved.db"
    with Store(path) as store, contextlib.closing(sqlite3.connect(path)) as reader:
        store.write([make_exchange("in the backup")])
        reader.execute("vacuum into ?", [str(backup)])
        store.write([make_exchange("after the backup")])
        path.rename(moved)
        if how == "replaced":
            backup.rename(path)
        reader.execute("select * from turns").fetchall()
    assert texts(moved) == ["in the backup", "after the backup"]
    with Store(path) as store:
        store.write([make_exchange("later")])
        assert texts(path) == ["in the backup", "later"][how == "moved" :]


def test_a_broken_file_keeps_the_log_in_memory(path, warnings, make_exchange):
    path.write_text("this is no database " * 100)
    writer = Writer(lambda: Store(path), warn=warnings.append)
    writer.start()
    written = [writer.write(make_exchange(str(number))) for number in range(3)]
    wait_until(lambda: warnings)
    path.unlink()
    assert [future.result(10) for future in written] == [None] * 3
    assert texts(path) == ["0", "1", "2"]
    writer.close(10)
    assert warnings == [
        f"can't write the log ({path}: file is not a database); keeping exchanges in memory",
        "the log can be written again; no exchanges were lost",
    ]


@pytest.mark.parametrize("name, most", [("MAX_PENDING", 2), ("MAX_PENDING_BYTES", 500_000)])
def test_memory_is_bounded_and_losses_are_reported(
    path, warnings, make_exchange, monkeypatch, name, most
):
    monkeypatch.setattr(writer_module, name, most)
    path.mkdir()
    writer = Writer(lambda: Store(path), warn=warnings.append)
    writer.start()
    wait_until(lambda: warnings)
    long = "a" * 100_000
    written = [writer.write(make_exchange(f"{number} {long}")) for number in range(3)]
    assert isinstance(written[2].exception(10), StoreError)
    path.rmdir()
    assert [future.result(10) for future in written[:2]] == [None, None]
    writer.close(10)
    assert warnings[1:] == [NO_ROOM, "the log can be written again; 1 exchange was lost"]


@pytest.fixture
def full(path, warnings, spool, monkeypatch):
    """A writer with room for three beginnings and ends, and a log that is no file."""
    monkeypatch.setattr(writer_module, "MAX_PENDING", 3)
    monkeypatch.setattr(spool, "append", raise_full)
    path.mkdir()
    writer = Writer(lambda: Store(path, spool.owner), warn=warnings.append, spool=spool)
    writer.start()
    wait_until(lambda: warnings)
    yield writer
    writer.close(10)


def raise_full(exchange):
    raise OSError("No space left on device")


NO_ROOM = (
    "there is no more room to keep exchanges: until the log can be written, requests are answered,"
    " but not logged"
)


def test_exchanges_that_are_lost_are_counted_once_and_not_left_running(
    full, path, warnings, make_begun
):
    lost_end, kept, lost, late = [make_begun(name) for name in "abcd"]
    ends = {one.id: ended_as(one, "ok", http_status=200) for one in (lost_end, kept, lost, late)}
    for exchange in (lost_end, kept, ends[kept.id], lost, late, ends[lost_end.id], ends[lost.id]):
        full.write(exchange)
    wait_until(lambda: len(warnings) == 2)
    assert full.health().lost == 2
    path.rmdir()
    wait_until(lambda: full.health().is_writable)
    assert full.write(ends[late.id]).result(10) is None
    wait_until(lambda: "running" not in statuses(path).values())
    full.close(10)
    assert warnings[1:] == [NO_ROOM, "the log can be written again; 2 exchanges were lost"]
    assert full.health().lost == 2
    with contextlib.closing(LogReader(path)) as log:
        entries = {entry.id: (entry.status, entry.error) for entry in log.entries()}
    assert entries == {
        lost_end.id: ("interrupted", NOT_LOGGED),
        kept.id: ("ok", None),
        late.id: ("ok", None),
    }
    with contextlib.closing(Store(path, ProcessLock(path, "next"))) as store:
        assert store.interrupt_orphans() == []


def test_a_row_whose_end_was_lost_is_marked_when_the_writer_stops(
    writer, path, warnings, make_begun, monkeypatch
):
    monkeypatch.setattr(writer_module, "MAX_PENDING", 1)
    monkeypatch.setattr(writer_module, "MAX_LOCKED_PAUSE_S", 3600)
    begun = make_begun()
    assert writer.write(begun).result(10) is None
    with lock(path):
        writer.write(make_begun())
        wait_until(lambda: not writer.health().is_writable)
        lost = writer.write(ended_as(begun, "ok"))
        assert isinstance(lost.exception(10), StoreError)
        wait_until(lambda: warnings)
    writer.close(10)
    assert statuses(path)[begun.id] == "interrupted"
    assert warnings == [NO_ROOM, "the log is written too slowly; 1 exchange was lost"]


def test_what_a_stop_can_not_write_is_counted_as_exchanges(full, warnings, make_begun):
    exchanges = [(begun, ended_as(begun, "ok")) for begun in map(make_begun, "abcd")]
    for begun, ended in exchanges:  # there is room for the first, and the second's beginning
        full.write(begun)
        full.write(ended)
    full.close(10)
    assert warnings[-1] == "4 exchanges were not logged"


def test_a_start_tells_a_kill_from_an_end_that_could_not_be_written(
    path, spool, warnings, make_begun
):
    """A stop deletes the lock file, a kill leaves it."""
    stopped, killed = ProcessLock(path, "stopped"), ProcessLock(path, "killed")
    begun = [make_begun(), make_begun()]
    for owner, exchange in zip((stopped, killed), begun, strict=True):
        with Store(path, owner) as store:
            store.write([exchange])
    stopped.release()
    killed._lock.close()  # as the end of its process does
    writer = Writer(lambda: Store(path, spool.owner), warn=warnings.append, spool=spool)
    writer.start()
    writer.close(10)
    assert statuses(path) == {one.id: "interrupted" for one in begun}
    assert warnings == [
        f"llmproxy was killed or crashed while 1 exchange was running: {begun[1].id} (tests, demo)",
        "the log has no end of 1 exchange, because it could not be written or was copied while it"
        f" ran: {begun[0].id} (tests, demo)",
    ]


def test_closing_does_not_wait_for_a_broken_file(path, warnings, make_exchange):
    path.mkdir()
    writer = Writer(lambda: Store(path), warn=warnings.append)
    writer.start()
    written = writer.write(make_exchange())
    began = time.monotonic()
    writer.close(30)
    assert time.monotonic() - began < 5
    assert isinstance(written.exception(0), StoreError)
    assert warnings[-1] == "1 exchange was not logged"


def test_closing_waits_for_a_lock_until_its_timeout(writer, path, warnings, make_exchange):
    assert writer.write(make_exchange()).result(10) is None
    with lock(path):
        written = writer.write(make_exchange())
        writer.close(0.3)
        assert isinstance(written.exception(5), StoreError)
    assert warnings == ["1 exchange was not logged"]


@pytest.fixture
def spool(path):
    return Spool(ProcessLock(path, "me"))


@pytest.fixture
def spooling(path, warnings, spool, empty_log):
    """A writer like the proxy's."""
    shutil.copy(empty_log, path)
    writer = Writer(lambda: Store(path, spool.owner), warn=warnings.append, spool=spool)
    writer.start()
    yield writer
    writer.close(10)


def spooled(spool):
    return [] if spool.is_empty() else [exchange.first_words for exchange in read(spool.path)]


def test_a_lock_is_waited_out_in_the_spool(spooling, path, spool, warnings, make_exchange):
    assert spooling.write(make_exchange("before")).result(10) is None
    with lock(path):
        written = [spooling.write(make_exchange(str(number))) for number in range(3)]
        assert [future.result(10) for future in written] == [None] * 3
        assert spooled(spool) == ["0", "1", "2"]
        assert spooling.write(make_exchange("3")).result(10) is None
    wait_until(spool.is_empty)
    assert spooling.write(make_exchange("after")).result(10) is None
    assert texts(path) == ["before", "0", "1", "2", "3", "after"]
    assert warnings == []


def test_a_broken_file_is_waited_out_in_the_spool(path, spool, warnings, make_exchange):
    path.write_text("this is no database " * 100)
    writer = Writer(lambda: Store(path, spool.owner), warn=warnings.append, spool=spool)
    writer.start()
    for number in range(3):
        assert writer.write(make_exchange(str(number))).result(10) is None
    assert spooled(spool) == ["0", "1", "2"]
    path.unlink()
    wait_until(spool.is_empty)
    assert texts(path) == ["0", "1", "2"]
    writer.close(10)
    assert warnings == [
        f"can't write the log ({path}: file is not a database); keeping exchanges in memory"
        f" and, when possible, in {spool.path}",
        "the log can be written again; no exchanges were lost",
    ]


def test_exchanges_stay_in_memory_if_nothing_can_be_written(path, warnings, make_exchange):
    path.parent.rmdir()
    path.parent.write_text("")
    spool = Spool(ProcessLock(path, "me"))
    writer = Writer(lambda: Store(path, spool.owner), warn=warnings.append, spool=spool)
    writer.start()
    written = writer.write(make_exchange("kept"))
    wait_until(lambda: warnings)
    assert warnings[0].startswith("can't write the log (")
    assert warnings[0].endswith(f" and, when possible, in {spool.path}")
    path.parent.unlink()
    assert written.result(10) is None
    writer.close(10)
    assert texts(path) == ["kept"]
    assert warnings[1:] == ["the log can be written again; no exchanges were lost"]


def test_pending_exchanges_are_spooled_when_closed(spooling, path, spool, warnings, make_exchange):
    assert spooling.write(make_exchange()).result(10) is None
    with lock(path):
        written = spooling.write(make_exchange("left"))
        spooling.close(0.2)
        assert written.result(5) is None
    assert warnings == []
    assert spooled(spool) == ["left"]


def test_a_spool_is_written_at_close_if_possible(
    spooling, path, spool, warnings, make_exchange, monkeypatch
):
    """However long the writer is pausing: by then, the lock is often released."""
    monkeypatch.setattr("llmproxy.recorder.writer.MAX_LOCKED_PAUSE_S", 3600)
    assert spooling.write(make_exchange()).result(10) is None
    with lock(path):
        written = spooling.write(make_exchange("spooled"))
        assert written.result(10) is None
        assert spooled(spool) == ["spooled"]
    spooling.close(10)
    assert spool.is_empty()
    assert texts(path)[-1] == "spooled"
    assert warnings == []


def test_a_spool_left_behind_is_written_by_the_next_process(
    path, warnings, make_begun, make_exchange
):
    gone = Spool(ProcessLock(path, "gone"))
    begun, ended = make_begun("was running"), make_exchange("had ended")
    for exchange in (begun, ended):
        gone.append(exchange)
    with gone.path.open("a") as file:
        file.write('{"half": ')
    gone.owner._lock.close()  # as the end of its process does
    writer = Writer(
        lambda: Store(path, spool.owner),
        warn=warnings.append,
        spool=(spool := Spool(ProcessLock(path, "me"))),
    )
    writer.start()
    wait_until(lambda: gone.is_empty())
    writer.close(10)
    with sqlite3.connect(path) as connection:
        found = connection.execute("select id, status, owner from proxy_exchanges").fetchall()
    assert found == [(begun.id, "interrupted", "gone"), (ended.id, "ok", "gone")]
    assert texts(path) == ["had ended"]
    assert warnings == [
        f"{gone.path} has a line that is not an exchange; it was skipped",
        f"llmproxy was killed or crashed while 1 exchange was running: {begun.id} (tests, demo)",
    ]
    assert [file.name for file in path.parent.glob("*-llmproxy-*")] == []


def test_writing_a_spool_twice_changes_nothing(path, spool, warnings, make_exchange):
    """A process killed between the commit and the spool's deletion writes it again."""
    for number in range(40):
        spool.append(make_exchange(str(number)))
    lines = spool.path.read_bytes()
    contents = []
    for _ in range(2):
        spool.path.write_bytes(lines)
        writer = Writer(lambda: Store(path, spool.owner), warn=warnings.append, spool=spool)
        writer.start()
        wait_until(spool.is_empty)
        writer.close(10)
        with sqlite3.connect(path) as connection:
            contents.append(list(connection.iterdump()))
    assert contents[0] == contents[1]
    assert texts(path) == [str(number) for number in range(40)]


def test_a_bad_line_in_a_spool_affects_only_itself(path, spool, warnings, make_exchange):
    spool.append(make_exchange("0"))
    with spool.path.open("a") as file:  # as an older version spooled it
        file.write(json.dumps(to_json(make_exchange("bad \ud800"))) + "\n")
    spool.append(make_exchange("1"))
    writer = Writer(lambda: Store(path, spool.owner), warn=warnings.append, spool=spool)
    writer.start()
    wait_until(spool.is_empty)
    writer.close(10)
    assert texts(path) == ["0", "1"]
    assert len(warnings) == 1


def test_a_full_disk_is_waited_out_in_the_spool(path, spool, warnings, make_exchange):
    pages = 2**30

    def open_store():
        store = Store(path, spool.owner)
        store._conn.execute(f"PRAGMA max_page_count = {pages}")
        return store

    Store(path).close()
    (pages,) = sqlite3.connect(path).execute("PRAGMA page_count").fetchone()
    writer = Writer(open_store, warn=warnings.append, spool=spool)
    writer.start()
    written = [writer.write(make_exchange(f"{number} " * 20_000)) for number in range(3)]
    assert [future.result(10) for future in written] == [None] * 3
    assert len(spooled(spool)) == 3
    assert warnings == [
        f"can't write the log ({path}: database or disk is full); keeping exchanges in memory"
        f" and, when possible, in {spool.path}"
    ]
    pages = 2**30
    wait_until(spool.is_empty)
    writer.close(10)
    assert [text[:2] for text in texts(path)] == ["0 ", "1 ", "2 "]


steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["begin", "end"]), st.integers(0, 5), st.booleans()),
        st.just(("restart", 0, False)),
    ),
    max_size=20,
)


@many_examples(
    50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # each has a file of its own
)
@given(steps)
def test_whatever_happens_each_exchange_is_written_once(
    tmp_path, empty_log, make_begun, make_exchange, steps
):
    """Any order of beginnings, ends, kills and restarts, in logs.db and in spools."""
    path = Path(tempfile.mkdtemp(dir=tmp_path)) / "logs.db"
    shutil.copy(empty_log, path)
    owners = itertools.count()
    ended = [make_exchange(str(number)) for number in range(6)]
    begun = [replace(make_begun(e.first_words), id=e.id) for e in ended]
    expected = {}

    def start():
        said = []
        spool = Spool(ProcessLock(path, f"owner{next(owners)}"))
        writer = Writer(lambda: Store(path, spool.owner), warn=said.append, spool=spool)
        writer.start()
        writer.close(10)
        count = list(expected.values()).count("running")
        assert len(said) == bool(count)
        assert not said or re.search(rf" while {count} exchanges? (was|were) running: ", said[0])
        return Store(path, spool.owner), spool

    def kill(store, spool):
        store.close()
        spool.owner._lock.close()

    store, spool = start()
    for step, number, to_spool in steps:
        if step == "restart":
            kill(store, spool)
            store, spool = start()
            expected = {id: "interrupted" if s == "running" else s for id, s in expected.items()}
            continue
        exchange = (begun if step == "begin" else ended)[number]
        spool.append(exchange) if to_spool else store.write([exchange])
        if step == "end" or exchange.id not in expected:
            expected[exchange.id] = exchange.status
    kill(store, spool)
    kill(*start())
    expected = {id: "interrupted" if s == "running" else s for id, s in expected.items()}
    with contextlib.closing(sqlite3.connect(path)) as connection:
        found = connection.execute("select id, status from proxy_exchanges").fetchall()
        turns = connection.execute("select id from turns").fetchall()
    assert sorted(found) == sorted(expected.items())
    assert {id for (id,) in turns} == {id for id, status in found if status == "ok"}


WORK = """
import itertools, pathlib, sys
from datetime import UTC, datetime
import llm
from llm.parts import StreamEvent
from dataclasses import replace
from llmproxy.recorder.exchange import Turn, begun, with_answer
from llmproxy.recorder.reader import LogReader
from llmproxy.recorder.process_lock import ProcessLock
from llmproxy.recorder.spool import Spool
from llmproxy.recorder.store import Store
from llmproxy.recorder.writer import Writer

path, name = pathlib.Path(sys.argv[1]), sys.argv[2]
spool = Spool(ProcessLock(path, name))
writer = Writer(lambda: Store(path, spool.owner), warn=lambda line: None, spool=spool)
writer.start()
history = []
for number in range(int(sys.argv[3])):
    now = datetime.now(UTC)
    history.append(llm.user(f"{name} {number}"))
    body = {"messages": [{"content": message.parts[0].text * 20} for message in history]}
    one = begun(
        f"{name}{number:06d}", now, dialect="d", path="/", query="", client="c", headers=(),
        body=body, messages=history,
    )
    writer.write(one)
    turn = Turn(one.id, name, "demo", list(history), [llm.assistant("yes")], now, 1)
    event = StreamEvent("text", "yes", part_index=0)
    ended = replace(one, status="ok", http_status=200, duration_ms=1.0)
    ended = with_answer(ended, turn, [(1.0, event)], None)
    writer.write(ended).result(30)
    history.append(llm.assistant("yes"))
    print(ended.id, flush=True)
writer.close(30)
"""


def work(path, name, count):
    return subprocess.Popen(
        [sys.executable, "-c", WORK, str(path), name, str(count)],
        stdout=subprocess.PIPE,
        text=True,
    )


def statuses(path):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return dict(connection.execute("select id, status from proxy_exchanges").fetchall())


@pytest.mark.slow
def test_two_processes_on_a_fresh_file_lose_nothing(path):
    processes = [work(path, name, 50) for name in ("a", "b")]
    for process in processes:
        assert process.communicate(timeout=50)[0].count("\n") == 50
    names = [f"{name}{number:06d}" for name in ("a", "b") for number in range(50)]
    assert statuses(path) == dict.fromkeys(names, "ok")
    assert len(texts(path)) == 100


@pytest.mark.slow
@pytest.mark.parametrize("locked", [False, True], ids=["free", "locked"])
def test_a_kill_loses_nothing_that_was_confirmed(path, warnings, locked):
    confirmed = set()
    for name in "abcdefgh":
        process = work(path, name, 10_000)
        confirmed.add(process.stdout.readline().strip())
        with lock(path) if locked else contextlib.nullcontext():
            time.sleep(0.2 + 0.13 * (ord(name) % 5))  # at any point of its work
            process.kill()
            confirmed |= set(process.communicate()[0].split("\n")[:-1])
    spool = Spool(ProcessLock(path, "last"))
    writer = Writer(lambda: Store(path, spool.owner), warn=warnings.append, spool=spool)
    writer.start()
    wait_until(lambda: not list(path.parent.glob("*.jsonl")))
    writer.close(30)
    found = statuses(path)
    assert {id for id in confirmed - {""} if found.get(id) != "ok"} == set()
    assert set(found.values()) <= {"ok", "interrupted"}
    assert len(texts(path)) == list(found.values()).count("ok")


def test_a_response_waits_for_its_commit(writer, path, make_exchange):
    async def answer():
        written = writer.write(make_exchange())
        await writer.committed(written, 10)
        return written.done()

    assert asyncio.run(answer())


def test_after_a_timeout_nothing_waits_until_a_commit(writer, path, make_exchange):
    async def answers():
        with lock(path):
            first, second = writer.write(make_exchange()), writer.write(make_exchange())
            await writer.committed(first, 0.05)
            began = time.monotonic()
            await writer.committed(second, 10)
            assert time.monotonic() - began < 1
        await asyncio.to_thread(second.result, 10)
        third = writer.write(make_exchange())
        await writer.committed(third, 10)
        assert third.done()

    assert writer.write(make_exchange()).result(10) is None
    asyncio.run(answers(), debug=True)


def test_a_turn_that_can_not_be_written_ends_the_wait_quietly(writer, make_exchange, caplog):
    async def answer():
        await writer.committed(writer.write(make_exchange("\ud800")), 10)

    asyncio.run(answer(), debug=True)
    assert caplog.records == []


def test_a_client_that_disconnects_does_not_stop_the_write(writer, path, make_exchange):
    async def answer():
        with lock(path):
            written = writer.write(make_exchange("kept"))
            waiting = asyncio.create_task(writer.committed(written, 10))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait({waiting})
        return written

    assert writer.write(make_exchange("before")).result(10) is None
    assert asyncio.run(answer(), debug=True).result(10) is None
    assert texts(path) == ["before", "kept"]


LEAVE = """
import pathlib, sys
from llmproxy.recorder.store import Store
from llmproxy.recorder.writer import Writer
Writer(lambda: Store(pathlib.Path(sys.argv[1])), warn=print).start()
"""


def test_the_thread_does_not_keep_the_process_alive(path):
    assert subprocess.run([sys.executable, "-c", LEAVE, str(path)], timeout=20).returncode == 0


@pytest.mark.slow
def test_the_llm_command_writes_beside_a_busy_writer(
    writer, path, warnings, make_exchange, llm_process
):
    stop = threading.Event()
    written = []

    def keep_busy():
        while not stop.wait(0.05):
            written.append(writer.write(make_exchange("busy")))

    thread = threading.Thread(target=keep_busy)
    thread.start()
    try:
        for _ in range(3):
            # It fails by itself if a commit of ours falls between its read and its write.
            with contextlib.suppress(AssertionError):
                llm_process("-m", "echo", "hi there")
    finally:
        stop.set()
        thread.join()
    assert [future.result(10) for future in written] == [None] * len(written)
    assert "hi there" in texts(path)
    assert warnings == []


class SlowStore(Store):
    """A log that works, and takes its time for each group."""

    def write(self, exchanges, **options):
        if any("slow" in exchange.first_words for exchange in exchanges):
            self.may_go_on.wait(10)
        return super().write(exchanges, **options)


@pytest.fixture
def slow_log(path, warnings, empty_log, monkeypatch):
    """Return a function that makes a writer whose thread has been at one exchange for a while."""
    monkeypatch.setattr(writer_module, "SLOW_S", 0.0)
    shutil.copy(empty_log, path)
    SlowStore.may_go_on = threading.Event()
    writers = []

    def open_log(make_exchange, spool=None):
        owner = spool.owner if spool else None
        writer = Writer(lambda: SlowStore(path, owner), warn=warnings.append, spool=spool)
        writers.append(writer)
        writer.start()
        return writer, writer.write(make_exchange("slow"))

    yield open_log
    SlowStore.may_go_on.set()
    for writer in writers:
        writer.close(10)


def test_what_waits_for_a_slow_log_goes_to_the_spool_and_then_to_the_log(
    slow_log, path, spool, warnings, make_exchange, monkeypatch
):
    monkeypatch.setattr(writer_module, "SPOOL_ABOVE_BYTES", 100_000)
    monkeypatch.setattr(writer_module, "GROUP", 2)
    appended = []
    append = spool.append
    monkeypatch.setattr(spool, "append", lambda one: appended.append(one) or append(one))
    writer, first = slow_log(make_exchange, spool)
    long = "a" * 60_000
    written = [writer.write(make_exchange(f"{number} {long}")) for number in range(9)]
    assert not any(future.done() for future in written)
    SlowStore.may_go_on.set()
    assert [future.result(10) for future in [first, *written]] == [None] * 10
    wait_until(spool.is_empty)
    writer.close(10)
    assert texts(path) == ["slow", *(f"{number} {long}" for number in range(9))]
    assert len(appended) == 8  # the last one alone is little enough
    assert warnings == []


def test_memory_is_bounded_while_a_log_is_slow(
    slow_log, path, warnings, make_exchange, monkeypatch
):
    monkeypatch.setattr(writer_module, "MAX_PENDING_BYTES", 300_000)
    writer, first = slow_log(make_exchange)
    long = "a" * 60_000
    written = [writer.write(make_exchange(f"{number} {long}")) for number in range(4)]
    assert [isinstance(one.exception(0), StoreError) for one in written[2:]] == [True, True]
    SlowStore.may_go_on.set()
    assert [future.result(10) for future in [first, *written[:2]]] == [None] * 3
    writer.close(10)
    assert warnings == ["the log is written too slowly; 2 exchanges were lost"]
