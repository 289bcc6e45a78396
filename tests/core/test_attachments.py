"""Walking over the attachments of a message."""

import llm
from llm.parts import AttachmentPart, Message, TextPart, ToolResultPart

from llmproxy.core.attachments import find_attachments, map_attachments

ONE, TWO, THREE = (
    llm.Attachment(type="image/png", content=content) for content in (b"1", b"2", b"3")
)
MESSAGE = Message(
    "tool",
    [
        TextPart("look"),
        AttachmentPart(ONE),
        AttachmentPart(None),
        ToolResultPart("look", "done", "call_1", attachments=[TWO, THREE]),
        ToolResultPart("look", "none", "call_2"),
    ],
)


def test_attachments_are_found_in_order_also_in_tool_results():
    assert find_attachments(MESSAGE) == [ONE, TWO, THREE]
    assert find_attachments(Message("user", [TextPart("hi")])) == []


def test_a_changed_message_leaves_the_one_given_as_it_was():
    before = MESSAGE.to_dict()
    changed = map_attachments(
        MESSAGE, lambda one: llm.Attachment(type="image/gif", content=one.content)
    )
    assert [(one.type, one.content) for one in find_attachments(changed)] == [
        ("image/gif", b"1"),
        ("image/gif", b"2"),
        ("image/gif", b"3"),
    ]
    assert [type(part) for part in changed.parts] == [type(part) for part in MESSAGE.parts]
    assert MESSAGE.to_dict() == before
