"""Providers whose streams are odd, cut or no streams, read by the real plugins."""

from __future__ import annotations

import json
from types import SimpleNamespace

import llm
import pytest
from llm.default_plugins.openai_models import AsyncChat, AsyncResponses, Chat, Responses
from llm_anthropic import AsyncClaudeMessages, ClaudeMessages
from llm_groq import LLMAsyncGroq, LLMGroq
from llm_perplexity import PRESETS, Perplexity

from llmproxy.backends.engine.openai_streams import _Chunks
from llmproxy.core import chat, errors
from llmproxy.core.usage import Usage
from tests.backends.engine.test_plugins import WEATHER, anthropic_stream, claude, openai_model
from tests.models import AsyncScript
from tests.provider import begin_sse, chat_chunk, chat_stream, playing, say_event, say_json

OPENAI_KINDS = pytest.mark.parametrize("kind", [Chat, AsyncChat])
CLAUDE_KINDS = pytest.mark.parametrize("kind", [ClaudeMessages, AsyncClaudeMessages])
RESPONSES_KINDS = pytest.mark.parametrize("kind", [Responses, AsyncResponses])


def streaming(*values):
    """A provider that streams these values, an event each."""

    def answer(_, handler):
        begin_sse(handler)
        for value in values:
            name = value.get("type") if isinstance(value, dict) else None
            say_event(handler, value, name if isinstance(name, str) else None)

    return answer


def say_text(handler, text, media_type):
    handler.send_response(200)
    handler.send_header("content-type", media_type)
    handler.send_header("content-length", str(len(text)))
    handler.end_headers()
    handler.wfile.write(text.encode())


def say_html(_, handler):
    say_text(handler, "<html><title>Login</title></html>", "text/html; charset=utf-8")


def deltas(*pieces, end="tool_calls"):
    """A stream with these deltas of tool calls."""
    chunks = [chat_chunk({"tool_calls": [piece]}) for piece in pieces]
    return streaming(*chunks, chat_chunk({}, end), "[DONE]")


def piece(index=0, id=None, name=None, arguments=None, **fields):
    function = {"name": name, "arguments": arguments}
    return {"index": index, "id": id, "type": "function", "function": function} | fields


NAMES = {
    "late": [piece(id="c", arguments=""), piece(name="weather"), piece(arguments="{}")],
    "late, after arguments": [piece(id="c", arguments="{"), piece(arguments="}", name="weather")],
    "null, then empty": [piece(id="c"), piece(name=""), piece(name="weather", arguments="{}")],
    "in pieces": [piece(id="c", name="wea"), piece(name="ther"), piece(arguments="{}")],
    "repeated with the id": [
        piece(id="c", name="weather"),
        piece(id="c", name="weather", arguments="{"),
        piece(id="c", name="weather", arguments="}"),
    ],
    "repeated after arguments": [
        piece(id="c", name="weather", arguments="{"),
        piece(name="weather", arguments="}"),
    ],
    "repeated without the id": [
        piece(id="c", name="weather"),
        piece(name="weather", arguments="{"),
        piece(name="weather", arguments="}"),
    ],
    "grown": [piece(id="c", name="wea"), piece(id="c", name="weather"), piece(arguments="{}")],
    "grown without the id": [
        piece(id="c", name="w"),
        piece(name="wea"),
        piece(name="weather"),
        piece(name="weather", arguments="{}"),
    ],
    "without arguments": [piece(id="c", name="wea"), piece(name="ther")],
    "with white space for arguments": [
        piece(id="c", name="weather", arguments=" "),
        piece(arguments="\u2028\n"),
    ],
    "without an index": [
        piece(None, id="c", name="weather"),
        piece(None, arguments="{"),
        piece(None, arguments="}"),
    ],
    "without a function": [
        {"index": 0, "id": "c", "function": None},
        piece(name="weather", arguments="{}"),
    ],
    "a late id": [piece(name="weather"), piece(id="c", arguments="{}")],
}


@OPENAI_KINDS
@pytest.mark.parametrize("pieces", NAMES.values(), ids=NAMES)
def test_a_tools_name_is_whole_however_it_comes(engine, kind, pieces):
    with playing(deltas(*pieces)) as provider:
        outcome = engine.ask(openai_model(kind, provider), tools=(WEATHER,))
    assert outcome.error is None
    names = [event.chunk for event in outcome.events if event_type(event) == "tool_call_name"]
    assert names == ["weather"]
    [call] = chat.collect(outcome.events).parts
    assert (call.name, call.arguments, call.tool_call_id) == ("weather", {}, "c")
    assert outcome.finish.reason == "tool_calls"


def event_type(event):
    return getattr(event, "type", None)


@OPENAI_KINDS
def test_several_calls_keep_their_names_and_arguments(engine, kind):
    pieces = [
        piece(0, id="a", name="wea"),
        piece(1, id="b", arguments='{"x":'),
        piece(0, name="ther"),
        piece(0, arguments='{"y": 1}'),
        piece(1, name="tides", arguments="2}"),
        piece(1, id="c", name="weather", arguments='{"z": 3}'),  # a second one under 1
    ]
    with playing(deltas(*pieces)) as provider:
        outcome = engine.ask(openai_model(kind, provider), tools=(WEATHER,))
    calls = chat.collect(outcome.events).parts
    assert [(call.name, call.arguments, call.tool_call_id) for call in calls] == [
        ("weather", {"y": 1}, "a"),
        ("tides", {"x": 2}, "b"),
        ("weather", {"z": 3}, "c"),
    ]


@OPENAI_KINDS
def test_a_call_that_is_never_named_is_an_error(engine, kind):
    with playing(deltas(piece(id="c", arguments="{}"))) as provider:
        outcome = engine.ask(openai_model(kind, provider), tools=(WEATHER,))
    assert (type(outcome.error), outcome.error.status) == (errors.UpstreamError, 502)


@OPENAI_KINDS
def test_a_name_that_repeats_itself_is_joined(engine, kind):
    tool = llm.Tool("dodo", None, {"type": "object"})
    with playing(deltas(piece(id="c", name="do"), piece(id="c", name="do"))) as provider:
        outcome = engine.ask(openai_model(kind, provider), tools=(tool,))
    # With an id in each delta "do" may be repeated, but no tool is called that.
    assert [call.name for call in chat.collect(outcome.events).parts] == ["dodo"]


SAID_OTHERWISE = {
    "a refusal": [{"refusal": "No"}, {"refusal": " way."}],
    "a refusal beside nothing": [{"content": None, "refusal": "No"}, {"content": " way."}],
    "a list of parts": [
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]},
        {"content": [{"type": "text", "text": "No"}, {"type": "text", "text": " way."}]},
        {"content": []},
    ],
}


@OPENAI_KINDS
@pytest.mark.parametrize("said", SAID_OTHERWISE.values(), ids=SAID_OTHERWISE)
def test_text_in_another_field_or_form_is_no_empty_answer(engine, kind, said):
    with playing(streaming(*map(chat_chunk, said), chat_chunk({}, "stop"), "[DONE]")) as provider:
        outcome = engine.ask(openai_model(kind, provider))
    assert (outcome.text, outcome.error, outcome.finish.reason) == ("No way.", None, "stop")


@OPENAI_KINDS
def test_a_call_in_the_older_form_is_a_call(engine, kind):
    pieces = [{"name": "weather", "arguments": ""}, {"arguments": '{"y": '}, {"arguments": "1}"}]
    chunks = [chat_chunk({"function_call": piece}) for piece in pieces]
    with playing(streaming(*chunks, chat_chunk({}, "function_call"), "[DONE]")) as provider:
        outcome = engine.ask(openai_model(kind, provider), tools=(WEATHER,))
    assert outcome.error is None
    [call] = chat.collect(outcome.events).parts
    assert (call.name, call.arguments, bool(call.tool_call_id)) == ("weather", {"y": 1}, True)
    assert outcome.finish.reason == "tool_calls"


ODD_CHUNKS = [
    {"choices": None},
    {},
    {"choices": [{"index": 0, "delta": None}]},
    {"choices": [{"index": 0}]},
    {"choices": [], "usage": {"prompt_tokens": 3}},
]


@OPENAI_KINDS
@pytest.mark.parametrize("odd", ODD_CHUNKS)
def test_chunks_that_lack_fields_are_read(engine, kind, odd):
    """B8"""
    head = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    chunks = [head | odd, chat_chunk({"content": "a"}), head | odd, chat_chunk({}, "stop")]
    with playing(streaming(*chunks, head | odd, "[DONE]")) as provider:
        outcome = engine.ask(openai_model(kind, provider))
    assert (outcome.text, outcome.error, outcome.finish.reason) == ("a", None, "stop")


# ---- no stream, half a stream

ERROR = {"error": {"message": "no credit left here", "type": "billing_error"}}

NO_STREAMS = {
    "html": (
        say_html,
        errors.UpstreamError,
        "the provider sent text/html instead of an answer: <html><title>Login</title></html>",
    ),
    "an error": (
        lambda _, handler: say_json(handler, ERROR),
        errors.PaymentRequired,
        "no credit left here",
    ),
    "a message": (
        lambda _, handler: say_json(handler, {"message": "who are you?"}),
        errors.UpstreamError,
        "who are you?",
    ),
    "a list": (
        lambda _, handler: say_json(handler, [ERROR]),
        errors.PaymentRequired,
        "no credit left here",
    ),
    "a whole answer": (
        lambda _, handler: say_json(handler, {"choices": []}),
        errors.UpstreamError,
        'the provider sent application/json instead of an answer: {"choices": []}',
    ),
    "an error without a message": (
        lambda _, handler: say_json(handler, {"error": {"type": "billing_error"}}),
        errors.PaymentRequired,
        "the provider sent application/json instead of an answer:"
        ' {"error": {"type": "billing_error"}}',
    ),
    "a value": (
        lambda _, handler: say_json(handler, "no"),
        errors.UpstreamError,
        'the provider sent application/json instead of an answer: "no"',
    ),
    "an error as text": (
        lambda _, handler: say_text(handler, json.dumps(ERROR, indent=1), "text/plain"),
        errors.PaymentRequired,
        "no credit left here",
    ),
    "an error that is called a stream": (
        lambda _, handler: say_text(handler, json.dumps(ERROR), "text/event-stream"),
        errors.PaymentRequired,
        "no credit left here",
    ),
    "text": (
        lambda _, handler: say_text(handler, "busy,  try\nlater" + 999 * "!", "text/plain"),
        errors.UpstreamError,
        "the provider sent text/plain instead of an answer: busy, try later" + 185 * "!",
    ),
    "nothing": (streaming(), errors.UpstreamError, "the provider's response is empty"),
    "only an end": (streaming("[DONE]"), errors.UpstreamError, "the provider's response is empty"),
    "an error in a chunk": (streaming(ERROR), errors.PaymentRequired, "no credit left here"),
    "vLLM's error": (
        streaming({"object": "error", "message": "too long", "code": "context_length_exceeded"}),
        errors.ContextTooLong,
        "too long",
    ),
}


@OPENAI_KINDS
@pytest.mark.parametrize("answer, error, message", NO_STREAMS.values(), ids=NO_STREAMS)
def test_what_is_no_stream_of_openais_is_no_empty_answer(engine, kind, answer, error, message):
    with playing(answer) as provider:
        outcome = engine.ask(openai_model(kind, provider))
    assert (type(outcome.error), outcome.error.message) == (error, message)


@OPENAI_KINDS
@pytest.mark.parametrize("end", [[], ["[DONE]"], [chat_chunk({}) | {"choices": []}, "[DONE]"]])
def test_half_an_answer_is_no_whole_one(engine, kind, end):
    """A stream without a finish reason is an error after its text, as for other servers."""
    with playing(streaming(chat_chunk({"content": "half"}), *end)) as provider:
        outcome = engine.ask(openai_model(kind, provider))
    assert outcome.text == "half"
    assert outcome.error.message == "the provider's stream ended before its answer did"


OVERLOADED = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}

NO_MESSAGES = {
    "html": (
        say_html,
        errors.UpstreamError,
        "the provider sent text/html instead of an answer: <html><title>Login</title></html>",
    ),
    "overloaded": (
        lambda _, handler: say_json(handler, OVERLOADED),
        errors.Overloaded,
        "Overloaded",
    ),
    "overloaded, as text": (
        lambda _, handler: say_text(handler, json.dumps(OVERLOADED), "text/plain"),
        errors.Overloaded,
        "Overloaded",
    ),
    "overloaded, called a stream": (
        lambda _, handler: say_text(handler, json.dumps(OVERLOADED), "text/event-stream"),
        errors.Overloaded,
        "Overloaded",
    ),
    "overloaded, in an event without a name": (
        lambda _, handler: say_text(
            handler, f"data: {json.dumps(OVERLOADED)}\n\n", "text/event-stream"
        ),
        errors.Overloaded,
        "Overloaded",
    ),
    "OpenAI's error": (
        lambda _, handler: say_json(handler, ERROR),
        errors.PaymentRequired,
        "no credit left here",
    ),
    "a whole message": (
        lambda _, handler: say_json(handler, {"type": "message", "content": []}),
        errors.UpstreamError,
        "the provider sent application/json instead of an answer:"
        ' {"type": "message", "content": []}',
    ),
    "nothing": (streaming(), errors.UpstreamError, "the provider's response is empty"),
    "nothing but pings": (
        streaming({"type": "ping"}),
        errors.UpstreamError,
        'the provider sent text/event-stream instead of an answer: {"type": "ping"}',
    ),
}


@CLAUDE_KINDS
@pytest.mark.parametrize("answer, error, message", NO_MESSAGES.values(), ids=NO_MESSAGES)
def test_what_is_no_stream_of_anthropics_is_the_error_that_it_says(
    engine, kind, answer, error, message
):
    with playing(answer) as provider:
        outcome = engine.ask(claude(kind, provider))
    assert (type(outcome.error), outcome.error.message) == (error, message)
    assert outcome.error.status == error.status


@CLAUDE_KINDS
def test_what_betas_of_claude_send_is_read_as_well(engine, kind):
    with playing(lambda _, handler: say_json(handler, OVERLOADED)) as provider:
        outcome = engine.ask(claude(kind, provider), options={"fast": True})
    assert type(outcome.error) is errors.Overloaded


@CLAUDE_KINDS
def test_arguments_of_claude_that_are_no_json_are_an_error_of_the_model(engine, kind):
    """Not of the request; the SDK gives up in the middle, before the usage comes."""
    use = {"type": "tool_use", "id": "t", "name": "weather", "input": {}}
    delta = {"type": "input_json_delta", "partial_json": "{'at': 1}"}
    with playing(anthropic_stream((use, [delta]), stop_reason="tool_use")) as provider:
        outcome = engine.ask(claude(kind, provider), tools=(WEATHER,))
    assert (type(outcome.error), outcome.error.status) == (errors.UpstreamError, 502)
    assert "invalid JSON" in outcome.error.message and "{'at': 1}" in outcome.error.message


@CLAUDE_KINDS
def test_a_message_without_usage_says_what_is_missing(engine, kind):
    def answer(_, handler):
        begin_sse(handler)
        message = {"id": "m", "type": "message", "role": "assistant", "content": []}
        start = {"type": "message_start", "message": message}
        for event in (start, {"type": "message_stop"}):
            say_event(handler, event, event["type"])

    with playing(answer) as provider:
        outcome = engine.ask(claude(kind, provider))
    assert outcome.error.message.startswith("the model 'anthropic/claude-m' failed: ")
    assert "(in llm_anthropic.set_usage)" in outcome.error.message


@CLAUDE_KINDS
def test_a_message_without_a_stop_reason_is_no_whole_one(engine, kind):
    text = ({"type": "text", "text": ""}, [{"type": "text_delta", "text": "half"}])
    with playing(anthropic_stream(text, stop_reason=None)) as provider:
        outcome = engine.ask(claude(kind, provider))
    assert outcome.text == "half"
    assert outcome.error.message == "the provider's stream ended before its answer did"


@pytest.mark.parametrize("kind", [LLMGroq, LLMAsyncGroq])
@pytest.mark.parametrize("answer, error, message", NO_STREAMS.values(), ids=NO_STREAMS)
def test_what_is_no_stream_of_groqs_is_no_empty_answer(
    engine, kind, answer, error, message, monkeypatch
):
    monkeypatch.setenv("GROQ_API_KEY", "test-key")
    with playing(answer) as provider:
        monkeypatch.setenv("GROQ_BASE_URL", provider.url)
        outcome = engine.ask(kind("groq/m", "m"))
    assert (type(outcome.error), outcome.error.message) == (error, message)


@pytest.mark.parametrize("answer, error, message", NO_STREAMS.values(), ids=NO_STREAMS)
def test_what_is_no_stream_of_perplexitys_is_the_error_that_it_says(
    engine, answer, error, message, monkeypatch
):
    monkeypatch.setenv("LLM_PERPLEXITY_KEY", "pplx-test")
    with playing(answer) as provider:
        monkeypatch.setattr(Perplexity, "base_url", provider.url)
        outcome = engine.ask(Perplexity(next(iter(PRESETS))))
    assert isinstance(outcome.error, errors.ProxyError)
    assert outcome.error.message.removeprefix("Perplexity API error: ") == message


def test_an_empty_answer_of_a_model_behind_a_key_is_an_error(engine):
    model = AsyncScript("m")
    model.needs_key, model.get_key = "x", lambda key=None: "test"
    assert engine.ask(model).error.message == "the provider's response is empty"


NO_WHOLES = {name: NO_STREAMS[name] for name in ("html", "an error", "a message")}


@OPENAI_KINDS
@pytest.mark.parametrize("answer, error, message", NO_WHOLES.values(), ids=NO_WHOLES)
def test_what_is_no_whole_answer_of_openais_is_the_error_that_it_says(
    engine, kind, answer, error, message
):
    with playing(answer) as provider:
        outcome = engine.ask(openai_model(kind, provider, can_stream=False))
    assert type(outcome.error) is error
    assert outcome.error.message.rpartition(": ")[2] == message.rpartition(": ")[2]


# ---- arguments that are no JSON

NO_JSON = [
    '{"at": "no',
    "{'at': 1}",
    "weather",
    '{"a": 1} and more',
    '{"a": %s}' % ("9" * 5_000),
    "[" * 100_000,
]


@OPENAI_KINDS
@pytest.mark.parametrize("text", NO_JSON, ids=range(len(NO_JSON)))
@pytest.mark.parametrize("word, reason", [("length", "length"), ("tool_calls", "tool_calls")])
def test_arguments_that_are_no_json_cost_neither_usage_nor_reason(engine, kind, text, word, reason):
    """The plugin raises at them, before it has set the usage."""
    pieces = [piece(id="c", name="weather", arguments=text[:3]), piece(arguments=text[3:])]
    good = piece(1, id="d", name="weather", arguments='{"at": 2}')
    deltas = [{"tool_calls": [one]} for one in [*pieces, good]]
    with playing(chat_stream(*deltas, finish_reason=word)) as provider:
        outcome = engine.ask(openai_model(kind, provider), tools=(WEATHER,))
    assert (outcome.error, outcome.finish.reason) == (None, reason)
    assert outcome.finish.usage == Usage(11, 7)
    assert outcome.finish.response_json["finish_reason"] == word
    raw = chat.collect(outcome.events).raw_arguments
    assert raw == {"c": text, "d": '{"at": 2}'}


@OPENAI_KINDS
@pytest.mark.parametrize("text", NO_JSON, ids=range(len(NO_JSON)))
def test_a_whole_answer_keeps_arguments_that_are_no_json(engine, kind, text):
    calls = [
        {"id": "c", "type": "function", "function": {"name": "weather", "arguments": text}},
        {"id": "d", "type": "function", "function": {"name": "weather", "arguments": "{}"}},
    ]
    message = {"role": "assistant", "content": "Look", "tool_calls": calls}
    whole = {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
    }
    with playing(lambda _, handler: say_json(handler, whole)) as provider:
        outcome = engine.ask(openai_model(kind, provider, can_stream=False), tools=(WEATHER,))
    assert (outcome.error, outcome.text, outcome.finish.reason) == (None, "Look", "length")
    assert outcome.finish.usage == Usage(11, 7)
    assert chat.collect(outcome.events).raw_arguments == {"c": text, "d": "{}"}


# ---- finish reasons


@OPENAI_KINDS
@pytest.mark.parametrize(
    "word", ["error", "network_error", "insufficient_system_resource", "MALFORMED_FUNCTION_CALL"]
)
def test_a_failure_by_its_word_is_an_error_after_the_text(engine, kind, word):
    chunks = [chat_chunk({"content": "half"}), chat_chunk({}, word), "[DONE]"]
    with playing(streaming(*chunks)) as provider:
        outcome = engine.ask(openai_model(kind, provider))
    assert outcome.text == "half"
    assert (type(outcome.error), outcome.error.message) == (
        errors.UpstreamError,
        f"the provider ended the response with {word!r}",
    )


# ---- OpenAI's Responses

RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "model": "real",
    "output": [],
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
}
TEXT = {
    "type": "response.output_text.delta",
    "item_id": "i",
    "output_index": 0,
    "content_index": 0,
    "delta": "half",
    "logprobs": [],
    "sequence_number": 1,
}


def responses_model(kind, provider):
    model = kind("m", api_base=provider.url, supports_tools=True)
    model.needs_key = None
    return model


FAILURES = {
    "failed": (
        {
            "type": "response.failed",
            "response": RESPONSE
            | {
                "status": "failed",
                "error": {"code": "rate_limit_exceeded", "message": "Try again in 2s."},
            },
            "sequence_number": 2,
        },
        errors.RateLimited,
        "Try again in 2s.",
    ),
    "an error event": (
        {
            "type": "error",
            "code": "context_length_exceeded",
            "message": "too long",
            "param": None,
            "sequence_number": 2,
        },
        errors.ContextTooLong,
        "too long",
    ),
    "cut": (None, errors.UpstreamError, "the provider's stream ended before its answer did"),
    "incomplete without a reason": (
        {
            "type": "response.incomplete",
            "response": RESPONSE | {"status": "incomplete"},
            "sequence_number": 2,
        },
        errors.UpstreamError,
        "the provider ended the response with 'incomplete'",
    ),
    "cancelled": (
        {
            "type": "response.completed",
            "response": RESPONSE | {"status": "cancelled"},
            "sequence_number": 2,
        },
        errors.UpstreamError,
        "the provider ended the response with 'cancelled'",
    ),
}


@RESPONSES_KINDS
@pytest.mark.parametrize("event, error, message", FAILURES.values(), ids=FAILURES)
def test_a_failed_response_is_an_error_after_its_text(engine, kind, event, error, message):
    with playing(streaming(TEXT, *([event] if event else []))) as provider:
        outcome = engine.ask(responses_model(kind, provider))
    assert outcome.text == "half"
    assert (type(outcome.error), outcome.error.message) == (error, message)


@RESPONSES_KINDS
def test_a_refusal_is_the_text_of_a_response(engine, kind):
    refusal = TEXT | {"type": "response.refusal.delta", "delta": "No."}
    done = {
        "type": "response.completed",
        "response": RESPONSE | {"status": "completed"},
        "sequence_number": 2,
    }
    with playing(streaming(refusal, done)) as provider:
        outcome = engine.ask(responses_model(kind, provider))
    assert (outcome.text, outcome.error, outcome.finish.reason) == ("No.", None, "stop")


@RESPONSES_KINDS
@pytest.mark.parametrize(
    "word, reason", [("max_output_tokens", "length"), ("content_filter", "content_filter")]
)
def test_an_incomplete_response_says_why_and_what_it_used(engine, kind, word, reason):
    """d6.7: its plugin reads completed responses only."""
    usage = {
        "input_tokens": 5,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 7,
    }
    response = RESPONSE | {
        "status": "incomplete",
        "incomplete_details": {"reason": word},
        "usage": usage,
    }
    event = {"type": "response.incomplete", "response": response, "sequence_number": 2}
    with playing(streaming(TEXT, event)) as provider:
        outcome = engine.ask(responses_model(kind, provider))
    assert (outcome.text, outcome.finish.reason) == ("half", reason)
    assert (outcome.finish.usage.input_tokens, outcome.finish.usage.output_tokens) == (5, 2)


@RESPONSES_KINDS
@pytest.mark.parametrize("answer", [say_html, streaming()])
def test_what_is_no_stream_of_responses_is_no_empty_answer(engine, kind, answer):
    with playing(answer) as provider:
        outcome = engine.ask(responses_model(kind, provider))
    assert isinstance(outcome.error, errors.UpstreamError)


def test_a_key_that_a_provider_quotes_is_in_no_error(engine, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "local-key-9")
    quoting = {"error": {"message": "not for local-key-9"}}
    with playing(lambda _, handler: say_json(handler, quoting)) as provider:
        model = AsyncChat("m", api_base=provider.url)
        outcome = engine.ask(model)
    assert outcome.error.message == "not for [removed]"
    assert json.loads(json.dumps(provider.headers[0]))["authorization"] == "Bearer local-key-9"


def test_calls_without_an_index_are_continued_by_their_ids():
    chunks = _Chunks({"tools": [{"function": {"name": "f"}}]})
    pieces = [("a", "f", None), ("b", "f", None), ("a", None, '{"x"'), ("b", None, "{}")]
    pieces += [("a", None, ": 1}")]
    shown: dict[int, str] = {}
    for id_, name, arguments in pieces:
        function = SimpleNamespace(name=name, arguments=arguments)
        delta = SimpleNamespace(tool_calls=[SimpleNamespace(id=id_, function=function)])
        (chunk,) = chunks.feed(SimpleNamespace(choices=[SimpleNamespace(delta=delta)]))
        for call in chunk.choices[0].delta.tool_calls:
            shown[call.index] = shown.get(call.index, "") + (call.function.arguments or "")
    assert shown == {0: '{"x": 1}', 1: "{}"}
