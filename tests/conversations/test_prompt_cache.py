"""Find the requests that missed their prompt cache, and why."""

import time
from dataclasses import replace

import llm
import pytest
from llm.parts import (
    AttachmentPart,
    Message,
    ReasoningPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)

from llmproxy.conversations.prompt_cache import (
    CacheCounts,
    ThreadCache,
    ToolsChange,
    find_cache_misses,
)
from llmproxy.core import attachments, chat, token_estimate
from llmproxy.core.message_diff import Difference
from llmproxy.core.usage import Usage
from llmproxy.recorder.listing import Filter
from llmproxy.recorder.reader import LogReader
from tests.log_fixtures import RECEIVED


@pytest.fixture
def history(store, path):
    history = LogReader(path)
    yield history
    history.close()


def only_break(history, **filter):
    (prefix,) = find_cache_misses(history, Filter(**filter))
    (broken,) = prefix.breaks
    return broken


def asked(exchange):
    return exchange.turn.messages


def size(messages, tools=()):
    return token_estimate.estimate(chat.ChatRequest(None, list(messages), tuple(tools)))


SYSTEM = llm.system("You help. It is 10:41, on a Saturday in November.")
LATER = llm.system("You help. It is 10:42, on a Saturday in November.")


def test_a_continued_thread_keeps_its_prefix(talk, history):
    first = talk("one")
    second = talk("two", first)
    talk("three", second)
    assert find_cache_misses(history, Filter()) == [ThreadCache(first.id, "tests", "demo", 2, ())]


def test_the_providers_counts_stand_beside_what_was_expected(talk, history):
    first = talk("one", usage=Usage(400, 3, cached_tokens=0, cache_write_tokens=380))
    second = talk("two", first, usage=Usage(500, 3, cached_tokens=380, cache_write_tokens=90))
    third = talk("three", second, usage=Usage(600, 3))  # not counted
    talk("four", third, usage=Usage(700, 3, cached_tokens=0))
    (thread,) = find_cache_misses(history, Filter())
    assert thread.counts == CacheCounts(2, 400 + 600, 380, 90)


def test_what_was_sent_otherwise_is_not_expected_in_the_cache(talk, history):
    first = talk("one", messages=[SYSTEM, llm.user("one")], usage=Usage(400, 3))
    messages = [LATER, llm.user("one"), *first.turn.reply, llm.user("two")]
    talk("two", first, messages=messages, usage=Usage(500, 3, cached_tokens=0))
    (thread,) = find_cache_misses(history, Filter())
    assert thread.counts == CacheCounts(1, 400 - thread.breaks[0].tokens_again, 0, 0)


def test_a_conversation_of_one_request_is_left_out(talk, history):
    talk("one")
    assert find_cache_misses(history, Filter()) == []


def test_the_first_changed_message_is_reported(talk, history):
    first = talk("one", messages=[SYSTEM, llm.user("one")])
    rest = [*first.turn.reply, llm.user("two")]
    second = talk(
        "two",
        first,
        messages=[LATER, llm.user("one"), *rest],
        usage=Usage(500, 3, cached_tokens=128),
    )
    broken = only_break(history)
    assert (broken.id, broken.previous_id, broken.link) == (second.id, first.id, "reply")
    assert (broken.models, broken.tools) == (None, None)
    assert broken.difference == Difference(
        0,
        "system",
        20,
        "You help. It is 10:41, on a Saturday in November.",
        "You help. It is 10:42, on a Saturday in November.",
    )
    assert (broken.messages_again, broken.tokens_again) == (2, size(asked(first)))
    assert (broken.input_tokens, broken.cached_tokens) == (500, 128)


def test_messages_before_the_change_are_not_counted(talk, history):
    first = talk("one", messages=[SYSTEM, llm.user("one")])
    second = talk("two", first)
    third = [*asked(second)[:3], llm.user("two, with a reminder less"), llm.user("three")]
    talk("three", second, messages=third)
    broken = only_break(history)
    assert (broken.difference.index, broken.difference.position) == (3, 3)
    assert (broken.messages_again, broken.tokens_again) == (1, size(asked(second)[3:]))


def test_an_omitted_message_is_a_change(talk, history):
    first = talk("one", messages=[SYSTEM, llm.user("one")])
    talk("two", first, messages=[SYSTEM])
    assert only_break(history).difference == Difference(1, "nothing", None, "one", "")


def test_numbers_equal_in_python_are_different_to_a_cache(talk, history):
    def asking(number):
        call = Message("assistant", [ToolCallPart("look", {"at": number}, "c1")])
        return [llm.user("one"), call, Message("tool", [ToolResultPart("look", "sun", "c1")])]

    first = talk("one", messages=asking(1))
    talk("two", first, messages=[*asking(1.0), llm.user("two")])
    difference = only_break(history).difference
    assert (difference.index, difference.position) == (1, 13)
    assert (difference.before, difference.after) == ('look({"at": 1})', 'look({"at": 1.0})')


TOOLS = tuple(llm.Tool(name, f"does {name}", {"type": "object"}) for name in ("read", "write"))


@pytest.mark.parametrize(
    "tools, change",
    [
        (TOOLS[:1], ToolsChange(removed=("write",))),
        ((*TOOLS, llm.Tool("run", "", {})), ToolsChange(added=("run",))),
        ((TOOLS[0], replace(TOOLS[1], description="more")), ToolsChange(redefined=("write",))),
        (TOOLS[::-1], ToolsChange(is_reordered=True)),
        ((), ToolsChange(removed=("read", "write"))),
    ],
    ids=["removed", "added", "redefined", "reordered", "none"],
)
def test_tools_come_before_all_messages(talk, history, tools, change):
    first = talk("one", tools=TOOLS)
    talk("two", first, tools=tools)
    broken = only_break(history)
    assert (broken.tools, broken.difference) == (change, None)
    assert (broken.messages_again, broken.tokens_again) == (1, size(asked(first), TOOLS))


def test_another_model_has_a_cache_of_its_own(talk, history):
    first = talk("one")
    talk("two", first, model="other")
    broken = only_break(history)
    assert (broken.models, broken.difference) == (("demo", "other"), None)
    assert (broken.messages_again, broken.tokens_again) == (1, size(asked(first)))


def test_a_forks_first_request_is_compared_with_the_turn_it_continues(talk, history):
    first = talk("one", messages=[SYSTEM, llm.user("one")])
    talk("two", first)
    same = talk("two, edited", first)
    other = talk("two, edited again", first, messages=[LATER, llm.user("one"), llm.user("2")])
    found = {prefix.thread_id: prefix for prefix in find_cache_misses(history, Filter())}
    assert [len(found[id].breaks) for id in (first.id, same.id, other.id)] == [0, 0, 1]
    assert found[other.id].breaks[0].previous_id == first.id


def test_a_summary_misses_the_cache_and_a_sub_agent_starts_over(talk, history):
    first = talk("one")
    agent = talk("a task", first, "call", messages=[llm.user("a task")])
    title = talk("a title", first, "quote", messages=[llm.user("a title")])
    summed = talk("in short", first, "compacted", messages=[llm.user("in short")])
    (prefix,) = find_cache_misses(history, Filter())
    assert prefix.thread_id == summed.id
    assert prefix.breaks[0].link == "compacted"
    talk("on", agent)
    talk("on", title)
    assert [len(prefix.breaks) for prefix in find_cache_misses(history, Filter())] == [1, 0, 0]


def test_a_retry_is_compared_with_the_turn_before_both(talk, history):
    """A turn that was cancelled and then edited does not affect what was sent before."""
    first = talk("one")
    talk("two", first, status="cancelled", answer="so fa")
    talk("two, edited", first)
    (prefix,) = find_cache_misses(history, Filter())
    assert (prefix.requests, prefix.breaks) == (2, ())


def test_a_filter_selects_by_the_later_request(talk, history):
    first = talk("one", messages=[SYSTEM, llm.user("one")])
    second = talk("two", first, messages=[LATER, llm.user("one"), llm.user("two")])
    third = talk("three", second)
    talk("another", talk("some"))
    assert only_break(history, ids=(second.id,)).id == second.id
    (prefix,) = find_cache_misses(history, Filter(ids=(third.id,)))
    assert (prefix.requests, prefix.breaks) == (1, ())
    assert len(find_cache_misses(history, Filter())) == 2
    assert len(find_cache_misses(history, Filter(), last=1)) == 1
    assert find_cache_misses(history, Filter(until=RECEIVED)) == []


def test_attachments_and_reasoning_are_counted(talk, history):
    image = attachments.attachment_from_base64("iVBORw0KGgo=")
    messages = [
        SYSTEM,
        Message("user", [TextPart("look"), AttachmentPart(image)]),
        Message("assistant", [ReasoningPart("hm"), TextPart("I see.")]),
        llm.user("one"),
    ]
    first = talk("one", messages=messages)
    talk("two", first, messages=[LATER, *messages[1:], llm.user("two")])
    broken = only_break(history)
    assert (broken.messages_again, broken.tokens_again) == (4, size(messages))
    assert broken.tokens_again > token_estimate.IMAGE_TOKENS


def test_changed_metadata_is_a_change(talk, history):
    def thought(signature):
        part = ReasoningPart("hm", provider_metadata={"anthropic": {"signature": signature}})
        return [llm.user("one"), Message("assistant", [part, TextPart("Done.")])]

    first = talk("one", messages=[*thought("a"), llm.user("on")])
    talk("two", first, messages=[*thought("b"), llm.user("on"), llm.user("two")])
    assert only_break(history).difference == Difference(1, "assistant", None, "hmDone.", "hmDone.")


def test_a_long_thread_is_compared_quickly(talk, history, store):
    """Only hashes of unchanged messages are read; the limit allows for a busy machine."""
    before = None
    for number in range(150):
        before = talk(f"turn {number}", before)
    began = time.monotonic()
    (prefix,) = find_cache_misses(history, Filter())
    assert (prefix.requests, prefix.breaks) == (149, ())
    assert time.monotonic() - began < 2
