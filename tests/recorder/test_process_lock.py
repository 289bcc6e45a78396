from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from llmproxy.recorder.process_lock import ProcessLock

CLAIM = """
import pathlib, sys
from llmproxy.recorder.process_lock import ProcessLock
owner = ProcessLock(pathlib.Path(sys.argv[1]), "other")
owner.claim()
print("claimed", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def owner(path):
    owner = ProcessLock(path, "me")
    yield owner
    owner.release()


def names(path):
    return sorted(file.name for file in path.parent.iterdir())


def test_a_lock_is_held_until_its_process_is_killed(owner, path):
    other = subprocess.Popen(
        [sys.executable, "-c", CLAIM, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout.readline() == b"claimed\n"
    assert owner.is_alive("other") and owner.dead() == []
    os.kill(other.pid, signal.SIGKILL)
    other.communicate()
    assert not owner.is_alive("other")
    assert owner.dead() == ["other"]
    owner.forget("other")
    assert owner.dead() == []


def test_a_process_is_alive_for_itself_too(owner):
    owner.claim()
    owner.claim()
    assert owner.is_alive("me") and owner.dead() == []


def test_a_lock_leaves_nothing_behind(owner, path):
    owner.claim()
    assert names(path) == ["logs.db-llmproxy-me.lock"]
    assert path.with_name("logs.db-llmproxy-me.lock").stat().st_mode & 0o777 == 0o600
    owner.release()
    owner.release()
    assert names(path) == []


def test_a_lock_whose_file_was_deleted_is_taken_again(owner, path):
    owner.claim()
    path.with_name("logs.db-llmproxy-me.lock").unlink()
    owner.claim()
    assert ProcessLock(path, "neighbour").is_alive("me")


def test_a_spool_without_a_lock_was_left_behind(owner, path):
    owner.spool_path("gone").write_text("")
    path.with_name("other.db-llmproxy-x.jsonl").write_text("")
    assert owner.dead() == ["gone"]
    owner.forget("gone")
    assert names(path) == ["other.db-llmproxy-x.jsonl"]


def test_two_locks_in_one_process_are_separate(owner, path):
    neighbour = ProcessLock(path, "neighbour")
    owner.claim()
    neighbour.claim()
    assert owner.dead() == neighbour.dead() == []
    neighbour.release()
    assert not owner.is_alive("neighbour")


def test_a_lock_file_that_another_process_removed_is_created_again(owner, path, monkeypatch):
    """The other process saw the file before it was locked, and took it for left behind."""
    from llmproxy.recorder import process_lock as room

    locked, taken = room._locked, []

    def take_away(file, timeout_s):
        lock = locked(file, timeout_s)
        if not taken:
            taken.append(file.unlink())
        return lock

    monkeypatch.setattr(room, "_locked", take_away)
    owner.claim()
    assert names(path) == ["logs.db-llmproxy-me.lock"]
    assert ProcessLock(path, "neighbour").is_alive("me")


def test_a_lock_in_a_missing_folder_raises(path):
    with pytest.raises(OSError):
        ProcessLock(path / "below", "me").claim()
