"""How far two answers to one request say the same, by what can be told without a judge.

Answers are messages, as the log and `hub.collect` have them. Reasoning takes no part, nor
what a provider's own tools did: it is what the client is told and asked to do that counts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llm.parts import Message, TextPart, ToolCallPart

from .json_schema import NoValue, Verdict, canonical, held_against, json_value

MAX_WORDS = 20_000  # of each text: a hundred pages; some tenths of a second at the worst

# A word, or one sign. Scripts that put no space between words count by characters.
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")


@dataclass(frozen=True)
class Agreement:
    """What of an answer is as in another one, the first: mostly the recorded one.

    exact_text: the visible text is the same, letter for letter, but for white space at
        its ends.
    similarity: of the texts, as `similarity` says; None where neither has any.
    same_json: both texts are the same JSON value; None where the first is no JSON.
    same_tool_calls: the same tools are called with the same arguments, each as often.
        Ids do not count, and no order: calls of one answer are there to be run together.
        None where neither calls any.
    schema: whether the second's text is what the schema asks for; None without a schema.
    """

    exact_text: bool
    similarity: float | None
    same_json: bool | None
    same_tool_calls: bool | None
    schema: Verdict | None


def agreement(
    first: Sequence[Message], second: Sequence[Message], schema: dict[str, Any] | None = None
) -> Agreement:
    """Compare two answers to one request; `schema` is the one that the request gave."""
    text, other = _text(first), _text(second)
    calls, others = _calls(first), _calls(second)
    return Agreement(
        exact_text=text == other,
        similarity=similarity(text, other) if text or other else None,
        same_json=_is_same_json(text, other),
        same_tool_calls=calls == others if calls or others else None,
        schema=None if schema is None else _verdict(schema, other),
    )


def similarity(first: str, second: str) -> float:
    """Say how alike two texts are, from 0 to 1, by their words in order.

    Twice the length of their longest common subsequence of words, over the words of
    both: the share of words that a minimal diff leaves standing. Symmetric; 1 for two
    texts without words. Words are runs of letters and digits, signs one by one, as are
    the characters of scripts without spaces; white space and nothing else is left out.
    Of texts longer than MAX_WORDS the beginnings are compared.
    """
    words, others = (
        [match[0] for match in _WORD.finditer(text)] if text else [] for text in (first, second)
    )
    del words[MAX_WORDS:], others[MAX_WORDS:]
    if not words and not others:
        return 1.0
    return 2 * _common_length(words, others) / (len(words) + len(others))


def _common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Give the length of the longest common subsequence.

    A row of the usual table at a time, one bit for each column (Hyyrö 2004): a 0 where
    the row's length grows. difflib finds no longest one, takes cubic time for texts of few
    words, and gives another number when the texts change places.
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
    except NoValue:
        return None
    try:
        return canonical(value) == canonical(json_value(second))
    except NoValue:
        return False


def _verdict(schema: dict[str, Any], text: str) -> Verdict:
    try:
        return held_against(schema, json_value(text))
    except NoValue as exc:
        return Verdict(f"the answer is no JSON: {exc}", ())
