"""Read recordings to replay from files: those that `export` writes, and another project's."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from ..backends.held_recordings import HeldRecordings
from ..backends.log_source import exchange_request, recorded_response
from ..backends.replay import Recorded, RecordingSummary
from ..core import chat
from ..core.errors import InvalidRequest, ProxyError
from ..core.fingerprints import request_key
from ..recorder.exchange import Exchange, encode
from .export import SQLITE_MAGIC
from .import_ import HEAD_BYTES, MAX_NAMED
from .jsonl import begins_an_export, decode, read_lines

# Folders of programs' own files, besides hidden ones and virtual environments.
SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules", "site-packages"})
ENVIRONMENT_FILE = "pyvenv.cfg"

AddRecording = Callable[[HeldRecordings, bytes, str], None]
"""Adds another project's recording: the file's content, and its name without the ending."""


def read_recordings(
    paths: Sequence[Path], warn: Callable[[str], None], add_recording: AddRecording
) -> HeldRecordings:
    """Read the recordings of files, and of all `.jsonl` and `.json` files in folders.

    Hidden folders, virtual environments and `SKIPPED_FOLDERS` are left out. JSON files of a
    folder that are something else are only counted.

    warn: called with a line for each file or line that can't be read (at most `MAX_NAMED`), and
        one with the number of files that are something else.

    Raises:
        InvalidRequest: a file of `paths` is something else.
        OSError: one of `paths` can't be read.
    """
    reading = _Reading(warn, add_recording)
    for path in paths:
        if path.is_dir():
            next(path.iterdir(), None)  # raises if it can't be read
            for file in sorted(_files(path)):
                reading.add_found(file)
        else:
            reading.add(path)
    reading.finish()
    return reading.held


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".")
            and name not in SKIPPED_FOLDERS
            and not Path(place, name, ENVIRONMENT_FILE).exists()
        ]
        for name in files:
            path = Path(place, name)
            if name.endswith((".json", ".jsonl")) and not name.startswith(".") and path.is_file():
                yield path


class _Reading:
    """The reading of several files into one source."""

    def __init__(self, warn: Callable[[str], None], add_recording: AddRecording) -> None:
        self.held = HeldRecordings()
        self._warn = warn
        self._add_recording = add_recording
        self._unreadable = 0
        self._foreign = 0

    def add_found(self, file: Path) -> None:
        """Add a file of a folder, which may be anything."""
        try:
            if file.suffix == ".jsonl" and not begins_an_export(_head(file)):
                self._foreign += 1
            else:
                self.add(file)
        except InvalidRequest as exc:
            if _is_foreign(file):
                self._foreign += 1
            else:
                self._name(file, exc)
        except OSError as exc:
            self._name(file, exc)

    def add(self, file: Path) -> None:
        """Add the recordings of a file.

        Raises:
            InvalidRequest: it is something else, or damaged.
            OSError: it can't be read.
        """
        head = _head(file)
        if head.startswith(SQLITE_MAGIC):
            raise InvalidRequest("a database: name it as the log instead")
        if not begins_an_export(head) and file.suffix != ".jsonl":
            self._add_recording(self.held, file.read_bytes(), file.stem)
            return
        with file.open("rb") as opened:
            for number, line in read_lines(opened):
                try:
                    self._add_exchange(decode(line, number))
                except InvalidRequest as exc:
                    self._name(file, exc, f"line {number}")

    def _add_exchange(self, exchange: Exchange) -> None:
        is_success = exchange.status == "ok" and exchange.finish is not None
        is_failure = exchange.status == "error" and exchange.model_used is not None
        if not (is_success or is_failure) or exchange.replay_of or exchange.run_id:
            return
        if exchange.replay_key is None:  # anonymized
            return
        with suppress(ProxyError):  # an embedding, or damaged
            request = exchange_request(exchange)
            line = encode(exchange)  # takes a fifth of the memory
            self.held.add(
                RecordingSummary(
                    exchange.id,
                    exchange.model_asked,
                    exchange.model_used,
                    exchange.first_words,
                    is_failure,
                ),
                request_key(request),
                partial(_request_of, line),
                partial(_response_of, line),
            )

    def _name(self, file: Path, error: InvalidRequest | OSError, place: str = "") -> None:
        self._unreadable += 1
        if self._unreadable > MAX_NAMED:
            return
        if isinstance(error, InvalidRequest):
            where = ", ".join(filter(None, (str(file), place, error.param)))
            self._warn(f"{where}: {error.message}")
        else:
            self._warn(f"{file}: {error.strerror}")

    def finish(self) -> None:
        """Warn of what was left out."""
        if self._unreadable > MAX_NAMED:
            self._warn(f"{self._unreadable - MAX_NAMED:,} more recordings can't be read")
        if self._foreign:
            files = "file" if self._foreign == 1 else "files"
            self._warn(f"skipped {self._foreign:,} JSON {files} of something other than recordings")


def _head(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(HEAD_BYTES)


def _request_of(line: bytes) -> chat.ChatRequest:
    return exchange_request(decode(line))


def _response_of(line: bytes) -> Recorded:
    return recorded_response(decode(line))


def _is_foreign(file: Path) -> bool:
    """Check whether a file that can't be read is no damaged recording, but something else."""
    data = file.read_bytes()
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return not (b'"request"' in data and b'"response"' in data)
    members = (value.get("request"), value.get("response")) if isinstance(value, dict) else ()
    return not (members and all(isinstance(one, dict) for one in members))
