"""A folder of Llama Stack's recordings: answer requests from it, or export exchanges to it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ...backends.replay import Recorded
from ...core import chat
from ...core.errors import InvalidRequest
from ...core.fingerprints import request_key
from ...recorder.listing import Filter
from ...recorder.reader import LogReader
from ..anonymize import anonymize
from ..export import Exported, Unreadable, exchanges
from .read import Recording, parse_recording
from .write import render_recording


class Folder:
    """The recordings in a folder and its subfolders, all read when it is opened.

    A recording is known by the name of its file. Only chats are replayed; other kinds are
    skipped. `warn` is given a line for each file that can't be read, or whose request no
    client could send.

    Raises:
        OSError: there is no such folder.
    """

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self._recordings: dict[str, Recording] = {}
        self._by_key: dict[str, list[str]] = {}
        self._models: dict[str, None] = {}
        for file in sorted(_files(path)):
            try:
                recording = parse_recording(file.read_bytes(), file.stem)
                if recording.refused is not None:
                    raise recording.refused
            except (InvalidRequest, OSError) as exc:
                place = f", {exc.param}" if isinstance(exc, InvalidRequest) and exc.param else ""
                warn(f"{file}{place}: {exc}")
                continue
            self._models.update((name, None) for name in recording.models)
            if recording.request is not None:
                self._add(recording, recording.request)

    def _add(self, recording: Recording, request: chat.ChatRequest) -> None:
        self._recordings[recording.key] = recording
        self._by_key.setdefault(request_key(request), []).append(recording.key)
        if request.model is not None:
            self._models[request.model] = None

    def models(self) -> list[str]:
        """Return the requested models, and those of recorded lists of models."""
        return list(self._models)

    def find(self, request: chat.ChatRequest) -> list[str]:
        """Return the names of the recordings of a request, in order."""
        return [
            key
            for key in self._by_key.get(request_key(request), [])
            if self._request(key).model == request.model
        ]

    def load(self, id: str) -> Recorded:
        """Return a recorded response, whose events all have the time 0: recordings have none."""
        recording = self._recordings[id]
        events = [(0.0, event) for event in recording.events if not isinstance(event, chat.Finish)]
        finishes = [event for event in recording.events if isinstance(event, chat.Finish)]
        model = self._request(id).model or ""
        finish = finishes[0] if finishes else None
        return Recorded(id, model, events, finish, recording.error, 0.0)

    def near(self, request: chat.ChatRequest) -> Iterable[tuple[str, chat.ChatRequest]]:
        """Return all recordings."""
        return [(key, self._request(key)) for key in self._recordings]

    def _request(self, key: str) -> chat.ChatRequest:
        request = self._recordings[key].request
        assert request is not None, "others are not kept"
        return request


def _files(path: Path) -> Iterator[Path]:
    next(path.iterdir(), None)  # raises if there is no folder
    return path.rglob("*.json")


def export_recordings(
    reader: LogReader,
    folder: Path,
    filter: Filter,
    *,
    last: int | None = None,
    anonymized: bool = False,
) -> Exported:
    """Export finished chats as Llama Stack recordings, one file each.

    Creates the folder if needed. If something goes wrong, nothing in it is changed. Parameters
    are those of `export_jsonl`.

    Raises:
        Unreadable: there is a file with the folder's name, or as `export_jsonl`.
        StoreError, OSError: as `export_jsonl`.
    """
    if folder.exists() and not folder.is_dir():
        raise Unreadable(f"{folder}: not a folder")
    names: dict[str, None] = {}
    count = running = skipped = 0
    damaged: dict[str, tuple[str, ...]] = {}
    with _filled(folder) as staged:
        for exchange in exchanges(reader, filter, last):
            if exchange.status == "running":
                running += 1
                continue
            if exchange.damage:  # a recording has no place to say so
                damaged[exchange.id] = exchange.damage
                continue
            try:
                name, text = render_recording(anonymize(exchange) if anonymized else exchange)
            except InvalidRequest:
                skipped += 1
                continue
            with open(staged / name, "wb", opener=_open_private) as file:
                file.write(text.encode())
            names[name] = None
            count += 1
    return Exported(len(names), running, skipped, count - len(names), damaged)


@contextmanager
def _filled(folder: Path) -> Iterator[Path]:
    """Give a folder for new files, which are moved to `folder` at the end, all or none.

    Raises:
        OSError: a file can't be written; it has the folder's name.
    """
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryDirectory(prefix=".", suffix=".part", dir=folder) as staged:
                yield Path(staged)
                for file in Path(staged).iterdir():
                    os.replace(file, folder / file.name)
        except BaseException:
            if is_new:
                folder.rmdir()
            raise
    except OSError as exc:
        exc.filename, exc.filename2 = str(folder), None
        raise


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
