"""A body that begins as an earlier one is parsed as if none had come before."""

from __future__ import annotations

import json
import random
import threading
from dataclasses import replace
from typing import Any

import pytest

from llmproxy.core import known_bodies, payload
from llmproxy.core.errors import InvalidRequest
from llmproxy.core.fingerprints import request_key
from llmproxy.core.known_bodies import KnownBodies
from llmproxy.core.limits import Limits
from llmproxy.dialects import openai_chat

PIXEL = "data:image/png;base64,iVBORw0KGgo="
TOOLS = [{"type": "function", "function": {"name": "run", "parameters": {"type": "object"}}}]


@pytest.fixture
def known():
    return KnownBodies(threading.Lock())


def messages(count: int, seed: int = 1) -> list[Any]:
    """Return a conversation that is long enough to be remembered, with all that may be in one."""
    draw = random.Random(seed)
    made: list[Any] = [{"role": "system", "content": "Ünïcode 漢字 " + "s" * 70_000}]
    for i in range(count):
        call = {"id": f"c{seed}_{i}", "type": "function"}
        call["function"] = {"name": "run", "arguments": json.dumps({"n": [i, 1.5, seed]})}
        image = {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}}
        made += draw.choice(
            [
                [{"role": "user", "content": f'question {i}, "quoted" \\ {seed}'}],
                [{"role": "user", "name": "me", "content": [{"type": "text", "text": "?"}, image]}],
                [{"role": "assistant", "content": f"answer {i}", "odd": {"deep": [[i]]}}],
                [{"role": "assistant", "content": "", "cache_control": {"type": "x"}}],
                [
                    {"role": "assistant", "content": None, "tool_calls": [call]},
                    {"role": "tool", "tool_call_id": call["id"], "content": f"result {i}"},
                ],
            ]
        )
    return [*made, {"role": "user", "content": "go on"}]


def body(items: list[Any], **others: Any) -> bytes:
    return json.dumps({"model": "m", **others, "messages": items}, ensure_ascii=False).encode()


def read(known: KnownBodies, text: bytes, limits: Limits = Limits()) -> Any:
    """Return all that comes of a body, or its error; and remember it as the app does."""
    try:
        parsed = known.parse(text, limits, "openai_chat")
        request = openai_chat.parse_request(parsed.value, {}, parsed.memory)
        key = request_key(request, parsed.memory.hashed if parsed.memory else None)
        body = parsed.normalized(openai_chat.normalize_body)
        known.remember(parsed, "openai_chat")
        return parsed.value, body, request, key
    except InvalidRequest as error:
        return type(error), error.message, error.param


def read_alone(text: bytes, limits: Limits = Limits()) -> Any:
    try:
        value = payload.parse(text, limits)
        request = openai_chat.parse_request(value, {})
        return value, openai_chat.normalize_body(value), request, request_key(request)
    except InvalidRequest as error:
        return type(error), error.message, error.param


def shared(known: KnownBodies, text: bytes) -> int:
    """Return how many messages of a body are taken over."""
    memory = known.parse(text, Limits(), "openai_chat").memory
    return len(memory.loaded) if memory is not None else 0


@pytest.mark.parametrize("seed", range(20))
def test_a_conversation_that_grows_is_parsed_as_without_memory(known, seed):
    sent = messages(30, seed)
    for end in range(5, len(sent) + 1):  # ends between a call and its result too
        text = body(sent[:end], tools=TOOLS)
        assert read(known, text) == read_alone(text)
    assert shared(known, text) == len(sent)


@pytest.mark.parametrize("seed", range(20))
def test_a_conversation_that_changes_is_parsed_as_without_memory(known, seed):
    draw = random.Random(seed)
    sent = messages(20, seed)
    for _ in range(20):
        place = draw.randrange(len(sent))
        match draw.randrange(5):
            case 0 if isinstance(sent[place], dict):
                sent[place] = sent[place] | {"cache_control": {"type": "ephemeral"}}
            case 1:
                del sent[place]
            case 2:
                sent.insert(place, {"role": "user", "content": "between"})
            case 3:
                sent[place] = draw.choice([1, None, {}, {"role": "user", "content": [{}]}])
            case 4:
                sent = messages(20, draw.choice([seed, seed + 1]))
        text = body(sent, **draw.choice([{}, {"tools": TOOLS}, {"temperature": 0.5}]))
        assert read(known, text) == read_alone(text)


def test_messages_before_a_change_are_taken_over(known):
    sent = messages(30)
    read(known, body(sent))
    changed = [*sent[:-3], *[item | {"cache_control": {"type": "y"}} for item in sent[-3:]]]
    assert shared(known, body(changed)) == len(sent) - 3


def grown(text: bytes, more: str) -> bytes:
    """Return a body with other text in place of its last two brackets."""
    return text.removesuffix(b"]}") + more.encode()


NEXT = '{"role": "user", "content": "next"}'


@pytest.mark.parametrize(
    "more",
    [
        f", {NEXT}]}}",
        f', {NEXT}], "messages": [{NEXT}]}}',  # the last one counts
        f'], "messages": [NaN, {NEXT}]}}',
        ", NaN]}",
        f", {NEXT}",  # cut off
        f" {NEXT}]}}",  # no comma
        "x]}",
        "]} more",
        ', {"role": "user", "content": "\\ud83d\\ude00 \\ud800"}]}',
        ', {"role": "user", "content": 1e999}]}',
        ", " + "[" * 500 + "]" * 500 + "]}",
        ', {"role": "user", "content": "x", "n": ' + "1" * 5_000 + "}]}",
        '], "stream": 1}',
        '], "messages": null}',
    ],
)
def test_whatever_follows_is_read_as_without_memory(known, more):
    text = body(messages(30))
    assert isinstance(read(known, text)[0], dict)
    text = grown(text, more)
    assert read(known, text) == read_alone(text)


@pytest.mark.parametrize("change", [{"json_depth": 3}, {"json_values": 100}, {"int_digits": 1}])
def test_limits_count_for_what_is_known(known, change):
    text = body([*messages(30), {"role": "user", "content": "x", "number": 12, "deep": [[[1]]]}])
    read(known, text)
    limits = replace(Limits(), **change)
    assert read(known, text, limits) == read_alone(text, limits)
    assert isinstance(read(known, text, limits)[0], type)


def test_the_number_of_values_is_that_of_the_whole_body(known):
    sent = messages(30)
    text = body(sent)
    read(known, text)
    most = payload.count_values(text, 10**9)
    for limit in (most, most - 1, most - 200):
        limits = replace(Limits(), json_values=limit)
        known = KnownBodies(threading.Lock())
        read(known, body(sent[:-10]), limits)
        assert read(known, text, limits) == read_alone(text, limits)


def test_bytes_that_are_no_utf_8_are_refused_after_what_is_known(known):
    text = body(messages(30))
    read(known, text)
    wrong = text.removesuffix(b"]}") + b', "\xff"]}'
    assert read(known, wrong) == read_alone(wrong)


def test_what_is_kept_is_bounded():
    small = KnownBodies(threading.Lock(), 1_000_000)
    for seed in range(5):
        read(small, body(messages(10, seed)))
    assert 0 < small._known.size_bytes <= 1_000_000
    assert known_bodies.MAX_KNOWN_BYTES <= 64 * 2**20


def test_members_of_an_object_after_the_conversation_are_no_messages(known):
    more = b', "metadata": {"a": 1, "b": "' + b"x" * 70_000 + b'"}}'
    text = body(messages(10)).removesuffix(b"}") + more
    wrong = text.replace(b', "b": ', b', {"role": "user", "content": "no"}], "b": ')[:-1]
    assert read(known, text) == read_alone(text)
    assert read(known, wrong) == read_alone(wrong)
    assert read_alone(wrong)[0] is InvalidRequest
