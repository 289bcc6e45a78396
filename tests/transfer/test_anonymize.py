from __future__ import annotations

import json
import re
from operator import attrgetter

import llm
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llm.parts import Message, TextPart, ToolResultPart

from llmproxy.core import attachments, chat, payload
from llmproxy.dialects import ollama, openai_responses
from llmproxy.recorder import timeline
from llmproxy.recorder.exchange import Turn, begun, encode, from_json, to_json
from llmproxy.transfer.anonymize import (
    ASTRAL_X,
    _anonymize_arguments,
    _free,
    _known,
    anonymize,
    placeholder,
)
from llmproxy.transfer.jsonl import decode
from tests.examples import many_examples
from tests.log_fixtures import ended_as
from tests.recorder.test_exchange import RECEIVED
from tests.strategies import ARGUMENT_ODDITIES, argument_texts, json_objects, texts
from tests.transfer.test_jsonl import exchanges
from tests.wire_cases import wire_cases


def test_letters_and_digits_are_replaced_and_nothing_else():
    text = "Dear Mr. Müller,\n\tyour PIN is «4711»!  $5 渐🌊 e\u0301\u2028ok"
    assert placeholder(text) == (
        f"xxxx xx. xxxxxx,\n\txxxx xxx xx «0000»!  $0 x{ASTRAL_X} xx\u2028xx"
    )


@given(texts())
def test_a_text_keeps_its_length_in_every_encoding(text):
    assert len(placeholder(text)) == len(text)
    assert len(placeholder(text).encode("utf-16")) == len(text.encode("utf-16"))
    assert placeholder(placeholder(text)) == placeholder(text)


@given(argument_texts())
def test_raw_arguments_stay_json_of_the_same_shape_and_length(text):
    assert len(_anonymize_arguments(text)) == len(text)
    assert chat.parse_arguments(_anonymize_arguments(text)) == _free(chat.parse_arguments(text))


@pytest.mark.parametrize("text", ARGUMENT_ODDITIES)
def test_arguments_that_are_hardly_json_are_anonymized_as_they_are_read(text):
    assert chat.parse_arguments(_anonymize_arguments(text)) == _free(chat.parse_arguments(text))


ESCAPES = [r"\u00e9", r"\u0041", r"\u0037", r"\ud83c\udf0a", r"\ud800", r"\n", r"\"", r"\\", r"\/"]


@given(st.lists(st.sampled_from([*ESCAPES, "ab", "🌊", " ", "7", ":", r"\\\""]), max_size=8))
def test_escapes_in_raw_arguments_stay_escapes(pieces):
    value = "".join(pieces)
    text = f'{{"{value}" : "{value}", "{value}2": ["{value}", 12.5e3, {{"k":"{value}"}}]}}'
    assert chat.parse_arguments(text) != {"_raw": text}
    assert len(_anonymize_arguments(text)) == len(text)
    assert chat.parse_arguments(_anonymize_arguments(text)) == _free(chat.parse_arguments(text))


def test_members_and_numbers_of_raw_arguments_stay():
    text = '{"city": "Oslo", "days": 12, "tags": ["a1", true, null]}'
    assert _anonymize_arguments(text) == '{"city": "xxxx", "days": 12, "tags": ["x0", true, null]}'


BODY = {
    "model": "gpt-4o",
    "user": "secretuser",
    "stop": ["SECRETSTOP"],
    "max_tokens": 4711,
    "reasoning_effort": "high",
    "metadata": {"user_id": "secretid", "id": "secretid", "type": "secrettype"},
    "messages": [
        {"role": "user", "name": "Secretname", "content": "secret words"},
        {"role": "user", "content": [
            {"type": "text", "text": "secret words"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,c2VjcmV0=="}},
            {"type": "image_url", "image_url": {"url": "https://secret.example/secret.png"}},
            {"type": "image", "source": {
                "type": "base64", "media_type": "image/png", "data": "c2VjcmV0c2VjcmV0"}},
            {"type": "document", "title": "secrettitle", "source": {
                "type": "text", "media_type": "text/plain", "data": "secretdata"}},
        ]},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "call_1", "type": "function",
             "function": {"name": "look_up", "arguments": '{"name": "Secretname\\u0041"}'}},
        ]},
        {"role": "assistant", "content": [
            {"type": "tool_use", "id": "toolu_1", "name": "look_up",
             "input": {"name": "Secretname", "id": "secretid"}},
            {"type": "thinking", "thinking": "secret", "signature": "SecretSignature123=="},
        ]},
        {"role": "tool", "tool_call_id": "call_1", "content": "secret result"},
    ],
    "tools": [
        {"type": "function", "function": {
            "name": "look_up", "description": "secret description", "parameters": {
                "type": "object", "required": ["name"], "properties": {
                    "name": {"type": "string", "description": "secret", "enum": ["secretenum"]}}}}},
    ],
}  # fmt: skip

FILLED_BODY = {
    "model": "gpt-4o",
    "user": "xxxxxxxxxx",
    "stop": ["xxxxxxxxxx"],
    "max_tokens": 4711,
    "reasoning_effort": "high",
    "metadata": {"user_id": "xxxxxxxx", "id": "xxxxxxxx", "type": "xxxxxxxxxx"},
    "messages": [
        {"role": "user", "name": "xxxxxxxxxx", "content": "xxxxxx xxxxx"},
        {"role": "user", "content": [
            {"type": "text", "text": "xxxxxx xxxxx"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAAAAAA=="}},
            {"type": "image_url", "image_url": {"url": "https://xxxxxx.xxxxxxx/xxxxxx.xxx"}},
            {"type": "image", "source": {
                "type": "base64", "media_type": "image/png", "data": "AAAAAAAAAAAAAAAA"}},
            {"type": "document", "title": "xxxxxxxxxxx", "source": {
                "type": "text", "media_type": "text/plain", "data": "xxxxxxxxxx"}},
        ]},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "call_1", "type": "function",
             "function": {"name": "look_up", "arguments": '{"name": "xxxxxxxxxx\\u0078"}'}},
        ]},
        {"role": "assistant", "content": [
            {"type": "tool_use", "id": "toolu_1", "name": "look_up",
             "input": {"name": "xxxxxxxxxx", "id": "xxxxxxxx"}},
            {"type": "thinking", "thinking": "xxxxxx", "signature": "xxxxxxxxxxxxxxx000=="},
        ]},
        {"role": "tool", "tool_call_id": "call_1", "content": "xxxxxx xxxxxx"},
    ],
    "tools": [
        {"type": "function", "function": {
            "name": "look_up", "description": "xxxxxx xxxxxxxxxxx", "parameters": {
                "type": "object", "required": ["name"], "properties": {
                    "name": {"type": "string", "description": "xxxxxx", "enum": ["xxxxxxxxxx"]}}}}},
    ],
}  # fmt: skip


def test_only_a_requests_structure_stays():
    headers = [
        ("user-agent", "tests/1"),
        ("x-title", "Secret Title"),
        ("content-type", "application/json"),
    ]
    exchange = begun(
        "01jd1",
        RECEIVED,
        dialect="openai_chat",
        path="/v1/chat/completions",
        query="beta=true&note=secr%C3%A9t",
        client="tests",
        headers=headers,
        body=BODY,
        messages=[llm.user("secret words")],
        replay_key="abc",
    )
    got = anonymize(exchange)
    assert got.request.body == FILLED_BODY
    assert got.request.headers == {
        "user-agent": "tests/1",
        "x-title": "xxxxxx xxxxx",
        "content-type": "application/json",
    }
    assert got.request.query == "beta=xxxx&note=xxxx%78%78x"
    assert (got.first_words, got.replay_key) == ("xxxxxx xxxxx", None)


def test_a_text_body_is_anonymized_too():
    exchange = begun(
        "01jd1", RECEIVED, dialect="d", path="/", query="", client="c", headers=(), body="secret {"
    )
    assert anonymize(exchange).request.body == "xxxxxx {"


def test_attachments_become_zero_bytes_of_their_type_and_urls_placeholders():
    picture = llm.Attachment(type="image/png", content=b"\x89PNG\r\n\x1a\nsecret")
    far = attachments.attachment_from_url("https://secret.example/secret.png")
    result = ToolResultPart("look", "secret", "c1", exception="Secret: 1", attachments=[picture])
    turn = Turn(
        "01jd1", "01jd1", "m",
        [llm.user(picture, far), Message("tool", [result])],
        [], RECEIVED, 1,
    )  # fmt: skip
    exchange = ended_as(
        begun("01jd1", RECEIVED, dialect="d", path="/", query="", client="c", headers=(), body={}),
        "error",
        http_status=500,
        duration_ms=1.0,
        turn=turn,
        error="secret 500",
    )
    got = anonymize(exchange)
    zeros = llm.Attachment(type="image/png", content=bytes(14))
    address = attachments.RemoteAttachment(
        type="image/png", url="https://xxxxxx.xxxxxxx/xxxxxx.xxx"
    )
    assert got.turn.messages == [
        llm.user(zeros, address),
        Message(
            "tool",
            [ToolResultPart("look", "xxxxxx", "c1", exception="xxxxxx: 0", attachments=[zeros])],
        ),
    ]
    assert got.error == "xxxxxx 000"
    assert exchange.turn.messages[0].parts[0].attachment is picture


def shape(value, name=""):
    """Replace texts by their lengths; keep everything else."""
    match value:
        case dict():
            return {key: shape(member, key) for key, member in value.items()}
        case list():
            return [shape(item) for item in value]
        case str() if name not in ("replay_key",):
            return len(value)
        case _:
            return value if name != "replay_key" else None


@many_examples(15)
@given(exchanges())
def test_shape_lengths_and_timing_stay(exchange):
    got = anonymize(exchange)
    form, was = to_json(got), to_json(exchange)
    assert shape(form) == shape(was)
    assert form["timeline"]["ticks"] == was["timeline"]["ticks"]
    assert to_json(decode(encode(got))) == to_json(got)
    assert [at for at, _ in got.events] == [at for at, _ in exchange.events]
    if got.turn is not None:
        events = timeline.decode(form["timeline"], got.turn.reply)
        assert chat.collect(event for _, event in events).messages == got.turn.reply
    assert anonymize(got) == got


SECRETS = st.from_regex(r"(?:QUX|qux|Qux)[a-z]{2,6}[0-9]?", fullmatch=True)


@st.composite
def said(draw):
    """Objects of any structure in which every text is a secret."""
    values = st.recursive(
        SECRETS | st.integers() | st.booleans(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["a", "name", "id", "type", "url", "data"]), inner)
        ),
        max_leaves=6,
    )
    return draw(st.dictionaries(st.sampled_from(["a", "name", "id", "type"]), values, max_size=3))


@settings(max_examples=15)
@given(SECRETS, said(), st.sampled_from([None, 2]))
def test_no_word_of_what_was_said_is_left(secret, arguments, indent):
    raw = json.dumps(arguments, indent=indent)
    events = [
        chat.StreamEvent("reasoning", secret, 0, provider_metadata={"a": {"signature": secret}}),
        chat.StreamEvent("text", secret, 1),
        chat.StreamEvent("tool_call_name", "look_up", 2, "c1"),
        *(
            chat.StreamEvent("tool_call_args", raw[i : i + 3], 2, "c1")
            for i in range(0, len(raw), 3)
        ),
    ]
    answer = chat.collect(events)
    turn = Turn(
        id="01jd0000000000000000000001",
        thread_id="01jd0000000000000000000001",
        model="demo",
        messages=[
            llm.system(secret),
            llm.user(secret, llm.Attachment(type="text/plain", content=secret.encode())),
            llm.assistant(llm.parts.ToolCallPart("look_up", arguments, "c0")),
            Message(
                "tool", [ToolResultPart("look_up", secret, "c0", exception=secret)], {"a": secret}
            ),
        ],
        reply=answer.messages,
        started=RECEIVED,
        duration_ms=1,
        options={"stop_sequences": [secret], "user": secret},
        tools=(llm.Tool("look_up", secret, {"properties": {"a": {"description": secret}}}),),
        schema={"title": secret, "properties": {"a": {"enum": [secret], "default": secret}}},
        usage=llm.Usage(1, 2, {"note": secret}),
        response_json={"choices": [{"message": {"content": secret}}], "fingerprint": secret},
    )
    exchange = ended_as(begun(
        turn.id, RECEIVED, dialect="openai_chat", path="/v1", query=f"q={secret}", client="tests",
        headers=[("x-title", secret)],
        body={"system": [{"type": "text", "text": secret}], "messages": [{"content": secret}],
              "metadata": {"user_id": secret}, "anything": {"else": [secret]}},
        messages=turn.messages,
    ), "ok", http_status=200, duration_ms=1.0, turn=turn, error=secret,
        events=[(1.0, event) for event in events], finish=chat.Finish("stop", secret),
    )  # fmt: skip
    text = encode(anonymize(exchange)).decode()
    assert secret.lower() in encode(exchange).decode().lower()
    assert not re.search("qux", text, re.IGNORECASE)


@given(json_objects)
def test_an_object_in_free_text_is_valid_after(value):
    text = payload.encode(value).decode()
    assert len(_anonymize_arguments(text)) == len(text)
    json.loads(_anonymize_arguments(text))


@pytest.mark.parametrize("text", ['{"a": １}', "{'a': 1}", '{"a": tru', "[1]", "null", "１"])
def test_other_text_than_an_object_does_not_become_one(text):
    assert chat.parse_arguments(_anonymize_arguments(text)) == {"_raw": placeholder(text)}


def test_an_anonymized_exchange_reads_back():
    exchange = begun(
        "01jd1", RECEIVED, dialect="d", path="/", query="", client="c", headers=(), body=[1, "a"]
    )
    assert from_json(to_json(anonymize(exchange))) == anonymize(exchange)


def test_a_title_that_a_client_gives_itself_is_anonymized():
    facts = {"dialect": "d", "path": "/", "query": "", "body": {}}
    titled = begun(
        "01jd1",
        RECEIVED,
        client="Secret Falcon 7",
        headers=[("x-title", "Secret Falcon 7")],
        **facts,
    )
    assert anonymize(titled).client == "xxxxxx xxxxxx 0"
    assert "Falcon" not in encode(anonymize(titled)).decode()
    plain = begun("01jd1", RECEIVED, client="curl", headers=[("user-agent", "curl/8")], **facts)
    assert anonymize(plain).client == "curl"


@pytest.mark.parametrize("case", wire_cases("openai_responses"), ids=attrgetter("name"))
def test_an_anonymized_responses_request_is_one_of_the_same_shape(case):
    """Its items, ids and tools stay, also in what stands for a compacted conversation."""
    body = _known(case.request)
    before, after = map(openai_responses.parse_request, (case.request, body))
    assert [m.role for m in after.messages] == [m.role for m in before.messages]
    assert [[type(p) for p in m.parts] for m in after.messages] == [
        [type(p) for p in m.parts] for m in before.messages
    ]
    assert [tool.name for tool in after.tools] == [tool.name for tool in before.tools]
    assert (after.tool_choice, set(after.options)) == (before.tool_choice, set(before.options))
    texts = [p.text for m in after.messages for p in m.parts if isinstance(p, TextPart)]
    assert not any("boats" in text.lower() for text in texts)


@pytest.mark.parametrize("case", wire_cases("ollama"), ids=attrgetter("name"))
def test_an_anonymized_request_of_ollamas_means_the_same_but_for_its_texts(case):
    body = _known(case.request)
    before, after = (ollama.parse_request(one) for one in (case.request, body))
    for name in ("model", "form", "stream", "options", "counted_calls", "ignored"):
        if name != "options" or "stop_sequences" not in before.options:
            assert getattr(after, name) == getattr(before, name), name
    assert after.schema is None or after.schema.keys() == before.schema.keys()
    kinds = [
        [a.type for m in r.messages for a in attachments.find_attachments(m)]
        for r in (before, after)
    ]
    assert kinds[0] == kinds[1]
    shapes = [[[type(part) for part in m.parts] for m in r.messages] for r in (before, after)]
    assert shapes[0] == shapes[1]
    names = [
        [getattr(part, "name", None) for m in r.messages for part in m.parts]
        for r in (before, after)
    ]
    assert names[0] == names[1]
    said = {w for w in re.findall(r"[A-Z][a-z]+", str(before.messages)) if len(w) > 3}
    assert not {w for w in said if w in json.dumps(body["messages"] if "messages" in body else {})}
