"""Any bytes are requests, one of our errors or too few: the same however they are cut."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmproxy.core.errors import ProtocolError, ProxyError, TooLarge
from llmproxy.core.limits import Limits
from llmproxy.transport.http11 import RequestParser, decode_content
from tests.fuzz.corpus import cases
from tests.fuzz.wire import near_requests

LIMITS = Limits(body=1000, head=500, headers=6, target=100)
STATUSES = {ProtocolError: {400, 501, 505}, TooLarge: {413, 414, 431}}


def read(pieces):
    """All requests in these pieces, the error that ended them, and where the reader stands."""
    parser, requests, error = RequestParser(LIMITS), [], None
    for piece in pieces:
        parser.feed(piece)
        try:
            while request := parser.next_request():
                requests.append(request)
        except (ProtocolError, TooLarge) as failed:
            assert failed.status in STATUSES[type(failed)]
            assert str(failed).isprintable()
            error = str(failed)
    return requests, error, (parser.begun, parser.in_body, parser.method)


def cut(data, borders):
    borders = [0, *sorted(border % (len(data) + 1) for border in borders), len(data)]
    return [data[a:b] for a, b in zip(borders, borders[1:], strict=False)]


def check(data, borders):
    whole = read([data])
    assert read(cut(data, range(len(data)))) == whole
    assert read(cut(data, borders)) == whole
    requests, error, _ = whole
    if error is None and requests:  # what is read stays so, whatever comes after it
        assert read([data, b"\0\r\n"])[0][: len(requests)] == requests
    for request in requests:
        assert isinstance(request.path + request.query + request.host, str)
        assert request.keep_alive in (True, False)
        try:
            decode_content(request, LIMITS)
        except ProxyError as refused:
            assert refused.status in (400, 413, 415)


anything = near_requests() | st.binary(max_size=300)


@given(anything, st.lists(st.integers(0, 500), max_size=5))
def test_any_bytes_are_read_or_refused(data, borders):
    check(data, borders)


@pytest.mark.slow
@given(anything, st.lists(st.integers(0, 500), max_size=5))
@settings(max_examples=800)
def test_very_many_bytes_are_read_or_refused(data, borders):
    check(data, borders)


@pytest.mark.parametrize("data", cases("http11"))
def test_case_of_the_corpus(data):
    check(data, [7, 31, 32, 64])


@pytest.mark.slow
@given(near_requests(), st.binary(min_size=1, max_size=8), st.integers(0, 400))
@settings(max_examples=40)
def test_time_is_linear_whatever_is_repeated(data, piece, at):
    """Bytes many times over, within whatever a request stands in, and in small pieces."""
    limits = Limits(body=2**20, head=2**17, target=2**17)
    long = data[:at] + piece * (100_000 // len(piece)) + data[at:]
    for size in (len(long), 11):
        began = time.process_time()
        parser = RequestParser(limits)
        try:
            for start in range(0, len(long), size):
                parser.feed(long[start : start + size])
                while parser.next_request():
                    pass
        except ProxyError:
            pass
        assert time.process_time() - began < 1
