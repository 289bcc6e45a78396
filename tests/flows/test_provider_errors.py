"""Providers' errors, through the real plugins, as the SDKs of both APIs get them."""

from __future__ import annotations

import anthropic
import openai
import pytest
from llm.default_plugins.openai_models import AsyncChat
from llm_anthropic import AsyncClaudeMessages

from tests.backends.engine.test_plugins import claude, openai_model
from tests.provider import begin_sse, playing, say_event, say_json
from tests.proxies import running

CLAUDE = "anthropic/claude-m"
QUESTION = [{"role": "user", "content": "hi"}]


def ask_openai(proxy, model="m", **fields):
    client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="any", max_retries=0)
    with pytest.raises(openai.APIError) as raised:
        answer = client.chat.completions.create(model=model, messages=QUESTION, **fields)
        list(answer)
    return raised.value


def ask_anthropic(proxy, model="m", **fields):
    client = anthropic.Anthropic(base_url=proxy.url, api_key="any", max_retries=0)
    with pytest.raises(anthropic.APIError) as raised:
        answer = client.messages.create(model=model, max_tokens=9, messages=QUESTION, **fields)
        list(answer)
    return raised.value


# What OpenAI answers; the status, type and message that an Anthropic client then gets.
OPENAIS = {
    "context": (
        400,
        {
            "message": "This model's maximum context length is 8192 tokens. However, your messages"
            " resulted in 8545 tokens.",
            "type": "invalid_request_error",
            "param": "messages",
            "code": "context_length_exceeded",
        },
        400,
        "invalid_request_error",
        "prompt is too long: 8545 tokens > 8192 maximum",
    ),
    "quota": (
        429,
        {"message": "You exceeded your current quota", "code": "insufficient_quota"},
        402,
        "billing_error",
        "credit balance is too low",
    ),
    "size": (413, {"message": "too large"}, 413, "request_too_large", "too large"),
    "rate": (
        429,
        {"message": "Please try again in 1.2s.", "code": "rate_limit_exceeded"},
        429,
        "rate_limit_error",
        "try again",
    ),
    "overload": (
        503,
        {"message": "busy", "code": "server_is_overloaded"},
        529,
        "overloaded_error",
        "busy",
    ),
    "filter": (
        400,
        {"message": "The response was filtered", "code": "content_filter"},
        400,
        "invalid_request_error",
        "Output blocked by content filtering policy",
    ),
    "model": (
        404,
        {"message": "The model `x` does not exist", "code": "model_not_found"},
        404,
        "not_found_error",
        "model: The model `x` does not exist",
    ),
    "key": (
        401,
        {"message": "Incorrect API key provided", "code": "invalid_api_key"},
        401,
        "authentication_error",
        "Incorrect API key",
    ),
}


@pytest.mark.parametrize("sent, fields, status, type_, words", OPENAIS.values(), ids=OPENAIS)
def test_claudes_client_gets_openais_errors_in_anthropics_words(
    llm_user_path, sent, fields, status, type_, words
):
    def answer(body, handler):
        say_json(handler, {"error": fields}, sent, x_should_retry="false")

    with playing(answer) as provider, running(openai_model(AsyncChat, provider)) as proxy:
        error = ask_anthropic(proxy)
        exchange = proxy.wait_for_report()
        again = ask_openai(proxy)
    assert (error.status_code, error.body["error"]["type"]) == (status, type_)
    assert words in error.body["error"]["message"]
    # The log has the status that the client was sent, and the provider's own words.
    assert exchange.http_status == status
    assert fields["message"] in exchange.error
    # An OpenAI client gets them as they came.
    assert (again.status_code, again.body["message"], again.body.get("code")) == (
        sent,
        fields["message"],
        fields.get("code"),
    )
    expected = "2" if sent == 429 and "try again" in words else None
    assert error.response.headers.get("retry-after") == expected


# What Anthropic answers; the status and code that an OpenAI client then gets.
ANTHROPICS = {
    "context": (
        400,
        ("invalid_request_error", "prompt is too long: 213462 tokens > 200000 maximum"),
        400,
        "context_length_exceeded",
        "maximum context length is 200000 tokens",
    ),
    "billing": (402, ("billing_error", "pay first"), 429, "insufficient_quota", "pay first"),
    "credit": (
        400,
        ("invalid_request_error", "Your credit balance is too low"),
        429,
        "insufficient_quota",
        "credit balance",
    ),
    "size": (413, ("request_too_large", "too large"), 413, None, "too large"),
    "rate": (429, ("rate_limit_error", "slow"), 429, "rate_limit_exceeded", "slow"),
    "overload": (529, ("overloaded_error", "Overloaded"), 503, "server_is_overloaded", "Overl"),
    "filter": (
        400,
        ("invalid_request_error", "Output blocked by content filtering policy"),
        400,
        "content_filter",
        "blocked",
    ),
    "model": (404, ("not_found_error", "model: claude-x"), 404, "model_not_found", "claude-x"),
    "key": (401, ("authentication_error", "invalid x-api-key"), 401, "invalid_api_key", "key"),
}


@pytest.mark.parametrize("sent, error, status, code, words", ANTHROPICS.values(), ids=ANTHROPICS)
def test_openais_client_gets_anthropics_errors_in_openais_words(
    llm_user_path, sent, error, status, code, words
):
    fields = dict(zip(("type", "message"), error, strict=True))

    def answer(body, handler):
        say_json(
            handler,
            {"type": "error", "error": fields},
            sent,
            x_should_retry="false",
            retry_after="0.3",
        )

    with playing(answer) as provider, running(claude(AsyncClaudeMessages, provider)) as proxy:
        got = ask_openai(proxy, CLAUDE)
        again = ask_anthropic(proxy, CLAUDE)
    assert (got.status_code, got.code) == (status, code)
    assert words in got.message
    assert got.response.headers["retry-after"] == "1"
    assert again.body["error"]["message"].endswith(fields["message"])


def test_an_error_in_a_stream_is_in_the_clients_words_too(llm_user_path):
    def answer(body, handler):
        begin_sse(handler)
        say_event(
            handler,
            {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
            "error",
        )

    with playing(answer) as provider, running(claude(AsyncClaudeMessages, provider)) as proxy:
        got = ask_openai(proxy, CLAUDE, stream=True)
        again = ask_anthropic(proxy, CLAUDE, stream=True)
    assert (got.status_code, got.code) == (503, "server_is_overloaded")
    assert (again.status_code, again.body["error"]["type"]) == (529, "overloaded_error")


def test_a_missing_key_is_a_401_in_each_apis_words(llm_user_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with running(AsyncChat("m", api_base="http://127.0.0.1:9")) as proxy:
        got, again = ask_openai(proxy), ask_anthropic(proxy)
    assert (got.status_code, got.code) == (401, "invalid_api_key")
    assert (again.status_code, again.body["error"]["type"]) == (401, "authentication_error")
    assert "No key found" in got.message
