"""Record anew into a file that is reviewed, so that a diff shows only what has changed."""

from __future__ import annotations

from collections import defaultdict, deque
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

from ..core.errors import InvalidRequest
from ..recorder.exchange import Exchange, changed, encode
from ..recorder.listing import Filter
from ..recorder.reader import LogReader
from .export import exchanges, written_whole
from .jsonl import decode, indent, read_lines


@dataclass(frozen=True)
class _Before:
    index: int
    line: bytes
    response: list[Any]


def rewrite_file(reader: LogReader, path: Path, before: bytes) -> None:
    """Write the recordings of a log to a file, a member on each line.

    before: the file's content so far. A recording of it stays as it is, byte for byte, instead
        of a new one with the same request (as replay compares them) and the same response; times,
        ids, headers and the pieces of its stream may differ. These stay in their order. Of
        several recordings of one request they are the first ones, since they are played in turn.

    New recordings lose the header `host`, which has a random port, and replays are left out.

    Raises:
        StoreError, OSError: the log can't be read any more, or the file can't be written.
    """
    known = _read(before)
    kept: list[_Before] = []
    lines: list[bytes | None] = []  # None for one that is kept
    for exchange in exchanges(reader, reader.ids(Filter())):
        if exchange.replay_of is not None or exchange.status == "running":
            continue
        same = known[_request(exchange)]
        if same and same[0].response == _response(exchange):
            kept.append(same.popleft())
            lines.append(None)
        else:
            same.clear()
            lines.append(indent(encode(_without_host(exchange))))
    in_order = iter(sorted(kept, key=lambda one: one.index))
    with written_whole(path) as file:
        file.writelines(next(in_order).line if line is None else line for line in lines)


def _read(data: bytes) -> defaultdict[str, deque[_Before]]:
    """Return the recordings of a file by their requests, in their order."""
    found: defaultdict[str, deque[_Before]] = defaultdict(deque)
    for number, line in read_lines(BytesIO(data)):
        with suppress(InvalidRequest):  # damaged: made anew
            exchange = decode(line)
            found[_request(exchange)].append(_Before(number, line, _response(exchange)))
    return found


def _request(exchange: Exchange) -> str:
    # Embeddings, and requests that could not be read, have no key.
    asked = exchange.replay_key or exchange.request.body
    return repr((exchange.path, exchange.model_asked, asked))


def _response(exchange: Exchange) -> list[Any]:
    """Return what a client gets, except times and ids, and llm's name of the model."""
    failure = (exchange.error, exchange.error_kind, exchange.error_code, exchange.error_param)
    end = (exchange.finish_reason, exchange.stop_sequence, exchange.usage)
    response: list[Any] = [
        exchange.status,
        exchange.http_status,
        exchange.model_used,
        *failure,
        *end,
    ]
    if exchange.turn is None:
        return response
    ids: dict[str, int] = {}
    for message in exchange.turn.reply:
        for part in message.parts:
            values: dict[str, Any] = {**part.to_dict()}
            values.pop("provider_metadata", None)  # has ids and signatures
            if id := values.get("tool_call_id"):
                values["tool_call_id"] = ids.setdefault(id, len(ids))
            response.append(values)
    return [*response, exchange.turn.resolved_model]


def _without_host(exchange: Exchange) -> Exchange:
    headers = {
        name: value for name, value in exchange.request.headers.items() if name.lower() != "host"
    }
    return changed(exchange, request=replace(exchange.request, headers=headers))
