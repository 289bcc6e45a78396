"""Token counts and finish reasons in the common format, for readers that need nothing of llm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ESTIMATED = "usage"  # among ignored fields: it is none, but says that tokens are our estimate
FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


@dataclass(frozen=True)
class Usage:
    """Tokens as counted by the provider; None if it sent no count.

    `input_tokens` includes the cached and the cache-writing ones, as OpenAI counts
    (Anthropic counts them apart); `output_tokens` includes reasoning. Of `cache_write_tokens`,
    `cache_write_1h_tokens` are kept for an hour, which Anthropic alone counts.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    cache_write_1h_tokens: int | None = None
