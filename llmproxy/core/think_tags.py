"""Turn `<think>…</think>`, which many local models write inside their text, into reasoning.

For streams of events and whole texts, with the same result however the text is split into
chunks. `<think>` and `<thinking>` are recognised anywhere; each ends with its own closing tag,
or with the text. White space right after a closing tag is dropped: it only separates the
thinking from the response. Everything else stays letter for letter, also a `<` that begins no
tag and a closing tag that was not opened.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Literal

from llm.parts import StreamEvent

from . import chat

Family = Literal["text", "reasoning"]

_CLOSING = {"<think>": "</think>", "<thinking>": "</thinking>"}
# The tags to look for, by the closing tag that is awaited.
_TAGS: Mapping[str | None, re.Pattern[str]] = {
    None: re.compile("|".join(_CLOSING)),
    "</think>": re.compile("</think>"),
    "</thinking>": re.compile("</thinking>"),
}
_LONGEST_TAG = max(map(len, _CLOSING.values()))
_SPACE = " \t\r\n"


class ThinkTagSplitter:
    """Turns thinking in tags into reasoning events in parts of their own. Feed in order.

    Only a possible beginning of a tag is held back, until the next event or the last one.
    Parts are renumbered as they begin.
    """

    def __init__(self) -> None:
        self._scanners: dict[int | None, _Scanner] = {}
        self._indexes: dict[tuple[int | None, int], int] = {}  # (part, its run) → new index
        self._held: StreamEvent | None = None  # the event whose end is held back

    def feed(self, event: chat.Event) -> list[chat.Event]:
        """Return an event's events: none while all of it may be the beginning of a tag."""
        if isinstance(event, chat.Finish):
            return [*self.end(), event]
        held = self._held
        if held is None or (event.type == "text" and event.part_index == held.part_index):
            return list(self._split(event))
        return [*self.end(), *self._split(event)]

    def end(self) -> list[chat.Event]:
        """Return what is held back, for a stream that ends without its Finish."""
        if self._held is None:
            return []
        event, self._held = replace(self._held, provider_metadata=None), None
        return list(self._events(event, self._scanners[event.part_index].end()))

    def _split(self, event: StreamEvent) -> Iterator[StreamEvent]:
        if event.type != "text":
            yield replace(event, part_index=self._index(event.part_index, 0))
            return
        scanner = self._scanners.setdefault(event.part_index, _Scanner())
        pieces = scanner.feed(event.chunk)
        if not pieces and (event.provider_metadata or not event.chunk):
            pieces = [(scanner.family, scanner.run, "")]  # it carries something besides text
        yield from self._events(event, pieces)
        self._held = event if scanner.held else None

    def _events(
        self, event: StreamEvent, pieces: list[tuple[Family, int, str]]
    ) -> Iterator[StreamEvent]:
        for i, (family, run, text) in enumerate(pieces):
            yield replace(
                event,
                type=family,
                chunk=text,
                part_index=self._index(event.part_index, run),
                provider_metadata=None if i else event.provider_metadata,
            )

    def _index(self, part_index: int | None, run: int) -> int:
        return self._indexes.setdefault((part_index, run), len(self._indexes))


def split_thinking(text: str) -> tuple[str, str]:
    """Split a whole text into (reasoning, text).

    For programs that convert whole responses (docs/convert.md); here responses are streams.
    """
    scanner = _Scanner()
    pieces = scanner.feed(text) + scanner.end()
    reasoning, rest = (
        "".join(piece for family, _, piece in pieces if family == wanted)
        for wanted in ("reasoning", "text")
    )
    return reasoning, rest


class _Scanner:
    """Splits a text into runs of one family, numbered from 0."""

    def __init__(self) -> None:
        self.run = 0
        self.held = ""
        self._closing: str | None = None  # the tag that ends the thinking we are in
        self._drops_space = False

    @property
    def family(self) -> Family:
        return "text" if self._closing is None else "reasoning"

    def feed(self, chunk: str) -> list[tuple[Family, int, str]]:
        text, pieces, start = self.held + chunk, [], 0
        # By position: what is left is neither copied nor searched again at every tag.
        while found := _TAGS[self._closing].search(text, start):
            pieces += self._runs(text[start : found.start()])
            start = found.end()
            self._drops_space = self._closing is not None
            self._closing = _CLOSING.get(found[0])
            self.run += 1
        tags = tuple(_CLOSING) if self._closing is None else (self._closing,)
        end = len(text) - _overlap(text, start, tags)
        self.held = text[end:]
        return pieces + self._runs(text[start:end])

    def end(self) -> list[tuple[Family, int, str]]:
        """Return what was held back: it was not a tag."""
        held, self.held = self.held, ""
        return self._runs(held)

    def _runs(self, text: str) -> list[tuple[Family, int, str]]:
        if self._drops_space:
            text = text.lstrip(_SPACE)
            self._drops_space = not text
        return [(self.family, self.run, text)] if text else []


def _overlap(text: str, start: int, tags: tuple[str, ...]) -> int:
    """Count the characters at the end of a text, from `start` on, that may begin a tag."""
    at = text.rfind("<", max(start, len(text) - _LONGEST_TAG))
    if at < 0:
        return 0
    return len(text) - at if any(tag.startswith(text[at:]) for tag in tags) else 0
