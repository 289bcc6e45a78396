"""Why a model stopped: the providers' words, and the one of ours that each means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .chat import FinishReason

# In lower case. Servers pass on the words of their models' own runtimes, so each dialect may
# meet any of these. What is missing here (`end_turn`, `pause_turn` …) means "stop".
FINISH_REASONS: Mapping[str, FinishReason] = {
    "length": "length",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "model_context_window_exceeded": "length",
    "model_length": "length",
    "content_filter": "content_filter",
    "refusal": "content_filter",
    "safety": "content_filter",
    "recitation": "content_filter",
    "blocklist": "content_filter",
    "prohibited_content": "content_filter",
    "spii": "content_filter",
    "image_safety": "content_filter",
    "tool_calls": "tool_calls",
    "tool_use": "tool_calls",
    "function_call": "tool_calls",
}

# Reasons of Anthropic's that ours are too few for. Its clients act on them: a paused turn is sent
# back to be continued, and reads as a whole answer under any other name.
FINER_REASONS = frozenset({"pause_turn", "compaction", "model_context_window_exceeded"})


def finer_reason(word: Any) -> str | None:
    """Return a provider's word if it says more than our reasons do, else None."""
    return word if isinstance(word, str) and word in FINER_REASONS else None


def finish_reason(word: str, *, has_calls: bool) -> FinishReason:
    """Decide why the model stopped, from the provider's word and what the response contains.

    `length` and `content_filter` count more than the presence of tool calls; that counts
    more than "stop", which some providers send with calls, and than "tool_calls", which
    some send without. An unknown word means "stop".

    Spec: https://opentelemetry.io/docs/specs/semconv/gen-ai/
    """
    reason = FINISH_REASONS.get(word.lower(), "stop")
    if reason in ("length", "content_filter"):
        return reason
    return "tool_calls" if has_calls else "stop"
