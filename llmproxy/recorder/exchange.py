"""What the log keeps, as plain data that needs neither a model nor a database.

A `Turn` is what llm's own tables hold of one answered request. It is data alone,
so that partial and imported answers are logged by the same way as finished ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import llm
from llm.parts import Message

__all__ = ["Turn"]


@dataclass(frozen=True)
class Turn:
    """One request and what was answered to it, as `llm logs` shows it.

    id, thread_id: lower-case ULIDs; the thread is made with its first turn.
    model: llm's id of the model; resolved_model: the provider's own name for it.
    messages: the whole conversation that was asked, in normal form.
    reply: what the model produced, perhaps cut short, perhaps nothing.
    options: as the model was given them.
    usage: the plugin's own counts, as llm logs them.
    started: UTC; duration_ms: until the last event.
    """

    id: str
    thread_id: str
    model: str
    messages: list[Message]
    reply: list[Message]
    started: datetime
    duration_ms: int
    resolved_model: str | None = None
    options: dict[str, Any] | None = None
    tools: tuple[llm.Tool, ...] = ()
    schema: dict[str, Any] | None = None
    usage: llm.Usage = field(default_factory=llm.Usage)
    response_json: dict[str, Any] | None = None
