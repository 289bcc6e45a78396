"""A cache keeps what was used last, up to its bytes; the size of messages is near the truth."""

import llm
from llm.parts import AttachmentPart, Message, ReasoningPart, TextPart, ToolCallPart, ToolResultPart

from llmproxy.core.byte_cache import ByteCache, message_bytes


def test_what_was_not_used_for_the_longest_time_goes_first():
    cache = ByteCache[str, int](10)
    for number, name in enumerate("abc"):
        cache.put(name, number, 3)
    assert cache.get("a") == 0
    cache.put("d", 3, 3)
    assert [cache.get(name) for name in "abcd"] == [0, None, 2, 3]
    assert cache.size_bytes == 9


def test_a_value_beyond_the_budget_is_not_kept():
    cache = ByteCache[str, int](10)
    cache.put("a", 0, 10)
    cache.put("b", 1, 11)
    assert (cache.get("a"), cache.get("b"), cache.size_bytes) == (0, None, 10)


def test_a_value_put_again_counts_once():
    cache = ByteCache[str, int](10)
    cache.put("a", 0, 8)
    cache.put("a", 1, 4)
    assert (cache.get("a"), cache.size_bytes) == (1, 4)


def test_all_content_of_a_message_counts():
    size = 100_000
    text = "a" * size
    parts = [
        TextPart(text),
        ReasoningPart("", provider_metadata={"signature": text}),
        ToolCallPart("f", {"a": [text]}),
        ToolResultPart("f", text, attachments=[llm.Attachment(content=b"a" * size)]),
        AttachmentPart(llm.Attachment(content=b"a" * size)),
        ToolCallPart("f", {"an object of a plugin": {object(): text}}),
    ]
    assert 7 * size < message_bytes([Message("user", parts)]) < 7 * size + 5_000
    assert message_bytes([Message("user", [])]) > 0
