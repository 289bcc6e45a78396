"""Encode when each event of a response arrived, in a few bytes per event.

The text of a response is stored once, in its messages. A timeline says how it was split into
events and when they arrived, and keeps what messages lose: the names and arguments of tool
calls letter for letter. With both, the response can be replayed event by event.

As JSON it is `{"parts": [...], "ticks": "..."}`. A part holds what its events share:
`message` and `index` (their numbers in the events), `call` (tool_call_id), `tool`, `name` and
`arguments` as the model wrote them, and `server`, `redacted` and `empty` (it became no part
of a message) if true. Values that are 0, null, "" or false are left out. `ticks` is base64
of LEB128 numbers, three for each event: tenths of a millisecond since the previous event,
8 × the part's number + the kind's, and the length of the event's text in characters.
"""

from __future__ import annotations

import base64
from array import array
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, overload

from llm.parts import Message, Part, ReasoningPart, StreamEvent, TextPart, ToolResultPart

from ..core import chat

TimedEvent = tuple[float, StreamEvent]
"""An event with its time in milliseconds since its request; rounded to tenths when stored."""


class TimedEvents(Sequence[TimedEvent]):
    """A response's events with their times, without an object for each: eight bytes.

    times: of the events, by time.monotonic(). began_at: the time of the request.
    """

    # A list of tuples takes twenty times as much, which the garbage collector searches again
    # and again: a stream of 100,000 events cost half as much again for each as one of 10,000.

    def __init__(self, events: list[StreamEvent], times: array[float], began_at: float) -> None:
        self._events = events
        self._times = times
        self._began_at = began_at

    def __len__(self) -> int:
        return len(self._events)

    @overload
    def __getitem__(self, index: int) -> TimedEvent: ...
    @overload
    def __getitem__(self, index: slice) -> list[TimedEvent]: ...
    def __getitem__(self, index: int | slice) -> TimedEvent | list[TimedEvent]:
        if isinstance(index, slice):
            return list(self)[index]
        return (self._times[index] - self._began_at) * 1000, self._events[index]

    def __iter__(self) -> Iterator[TimedEvent]:
        began_at = self._began_at
        for at, event in zip(self._times, self._events, strict=True):
            yield (at - began_at) * 1000, event


# Their numbers are in every logs.db: append, never reorder. "redacted" is reasoning whose
# content the provider withholds.
KINDS = "text", "reasoning", "tool_call_name", "tool_call_args", "tool_result", "redacted"
MAX_NUMBER_BITS = 49  # seven bytes: tenths of a millisecond for a thousand years


class Tick(NamedTuple):
    """One event of a timeline: its time, its kind, its part and the length of its text."""

    at_ms: float
    kind: str
    part: int
    length: int


def encode(events: Sequence[TimedEvent]) -> dict[str, Any]:
    """Encode a response's events as JSON values."""
    groups: dict[int | None, list[StreamEvent]] = {}  # events by part, grouped as llm does
    places: dict[int | None, int] = {}
    values: list[int] = []
    before = 0
    # Once over the events, not once for each column: 35 µs less for twenty of them.
    for at_ms, event in events:
        index, at = event.part_index, round(at_ms * 10)
        if index not in groups:
            groups[index] = []
            places[index] = 8 * len(places)
        groups[index].append(event)
        passed = at - before
        if passed > 0:
            before = at
        kind = "redacted" if event.redacted else event.type
        values += (max(passed, 0), places[index] + _CODES[kind], len(event.chunk))
    return {
        "parts": [_part(group) for group in groups.values()],
        "ticks": base64.b64encode(_leb128(values)).decode(),
    }


def _leb128(values: list[int]) -> bytes:
    if max(values, default=0) <= 0x7F:  # nearly always, of a response that came at once
        return bytes(values)
    numbers = bytearray()
    for number in values:
        while number > 0x7F:
            numbers.append(number & 0x7F | 0x80)
            number >>= 7
        numbers.append(number)
    return bytes(numbers)


_CODES = {kind: code for code, kind in enumerate(KINDS)}


class EventTicks:
    """The ticks that events have once they are stored, with rounded times, as plain tuples.

    It can be iterated more than once.

    Each column is a list of plain values, made in one go: 0.4 µs per event instead of 1.5, and
    nothing that the garbage collector looks at (tuples for 100,000 events keep it busy for half
    a second).
    """

    def __init__(self, events: Sequence[TimedEvent]) -> None:
        places: dict[int | None, int] = {}
        # A plugin's clock may go back; stored times don't.
        self.tenths = [*accumulate([round(at_ms * 10) for at_ms, _ in events], max, initial=0)][1:]
        self.kinds = ["redacted" if event.redacted else event.type for _, event in events]
        self.parts = [places.setdefault(event.part_index, len(places)) for _, event in events]
        self.lengths = [len(event.chunk) for _, event in events]

    def __iter__(self) -> Iterator[tuple[float, str, int, int]]:
        times = [at / 10 for at in self.tenths]
        return zip(times, self.kinds, self.parts, self.lengths, strict=True)


def _part(group: list[StreamEvent]) -> dict[str, Any]:
    first = group[0]
    types = {event.type for event in group}
    facts = {
        "message": first.message_index,
        "index": first.part_index,
        "call": first.tool_call_id,
        "tool": first.tool_name,
        "name": _joined(group, "tool_call_name") if "tool_call_name" in types else "",
        "arguments": _joined(group, "tool_call_args") if "tool_call_args" in types else "",
        "server": first.server_executed,
        "redacted": any(event.redacted for event in group),
        # What says something is never empty, and need not be put together for that.
        "empty": not any(event.chunk for event in group if event.type == first.type)
        and not chat.collect(group).messages,
    }
    return {name: fact for name, fact in facts.items() if fact}


def _joined(group: list[StreamEvent], type_: str) -> str:
    return "".join([event.chunk for event in group if event.type == type_])


def ticks(timeline: Mapping[str, Any]) -> list[Tick]:
    """Decode the events' times, kinds and lengths, without their text.

    Raises:
        ValueError: the argument is not a timeline.
    """
    numbers = _numbers(base64.b64decode(timeline["ticks"]))
    at = 0
    result = []
    for passed, code, length in zip(numbers, numbers, numbers, strict=True):
        at += passed
        place, kind = divmod(code, 8)
        if kind >= len(KINDS) or place >= len(timeline["parts"]):
            raise ValueError("the timeline has an event of an unknown part or kind")
        result.append(Tick(at / 10, KINDS[kind], place, length))
    return result


def _numbers(data: bytes) -> Iterator[int]:
    number = shift = 0
    for byte in data:
        number |= (byte & 0x7F) << shift
        shift += 7
        if shift > MAX_NUMBER_BITS:
            raise ValueError("the timeline has a number that is too large")
        if byte < 0x80:
            yield number
            number = shift = 0


def decode(timeline: Mapping[str, Any], reply: Sequence[Message]) -> list[TimedEvent]:
    """Decode the events that were encoded, given the reply whose timeline it is.

    A part's provider metadata is in its last event, whichever event had it.

    Raises:
        ValueError: the timeline belongs to another reply.
    """
    parts = timeline["parts"]
    played = ticks(timeline)
    sources = _sources(parts, reply)
    last = {tick.part: number for number, tick in enumerate(played)}
    taken: dict[tuple[int, str], int] = {}
    events = []
    for number, (at_ms, kind, place, length) in enumerate(played):
        part, source = parts[place], sources[place]
        type_ = "reasoning" if kind == "redacted" else kind
        start = taken.get((place, type_), 0)
        taken[place, type_] = start + length
        chunk = _text(type_, part, source)[start : start + length]
        if len(chunk) != length:
            raise ValueError("the timeline belongs to another reply")
        event = StreamEvent(
            type_,
            chunk,
            part_index=part.get("index", 0),
            tool_call_id=part.get("call"),
            server_executed=part.get("server", False),
            tool_name=part.get("tool"),
            redacted=kind == "redacted",
            provider_metadata=_metadata(source) if last[place] == number else None,
            message_index=part.get("message", 0),
        )
        events.append((at_ms, event))
    for place, source in enumerate(sources):
        if isinstance(source, TextPart | ReasoningPart):
            type_ = "text" if isinstance(source, TextPart) else "reasoning"
            if taken.get((place, type_), 0) != len(source.text):
                raise ValueError("the timeline belongs to another reply")
    return events


def _sources(parts: Sequence[Mapping[str, Any]], reply: Sequence[Message]) -> list[Part | None]:
    """Find the part of a message for each part of a timeline."""
    kept: dict[int, list[int]] = {}
    for place, part in enumerate(parts):
        if not part.get("empty"):
            kept.setdefault(part.get("message", 0), []).append(place)
    sources: list[Part | None] = [None] * len(parts)
    if not parts:
        return sources  # no times were recorded
    if len(kept) != len(reply):
        raise ValueError("the timeline belongs to another reply")
    for places, message in zip(kept.values(), reply, strict=True):
        # In messages, redacted reasoning comes first.
        ordered = sorted(places, key=lambda place: not parts[place].get("redacted"))
        if len(ordered) != len(message.parts):
            raise ValueError("the timeline belongs to another reply")
        for place, source in zip(ordered, message.parts, strict=True):
            sources[place] = source
    return sources


def _text(type_: str, part: Mapping[str, Any], source: Part | None) -> str:
    match type_, source:
        case "tool_call_name", _:
            return str(part.get("name", ""))
        case "tool_call_args", _:
            return str(part.get("arguments", ""))
        case _, TextPart(text=text) | ReasoningPart(text=text) | ToolResultPart(output=text):
            return text
        case _:
            return ""


def _metadata(source: Part | None) -> dict[str, Any] | None:
    metadata: dict[str, Any] | None = getattr(source, "provider_metadata", None)
    return metadata
