"""Attachments: made from what clients send, and found in messages."""

import base64

import llm
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm.parts import AttachmentPart, Message, TextPart, ToolResultPart

from llmproxy.core.attachments import (
    attachment_from_base64,
    attachment_from_url,
    find_attachments,
    map_attachments,
)
from llmproxy.core.errors import InvalidRequest

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


# ---- base64, as https://infra.spec.whatwg.org/#forgiving-base64-decode has it


@pytest.mark.parametrize(
    "data",
    ["YWJj\nZA==", "YWJjZA", " YWJj ZA= =\t", "YW\fJj\r\nZA", "YWJjZB", "data:,abcd",
     "DATA:text/plain;base64,YWJjZA"],
)  # fmt: skip
def test_base64_is_read_with_white_space_and_without_padding(data):
    assert attachment_from_base64(data).content == b"abcd"


@pytest.mark.parametrize(
    "data", ["YWJjZA=", "YWJjZ", "A", "YWJj=ZA=", "=", "YW-_", "YW\xa0Jj", "é"]
)
def test_what_is_no_base64_is_refused(data):
    for given_ in (data, f"data:image/png;base64,{data}"):
        with pytest.raises(InvalidRequest, match="^expected base64 data$"):
            if given_ is data:
                attachment_from_base64(data)
            else:
                attachment_from_url(given_)


@given(st.binary(min_size=1), st.data())
def test_any_content_is_read_in_any_form(content, data):
    text = base64.b64encode(content).decode()
    text = data.draw(st.sampled_from([text, text.rstrip("=")]))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + data.draw(st.sampled_from([" ", "\n", "\t"])) + text[at:]
    assert attachment_from_base64(text).content == content
    quoted = text.replace("=", "%3D").replace("+", "%2b").replace("/", "%2F").replace(" ", "%20")
    for url in (f"data:a/b;base64,{text}", f" data:a/b; BASE64 ,{quoted}\n"):
        made = attachment_from_url(url)
        assert (made.content, made.type) == (content, attachment_from_base64(text, "a/b").type)


@pytest.mark.parametrize(
    "url, type_, content",
    [
        ("data:image/png;base64,iVBORw0KGgo%3D", "image/png", b"\x89PNG\r\n\x1a\n"),
        ("data:image/png;base64,iVBORw0KGgo", "image/png", b"\x89PNG\r\n\x1a\n"),
        ("data:image%2Fpng;base64,AAAA", "image/png", b"\0\0\0"),
        ("data:image/svg+xml,%3Csvg%20a='1'/%3E", "image/svg+xml", b"<svg a='1'/>"),
        ("data:image/svg+xml;utf8,<svg/>", "image/svg+xml", b"<svg/>"),
        ("data:text/plain;charset=utf-8,%C3%BC", "text/plain", "ü".encode()),
        ("\n data:,a%20b ", "text/plain", b"a b"),
        ("Data:TEXT/Plain;Base64,YWI", "text/plain", b"ab"),
    ],
)
def test_data_urls_are_read_as_browsers_do(url, type_, content):
    made = attachment_from_url(url)
    assert (made.type, made.content) == (type_, content)
