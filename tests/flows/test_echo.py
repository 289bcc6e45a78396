"""What we send we take back: any model's output, in any API, as its own SDK sends it back."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import anthropic
import llm
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm.parts import Message, Part, StreamEvent, ToolCallPart, ToolResultPart
from ollama import Message as OllamaMessage

from llmproxy.backends.engine.events import EventReader
from llmproxy.backends.engine.prompt import Call, build_prompt
from llmproxy.core import chat, payload
from llmproxy.dialects import anthropic_messages, ollama, openai_chat
from tests.dialects.anthropic_messages.samples import SERVER as ANTHROPIC
from tests.dialects.openai_chat.samples import SERVER as OPENAI
from tests.dialects.openai_chat.samples import Pieces
from tests.examples import many_examples
from tests.models import AsyncScript, SyncScript
from tests.proxies import running
from tests.strategies import ARGUMENT_ODDITIES, argument_texts, json_objects, texts, words
from tests.wire_cases import envelope

# JSON that is no object, and none at all: models write both.
INPUTS = ("[1,2]", '"x"', "3", "true", "null", "-", "[", '{"a": 1}{"b": 2}', " [1]", '{"a": [1, ')

halves = st.sampled_from(["\ud83d", "\udf0a", "a\ud83d", "\udf0a\ud83d"])  # of a character
dirty = texts() | halves
ids = st.one_of(
    st.none(), st.sampled_from(["", "call_0", "functions.f:1", "id 1\n", "é"]), texts(), halves
)
chunks = st.one_of(texts(), st.sampled_from(["", " ", "\n", "ok"]), halves)
argument_chunks = argument_texts() | st.sampled_from(INPUTS) | st.sampled_from(ARGUMENT_ODDITIES)
announced_arguments = json_objects | st.sampled_from(
    [{"a": "\ud800"}, {"\udfff": [math.nan, math.inf]}, {"a": json.loads("[" * 300 + "]" * 300)}]
)
outputs_of_tools = st.one_of(
    texts(), json_objects.map(json.dumps), st.sampled_from(ARGUMENT_ODDITIES), halves
)


@st.composite
def outputs(draw: st.DrawFn) -> list[chat.Event]:
    """What a plugin yields and announces, as the engine passes it on."""
    numbers = itertools.count()
    reader = EventReader(lambda: f"call_made_{next(numbers)}")
    events: list[chat.Event] = []
    for event in draw(st.lists(_groups(), max_size=5)):
        for each in event:
            events += reader.feed(each)
    announced = draw(st.lists(st.builds(llm.ToolCall, words, announced_arguments, ids), max_size=2))
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
                signature = {"anthropic": {"signature": draw(dirty | st.integers())}}
                events.append(StreamEvent(kind, "", index, provider_metadata=signature))
            return events
        case "redacted":
            data = {"anthropic": {"type": "redacted_thinking", "data": draw(dirty | st.integers())}}
            return [StreamEvent("reasoning", "", index, redacted=True, provider_metadata=data)]
    id_ = draw(ids) if kind == "call" else f"{draw(st.sampled_from(PREFIXES))}{draw(words)}"
    name, text = draw(texts(min_size=1) | halves), draw(argument_chunks)
    fields: Any = {"tool_call_id": id_, "server_executed": kind == "server"}
    named = dict(fields)
    if kind == "server":
        server_name = draw(st.one_of(dirty, st.integers(), st.none()))
        named["provider_metadata"] = {"anthropic": {"mcp_server_name": server_name}}
    events = [StreamEvent("tool_call_name", name, index, **named)]  # without: an error
    cut = draw(st.integers(0, len(text)))
    events += [StreamEvent("tool_call_args", t, index, **fields) for t in (text[:cut], text[cut:])]
    if kind == "server" and draw(st.booleans()):
        result = draw(outputs_of_tools)
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
    try:
        accumulated = ANTHROPIC.accumulated(*pieces)
    except ValueError:  # only where the model's object is broken
        assert any(_is_broken(part) for part in response.parts), events
    else:
        yield {"role": "assistant", "content": accumulated["content"]}


def _is_broken(part: Part) -> bool:
    return isinstance(part, ToolCallPart) and "_raw" in part.arguments


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
    server = OPENAI if dialect is openai_chat else ANTHROPIC
    for echo in echoes(events):
        sent = payload.parse(server.encoded(**body(echo)))  # as the server reads it
        request = dialect.parse_request(sent, {})
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


# What the SDK can't read at all: the object is cut.
WHOLE_ODDITIES = [text for text in ARGUMENT_ODDITIES if text.endswith("}")]


def odd_model(number: int) -> AsyncScript:
    """Call a tool with odd arguments, under an odd name and id."""
    fields: Any = {"tool_call_id": f"call\ud83d{number}"}
    return AsyncScript(
        f"odd-{number}",
        StreamEvent("text", "so \udf0a", 0),
        StreamEvent("tool_call_name", "f\ud83d", 1, **fields),
        *(StreamEvent("tool_call_args", c, 1, **fields) for c in WHOLE_ODDITIES[number]),
    )


@pytest.fixture(scope="module")
def odd_proxy(tmp_path_factory) -> Iterator[Any]:
    database = tmp_path_factory.mktemp("echo") / "logs.db"
    with running(*map(odd_model, range(len(WHOLE_ODDITIES))), database=database) as proxy:
        yield proxy


@pytest.mark.parametrize("number", range(len(WHOLE_ODDITIES)))
def test_odd_arguments_come_back_through_anthropics_sdk(odd_proxy, number):
    with anthropic.Anthropic(base_url=odd_proxy.url, api_key="none", max_retries=0) as client:
        asked: Any = {"model": f"odd-{number}", "max_tokens": 9}
        user = {"role": "user", "content": "q"}
        tool = {"name": "f", "input_schema": {"type": "object"}}
        whole = client.messages.create(messages=[user], tools=[tool], **asked)
        with client.messages.stream(messages=[user], tools=[tool], **asked) as stream:
            streamed = stream.get_final_message()
        contents = [[b.to_dict(warnings=False) for b in m.content] for m in (whole, streamed)]
        assert contents[0][1]["input"] == contents[1][1]["input"] != {}
        assert "_raw" not in contents[0][1]["input"]
        for content in contents:
            results = [{"type": "tool_result", "tool_use_id": content[1]["id"], "content": "done"}]
            history = [user, {"role": "assistant", "content": content}]
            history.append({"role": "user", "content": results})
            client.messages.create(messages=history, tools=[tool], **asked)


@pytest.mark.parametrize("number", range(len(WHOLE_ODDITIES)))
def test_odd_arguments_come_back_through_openais_sdk(odd_proxy, number):
    with openai.OpenAI(base_url=f"{odd_proxy.url}/v1", api_key="none", max_retries=0) as client:
        user: Any = {"role": "user", "content": "q"}
        asked: Any = {
            "model": f"odd-{number}",
            "tools": [{"type": "function", "function": {"name": "f"}}],
        }
        whole = client.chat.completions.create(messages=[user], **asked)
        with client.chat.completions.stream(messages=[user], **asked) as stream:
            streamed = stream.get_final_completion()
        replies = [completion.choices[0].message for completion in (whole, streamed)]
        assert [r.tool_calls[0].function.arguments for r in replies] == [WHOLE_ODDITIES[number]] * 2
        for reply in replies:
            result = {"role": "tool", "tool_call_id": reply.tool_calls[0].id, "content": "done"}
            history = [user, reply.model_dump(exclude={"parsed"}), result]
            client.chat.completions.create(messages=history, **asked)
