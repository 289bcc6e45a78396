"""Read the beginnings of what exchanges asked and answered, for lists.

Imports nothing of llm, and reads no more of a message than is shown.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .ids import Query

PREVIEW_CHARS = 240  # of a part: two lines on a wide screen
MAX_MESSAGES = 8  # from the end of a request, or of a reply
MAX_PARTS = 2_000  # of all that is listed together
MAX_PARSED_CHARS = 65_536  # of a part's JSON; of a longer one, the beginning is shown as it is

Kind = Literal["text", "reasoning", "call", "result", "attachment"]


@dataclass(frozen=True)
class PreviewPart:
    """The beginning of one part of a message; name: that of the tool."""

    kind: Kind
    text: str
    name: str = ""


@dataclass(frozen=True)
class Preview:
    """What an exchange asked and answered, part by part.

    asked: as `newly_asked` chooses it.
    """

    asked: tuple[PreviewPart, ...] = ()
    answered: tuple[PreviewPart, ...] = ()


def newly_asked(parts: Iterable[tuple[str, PreviewPart]]) -> tuple[PreviewPart, ...]:
    """Choose what a request newly asks: results of tools, then the last text, then attachments.

    Only the last text counts, since agents put reminders before the user's own.

    parts: those of the messages since the last reply, each with its message's role. A beginning
        of the reply, which some requests end with, is not chosen.
    """
    given = [part for role, part in parts if role not in ("system", "assistant")]
    results = (part for part in given if part.kind == "result")
    texts = [part for part in given if part.kind == "text"]
    attachments = (part for part in given if part.kind == "attachment")
    return (*results, *texts[-1:], *attachments)


def previews(query: Query, ids: Sequence[str]) -> dict[str, Preview]:
    """Return what each of these exchanges asked and answered; ids without messages are left out.

    Raises:
        Unusable: the file can't be read any more.
    """
    values = {"ids": json.dumps(list(ids)), "chars": PREVIEW_CHARS, "most": MAX_PARTS}
    rows = query(_PARTS, values | {"messages": MAX_MESSAGES, "parsed": MAX_PARSED_CHARS})
    found: dict[str, tuple[list[Any], list[Any]]] = {}
    for row in rows:
        found.setdefault(row["id"], ([], []))[row["is_reply"]].append(row)
    return {
        id: Preview(
            newly_asked((row["role"], part) for row in asked if (part := _part(row))),
            tuple(filter(None, map(_part, reply))),
        )
        for id, (asked, reply) in found.items()
    }


# The last messages of the request, up to the reply before it, and those of the reply; `depth`
# counts from the newest one.
_PARTS = """
    with recursive wanted (id, asked, tip) as (
        select ours.id, coalesce(turns.parent_message_hash, ours.message_hash),
            turns.tip_message_hash
        from proxy_exchanges as ours left join turns on turns.id = ours.id
        where ours.id in (select value from json_each(:ids))
    ),
    said (id, is_reply, hash, parent, role, ending, depth) as (
        select id, 0, hash, parent_hash, role, null, 0
        from wanted cross join messages on hash = asked
        union all
        select id, 1, hash, parent_hash, role, asked, 0
        from wanted cross join messages on hash = tip where tip is not asked
        union all
        select id, is_reply, messages.hash, parent_hash, messages.role, ending, depth + 1
        from said cross join messages on messages.hash = said.parent
        where depth + 1 < :messages and iif(
            is_reply, messages.hash is not ending, messages.role != 'assistant'
        )
    )
    select said.id, is_reply, depth, role, type, tool_name,
        coalesce(substr(text, 1, :chars), iif(
            length(payload) <= :parsed and json_valid(payload),
            substr(coalesce(
                json_extract(payload, '$.exception'),
                json_extract(payload, '$.output'),
                json_extract(payload, '$.arguments'),
                ''
            ), 1, :chars),
            substr(payload, 1, :chars)
        ), '') as beginning
    from said cross join parts on message_hash = said.hash
    where role is not 'system'
    order by said.id, is_reply, depth desc, position limit :most
"""

_KINDS: Mapping[str, Kind] = {
    "text": "text",
    "reasoning": "reasoning",
    "tool_call": "call",
    "tool_result": "result",
    "attachment": "attachment",
}


def _part(row: sqlite3.Row) -> PreviewPart | None:
    kind = _KINDS.get(row["type"])
    text = " ".join(str(row["beginning"] or "").split())
    if kind is None or (kind in ("text", "reasoning") and not text):
        return None
    if kind == "attachment":
        text = ""
    return PreviewPart(kind, text, str(row["tool_name"] or ""))
