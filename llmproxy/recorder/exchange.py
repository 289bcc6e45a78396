"""The data that the log keeps, independent of models and databases.

An exchange is one HTTP request that reached a dialect, with its response. `begun` makes it
and removes secrets, `Exchange.ended` completes it. Its JSON form (`to_json`, `from_json`,
`encode`) is that of the spool, export and import.

A `Turn` is the part of an exchange that llm's own tables hold. It is plain data, so that
partial and imported responses are logged in the same way as finished ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from typing import Any, NamedTuple

import llm
from llm.parts import Message, TextPart
from llm.utils import monotonic_ulid

from ..core import attachments, chat, payload, token_estimate
from ..core.errors import ProxyError, retry_after_s
from ..core.fingerprints import HistoryHasher
from ..core.finish_reasons import finer_reason
from ..core.known_keys import KnownKeys
from ..core.usage import Usage
from . import timeline, token_rate
from .excerpts import last_message, reply_words
from .redact import Redactor
from .summary import (
    FIRST_WORDS_CHARS,
    ExchangeSummary,
    Relation,
    summary_to_json,
)
from .timeline import TimedEvent


@dataclass(frozen=True)
class Turn:
    """A request to a model and its reply, as `llm logs` shows them.

    id, thread_id: lower-case ULIDs. The thread is that of the turn if it starts one; the
        writer may put it into the previous turn's thread.
    model: llm's id of the model. resolved_model: the provider's name for it.
    messages: the whole conversation in the request, in normal form.
    reply: what the model produced, which may be incomplete or empty.
    options: as given to the model.
    usage: the plugin's own counts, as llm logs them.
    started: UTC. duration_ms: until the last event; None if it was not measured.
    """

    id: str
    thread_id: str
    model: str
    messages: list[Message]
    reply: list[Message]
    started: datetime
    duration_ms: int | None
    resolved_model: str | None = None
    options: dict[str, Any] | None = None
    tools: tuple[llm.Tool, ...] = ()
    schema: dict[str, Any] | None = None
    usage: llm.Usage = field(default_factory=llm.Usage)
    response_json: dict[str, Any] | None = None


@dataclass(frozen=True)
class RawRequest:
    """A request as received, without its secrets; `body` is JSON, or text if it is not JSON."""

    headers: Mapping[str, str]
    query: str
    body: Any


class Fingerprinted(NamedTuple):
    """Messages with the digest of each (`fingerprints.digest_of`), and a hasher of all."""

    messages: list[Message]
    digests: list[bytes]
    hasher: HistoryHasher


@dataclass(frozen=True, kw_only=True)
class Exchange(ExchangeSummary):
    """A complete exchange.

    turn: None if no model was run; its reply is empty if the model produced nothing, and
        then the log keeps only its model and messages.
    events: what the client was sent, without the Finish, which is the property `finish`.
    replay_key: by which replay finds the request (`fingerprints.request_key`); None if the
        request could not be parsed.
    redactor: knows the request's secrets while the exchange runs; never stored.
    history: what is known of the turn's messages since they were looked up; never stored.
    """

    request: RawRequest
    turn: Turn | None = None
    events: Sequence[TimedEvent] = ()
    replay_key: str | None = None
    redactor: Redactor = field(default_factory=Redactor, repr=False, compare=False)
    history: Fingerprinted | None = field(default=None, repr=False, compare=False)

    @property
    def fingerprinted(self) -> Fingerprinted | None:
        """What is known of the turn's messages; None if these are others."""
        known, turn = self.history, self.turn
        is_same = known is not None and turn is not None and known.messages is turn.messages
        return known if is_same else None

    @property
    def finish(self) -> chat.Finish | None:
        """The end of the response; None if it is incomplete."""
        if self.finish_reason is None:
            return None
        finish = chat.Finish(self.finish_reason, self.stop_sequence, self.usage)
        if self.turn is None:
            return finish
        return replace(
            finish,
            provider_reason=_provider_reason(self.turn.response_json),
            model=self.turn.resolved_model,
            response_json=self.turn.response_json,
            llm_usage=self.turn.usage,
        )


def _provider_reason(response_json: Any) -> str | None:
    match response_json:
        case {"stop_reason": word}:  # Anthropic's, the only one with reasons finer than ours
            return finer_reason(word, is_anthropics=True)
    return None


@dataclass(frozen=True)
class Match:
    """The recorded conversation that a request continues.

    messages: the request's own, recalled ones in place of what the client sent;
        recalled: their places.
    previous_id: the turn that it continues, None if it begins a conversation.
    link: how it continues that turn: see `Relation`.
    history: the fingerprints of the messages, so that they need not be hashed again.
    """

    messages: list[Message]
    recalled: frozenset[int] = frozenset()
    previous_id: str | None = None
    link: Relation | None = None
    history: Fingerprinted | None = field(default=None, repr=False, compare=False)


def with_answer(
    exchange: Exchange,
    turn: Turn | None,
    events: Sequence[TimedEvent],
    finish: chat.Finish | None,
    reply: Sequence[Message] = (),
) -> Exchange:
    """Return an ended exchange with its answer, and all that follows from that.

    reply: as far as it came, also where there is no turn, as in a replay.
    events: without the Finish. finish: None if the answer was cut short.
    """
    visible = (at for at, event in events if event.type == "text" and event.chunk.strip())
    usage = finish.usage if finish else Usage()
    estimate = None
    if turn and turn.reply and usage.output_tokens is None:
        estimate = token_estimate.estimate_reply(turn.reply)
    # All events came at once, so that there is no rate: two looks at each event less.
    is_too_short = not events or events[-1][0] - events[0][0] < token_rate.MIN_SPAN_MS - 1
    is_turn = turn is not None and (exchange.status == "ok" or turn.reply)
    return changed(
        exchange,
        turn=turn,
        thread_id=turn.thread_id if turn and is_turn else None,
        model_used=turn.model if turn else exchange.model_used,
        first_words=first_words(turn.messages) if turn else exchange.first_words,
        reply_words=reply_words(reply),
        events=events,
        event_count=len(events),
        ttft_ms=events[0][0] if events else None,
        first_text_ms=next(visible, None),
        finish_reason=finish.reason if finish else None,
        stop_sequence=finish.stop_sequence if finish else None,
        usage=usage,
        output_tokens_estimate=estimate,
        tokens_per_second=None
        if exchange.replay_of is not None or is_too_short
        else token_rate.tokens_per_second(timeline.EventTicks(events), usage, estimate),
    )


def changed(exchange: Exchange, **changes: Any) -> Exchange:
    """Return a copy with other values of some fields.

    As dataclasses.replace, which takes 25 µs for so many fields, this 3; it is called three
    times for each exchange.
    """
    copy = object.__new__(Exchange)
    copy.__dict__.update(exchange.__dict__, **changes)
    return copy


def with_error(exchange: Exchange, error: ProxyError) -> Exchange:
    """Return an exchange with the facts of the error that ended it, cleaned of keys."""
    redact = exchange.redactor.text
    return changed(
        exchange,
        error=redact(error.full_message),
        error_status=error.status,
        error_kind=error.kind,
        error_code=None if error.code is None else redact(error.code),
        error_param=None if error.param is None else redact(error.param),
        retry_after_s=retry_after_s(error.headers),
    )


def new_id() -> str:
    """Return a lower-case ULID, larger than all before it."""
    # Two characters at a time: two thirds of the time of its `str`, 3 µs less for each of two.
    number = int.from_bytes(monotonic_ulid().bytes, "big")
    return "".join([_BASE_32_PAIRS[number >> shift & 1023] for shift in _PAIR_SHIFTS])


_BASE_32 = "0123456789abcdefghjkmnpqrstvwxyz"
_BASE_32_PAIRS = [first + second for first in _BASE_32 for second in _BASE_32]
_PAIR_SHIFTS = range(120, -1, -10)


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
    return changed(
        _NEW,
        id=id,
        received=received,
        dialect=dialect,
        path=redactor.line(path),
        client=redactor.line(client),
        stream=stream,
        model_asked=model,
        first_words=first_words(messages),
        last_message=last_message(messages),
        request=RawRequest(redactor.headers(headers), redactor.query(query), redactor.body(body)),
        replay_key=replay_key,
        redactor=redactor,
    )


_NEW = Exchange(
    id="",
    received=datetime.min,
    dialect="",
    path="",
    client="",
    request=RawRequest({}, "", None),
)


def last_text(messages: Sequence[Message], role: str) -> str:
    """Return the last text that is not blank; agents put reminders before the user's own text."""
    texts = (
        part.text
        for message in reversed(messages)
        if message.role == role
        for part in reversed(message.parts)
        if isinstance(part, TextPart) and part.text.strip()
    )
    return next(texts, "")


def first_words(messages: Sequence[Message]) -> str:
    """Return the beginning of a prompt on one line, for the column `first_words`."""
    text = last_text(messages, "user").lstrip()[: 4 * FIRST_WORDS_CHARS]
    return " ".join(text.split())[:FIRST_WORDS_CHARS]


def with_remote_attachments(messages: Iterable[Message]) -> list[Message]:
    """Mark the URLs of messages from the log as remote: llm must not open them."""
    return [attachments.map_attachments(message, _remote) for message in messages]


def _remote(attachment: llm.Attachment) -> llm.Attachment:
    if not attachment.url:
        return attachment
    return attachments.RemoteAttachment(type=attachment.type, url=attachment.url)


def to_json(exchange: Exchange) -> dict[str, Any]:
    """Convert an exchange to JSON values; only its events' times are rounded."""
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
    values = to_json(exchange)
    try:
        return payload.encode(values, in_pieces=True) + b"\n"
    except (ValueError, TypeError):
        return payload.encode(_encodable(values), in_pieces=True) + b"\n"


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


def from_json(values: Mapping[str, Any]) -> Exchange:
    """Convert the values of `to_json` back to an exchange.

    Raises:
        ValueError, TypeError, KeyError: the values are something else.
    """
    # Columns that an older version did not have get their defaults.
    summary = {f.name: values[f.name] for f in fields(ExchangeSummary) if f.name in values}
    turn = None if values["turn"] is None else _turn_from_json(values["turn"])
    if turn is not None and values.get("origin") is not None:
        turn = replace(turn, duration_ms=None)  # older versions wrote 0
    exchange = Exchange(
        **summary
        | {
            "received": datetime.fromisoformat(values["received"]),
            "usage": Usage(**values["usage"]),
            "ignored": tuple(values["ignored"]),
            "damage": tuple(values.get("damage", ())),
        },
        request=RawRequest(**values["request"]),
        turn=turn,
        events=timeline.decode(values["timeline"], turn.reply if turn else []),
        replay_key=values.get("replay_key"),
    )
    if "tokens_per_second" in values or exchange.replay_of is not None:
        return exchange
    ticks = timeline.EventTicks(exchange.events)
    usage, estimate = exchange.usage, exchange.output_tokens_estimate
    return changed(exchange, tokens_per_second=token_rate.tokens_per_second(ticks, usage, estimate))


def _turn_to_json(turn: Turn) -> dict[str, Any]:
    values = {f.name: getattr(turn, f.name) for f in fields(Turn)}
    return values | {
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


def _turn_from_json(values: Mapping[str, Any]) -> Turn:
    converted = {
        "messages": with_remote_attachments(map(Message.from_dict, values["messages"])),
        "reply": with_remote_attachments(map(Message.from_dict, values["reply"])),
        "started": datetime.fromisoformat(values["started"]),
        "tools": tuple(llm.Tool(**tool) for tool in values["tools"]),
        "usage": llm.Usage(**values["usage"]),
    }
    return Turn(**dict(values) | converted)
