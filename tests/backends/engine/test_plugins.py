"""Tests of real plugins, each against a provider on loopback that imitates its API."""

import asyncio
import json

import llm
import pytest
from llm.default_plugins.openai_models import AsyncChat, AsyncResponses, Chat
from llm.parts import AttachmentPart, Message, TextPart, ToolCallPart, ToolResultPart
from llm_anthropic import AsyncClaudeMessages, ClaudeMessages
from llm_groq import LLMAsyncGroq, LLMGroq
from llm_perplexity import PRESETS, Perplexity

from llmproxy.backends.engine import Catalog, Engine
from llmproxy.core import attachments, chat, errors
from llmproxy.core.usage import Usage
from tests.backends.engine.conftest import assistant, started, system, user
from tests.models import registered
from tests.provider import begin_sse, chat_chunk, chat_stream, playing, say_event, say_json

WEATHER = llm.Tool("weather", "Look out of the window", {"type": "object", "properties": {}})


def openai_model(kind, provider, **attributes):
    model = kind("m", api_base=provider.url, supports_tools=True, vision=True, **attributes)
    model.needs_key = None
    return model


OPENAI_KINDS = pytest.mark.parametrize("kind", [Chat, AsyncChat])


@OPENAI_KINDS
def test_openai_chat_gets_the_conversation_and_returns_text_and_usage(engine, kind):
    with playing(chat_stream({"content": "Hel"}, {"content": "lo"})) as provider:
        messages = [system("be brief"), user("q"), assistant("a"), user("r")]
        model = openai_model(kind, provider)
        outcome = engine.ask(model, messages, options={"temperature": 0.5, "max_tokens": 9})
    assert outcome.text == "Hello"
    assert (outcome.finish.reason, outcome.finish.usage) == ("stop", Usage(11, 7))
    [body] = provider.bodies
    assert body["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "r"},
    ]
    assert (body["temperature"], body["max_tokens"]) == (0.5, 9)


@OPENAI_KINDS
def test_openai_chat_calls_tools_in_parallel(engine, kind):
    def call(index, **fields):
        return {"tool_calls": [{"index": index, **fields}]}

    deltas = [
        call(0, id="c1", type="function", function={"name": "weather", "arguments": ""}),
        call(0, function={"arguments": '{"at": '}),
        call(0, function={"arguments": "1}"}),
        call(1, id="c2", type="function", function={"name": "weather", "arguments": "{}"}),
    ]
    with playing(chat_stream(*deltas, finish_reason="tool_calls")) as provider:
        outcome = engine.ask(openai_model(kind, provider), tools=(WEATHER,))
    response = chat.collect(outcome.events)
    assert response.parts == [
        ToolCallPart("weather", {"at": 1}, "c1"),
        ToolCallPart("weather", {}, "c2"),
    ]
    assert response.raw_arguments == {"c1": '{"at": 1}', "c2": "{}"}
    assert outcome.finish.reason == "tool_calls"


@OPENAI_KINDS
def test_openai_chat_gets_tool_results_after_their_calls(engine, kind):
    reply = Message("assistant", [ToolCallPart("weather", {"at": 1}, "c1")])
    result = Message("tool", [ToolResultPart("weather", "sun", "c1")])
    with playing(chat_stream({"content": "ok"})) as provider:
        engine.ask(openai_model(kind, provider), [user("q"), reply, result], tools=(WEATHER,))
    assert [m["role"] for m in provider.bodies[0]["messages"]] == ["user", "assistant", "tool"]
    assert provider.bodies[0]["messages"][2]["content"] == "sun"


@OPENAI_KINDS
def test_openai_arguments_cut_by_the_limit_end_in_length(engine, kind):
    """d6.10"""
    function = {"name": "weather", "arguments": '{"at": "no'}
    delta = {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": function}]}
    with playing(chat_stream(delta, finish_reason="length")) as provider:
        outcome = engine.ask(openai_model(kind, provider), tools=(WEATHER,))
    assert (outcome.error, outcome.finish.reason) == (None, "length")


@OPENAI_KINDS
def test_openai_image_by_url_is_passed_on_and_never_opened(engine, kind):
    """d6.20"""
    url = attachments.attachment_from_url("https://example.org/cat")
    with playing(chat_stream({"content": "a cat"})) as provider:
        message = Message("user", [TextPart("what?"), AttachmentPart(url)])
        engine.ask(openai_model(kind, provider), [message])
    image = provider.bodies[0]["messages"][0]["content"][1]
    assert image == {"type": "image_url", "image_url": {"url": "https://example.org/cat"}}


@OPENAI_KINDS
@pytest.mark.parametrize(
    ("status", "error"),
    [(401, errors.Unauthorized), (404, errors.NotFound), (400, errors.InvalidRequest)],
)
def test_openai_errors_keep_their_status_and_message(engine, kind, status, error):
    body = {"error": {"message": "not like this", "type": "t", "code": "c"}}
    with playing(lambda _, handler: say_json(handler, body, status)) as provider:
        outcome = engine.ask(openai_model(kind, provider))
    assert (type(outcome.error), outcome.error.message) == (error, "not like this")


@OPENAI_KINDS
def test_openai_rate_limit_keeps_its_retry_after(engine, kind):
    """B39, d6.26: the SDK itself tries three times before it gives up."""

    def handle(_, handler):
        headers = {"retry_after": "0", "retry_after_ms": "1"}
        say_json(handler, {"error": {"message": "slow down"}}, 429, **headers)

    with playing(handle) as provider:
        outcome = engine.ask(openai_model(kind, provider))
    assert isinstance(outcome.error, errors.RateLimited)
    assert outcome.error.headers == {"retry-after": "1", "retry-after-ms": "1"}
    assert len(provider.bodies) == 3


@OPENAI_KINDS
def test_stream_that_a_provider_cuts_is_an_error_after_its_text(engine, kind):
    def handle(_, handler):
        begin_sse(handler)
        say_event(handler, chat_chunk({"content": "so far"}))
        say_event(handler, {"error": {"message": "the GPU is gone", "type": "server_error"}})

    with playing(handle) as provider:
        outcome = engine.ask(openai_model(kind, provider))
    assert outcome.text == "so far"
    assert (type(outcome.error), outcome.error.status) == (errors.UpstreamError, 502)


@pytest.mark.parametrize("read_first", [False, True])
def test_hang_up_ends_openais_own_request(read_first):
    """d6.19, B15: aclose() alone would leave it running."""

    def handle(_, handler):
        begin_sse(handler)
        if read_first:
            say_event(handler, chat_chunk({"content": "a"}))
        while True:
            handler.connection.settimeout(10)
            if handler.connection.recv(1) == b"":
                provider.hung_up.set()
                return

    async def main(model):
        catalog = Catalog()
        catalog.load()
        with registered(model):
            catalog.load()
        running = await started(Engine(catalog), chat.ChatRequest("m", [user()]))
        if read_first:
            await running.read()
        else:
            while not provider.bodies:
                await asyncio.sleep(0.01)
        await running.stop()
        assert await asyncio.to_thread(provider.hung_up.wait, 1.0)

    with playing(handle) as provider:
        asyncio.run(main(openai_model(AsyncChat, provider)))


class KeepsItsClient(AsyncChat):
    """A plugin whose client outlives the request, and so do connections that are not closed."""

    def get_client(self, *arguments, **named):
        self.client = super().get_client(*arguments, **named)
        return self.client


def test_stop_sequence_ends_openais_own_request():
    """d6.19: the model is stopped between two events, where aclose() alone is not enough."""

    def handle(_, handler):
        begin_sse(handler)
        say_event(handler, chat_chunk({"content": "one two three"}))
        handler.connection.settimeout(10)
        if handler.connection.recv(1) == b"":
            provider.hung_up.set()

    async def main(model):
        catalog = Catalog()
        with registered(model):
            catalog.load()
        options = {"stop_sequences": ["two", "never"]}
        run = await started(Engine(catalog), chat.ChatRequest("m", [user()], options=options))
        events = []
        while batch := await run.read():
            events += [stamped.event for stamped in batch]
        # While the loop runs: its end would close every connection.
        assert await asyncio.to_thread(provider.hung_up.wait, 1.0)
        return events

    with playing(handle) as provider:
        events = asyncio.run(main(openai_model(KeepsItsClient, provider)))
    assert (events[0].chunk, events[1].stop_sequence) == ("one ", "two")


def responses_events(*events):
    def handle(_, handler):
        begin_sse(handler)
        for number, event in enumerate(events):
            say_event(handler, event | {"sequence_number": number}, event["type"])

    return handle


RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "model": "real",
    "output": [],
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "status": "completed",
}


def test_responses_model_that_ends_incomplete_reads_as_length(engine):
    """d6.7: its plugin handles only response.completed."""
    item = {"id": "msg_1", "type": "message", "role": "assistant", "content": []}
    handle = responses_events(
        {"type": "response.created", "response": RESPONSE | {"status": "in_progress"}},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {
            "type": "response.output_text.delta",
            "item_id": "msg_1",
            "output_index": 0,
            "content_index": 0,
            "delta": "half of",
            "logprobs": [],
        },
        {
            "type": "response.incomplete",
            "response": RESPONSE
            | {
                "status": "incomplete",
                "incomplete_details": {"reason": "max_output_tokens"},
            },
        },
    )
    with playing(handle) as provider:
        outcome = engine.ask(openai_model(AsyncResponses, provider))
    assert (outcome.text, outcome.finish.reason) == ("half of", "length")


def test_responses_model_that_fails_is_an_error(engine):
    """d6.7"""
    failed = RESPONSE | {"status": "failed", "error": {"code": "server_error", "message": "x"}}
    handle = responses_events({"type": "response.failed", "response": failed})
    with playing(handle) as provider:
        outcome = engine.ask(openai_model(AsyncResponses, provider))
    assert isinstance(outcome.error, errors.UpstreamError)


# ---- plugins that read only conversations (d6.17)

TURNS = [
    system("be kind"),
    user("one"),
    assistant("eins"),
    user("two"),
    assistant("zwei"),
    user("3"),
]
SEEN_ONCE = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "eins"},
    {"role": "user", "content": "two"},
    {"role": "assistant", "content": "zwei"},
    {"role": "user", "content": "3"},
]


@pytest.mark.parametrize("kind", [LLMGroq, LLMAsyncGroq])
def test_groq_sees_every_turn_once(engine, kind, monkeypatch):
    counts = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    handle = chat_stream({"content": "drei"}, x_groq={"id": "x", "usage": counts})
    with playing(handle) as provider:
        monkeypatch.setenv("GROQ_BASE_URL", provider.url)
        monkeypatch.setenv("GROQ_API_KEY", "gsk-test")
        outcome = engine.ask(kind("groq/m", "m"), TURNS, options={"stop_sequences": ["a", "b"]})
    assert outcome.text == "drei"
    assert outcome.finish.usage == Usage(5, 2)
    [body] = provider.bodies
    assert body["messages"] == SEEN_ONCE
    assert body["stop"] == ["a", "b"]


def test_perplexity_sees_every_turn_once(engine, monkeypatch):
    done = {"status": "completed", "output": [], "usage": {"input_tokens": 3, "output_tokens": 1}}
    handle = responses_events(
        {"type": "response.output_text.delta", "delta": "drei"},
        {"type": "response.completed", "response": done},
    )
    with playing(handle) as provider:
        monkeypatch.setattr(Perplexity, "base_url", provider.url)
        monkeypatch.setenv("LLM_PERPLEXITY_KEY", "pplx-test")
        model = Perplexity(next(iter(PRESETS)))
        outcome = engine.ask(model, TURNS)
    assert (outcome.error, outcome.text) == (None, "drei")
    assert provider.bodies[0]["input"] == SEEN_ONCE


# ---- llm-anthropic


def anthropic_stream(*blocks, stop_reason="end_turn", stop_sequence=None):
    def handle(_, handler):
        begin_sse(handler)
        usage = {"input_tokens": 10, "output_tokens": 1}
        message = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "claude-real",
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }
        events = [{"type": "message_start", "message": message}, {"type": "ping"}]
        for index, (block, deltas) in enumerate(blocks):
            events.append({"type": "content_block_start", "index": index, "content_block": block})
            events += [
                {"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas
            ]
            events.append({"type": "content_block_stop", "index": index})
        delta = {"stop_reason": stop_reason, "stop_sequence": stop_sequence}
        events.append({"type": "message_delta", "delta": delta, "usage": {"output_tokens": 6}})
        events.append({"type": "message_stop"})
        for event in events:
            say_event(handler, event, event["type"])

    return handle


def claude(kind, provider):
    model = kind("claude-m", base_url=provider.url)
    model.needs_key, model.get_key = "anthropic", lambda key=None: "test"
    return model


CLAUDE_KINDS = pytest.mark.parametrize("kind", [ClaudeMessages, AsyncClaudeMessages])


@CLAUDE_KINDS
def test_claude_thinks_speaks_and_calls(engine, kind):
    handle = anthropic_stream(
        (
            {"type": "thinking", "thinking": "", "signature": ""},
            [
                {"type": "thinking_delta", "thinking": "hm"},
                {"type": "signature_delta", "signature": "sig"},
            ],
        ),
        ({"type": "text", "text": ""}, [{"type": "text_delta", "text": "Look:"}]),
        (
            {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}},
            [{"type": "input_json_delta", "partial_json": '{"at": 1}'}],
        ),
        stop_reason="tool_use",
    )
    with playing(handle) as provider:
        outcome = engine.ask(claude(kind, provider), tools=(WEATHER,))
    response = chat.collect(outcome.events)
    thinking, text, call = response.parts
    assert (thinking.text, thinking.provider_metadata) == (
        "hm",
        {"anthropic": {"signature": "sig"}},
    )
    assert text.text == "Look:", "without the space that the plugin adds for display (d6.25)"
    assert call == ToolCallPart("weather", {"at": 1}, "toolu_1")
    assert (outcome.finish.reason, outcome.finish.usage) == ("tool_calls", Usage(10, 6))


@CLAUDE_KINDS
def test_claude_takes_system_messages_anywhere(engine, kind):
    """d6.18: its plugin refuses a system message that is not first."""
    handle = anthropic_stream(({"type": "text", "text": ""}, [{"type": "text_delta", "text": "k"}]))
    with playing(handle) as provider:
        messages = [system("a"), system("b"), user("q"), assistant("x"), user("r"), system("c")]
        outcome = engine.ask(claude(kind, provider), messages)
    assert outcome.error is None
    [body] = provider.bodies
    assert body["system"] == "a\n\nb"
    last = "".join(block["text"] for block in body["messages"][-1]["content"])
    assert last == "r\n\n<system>\nc\n</system>"


@CLAUDE_KINDS
def test_claude_reports_the_stop_sequence(engine, kind):
    text = ({"type": "text", "text": ""}, [{"type": "text_delta", "text": "k"}])
    handle = anthropic_stream(text, stop_reason="stop_sequence", stop_sequence="END")
    with playing(handle) as provider:
        outcome = engine.ask(claude(kind, provider), options={"stop_sequences": ["END", "x"]})
    assert provider.bodies[0]["stop_sequences"] == ["END", "x"]
    assert (outcome.finish.reason, outcome.finish.stop_sequence) == ("stop", "END")


@CLAUDE_KINDS
def test_claude_may_stop_for_a_reason_that_is_new(engine, kind):
    text = ({"type": "text", "text": ""}, [{"type": "text_delta", "text": "k"}])
    with playing(anthropic_stream(text, stop_reason="new_reason")) as provider:
        outcome = engine.ask(claude(kind, provider))
    assert (outcome.error, outcome.finish.reason) == (None, "stop")
    assert outcome.finish.provider_reason == "new_reason"


@CLAUDE_KINDS
def test_claude_that_is_overloaded_during_the_stream(engine, kind):
    def handle(_, handler):
        begin_sse(handler)
        error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
        say_event(handler, error, "error")

    with playing(handle) as provider:
        outcome = engine.ask(claude(kind, provider))
    assert (type(outcome.error), outcome.error.status) == (errors.Overloaded, 529)


@CLAUDE_KINDS
def test_claude_refuses(engine, kind):
    with playing(anthropic_stream(stop_reason="refusal")) as provider:
        outcome = engine.ask(claude(kind, provider))
    assert (outcome.error, outcome.finish.reason) == (None, "content_filter")


def test_missing_key_is_reported_in_llms_words(engine):
    outcome = engine.ask("gpt-4o")
    assert isinstance(outcome.error, errors.Unauthorized)
    assert outcome.error.message.startswith("No key found - add one using 'llm keys set openai'")


def test_echo_plugin_gets_prompt_system_and_history(engine):
    heard = json.loads(engine.ask("echo", TURNS).text)
    assert (heard["prompt"], heard["system"]) == ("3", "be kind")
    assert [turn["prompt"] for turn in heard["previous"]] == ["one", "two"]
