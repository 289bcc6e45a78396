from llm.parts import Message, TextPart, ToolCallPart

from llmproxy.core.byte_cache import message_bytes
from llmproxy.core.fingerprints import digest_of
from llmproxy.core.message_facts import (
    TAIL,
    facts_of,
    keep_facts,
    known_beginning,
    total,
)


def conversation():
    return [
        Message("user", [TextPart("q")]),
        Message("assistant", [ToolCallPart("f", {"a": [1]}, "c")]),
    ]


def test_what_is_kept_is_what_is_computed_and_no_part_of_the_message():
    messages, plain = conversation(), conversation()
    keep_facts(messages)
    for _ in range(2):  # computed, then kept
        assert [*map(digest_of, messages)] == [*map(digest_of, plain)]
        assert message_bytes(messages) == message_bytes(plain)
    assert messages == plain
    assert repr(messages) == repr(plain)
    assert facts_of(plain[0]) is None


def test_facts_of_an_earlier_request_stay():
    messages = conversation()
    keep_facts(messages[:1])
    digest_of(messages[0])
    keep_facts(messages)
    assert facts_of(messages[0]) == {"digest": digest_of(messages[0])}
    assert facts_of(messages[1]) == {}


def test_a_total_is_that_of_all_messages_whatever_was_measured_before():
    measured = []

    def length(messages):
        measured.append(len(messages))
        return sum(len(message.parts[0].text) for message in messages)

    messages = [Message("user", [TextPart("q" * i)]) for i in range(30)]
    keep_facts(messages)
    other = [Message("user", [TextPart("other")])]
    for sent in (messages[:10], messages[:20], messages, messages[:25] + other, messages[:9], []):
        assert total(sent, "length", length) == sum(len(one.parts[0].text) for one in sent)
    assert sum(measured[2:6]) == 10 + TAIL + 10 + TAIL  # of the second and the third


def test_a_beginning_is_known_only_of_the_same_messages():
    messages, others = ([Message("user", [TextPart("q")]) for _ in range(10)] for _ in range(2))
    keep_facts([*messages, *others])
    total(messages, "count", len)
    assert known_beginning(messages, "count") == (6, 6)
    for place in (0, 5):
        sent = [*messages[:place], others[place], *messages[place + 1 :]]
        assert known_beginning(sent, "count") == (0, None)
    assert known_beginning(messages[1:], "count") == (0, None)
