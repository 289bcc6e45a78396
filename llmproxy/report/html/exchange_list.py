"""Render the list of exchanges: a search form, filters, and rows, newest first."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Any
from urllib.parse import urlencode

from ...recorder.paging import Choices, Page
from ...recorder.previews import Preview
from ...recorder.summary import ExchangeSummary, Status
from .. import numbers
from . import document, entry, markup

REFRESH_S = 5  # of the list that follows the log

STATUSES: Mapping[Status, str] = {
    "ok": "Succeeded",
    "error": "Failed",
    "cancelled": "Cancelled",
    "interrupted": "Interrupted",
    "running": "Running",
}

SENDERS = {"client": "Clients", "benchmark": "Benchmarks"}

CHOICES: Mapping[str, Collection[str]] = {"status": STATUSES, "sent": SENDERS, "live": ("1",)}
"""The values of the fields of `Query` that can't have any other."""


@dataclass(frozen=True)
class Query:
    """What the address of a list selects; empty fields select all.

    sent: "benchmark" or "client": by whom the requests were sent.
    run: a benchmark's name. before: the ID of an exchange, from which the list goes on to the past.
    live: follow the log: "1", or empty.
    root: the relative address of the list; it is not in the address.
    """

    search: str = ""
    status: str = ""
    client: str = ""
    model: str = ""
    sent: str = ""
    run: str = ""
    before: str = ""
    live: str = ""
    root: str = "./"

    def href(self, **changes: str) -> str:
        """Return the address of a list like this one, with other values of some fields."""
        changed = replace(self, **changes)
        given = {name: getattr(changed, name) for name in IN_ADDRESS}
        query = urlencode({name: value for name, value in given.items() if value})
        return markup.text(f"{self.root}?{query}" if query else self.root)

    @property
    def is_filtered(self) -> bool:
        """Whether it selects only some exchanges."""
        return bool(
            self.search or self.status or self.client or self.model or self.sent or self.run
        )


def exchange_list(
    query: Query,
    page: Page,
    previews: Mapping[str, Preview],
    choices: Choices,
    *,
    base_url: str,
) -> str:
    """Render a page of the list.

    base_url: the URL of this proxy, for instructions if nothing has been recorded.
    """
    if not page.entries and not query.is_filtered and not query.before:
        body = f"<h1>Exchanges</h1>{nothing_yet(base_url)}"
        return document.served("Exchanges", body, root=query.root, place="", refresh_s=REFRESH_S)
    head = f"<header><h1>Exchanges</h1>{_follow(query)}</header>"
    above = _following(query) if query.live else search_form(query, choices) + _active(query)
    rows = _table(query, page.entries, previews) if page.entries else ""
    body = f"{head}{above}{rows}{_notes(query, page)}{_pages(query, page)}"
    return document.served(
        "Exchanges",
        body,
        root=query.root,
        place="",
        refresh_s=REFRESH_S if query.live else None,
        has_form=True,
    )


def _follow(query: Query) -> str:
    if query.live:
        return (
            f'<p class="about follow">Reloads every {REFRESH_S} s · '
            f'<a href="{query.href(live="")}">Stop following</a></p>'
        )
    newest = query.href(before="")
    return (
        f'<p class="about follow"><a href="{newest}">Newest</a> · '
        f'<a href="{query.href(before="", live="1")}">Follow the log</a></p>'
    )


def _following(query: Query) -> str:
    """Say what is followed; a form would lose what is typed whenever the page reloads."""
    return _active(query) if query.is_filtered else ""


IN_ADDRESS = [f.name for f in fields(Query) if f.name != "root"]

# ---- filters


def search_form(query: Query, choices: Choices) -> str:
    """Render the search form and the filters beside it."""
    clients = {name: name for name in choices.clients}
    models = {name: name for name in choices.models}
    return (
        f'<form class="filters" action="{query.root}" role="search">'
        '<label class="words"><span>Search</span><input type="search" name="search" '
        f'value="{markup.text(query.search)}" placeholder="words in prompts and replies"></label>'
        f"{_select('Status', 'status', STATUSES, query.status)}"
        f"{_select('Client', 'client', clients, query.client)}"
        f"{_select('Model', 'model', models, query.model)}"
        f"{_select('Sent by', 'sent', SENDERS, query.sent)}"
        f"{_kept('run', query.run)}<button>Filter</button></form>"
    )


def _kept(name: str, value: str) -> str:
    """Keep a filter that the form doesn't offer."""
    return f'<input type="hidden" name="{name}" value="{markup.text(value)}">' if value else ""


def _select(label: str, name: str, choices: Mapping[Any, str], chosen: str) -> str:
    offered: dict[str, str] = {"": "All", **choices}
    if chosen not in offered:
        offered[chosen] = chosen
    options = "".join(
        f'<option value="{markup.text(value)}"{" selected" if value == chosen else ""}>'
        f"{markup.text(numbers.shortened(shown, 40))}</option>"
        for value, shown in offered.items()
    )
    return f'<label><span>{label}</span><select name="{name}">{options}</select></label>'


def _active(query: Query) -> str:
    """Render the filters that are in force, each a link that removes it."""
    chips = [
        f'<li><a href="{query.href(**{name: "", "before": ""})}">{label} '
        f"<b>{markup.name(value)}</b>"
        ' <span aria-hidden="true">×</span><span class="hidden"> remove</span></a></li>'
        for name, label, value in (
            ("search", "Search", query.search),
            ("status", "Status", _named(query.status)),
            ("client", "Client", query.client),
            ("model", "Model", query.model),
            ("sent", "Sent by", SENDERS.get(query.sent, query.sent)),
            ("run", "Benchmark run", query.run),
        )
        if value
    ]
    return f'<ul class="active" aria-label="Active filters">{"".join(chips)}</ul>' if chips else ""


def _named(status: str) -> str:
    return next((name for word, name in STATUSES.items() if word == status), status)


# ---- rows

_COLUMNS = ("Time", "Asked and answered", "Model and client", "Status", "Took")


def _table(
    query: Query, entries: Sequence[ExchangeSummary], previews: Mapping[str, Preview]
) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in _COLUMNS)
    bodies = "".join(
        f'<tbody><tr class="day"><th colspan="{len(_COLUMNS)}" scope="rowgroup">{day}</th></tr>'
        f"{''.join(_row(query, one, previews.get(one.id)) for one in of_day)}</tbody>"
        for day, of_day in groupby(entries, key=_day)
    )
    return f'<table class="log"><thead><tr>{head}</tr></thead>{bodies}</table>'


def _day(one: ExchangeSummary) -> str:
    return entry.day(one.received) if one.is_timed else "Imported, without times"


def _row(query: Query, one: ExchangeSummary, preview: Preview | None) -> str:
    links = entry.Links(query.root)
    time = entry.clock(one.received) if one.is_timed else "–"
    place = links.conversation(one.thread_id, "conversation") if one.thread_id else ""
    client = f'<a href="{query.href(client=one.client, before="")}">{markup.name(one.client)}</a>'
    name = one.model_used or one.model_asked
    model = (
        f'<a href="{query.href(model=name, before="")}">{entry.model(one)}</a>'
        if name
        else entry.model(one)
    )
    return (
        f'<tr><td class="when">{time}<small>{place}</small></td>'
        f'<td class="said">{links.exchange(one.id, entry.asked(one, preview), kind="asked")}'
        f'<span class="answered">{entry.answered(one, preview)}</span></td>'
        f'<td class="who">{model}<small>{client}</small></td>'
        f'<td class="how">{entry.outcome(one)}<small>{" ".join(_flags(one))}</small></td>'
        f'<td class="long">{entry.whole_time(one)}<small>{_first(one)}</small></td></tr>'
    )


def _flags(one: ExchangeSummary) -> Iterator[str]:
    if finish := entry.unusual_finish(one):
        yield finish
    if ignored := one.ignored_by_choice:
        yield f'<span class="flag">{len(ignored)} ignored</span>'
    if one.damage:
        yield '<span class="flag">damaged</span>'


def _first(one: ExchangeSummary) -> str:
    first = "" if one.ttft_ms is None else f"first {numbers.seconds(one.ttft_ms)}"
    return "<br>".join(filter(None, (first, entry.waited(one))))


# ---- below the rows


def _notes(query: Query, page: Page) -> str:
    notes = []
    if not page.entries and not page.is_cut:
        notes.append("No exchange matches.")
    if page.is_cut:
        reached = entry.moment(page.searched_to) if page.searched_to else ""
        since = f"Looked back to {reached}" if reached else "The search took too long"
        notes.append(f"{since}; older exchanges were not looked at, to keep the page fast.")
    if page.is_index_only:
        notes.append(
            "Of older exchanges, prompts and replies were searched, but not results of tools: "
            "<code>llmproxy log --search</code> searches all."
        )
    return "".join(f'<p class="soft note">{note}</p>' for note in notes)


def _pages(query: Query, page: Page) -> str:
    links = []
    if query.before:
        links.append(f'<a href="{query.href(before="", live="")}">Newest</a>')
    if page.before is not None:
        word = "Look further back" if page.is_cut else "Older"
        links.append(f'<a rel="next" href="{query.href(before=page.before, live="")}">{word} →</a>')
    return f'<nav class="pages" aria-label="More">{"".join(links)}</nav>' if links else ""


def nothing_yet(base_url: str) -> str:
    """Say how to record something."""
    url = markup.text(base_url)
    return (
        '<section><p class="notice">Nothing has been recorded yet.</p>'
        "<p>Point a program here, and its requests and responses appear on this page:</p>"
        f"<pre>OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY=any PROGRAM\n"
        f"ANTHROPIC_BASE_URL={url} ANTHROPIC_API_KEY=any PROGRAM</pre>"
        "<p>Or send a request by hand; the model <code>demo</code> needs no key and no network:</p>"
        f"<pre>curl {url}/v1/chat/completions -d "
        "&#x27;{&quot;model&quot;: &quot;demo&quot;, &quot;messages&quot;: "
        "[{&quot;role&quot;: &quot;user&quot;, &quot;content&quot;: &quot;Hello!&quot;}]}&#x27;"
        "</pre></section>"
    )
