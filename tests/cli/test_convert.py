"""`convert` as a person runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from llmproxy import convert
from llmproxy.dialects import DIALECTS
from tests.commands import run_here
from tests.wire_cases import wire_cases

COMMAND = [sys.executable, "-m", "llmproxy", "convert"]
OPENAI = ["--from", "openai_chat", "--to", "openai_chat"]
[CASE] = [case for case in wire_cases("openai_chat") if case.name == "agent_parallel_calls"]
REQUEST = {"model": "m", "messages": [{"role": "user", "content": "渐"}]}


def run(*words: str, stdin: bytes = b"") -> tuple[int, bytes, str]:
    return run_here("convert", *words, stdin=stdin)


@pytest.mark.parametrize("target", [dialect.NAME for dialect in DIALECTS])
def test_a_request_of_a_file_is_converted(tmp_path, target):
    path = tmp_path / "request.json"
    path.write_text(json.dumps(REQUEST | {"logprobs": True}))
    code, out, err = run("--from", "openai_chat", "--to", target, str(path))
    there = convert.convert_request(
        REQUEST | {"logprobs": True}, source="openai_chat", target=target
    )
    assert (code, json.loads(out)) == (0, there.body)
    assert err.splitlines() == [f"not carried: {path}" for path in there.ignored]


def test_paths_that_were_not_carried_are_listed():
    body: dict[str, Any] = REQUEST | {"logprobs": True, "store": True, "x": 1}
    assert run(*OPENAI, stdin=json.dumps(body).encode()) == (
        0,
        '{"model":"m","messages":[{"role":"user","content":"渐"}]}\n'.encode(),
        "not carried: x\nnot carried: logprobs\nnot carried: store\n",
    )


def test_an_answer_of_standard_input_is_converted():
    code, out, err = run(*OPENAI, "--kind", "response", stdin=json.dumps(CASE.response).encode())
    assert (code, err) == (0, "")
    assert json.loads(out)["choices"] == CASE.response["choices"]
    assert json.loads(out)["usage"] == CASE.response["usage"]


def test_a_stream_is_converted():
    code, out, err = run(*OPENAI, "--kind", "stream", stdin=CASE.stream)
    assert (code, err) == (0, "")
    read, sent = (convert.collect([stream], source="openai_chat") for stream in (out, CASE.stream))
    assert read.body["choices"] == sent.body["choices"]


def test_a_stream_is_converted_as_it_comes():
    """Each event is written before the next one is sent."""
    first, second, *_ = CASE.stream.split(b"\n\n")
    words = [*COMMAND, *OPENAI, "--kind", "stream"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(words, **pipes) as process:
        for frame in (first, second):
            process.stdin.write(frame + b"\n\n")
            process.stdin.flush()
            assert process.stdout.readline().startswith(b'data: {"id":"chatcmpl-')
            assert process.stdout.readline() == b"\n"
        process.stdin.close()
        assert b'"error"' in process.stdout.read()
        assert process.wait(10) == 1


FAILURES = {
    "no JSON": (OPENAI, b"{", 1, "standard input: it is not JSON: "),
    "no request": (
        OPENAI,
        b'{"messages": 1}',
        1,
        "standard input: messages: expected a list, got a number\n",
    ),
    "no answer": (
        [*OPENAI, "--kind", "response"],
        b"{}",
        1,
        "standard input: the upstream's answer has no choices\n",
    ),
    "an error for an answer": (
        [*OPENAI, "--kind", "response"],
        b'{"error": {"message": "later"}}',
        1,
        "standard input: later\n",
    ),
    "a cut stream": (
        [*OPENAI, "--kind", "stream"],
        b"",
        1,
        "standard input: the upstream's stream ended before its answer did\n",
    ),
    "a file that is no JSON": (
        [*OPENAI, __file__],
        b"",
        1,
        f"{__file__}: it is not JSON: ",
    ),
    "no such file": (
        [*OPENAI, "nowhere.json"],
        b"",
        1,
        "nowhere.json: No such file or directory\n",
    ),
}


@pytest.mark.parametrize("words, stdin, code, message", FAILURES.values(), ids=FAILURES)
def test_a_failure_is_one_clear_line(words, stdin, code, message):
    got, _, err = run(*words, stdin=stdin)
    assert (got, err.count("\n")) == (code, 1)
    assert err.startswith(f"llmproxy convert: {message}")


@pytest.mark.parametrize("kind", ["request", "response", "stream"])
@pytest.mark.parametrize("source", [dialect.NAME for dialect in DIALECTS])
@pytest.mark.parametrize("data", [b"{}", b"[]", b"data: {}\n\n", b"data: [1]\n\n", b"\xff", b""])
def test_a_failure_names_the_file_once(tmp_path, kind, source, data):
    path = tmp_path / "input"
    path.write_bytes(data)
    words = ["--from", source, "--to", "openai_chat", "--kind", kind, str(path)]
    code, _, err = run(*words)
    assert (code, err.count(str(path)), err.count("\n")) == (1, 1, 1)
    assert err.startswith(f"llmproxy convert: {path}: ")


def test_an_unknown_dialect_lists_the_known_ones():
    code, out, err = run("--from", "x", "--to", "openai_chat")
    assert (code, out) == (2, b"")
    assert "invalid choice: 'x'" in err and "openai_chat" in err


def test_the_help_of_the_server_names_it():
    assert "convert --from NAME --to NAME" in run_here("--help")[1].decode()
