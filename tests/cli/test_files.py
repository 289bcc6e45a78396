"""Files that a command reads: an error says which one, and where in it."""

import shutil
from pathlib import Path

import pytest

from tests.commands import run_here

BAD = {
    "no JSON": (b'{"a":\n  {"b" 1}}', "it is not JSON: Expecting ':' delimiter at line 2 column 8"),
    "cut": (b'{"a":\n', "it is not JSON: Expecting value at line 2 column 1"),
    "no UTF-8": (b'{\n"a": "\xff"}', "it is not UTF-8 (line 2, byte 8)"),
    "not a number": (b'{\n"a": NaN}', "NaN is not JSON"),
    "too deep": (b"{\n" + b'"a":[' + b"[" * 9_000 + b"]" * 9_001 + b"}", "it nests deeper than"),
}
COMMANDS = {
    "import": ["import", "FILE"],
    "bench": ["bench", "--models", "demo", "--prices", "FILE", "--dry-run"],
    "report": ["report", "--prices", "FILE"],
    "convert": ["convert", "--from", "openai_chat", "--to", "anthropic_messages", "FILE"],
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("data, said", BAD.values(), ids=BAD)
def test_an_error_in_a_file_names_it_and_the_place(words, data, said, tmp_path, path, empty_log):
    shutil.copy(empty_log, path)
    file = tmp_path / "given.json"
    file.write_bytes(data)
    code, _, error = run_here(*(str(file) if word == "FILE" else word for word in words))
    assert code in (1, 2)
    assert f"{file}: " in error and said in error
    assert "the body" not in error and "Traceback" not in error


def test_a_stream_that_is_none_names_its_file(tmp_path):
    file = tmp_path / "given.txt"
    file.write_text("localhost\n")
    words = ("convert", "--from", "openai_chat", "--to", "anthropic_messages", "--kind", "stream")
    code, _, error = run_here(*words, str(file))
    assert (code, error.startswith(f"llmproxy convert: {file}: ")) == (1, True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
def test_a_page_that_could_not_be_written_is_named(path, empty_log):
    shutil.copy(empty_log, path)
    code, _, error = run_here("report", "--html", "/dev/full")
    assert code == 1
    assert "llmproxy report: /dev/full: No space left on device" in error
