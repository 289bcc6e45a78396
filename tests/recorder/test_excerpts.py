"""Excerpts say in a line what a request ends with and what came back."""

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

from llmproxy.recorder.excerpts import MAX_CHARS, last_message, reply_words

ASKED = Message("user", [TextPart("Read a.txt and b.txt")])
CALLS = Message(
    "assistant",
    [ToolCallPart("read_file", {"path": "a.txt"}, "c1"), ToolCallPart("now", {}, "c2")],
)
IMAGE = AttachmentPart(llm.Attachment(type="image/png", content=b"x"))


def result(output, name="read_file", **fields):
    return ToolResultPart(name, output, "c1", **fields)


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([], ""),
        ([Message("system", [TextPart("Be brief.")])], ""),
        ([ASKED], "Read a.txt and b.txt"),
        ([ASKED, CALLS, Message("tool", [result("contents\n of a.txt")])],
         "read_file → contents of a.txt"),
        ([ASKED, CALLS, Message("tool", [result("a"), result("", "now")])],
         "read_file → a; now → (nothing)"),
        ([ASKED, CALLS, Message("tool", [result("", exception="no such file")])],
         "read_file → failed: no such file"),
        ([ASKED, CALLS, Message("tool", [result("a")]),
          Message("user", [TextPart("<reminder/>"), TextPart("go on")])],
         "read_file → a; go on"),
        ([Message("user", [IMAGE])], "[image/png]"),
        ([Message("user", [IMAGE, TextPart("What is it?")])], "What is it?"),
        ([ASKED, CALLS], ""),
    ],
)  # fmt: skip
def test_what_a_request_ends_with(messages, text):
    assert last_message(messages) == text


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ([], ""),
        ([ReasoningPart("hm")], ""),
        ([ReasoningPart("hm"), TextPart("Two\nfiles.")], "Two files."),
        (CALLS.parts, 'read_file(path="a.txt"); now()'),
        ([TextPart("I look " * 20), ToolCallPart("f", {"n": 1, "o": {"a": 1}, "l": []}, "c")],
         "I look I look I look I look I look I lo…; f(n=1, o={…}, l=[…])"),
        ([IMAGE], "[image/png]"),
    ],
)  # fmt: skip
def test_what_came_back(parts, text):
    assert reply_words([Message("assistant", parts)]) == text


def test_an_excerpt_is_short_whatever_was_said():
    long = "word " * 100_000
    call = ToolCallPart("f" * 500, {f"a{i}": long for i in range(1_000)}, "c")
    messages = [Message("user", [TextPart(long)]), Message("tool", [result(long)] * 100)]
    for text in (last_message(messages), reply_words([Message("assistant", [call])])):
        assert len(text) <= MAX_CHARS and text.endswith("…")
