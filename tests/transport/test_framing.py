"""SSE and NDJSON framing: the WHATWG spec's own examples, odd line ends, any cut, bounds."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.core.errors import ProtocolError
from llmproxy.transport.framing import (
    SSE_PING,
    NDJSONDecoder,
    SSEDecoder,
    SSEFrame,
    encode_ndjson,
    encode_sse,
)


def message(data, event="message", id=""):
    return SSEFrame(event, data, id)


SSE_STREAMS = {
    "several data lines": (b"data: YHOO\ndata: +2\ndata: 10\n\n", [message("YHOO\n+2\n10")]),
    "comment, ids, an id taken back, one space kept (spec, 9.2.6)": (
        b": test stream\n\ndata: first event\nid: 1\n\n"
        b"data:second event\nid\n\ndata:  third event\n\n",
        [message("first event", id="1"), message("second event"), message(" third event")],
    ),
    "empty data is data, an unended event is none (spec, 9.2.6)": (
        b"data\n\ndata\ndata\n\ndata:",
        [message(""), message("\n")],
    ),
    "with and without the space (spec, 9.2.6)": (
        b"data:test\n\ndata: test\n\n",
        [message("test"), message("test")],
    ),
    "named events": (
        b"event: add\ndata: 1\n\nevent: remove\ndata: 2\n\ndata: 3\n\n",
        [message("1", "add"), message("2", "remove"), message("3")],
    ),
    "an event without data is none, and its name is forgotten": (
        b"event: add\n\ndata: 1\n\n",
        [message("1")],
    ),
    "an id lasts, also from an event without data": (
        b"id: a\n\ndata: 1\n\ndata: 2\n\n",
        [message("1", id="a"), message("2", id="a")],
    ),
    "an id with NUL is ignored": (b"id: a\nid: b\0\ndata: 1\n\n", [message("1", id="a")]),
    "CR": (b"data: 1\r\rdata: 2\r\r", [message("1"), message("2")]),
    "CRLF": (b"data: 1\r\n\r\ndata: 2\r\n\r\n", [message("1"), message("2")]),
    "mixed line ends": (
        b"data: 1\rdata: 2\ndata: 3\r\n\ndata: 4\n\r",
        [message("1\n2\n3"), message("4")],
    ),
    "LF CR is two line ends": (b"data: 1\n\rdata: 2\n\n", [message("1"), message("2")]),
    "byte order mark": (b"\xef\xbb\xbfdata: 1\n\n", [message("1")]),
    "only the first byte order mark is one": (b"\xef\xbb\xbf\xef\xbb\xbfdata: 1\n\n", []),
    "a byte order mark further on is text": (
        b"\n\xef\xbb\xbfdata: 1\n\ndata: 2\n\n",
        [message("2")],
    ),
    "U+2028, U+2029, U+0085, VT and FF end no line": (
        "data: a\u2028b\u2029c\u0085d\x0be\x0cf\x1c\n\n".encode(),
        [message("a\u2028b\u2029c\u0085d\x0be\x0cf\x1c")],
    ),
    "unknown fields, retry, and fields in capitals are ignored": (
        b"retry: 10\nDATA: 1\n data: 2\nfoo\ndata: 3\n\n",
        [message("3")],
    ),
    "colons in the value": (b'data: {"a": ":"}\n\n', [message('{"a": ":"}')]),
    "a tab after the colon is text": (b"data:\t1\n\n", [message("\t1")]),
    "bytes that are not UTF-8": (b"data: \xff \xe2\x82\n\n", [message("\ufffd \ufffd")]),
    "pings (B13)": (SSE_PING + b"data: 1\n\n" + SSE_PING, [message("1")]),
}


@pytest.mark.parametrize("stream, frames", SSE_STREAMS.values(), ids=SSE_STREAMS)
def test_event_stream_is_read_as_the_spec_defines(stream, frames):
    assert SSEDecoder().feed(stream) == frames


@pytest.mark.parametrize("stream, frames", SSE_STREAMS.values(), ids=SSE_STREAMS)
@pytest.mark.parametrize("size", [1, 3])
def test_event_stream_reads_the_same_in_pieces(stream, frames, size):
    decoder = SSEDecoder()
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    assert [frame for piece in pieces for frame in decoder.feed(piece)] == frames


def test_event_is_given_at_the_cr_that_may_be_half_a_crlf():
    decoder = SSEDecoder()
    assert decoder.feed(b"data: 1\r\n\r") == [message("1")]
    assert decoder.feed(b"") == []
    assert decoder.feed(b"\ndata: 2\n\n") == [message("2")]


pieces_of_streams = st.lists(
    st.sampled_from(
        ["data", "event", "id", "retry", ":", " ", "\r", "\n", "\r\n", "\ufeff", "\0", "x", "é€😀"]
    )
)


def frames_at_once(text):
    """The spec's algorithm over a whole decoded text, in its own words."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    frames, last_id, event_type, data = [], "", "", ""
    *lines, _ = text.split("\n")
    for line in lines:
        if line == "":
            if data != "":
                frames.append(SSEFrame(event_type or "message", data[:-1], last_id))
            event_type, data = "", ""
            continue
        if line.startswith(":"):
            continue
        field, _, value = line.partition(":")
        if value.startswith(" "):
            value = value[1:]
        if field == "event":
            event_type = value
        elif field == "data":
            data += value + "\n"
        elif field == "id" and "\0" not in value:
            last_id = value
    return frames


@given(pieces_of_streams, st.lists(st.integers(0, 60)))
def test_any_text_in_pieces_reads_like_the_whole(pieces, cuts):
    text = "".join(pieces)
    stream = text.encode()
    decoder, frames = SSEDecoder(), []
    borders = [0, *sorted(cuts), len(stream)]
    for start, end in zip(borders, borders[1:], strict=False):
        frames += decoder.feed(stream[start:end])
    assert frames == frames_at_once(text)


@given(st.lists(st.binary(max_size=8)))
def test_garbage_never_raises(pieces):
    sse, ndjson = SSEDecoder(), NDJSONDecoder()
    for piece in pieces:
        sse.feed(piece)
        ndjson.feed(piece)
    ndjson.end()


json_values = st.lists(st.text() | st.integers())


@given(st.lists(st.tuples(json_values, st.none() | st.sampled_from(["delta", "é"]))))
def test_encoded_events_are_read_back(events):
    stream = b"".join(
        encode_sse(json.dumps(value, ensure_ascii=False).encode(), name) for value, name in events
    )
    assert [(json.loads(f.data), f.event) for f in SSEDecoder().feed(stream)] == [
        (value, name or "message") for value, name in events
    ]


def test_events_are_written_so():
    assert encode_sse(b"[DONE]") == b"data: [DONE]\n\n"
    assert encode_sse(b"{}", "ping") == encode_sse(b"{}", b"ping") == b"event: ping\ndata: {}\n\n"


@pytest.mark.parametrize("data", [b"a\nb", b"a\rb"])
def test_data_of_several_lines_is_our_bug(data):
    with pytest.raises(AssertionError):
        encode_sse(data)


@pytest.mark.parametrize(
    "pieces",
    [
        [b"data: 12345678901"],
        [b"data: 12345678901\n\n"],
        [b"data: 1234\n", b"data: 1"],
        [b": 1234567890", b"123456"],
        [b"data: 1\n\n", b"id: 1234567890123"],
    ],
)
def test_event_over_the_bound_is_refused(pieces):
    decoder = SSEDecoder(max_bytes=16)
    with pytest.raises(ProtocolError, match="^an event is longer than 16 bytes$"):
        for piece in pieces:
            decoder.feed(piece)


def test_events_up_to_the_bound_are_read():
    decoder = SSEDecoder(max_bytes=16)
    assert (
        decoder.feed(b"data: 1234567890\n\ndata: 1234567890\r\n\r\n") == [message("1234567890")] * 2
    )


NDJSON_STREAMS = {
    "lines": (b'{"a":1}\n{"b":2}\n', [b'{"a":1}', b'{"b":2}']),
    "CRLF": (b'{"a":1}\r\n{"b":2}\r\n', [b'{"a":1}', b'{"b":2}']),
    "empty lines": (b'\n\r\n{"a":1}\n \t\n', [b'{"a":1}']),
    "no LF at the end": (b'{"a":1}\n{"b":2}', [b'{"a":1}', b'{"b":2}']),
    "U+2028 and U+0085 end no line": ('"\u2028\u0085"\n'.encode(), ['"\u2028\u0085"'.encode()]),
    "nothing": (b"", []),
}


@pytest.mark.parametrize("stream, lines", NDJSON_STREAMS.values(), ids=NDJSON_STREAMS)
@pytest.mark.parametrize("size", [1, 2, 100])
def test_ndjson_is_read(stream, lines, size):
    decoder, read = NDJSONDecoder(), []
    for at in range(0, len(stream), size):
        read += decoder.feed(stream[at : at + size])
    assert read + decoder.end() == lines
    assert decoder.end() == []


def test_ndjson_line_is_given_at_its_end():
    decoder = NDJSONDecoder()
    assert decoder.feed(b'{"a":') == []
    assert decoder.feed(b'1}\n{"b"') == [b'{"a":1}']


@given(st.lists(json_values))
def test_encoded_lines_are_read_back(values):
    stream = b"".join(encode_ndjson(json.dumps(value).encode()) for value in values)
    assert [json.loads(line) for line in NDJSONDecoder().feed(stream)] == values


@pytest.mark.parametrize("pieces", [[b"12345678901"], [b"12345", b"678901\n"], [b"1\n12345678901"]])
def test_ndjson_line_over_the_bound_is_refused(pieces):
    decoder = NDJSONDecoder(max_bytes=10)
    with pytest.raises(ProtocolError, match="^a line is longer than 10 bytes$"):
        for piece in pieces:
            decoder.feed(piece)


@pytest.mark.parametrize("decoder", [SSEDecoder(), NDJSONDecoder()], ids=["sse", "ndjson"])
def test_long_lines_in_single_bytes_take_linear_time(decoder):
    started = time.perf_counter()
    for _ in range(200_000):
        decoder.feed(b"x")
    assert time.perf_counter() - started < 5
    decoder.feed(b"x" * 2**20 + b"\n\n")
    assert decoder.feed(b"data: 1\n\n") in ([message("1")], [b"data: 1"])


@pytest.mark.parametrize("encode", [encode_sse, encode_ndjson])
def test_json_is_one_line_to_clients_that_split_at_any_line_end(encode):
    """httpx's iter_lines, as str.splitlines, ends a line at these three too."""
    value = {"\u2028": "a\u0085b\u2028c\u2029d\x0b\x0c\x1c渐\u00c2\u0080"}
    frame = encode(json.dumps(value, ensure_ascii=False).encode())
    [line] = frame.decode().strip("\n").splitlines()
    assert json.loads(line.removeprefix("data: ")) == value


def test_an_empty_piece_between_cr_and_lf_is_no_line():
    decoder = SSEDecoder(100)
    assert [decoder.feed(piece) for piece in (b"data: a\r", b"", b"\n", b"", b"\n")] == [
        [], [], [], [], [SSEFrame("message", "a", "")]
    ]  # fmt: skip
