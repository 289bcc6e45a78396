"""Render an exchange as the recording that Llama Stack would have made of it.

Writes the newest format, with the name that Llama Stack would give to the file; read.py reads
it. Nothing here touches the disk.

Spec: none that holds; the formats are those of the files in
https://github.com/meta-llama/llama-stack/tree/main/tests/integration
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlparse

from ...core import chat
from ...core.backend import CHAT_KINDS
from ...core.errors import InvalidRequest, UpstreamError, class_of_status
from ...dialects import DIALECTS, Dialect, openai_chat
from ...recorder.exchange import Exchange
from ...transport import framing

# ---- names


_SHARED_PATHS = ("/api/tags", "/v1/models", "/v1/openai/v1/models")  # the same for all tests
_SOME = "__NORMALIZED__"
_UUID = "-".join(f"[0-9a-f]{{{length}}}" for length in (8, 4, 4, 4, 12))
_SCORE = re.compile(r"score:\s*[-+]?(?:(?:\d*\.)?\d+)(?:[eE][-+]?\d+)?")
# Starts only at a comma or at the beginning of white space, so that it takes linear time.
_ATTRIBUTES = re.compile(r"(?:,\s*|(?<!\s)\s*)attributes:\s*\{[^}]*+(?:\}|\Z)")
_DOCUMENT = re.compile(rf"document_id:\s*{_UUID}")
_CITATION = re.compile(rf"<\|{_UUID}\|>")
# `-?\d+\.\d{4,}`, but starts only at the beginning of digits, so that it takes linear time.
_LONG_DECIMAL = re.compile(r"(?:-|(?<!\d))\d+\.\d{4,}")


def recording_hash(method: str, url: str, body: Any, test_id: str | None) -> str:
    """Return the name of a recording, computed as Llama Stack does.

    Floats are rounded to five places, even inside strings. `test_id` is part of the hash, even
    if it is None, except for lists of models. What changes with every run of Llama Stack's own
    file search is left out: scores, attributes, document ids, citations.

    Raises:
        ValueError: the URL is invalid.
    """
    address = urlparse(url)
    if isinstance(body, dict):
        body = _without_project(body)
        if "bedrock" in address.netloc:
            body.pop("stream_options", None)
    hashed = {"method": method.upper(), "endpoint": address.path, "body": _normalised(body)}
    if address.path not in _SHARED_PATHS:
        hashed["test_id"] = test_id
    return _sha256(hashed)


def _sha256(value: dict[str, Any]) -> str:
    # With json's own spaces and escapes, which affect the name.
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _without_project(body: dict[str, Any]) -> dict[str, Any]:
    """Copy the body without the project id that some clients send."""
    extras = {
        name: {key: value for key, value in extra.items() if key != "project_id"}
        for name in ("extra_body", "extra_query")
        if isinstance(extra := body.get(name), dict)
    }
    return body | extras


def _normalised(value: Any) -> Any:
    match value:
        case dict():
            return {key: _normalised(item) for key, item in value.items()}
        case list():
            return [_normalised(item) for item in value]
        case float():
            return round(value, 5)
        case str():
            return _LONG_DECIMAL.sub(
                lambda match: f"{float(match[0]):.5f}", _without_search_results(value)
            )
    return value


def _without_search_results(text: str) -> str:
    """Remove what file search writes differently each time."""
    text = _SCORE.sub(f"score: {_SOME}", text)
    end = text.rfind("}") + 1  # an unclosed brace is searched for only once
    text = _ATTRIBUTES.sub("", text[:end]) + text[end:]
    text = _DOCUMENT.sub(f"document_id: {_SOME}", text)
    return _CITATION.sub(f"<|{_SOME}|>", text)


# ---- writing

ENDPOINT = "/v1/chat/completions"

# As the OpenAI SDK builds it for our address, with /v1, as base URL. Only the path affects
# the file's name.
URL = f"http://127.0.0.1:11435/v1{ENDPOINT}"


def render_recording(exchange: Exchange, *, test_id: str | None = None) -> tuple[str, str]:
    """Render an exchange as the recording that Llama Stack would have made of it.

    Returns the file's name and its text, in the newest format. Llama Stack only records OpenAI
    chats: an exchange of another API is rendered as the same conversation in that API. If a
    stream's usage was not requested, the counts are in its last chunk, so that every chunk has
    choices. Lost are times, headers, and what OpenAI's API can't carry (signatures, server
    tools, the stop sequence). An error within a stream has no status, and loses the events
    before it.

    Raises:
        InvalidRequest: not a chat, or not finished.
    """
    body = _chat_body(exchange)
    hash_ = recording_hash("POST", URL, body, test_id)
    model = body.get("model")
    form = {
        "test_id": test_id,
        "request": {
            "method": "POST",
            "url": URL,
            "headers": {},
            "body": body,
            "endpoint": ENDPOINT,
            "model": model if isinstance(model, str) else "",
        },
        "response": _response(exchange, body, f"rec-{hash_[:12]}"),
        "id_normalization_mapping": {},
    }
    return f"{hash_}.json", json.dumps(form, indent=2) + "\n"


_CHATS: Mapping[tuple[str, str], Dialect] = {
    (dialect.NAME, route.path): dialect
    for dialect in DIALECTS
    for route in dialect.ROUTES
    if route.kind in CHAT_KINDS
}


def _chat_body(exchange: Exchange) -> dict[str, Any]:
    """Give the request's body as OpenAI's: the client's own, where that is its wire."""
    dialect = _CHATS.get((exchange.dialect, exchange.path))
    body = exchange.request.body
    if dialect is None:
        raise InvalidRequest("only chats are written as recordings", param="path")
    if not isinstance(body, dict):
        raise InvalidRequest("expected an object", param="request.body")
    if dialect.NAME == openai_chat.NAME and "messages" in body:
        return body
    asked = dialect.parse_request(body, exchange.request.headers)
    return openai_chat.render_request(asked)[0]


def _response(exchange: Exchange, body: dict[str, Any], id_: str) -> dict[str, Any]:
    if exchange.status == "error":
        return _exception(exchange)
    finish = exchange.finish
    if exchange.status != "ok" or finish is None:
        raise InvalidRequest(
            f"only a finished response can be a recording; this one is {exchange.status!r}",
            param="status",
        )
    events: list[chat.Event] = [*(event for _, event in exchange.events), finish]
    model = finish.model or exchange.model_used or exchange.model_asked
    envelope = chat.Envelope("", 0, model or "")
    if not exchange.stream:
        answer = openai_chat.render_response(chat.collect(events), envelope)
        return {"body": _completion(answer, id_), "is_streaming": False}
    chunks = _chunks(envelope, events)
    match body:
        case {"stream_options": {"include_usage": True}}:
            pass
        case _:
            usage = chunks.pop()["usage"]
            chunks[-1]["usage"] = usage
    return {"body": [_chunk(chunk, id_) for chunk in chunks], "is_streaming": True}


def _chunks(envelope: chat.Envelope, events: list[chat.Event]) -> list[dict[str, Any]]:
    """Render the stream, its usage in a chunk of its own at the end."""
    renderer = openai_chat.StreamRenderer(envelope)
    frames = renderer.start() + [frame for event in events for frame in renderer.feed(event)]
    decoded = framing.SSEDecoder().feed(b"".join(frames))
    return [json.loads(frame.data) for frame in decoded if frame.data != "[DONE]"]


# The OpenAI SDK's fields in its order, as `model_dump(mode="json")` has them (3.54.0).
_CHUNK = dict.fromkeys(
    "id choices created model object moderation obfuscation service_tier system_fingerprint"
    " usage".split()
)
_COMPLETION = dict.fromkeys(
    "id choices created model object metadata moderation service_tier system_fingerprint"
    " usage".split()
)
_DELTA = dict.fromkeys("audio content function_call refusal role tool_calls".split())
_DELTA_CALL = dict.fromkeys("index id function type".split())
_MESSAGE = dict.fromkeys("content refusal role annotations audio function_call tool_calls".split())
_MESSAGE_CALL = dict.fromkeys("id function type".split())
_FUNCTION = dict.fromkeys("arguments name".split())
_USAGE = dict.fromkeys(
    "completion_tokens prompt_tokens total_tokens completion_tokens_details"
    " prompt_tokens_details".split()
)
_USAGE_DETAILS = {
    "completion_tokens_details": dict.fromkeys(
        "accepted_prediction_tokens audio_tokens reasoning_tokens rejected_prediction_tokens"
        " text_tokens".split()
    ),
    "prompt_tokens_details": dict.fromkeys(
        "audio_tokens cache_write_tokens cached_tokens image_tokens text_tokens".split()
    ),
}


def _chunk(chunk: dict[str, Any], id_: str) -> dict[str, Any]:
    choices = [
        {
            "delta": _with_nulls(_DELTA, choice["delta"], _DELTA_CALL),
            "index": choice["index"],
            "finish_reason": choice["finish_reason"],
            "logprobs": None,
        }
        for choice in chunk["choices"]
    ]
    data = _CHUNK | chunk | {"id": id_, "choices": choices, "usage": _usage(chunk["usage"])}
    return _typed("openai.types.chat.chat_completion_chunk.ChatCompletionChunk", data)


def _completion(answer: dict[str, Any], id_: str) -> dict[str, Any]:
    choices = [
        {
            "finish_reason": choice["finish_reason"],
            "index": choice["index"],
            "logprobs": None,
            "message": _with_nulls(_MESSAGE, choice["message"], _MESSAGE_CALL),
        }
        for choice in answer["choices"]
    ]
    data = _COMPLETION | answer | {"id": id_, "choices": choices, "usage": _usage(answer["usage"])}
    return _typed("openai.types.chat.chat_completion.ChatCompletion", data)


def _typed(type_: str, data: dict[str, Any]) -> dict[str, Any]:
    return {"__type__": type_, "__data__": data}


def _with_nulls(
    nulls: Mapping[str, None], values: dict[str, Any], call_nulls: Mapping[str, None]
) -> dict[str, Any]:
    """Add the missing fields of a delta or message, and of its tool calls."""
    complete = {**nulls, **values}
    if complete["tool_calls"] is not None:
        complete["tool_calls"] = [
            {**call_nulls, **call, "function": {**_FUNCTION, **call["function"]}}
            for call in complete["tool_calls"]
        ]
    return complete


def _usage(usage: dict[str, Any] | None) -> dict[str, Any] | None:
    if usage is None:
        return None
    details = {
        name: {**nulls, **usage[name]} if name in usage else None
        for name, nulls in _USAGE_DETAILS.items()
    }
    return {**_USAGE, **usage, **details}


def _exception(exchange: Exchange) -> dict[str, Any]:
    """Render an error as the exception that the OpenAI SDK raises for it."""
    status = exchange.http_status
    if status is not None and status < 400:  # the error was in the stream
        status = None
    message = exchange.error or "the upstream failed without a message"
    error = class_of_status(status or UpstreamError.status)(message)
    return {
        "body": None,
        "is_exception": True,
        "exception_data": {
            "category": "provider_sdk",
            "provider": "openai",
            "type": _sdk_exception(status),
            "message": message,
            "status_code": status,
            "body": openai_chat.render_error(error)["error"],
        },
        "exception_message": message,
    }


def _sdk_exception(status: int | None) -> str:
    if status is None:
        return "APIError"
    return _SDK_EXCEPTIONS.get(status, "InternalServerError" if status >= 500 else "APIStatusError")


_SDK_EXCEPTIONS: Mapping[int, str] = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    409: "ConflictError",
    422: "UnprocessableEntityError",
    429: "RateLimitError",
}
