"""Measure how far two replies to one request agree, by what needs no judgement.

Replies are messages, as in the log and from `chat.collect`. Only visible text and tool calls
count, not reasoning or the provider's own tools.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from llm.parts import Message, TextPart, ToolCallPart

from .json_schema import NotJSON, Validity, canonical, json_value, validate

MAX_WORDS = 20_000  # of each text: a hundred pages, tenths of a second at worst

# A word, or one sign. Scripts without spaces between words count by characters.
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")


@dataclass(frozen=True)
class Agreement:
    """How a reply agrees with another one, the first, usually the recorded one.

    exact_text: the visible text is the same, apart from white space at its ends.
    similarity: of the texts, see `similarity`; None if neither has text.
    same_json: both texts are the same JSON value; None if the first is not JSON.
    same_tool_calls: the same tools are called with the same arguments, each as often. IDs and
        order don't count: calls of one reply are meant to run together. None without calls.
    schema: whether the second text is valid for the schema; None without a schema.
    """

    exact_text: bool
    similarity: float | None
    same_json: bool | None
    same_tool_calls: bool | None
    schema: Validity | None


def agreement(
    first: Sequence[Message], second: Sequence[Message], schema: dict[str, Any] | None = None
) -> Agreement:
    """Compare two replies to one request; `schema` is that of the request."""
    text, other = _text(first), _text(second)
    calls, others = _calls(first), _calls(second)
    return Agreement(
        exact_text=text == other,
        similarity=similarity(text, other) if text or other else None,
        same_json=_is_same_json(text, other),
        same_tool_calls=calls == others if calls or others else None,
        schema=None if schema is None else _validity(schema, other),
    )


def similarity(first: str, second: str) -> float:
    """Return how similar two texts are, from 0 to 1, by their words in order.

    Twice the length of their longest common subsequence of words, divided by the words of both:
    the share of words that a minimal diff keeps. Symmetric; 1 for two texts without words.
    Runs of letters and digits are words; signs, and characters of scripts without spaces, count
    one by one; white space is ignored. Of longer texts, the first MAX_WORDS are compared.
    """
    words, others = (
        [match[0] for match in islice(_WORD.finditer(text), MAX_WORDS)] for text in (first, second)
    )
    if not words and not others:
        return 1.0
    return 2 * _common_length(words, others) / (len(words) + len(others))


def _common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence.

    Computes a row of the usual table at a time, with a bit for each column (Hyyrö 2004): a 0
    where the length grows. difflib does not find the longest one, takes cubic time for texts
    of few different words, and is not symmetric.
    """
    places: dict[str, int] = {}
    for index, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << index
    all_ones = (1 << len(first)) - 1
    row = all_ones
    for word in second:
        matched = row & places.get(word, 0)
        row = (row + matched | row - matched) & all_ones
    return len(first) - row.bit_count()


def _text(messages: Sequence[Message]) -> str:
    parts = (part for message in messages for part in message.parts)
    return "".join(part.text for part in parts if isinstance(part, TextPart)).strip()


def _calls(messages: Sequence[Message]) -> Counter[tuple[str, str]]:
    return Counter(
        (part.name, canonical(part.arguments))
        for message in messages
        for part in message.parts
        if isinstance(part, ToolCallPart) and not part.server_executed
    )


def _is_same_json(first: str, second: str) -> bool | None:
    try:
        value = json_value(first)
    except NotJSON:
        return None
    try:
        return canonical(value) == canonical(json_value(second))
    except NotJSON:
        return False


def _validity(schema: dict[str, Any], text: str) -> Validity:
    try:
        return validate(schema, json_value(text))
    except NotJSON as exc:
        return Validity(str(exc), ())
