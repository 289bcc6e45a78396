"""Parse Llama Stack's recordings: files with one request and its response.

Llama Stack (now ogx) records its tests' requests to providers, and replays them without these.
Such a file is parsed to a request and events; write.py is the reverse. Nothing here touches
the disk or decides which recording answers a request. Recordings have no times.

All versions of the format are read: short names, hashed names, with and without `test_id` and
`id_normalization_mapping`; requests of the OpenAI SDK, passed-through HTTP, tools.

Spec: none that holds; the formats are those of the files in
https://github.com/meta-llama/llama-stack/tree/main/tests/integration
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import ParseResult, urlparse

from ...core import chat, payload
from ...core.errors import (
    Forbidden,
    InvalidRequest,
    ProxyError,
    Unavailable,
    Unsupported,
    UpstreamError,
    UpstreamTimeout,
)
from ...core.response_events import events_of
from ...dialects import Dialect, anthropic_messages, openai_chat
from ...transport import framing

MAX_MAPPED_CHARS = 64 * 2**20  # of the text after replacing ids; the limit of any body

Kind = Literal["chat", "models", "other"]


@dataclass(frozen=True)
class Recording:
    """A recording in the common format, as far as that can express it.

    key: the file's name without its ending. It is never recomputed: a seventh of the existing
        files have names that follow no known rule.
    path: the path of the request's URL, often `/v1/v1/chat/completions`; "" for a tool.
    request, dialect: None if it is not a chat (embeddings, tools …).
    refused: why the dialect refuses a chat's request, which is None then: its provider may
        have refused it too (an image that is none, a tool's result without its call).
    body: the recorded request: `body`, `payload` or `kwargs`.
    events: the response's, with the Finish last; empty for an error.
    error: the recorded failure, with its status and message.
    models: ids, if it is a list of models.
    """

    key: str
    test_id: str | None
    path: str
    request: chat.ChatRequest | None
    body: Any
    dialect: str | None
    events: list[chat.Event]
    error: ProxyError | None
    kind: Kind
    models: tuple[str, ...] = ()
    refused: InvalidRequest | None = None


# ---- the file's schema


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
    """The response. It was streamed if its body is a list."""

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
    """Parse a recording's JSON text.

    key: its file's name without `.json`.

    A stream with an error is parsed to the error only. What the common format can't carry of
    a request is in its `ignored`, as for a request that was received.

    Raises:
        InvalidRequest: not a recording, or damaged; `param` is the place in the file
            (`request.url`, `response.body[3]`).
    """
    file = payload.load(File, _with_ids_replaced(text))
    recorded = _recorded_request(file.request)
    test_id = file.test_id if file.test_id is not None else recorded.test_id
    dialect = recorded.dialect
    request = refused = None
    if dialect is not None:
        try:
            with _at(recorded.place):
                request = dialect.parse_request(recorded.body, {})
        except InvalidRequest as exc:
            refused = exc
    events: list[chat.Event] = []
    models: tuple[str, ...] = ()
    error = _recorded_error(dialect or openai_chat, file.response)
    if error is None and dialect is not None:
        try:
            events = list(_response(dialect, file.response.body))
        except _Failed as failed:
            error = failed.error
    elif error is None and recorded.kind == "models":
        models = tuple(dict.fromkeys(_model_ids(file.response.body)))
    return Recording(
        key=key,
        test_id=test_id,
        path=recorded.path,
        request=request,
        body=recorded.body,
        dialect=None if dialect is None else dialect.NAME,
        events=events,
        error=error,
        kind=recorded.kind,
        models=models,
        refused=refused,
    )


def _with_ids_replaced(text: str | bytes) -> Any:
    """Return the text's JSON value, with each id replaced by the one that it is mapped to."""
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    form = _json(data)
    mapping = payload.load(Mapped, form).id_normalization_mapping or {}
    place = "id_normalization_mapping"
    if "" in mapping:
        raise InvalidRequest("expected an id, got an empty string", param=place)
    # As written in the text. All at once, longest first, so that none is replaced in another.
    names = {_inside(old): _inside(new) for old, new in mapping.items() if old != new}
    if not names:
        return form
    length = len(data)

    def replaced(match: re.Match[str]) -> str:
        nonlocal length
        name = names[match[0]]
        length += max(0, len(name) - len(match[0]))
        if length > MAX_MAPPED_CHARS:
            raise InvalidRequest(
                f"replacing ids makes the text longer than {MAX_MAPPED_CHARS} bytes", param=place
            )
        return name

    pattern = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    return _json(re.sub(pattern, replaced, data.decode("utf-8-sig")).encode())


def _json(data: bytes) -> Any:
    try:
        return payload.parse(data, name="it")
    except InvalidRequest as exc:
        raise InvalidRequest(f"the recording can't be read: {exc.message}") from None


def _inside(text: str) -> str:
    return payload.encode_string(text)[1:-1]


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Prefix the paths in a dialect's errors with the place in the file."""
    try:
        yield
    except InvalidRequest as exc:
        param = f"{place}.{exc.param}" if exc.param else place
        raise type(exc)(exc.message, param=param) from exc
    except ProxyError as exc:
        raise InvalidRequest(exc.message, param=place) from exc


# By the end of the path, since base URLs may have paths.
_CHATS: tuple[tuple[str, Dialect], ...] = (
    ("/chat/completions", openai_chat),
    ("/v1/messages", anthropic_messages),
)
_MODEL_LISTS = ("/models", "/api/tags")


@dataclass(frozen=True)
class _RecordedRequest:
    """The fields common to all kinds of requests; `place` is the body's in the file."""

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


def _recorded_request(request: dict[str, Any]) -> _RecordedRequest:
    with _at("request"):
        if "tool_name" in request:
            tool = payload.load(ToolRequest, request)
            return _RecordedRequest("", tool.kwargs, "request.kwargs", test_id=tool.test_id)
        if "payload" in request:
            http = payload.load(PassthroughRequest, request)
            path = _split(http.url).path
            return _RecordedRequest(
                path, http.payload, "request.payload", http.method, http.test_id
            )
        inference = payload.load(InferenceRequest, request)
        path = _split(inference.url).path
        return _RecordedRequest(path, inference.body, "request.body", inference.method)


def _split(url: str) -> ParseResult:
    try:
        return urlparse(url)
    except ValueError:
        raise InvalidRequest("expected a URL", param="url") from None


class _Failed(Exception):
    """The recorded response is an error."""

    def __init__(self, error: ProxyError) -> None:
        self.error = error


def _recorded_error(dialect: Dialect, response: Response) -> ProxyError | None:
    """Parse an exception, or a body whose status marks it as an error."""
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


# Exceptions without a status: Python's own, and those of SDKs without a response.
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
    """Return a dumped object's fields; its class is only a name and is never imported."""
    match item:
        case {"__type__": _, "__data__": data}:
            return data
    return item


# ---- responses


def _response(dialect: Dialect, body: Any) -> Iterator[chat.Event]:
    """Yield the events of a response, streamed or not, up to its Finish.

    Raises:
        _Failed: the response is an error.
    """
    if isinstance(body, list):
        yield from _streamed(dialect, body)
        return
    body = _data(body)
    _refuse_error(dialect, body)
    with _at("response.body"):
        yield from events_of(dialect.parse_response(body))


def _streamed(dialect: Dialect, items: list[Any]) -> Iterator[chat.Event]:
    parser = dialect.StreamParser()
    for place, value in _values(items):
        _refuse_error(dialect, value)
        with _at(place):
            events = parser.feed_value(value)
        yield from events
        if events and isinstance(events[-1], chat.Finish):
            return
    with _at("response.body"):
        yield from parser.end()


def _values(items: list[Any]) -> Iterator[tuple[str, Any]]:
    """Yield each chunk with its place: dumped objects, plain ones, or lines of SSE."""
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
                    value = payload.parse(frame.data.encode(), name="it")
                yield place, value


def _refuse_error(dialect: Dialect, value: Any) -> None:
    if isinstance(value, dict) and (value.get("error") or value.get("type") == "error"):
        raise _Failed(dialect.parse_error(0, value))


def _model_ids(body: Any) -> Iterator[str]:
    """Yield the ids of a list of models: OpenAI's, Ollama's, or the SDK's objects one by one."""
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
