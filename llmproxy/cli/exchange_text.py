"""Format an exchange for a terminal, in full.

Returns text and prints nothing. Text from clients and models is escaped.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence

from llm.parts import (
    AttachmentPart,
    Message,
    Part,
    ReasoningPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)

from ..core import payload
from ..core.text import painted, printable
from ..core.usage import ESTIMATED
from ..recorder.exchange import Exchange
from ..recorder.summary import ExchangeSummary
from ..recorder.timeline import TimedEvent
from ..report.numbers import count_of
from .columns import folded
from .summary_text import (
    STATUS_COLOURS,
    model_of,
    seconds_of,
    speed_of,
    status_of,
    tokens_in_and_out,
)

_BARS = " ▁▂▃▄▅▆▇█"
TIMELINE_COLUMNS = 60
FACT_COLUMNS = 13  # of a fact's name
NO_TERMINAL = sys.maxsize  # columns of a pipe


def exchange_page(exchange: Exchange, *, colours: bool = False, width: int = NO_TERMINAL) -> str:
    """Format one exchange in full: facts, request, conversation, reply, timeline.

    width: of the terminal, to break lines at blanks; the request stays as it is, to be copied.
    """
    sections = [_facts(exchange, colours, width), _request(exchange, colours)]
    if exchange.turn is not None:
        sections += _messages(exchange.turn.messages, colours, width)
        sections += _messages(exchange.turn.reply, colours, width, is_reply=True)
    if exchange.is_timed:
        sections.append(_timeline(exchange.events, exchange.duration_ms, colours, width))
    return "\n\n".join(section for section in sections if section)


def _facts(exchange: Exchange, colours: bool, width: int) -> str:
    usage = exchange.usage
    details = [
        f"{count:,} {label}"
        for count, label in (
            (usage.cached_tokens, "cached"),
            (usage.cache_write_tokens, "written to the cache"),
            (usage.cache_write_1h_tokens, "of these for an hour"),
            (usage.reasoning_tokens, "reasoning"),
        )
        if count
    ]
    if ESTIMATED in exchange.ignored:
        details.append("estimated, as the model counts none")
    times = [
        f"{label} {seconds_of(ms)}"
        for label, ms in (
            ("connected", exchange.setup_ms),
            ("waited (in all of these)", exchange.queue_ms),
            ("first event" + " (first run)" * exchange.is_first_run, exchange.ttft_ms),
            ("first text", exchange.first_text_ms),
            ("total", exchange.duration_ms),
            ("in the proxy", exchange.overhead_ms),
        )
        if ms is not None
    ]
    ending = [exchange.finish_reason or "", f"at {exchange.stop_sequence!r}"]
    if exchange.stop_sequence is None:
        ending.pop()
    facts = {
        "exchange": exchange.id,
        "received": exchange.received.astimezone().isoformat(timespec="seconds")
        if exchange.is_timed
        else "",
        "client": exchange.client,
        "API": f"{exchange.dialect} {exchange.path}" + (", streamed" * exchange.stream),
        "model": model_of(exchange),
        "upstream": _upstream(exchange),
        "status": painted(status_of(exchange), STATUS_COLOURS[exchange.status], colours),
        "finish": " ".join(ending).strip(),
        "error": exchange.error or "",
        "retry": "" if exchange.retry_after_s is None else f"after {exchange.retry_after_s:g}s",
        "time": ", ".join(times),
        "tokens": ", ".join(filter(None, (tokens_in_and_out(usage), *details, speed_of(exchange)))),
        "conversation": exchange.thread_id or "",
        "continues": " ".join(filter(None, [exchange.previous_id, _links(exchange)])),
        "recalled": count_of(exchange.recalled, "message") if exchange.recalled else "",
        "replay of": exchange.replay_of or "",
        "run": exchange.run_id or "",
        "repeats": exchange.recorded_id or "",
        "origin": exchange.origin or "",
        "host": exchange.host or "",
        "ignored": ", ".join(name for name in exchange.ignored if name != ESTIMATED),
        "damaged": ", ".join(exchange.damage),
    }
    return "\n".join(
        f"{painted(f'{name:{FACT_COLUMNS - 1}}', 'dim', colours)} "
        f"{value if name == 'status' else folded(printable(value), width, FACT_COLUMNS)}"
        for name, value in facts.items()
        if value
    )


def _upstream(exchange: Exchange) -> str:
    id, refused = exchange.upstream_request_id, exchange.refused_by
    parts = (exchange.upstream, id and f"request {id}", refused and f"after {refused}")
    return ", ".join(filter(None, parts))


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
    messages: Iterable[Message], colours: bool, width: int, *, is_reply: bool = False
) -> Iterator[str]:
    for message in messages:
        title = "reply" if is_reply else message.role
        parts = "\n".join(_part(part, colours, width) for part in message.parts)
        yield f"{_title(title, colours)}\n{parts}"


def _part(part: Part, colours: bool, width: int) -> str:
    match part:
        case TextPart(text=text):
            return folded(printable(text, lines=True), width)
        case ReasoningPart(text=text, redacted=redacted):
            shown = "(hidden reasoning)" if redacted else text
            return painted(folded(printable(shown, lines=True), width), "dim", colours)
        case ToolCallPart(name=name, arguments=arguments, tool_call_id=id_):
            call = f"→ {name}({payload.encode(arguments).decode()})  {id_ or ''}"
            return painted(folded(printable(call), width), "blue", colours)
        case ToolResultPart(name=name, output=output, exception=exception):
            verb = "failed" if exception else "returned"
            return folded(printable(f"← {name} {verb}: {output}", lines=True), width)
        case AttachmentPart(attachment=attachment) if attachment is not None:
            size = f"{len(attachment.content):,} bytes" if attachment.content else attachment.url
            return printable(f"[{attachment.type}, {size}]")
    return printable(str(part.to_dict()))


def _timeline(
    events: Sequence[TimedEvent], duration_ms: float | None, colours: bool, width: int
) -> str:
    """Draw when how much of the reply came, and list its parts."""
    if not events:
        return ""
    end = max(duration_ms or 0, events[-1][0], 0.1)
    count = max(min(TIMELINE_COLUMNS, width - 2), 1)
    columns = [0] * count
    for at, event in events:
        columns[min(int(at / end * count), count - 1)] += len(event.chunk)
    most = max(columns) or 1
    bar = "".join(_BARS[-(-count * (len(_BARS) - 1) // most)] for count in columns)
    parts: dict[tuple[int, int | None], list[TimedEvent]] = {}
    for at, event in events:
        parts.setdefault((event.message_index, event.part_index), []).append((at, event))
    lines = [folded(_part_line(part), width, 2) for part in parts.values()]
    title = _title(f"timeline, {count_of(len(events), 'event')} in {seconds_of(end)}", colours)
    return "\n".join([title, f"|{bar}|", *lines])


def _part_line(events: Sequence[TimedEvent]) -> str:
    kind = events[-1][1].type.removesuffix("_args").removesuffix("_name")
    size = sum(len(event.chunk) for _, event in events)
    gaps = [later[0] - earlier[0] for earlier, later in zip(events, events[1:], strict=False)]
    longest = f", longest gap {seconds_of(max(gaps))}" if gaps else ""
    return (
        f"{seconds_of(events[0][0])} to {seconds_of(events[-1][0])}: {kind}, "
        f"{count_of(len(events), 'event')}, {count_of(size, 'character')}{longest}"
    )
