"""Errors of providers, in their words, and as each API's clients expect them."""

from __future__ import annotations

import time

import pytest

from llmproxy.core import error_meanings, errors
from llmproxy.core.error_meanings import (
    forwarded,
    is_known_code,
    read_error,
    recorded_error,
    render,
)
from llmproxy.core.errors import (
    ContentFiltered,
    ContextTooLong,
    Forbidden,
    InvalidRequest,
    ModelNotFound,
    NotFound,
    Overloaded,
    PaymentRequired,
    ProxyError,
    RateLimited,
    TooLarge,
    Unauthorized,
    Unavailable,
    UpstreamError,
    UpstreamTimeout,
)
from llmproxy.dialects import anthropic_messages, openai_chat

CONTEXT_OPENAI = (
    "This model's maximum context length is 8192 tokens. However, your messages resulted in"
    " 8545 tokens. Please reduce the length of the messages."
)
CONTEXT_ANTHROPIC = "prompt is too long: 213462 tokens > 200000 maximum"

# What another server sends: status, code or type, message; what it means.
RECEIVED = [
    (400, "context_length_exceeded", CONTEXT_OPENAI, ContextTooLong),
    (400, "invalid_request_error", CONTEXT_ANTHROPIC, ContextTooLong),
    (
        400,
        "invalid_request_error",
        "input length and `max_tokens` exceed context limit: 196261 + 20000 > 200000",
        ContextTooLong,
    ),
    (400, "exceed_context_size_error", "the request is too big", ContextTooLong),  # llama.cpp
    (413, "tokens_limit_reached", "Request body too large for gpt-4o", ContextTooLong),  # GitHub
    (
        400,
        None,
        "The input token count (1196265) exceeds the maximum number of tokens allowed (1048575).",
        ContextTooLong,
    ),
    (400, None, "This model's maximum prompt length is 131072", ContextTooLong),  # xAI
    (400, None, "Please reduce the length of the messages or completion.", ContextTooLong),  # Groq
    (500, None, "the request exceeds the available context size", ContextTooLong),
    (400, None, "ContextWindowExceededError: litellm", ContextTooLong),
    (200, "invalid_request_error", CONTEXT_ANTHROPIC, ContextTooLong),  # in a stream
    (0, None, "Requested tokens (5000) exceed context window of 4096", ContextTooLong),  # GGUF
    (0, "api_error", "Range of input length should be [1, 30720]", ContextTooLong),  # DashScope
    (429, "insufficient_quota", "You exceeded your current quota", PaymentRequired),
    (429, None, "You exceeded your current quota. Please retry in 34.07s.", RateLimited),  # Gemini
    (429, "exceeded_current_quota_error", "suspended", PaymentRequired),  # Moonshot
    (402, None, "Insufficient Balance", PaymentRequired),  # DeepSeek
    (402, "billing_error", "pay", PaymentRequired),
    (400, "invalid_request_error", "Your credit balance is too low", PaymentRequired),
    (400, "content_filter", "The response was filtered", ContentFiltered),  # Azure
    (400, "content_policy_violation", "rejected", ContentFiltered),
    (400, "invalid_request_error", "Output blocked by content filtering policy", ContentFiltered),
    (400, "data_inspection_failed", "Output data may contain", ContentFiltered),  # DashScope
    (400, "invalid_prompt", "Invalid prompt", ContentFiltered),
    (404, "model_not_found", "The model `x` does not exist", ModelNotFound),
    (404, "not_found_error", "model: claude-x", ModelNotFound),
    (404, None, "model 'x:7b' not found", ModelNotFound),  # Ollama
    (404, None, "models/x is not found for API version v1beta", ModelNotFound),  # Gemini
    (400, None, "Model Not Exist", ModelNotFound),  # DeepSeek
    (400, None, "x/y is not a valid model ID", ModelNotFound),  # OpenRouter
    (400, None, "Invalid model: x", ModelNotFound),  # Mistral
    (404, "not_found_error", "Not found", NotFound),
    (413, "request_too_large", "Request exceeds the maximum size", TooLarge),
    (413, None, "payload too large", TooLarge),
    (429, "rate_limit_error", "slow down", RateLimited),
    (429, "rate_limit_exceeded", "slow down", RateLimited),
    (429, None, "Too many tokens, please wait before trying again.", RateLimited),  # Bedrock
    (200, "rate_limit_error", "overloaded with your requests", RateLimited),
    (529, "overloaded_error", "Overloaded", Overloaded),
    (503, "server_is_overloaded", "busy", Overloaded),
    (503, "slow_down", "busy", Overloaded),
    (503, None, "The model is overloaded. Please try again later.", Overloaded),  # Gemini
    (500, None, "That model is currently overloaded with other requests.", Overloaded),
    (503, None, "maintenance", Unavailable),
    (401, "invalid_api_key", "Incorrect API key provided", Unauthorized),
    (401, "invalid_request_error", "You didn't provide an API key", Unauthorized),
    (403, "permission_error", "no", Forbidden),
    (504, "timeout_error", "late", UpstreamTimeout),
    (400, "invalid_request_error", "messages: at least one message is required", InvalidRequest),
    (400, None, "temperature must be below 2 for this model", InvalidRequest),
    (500, "api_error", "Internal server error", UpstreamError),
    (418, "invalid_request_error", "a teapot", InvalidRequest),
    (409, None, "conflict", UpstreamError),
    (0, None, "broken", UpstreamError),
]


@pytest.mark.parametrize(("status", "name", "message", "meaning"), RECEIVED)
def test_a_providers_error_is_known_by_its_words(status, name, message, meaning):
    assert type(read_error(status, [name], message, code=name)) is meaning


# An error; status, type and code for OpenAI's clients; status and type for Anthropic's.
SENT = [
    (ContextTooLong, (400, "invalid_request_error", "context_length_exceeded"), 400, None),
    (PaymentRequired, (429, "insufficient_quota", "insufficient_quota"), 402, "billing_error"),
    (ContentFiltered, (400, "invalid_request_error", "content_filter"), 400, None),
    (ModelNotFound, (404, "invalid_request_error", "model_not_found"), 404, "not_found_error"),
    (Unauthorized, (401, "invalid_request_error", "invalid_api_key"), 401, "authentication_error"),
    (Forbidden, (403, "permission_error", None), 403, "permission_error"),
    (NotFound, (404, "invalid_request_error", None), 404, "not_found_error"),
    (TooLarge, (413, "invalid_request_error", None), 413, "request_too_large"),
    (RateLimited, (429, "rate_limit_error", "rate_limit_exceeded"), 429, "rate_limit_error"),
    (Overloaded, (503, "server_error", "server_is_overloaded"), 529, "overloaded_error"),
    (Unavailable, (503, "server_error", None), 503, "overloaded_error"),
    (UpstreamTimeout, (504, "timeout_error", None), 504, "timeout_error"),
    (errors.Timeout, (408, "timeout_error", None), 408, "timeout_error"),
    (errors.MethodNotAllowed, (405, "invalid_request_error", None), 405, None),
    (errors.UnsupportedMediaType, (415, "invalid_request_error", None), 415, None),
    (InvalidRequest, (400, "invalid_request_error", None), 400, None),
    (UpstreamError, (502, "server_error", None), 502, "api_error"),
    (ProxyError, (500, "server_error", None), 500, "api_error"),
]


@pytest.mark.parametrize(("cls", "openai", "status", "type_"), SENT)
def test_each_api_says_an_error_in_its_own_words(cls, openai, status, type_):
    error = cls("why")
    body = openai_chat.render_error(error)["error"]
    assert (openai_chat.error_status(error), body["type"], body["code"]) == openai
    shown = anthropic_messages.render_error(error)["error"]
    assert anthropic_messages.error_status(error) == status
    assert shown["type"] == (type_ or "invalid_request_error")


@pytest.mark.parametrize(("status", "name", "message", "meaning"), RECEIVED)
@pytest.mark.parametrize("dialect", [openai_chat, anthropic_messages])
def test_a_meaning_survives_each_apis_words(status, name, message, meaning, dialect):
    error = read_error(status, [name], message)
    shown = dialect.error_status(error)
    read = dialect.parse_error(shown, dialect.render_error(error))
    merged = {Unavailable: Overloaded} if dialect is anthropic_messages else {}
    if status == 409:  # an invalid_request_error in both APIs, whose status says the rest
        merged = {UpstreamError: InvalidRequest}
    assert type(read) is merged.get(meaning, meaning)
    assert dialect.error_status(read) == (529 if merged.get(meaning) is Overloaded else shown)


@pytest.mark.parametrize("dialect", [openai_chat, anthropic_messages])
@pytest.mark.parametrize(
    "cls",
    [ContextTooLong, PaymentRequired, ContentFiltered, ModelNotFound, RateLimited, Overloaded]
    + [Unauthorized, Forbidden, UpstreamTimeout, UpstreamError],
)
def test_a_meaning_survives_inside_a_stream(cls, dialect):
    read = dialect.parse_error(200, dialect.render_error(cls("why")))
    assert type(read) is cls


PHRASES = [
    # Claude Code compacts by the phrase, and by how much from the numbers.
    (
        "anthropic",
        ContextTooLong(CONTEXT_OPENAI, param="messages"),
        f"prompt is too long: 8545 tokens > 8192 maximum (messages: {CONTEXT_OPENAI})",
    ),
    ("anthropic", ContextTooLong("too big"), "prompt is too long: too big"),
    (
        "anthropic",
        ContextTooLong("The input token count (1,196,265) exceeds the maximum (1,048,575)"),
        "prompt is too long: 1196265 tokens > 1048575 maximum"
        " (The input token count (1,196,265) exceeds the maximum (1,048,575))",
    ),
    ("anthropic", ContextTooLong("gpt-4-1106 takes 500 of 500"), None),
    ("anthropic", ContextTooLong(CONTEXT_ANTHROPIC), CONTEXT_ANTHROPIC),
    (
        "openai",
        ContextTooLong(CONTEXT_ANTHROPIC),
        "This model's maximum context length is 200000 tokens. However, your messages resulted"
        f" in 213462 tokens ({CONTEXT_ANTHROPIC})",
    ),
    (
        "openai",
        ContextTooLong(
            "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000"
        ),
        "This model's maximum context length is 200000 tokens. However, your messages resulted"
        " in 210000 tokens (input length and `max_tokens` exceed context limit:"
        " 190000 + 20000 > 200000)",
    ),
    ("openai", ContextTooLong(CONTEXT_OPENAI), CONTEXT_OPENAI),
    (
        "openai",
        ContextTooLong("too big"),
        "the model's maximum context length is exceeded: too big",
    ),
    (
        "anthropic",
        PaymentRequired("You exceeded your current quota"),
        "your credit balance is too low: You exceeded your current quota",
    ),
    (
        "anthropic",
        ContentFiltered("flagged"),
        "Output blocked by content filtering policy: flagged",
    ),
    (
        "anthropic",
        ModelNotFound("The model `x` does not exist"),
        "model: The model `x` does not exist",
    ),
    ("anthropic", ModelNotFound("no model x", param="model"), "model: no model x"),
    ("openai", ModelNotFound("model: x"), "model: x"),
    ("anthropic", InvalidRequest("no", param="messages[0]"), "messages[0]: no"),
    ("openai", InvalidRequest("no", param="messages[0]"), "messages[0]: no"),
    ("openai", InvalidRequest("messages[0]: no", param="messages[0]"), "messages[0]: no"),
    ("openai", InvalidRequest("Unsupported value: 'n'", param="n"), "Unsupported value: 'n'"),
    (
        "openai",
        InvalidRequest("bad messages[0].role", param="messages[0]"),
        "messages[0]: bad messages[0].role",
    ),
]


@pytest.mark.parametrize(("api", "error", "message"), PHRASES)
def test_the_phrase_that_clients_look_for_comes_first(api, error, message):
    shown = error_meanings.render(error, api).message
    assert shown == (message or f"prompt is too long: {error.message}")


@pytest.mark.parametrize(
    ("cls", "code", "shown"),
    [
        (ContextTooLong, "exceed_context_size_error", "context_length_exceeded"),
        (ContentFiltered, "content_policy_violation", "content_policy_violation"),
        (ContentFiltered, "data_inspection_failed", "content_filter"),
        (PaymentRequired, "billing_hard_limit_reached", "billing_hard_limit_reached"),
        (Overloaded, "slow_down", "slow_down"),
        (RateLimited, "requests_per_day", "requests_per_day"),
        (InvalidRequest, "unsupported_value", "unsupported_value"),
    ],
)
def test_a_code_is_kept_unless_openai_has_another_for_the_meaning(cls, code, shown):
    assert openai_chat.render_error(cls("x", code=code))["error"]["code"] == shown


def test_an_upstreams_own_status_is_kept_unless_the_meaning_has_another():
    assert read_error(422, [], "no").status == 422
    assert read_error(409, [], "no").status == 409
    assert read_error(500, [], "no").status == 500
    assert read_error(413, ["tokens_limit_reached"], "no").status == 400
    assert read_error(200, ["overloaded_error"], "no").status == 529
    assert read_error(200, [5, None, {}], ["no"]).message == (
        "the upstream failed without giving a reason"
    )


@pytest.mark.parametrize(
    ("headers", "kept"),
    [
        ({"Retry-After": "3", "x-should-retry": "true", "set-cookie": "a=b"}, "3"),
        ({"retry-after": "0.4"}, "1"),
        ({"retry-after": "6.2"}, "7"),
        ({"retry-after": "0"}, "0"),
        ({"retry-after-ms": "1250"}, "2"),
        ({"retry-after": "0", "retry-after-ms": "1"}, "1"),
        ({"retry-after": "-1"}, None),
        (
            {
                "retry-after": "Fri, 27 Nov 2026 10:00:30 GMT",
                "date": "Fri, 27 Nov 2026 10:00:00 GMT",
            },
            "30",
        ),
        ({"retry-after": "Fri, 27 Nov 2020 10:00:30 GMT"}, None),
        ({"retry-after": "soon", "date": "today"}, None),
        ({"retry-after": "inf"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_in_whole_seconds(headers, kept):
    found = forwarded(headers)
    assert found.get("retry-after") == kept
    assert set(found) <= {"retry-after", "retry-after-ms", "x-should-retry"}


def test_of_both_spellings_the_exact_one_counts():
    """As in the SDKs; a client that reads the other then waits no shorter."""
    found = forwarded({"retry-after": "7", "retry-after-ms": "1200"})
    assert found == {"retry-after": "2", "retry-after-ms": "1200"}


@pytest.mark.parametrize(
    ("message", "seconds"),
    [
        ("Rate limit reached. Please try again in 6s.", "6"),
        ("Please try again in 20ms.", "1"),
        ("Please try again in 7m12.24s.", "433"),
        ("Please try again in 1h2m.", "3720"),
        ("Please retry in 34.074824224s.", "35"),
        ("Please try again in a while", None),
        ("Please try again in 5 days", None),
        (f"Please try again in 1{'0' * 400}s.", None),
        (f"Please try again in {'9' * 5_000}h", None),
        (f"Please try again in {'9' * 400}m", None),
        (f"Please try again in 1.{'9' * 5_000}s", None),
    ],
)
def test_retry_after_is_read_from_the_message(message, seconds):
    error = read_error(429, [], message)
    assert error.headers.get("retry-after") == seconds
    assert read_error(429, [], message, headers={"retry-after": "2"}).headers == {
        "retry-after": "2"
    }
    assert not read_error(400, [], message).headers


def test_of_a_huge_message_only_the_beginning_is_read():
    """A provider may send a page, and a model raise what it was asked."""
    began = time.thread_time()
    error = read_error(400, [], "the prompt is too long. " + "x" * 20_000_000)
    assert type(error) is ContextTooLong
    assert time.thread_time() - began < 0.5


def every_class(cls=ProxyError):
    return [cls, *(found for sub in cls.__subclasses__() for found in every_class(sub))]


RECORDED = [
    *(
        cls("words that say nothing")
        for cls in every_class()
        if cls.__module__ == "llmproxy.core.errors"
    ),
    *(
        cls("prompt is too long, overloaded", status=422)
        for cls in (ContextTooLong, InvalidRequest)
    ),
    read_error(400, [], "the prompt is too long"),
    read_error(400, ["exceed_context_size_error"], "no", code="exceed_context_size_error"),
    read_error(400, [], "x" * 600 + " maximum context length exceeded " + "y" * 600),
    read_error(429, ["insufficient_quota"], "no", code="insufficient_quota"),
    read_error(429, [], "insufficient balance"),
    read_error(503, [], "at capacity"),
    read_error(200, ["overloaded_error"], "no"),
    read_error(409, [], "conflict", code="c"),
]


@pytest.mark.parametrize(
    "error", RECORDED, ids=lambda error: f"{type(error).__name__} {error.status}"
)
@pytest.mark.parametrize("api", ["openai", "anthropic"])
def test_what_is_recorded_of_an_error_is_enough_to_say_it_again(error, api):
    again = recorded_error(
        error.kind, error.status, error.message, code=error.code, param=error.param
    )
    assert render(again, api) == render(error, api)


def test_codes_of_our_vocabulary_are_known():
    assert is_known_code("context_length_exceeded") and is_known_code("rate_limit_exceeded")
    assert not is_known_code("the words of somebody")
