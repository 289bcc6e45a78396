"""Llama Stack's recordings as exchanges."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace
from datetime import UTC, datetime

import llm

from ...core import chat
from ...core.fingerprints import request_key
from ...recorder.exchange import Exchange, Turn, begun
from .read import Recording, parse_recording

# Recordings have no times; this is how their own dates are normalised, alike everywhere.
RECORDED = datetime(1970, 1, 1, tzinfo=UTC)


def read_recording(data: bytes, key: str) -> Exchange | None:
    """Read a recording's file as an exchange; return None if it is not of a chat.

    key: the file's name without `.json`.

    Raises:
        InvalidRequest: as `parse_recording`.
    """
    return exchange_of(parse_recording(data, key))


def exchange_of(recording: Recording) -> Exchange | None:
    """Make an exchange of a Llama Stack recording, None where it is no chat.

    It has no times, and its id comes of its key alone. What the recording's `test_id` was
    is lost.
    """
    request = recording.request
    if request is None or recording.dialect is None:
        return None
    id = _id_of(recording.key)
    events = [(0.0, event) for event in recording.events if not isinstance(event, chat.Finish)]
    answer = chat.collect(recording.events)
    finish = None if recording.error else answer.finish
    turn = Turn(
        id=id,
        thread_id=id,
        model=request.model or "",
        messages=request.messages,
        reply=answer.messages,
        started=RECORDED,
        duration_ms=0,
        resolved_model=answer.finish.model,
        options=dict(request.options) or None,
        tools=request.tools,
        schema=request.schema,
        usage=llm.Usage(answer.finish.usage.input_tokens, answer.finish.usage.output_tokens),
        response_json=answer.finish.response_json,
    )
    exchange = begun(
        id,
        RECORDED,
        dialect=recording.dialect,
        path=recording.path,
        query="",
        client="llama-stack",
        headers=(),
        body=recording.body,
        stream=request.stream,
        model=request.model,
        messages=request.messages,
        replay_key=request_key(request),
    ).ended(
        "error" if recording.error else "ok",
        http_status=recording.error.status if recording.error else 200,
        duration_ms=0,
        turn=turn,
        events=events,
        finish=finish,
        error=recording.error.message if recording.error else None,
        ignored=request.ignored,
    )
    return replace(
        exchange, ttft_ms=None, first_text_ms=None, duration_ms=None, origin="llama-stack"
    )


def _id_of(key: str) -> str:
    """Give a recording's ULID: of 1970, so that it is older than all that was recorded here."""
    digest = hashlib.sha256(f"llama-stack/{key}".encode()).digest()[:10]
    # ULIDs have Crockford's digits, base32 its own.
    letters = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", "0123456789abcdefghjkmnpqrstvwxyz")
    return "0" * 10 + base64.b32encode(digest).decode().translate(letters)
