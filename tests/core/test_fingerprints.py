from __future__ import annotations

import json
import time
from dataclasses import replace

import llm
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm.parts import Message, ReasoningPart, TextPart, ToolCallPart, ToolResultPart

from llmproxy.core.fingerprints import (
    Histories,
    digest_of,
    replies,
    reply_of,
    request_key,
    request_keys,
)
from llmproxy.core.message_diff import Difference, first_difference
from llmproxy.core.message_facts import keep_facts
from llmproxy.dialects import anthropic_messages, openai_chat
from tests import strategies
from tests.examples import many_examples

LONG = "An answer that nobody gives twice by chance."


def call(arguments, id="call_1", name="weather", **fields):
    return ToolCallPart(name, arguments, tool_call_id=id, **fields)


def key_of(*parts):
    return reply_of([llm.user("q")], [Message("assistant", list(parts))])


SIGNED = {"anthropic": {"signature": "s"}}


@pytest.mark.parametrize(
    "said, echoed",
    [
        ([TextPart("a b")], [TextPart(" a b\n")]),
        ([TextPart("a "), TextPart("b")], [TextPart("a b")]),
        ([ReasoningPart("hm", provider_metadata=SIGNED), TextPart("a")], [TextPart("a")]),
        ([TextPart("a", provider_metadata=SIGNED)], [TextPart("a")]),
        ([TextPart("a"), call({}), TextPart(" ")], [TextPart("a"), call({})]),  # d6.25
        ([call({"n": 1.0, "m": [1e3]})], [call({"m": [1000], "n": 1})]),
        ([call({"n": -0.0})], [call({"n": 0})]),
        ([call({"n": 12345678901234567890})], [call({"n": 12345678901234567000})]),
        ([call({}, server_executed=True), TextPart("a")], [TextPart("a")]),
    ],
    ids=[
        "white space", "parts joined", "no reasoning", "no metadata", "blank text",
        "JavaScript's numbers", "minus zero", "past 2^53", "the provider's own call",
    ],
)  # fmt: skip
def test_what_a_client_sends_again_has_the_same_key(said, echoed):
    assert key_of(*said) == key_of(*echoed)


@pytest.mark.parametrize(
    "one, other",
    [
        ([TextPart("a")], [TextPart("A")]),
        ([TextPart("a b")], [TextPart("ab")]),
        ([call({"n": 1})], [call({"n": 2})]),
        ([call({"n": 1})], [call({"n": True})]),
        ([call({"n": 1})], [call({"n": "1.0"})]),
        ([call({}, id="call_1")], [call({}, id="call_2")]),
        ([call({}, name="a")], [call({}, name="b")]),
        ([call({}), call({}, id="call_2")], [call({})]),
        ([call({"a": {"b": 1}})], [call({"a": [["b", 1]]})]),
        ([call({"n": 10**400})], [call({"n": 10**401})]),
    ],
)
def test_different_content_has_a_different_key(one, other):
    assert key_of(*one).key != key_of(*other).key


def test_what_shows_nothing_is_no_reply():
    assert key_of(ReasoningPart("hm")) is None
    assert key_of(TextPart(" \n")) is None
    assert replies([llm.user("q"), Message("assistant", [TextPart(" ")])]) == []


def test_many_replies_in_a_row_are_read_in_no_time():
    """As one reply they took fifteen seconds, which is longer than any request waits."""
    messages = [llm.assistant(f"{LONG} {number}" * 20) for number in range(2_000)]
    began = time.process_time()
    assert len(replies(messages)) == 2_000
    assert time.process_time() - began < 3
    edited = replies([llm.assistant("another"), *messages[1:]])
    assert edited[-1].history_key != replies(messages)[-1].history_key


@pytest.mark.parametrize(
    "part, trivial",
    [
        (TextPart("ok"), True),
        (TextPart("- - - - - - - - - - - - - - - - - - - - - - - -"), True),
        (TextPart("- " * 40), False),
        (TextPart(LONG), False),
        (call({}), False),
        (call({}, id="call_0"), False),
    ],
)
def test_short_words_alone_are_trivial(part, trivial):
    assert key_of(part).is_trivial is trivial


@pytest.mark.parametrize(
    "id, tells",
    [
        ("toolu_01A09q90qw90lq917835lq9", True),
        ("call_8f3c0d2b9a61", True),
        ("chatcmpl-tool-2f1e8a4b6c", True),
        ("D681PevKs", True),
        ("550e8400-e29b-41d4-a716-446655440000", True),
        ("call_0", False),
        ("call_3_12", False),
        ("functions.read_file:0", False),
        ("call12", False),
        ("7", False),
        ("", False),
    ],
)
def test_ids_that_are_counters_do_not_identify_a_conversation(id, tells):
    assert key_of(call({}, id=id)).tool_call_ids == ((id,) if tells else ())


def test_system_messages_take_no_part():
    plain = [llm.user("q"), llm.assistant(LONG), llm.user("r"), llm.assistant("ok")]
    with_system = [llm.system("s"), *plain[:3], llm.system("t"), plain[3]]
    assert [reply.key for reply in replies(plain)] == [r.key for r in replies(with_system)]
    assert replies(plain)[-1].history_key == replies(with_system)[-1].history_key
    assert [reply.index for reply in replies(with_system)] == [2, 5]


def test_question_goes_back_to_the_reply_before():
    result = Message("tool", [ToolResultPart("weather", "sun", tool_call_id="call_1")])
    first = [llm.user("q"), Message("assistant", [call({})])]
    second = [*first, result, llm.user("and?"), llm.assistant(LONG)]
    moved = [llm.user("other"), llm.assistant("x"), result, llm.user("and?"), llm.assistant(LONG)]
    assert replies(second)[1].question_key == replies(moved)[1].question_key
    assert replies(second)[1].history_key != replies(moved)[1].history_key


def test_words_put_in_the_models_mouth_are_part_of_its_reply():
    """A prefill (B29) comes back as one message with what followed."""
    prefilled = [llm.user("q"), llm.assistant('{"a": ')]
    reply = reply_of(prefilled, [llm.assistant("1}")])
    assert reply == replies([llm.user("q"), llm.assistant('{"a": 1}')])[0]


@given(strategies.conversations())
def test_reply_is_known_again_wherever_a_conversation_is_cut(messages):
    """`replies` of what a client sends is `reply_of` of what was recorded."""
    for reply in replies(messages):
        again = reply_of(messages[: reply.index], [messages[reply.index]])
        if messages[reply.index - 1].role != "assistant":
            assert again == reply


@given(st.lists(strategies.conversations(), min_size=1, max_size=4), st.integers(1, 5), st.data())
def test_a_history_that_was_read_before_has_the_same_fingerprints(conversations, newest, data):
    """Whatever is remembered of other conversations, or forgotten, or cut."""
    histories = Histories(data.draw(st.sampled_from([0, 4_000, 1_000_000])))
    for messages in (*conversations, *conversations):
        messages = messages[: data.draw(st.integers(0, len(messages)))]
        history = histories.read(messages, newest)
        assert history.replies == replies(messages, newest)
        assert history.digests == [*map(digest_of, messages)]
        reply = [llm.assistant("and so on")]
        assert reply_of(messages, reply, history.hasher) == reply_of(messages, reply)


@many_examples(100)
@given(st.lists(strategies.conversations(), min_size=1, max_size=3), st.integers(1, 5), st.data())
def test_a_history_whose_beginning_was_read_has_the_same_fingerprints(parts, newest, data):
    """Messages of a known body are the same objects in each request."""
    histories = Histories(data.draw(st.sampled_from([0, 1_000_000])))
    messages = [message for part in parts for message in part]
    keep_facts(messages)
    for _ in range(4):
        # As a client that goes on, goes back, or says something else at the end.
        sent = messages[: data.draw(st.integers(0, len(messages)))]
        sent += data.draw(st.sampled_from([[], [llm.user("other")], [llm.assistant("other")]]))
        keep_facts(sent)
        history = histories.read(sent, newest)
        assert history.replies == replies(sent, newest)
        assert history.digests == [*map(digest_of, sent)]
        plain = Histories(0).read([replace(message) for message in sent], newest)
        assert history.chains == plain.chains
        reply = [llm.assistant("and so on")]
        assert reply_of(sent, reply, history.hasher) == reply_of(sent, reply)


@given(strategies.json_objects)
def test_arguments_that_javascript_wrote_have_the_same_key(arguments):
    def as_javascript(value):
        match value:
            case bool():
                return value
            case int() | float():
                number = float(value)
                return int(number) if number.is_integer() and abs(number) < 1e21 else number
            case list():
                return [as_javascript(item) for item in value]
            case dict():
                return {name: as_javascript(item) for name, item in reversed(value.items())}
        return value

    rewritten = json.loads(json.dumps(as_javascript(arguments)))
    assert key_of(call(arguments)) == key_of(call(rewritten))


# ---- where two requests differ

ASKED = [llm.system("You help."), llm.user("q"), llm.assistant("a")]


def test_what_goes_on_does_not_differ():
    assert first_difference(ASKED, ASKED) is None
    assert first_difference(ASKED, [*ASKED, llm.user("r")]) is None


@pytest.mark.parametrize(
    "after, difference",
    [
        (
            [llm.system("You help me."), *ASKED[1:]],
            Difference(0, "system", 8, "You help.", "You help me."),
        ),
        ([*ASKED[:2], llm.assistant("ab")], Difference(2, "assistant", 1, "a", "ab")),
        ([*ASKED[:2], llm.user("a")], Difference(2, "user", None, "a", "a")),
        (ASKED[:2], Difference(2, "nothing", None, "a", "")),
        (
            [*ASKED[:2], Message("assistant", [ReasoningPart("hm"), TextPart("a")])],
            Difference(2, "assistant", 0, "a", "hma"),
        ),
    ],
    ids=["system", "longer", "another role", "left out", "reasoning"],
)
def test_first_difference_has_its_place_and_the_text_around_it(after, difference):
    assert first_difference(ASKED, after) == difference


def test_only_the_text_around_a_difference_is_shown():
    before, after = ("x" * 1_000 + c + "y" * 1_000 for c in "ab")
    found = first_difference([llm.user(before)], [llm.user(after)])
    assert found == Difference(
        0, "user", 1_000, "x" * 40 + "a" + "y" * 39, "x" * 40 + "b" + "y" * 39
    )


# ---- requests that come again

TOOL = {"name": "weather", "description": "d", "parameters": {"type": "object", "properties": {}}}
OPENAI = {
    "model": "m", "max_tokens": 9, "temperature": 1, "stream": True,
    "tools": [{"type": "function", "function": TOOL}],
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a ", "reasoning_content": "hm", "tool_calls": [
            {"id": "c", "type": "function",
             "function": {"name": "weather", "arguments": '{"n": 1.0}'}}]},
        {"role": "tool", "tool_call_id": "c", "content": "sun"},
        {"role": "user", "content": "r"},
    ],
}  # fmt: skip
ANTHROPIC = {
    "model": "m", "max_tokens": 9, "temperature": 1.0, "system": [{"type": "text", "text": "s"}],
    "tools": [{"name": "weather", "description": "d", "input_schema": TOOL["parameters"]}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "q"}]},
        {"role": "assistant", "content": [
            {"type": "text", "text": "a"},
            {"type": "tool_use", "id": "c", "name": "weather", "input": {"n": 1}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "c", "content": "sun"},
            {"type": "text", "text": "r"}]},
    ],
}  # fmt: skip


def test_request_has_the_same_key_by_whichever_dialect_it_comes():
    read = openai_chat.parse_request(OPENAI, {}), anthropic_messages.parse_request(ANTHROPIC, {})
    assert len({request_key(request) for request in read}) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0.5},
        {"seed": 1},
        {"tools": None},
        {"tool_choice": "required"},
        {"tools": [{"type": "function", "function": TOOL | {"description": "e"}}]},
        {"messages": OPENAI["messages"][1:]},
        {"messages": [*OPENAI["messages"][:-1], {"role": "user", "content": "rr"}]},
        {"messages": [*OPENAI["messages"][:-1], {"role": "system", "content": "r"}]},
    ],
)
def test_another_request_has_another_key(changes):
    asked = openai_chat.parse_request(OPENAI, {})
    other = openai_chat.parse_request(OPENAI | changes, {})
    assert request_key(asked) != request_key(other)


def test_cache_marks_are_not_part_of_a_requests_key():
    """The log keeps none of them, and agents move them with each request."""
    system = [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}]
    marked = anthropic_messages.parse_request(ANTHROPIC | {"system": system}, {})
    assert marked.options["cache"] is True
    assert request_key(marked) == request_key(anthropic_messages.parse_request(ANTHROPIC, {}))


def test_model_stream_and_who_asks_are_not_part_of_a_requests_key():
    """Claude Code and others send their session's name as the user."""
    changes = {"model": "n", "stream": False, "user": "session-2"}
    other = openai_chat.parse_request(OPENAI | changes, {})
    assert request_key(openai_chat.parse_request(OPENAI, {})) == request_key(other)


PLAIN = {"model": "m", "messages": [{"role": "user", "content": "q"}]}
LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
LOOK_IN_WORDS = {"type": "function", "function": LOOK["function"] | {"description": ""}}
WITH_TOOL = {"tools": [LOOK]}


def openai_key(**fields):
    return request_key(openai_chat.parse_request(PLAIN | fields, {}))


def anthropic_key(**fields):
    return request_key(anthropic_messages.parse_request(PLAIN | {"max_tokens": 9} | fields, {}))


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 1},
        {"top_p": 1.0},
        {"presence_penalty": 0, "frequency_penalty": 0.0},
        {"logit_bias": {}},
        {"logit_bias": {"50256": 0}},
        {"parallel_tool_calls": True},
        {"parallel_tool_calls": False},  # there are no tools
        {"service_tier": "flex"},
        {"verbosity": "medium"},
        {"n": 1},
        {"stop": []},
        {"stop": ""},
        {"tools": []},
        {"tool_choice": "auto"},
        {"tool_choice": "none"},
        {"response_format": {"type": "text"}},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"store": True, "metadata": {"a": "b"}, "safety_identifier": "x", "prompt_cache_key": "y"},
        {"logprobs": False, "modalities": ["text"], "seed": None},
    ],
    ids=str,
)
def test_a_field_at_its_documented_default_is_the_same_as_none(fields):
    assert openai_key(**fields) == openai_key()


@pytest.mark.parametrize(
    "fields",
    [
        {"thinking": {"type": "disabled"}},
        {"temperature": 1.0},
        {"stop_sequences": []},
        {"tools": [], "tool_choice": {"type": "none"}},
        {"service_tier": "auto"},
        {"system": ""},
        {"system": []},
        {"stream": False, "metadata": {"user_id": "x"}},
    ],
    ids=str,
)
def test_a_field_at_anthropics_default_is_the_same_as_none(fields):
    assert anthropic_key(**fields) == anthropic_key() == openai_key(max_tokens=9)


def test_with_tools_their_defaults_mean_nothing_too():
    plain = openai_key(**WITH_TOOL)
    assert openai_key(tools=[LOOK_IN_WORDS], tool_choice="auto", parallel_tool_calls=True) == plain
    tool = {"name": "look", "input_schema": {"type": "object"}}
    choice = {"type": "auto", "disable_parallel_tool_use": False}
    assert anthropic_key(tools=[tool], tool_choice=choice) == openai_key(**WITH_TOOL, max_tokens=9)


def test_the_order_of_stop_sequences_means_nothing():
    assert openai_key(stop=["a", "b"]) == openai_key(stop=["b", "a", "b"]) != openai_key(stop="a")


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0},
        {"top_p": 0.9},
        {"presence_penalty": 0.1},
        {"logit_bias": {"50256": -100}},
        {"reasoning_effort": "medium"},  # the default differs between models
        {"seed": 0},
        {"max_tokens": 9},
        {"verbosity": "low"},
        {"stop": "a"},
        {"response_format": {"type": "json_object"}},
        WITH_TOOL,
    ],
    ids=str,
)
def test_other_values_mean_something(fields):
    assert openai_key(**fields) != openai_key()


def test_with_tools_other_values_mean_something():
    changes = [{}, {"parallel_tool_calls": False}, {"tool_choice": "none"}]
    assert len({openai_key(**WITH_TOOL, **change) for change in changes}) == 3
    budgets = [{"type": "enabled", "budget_tokens": 1024 * n} for n in (1, 2)]
    assert len({anthropic_key(thinking=budget) for budget in budgets}) == 2


# Computed by the version before options had defaults.
OLDER_KEYS = [
    ({}, "ba70be3728a35542a6c3063cd90d27d7"),
    ({"temperature": 0.5, "max_tokens": 9}, "cf49ce872b3c3b33c378b20891f1a985"),
    (
        {"parallel_tool_calls": True, "presence_penalty": 0, "frequency_penalty": 0.0,
         "logit_bias": {}, "service_tier": "auto", "temperature": 1, "top_p": 1},
        "132aaf9bdb6699ceccfd0409bf25de97",
    ),
    (
        {"tools": [LOOK_IN_WORDS], "parallel_tool_calls": True, "tool_choice": "auto"},
        "5d1e6b5b21223f382adcd441ef4f8140",
    ),
    ({"stop": ["b", "a"], "tool_choice": "none"}, "7b6b9326aa9186cfb68edc184d9abcbb"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "older"), OLDER_KEYS, ids=[older for _, older in OLDER_KEYS])
def test_keys_in_older_logs_are_still_known(fields, older):
    keys = request_keys(openai_chat.parse_request(PLAIN | fields, {}))
    assert keys == (openai_key(**fields), older)


def test_a_request_without_defaults_keeps_its_key():
    assert openai_key() == OLDER_KEYS[0][1]
    assert openai_key(temperature=0.5, max_tokens=9) == OLDER_KEYS[1][1]
    assert anthropic_key() == "fdacf62037dd4330b0da661f1d81dbbd"
    thinking = {"type": "enabled", "budget_tokens": 1024}
    assert anthropic_key(thinking=thinking) == "55a59880f66e6b0f318918b0c4f328b2"
