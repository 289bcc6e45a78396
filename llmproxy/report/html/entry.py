"""Render what the log's pages say of an exchange: times, outcome, a line of what it said."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal
from urllib.parse import quote

from ...recorder.previews import PREVIEW_CHARS, Preview, PreviewPart
from ...recorder.summary import FIRST_WORDS_CHARS, ExchangeSummary
from .. import numbers
from . import content, markup

MAX_ERROR_CHARS = 2_000
LINE_CHARS = PREVIEW_CHARS
NAME_CHARS = 100  # at which llm cuts the name of a conversation
MAX_CALLS = 4  # named in a line
ARGUMENT_CHARS = 60  # of a call in a line

Target = Literal["exchanges", "conversations"]


@dataclass(frozen=True)
class Links:
    """How pages are linked: on the server by relative addresses, in a file within it.

    root: the relative address of the list, such as "../": the server may be below a path that it
        does not know. None in a file. here: the ids of the exchanges on this page.
    """

    root: str | None
    here: frozenset[str] = frozenset()

    def exchange(self, id: str, html: str, *, kind: str = "") -> str:
        """Link to an exchange; only its text if a file does not have it."""
        if id in self.here:
            return _link(f"#x-{id}", html, kind)
        address = self.address("exchanges", id)
        return html if address is None else _link(address, html, kind)

    def conversation(self, id: str, html: str) -> str:
        """Link to a conversation; only its text in a file."""
        address = self.address("conversations", id)
        return html if address is None else _link(address, html)

    def address(self, target: Target, id: str) -> str | None:
        """Return the address of a page; None in a file."""
        return None if self.root is None else f"{self.root}{target}/{quote(id, safe='')}"


def _link(href: str, html: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<a{named} href="{markup.text(href)}">{html}</a>'


# ---- times


def clock(at: datetime) -> str:
    """Format a local time of day."""
    return _time(at, f"{at.astimezone():%H:%M:%S}")


def day(at: datetime) -> str:
    """Format a local day."""
    local = at.astimezone()
    return f"{local:%A}, {local.day} {local:%B %Y}"


def moment(at: datetime) -> str:
    """Format a local day and time with its zone."""
    local = at.astimezone()
    return f"{_time(at, f'{local:%Y-%m-%d %H:%M:%S}')} {numbers.zone(local)}"


def _time(at: datetime, shown: str) -> str:
    return f'<time datetime="{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}">{shown}</time>'


# ---- outcome


def outcome(entry: ExchangeSummary) -> str:
    """Say how an exchange ended, in a word or two."""
    kind = {"ok": "ok", "running": "busy"}.get(entry.status, "failure")
    return f'<span class="status {kind}">{markup.text(_outcome(entry))}</span>'


def _outcome(entry: ExchangeSummary) -> str:
    match entry.status:
        case "ok":
            return "replayed" if entry.replay_of else "ok"
        case "error" if entry.http_status is not None and entry.http_status < 400:
            return "error in stream"
        case "error":
            return f"error {entry.http_status or ''}".strip()
    return entry.status


def unusual_finish(entry: ExchangeSummary) -> str:
    """Name the finish reason, if it is not one that every good response has."""
    if entry.finish_reason in (None, "stop", "tool_calls"):
        return ""
    return f'<span class="flag">{markup.text(str(entry.finish_reason))}</span>'


def failure(entry: ExchangeSummary) -> str:
    """Render the error of an exchange, if any."""
    if not entry.error:
        return ""
    kind = markup.name(entry.error_kind.replace("_", " ")) if entry.error_kind else "error"
    shown = markup.text(entry.error[:MAX_ERROR_CHARS])
    return (
        f'<p class="failed" dir="auto"><b>{kind}</b>: {shown}'
        f"{content.cut(entry.error, MAX_ERROR_CHARS)}</p>"
    )


def model(entry: ExchangeSummary) -> str:
    """Name the model that answered, after the name that the client used if that is another."""
    asked, used = entry.model_asked, entry.model_used
    if used is None:
        return f'<span class="soft">{markup.name(asked)}</span>' if asked else _NONE
    if asked and asked != used:
        return f'<span class="soft">{markup.name(asked)} →</span> {markup.name(used)}'
    return markup.name(used)


_NONE = '<span class="none">–</span>'


def whole_time(entry: ExchangeSummary) -> str:
    """Format the time of the whole response."""
    return _NONE if entry.duration_ms is None else numbers.duration(entry.duration_ms)


def waited(entry: ExchangeSummary) -> str:
    """Say how much of its times an exchange waited for others; empty if it didn't."""
    return "" if entry.queue_ms is None else f"{numbers.seconds(entry.queue_ms)} of it waiting"


def tokens(entry: ExchangeSummary) -> str:
    """Format the token counts of the provider; empty if there are none."""
    usage = entry.usage
    if usage.input_tokens is None and usage.output_tokens is None:
        return ""
    into, out = (
        "?" if count is None else f"{count:,}"
        for count in (usage.input_tokens, usage.output_tokens)
    )
    return f"{into} → {out} tokens"


def details(entry: ExchangeSummary) -> Iterator[str]:
    """Yield short remarks on what is not as usual: a finish, a wait, what was ignored."""
    if finish := unusual_finish(entry):
        yield finish
    if wait := waited(entry):
        yield wait
    if entry.usage.cached_tokens:
        yield f"{entry.usage.cached_tokens:,} cached"
    if entry.recalled:
        yield f"{numbers.count_of(entry.recalled, 'message')} recalled"
    if entry.ignored:
        yield f"ignored: {markup.text(', '.join(entry.ignored)[:LINE_CHARS])}"
    if entry.damage:
        yield f'<span class="failure">damaged: {markup.text(", ".join(entry.damage))}</span>'


# ---- what was said, in a line


def asked(entry: ExchangeSummary, preview: Preview | None) -> str:
    """Render in a line what an exchange asked: results of tools, the newest text, attachments."""
    parts = preview.asked if preview else ()
    results = [part for part in parts if part.kind == "result"]
    texts = _texts(parts) or ("" if results else entry.last_message or words(entry.first_words))
    shown = [_result(results[-1])] if results else []
    if results[1:]:
        shown[0] += f' <span class="soft">and {len(results) - 1} more</span>'
    shown += [markup.text(_line(texts))] if texts else []
    attached = "".join(' <span class="flag">attachment</span>' for p in parts if _is_attached(p))
    return " · ".join(shown) + attached or _NOTHING


_NOTHING = '<span class="soft">no text</span>'


def answered(entry: ExchangeSummary, preview: Preview | None) -> str:
    """Render in a line what came back: the error, the text, or the calls of tools."""
    if entry.error and entry.status != "ok":
        return f'<span class="failure">{markup.text(_line(entry.error))}</span>'
    if entry.status == "running":
        return '<span class="soft">running …</span>'
    parts = preview.answered if preview else ()
    calls = [part for part in parts if part.kind == "call"]
    shown = markup.text(_line(_texts(parts)))
    named = ", ".join(map(_call, calls[:MAX_CALLS]))
    if len(calls) > MAX_CALLS:
        named += f" and {len(calls) - MAX_CALLS} more"
    if not (shown or named) and not parts:
        shown = markup.text(entry.reply_words)  # of embeddings, which have no messages
    if not (shown or named):
        shown = '<span class="soft">only reasoning</span>' if parts else _EMPTY
    return " · ".join(filter(None, (f"calls {named}" if named else "", shown)))


_EMPTY = '<span class="soft">no reply</span>'


def words(first_words: str) -> str:
    """Mark where `first_words`, or llm's name of a conversation, was cut: the log doesn't."""
    is_cut = len(first_words) in (FIRST_WORDS_CHARS, NAME_CHARS) and first_words[-1] != "…"
    return first_words + "…" * is_cut


def _line(text: str) -> str:
    """Return the beginning of a text, with "…" if there is more; a preview has no more chars."""
    return text if len(text) < LINE_CHARS else f"{text[: LINE_CHARS - 1]}…"


def _texts(parts: Sequence[PreviewPart]) -> str:
    return " ".join(part.text for part in parts if part.kind == "text")


def _is_attached(part: PreviewPart) -> bool:
    return part.kind == "attachment"


def _call(part: PreviewPart) -> str:
    shown = numbers.shortened(_values(part.text), ARGUMENT_CHARS)
    return f"<b>{markup.name(part.name)}</b>({markup.text(shown)})"


def _values(arguments: str) -> str:
    """Return the values of arguments, whose names a line has no room for."""
    try:
        values = json.loads(arguments or "{}")
    except ValueError:  # only the beginning of long ones is known
        return arguments
    if not isinstance(values, dict):
        return arguments
    return ", ".join(
        value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for value in values.values()
    )


def _result(part: PreviewPart) -> str:
    return f"<b>{markup.name(part.name)}</b> → {markup.text(_line(part.text))}"


def facts(rows: Mapping[str, str]) -> str:
    """Render names with their values, without empty ones."""
    shown = "".join(
        f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows.items() if value
    )
    return f'<dl class="facts-list">{shown}</dl>'
