"""Lines go to a stream without the caller ever waiting for it."""

import errno
import io
import os
import re
import subprocess
import time
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from llmproxy.cli import line_writer
from llmproxy.cli.line_writer import LineWriter
from tests.cli.test_main import COMMAND, chat


def test_lines_are_written_in_order(tmp_path):
    with open(tmp_path / "out", "w", encoding="ascii") as file, LineWriter(file) as lines:
        for number in range(100):
            lines.line(f"line {number} ☃")
    assert (tmp_path / "out").read_text() == "".join(f"line {n} \\u2603\n" for n in range(100))


def test_a_stream_in_memory_is_written_to():
    with LineWriter(stream := io.StringIO()) as lines:
        lines.line("hello")
    assert stream.getvalue() == "hello\n"


def test_no_stream_is_no_error():
    with LineWriter(None) as lines:
        lines.line("hello")
        assert not lines.isatty()


def test_what_does_not_fit_is_counted_in_a_later_line():
    reading, writing = os.pipe()
    with open(writing, "w") as full, LineWriter(full) as lines:
        line = "x" * 9_999
        began = time.monotonic()
        for _ in range(1_000):  # a pipe takes 64 KiB, the queue a megabyte
            lines.line(line)
        assert time.monotonic() - began < 5
        whole = missing = 0
        with open(reading, closefd=False) as reader:
            while whole + missing < 1_000:
                read = reader.readline()
                if read == line + "\n":
                    whole += 1
                else:
                    note = r"llmproxy: (\d+) lines are missing here: they could not be written\n"
                    missing += int(re.fullmatch(note, read)[1])
    os.close(reading)
    assert whole and missing


def test_closing_does_not_wait_for_a_reader(monkeypatch):
    monkeypatch.setattr(line_writer, "CLOSE_S", 0.05)
    reading, writing = os.pipe()
    with open(writing, "w") as full:
        with LineWriter(full) as lines:
            lines.line("x" * 100_000)
        os.close(reading)
        lines._thread.join(5)  # before its descriptor can be another file's
        assert not lines._thread.is_alive()


def test_a_pipe_that_does_not_block_is_waited_for():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with open(writing, "w") as full, open(reading) as reader:
        with LineWriter(full) as lines:
            lines.line("x" * 100_000)
            assert len(reader.readline()) == 100_001


def test_a_reader_that_is_gone_costs_only_the_lines():
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as broken, LineWriter(broken) as lines:
        for _ in range(10):
            lines.line("hello")


class FullDisk(io.StringIO):
    def write(self, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_stream_that_fails_is_reported_once():
    failures = []
    with LineWriter(FullDisk(), failures.append) as lines:
        lines.line("one")
        while not failures:
            time.sleep(0.001)
        lines.line("two")
    assert [failure.errno for failure in failures] == [errno.ENOSPC]


@pytest.mark.slow
def test_the_server_answers_while_nothing_reads_its_output():
    """Standard output and error are full pipes; no request waits for them."""
    process = subprocess.Popen(
        [*COMMAND, "--port", "0", "--access-log", "-"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = process.stdout.readline().split()[-1]
        for number in range(40):
            with chat(url, user="u" * 30_000, **{f"field{number}": "x" * 30_000}) as response:
                response.read()
        for _ in range(500):  # more than pipe and queue hold together
            with pytest.raises(HTTPError):
                urlopen(f"{url}/nope?{'q' * 3_000}", timeout=20)
        with urlopen(f"{url}/healthz", timeout=20) as response:
            assert response.status == 200
    finally:
        process.terminate()
        assert process.wait(timeout=20) == 0
        process.stdout.close()
        process.stderr.close()
