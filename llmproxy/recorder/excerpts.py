"""The beginnings of what was said last and of the reply, each in a line, for lists of the log."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile

from llm.parts import AttachmentPart, Message, Part, TextPart, ToolCallPart, ToolResultPart

MAX_CHARS = 100  # of an excerpt
MAX_MESSAGES = 50  # that are looked at, of those since the last reply
PIECE_CHARS = 40  # of one of several pieces: of a text before calls, of each result


def last_message(messages: Sequence[Message]) -> str:
    """Return what a request ends with: results of tools (`read_file → contents`), then the text.

    Only the last text counts, since agents put reminders before the user's own. Without either
    it names the attachments; "" if the request has none.
    """
    newest = reversed(messages[-MAX_MESSAGES:])
    new = [*takewhile(lambda message: message.role != "assistant", newest)][::-1]
    parts = [part for message in new if message.role != "system" for part in message.parts]
    pieces = [*_results(parts)]
    texts = (p.text for p in reversed(parts) if isinstance(p, TextPart) and p.text.strip())
    pieces += [_one_line(text, MAX_CHARS) for text in texts][:1] or (
        [] if pieces else [*_attachments(parts)]
    )
    return _joined(pieces)


def reply_words(reply: Sequence[Message]) -> str:
    """Return the beginning of a reply's text, and its calls: `read_file(path="a.txt")`."""
    parts = [part for message in reply for part in message.parts]
    calls = [_call(part) for part in parts if isinstance(part, ToolCallPart)]
    texts = (p.text for p in parts if isinstance(p, TextPart) and p.text.strip())
    text = _one_line(next(texts, ""), PIECE_CHARS if calls else MAX_CHARS)
    return _joined([*([text] if text else []), *calls] or [*_attachments(parts)])


def _results(parts: Sequence[Part]) -> Iterator[str]:
    for part in parts:
        if isinstance(part, ToolResultPart):
            failed = "failed: " if part.exception else ""
            output = _one_line(part.output or part.exception or "", PIECE_CHARS) or "(nothing)"
            yield f"{part.name or 'tool'} → {failed}{output}"


def _call(part: ToolCallPart) -> str:
    arguments = part.arguments
    if not isinstance(arguments, Mapping):
        return f"{part.name}({_value(arguments)})"
    shown = []
    for name, value in arguments.items():
        shown.append(f"{name}={_value(value)}")
        if sum(map(len, shown)) > MAX_CHARS:
            break
    return f"{part.name}({', '.join(shown)})"


def _value(value: object) -> str:
    if isinstance(value, str):
        return json.dumps(_one_line(value, PIECE_CHARS), ensure_ascii=False)
    if isinstance(value, Mapping | list):
        return "{…}" if isinstance(value, Mapping) else "[…]"
    return json.dumps(value, default=str)


def _attachments(parts: Sequence[Part]) -> Iterator[str]:
    for part in parts:
        if isinstance(part, AttachmentPart) and part.attachment is not None:
            yield f"[{part.attachment.type or 'attachment'}]"


def _one_line(text: str, most: int) -> str:
    """Return the beginning of a text on one line, with "…" if there is more."""
    line = " ".join(text.lstrip()[: 4 * most].split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _joined(pieces: Sequence[str]) -> str:
    return _one_line("; ".join(pieces), MAX_CHARS)
