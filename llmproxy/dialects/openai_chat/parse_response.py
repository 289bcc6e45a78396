"""Parse another server's response: its stream of chunks, or the whole completion.

Many servers speak this API with variations of their own; those met in the field are read.

Spec: https://platform.openai.com/docs/api-reference/chat-streaming
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from llm.parts import StreamEvent

from ...core import chat, finish_reasons, payload
from ...core.errors import UpstreamError
from ...core.finish_reasons import finish_reason
from ...core.openai_api import parse_error
from ...core.usage import Usage
from ...transport import framing
from .schema import (
    ChatCompletionChunk,
    Choice,
    ChoiceDelta,
    ChoiceDeltaToolCall,
    ChoiceDeltaToolCallFunction,
    CompletionTokensDetails,
    CompletionUsage,
    PromptTokensDetails,
)


def parse_response(body: Any, headers: Mapping[str, str] | None = None) -> chat.ChatResponse:
    """Parse another server's chat.completion; its stream, collected, gives the same.

    Raises:
        ProxyError: the error that the body reports, or UpstreamError if it is no response.
    """
    parser = StreamParser()
    events = parser.feed_value(body)
    if not parser.has_choice:
        raise UpstreamError("the upstream's answer has no choices")
    return chat.collect(events + parser.finish(default="stop"))


class StreamParser:
    """Parses another server's stream of chunks into events. Feed its frames in order.

    Accepted, since servers send them: chunks without choices or delta, usage on any chunk
    (the last counts), content on the finish chunk, calls without ids or indexes.
    The Finish comes at `[DONE]`, or at the end of a stream without one. `model` is the name
    of the model that responds, once the stream has named it.
    """

    def __init__(self) -> None:
        self.model: str | None = None
        self.has_choice = False
        self._next_index = 0
        self._prose: tuple[str, int] | None = None  # family and part_index of the open part
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}  # the last one of each
        self._by_id: dict[str, _Call] = {}  # the first one of each
        self._reason: str | None = None
        self._usage: CompletionUsage | None = None
        self._chunk_id: str | None = None
        self._ignored: dict[str, None] = {}
        self._is_finished = False

    def feed(self, frame: framing.SSEFrame) -> list[chat.Event]:
        """Return the events of one frame.

        Raises:
            ProxyError: the error that the frame reports; UpstreamError if it is no chunk, or
                if `[DONE]` comes before any finish_reason.
        """
        if self._is_finished or not frame.data:
            return []
        if frame.data == "[DONE]":
            return self.end()
        return self.feed_value(payload.parse_upstream(frame.data, "a chunk"))

    def feed_value(self, value: Any) -> list[chat.Event]:
        """Return the events of a chunk's JSON value, or of a whole chat.completion's.

        Raises:
            ProxyError: as `feed`.
        """
        if self._is_finished:
            return []
        if isinstance(value, dict) and value.get("error"):
            raise parse_error(200, value)
        unknown: list[str] = []
        chunk = payload.load_upstream(ChatCompletionChunk, value, unknown)
        self._ignored |= dict.fromkeys(unknown)
        self.model = self.model or chunk.model or None
        if isinstance(chunk.id, str):
            self._chunk_id = chunk.id
        self._usage = chunk.usage or self._usage
        events: list[chat.Event] = []
        for choice in chunk.choices or ():
            if choice.index:
                self._ignored["choices[1]"] = None  # n above 1
                continue
            self.has_choice = True
            self._list_uncarried(choice)
            for delta in (choice.delta, choice.message):
                if delta is not None:
                    events += self._events(delta)
            events += self._prose_events("text", choice.text or "")
            self._reason = choice.finish_reason or self._reason
        return events

    def end(self) -> list[chat.Event]:
        """Return the Finish, unless a frame has given it already.

        Raises:
            UpstreamError: the stream was cut: it has no finish_reason.
        """
        return [] if self._is_finished else self.finish()

    def finish(self, default: str | None = None) -> list[chat.Event]:
        """Return the last events; `default` is the reason if the server sent none."""
        reason = self._reason or default
        if reason is None:
            raise UpstreamError("the upstream's stream ended before its answer did")
        finish_reasons.check(reason)
        self._is_finished = True
        events: list[chat.Event] = [event for call in self._calls for event in call.add_name("")]
        finish = chat.Finish(
            finish_reason(reason, has_calls=bool(self._calls)),
            usage=_parse_usage(self._usage or CompletionUsage()),
            model=self.model,
            ignored=tuple(self._ignored),
        )
        return [*events, finish]

    def _list_uncarried(self, choice: Choice) -> None:
        if choice.logprobs is not None:
            self._ignored["choices[*].logprobs"] = None
        for kind in ("delta", "message"):
            for name in ("annotations", "audio"):
                if getattr(getattr(choice, kind), name, None):
                    self._ignored[f"choices[*].{kind}.{name}"] = None

    def _events(self, delta: ChoiceDelta) -> Iterator[chat.Event]:
        said = (delta.reasoning_content, delta.reasoning, delta.thinking)
        reasoning = next((text for text in said if isinstance(text, str) and text), "")
        yield from self._prose_events("reasoning", reasoning)
        if isinstance(delta.content, str):
            yield from self._prose_events("text", delta.content)
        else:
            for item in delta.content or ():
                match item:
                    case {"type": "text", "text": str(text)}:
                        yield from self._prose_events("text", text)
                    case _:
                        self._ignored[f"choices[*] (content of type {item.get('type')})"] = None
        yield from self._prose_events("text", delta.refusal or "")
        for call in delta.tool_calls or ():
            if call.type == "custom":  # our tools are functions; `custom` is listed
                continue
            yield from self._call_events(call, call.function or ChoiceDeltaToolCallFunction())
        if delta.function_call is not None:
            yield from self._call_events(ChoiceDeltaToolCall(index=0), delta.function_call)

    def _prose_events(self, family: str, text: str) -> Iterator[chat.Event]:
        if not text:
            return
        if self._prose is None or self._prose[0] != family:
            self._prose = family, self._new_index()
        yield StreamEvent(family, text, part_index=self._prose[1])

    def _new_index(self) -> int:
        self._next_index += 1
        return self._next_index - 1

    def _call_events(
        self, delta: ChoiceDeltaToolCall, function: ChoiceDeltaToolCallFunction
    ) -> Iterator[chat.Event]:
        call = self._find_call(delta, function)
        if call is None:
            self._prose = None
            id_ = delta.id or self._made_up_id()
            call = _Call(self._new_index(), id_, delta.id or None)
            self._calls.append(call)
            if delta.index is not None:
                self._by_index[delta.index] = call
            if delta.id:
                self._by_id.setdefault(delta.id, call)
        # Some repeat id and name on each delta; a name in pieces has no id beside it.
        if function.name and not (delta.id and call.is_named(function.name)):
            yield from call.add_name(function.name)
        arguments = function.arguments
        if isinstance(arguments, dict):
            arguments = payload.encode(arguments).decode()
        if arguments:
            yield from call.add_arguments(arguments)

    def _made_up_id(self) -> str:
        """Return an id that is unique in the conversation, of letters that every API accepts."""
        begin = "call"
        if self._chunk_id is not None:
            begin += "_" + re.sub(r"[^a-zA-Z0-9_-]", "", self._chunk_id)[-32:]
        return f"{begin}_{len(self._calls)}"

    def _find_call(
        self, delta: ChoiceDeltaToolCall, function: ChoiceDeltaToolCallFunction
    ) -> _Call | None:
        """Find the call that a delta continues: by index, else by id, else the last one."""
        if delta.index is not None:
            same = self._by_index.get(delta.index)
            # Two calls under one index, as Gemini's and older servers send them.
            is_other = same and delta.id and function.name and delta.id != same.sent_id
            return None if is_other else same
        if delta.id:
            return self._by_id.get(delta.id)
        return None if function.name or not self._calls else self._calls[-1]


@dataclass
class _Call:
    """A tool call in progress. Its name must come first: arguments wait for it."""

    part_index: int
    id: str
    sent_id: str | None
    has_name: bool = False
    held: list[str] = field(default_factory=list)
    _names: list[str] = field(default_factory=list)
    _name_chars: int = 0

    def is_named(self, name: str) -> bool:
        """Check whether this is the whole name so far."""
        return len(name) == self._name_chars and "".join(self._names) == name

    def add_name(self, name: str) -> Iterator[StreamEvent]:
        """Yield a piece of the name; `""` once at the end, for a call without one."""
        if name or not self.has_name:
            self.has_name = True
            self._names.append(name)
            self._name_chars += len(name)
            yield StreamEvent("tool_call_name", name, self.part_index, self.id)
            held, self.held = self.held, []
            for chunk in held:
                yield from self.add_arguments(chunk)

    def add_arguments(self, chunk: str) -> Iterator[StreamEvent]:
        """Yield a piece of the arguments."""
        if not self.has_name:
            self.held.append(chunk)
        else:
            yield StreamEvent("tool_call_args", chunk, self.part_index, self.id)


def _parse_usage(usage: CompletionUsage) -> Usage:
    prompt = usage.prompt_tokens_details or PromptTokensDetails()
    completion = usage.completion_tokens_details or CompletionTokensDetails()
    return Usage(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        cached_tokens=prompt.cached_tokens,
        cache_write_tokens=prompt.cache_write_tokens,
        reasoning_tokens=completion.reasoning_tokens,
    )
