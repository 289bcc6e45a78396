"""Render one exchange: its facts, its times, its messages, and the request as it was received."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

from llm.parts import Message

from ...conversations.prompt_cache import CacheMiss
from ...recorder.exchange import Exchange
from ...recorder.previews import Preview
from .. import numbers
from ..cache_text import miss_lines
from . import content, document, entry, markup, spans
from .entry import Links
from .exchange_list import Query

MAX_MESSAGES = 60  # of a request, the newest ones
MAX_MESSAGES_CHARS = 1_500_000  # of their markup; a phone still opens it
MAX_RAW_CHARS = 40_000  # of a body
MAX_TOOLS = 100
MAX_DESCRIPTION_CHARS = 300

_LINKS = {
    "reply": "continues",
    "compacted": "continues, with a compacted history,",
    "call": "is a sub-agent, called by",
    "quote": "quotes",
}


def exchange_page(
    exchange: Exchange,
    preview: Preview | None,
    miss: CacheMiss | None,
    found: Set[str],
    root: str,
    *,
    run: str | None = None,
) -> str:
    """Render the page of an exchange.

    miss: how it missed the prompt cache, if it did.
    found: those of the exchanges that it names (continued, repeated, replayed) which the log has.
    root: the relative address of the list. run: the name of the benchmark that sent it.
    """
    links = Links(root)
    has_text = bool(exchange.first_words or (preview and preview.asked))
    title = entry.asked(exchange, preview) if has_text else "Exchange without text"
    timed = entry.moment(exchange.received) if exchange.is_timed else "imported, without times"
    where = ""
    if exchange.thread_id:
        where = " · " + links.conversation(exchange.thread_id, "Conversation")
    body = (
        f'<header><h1 class="said" dir="auto">{title}</h1><p class="about">{timed} · '
        f"{markup.name(exchange.client)} · <code>{markup.name(exchange.id)}</code>{where}</p>"
        f"</header>{entry.failure(exchange)}{_facts(exchange, links, found, run)}"
        f"{timeline(exchange)}{cache_miss(miss, links)}"
        f"{_messages(exchange)}{_tools(exchange)}{_raw(exchange)}"
    )
    return document.served(f"Exchange {exchange.id}", body, root=root)


def _facts(exchange: Exchange, links: Links, found: Set[str], run: str | None) -> str:
    def linked(id: str | None) -> str:
        shown = "" if id is None else f"<code>{markup.name(id)}</code>"
        return links.exchange(id, shown) if id is not None and id in found else shown

    wait = entry.waited(exchange)
    rows = {
        "Model": entry.model(exchange),
        "Status": " ".join((entry.outcome(exchange), entry.unusual_finish(exchange))),
        "Took": entry.whole_time(exchange) + (f" ({wait})" if wait else ""),
        "First event": "" if exchange.ttft_ms is None else numbers.seconds(exchange.ttft_ms),
        "Tokens": entry.tokens(exchange),
        "Cached": _cached(exchange),
        "Speed": _speed(exchange),
        "API": f"{markup.name(exchange.dialect)} <code>{markup.name(exchange.path)}</code>",
        "Streamed": "yes" if exchange.stream else "no",
        "History": _history(exchange, linked),
        "Recalled": numbers.count_of(exchange.recalled, "message") if exchange.recalled else "",
        "Ignored": ", ".join(f"<code>{markup.name(path)}</code>" for path in exchange.ignored[:40]),
        "Replay of": linked(exchange.replay_of),
        "Benchmark run": _run(exchange, run, links),
        "Repeats": linked(exchange.recorded_id),
        "Options": _options(exchange),
        "Host": markup.name(exchange.host) if exchange.host else "",
        "Damaged": markup.text(", ".join(exchange.damage)),
    }
    return entry.facts(rows)


def _cached(exchange: Exchange) -> str:
    cached, of = exchange.usage.cached_tokens, exchange.usage.input_tokens
    if not cached:
        return ""
    share = f" ({numbers.percent(min(cached / of, 1))})" if of else ""
    return f"{cached:,} tokens{share}"


def _speed(exchange: Exchange) -> str:
    rate = exchange.tokens_per_second
    if rate is None:
        return ""
    return f"{'~' * exchange.is_rate_estimated}{numbers.number(rate)} tokens per second"


def _history(exchange: Exchange, linked: Callable[[str | None], str]) -> str:
    if exchange.link is None or exchange.previous_id is None:
        return ""
    return f"{_LINKS[exchange.link]} {linked(exchange.previous_id)}"


def _run(exchange: Exchange, run: str | None, links: Links) -> str:
    """Name the benchmark run, a link to its responses, and the attempt."""
    if exchange.run_id is None:
        return ""
    name = markup.name(run or exchange.run_id)
    href = Query(run=run or exchange.run_id, root=links.root or "./").href()
    attempt = f"repetition {exchange.repeat}" if exchange.repeat else "warm-up"
    return f'<a href="{href}">{name}</a>, {attempt}'


def _options(exchange: Exchange) -> str:
    options = (exchange.turn.options if exchange.turn else None) or {}
    return ", ".join(
        f"{markup.name(name)} {markup.name(json.dumps(value, default=str)[:200])}"
        for name, value in list(options.items())[:20]
    )


_KEYS: Mapping[str, str] = {
    "Waiting": "waiting",
    "Streaming": "streaming",
    spans.FAILED: "broken",
}


def timeline(exchange: Exchange) -> str:
    """Draw when an exchange waited and streamed; empty if its times are not known."""
    svg = spans.waterfall(exchange, [at for at, _ in exchange.events])
    if not svg:
        return ""
    legend = " ".join(
        f'<span class="key {_KEYS.get(name, "")}">{name} {length}</span>'
        for name, length in spans.phases(exchange)
    )
    events = numbers.count_of(exchange.event_count, "event") if exchange.event_count else ""
    return (
        f'<figure class="waterfall"><h2>Timeline</h2>{svg}'
        f"<figcaption>{legend} <span>{events}</span></figcaption></figure>"
    )


def cache_miss(miss: CacheMiss | None, links: Links) -> str:
    """Say why a request missed the prompt cache, if it did."""
    if miss is None:
        return ""
    before = links.exchange(miss.previous_id, f"<code>{markup.name(miss.previous_id)}</code>")
    lines = markup.text("\n".join(miss_lines(miss)))
    return (
        '<div class="notice miss"><p><b>Prompt cache missed</b>: this request does not begin with '
        f"all that {before} sent.</p><pre>{lines}</pre></div>"
    )


# ---- messages


def _messages(exchange: Exchange) -> str:
    turn = exchange.turn
    if turn is None:
        return (
            '<section><h2>Request</h2><p class="soft">It was refused before its messages were '
            "read.</p></section>"
        )
    replies = [
        place for place, message in enumerate(turn.messages, 1) if message.role == "assistant"
    ]
    new = replies[-1] if replies else 0
    earlier = ""
    if new:
        count = numbers.count_of(new, "earlier message")
        earlier = (
            f'<details class="fold"><summary>{count}</summary>'
            f"{rendered(turn.messages[:new])}</details>"
        )
    return (
        f"<section><h2>Request</h2>{earlier}{rendered(turn.messages[new:])}</section>"
        f"<section><h2>Reply</h2>{reply(exchange)}</section>"
    )


def rendered(messages: Sequence[Message]) -> str:
    """Render messages, the newest ones if there are too many."""
    shown: list[str] = []
    chars = 0
    for message in reversed(messages[-MAX_MESSAGES:]):
        shown.append(_message(message))
        chars += len(shown[-1])
        if chars > MAX_MESSAGES_CHARS:
            break
    left_out = len(messages) - len(shown)
    before = (
        f'<p class="soft">{numbers.count_of(left_out, "message")} before these not shown; '
        "<code>llmproxy log ID</code> shows all</p>"
        if left_out
        else ""
    )
    return before + "".join(reversed(shown))


def _message(message: Message) -> str:
    role = markup.name(message.role)
    kind = message.role if message.role in ("user", "assistant", "system", "tool") else "other"
    return f'<div class="message {kind}"><h3>{role}</h3>{content.parts(message.parts)}</div>'


def reply(exchange: Exchange) -> str:
    """Render what came back, without an error."""
    messages = exchange.turn.reply if exchange.turn else []
    if messages:
        return rendered(messages)
    if exchange.status == "running":
        return '<p class="soft">running …</p>'
    return '<p class="soft">no reply</p>'


# ---- tools and the raw request


def _tools(exchange: Exchange) -> str:
    tools = exchange.turn.tools if exchange.turn else ()
    if not tools:
        return ""
    rows = "".join(
        f"<li><b>{markup.name(tool.name)}</b> "
        f'<span class="soft">{markup.text((tool.description or "")[:MAX_DESCRIPTION_CHARS])}'
        f"{content.cut(tool.description or '', MAX_DESCRIPTION_CHARS)}</span></li>"
        for tool in tools[:MAX_TOOLS]
    )
    count = numbers.count_of(len(tools), "tool")
    return (
        f'<details class="fold"><summary>{count} offered</summary>'
        f'<ul class="tools">{rows}</ul></details>'
    )


def _raw(exchange: Exchange) -> str:
    request = exchange.request
    headers = "\n".join(f"{name}: {value}" for name, value in request.headers.items())
    query = f"?{request.query}" if request.query else ""
    sent = f"POST {exchange.path}{query}\n{headers}\n\n{_indented(request.body)}"
    blocks = [("Request as received, without its secrets", sent)]
    if exchange.turn and exchange.turn.response_json:
        blocks.append(("Response of the provider", _indented(exchange.turn.response_json)))
    opened = " open" if exchange.turn is None else ""
    return "".join(
        f'<details class="fold raw"{opened}><summary>{title}</summary>'
        f"{content.block(text, MAX_RAW_CHARS)}</details>"
        for title, text in blocks
    )


def _indented(value: Any) -> str:
    """Return JSON for people, not much more of it than is shown."""
    if isinstance(value, str):
        return value
    return "".join(_pieces(value))


def _pieces(value: Mapping[str, Any] | Any) -> Iterator[str]:
    chars = 0
    encoder = json.JSONEncoder(indent=2, ensure_ascii=False, default=str)
    for piece in encoder.iterencode(value):
        yield piece
        chars += len(piece)
        if chars > MAX_RAW_CHARS:
            yield "\n… the rest is not shown"
            return
