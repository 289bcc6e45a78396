"""Remember what was computed of messages that will not change: those of a parsed request.

It is kept with the message itself, for as long as that is; what was computed of the beginning
of a conversation, with the last message of this beginning.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
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


TAIL = 4  # messages at the end of a conversation that clients often change when they send more
MAX_NEW = 64  # messages since a beginning that is looked for


def stable_count(messages: Sequence[Message]) -> int:
    """Return the number of first messages whose facts are worth keeping; 0 for none."""
    most = len(messages) - TAIL
    for count in range(most, max(most - MAX_NEW, 0), -1):
        if facts_of(messages[count - 1]) is not None:
            return count
    return 0


def known_beginning(messages: Sequence[Message], name: str) -> tuple[int, Any]:
    """Return how many first messages have a value of this name, and the value; 0 and None if none.

    They must be the same objects: comparing these takes 30 ns each.
    """
    for count in range(len(messages), max(len(messages) - MAX_NEW - TAIL, 0), -1):
        facts = facts_of(messages[count - 1])
        if facts and (found := facts.get(name)) is not None:
            before, value = found
            if len(before) == count - 1 and all(map(operator.is_, before, messages)):
                return count, value
    return 0, None


def keep_beginning(
    messages: Sequence[Message], count: int, name: str, value: Any, instead_of: int = 0
) -> None:
    """Keep a value of the first messages, as many as `stable_count` says.

    instead_of: the number of messages that had the value from which this one was made.
    """
    # Otherwise each turn would keep a list of all before it. Where none was found, an older one
    # may be: from before many new messages, or of another model.
    for message in messages[instead_of - 1 : instead_of] if instead_of else messages[:count]:
        if former := facts_of(message):
            former.pop(name, None)
    facts = facts_of(messages[count - 1]) if count else None
    if facts is not None:
        facts[name] = [*messages[: count - 1]], value


def total(
    messages: Sequence[Message], name: str, measure: Callable[[Sequence[Message]], int]
) -> int:
    """Return the measure of messages, which is the sum of those of their parts.

    That of a beginning which was measured before is known by the name: 0.03 µs a message
    instead of 0.3 to 1.
    """
    count, size = known_beginning(messages, name)
    stable = stable_count(messages)
    size = size or 0
    if stable > count:
        size += measure(messages[count:stable])
        keep_beginning(messages, stable, name, size, instead_of=count)
        count = stable
    return int(size + measure(messages[count:]))
