"""`log` as a person runs it, on what a real proxy recorded."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys

import openai
import pytest

from tests.commands import run_here
from tests.models import AsyncScript, usage
from tests.proxies import running

COMMAND = [sys.executable, "-m", "llmproxy", "log"]


def log(*words: str, code: int = 0) -> str:
    found, out, err = run_here("log", *words)
    assert found == code, err
    return out.decode() if code == 0 else err


def ask(proxy, text, model="m", before=(), **fields):
    client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="any", max_retries=0)
    messages = [*before, {"role": "user", "content": text}]
    return client.chat.completions.create(model=model, messages=messages, **fields)


SAID = "The greeting is in hello.py, and nobody calls it."


@pytest.fixture(scope="module")
def recorded_conversations(tmp_path_factory):
    """One in three turns, the last of them edited, its clock going on; and another one.

    Gives the log, the ids of the first one's exchanges, and those of its thread and the fork's.
    """

    def system(minute):
        return {"role": "system", "content": f"You help. It is 10:{minute}."}

    path = tmp_path_factory.mktemp("conversations") / "logs.db"
    model = AsyncScript("m", SAID, usage(30, 9, prompt_tokens_details={"cached_tokens": 4}))
    with running(model, database=path) as proxy:
        history = [{"role": "user", "content": "where?"}, {"role": "assistant", "content": SAID}]
        ids = [
            ask(proxy, "where?", before=[system(41)]).id,
            ask(proxy, "rename it", before=[system(41), *history]).id,
            ask(proxy, "remove it", before=[system(42), *history]).id,
        ]
        ask(proxy, "something else", before=[system(42)])
    ids = [id.removeprefix("chatcmpl-") for id in ids]
    whole = [json.loads(log(id, "--json", "--database", str(path))) for id in ids]
    threads = [exchange["thread_id"] for exchange in whole]
    assert threads[0] == threads[1]
    return path, ids, threads[1:]


@pytest.fixture
def conversations(recorded_conversations, llm_user_path):
    """The log of them for this test alone; gives the ids."""
    path, ids, threads = recorded_conversations
    shutil.copy(path, llm_user_path / "logs.db")
    return ids, threads


@pytest.fixture(scope="module")
def recorded_exchanges(tmp_path_factory):
    """Three exchanges: two answered, of two models, and one that failed."""
    failing = AsyncScript("broken", "so far", RuntimeError("gone"))
    other = AsyncScript("other", "Paris", usage(5, 1))
    path = tmp_path_factory.mktemp("exchanges") / "logs.db"
    with running(AsyncScript("m", "Hello", usage(3, 2)), other, failing, database=path) as proxy:
        first = ask(proxy, "greet me")
        ask(proxy, "capital of France?", "other", extra_headers={"x-title": "aider"})
        with pytest.raises(openai.APIError):
            list(ask(proxy, "break", "broken", stream=True))
    return path, first.id.removeprefix("chatcmpl-")


@pytest.fixture
def recorded(recorded_exchanges, llm_user_path):
    """The log of them for this test alone; gives the first one's id."""
    path, id = recorded_exchanges
    shutil.copy(path, llm_user_path / "logs.db")
    return id


def test_each_exchange_is_a_line_newest_last(recorded):
    lines = log().splitlines()
    assert [line.split("  ")[-2:] for line in lines] == [
        ["greet me", "Hello"],
        ["capital of France?", "Paris"],
        ["break", "the model 'broken' failed: RuntimeError: gone"],
    ]
    assert lines[0].startswith(recorded)
    assert "  error in stream  " in lines[2]


@pytest.mark.parametrize(
    ("words", "models"),
    [
        (["--last", "1"], ["broken"]),
        (["--model", "other"], ["other"]),
        (["--client", "aider"], ["other"]),
        (["--status", "error"], ["broken"]),
        (["--dialect", "openai_chat", "--status", "ok"], ["m", "other"]),
        (["--search", "paris"], ["other"]),
        (["--since", "1h"], ["m", "other", "broken"]),
        (["--until", "1h"], []),
        (["--since", "2999-01-01"], []),
    ],
)
def test_filters_narrow_the_list(recorded, words, models):
    entries = [json.loads(line) for line in log("--json", *words).splitlines()]
    assert [entry["model_asked"] for entry in entries] == models


def test_one_exchange_in_full(recorded):
    page = log(recorded)
    assert f"exchange     {recorded}" in page
    assert "── user ──\ngreet me" in page
    assert "── reply ──\nHello" in page
    assert re.search(r"── timeline, 1 event in \S+ ──", page)
    whole = json.loads(log(recorded, "--json"))
    assert whole["request"]["body"]["messages"] == [{"role": "user", "content": "greet me"}]
    assert whole["turn"]["reply"][0]["parts"] == [{"type": "text", "text": "Hello"}]


def test_follow_shows_what_comes_in_until_ctrl_c(llm_user_path):
    with running(AsyncScript("m", "Hello")) as proxy:
        ask(proxy, "before")
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            [*COMMAND, "--follow", "--json"],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            # Ignored in what a shell runs behind it, and inherited from there.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            assert json.loads(process.stdout.readline())["first_words"] == "before"
            ask(proxy, "while it looks")
            seen = {}
            while seen.get("status") != "ok":
                seen = json.loads(process.stdout.readline())
                assert seen["first_words"] == "while it looks"
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 130
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def test_conversations_are_listed(conversations):
    ids, (thread, fork) = conversations
    lines = log("--threads").splitlines()
    assert [line.split("  ")[0] for line in lines[:2]] == [thread, fork]
    assert lines[0].endswith("  OpenAI/Python  m  2 exchanges  60→18 tokens, 8 cached  where?")
    assert lines[1].endswith(f"  fork of {thread}  remove it")
    assert lines[2].endswith("  something else")
    assert log("--threads", "--last", "1").splitlines() == lines[2:]
    assert log("--threads", "--search", "remove").splitlines() == [lines[1]]
    assert log("--threads", ids[1]).splitlines() == [lines[0]]
    listed = [json.loads(line) for line in log("--threads", "--json").splitlines()]
    assert (listed[1]["forked_from"], listed[1]["origin"]) == (thread, "fork")
    assert listed[0]["usage"]["input_tokens"] == 60
    assert listed[0]["moved"].endswith("+00:00")


def test_a_conversation_is_a_tree(conversations):
    ids, (thread, fork) = conversations
    lines = log("--thread", fork).splitlines()
    assert [line.split("  ")[-2] for line in lines] == ["where?", "remove it", "rename it"]
    assert lines[0].startswith(f"  {ids[0]}  ")
    assert lines[1].startswith(f"* ├─ fork  {ids[2]}  ")
    assert lines[2].startswith(f"  {ids[1]}  ")
    assert [line[0] for line in log("--thread", thread).splitlines()] == ["*", " ", "*"]


def test_with_a_filter_a_conversation_is_a_list(conversations):
    ids, (thread, _) = conversations
    for words in (["--last", "5"], ["--status", "ok"]):
        lines = log("--thread", thread, *words).splitlines()
        assert [line.split("  ")[0] for line in lines] == ids[:2]
    entries = [json.loads(line) for line in log("--thread", thread, "--json").splitlines()]
    assert [(entry["previous_id"], entry["link"]) for entry in entries] == [
        (None, None),
        (ids[0], "reply"),
    ]


def test_an_exchanges_id_means_its_thread(conversations):
    ids, (thread, fork) = conversations
    assert log("--thread", ids[1]) == log("--thread", thread)
    assert log("--thread", ids[2]) == log("--thread", fork)
    for words in (["--json"], ["--threads"], ["--cache"], ["--prune", "--dry-run"]):
        assert log("--thread", ids[0], *words) == log("--thread", thread, *words) != ""


def test_broken_caches_are_found(conversations):
    ids, (thread, fork) = conversations
    lines = log("--cache").splitlines()
    assert lines[0] == f"{fork}  OpenAI/Python  m  1 of 1 request broke the prefix"
    assert lines[1] == (
        "  the provider read 4 tokens from its cache; expected were about 14 (1 request)"
    )
    assert lines[2].endswith(f"  {ids[2]} after {ids[0]}")
    assert lines[3:] == [
        "    message 0 (system) differs from character 20 on",
        "      was  You help. It is 10:41.",
        "      now  You help. It is 10:42.",
        "    read again: 2 messages, about 16 tokens; the provider had 4 of 30 cached",
        "1 conversation kept its prefix",
        "  the provider read 4 tokens from its cache; expected were about 30 (1 request)",
    ]
    assert log("--cache", "--thread", thread).startswith("1 conversation kept its prefix\n")
    assert "only the newest 1 conversation; --last N reads more\n" in log("--cache", "--last", "1")
    assert "only the newest" not in log("--cache") + log("--cache", "--last", "3")
    kept, broken = [json.loads(line) for line in log("--cache", "--json").splitlines()]
    assert (kept["thread_id"], kept["requests"], kept["breaks"]) == (thread, 1, [])
    assert broken["breaks"][0]["difference"]["position"] == 20


def test_verify_finds_what_was_changed(conversations, llm_user_path):
    ids, (thread, _) = conversations
    assert re.fullmatch(
        r"ok: \d+ messages and \d+ parts? of requests match their hashes;"
        r" \d+ exchanges can be read\n",
        log("--verify"),
    )
    with sqlite3.connect(llm_user_path / "logs.db") as db:
        db.execute("update parts set text = 'rename them' where text = 'rename it'")
    code, out, _ = run_here("log", "--verify")
    broken, summary = out.decode().splitlines()
    assert code == 1
    assert broken.startswith("message b2:")
    assert broken.endswith(f" (user) in {ids[1]} of conversation {thread}: it was changed")
    assert re.fullmatch(r"1 thing damaged or missing in \d+ messages, .* exchanges", summary)
    _, whole, _ = run_here("log", "--verify", "--json")
    assert json.loads(whole)["broken"][0]["role"] == "user"


def test_prune_deletes_what_matches(recorded):
    dry = log("--prune", "--model", "other", "--dry-run")
    assert dry == "would delete 1 exchange, 1 turn, 2 messages, 0 parts of requests\n"
    assert len(log().splitlines()) == 3
    assert log("--prune", "--model", "other").startswith("deleted 1 exchange, 1 turn, ")
    assert [line.split("  ")[4] for line in log().splitlines()] == ["m", "broken"]
    deleted = log("--prune", recorded)
    assert re.fullmatch(
        r"deleted 1 exchange, .* of requests; the log takes \d\.\d MB, was \d\.\d MB\n", deleted
    )


def test_prune_deletes_only_the_newest_of_what_matches(recorded):
    listed = [line.split("  ")[0] for line in log().splitlines()]
    assert log("--prune", "--last", "1", "--client", "nobody").startswith("deleted 0 exchanges")
    assert log("--prune", "--last", "2", "--dry-run").startswith("would delete 2 exchanges")
    assert log("--prune", "--last", "1").startswith("deleted 1 exchange,")
    assert [line.split("  ")[0] for line in log().splitlines()] == listed[:-1]


def test_keep_deletes_what_is_older(recorded, llm_user_path):
    assert log("--keep", "1h").startswith("deleted 0 exchanges, ")
    with sqlite3.connect(llm_user_path / "logs.db") as db:
        sql = "update proxy_exchanges set received = '2020' || substr(received, 5) where id = ?"
        db.execute(sql, (recorded,))
    assert log("--keep", "90d", "--dry-run").startswith("would delete 1 exchange, ")
    assert log("--keep", "90d").startswith("deleted 1 exchange, ")
    assert len(log().splitlines()) == 2
    assert log("--keep", "9999999w").startswith("deleted 0 exchanges, ")


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["nobody"], 1, "llmproxy log: the log has no exchange nobody"),
        (["--prune"], 2, "--prune needs an ID or a filter, so that it can't delete everything"),
        (["--since", "x"], 2, "expected a date, a time or an age, not 'x'"),
        (["--keep", "soon"], 2, "expected an age like 90d or 1d12h, not 'soon'"),
        (["--keep", "1d", "--until", "1d"], 2, "--keep and --until exclude each other"),
        (["-4"], 1, "llmproxy log: the log has no exchange -4"),
        (["--last", "0"], 2, "expected a number above 0"),
        (["--database", "nowhere.db"], 1, "nowhere.db"),
        (["--thread", "nobody"], 1, "llmproxy log: the log has no conversation nobody"),
        (["--verify", "--database", "nowhere.db"], 1, "nowhere.db"),
        (["--verify", "--client", "c"], 2, "--verify checks the whole log, and takes no filter"),
        (["--cache", "--threads"], 2, "argument --threads: not allowed with argument --cache"),
    ],
)
def test_mistakes_are_one_clear_line(recorded, words, code, error):
    assert error in log(*words, code=code).splitlines()[0]


def test_head_may_close_the_pipe(recorded):
    command = " ".join([*COMMAND, "| head -1"])
    result = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=30)
    assert (result.returncode, result.stderr) == (0, "")
