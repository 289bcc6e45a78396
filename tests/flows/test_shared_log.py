"""Two proxies and the llm command on one logs.db that does not exist yet."""

import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import llm.logs
import pytest
import sqlite_utils

from tests.cli.test_main import chat, serving


@pytest.mark.slow
def test_two_proxies_and_llm_write_one_fresh_log(llm_user_path):
    """d6.13, d6.23: neither concurrent migrations nor a lock lose a turn or fail a client."""

    def llm_command(i):
        argv = [sys.executable, "-m", "llm", "-m", "echo", f"from the command {i}"]
        return subprocess.run(argv, capture_output=True, text=True, timeout=30)

    with serving("--quiet") as (_, one, _), serving("--quiet") as (_, two, _):
        with ThreadPoolExecutor(100) as pool:
            answers = [
                pool.submit(chat, url, stream, user=f"{i}")
                for i in range(25)
                for url in (one, two)
                for stream in (True, False)
            ]
            for answer in answers:
                assert answer.result().read()
        # Complete responses are already there; llm's own write comes between ours.
        assert count(llm_user_path, "demo") == 100
        assert llm_command(1).returncode == 0
        chat(one).read()
        chat(two).read()
        assert count(llm_user_path, "demo") == 102
    assert count(llm_user_path, "echo") == 1
    store = llm.logs.LogStore(sqlite_utils.Database(llm_user_path / "logs.db"))
    assert store.verify() == []
    shown = subprocess.run(
        [sys.executable, "-m", "llm", "logs", "-n", "0", "--short"],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert shown.stdout.count("model: demo") == 102


def count(llm_user_path, model):
    with sqlite3.connect(llm_user_path / "logs.db") as db:
        sql = "select count(*) from turns where model = ?"
        return db.execute(sql, [model]).fetchone()[0]
