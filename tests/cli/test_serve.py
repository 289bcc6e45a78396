"""The serve command's settings of its own process."""

import gc
import subprocess
import sys
import time

import pytest

from llmproxy import Settings, serving
from llmproxy.cli import serve
from llmproxy.cli.line_writer import LineWriter
from tests.proxies import running


def wait_until(condition):
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.fixture
def kept():
    """Put back what belongs to the process of the tests."""
    switch_s, threshold = sys.getswitchinterval(), gc.get_threshold()
    yield switch_s, threshold
    sys.setswitchinterval(switch_s)
    gc.set_threshold(*threshold)


def test_pauses_are_shortened_by_the_command_only(kept):
    frozen = gc.get_freeze_count()  # these tests have done so too
    with running():
        assert (sys.getswitchinterval(), gc.get_threshold()) == kept
        assert gc.get_freeze_count() <= frozen
    serve.shorten_pauses()
    assert sys.getswitchinterval() == pytest.approx(0.0005)
    assert gc.get_threshold() == (10_000, 10, 100)
    assert gc.get_freeze_count() > frozen


def test_the_collector_is_as_python_has_it_after_an_import():
    code = "import gc, sys, llmproxy; print(gc.isenabled(), gc.get_freeze_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True 0\n"


def test_a_rotated_access_log_is_opened_again(tmp_path):
    path, rotated, failures = tmp_path / "access.log", tmp_path / "access.log.1", []
    with serve._open_access_log(str(path)) as file, LineWriter(file) as lines:
        lines.line("before")
        wait_until(lambda: path.read_text() == "before\n")
        path.rename(rotated)
        serve._reopen(file, str(path), failures.append)
        lines.line("after")
        wait_until(lambda: path.read_text() == "after\n")
        assert rotated.read_text() == "before\n"
        assert path.stat().st_mode & 0o777 == 0o600
        serve._reopen(file, str(tmp_path / "gone" / "access.log"), failures.append)
        lines.line("still there")
        wait_until(lambda: path.read_text() == "after\nstill there\n")
    assert [failure.strerror for failure in failures] == ["No such file or directory"]


SECOND = "a second Ctrl-C or SIGTERM stops at once"


@pytest.mark.parametrize(
    ("unanswered", "text"),
    [
        (0, "stopping"),
        (1, f"stopping: waiting for 1 response, at most 30 s; {SECOND}"),
        (2, f"stopping: waiting for 2 responses, at most 30 s; {SECOND}"),
    ],
)
def test_a_stop_says_what_it_waits_for(unanswered, text):
    assert serve._goodbye(unanswered, 30.0) == text


@pytest.mark.parametrize(
    ("variable", "by", "problem"),
    [
        ("", "", ""),
        ("http://user:secret@proxy.example", " by the proxy proxy.example:80", ""),
        (
            "socks5://user:secret@proxy.example",
            "",
            "; it can't be reached: the environment's proxy (HTTPS_PROXY or ALL_PROXY): socks5://"
            " is not spoken, only http:// and https:// are",
        ),
    ],
    ids=["no proxy", "http", "socks"],
)
def test_the_first_lines_name_upstreams_and_no_key_that_clients_have(
    variable, by, problem, llm_user_path, monkeypatch
):
    monkeypatch.setenv("https_proxy", variable)
    for name in ("HTTPS_PROXY", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    settings = Settings(
        port=0,
        log=False,
        upstreams=["anthropic", "codex=http://127.0.0.1:1"],
        upstream_keys=[("codex", "env:NOT_SET")],
    )
    with serving.running(settings) as proxy:
        lines = serve._welcome(proxy)
    assert lines[3:6] == [
        f"upstream anthropic: https://api.anthropic.com{by} with clients' own keys{problem}",
        "upstream codex: http://127.0.0.1:1 with the key env:NOT_SET, which is not set",
        f"for a client: OPENAI_BASE_URL={url_of(lines)}/v1 OPENAI_API_KEY=any",
    ]
    assert lines[6] == f"or: ANTHROPIC_BASE_URL={url_of(lines)}"


def url_of(lines):
    return lines[-1].partition("=")[2]
