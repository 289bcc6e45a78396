"""Old exchanges are deleted at the start of a server and once a day, if it is told to."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

import llmproxy
from llmproxy.recorder import retention
from llmproxy.recorder.listing import LogListing
from llmproxy.recorder.retention import delete_daily, oldest_kept
from llmproxy.recorder.store import Store


@pytest.fixture
def log(llm_user_path, make_exchange):
    """A log with an exchange of today, and one that is 100 days old."""
    path = llm_user_path / "logs.db"
    now = datetime.now(UTC)
    new = replace(make_exchange("new"), received=now)
    old = replace(make_exchange("old"), received=now - timedelta(days=100))
    with Store(path) as store:
        store.write([old, new])
    return path


def words_of(path):
    with LogListing(path) as listing:
        return [entry.first_words for entry in listing.entries()]


async def wait_until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_old_exchanges_are_deleted_now_and_again(log, make_exchange, monkeypatch, caplog):
    """That is information, no warning."""
    caplog.set_level("INFO", "llmproxy")
    monkeypatch.setattr(retention, "DAY_S", 0.01)
    task = asyncio.create_task(delete_daily(log, timedelta(days=90), pytest.fail))
    await wait_until(lambda: caplog.records)
    assert words_of(log) == ["new"]
    assert caplog.records[0].levelname == "INFO"
    assert " (--keep): 1 exchange, 1 turn, " in caplog.text
    later = replace(make_exchange("later"), received=datetime.now(UTC) - timedelta(days=91))
    with Store(log) as store:
        store.write([later])
    await wait_until(lambda: len(caplog.records) == 2)
    assert words_of(log) == ["new"]
    task.cancel()
    await asyncio.wait({task})


async def test_a_server_deletes_at_its_start_only_if_it_is_told_to(log):
    warnings = []
    async with llmproxy.serve(database=log, warn=warnings.append):
        pass
    assert (words_of(log), warnings) == (["old", "new"], [])
    async with llmproxy.serve(database=log, keep=timedelta(days=90), warn=warnings.append):
        await wait_until(lambda: words_of(log) == ["new"])
    assert warnings == []


@pytest.mark.parametrize("keep", [timedelta(), timedelta(days=-1), "90d"])
def test_a_wrong_time_is_refused(keep):
    with pytest.raises(llmproxy.SettingsError, match="^keep: expected "):
        llmproxy.Settings(keep=keep)


def test_any_time_can_be_kept():
    assert oldest_kept(timedelta.max).year == 1
