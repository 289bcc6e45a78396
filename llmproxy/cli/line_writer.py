"""Lines for a stream that nothing may be reading: a full pipe, a terminal after Ctrl-S."""

from __future__ import annotations

import os
import select
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from ..core.text import visible

MAX_CHARS = 1_000_000  # that wait to be written; further lines are dropped and counted
CLOSE_S = 1.0  # for the last lines, when the server ends


class LineWriter:
    """Writes lines in a thread of its own, so that the caller never waits for a reader.

    It is enough of a file for logging. Lines that don't fit the queue, or
    that can't be written, are dropped; a line says how many once there is room again.
    """

    def __init__(
        self, stream: TextIO | None, on_failure: Callable[[OSError], None] | None = None
    ) -> None:
        """Prepare to write to a stream; None, as sys.stdout may be, drops all lines.

        on_failure: called with the first error of the stream, in the thread.
        """
        self._stream = stream
        self._on_failure = on_failure
        self._fd = None if stream is None else _descriptor(stream)
        self._changed = threading.Condition()
        self._waiting: list[str] = []
        self._chars = 0
        self._dropped = 0
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="llmproxy-lines", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(CLOSE_S)

    def line(self, text: str) -> None:
        """Queue a line, given without its end."""
        self.write(text + "\n")

    def write(self, text: str) -> int:
        """Queue one or more whole lines; called from any thread, as `line` is."""
        with self._changed:
            if self._chars + len(text) > MAX_CHARS:
                self._dropped += text.count("\n")
            else:
                self._waiting.append(text)
                self._chars += len(text)
                self._changed.notify()
        return len(text)

    def flush(self) -> None:
        """Do nothing: every line is written as soon as it can be."""

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def _run(self) -> None:
        while text := self._next():
            try:
                self._write(text)
            except (OSError, ValueError) as exc:  # no reader, a full disk, closed
                with self._changed:
                    self._dropped += text.count("\n")
                if self._on_failure is not None and isinstance(exc, OSError):
                    self._on_failure(exc)
                    self._on_failure = None

    def _next(self) -> str:
        """Wait for lines; return "" when there are none left and it is closing."""
        with self._changed:
            while not self._waiting and not self._is_closing:
                self._changed.wait()
            if self._waiting and self._dropped:
                self._waiting.append(
                    f"llmproxy: {self._dropped} lines are missing here: they could not be written\n"
                )
                self._dropped = 0
            text = "".join(self._waiting)
            self._waiting.clear()
            self._chars = 0
        return text

    def _write(self, text: str) -> None:
        if self._stream is None:
            return
        text = "\n".join(map(visible, text.split("\n")))  # here, not in the event loop
        if self._fd is None:
            self._stream.write(text)
            self._stream.flush()
            return
        # Past the stream's buffer: a thread that waits here must hold no lock of it, or the
        # interpreter could not end.
        encoding = self._stream.encoding or "utf-8"
        data = memoryview(text.encode(encoding, "backslashreplace"))
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:
                select.select([], [self._fd], [])


def _descriptor(stream: TextIO) -> int | None:
    """Return the file descriptor to write to, or None if the stream itself must be used."""
    if sys.platform == "win32":  # a console there takes text, not bytes
        return None
    try:
        stream.flush()
        return stream.fileno()
    except (OSError, ValueError):  # a stream in memory, or closed
        return None
