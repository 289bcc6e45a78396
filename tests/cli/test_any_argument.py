"""Every command takes any argument, any standard output and any row.

Either its work is done or it says in a clear line why not: no traceback, no SQL, nothing twice.
"""

import errno
import io
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import patch

import llm
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm.parts import AttachmentPart, Message, StreamEvent, TextPart

from llmproxy.cli import main
from llmproxy.cli.columns import display_width
from llmproxy.core import attachments, chat
from llmproxy.core.limits import Limits
from llmproxy.recorder.exchange import Turn, begun, with_answer
from llmproxy.recorder.store import Store
from tests.empty_log import put_empty_log
from tests.examples import many_examples

IMAGE = attachments.attachment_from_base64("iVBORw0KGgo=")
LONG = "no end " * 1_500
WIDE = "日本語のプロンプト 👩‍👩‍👧 e\u0301 \x1b[2J \u2028"


def exchange(number, *, prompt="hello", status="ok", error=None, reply="HELLO", **facts):
    """Make an exchange that has ended, or begun."""
    message = Message("user", [TextPart(prompt), AttachmentPart(IMAGE)])
    received = facts.pop("received", datetime(2026, 11, 21, 22, tzinfo=UTC))
    body = {"model": "demo", "messages": [{"role": "user", "content": prompt}]}
    one = begun(
        f"01jd{number:022d}",
        received + timedelta(seconds=number),
        dialect="openai_chat",
        path="/v1/chat/completions",
        query="",
        client=facts.pop("client", "tests"),
        headers=[("user-agent", "tests/1")],
        body=body,
        model=facts.pop("model", "demo"),
        messages=[message],
    )
    if status == "running":
        return one
    turn = Turn(
        id=one.id,
        thread_id=one.id,
        model="demo",
        messages=[message],
        reply=[llm.assistant(reply)] if reply else [],
        started=received,
        duration_ms=5,
    )
    one = replace(one, status=status, error=error, http_status=200, duration_ms=5.0, **facts)
    events = [(-0.04, StreamEvent("text", reply, part_index=0))] if reply else []
    return with_answer(one, turn, events, chat.Finish() if status == "ok" else None)


ROWS = [
    exchange(1),
    exchange(2, prompt=WIDE, reply=WIDE, client=WIDE, model=WIDE),
    exchange(3, status="error", error=LONG, reply=""),
    exchange(4, status="error", error="line\nline\x1b[31m", reply="half"),
    exchange(5, status="running"),
    exchange(6, prompt="", received=datetime(1999, 1, 1, tzinfo=UTC)),
    exchange(7, received=datetime(9998, 12, 31, 23, 59, tzinfo=UTC)),
    exchange(8, received=datetime(1, 1, 1, tzinfo=UTC)),
    exchange(9, status="cancelled", queue_ms=1e9, is_first_run=True),
    exchange(10, previous_id=f"01jd{1:022d}", link="reply", recalled=1),
]


@pytest.fixture(scope="module")
def odd_log(tmp_path_factory):
    path = tmp_path_factory.mktemp("odd") / "logs.db"
    put_empty_log(path)
    with Store(path) as store:
        left = ROWS
        while left:
            left = left[store.write(left) :]
    return path


@pytest.fixture(scope="module")
def folder(odd_log, tmp_path_factory):
    """The working folder: the log, and files that are something else."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "text").write_text("no database, no JSON")
    (folder / "empty").touch()
    (folder / "bytes").write_bytes(b"\xff\xfe\x00")
    (folder / "ids").write_text(f"{ROWS[0].id}\n{ROWS[1].id.upper()}, nobody")
    (folder / "folder").mkdir()
    shutil.copy(odd_log, folder / "logs.db")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setattr("llmproxy.backends.engine.catalog._load_plugins", lambda: False)
        yield str(folder)


@pytest.fixture(scope="module")
def fresh_log(folder, odd_log):
    """Return a function that puts the log back: an argument may have replaced it."""

    def put_back():
        for name in ("logs.db-wal", "logs.db-shm"):
            Path(folder, name).unlink(missing_ok=True)
        shutil.copy(odd_log, Path(folder, "logs.db"))

    return put_back


@dataclass
class Stdout(io.RawIOBase):
    """A standard output: what was written, or the error that every write raises."""

    encoding: str = "utf-8"
    columns: int | None = None  # of a terminal
    fails_with: int | None = None

    def __post_init__(self):
        self.written = b""

    def writable(self):
        return True

    def isatty(self):
        return self.columns is not None

    def write(self, data):
        if self.fails_with is not None:
            raise OSError(self.fails_with, os.strerror(self.fails_with))
        self.written += bytes(data)
        return len(data)


def run(output, folder, *words, **environment):
    """Run the command as its own process would; give its exit code, and what it wrote."""
    out = io.TextIOWrapper(io.BufferedWriter(output), output.encoding)
    err = io.TextIOWrapper(io.BytesIO(), "utf-8")
    given = io.TextIOWrapper(io.BytesIO(), "utf-8")
    defaults = {"COLUMNS": str(output.columns or 80), "TERM": "xterm", "LLM_USER_PATH": folder}
    with (
        patch("sys.stdout", out),
        redirect_stderr(err),
        patch("sys.stdin", given),
        patch.dict(os.environ, defaults | environment),
        pytest.raises(SystemExit) as ended,
    ):
        main.run(words)
    output.fails_with = None  # what is left in the buffer may go when that is closed
    err.flush()
    return ended.value.code, output.written, err.buffer.getvalue().decode()


OUTPUTS = st.one_of(
    st.builds(Stdout, st.sampled_from(["utf-8", "ascii", "latin-1", "utf-16"])),
    st.builds(Stdout, st.sampled_from(["utf-8", "ascii"]), st.integers(1, 200)),
    st.builds(Stdout, fails_with=st.sampled_from([errno.EPIPE, errno.ENOSPC, errno.EBADF])),
)
# As the system hands them over: bytes that are not UTF-8 are lone surrogates.
WORDS = st.one_of(
    st.sampled_from(
        [
            "",
            " ",
            "-",
            "--",
            "0",
            "1",
            "-1",
            "1" + "0" * 20,
            "9999999w",
            "1d12h",
            "18:30",
            "today",
            "last",
            "ok",
            "demo",
            "a=b",
            "text",
            "empty",
            "bytes",
            "ids",
            "folder",
            "nowhere/at/all",
            "out",
            "logs.db",
            "\udcff",
            '"',
            "*",
            "NEAR(",
            "%",
            "'; drop table proxy_exchanges; --",
            "日本",
            "x" * 5_000,
            ROWS[0].id,
            ROWS[1].id.upper(),
            f"chatcmpl-{ROWS[2].id}",
        ]
    ),
    st.binary(max_size=4).map(os.fsdecode),
    st.text(max_size=8),
).map(lambda word: word.replace("\0", ""))

DIALECTS = st.sampled_from(["openai_chat", "anthropic_messages"])
VALUES = {
    "--ids": st.sampled_from(["ids", "-"]),
    "--from": DIALECTS | WORDS,
    "--to": DIALECTS | WORDS,
    "--dialect": DIALECTS | WORDS,
    "--kind": st.sampled_from(["request", "response", "stream"]) | WORDS,
    "--format": st.just("llama-stack") | WORDS,
    "--status": st.sampled_from(["ok", "error", "running"]) | WORDS,
}
FILTERS = "--last --since --until --model --client --dialect --status --thread --search --ids"
FLAGS = {
    "log": f"{FILTERS} --run --json --threads --cache --verify --prune --database",
    "export": f"{FILTERS} --run --anonymize --format --database",
    "import": "--dry-run --database",
    "bench": f"{FILTERS} --models --repeat --concurrency --parallel --warmup --max-tokens --timeout"
    " --base-url --key --name --resume --prices --database",
    "report": f"{FILTERS} --json --csv --html --prices --database",
    "convert": "--from --to --kind",
}
SWITCHES = set("--json --threads --cache --verify --prune --dry-run --anonymize --csv".split())
# Without these it would run models for as long as the arguments ask for.
ALWAYS = {"bench": ["--models", "demo", "--dry-run"]}


@st.composite
def commands(draw):
    name = draw(st.sampled_from([*FLAGS]))
    words = [name, *draw(st.lists(WORDS, max_size=1))]
    for flag in draw(st.lists(st.sampled_from(FLAGS[name].split()), max_size=3)):
        words += [flag] if flag in SWITCHES else [flag, draw(VALUES.get(flag, WORDS))]
    return [*words, *ALWAYS.get(name, [])]


SERVER = (
    "--map --default-model --parallel --database --replay --replay-speed --recordings"
    " --remote-images --api-key --allow-host --allow-origin --limit --access-log --host"
    " --upstream --upstream-key --upstream-ca --upstream-wait --passthrough"
)
SERVER_SWITCHES = ["--no-log", "--no-recall", "--think-tags", "--no-auth", "--quiet"]


@st.composite
def servers(draw):
    """The server's arguments, except its port."""
    words = draw(st.lists(st.sampled_from(SERVER_SWITCHES), max_size=1))
    for flag in draw(st.lists(st.sampled_from(SERVER.split()), max_size=3)):
        values = WORDS
        if flag == "--limit":
            values = st.builds("{}={}".format, st.sampled_from([*vars(Limits())]), WORDS)
        if flag in ("--upstream", "--map", "--upstream-key"):
            names = st.sampled_from(["anthropic", "a=ollama+http://127.0.0.1"])
            values = st.one_of(WORDS, names, st.builds("{}={}".format, names, WORDS))
        words += [flag, draw(values)]
    return words


SQL = re.compile(r"fts5|sqlite|syntax error|no such (table|column)|select .* from", re.IGNORECASE)


@many_examples(500)
@given(words=commands(), output=OUTPUTS)
def test_any_arguments_and_any_output(words, output, folder, fresh_log):
    fresh_log()
    fails_with = output.fails_with
    code, out, err = run(output, folder, *words)
    quoted = "".join(words)
    assert code in (0, 1, 2), err
    assert "Traceback" not in err and "[Errno" not in err
    assert SQL.search(quoted) or not SQL.search(err)
    lines = err.splitlines()
    assert len(set(lines)) == len(lines)
    if code == 2:
        assert out == b""
        assert re.fullmatch(r"llmproxy.*\n(usage: .*\n)?", err)
    if code == 1 and "--verify" not in words:
        assert any(re.match("llmproxy( [a-z]+)?: |.* is damaged: ", line) for line in lines)
    if fails_with is not None:
        assert out == b"" and "Broken pipe" not in err
        reason = os.strerror(fails_with)
        assert err.count(reason) == err.count(f": standard output: {reason}\n")
    if output.columns and words[0] == "log" and "--json" not in words and code == 0:
        text = re.sub("\x1b\\[\\d+m", "", out.decode(output.encoding))
        assert text.replace("\n", "").replace("\t", "").isprintable()


@pytest.fixture(scope="module")
def taken():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield str(server.getsockname()[1])


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the access log lasts as long as a process
@many_examples(100)
@given(words=servers(), output=OUTPUTS)
def test_any_arguments_of_the_server(words, output, folder, taken, fresh_log):
    """Its port is in use: whatever the arguments are, it ends."""
    fresh_log()
    code, out, err = run(output, folder, *words, "--host", "127.0.0.1", "--port", taken)
    assert (code, out) == (2, b""), err
    assert "Traceback" not in err and "[Errno" not in err
    warnings = r"(warning: .*\n)*"
    assert re.fullmatch(rf"{warnings}llmproxy: .*\n(usage: .*\n)?", err)


def test_damage_is_in_the_exit_code_even_if_nobody_reads_what_it_is(odd_log, tmp_path):
    shutil.copy(odd_log, tmp_path / "logs.db")
    with sqlite3.connect(tmp_path / "logs.db") as db:
        db.execute("update parts set text = 'changed' where text = 'hello'")
    db.close()
    output = Stdout(fails_with=errno.EPIPE)
    assert run(output, str(tmp_path), "log", "--verify") == (1, b"", "")


# ---- terminals


@pytest.fixture(autouse=True)
def intact_log(fresh_log):
    fresh_log()


def shown(columns, folder, *words, **environment):
    code, out, err = run(Stdout(columns=columns), folder, *words, **environment)
    assert (code, err) == (0, "")
    return out.decode()


def test_a_list_on_a_terminal_is_in_columns(folder):
    lines = shown(90, folder, "log", "--last", "3", NO_COLOR="1").splitlines()
    assert [re.sub(r"\d\d-\d\d \d\d:\d\d:\d\d\+00", "…", line) for line in lines] == [
        "01jd000000000  …       demo  cancelled  total 0.0050s  hello; [image/png]",
        "01jd000000000  …       demo  ok         total 0.0050s  hello; [image/png]",
        "01jd000000000  9998-…  demo  ok         total 0.0050s  hello; [image/png]",
    ]


def test_a_narrow_terminal_shows_the_whole_time(folder):
    lines = shown(60, folder, "log", "--last", "3", NO_COLOR="1").splitlines()
    row = r"01jd000000000  \d\d:\d\d:\d\d  0\.0050s  ok +demo  hello; \[…"
    assert re.fullmatch(row, lines[-1])


LISTS = [[], ["--threads"], ["--thread", ROWS[0].id]]


@pytest.mark.parametrize("words", LISTS, ids=["exchanges", "threads", "tree"])
@pytest.mark.parametrize("columns", [1, 40, 80, 132, 300])
def test_no_list_is_wider_than_the_terminal(columns, words, folder):
    for line in shown(columns, folder, "log", *words, NO_COLOR="1").splitlines():
        assert display_width(line) <= columns


def test_colours_are_for_terminals_that_want_them(folder):
    red = "\x1b[31merror in stream\x1b[0m"
    assert red in shown(200, folder, "log")
    for columns, environment in [(80, {"NO_COLOR": "1"}), (80, {"TERM": "dumb"}), (None, {})]:
        assert "\x1b" not in shown(columns, folder, "log", **environment)


# ---- real pipes, files and locales


@pytest.mark.parametrize(
    ("command", "code", "out", "err"),
    [
        ("{} log | head -1 | cut -c 1-26", 0, f"{ROWS[7].id}\n", ""),
        ("{} log --json > /dev/full", 1, "", "log: standard output: No space left on device"),
        ("{} --help > /dev/full", 1, "", ": standard output: No space left on device"),
        ("{} log >&-", 1, "", "log: standard output: Bad file descriptor"),
        ("{} log nobody 2>&-", 1, "", ""),
        ("PYTHONIOENCODING=ascii {} log --model '{wide}' --json | tail -1", 0, "\\u65e5", ""),
        (
            "{} convert --from openai_chat --to openai_chat <&-",
            1,
            "",
            "standard input: it is empty",
        ),
    ],
)
def test_real_streams(command, code, out, err, folder):
    command = command.replace("{}", f"{sys.executable} -m llmproxy").replace("{wide}", WIDE)
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"LLM_USER_PATH": str(folder), "LLM_LOAD_PLUGINS": ""},
    )
    assert done.returncode == code
    assert out in done.stdout and err in done.stderr
    assert bool(out) == bool(done.stdout) and bool(err) == bool(done.stderr)
    assert done.stderr.count("\n") == bool(err)
