"""Correct what servers stream before llm's OpenAI plugin reads it.

The plugin takes a stream's chunks as OpenAI's own servers send them: it reads a tool's name
from a call's first chunk only, takes an error page for an empty answer, and ignores that a
response failed. What it has dropped nobody can restore afterwards. So its client gets streams
whose chunks are in order. No SDK is imported: the objects are those that it made.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, Protocol

from ...core import payload
from ...core.error_meanings import error_fields, read_error
from ...core.errors import InvalidRequest, ProxyError, UpstreamError
from ...dialects import openai_chat

MAX_BODY_BYTES = 64 * 2**10  # of an error in place of a stream

_CLASSES = frozenset({"Chat", "AsyncChat", "Responses", "AsyncResponses"})
_NO_STREAMS = ("application/json", "text/html")  # other wrong types are read anyway


def with_corrected_streams(model: Any) -> Any:
    """Return a copy of an OpenAI model whose streams are corrected, any other model itself.

    A stream then raises a ProxyError where the server reported a failure in a way that the
    plugin ignores, or where it ended before the response did.
    """
    if not any(cls.__name__ in _CLASSES for cls in type(model).__mro__):
        return model
    corrected = copy.copy(model)

    def get_client(*arguments: Any, **named: Any) -> Any:
        client = model.get_client(*arguments, **named)
        _correct(client.chat.completions, _Chunks)
        _correct(client.responses, _ResponseEvents)
        return client

    corrected.get_client = get_client
    return corrected


class _Corrector(Protocol):
    """Takes a stream's items one by one; `feed` and `end` return those for the plugin."""

    def feed(self, item: Any) -> list[Any]: ...
    def end(self) -> list[Any]: ...


def _correct(resource: Any, corrector: Callable[[Any], _Corrector]) -> None:
    """Have a resource's `create` return corrected streams, also if its client is kept."""
    create = resource.create
    if getattr(create, "is_corrected", False):
        return

    def corrected(*arguments: Any, **named: Any) -> Any:
        made = create(*arguments, **named)
        if not named.get("stream"):
            return made
        if isinstance(made, Awaitable):
            return _later(made, corrector(named))
        return _read(made, corrector(named))

    corrected.is_corrected = True  # type: ignore[attr-defined]
    resource.create = corrected


async def _later(made: Awaitable[Any], corrector: _Corrector) -> AsyncIterator[Any]:
    return _read_async(await made, corrector)


def _read(stream: Any, corrector: _Corrector) -> Iterator[Any]:
    if media_type := _no_stream(stream):
        body = bytearray()
        for piece in stream.response.iter_bytes():
            body += piece
            if len(body) > MAX_BODY_BYTES:
                break
        raise _error_of(media_type, bytes(body))
    try:
        for item in stream:
            yield from corrector.feed(item)
        yield from corrector.end()
    finally:
        stream.close()


async def _read_async(stream: Any, corrector: _Corrector) -> AsyncIterator[Any]:
    if media_type := _no_stream(stream):
        body = bytearray()
        async for piece in stream.response.aiter_bytes():
            body += piece
            if len(body) > MAX_BODY_BYTES:
                break
        raise _error_of(media_type, bytes(body))
    try:
        async for item in stream:
            for corrected in corrector.feed(item):
                yield corrected
        for corrected in corrector.end():
            yield corrected
    finally:
        await stream.close()


def _no_stream(stream: Any) -> str:
    """Return the media type of a response that is no stream, else ""."""
    headers = stream.response.headers
    media_type = str(headers.get("content-type", "")).partition(";")[0].strip().lower()
    return media_type if media_type in _NO_STREAMS else ""


def _error_of(media_type: str, body: bytes) -> ProxyError:
    try:
        value = payload.parse(body)
    except InvalidRequest:
        value = None
    fields = error_fields(value)
    if value and not {"choices", "output"} & fields.keys():
        return openai_chat.parse_error(200, value)
    return UpstreamError(f"the provider sent {media_type} instead of a stream")


# ---- Chat Completions


class _Chunks:
    """Corrects chunks: each tool call has its name, whole, in its first one.

    Servers also send chunks without choices or delta, calls without an index, and several
    calls under one; text as a list of parts (Mistral) or a refusal, and calls in the older form.
    """

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._tools = {
            str((tool.get("function") or {}).get("name")) for tool in request.get("tools") or ()
        }
        self._longest = max((len(name) for name in self._tools if name), default=0)
        self._calls: list[_Call] = []
        self._by_index: dict[Any, _Call] = {}  # the last one of each
        self._by_id: dict[Any, _Call] = {}  # the first one of each
        self._waiting: dict[int, _Call] = {}  # by their place in `_calls`
        self._named: set[int] = set()  # those of them that have the name of a tool
        self._has_choice = False
        self._is_finished = False

    def feed(self, chunk: Any) -> list[Any]:
        """Return the chunk, corrected in place; it may have lost calls that have to wait."""
        if getattr(chunk, "choices", None) is None:
            fields = chunk.to_dict()
            if fields.get("object") == "error":  # vLLM's, which has no `error` in it
                raise openai_chat.parse_error(200, fields)
            chunk.choices = []
        _fill(chunk, usage=None)
        if chunk.usage is not None:
            _fill(chunk.usage, prompt_tokens=None, completion_tokens=None, total_tokens=None)
        for choice in chunk.choices[:1]:
            self._has_choice = True
            _fill(choice, delta=None, finish_reason=None, logprobs=None)
            if choice.delta is None:
                choice.delta = SimpleNamespace()
            delta = choice.delta
            _fill(delta, content=None, role=None, tool_calls=None, refusal=None, function_call=None)
            _tell_otherwise(delta)
            if delta.tool_calls:
                delta.tool_calls = [
                    ready for call in delta.tool_calls for ready in self._feed(call)
                ]
            if choice.finish_reason:
                self._is_finished = True
                delta.tool_calls = [*(delta.tool_calls or ()), *self._rest()]
        return [chunk]

    def end(self) -> list[Any]:
        """Check that the stream had an end."""
        if not self._has_choice:
            raise UpstreamError("the provider's response is empty")
        if not self._is_finished:
            raise UpstreamError("the provider's stream ended before its answer did")
        return []

    def _feed(self, delta: Any) -> Iterator[Any]:
        _fill(delta, id=None, index=None, function=None)
        if delta.function is None:
            delta.function = SimpleNamespace()
        _fill(delta.function, name=None, arguments=None)
        call = self._find(delta)
        if call is None:
            # The order of the calls stays, where their names are whole beyond doubt.
            named, self._named = sorted(self._named), set()
            yield from (self._waiting.pop(place).show() for place in named)
            call = self._waiting[len(self._calls)] = _Call(delta, len(self._calls))
            self._calls.append(call)
            if delta.index is not None:
                self._by_index[delta.index] = call
        else:
            call.add_name(delta, self._tools, self._longest)
        if call.sent_id:
            self._by_id.setdefault(call.sent_id, call)
        yield from call.take(delta)
        self._named.discard(call.index)
        if call.is_shown:
            self._waiting.pop(call.index, None)
        elif call.name_chars <= self._longest and call.name in self._tools:
            self._named.add(call.index)

    def _find(self, delta: Any) -> _Call | None:
        """Find the call that a delta continues: by index, else by id, else the last one."""
        if delta.index is not None:
            same = self._by_index.get(delta.index)
            is_other = same and delta.id and delta.function.name and delta.id != same.sent_id
            return None if is_other else same
        if delta.id:
            return self._by_id.get(delta.id)
        return None if delta.function.name or not self._calls else self._calls[-1]

    def _rest(self) -> list[Any]:
        """Return the calls that still wait: no more of their names will come.

        Raises:
            UpstreamError: one has no name.
        """
        waiting, self._waiting, self._named = self._waiting, {}, set()
        if not all(call.name_chars for call in waiting.values()):
            raise UpstreamError("the provider called a tool without naming it")
        return [call.show() for call in waiting.values()]


def _tell_otherwise(delta: Any) -> None:
    """Put what a delta says into the fields that the plugin reads."""
    if isinstance(delta.content, list):
        texts = [part.get("text") for part in delta.content if isinstance(part, dict)]
        delta.content = "".join(text for text in texts if isinstance(text, str))
    if isinstance(delta.refusal, str):
        delta.content = (delta.content or "") + delta.refusal
    if delta.function_call is not None and not delta.tool_calls:
        call = SimpleNamespace(index=0, id=None, type="function", function=delta.function_call)
        delta.tool_calls = [call]


class _Call:
    """A tool call: it waits for its name, which is whole once arguments come."""

    def __init__(self, first: Any, index: int) -> None:
        self.index = index
        self.sent_id = first.id
        self.name_chars = 0
        self.is_shown = False
        self._first = first
        self._names: list[str] = []
        self._arguments: list[str] = []
        self._has_text = False
        self._add_piece(first.function.name or "")

    @property
    def name(self) -> str:
        return "".join(self._names)

    def _add_piece(self, piece: str) -> None:
        self._names.append(piece)
        self.name_chars += len(piece)

    def add_name(self, delta: Any, tools: set[str], longest: int) -> None:
        """Add a piece of the name. Some servers repeat it all, or what they have of it so far.

        longest: of the tools' names; one that is much longer is joined without a look at them.
        """
        self.sent_id = self.sent_id or delta.id
        piece = delta.function.name
        if not piece or self.is_shown:
            return
        is_same = len(piece) == self.name_chars and piece == self.name
        is_repeated = bool(delta.id) and is_same
        if self.name_chars <= 2 * longest:
            joined = self.name + piece
            fit, fit_alone = _fit(joined, tools), _fit(piece, tools)
            if fit != fit_alone:  # the request's tools tell
                is_repeated = fit_alone > fit and piece.startswith(self.name)
        if is_repeated:
            self._names, self.name_chars = [], 0
        self._add_piece(piece)

    def take(self, delta: Any) -> Iterator[Any]:
        """Yield the delta, or the whole call so far, if its name is known by now."""
        arguments = delta.function.arguments
        if isinstance(arguments, dict):
            arguments = payload.encode(arguments).decode()
        if self.is_shown:
            delta.index, delta.function.arguments = self.index, arguments
            yield delta
            return
        if arguments:
            self._arguments.append(arguments)
            self._has_text = self._has_text or not arguments.isspace()
        if self.name_chars and self._has_text:
            yield self.show()

    def show(self) -> Any:
        """Return the call's first chunk: its id, name and arguments so far.

        White space alone is no arguments: the plugin would fail at it.
        """
        self.is_shown = True
        shown = self._first
        shown.index, shown.id = self.index, self.sent_id
        shown.function.name = self.name
        shown.function.arguments = "".join(self._arguments) if self._has_text else ""
        return shown


def _fit(name: str, tools: set[str]) -> int:
    """Return 2 for the name of a tool, 1 for the beginning of one, else 0."""
    return 2 if name in tools else int(any(tool.startswith(name) for tool in tools))


def _fill(made: Any, **defaults: Any) -> None:
    """Set attributes that an SDK left out, since the server had not sent them."""
    for name, default in defaults.items():
        if not hasattr(made, name):
            setattr(made, name, default)


# ---- Responses


class _ResponseEvents:
    """Corrects events: failures are raised, what is incomplete is an end, a refusal is text."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._is_finished = False

    def feed(self, event: Any) -> list[Any]:
        """Return the event.

        Raises:
            ProxyError: the response failed.
        """
        match getattr(event, "type", None):
            case "response.failed":
                error = getattr(event.response, "error", None)
                code = getattr(error, "code", None)
                raise read_error(200, [code], getattr(error, "message", None), code=code)
            case "error":
                code = getattr(event, "code", None)
                raise read_error(200, [code], getattr(event, "message", None), code=code)
            case "response.refusal.delta":
                event.type = "response.output_text.delta"
            case "response.incomplete":
                # The plugin reads the reason and the usage of completed responses only.
                event.type = "response.completed"
                self._is_finished = True
            case "response.completed":
                self._is_finished = True
        return [event]

    def end(self) -> list[Any]:
        """Check that the stream had an end."""
        if not self._is_finished:
            raise UpstreamError("the provider's stream ended before its answer did")
        return []
