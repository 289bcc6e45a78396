"""Text that may differ is replaced everywhere, in a time that is bounded."""

from __future__ import annotations

import time

import llm
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm.parts import AttachmentPart, Message, ReasoningPart, TextPart, ToolCallPart, ToolResultPart

from llmproxy.backends import ignored_text
from llmproxy.backends.ignored_text import MARK, MAX_MATCH_CHARS, IgnoredText
from llmproxy.core import chat
from llmproxy.core.attachments import RemoteAttachment
from llmproxy.core.errors import InvalidRequest
from llmproxy.core.fingerprints import request_key
from tests import strategies
from tests.examples import many_examples


def cleaned(text, *patterns):
    request = IgnoredText(patterns)(chat.ChatRequest("m", [llm.user(text)]))
    return request.messages[0].parts[0].text


def a_request(number):
    """Have a number in every place that a response depends on."""
    n = f"n{number}"
    schema = {"type": "object", "properties": {"n": {"description": n}}}
    image = RemoteAttachment(type="image/png", url=f"https://a.example/{n}")
    call = ToolCallPart("look", {"at": [n]}, f"call_{n}")
    result = ToolResultPart("look", f"it is {n}", f"call_{n}", attachments=[image])
    return chat.ChatRequest(
        "m",
        [
            llm.system(f"system {n}"),
            Message("user", [TextPart(n), AttachmentPart(image)]),
            Message("assistant", [ReasoningPart("why"), call]),
            Message("tool", [result]),
        ],
        tools=(llm.Tool("look", f"looks at {n}", schema),),
        options={"stop_sequences": [n], "seed": 3},
        schema=schema,
    )  # fmt: skip


def test_it_is_replaced_wherever_a_response_depends_on_it():
    ignore = IgnoredText([r"n\d+"])
    assert request_key(a_request(1)) != request_key(a_request(22))
    assert request_key(ignore(a_request(1))) == request_key(ignore(a_request(22)))
    assert ignore(a_request(1)).messages[3].parts[0].output == f"it is {MARK}"
    assert ignore(a_request(1)).tools[0].name == "look"


def test_the_request_itself_stays_as_it_is():
    request = a_request(1)
    IgnoredText([r"n\d+"])(request)
    assert request == a_request(1)


@given(strategies.requests())
def test_without_a_match_a_request_has_the_same_key(request):
    """Whatever it has in it."""
    assert request_key(IgnoredText(["no such text at all"])(request)) == request_key(request)


@pytest.mark.parametrize("before", [0, 100, MAX_MATCH_CHARS - 5, MAX_MATCH_CHARS, 10_000])
def test_a_match_is_found_wherever_it_is_in_a_long_text(before):
    text = "x" * before + "2026-11-27" + "y" * 3000 + " 2026-01-01"
    assert cleaned(text, r"\d{4}-\d\d-\d\d") == "x" * before + MARK + "y" * 3000 + f" {MARK}"


@many_examples(100)
@given(st.lists(st.sampled_from(["ab", "a", " ", "1", "22", "x" * 300, "7" * 300])))
def test_the_same_is_replaced_wherever_it_stands(pieces):
    """What stands before a text makes no difference to what is found in it."""
    text, shift = "".join(pieces), " " * 199
    found = cleaned(text, r"\d+", r"ab")
    assert cleaned(shift + text, r"\d+", r"ab") == shift + found


def test_patterns_are_applied_one_after_another():
    assert cleaned("/tmp/x-2026/y", r"\d{4}", rf"/tmp/x-{MARK}") == f"{MARK}/y"


def test_a_longer_match_is_cut():
    text = "1" * (2 * MAX_MATCH_CHARS + 10)
    assert cleaned(text, r"\d+") == 3 * MARK


@pytest.mark.parametrize(
    "pattern",
    [r"\d{4}-\d\d-\d\d", r"/tmp/[\w.-]+/\w+", r"[0-9a-f]{7,40}", r"\d+ms", "(?i)today is .*",
     r"(Mon|Tue)day", r"(\d+)?x", r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", r"(?:\d\d:){2}\d\d",
     r"(?<=id=)\w+", r"\w++ \w++", r"(https?://)?\w+:.*"],
)  # fmt: skip
def test_usual_patterns_are_accepted(pattern):
    IgnoredText([pattern])


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+", "(a*)*b", "(a|b|ab)*c", "((a{1,20}){1,20})b", r"(?:a+b?){5}", "(?=a+)a+b+c+",
     r"(a?){50}", r"(a)\1", r"(a)?(?(1)b|c)", r"\w+\s\w+\s\w+", ".*a.*b.*c"],
)  # fmt: skip
def test_patterns_that_could_take_long_are_refused(pattern):
    with pytest.raises(ValueError, match="could take too long"):
        IgnoredText([pattern])


@pytest.mark.parametrize("pattern", ["a+a+b", r"\w+\w+!", "(?:a{1,200}){1}a{1,200}b", "a*?a*?b"])
def test_the_worst_text_for_a_pattern_takes_little_more_than_its_time(pattern, monkeypatch):
    monkeypatch.setattr(ignored_text, "MAX_SEARCH_S", 0.1)
    ignore = IgnoredText([pattern])
    request = chat.ChatRequest("m", [llm.user("a" * 1_000_000)])
    began = time.process_time()
    with pytest.raises(InvalidRequest, match="takes too long"):
        ignore(request)
    assert time.process_time() - began < 5
