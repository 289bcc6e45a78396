"""Read and write recordings. `tests/recordings` has samples of every version of the format.

Their texts are our own. The first two have names like real files; those of the others say
what is in the file.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import llm
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llm.parts import Message, ReasoningPart, StreamEvent, TextPart, ToolCallPart
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from llmproxy.core import chat
from llmproxy.core.errors import (
    Forbidden,
    InvalidRequest,
    ModelNotFound,
    NotFound,
    Overloaded,
    RateLimited,
    Unauthorized,
    Unsupported,
    UpstreamError,
)
from llmproxy.core.usage import Usage
from llmproxy.dialects import anthropic_messages, openai_chat
from llmproxy.recorder.exchange import Turn, begun
from llmproxy.transfer.llama_stack.read import parse_recording
from llmproxy.transfer.llama_stack.write import recording_hash, render_recording
from tests.examples import many_examples
from tests.log_fixtures import ended_as
from tests.strategies import event_streams, json_values, requests

SAMPLES = Path(__file__).parents[2] / "recordings"
RECEIVED = datetime(2026, 11, 21, 22, 47, 1, tzinfo=UTC)
ASK = {"model": "demo", "messages": [{"role": "user", "content": "Which bird swims?"}]}


def sample(name):
    return parse_recording((SAMPLES / f"{name}.json").read_bytes(), name)


def damaged(name, *path, value=None, gone=False):
    """A sample with one value replaced or removed."""
    form = json.loads((SAMPLES / f"{name}.json").read_text("utf-8"))
    place = form
    for key in path[:-1]:
        place = place[key]
    if gone:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(form)


# ---- reading: every generation and shape


TEXT = TextPart
CALL = ToolCallPart("weigh", {"bird": "emu"}, tool_call_id="call_two")


@pytest.mark.parametrize(
    "name, dialect, parts, reason, usage, model",
    [
        (
            "4be1f0a7c3d9",
            "openai_chat",
            [TEXT("The ostrich.")],
            "stop",
            Usage(29, 5),
            "llama3.2:3b",
        ),
        ("d07a61be92f5", "openai_chat", [TEXT("The ostrich.")], "stop", None, "llama3.2:3b"),
        (
            "g2-stream-oddities",
            "openai_chat",
            [TEXT("Small, brown, flightless.")],
            "stop",
            Usage(11, 9, 4, None, 3),
            "gpt-4o-mini-2024-07-18",
        ),
        (
            "g2-reasoning-twice",
            "openai_chat",
            [ReasoningPart("Some do."), TEXT("Crows")],
            "stop",
            Usage(12, 6),
            "qwen/qwen3-0.6b",
        ),
        (
            "messages-cut-thinking",
            "anthropic_messages",
            [ReasoningPart("Two on each")],
            "length",
            Usage(17, 8),
            "gpt-oss:20b",
        ),
        (
            "g2-calls-mapped",
            "openai_chat",
            [ReasoningPart("Now the emu."), CALL],
            "tool_calls",
            None,
            "gpt-4o-mini-2024-07-18",
        ),
        (
            "g2-whole-call",
            "openai_chat",
            [ToolCallPart("weigh", {"bird": "emu"}, tool_call_id="call_7")],
            "tool_calls",
            Usage(29, 5),
            "llama3.2:3b",
        ),
        (
            "chat-passthrough-stream",
            "openai_chat",
            [TEXT("Krill")],
            "length",
            None,
            "gpt-4o-mini-2024-07-18",
        ),
        (
            "chat-passthrough-whole",
            "openai_chat",
            [TEXT("An emu.")],
            "stop",
            Usage(29, 5),
            "llama3.2:3b",
        ),
        (
            "chat-plain-dicts",
            "openai_chat",
            [TEXT("Owls.")],
            "stop",
            None,
            "gpt-4o-mini-2024-07-18",
        ),
        (
            "messages-stream",
            "anthropic_messages",
            [TEXT("Brine shrimp.")],
            "stop",
            Usage(14, 6),
            "claude-haiku-4-5-20251001",
        ),
        (
            "messages-whole",
            "anthropic_messages",
            [
                ReasoningPart("Pink ones.", provider_metadata={"anthropic": {"signature": "c2ln"}}),
                TEXT("Algae."),
                ToolCallPart("weigh", {"bird": "flamingo"}, tool_call_id="toolu_1"),
            ],
            "stop",
            Usage(14, 8),
            "claude-haiku-4-5-20251001",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_recorded_answer_is_read_as_events(name, dialect, parts, reason, usage, model):
    recording = sample(name)
    answer = chat.collect(recording.events)
    assert (recording.kind, recording.dialect, recording.error) == ("chat", dialect, None)
    assert answer.parts == parts
    assert isinstance(recording.events[-1], chat.Finish)
    finish = answer.finish
    assert (finish.reason, finish.usage, finish.model) == (reason, usage or Usage(), model)


def test_the_first_version_has_neither_test_id_nor_mapping():
    recording = sample("4be1f0a7c3d9")
    assert (recording.key, recording.test_id, recording.path) == (
        "4be1f0a7c3d9",
        None,
        "/v1/v1/chat/completions",
    )
    assert recording.body["messages"] == [
        {"role": "user", "content": "Which bird lays the largest egg?"}
    ]
    assert recording.request == openai_chat.parse_request(recording.body)


def test_ids_are_mapped_in_the_whole_text_the_longest_first():
    recording = sample("g2-calls-mapped")
    assert recording.test_id == "tests/integration/inference/test_birds.py::test_calls"
    _, asked, told = recording.request.messages
    assert asked.parts[0].tool_call_id == told.parts[0].tool_call_id == "call_one"
    assert told.parts[0].output == "23 kg at most"


def test_an_id_is_mapped_as_json_has_it():
    text = damaged("d07a61be92f5", "request", "body", "messages", 0, "content", value='"\\n" 4')
    form = json.loads(text) | {"id_normalization_mapping": {'"\\n"': 'é"\n'}}
    recording = parse_recording(json.dumps(form), "k")
    assert recording.request.messages == [llm.user('é"\n 4')]


def test_a_stop_sequence_is_read_from_messages():
    assert sample("messages-whole").events[-1].stop_sequence == "END"
    assert sample("messages-whole").events[:3] == [
        StreamEvent(
            "reasoning",
            "Pink ones.",
            part_index=0,
            provider_metadata={"anthropic": {"signature": "c2ln"}},
        ),
        StreamEvent("text", "Algae.", part_index=1),
        StreamEvent("tool_call_name", "weigh", part_index=2, tool_call_id="toolu_1"),
    ]


@pytest.mark.parametrize("count", [1, 3], ids=["no blank line", "no message_stop"])
def test_sse_lines_may_lack_the_final_blank_line(count):
    form = json.loads((SAMPLES / "messages-stream.json").read_text("utf-8"))
    del form["response"]["body"][-count:]
    assert parse_recording(json.dumps(form), "k").events == sample("messages-stream").events


def test_events_after_the_end_are_not_read():
    form = json.loads((SAMPLES / "messages-stream.json").read_text("utf-8"))
    form["response"]["body"] *= 2
    assert parse_recording(json.dumps(form), "k").events == sample("messages-stream").events


def test_two_calls_of_one_id_keep_their_own_arguments():
    calls = [
        {"type": "tool_use", "id": "toolu_1", "name": "weigh", "input": {"bird": bird}}
        for bird in ("emu", "rhea")
    ]
    text = damaged("messages-whole", "response", "body", "content", value=calls)
    assert [part.arguments for part in chat.collect(parse_recording(text, "k").events).parts] == [
        {"bird": "emu"},
        {"bird": "rhea"},
    ]


@pytest.mark.parametrize(
    "name, kind, status, message, code, param",
    [
        (
            "exception-provider-sdk",
            ModelNotFound,
            404,
            "Error code: 404 - no such model",
            "model_not_found",
            "model",
        ),
        ("exception-ogx", RateLimited, 429, "one bird at a time", None, None),
        ("exception-builtin", InvalidRequest, 400, "a bird has two legs", None, None),
        ("exception-unknown", UpstreamError, 502, "the feathers are off", None, None),
        ("messages-refused", Overloaded, 529, "too many birds", None, None),
        ("messages-refused-stream", Unauthorized, 401, "no key", None, None),
        ("messages-failed-stream", Overloaded, 529, "the flock rose", None, None),
    ],
)
def test_a_recorded_failure_is_one_of_our_errors(name, kind, status, message, code, param):
    recording = sample(name)
    error = recording.error
    assert (recording.kind, recording.events) == ("chat", [])
    assert recording.request is not None
    assert (type(error), error.status, error.message) == (kind, status, message)
    assert (error.code, error.param) == (code, param)


def test_an_exception_without_data_has_its_message():
    form = json.loads(damaged("exception-ogx", "response", "exception_data", value=None))
    error = parse_recording(json.dumps(form), "k").error
    assert (type(error), error.message) == (UpstreamError, "one bird at a time")


def test_a_status_that_is_not_an_error_is_ignored():
    place = "response", "exception_data", "status_code"
    error = parse_recording(damaged("exception-ogx", *place, value=200), "k").error
    assert (type(error), error.status) == (UpstreamError, 502)
    place = "response", "exception_data", "type"
    text = damaged("exception-builtin", *place, value="PermissionError")
    error = parse_recording(text, "k").error
    assert (type(error), error.status) == (Forbidden, 403)


@pytest.mark.parametrize(
    "name, models",
    [
        ("models-openai", ("gpt-4o-mini", "gpt-4o")),
        ("models-ollama", ("llama3.2:3b",)),
        ("models-passthrough", ("ollama/llama3.2:3b",)),
    ],
)
def test_a_list_of_models_gives_their_ids(name, models):
    recording = sample(name)
    assert (recording.kind, recording.models) == ("models", models)
    assert (recording.request, recording.dialect, recording.events) == (None, None, [])


@pytest.mark.parametrize(
    "name, path, body",
    [
        ("tool", "", {"bird": "hoopoe"}),
        ("embeddings", "/v1/v1/embeddings", None),
        ("completion", "/v1/v1/completions", {"model": "davinci", "prompt": "The wren"}),
        ("ollama-processes", "/api/ps", {}),
        ("google-plain-dicts", "/v1beta/models/gemini-2.5-flash:streamGenerateContent", None),
    ],
)
def test_other_recordings_than_chats_are_read_in_part(name, path, body):
    recording = sample(name)
    assert (recording.kind, recording.path) == ("other", path)
    assert (recording.request, recording.events, recording.error) == (None, [], None)
    assert body is None or recording.body == body
    assert recording.test_id.startswith("tests/integration/inference/test_birds.py::")


# ---- reading: what is damaged


@pytest.mark.parametrize(
    "text, message, param",
    [
        ("", "the recording can't be read: it is empty", None),
        (b"\xff{}", "the recording can't be read: it is not UTF-8 (byte 0)", None),
        ('"\ud800"', "the recording can't be read: it is not UTF-8 (byte 1)", None),
        ("[]", "expected an object, got a list", None),
        ("{}", "this field is required", "request"),
        (
            damaged("4be1f0a7c3d9", "request", "url", gone=True),
            "this field is required",
            "request.url",
        ),
        (
            damaged("4be1f0a7c3d9", "request", "url", value="http://[::"),
            "expected a URL",
            "request.url",
        ),
        (
            damaged("tool", "request", "tool_name", value=3),
            "expected a string, got a number",
            "request.tool_name",
        ),
        (
            damaged("4be1f0a7c3d9", "response", gone=True),
            "this field is required",
            "response",
        ),
        (
            damaged("exception-ogx", "response", "exception_data", "status_code", value="429"),
            "expected a number, got a string",
            "response.exception_data.status_code",
        ),
        (
            damaged("g2-calls-mapped", "id_normalization_mapping", "call_Qm81", value=None),
            "expected a string, got null",
            "id_normalization_mapping.call_Qm81",
        ),
        (
            damaged("g2-calls-mapped", "id_normalization_mapping", "", value="x"),
            "expected an id, got an empty string",
            "id_normalization_mapping",
        ),
        (
            damaged("g2-calls-mapped", "id_normalization_mapping", "e", value="e" * 10**6),
            "replacing ids makes the text longer than 67108864 bytes",
            "id_normalization_mapping",
        ),
        (
            damaged("4be1f0a7c3d9", "response", "body", value=None),
            "the upstream's answer: expected an object, got null",
            "response.body",
        ),
        (
            damaged("g2-stream-oddities", "response", "body", 3, value=7),
            "the upstream's answer: expected an object, got a number",
            "response.body[3]",
        ),
        (
            damaged("d07a61be92f5", "response", "body", 2, gone=True),
            "the upstream's stream ended before its answer did",
            "response.body",
        ),
        (
            damaged("messages-stream", "response", "body", 4, value="data: {"),
            "it is not JSON: ",
            "response.body[4]",
        ),
        (
            damaged("models-openai", "response", "body", 1, value={"owned_by": "us"}),
            "expected a model with its id",
            "response.body[1]",
        ),
        (
            damaged("models-passthrough", "response", "body", "data", 0, value=1),
            "expected a model with its id",
            "response.body.data[0]",
        ),
        (
            damaged("models-openai", "response", "body", value="none"),
            "expected a list of models",
            "response.body",
        ),
    ],
)
def test_a_damaged_recording_is_refused_with_the_place(text, message, param):
    with pytest.raises(InvalidRequest) as caught:
        parse_recording(text, "k")
    assert caught.value.message.startswith(message)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "text, kind, message, param",
    [
        (
            damaged("4be1f0a7c3d9", "request", "body", "messages", 0, "role", value="bird"),
            InvalidRequest,
            "expected one of ",
            "request.body.messages[0].role",
        ),
        (
            damaged("messages-stream", "request", "payload", "messages", 0, "role", value="bird"),
            InvalidRequest,
            "expected one of ",
            "request.payload.messages[0].role",
        ),
        (
            damaged("4be1f0a7c3d9", "request", "body", "n", value=2),
            Unsupported,
            "only 1 is supported",
            "request.body.n",
        ),
    ],
)
def test_a_chat_that_is_refused_here_is_a_recording_without_a_request(text, kind, message, param):
    recording = parse_recording(text, "k")
    assert (recording.kind, recording.request) == ("chat", None)
    assert recording.body == (json.loads(text)["request"].get("body") or recording.body)
    assert isinstance(recording.events[-1], chat.Finish)
    refused = recording.refused
    assert refused is not None and type(refused) is kind
    assert refused.message.startswith(message) and refused.param == param


GOOD = [json.loads(path.read_text("utf-8")) for path in sorted(SAMPLES.glob("*.json"))]
EVENTS = json.loads((SAMPLES / "messages-stream.json").read_text("utf-8"))
EVENTS["response"]["body"] = [
    json.loads(line[6:]) for line in EVENTS["response"]["body"] if line.startswith("data: ")
]
GOOD += [EVENTS, EVENTS]  # so that the lines' content is mutated too


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each member and item of a JSON value as its container and key."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """A good recording in which a few values are replaced, removed or moved."""
    form = copy.deepcopy(draw(st.sampled_from(GOOD)))
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(form))
        if not found:
            break
        container, key = draw(st.sampled_from(found))
        match draw(st.sampled_from(["other", "gone", "moved", "added"])):
            case "other":
                container[key] = draw(json_values(4))
            case "gone":
                del container[key]
            case "moved":
                source, name = draw(st.sampled_from(found))
                if name in source if isinstance(source, dict) else name < len(source):
                    container[key] = copy.deepcopy(source[name])
            case "added" if isinstance(container, dict):
                words = ["error", "type", "id", "index", "__data__", "is_exception", "status"]
                container[draw(st.sampled_from(words))] = draw(json_values(4))
    return form


@given(json_values() | st.dictionaries(st.sampled_from(["request", "response"]), json_values()))
def test_garbage_is_refused_and_nothing_else(value):
    with pytest.raises(InvalidRequest):
        parse_recording(json.dumps(value), "k")


@given(mutated())
def test_a_mutated_recording_is_read_or_refused_and_nothing_else(form):
    check_mutated(form)


@pytest.mark.slow
@settings(max_examples=400)
@given(mutated())
def test_thousands_of_mutated_recordings(form):
    check_mutated(form)


def check_mutated(form):
    try:
        recording = parse_recording(json.dumps(form), "k")
    except InvalidRequest:
        return
    finishes = [event for event in recording.events if isinstance(event, chat.Finish)]
    is_answered = recording.kind == "chat" and recording.error is None
    assert finishes == (recording.events[-1:] if is_answered else [])


@given(st.binary(max_size=40) | st.text(max_size=40))
def test_any_text_is_refused_and_nothing_else(text):
    with pytest.raises(InvalidRequest):
        parse_recording(text, "k")


# ---- writing


def exchanged(body, events, *, dialect="openai_chat", path="/v1/chat/completions", **facts_at_end):
    """An exchange of this body that was answered with these events."""
    *said, finish = events or [None]
    reply = chat.collect(said).messages
    turn = Turn(
        id="01jd1",
        thread_id="01jd0",
        model="demo",
        messages=[Message("user", [TextPart("Which bird swims?")])],
        reply=reply,
        started=RECEIVED,
        duration_ms=3,
        resolved_model=finish.model if finish else None,
    )
    facts = {
        "status": "ok",
        "http_status": 200,
        "duration_ms": 3.0,
        "turn": turn,
        "events": [(1.0, event) for event in said],
        "finish": finish,
    }
    return ended_as(
        begun(
            "01jd1",
            RECEIVED,
            dialect=dialect,
            path=path,
            query="",
            client="test",
            headers=[("authorization", "Bearer sk-abcdefgh12345678")],
            body=body,
            stream=isinstance(body, dict) and bool(body.get("stream")),
            model="demo",
        ),
        **facts | facts_at_end,
    )


def read_as_documented(name: str, text: str) -> tuple[dict[str, Any], list[Any]]:
    """Read a recording by the documented rules only; return its request and dumped objects."""
    form = json.loads(text)
    assert text == json.dumps(form, indent=2) + "\n"
    assert list(form) == ["test_id", "request", "response", "id_normalization_mapping"]
    assert form["id_normalization_mapping"] == {}
    request = form["request"]
    assert list(request) == ["method", "url", "headers", "body", "endpoint", "model"]
    assert (request["method"], request["headers"]) == ("POST", {})
    assert request["url"].endswith(request["endpoint"])
    hash_ = documented_hash(request, form["test_id"])
    assert name == f"{hash_}.json"
    response = form["response"]
    if response.get("is_exception"):
        return request, [response]
    assert list(response) == ["body", "is_streaming"]
    items = response["body"] if response["is_streaming"] else [response["body"]]
    for item in items:
        assert list(item) == ["__type__", "__data__"]
        assert (item["__data__"]["id"], item["__data__"]["created"]) == (f"rec-{hash_[:12]}", 0)
    return request, items


def documented_hash(request: dict[str, Any], test_id: str | None) -> str:
    """Hash by the documented rules, implemented independently."""
    replaced = [
        (r"score:\s*[-+]?\d*\.?\d+(e[-+]?\d+)?", "score: __NORMALIZED__"),
        (r",?\s*attributes:\s*\{[^}]*\}", ""),
        (r"document_id:\s*\w{8}(-\w{4}){3}-\w{12}", "document_id: __NORMALIZED__"),
        (r"<\|\w{8}(-\w{4}){3}-\w{12}\|>", "<|__NORMALIZED__|>"),
    ]

    def norm(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: norm(item) for key, item in value.items()}
        if isinstance(value, list):
            return [norm(item) for item in value]
        if isinstance(value, float):
            return round(value, 5)
        if isinstance(value, str):
            for pattern, words in replaced:
                value = re.sub(pattern, words, value)
            return re.sub(r"-?\d+\.\d{4,}", lambda m: f"{float(m[0]):.5f}", value)
        return value

    body = copy.deepcopy(request["body"])
    body.get("extra_body", {}).pop("project_id", None)
    body.get("extra_query", {}).pop("project_id", None)
    url = urlparse(request["url"])
    if "bedrock" in url.netloc:
        body.pop("stream_options", None)
    hashed = {"method": "POST", "endpoint": url.path, "body": norm(body), "test_id": test_id}
    if url.path in ("/api/tags", "/v1/models", "/v1/openai/v1/models"):
        del hashed["test_id"]
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()


SAID = [
    StreamEvent("reasoning", "It has ", part_index=0),
    StreamEvent("reasoning", "flippers.", part_index=0),
    StreamEvent("text", "The ", part_index=1),
    StreamEvent("text", "pingüino.", part_index=1),
    StreamEvent("tool_call_name", "weigh", part_index=2, tool_call_id="call_1"),
    StreamEvent("tool_call_args", '{"bird": ', part_index=2, tool_call_id="call_1"),
    StreamEvent("tool_call_args", '"penguin"}', part_index=2, tool_call_id="call_1"),
]
USAGE = Usage(9, 12, 3, 1, 4)
ANSWERED = [*SAID, chat.Finish("tool_calls", usage=USAGE, model="demo-2026")]


@pytest.mark.parametrize(
    "more",
    [{}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}],
    ids=["whole", "streamed", "streamed with usage"],
)
def test_a_rendered_recording_is_as_documented_and_as_the_sdk_dumps_it(more):
    name, text = render_recording(exchanged(ASK | more, ANSWERED), test_id="test_birds.py::test")
    request, items = read_as_documented(name, text)
    assert request["url"] == "http://127.0.0.1:11435/v1/v1/chat/completions"
    assert (request["body"], request["model"]) == (ASK | more, "demo")
    for item in items:
        module, _, class_ = item["__type__"].rpartition(".")
        shape = {"ChatCompletionChunk": ChatCompletionChunk, "ChatCompletion": ChatCompletion}
        assert (module, class_ in shape) == (shape[class_].__module__, True)
        dumped = shape[class_].model_validate(item["__data__"]).model_dump(mode="json")
        assert json.dumps(item["__data__"]) == json.dumps(dumped)
        assert item["__data__"]["model"] == "demo-2026"


@pytest.mark.parametrize("test_id", [None, "test_birds.py::test"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_rendered_recording_parses_to_the_same_events(stream, test_id):
    name, text = render_recording(exchanged(ASK | {"stream": stream}, ANSWERED), test_id=test_id)
    recording = parse_recording(text, name.removesuffix(".json"))
    assert (recording.key + ".json", recording.test_id) == (name, test_id)
    assert recording.request == openai_chat.parse_request(ASK | {"stream": stream})
    assert (recording.kind, recording.error) == ("chat", None)
    *said, finish = recording.events
    assert (finish.reason, finish.usage, finish.model) == ("tool_calls", USAGE, "demo-2026")
    if stream:
        assert said == SAID
    assert chat.collect(said).messages == chat.collect(SAID).messages


def test_usage_that_was_not_asked_for_makes_no_chunk_without_choices():
    _, text = render_recording(exchanged(ASK | {"stream": True}, ANSWERED))
    chunks = [item["__data__"] for item in json.loads(text)["response"]["body"]]
    assert all(chunk["choices"] for chunk in chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert chunks[-1]["usage"]["total_tokens"] == 21


def test_an_exchange_over_messages_is_written_as_the_same_chat_completion():
    body = {
        "model": "demo",
        "max_tokens": 9,
        "system": "Be brief.",
        "stream": True,
        "messages": [{"role": "user", "content": "Which bird swims?"}],
    }
    exchange = exchanged(body, ANSWERED, dialect="anthropic_messages", path="/v1/messages")
    request, _ = read_as_documented(*render_recording(exchange))
    assert request["body"] == {
        "model": "demo",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Which bird swims?"},
        ],
        "max_tokens": 9,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    recording = parse_recording(render_recording(exchange)[1], "k")
    assert recording.request.messages == anthropic_messages.parse_request(body).messages
    assert recording.events[:-1] == SAID


@pytest.mark.parametrize(
    "http_status, kind, status, type_",
    [
        (400, InvalidRequest, 400, "BadRequestError"),
        (404, NotFound, 404, "NotFoundError"),
        (418, UpstreamError, 418, "APIStatusError"),
        (429, RateLimited, 429, "RateLimitError"),
        (529, Overloaded, 529, "InternalServerError"),
        (200, UpstreamError, 502, "APIError"),
        (None, UpstreamError, 502, "APIError"),
    ],
)
def test_an_error_is_written_as_the_sdk_s_exception(http_status, kind, status, type_):
    exchange = exchanged(
        ASK, None, status="error", http_status=http_status, error="no birds today", turn=None
    )
    name, text = render_recording(exchange)
    _, [response] = read_as_documented(name, text)
    assert response["body"] is None
    assert list(response["exception_data"]) == [
        *("category", "provider", "type", "message", "status_code", "body")
    ]
    assert (response["exception_data"]["type"], response["exception_message"]) == (
        type_,
        "no birds today",
    )
    error = parse_recording(text, "k").error
    assert (type(error), error.status, error.message) == (kind, status, "no birds today")


@pytest.mark.parametrize(
    "exchange, message, param",
    [
        (
            exchanged(ASK, SAID[:2] + [None], status="cancelled"),
            "only a finished response can be a recording; this one is 'cancelled'",
            "status",
        ),
        (exchanged(None, ANSWERED, path="/v1/models"), "only chats are written as", "path"),
        (exchanged(ASK, ANSWERED, dialect="morse"), "only chats are written as", "path"),
        (exchanged("no json", None, status="error"), "expected an object", "request.body"),
        (
            exchanged({}, None, status="error", dialect="anthropic_messages", path="/v1/messages"),
            "this field is required",
            "messages",
        ),
    ],
)
def test_other_files_than_recordings_are_refused(exchange, message, param):
    with pytest.raises(InvalidRequest) as caught:
        render_recording(exchange)
    assert caught.value.message.startswith(message)
    assert caught.value.param == param


@given(requests(), event_streams(), st.none() | st.text(max_size=9))
@many_examples(15)
def test_any_exchange_is_read_as_it_was_written(request, events, test_id):
    body = json.loads(json.dumps(openai_chat.render_request(request)[0]))
    name, text = render_recording(exchanged(body, events), test_id=test_id)
    read_as_documented(name, text)
    recording = parse_recording(text, name.removesuffix(".json"))
    assert recording.request == openai_chat.parse_request(body)
    assert carried(chat.collect(recording.events)) == carried(chat.collect(events))


def carried(answer: chat.ChatResponse) -> dict[str, Any]:
    """Return what OpenAI's API carries of a response."""
    calls = [p for p in answer.parts if isinstance(p, ToolCallPart) and not p.server_executed]
    usage = answer.finish.usage
    if usage.input_tokens is None and usage.output_tokens is None:
        usage = Usage()
    return {
        "text": "".join(part.text for part in answer.parts if isinstance(part, TextPart)),
        "reasoning": "".join(part.text for part in answer.parts if isinstance(part, ReasoningPart)),
        "calls": [
            (call.tool_call_id, call.name, raw if raw.strip() else "{}")
            for call in calls
            for raw in [answer.raw_arguments[call.tool_call_id]]
        ],
        "reason": answer.finish.reason,
        "usage": (usage.input_tokens or 0, usage.output_tokens or 0),
        "details": (usage.cached_tokens, usage.cache_write_tokens, usage.reasoning_tokens),
    }


# ---- names


CHAT = "http://localhost:11434/v1/v1/chat/completions"


@given(json_values().filter(lambda value: isinstance(value, dict)), st.none() | st.text(max_size=9))
def test_a_name_is_the_documented_hash(body, test_id):
    body = {k: v for k, v in body.items() if k not in ("extra_body", "extra_query")}
    request = {"url": CHAT, "body": body}
    assert recording_hash("post", CHAT, body, test_id) == documented_hash(request, test_id)


@pytest.mark.parametrize(
    "one, other, are_alike",
    [
        ({"temperature": 0.1234567}, {"temperature": 0.12346}, True),
        ({"input": ["score: 0.1388247"]}, {"input": ["score: 0.13882"]}, True),
        ({"input": "-1.00001"}, {"input": "-1.0000"}, False),
        ({"input": "1.2.34567891"}, {"input": "1.2.34568"}, True),
        ({"input": "0.123"}, {"input": "0.1230"}, False),
        ({"extra_body": {"project_id": 7}}, {"extra_body": {}}, True),
        ({"extra_query": {"project_id": 7, "a": 1}}, {"extra_query": {"a": 1}}, True),
        ({"a": {"extra_body": {"project_id": 7}}}, {"a": {"extra_body": {}}}, False),
        ({"stream_options": {"include_usage": True}}, {}, False),
    ],
)
def test_volatile_fields_do_not_change_the_name(one, other, are_alike):
    names = [recording_hash("POST", CHAT, body, "t") for body in (one, other)]
    assert names[0] == documented_hash({"url": CHAT, "body": one}, "t")
    assert (names[0] == names[1]) is are_alike


def test_stream_options_do_not_count_for_bedrock():
    url = "https://bedrock-mantle.us-east-1.api.aws/v1/v1/chat/completions"
    body = {"stream_options": {"include_usage": True}}
    assert recording_hash("POST", url, body, None) == recording_hash("POST", url, {}, None)
    assert body == {"stream_options": {"include_usage": True}}


@pytest.mark.parametrize("path", ["/api/tags", "/v1/models", "/v1/openai/v1/models"])
def test_lists_of_models_have_one_name_for_all_tests(path):
    url = f"http://localhost{path}"
    assert recording_hash("POST", url, {}, "a") == recording_hash("POST", url, {}, "b")
    url = f"http://localhost/v1{path}"
    assert recording_hash("POST", url, {}, "a") != recording_hash("POST", url, {}, "b")


def test_a_long_run_of_digits_is_read_once():
    recording_hash("POST", CHAT, {"input": "1" * 10**6}, None)


UUID = "0123abcd-0123-4567-89ab-0123456789ab"


@pytest.mark.parametrize(
    "said, hashed",
    [
        ("score: 0.87", "score: __NORMALIZED__"),
        ("score:-1.5e-3, x", "score: __NORMALIZED__, x"),
        ("score: .5; score: 12", "score: __NORMALIZED__; score: __NORMALIZED__"),
        ("a, attributes: {'b': 1.23456} c", "a c"),
        ("a  attributes: {} attributes: {", "a attributes: {"),
        (f"document_id: {UUID}", "document_id: __NORMALIZED__"),
        (f"see <|{UUID}|>.", "see <|__NORMALIZED__|>."),
        (f"{UUID} scores: 0.123456", f"{UUID} scores: 0.12346"),
    ],
)
def test_file_search_results_are_not_part_of_a_name(said, hashed):
    request = {"url": CHAT, "body": {"input": said}}
    assert recording_hash("POST", CHAT, request["body"], None) == documented_hash(request, None)
    assert recording_hash("POST", CHAT, {"input": said}, None) == recording_hash(
        "POST", CHAT, {"input": hashed}, None
    )


@pytest.mark.parametrize("said", [" ", ", ", "attributes: {", "score:", ",attributes:{} "])
def test_names_of_long_texts_take_linear_time(said):
    recording_hash("POST", CHAT, {"input": said * 10**5}, None)
