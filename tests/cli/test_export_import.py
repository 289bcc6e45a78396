"""Run `export` and `import` as a user does, on a log recorded by a real proxy."""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import openai
import pytest

from llmproxy.recorder.exchange import encode
from llmproxy.transfer.jsonl import decode
from tests.commands import run_here
from tests.models import AsyncScript, usage
from tests.proxies import running
from tests.transfer.test_export import everything, rows

COMMAND = [sys.executable, "-m", "llmproxy"]


def run(*words, stdin=None, code=0):
    if stdin is None:
        found, out, err = run_here(*words)
    else:  # which is read as a file
        result = subprocess.run([*COMMAND, *words], input=stdin, capture_output=True, timeout=60)
        found, out, err = result.returncode, result.stdout, result.stderr.decode()
    assert found == code, err
    return out.decode(), err


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A user folder of llm with three exchanges: two of one conversation, and a failure."""
    folder = tmp_path_factory.mktemp("user")
    before = os.environ.get("LLM_USER_PATH")
    os.environ["LLM_USER_PATH"] = str(folder)
    try:
        failing = AsyncScript("broken", "so far", RuntimeError("gone"))
        with running(AsyncScript("m", "Hello to you, dear sir.", usage(3, 2)), failing) as proxy:
            client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="any", max_retries=0)
            said = [{"role": "user", "content": "greet me"}]
            client.chat.completions.create(model="m", messages=said)
            said.append({"role": "assistant", "content": "Hello to you, dear sir."})
            said.append({"role": "user", "content": "and my wife"})
            client.chat.completions.create(model="m", messages=said)
            with pytest.raises(openai.APIError):
                list(client.chat.completions.create(model="broken", messages=said, stream=True))
    finally:
        if before is None:
            del os.environ["LLM_USER_PATH"]
        else:
            os.environ["LLM_USER_PATH"] = before
    return folder / "logs.db"


def test_a_log_is_moved(recorded, tmp_path, llm_user_path):
    file = tmp_path / "all.jsonl"
    out, err = run("export", str(file), "--database", str(recorded))
    assert (out, err) == ("", "exported 3 exchanges\n")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert run("import", str(file), "--dry-run")[0] == ("would import 3 exchanges\n")
    assert run("import", str(file))[0] == "imported 3 exchanges\n"
    assert run("import", str(file))[0] == "imported 0 exchanges; 3 existed already\n"
    was, _ = run("log", "--database", str(recorded))
    assert run("log")[0] == was
    shown = subprocess.run(
        [sys.executable, "-m", "llm", "logs", "list", "--json"],
        capture_output=True, env=os.environ | {"LLM_LOAD_PLUGINS": ""}, timeout=30,
    )  # fmt: skip
    prompts = [row["prompt"] for row in json.loads(shown.stdout)]
    assert prompts == ["greet me", "and my wife", "and my wife"]


def test_the_logs_of_two_hosts_are_told_apart(recorded, tmp_path):
    both = str(tmp_path / "both.db")
    ids = run("export", "-", "--database", str(recorded))[0].splitlines()
    for host, lines in (("tea", ids[:2]), ("jam", ids)):
        run("import", "-", "--host", host, "--database", both, stdin="\n".join(lines).encode())
    listed = run("log", "--database", both)[0].splitlines()
    found = [re.search("from (tea|jam)", line)[1] for line in listed]
    assert found == ["tea", "tea", "jam"]
    assert run("log", "--host", "jam", "--database", both)[0] == listed[2] + "\n"
    assert "\nhost         jam\n" in run("log", "last", "--database", both)[0]
    # The name goes along: what is collected in steps comes from where it was recorded.
    out, _ = run("export", "-", "--host", "tea", "--database", both)
    run("import", "-", "--host", "all", "--database", str(tmp_path / "x.db"), stdin=out.encode())
    assert rows(tmp_path / "x.db", "select distinct host from proxy_exchanges") == [("tea",)]


def test_a_log_can_be_imported_through_a_pipe(recorded, tmp_path):
    out, err = run("export", "-", "--status", "ok", "--last", "1", "--database", str(recorded))
    assert err == "exported 1 exchange\n"
    there = tmp_path / "there.db"
    said, _ = run("import", "-", "--database", str(there), stdin=out.encode())
    assert said == "imported 1 exchange\n"
    (line,) = out.splitlines()
    assert rows(there, "select first_words from proxy_exchanges") == [("and my wife",)]
    one, _ = run("export", "-", json.loads(line)["id"], "--database", str(recorded))
    assert one == out


@pytest.mark.parametrize("flag", ["--anonymize", "--redact"])  # its old name
def test_anonymized_for_a_bug_report(recorded, flag):
    out, _ = run("export", "-", flag, "--database", str(recorded))
    assert not re.search("greet|dear|wife|gone", out)
    assert '"first_words":"xxxxx xx"' in out and '"model_used":"m"' in out


def test_llama_stacks_recordings_are_exported_and_imported(recorded, tmp_path):
    folder = tmp_path / "recordings"
    words = ["--format", "llama-stack", "--database", str(recorded), "--status", "ok"]
    assert run("export", str(folder), *words)[1] == "exported 2 exchanges\n"
    files = sorted(map(str, folder.iterdir()))
    assert all(re.fullmatch(r"[0-9a-f]{64}\.json", Path(file).name) for file in files)
    there = tmp_path / "there.db"
    assert run("import", *files, "--database", str(there))[0] == "imported 2 exchanges\n"
    assert run("import", *files, "--database", str(there))[0].startswith(
        "imported 0 exchanges; 2 existed"
    )
    assert rows(there, "select distinct origin from proxy_exchanges") == [("llama-stack",)]


FAILURES = {
    "no such log": (
        ["export", "out", "--database", "nowhere.db"],
        1,
        "export: nowhere.db: nothing",
    ),
    "no such folder": (["export", "no/out"], 1, "export: no/out: No such file or directory\n"),
    "a full disk": (["export", "/dev/full", "ID"], 1, "export: /dev/full: No space left on device"),
    "no such exchange": (["export", "good", "nobody"], 1, "export: the log has no exchange nobody"),
    "nothing that matches": (
        ["export", "good", "--client", "nobody"],
        1,
        "export: no exchange that",
    ),
    "a file for a folder": (
        ["export", "good", "--format", "llama-stack"],
        1,
        "export: good: not a folder\n",
    ),
    "recordings to a pipe": (["export", "-", "--format", "llama-stack"], 2, None),
    "no such file": (["import", "nowhere"], 1, "import: nowhere: No such file or directory\n"),
    "one file twice": (
        ["import", "nowhere", "nowhere"],
        1,
        "import: nowhere: No such file or directory\n",
    ),
    "no exchange": (["import", "bad"], 1, "import: bad, line 1, id: this field is required\n"),
    "strictly": (
        ["import", "bad", "nowhere", "--strict"],
        1,
        "import: bad, line 1, id: this field is required (and 1 more); nothing was imported\n",
    ),
}


@pytest.mark.parametrize("words, code, message", FAILURES.values(), ids=FAILURES)
def test_a_failure_is_one_clear_line(
    recorded, llm_user_path, tmp_path, monkeypatch, words, code, message
):
    monkeypatch.chdir(tmp_path)
    Path("bad").write_text("{}\n")
    Path("good").write_text("what was exported before")
    if "nowhere.db" not in words:
        shutil.copy(recorded, llm_user_path / "logs.db")
    (id,) = rows(recorded, "select min(id) from proxy_exchanges")[0]
    _, err = run(*[id if word == "ID" else word for word in words], code=code)
    if message is not None:
        assert err.startswith(f"llmproxy {message}") and err.count("\n") == 1
    assert sorted(map(str, Path().iterdir())) == ["bad", "good"]
    assert Path("good").read_text() == "what was exported before"


def test_an_import_goes_on(recorded, tmp_path, llm_user_path):
    """The exit code tells that not all came in; what did is not imported again."""
    lines, _ = run("export", "-", "--database", str(recorded))
    (tmp_path / "all.jsonl").write_text(lines)
    (tmp_path / "bad.jsonl").write_text("{}\n" + lines.splitlines()[0] + "\n")
    recordings = sorted(map(str, (Path(__file__).parents[1] / "recordings").glob("t*.json")))
    files = [str(tmp_path / name) for name in ("nowhere", "bad.jsonl", "all.jsonl")]
    out, err = run("import", *files, *recordings, code=1)
    assert out == (
        "imported 3 exchanges; 1 existed already; skipped 1 recording of something other than a"
        " chat; 2 could not be read\n"
    )
    assert err.splitlines() == [
        f"llmproxy import: {files[0]}: No such file or directory",
        f"llmproxy import: {files[1]}, line 1, id: this field is required",
    ]
    assert run("log")[0] == run("log", "--database", str(recorded))[0]


@pytest.mark.slow
def test_a_killed_export_leaves_no_partial_file(recorded, tmp_path):
    """And a complete one is not damaged by the next."""
    lines, _ = run("export", "-", "--database", str(recorded))
    exchange = decode(lines.splitlines()[0].encode())
    import_file = tmp_path / "many.jsonl"
    with import_file.open("wb") as file:
        for number in range(600):
            id = f"01jd{number:022d}"
            line = encode(exchange).replace(exchange.id.encode(), id.encode())
            file.write(line)
    database = tmp_path / "many.db"
    run("import", str(import_file), "--database", str(database))
    out = tmp_path / "out.jsonl"
    process = subprocess.Popen([*COMMAND, "export", str(out), "--database", str(database)])
    try:
        while not (parts := [part for part in tmp_path.glob("out*") if part.stat().st_size]):
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert parts[0].suffix == ".part" and not out.exists()
    assert run("export", str(out), "--database", str(database))[1] == "exported 600 exchanges\n"
    assert out.read_bytes().count(b"\n") == 600


def test_the_help_of_the_server_names_them():
    out, _ = run("--help")
    assert "export FILE" in out and "import FILE" in out


def test_the_import_command_writes_what_the_library_does(recorded, tmp_path):
    file, there = tmp_path / "all.jsonl", tmp_path / "there.db"
    run("export", str(file), "--database", str(recorded))
    run("import", str(file), "--database", str(there))
    ids = "select id, thread_id, previous_id, link, status from proxy_exchanges order by id"
    assert rows(there, ids) == rows(recorded, ids)
    assert everything(there)["messages"] == everything(recorded)["messages"]
