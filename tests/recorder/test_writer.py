from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
import threading
import time

import pytest
import sqlite_utils
from llm.logs import LogStore

from llmproxy.recorder import writer as writer_module
from llmproxy.recorder.store import Store, StoreError
from llmproxy.recorder.writer import Writer


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def writer(path, warnings):
    writer = Writer(lambda: Store(path), warn=warnings.append)
    writer.start()
    yield writer
    writer.close(10)


def texts(path):
    """The prompts of all turns, in the order of their ids; and a check of the whole file."""
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


def test_turns_are_there_when_their_futures_end(writer, path, warnings, make_turn):
    written = [writer.write(make_turn(str(number))) for number in range(100)]
    for future in written:
        assert future.result(10) is None
    assert texts(path) == [str(number) for number in range(100)]
    assert warnings == []


def test_closing_writes_what_is_left(writer, path, make_turn):
    written = [writer.write(make_turn(str(number))) for number in range(40)]
    writer.close(10)
    assert all(future.done() for future in written)
    assert len(texts(path)) == 40
    assert not path.with_name("logs.db-wal").exists()


def test_a_turn_after_the_close_is_refused(writer, make_turn):
    writer.close(10)
    writer.close(10)
    assert isinstance(writer.write(make_turn()).exception(1), StoreError)


def test_a_lock_of_another_loses_nothing(writer, path, warnings, make_turn):
    assert writer.write(make_turn("before")).result(10) is None
    with lock(path):
        written = [writer.write(make_turn(str(number))) for number in range(50)]
        time.sleep(2)  # longer than any pause: the lock's own length is what is tested
        assert not any(future.done() for future in written)
    assert [future.result(10) for future in written] == [None] * 50
    assert texts(path) == ["before", *(str(number) for number in range(50))]
    assert warnings == []


def test_a_long_lock_is_told_once_and_its_end(writer, path, warnings, make_turn, monkeypatch):
    monkeypatch.setattr(writer_module, "LOCKED_WARNING_S", 0.2)
    assert writer.write(make_turn()).result(10) is None
    with lock(path):
        written = writer.write(make_turn())
        wait_until(lambda: warnings)
    assert written.result(10) is None
    wait_until(lambda: len(warnings) == 2)
    assert warnings == [
        f"the log can't be written now and is kept in memory: {path}: database is locked",
        "the log is written again; no answers were lost",
    ]


def wait_until(true):
    until = time.monotonic() + 10
    while not true():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_a_bad_row_harms_only_itself(path, warnings, make_turn):
    writer = Writer(lambda: Store(path), warn=warnings.append)
    turns = [make_turn(str(number)) for number in range(5)] + [make_turn("bad \ud800")]
    turns += [make_turn(str(number)) for number in range(5, 10)]
    written = [writer.write(turn) for turn in turns]
    writer.start()
    errors = [future.exception(10) for future in written]
    assert [type(error) for error in errors if error] == [UnicodeEncodeError]
    assert errors.index(next(filter(None, errors))) == 5
    assert texts(path) == [str(number) for number in range(10)]
    assert [warning.partition("Error")[0] for warning in warnings] == [
        "one answer was not logged: UnicodeEncode"
    ]
    writer.close(10)


def test_a_deleted_file_is_made_anew(writer, path, warnings, make_turn):
    assert writer.write(make_turn("gone with the file")).result(10) is None
    for file in path.parent.iterdir():
        file.unlink()
    assert writer.write(make_turn("in the new file")).result(10) is None
    assert texts(path) == ["in the new file"]
    assert warnings == []


def test_a_deleted_file_whose_log_stays_is_made_anew(writer, path, make_turn):
    assert writer.write(make_turn("gone with the file")).result(10) is None
    path.unlink()
    assert writer.write(make_turn("in the new file")).result(10) is None
    assert texts(path) == ["in the new file"]


def test_a_replaced_file_goes_on_from_what_it_holds(writer, path, tmp_path, make_turn):
    """d6.22: what is left of the write-ahead log would be played into the other file."""
    assert writer.write(make_turn("in the backup")).result(10) is None
    backup = tmp_path / "backup.db"
    with sqlite3.connect(path) as source, sqlite3.connect(backup) as target:
        source.backup(target)
    assert writer.write(make_turn("after the backup")).result(10) is None
    wait_until(lambda: path.with_name("logs.db-wal").stat().st_size == 0)  # idle
    backup.rename(path)
    assert writer.write(make_turn("after the restore")).result(10) is None
    assert texts(path) == ["in the backup", "after the restore"]


def test_a_broken_file_keeps_the_log_in_memory(path, warnings, make_turn):
    path.write_text("this is no database " * 100)
    writer = Writer(lambda: Store(path), warn=warnings.append)
    writer.start()
    written = [writer.write(make_turn(str(number))) for number in range(3)]
    wait_until(lambda: warnings)
    path.unlink()
    assert [future.result(10) for future in written] == [None] * 3
    assert texts(path) == ["0", "1", "2"]
    writer.close(10)
    assert warnings == [
        f"the log can't be written now and is kept in memory: {path}: file is not a database",
        "the log is written again; no answers were lost",
    ]


def test_memory_is_bounded_and_what_is_lost_is_told(path, warnings, make_turn, monkeypatch):
    monkeypatch.setattr(writer_module, "MAX_PENDING_TURNS", 2)
    path.mkdir()
    writer = Writer(lambda: Store(path), warn=warnings.append)
    writer.start()
    written = [writer.write(make_turn(str(number))) for number in range(3)]
    assert isinstance(written[2].exception(10), StoreError)
    wait_until(lambda: warnings)
    path.rmdir()
    assert [future.result(10) for future in written[:2]] == [None, None]
    writer.close(10)
    assert warnings[1:] == ["the log is written again; 1 answers were lost"]


def test_closing_does_not_wait_for_a_broken_file(path, warnings, make_turn):
    path.mkdir()
    writer = Writer(lambda: Store(path), warn=warnings.append)
    writer.start()
    written = writer.write(make_turn())
    began = time.monotonic()
    writer.close(30)
    assert time.monotonic() - began < 5
    assert isinstance(written.exception(0), StoreError)
    assert warnings[-1] == "1 answers were not logged"


def test_closing_waits_no_longer_than_it_may_for_a_lock(writer, path, warnings, make_turn):
    assert writer.write(make_turn()).result(10) is None
    with lock(path):
        written = writer.write(make_turn())
        writer.close(0.3)
        assert isinstance(written.exception(5), StoreError)
    assert warnings == ["1 answers were not logged"]


def test_an_answer_waits_for_its_commit(writer, path, make_turn):
    async def answer():
        written = writer.write(make_turn())
        await writer.committed(written, 10)
        return written.done()

    assert asyncio.run(answer())


def test_after_one_wait_in_vain_nobody_waits_until_a_commit(writer, path, make_turn):
    async def answers():
        with lock(path):
            first, second = writer.write(make_turn()), writer.write(make_turn())
            await writer.committed(first, 0.05)
            began = time.monotonic()
            await writer.committed(second, 10)
            assert time.monotonic() - began < 1
        await asyncio.to_thread(second.result, 10)
        third = writer.write(make_turn())
        await writer.committed(third, 10)
        assert third.done()

    assert writer.write(make_turn()).result(10) is None
    asyncio.run(answers(), debug=True)


def test_a_turn_that_fails_ends_the_wait_quietly(writer, make_turn, caplog):
    async def answer():
        await writer.committed(writer.write(make_turn("\ud800")), 10)

    asyncio.run(answer(), debug=True)
    assert caplog.records == []


def test_a_client_that_goes_away_does_not_stop_the_write(writer, path, make_turn):
    async def answer():
        with lock(path):
            written = writer.write(make_turn("kept"))
            waiting = asyncio.create_task(writer.committed(written, 10))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait({waiting})
        return written

    assert writer.write(make_turn("before")).result(10) is None
    assert asyncio.run(answer(), debug=True).result(10) is None
    assert texts(path) == ["before", "kept"]


LEAVE = """
import pathlib, sys
from llmproxy.recorder.store import Store
from llmproxy.recorder.writer import Writer
Writer(lambda: Store(pathlib.Path(sys.argv[1])), warn=print).start()
"""


def test_the_thread_does_not_hold_the_process(path):
    assert subprocess.run([sys.executable, "-c", LEAVE, str(path)], timeout=20).returncode == 0


def test_the_llm_command_writes_beside_a_busy_writer(writer, path, make_turn, run_llm):
    stop = threading.Event()

    def keep_busy():
        while not stop.is_set():
            writer.write(make_turn("busy")).result(10)

    thread = threading.Thread(target=keep_busy)
    thread.start()
    try:
        assert "hi there" in run_llm("-m", "echo", "hi there")
    finally:
        stop.set()
        thread.join()
    assert "hi there" in texts(path)
