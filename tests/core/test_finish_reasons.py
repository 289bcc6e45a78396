"""Providers' words for why a model stopped."""

from __future__ import annotations

import pytest

from llmproxy.core.errors import UpstreamError
from llmproxy.core.finish_reasons import check, finish_reason


@pytest.mark.parametrize(
    "word, has_calls, reason",
    [
        ("stop", False, "stop"),
        ("stop", True, "tool_calls"),
        ("tool_calls", False, "stop"),
        ("tool_use", True, "tool_calls"),
        ("MAX_TOKENS", True, "length"),
        ("length", False, "length"),
        ("SAFETY", True, "content_filter"),
        ("refusal", False, "content_filter"),
        ("end_turn", False, "stop"),
        ("a word of tomorrow", False, "stop"),
        ("", True, "tool_calls"),
        ("max_length", False, "length"),
        ("max_new_tokens", False, "length"),
        ("max_completion_tokens", True, "length"),
        ("CONTEXT_LENGTH_EXCEEDED", False, "length"),
        ("context_window_exceeded", False, "length"),
        ("thinking_token_budget", False, "length"),
        ("token_limit", True, "length"),
        ("ERROR_LIMIT", False, "length"),
        ("sensitive", False, "content_filter"),
        ("guardrail_intervened", False, "content_filter"),
        ("eos_token", False, "stop"),
        ("COMPLETE", False, "stop"),
    ],
)
def test_a_reason_is_decided_by_the_word_and_the_calls(word, has_calls, reason):
    """B6"""
    assert finish_reason(word, has_calls=has_calls) == reason


@pytest.mark.parametrize(
    "word",
    ["error", "network_error", "insufficient_system_resource", "MALFORMED_FUNCTION_CALL", "ERROR"]
    + ["UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS", "OTHER", "IMAGE_OTHER", "MALFORMED_RESPONSE"]
    + ["abort", "aborted", "cancelled", "failed", "timeout", "server_error", "malformed_tool_use"]
    + ["engine_overloaded", "model_unavailable", "NO_IMAGE", "not_finished"]
    + ["FINISH_REASON_UNSPECIFIED", "unknown", "incomplete", "preempted", "rejected", "oom"]
    + ["deadline_exceeded", "worker_crashed", "killed", "client_disconnected", "rate_limited"],
)
def test_a_failure_is_no_reason(word):
    with pytest.raises(UpstreamError, match=f"^the provider ended the response with '{word}'$"):
        check(word)


@pytest.mark.parametrize(
    "word",
    ["", "stop", "end_turn", "pause_turn", "tool_use", "length", "refusal", "eos", "STOP", "done"]
    + ["max_new_tokens", "context_length_exceeded", "invalid_length", "end_of_text"]
    + ["stop_sequence", "COMPLETE", "error_limit", "ERROR_TOXIC", "a word of tomorrow"],
)
def test_other_words_are_no_failure(word):
    check(word)
