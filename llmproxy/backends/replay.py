"""Recorded answers in a model's place: an engine that knows neither a model nor the network.

A request is answered by what was recorded for the same model, options, tools, schema and
visible messages, in whatever dialect it comes, at the speed it came then. Several
recordings of one request are served in turn. Where there is none, the error says which
recording is nearest and where it differs. Where recordings are kept is `sources`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import SequenceMatcher
from typing import Any, Protocol

import llm
from llm.parts import Message, ReasoningPart

from ..core import backend, chat
from ..core.errors import ModelNotFound, NotFound, ProxyError
from ..core.fingerprints import (
    attachment_contents,
    have_same_content,
    relevant_options,
    visible_text,
)
from ..core.message_diff import first_difference
from ..recorder.timeline import TimedEvent

COMPARED_CHARS = 2_000  # of the first message that differs, to find the nearest recording


@dataclass(frozen=True)
class Recorded:
    """A recorded answer, ready to be played.

    id: the exchange's, or the recording's key; model: llm's id of what answered.
    events: with their times in milliseconds since the request.
    finish: None where it ended by `error`; either came at `ended_ms`.
    """

    id: str
    model: str
    events: Sequence[TimedEvent]
    finish: chat.Finish | None
    error: ProxyError | None
    ended_ms: float


class Source(Protocol):
    """Where recordings are. All of it may block, and is called from any thread."""

    def models(self) -> list[str]:
        """Every name by which a recorded model is known."""

    def find(self, request: chat.ChatRequest) -> list[str]:
        """The ids of all recordings of a request, in the order in which they were made."""

    def load(self, id: str) -> Recorded:
        """One of them."""

    def near(self, request: chat.ChatRequest) -> Iterable[tuple[str, chat.ChatRequest]]:
        """Ids and requests of recordings that may be what a request was meant to be."""


class Replay:
    """Answers requests from recordings.

    speed: 1 for as it came, 2 for twice as fast, 0 for at once.
    live: answers what was not recorded; without it that is an error.
    """

    def __init__(
        self, source: Source, *, speed: float = 1.0, live: backend.Backend | None = None
    ) -> None:
        self._source = source
        self._speed = speed
        self._live = live
        self._served: Counter[str] = Counter()

    def models(self) -> list[backend.ModelEntry]:
        """List the recorded models."""
        return [_shown(name) for name in self._source.models()]

    async def model(self, name: str) -> backend.ModelEntry:
        """Show a recorded model.

        Raises:
            ModelNotFound: nothing of it was recorded.
        """
        if name not in await asyncio.to_thread(self._source.models):
            raise ModelNotFound(f"nothing was recorded of a model {name[:200]!r}", param="model")
        return _shown(name)

    async def choose(self, request: chat.ChatRequest) -> backend.Choice:
        """Choose the recording whose turn it is, or the live model of what was not recorded.

        Raises:
            NotFound: nothing was recorded; the message names the nearest recording and where
                it differs.
            ProxyError: the live backend has no model for it.
        """
        ids = await asyncio.to_thread(self._source.find, request)
        if ids:
            id = ids[self._served[ids[0]] % len(ids)]
            self._served[ids[0]] += 1
            return _RecordedChoice(await asyncio.to_thread(self._source.load, id), self._speed)
        if self._live is not None:
            return await self._live.choose(request)
        raise await asyncio.to_thread(_miss, request, self._source)


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


def _shown(name: str) -> backend.ModelEntry:
    return backend.ModelEntry(name, "recorded", 0)


class ReplayRun:
    """A recorded answer as it is played: backend.Run, of one that was recorded."""

    def __init__(self, recorded: Recorded, speed: float, ignored: tuple[str, ...] = ()) -> None:
        self.replay_of: str | None = recorded.id
        self.model_id = recorded.model
        self.options: Mapping[str, Any] = {}
        self.tools: tuple[llm.Tool, ...] = ()
        self.ignored = ignored
        self.is_first = False
        self.setup_ms: float | None = None
        self.runs_in_process = False
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
        """Return at once: any number of recordings is played at one time."""
        return False

    async def start(self) -> None:
        """Start the clock."""
        self.started = datetime.now(UTC)
        self.started_at = time.monotonic()

    async def read(self, silence_s: float | None = None) -> list[backend.Stamped] | None:
        """Give the events that are due by now, at least one; see backend.Run."""
        if not self._left and self._error is None:
            return []
        due_at = self._due(self._left[-1][0] if self._left else self._ended_ms)
        while (wait_s := due_at - time.monotonic()) > 0:  # a timer may come a little early
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
        """Play no more of it."""
        self._left.clear()
        self._error = None

    def _due(self, at_ms: float) -> float:
        return self.started_at + (at_ms / 1000 / self._speed if self._speed else 0)


# ---- misses


def _miss(request: chat.ChatRequest, source: Source) -> NotFound:
    """Say that nothing was recorded for a request, what is nearest, and where it differs."""
    near = list(source.near(request))
    if not near:
        return NotFound(f"nothing was recorded of {_model(request)}: record it first")
    id, recorded = max(near, key=lambda one: _likeness(request, one[1]))
    found = list(differences(request, recorded))
    what = "; ".join(text for _, text in found) or _UNKNOWN
    message = f"no recording answers this request; the nearest is {id}, where {what}"
    return NotFound(message, param=found[0][0] if found else None)


_UNKNOWN = (
    "nothing differs, but it has no key to be found by: it was redacted, or an older"
    " llmproxy recorded it"
)


def _model(request: chat.ChatRequest) -> str:
    return "the default model" if request.model is None else f"the model {request.model!r}"


def _likeness(asked: chat.ChatRequest, recorded: chat.ChatRequest) -> tuple[float, ...]:
    """How near a recording is: by the messages from the first on, then by the one that differs."""
    pairs = list(zip(asked.messages, recorded.messages, strict=False))
    alike = next((i for i, (a, b) in enumerate(pairs) if not _is_alike(a, b)), len(pairs))
    ratio = 0.0
    if alike < len(pairs):
        now, was = (visible_text(message)[:COMPARED_CHARS] for message in pairs[alike])
        ratio = SequenceMatcher(None, now, was, autojunk=False).quick_ratio()
    total = max(len(asked.messages), len(recorded.messages))
    return alike == total, alike + ratio, -abs(len(asked.messages) - len(recorded.messages))


def _is_alike(one: Message, other: Message) -> bool:
    is_same = one.role == other.role and have_same_content([one], [other])
    return is_same and attachment_contents(one) == attachment_contents(other)


def differences(asked: chat.ChatRequest, recorded: chat.ChatRequest) -> Iterator[tuple[str, str]]:
    """Say where a request differs from a recorded one, by the hub's paths, each in words.

    Of the messages it is the first that differs, with the position of its text.
    """
    if asked.model != recorded.model:
        yield "model", _was("model", recorded.model, asked.model)
    before, after = relevant_options(recorded), relevant_options(asked)
    for name in sorted({*before, *after}):
        was, now = before.get(name), after.get(name)
        if was != now:
            path = asked.option_paths.get(name, name)
            yield path, _was(path, was, now)
    yield from _tool_differences(asked, recorded)
    for name in ("tool_choice", "schema"):
        was, now = getattr(recorded, name), getattr(asked, name)
        if was != now:
            yield name, _was(name, was, now)
    yield from _message_difference(asked.messages, recorded.messages)


def _was(path: str, was: object, now: object) -> str:
    words = ["none" if one is None else json.dumps(one, default=str)[:200] for one in (was, now)]
    return f"{path} was {words[0]} and is {words[1]}"


def _tool_differences(
    asked: chat.ChatRequest, recorded: chat.ChatRequest
) -> Iterator[tuple[str, str]]:
    was, now = _tools(recorded), _tools(asked)
    before, after = dict(was), dict(now)
    changes = [
        *(f"without {name}" for name in before if name not in after),
        *(f"with {name}" for name in after if name not in before),
        *(f"with another {name}" for name in after if before.get(name, after[name]) != after[name]),
    ]
    if not changes and was != now:
        changes = ["in another order" if len(was) == len(now) else "not named as often"]
    if changes:
        yield "tools", f"tools are {', '.join(changes)}"


def _tools(request: chat.ChatRequest) -> list[tuple[str, object]]:
    """Tools with all that the model is told of them, then those that the provider runs."""
    return [
        *((tool.name, (tool.description, tool.input_schema)) for tool in request.tools),
        *((tool.name, dict(tool.config)) for tool in request.server_tools),
    ]


def _message_difference(
    asked: Sequence[Message], recorded: Sequence[Message]
) -> Iterator[tuple[str, str]]:
    for index, (now, was) in enumerate(zip(asked, recorded, strict=False)):
        if not _is_alike(now, was):
            path = f"messages[{index}]"
            yield path, f"{path} {_said_otherwise(was, now)}"
            return
    if len(asked) != len(recorded):
        path = f"messages[{min(len(asked), len(recorded))}]"
        yield path, f"messages were {len(recorded)} and are {len(asked)}"


def _said_otherwise(was: Message, now: Message) -> str:
    """Say how a message differs from another, which does not say the same."""
    if was.role != now.role:
        return f"was {was.role}'s and is {now.role}'s"
    found = first_difference([_visible(was)], [_visible(now)])
    if found is not None and found.position is not None:
        return (
            f"({now.role}) differs at character {found.position}:"
            f" it was {found.before!r} and is {found.after!r}"
        )
    before, after = _call_ids(was), _call_ids(now)
    if before != after:
        return f"({now.role}) has other tool call ids: they were {before} and are {after}"
    return f"({now.role}) has another attachment"


def _visible(message: Message) -> Message:
    """Leave out what takes no part: reasoning, and what the provider ran itself."""
    shown = [
        part
        for part in message.parts
        if not isinstance(part, ReasoningPart) and not getattr(part, "server_executed", False)
    ]
    return Message(message.role, shown)


def _call_ids(message: Message) -> str:
    ids = [getattr(part, "tool_call_id", None) for part in _visible(message).parts]
    return ", ".join(repr(id) for id in ids if id is not None) or "none"
