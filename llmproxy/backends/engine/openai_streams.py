"""Correct what servers stream before llm's OpenAI plugin reads it.

The plugin takes a stream's chunks as OpenAI's own servers send them: it reads a tool's name
from a call's first chunk only, takes an error page for an empty answer, and ignores that a
response failed. What it has dropped nobody can restore afterwards. So its client gets streams
whose chunks are in order. No SDK is imported: the objects are those that it made.
"""

from __future__ import annotations

import copy
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from types import FunctionType, MethodType, SimpleNamespace
from typing import Any, Protocol

from ...core import payload
from ...core.error_meanings import read_error
from ...core.errors import UpstreamError
from ...dialects import openai_chat
from .anthropic_streams import correct_messages
from .sent_bodies import EMPTY, SentBody, error_in_body

_CLASSES = frozenset({"Chat", "AsyncChat", "Responses", "AsyncResponses"})
_CLIENTS = frozenset({"SyncAPIClient", "AsyncAPIClient"})  # SDKs that Stainless generates


def with_corrected_streams(model: Any) -> Any:
    """Return a copy of a model whose SDK's streams are corrected, or the model itself.

    A stream then raises a ProxyError where the server reported a failure in a way that the
    plugin ignores, where it sent no stream, or where it ended before the response did.
    Corrected are llm's OpenAI models, and those whose plugin makes a client of an SDK of
    OpenAI's kind (also Anthropic's and Groq's) in `execute`.
    """
    if any(cls.__name__ in _CLASSES for cls in type(model).__mro__):
        return _with_corrected_get_client(model)
    return _with_corrected_names(model)


def _with_corrected_get_client(model: Any) -> Any:
    corrected = copy.copy(model)

    def get_client(*arguments: Any, **named: Any) -> Any:
        client = model.get_client(*arguments, **named)
        _correct_client(client)
        return client

    corrected.get_client = get_client
    return corrected


def _with_corrected_names(model: Any) -> Any:
    """Return a copy of a model whose `execute` finds corrected SDK clients by their names.

    Plugins offer no other hook, and a change of the plugin's module would be seen by whoever
    else uses it. So this model alone gets the same function with another namespace.
    """
    execute = getattr(type(model), "execute", None)
    if not isinstance(execute, FunctionType):
        return model
    names = {name: execute.__globals__.get(name) for name in execute.__code__.co_names}
    clients = {name: _corrected_class(cls) for name, cls in names.items() if _is_client(cls)}
    if not clients:
        return model
    corrected = copy.copy(model)
    named_anew = FunctionType(
        execute.__code__,
        execute.__globals__ | clients,
        execute.__name__,
        execute.__defaults__,
        execute.__closure__,
    )
    named_anew.__kwdefaults__ = execute.__kwdefaults__
    corrected.execute = MethodType(named_anew, corrected)
    return corrected


def _is_client(value: Any) -> bool:
    bases = value.__mro__ if isinstance(value, type) else ()
    return any(base.__name__ in _CLIENTS for base in bases)


def _corrected_class(cls: Any) -> Any:
    class Corrected(cls):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            _correct_client(self)

    return Corrected


def _correct_client(client: Any) -> None:
    if hasattr(client, "chat"):
        _correct(client.chat.completions, _Chunks)
    if hasattr(client, "responses"):
        _correct(client.responses, _ResponseEvents)
    if hasattr(client, "messages"):
        correct_messages(client.messages)
        correct_messages(client.beta.messages)


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
        is_later = isinstance(made, Awaitable)
        if not named.get("stream"):
            return _whole_later(made) if is_later else _whole(made)
        if is_later:
            return _later(made, corrector(named))
        return _read(made, corrector(named))

    corrected.is_corrected = True  # type: ignore[attr-defined]
    resource.create = corrected


def _whole(made: Any) -> Any:
    """Return an answer that was not streamed, if it is one.

    Raises:
        ProxyError: it is a page, or reports an error: SDKs take both for answers.
    """
    if isinstance(made, str):
        raise error_in_body("text", made.encode(errors="replace"))
    if all(getattr(made, name, None) is None for name in ("choices", "output")):
        raise error_in_body("application/json", payload.encode(made.to_dict()))
    for choice in (getattr(made, "choices", None) or ())[:1]:
        calls = getattr(choice.message, "tool_calls", None) or ()
        functions = [call.function for call in calls if getattr(call, "function", None)]
        if not all(_is_json(function.arguments) for function in functions):
            return _with_odd_arguments(made, choice.message)
    return made


def _with_odd_arguments(made: Any, message: Any) -> Any:
    """Return what the plugin reads of an answer, whose arguments it would fail to parse."""
    calls = [
        SimpleNamespace(id=call.id, function=_Function(call.function))
        for call in message.tool_calls
        if getattr(call, "function", None)
    ]
    shown = SimpleNamespace(content=message.content, tool_calls=calls)
    choices = [SimpleNamespace(message=shown)]
    return SimpleNamespace(usage=made.usage, choices=choices, model_dump=made.model_dump)


class _Function:
    """A called function. The plugin first parses its arguments, then yields them."""

    def __init__(self, function: Any) -> None:
        self.name = function.name
        self._reads = [function.arguments]
        if not _is_json(function.arguments):
            self._reads.append("{}")

    @property
    def arguments(self) -> Any:
        return self._reads.pop() if len(self._reads) > 1 else self._reads[0]


def _is_json(arguments: Any) -> bool:
    try:
        json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return False
    return True


async def _whole_later(made: Awaitable[Any]) -> Any:
    return _whole(await made)


async def _later(made: Awaitable[Any], corrector: _Corrector) -> AsyncIterator[Any]:
    return _read_async(await made, corrector)


def _read(stream: Any, corrector: _Corrector) -> Iterator[Any]:
    body = SentBody(stream.response)
    item = None
    try:
        if body.is_no_stream:
            raise body.read()
        for item in stream:
            yield from corrector.feed(item)
        if item is None:
            raise body.error()
        yield from corrector.end()
    finally:
        stream.close()


async def _read_async(stream: Any, corrector: _Corrector) -> AsyncIterator[Any]:
    body = SentBody(stream.response)
    item = None
    try:
        if body.is_no_stream:
            raise await body.aread()
        async for item in stream:
            for corrected in corrector.feed(item):
                yield corrected
        if item is None:
            raise body.error()
        for corrected in corrector.end():
            yield corrected
    finally:
        await stream.close()


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
            raise UpstreamError(EMPTY)
        if not self._is_finished:
            raise UpstreamError("the provider's stream ended before its answer did")
        for call in self._calls:
            call.make_parsable()
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

    def make_parsable(self) -> None:
        """Replace arguments that are no JSON, which the plugin has yielded as they came.

        It joined them in the object that it got first, and parses that now. It would raise, and
        lose the usage, the reason and other calls.
        """
        function = self._first.function
        if not _is_json(function.arguments):
            function.arguments = "{}"


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
            case None if getattr(event, "object", None) == "error":  # vLLM's
                raise openai_chat.parse_error(200, event.to_dict())
        return [event]

    def end(self) -> list[Any]:
        """Check that the stream had an end."""
        if not self._is_finished:
            raise UpstreamError("the provider's stream ended before its answer did")
        return []
