"""What a request says anew each time, and what is no part of the chat: kept by nobody.

OpenAI caches by itself. Clients that also talk to Anthropic's models through LiteLLM or
OpenRouter (aider, gptme) send the marks of Anthropic's prompt cache on this wire too,
where they move on with each turn.

Spec: https://docs.litellm.ai/docs/completion/prompt_caching
"""

from __future__ import annotations

from typing import Any

from ...core import payload

__all__ = ["normalize_body"]

# Where LiteLLM reads one; the first is OpenRouter's. Arguments and parameters are not among them.
_without_marks = payload.without(
    "cache_control",
    "messages[*].cache_control",
    "messages[*].content[*].cache_control",
    "messages[*].tool_calls[*].cache_control",
    "tools[*].cache_control",
    "tools[*].function.cache_control",
)


def normalize_body(body: Any) -> Any:
    """Give a request's body without cache marks.

    The body may be of any shape; it is not edited, and what stays is shared with it.
    What is left reads as the whole body does, but that no marks are listed as ignored.
    """
    return _without_marks(body)
