"""The common format of requests and responses, where llm has no type of its own.

A request has `llm.Message`s with their Parts; a response is a series of `StreamEvent`s that
ends with one `Finish`. Every dialect converts to and from these and nothing else.

Invariant of the event stream (the engine and the dialects' parsers keep it, so that renderers
need no state but their own): `part_index` is set and identifies one part of one family; a
tool call has its `tool_call_id` on each of its events, and its `tool_call_name` comes first;
text has no lone surrogates; `Finish` is last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import llm
from llm.parts import (
    Message,
    Part,
    ReasoningPart,
    StreamEvent,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)

from . import argument_text, payload
from .errors import InvalidRequest, ProxyError
from .limits import Limits
from .usage import FinishReason, Usage


@dataclass(frozen=True)
class NamedTool:
    """A tool choice that forces the tool of this name."""

    name: str


ToolChoice = Literal["auto", "none", "required"] | NamedTool


@dataclass(frozen=True)
class ServerTool:
    """A tool that the provider runs itself, by the vendor's name (`web_search`).

    config: the vendor's own settings for it (`max_uses` …). path: its place in the body.
    """

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    path: str = "tools[*]"


@dataclass(frozen=True)
class ChatRequest:
    """A client's request in the common format.

    messages: the whole conversation in the normal form that is hashed and stored.
    options: by common names (`max_tokens`, `temperature`, `stop_sequences` …).
    option_paths, attachment_paths: their places in the client's body, for errors and
        `ignored`: of options with another name there; of attachments in the order of the
        messages.
    include_usage: whether a stream of the response is to report its usage.
    form: of a request that has several in its API: its response has the same.
    counted_calls: the number of tool calls in the history, where the client sends calls back
        without ids: those of the reply get ids by their places (`counted_call_id`). None
        keeps the model's own.
    ignored: paths of what the dialect could not carry (`tools[*].strict`).
    echo: what the dialect's renderer needs of the request, to repeat it in the response; for
        no other reader.
    repeated: paths of what is only repeated in the response: a server carries it, and a body that
        is converted for another one does not.
    recalled: indexes of messages that the log restored in place of what the client sent:
        what a model can't read in those is not a loss to the client.
    """

    model: str | None
    messages: list[Message]
    tools: tuple[llm.Tool, ...] = ()
    server_tools: tuple[ServerTool, ...] = ()
    tool_choice: ToolChoice = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    schema: dict[str, Any] | None = None
    stream: bool = False
    include_usage: bool = True
    form: str = ""
    counted_calls: int | None = None
    option_paths: Mapping[str, str] = field(default_factory=dict)
    attachment_paths: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    echo: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    repeated: tuple[str, ...] = field(default=(), compare=False, repr=False)
    recalled: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Envelope:
    """The facts round a response that a renderer needs besides the events.

    id: without the dialect's prefix. created: in seconds since 1970. model: the name that
    the client sees. include_usage: whether a stream reports its usage. input_tokens: an
    estimate, for dialects whose streams begin with a count (`STARTS_WITH_USAGE`). form, echo: of
    the request (`ChatRequest`).
    """

    id: str
    created: int
    model: str = ""
    include_usage: bool = True
    input_tokens: int = 0
    form: str = ""
    echo: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class Durations:
    """The times that a response took, in nanoseconds; None where unknown.

    load_ns: until the model began. input_ns: from there to its first event. output_ns: from
    there to its last.
    """

    total_ns: int | None = None
    load_ns: int | None = None
    input_ns: int | None = None
    output_ns: int | None = None


@dataclass(frozen=True)
class Finish:
    """The end of a response, always its last event.

    provider_reason: the provider's own word for the reason, if it says more than ours
        (`finish_reasons.FINER_REASONS`).
    model: the provider's own name of the model that responded, if sent.
    durations: of the response, for the APIs that report them; not logged, where all is timed.
    response_json, llm_usage: the plugin's raw payload and counts, as llm logs them.
    ignored: paths in an upstream's response that have no common form; empty from llm.
    """

    reason: FinishReason = "stop"
    stop_sequence: str | None = None
    usage: Usage = Usage()
    model: str | None = None
    response_json: dict[str, Any] | None = field(default=None, repr=False)
    llm_usage: llm.Usage = field(default_factory=llm.Usage, repr=False)
    ignored: tuple[str, ...] = ()
    provider_reason: str | None = None
    durations: Durations | None = None


Event = StreamEvent | Finish


@dataclass(frozen=True)
class ChatResponse:
    """A whole response: its messages (nearly always one) and its end.

    raw_arguments: each tool call's arguments letter for letter as the model wrote
    them, by tool_call_id; Parts keep only the parsed value.
    """

    messages: list[Message]
    finish: Finish
    raw_arguments: Mapping[str, str] = field(default_factory=dict)

    @property
    def parts(self) -> list[Part]:
        """All parts of all messages, in order."""
        return [part for message in self.messages for part in message.parts]

    def arguments_text(self, call: ToolCallPart) -> str:
        """Return the arguments of one of its calls as the model wrote them, `{}` for none."""
        raw = self.raw_arguments.get(call.tool_call_id or "")
        if raw is None:
            return arguments_text(call)
        return raw if raw.strip() else "{}"


@dataclass(frozen=True)
class StoredResponse:
    """A recorded response, as far as it came, for dialects whose clients ask for it by its id.

    body: of its request, in the normal form. status: that of its exchange; only an "ok" one can
    be continued. error: why it failed.
    """

    body: Any
    envelope: Envelope
    response: ChatResponse
    status: str = "ok"
    error: ProxyError | None = None


def counted_call_id(count: int) -> str:
    """Return the id of a conversation's tool call after `count` others, where none is sent."""
    return f"call_{count}"


def collect(events: Iterable[Event]) -> ChatResponse:
    """Assemble a stream's events into the whole response.

    Equal to what llm stores for the same events: parts in the order in which they
    began, redacted reasoning moved to the front of its message, empty text dropped,
    arguments that are not JSON kept as `{"_raw": text}`. A stream that was cut
    (no Finish) gives what was received, with reason "stop".
    """
    groups: dict[int | None, list[StreamEvent]] = {}
    finish = Finish()
    for event in events:
        if isinstance(event, Finish):
            finish = event
        else:
            groups.setdefault(event.part_index, []).append(event)
    by_message: dict[int, list[Part]] = {}
    raw_arguments: dict[str, str] = {}
    for group in groups.values():
        part = _part(group)
        if part is not None:
            by_message.setdefault(group[0].message_index, []).append(part)
        if isinstance(part, ToolCallPart) and part.tool_call_id is not None:
            raw_arguments[part.tool_call_id] = _joined(group, "tool_call_args")
    return ChatResponse(
        [Message("assistant", _hoist_redacted(parts)) for parts in by_message.values()],
        finish,
        raw_arguments,
    )


def _part(events: list[StreamEvent]) -> Part | None:
    first = events[0]
    metadata: dict[str, Any] = {}
    for event in events:
        metadata.update(event.provider_metadata or {})
    match first.type:
        case "text":
            text = _joined(events, "text")
            return TextPart(text, metadata or None) if text else None
        case "reasoning":
            text = _joined(events, "reasoning")
            redacted = any(event.redacted for event in events)
            if not (text or redacted or metadata):
                return None
            return ReasoningPart(text, redacted, metadata or None)
        case "tool_result":
            return ToolResultPart(
                name=first.tool_name or "",
                output=_joined(events, "tool_result"),
                tool_call_id=first.tool_call_id,
                server_executed=first.server_executed,
                provider_metadata=metadata or None,
            )
        case _:
            return ToolCallPart(
                name=_joined(events, "tool_call_name"),
                arguments=parse_arguments(_joined(events, "tool_call_args")),
                tool_call_id=first.tool_call_id,
                server_executed=first.server_executed,
                provider_metadata=metadata or None,
            )


def _joined(events: list[StreamEvent], type_: str) -> str:
    return "".join(event.chunk for event in events if event.type == type_)


def parse_arguments(text: str) -> dict[str, Any]:
    """Parse the arguments of a tool call: a JSON object, or nothing at all, which is `{}`.

    What is not quite JSON, or nests too deep to be sent back, is read as ArgumentText writes
    it. Anything else (truncated JSON, a bare list) becomes `{"_raw": text}`, as in llm: it must
    not pass for a call without arguments.
    """
    if not text.strip():
        return {}
    value = _json_or_none(text)
    if value is None and text.lstrip().startswith("{"):
        writer = argument_text.ArgumentText()
        value = _json_or_none(writer.feed(text) + writer.end())
    return value if isinstance(value, dict) else {"_raw": text}


def _json_or_none(text: str) -> Any:
    try:
        return payload.parse(text.encode(), argument_text.LIMITS)
    except InvalidRequest:
        return None


class CallArguments:
    """Parses the arguments of a request's tool calls, which are JSON texts in its strings.

    Together they may have as many values as a body: the limit on the body counts each as one.
    """

    def __init__(self) -> None:
        self._most = Limits.json_values  # the default: to make one and check it takes 17 µs
        self.left = self._most

    def parse(self, text: str) -> dict[str, Any]:
        """Parse the arguments of one call, as `parse_arguments` does.

        Raises:
            InvalidRequest: all together have too many values.
        """
        self.left -= payload.count_values(text.encode(), self.left)
        if self.left < 0:
            raise InvalidRequest(
                f"the arguments of the tool calls have more than {self._most} JSON values"
            )
        return parse_arguments(text)


def nothing_left_out(response: ChatResponse, envelope: Envelope) -> tuple[str, ...]:
    """List what a response's form has no place for: `left_out` of a dialect with one form."""
    return ()


def arguments_text(call: ToolCallPart) -> str:
    """Render the arguments of a call; what was no JSON object stays as it was."""
    match call.arguments:
        case {"_raw": str(text)} if len(call.arguments) == 1:
            return text
    return payload.encode(call.arguments).decode()


def _hoist_redacted(parts: list[Part]) -> list[Part]:
    """Sort as llm does: plugins learn only from the last chunk that there was reasoning."""
    return sorted(parts, key=lambda part: not (isinstance(part, ReasoningPart) and part.redacted))
