"""Replay from files: what it leaves on disk, what it reads, what it says."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from urllib.request import urlopen

import anthropic
import openai
import pytest

import llmproxy
from llmproxy.backends import ignored_text
from llmproxy.backends.replay import Replay
from llmproxy.cli import serve
from llmproxy.recorder.database import StoreError
from tests.app.test_app import request
from tests.commands import run_here
from tests.flows.test_read_only_log import make_writable, without_privileges
from tests.log_fixtures import make_version_4
from tests.models import AsyncScript
from tests.proxies import running

SAMPLES = Path(__file__).parents[1] / "recordings"
REPLAYING = {"replay": "replay", "replay_speed": 0}


def said(prompt, model="m", **more):
    return {"model": model, "messages": [{"role": "user", "content": prompt}], **more}


def ask(proxy, body):
    status, _, text = request(proxy, "POST", "/v1/chat/completions", body)
    answer = json.loads(text)
    return answer["error"] if status != 200 else answer["choices"][0]["message"]["content"]


@pytest.fixture(scope="module")
def recorded():
    """A log of two conversations, one of which goes on; its file lies alone in a folder."""
    with tempfile.TemporaryDirectory(prefix="llmproxy-tests-") as name:
        path = Path(name, "session.db")
        with running(
            AsyncScript("m", "An answer, long enough to be known again."), database=path
        ) as p:
            first = ask(p, said("Tidy the shed."))
            messages = [
                *said("Tidy the shed.")["messages"],
                {"role": "assistant", "content": first},
                {"role": "user", "content": "And the barn?"},
            ]
            ask(p, {"model": "m", "messages": messages})
            with llmproxy.open_log(path) as log:  # a reader, as a page is
                assert len(log.entries()) == 2
            p.wait_for_report(2)
        yield path


@pytest.fixture
def session(recorded, tmp_path):
    shutil.copy(recorded, tmp_path / "session.db")
    return tmp_path / "session.db"


def files(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


# ---- what is left on disk


def test_a_clean_close_leaves_one_file(recorded):
    assert os.listdir(recorded.parent) == ["session.db"]


@pytest.mark.parametrize("words", ["log", "log --threads", "log --verify", "report", "export -"])
def test_a_command_that_reads_leaves_one_file(session, words):
    before = session.read_bytes()
    assert run_here(*words.split(), "--database", str(session))[0] == 0
    assert files(session.parent).keys() == {"session.db"}
    assert session.read_bytes() == before


def test_a_log_that_is_closed_after_its_server_leaves_one_file(session):
    with running(AsyncScript("m", "A"), database=session) as proxy:
        ask(proxy, said("a new one"))
        log = llmproxy.open_log(session)
        log.entries()
    log.close()
    assert os.listdir(session.parent) == ["session.db"]


def test_a_replay_without_a_log_changes_nothing_not_even_meanwhile(session):
    before = files(session.parent)
    folder = session.parent.stat().st_mtime_ns
    with running(database=session, log=False, **REPLAYING) as proxy:
        assert ask(proxy, said("Tidy the shed.")).startswith("An answer")
        assert ask(proxy, said("Tidy the hut."))["code"] == "not_recorded"
        assert files(session.parent) == before
    assert files(session.parent) == before
    assert session.parent.stat().st_mtime_ns == folder


def test_a_log_of_an_older_version_stays_as_it_is(session):
    with closing(sqlite3.connect(session, isolation_level=None)) as connection:
        make_version_4(connection)
    before = files(session.parent)
    with running(database=session, log=False, **REPLAYING) as proxy:
        assert ask(proxy, said("Tidy the shed.")).startswith("An answer")
    assert files(session.parent) == before


def test_what_another_program_writes_meanwhile_is_replayed(session):
    """Though the file was opened as one that nobody writes to."""
    with llmproxy.running(database=session, log=False, **REPLAYING) as proxy:
        assert ask(proxy, said("new"))["code"] == "not_recorded"
        with running(AsyncScript("m", "B"), database=session) as other:
            ask(other, said("new"))
            other.wait_for_report()
            assert ask(proxy, said("new")) == "B"
        assert ask(proxy, said("new")) == "B"


@pytest.mark.parametrize("log", [False, True], ids=["no-log", "log"])
def test_a_recording_on_a_read_only_file_system_is_replayed(recorded, log, monkeypatch):
    with tempfile.TemporaryDirectory(prefix="llmproxy-tests-") as name:
        folder = Path(name)
        path = folder / "session.db"
        monkeypatch.setenv("LLM_USER_PATH", name)
        shutil.copy(recorded, path)
        path.chmod(0o644)
        make_writable(folder, False)
        try:
            with without_privileges():
                proxy = llmproxy.Proxy(
                    llmproxy.Settings(port=0, database=path, log=log, **REPLAYING)
                )
                assert proxy.recording_count == 2
                assert proxy.unused_recordings()[0].first_words == "Tidy the shed."
        finally:
            make_writable(folder, True)


# ---- exported recordings


@pytest.fixture
def exported(session):
    """Export a log in both forms; the log is not there any more."""
    for name, flags in {"all.jsonl": [], "review.jsonl": ["--pretty"]}.items():
        code, _, err = run_here(
            "export", str(session.parent / name), *flags, "--database", str(session)
        )
        assert (code, err) == (0, "exported 2 exchanges\n")
    session.unlink()
    return session.parent


@pytest.mark.parametrize("name", ["all.jsonl", "review.jsonl", "", ["all.jsonl", "review.jsonl"]])
def test_exported_recordings_are_replayed(exported, name):
    """A file, several, or all in a folder; an exchange that is in two of them counts once."""
    names = name if isinstance(name, list) else [name]
    paths = [str(exported / one) for one in names]
    before = files(exported)
    recordings = paths if isinstance(name, list) else paths[0]
    with running(recordings=recordings, log=False, replay_speed=0) as proxy:
        assert proxy.proxy.recording_count == 2
        assert ask(proxy, said("Tidy the shed.")).startswith("An answer")
        error = ask(proxy, said("Tidy the barn."))
        assert "differs at character 9: it was 'Tidy the shed.'" in error["message"]
        assert "export that to a file" in error["message"]
    assert files(exported) == before


def test_a_missing_file_is_told_with_how_to_record_it(exported):
    code, _, err = run_here("--port", "0", "--recordings", "nope.jsonl")
    assert (code, err) == (
        2,
        "llmproxy: there is nothing to replay: nope.jsonl: No such file or directory; "
        "record it first, in a log without --recordings, and export that to a file\n",
    )


def test_a_command_replays_several_files(exported):
    """Flags and settings mean the same."""
    parser = serve._parser("llmproxy")
    arguments = parser.parse_args(
        ["--replay", "--no-log", "--recordings", "a.jsonl", "--recordings", "b", "--ignore", "x+"]
    )
    settings = serve.settings_from(arguments)
    assert settings.recording_paths == ["a.jsonl", "b"]
    assert settings.ignore == ["x+"]


def test_an_export_is_the_same_after_an_import(exported):
    """Byte for byte, in both forms, so that a new export shows real changes only."""
    for name, flags in {"all.jsonl": [], "review.jsonl": ["--pretty"]}.items():
        other = str(exported / f"{name}.db")
        assert run_here("import", str(exported / name), "--database", other)[0] == 0
        assert run_here("export", str(exported / "again"), *flags, "--database", other)[0] == 0
        assert (exported / "again").read_bytes() == (exported / name).read_bytes()


def test_an_indented_export_has_a_text_on_a_line(exported):
    lines = (exported / "review.jsonl").read_text().splitlines()
    assert lines[0] == lines[lines.index("}") + 1] == "{"
    assert '"content": "Tidy the shed."' in map(str.strip, lines)
    compact = [json.loads(line) for line in (exported / "all.jsonl").read_text().splitlines()]
    decoder, text, found = json.JSONDecoder(), (exported / "review.jsonl").read_text(), []
    while text.strip():
        value, end = decoder.raw_decode(text)
        found.append(value)
        text = text[end:].lstrip()
    assert found == compact


def test_a_damaged_indented_exchange_is_named_by_its_line(exported):
    path = exported / "review.jsonl"
    lines = path.read_text().splitlines()
    second = lines.index("}") + 2
    path.write_text("\n".join(lines[: second - 2] + lines[second - 1 :]))  # its end is missing
    code, out, err = run_here("import", str(path), "--database", str(exported / "new.db"))
    assert (code, out) == (1, b"imported 1 exchange; 1 could not be read\n")
    what = f"it is not JSON: Expecting ',' delimiter at line {second - 1} column 1"
    assert f"{path}, line 1: {what}" in err
    with running(recordings=path, log=False) as proxy:
        assert proxy.warnings == [f"{path}, line 1: {what}"]


def test_foreign_files_in_a_folder_are_only_counted(exported):
    venv = exported / "env" / "lib"
    venv.mkdir(parents=True)
    (exported / "env" / "pyvenv.cfg").touch()
    hidden = exported / ".cache"
    hidden.mkdir()
    for folder in (venv, hidden):
        shutil.copy(exported / "all.jsonl", folder / "copy.jsonl")
        (folder / "broken.json").write_text('{"request":')
    (exported / "package.json").write_text('{"name": "x"}')
    (exported / "data.jsonl").write_text('{"prompt": "x"}\n')
    (exported / "list.json").write_text("[1]")
    (exported / "cut.json").write_text('{"request": {"url": "x"}, "response": {"body"')
    with running(recordings=exported, log=False) as proxy:
        assert proxy.proxy.recording_count == 2
        warned = list(proxy.warnings)
    assert warned == [
        f"{exported}/cut.json: the recording can't be read: it is not JSON: "
        "Expecting ':' delimiter at line 1 column 46",
        "skipped 3 JSON files of something other than recordings",
    ]


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("none.jsonl", None, "none.jsonl: No such file or directory"),
        ("x.json", "[]", "expected an object, got a list"),
        ("x.db", "SQLite format 3\0", "a database: name it as the log instead"),
    ],
)
def test_a_file_that_has_no_recordings_is_no_start(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(llmproxy.SettingsError, match="there is nothing to replay: .*") as caught:
        llmproxy.Proxy(llmproxy.Settings(recordings=tmp_path / name, log=False))
    assert words in str(caught.value)


def test_a_start_that_fails_leaves_no_file_open(session, monkeypatch):
    def fail(self):
        raise StoreError("the log can't be read")

    closed = []
    close = Replay.close
    monkeypatch.setattr(Replay, "count", fail)
    monkeypatch.setattr(Replay, "close", lambda self: (closed.append(self), close(self)))
    with pytest.raises(llmproxy.SettingsError, match="there is nothing to replay: the log can't"):
        llmproxy.Proxy(llmproxy.Settings(database=session, log=False, replay="replay"))
    assert len(closed) == 1


def test_anonymized_exchanges_and_others_are_no_recordings(session):
    path = session.parent / "all.jsonl"
    run_here("export", str(path), "--anonymize", "--database", str(session))
    with pytest.raises(llmproxy.SettingsError, match=f"no recordings in {path}; record it first"):
        llmproxy.Proxy(llmproxy.Settings(recordings=path, log=False))


def test_llama_stacks_and_exported_recordings_may_lie_together(exported):
    shutil.copytree(SAMPLES, exported / "others")
    with running(recordings=exported, log=False) as proxy:
        assert proxy.proxy.recording_count > 10
        assert ask(proxy, said("Tidy the shed.")).startswith("An answer")


# ---- misses


@pytest.mark.parametrize("model", ["m", "unknown"])
def test_a_miss_is_neither_repeated_nor_taken_for_an_unknown_model(session, model):
    """By either SDK, with the number of retries that it has by default."""
    with running(database=session, log=False, **REPLAYING) as proxy:
        with openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="k") as client:
            with pytest.raises(openai.UnprocessableEntityError) as missed:
                client.chat.completions.create(**said("Tidy the barn.", model))
        assert (missed.value.status_code, missed.value.code) == (422, "not_recorded")
        advice = f"record it first: llmproxy --database {session} --replay=replay-or-live"
        assert missed.value.body["message"].endswith(advice[-100:])
        with anthropic.Anthropic(base_url=proxy.url, api_key="k") as client:
            with pytest.raises(anthropic.UnprocessableEntityError) as missed:
                client.messages.create(**said("Tidy the barn.", model), max_tokens=9)
        assert missed.value.body["error"]["details"] == {"error_code": "not_recorded"}
        exchanges = proxy.wait_for_report(2) and proxy.reports
    assert [(one.status, one.error_kind) for one in exchanges] == [("error", "not_recorded")] * 2


def test_a_proxy_in_front_of_a_replay_passes_the_code_on():
    from llmproxy.convert import convert_error

    body = {"error": {"message": "no recording", "code": "not_recorded", "type": "x"}}
    error = convert_error(body, source="openai_chat", target="anthropic_messages", status=422)
    assert (error.status, error.body["error"]["details"]["error_code"]) == (422, "not_recorded")


def test_a_missing_log_is_a_sentence(tmp_path, llm_user_path):
    path = tmp_path / "none.db"
    code, out, err = run_here("--replay", "--no-log", "--database", str(path), "--port", "0")
    assert (code, out) == (2, b"")
    assert err == (
        f"llmproxy: there is nothing to replay: {path} does not exist; record it first,"
        " without --replay, or with --replay=replay-or-live\n"
    )
    with pytest.raises(llmproxy.SettingsError, match='or with replay="replay-or-live"$') as caught:
        with llmproxy.running(database=path, replay="replay"):
            pass
    assert caught.value.__cause__ is None
    assert not path.exists()


OF_FILES = "record it first, in a log without --recordings, and export that to a file"


@pytest.mark.parametrize(
    "words, where, advice",
    [
        (
            ["--replay", "--database", "a.db"],
            "a.db",
            "record it first: llmproxy --database a.db --replay=replay-or-live",
        ),
        (["--recordings", "a.jsonl"], "a.jsonl", OF_FILES),
        (["--recordings", "a.jsonl", "--recordings", "folder"], "a.jsonl, folder", OF_FILES),
        (["--recordings", "a.jsonl", "--ignore", "x"], "a.jsonl", OF_FILES),
    ],
)
def test_without_a_single_recording_a_replay_does_not_start(
    store, path, tmp_path, monkeypatch, words, where, advice
):
    """With an empty log, an empty file, and an empty folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(path, "a.db")
    Path("a.jsonl").touch()
    Path("folder").mkdir()
    before = {one: one.stat().st_mtime_ns for one in tmp_path.rglob("*")}
    message = f"there is nothing to replay: no recordings in {where}; {advice}"
    assert run_here(*words, "--port", "0", "--no-log") == (2, b"", f"llmproxy: {message}\n")
    code, out, err = run_here("check", *words, "--no-log")
    assert (code, err) == (1, "") and f"failed: recordings: {message}" in out.decode().splitlines()
    assert {one: one.stat().st_mtime_ns for one in tmp_path.rglob("*")} == before


def test_what_is_not_recorded_yet_can_be_asked_of_models(store, path):
    with running(AsyncScript("m", "A"), database=path, replay="replay-or-live") as proxy:
        assert (proxy.proxy.recording_count, proxy.warnings) == (0, [])
        assert ask(proxy, said("hi")) == "A"


def test_the_command_says_what_it_replays_and_what_was_not_used(session):
    with running(database=session, log=False, **REPLAYING) as proxy:
        lines = serve._welcome(proxy.proxy)
        assert f"models: not used; replaying 2 recordings of {session}" in lines
        said = serve.unused_text(proxy.proxy.unused_recordings() * 6, 13)
        assert said.startswith("not used: 12 of 13 recordings: 01")
        assert said.count("('And the barn?')") == 1 and said.endswith(" and 9 more")
        assert len(said) < 200
    with running(AsyncScript("m", "A"), database=session, replay="replay-or-live") as proxy:
        (line,) = [one for one in serve._welcome(proxy.proxy) if "replaying" in one]
        said = f"replaying 2 recordings of {session}; a model is asked if none matches"
        assert line.endswith(f"needs no key\n{said}")


# ---- what may differ


DATED = "Today is {}. The folder is {}. Commit {}."


@pytest.fixture(scope="module")
def dated():
    with tempfile.TemporaryDirectory(prefix="llmproxy-tests-") as name:
        path = Path(name, "dated.db")
        text = DATED.format("2026-11-20", "/tmp/pytest-of-me/pytest-7/x0", "0a1b2c3d4e")
        with running(AsyncScript("m", "Noted."), database=path) as proxy:
            messages = [{"role": "system", "content": text}, {"role": "user", "content": "Go."}]
            ask(proxy, {"model": "m", "messages": messages})
            proxy.wait_for_report()
        run_here("export", str(Path(name, "dated.jsonl")), "--database", str(path))
        yield Path(name)


IGNORED = [r"\d{4}-\d\d-\d\d", r"/tmp/pytest-of-\w+/pytest-\d+", r"\b[0-9a-f]{7,40}\b"]


def differing(folder="/tmp/pytest-of-you/pytest-1234/x0", prompt="Go."):
    text = DATED.format("2027-01-02", folder, "ffffffffff1234")
    return {
        "model": "m",
        "messages": [{"role": "system", "content": text}, {"role": "user", "content": prompt}],
    }


@pytest.mark.parametrize("source", [{"database": "dated.db"}, {"recordings": "dated.jsonl"}])
def test_what_patterns_match_may_differ(dated, source):
    settings = {name: dated / file for name, file in source.items()}
    with running(**settings, **REPLAYING, log=False, ignore=IGNORED) as proxy:
        assert ask(proxy, differing()) == "Noted."
        message = ask(proxy, differing("/home/you/x0"))["message"]
        assert "is …. The folder is …/x0. Commit …" in message
        assert "is …. The folder is /home/you/x0. Commit …" in message
        assert ask(proxy, differing() | {"model": "other"})["code"] == "not_recorded"
        assert [one.first_words for one in proxy.proxy.unused_recordings()] == []
    with running(**settings, **REPLAYING, log=False, ignore=IGNORED[:2]) as proxy:
        assert "0a1b2c3d4e" in ask(proxy, differing())["message"]
    with running(**settings, **REPLAYING, log=False) as proxy:
        assert "2026-11-20" in ask(proxy, differing())["message"]


@pytest.mark.parametrize(
    "pattern, words",
    [
        ("(", "is no regular expression: missing ), unterminated subpattern at position 0"),
        ("(a+)+b", "could take too long: it repeats a repetition"),
        ("(?:ab|cd)+", "could take too long: it repeats a choice"),
        (r"(a)\1", "could take too long: it refers to a group"),
        (r"\w+ \w+ \w+", "could take too long: give repetitions a limit"),
        ("x*", "matches an empty text, and so everywhere"),
    ],
)
def test_a_pattern_that_could_take_too_long_is_refused(pattern, words):
    with pytest.raises(llmproxy.SettingsError) as caught:
        llmproxy.Settings(replay="replay", ignore=[pattern])
    assert str(caught.value).startswith(f"ignore: {pattern!r} {words}")
    code, _, err = run_here("--replay", "--ignore", pattern)
    assert (code, err.startswith(f"llmproxy: --ignore: {pattern!r} {words}")) == (2, True)


def test_ignoring_needs_a_replay():
    with pytest.raises(llmproxy.SettingsError, match="only a replay ignores differences"):
        llmproxy.Settings(ignore=["x"])


def test_a_request_that_takes_too_long_is_refused(dated, monkeypatch):
    monkeypatch.setattr(ignored_text, "MAX_SEARCH_S", 0.05)
    with running(database=dated / "dated.db", **REPLAYING, log=False, ignore=["a+a+b"]) as proxy:
        error = ask(proxy, said("a" * 20_000))
    assert error["message"].startswith("to find what --ignore says takes too long")


# ---- what was not used


def test_unused_recordings_are_listed(session):
    with running(database=session, log=False, **REPLAYING) as proxy:
        assert [one.first_words for one in proxy.proxy.unused_recordings()] == [
            "Tidy the shed.", "And the barn?",
        ]  # fmt: skip
        ask(proxy, said("Tidy the shed."))
        answer = json.loads(urlopen(f"{proxy.url}/replay/unused").read())
        assert answer["recordings"] == 2
        assert [one["first_words"] for one in answer["unused"]] == ["And the barn?"]
        proxy.proxy.rewind()  # which a test does between others; what was used stays used
        (unused,) = proxy.proxy.unused_recordings()
        assert (unused.first_words, unused.model_asked, unused.model_used) == (
            "And the barn?",
            "m",
            "m",
        )
    assert proxy.proxy.unused_recordings() == [unused]


def test_what_was_asked_live_is_replayed_next_time(dated):
    """Also if text is ignored, whose recordings were read at the start."""
    copy = shutil.copy(dated / "dated.db", dated / "copy.db")
    model = AsyncScript("m", "B")
    settings = {"database": copy, "replay": "replay-or-live", "replay_speed": 0}
    with running(model, **settings, ignore=IGNORED) as proxy:
        for _ in range(2):
            assert ask(proxy, differing(prompt="a new one")) == "B"
            proxy.wait_for_report()
        assert ask(proxy, differing()) == "Noted."
    assert len(model.prompts) == 1


def test_responses_of_this_replay_are_not_listed_as_unused(session):
    with running(AsyncScript("m", "B"), database=session, replay="replay-or-live") as proxy:
        ask(proxy, said("a new one"))
        proxy.wait_for_report()
        assert len(proxy.proxy.unused_recordings()) == proxy.proxy.recording_count == 2


def test_a_failure_that_is_never_served_is_not_listed(session):
    failing = AsyncScript("m", ValueError("no"))
    with running(failing, database=session) as proxy:
        ask(proxy, said("Tidy the shed."))  # there is a success of this one
        ask(proxy, said("never worked"))
        proxy.wait_for_report(2)
    with running(database=session, log=False, **REPLAYING) as proxy:
        assert [one.first_words for one in proxy.proxy.unused_recordings()] == [
            "Tidy the shed.", "And the barn?", "never worked",
        ]  # fmt: skip


def test_without_a_replay_nothing_is_unused():
    with running(AsyncScript("m", "A"), log=False) as proxy:
        status, _, text = request(proxy, "GET", "/replay/unused")
        assert (status, b"this server replays nothing" in text) == (404, True)
        assert (proxy.proxy.recording_count, proxy.proxy.unused_recordings()) == (0, [])
