"""Remember what was computed of a message that will not change: of a parsed request.

It is kept with the message itself, for as long as that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llm.parts import Message

_NAME = "_llmproxy_facts"  # no field: not compared, shown, stored or copied by `replace`


def keep_facts(messages: Sequence[Message]) -> None:
    """Let facts of these messages be kept; the first ones may be from an earlier request."""
    for message in reversed(messages):
        if _NAME in vars(message):
            return
        vars(message)[_NAME] = {}


def facts_of(message: Message) -> dict[str, Any] | None:
    """Return the facts of a message by name, to be read and added to; None if none are kept."""
    return vars(message).get(_NAME)
