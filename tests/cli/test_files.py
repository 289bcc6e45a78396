"""Files that a command reads: an error says which one, and where in it."""

import copy
import json
import shutil
from pathlib import Path

import pytest

from llmproxy.recorder.exchange import encode
from llmproxy.transfer.recordings import read_recordings
from tests.commands import run_here

BAD = {
    "no JSON": (b'{"a":\n  {"b" 1}}', "it is not JSON: Expecting ':' delimiter at line 2 column 8"),
    "cut": (b'{"a":\n', "it is not JSON: Expecting value at line 2 column 1"),
    "no UTF-8": (b'{\n"a": "\xff"}', "it is not UTF-8 (line 2, byte 6)"),
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


# ---- exchanges of a file, each field of one line changed

WRONG = (None, -1, 1.5e300, "\0", "x" * 5_000, [], {"x": [1]}, [[None]])


def fields_of(value, path=()):
    """List the paths of all members, and of the first item of each list."""
    yield path
    members = value.items() if isinstance(value, dict) else [*enumerate(value)][:1]
    for key, member in members:
        if isinstance(member, dict | list):
            yield from fields_of(member, (*path, key))
        else:
            yield (*path, key)


def with_value(value, path, new):
    if not path:
        return new
    changed = copy.copy(value)
    changed[path[0]] = with_value(value[path[0]], path[1:], new)
    return changed


def test_a_changed_line_is_named_or_imported_whole(make_exchange, empty_log, tmp_path, path):
    """Whatever one field of the second of three lines is, the commands say where it is wrong."""
    lines = [encode(make_exchange(f"number {number}")) for number in range(3)]
    sound = json.loads(lines[1])
    file = tmp_path / "all.jsonl"
    for number, field in enumerate(fields_of(sound)):
        new = WRONG[number % len(WRONG)]
        changed = json.dumps(with_value(sound, field, new)).encode() + b"\n"
        file.write_bytes(lines[0] + changed + lines[2])
        shutil.copy(empty_log, path)
        code, out, error = run_here("import", str(file), "--strict")
        assert "Traceback" not in error, field
        imported = run_here("log", "--json")[1].count(b"\n")
        assert imported == (0 if code else 3), (field, new, out, error)
        if code:
            assert error.startswith(f"llmproxy import: {file}, line 2"), (field, new, error)
            assert run_here("import", str(file))[:2] == (
                1,
                b"imported 2 exchanges; 1 could not be read\n",
            )
        assert run_here("log", "--verify")[0] == 0, (field, new)
        warnings: list[str] = []
        read_recordings([file], warnings.append, pytest.fail)
        assert not code or f"{file}, line 2" in str(warnings), (field, warnings)
