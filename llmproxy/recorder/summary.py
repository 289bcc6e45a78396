"""The columns of an exchange that lists of the log show: as data, as JSON, and as a row.

Imports nothing of llm, so that a list of the log is printed without it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any, Literal, get_type_hints

from ..core.usage import ESTIMATED, FinishReason, Usage
from .damage import COUNT, EPOCH, Damage, kind_of, utc

Status = Literal["running", "ok", "error", "cancelled", "interrupted"]
Origin = Literal["llama-stack"]
Relation = Literal["reply", "compacted", "call", "quote"]
"""How an exchange continues the previous one: with its reply in the history, with one of the
replies left in a compacted history, with the task of its tool call, by quoting its reply."""

FIRST_WORDS_CHARS = 80  # of the prompt: fits in a line on a terminal
_REQUIRED = {"anthropic_messages": ("max_tokens",)}  # besides those that are never ignored
ULID_TIME_CHARS = 10  # of an id; the rest is random


@dataclass(frozen=True, kw_only=True)
class ExchangeSummary:
    """The columns of an exchange, as lists of the log show them.

    A new column needs a field here and a migration in store.py, nothing else.

    id: a lower-case ULID, also the turn's. thread_id: the turn's; None if llm's tables have no
        turn, because the response failed before any output.
    received: UTC. Other times are milliseconds from then; None if the exchange didn't get there.
    queue_ms: time that the request waited for other requests, included in all other times;
        None if it didn't wait.
    overhead_ms: time that the proxy itself has taken, without that wait: from the request to the
        start of its model, and from the model's end until this was given to the log.
    is_first_run: whether it was probably the model's first run in its process, so that
        ttft_ms includes loading it.
    model_asked: the client's name for the model. model_used: llm's id of the one that answered.
    status: "interrupted" if it was running when its process was killed, or its end was lost.
    error: the message, after `error_param`, the path of the field at fault. error_status: of the
        error itself: inside a stream the HTTP status is 200. error_kind: see core/errors.
        error_code: the vendor's code.
        retry_after_s: how long it asked to wait.
    usage: in the common format. ignored: paths of unsupported fields.
    output_tokens_estimate: our estimate of the output, if nobody has counted it.
    ttft_ms: time to the first event of any kind. first_text_ms: time to the first visible text.
    tokens_per_second: the rate of its tokens, see token_rate.py; None if there is none, and of
        a replay, whose rate is that of the recording.
    first_words: the beginning of the prompt. last_message: that of what the request ends with,
        a tool's result for example; reply_words: that of the reply, or its calls. Both are ""
        in rows that an older llmproxy wrote.
    previous_id, link: the exchange that this one continues, and how; None if it starts a
        conversation.
    recalled: number of messages that are as recorded instead of as sent by the client.
    replay_of: the exchange or recording that was replayed; such an exchange is not a turn.
    origin: where it was recorded; None if here. Those of "llama-stack" have no times: all of
        them are None, and `received` is in 1970 (see `is_timed`).
    run_id: the benchmark that sent the request, recorded_id: the exchange that it repeats,
        repeat: attempt number, 0 for a warm-up, setup_ms: time to connect, if known, which
        is not included in the other times. All None if a client sent it.
    host: the name that `import --host` gave to the log that it came from; None if recorded here.
    upstream: the name of the upstream that answered; None if llm did. upstream_request_id: its own
        id of the request, to be given to its support. refused_by: what was asked before and
        refused the request, each with its status: `anthropic: 529`.
    owner: the process that wrote it; filled in by the store.
    damage: names of what could not be read from the log: columns, of llm's turn as
        "turns.model", or "turn" (it is missing), "messages", "reply", "tools". Not a column;
        empty unless something is damaged.
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
    finish_reason: FinishReason | None = None
    stop_sequence: str | None = None
    error: str | None = None
    error_status: int | None = None
    error_kind: str | None = None
    error_code: str | None = None
    error_param: str | None = None
    retry_after_s: float | None = None
    ttft_ms: float | None = None
    first_text_ms: float | None = None
    duration_ms: float | None = None
    event_count: int = 0
    usage: Usage = Usage()
    ignored: tuple[str, ...] = ()
    first_words: str = ""
    last_message: str = ""
    reply_words: str = ""
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
    tokens_per_second: float | None = None
    overhead_ms: float | None = None
    host: str | None = None
    upstream: str | None = None
    refused_by: str | None = None
    upstream_request_id: str | None = None
    owner: str | None = None
    damage: tuple[str, ...] = ()

    @property
    def is_timed(self) -> bool:
        """Whether its times are known, `received` too; those of imported recordings are not."""
        return self.origin is None

    @property
    def ignored_by_choice(self) -> tuple[str, ...]:
        """The ignored fields that the client could have left out, for lists.

        Without those that its API requires of each request, and without "usage", which is no
        field: it says that token counts are our estimate.
        """
        required = _REQUIRED.get(self.dialect, ())
        return tuple(name for name in self.ignored if name not in (ESTIMATED, *required))

    @property
    def is_rate_estimated(self) -> bool:
        """Whether `tokens_per_second` is by our own token estimate, to be marked with `~`."""
        return self.tokens_per_second is not None and self.output_tokens_estimate is not None


def time_of_id(id: str) -> datetime | None:
    """Return the time at which an id was made, to the millisecond; None if it is no ULID."""
    try:
        ms = int(id[:ULID_TIME_CHARS].translate(_TO_BASE_32), 32)
        return datetime.fromtimestamp(ms / 1000, UTC)
    except (ValueError, OverflowError):
        return None


_TO_BASE_32 = str.maketrans("jkmnpqrstvwxyz", "ijklmnopqrstuv")


def summary_to_json(summary: ExchangeSummary) -> dict[str, Any]:
    """Convert a summary to JSON values; `damage` is a member only if there is any."""
    values = {f.name: getattr(summary, f.name) for f in fields(ExchangeSummary)}
    del values["damage"]
    return (
        values
        | {
            "received": summary.received.isoformat(),
            "usage": asdict(summary.usage),
            "ignored": list(summary.ignored),
        }
        | ({"damage": list(summary.damage)} if summary.damage else {})
    )


def timestamp(at: datetime) -> str:
    """Format a time as in `received`: UTC and of constant length, so that texts sort as times."""
    return at.astimezone(UTC).isoformat(timespec="microseconds")


def columns(summary: ExchangeSummary) -> dict[str, Any]:
    """Return the columns of a summary; `summary_of` is the reverse.

    Texts may have lone surrogates: see `storable`.
    """
    values = dict(zip(_PLAIN_COLUMNS, _plain_values(summary), strict=True))
    values["received"] = timestamp(summary.received)
    values["ignored"] = json.dumps(summary.ignored) if summary.ignored else "[]"
    values.update(zip(_USAGE_COLUMNS, _usage_values(summary.usage), strict=True))
    return values


def storable(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace lone surrogates, which SQLite can't take, by question marks.

    A model's name, for example, can be any JSON string; an argument of a command, any bytes.
    """
    return {
        name: value.encode(errors="replace").decode() if isinstance(value, str) else value
        for name, value in values.items()
    }


def summary_of(row: sqlite3.Row) -> ExchangeSummary:
    """Make a summary from its columns; what can't be one's value is named in its `damage`."""
    damage = Damage()
    values = {name: damage.value(name, row[name], kind) for name, kind in _PLAIN_COLUMNS.items()}
    usage = {name: damage.value(name, row[name], COUNT) for name in _USAGE_COLUMNS}
    received = damage.read("received", lambda: utc(row["received"]), None)
    no_texts: list[str] = []
    ignored = damage.read("ignored", lambda: _texts(json.loads(row["ignored"])), no_texts)
    return ExchangeSummary(
        **values,
        received=received or time_of_id(values["id"]) or EPOCH,
        ignored=tuple(ignored),
        usage=Usage(**usage),
        damage=damage.names,
    )


def _texts(values: Any) -> list[str]:
    if not (isinstance(values, list) and all(isinstance(value, str) for value in values)):
        raise TypeError("it is no list of texts")
    return values


_USAGE_COLUMNS = [field.name for field in fields(Usage)]
_PLAIN_COLUMNS = {
    name: kind_of(annotation)
    for name, annotation in get_type_hints(ExchangeSummary).items()
    if name not in ("received", "ignored", "usage", "damage")
}
SUMMARY_COLUMNS = (*_PLAIN_COLUMNS, "received", "ignored", *_USAGE_COLUMNS)
_plain_values = attrgetter(*_PLAIN_COLUMNS)
_usage_values = attrgetter(*_USAGE_COLUMNS)
