from llm.parts import Message, TextPart, ToolCallPart

from llmproxy.core.byte_cache import message_bytes
from llmproxy.core.fingerprints import digest_of
from llmproxy.core.message_facts import facts_of, keep_facts


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
