"""Any bytes of a stream are frames, or too long: the same however they are cut."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmproxy.core.errors import ProtocolError
from llmproxy.transport.framing import NDJSONDecoder, SSEDecoder
from tests.fuzz.corpus import cases

MAX_BYTES = 60
PIECES = [
    *(b"data:", b"data", b"event:", b"id:", b"retry:", b":", b" ", b"\r", b"\n", b"\r\n", b"\n\n"),
    *(b"\xef\xbb\xbf", b"\0", b"\xff", b"\xe2\x82\xac", b"\xe2\x82", b"{}", b"[DONE]", b"x" * 30),
]
streams = st.lists(st.sampled_from(PIECES), max_size=25).map(b"".join) | st.binary(max_size=90)


def read(decoder, pieces):
    frames = []
    try:
        for piece in pieces:
            frames += decoder.feed(piece)
    except ProtocolError as refused:
        assert refused.message.endswith(f"is longer than {MAX_BYTES} bytes")
        return None  # what came before it may be in the same piece, and lost with it
    return frames


def check(data, borders):
    borders = [0, *sorted(border % (len(data) + 1) for border in borders), len(data)]
    pieces = [data[a:b] for a, b in zip(borders, borders[1:], strict=False)]
    for decoder in (SSEDecoder, NDJSONDecoder):
        whole = read(decoder(MAX_BYTES), [data])
        assert read(decoder(MAX_BYTES), pieces) == whole
        assert read(decoder(MAX_BYTES), [data[i : i + 1] for i in range(len(data))]) == whole
        assert whole is not None or len(data) > MAX_BYTES
    assert all(b"\n" not in line and line for line in read(NDJSONDecoder(), [data]))
    for frame in read(SSEDecoder(), [data]):
        (frame.event + frame.data + frame.id).encode()
        assert "\r" not in frame.data + frame.event + frame.id


@given(streams, st.lists(st.integers(0, 500), max_size=5))
def test_any_stream_is_read_or_too_long(data, borders):
    check(data, borders)


@pytest.mark.slow
@given(streams, st.lists(st.integers(0, 500), max_size=5))
@settings(max_examples=500)
def test_very_many_streams_are_read_or_too_long(data, borders):
    check(data, borders)


@pytest.mark.parametrize("data", cases("framing"))
def test_case_of_the_corpus(data):
    check(data, [1, 5, 9, 14])
