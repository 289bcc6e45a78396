"""Convert Llama Stack's recordings to exchanges."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import llm

from ...core import chat
from ...core.fingerprints import request_key
from ...recorder.exchange import Exchange, Turn, begun, with_answer, with_error
from .read import Recording, parse_recording

# Recordings have no times; Llama Stack normalises all dates in them to this one.
RECORDED = datetime(1970, 1, 1, tzinfo=UTC)


def read_recording(data: bytes, key: str) -> Exchange | None:
    """Read a recording's file as an exchange; return None if it is not of a chat.

    key: the file's name without `.json`.

    Raises:
        InvalidRequest: as `parse_recording`.
    """
    return to_exchange(parse_recording(data, key))


def to_exchange(recording: Recording) -> Exchange | None:
    """Convert a recording to an exchange; return None if it is not of a chat.

    The exchange has no times, and its id depends on the recording's key only. `test_id` is
    lost. A request that is refused here (`recording.refused`) has its body only; what answered
    it, mostly its provider's own refusal, is kept.
    """
    if recording.dialect is None:
        return None
    request = recording.request or _unread_request(recording.body)
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
        duration_ms=None,
        resolved_model=answer.finish.model,
        options=dict(request.options) or None,
        tools=request.tools,
        schema=request.schema,
        usage=llm.Usage(answer.finish.usage.input_tokens, answer.finish.usage.output_tokens),
        response_json=answer.finish.response_json,
    )
    was_run = recording.request is not None or recording.error is None
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
        replay_key=request_key(request) if recording.request else None,
    )
    ended = replace(
        exchange,
        status="error" if recording.error else "ok",
        http_status=recording.error.status if recording.error else 200,
        ignored=request.ignored,
        origin="llama-stack",
    )
    if recording.error:
        ended = with_error(ended, recording.error)
    answered = with_answer(ended, turn if was_run else None, events, finish, turn.reply)
    return replace(answered, ttft_ms=None, first_text_ms=None)


def _unread_request(body: Any) -> chat.ChatRequest:
    """Return what can be told of a request that the dialect refuses; its messages are not."""
    match body:
        case {"model": str(model)}:
            is_streamed = body.get("stream") is True
            return chat.ChatRequest(model, [], stream=is_streamed, ignored=("messages",))
    return chat.ChatRequest(None, [], ignored=("messages",))


def _id_of(key: str) -> str:
    """Return a recording's ULID, with the year 1970, so that it sorts before our own exchanges."""
    digest = hashlib.sha256(f"llama-stack/{key}".encode()).digest()[:10]
    # ULIDs use Crockford's digits, not those of base32.
    letters = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", "0123456789abcdefghjkmnpqrstvwxyz")
    return "0" * 10 + base64.b32encode(digest).decode().translate(letters)
