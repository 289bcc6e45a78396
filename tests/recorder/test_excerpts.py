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
from llmproxy.recorder.listing import LogListing
from llmproxy.recorder.previews import previews

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
        ([Message("user", [IMAGE, TextPart("What is it?")])], "What is it?; [image/png]"),
        ([ASKED, CALLS, Message("tool", [result("a")]), Message("user", [IMAGE])],
         "read_file → a; [image/png]"),
        ([ASKED, Message("assistant", [TextPart("{")])], "Read a.txt and b.txt"),
        ([ASKED, CALLS], "Read a.txt and b.txt"),
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
        ([TextPart("Two"), TextPart("files.")], "Two files."),
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


def test_the_page_shows_what_the_list_does(store, path, make_exchange):
    messages = [
        ASKED,
        CALLS,
        Message("tool", [result("a"), result("b", "now")]),
        Message("user", [TextPart("<reminder/>"), TextPart("go on"), IMAGE]),
    ]
    exchange = make_exchange(messages=messages)
    store.write([exchange])
    with LogListing(path) as listing:
        asked = previews(listing.rows, [exchange.id])[exchange.id].asked
    kinds = {"result": "{0.name} → {0.text}", "text": "{0.text}", "attachment": "[image/png]"}
    pieces = [kinds[part.kind].format(part) for part in asked]
    assert "; ".join(pieces) == last_message(messages)
    assert last_message(messages) == "read_file → a; now → b; go on; [image/png]"
