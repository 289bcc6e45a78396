"""Render the list of conversations, the most recent first."""

from __future__ import annotations

from collections.abc import Sequence

from ...conversations.threads import Thread
from .. import numbers
from . import document, entry, markup
from .exchange_list import nothing_yet

_COLUMNS = ("Last request", "Conversation", "Model and client", "Length", "Tokens")


def conversation_list(
    threads: Sequence[Thread], before: str | None, *, is_first: bool, base_url: str, root: str
) -> str:
    """Render a page of the list.

    before: the ID of the conversation from which the next page goes on to the past, if any.
    is_first: it is the page with the newest ones. base_url: as `nothing_yet` takes it.
    root: the relative address of the list of exchanges.
    """
    if not threads and is_first:
        body = f"<h1>Conversations</h1>{nothing_yet(base_url)}"
        return document.served("Conversations", body, root=root, place="conversations")
    head = "".join(f'<th scope="col">{name}</th>' for name in _COLUMNS)
    links_to = entry.Links(root)
    rows = "".join(_row(thread, links_to) for thread in threads)
    links = [
        "" if is_first else f'<a href="{root}conversations">Newest</a>',
        ""
        if before is None
        else f'<a rel="next" href="{root}conversations?before={markup.text(before)}">Older →</a>',
    ]
    body = (
        "<header><h1>Conversations</h1></header>"
        f'<table class="log"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        f'<nav class="pages" aria-label="More">{"".join(links)}</nav>'
    )
    return document.served("Conversations", body, root=root, place="conversations")


def _row(thread: Thread, links: entry.Links) -> str:
    name = (
        markup.text(entry.words(thread.first_words or " ".join(thread.name.split()))) or "no text"
    )
    link = links.conversation(thread.id, name)
    moved = f"{entry.clock(thread.moved)}<small>{_date(thread)}</small>" if thread.moved else "–"
    usage = thread.usage
    tokens = "–" if usage.input_tokens is None else f"{usage.input_tokens:,} in"
    out = "" if usage.output_tokens is None else f"{usage.output_tokens:,} out"
    origin = (
        f'<span class="flag">{thread.origin.replace("call", "sub-agent")}</span>'
        if thread.origin
        else ""
    )
    damaged = '<span class="flag">damaged</span>' if thread.damaged else ""
    return (
        f'<tr><td class="when">{moved}</td><td class="said">{link}'
        f'<span class="answered">{origin}{damaged}</span></td>'
        f'<td class="who">{", ".join(map(markup.name, thread.models)) or "–"}'
        f"<small>{', '.join(map(markup.name, thread.clients))}</small></td>"
        f'<td class="how">{numbers.count_of(thread.exchanges, "exchange")}</td>'
        f'<td class="long">{tokens}<small>{out}</small></td></tr>'
    )


def _date(thread: Thread) -> str:
    return f"{thread.moved.astimezone():%Y-%m-%d}" if thread.moved else ""
