"""Providers' words for why a model stopped."""

from __future__ import annotations

import pytest

from llmproxy.core.finish_reasons import finish_reason


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
    ],
)
def test_a_reason_is_decided_by_the_word_and_the_calls(word, has_calls, reason):
    """B6"""
    assert finish_reason(word, has_calls=has_calls) == reason
