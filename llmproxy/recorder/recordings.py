"""Llama Stack's recordings: files of one request and its answer, read and written.

Llama Stack (today ogx) records what its tests ask of providers, and plays it again without
them. Here such a file becomes the hub's request and events, and an exchange becomes such
a file. Reading and writing the disk is left to the caller, as is which recording answers
what. They hold no times.

All generations are read: short names, hashed names, with and without `test_id` and
`id_normalization_mapping`; requests of the OpenAI SDK, passed-through HTTP, tools.

Spec: none that holds; the formats are those of the files in
https://github.com/meta-llama/llama-stack/tree/main/tests/integration
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import ParseResult, urlparse

from llm.parts import Part, ReasoningPart, StreamEvent, TextPart, ToolCallPart, ToolResultPart

from .. import hub, payload
from ..dialects import DIALECTS, Dialect, Parser, anthropic_messages, openai_chat
from ..errors import (
    Forbidden,
    InvalidRequest,
    ProxyError,
    Unavailable,
    Unsupported,
    UpstreamError,
    UpstreamTimeout,
    class_of_status,
)
from ..transport import framing
from .exchange import Exchange

__all__ = [
    "Recording",
    "parse_recording",
    "passthrough_hash",
    "recording_hash",
    "render_recording",
    "tool_hash",
]

MAX_MAPPED_CHARS = 64 * 2**20  # of the text with its ids replaced: as long as any body may be

Kind = Literal["chat", "models", "other"]


@dataclass(frozen=True)
class Recording:
    """One recording, as far as the hub has words for it.

    key: the file's name without its ending. It is never recomputed: a seventh of the files
        in the field have names that no known rule gives.
    path: of the URL that was asked, often `/v1/v1/chat/completions`; "" for a tool.
    request, dialect: None where it is no chat (embeddings, tools …).
    body: the request's, as recorded: `body`, `payload` or `kwargs`.
    events: the answer's, with their Finish last; empty for an error.
    error: the recorded failure as an error of the house, with its status and message.
    models: ids, where a list of models was asked for.
    """

    key: str
    test_id: str | None
    path: str
    request: hub.ChatRequest | None
    body: Any
    dialect: str | None
    events: list[hub.Event]
    error: ProxyError | None
    kind: Kind
    models: tuple[str, ...] = ()


# ---- the file's shapes


@dataclass(frozen=True)
class ExceptionData:
    category: str | None = None
    provider: str | None = None
    type: str | None = None
    message: str | None = None
    status_code: int | None = None
    body: Any = None


@dataclass(frozen=True)
class Response:
    """What was answered. Whether in a stream is told by the body, a list or not."""

    body: Any = None
    is_streaming: bool | None = None
    status: int | None = None
    is_exception: bool | None = None
    exception_data: ExceptionData | None = None
    exception_message: str | None = None


@dataclass(frozen=True)
class InferenceRequest:
    url: str
    method: str = "POST"
    body: Any = None


@dataclass(frozen=True)
class PassthroughRequest:
    url: str
    method: str
    payload: Any
    test_id: str | None = None


@dataclass(frozen=True)
class ToolRequest:
    tool_name: str
    provider: str | None = None
    kwargs: Any = None
    test_id: str | None = None


@dataclass(frozen=True)
class Mapped:
    id_normalization_mapping: dict[str, str] | None = None


@dataclass(frozen=True)
class File:
    request: dict[str, Any]
    response: Response
    test_id: str | None = None


# ---- reading


def parse_recording(text: str | bytes, key: str) -> Recording:
    """Read a recording's JSON text.

    key: its file's name without `.json`.

    A stream that brought an error has the error alone. Of a request, what is not
    carried stands in its `ignored`, as if it had come over the wire.

    Raises:
        InvalidRequest: it is no recording, or a damaged one, or of a chat that the
            dialect refuses (Unsupported: `n: 2`); `param` is the place in the file
            (`request.body.messages[0].role`, `response.body[3]`).
    """
    file = payload.load(File, _with_ids_replaced(text))
    asked = _asked(file.request)
    test_id = file.test_id if file.test_id is not None else asked.test_id
    dialect = asked.dialect
    request = None
    if dialect is not None:
        with _at(asked.place):
            request = dialect.parse_request(asked.body, {})
    events: list[hub.Event] = []
    models: tuple[str, ...] = ()
    error = _recorded_error(dialect or openai_chat, file.response)
    if error is None and dialect is not None:
        try:
            events = list(_answer(dialect, file.response.body))
        except _Failed as failed:
            error = failed.error
    elif error is None and asked.kind == "models":
        models = tuple(dict.fromkeys(_model_ids(file.response.body)))
    return Recording(
        key=key,
        test_id=test_id,
        path=asked.path,
        request=request,
        body=asked.body,
        dialect=None if dialect is None else dialect.NAME,
        events=events,
        error=error,
        kind=asked.kind,
        models=models,
    )


def _with_ids_replaced(text: str | bytes) -> Any:
    """Give the JSON value of the text, in which each id that was mapped is the one it maps to."""
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    form = _json(data)
    mapping = payload.load(Mapped, form).id_normalization_mapping or {}
    place = "id_normalization_mapping"
    if "" in mapping:
        raise InvalidRequest("expected an id, got an empty string", param=place)
    # As they stand in the text. At once and the longest first: no id is replaced in another.
    names = {_inside(old): _inside(new) for old, new in mapping.items() if old != new}
    if not names:
        return form
    length = len(data)

    def replaced(match: re.Match[str]) -> str:
        nonlocal length
        name = names[match[0]]
        length += max(0, len(name) - len(match[0]))
        if length > MAX_MAPPED_CHARS:
            raise InvalidRequest(f"ids grow the text beyond {MAX_MAPPED_CHARS} bytes", param=place)
        return name

    pattern = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    return _json(re.sub(pattern, replaced, data.decode("utf-8-sig")).encode())


def _json(data: bytes) -> Any:
    try:
        return payload.parse(data)
    except InvalidRequest as exc:
        raise InvalidRequest(f"the recording can't be read: {exc.message}") from None


def _inside(text: str) -> str:
    return payload.encode_string(text)[1:-1]


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Put the place in the file before the path of what a dialect found wrong there."""
    try:
        yield
    except InvalidRequest as exc:
        param = f"{place}.{exc.param}" if exc.param else place
        raise type(exc)(exc.message, param=param) from exc
    except ProxyError as exc:
        raise InvalidRequest(exc.message, param=place) from exc


# By the end of the path: base URLs have paths of their own.
_CHATS: tuple[tuple[str, Dialect], ...] = (
    ("/chat/completions", openai_chat),
    ("/v1/messages", anthropic_messages),
)
_MODEL_LISTS = ("/models", "/api/tags")


@dataclass(frozen=True)
class _Asked:
    """What the three shapes of a request have in common; `place` is where the body stands."""

    path: str
    body: Any
    place: str
    method: str = ""
    test_id: str | None = None

    @property
    def dialect(self) -> Dialect | None:
        if self.method.upper() != "POST":
            return None
        return next((chat for end, chat in _CHATS if self.path.endswith(end)), None)

    @property
    def kind(self) -> Kind:
        if self.dialect is not None:
            return "chat"
        return "models" if self.path.endswith(_MODEL_LISTS) else "other"


def _asked(request: dict[str, Any]) -> _Asked:
    with _at("request"):
        if "tool_name" in request:
            tool = payload.load(ToolRequest, request)
            return _Asked("", tool.kwargs, "request.kwargs", test_id=tool.test_id)
        if "payload" in request:
            http = payload.load(PassthroughRequest, request)
            path = _split(http.url).path
            return _Asked(path, http.payload, "request.payload", http.method, http.test_id)
        inference = payload.load(InferenceRequest, request)
        path = _split(inference.url).path
        return _Asked(path, inference.body, "request.body", inference.method)


def _split(url: str) -> ParseResult:
    try:
        return urlparse(url)
    except ValueError:
        raise InvalidRequest("expected a URL", param="url") from None


class _Failed(Exception):
    """The recorded answer is an error."""

    def __init__(self, error: ProxyError) -> None:
        self.error = error


def _recorded_error(dialect: Dialect, response: Response) -> ProxyError | None:
    """Read an exception, or a status that says that the body is an error."""
    if response.is_exception:
        data = response.exception_data or ExceptionData()
        status = data.status_code or 0
        read = dialect.parse_error(status if 400 <= status < 600 else 0, data.body)
        kind = type(read)
        if kind is UpstreamError and read.status == UpstreamError.status:
            kind = _BY_EXCEPTION.get(data.type or "", UpstreamError)
        message = data.message or response.exception_message or read.message
        status_read = read.status if kind is type(read) else None
        return kind(message, param=read.param, code=read.code, status=status_read)
    if response.status is not None and 400 <= response.status < 600:
        body = response.body
        if isinstance(body, list) and all(isinstance(line, str) for line in body):
            body = _json_or_text("\n".join(body))
        return dialect.parse_error(response.status, _data(body))
    return None


# Exceptions without a status: Python's own, and those of SDKs that never got an answer.
_BY_EXCEPTION: Mapping[str, type[ProxyError]] = {
    "ValueError": InvalidRequest,
    "NotImplementedError": Unsupported,
    "PermissionError": Forbidden,
    "TimeoutError": UpstreamTimeout,
    "APITimeoutError": UpstreamTimeout,
    "ConnectionError": Unavailable,
    "APIConnectionError": Unavailable,
}


def _json_or_text(text: str) -> Any:
    try:
        return payload.parse(text.encode())
    except InvalidRequest:
        return text


def _data(item: Any) -> Any:
    """Take a dumped object's fields; its class is a name, and is never imported."""
    match item:
        case {"__type__": _, "__data__": data}:
            return data
    return item


# ---- answers


def _answer(dialect: Dialect, body: Any) -> Iterator[hub.Event]:
    """Give the events of an answer, streamed or whole, until its Finish.

    Raises:
        _Failed: it is an error.
    """
    if isinstance(body, list):
        yield from _streamed(dialect, body)
        return
    body = _data(body)
    _refuse_error(dialect, body)
    with _at("response.body"):
        yield from _events_of(dialect.parse_response(body))


def _streamed(dialect: Dialect, items: list[Any]) -> Iterator[hub.Event]:
    parser, feed = _new_parser(dialect)
    for place, value in _values(items):
        _refuse_error(dialect, value)
        with _at(place):
            events = feed(value)
        yield from events
        if events and isinstance(events[-1], hub.Finish):
            return
    with _at("response.body"):
        yield from parser.end()


def _new_parser(dialect: Dialect) -> tuple[Parser, Callable[[Any], list[hub.Event]]]:
    if dialect is openai_chat:
        chunks = openai_chat.StreamParser()
        return chunks, chunks.feed_chunk
    events = anthropic_messages.StreamParser()
    return events, events.feed_event


def _values(items: list[Any]) -> Iterator[tuple[str, Any]]:
    """Give each chunk with its place: dumped objects, plain ones, or the lines of SSE."""
    decoder = framing.SSEDecoder()
    place = "response.body"
    for i, item in enumerate([*items, ""]):  # the last event's blank line may be missing
        if item != "":
            place = f"response.body[{i}]"
        if not isinstance(item, str):
            yield place, _data(item)
            continue
        with _at(place):
            frames = decoder.feed(item.encode() + b"\n")
        for frame in frames:
            if frame.data.strip() == "[DONE]":
                return
            if frame.data.strip():
                with _at(place):
                    value = payload.parse(frame.data.encode())
                yield place, value


def _refuse_error(dialect: Dialect, value: Any) -> None:
    if isinstance(value, dict) and (value.get("error") or value.get("type") == "error"):
        raise _Failed(dialect.parse_error(0, value))


def _events_of(answer: hub.ChatResponse) -> Iterator[hub.Event]:
    """Give a whole answer as events, one part at a time."""
    parts = [(i, part) for i, message in enumerate(answer.messages) for part in message.parts]
    for index, (message_index, part) in enumerate(parts):
        for event in _part_events(part, answer.raw_arguments):
            event.part_index = index
            event.message_index = message_index
            yield event
    yield answer.finish


def _part_events(part: Part, raw_arguments: Mapping[str, str]) -> Iterator[StreamEvent]:
    match part:
        case TextPart():
            yield StreamEvent("text", part.text, provider_metadata=part.provider_metadata)
        case ReasoningPart():
            yield StreamEvent(
                "reasoning",
                part.text,
                redacted=part.redacted,
                provider_metadata=part.provider_metadata,
            )
        case ToolCallPart():
            id_, server_executed = part.tool_call_id, part.server_executed
            yield StreamEvent(
                "tool_call_name",
                part.name,
                tool_call_id=id_,
                server_executed=server_executed,
                provider_metadata=part.provider_metadata,
            )
            raw = raw_arguments.get(id_ or "", "")
            if hub.parse_arguments(raw) != part.arguments:  # another call has the same id
                raw = payload.encode(part.arguments).decode()
            yield StreamEvent(
                "tool_call_args", raw, tool_call_id=id_, server_executed=server_executed
            )
        case ToolResultPart():
            yield StreamEvent(
                "tool_result",
                part.output,
                tool_call_id=part.tool_call_id,
                server_executed=part.server_executed,
                tool_name=part.name,
                provider_metadata=part.provider_metadata,
            )


def _model_ids(body: Any) -> Iterator[str]:
    """Give the ids of a list of models: OpenAI's, Ollama's, or the SDK's objects one by one."""
    place = "response.body"
    match _data(body):
        case {"data": list(items)}:
            place += ".data"
        case {"models": list(items)}:
            place += ".models"
        case list(items):
            pass
        case _:
            raise InvalidRequest("expected a list of models", param=place)
    for i, item in enumerate(items):
        match _data(item):
            case {"id": str(id_)} | {"model": str(id_)} | {"name": str(id_)}:
                yield id_
            case _:
                raise InvalidRequest("expected a model with its id", param=f"{place}[{i}]")


# ---- names


_SHARED_PATHS = ("/api/tags", "/v1/models", "/v1/openai/v1/models")  # alike for all tests
# `-?\d+\.\d{4,}`, but begun at the start of a run of digits alone: no time that squares.
_LONG_DECIMAL = re.compile(r"(?:-|(?<!\d))\d+\.\d{4,}")


def recording_hash(method: str, url: str, body: Any, test_id: str | None) -> str:
    """Give the name of a recording of inference, as Llama Stack computes it.

    Floats are rounded to five places, also inside of strings; `test_id` counts, None
    too, but for lists of models. Newer versions also replace the scores, attributes and
    document ids which their own file search writes into messages; by which words is not
    known to us, so such names are those of the versions before.

    Raises:
        InvalidRequest: the URL is none.
    """
    address = _split(url)
    if isinstance(body, dict):
        body = _without_project(body)
        if "bedrock" in address.netloc:
            body.pop("stream_options", None)
    hashed = {"method": method.upper(), "endpoint": address.path, "body": _normalised(body)}
    if address.path not in _SHARED_PATHS:
        hashed["test_id"] = test_id
    return _sha256(hashed)


def passthrough_hash(method: str, url: str, body: Any, test_id: str | None) -> str:
    """Give the name of a recording of passed-through HTTP: here the whole URL counts."""
    hashed = {"test_id": test_id, "url": url, "method": method, "payload": _normalised(body)}
    return _sha256(hashed)


def tool_hash(provider: str, tool_name: str, kwargs: Any) -> str:
    """Give the name of a recording of a tool's run: arguments as they are, for any test."""
    return _sha256({"provider": provider, "tool_name": tool_name, "kwargs": kwargs})


def _sha256(value: dict[str, Any]) -> str:
    # json's own spaces and escapes: they are part of the name.
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _without_project(body: dict[str, Any]) -> dict[str, Any]:
    """Copy the body without the project that some clients name in it."""
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
            return _LONG_DECIMAL.sub(lambda match: f"{float(match[0]):.5f}", value)
    return value


# ---- writing

ENDPOINT = "/v1/chat/completions"

# As the OpenAI SDK puts it together for who has our address, with its /v1, as base URL.
# Of it only the path counts for the name.
URL = f"http://127.0.0.1:11435/v1{ENDPOINT}"


def render_recording(exchange: Exchange, *, test_id: str | None = None) -> tuple[str, str]:
    """Write an exchange as the recording that Llama Stack would have made of it.

    Gives the file's name and its text, in the newest form. Llama Stack's recorder has chats
    of OpenAI's wire alone: an exchange of another is written as the chat completion that
    the same conversation would be. Where a stream was not asked for its usage, the counts
    stand on its last chunk, so that none has no choices. Lost are times, headers, and what
    OpenAI's wire has no place for (signatures, server tools, which stop sequence it was).
    An error that came within a stream has no status, and nothing of what came before it.

    Raises:
        InvalidRequest: not a chat, or one without an end: running, or cut short.
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


def _chat_body(exchange: Exchange) -> dict[str, Any]:
    """Give the request's body as OpenAI's: the client's own, where that is its wire."""
    dialect = next((dialect for dialect in DIALECTS if dialect.NAME == exchange.dialect), None)
    chats = [route.path for route in dialect.ROUTES if route.kind == "chat"] if dialect else []
    body = exchange.request.body
    if dialect is None or exchange.path not in chats:
        raise InvalidRequest("only chats are written as recordings", param="path")
    if not isinstance(body, dict):
        raise InvalidRequest("expected an object", param="request.body")
    if dialect is openai_chat:
        return body
    with _at("request.body"):
        asked = dialect.parse_request(body, exchange.request.headers)
    return openai_chat.render_request(asked)[0]


def _response(exchange: Exchange, body: dict[str, Any], id_: str) -> dict[str, Any]:
    if exchange.status == "error":
        return _exception(exchange)
    finish = exchange.finish
    if exchange.status != "ok" or finish is None:
        raise InvalidRequest(
            f"only an answer that came to its end is a recording; this one is {exchange.status!r}",
            param="status",
        )
    events: list[hub.Event] = [*(event for _, event in exchange.events), finish]
    request = hub.ChatRequest(
        finish.model or exchange.model_used or exchange.model_asked,
        [],
        stream=exchange.stream,
        wire={"include_usage": True},
    )
    if not exchange.stream:
        answer = openai_chat.render_response(request, hub.collect(events), "", 0)
        return {"body": _completion(answer, id_), "is_streaming": False}
    chunks = _chunks(request, events)
    match body:
        case {"stream_options": {"include_usage": True}}:
            pass
        case _:
            usage = chunks.pop()["usage"]
            chunks[-1]["usage"] = usage
    return {"body": [_chunk(chunk, id_) for chunk in chunks], "is_streaming": True}


def _chunks(request: hub.ChatRequest, events: list[hub.Event]) -> list[dict[str, Any]]:
    """Render the stream, its usage in a chunk of its own at the end."""
    renderer = openai_chat.StreamRenderer(request, "", 0)
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
            "delta": _said(_DELTA, choice["delta"], _DELTA_CALL),
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
            "message": _said(_MESSAGE, choice["message"], _MESSAGE_CALL),
        }
        for choice in answer["choices"]
    ]
    data = _COMPLETION | answer | {"id": id_, "choices": choices, "usage": _usage(answer["usage"])}
    return _typed("openai.types.chat.chat_completion.ChatCompletion", data)


def _typed(type_: str, data: dict[str, Any]) -> dict[str, Any]:
    return {"__type__": type_, "__data__": data}


def _said(
    nulls: Mapping[str, None], said: dict[str, Any], call_nulls: Mapping[str, None]
) -> dict[str, Any]:
    """Fill a delta or message, and the calls in it."""
    filled = {**nulls, **said}
    if filled["tool_calls"] is not None:
        filled["tool_calls"] = [
            {**call_nulls, **call, "function": {**_FUNCTION, **call["function"]}}
            for call in filled["tool_calls"]
        ]
    return filled


def _usage(usage: dict[str, Any] | None) -> dict[str, Any] | None:
    if usage is None:
        return None
    details = {
        name: {**nulls, **usage[name]} if name in usage else None
        for name, nulls in _USAGE_DETAILS.items()
    }
    return {**_USAGE, **usage, **details}


def _exception(exchange: Exchange) -> dict[str, Any]:
    """Write an error as what the OpenAI SDK raises of it."""
    status = exchange.http_status
    if status is not None and status < 400:  # it came within the stream
        status = None
    message = exchange.error or "the upstream failed, without saying why"
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
