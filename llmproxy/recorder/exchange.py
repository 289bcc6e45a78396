"""What the log keeps, as plain data that needs neither a model nor a database.

An exchange is one HTTP request that reached a dialect, with its answer. It begins
with `begun`, which takes the secrets out, and ends with `Exchange.ended`. Its one JSON
form (`to_json`, `from_json`) serves the spool, export and import alike.

A `Turn` is what llm's own tables hold of an exchange. It is data alone, so that partial
and imported answers are logged by the same way as finished ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from typing import Any, Literal

import llm
from llm.parts import AttachmentPart, Message, Part, TextPart, ToolResultPart

from ..core import attachments, chat, payload, token_estimate
from ..core.known_keys import KnownKeys
from . import timeline
from .redact import Redactor
from .timeline import TimedEvent

__all__ = [
    "ExchangeSummary",
    "Exchange",
    "Relation",
    "Origin",
    "RawRequest",
    "Status",
    "Turn",
    "begun",
    "summary_to_json",
    "first_words",
    "from_json",
    "last_text",
    "to_json",
    "with_remote_attachments",
]

Status = Literal["running", "ok", "error", "cancelled", "interrupted"]

Origin = Literal["llama-stack"]

Relation = Literal["reply", "compacted", "call", "quote"]
"""How an exchange goes on from the one before it: by its reply in the history, by one of
the replies that a compacted history kept, as the task of a tool call, by quoting it."""

FIRST_WORDS_CHARS = 80  # of the prompt: what a line on a terminal has room for
MAX_TEXT_BODY_CHARS = 64 * 2**10  # of a body that is no JSON: enough to see what it was


@dataclass(frozen=True)
class Turn:
    """One request and what was answered to it, as `llm logs` shows it.

    id, thread_id: lower-case ULIDs; the thread is made with its first turn. What is
        written may go on with another thread, that of the turn before it.
    model: llm's id of the model; resolved_model: the provider's own name for it.
    messages: the whole conversation that was asked, in normal form.
    reply: what the model produced, perhaps cut short, perhaps nothing.
    options: as the model was given them.
    usage: the plugin's own counts, as llm logs them.
    started: UTC; duration_ms: until the last event.
    """

    id: str
    thread_id: str
    model: str
    messages: list[Message]
    reply: list[Message]
    started: datetime
    duration_ms: int
    resolved_model: str | None = None
    options: dict[str, Any] | None = None
    tools: tuple[llm.Tool, ...] = ()
    schema: dict[str, Any] | None = None
    usage: llm.Usage = field(default_factory=llm.Usage)
    response_json: dict[str, Any] | None = None


@dataclass(frozen=True)
class RawRequest:
    """A request as it came, but for its secrets; `body` is JSON, or a text that is not."""

    headers: Mapping[str, str]
    query: str
    body: Any


@dataclass(frozen=True, kw_only=True)
class ExchangeSummary:
    """An exchange in short, as a list of the log shows it.

    id: a lower-case ULID, the turn's too; thread_id: the turn's, None where llm's tables
        have no turn of it: the answer failed before it brought anything.
    received: UTC; times in milliseconds from then, None where it did not come to that.
    queue_ms: how long it waited for its turn to run, which all of these times include; None
        where no other request was first.
    is_first_run: the model's first run in its process, as far as can be told: the time to its
        first event then includes loading it.
    model_asked: as the client wrote it; model_used: llm's id of what answered.
    status: "interrupted" is what was running when its process was killed.
    error: in words; usage: as the hub counts; ignored: paths that were not carried.
    output_tokens_estimate: ours, of what was answered, where nobody has counted.
    ttft_ms: until the first event of any kind; first_text_ms: until the first visible text.
    first_words: how the prompt begins.
    previous_id: the exchange whose reply this one goes on from, and `link` in which way;
        None where a conversation begins.
    recalled: how many of its messages are as they were recorded, not as the client sent them.
    replay_of: the exchange, or the recording, that was played again; it is no turn then.
    origin: where it was recorded, None for here; of "llama-stack" there are no times.
    run_id: the benchmark that asked; recorded_id: the exchange that it asked again, `repeat`
        the how manieth time (0 is a warm-up); setup_ms: what connecting took, where that is
        known: it is in none of the other times. All None where a client asked.
    owner: the process that wrote it; the store fills it in.
    """

    id: str
    received: datetime
    dialect: str
    path: str
    client: str
    stream: bool = False
    model_asked: str | None = None
    model_used: str | None = None
    thread_id: str | None = None
    status: Status = "running"
    http_status: int | None = None
    finish_reason: chat.FinishReason | None = None
    stop_sequence: str | None = None
    error: str | None = None
    ttft_ms: float | None = None
    first_text_ms: float | None = None
    duration_ms: float | None = None
    event_count: int = 0
    usage: chat.Usage = chat.Usage()
    ignored: tuple[str, ...] = ()
    first_words: str = ""
    previous_id: str | None = None
    link: Relation | None = None
    recalled: int = 0
    replay_of: str | None = None
    origin: Origin | None = None
    run_id: str | None = None
    recorded_id: str | None = None
    repeat: int | None = None
    setup_ms: float | None = None
    queue_ms: float | None = None
    is_first_run: bool = False
    output_tokens_estimate: int | None = None
    owner: str | None = None


@dataclass(frozen=True, kw_only=True)
class Exchange(ExchangeSummary):
    """An exchange whole.

    turn: None where no model was asked, with an empty reply where it produced nothing;
        of those the log keeps the model and the messages alone.
    events: what the client was sent, without the Finish, which `finish` makes again.
    replay_key: what the request is known by when it comes again (`chain.request_key`),
        None where it could not be read.
    redactor: knows the request's secrets while it runs; never kept.
    """

    request: RawRequest
    turn: Turn | None = None
    events: Sequence[TimedEvent] = ()
    replay_key: str | None = None
    redactor: Redactor = field(default_factory=Redactor, repr=False, compare=False)

    @property
    def finish(self) -> chat.Finish | None:
        """The end of the answer, None where it did not come to that."""
        if self.finish_reason is None:
            return None
        finish = chat.Finish(self.finish_reason, self.stop_sequence, self.usage)
        if self.turn is None:
            return finish
        return replace(
            finish,
            model=self.turn.resolved_model,
            response_json=self.turn.response_json,
            llm_usage=self.turn.usage,
        )

    def ended(
        self,
        status: Status,
        *,
        http_status: int | None,
        duration_ms: float,
        turn: Turn | None = None,
        events: Sequence[TimedEvent] = (),
        finish: chat.Finish | None = None,
        error: str | None = None,
        ignored: Iterable[str] = (),
        previous_id: str | None = None,
        link: Relation | None = None,
        recalled: int = 0,
        model_used: str | None = None,
        replay_of: str | None = None,
        queue_ms: float | None = None,
        is_first_run: bool = False,
    ) -> Exchange:
        """Give the exchange as it ended, however that was; secrets are taken out of `error`.

        http_status: None where the client had gone before there was one.
        finish: the answer's own, or None where it was cut short.
        model_used: the turn's, where there is one.
        """
        visible = (at for at, event in events if event.type == "text" and event.chunk.strip())
        is_turn = turn is not None and (status == "ok" or turn.reply)
        usage = finish.usage if finish else chat.Usage()
        estimate = token_estimate.estimate_reply(turn.reply) if turn and turn.reply else None
        return replace(
            self,
            status=status,
            http_status=http_status,
            duration_ms=duration_ms,
            turn=turn,
            thread_id=turn.thread_id if turn and is_turn else None,
            model_used=turn.model if turn else model_used,
            first_words=first_words(turn.messages) if turn else self.first_words,
            events=events,
            event_count=len(events),
            ttft_ms=events[0][0] if events else None,
            first_text_ms=next(visible, None),
            finish_reason=finish.reason if finish else None,
            stop_sequence=finish.stop_sequence if finish else None,
            usage=usage,
            output_tokens_estimate=estimate if usage.output_tokens is None else None,
            queue_ms=queue_ms,
            is_first_run=is_first_run,
            error=None if error is None else self.redactor.words(error),
            ignored=tuple(ignored),
            previous_id=previous_id,
            link=link,
            recalled=recalled,
            replay_of=replay_of,
        )


def begun(
    id: str,
    received: datetime,
    *,
    dialect: str,
    path: str,
    query: str,
    client: str,
    headers: Iterable[tuple[str, str]],
    body: Any,
    stream: bool = False,
    model: str | None = None,
    messages: Sequence[Message] = (),
    replay_key: str | None = None,
    keys: KnownKeys | None = None,
) -> Exchange:
    """Begin an exchange: the request as it came, its secrets taken out.

    keys: those that what is said of its failure must not have.
    stream, model, messages, replay_key: as the dialect read it; left out where it could not.
    """
    redactor = Redactor(keys)
    if isinstance(body, str):
        body = body[:MAX_TEXT_BODY_CHARS]
    return Exchange(
        id=id,
        received=received,
        dialect=dialect,
        path=path,
        client=client,
        stream=stream,
        model_asked=model,
        first_words=first_words(messages),
        request=RawRequest(redactor.headers(headers), redactor.query(query), redactor.body(body)),
        replay_key=replay_key,
        redactor=redactor,
    )


def last_text(messages: Sequence[Message], role: str) -> str:
    """The last text that is not blank; agents put reminders before a person's own words."""
    texts = (
        part.text
        for message in reversed(messages)
        if message.role == role
        for part in reversed(message.parts)
        if isinstance(part, TextPart) and part.text.strip()
    )
    return next(texts, "")


def first_words(messages: Sequence[Message]) -> str:
    """How a prompt begins, on one line: what an entry's `first_words` holds."""
    text = last_text(messages, "user").lstrip()[: 4 * FIRST_WORDS_CHARS]
    return " ".join(text.split())[:FIRST_WORDS_CHARS]


def with_remote_attachments(messages: Iterable[Message]) -> list[Message]:
    """Give messages that were read back with their URLs as the hub has them: never opened."""
    return [
        replace(message, parts=[_with_remote_attachments(part) for part in message.parts])
        for message in messages
    ]


def _with_remote_attachments(part: Part) -> Part:
    match part:
        case AttachmentPart(attachment=llm.Attachment() as attachment):
            return replace(part, attachment=_remote(attachment))
        case ToolResultPart(attachments=[*attachments]) if attachments:
            return replace(part, attachments=[_remote(attachment) for attachment in attachments])
        case _:
            return part


def _remote(attachment: llm.Attachment) -> llm.Attachment:
    if not attachment.url:
        return attachment
    return attachments.RemoteAttachment(type=attachment.type, url=attachment.url)


def summary_to_json(entry: ExchangeSummary) -> dict[str, Any]:
    """Give an exchange in short as JSON values."""
    form = {f.name: getattr(entry, f.name) for f in fields(ExchangeSummary)}
    return form | {
        "received": entry.received.isoformat(),
        "usage": asdict(entry.usage),
        "ignored": list(entry.ignored),
    }


def to_json(exchange: Exchange) -> dict[str, Any]:
    """Give an exchange as JSON values, complete but for what the timeline rounds."""
    return summary_to_json(exchange) | {
        "request": {
            "headers": dict(exchange.request.headers),
            "query": exchange.request.query,
            "body": exchange.request.body,
        },
        "replay_key": exchange.replay_key,
        "turn": None if exchange.turn is None else _turn_to_json(exchange.turn),
        "timeline": timeline.encode(exchange.events),
    }


def encode(exchange: Exchange) -> bytes:
    """Encode an exchange as one line of strict JSON, newline included.

    Values without a JSON form, which some plugins leave in response_json, are replaced: NaN
    and infinities by null, lone surrogates by U+FFFD, objects by their `str()`.
    """
    form = to_json(exchange)
    try:
        return payload.encode(form) + b"\n"
    except (ValueError, TypeError):
        return payload.encode(_encodable(form)) + b"\n"


def _encodable(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case float() if not math.isfinite(value):
            return None
        case None | bool() | int() | float():
            return value
        case dict():
            return {_encodable(name): _encodable(member) for name, member in value.items()}
        case list() | tuple():
            return [_encodable(item) for item in value]
    return str(value)


def from_json(form: Mapping[str, Any]) -> Exchange:
    """Read what `to_json` gave.

    Raises:
        ValueError, TypeError, KeyError: it is something else.
    """
    # What an older version did not have yet has its default.
    entry = {f.name: form[f.name] for f in fields(ExchangeSummary) if f.name in form}
    turn = None if form["turn"] is None else _turn_from_json(form["turn"])
    return Exchange(
        **entry
        | {
            "received": datetime.fromisoformat(form["received"]),
            "usage": chat.Usage(**form["usage"]),
            "ignored": tuple(form["ignored"]),
        },
        request=RawRequest(**form["request"]),
        turn=turn,
        events=timeline.decode(form["timeline"], turn.reply if turn else []),
        replay_key=form.get("replay_key"),
    )


def _turn_to_json(turn: Turn) -> dict[str, Any]:
    form = {f.name: getattr(turn, f.name) for f in fields(Turn)}
    return form | {
        "messages": [message.to_dict() for message in turn.messages],
        "reply": [message.to_dict() for message in turn.reply],
        "started": turn.started.isoformat(),
        "tools": [
            {
                "name": tool.name,
                "description": tool.description,
                "input_schema": tool.input_schema,
                "plugin": tool.plugin,
            }
            for tool in turn.tools
        ],
        "usage": asdict(turn.usage),
    }


def _turn_from_json(form: Mapping[str, Any]) -> Turn:
    read = {
        "messages": with_remote_attachments(map(Message.from_dict, form["messages"])),
        "reply": with_remote_attachments(map(Message.from_dict, form["reply"])),
        "started": datetime.fromisoformat(form["started"]),
        "tools": tuple(llm.Tool(**tool) for tool in form["tools"]),
        "usage": llm.Usage(**form["usage"]),
    }
    return Turn(**dict(form) | read)
