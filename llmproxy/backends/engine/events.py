"""Events of plugins, corrected to follow the rules of the common event stream.

llm numbers the parts but lets other faults through, which are corrected or refused here:
parts of two families under one number, tool calls without an id or only announced by
`add_tool_call`, surrogate pairs split between chunks, chunks that aren't text. No I/O: one
object per response, fed in order. Events that need no correction pass uncopied.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import llm
from llm.parts import StreamEvent

from ...core import payload
from ...core.chat import counted_call_id, parse_arguments
from ...core.errors import UpstreamError

_FAMILIES = {
    "text": "text",
    "reasoning": "reasoning",
    "tool_call_name": "tool_call",
    "tool_call_args": "tool_call",
    "tool_result": "tool_result",
}

_SURROGATE = re.compile("[\ud800-\udfff]")


class EventReader:
    """A corrector of one response's events, fed with the part numbers that llm gave them.

    counted_calls: as in `ChatRequest`: calls for the client get ids by their places.
    """

    def __init__(self, new_call_id: Callable[[], str], counted_calls: int | None = None) -> None:
        self._new_call_id = new_call_id
        self._counted_calls = counted_calls
        self._families: dict[int, str] = {}  # part_index → family
        self._moved: dict[tuple[int, str], int] = {}  # (llm's index, second family) → our index
        self._free_index = 0  # above every number in use
        self._calls: list[_Call] = []
        self._call_ids: set[str] = set()
        self._open_calls: dict[int, _Call] = {}  # part_index → its current call
        self._space: list[StreamEvent] = []  # white space after a tool call
        self._half: StreamEvent | None = None
        self._plain: tuple[str, int | None] | None = None

    @property
    def has_calls(self) -> bool:
        """Return whether the client has to call a tool."""
        return any(not call.server_executed for call in self._calls)

    @property
    def is_cut_in_call(self) -> bool:
        """Return whether a call's arguments are incomplete JSON, as at a token limit."""
        return any("_raw" in parse_arguments(call.arguments) for call in self._calls)

    def is_more(self, event: StreamEvent) -> bool:
        """Return whether an event goes on in the last one's text, with nothing to correct."""
        chunk = event.chunk
        return (
            (event.type, event.part_index) == self._plain
            and event.provider_metadata is None
            and type(chunk) is str
            and bool(chunk)
            and (chunk.isascii() or _SURROGATE.search(chunk) is None)
        )

    def feed(self, event: StreamEvent) -> list[StreamEvent]:
        """Return the corrected event, after any that was held back until it came.

        Raises:
            UpstreamError: not an event of a known type, or its chunk isn't text.
        """
        if self.is_more(event):
            return [event]
        self._plain = None
        if not isinstance(event.chunk, str):
            raise UpstreamError(f"the model yielded {type(event.chunk).__name__}, not text")
        family = _FAMILIES.get(event.type)
        if family is None:
            raise UpstreamError(f"the model yielded an event of the unknown type {event.type!r}")
        if self._half is not None and _part_of(self._half) != _part_of(event):
            lost, self._half = replace(self._half, chunk="\ufffd"), None
            return self.feed(lost) + self.feed(event)
        if self._half is not None or not event.chunk.isascii():
            event = self._join_halves(event)
        if event.provider_metadata or not f"{event.tool_call_id}{event.tool_name}".isascii():
            event = _joined_fields(event)
        event = self._numbered(event, family)
        if family == "tool_call":
            return self._call_events(event)
        if family == "text" and self._calls and event.chunk.isspace():
            return self._hold_space(event)
        has_content = (
            event.chunk or event.redacted or event.provider_metadata or family == "tool_result"
        )
        if not has_content:
            return []
        if self._space:
            held, self._space = self._space, []
            if family == "text":
                return [replace(held[-1], chunk="".join(one.chunk for one in held)), event]
        if family != "tool_result" and self._half is None and not self._calls:
            # Nothing is held back, and this number is this family's own.
            self._plain = event.type, event.part_index
        return [event]

    def end(self, announced: Iterable[llm.ToolCall]) -> list[StreamEvent]:
        """Return the rest: half a character, and calls that were announced without events.

        announced: calls that the plugin gave to `add_tool_call`; most yield events too.

        Raises:
            UpstreamError: a call has no name.
        """
        events = []
        if self._half is not None:
            lost, self._half = replace(self._half, chunk="\ufffd"), None
            events += self.feed(lost)
        unmatched: dict[object, list[_Call]] = {}  # by what identifies them, the first one last
        for seen in reversed(self._calls):
            unmatched.setdefault(seen.identity, []).append(seen)
        join = payload.without_surrogates
        for call in announced:
            call = replace(call, name=join(call.name), tool_call_id=join(call.tool_call_id))
            # llm makes up an id for an announced call without one, so ids can't be compared if
            # the events had none either. They may have had no name.
            same = (
                unmatched.get(call.tool_call_id)
                or unmatched.get(_identity(call.name, call.arguments))
                or unmatched.get(_identity("", call.arguments))
            )
            if not same:
                events += self._announced(call)
                continue
            known = same.pop()
            if call.name and not known.has_name:
                events += known.named(call.name)
            if call.arguments and not known.arguments:
                events.append(known.event("tool_call_args", _arguments_text(call)))
        if not all(call.has_name for call in self._calls):
            raise UpstreamError("the model called a tool without naming it")
        return events

    def _numbered(self, event: StreamEvent, family: str) -> StreamEvent:
        """Keep llm's number of the part, unless another family uses it."""
        index = event.part_index
        assert index is not None, "llm numbers every event"
        known = self._families.get(index)
        if known is None:
            self._use(index, family)
        if known is None or known == family:
            return event
        moved = self._moved.get((index, family))
        if moved is None:
            moved = self._moved[index, family] = self._use(self._free_index, family)
        return replace(event, part_index=moved)

    def _use(self, index: int, family: str) -> int:
        """Take a part's number for a family."""
        self._families[index] = family
        self._free_index = max(self._free_index, index + 1)
        return index

    def _call_events(self, event: StreamEvent) -> list[StreamEvent]:
        self._space = []
        assert event.part_index is not None
        call = self._open_calls.get(event.part_index)
        # A name after arguments begins a new call: llm numbers calls by their ids, and some
        # providers use one id for all of them. Unless the name is only late.
        begins_next = call is not None and call.has_name and call.has_arguments
        if call is None or (event.type == "tool_call_name" and begins_next):
            call = self._open(event, is_new_part=call is None)
        if event.type == "tool_call_name":
            return call.named(event.chunk, event.provider_metadata)
        if not call.has_name and event.tool_name:
            return [*call.named(event.tool_name), *self._call_events(event)]
        if not call.has_name:
            call.hold(event.chunk)
            return []
        if not event.chunk:
            return []
        return [call.event("tool_call_args", event.chunk, event.provider_metadata)]

    def _open(self, event: StreamEvent, *, is_new_part: bool) -> _Call:
        """Begin a call under an id and an index that no other call of the response has."""
        part_index = event.part_index
        assert part_index is not None
        if not is_new_part:
            event = replace(event, part_index=self._use(self._free_index, "tool_call"))
        id_ = None if event.tool_call_id in self._call_ids else event.tool_call_id
        call = self._open_calls[part_index] = _Call(event, id_, self._new_call_id)
        self._calls.append(call)
        self._call_ids.add(call.id)
        if self._counted_calls is not None and not call.server_executed:
            call.show_as(counted_call_id(self._counted_calls))
            self._counted_calls += 1
        return call

    def _announced(self, announced: llm.ToolCall) -> list[StreamEvent]:
        index, id_ = self._use(self._free_index, "tool_call"), announced.tool_call_id
        name = StreamEvent("tool_call_name", announced.name, part_index=index, tool_call_id=id_)
        events = self._call_events(name)
        if announced.arguments:
            text = _arguments_text(announced)
            events.append(self._open_calls[index].event("tool_call_args", text))
        return events

    def _hold_space(self, event: StreamEvent) -> list[StreamEvent]:
        """Hold back white space after a tool call until text follows it."""
        # llm-anthropic yields " " after every tool turn, for display; strict clients
        # take it for text of the reply.
        self._space.append(event)
        return []

    def _join_halves(self, event: StreamEvent) -> StreamEvent:
        """Join surrogate pairs that were split between chunks, and hold back a last half."""
        if self._half is None and not _SURROGATE.search(event.chunk):
            return event
        chunk = (self._half.chunk if self._half else "") + event.chunk
        self._half = None
        if chunk and "\ud800" <= chunk[-1] <= "\udbff":
            chunk, self._half = chunk[:-1], replace(event, chunk=chunk[-1])
        return replace(event, chunk=payload.join_surrogates(chunk))


def _part_of(event: StreamEvent) -> tuple[str, int | None]:
    return event.type, event.part_index  # a call's name does not go on in its arguments


class _Call:
    """A tool call received so far."""

    def __init__(self, first: StreamEvent, id_: str | None, new_id: Callable[[], str]) -> None:
        self._id_is_ours = not id_
        self.id = id_ or new_id()
        self._first = replace(first, tool_call_id=self.id, provider_metadata=None)
        self._pieces: dict[str, list[str]] = {"tool_call_name": [], "tool_call_args": []}
        self._held: list[str] = []  # arguments that came before the name
        self._metadata: dict[str, object] = {}  # of events before the name

    def show_as(self, id_: str) -> None:
        """Put another id on the call's events."""
        self._first = replace(self._first, tool_call_id=id_)

    @property
    def server_executed(self) -> bool:
        return self._first.server_executed

    @property
    def has_arguments(self) -> bool:
        return bool(self._pieces["tool_call_args"] or self._held)

    @property
    def has_name(self) -> bool:
        return bool(self._pieces["tool_call_name"])

    @property
    def name(self) -> str:
        return "".join(self._pieces["tool_call_name"])

    @property
    def arguments(self) -> str:
        return "".join(self._pieces["tool_call_args"])

    def event(
        self, type_: str, chunk: str, metadata: dict[str, object] | None = None
    ) -> StreamEvent:
        self._pieces[type_].append(chunk)
        return replace(self._first, type=type_, chunk=chunk, provider_metadata=metadata)

    def hold(self, chunk: str) -> None:
        """Keep arguments until the call has a name, which must come first."""
        self._held.append(chunk)

    def named(self, piece: str, metadata: dict[str, object] | None = None) -> list[StreamEvent]:
        """Return the events for a piece of the name, and for what has waited for it."""
        self._metadata.update(metadata or {})
        if not piece:
            return []
        events = [self.event("tool_call_name", piece, self._metadata or None)]
        self._metadata = {}
        if self._held:
            events.append(self.event("tool_call_args", "".join(self._held)))
            self._held = []
        return events

    @property
    def identity(self) -> object:
        """What `add_tool_call` announces it by: its id, else its name, if any, and arguments."""
        if not self._id_is_ours:
            return self.id
        return _identity(self.name, parse_arguments(self.arguments or "".join(self._held)))


def _identity(name: str, arguments: object) -> tuple[str, str]:
    numbers_alike = payload.with_double_numbers(arguments)
    return name, json.dumps(numbers_alike, sort_keys=True, default=str)


def _arguments_text(call: llm.ToolCall) -> str:
    try:
        return payload.encode(call.arguments).decode()
    except ValueError:  # NaN, or half a character: as the provider's JSON had them
        return json.dumps(call.arguments)


def _joined_fields(event: StreamEvent) -> StreamEvent:
    """Join surrogate pairs in the fields beside the chunk: providers' JSON may have halves."""
    join = payload.without_surrogates
    return replace(
        event,
        tool_call_id=join(event.tool_call_id),
        tool_name=join(event.tool_name),
        provider_metadata=join(event.provider_metadata),
    )


class StopCutter:
    """A filter that cuts text at the first stop sequence, for models without such an option.

    Text that may begin a sequence is held back until that is decided. Each event costs as many
    steps as the sequences have characters: `prompt.MAX_STOP_CHARS` bounds them.
    """

    def __init__(self, sequences: Sequence[str]) -> None:
        self._sequences = sequences
        self._held = ""
        self._held_of: StreamEvent | None = None
        self.matched: str | None = None

    def feed(self, event: StreamEvent) -> list[StreamEvent]:
        """Return the events that may be shown; none once `matched` is set."""
        if self.matched is not None:
            return []
        if event.type != "text":
            return [*self.end(), event]
        held_of = self._held_of
        events = self.end() if held_of and held_of.part_index != event.part_index else []
        text = self._held + event.chunk
        found = [(text.find(s), -len(s), s) for s in self._sequences if s in text]
        if found:
            position, _, self.matched = min(found)
            shown, self._held = text[:position], ""
        else:
            shown, self._held = self._split(text)
        self._held_of = event if self._held else None
        return [*events, replace(event, chunk=shown)] if shown else events

    def end(self) -> list[StreamEvent]:
        """Return the text that was held back, since no sequence was completed."""
        if self._held_of is None:
            return []
        event = replace(self._held_of, chunk=self._held)
        self._held, self._held_of = "", None
        return [event]

    def _split(self, text: str) -> tuple[str, str]:
        """Split off the longest end that begins a sequence."""
        held = 0
        for sequence in self._sequences:
            longest = min(len(sequence) - 1, len(text))
            sizes = (n for n in range(longest, held, -1) if text.endswith(sequence[:n]))
            held = next(sizes, held)
        at = len(text) - held
        return text[:at], text[at:]
