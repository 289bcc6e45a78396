"""The names of the dialects, for those that need nothing else of them."""

from __future__ import annotations

from typing import Literal

DialectName = Literal["openai_chat", "anthropic_messages", "openai_responses", "ollama"]
