"""What llm has no word for: a request, the end of an answer, and both as whole values.

Inwards the hub speaks `llm.Message` and its Parts, outwards `StreamEvent`s closed
by one `Finish`. Every dialect converts to and from these and nothing else.

Invariant of the event stream (the engine and the dialects' parsers keep it, so
that renderers need no state but their own): `part_index` is set and stands for one
part of one family; a tool call has its `tool_call_id` on each of its events, and
its `tool_call_name` comes first; text holds no lone surrogates; `Finish` is last.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol
from urllib.parse import unquote_to_bytes, urlsplit

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

from . import payload
from .errors import InvalidRequest, Unsupported

__all__ = [
    "Answering",
    "ChatRequest",
    "ChatResponse",
    "Event",
    "Finish",
    "FinishReason",
    "Kind",
    "ModelEntry",
    "Models",
    "NamedTool",
    "Recollect",
    "RemoteAttachment",
    "Route",
    "RunningAnswer",
    "ServerTool",
    "Stamped",
    "ToolChoice",
    "Usage",
    "attachment_from_base64",
    "attachment_from_url",
    "collect",
    "parse_arguments",
]

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]

Kind = Literal["chat", "models", "model", "count_tokens"]
"""What a route is for; app has one function per kind and none per dialect."""


@dataclass(frozen=True)
class Route:
    """A place of a dialect's API. A path that ends in `/` takes the rest as its argument."""

    method: str
    path: str
    kind: Kind


@dataclass(frozen=True)
class ModelEntry:
    """A model as a list of models shows it; `created` in seconds since 1970."""

    id: str
    owned_by: str
    created: int


@dataclass(frozen=True)
class NamedTool:
    """A tool choice that forces the tool of this name."""

    name: str


ToolChoice = Literal["auto", "none", "required"] | NamedTool


@dataclass(frozen=True)
class ServerTool:
    """A tool that the provider runs itself, by the vendor's name (`web_search`).

    config: the vendor's own settings for it (`max_uses` …); path: where the body has it.
    """

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    path: str = "tools[*]"


@dataclass(frozen=True)
class ChatRequest:
    """What a client asks, in no vendor's words.

    messages: the whole conversation in the normal form that is hashed and stored.
    options: by the hub's names (`max_tokens`, `temperature`, `stop_sequences` …).
    option_paths, attachment_paths: where the client's body has them, for errors and
        `ignored`: options whose name there is another; attachments in the order in
        which the messages have them.
    wire: what the dialect's own renderer needs again (`include_usage`).
    ignored: paths of what the dialect could not carry (`tools[*].strict`).
    recalled: places of messages that the log gave back in place of what the client sent:
        what a model can't read of those is no loss of the client's.
    """

    model: str | None
    messages: list[Message]
    tools: tuple[llm.Tool, ...] = ()
    server_tools: tuple[ServerTool, ...] = ()
    tool_choice: ToolChoice = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    schema: dict[str, Any] | None = None
    stream: bool = False
    wire: Mapping[str, Any] = field(default_factory=dict)
    option_paths: Mapping[str, str] = field(default_factory=dict)
    attachment_paths: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    recalled: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Usage:
    """Tokens as counted by the provider; None where it did not say.

    `input_tokens` includes the cached and the cache-writing ones, as OpenAI counts
    (Anthropic counts them apart); `output_tokens` includes reasoning.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None


@dataclass(frozen=True)
class Finish:
    """The end of an answer, always its last event.

    model: the provider's own name of what answered, where it told.
    response_json, llm_usage: the plugin's raw payload and counts, as llm logs them.
    ignored: paths of what a wire's answer has and the hub can't carry; empty from llm.
    """

    reason: FinishReason = "stop"
    stop_sequence: str | None = None
    usage: Usage = Usage()
    model: str | None = None
    response_json: dict[str, Any] | None = field(default=None, repr=False)
    llm_usage: llm.Usage = field(default_factory=llm.Usage, repr=False)
    ignored: tuple[str, ...] = ()


Event = StreamEvent | Finish


@dataclass(frozen=True, slots=True)
class Stamped:
    """An event and when it came, by time.monotonic()."""

    at: float
    event: Event


class RunningAnswer(Protocol):
    """An answer that comes in, wherever from.

    Wait for its turn, begin it, read it to its Finish; or stop it, at any time.

    model_id: llm's id of what answers; options, tools: as the model was given them.
    ignored: paths of what of the request it was not given.
    started: UTC; started_at: the same moment by time.monotonic(); both set by `begin`.
    replay_of: the id of what was recorded, where it is no model that answers.
    is_first: the first run of a model in this process that loads itself then, as far as can
        be told. runs_in_process: such a model, first run or not.
    """

    model_id: str
    options: Mapping[str, Any]
    tools: tuple[llm.Tool, ...]
    ignored: tuple[str, ...]
    started: datetime
    started_at: float
    replay_of: str | None
    is_first: bool
    runs_in_process: bool

    async def wait_turn(self, wait_s: float | None) -> bool:
        """Wait until its model may take one more request; at most `wait_s` seconds.

        Say whether others were first.

        Raises:
            Unavailable: the model is busy for longer.
        """

    async def begin(self) -> None:
        """Start, once its turn has come.

        Raises:
            Unavailable: there is no thread to run it in.
        """

    async def read(self, silence_s: float | None = None) -> list[Stamped] | None:
        """Give the events that have come, at least one; [] when all were given.

        None after `silence_s` seconds without an event.

        Raises:
            ProxyError: how it failed, after all events that came before it.
        """

    async def stop(self) -> None:
        """End it, and drop what is not read."""


Recollect = Callable[[str], Awaitable[ChatRequest]]
"""Gives a request as it is for the model of this id: with what the log knows of it."""


class Models(Protocol):
    """The models that there are, by their names."""

    def models(self) -> list[ModelEntry]: ...

    async def model(self, name: str) -> ModelEntry:
        """Show a model under one of its names.

        Raises:
            ModelNotFound: no model has it.
        """


class Answering(Protocol):
    """What answers requests: models, or recordings in their place."""

    @property
    def catalogue(self) -> Models: ...

    async def answer(
        self, request: ChatRequest, recollect: Recollect | None = None
    ) -> RunningAnswer:
        """Begin to answer.

        Raises:
            ProxyError: nothing here answers that.
        """


@dataclass(frozen=True)
class ChatResponse:
    """A whole answer: its messages (nearly always one) and its end.

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


def collect(events: Iterable[Event]) -> ChatResponse:
    """Assemble a stream's events into the whole answer.

    Equal to what llm stores of the same events: parts in the order in which they
    began, redacted reasoning moved to the front of its message, empty text dropped,
    arguments that are not JSON kept as `{"_raw": text}`. A stream that was cut
    (no Finish) reads as far as it came, with reason "stop".
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
    """Read the arguments of a tool call: a JSON object, or nothing at all, which is `{}`.

    What is neither (truncated JSON, a bare list) becomes `{"_raw": text}`, llm's
    form for it: it must not pass for a call without arguments.
    """
    if not text.strip():
        return {}
    try:
        value = payload.parse(text.encode())
    except InvalidRequest:
        value = None
    return value if isinstance(value, dict) else {"_raw": text}


def _hoist_redacted(parts: list[Part]) -> list[Part]:
    """Sort as llm does: plugins learn from the last chunk that there was reasoning."""
    return sorted(parts, key=lambda part: not (isinstance(part, ReasoningPart) and part.redacted))


class RemoteAttachment(llm.Attachment):
    """An attachment that stays where it is: a URL that our process never opens.

    llm's own Attachment sends HEAD and GET by itself, to whatever address a client
    wrote. Plugins that pass URLs on work with this one; those that would fetch the
    content get the error instead.
    """

    def resolve_type(self) -> str:
        return self.type or "image/*"

    def content_bytes(self) -> bytes:
        raise Unsupported("this model needs the content itself: send base64 data, not a URL")

    def base64_content(self) -> str:
        return str(self.content_bytes())


def attachment_from_url(url: str, *, param: str | None = None) -> llm.Attachment:
    """Make an attachment of an http(s) or data: URL. Nothing is fetched.

    A remote one has its type from the URL's ending, else `image/*`: without a type
    llm's log would ask the address for it.

    Raises:
        InvalidRequest: another scheme, or a data: URL that does not decode or has no
            data; at `param`.
    """
    scheme = url[:8].partition(":")[0].lower()
    if scheme == "data":
        head, comma, data = url[5:].partition(",")
        media_type, *parameters = head.split(";")
        if not comma:
            raise InvalidRequest("expected data:<type>;base64,<data>", param=param)
        if "base64" in [parameter.strip().lower() for parameter in parameters]:
            return attachment_from_base64(data, media_type or None, param=param)
        if not data:
            raise InvalidRequest("expected data after the comma, got none", param=param)
        media_type = (media_type or "text/plain").lower()
        return llm.Attachment(type=media_type, content=unquote_to_bytes(data))
    if scheme not in ("http", "https") or not _host(url):
        raise InvalidRequest("expected an http(s) or data: URL", param=param)
    ending = urlsplit(url).path.lower().rpartition(".")[2]
    return RemoteAttachment(type=_ENDINGS.get(ending, "image/*"), url=url)


# Not `mimetypes`: that reads the machine's own files, and a message must be stored
# alike everywhere. A page or script (`photo.php`) where a client says image gives one.
_ENDINGS: Mapping[str, str] = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "gif": "image/gif",
    "webp": "image/webp",
    "pdf": "application/pdf",
}


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def attachment_from_base64(
    data: str, media_type: str | None = None, *, param: str | None = None
) -> llm.Attachment:
    """Make an attachment of base64 text, of the type that its bytes show, else `media_type`.

    Clients label JPEG as PNG and write `image/jpg`; providers refuse both, so the
    bytes are believed.

    Raises:
        InvalidRequest: text that is not base64, or empty; at `param`.
    """
    try:
        content = base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest("expected base64 data", param=param) from None
    if not content:
        raise InvalidRequest("expected base64 data, got none", param=param)
    declared = (media_type or "application/octet-stream").lower()
    declared = "image/jpeg" if declared == "image/jpg" else declared
    return llm.Attachment(type=_sniffed(content) or declared, content=content)


_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"%PDF-", "application/pdf"),
    (b"ID3", "audio/mpeg"),
)


def _sniffed(content: bytes) -> str | None:
    if content[:4] == b"RIFF":
        return {b"WEBP": "image/webp", b"WAVE": "audio/wav"}.get(content[8:12])
    return next((type_ for magic, type_ in _MAGIC if content.startswith(magic)), None)
