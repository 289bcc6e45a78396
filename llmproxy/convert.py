"""Convert requests, responses, errors and streams from one API dialect to another.

For programs with a client and a server of their own: nothing here needs this proxy's server
or a model. What the target can't hold is listed beside each result, never dropped silently.

    converted = convert_request(body, source="openai_chat", target="anthropic_messages")
    stream = StreamConverter(source="anthropic_messages", target="openai_chat")
    for data in upstream: send(stream.feed(data))
    send(stream.end())
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from types import MappingProxyType
from typing import Any

from llm.parts import Part, ReasoningPart, StreamEvent, TextPart, ToolCallPart, ToolResultPart

from .core import chat, payload
from .core.errors import InvalidRequest, ProxyError, UpstreamError
from .core.limits import Limits
from .core.usage import Usage
from .dialects import Dialect, DialectName, Renderer, by_name
from .transport import framing

__all__ = [
    "Collected",
    "Collector",
    "Converted",
    "ConvertedError",
    "DialectName",
    "StreamConverter",
    "StreamData",
    "collect",
    "convert_error",
    "convert_request",
    "convert_response",
]

StreamData = bytes | framing.SSEFrame | Mapping[str, Any] | StreamEvent | chat.Finish
"""A piece of a stream: bytes cut anywhere, a frame, a frame's JSON value (as SDKs give it),
or an event."""

_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Converted:
    """A body in the target's shape and a list of what it could not hold.

    ignored: paths in the source's body (`logit_bias`, `tools[*].strict`), with a note in
        parentheses for content that has no path of its own (`messages[*] (…)`).
    """

    body: dict[str, Any]
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class ConvertedError:
    """An error in the target's shape and the status and headers to send with it."""

    body: dict[str, Any]
    status: int
    headers: Mapping[str, str]


def convert_request(
    body: Any,
    *,
    source: DialectName,
    target: DialectName,
    headers: Mapping[str, str] = _NOTHING,
    model: str | None = None,
    max_tokens: int | None = None,
) -> Converted:
    """Convert the body of a request, a JSON value.

    headers: the request's own, in lower case. model: replaces the body's model. max_tokens:
    the limit for a body without one.

    Raises:
        InvalidRequest: the body is not a request of the source; `param` names the field. Or it
            only asks for a model to be loaded, which no other API can say.
        ValueError: unknown dialect.
    """
    dialect = by_name(source)
    payload.check_depth(body, Limits().json_depth, "the request")
    request = dialect.parse_request(body, headers)
    if not request.messages and target != source:
        raise InvalidRequest("there is no message to convert")
    if model is not None:
        request = replace(request, model=model)
    if max_tokens is not None and "max_tokens" not in request.options:
        request = replace(request, options={**request.options, "max_tokens": max_tokens})
    rendered, ignored = by_name(target).render_request(request)
    return Converted(rendered, tuple(dict.fromkeys(request.ignored + request.repeated + ignored)))


def convert_response(
    body: Any,
    *,
    source: DialectName,
    target: DialectName,
    headers: Mapping[str, str] = _NOTHING,
    model: str | None = None,
    id: str | None = None,
    created: int | None = None,
) -> Converted:
    """Convert the body of a whole response, a JSON value.

    model: shown in place of the response's own. id, created (seconds since 1970): of the
    converted response; by default a random id and the current time.

    Raises:
        ProxyError: the error that the body reports, or UpstreamError if it is no response.
        ValueError: unknown dialect.
    """
    dialect = by_name(source)
    try:
        payload.check_depth(body, Limits().json_depth, "the response")
    except InvalidRequest as exc:
        raise UpstreamError(exc.message) from exc
    response = dialect.parse_response(body, headers)
    envelope = _envelope(response.finish.model if model is None else model, id, created)
    rendered = by_name(target).render_response(response, envelope)
    return Converted(rendered, response.finish.ignored + _lost(response, by_name(target), rendered))


def convert_error(
    body: Any,
    *,
    source: DialectName,
    target: DialectName,
    status: int,
    headers: Mapping[str, str] = _NOTHING,
) -> ConvertedError:
    """Convert the body of an error: a JSON value, or text that is not JSON.

    The error's meaning and the headers that tell clients when to retry are kept; status, type,
    code and the phrase that clients look for are those of the target.

    Raises:
        ValueError: unknown dialect, or a status that is no number from 100 to 599.
    """
    if type(status) is not int or not 100 <= status <= 599:
        raise ValueError(f"status: expected a number from 100 to 599, not {status!r:.40}")
    error = by_name(source).parse_error(status, body, headers)
    dialect = by_name(target)
    return ConvertedError(dialect.render_error(error), dialect.error_status(error), error.headers)


def _envelope(model: str | None, id: str | None, created: int | None) -> chat.Envelope:
    return chat.Envelope(
        uuid.uuid4().hex if id is None else id,
        int(time.time()) if created is None else created,
        model or "",
    )


# ---- what a response lost


def _lost(response: chat.ChatResponse, target: Dialect, rendered: Any) -> tuple[str, ...]:
    """Compare a response with its rendering, parsed again, and list what is missing there."""
    before, after = _content(response), _content(target.parse_response(rendered))
    lost = [name for name, value in before.items() if value and value != after[name]]
    # A part that was dropped changes the order too: listing the part is enough.
    if len(lost) > 1 and "the order of the parts" in lost:
        lost.remove("the order of the parts")
    return tuple(lost)


def _content(response: chat.ChatResponse) -> dict[str, Any]:
    """Return the content of a response, keyed by the names under which a loss is listed."""
    parts = response.parts
    calls = [part for part in parts if isinstance(part, ToolCallPart)]
    results = [part for part in parts if isinstance(part, ToolResultPart)]
    usage = response.finish.usage
    return {
        "text": _text(parts, TextPart),
        "reasoning": _text(parts, ReasoningPart),
        "reasoning that is opaque": [
            part.provider_metadata or {}
            for part in parts
            if isinstance(part, ReasoningPart) and (part.redacted or not part.text)
        ],
        "signatures and other data of the provider": [
            metadata
            for part in parts
            if (metadata := getattr(part, "provider_metadata", None))
            and (not isinstance(part, ReasoningPart) or part.text)
        ],
        "tool calls": [
            (call.tool_call_id, call.name, call.arguments)
            for call in calls
            if not call.server_executed
        ],
        "server tools' calls": [
            (call.tool_call_id, call.name, call.arguments) for call in calls if call.server_executed
        ],
        "server tools' results": [(part.tool_call_id, part.output) for part in results],
        "the order of the parts": [
            kind for kind, _ in groupby(type(part).__name__ for part in parts)
        ],
        "the finish reason": response.finish.provider_reason or response.finish.reason,
        "the stop sequence": response.finish.stop_sequence,
        **{f"usage.{name}": count for name, count in vars(usage).items()},
    }


def _text(parts: list[Part], kind: type[TextPart] | type[ReasoningPart]) -> str:
    return "".join(part.text for part in parts if isinstance(part, kind))


# ---- streams


class _EventReader:
    """Reads events from whatever form a stream comes in."""

    def __init__(self, source: Dialect) -> None:
        self._decoder = source.StreamDecoder(framing.MAX_FRAME_BYTES)
        self._parser = source.StreamParser()

    @property
    def model(self) -> str | None:
        return self._parser.model

    def read(self, data: StreamData) -> Iterator[chat.Event]:
        """Yield events one by one, so that those before a broken frame are not lost."""
        match data:
            case StreamEvent() | chat.Finish():
                yield data
            case framing.SSEFrame():
                yield from self._parser.feed(data)
            case Mapping():
                yield from self._parser.feed_value(dict(data))
            case bytes() | bytearray():
                for frame in self._decoder.feed(data):
                    yield from self._parser.feed(frame)
            case _:
                raise TypeError(
                    "expected bytes, a frame, its JSON object or an event,"
                    f" not {type(data).__name__}"
                )

    def end(self) -> Iterator[chat.Event]:
        for frame in self._decoder.end():
            yield from self._parser.feed(frame)
        yield from self._parser.end()


class StreamConverter:
    """Converts a stream as it arrives. One object per stream; it does no IO and knows no
    event loop, so threads, asyncio and plain loops can all drive it.

    failed: the error that ended the stream, if any. The client has received it as the
    target's error frame. If the target's `CUT_AFTER_ERROR` is true (OpenAI), the body must
    then be cut, not ended: clients take a proper end for success.
    """

    def __init__(
        self,
        *,
        source: DialectName,
        target: DialectName,
        model: str | None = None,
        id: str | None = None,
        created: int | None = None,
    ) -> None:
        """Create a converter; model, id and created as in `convert_response`.

        Raises:
            ValueError: unknown dialect.
        """
        self._reader = _EventReader(by_name(source))
        self._target = by_name(target)
        self._model = model
        self._envelope = _envelope(model, id, created)
        self._renderer: Renderer | None = None
        self._events: list[chat.Event] = []
        self.failed: ProxyError | None = None

    def feed(self, data: StreamData) -> bytes:
        """Take a piece of the source's stream and return the bytes to send, often none."""
        return self._convert(self._reader.read(data))

    def end(self) -> bytes:
        """Return the rest after the source's end. A source that was cut is an error."""
        if self._events and isinstance(self._events[-1], chat.Finish):
            return b""
        return self._convert(self._reader.end())

    def idle(self) -> bytes:
        """Return the target's keep-alive, to send while the source is silent."""
        if self._renderer is None or self.failed:
            return b""
        return b"".join(self._renderer.idle())

    @property
    def ignored(self) -> tuple[str, ...]:
        """The content so far that the target can't hold, listed as by `convert_response`."""
        response = chat.collect(self._events)
        rendered = self._target.render_response(response, self._envelope)
        return response.finish.ignored + _lost(response, self._target, rendered)

    def _convert(self, events: Iterator[chat.Event]) -> bytes:
        if self.failed:
            return b""
        frames: list[bytes] = []
        try:
            for event in events:
                frames += self._begin()
                self._events.append(event)
                assert self._renderer is not None
                frames += self._renderer.feed(event)
            if self._reader.model is not None:
                frames += self._begin()
        except ProxyError as exc:
            self.failed = exc
            frames += (self._renderer or self._new_renderer()).fail(exc)
        return b"".join(frames)

    def _begin(self) -> list[bytes]:
        """Render the head once, when the model's name or a first event is known."""
        if self._renderer is not None:
            return []
        self._renderer = self._new_renderer()
        return self._renderer.start()

    def _new_renderer(self) -> Renderer:
        model = self._reader.model if self._model is None else self._model
        return self._target.StreamRenderer(replace(self._envelope, model=model or ""))


# ---- a stream into one response


@dataclass(frozen=True)
class Collected:
    """The whole response of a stream.

    body: as the source's API would send it without streaming. response: the same as
    llm's messages (`response.messages`) and its end (`response.finish`). ttft_ms,
    first_text_ms, duration_ms: from `started` to the first event of any kind, to the first
    visible text, and to the end; None without a clock or without such an event.
    """

    body: dict[str, Any]
    response: chat.ChatResponse
    ttft_ms: float | None
    first_text_ms: float | None
    duration_ms: float | None
    ignored: tuple[str, ...]

    @property
    def usage(self) -> Usage:
        """The provider's token counts, comparable between providers."""
        return self.response.finish.usage


class Collector:
    """Collects a stream that is fed piece by piece; `collect` for callers with their own loop."""

    def __init__(
        self,
        *,
        source: DialectName,
        clock: Callable[[], float] | None = None,
        started: float | None = None,
        id: str | None = None,
        created: int | None = None,
    ) -> None:
        """Create a collector; the arguments are those of `collect`."""
        self._source = by_name(source)
        self._reader = _EventReader(self._source)
        self._envelope = _envelope(None, id, created)
        self._clock = clock
        self._started = clock() if clock is not None and started is None else started
        self._ttft_ms: float | None = None
        self._first_text_ms: float | None = None
        self.events: list[chat.Event] = []

    def feed(self, data: StreamData) -> None:
        """Take a piece of the stream.

        Raises:
            ProxyError: an error that the stream reports, or a stream that can't be read.
                `events` keeps what came before it.
        """
        for event in self._reader.read(data):
            self._take(event)

    def end(self) -> Collected:
        """Return the whole response.

        Raises:
            UpstreamError: the stream was cut.
        """
        if not (self.events and isinstance(self.events[-1], chat.Finish)):
            for event in self._reader.end():
                self._take(event)
        response = chat.collect(self.events)
        envelope = replace(self._envelope, model=response.finish.model or "")
        body = self._source.render_response(response, envelope)
        ignored = response.finish.ignored + _lost(response, self._source, body)
        times = (self._ttft_ms, self._first_text_ms, self._elapsed_ms())
        return Collected(body, response, *times, ignored)

    def _take(self, event: chat.Event) -> None:
        self.events.append(event)
        if not isinstance(event, StreamEvent):
            return
        if self._ttft_ms is None:
            self._ttft_ms = self._elapsed_ms()
        if self._first_text_ms is None and event.type == "text" and event.chunk:
            self._first_text_ms = self._elapsed_ms()

    def _elapsed_ms(self) -> float | None:
        if self._clock is None or self._started is None:
            return None
        return (self._clock() - self._started) * 1000


def collect(
    chunks: Iterable[StreamData],
    *,
    source: DialectName,
    clock: Callable[[], float] | None = None,
    started: float | None = None,
    id: str | None = None,
    created: int | None = None,
) -> Collected:
    """Collect a stream into the whole response, with its usage and times.

    clock: returns seconds, as `time.monotonic` does; without it nothing is measured.
    started: the clock's value when the request was sent; by default now.

    Raises:
        ProxyError: an error that the stream reports, or UpstreamError if it was cut.
        ValueError: unknown dialect.
    """
    collector = Collector(source=source, clock=clock, started=started, id=id, created=created)
    for data in chunks:
        collector.feed(data)
    return collector.end()
