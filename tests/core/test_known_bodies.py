"""A body that begins as an earlier one is parsed as if none had come before."""

from __future__ import annotations

import codecs
import json
import random
import threading
from dataclasses import replace
from typing import Any

import pytest

from llmproxy.core import known_bodies, payload
from llmproxy.core.errors import InvalidRequest, Unsupported
from llmproxy.core.fingerprints import request_key
from llmproxy.core.known_bodies import KnownBodies
from llmproxy.core.limits import Limits
from llmproxy.core.message_facts import keep_facts
from llmproxy.dialects import DIALECTS, by_name

PIXEL = "iVBORw0KGgo="
SYSTEM = "Ünïcode 漢字 " + "s" * 70_000


@pytest.fixture
def known():
    return KnownBodies(threading.Lock())


@pytest.fixture(params=[dialect.NAME for dialect in DIALECTS])
def dialect(request):
    return by_name(request.param)


def chat(i: int, seed: int) -> list[list[Any]]:
    """Return what may come next in a conversation."""
    call = {"id": f"c{seed}_{i}", "type": "function"}
    call["function"] = {"name": "run", "arguments": json.dumps({"n": [i, 1.5, seed]})}
    url = f"data:image/png;base64,{PIXEL}"
    image = {"type": "image_url", "image_url": {"url": url, "detail": "low"}}
    return [
        [{"role": "user", "content": f'question {i}, "quoted" \\ {seed}'}],
        [{"role": "user", "name": "me", "content": [{"type": "text", "text": "?"}, image]}],
        [{"role": "assistant", "content": f"answer {i}", "odd": {"deep": [[i]]}}],
        [{"role": "assistant", "content": "", "cache_control": {"type": "x"}}],
        [{"role": "system", "content": None, "tools": [{"type": "function", "function": {
            "name": f"more{i}", "parameters": {}}}]}],
        [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call["id"], "content": f"result {i}"},
        ],
    ]  # fmt: skip


def anthropic(i: int, seed: int) -> list[list[Any]]:
    source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
    image = {"type": "image", "source": source}
    mark = {"cache_control": {"type": "ephemeral"}}
    calls = [
        {"type": "tool_use", "id": f"c{seed}_{i}_{n}", "name": "run", "input": {"n": [i, n, 1.5]}}
        for n in range(2)
    ]
    results = [
        {"type": "tool_result", "tool_use_id": call["id"], "content": [image, {"type": "odd"}]}
        for call in calls
    ]
    text = {"type": "text", "text": f"and {i} {seed}", "citations": [{}]}
    thinking = {"type": "thinking", "thinking": "hm", "signature": "s"}
    search = {"type": "server_tool_use", "id": f"s{i}", "name": "web_search", "input": {"q": "x"}}
    found = {"type": "web_search_tool_result", "tool_use_id": f"s{i - i % 2}", "content": [mark]}
    removal = {"type": "tool_removal", "tool": {"type": "tool_reference", "name": f"more{i}"}}
    return [
        [{"role": "user", "content": f"question {i} {seed}"}],
        [{"role": "user", "content": [text | mark, image, {"type": "odd", "text": "odd"}]}],
        [{"role": "assistant", "content": [thinking, text]}],
        [{"role": "assistant", "content": [search, found]}],
        [{"role": "assistant", "content": [found]}],
        [{"role": "system", "content": [removal, {"type": "text", "text": "note"}]}],
        [
            {"role": "assistant", "content": [thinking, *calls]},
            {"role": "user", "content": results[:1]},
            {"role": "user", "content": [results[1], text]},
        ],
        [
            {"role": "assistant", "content": calls[:1]},
            {"role": "user", "content": results[:1]},
        ],
    ]


def responses(i: int, seed: int) -> list[list[Any]]:
    image = {"type": "input_image", "image_url": f"data:image/png;base64,{PIXEL}"}
    ids = [f"c{seed}_{i}_{n}" for n in range(2)]
    arguments = json.dumps({"n": [i, 1.5, seed]})
    calls = [
        {"type": "function_call", "name": "run", "arguments": arguments, "call_id": id}
        for id in ids
    ]
    results: list[Any] = [
        {"type": "function_call_output", "call_id": id, "output": f"result {i}"} for id in ids
    ]
    files = results[0] | {"output": [image, {"type": "input_text", "text": "seen"}]}
    user = {"role": "user", "content": f"question {i} {seed}"}
    tool = {"type": "function", "name": f"more{i}", "parameters": {}}
    return [
        [user],
        [{"role": "user", "content": [image, {"type": "odd", "text": "odd"}]}],
        [{"role": "assistant", "content": [{"type": "output_text", "text": f"answer {i}"}]}],
        [{"type": "reasoning", "summary": [], "encrypted_content": f"enc{i}", "id": "rs_1"}],
        [{"type": "web_search_call", "id": f"ws_{i}", "status": "completed", "action": {"q": 1}}],
        [{"type": "additional_tools", "role": "developer", "tools": [tool]}],
        [{"type": "odd", "text": "odd"}],
        [*calls, *results],
        [calls[0], results[0], calls[1], user, results[1]],
        [calls[0], files, results[0], files],  # a result in pieces
        [calls[0], results[0]],
        [calls[0], results[0], user, results[0]],
    ]


def ollama(i: int, seed: int) -> list[list[Any]]:
    call = {"function": {"name": "run", "arguments": {"n": [i, 1.5, seed]}}}
    named = {"id": f"c{seed}_{i}"} | call
    return [
        [{"role": "user", "content": f"question {i} {seed}", "images": [PIXEL]}],
        [{"role": "assistant", "content": f"answer {i}", "thinking": "hm"}],
        [{"role": "system", "content": "note", "images": [PIXEL]}],
        [
            {"role": "assistant", "content": "", "tool_calls": [call, call]},
            {"role": "tool", "content": f"result {i}", "tool_name": "run"},
            {"role": "tool", "content": f"result {i}", "images": [PIXEL]},
        ],
        [
            {"role": "assistant", "content": "", "tool_calls": [named]},
            {"role": "tool", "content": f"result {i}", "tool_call_id": f"c{seed}_{i}"},
        ],
    ]


NEXT_OF = {
    "openai_chat": chat,
    "anthropic_messages": anthropic,
    "openai_responses": responses,
    "ollama": ollama,
}


def messages(dialect: Any, count: int, seed: int = 1) -> list[Any]:
    """Return a conversation that is long enough to be remembered, with all that may be in one."""
    draw = random.Random(seed)
    made: list[Any] = [{"role": "system", "content": SYSTEM}]
    for i in range(count):
        made += draw.choice(NEXT_OF[dialect.NAME](i, seed))
    return [*made, {"role": "user", "content": "go on"}]


def body(dialect: Any, items: list[Any], **others: Any) -> bytes:
    values = {"model": "m", **others, dialect.CONVERSATION: items}
    return json.dumps(values, ensure_ascii=False).encode()


def read(known: KnownBodies, dialect: Any, text: bytes, limits: Limits = Limits()) -> Any:
    """Return all that comes of a body, or its error; and remember it as the app does."""
    try:
        parsed = known.parse(text, limits, dialect.NAME, dialect.CONVERSATION)
        request = dialect.parse_request(parsed.value, {}, parsed.memory)
        key = request_key(request, parsed.memory.hashed if parsed.memory else None)
        body = parsed.normalized(dialect.normalize_body)
        keep_facts(request.messages)
        known.remember(parsed, dialect.NAME)
        return parsed.value, body, request, request.echo, key
    except (InvalidRequest, Unsupported) as error:
        return type(error), error.message, error.param


def read_alone(dialect: Any, text: bytes, limits: Limits = Limits()) -> Any:
    try:
        value = payload.parse(text, limits)
        request = dialect.parse_request(value, {})
        return value, dialect.normalize_body(value), request, request.echo, request_key(request)
    except (InvalidRequest, Unsupported) as error:
        return type(error), error.message, error.param


def shared(known: KnownBodies, dialect: Any, text: bytes) -> int:
    """Return how many messages of a body are taken over."""
    memory = known.parse(text, Limits(), dialect.NAME, dialect.CONVERSATION).memory
    return len(memory.loaded) if memory is not None else 0


@pytest.mark.parametrize("seed", range(12))
def test_a_conversation_that_grows_is_parsed_as_without_memory(known, dialect, seed):
    sent = messages(dialect, 30, seed)
    for end in range(5, len(sent) + 1):  # ends between a call and its result too
        text = body(dialect, sent[:end], temperature=0.5)
        assert read(known, dialect, text) == read_alone(dialect, text)
        if end < len(sent):  # another way to go on
            other = body(dialect, [*sent[:end], *sent[1:4]])
            assert read(known, dialect, other) == read_alone(dialect, other)
    assert shared(known, dialect, text) == len(sent)


@pytest.mark.parametrize("seed", range(20))
def test_a_conversation_that_changes_is_parsed_as_without_memory(known, dialect, seed):
    draw = random.Random(seed)
    sent = messages(dialect, 20, seed)
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
                sent = messages(dialect, 20, draw.choice([seed, seed + 1]))
        others = [{}, {"top_p": 0.5}, {"system": "be short"}, {"instructions": "be short"}]
        text = body(dialect, sent, **draw.choice(others))
        assert read(known, dialect, text) == read_alone(dialect, text)


def test_messages_before_a_change_are_taken_over(known, dialect):
    sent = messages(dialect, 30)
    read(known, dialect, body(dialect, sent))
    changed = [*sent[:-3], *[item | {"cache_control": {"type": "y"}} for item in sent[-3:]]]
    assert shared(known, dialect, body(dialect, changed)) == len(sent) - 3


@pytest.mark.parametrize(
    "head",
    [
        b'{"model": "other", "temperature": 0.5, ',
        b'{"messages": 1, "input": [], "model": "m", ',
        b'{"metadata": {"messages": [{"role": "user"}], "input": [NaN]}, "model": "m", ',
        b'{"instructions": "\\"messages\\": [], \\"input\\": [", "model": "m", ',
        b'{"instructions": "\\ud83d\\ude00", "model": "m", ',
        b'{"model": NaN, ',
        b'{"model": ["messages": [ ',
        b"[",
    ],
)
def test_whatever_precedes_is_read_as_without_memory(known, dialect, head):
    text = body(dialect, messages(dialect, 30))
    assert isinstance(read(known, dialect, text)[0], dict)
    text = text.replace(b'{"model": "m", ', head, 1)
    assert read(known, dialect, text) == read_alone(dialect, text)


@pytest.mark.parametrize("marks", [1, 2])
def test_byte_order_marks_are_read_as_without_memory(known, dialect, marks):
    text = body(dialect, messages(dialect, 30))
    for before in (b"", codecs.BOM_UTF8 * marks, b""):
        sent = before + text
        assert read(known, dialect, sent) == read_alone(dialect, sent)


def test_a_conversation_is_found_after_another_head(known, dialect):
    sent = messages(dialect, 30)
    read(known, dialect, body(dialect, sent))
    assert shared(known, dialect, body(dialect, sent, temperature=0.5)) == len(sent)


def test_later_requests_leave_the_messages_of_earlier_ones_as_they_are(known, dialect):
    sent = messages(dialect, 30)
    earlier = []
    for end in range(2, len(sent)):
        for more in (sent[2:3], []):
            found = read(known, dialect, body(dialect, [*sent[:end], *more]))
            if len(found) == 5:
                earlier.append((found[2].messages, repr(found[2].messages)))
    assert earlier
    for before, told in earlier:
        assert repr(before) == told


@pytest.mark.parametrize("number", ["1.0", "true", "-0.0"])
def test_instructions_that_only_look_equal_are_others(known, number):
    dialect = by_name("openai_responses")
    sent = messages(dialect, 10)
    call = {"type": "function_call", "name": "run", "call_id": "c", "arguments": {"n": 1}}
    result = {"type": "function_call_output", "call_id": "c", "output": ""}
    text = body(dialect, sent, instructions=[call, result])
    read(known, dialect, text)
    text = text.replace(b'{"n": 1}', b'{"n": %b}' % number.encode())
    assert repr(read(known, dialect, text)) == repr(read_alone(dialect, text))


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
def test_whatever_follows_is_read_as_without_memory(known, dialect, more):
    text = body(dialect, messages(dialect, 30))
    assert isinstance(read(known, dialect, text)[0], dict)
    text = grown(text, more.replace('"messages"', f'"{dialect.CONVERSATION}"'))
    assert read(known, dialect, text) == read_alone(dialect, text)


@pytest.mark.parametrize("change", [{"json_depth": 3}, {"json_values": 100}, {"int_digits": 1}])
def test_limits_count_for_what_is_known(known, dialect, change):
    text = body(
        dialect,
        [*messages(dialect, 30), {"role": "user", "content": "x", "number": 12, "deep": [[[1]]]}],
    )
    read(known, dialect, text)
    limits = replace(Limits(), **change)
    assert read(known, dialect, text, limits) == read_alone(dialect, text, limits)
    assert isinstance(read(known, dialect, text, limits)[0], type)


def test_the_number_of_values_is_that_of_the_whole_body(known, dialect):
    sent = messages(dialect, 30)
    text = body(dialect, sent)
    read(known, dialect, text)
    most = payload.count_values(text, 10**9)
    for limit in (most, most - 1, most - 200):
        limits = replace(Limits(), json_values=limit)
        known = KnownBodies(threading.Lock())
        read(known, dialect, body(dialect, sent[:-10]), limits)
        assert read(known, dialect, text, limits) == read_alone(dialect, text, limits)


def test_bytes_that_are_no_utf_8_are_refused_after_what_is_known(known, dialect):
    text = body(dialect, messages(dialect, 30))
    read(known, dialect, text)
    wrong = text.removesuffix(b"]}") + b', "\xff"]}'
    assert read(known, dialect, wrong) == read_alone(dialect, wrong)


def test_what_is_kept_is_bounded(dialect):
    small = KnownBodies(threading.Lock(), 1_000_000)
    for seed in range(5):
        read(small, dialect, body(dialect, messages(dialect, 10, seed)))
    assert 0 < small._known.size_bytes <= 1_000_000
    assert known_bodies.MAX_KNOWN_BYTES <= 64 * 2**20


def test_members_of_an_object_after_the_conversation_are_no_messages(known, dialect):
    more = b', "metadata": {"a": 1, "b": "' + b"x" * 70_000 + b'"}}'
    text = body(dialect, messages(dialect, 10)).removesuffix(b"}") + more
    wrong = text.replace(b', "b": ', b', {"role": "user", "content": "no"}], "b": ')[:-1]
    assert read(known, dialect, text) == read_alone(dialect, text)
    assert read(known, dialect, wrong) == read_alone(dialect, wrong)
    assert read_alone(dialect, wrong)[0] is InvalidRequest
