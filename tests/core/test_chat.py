"""Events collected to whole answers, arguments read, attachments made."""

import base64
import socket

import llm
import pytest
from hypothesis import given, settings
from llm.parts import Message, ReasoningPart, StreamEvent, TextPart, ToolCallPart, ToolResultPart

from llmproxy.backends.engine.demo import Demo
from llmproxy.core import attachments, chat, payload
from llmproxy.core.errors import InvalidRequest, Unsupported
from tests.examples import many_examples
from tests.strategies import (
    PNG_MAGIC,
    argument_texts,
    conversations,
    event_streams,
    json_objects,
)


def text(chunk, index=0, **fields):
    return StreamEvent("text", chunk, part_index=index, **fields)


def name(chunk, index, id_, **fields):
    return StreamEvent("tool_call_name", chunk, part_index=index, tool_call_id=id_, **fields)


def arguments(chunk, index, id_, **fields):
    return StreamEvent("tool_call_args", chunk, part_index=index, tool_call_id=id_, **fields)


def reasoning(chunk, index=0, **fields):
    return StreamEvent("reasoning", chunk, part_index=index, **fields)


def collected(*events):
    [message] = chat.collect(events).messages
    assert message.role == "assistant"
    return message.parts


# ---- collect


def test_text_is_joined_by_part():
    assert collected(text("a"), text("b"), text("c", 1)) == [TextPart("ab"), TextPart("c")]


def test_nothing_is_no_message():
    finish = chat.Finish("length")
    assert chat.collect([text(""), reasoning("", 1), finish]) == chat.ChatResponse([], finish, {})
    assert chat.collect([]) == chat.ChatResponse([], chat.Finish(), {})


def test_interleaved_calls_keep_their_own_arguments():
    """B1: each call's arguments go by its part."""
    response = chat.collect(
        [
            name("f", 0, "a"),
            name("g", 1, "b"),
            arguments('{"x": ', 0, "a"),
            arguments('{"y":2', 1, "b"),
            arguments("1}", 0, "a"),
            arguments("}", 1, "b"),
        ]
    )
    assert response.parts == [
        ToolCallPart("f", {"x": 1}, tool_call_id="a"),
        ToolCallPart("g", {"y": 2}, tool_call_id="b"),
    ]
    assert response.raw_arguments == {"a": '{"x": 1}', "b": '{"y":2}'}


def test_the_last_metadata_of_each_key_counts():
    """B25: signatures come after the text that they sign."""
    parts = collected(
        reasoning("hm", provider_metadata={"anthropic": {"signature": "old"}, "x": 1}),
        reasoning("", provider_metadata={"anthropic": {"signature": "new"}}),
    )
    assert parts == [
        ReasoningPart("hm", provider_metadata={"anthropic": {"signature": "new"}, "x": 1})
    ]


def test_reasoning_of_metadata_alone_keeps_its_place():
    data = {"anthropic": {"type": "redacted_thinking", "data": "AAA="}}
    parts = collected(text("a"), reasoning("", 1, provider_metadata=data), text("b", 2))
    assert parts == [TextPart("a"), ReasoningPart("", provider_metadata=data), TextPart("b")]


def test_redacted_reasoning_goes_to_the_front_of_its_message():
    response = chat.collect(
        [text("a"), text("b", 1, message_index=1), reasoning("", 2, redacted=True, message_index=1)]
    )
    assert response.messages == [
        Message("assistant", [TextPart("a")]),
        Message("assistant", [ReasoningPart("", redacted=True), TextPart("b")]),
    ]
    assert response.parts == [TextPart("a"), ReasoningPart("", redacted=True), TextPart("b")]


def test_what_the_provider_ran_itself_is_kept_and_marked():
    result = StreamEvent("tool_result", "4", 1, "s", server_executed=True, tool_name="run")
    assert collected(
        name("run", 0, "s", server_executed=True),
        arguments('{"code": "2+2"}', 0, "s", server_executed=True),
        result,
    ) == [
        ToolCallPart("run", {"code": "2+2"}, tool_call_id="s", server_executed=True),
        ToolResultPart("run", "4", tool_call_id="s", server_executed=True),
    ]


@given(event_streams())
@many_examples(50)
def test_a_response_is_collected_as_llm_stores_it(events):
    """Oracle: llm's own assembly, save for arguments that are no JSON object."""
    response = llm.Response(llm.Prompt("", model=MODEL), MODEL, stream=True)
    response._stream_events = [e for e in events if isinstance(e, StreamEvent)]
    theirs = [Message("assistant", parts) for parts in response._build_message_parts()]
    for message in theirs:
        for part in message.parts:
            if isinstance(part, ToolCallPart):
                raw = _raw_arguments(events, part.tool_call_id)
                part.arguments = chat.parse_arguments(raw)
    assert chat.collect(events).messages == theirs
    assert chat.collect(events).finish is events[-1]


@given(event_streams())
@many_examples(50)
def test_raw_arguments_are_those_of_the_events(events):
    """B40: letter for letter, in the model's own key order."""
    response = chat.collect(events)
    calls = [part for part in response.parts if isinstance(part, ToolCallPart)]
    assert response.raw_arguments == {
        call.tool_call_id: _raw_arguments(events, call.tool_call_id) for call in calls
    }


MODEL = Demo()


def _raw_arguments(events, id_):
    return "".join(
        event.chunk
        for event in events
        if isinstance(event, StreamEvent)
        and (event.type, event.tool_call_id) == ("tool_call_args", id_)
    )


# ---- arguments of tool calls

ARGUMENTS = {
    "none (B4)": ("", {}),
    "blank (B4)": (" \n\t", {}),
    "an object": ('{"a": 1, "b": [true, null]}', {"a": 1, "b": [True, None]}),
    "spaces around": (' {"a": 1}\n', {"a": 1}),
    "cut off (B4)": ('{"a": ', {"_raw": '{"a": '}),
    "a list": ("[1]", {"_raw": "[1]"}),
    "null": ("null", {"_raw": "null"}),
    "a string": ('"x"', {"_raw": '"x"'}),
    "two objects": ("{}{}", {"_raw": "{}{}"}),
    "not a number": ('{"a": NaN}', {"a": "NaN"}),
    "a half of a character (B18)": (r'{"a": "\ud83c"}', {"a": "\ufffd"}),
    "too deep": ('{"a":' * 500, {"_raw": '{"a":' * 500}),
}


@pytest.mark.parametrize("raw, value", ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments_read_as(raw, value):
    assert chat.parse_arguments(raw) == value


@given(json_objects)
@settings(max_examples=50)
def test_arguments_encoded_read_back(value):
    assert chat.parse_arguments(payload.encode(value).decode()) == value


@given(argument_texts())
@settings(max_examples=50)
def test_arguments_are_always_an_object(raw):
    value = chat.parse_arguments(raw)
    assert isinstance(value, dict)
    assert value or raw.strip() in ("", "{}")


# ---- attachments

PNG = base64.b64encode(PNG_MAGIC).decode()
JPEG = base64.b64encode(b"\xff\xd8\xff\xe0").decode()

URLS = {
    "an image": ("https://host/a/cat.png?size=2#x", "image/png"),
    "in capitals": ("HTTPS://host/CAT.JPEG", "image/jpeg"),
    "a document": ("http://host/paper.pdf", "application/pdf"),
    "no ending": ("https://host/cat", "image/*"),
    "no path": ("https://host", "image/*"),
    "a script": ("https://host/cat.php?id=1", "image/*"),
    "a page": ("https://host/cat.html", "image/*"),
    "the ending in the query alone": ("https://host/cat?as=.png", "image/*"),
}


@pytest.mark.parametrize("url, type_", URLS.values(), ids=URLS)
def test_a_remote_attachment_has_a_type_and_is_never_fetched(url, type_, monkeypatch):
    """d6.20: without a type llm would ask the address for one."""
    monkeypatch.setattr(socket.socket, "connect", None)
    attachment = attachments.attachment_from_url(url)
    assert attachment == attachments.RemoteAttachment(type=type_, url=url)
    assert attachment.resolve_type() == type_
    for fetch in (attachment.content_bytes, attachment.base64_content):
        with pytest.raises(Unsupported) as caught:
            fetch()
        assert caught.value.message == (
            "this model needs the content itself: send base64 data, not a URL"
        )


DATA = {
    "base64": (f"data:image/png;base64,{PNG}", "image/png", PNG_MAGIC),
    "base64 in capitals and spaces": (f"DATA:image/png; BASE64,{PNG}", "image/png", PNG_MAGIC),
    "lines in the base64": ("data:image/gif;base64,R0lG\r\n ODlh", "image/gif", b"GIF89a"),
    "a JPEG that calls itself PNG": (
        f"data:image/png;base64,{JPEG}",
        "image/jpeg",
        b"\xff\xd8\xff\xe0",
    ),
    "image/jpg is no type": ("data:image/jpg;base64,AAAA", "image/jpeg", b"\0\0\0"),
    "a type in capitals": ("data:Audio/X-Thing;base64,AAAA", "audio/x-thing", b"\0\0\0"),
    "no type": ("data:;base64,AAAA", "application/octet-stream", b"\0\0\0"),
    "WebP": (
        "data:image/png;base64," + base64.b64encode(b"RIFF0000WEBP").decode(),
        "image/webp",
        b"RIFF0000WEBP",
    ),
    "percent-coded text": ("data:text/csv,a%2Cb\n%C3%A9", "text/csv", b"a,b\n\xc3\xa9"),
    "plain text without a type": ("data:,hello", "text/plain", b"hello"),
    "parameters": ("data:text/html;charset=utf-8,<p>", "text/html", b"<p>"),
}


@pytest.mark.parametrize("url, type_, content", DATA.values(), ids=DATA)
def test_a_data_url_is_read_and_its_bytes_are_believed(url, type_, content):
    assert attachments.attachment_from_url(url) == llm.Attachment(type=type_, content=content)


BAD_URLS = {
    "a path": ("/etc/passwd", "expected an http(s) or data: URL"),
    "a file": ("file:///etc/passwd", "expected an http(s) or data: URL"),
    "nothing": ("", "expected an http(s) or data: URL"),
    "no host": ("http:///x.png", "expected an http(s) or data: URL"),
    "a broken host": ("http://[::1", "expected an http(s) or data: URL"),
    "another scheme": ("ftp://host/cat.png", "expected an http(s) or data: URL"),
    "data without a comma": ("data:image/png;base64", "expected data:<type>;base64,<data>"),
    "no base64": ("data:image/png;base64,====", "expected base64 data"),
    "base64 and more": ("data:image/png;base64,AA*A", "expected base64 data"),
    "base64 of nothing": ("data:image/png;base64,", "expected base64 data, got none"),
    "nothing after the comma": ("data:text/plain,", "expected data after the comma, got none"),
    "not ASCII": ("data:image/png;base64,é", "expected base64 data"),
}


@pytest.mark.parametrize("url, message", BAD_URLS.values(), ids=BAD_URLS)
def test_a_url_that_is_refused(url, message):
    with pytest.raises(InvalidRequest) as caught:
        attachments.attachment_from_url(url, param="messages[0].content[1].image_url.url")
    assert (caught.value.message, caught.value.param) == (
        message,
        "messages[0].content[1].image_url.url",
    )


@given(conversations())
@many_examples(50)
def test_messages_survive_llms_own_json(messages):
    """The strategy's messages are such as logs.db gives back."""
    assert [Message.from_dict(message.to_dict()) for message in messages] == messages
