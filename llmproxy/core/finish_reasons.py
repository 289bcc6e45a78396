"""Why a model stopped: the providers' words, and the one of ours that each means."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .errors import UpstreamError
from .usage import FinishReason

# In lower case. Servers pass on the words of their models' own runtimes, so each dialect may
# meet any of these. What is missing here (`end_turn`, `pause_turn` …) means "stop".
FINISH_REASONS: Mapping[str, FinishReason] = {
    "length": "length",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "model_context_window_exceeded": "length",
    "model_length": "length",
    "max_length": "length",
    "length_limit": "length",
    "token_limit": "length",
    "time_limit": "length",
    "error_limit": "length",
    "content_filter": "content_filter",
    "refusal": "content_filter",
    "safety": "content_filter",
    "recitation": "content_filter",
    "blocklist": "content_filter",
    "prohibited_content": "content_filter",
    "spii": "content_filter",
    "image_safety": "content_filter",
    "image_prohibited_content": "content_filter",
    "image_recitation": "content_filter",
    "content_filtered": "content_filter",
    "guardrail_intervened": "content_filter",
    "sensitive": "content_filter",
    "error_toxic": "content_filter",
    "language": "content_filter",
    "tool_calls": "tool_calls",
    "tool_use": "tool_calls",
    "function_call": "tool_calls",
}

# Reasons of Anthropic's that ours are too few for. Its clients act on them: a paused turn is sent
# back to be continued, and reads as a whole answer under any other name.
FINER_REASONS = frozenset({"pause_turn", "compaction", "model_context_window_exceeded"})

# Words for the end of a turn, in Anthropic's API and in others that look like it.
_ENDS = frozenset({"", "end_turn", "stop_sequence", "stop"})


def finer_reason(word: Any, *, is_anthropics: bool = False) -> str | None:
    """Return a provider's word if it says more than our reasons do, else None.

    is_anthropics: it is a `stop_reason`. One that isn't known yet may say anything, so it is kept:
        under our name for it, it would read as the end of a turn.
    """
    if not isinstance(word, str):
        return None
    is_unknown = is_anthropics and word not in _ENDS and common_reason(word) == "stop"
    return word if is_unknown or word in FINER_REASONS else None


# Words for a response that was cut: `max_new_tokens`, `context_window_exceeded` …
_LENGTH = re.compile(
    "length|max.{0,40}tokens|tokens?_limit|tokens?_budget|context_(?:size|window|limit)"
)

# Words for a response that failed: `error`, `network_error`, `insufficient_system_resource`
# (DeepSeek), `MALFORMED_FUNCTION_CALL` and `OTHER` (Gemini), `abort` (vLLM), `failed` …
_FAILURE = re.compile(
    "error|fail|abort|cancel|insufficient|malformed|unexpected|invalid|timeout|timed_out"
    "|interrupt|exception|unavailable|overload|too_many|missing|not_finished|^(?:image_)?other$"
    "|^no_image$|reject|preempt|kill|crash|out_of_memory|^oom$|deadline|disconnect|dropped"
    "|incomplete|unknown|unspecified|^null$|^none$|rate_limit|quota",
)


def check(word: str) -> None:
    """Check that a provider's word for the end of a response is not one for a failure.

    Raises:
        UpstreamError: it is, so that the response may be half of one.
    """
    if common_reason(word) == "stop" and _FAILURE.search(word.lower()):
        raise UpstreamError(f"the provider ended the response with {word[:80]!r}")


def common_reason(word: str) -> FinishReason:
    """Return our reason for a provider's word; an unknown one that names no length means "stop"."""
    word = word.lower()
    return FINISH_REASONS.get(word, "length" if _LENGTH.search(word) else "stop")


def finish_reason(word: str, *, has_calls: bool) -> FinishReason:
    """Decide why the model stopped, from the provider's word and what the response contains.

    `length` and `content_filter` count more than the presence of tool calls; that counts
    more than "stop", which some providers send with calls, and than "tool_calls", which
    some send without.

    Spec: https://opentelemetry.io/docs/specs/semconv/gen-ai/
    """
    reason = common_reason(word)
    if reason in ("length", "content_filter"):
        return reason
    return "tool_calls" if has_calls else "stop"
