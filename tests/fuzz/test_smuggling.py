"""No request is read by others otherwise than by us: what request smuggling would need.

Where we take a request, llhttp (Node) and h11 take it too, with the same fields and body and
the same end; where they refuse what we take, the reason stands in AGREED. That we refuse
more than they do is no danger.
"""

import re

import pytest
from hypothesis import given, settings

from llmproxy.core.limits import Limits
from tests.fuzz.corpus import cases
from tests.fuzz.readers import read_by_h11, read_by_llhttp, read_by_us
from tests.fuzz.wire import TABLE, near_requests

LIMITS = Limits(body=10_000)
READERS = {"llhttp": read_by_llhttp, "h11": read_by_h11}

NODES_METHODS = set("GET POST PUT HEAD DELETE OPTIONS PATCH TRACE CONNECT".split())
HIGHER_MINOR = re.compile(rb"HTTP/1\.[2-9]\r\n")
SPACED = re.compile(rb"[\t ];|;[\t ]|;[^\r\n]*[\t ]")
LONG_LENGTH = re.compile(rb"(?i)content-length:[\t ]*0\d{20}")
TRAILERS = re.compile(rb"\r\n0+(?:[\t ]*;[^\r\n]*)?\r\n[^\r\n]")

# (reader, its words, when that is all there is to it): why we differ
AGREED = {
    ("llhttp", "", lambda data, ours: ours.method not in NODES_METHODS): (
        "it knows a list of methods; ours is the server's to answer with 501 (9110 9.1)"
    ),
    ("llhttp", "Invalid HTTP version", lambda data, ours: HIGHER_MINOR.search(data)): (
        "it knows two versions; a higher minor one is to be read as 1.1 (9110 2.5)"
    ),
    ("llhttp", "Request has invalid `Transfer-Encoding`", lambda data, ours: b"\t" in data): (
        "it does not know a tab for white space (9110 5.6.3)"
    ),
    ("llhttp", "Invalid character in chunk size", lambda data, ours: SPACED.search(data)): (
        "it takes no white space about an extension (9112 7.1.1: a MUST)"
    ),
    ("llhttp", "Invalid character in chunk extensions", lambda data, ours: SPACED.search(data)): (
        "it takes no white space about an extension (9112 7.1.1: a MUST)"
    ),
    ("llhttp", "Content-Length can't be present", lambda data, ours: TRAILERS.search(data)): (
        "it takes framing fields of a trailer for the head's (9110 6.5.1: a MUST NOT)"
    ),
    ("llhttp", "Invalid character in Content-Length", lambda data, ours: TRAILERS.search(data)): (
        "it takes framing fields of a trailer for the head's (9110 6.5.1: a MUST NOT)"
    ),
    ("llhttp", "Invalid `Transfer-Encoding`", lambda data, ours: TRAILERS.search(data)): (
        "it takes framing fields of a trailer for the head's (9110 6.5.1: a MUST NOT)"
    ),
    ("llhttp", "Data after `Connection: close`", lambda data, ours: TRAILERS.search(data)): (
        "it takes framing fields of a trailer for the head's (9110 6.5.1: a MUST NOT)"
    ),
    ("h11", "no request line received", lambda data, ours: b"\r\n\r\n" in data): (
        "it reads no empty line before a request (9112 2.2: a SHOULD)"
    ),
    ("h11", "bad Content-Length", lambda data, ours: LONG_LENGTH.search(data)): (
        "it takes 20 digits at most, zeros included"
    ),
    ("h11", "illegal chunk header", lambda data, ours: SPACED.search(data)): (
        "it takes no white space before an extension (9112 7.1.1: a MUST)"
    ),
    ("h11", "bad Content-Length", lambda data, ours: TRAILERS.search(data)): (
        "it checks framing fields of a trailer too"
    ),
    ("h11", "conflicting Content-Length", lambda data, ours: TRAILERS.search(data)): (
        "it checks framing fields of a trailer too"
    ),
    ("h11", "Only Transfer-Encoding: chunked", lambda data, ours: TRAILERS.search(data)): (
        "it checks framing fields of a trailer too"
    ),
    ("h11", "multiple Transfer-Encoding", lambda data, ours: TRAILERS.search(data)): (
        "it checks framing fields of a trailer too"
    ),
}

# (reader, when): why it then reads no more requests, or another body
ENDS = {
    ("h11", lambda ours: ours.version == "1.0"): "it never keeps a connection of HTTP/1.0",
    ("h11", lambda ours: ours.method == "CONNECT"): "it waits for its user to refuse the tunnel",
    ("llhttp", lambda ours: ours.method == "CONNECT" or ours.headers.get("upgrade") is not None): (
        "it leaves what follows to its user, who may take the upgrade; we never do"
    ),
}


def is_agreed(reader, refusal, data, ours):
    return any(
        reader == name and refusal.startswith(words) and applies(data, ours)
        for name, words, applies in AGREED
    )


def lowered(read):
    """h11 gives the value of transfer-encoding in lower case."""
    fields = [(n, v.lower() if n == b"transfer-encoding" else v) for n, v in read.fields]
    return read.method, read.target, fields, read.body


def check(data):
    ours, requests = read_by_us(data, LIMITS)
    for reader, read in READERS.items():
        theirs = read(data)
        for i, request in enumerate(requests):
            if any(reader == name and applies(request) for name, applies in ENDS):
                break
            if i == len(theirs.requests):
                assert theirs.refusal is not None, f"{reader} would wait"
                assert is_agreed(reader, theirs.refusal, data, request), (reader, theirs.refusal)
                break
            assert lowered(theirs.requests[i]) == lowered(ours.requests[i]), reader
        else:
            is_waiting = ours.refusal is None and not ours.stopped
            assert not is_waiting or len(theirs.requests) == len(requests), reader


@pytest.mark.parametrize("data", TABLE)
def test_a_row_of_the_table_is_read_as_others_read_it(data):
    check(data)


@pytest.mark.parametrize("data", cases("http11"))
def test_a_case_of_the_corpus_is_read_as_others_read_it(data):
    check(data)


def test_httptools_is_llhttp():
    """Its first parser was another, which took more: then these would be no tests."""
    assert read_by_llhttp(b"GET / HTTP/1.1\nHost: a\n\n").refusal is not None


@given(near_requests())
def test_what_we_read_others_read_the_same_way(data):
    check(data)


@pytest.mark.slow
@given(near_requests())
@settings(max_examples=1_200)
def test_what_we_read_others_read_the_same_way_in_very_many_cases(data):
    check(data)
