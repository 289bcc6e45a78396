"""Text that may differ between a request and its recording: dates, temporary folders, hashes.

Each match of a pattern is replaced by `MARK`, in the request and in the recording, before they
are compared. Patterns are the user's, but the text is foreign: so the time is bounded.

- A pattern in which a repetition repeats another one, or a choice, is refused: these can take
  exponential time (`(a+)+`). So is one with many wide repetitions, since each may take a time
  that is multiplied by its width.
- A match has at most `MAX_MATCH_CHARS` characters; text is searched in windows of twice that.
- All the text of a request may take `MAX_SEARCH_S`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from re import _parser as parser  # type: ignore[attr-defined]  # sre_parse until 3.10
from typing import Any

import llm
from llm.parts import (
    AttachmentPart,
    Message,
    Part,
    ReasoningPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)

from ..core import chat
from ..core.attachments import map_attachments
from ..core.errors import InvalidRequest

MARK = "…"
MAX_MATCH_CHARS = 256  # dates, hashes and the paths of temporary folders are shorter
# Ways to divide a text between a pattern's repetitions: two of any width, and two options.
MAX_WAYS = 4 * (MAX_MATCH_CHARS + 1) ** 2
MAX_SEARCH_S = 1.0  # per request; the slowest pattern that is allowed takes 0.4 s for a window

_REPEATS = {parser.MAX_REPEAT, parser.MIN_REPEAT, parser.POSSESSIVE_REPEAT}
_REFERENCES = {parser.GROUPREF, parser.GROUPREF_EXISTS}


class IgnoredText:
    """Replaces what the patterns match in a request; may be called from any thread."""

    def __init__(self, patterns: Sequence[str]) -> None:
        """Compile the patterns, regular expressions of `re`.

        Raises:
            ValueError: one is invalid or could take too long; the message names it.
        """
        self.patterns = tuple(patterns)
        self._compiled = [_compiled(pattern) for pattern in patterns]

    def __call__(self, request: chat.ChatRequest) -> chat.ChatRequest:
        """Return the request with `MARK` for each match in whatever a response depends on.

        That is every text of messages, options, tools and schema, arguments of calls included;
        not names, roles, and the content of attachments.

        Raises:
            InvalidRequest: it took too long.
        """
        text = _Replacer(self._compiled)
        return replace(
            request,
            messages=[_message(one, text) for one in request.messages],
            options={name: text.value(value) for name, value in request.options.items()},
            tools=tuple(
                replace(
                    tool,
                    description=text.value(tool.description),
                    input_schema=text.value(tool.input_schema),
                )
                for tool in request.tools
            ),
            schema=text.value(request.schema),
        )


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
        ways = _ways(parser.parse(pattern), in_repeat=False)
    except re.error as exc:
        raise ValueError(f"{pattern!r} is no regular expression: {exc}") from exc
    except ValueError as exc:
        raise ValueError(f"{pattern!r} {exc}") from exc
    if ways > MAX_WAYS:
        raise ValueError(
            f"{pattern!r} could take too long: give repetitions a limit, such as {{1,40}};"
            " two may be without"
        )
    if compiled.search(""):
        raise ValueError(f"{pattern!r} matches an empty text, and so everywhere")
    return compiled


def _ways(tree: Any, *, in_repeat: bool) -> int:
    """Return in how many ways a text may be divided between the repetitions of a pattern.

    Raises:
        ValueError: a repetition of a repetition or a choice, or a reference to a group.
    """
    ways = 1
    for operation, argument in tree:
        if operation in _REPEATS:
            low, high, body = argument
            width = min(int(high), MAX_MATCH_CHARS) - min(int(low), MAX_MATCH_CHARS) + 1
            if width > 1 and in_repeat:
                raise ValueError("could take too long: it repeats a repetition")
            ways *= width * _ways(body, in_repeat=in_repeat or int(high) > 1)
        elif operation is parser.BRANCH:
            if in_repeat:
                raise ValueError("could take too long: it repeats a choice")
            ways *= sum(_ways(body, in_repeat=False) for body in argument[1])
        elif operation in _REFERENCES:
            raise ValueError("could take too long: it refers to a group")
        else:
            for body in _bodies(argument):
                ways *= _ways(body, in_repeat=in_repeat)
    return ways


def _bodies(argument: object) -> Iterator[Any]:
    """Yield the patterns inside a group or an assertion."""
    if isinstance(argument, parser.SubPattern):
        yield argument
    elif isinstance(argument, tuple):
        for item in argument:
            yield from _bodies(item)


class _Replacer:
    """Replaces matches in the texts of one request, until its time is over."""

    def __init__(self, patterns: Sequence[re.Pattern[str]]) -> None:
        self._patterns = patterns
        self._until = time.monotonic() + MAX_SEARCH_S

    def value(self, value: Any) -> Any:
        """Replace in each string of a JSON value, except names of members."""
        match value:
            case str():
                return self.text(value)
            case dict():
                return {name: self.value(member) for name, member in value.items()}
            case list() | tuple():
                return [self.value(item) for item in value]
        return value

    def text(self, text: str) -> str:
        for pattern in self._patterns:
            text = "".join(self._pieces(pattern, text))
        return text

    def _pieces(self, pattern: re.Pattern[str], text: str) -> Iterator[str]:
        start = at = 0  # of what is not yielded yet, and of the window
        while at < len(text):
            if time.monotonic() > self._until:
                raise InvalidRequest("to find what --ignore says takes too long in this request")
            found = pattern.search(text, at, at + 2 * MAX_MATCH_CHARS)
            if found is None or found.start() >= at + MAX_MATCH_CHARS:
                at += MAX_MATCH_CHARS
                continue
            # The window's end must not decide how long a match is.
            whole = pattern.match(text, found.start(), found.start() + MAX_MATCH_CHARS) or found
            if whole.end() == whole.start():
                at = whole.end() + 1
                continue
            yield text[start : whole.start()]
            yield MARK
            start = at = whole.end()
        yield text[start:]


def _message(message: Message, text: _Replacer) -> Message:
    def changed(attachment: llm.Attachment) -> llm.Attachment:
        url = attachment.url
        return replace(attachment, url=text.text(url)) if url else attachment

    parts = [_part(part, text) for part in message.parts]
    return map_attachments(replace(message, parts=parts), changed)


def _part(part: Part, text: _Replacer) -> Part:
    match part:
        case TextPart():
            return replace(part, text=text.text(part.text))
        case ToolCallPart():
            return replace(
                part,
                arguments=text.value(part.arguments),
                tool_call_id=text.value(part.tool_call_id),
            )
        case ToolResultPart():
            return replace(
                part, output=text.text(part.output), tool_call_id=text.value(part.tool_call_id)
            )
        case ReasoningPart() | AttachmentPart():
            return part
    return part
