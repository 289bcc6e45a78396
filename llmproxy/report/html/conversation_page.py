"""Render a conversation: its tree with its times, and what each exchange brought.

The same page is served and written to a file, which can be sent to somebody: it is one document
that loads nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from ...conversations.tree import Label, TreeRow
from .. import numbers
from ..conversation import Conversation, Step
from . import document, entry, markup, spans
from .entry import Links
from .exchange_page import cache_miss, rendered, reply, timeline

MAX_NAME_CHARS = 160
MAX_ROWS = 400  # of a tree
MAX_DEPTH = 8  # columns of indentation
MAX_FILE_CHARS = 20_000_000  # of a file's exchanges
MAX_PAGE_CHARS = 2_000_000  # of those on a page of the server

LABELS: dict[Label, str] = {
    "retry": "retry",
    "fork": "fork",
    "compacted": "compacted",
    "call": "sub-agent",
    "quote": "quote",
}


def conversation_page(conversation: Conversation, count: int, root: str) -> str:
    """Render the page of the server.

    count: exchanges that it shows completely. root: the relative address of the list.
    """
    here = frozenset(step.row.entry.id for step in conversation.steps)
    links = Links(root, here)
    steps, _ = _steps(conversation, links, MAX_PAGE_CHARS)
    body = _head(conversation) + _tree(conversation, links) + steps
    title = _name(conversation)
    return document.served(title, body + _pages(conversation, count, links), root=root)


def conversation_file(conversation: Conversation, recorded_by: str) -> str:
    """Render a document of the whole conversation, to be written to a file."""
    here = frozenset(step.row.entry.id for step in conversation.steps)
    steps, left_out = _steps(conversation, Links(None, here), MAX_FILE_CHARS)
    if left_out:
        # What a link would lead to is not there.
        shown = conversation.steps[: len(conversation.steps) - left_out]
        here = frozenset(step.row.entry.id for step in shown)
    body = _head(conversation) + _tree(conversation, Links(None, here)) + steps
    return document.document(
        _name(conversation),
        f"<main>\n{body}<footer>{markup.text(recorded_by)}</footer></main>\n",
        styles=document.LOG_STYLE,
    )


def _head(conversation: Conversation) -> str:
    thread = conversation.thread
    origin = ""
    if thread.forked_from and thread.origin:
        origin = f"{LABELS[thread.origin]} of <code>{markup.name(thread.forked_from)}</code>"
    cached = thread.usage.cached_tokens
    usage = thread.usage
    tokens = ""
    if usage.input_tokens is not None or usage.output_tokens is not None:
        tokens = f"{usage.input_tokens or 0:,} → {usage.output_tokens or 0:,}"
        tokens += f", {cached:,} cached" if cached else ""
    rows = {
        "Began": entry.moment(thread.began) if thread.began else "",
        "Lasted": _lasted(conversation),
        "Client": ", ".join(map(markup.name, thread.clients)),
        "Model": ", ".join(map(markup.name, thread.models)),
        "Exchanges": f"{thread.exchanges:,}" + _family(conversation),
        "Tokens": tokens,
        "Origin": origin,
        "Cache misses": f"{len(conversation.misses):,}" if conversation.misses else "",
    }
    name = markup.text(numbers.shortened(_name(conversation), MAX_NAME_CHARS))
    return (
        f'<header><h1 class="said" dir="auto">{name}</h1>'
        f'<p class="about">Conversation <code>{markup.name(thread.id)}</code></p></header>'
        f"{entry.facts(rows)}"
    )


def _name(conversation: Conversation) -> str:
    """Return what the first exchange asked; llm's own name for a conversation is shorter."""
    thread = conversation.thread
    first = next((row.entry for row in conversation.rows if row.entry.thread_id == thread.id), None)
    preview = conversation.previews.get(first.id) if first else None
    texts = [part.text for part in preview.asked if part.kind == "text"] if preview else []
    return (
        " ".join(texts) or entry.words(" ".join(thread.name.split())) or f"Conversation {thread.id}"
    )


def _family(conversation: Conversation) -> str:
    others = len(conversation.rows) - conversation.thread.exchanges
    return f", and {others:,} in its forks and sub-agents" if others > 0 else ""


def _lasted(conversation: Conversation) -> str:
    """Format the time from its first request to the end of its last reply."""
    began = conversation.thread.began
    own = [row.entry for row in conversation.rows if row.entry.thread_id == conversation.thread.id]
    if began is None or len(own) < 2:
        return ""
    ends = (
        (one.received - began).total_seconds() * 1000 + (one.duration_ms or 0.0)
        for one in own
        if one.is_timed
    )
    return numbers.duration(max(ends, default=0.0))


# ---- the tree


def _tree(conversation: Conversation, links: Links) -> str:
    rows = conversation.rows[:MAX_ROWS]
    origin = min((row.entry.received for row in rows if row.entry.is_timed), default=None)
    drawn = [_span(row, origin) for row in rows]
    line = spans.Timeline([span for span in drawn if span is not None])
    lines = "".join(
        _tree_row(conversation, row, span, line, links)
        for row, span in zip(rows, drawn, strict=True)
    )
    more = len(conversation.rows) - len(rows)
    left_out = (
        f'<p class="soft">{numbers.count_of(more, "more exchange")} not in this table.</p>'
        if more > 0
        else ""
    )
    is_queued = any(span is not None and span.queued is not None for span in drawn)
    queue = '<span class="key">in a queue</span> ' if is_queued else ""
    return (
        f'<section><h2>Timeline</h2><p class="about legend">{queue}'
        '<span class="key waiting">waiting</span> '
        '<span class="key streaming">streaming</span> <span class="key broken">failed</span> '
        f"{line.head() if any(drawn) else ''}</p>"
        '<table class="tree"><thead><tr><th scope="col">Exchange</th><th scope="col">Model</th>'
        '<th scope="col">Took</th><th scope="col">When</th></tr></thead>'
        f"<tbody>{lines}</tbody></table>{left_out}</section>"
    )


def _span(row: TreeRow, origin: datetime | None) -> spans.Span | None:
    return None if origin is None else spans.span_of(row.entry, origin)


def _tree_row(
    conversation: Conversation,
    row: TreeRow,
    span: spans.Span | None,
    line: spans.Timeline,
    links: Links,
) -> str:
    one = row.entry
    depth = min(row.depth, MAX_DEPTH)
    label = f'<span class="flag {row.label}">{LABELS[row.label]}</span> ' if row.label else ""
    preview = conversation.previews.get(one.id)
    missed = ' <span class="flag">cache miss</span>' if one.id in conversation.misses else ""
    drawn = ""
    if span is not None:
        parts = ", ".join(" ".join(part) for part in spans.phases(one))
        drawn = line.row(span, parts, is_failed=spans.is_failed(one))
    is_own = one.thread_id == conversation.thread.id
    state = entry.outcome(one) if one.status != "ok" else entry.unusual_finish(one)
    return (
        f'<tr class="{"own" if is_own else "other"}"><td class="said d{depth}">{label}'
        f"{links.exchange(one.id, entry.asked(one, preview), kind='asked')}"
        f'<span class="answered">{entry.answered(one, preview)}</span></td>'
        f'<td class="who">{entry.model(one)}<small>{state}{missed}</small></td>'
        f'<td class="long">{entry.whole_time(one)}</td><td class="bars">{drawn}</td></tr>'
    )


# ---- the exchanges


def _steps(conversation: Conversation, links: Links, most_chars: int) -> tuple[str, int]:
    """Render the exchanges, and say how many are left out because the page is full."""
    written: list[str] = []
    chars = 0
    for place, step in enumerate(conversation.steps, conversation.first + 1):
        written.append(_step(place, step, conversation, links))
        chars += len(written[-1])
        if chars > most_chars:
            break
    left_out = len(conversation.steps) - len(written)
    if left_out:
        more = numbers.count_of(left_out, "more exchange")
        written.append(f'<p class="soft">{more} left out, to keep this page small.</p>')
    return f"<section><h2>Exchanges</h2>{''.join(written)}</section>", left_out


def _step(place: int, step: Step, conversation: Conversation, links: Links) -> str:
    one = step.row.entry
    label = f'<span class="flag">{LABELS[step.row.label]}</span> ' if step.row.label else ""
    exchange = step.exchange
    if exchange is None:
        said = '<p class="soft">a turn of llm itself; <code>llm logs</code> shows it</p>'
    else:
        messages = exchange.turn.messages if exchange.turn else []
        earlier = (
            f'<p class="facts">after {numbers.count_of(step.earlier, "earlier message")}</p>'
            if step.earlier
            else ""
        )
        said = (
            f"{timeline(exchange)}{cache_miss(conversation.misses.get(one.id), links)}"
            f"{earlier}{rendered(messages)}{reply(exchange)}{entry.failure(exchange)}"
        )
    address = links.address("exchanges", one.id)
    served = (
        f' · <a class="more" href="{address}">all of it</a>'
        if address is not None and exchange is not None
        else ""
    )
    return (
        f'<article class="step" id="x-{markup.text(one.id)}"><h3>{label}{place:,}. '
        f'{entry.model(one)}</h3><p class="facts">{" · ".join(_facts(step))}{served}</p>'
        f"{said}</article>"
    )


def _facts(step: Step) -> Iterator[str]:
    one = step.row.entry
    if one.is_timed:
        yield entry.clock(one.received)
    yield entry.outcome(one)
    if one.duration_ms is not None:
        yield entry.whole_time(one)
    if counted := entry.tokens(one):
        yield counted
    yield from entry.details(one)
    yield markup.name(one.client)


def _pages(conversation: Conversation, count: int, to: Links) -> str:
    address = to.address("conversations", conversation.thread.id)
    first, total = conversation.first, len(conversation.rows)
    links: Sequence[str] = [
        f'<a href="{address}{_from(max(first - count, 0))}">← Earlier</a>' if first else "",
        f'<a rel="next" href="{address}{_from(first + count)}">Later →</a>'
        if first + count < total
        else "",
    ]
    if not any(links):
        return ""
    last = min(first + count, total)
    return (
        f'<nav class="pages" aria-label="More exchanges">{"".join(links)}'
        f'<span class="soft">{first + 1:,} to {last:,} of {total:,}</span></nav>'
    )


def _from(first: int) -> str:
    return f"?from={first}" if first else ""
