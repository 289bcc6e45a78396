"""The local estimate of tokens."""

import time

import llm
import pytest
from llm.parts import AttachmentPart, Message, TextPart, ToolCallPart, ToolResultPart

from llmproxy.core import attachments, chat, token_estimate


def request(*parts, role="user", **fields):
    return chat.ChatRequest(model=None, messages=[Message(role, list(parts))], **fields)


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("", 0, 0),
        ("a", 1, 1),
        # By OpenAI's o200k tokenizer: 9, 22 and 9.
        ("The quick brown fox jumps over the lazy dog.", 8, 12),
        ("def fib(n):\n    return n if n < 2 else fib(n - 1) + fib(n - 2)\n", 15, 25),
        ("我们明天去公园散步吧。", 7, 13),
        ("Съешь ещё этих мягких французских булок", 10, 30),
        ("🌊🌊", 1, 6),
    ],
)
def test_text_is_estimated_within_reason(text, low, high):
    assert low <= token_estimate.estimate_text(text) <= high


def test_everything_of_a_request_counts():
    bare = token_estimate.estimate(request(TextPart("hi")))
    image = attachments.attachment_from_base64("iVBORw0KGgo=")
    assert token_estimate.estimate(request(TextPart("hi"), AttachmentPart(image))) == bare + 1500
    tool = llm.Tool("weather", "Look out of the window", {"type": "object"})
    assert token_estimate.estimate(request(TextPart("hi"), tools=(tool,))) > bare + 12
    assert token_estimate.estimate(request(TextPart("hi"), schema={"type": "object"})) > bare
    server = chat.ServerTool("web_search", {"max_uses": 3})
    assert token_estimate.estimate(request(TextPart("hi"), server_tools=(server,))) > bare
    asked = request(ToolCallPart("weather", {"at": "home"}, "c"), role="assistant")
    assert token_estimate.estimate(asked) > token_estimate.estimate(request(TextPart("weather")))
    seen = ToolResultPart("look", "a cat", "c", attachments=[image])
    assert token_estimate.estimate(request(seen, role="tool")) > 1500


def test_a_servers_tool_result_is_no_output_of_the_model():
    reply = [Message("assistant", [TextPart("It is four.")])]
    result = ToolResultPart("web_search", "a page of text " * 99, "s", server_executed=True)
    searched = [Message("assistant", [result, *reply[0].parts])]
    assert token_estimate.estimate_reply(searched) == token_estimate.estimate_reply(reply) == 3


def test_long_histories_are_counted_fast():
    """B34: clients ask fifty times in the first second."""
    long = request(*[TextPart("some words of a message " * 50)] * 400)
    began = time.perf_counter()
    token_estimate.estimate(long)
    assert time.perf_counter() - began < 1
