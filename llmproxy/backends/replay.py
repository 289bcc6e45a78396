"""The replay backend: plays recorded responses, without a model or a network.

A recording matches a request with the same model, options, tools, schema and visible
messages, in any dialect, and is played at its original speed. Several recordings of one
request take turns. If none matches, the error names the nearest recording and the difference.
Recordings come from a `Source`: a log (`log_source`) or files (`held_recordings`).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import SequenceMatcher
from typing import Any, Protocol

import llm
from llm.parts import Message, ReasoningPart

from ..core import backend, chat
from ..core.errors import InvalidRequest, ModelNotFound, NotRecorded, ProxyError
from ..core.fingerprints import (
    attachment_contents,
    have_same_content,
    relevant_options,
    relevant_tool_choice,
    request_key,
    visible_text,
)
from ..core.message_diff import first_difference
from ..recorder.timeline import TimedEvent

MAX_LISTED = 10_000  # recordings of which the unused ones are listed unasked, or over HTTP
OPTION_RATIO = 0.2  # of that message that another difference, as of an option, is worth
COMPARED_CHARS = 2_000  # of the first different message, to find the nearest recording


@dataclass(frozen=True)
class Recorded:
    """A recorded response.

    id: of the exchange, or the recording's key. model: llm's id of the model.
    events: with their times in milliseconds since the request.
    finish: None if the response ended with `error`; either came at `ended_ms`.
    """

    id: str
    model: str
    events: Sequence[TimedEvent]
    finish: chat.Finish | None
    error: ProxyError | None
    ended_ms: float


@dataclass(frozen=True)
class RecordingSummary:
    """A recording in a list.

    id: of the exchange, or the recording's key. model_asked: the name in the request, None
    for the default model. model_used: llm's id of the model that answered, if known.
    first_words: the beginning of what was asked.
    """

    id: str
    model_asked: str | None
    model_used: str | None
    first_words: str
    is_failure: bool = False


class Source(Protocol):
    """A store of recordings. Its methods may block, and are called from any thread.

    `near` may yield recordings of the very request that `find` doesn't know, since they were
    made when requests had other keys.
    """

    def models(self) -> list[str]:
        """Return all names of recorded models."""

    def find(self, request: chat.ChatRequest) -> list[str]:
        """Return the ids of all recordings of a request, the oldest first."""

    def load(self, id: str) -> Recorded:
        """Return a recording by its id."""

    def near(self, request: chat.ChatRequest) -> Iterable[tuple[str, chat.ChatRequest]]:
        """Yield ids and requests of recordings that are similar to a request."""

    def count(self) -> int:
        """Return the number of recordings that can be served."""

    def listed(self) -> list[RecordingSummary]:
        """List these: all but failures of requests with a success."""

    def requests(self) -> Iterable[tuple[RecordingSummary, chat.ChatRequest]]:
        """Yield all of these with their requests."""

    def close(self) -> None:
        """Close what it reads from."""


class RequestIndex:
    """Finds recordings by the keys of their requests, in memory."""

    def __init__(self) -> None:
        self._by_key: dict[str, list[RecordingSummary]] = {}

    def add(self, key: str, recording: RecordingSummary) -> None:
        """Add a recording after all others of its request."""
        self._by_key.setdefault(key, []).append(recording)

    def find(self, key: str, model: str | None) -> list[str]:
        """Return the ids of the recordings of a request: successes, else failures."""
        named = [one for one in self._by_key.get(key, ()) if _is_of_model(one, model)]
        return [one.id for one in _played(named)]

    def listed(self) -> list[RecordingSummary]:
        """List the recordings, except failures of requests with a success."""
        return [one for same in self._by_key.values() for one in _played(same)]


def _is_of_model(recording: RecordingSummary, model: str | None) -> bool:
    if model is None:
        return recording.model_asked is None
    return model in (recording.model_asked, recording.model_used)


def _played(recordings: list[RecordingSummary]) -> list[RecordingSummary]:
    return [one for one in recordings if not one.is_failure] or recordings


class _Cleaned:
    """A source whose recordings match if they are the same after `clean`.

    All requests are read when it is made, since their keys are others.
    """

    def __init__(
        self, source: Source, clean: Callable[[chat.ChatRequest], chat.ChatRequest]
    ) -> None:
        self._source = source
        self._clean = clean
        self._index = RequestIndex()
        for recording, request in source.requests():
            with suppress(InvalidRequest):  # it takes too long
                self._index.add(request_key(clean(request)), recording)
        self.models = source.models
        self.load = source.load
        self.listed = self._index.listed
        self.requests = source.requests
        self.close = source.close

    def count(self) -> int:
        return len(self.listed())

    def find(self, request: chat.ChatRequest) -> list[str]:
        found = self._index.find(request_key(self._clean(request)), request.model)
        return found or self._source.find(request)  # recorded since then

    def near(self, request: chat.ChatRequest) -> Iterator[tuple[str, chat.ChatRequest]]:
        for id, recorded in self._source.near(request):
            with suppress(InvalidRequest):
                yield id, self._clean(recorded)


class Replay:
    """A backend that plays recordings.

    speed: 1 for the original speed, 2 for twice as fast, 0 for no delays.
    live: handles requests without a recording; if None, they are errors.
    clean: takes out of requests what may differ from their recordings.
    advice: ends the message of such an error: how to record the request.
    """

    def __init__(
        self,
        source: Source,
        *,
        speed: float = 1.0,
        live: backend.Backend | None = None,
        clean: Callable[[chat.ChatRequest], chat.ChatRequest] | None = None,
        advice: str = "record it first",
    ) -> None:
        self._source = source if clean is None else _Cleaned(source, clean)
        self._clean = clean
        self._speed = speed
        self._live = live
        self._advice = advice
        self._served: Counter[str] = Counter()
        self._used: set[str] = set()
        self._count: int | None = None

    def count(self) -> int:
        """Return the number of recordings, counted at the first call."""
        if self._count is None:
            self._count = self._source.count()
        return self._count

    def unused(self) -> list[RecordingSummary]:
        """List the recordings that have answered no request, also before a `rewind`."""
        return [one for one in self._source.listed() if one.id not in self._used]

    def close(self) -> None:
        """Close the source of the recordings."""
        self._source.close()

    def rewind(self) -> int:
        """Serve each request's recordings from the first one again; return how many had been."""
        count = self._served.total()
        self._served.clear()
        return count

    def models(self) -> list[backend.ModelEntry]:
        """List the recorded models."""
        return [_entry(name) for name in self._source.models()]

    def running_models(self) -> list[backend.ModelEntry]:
        """Return none: recordings need no model."""
        return []

    async def model(self, name: str) -> backend.ModelEntry:
        """Return a recorded model.

        Raises:
            ModelNotFound: the model has no recordings.
        """
        if name not in await asyncio.to_thread(self._source.models):
            raise ModelNotFound(f"there are no recordings of a model {name[:200]!r}", param="model")
        return _entry(name)

    async def choose(
        self, request: chat.ChatRequest, headers: Sequence[tuple[str, str]] = ()
    ) -> backend.Choice:
        """Choose the next recording of a request, or the live model if there is none.

        Raises:
            NotRecorded: there is no recording; the message names the nearest one and where it
                differs.
            ProxyError: the live backend has no model for the request.
        """
        ids = await asyncio.to_thread(self._source.find, request)
        if not ids and self._live is not None:
            return await self._live.choose(request, headers)
        ids = ids or await asyncio.to_thread(self._find_by_comparing, request)
        id = ids[self._served[ids[0]] % len(ids)]
        self._served[ids[0]] += 1
        self._used.add(id)
        return _RecordedChoice(await asyncio.to_thread(self._source.load, id), self._speed)

    def _find_by_comparing(self, request: chat.ChatRequest) -> list[str]:
        """Return the ids of near recordings of the same request, the oldest first.

        Raises:
            NotRecorded: there are none; the message names the nearest one and where it differs.
        """
        near = list(self._source.near(request))
        if not near:
            raise NotRecorded(f"there are no recordings of {_model(request)}: {self._advice}")
        if self._clean is not None:
            request = self._clean(request)
        key = request_key(request)
        same = [
            id
            for id, recorded in near
            if recorded.model == request.model and request_key(recorded) == key
        ]
        if same:
            return sorted(same)
        id, recorded = max(near, key=lambda one: _likeness(request, one[1]))
        changes = list(differences(request, recorded))
        texts = "; ".join(text for _, text in changes) or "nothing visible differs"
        raise NotRecorded(
            f"no recording matches this request; the nearest is {id}, where {texts}"
            f"; {self._advice}",
            param=changes[0][0] if changes else None,
        )


@dataclass(frozen=True)
class _RecordedChoice:
    recorded: Recorded
    speed: float
    takes_recall: bool = False

    @property
    def model_id(self) -> str:
        return self.recorded.model

    def prepare(self, request: chat.ChatRequest) -> ReplayRun:
        return ReplayRun(self.recorded, self.speed, request.ignored)


def _entry(name: str) -> backend.ModelEntry:
    return backend.ModelEntry(name, "recorded", 0)


class ReplayRun:
    """A recorded response being played; see backend.Run."""

    def __init__(self, recorded: Recorded, speed: float, ignored: tuple[str, ...] = ()) -> None:
        self.replay_of: str | None = recorded.id
        self.model_id = recorded.model
        self.options: Mapping[str, Any] = {}
        self.tools: tuple[llm.Tool, ...] = ()
        self.ignored = ignored
        self.is_first = False
        self.setup_ms: float | None = None
        self.runs_in_process = False
        self.starts_at_once = True
        self.upstream = backend.NO_UPSTREAM
        self.started = datetime.now(UTC)
        self.started_at = time.monotonic()
        self._speed = speed
        self._error = recorded.error
        self._left: list[tuple[float, chat.Event]] = [*recorded.events]
        if recorded.finish is not None:
            self._left.append((recorded.ended_ms, recorded.finish))
        self._left.reverse()
        self._ended_ms = recorded.ended_ms

    async def wait_turn(self, wait_s: float | None) -> bool:
        """Return at once: any number of recordings can be played at the same time."""
        return False

    async def start(self) -> None:
        """Start the clock."""
        self.started = datetime.now(UTC)
        self.started_at = time.monotonic()

    async def read(self, silence_s: float | None = None) -> list[backend.Stamped] | None:
        """Wait for the next event and return all that are due; see backend.Run."""
        if not self._left and self._error is None:
            return []
        due_at = self._due(self._left[-1][0] if self._left else self._ended_ms)
        while (wait_s := due_at - time.monotonic()) > 0:  # a timer may fire a little early
            if silence_s is not None and wait_s > silence_s:
                await asyncio.sleep(silence_s)
                return None
            await asyncio.sleep(wait_s)
        if self._error is not None and not self._left:
            raise self._error
        now = time.monotonic()
        events = []
        while self._left and self._due(self._left[-1][0]) <= now:
            events.append(backend.Stamped(now, self._left.pop()[1]))
        return events

    async def stop(self) -> None:
        """Stop playing."""
        self._left.clear()
        self._error = None

    def _due(self, at_ms: float) -> float:
        return self.started_at + (at_ms / 1000 / self._speed if self._speed else 0)


# ---- misses


def _model(request: chat.ChatRequest) -> str:
    return "the default model" if request.model is None else f"the model {request.model!r}"


def _likeness(request: chat.ChatRequest, recorded: chat.ChatRequest) -> tuple[float, ...]:
    """Rank a recording by its messages in order, then by the first that differs and what else."""
    pairs = list(zip(request.messages, recorded.messages, strict=False))
    alike = next((i for i, (a, b) in enumerate(pairs) if not _is_alike(a, b)), len(pairs))
    ratio = 0.0
    if alike < len(pairs):
        now, was = (visible_text(message)[:COMPARED_CHARS] for message in pairs[alike])
        ratio = SequenceMatcher(None, now, was, autojunk=False).quick_ratio()
    total = max(len(request.messages), len(recorded.messages))
    others = sum(1 for _ in _option_differences(request, recorded))
    return (
        alike == total,
        alike + ratio - OPTION_RATIO * others,
        -abs(len(request.messages) - len(recorded.messages)),
    )


def _is_alike(one: Message, other: Message) -> bool:
    is_same = one.role == other.role and have_same_content([one], [other])
    return is_same and attachment_contents(one) == attachment_contents(other)


def differences(request: chat.ChatRequest, recorded: chat.ChatRequest) -> Iterator[tuple[str, str]]:
    """Yield the differences between a request and a recorded one: paths and descriptions.

    Of the messages only the first difference is given, with its position in the text.
    """
    yield from _option_differences(request, recorded)
    yield from _message_difference(request.messages, recorded.messages)


def _option_differences(
    request: chat.ChatRequest, recorded: chat.ChatRequest
) -> Iterator[tuple[str, str]]:
    if request.model != recorded.model:
        yield "model", _was("model", recorded.model, request.model)
    before, after = relevant_options(recorded), relevant_options(request)
    for name in sorted({*before, *after}):
        was, now = before.get(name), after.get(name)
        if was != now:
            path = request.option_paths.get(name, name)
            yield path, _was(path, was, now)
    yield from _tool_differences(request, recorded)
    for name, was, now in (
        ("tool_choice", relevant_tool_choice(recorded), relevant_tool_choice(request)),
        ("schema", recorded.schema, request.schema),
    ):
        if was != now:
            yield name, _was(name, was, now)


def _was(path: str, was: object, now: object) -> str:
    values = ["none" if one is None else json.dumps(one, default=str)[:200] for one in (was, now)]
    return f"{path} was {values[0]} and is {values[1]}"


def _tool_differences(
    request: chat.ChatRequest, recorded: chat.ChatRequest
) -> Iterator[tuple[str, str]]:
    was, now = _tools(recorded), _tools(request)
    before, after = dict(was), dict(now)
    changes = [
        *(f"{name} removed" for name in before if name not in after),
        *(f"{name} added" for name in after if name not in before),
        *(f"{name} changed" for name in after if before.get(name, after[name]) != after[name]),
    ]
    if not changes and was != now:
        changes = ["order changed" if len(was) == len(now) else "number of duplicates changed"]
    if changes:
        yield "tools", f"tools differ ({', '.join(changes)})"


def _tools(request: chat.ChatRequest) -> list[tuple[str, object]]:
    """Return tools by name, then those run by the provider, with all that the model gets."""
    return [
        *((tool.name, (tool.description or None, tool.input_schema)) for tool in request.tools),
        *((tool.name, dict(tool.config)) for tool in request.server_tools),
    ]


def _message_difference(
    messages: Sequence[Message], recorded: Sequence[Message]
) -> Iterator[tuple[str, str]]:
    for index, (now, was) in enumerate(zip(messages, recorded, strict=False)):
        if not _is_alike(now, was):
            path = f"messages[{index}]"
            yield path, f"{path} {_describe_change(was, now)}"
            return
    if len(messages) != len(recorded):
        path = f"messages[{min(len(messages), len(recorded))}]"
        yield path, f"messages were {len(recorded)} and are {len(messages)}"


def _describe_change(was: Message, now: Message) -> str:
    if was.role != now.role:
        return f"had role {was.role} and has role {now.role}"
    change = first_difference([_visible(was)], [_visible(now)])
    if change is not None and change.position is not None:
        return (
            f"({now.role}) differs at character {change.position}:"
            f" it was {change.before!r} and is {change.after!r}"
        )
    before, after = _call_ids(was), _call_ids(now)
    if before != after:
        return f"({now.role}) has different tool call ids: they were {before} and are {after}"
    return f"({now.role}) has a different attachment"


def _visible(message: Message) -> Message:
    """Return a message without reasoning and parts that the provider executed."""
    shown = [
        part
        for part in message.parts
        if not isinstance(part, ReasoningPart) and not getattr(part, "server_executed", False)
    ]
    return Message(message.role, shown)


def _call_ids(message: Message) -> str:
    ids = [getattr(part, "tool_call_id", None) for part in _visible(message).parts]
    return ", ".join(repr(id) for id in ids if id is not None) or "none"
