"""What we send we take back: any model's output, in any API, as its own SDK sends it back."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import llm
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm.parts import Message, Part, StreamEvent, ToolCallPart, ToolResultPart
from ollama import Message as OllamaMessage

from llmproxy.backends.engine.events import EventReader
from llmproxy.backends.engine.prompt import Call, build_prompt
from llmproxy.core import chat
from llmproxy.dialects import anthropic_messages, ollama, openai_chat
from tests.dialects.anthropic_messages.samples import SERVER as ANTHROPIC
from tests.dialects.openai_chat.samples import SERVER as OPENAI
from tests.dialects.openai_chat.samples import Pieces
from tests.examples import many_examples
from tests.models import AsyncScript, SyncScript
from tests.strategies import argument_texts, json_objects, texts, words
from tests.wire_cases import envelope

# JSON that is no object, and none at all: models write both.
INPUTS = ("[1,2]", '"x"', "3", "true", "null", "-", "[", '{"a": 1}{"b": 2}', " [1]", '{"a": [1, ')

ids = st.one_of(st.none(), st.sampled_from(["", "call_0", "functions.f:1", "id 1\n", "é"]), texts())
chunks = st.one_of(texts(), st.sampled_from(["", " ", "\n", "\ud83d", "\udf0a", "ok"]))


@st.composite
def outputs(draw: st.DrawFn) -> list[chat.Event]:
    """What a plugin yields and announces, as the engine passes it on."""
    numbers = itertools.count()
    reader = EventReader(lambda: f"call_made_{next(numbers)}")
    events: list[chat.Event] = []
    for event in draw(st.lists(_groups(), max_size=5)):
        for each in event:
            events += reader.feed(each)
    announced = draw(st.lists(st.builds(llm.ToolCall, words, json_objects, ids), max_size=2))
    events += reader.end(announced)
    reason: Any = "tool_calls" if reader.has_calls else "stop"
    return [*events, chat.Finish(draw(st.sampled_from([reason, "length", "content_filter"])))]


@st.composite
def _groups(draw: st.DrawFn) -> list[StreamEvent]:
    index = draw(st.integers(0, 3))
    kind = draw(st.sampled_from(["text", "reasoning", "call", "call", "server", "redacted"]))
    match kind:
        case "text" | "reasoning":
            said = draw(st.lists(chunks, max_size=3))
            events = [StreamEvent(kind, chunk, index) for chunk in said]
            if kind == "reasoning" and draw(st.booleans()):
                signature = {"anthropic": {"signature": draw(texts())}}
                events.append(StreamEvent(kind, "", index, provider_metadata=signature))
            return events
        case "redacted":
            data = {"anthropic": {"type": "redacted_thinking", "data": draw(texts())}}
            return [StreamEvent("reasoning", "", index, redacted=True, provider_metadata=data)]
    id_ = draw(ids) if kind == "call" else f"{draw(st.sampled_from(PREFIXES))}{draw(words)}"
    name, text = draw(texts(min_size=1)), draw(argument_texts() | st.sampled_from(INPUTS))
    fields: Any = {"tool_call_id": id_, "server_executed": kind == "server"}
    events = [StreamEvent("tool_call_name", name, index, **fields)]  # without: an error
    cut = draw(st.integers(0, len(text)))
    events += [StreamEvent("tool_call_args", t, index, **fields) for t in (text[:cut], text[cut:])]
    if kind == "server" and draw(st.booleans()):
        result = draw(texts() | json_objects.map(json.dumps))
        events.append(StreamEvent("tool_result", result, index + 4, tool_name=name, **fields))
    return events


PREFIXES = ("srvtoolu_", "mcptoolu_", "ws_")


def openai_echoes(events: list[chat.Event]) -> Iterator[dict[str, Any]]:
    response = chat.collect(events)
    body = openai_chat.render_response(response, envelope())
    yield OPENAI.whole(body).choices[0].message.model_dump()
    yield OPENAI.whole(body).choices[0].message.model_dump(exclude_unset=True)
    renderer = openai_chat.StreamRenderer(envelope())
    pieces = renderer.start() + [f for event in events for f in renderer.feed(event)]
    message: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": []}
    for chunk in OPENAI.chunks(Pieces(pieces)):
        for choice in chunk.choices:
            message["content"] += choice.delta.content or ""
            for call in choice.delta.tool_calls or ():
                if call.index == len(message["tool_calls"]):
                    message["tool_calls"].append(call.model_dump())
                else:
                    told = message["tool_calls"][call.index]["function"]
                    told["arguments"] += call.function.arguments or ""
                    told["name"] += call.function.name or ""
    yield message


def function_echoes(events: list[chat.Event]) -> Iterator[dict[str, Any]]:
    """As clients of the older form send it back, which know one call and no id."""
    head = replace(envelope(), form="functions")
    body = openai_chat.render_response(chat.collect(events), head)
    yield OPENAI.whole(body).choices[0].message.model_dump(exclude={"tool_calls"})
    renderer = openai_chat.StreamRenderer(head)
    pieces = renderer.start() + [f for event in events for f in renderer.feed(event)]
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    for chunk in OPENAI.chunks(Pieces(pieces)):
        for choice in chunk.choices:
            assert choice.delta.tool_calls is None
            message["content"] += choice.delta.content or ""
            if (call := choice.delta.function_call) is not None:
                told = message.setdefault("function_call", {"name": "", "arguments": ""})
                told["name"] += call.name or ""
                told["arguments"] += call.arguments or ""
    yield message


def function_body(echo: dict[str, Any]) -> dict[str, Any]:
    user = {"role": "user", "content": "q"}
    call = echo.get("function_call")
    results = [{"role": "function", "name": call["name"], "content": "done"}] if call else []
    return {"model": "m", "messages": [user, echo, *results, user]}


def ollama_echoes(events: list[chat.Event]) -> Iterator[dict[str, Any]]:
    """As the Python client sends it back, which knows no ids, and as the JavaScript one does."""
    whole = ollama.render_response(chat.collect(events), envelope())["message"]
    yield whole
    yield OllamaMessage.model_validate(whole).model_dump(exclude_none=True)
    renderer = ollama.StreamRenderer(envelope())
    lines = renderer.start() + [f for event in events for f in renderer.feed(event)]
    pieces = [json.loads(line)["message"] for line in lines]
    calls = [call for piece in pieces for call in piece.get("tool_calls", ())]
    yield {
        "role": "assistant",
        "content": "".join(piece["content"] for piece in pieces),
        "thinking": "".join(piece.get("thinking", "") for piece in pieces),
        "tool_calls": calls,
    }


def ollama_body(echo: dict[str, Any]) -> dict[str, Any]:
    user = {"role": "user", "content": "q"}
    results = [
        {"role": "tool", "tool_name": call["function"]["name"], "content": "done"}
        for call in echo.get("tool_calls") or ()
    ]
    return {"model": "m", "messages": [user, echo, *results, user]}


def anthropic_echoes(events: list[chat.Event]) -> Iterator[dict[str, Any]]:
    response = chat.collect(events)
    whole = ANTHROPIC.whole(anthropic_messages.render_response(response, envelope()))
    yield {"role": "assistant", "content": whole["content"]}
    renderer = anthropic_messages.StreamRenderer(envelope())
    pieces = renderer.start() + [f for event in events for f in renderer.feed(event)]
    # Read by hand: the SDK raises where the model's object is broken JSON, and what clients send
    # back then is the text in an object of their own, as Anthropic's documentation has it.
    blocks: list[dict[str, Any]] = []
    inputs: dict[int, str] = {}
    for line in b"".join(pieces).decode().split("\n"):
        match json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else None:
            case {"type": "content_block_start", "content_block": block}:
                blocks.append(block)
            case {"type": "content_block_delta", "index": index, "delta": delta}:
                match delta:
                    case {"partial_json": text}:
                        inputs[index] = inputs.get(index, "") + text
                    case {"type": "signature_delta", "signature": signature}:
                        blocks[index]["signature"] = signature
                    case {"text": text} | {"thinking": text}:
                        blocks[index][delta["type"].removesuffix("_delta")] += text
    for index, text in inputs.items():
        try:
            blocks[index]["input"] = json.loads(text)
        except ValueError:
            blocks[index]["input"] = {"INVALID_JSON": text}
    assert all(isinstance(blocks[index]["input"], dict) for index in inputs), inputs
    yield {"role": "assistant", "content": blocks}


def openai_body(echo: dict[str, Any]) -> dict[str, Any]:
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": "done"}
        for call in echo.get("tool_calls") or ()
    ]
    user = {"role": "user", "content": "q"}
    return {"model": "m", "messages": [user, echo, *results, user]}


def anthropic_body(echo: dict[str, Any]) -> dict[str, Any]:
    results = [
        {"type": "tool_result", "tool_use_id": block["id"], "content": "done"}
        for block in echo["content"]
        if block["type"] == "tool_use"
    ]
    user = {"role": "user", "content": "q"}
    after = {"role": "user", "content": [*results, {"type": "text", "text": "q"}]}
    return {"model": "m", "messages": [user, echo, after]}


def check_prompt(messages: list[Message]) -> None:
    """Assert that every call for the client is followed by its result, and all else is text."""
    waiting: list[str | None] = []
    for message in messages:
        parts: list[Part] = message.parts
        if message.role == "tool":
            results = [part for part in parts if isinstance(part, ToolResultPart)]
            assert sorted(str(r.tool_call_id) for r in results) == sorted(map(str, waiting))
            waiting = []
            continue
        assert not waiting
        for part in parts:
            assert not getattr(part, "server_executed", False)
            if isinstance(part, ToolCallPart):
                waiting.append(part.tool_call_id)
    assert not waiting


def check_conversation(made: Call) -> None:
    """Assert the same of the form that older plugins read."""
    answers = made.conversation.responses
    questions = [answer.prompt for answer in answers[1:]] + [made.prompt]
    for answer, question in zip(answers, questions, strict=False):  # none for an empty echo
        answer.text_or_raise()
        calls, results = answer._tool_calls, question.tool_results
        assert [c.tool_call_id for c in calls] == [r.tool_call_id for r in results]


@pytest.mark.parametrize(
    "dialect, echoes, body",
    [
        pytest.param(openai_chat, openai_echoes, openai_body, id="openai_chat"),
        pytest.param(openai_chat, function_echoes, function_body, id="openai_functions"),
        pytest.param(ollama, ollama_echoes, ollama_body, id="ollama"),
        pytest.param(anthropic_messages, anthropic_echoes, anthropic_body, id="anthropic_messages"),
    ],
)
@given(events=outputs())
@many_examples(100, deadline=None)
def test_what_a_client_sends_back_is_taken_by_every_model(dialect, echoes, body, events):
    for echo in echoes(events):
        request = dialect.parse_request(body(echo), {})
        for kind in (SyncScript, AsyncScript):
            for supports_tools in (True, False):
                made = build_prompt(request, kind("m", supports_tools=supports_tools), {})
                check_prompt(made.prompt.messages)
                if supports_tools:
                    check_conversation(made)


# Two objects begin as one, and have been sent before they break.
@pytest.mark.parametrize("text", [text for text in INPUTS if not text.startswith('{"a": 1}')])
def test_anthropics_sdk_makes_an_object_of_any_input_that_is_json_or_cut_json(text):
    """Streamed and whole alike, unless the object itself is broken or cut."""
    events: list[chat.Event] = [
        StreamEvent("tool_call_name", "f", 0, "t"),
        *(StreamEvent("tool_call_args", character, 0, "t") for character in text),
        chat.Finish("tool_calls"),
    ]
    whole = anthropic_messages.render_response(chat.collect(events), envelope())
    renderer = anthropic_messages.StreamRenderer(envelope())
    pieces = renderer.start() + [f for event in events for f in renderer.feed(event)]
    [block] = ANTHROPIC.accumulated(*pieces)["content"]
    assert isinstance(block["input"], dict)
    if not text.startswith("{"):
        assert block["input"] == whole["content"][0]["input"] == {"_raw": text}
