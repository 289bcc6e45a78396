"""What commands print can't control a terminal, whoever wrote it."""

import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace

import pytest

from llmproxy.cli import terminal
from llmproxy.cli.main import main
from llmproxy.core.text import ascii_json, painted, printable, visible
from llmproxy.recorder.store import Store

# Escape codes of 7 and 8 bits, DEL, marks that turn the direction of text, a byte order mark.
HOSTILE = "\x1b[2J\x1b]0;t\x07\x9b31m\x9d\x7f\r\u202e\u2066\u200f\ufeff\u2028a\ud800"
FORBIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]"
)


class Terminal(io.TextIOWrapper):
    """A terminal that takes any text."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), "utf-8", errors="backslashreplace", write_through=True)

    def isatty(self) -> bool:
        return True

    def shown(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode()


@contextmanager
def on_terminal() -> Iterator[Terminal]:
    """Make standard output and error one terminal."""
    made = Terminal()
    with redirect_stdout(made), redirect_stderr(made):
        yield made


def test_a_printed_line_shows_codes_as_text_and_keeps_colours():
    with on_terminal() as screen:
        terminal.print_line(painted("red", "red", True) + f" {HOSTILE}\n\tnext")
    shown = screen.shown()
    assert shown.startswith("\x1b[31mred\x1b[0m \\x1b[2J\\x1b]0;t\\x07\\x9b31m")
    assert shown.endswith("\n\tnext\n")
    assert FORBIDDEN.search(shown) is None
    assert visible(printable(HOSTILE)) == printable(HOSTILE)


def test_json_on_a_terminal_is_ascii():
    value = {f"a{HOSTILE}": [HOSTILE, "ü🌊", 1, None]}
    text = json.dumps({"ü\x7f\x9b": "\u202e🌊"}, ensure_ascii=False)
    with on_terminal() as screen:
        terminal.print_json(value)
        terminal.JsonOutput().write(f"{text}\n{text}\n".encode())
    first, second, third = screen.shown().splitlines()
    assert (first + second).isascii() and (first + second).isprintable()
    assert json.loads(first) == value
    assert json.loads(second) == json.loads(third) == json.loads(text)


def test_json_in_a_pipe_is_as_it_was():
    pipe = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    with redirect_stdout(pipe):
        terminal.print_json({"ü": "\x7f"})
        terminal.JsonOutput().write('"ü\x9b"\n'.encode())
    pipe.flush()
    assert pipe.buffer.getvalue() == '{"ü": "\x7f"}\n"ü\x9b"\n'.encode()


def test_ascii_json_is_the_same_json():
    text = json.dumps([HOSTILE.replace("\ud800", ""), "🌊é"], ensure_ascii=False)
    assert json.loads(ascii_json(text)) == json.loads(text)
    assert ascii_json('{"a": 1}') == '{"a": 1}'


@pytest.fixture
def logged(llm_user_path, make_exchange):
    """A log whose every text is hostile."""
    hostile = HOSTILE.replace("\ud800", "")
    exchange = make_exchange(f"question {hostile}", f"answer {hostile}")
    exchange = replace(exchange, client=hostile, model_asked=hostile, ignored=(hostile,))
    with Store(llm_user_path / "logs.db") as store:
        store.write([exchange])
    return exchange


@pytest.mark.parametrize(
    "command",
    [
        "log", "log --json", "log --threads", "log --threads --json", "log --cache",
        "log --cache --json", "log {id}", "log {id} --json", "log --thread {thread}",
        "log --verify", "export -", "export - --anonymize", "report", "report --json",
        "report --csv", "report --html -",
    ],
)  # fmt: skip
def test_no_command_lets_recorded_words_control_the_terminal(command, logged):
    words = command.format(id=logged.id, thread=logged.thread_id).split()
    with on_terminal() as screen:
        main(words)
    shown = screen.shown()
    assert shown or "--cache" in words  # there is no miss
    assert FORBIDDEN.search(shown) is None
    assert re.search(r"\x1b(?!\[\d{1,2}m)", shown) is None
    if "--json" in words or command == "export -":
        assert shown.isascii()


@pytest.mark.parametrize(
    "command", ["import", "import --strict", "convert --from openai_chat --to anthropic_messages"]
)
def test_no_member_name_of_a_file_controls_the_terminal(command, tmp_path, llm_user_path):
    hostile = HOSTILE.replace("\ud800", "")
    file = tmp_path / "foreign.jsonl"
    body = {
        "model": "m",
        hostile: 1,
        "messages": [{"role": "user", "content": hostile, hostile: 1}],
    }
    file.write_text(json.dumps(body, ensure_ascii=False) + "\n", encoding="utf-8")
    with on_terminal() as screen:
        main([*command.split(), str(file)])
    shown = screen.shown()
    assert shown
    assert FORBIDDEN.search(shown) is None and "\x1b" not in shown
