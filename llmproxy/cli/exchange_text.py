"""Format exchanges for a terminal: one per line, or one in full.

Returns text and prints nothing. Text from clients and models is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime

from llm.parts import (
    AttachmentPart,
    Message,
    Part,
    ReasoningPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)

from ..core import chat, payload
from ..core.text import Colour, painted, printable
from ..recorder.exchange import Exchange, ExchangeSummary
from ..recorder.timeline import TimedEvent
from ..report.numbers import amount, count_of
from .columns import Cell, cell, joined

_STATUS_COLOURS: dict[str, Colour] = {
    "ok": "green",
    "error": "red",
    "cancelled": "yellow",
    "interrupted": "yellow",
    "running": "blue",
}
_BARS = " ▁▂▃▄▅▆▇█"
TIMELINE_COLUMNS = 60


OMITTED = (3, 8, 7, 6, 2, 4, 1)
"""Columns of `summary_row` that a narrow terminal goes without, the first ones first: API,
speed, tokens, first event, client, model, time."""


def summary_row(entry: ExchangeSummary) -> list[Cell]:
    """Format an exchange as columns.

    Its ID (for `log ID`), time, client, API, model, status, time to the first event, tokens in
    and out, tokens per second, and the first words of the prompt or the error.
    """
    columns = [
        entry.id,
        local_time(entry.received) if entry.is_timed else "-",
        entry.client,
        entry.dialect,
        _model(entry),
        _status(entry),
        "" if entry.ttft_ms is None else _first_event(entry),
        tokens_in_and_out(entry.usage),
        _speed(entry),
        printable(_damaged(entry.damage)) if entry.damage else "",
        entry.error or entry.first_words,
    ]
    row = [cell(printable(column)) for column in columns]
    row[5] = cell(columns[5], _STATUS_COLOURS[entry.status])
    row[-2] = cell(columns[-2], "red")
    return row


def summary_line(entry: ExchangeSummary, *, id: bool = True) -> str:
    """Format an exchange as one line, for a pipe or a file: `summary_row` without empty columns."""
    return joined(summary_row(entry)[0 if id else 1 :])


def local_time(at: datetime) -> str:
    """Format a time in the terminal's zone, with its year if that is not this year."""
    local = at.astimezone()
    year = "" if local.year == datetime.now().year else f"{local.year:04}-"
    return f"{year}{local:%m-%d %H:%M:%S}"


def _damaged(damage: Iterable[str]) -> str:
    return f"damaged: {', '.join(damage)}"


def damage_lines(damaged: Mapping[str, Iterable[str]]) -> list[str]:
    """Name the exchanges that can't be read completely, by their ids; empty if all can be."""
    lines = [printable(f"{id} is {_damaged(names)}") for id, names in damaged.items()]
    return [*lines, "`log --verify` may say more"] if lines else []


def _status(entry: ExchangeSummary) -> str:
    status = "replayed" if entry.replay_of and entry.status == "ok" else entry.status
    if entry.status == "ok" or entry.http_status is None:
        return status
    return f"{status} {entry.http_status}"


def _model(entry: ExchangeSummary) -> str:
    asked, used = entry.model_asked, entry.model_used
    if asked and used and asked != used:
        return f"{asked}→{used}"
    return used or asked or "-"


def _first_event(entry: ExchangeSummary) -> str:
    """Format the time to the first event, and what it includes besides generating."""
    assert entry.ttft_ms is not None
    parts = [] if entry.queue_ms is None else [f"{_seconds(entry.queue_ms)} of it waiting"]
    if entry.is_first_run:
        parts.append("first run")
    return _seconds(entry.ttft_ms) + (f" ({', '.join(parts)})" if parts else "")


def _seconds(ms: float) -> str:
    """Format a time in seconds, so that all times of a list have one unit."""
    seconds = max(ms, 0.0) / 1000  # of two clocks, the later one may read less
    return f"{seconds:.2f}s" if seconds >= 0.01 else f"{seconds:.4f}s"


def tokens_in_and_out(usage: chat.Usage) -> str:
    """Format the provider's token counts, "?" for a missing one; empty if it reported none."""
    if usage.input_tokens is None and usage.output_tokens is None:
        return ""
    into, out = (
        "?" if count is None else f"{count:,}"
        for count in (usage.input_tokens, usage.output_tokens)
    )
    return f"{into}→{out} tokens"


def _speed(entry: ExchangeSummary) -> str:
    """Format tokens per second; `~` marks a rate by our own token estimate."""
    if entry.tokens_per_second is None:
        return ""
    about = "~" if entry.is_rate_estimated else ""
    return f"{about}{amount(entry.tokens_per_second, 'tokens_per_second')}"


def exchange_page(exchange: Exchange, *, colours: bool = False) -> str:
    """Format one exchange in full: facts, request, conversation, reply, timeline."""
    sections = [_facts(exchange, colours), _request(exchange, colours)]
    if exchange.turn is not None:
        sections += _messages(exchange.turn.messages, colours)
        sections += _messages(exchange.turn.reply, colours, is_reply=True)
    if exchange.is_timed:
        sections.append(_timeline(exchange.events, exchange.duration_ms, colours))
    return "\n\n".join(section for section in sections if section)


def _facts(exchange: Exchange, colours: bool) -> str:
    usage = exchange.usage
    details = [
        f"{count:,} {label}"
        for count, label in (
            (usage.cached_tokens, "cached"),
            (usage.cache_write_tokens, "written to the cache"),
            (usage.reasoning_tokens, "reasoning"),
        )
        if count
    ]
    times = [
        f"{label} {_seconds(ms)}"
        for label, ms in (
            ("connected", exchange.setup_ms),
            ("waited (in all of these)", exchange.queue_ms),
            ("first event" + " (first run)" * exchange.is_first_run, exchange.ttft_ms),
            ("first text", exchange.first_text_ms),
            ("total", exchange.duration_ms),
            ("the proxy's own", exchange.overhead_ms),
        )
        if ms is not None
    ]
    ending = [exchange.finish_reason or "", f"at {exchange.stop_sequence!r}"]
    if exchange.stop_sequence is None:
        ending.pop()
    facts = {
        "exchange": exchange.id,
        "received": exchange.received.astimezone().isoformat() if exchange.is_timed else "",
        "client": exchange.client,
        "API": f"{exchange.dialect} {exchange.path}" + (", streamed" * exchange.stream),
        "model": _model(exchange),
        "status": painted(_status(exchange), _STATUS_COLOURS[exchange.status], colours),
        "finish": " ".join(ending).strip(),
        "error": exchange.error or "",
        "retry": "" if exchange.retry_after_s is None else f"after {exchange.retry_after_s:g}s",
        "time": ", ".join(times),
        "tokens": ", ".join(filter(None, (tokens_in_and_out(usage), *details, _speed(exchange)))),
        "thread": exchange.thread_id or "",
        "continues": " ".join(filter(None, [exchange.previous_id, _links(exchange)])),
        "recalled": count_of(exchange.recalled, "message") if exchange.recalled else "",
        "replay of": exchange.replay_of or "",
        "run": exchange.run_id or "",
        "repeats": exchange.recorded_id or "",
        "origin": exchange.origin or "",
        "ignored": ", ".join(exchange.ignored),
        "damaged": ", ".join(exchange.damage),
    }
    return "\n".join(
        f"{painted(f'{name:9}', 'dim', colours)} {value if name == 'status' else printable(value)}"
        for name, value in facts.items()
        if value
    )


def _links(entry: ExchangeSummary) -> str:
    return f"({entry.link})" if entry.link not in (None, "reply") else ""


def _request(exchange: Exchange, colours: bool) -> str:
    """Format the request without its messages, which follow in normal form."""
    body = exchange.request.body
    if isinstance(body, dict) and exchange.turn is not None and "messages" not in exchange.damage:
        body = {name: value for name, value in body.items() if name != "messages"}
    text = body if isinstance(body, str) else payload.encode(body).decode()
    return f"{_title('request', colours)}\n{printable(text, lines=True)}"


def _title(text: str, colours: bool) -> str:
    return painted(f"── {text} ──", "bold", colours)


def _messages(
    messages: Iterable[Message], colours: bool, *, is_reply: bool = False
) -> Iterator[str]:
    for message in messages:
        title = "reply" if is_reply else message.role
        parts = "\n".join(_part(part, colours) for part in message.parts)
        yield f"{_title(title, colours)}\n{parts}"


def _part(part: Part, colours: bool) -> str:
    match part:
        case TextPart(text=text):
            return printable(text, lines=True)
        case ReasoningPart(text=text, redacted=redacted):
            shown = "(hidden reasoning)" if redacted else text
            return painted(printable(shown, lines=True), "dim", colours)
        case ToolCallPart(name=name, arguments=arguments, tool_call_id=id_):
            call = f"→ {name}({payload.encode(arguments).decode()})  {id_ or ''}"
            return painted(printable(call), "blue", colours)
        case ToolResultPart(name=name, output=output, exception=exception):
            verb = "failed" if exception else "returned"
            return printable(f"← {name} {verb}: {output}", lines=True)
        case AttachmentPart(attachment=attachment) if attachment is not None:
            size = f"{len(attachment.content):,} bytes" if attachment.content else attachment.url
            return printable(f"[{attachment.type}, {size}]")
    return printable(str(part.to_dict()))


def _timeline(events: Sequence[TimedEvent], duration_ms: float | None, colours: bool) -> str:
    """Draw when how much of the reply came, and list its parts."""
    if not events:
        return ""
    end = max(duration_ms or 0, events[-1][0], 0.1)
    columns = [0] * TIMELINE_COLUMNS
    for at, event in events:
        columns[min(int(at / end * TIMELINE_COLUMNS), TIMELINE_COLUMNS - 1)] += len(event.chunk)
    most = max(columns) or 1
    bar = "".join(_BARS[-(-count * (len(_BARS) - 1) // most)] for count in columns)
    parts: dict[tuple[int, int | None], list[TimedEvent]] = {}
    for at, event in events:
        parts.setdefault((event.message_index, event.part_index), []).append((at, event))
    lines = [_part_line(part) for part in parts.values()]
    title = _title(f"timeline, {count_of(len(events), 'event')} in {_seconds(end)}", colours)
    return "\n".join([title, f"|{bar}|", *lines])


def _part_line(events: Sequence[TimedEvent]) -> str:
    kind = events[-1][1].type.removesuffix("_args").removesuffix("_name")
    size = sum(len(event.chunk) for _, event in events)
    gaps = [later[0] - earlier[0] for earlier, later in zip(events, events[1:], strict=False)]
    longest = f", longest gap {_seconds(max(gaps))}" if gaps else ""
    return (
        f"{_seconds(events[0][0])} to {_seconds(events[-1][0])}: {kind}, "
        f"{count_of(len(events), 'event')}, {count_of(size, 'character')}{longest}"
    )
