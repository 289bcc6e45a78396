"""Read an exported exchange from a line of JSON, checked field by field.

`recorder.exchange.encode` writes such lines. They can come from anywhere, so a line is
checked completely before anything is made of it: an error names the field by its path, and
nothing in a line makes us or llm open a file or a URL.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, BinaryIO, Literal

import llm

from ..core import attachments, payload
from ..core.errors import InvalidRequest
from ..core.limits import Limits
from ..core.usage import FinishReason, Usage
from ..recorder import timeline
from ..recorder.exchange import Exchange, from_json
from ..recorder.summary import ExchangeSummary

# A body is nested in the line, and may have been received under a wider limit.
LIMITS = Limits(json_depth=200, json_values=10**9, int_digits=4000)

MAX_INTEGER = 2**63 - 1  # of SQLite

_ULID = re.compile(r"[0-9a-z]{26}")


MAX_LINE_BYTES = 2**29  # a body with a few photos is in it twice, and escaped


# ---- a file

_BEGINNING = re.compile(rb'\s*\{\s*"id":')


def begins_an_export(head: bytes) -> bool:
    """Check whether a file that begins like this was written by `export`."""
    return _BEGINNING.match(head.removeprefix(codecs.BOM_UTF8)) is not None


def read_lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield the exchanges of a file, undecoded, each with the number of its first line.

    Each is a line, or the lines from `{` to `}` as `indent` makes them. Empty lines are left out.
    """
    lines: list[bytes] = []  # of an indented exchange
    first = size = 0
    number = 0
    while line := file.readline(MAX_LINE_BYTES):
        number += 1
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        bare = line.rstrip()
        if lines and (bare == b"{" or size + len(line) > MAX_LINE_BYTES):  # it was cut
            yield first, b"".join(lines)
            lines = []
        if lines or bare == b"{":
            first, size = (first, size + len(line)) if lines else (number, len(line))
            lines.append(line)
            if bare == b"}":
                yield first, b"".join(lines)
                lines = []
        elif bare:
            yield number, line
    if lines:
        yield first, b"".join(lines)


def indent(line: bytes) -> bytes:
    """Return an exported line with a member or an item on each line, to be read and compared."""
    try:
        return json.dumps(json.loads(line), ensure_ascii=False, indent=2).encode() + b"\n"
    except RecursionError:  # a body that nests hundreds of levels deep
        return line


# ---- the JSON form


@dataclass(frozen=True)
class AttachmentForm:
    type: str
    url: str | None = None
    content: str | None = None


@dataclass(frozen=True)
class TextForm:
    type: Literal["text"]
    text: str
    provider_metadata: dict[str, Any] | None = None


@dataclass(frozen=True)
class ReasoningForm:
    type: Literal["reasoning"]
    text: str
    redacted: bool = False
    provider_metadata: dict[str, Any] | None = None


@dataclass(frozen=True)
class ToolCallForm:
    type: Literal["tool_call"]
    name: str
    arguments: dict[str, Any]
    tool_call_id: str | None = None
    server_executed: bool = False
    provider_metadata: dict[str, Any] | None = None


@dataclass(frozen=True)
class ToolResultForm:
    type: Literal["tool_result"]
    name: str
    output: str
    tool_call_id: str | None = None
    server_executed: bool = False
    attachments: list[AttachmentForm] | None = None
    exception: str | None = None
    provider_metadata: dict[str, Any] | None = None


@dataclass(frozen=True)
class AttachmentPartForm:
    type: Literal["attachment"]
    attachment: AttachmentForm | None = None
    provider_metadata: dict[str, Any] | None = None


@dataclass(frozen=True)
class MessageForm:
    role: Literal["system", "user", "assistant", "tool"]
    parts: list[TextForm | ReasoningForm | ToolCallForm | ToolResultForm | AttachmentPartForm]
    provider_metadata: dict[str, Any] | None = None


@dataclass(frozen=True)
class ToolForm:
    name: str
    description: str | None
    input_schema: dict[str, Any]
    plugin: str | None = None


@dataclass(frozen=True)
class TurnForm:
    id: str
    thread_id: str
    model: str
    messages: list[MessageForm]
    reply: list[MessageForm]
    started: str
    duration_ms: int | None
    resolved_model: str | None
    options: dict[str, Any] | None
    tools: list[ToolForm]
    schema: dict[str, Any] | None
    usage: llm.Usage
    response_json: Any


@dataclass(frozen=True)
class TimelinePartForm:
    message: int = 0
    index: int = 0
    call: str = ""
    tool: str = ""
    name: str = ""
    arguments: str = ""
    server: bool = False
    redacted: bool = False
    empty: bool = False


@dataclass(frozen=True)
class TimelineForm:
    parts: list[TimelinePartForm]
    ticks: str


@dataclass(frozen=True)
class RequestForm:
    headers: dict[str, str]
    query: str
    body: Any


@dataclass(frozen=True, kw_only=True)
class ExchangeForm(ExchangeSummary):
    """The members of a line: those of ExchangeSummary, and the request and response."""

    received: str  # type: ignore[assignment]  # JSON has no times, tuples or running exchanges
    status: Literal["ok", "error", "cancelled", "interrupted"] = field()
    ignored: list[str] = field()  # type: ignore[assignment]
    # Every version has written these; columns of later versions keep their defaults.
    stream: bool = field()
    model_asked: str | None = field()
    model_used: str | None = field()
    thread_id: str | None = field()
    http_status: int | None = field()
    finish_reason: FinishReason | None = field()
    error: str | None = field()
    ttft_ms: float | None = field()
    first_text_ms: float | None = field()
    duration_ms: float | None = field()
    event_count: int = field()
    usage: Usage = field()
    owner: str | None = field()
    damage: list[str] = field(default_factory=list)  # type: ignore[assignment]

    request: RequestForm
    replay_key: str | None = None
    turn: TurnForm | None
    timeline: TimelineForm


# ---- reading


def decode(line: bytes, first_line: int = 1) -> Exchange:
    """Read an exported line; its times become UTC.

    first_line: its number in its file, or that of the first of its lines, for errors.

    Raises:
        InvalidRequest: the line is something else, damaged, or can't be stored as it is.
            That includes attachments with a file's path, or with a URL but no type, since
            llm would open those. `param` is the field's path.
    """
    form = payload.parse(line, LIMITS, "it", first_line=first_line)
    unknown: list[str] = []
    checked = payload.load(ExchangeForm, form, unknown)
    if unknown:
        raise InvalidRequest(
            "unknown field; a newer llmproxy may have written it", param=unknown[0]
        )
    _check_entry(checked)
    if checked.turn is not None:
        _check_turn(checked, checked.turn)
    try:
        exchange = from_json(form)
    except (ValueError, TypeError, KeyError) as exc:  # all else is checked
        raise InvalidRequest(str(exc), param="timeline") from exc
    # Otherwise it would be read differently, or not at all, once it is stored.
    if timeline.encode(exchange.events) != form["timeline"]:
        raise InvalidRequest("not as llmproxy writes it", param="timeline")
    return replace(exchange, received=exchange.received.astimezone(UTC))


def _check_entry(entry: ExchangeForm) -> None:
    _check_id(entry.id, "id")
    for name in ("previous_id", "run_id", "recorded_id"):
        _check_id(getattr(entry, name), name)
        if getattr(entry, name) == entry.id:
            raise InvalidRequest("an exchange can't come before itself", param=name)
    _check_time(entry.received, "received")
    for name, value in vars(entry).items():
        if isinstance(value, int | float):
            _check_number(value, name)
    for name, count in vars(entry.usage).items():
        _check_number(count, f"usage.{name}")
    if entry.thread_id == "":
        raise InvalidRequest("expected an id", param="thread_id")
    if entry.thread_id is not None and entry.turn is None:
        raise InvalidRequest("only an exchange with a turn can have a thread", param="thread_id")


def _check_turn(entry: ExchangeForm, turn: TurnForm) -> None:
    if turn.id != entry.id:
        raise InvalidRequest("must be the id of its exchange", param="turn.id")
    _check_time(turn.started, "turn.started")
    _check_number(turn.duration_ms, "turn.duration_ms")
    _check_number(turn.usage.input, "turn.usage.input")
    _check_number(turn.usage.output, "turn.usage.output")
    for place, attachment in _attachments(turn):
        _check_attachment(attachment, place)


def _check_id(id: str | None, param: str) -> None:
    if id is not None and not _ULID.fullmatch(id):
        raise InvalidRequest("expected a ULID in lower case", param=param)


def _check_time(text: str, param: str) -> None:
    try:
        at = datetime.fromisoformat(text)
        if at.tzinfo is None:
            raise InvalidRequest("a time needs a time zone", param=param)
        at.astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest("expected an ISO time", param=param) from None


def _check_number(number: float | None, param: str) -> None:
    if number is not None and not abs(number) <= MAX_INTEGER:
        raise InvalidRequest("a number is too large", param=param)


def _attachments(turn: TurnForm) -> Iterator[tuple[str, AttachmentForm]]:
    for name, messages in (("messages", turn.messages), ("reply", turn.reply)):
        for i, message in enumerate(messages):
            for j, part in enumerate(message.parts):
                place = f"turn.{name}[{i}].parts[{j}]"
                match part:
                    case AttachmentPartForm(attachment=AttachmentForm() as attachment):
                        yield f"{place}.attachment", attachment
                    case ToolResultForm(attachments=attachments) if attachments:
                        for k, attachment in enumerate(attachments):
                            yield f"{place}.attachments[{k}]", attachment


def _check_attachment(attachment: AttachmentForm, place: str) -> None:
    """Accept only attachments that llm stores without opening anything: typed, and no path."""
    if not attachment.type:
        raise InvalidRequest("an attachment needs a type", param=f"{place}.type")
    if attachment.url is not None:
        if attachment.content is not None:
            raise InvalidRequest("expected a url or content, got both", param=place)
        if attachments.attachment_from_url(attachment.url, param=f"{place}.url").url is None:
            raise InvalidRequest("expected an http(s) URL", param=f"{place}.url")
    try:
        base64.b64decode(attachment.content or "", validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest("expected base64 data", param=f"{place}.content") from None
