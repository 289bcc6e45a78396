"""Llama Stack's recordings: answer requests from their files, or export exchanges to a folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...backends.held_recordings import HeldRecordings
from ...backends.replay import Recorded, RecordingSummary
from ...core import chat
from ...core.errors import InvalidRequest
from ...core.fingerprints import request_key
from ...recorder.exchange import first_words
from ...recorder.listing import Filter
from ...recorder.reader import LogReader
from ..anonymize import anonymize
from ..export import Exported, Unreadable, exchanges
from .read import Recording, parse_recording
from .write import render_recording


def add_recording(held: HeldRecordings, data: bytes, name: str) -> None:
    """Add a file's recording, known by the file's name; one of something but a chat is left out.

    data: the file's content. name: the file's, without `.json`.

    Raises:
        InvalidRequest: it is no recording, or damaged, or no client could send its request.
    """
    recording = parse_recording(data, name)
    if recording.refused is not None:
        raise recording.refused
    held.add_models(recording.models)
    request = recording.request
    if request is not None:
        summary = RecordingSummary(
            name, request.model, request.model, first_words(request.messages)
        )
        held.add(summary, request_key(request), lambda: request, lambda: _response(recording))


def _response(recording: Recording) -> Recorded:
    """Return a recorded response, whose events all have the time 0: recordings have none."""
    assert recording.request is not None, "others are not kept"
    events = [(0.0, event) for event in recording.events if not isinstance(event, chat.Finish)]
    finishes = [event for event in recording.events if isinstance(event, chat.Finish)]
    finish = finishes[0] if finishes else None
    model = recording.request.model or ""
    return Recorded(recording.key, model, events, finish, recording.error, 0.0)


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
        ids = reader.ids(filter, last=last)
        for exchange in exchanges(reader, ids):
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
    return Exported(
        len(names), running, skipped, count - len(names), damaged, unnamed=ids.count("")
    )


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
