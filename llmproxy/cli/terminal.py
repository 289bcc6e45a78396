"""The process's standard streams, and what they can show."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import sys
from typing import Any, TextIO

from ..core.text import ascii_json, printable, visible

STDOUT = "standard output"


def take_any_text() -> None:
    """Let standard output and error take any text: escape what their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class Output(io.RawIOBase):
    """A standard stream that fails at most once, and says what it is.

    After an error everything that is written to it is dropped. Otherwise the interpreter would
    try again when it ends, and print a traceback.

    stream: the stream's own file, None if it was closed before the process began.
    is_silent: drop what can't be written without an error.
    """

    def __init__(self, stream: TextIO | None, *, is_silent: bool) -> None:
        buffer = None if stream is None else stream.buffer
        self._raw = getattr(buffer, "raw", buffer)  # no raw file with PYTHONUNBUFFERED
        self._is_silent = is_silent
        self.failure: OSError | None = None

    def writable(self) -> bool:
        """Return True."""
        return True

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return self._raw is not None and bool(self._raw.isatty())

    def fileno(self) -> int:
        """Return the descriptor; raise OSError if the stream is closed."""
        if self._raw is None:
            raise io.UnsupportedOperation("closed")
        return int(self._raw.fileno())

    def write(self, data: Any) -> int | None:
        """Write some bytes and return how many, None if that would block.

        Raises:
            OSError: the first error, whose `filename` is the stream's name.
        """
        if self.failure is None:
            try:
                return self._write(data)
            except OSError as exc:
                self.failure = exc
                if not self._is_silent:
                    raise
        return memoryview(data).nbytes

    def _write(self, data: Any) -> int | None:
        code = errno.EBADF
        try:
            if self._raw is not None:
                written: int | None = self._raw.write(data)
                return written
        except OSError as exc:
            code = exc.errno or errno.EIO
        raise OSError(code, os.strerror(code), STDOUT)


def own_streams() -> Output:
    """Take over the process's standard streams, closed ones too; return its standard output.

    An error of standard output names it. What standard error can't take is dropped. A closed
    standard input is empty.
    """
    for number in range(3):
        # Otherwise a socket or a database might get the number of a standard stream, to which
        # native libraries print.
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdin is None:
        sys.stdin = open(os.devnull)
    output = Output(sys.stdout, is_silent=False)
    sys.stdout = _text(output, sys.stdout)
    sys.stderr = _text(Output(sys.stderr, is_silent=True), sys.stderr)
    return output


def _text(output: Output, before: TextIO | None) -> TextIO:
    """Return a text stream like the one before."""
    if not isinstance(before, io.TextIOWrapper):
        return io.TextIOWrapper(io.BufferedWriter(output), "utf-8")
    return io.TextIOWrapper(
        io.BufferedWriter(output),
        before.encoding,
        line_buffering=before.line_buffering or before.write_through,
    )


def print_line(text: str, stream: TextIO | None = None) -> None:
    """Print a line at once, to standard output by default; no text in it controls a terminal."""
    print(visible(text), file=stream or sys.stdout, flush=True)


def print_error(text: str) -> None:
    """Print a line to standard error, as `print_line` does."""
    print_line(text, sys.stderr)


def print_json(value: Any) -> None:
    """Print a value as a line of JSON: in ASCII on a terminal, or where characters are missing."""
    text = json.dumps(value, ensure_ascii=False)
    print(ascii_json(text) if _takes_ascii(sys.stdout) else text, flush=True)


class JsonOutput:
    """Standard output for bytes of JSON, which are ASCII on a terminal."""

    def write(self, data: bytes) -> None:
        """Write whole characters."""
        if sys.stdout.isatty():
            data = ascii_json(data.decode()).encode()
        sys.stdout.buffer.write(data)

    def flush(self) -> None:
        """Flush standard output."""
        sys.stdout.buffer.flush()


def write_text(text: str) -> None:
    """Write a whole file to standard output, in UTF-8 whatever the terminal, at once."""
    if sys.stdout.isatty():
        text = printable(text.replace("\r\n", "\n"), lines=True)
    sys.stdout.buffer.write(text.encode())
    sys.stdout.buffer.flush()


def _takes_ascii(stream: TextIO) -> bool:
    return stream.isatty() or not has_all_characters(stream)


def has_all_characters(stream: TextIO) -> bool:
    """Return whether a stream's encoding has all characters."""
    return (stream.encoding or "").lower().replace("-", "").startswith("utf")


def has_cursor(stream: TextIO) -> bool:
    """Return whether a stream is a terminal on which a line can be erased and written again."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def has_colours(stream: TextIO) -> bool:
    """Return whether to write in colour: on a terminal, unless NO_COLOR or TERM=dumb is set.

    Spec: https://no-color.org
    """
    return has_cursor(stream) and not os.environ.get("NO_COLOR")


def width() -> int:
    """Return the width of the terminal, or what COLUMNS says."""
    return max(shutil.get_terminal_size().columns, 1)
