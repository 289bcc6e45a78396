"""Two wires composed: requests, answers, errors and streams from any dialect to any other.

No server and no model is needed: this is for programs that have their own. Dialects
are named by strings (`dialects.DIALECTS` has them). What the target can't hold is
listed beside each result, never dropped in silence.

    converted = request(body, "openai_chat", "anthropic_messages")
    stream = Stream("anthropic_messages", "openai_chat")
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
from .core.errors import ProxyError
from .dialects import DIALECTS, Dialect, Renderer
from .transport import framing

__all__ = [
    "Collected",
    "Collector",
    "Converted",
    "ConvertedError",
    "Stream",
    "StreamData",
    "collect",
    "error",
    "request",
    "response",
]

StreamData = bytes | framing.SSEFrame | Mapping[str, Any] | StreamEvent | chat.Finish
"""What a stream is fed: bytes cut anywhere, a frame, a frame's JSON value (as SDKs give
it), or an event of the hub."""

_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Converted:
    """A body in the target's shape, and what it could not take along.

    ignored: paths in the source's body (`logit_bias`, `tools[*].strict`); what has no
        place of its own there is said in words (`messages[*] (…)`).
    """

    body: dict[str, Any]
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class ConvertedError:
    """An error in the target's shape, with the status and headers to send beside it."""

    body: dict[str, Any]
    status: int
    headers: Mapping[str, str]


def _dialect(name: str) -> Dialect:
    for dialect in DIALECTS:
        if name == dialect.NAME:
            return dialect
    names = ", ".join(dialect.NAME for dialect in DIALECTS)
    raise ValueError(f"no dialect is called {name!r}; there are: {names}")


def request(
    body: Any,
    source: str,
    target: str,
    *,
    headers: Mapping[str, str] = _NOTHING,
    model: str | None = None,
    max_tokens: int | None = None,
) -> Converted:
    """Convert a request's body, its JSON value.

    headers: the request's own, in lower case. model: asked for in place of the body's.
    max_tokens: the limit where the body has none.

    Raises:
        InvalidRequest: a body that is no request of the source, `param` naming the field.
        ValueError: no such dialect.
    """
    asked = _dialect(source).parse_request(body, headers)
    if model is not None:
        asked = replace(asked, model=model)
    if max_tokens is not None and "max_tokens" not in asked.options:
        asked = replace(asked, options={**asked.options, "max_tokens": max_tokens})
    rendered, ignored = _dialect(target).render_request(asked)
    return Converted(rendered, tuple(dict.fromkeys(asked.ignored + ignored)))


def response(
    body: Any,
    source: str,
    target: str,
    *,
    headers: Mapping[str, str] = _NOTHING,
    model: str | None = None,
    id: str | None = None,
    created: int | None = None,
) -> Converted:
    """Convert a whole answer's body, its JSON value.

    model: shown in place of the answer's own. id, created (seconds since 1970): of the
    new answer; made up and now where not given.

    Raises:
        ProxyError: the error that the body is, or UpstreamError where it is no answer.
        ValueError: no such dialect.
    """
    answer = _dialect(source).parse_response(body, headers)
    envelope = _Envelope.of(model, id, created)
    rendered = envelope.whole(_dialect(target), answer)
    return Converted(rendered, answer.finish.ignored + _lost(answer, _dialect(target), rendered))


def error(
    body: Any,
    source: str,
    target: str,
    *,
    status: int,
    headers: Mapping[str, str] = _NOTHING,
) -> ConvertedError:
    """Convert an error's body, its JSON value or the text of what is none.

    Kept are the status, the class that it means in both wires, and the headers by
    which clients wait and try again.
    """
    read = _dialect(source).parse_error(status, body, headers)
    return ConvertedError(_dialect(target).render_error(read), read.status, read.headers)


@dataclass(frozen=True)
class _Envelope:
    """What stands round an answer that is rendered, and is not of the answer."""

    model: str | None
    id: str
    created: int

    @classmethod
    def of(cls, model: str | None, id: str | None, created: int | None) -> _Envelope:
        return cls(
            model,
            uuid.uuid4().hex if id is None else id,
            int(time.time()) if created is None else created,
        )

    def request(self, model: str | None) -> chat.ChatRequest:
        """Make the request that renderers ask for the model's name and what to show."""
        return chat.ChatRequest(
            self.model if self.model is not None else model,
            [],
            stream=True,
            wire={"include_usage": True},
        )

    def whole(self, target: Dialect, answer: chat.ChatResponse) -> dict[str, Any]:
        asked = self.request(answer.finish.model)
        return target.render_response(asked, answer, self.id, self.created)


# ---- what an answer lost


def _lost(answer: chat.ChatResponse, target: Dialect, rendered: Any) -> tuple[str, ...]:
    """Say what an answer has no more when its rendering is read again."""
    before, after = _content(answer), _content(target.parse_response(rendered))
    lost = [name for name, value in before.items() if value and value != after[name]]
    # What was dropped whole is missing from the order too: one line says it.
    if len(lost) > 1 and "the order of the answer's parts" in lost:
        lost.remove("the order of the answer's parts")
    return tuple(lost)


def _content(answer: chat.ChatResponse) -> dict[str, Any]:
    """Give all that an answer says, by the words in which its loss is told."""
    parts = answer.parts
    calls = [part for part in parts if isinstance(part, ToolCallPart)]
    results = [part for part in parts if isinstance(part, ToolResultPart)]
    usage = answer.finish.usage
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
        "the order of the answer's parts": [
            kind for kind, _ in groupby(type(part).__name__ for part in parts)
        ],
        "the finish reason": answer.finish.reason,
        "the stop sequence": answer.finish.stop_sequence,
        **{f"usage.{name}": count for name, count in vars(usage).items()},
    }


def _text(parts: list[Part], kind: type[TextPart] | type[ReasoningPart]) -> str:
    return "".join(part.text for part in parts if isinstance(part, kind))


# ---- streams


class _Reader:
    """Read what a stream is fed as hub events."""

    def __init__(self, source: Dialect) -> None:
        self._decoder = framing.SSEDecoder()
        self._parser = source.StreamParser()

    @property
    def model(self) -> str | None:
        return self._parser.model

    def read(self, data: StreamData) -> Iterator[chat.Event]:
        """Give events one by one, so that those before a broken frame are had."""
        match data:
            case StreamEvent() | chat.Finish():
                yield data
                return
            case framing.SSEFrame():
                frames = [data]
            case Mapping():
                value = payload.encode(dict(data)).decode()
                frames = [framing.SSEFrame(str(data.get("type", "message")), value)]
            case _:
                frames = self._decoder.feed(data)
        for frame in frames:
            yield from self._parser.feed(frame)

    def end(self) -> list[chat.Event]:
        return self._parser.end()


class Stream:
    """Convert a stream as it comes. One object for each stream; it does no IO and knows no
    event loop, so that threads, asyncio and plain loops drive it alike.

    failed: the error that ended the stream, where one did. It has been given to the
    client as the target's error frame; where the target's `CUT_AFTER_ERROR` is true
    (OpenAI), the body must then be cut, not ended: clients take a proper end for success.
    """

    def __init__(
        self,
        source: str,
        target: str,
        *,
        model: str | None = None,
        id: str | None = None,
        created: int | None = None,
    ) -> None:
        """Take the arguments of `response`.

        Raises:
            ValueError: no such dialect.
        """
        self._reader = _Reader(_dialect(source))
        self._target = _dialect(target)
        self._envelope = _Envelope.of(model, id, created)
        self._renderer: Renderer | None = None
        self._events: list[chat.Event] = []
        self.failed: ProxyError | None = None

    def feed(self, data: StreamData) -> bytes:
        """Take a piece of the stream, give what the client is to be sent: often nothing."""
        return self._convert(self._reader.read(data))

    def end(self) -> bytes:
        """Say that the source has ended; give what is left. A cut source is an error."""
        if self._events and isinstance(self._events[-1], chat.Finish):
            return b""
        return self._convert(event for events in [self._reader.end] for event in events())

    def idle(self) -> bytes:
        """Give the target's keep-alive, for a source that is silent for long."""
        if self._renderer is None or self.failed:
            return b""
        return b"".join(self._renderer.idle())

    @property
    def ignored(self) -> tuple[str, ...]:
        """What of the stream so far the target could not be given, as `response` lists it."""
        answer = chat.collect(self._events)
        rendered = self._envelope.whole(self._target, answer)
        return answer.finish.ignored + _lost(answer, self._target, rendered)

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
            asked = self._envelope.request(self._reader.model)
            renderer = self._renderer or self._new_renderer(asked)
            frames += renderer.fail(exc)
        return b"".join(frames)

    def _begin(self) -> list[bytes]:
        """Give the head once: when the model's name, or a first event, is there."""
        if self._renderer is not None:
            return []
        self._renderer = self._new_renderer(self._envelope.request(self._reader.model))
        return self._renderer.start()

    def _new_renderer(self, asked: chat.ChatRequest) -> Renderer:
        return self._target.StreamRenderer(asked, self._envelope.id, self._envelope.created)


# ---- a stream into one answer


@dataclass(frozen=True)
class Collected:
    """A stream's whole answer.

    body: as the source's wire gives it where no stream is asked for. response: in the
    hub's words, `response.messages` and `response.finish`. ttft_ms, first_text_ms: time to
    the first event of any kind, and of visible text; duration_ms: to the end; from
    `started` on. None without a clock, or where there was no such event.
    """

    body: dict[str, Any]
    response: chat.ChatResponse
    ttft_ms: float | None
    first_text_ms: float | None
    duration_ms: float | None
    ignored: tuple[str, ...]

    @property
    def usage(self) -> chat.Usage:
        """Tokens as the provider counts, made comparable."""
        return self.response.finish.usage


class Collector:
    """Collect a stream that is fed piece by piece: `collect` for who drives the loop himself."""

    def __init__(
        self,
        source: str,
        *,
        clock: Callable[[], float] | None = None,
        started: float | None = None,
        id: str | None = None,
        created: int | None = None,
    ) -> None:
        """Take the arguments of `collect`."""
        self._source = _dialect(source)
        self._reader = _Reader(self._source)
        self._envelope = _Envelope.of(None, id, created)
        self._clock = clock
        self._started = clock() if clock is not None and started is None else started
        self._ttft_ms: float | None = None
        self._first_text_ms: float | None = None
        self.events: list[chat.Event] = []

    def feed(self, data: StreamData) -> None:
        """Take a piece of the stream.

        Raises:
            ProxyError: an error that the stream says, or is. `events` keeps what came before.
        """
        for event in self._reader.read(data):
            self._take(event)

    def end(self) -> Collected:
        """Give the whole answer.

        Raises:
            UpstreamError: the stream was cut.
        """
        if not (self.events and isinstance(self.events[-1], chat.Finish)):
            for event in self._reader.end():
                self._take(event)
        answer = chat.collect(self.events)
        body = self._envelope.whole(self._source, answer)
        ignored = answer.finish.ignored + _lost(answer, self._source, body)
        times = (self._ttft_ms, self._first_text_ms, self._elapsed_ms())
        return Collected(body, answer, *times, ignored)

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
    source: str,
    chunks: Iterable[StreamData],
    *,
    clock: Callable[[], float] | None = None,
    started: float | None = None,
    id: str | None = None,
    created: int | None = None,
) -> Collected:
    """Make any stream into its whole answer, with usage and times.

    clock: gives seconds, as `time.monotonic`; without it nothing is measured. started:
    the clock when the request was sent; now, where not given.

    Raises:
        ProxyError: an error that the stream says, or UpstreamError where it was cut.
        ValueError: no such dialect.
    """
    collector = Collector(source, clock=clock, started=started, id=id, created=created)
    for data in chunks:
        collector.feed(data)
    return collector.end()
