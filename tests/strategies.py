"""Hypothesis strategies: text that breaks things, JSON, hub requests, hub event streams."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from typing import Any

import llm
from hypothesis import strategies as st
from llm.parts import (
    AttachmentPart,
    Message,
    Part,
    ReasoningPart,
    StreamEvent,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)

from llmproxy.core import chat
from llmproxy.core.usage import FinishReason, Usage

# Each has broken some reader: line ends of Unicode, NUL, astral, combining, joined and
# right-to-left characters, what looks like the framing or like an escape.
AWKWARD = (
    "\u2028",
    "\u0085\u2029",
    "\0",
    "渐",
    "🌊",
    "👩\u200d👧",
    "e\u0301",
    "\u202eabc",
    "\ufeff",
    "\ufffd",
    "\\ud800",
    "\r\n\r\n",
    "data: [DONE]\n\n",
    '"',
    "</think>",
    " ",
)


def texts(min_size: int = 0) -> st.SearchStrategy[str]:
    """Text without lone surrogates, as the hub holds it."""
    pieces = st.one_of(st.text(st.characters(codec="utf-8"), max_size=8), st.sampled_from(AWKWARD))
    return st.lists(pieces, max_size=4).map("".join).filter(lambda text: len(text) >= min_size)


said = texts(min_size=1).filter(lambda text: not text.isspace())
"""Text that says something."""

words = st.from_regex(r"[a-zA-Z0-9_-]{1,12}", fullmatch=True)
"""Names of tools, ids: what every provider takes."""

numbers = st.one_of(
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
)


def json_values(max_leaves: int = 12) -> st.SearchStrategy[Any]:
    """Whatever a JSON text may say."""
    return st.recursive(
        st.one_of(st.none(), st.booleans(), numbers, texts()),
        lambda children: st.one_of(
            st.lists(children, max_size=4), st.dictionaries(texts(), children, max_size=4)
        ),
        max_leaves=max_leaves,
    )


json_objects = st.dictionaries(texts(), json_values(6), max_size=4)


# ---- requests


def tools() -> st.SearchStrategy[llm.Tool]:
    """A tool with a schema of one property."""
    return st.builds(
        lambda name, description, property_: llm.Tool(
            name, description, {"type": "object", "properties": {property_: {"type": "string"}}}
        ),
        words,
        st.none() | said,
        words,
    )


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """A history that every provider takes: questions, answers, calls with all their results."""
    system = draw(st.lists(said, max_size=1))
    messages = [Message("system", [TextPart(text)]) for text in system]
    for _ in range(draw(st.integers(0, 3))):
        messages.append(Message("user", draw(user_parts())))
        calls = draw(_calls(f"t{len(messages)}"))
        before: list[Part] = [TextPart(text) for text in draw(st.lists(said, max_size=1))]
        if calls:
            messages.append(Message("assistant", [*before, *calls]))
            messages.append(Message("tool", [_result(draw, call) for call in calls]))
        if draw(st.booleans()) or not calls:
            reasoning: list[Part] = [ReasoningPart(t) for t in draw(st.lists(said, max_size=1))]
            messages.append(Message("assistant", [*reasoning, TextPart(draw(said))]))
    return [*messages, Message("user", draw(user_parts()))]


def user_parts() -> st.SearchStrategy[list[Part]]:
    """What a user says and shows."""
    images = st.binary(max_size=6).map(
        lambda data: AttachmentPart(llm.Attachment(type="image/png", content=PNG_MAGIC + data))
    )
    return st.lists(said.map(TextPart) | images, min_size=1, max_size=3)


PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def _calls(prefix: str) -> st.SearchStrategy[list[ToolCallPart]]:
    return st.lists(st.tuples(words, json_objects), max_size=3).map(
        lambda pairs: [
            ToolCallPart(name, arguments, tool_call_id=f"call_{prefix}_{i}")
            for i, (name, arguments) in enumerate(pairs)
        ]
    )


def _result(draw: st.DrawFn, call: ToolCallPart) -> ToolResultPart:
    return ToolResultPart(name=call.name, output=draw(texts()), tool_call_id=call.tool_call_id)


def requests() -> st.SearchStrategy[chat.ChatRequest]:
    """A request with what every dialect carries."""
    options = st.fixed_dictionaries(
        {},
        optional={
            "temperature": st.floats(0, 2),
            "max_tokens": st.integers(1, 2**31),
            "stop_sequences": st.lists(said, min_size=1, max_size=3),
        },
    )
    return st.builds(
        chat.ChatRequest,
        model=words,
        messages=conversations(),
        tools=st.lists(tools(), max_size=2, unique_by=lambda tool: tool.name).map(tuple),
        options=options,
        stream=st.booleans(),
    )


@st.composite
def marked_bodies(draw: st.DrawFn, bodies: Sequence[Any]) -> Any:
    """One of these bodies with cache marks in some of its objects, wherever they stand."""
    body = copy.deepcopy(draw(st.sampled_from(bodies)))
    marks = st.sampled_from([{"type": "ephemeral"}, {"type": "ephemeral", "ttl": "1h"}, None])
    for place in draw(st.lists(st.sampled_from(list(_objects(body))), max_size=6)):
        place["cache_control"] = draw(marks)
    return body


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for child in value.values() if isinstance(value, dict) else value:
        if isinstance(child, dict | list):
            yield from _objects(child)


# ---- answers


def finishes(has_calls: bool) -> st.SearchStrategy[chat.Finish]:
    """An end with a reason that the parts before it allow (B6)."""
    ended: FinishReason = "tool_calls" if has_calls else "stop"
    counts = st.none() | st.integers(0, 2**40)
    return st.builds(
        chat.Finish,
        reason=st.sampled_from([ended, ended, "length", "content_filter"]),
        usage=st.builds(Usage, counts, counts, counts, counts, counts),
    )


@st.composite
def event_streams(draw: st.DrawFn) -> list[chat.Event]:
    """An answer as the hub's invariant has it: any parts, calls interleaved, cut anywhere."""
    events: list[StreamEvent] = []
    kinds = draw(
        st.lists(st.sampled_from(["text", "reasoning", "redacted", "calls", "server"]), max_size=5)
    )
    next_index = message_index = 0
    has_calls = False
    for kind in kinds:
        match kind:
            case "calls":
                count = draw(st.integers(1, 3))
                has_calls = True
                queues = [draw(_call_events(next_index + i)) for i in range(count)]
            case "server":
                queues = [draw(_server_events(next_index))]
            case "redacted":
                queues = [[StreamEvent("reasoning", "", redacted=True)]]
            case _:
                queues = [draw(_prose_events(kind))]
        for event in draw(_interleaved(queues)):
            if event.part_index is None:
                event.part_index = next_index
            event.message_index = message_index
            events.append(event)
        next_index = 1 + max((e.part_index or 0 for e in events), default=-1)
        if kind == "server":
            message_index += draw(st.integers(0, 1))
    return [*events, draw(finishes(has_calls))]


@st.composite
def _prose_events(draw: st.DrawFn, kind: str) -> list[StreamEvent]:
    events = [StreamEvent(kind, chunk) for chunk in draw(st.lists(texts(), max_size=4))]
    if kind == "reasoning" and draw(st.booleans()):
        signature = {"anthropic": {"signature": draw(words)}}
        events.append(StreamEvent("reasoning", "", provider_metadata=signature))
    return events


@st.composite
def _call_events(draw: st.DrawFn, index: int) -> list[StreamEvent]:
    id_ = f"call_{index}_{draw(words)}"
    metadata = draw(st.none() | st.just({"gemini": {"thoughtSignature": "c2ln"}}))
    names = draw(st.lists(words, min_size=1, max_size=2))
    pieces = draw(_cut(draw(argument_texts())))
    return [
        *(
            StreamEvent("tool_call_name", name, index, id_, provider_metadata=metadata)
            for name in names
        ),
        *(StreamEvent("tool_call_args", piece, index, id_) for piece in pieces),
    ]


@st.composite
def _server_events(draw: st.DrawFn, index: int) -> list[StreamEvent]:
    """A call that the provider ran itself, with its result."""
    id_, name = f"srv_{index}", draw(words)
    arguments = json.dumps(draw(json_objects))
    return [
        StreamEvent("tool_call_name", name, index, id_, server_executed=True),
        StreamEvent("tool_call_args", arguments, index, id_, server_executed=True),
        StreamEvent(
            "tool_result", draw(texts()), index + 1, id_, server_executed=True, tool_name=name
        ),
    ]


# Objects that one JSON reader takes and another refuses, or can't encode again.
ARGUMENT_ODDITIES = (
    r'{"a": "\ud800", "b": 1}',
    r'{"\udfff": "\ud83d\ud83d\ude00"}',
    r'{"a": "\\ud800 \ud83d\n"}',
    '{"a": [NaN, -Infinity, 1e999, ' + "9" * 500 + "]}",
    r'{"path": "C:\Users\u12", "pattern": "\d+"}',
    '{"a": "two\nlines\t\0"}',
    '{"a": ' + "[" * 94 + "]" * 94 + "}",
    '{"a": ' + "[" * 300 + r'"\"]\ud800"' + "]" * 300 + "}",
    '{"a":' * 5000,
)


def argument_texts() -> st.SearchStrategy[str]:
    """Arguments as models write them: JSON in any spacing, nothing, blank, or cut off."""
    whole = st.builds(
        lambda value, ascii_, indent: json.dumps(value, ensure_ascii=ascii_, indent=indent),
        json_objects,
        st.booleans(),
        st.sampled_from([None, 2]),
    )
    cut = st.builds(lambda text, share: text[: int(len(text) * share)], whole, st.floats(0, 1))
    return st.one_of(whole, cut, st.sampled_from(["", " ", "\n", "[1]", "null", ' {"a": 1}']))


@st.composite
def _cut(draw: st.DrawFn, text: str) -> list[str]:
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=4)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@st.composite
def _interleaved(draw: st.DrawFn, queues: Sequence[list[StreamEvent]]) -> list[StreamEvent]:
    left = [list(queue) for queue in queues if queue]
    events = []
    while left:
        queue = draw(st.sampled_from(left)) if len(left) > 1 else left[0]
        events.append(queue.pop(0))
        left = [queue for queue in left if queue]
    return events
