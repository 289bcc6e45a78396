"""HTTP/1.1 without IO: tables by hand, h11 and http.client as oracles, any cut, any garbage."""

import gzip
import http.client
import io
import time
import weakref
import zlib

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.core.errors import (
    InvalidRequest,
    ProtocolError,
    ProxyError,
    TooLarge,
    UnsupportedMediaType,
)
from llmproxy.core.limits import Limits
from llmproxy.transport import content_coding
from llmproxy.transport.http11 import (
    CONTINUE,
    LAST_CHUNK,
    Framed,
    Headers,
    Request,
    RequestParser,
    Response,
    decode_content,
    encode_chunk,
    encode_head,
    frame_response,
)

LIMITS = Limits(body=1000, head=500, headers=6, target=100)
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"


def parse(*pieces, limits=LIMITS):
    """Feed pieces; give the requests, and the error that ended them or None."""
    parser, requests = RequestParser(limits), []
    try:
        for piece in pieces:
            parser.feed(piece)
            while request := parser.next_request():
                requests.append(request)
    except ProxyError as error:
        return requests, error
    return requests, None


def in_pieces(data, size):
    return [data[at : at + size] for at in range(0, len(data), size)]


def get(target="/", *pairs, version="1.1", method="GET", body=b""):
    headers = Headers([("host", "a"), *pairs] if version == "1.1" else pairs)
    return Request(method, target, headers, body, version)


def post(*pairs, body=b"", version="1.1"):
    return get("/", *pairs, version=version, method="POST", body=body)


CHUNKED = ("transfer-encoding", "chunked")
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
POST_CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"

GOOD = {
    "smallest": (GET, [get()]),
    "query kept apart": (b"GET /a?b=c?d HTTP/1.1\r\nHost: a\r\n\r\n", [get("/a?b=c?d")]),
    "header names lose their case, values keep it; white space goes (9112 5.1)": (
        b"GET / HTTP/1.1\r\nhOsT:a\r\nX-One: \t Two three \t\r\nEmpty:\r\n\r\n",
        [get("/", ("x-one", "Two three"), ("empty", ""))],
    ),
    "obs-text and HTAB in a value (9110 5.5)": (
        b"GET / HTTP/1.1\r\nHost: a\r\nX: \xe9\t\xa0\r\n\r\n",
        [get("/", ("x", "\xe9\t\xa0"))],
    ),
    "every character of a token (9110 5.6.2)": (
        b"!#$%&'*+-.^_`|~aZ09 / HTTP/1.1\r\nHost: a\r\n!#$%&'*+-.^_`|~Az09: 1\r\n\r\n",
        [get("/", ("!#$%&'*+-.^_`|~az09", "1"), method="!#$%&'*+-.^_`|~aZ09")],
    ),
    "one field several times": (
        b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\nY: 2\r\nx: 3\r\n\r\n",
        [get("/", ("x", "1"), ("y", "2"), ("x", "3"))],
    ),
    "empty lines before a request (9112 2.2)": (b"\r\n\r\n" + GET + b"\r\n" + GET, [get()] * 2),
    "content-length": (
        POST + b"Content-Length: 5\r\n\r\nhello",
        [post(("content-length", "5"), body=b"hello")],
    ),
    "content-length 0": (POST + b"Content-Length: 0\r\n\r\n", [post(("content-length", "0"))]),
    "content-length with zeros in front": (
        POST + b"Content-Length: 005\r\n\r\nhello",
        [post(("content-length", "005"), body=b"hello")],
    ),
    "a body of exactly the limit": (
        POST + b"Content-Length: 1000\r\n\r\n" + b"x" * 1000,
        [post(("content-length", "1000"), body=b"x" * 1000)],
    ),
    "a GET may have a body (9110 9.3.1)": (
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi",
        [get("/", ("content-length", "2"), body=b"hi")],
    ),
    "chunks (9112 7.1)": (
        POST_CHUNKED + b"5\r\nhello\r\n0A\r\n, world!!!\r\n0\r\n\r\n",
        [post(CHUNKED, body=b"hello, world!!!")],
    ),
    "chunk sizes in either case, with zeros in front": (
        POST_CHUNKED + b"000a\r\n0123456789\r\nA\r\n0123456789\r\n00\r\n\r\n",
        [post(CHUNKED, body=b"0123456789" * 2)],
    ),
    "chunk extensions are ignored (9112 7.1.1)": (
        POST_CHUNKED + b'2;a;b=c ; d="e;\xe9"\r\nhi\r\n0 ;x\r\n\r\n',
        [post(CHUNKED, body=b"hi")],
    ),
    "trailers are dropped (9112 7.1.2)": (
        POST_CHUNKED + b"2\r\nhi\r\n0\r\nHost: b\r\nContent-Length: 7\r\n\r\n" + GET,
        [post(CHUNKED, body=b"hi"), get()],
    ),
    "chunk data that looks like an end": (
        POST_CHUNKED + b"7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n",
        [post(CHUNKED, body=b"\r\n0\r\n\r\n")],
    ),
    "transfer codings are case-insensitive (9112 7)": (
        POST + b"Transfer-Encoding:\tChunKed \r\n\r\n0\r\n\r\n",
        [post(("transfer-encoding", "ChunKed"))],
    ),
    "pipelined (9112 9.3.2)": (
        POST + b"Content-Length: 2\r\n\r\nhi" + GET + POST_CHUNKED + b"1\r\nx\r\n0\r\n\r\n" + GET,
        [
            post(("content-length", "2"), body=b"hi"),
            get(),
            post(CHUNKED, body=b"x"),
            get(),
        ],
    ),
    "HTTP/1.0 without Host": (b"GET / HTTP/1.0\r\n\r\n", [get(version="1.0")]),
    "HTTP/1.0 with Host": (
        b"GET / HTTP/1.0\r\nHost: b\r\n\r\n",
        [get("/", ("host", "b"), version="1.0")],
    ),
    "HTTP/1.0 with a body": (
        b"POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi",
        [post(("content-length", "2"), body=b"hi", version="1.0")],
    ),
    "a later minor version reads as the highest known (9110 2.5)": (
        b"GET / HTTP/1.9\r\nHost: a\r\n\r\n",
        [get()],
    ),
    "absolute form (9112 3.2.2)": (
        b"GET http://b:81/c?d HTTP/1.1\r\nHost: a\r\n\r\n",
        [get("http://b:81/c?d")],
    ),
    "asterisk form (9112 3.2.4)": (
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        [get("*", method="OPTIONS")],
    ),
    "authority form (9112 3.2.3)": (
        b"CONNECT b:443 HTTP/1.1\r\nHost: a\r\n\r\n",
        [get("b:443", method="CONNECT")],
    ),
    "an upgrade is ignored (9110 7.8)": (
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
        [get("/", ("connection", "upgrade"), ("upgrade", "h2c"))],
    ),
    "a target of exactly the limit": (
        b"GET /" + b"x" * 99 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        [get("/" + "x" * 99)],
    ),
    "nothing": (b"", []),
    "an empty line": (b"\r\n", []),
}


@pytest.mark.parametrize("data, requests", GOOD.values(), ids=GOOD)
def test_good_requests_are_read(data, requests):
    assert parse(data) == (requests, None)


@pytest.mark.parametrize("data, requests", GOOD.values(), ids=GOOD)
@pytest.mark.parametrize("size", [1, 3])
def test_good_requests_are_read_in_pieces(data, requests, size):
    assert parse(*in_pieces(data, size)) == (requests, None)


@pytest.mark.parametrize("data, requests", GOOD.values(), ids=GOOD)
def test_a_request_cut_short_is_waited_for(data, requests):
    parser = RequestParser(LIMITS)
    for byte in in_pieces(data[:-1], 1):
        parser.feed(byte)
        while parser.next_request():
            pass
    assert parser.begun == (len(data) > 1)


TLS = "this port speaks HTTP, not TLS: the URL must begin with http://"
LINE, HEADER, HOST = "malformed request line", "malformed header line", "malformed host header"
TARGET, LENGTH = "malformed request target", "malformed content-length"
CHUNK, CRLF = "malformed chunk size", "a line ends without CR LF"
CODING = "transfer-encoding must end with chunked, once"
BOTH = "content-length beside transfer-encoding"
FOLDED = "a header line is folded, or begins with a space"
HEAD_TOO_LARGE = "the head is larger than 500 bytes"
BODY_TOO_LARGE = "the body is larger than 1000 bytes"
TARGET_TOO_LONG = "the request target is longer than 100 bytes"


def line(request_line):
    return request_line + b"\r\nHost: a\r\n\r\n"


def fields(*lines):
    return b"POST / HTTP/1.1\r\n" + b"".join(each + b"\r\n" for each in lines) + b"\r\n"


def coded(value):
    return POST + b"Transfer-Encoding: " + value + b"\r\n\r\n0\r\n\r\n"


def length(value):
    return POST + b"Content-Length: " + value + b"\r\n\r\nhello"


BAD = {
    # Request line: RFC 9112 3
    "no version": (line(b"GET /"), 400, LINE),
    "HTTP/0.9": (b"GET /\r\n", 400, LINE),
    "no target": (line(b"GET HTTP/1.1"), 400, LINE),
    "two spaces": (line(b"GET  / HTTP/1.1"), 400, LINE),
    "tab for a space": (line(b"GET\t/ HTTP/1.1"), 400, LINE),
    "space in front": (line(b" GET / HTTP/1.1"), 400, LINE),
    "space at the end": (line(b"GET / HTTP/1.1 "), 400, LINE),
    "space in the target": (line(b"GET /a b HTTP/1.1"), 400, LINE),
    "control in the target": (line(b"GET /\x7f HTTP/1.1"), 400, LINE),
    "NUL in the target": (line(b"GET /\0 HTTP/1.1"), 400, LINE),
    "raw UTF-8 in the target": (line("GET /é HTTP/1.1".encode()), 400, LINE),
    "fragment in the target": (line(b"GET /#a HTTP/1.1"), 400, LINE),
    "bare CR": (line(b"GET /\rHTTP/1.1"), 400, LINE),
    "bare CR at the end": (line(b"GET / HTTP/1.1\r"), 400, LINE),
    "method is no token": (line(b"G(T / HTTP/1.1"), 400, LINE),
    "name in lower case": (line(b"GET / http/1.1"), 400, LINE),
    "other protocol": (line(b"GET / RTSP/1.0"), 400, LINE),
    "version of one number": (line(b"GET / HTTP/1"), 400, LINE),
    "version of two digits": (line(b"GET / HTTP/1.10"), 400, LINE),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n", 400, TLS),
    "HTTP/2 preface": (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        505,
        "HTTP/2.0 is not supported, HTTP/1.1 is",
    ),
    "HTTP/0.9 with a version": (
        line(b"GET / HTTP/0.9"),
        505,
        "HTTP/0.9 is not supported, HTTP/1.1 is",
    ),
    "too many empty lines": (b"\r\n" * 9 + GET, 400, "empty lines in place of a request"),
    "bare LF (2.2)": (b"GET / HTTP/1.1\nHost: a\n\n", 400, CRLF),
    "bare LF at the start": (b"\n", 400, CRLF),
    "bare LF after a header": (b"GET / HTTP/1.1\r\nHost: a\nX: 1\r\n\r\n", 400, CRLF),
    "bare LF at the end": (b"GET / HTTP/1.1\r\nHost: a\r\n\n", 400, CRLF),
    # Target: 3.2
    "asterisk for GET": (line(b"GET * HTTP/1.1"), 400, TARGET),
    "authority form for GET": (line(b"GET a:80 HTTP/1.1"), 400, TARGET),
    "origin form for CONNECT": (line(b"CONNECT / HTTP/1.1"), 400, TARGET),
    "absolute form for CONNECT": (line(b"CONNECT http://a/ HTTP/1.1"), 400, TARGET),
    "relative path": (line(b"GET a/b HTTP/1.1"), 400, TARGET),
    "other scheme": (line(b"GET ftp://a/ HTTP/1.1"), 400, TARGET),
    "absolute without a host (9110 4.2.1)": (line(b"GET http:///a HTTP/1.1"), 400, TARGET),
    "absolute with a port only": (line(b"GET http://:80/ HTTP/1.1"), 400, TARGET),
    "absolute with userinfo (9110 4.2.4)": (line(b"GET http://u@a/ HTTP/1.1"), 400, TARGET),
    "target too long": (line(b"GET /" + b"x" * 100 + b" HTTP/1.1"), 414, TARGET_TOO_LONG),
    "target without an end": (b"GET /" + b"x" * 200, 414, TARGET_TOO_LONG),
    # Fields: 5
    "obs-fold (5.2)": (fields(b"Host: a", b"X: 1", b" 2"), 400, FOLDED),
    "obs-fold with a tab": (fields(b"Host: a", b"X: 1", b"\t2"), 400, FOLDED),
    "space before the first field (2.2)": (fields(b" Host: a"), 400, FOLDED),
    "line of a space only": (fields(b"Host: a", b" "), 400, FOLDED),
    "space before the colon (5.1)": (fields(b"Host : a"), 400, HEADER),
    "tab before the colon": (fields(b"Host\t: a"), 400, HEADER),
    "no colon": (fields(b"Host: a", b"X"), 400, HEADER),
    "no name": (fields(b"Host: a", b": 1"), 400, HEADER),
    "name is no token": (fields(b"Host: a", b"X(Y: 1"), 400, HEADER),
    "name is not ASCII": (fields(b"Host: a", b"X\xe9: 1"), 400, HEADER),
    "bare CR in a value": (fields(b"Host: a", b"X: 1\rY: 2"), 400, HEADER),
    "bare CR after a value": (fields(b"Host: a", b"X: 1\r"), 400, HEADER),
    "NUL in a value (9110 5.5)": (fields(b"Host: a", b"X: 1\x002"), 400, HEADER),
    "control in a value": (fields(b"Host: a", b"X: 1\x012"), 400, HEADER),
    "DEL in a value": (fields(b"Host: a", b"X: 1\x7f"), 400, HEADER),
    "VT in a value": (fields(b"Host: a", b"Transfer-Encoding: \x0bchunked"), 400, HEADER),
    "head too large": (fields(b"Host: a", b"X: " + b"y" * 500), 431, HEAD_TOO_LARGE),
    "head without an end": (
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 500,
        431,
        HEAD_TOO_LARGE,
    ),
    "head too large by many lines": (fields(*[b"X: " + b"y" * 120] * 5), 431, HEAD_TOO_LARGE),
    "too many fields": (
        fields(b"Host: a", *[b"X: 1"] * 6),
        431,
        "there are more than 6 header fields",
    ),
    # Host: 3.2
    "no Host": (b"GET / HTTP/1.1\r\n\r\n", 400, "the host header is missing"),
    "no Host beside an absolute target": (
        b"GET http://a/ HTTP/1.1\r\n\r\n",
        400,
        "the host header is missing",
    ),
    "two Hosts": (fields(b"Host: a", b"Host: b"), 400, "there is more than one host header"),
    "two equal Hosts": (fields(b"Host: a", b"Host: a"), 400, "there is more than one host header"),
    "two Hosts in HTTP/1.0": (
        b"GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n",
        400,
        "there is more than one host header",
    ),
    "Host with a space": (fields(b"Host: a b"), 400, HOST),
    "Host of a list": (fields(b"Host: a, b"), 400, HOST),
    "Host with a path": (fields(b"Host: a/b"), 400, HOST),
    "Host with userinfo": (fields(b"Host: u@a"), 400, HOST),
    "Host with a query": (fields(b"Host: a?b"), 400, HOST),
    "Host with a backslash": (fields(b"Host: a\\b"), 400, HOST),
    "Host with a port that is no number": (fields(b"Host: a:b"), 400, HOST),
    "Host with two ports": (fields(b"Host: a:1:2"), 400, HOST),
    "Host that is an IPv6 address without brackets": (fields(b"Host: ::1"), 400, HOST),
    "Host with an open bracket": (fields(b"Host: [::1"), 400, HOST),
    "Host with a bad percent-encoding": (fields(b"Host: a%zz"), 400, HOST),
    "Host that is not ASCII": (fields("Host: é".encode()), 400, HOST),
    # Body length: 6
    "both lengths (6.1)": (
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        BOTH,
    ),
    "both lengths the other way round": (
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        400,
        BOTH,
    ),
    "transfer-encoding in HTTP/1.0 (6.1)": (
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "transfer-encoding in HTTP/1.0",
    ),
    "unknown coding, then chunked (6.1)": (
        coded(b"gzip, chunked"),
        501,
        "the only transfer coding known is chunked",
    ),
    "chunked twice (6.1)": (coded(b"chunked, chunked"), 400, CODING),
    "chunked twice, in two lines": (coded(b"chunked\r\nTransfer-Encoding: chunked"), 400, CODING),
    "chunked not last (6.3)": (coded(b"chunked, gzip"), 400, CODING),
    "chunked not last, in two lines": (
        coded(b"chunked\r\nTransfer-Encoding: identity"),
        400,
        CODING,
    ),
    "identity": (coded(b"identity"), 400, CODING),
    "empty coding": (coded(b""), 400, CODING),
    "chunked with an empty coding after it": (coded(b"chunked,"), 400, CODING),
    "chunked with an empty coding before it": (
        coded(b",chunked"),
        501,
        "the only transfer coding known is chunked",
    ),
    "chunked with a parameter": (coded(b"chunked;q=1"), 400, CODING),
    "chunked with NBSP": (coded(b"chunked\xa0"), 400, CODING),
    "chunked with NEL": (coded(b"\x85chunked"), 400, CODING),
    "xchunked": (coded(b"xchunked"), 400, CODING),
    "chunked in quotes": (coded(b'"chunked"'), 400, CODING),
    "two lengths (9110 8.6)": (length(b"5\r\nContent-Length: 6"), 400, LENGTH),
    "two equal lengths": (length(b"5\r\nContent-Length: 5"), 400, LENGTH),
    "length list": (length(b"5, 5"), 400, LENGTH),
    "negative length": (length(b"-5"), 400, LENGTH),
    "length with a plus": (length(b"+5"), 400, LENGTH),
    "hexadecimal length": (length(b"0x5"), 400, LENGTH),
    "length with an underscore": (length(b"1_0"), 400, LENGTH),
    "length with a space": (length(b"1 0"), 400, LENGTH),
    "length with NBSP": (length(b"5\xa0"), 400, LENGTH),
    "length in superscript": (length(b"\xb2"), 400, LENGTH),
    "length with a fraction": (length(b"5.0"), 400, LENGTH),
    "empty length": (length(b""), 400, LENGTH),
    "length over the limit": (length(b"1001"), 413, BODY_TOO_LARGE),
    "length of 450 digits": (
        POST + b"Content-Length: " + b"9" * 450 + b"\r\n\r\n",
        413,
        BODY_TOO_LARGE,
    ),
    # Chunks: 7.1
    "chunk size is no number": (POST_CHUNKED + b"x\r\n", 400, CHUNK),
    "chunk size with 0x": (POST_CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n", 400, CHUNK),
    "chunk size with a plus": (POST_CHUNKED + b"+5\r\nhello\r\n0\r\n\r\n", 400, CHUNK),
    "chunk size with a minus": (POST_CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n", 400, CHUNK),
    "chunk size with an underscore": (POST_CHUNKED + b"1_0\r\n", 400, CHUNK),
    "chunk size with a space in front": (POST_CHUNKED + b" 5\r\nhello\r\n", 400, CHUNK),
    "chunk size with a space after it": (POST_CHUNKED + b"5 \r\nhello\r\n", 400, CHUNK),
    "chunk size missing": (POST_CHUNKED + b"\r\n", 400, CHUNK),
    "chunk size of 17 digits": (POST_CHUNKED + b"0" * 17 + b"\r\n", 400, CHUNK),
    "extension without a semicolon": (POST_CHUNKED + b"5 a=b\r\nhello\r\n", 400, CHUNK),
    "CR in an extension": (POST_CHUNKED + b"5;a\rb\r\nhello\r\n", 400, CHUNK),
    "LF after a chunk size": (POST_CHUNKED + b"5\nhello\r\n0\r\n\r\n", 400, CRLF),
    "LF in an extension": (POST_CHUNKED + b"5;a\nhello\r\n0\r\n\r\n", 400, CRLF),
    "chunk longer than its size": (
        POST_CHUNKED + b"5\r\nhello!\r\n0\r\n\r\n",
        400,
        "a chunk is longer than its size",
    ),
    "LF after chunk data": (
        POST_CHUNKED + b"5\r\nhello\n0\r\n\r\n",
        400,
        "a chunk is longer than its size",
    ),
    "chunk over the limit": (POST_CHUNKED + b"3e9\r\n", 413, BODY_TOO_LARGE),
    "chunks over the limit together": (
        POST_CHUNKED + b"3e8\r\n" + b"x" * 1000 + b"\r\n1\r\n",
        413,
        BODY_TOO_LARGE,
    ),
    "chunk of 64 bits": (POST_CHUNKED + b"f" * 16 + b"\r\n", 413, BODY_TOO_LARGE),
    "extension without an end": (
        POST_CHUNKED + b"5;" + b"x" * 600,
        413,
        "the chunk extensions are larger than 500 bytes",
    ),
    "extensions too large together": (
        POST_CHUNKED + (b"1;" + b"x" * 200 + b"\r\ny\r\n") * 3,
        413,
        "the chunk extensions are larger than 500 bytes",
    ),
    "malformed trailer": (POST_CHUNKED + b"0\r\nX\r\n\r\n", 400, HEADER),
    "folded trailer": (POST_CHUNKED + b"0\r\nX: 1\r\n 2\r\n\r\n", 400, FOLDED),
    "trailers too large": (POST_CHUNKED + b"0\r\nX: " + b"y" * 600, 431, HEAD_TOO_LARGE),
    "too many trailers": (
        POST_CHUNKED + b"0\r\n" + b"X: 1\r\n" * 7,
        431,
        "there are more than 6 header fields",
    ),
}


@pytest.mark.parametrize("data, status, text", BAD.values(), ids=BAD)
@pytest.mark.parametrize("size", [1, 10_000])
def test_bad_requests_are_refused_after_the_good_ones(data, status, text, size):
    requests, error = parse(*in_pieces(GET + data + GET, size))
    assert requests == [get()]
    assert (error.status, error.message) == (status, text)
    assert type(error) is (TooLarge if status in (413, 414, 431) else ProtocolError)


def test_an_error_stays():
    parser = RequestParser(LIMITS)
    parser.feed(b"rubbish\r\n")
    with pytest.raises(ProtocolError) as first:
        parser.next_request()
    parser.feed(GET)
    with pytest.raises(ProtocolError) as second:
        parser.next_request()
    assert second.value is first.value
    assert parser.buffered == 0


def test_body_too_large_is_known_from_its_head():
    parser = RequestParser(LIMITS)
    parser.feed(POST + b"Content-Length: 1001\r\n\r\n")
    with pytest.raises(TooLarge):
        parser.next_request()


def test_request_that_was_given_is_not_kept():
    parser = RequestParser(LIMITS)
    parser.feed(GET)
    request = weakref.ref(parser.next_request())
    assert request() is None


def test_progress_of_a_request():
    parser = RequestParser(LIMITS)

    def progress(data):
        parser.feed(data)
        assert parser.next_request() is None
        return parser.begun, parser.in_body, parser.buffered

    assert progress(b"") == (False, False, 0)
    assert progress(b"P") == (True, False, 1)
    assert progress(b"OST / HTTP/1.1\r\n") == (True, False, 0)
    assert progress(b"Host: a\r\nContent-Length: 3\r\n\r") == (True, False, 1)
    assert progress(b"\n") == (True, True, 0)
    assert progress(b"ab") == (True, True, 0)
    parser.feed(b"cGET")
    assert parser.next_request() == post(("content-length", "3"), body=b"abc")
    assert (parser.begun, parser.in_body, parser.buffered) == (True, False, 3)


@pytest.mark.parametrize(
    "data, wanted",
    [
        (b"Expect: 100-continue\r\nContent-Length: 1\r\n\r\n", True),
        (b"Expect: 100-Continue\r\nTransfer-Encoding: chunked\r\n\r\n", True),
        (b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\nx", False),
        (b"Expect: 100-continue\r\nContent-Length: 0\r\n\r\n", False),
        (b"Expect: 100-continue\r\n\r\n", False),
        (b"Expect: other\r\nContent-Length: 1\r\n\r\n", False),
        (b"Content-Length: 1\r\n\r\n", False),
    ],
)
def test_continue_is_wanted_before_the_body_once(data, wanted):
    parser = RequestParser(LIMITS)
    parser.feed(POST)
    assert parser.next_request() is None
    assert parser.take_continue() is False
    parser.feed(data)
    parser.next_request()
    assert parser.take_continue() is wanted
    assert parser.take_continue() is False


def test_continue_is_never_wanted_by_http_1_0():
    parser = RequestParser(LIMITS)
    parser.feed(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n")
    assert parser.next_request() is None
    assert parser.take_continue() is False


@pytest.mark.parametrize(
    "request_, path, query, host",
    [
        (get("/"), "/", "", "a"),
        (get("/v1/models/a%2Fb%20%C3%A9?x=%20"), "/v1/models/a/b é", "x=%20", "a"),
        (get("/%ff%zz"), "/\ufffd%zz", "", "a"),
        (get("//b/c?"), "//b/c", "", "a"),
        (get("http://B:81/c?d?e"), "/c", "d?e", "b:81"),
        (get("HTTPS://b?d"), "/", "d", "b"),
        (get("http://b"), "/", "", "b"),
        (get("*", method="OPTIONS"), "*", "", "a"),
        (get("b:443", method="CONNECT"), "", "", "b:443"),
        (get("/", version="1.0"), "/", "", ""),
        (Request("GET", "/", Headers([("Host", "[::1]:80")])), "/", "", "[::1]:80"),
    ],
)
def test_target_is_taken_apart(request_, path, query, host):
    assert (request_.path, request_.query, request_.host) == (path, query, host)


@pytest.mark.parametrize(
    "version, connection, kept",
    [
        ("1.1", None, True),
        ("1.1", "close", False),
        ("1.1", "Close, TE", False),
        ("1.1", "keep-alive", True),
        ("1.0", None, False),
        ("1.0", "keep-alive", True),
        ("1.0", "Keep-Alive\t, x", True),
        ("1.0", "keep-alive, close", False),
    ],
)
def test_keep_alive(version, connection, kept):
    pairs = [("connection", connection)] if connection else []
    assert get("/", *pairs, version=version).keep_alive is kept


def test_headers():
    headers = Headers([("Accept", "a"), ("x-api-key", "secret"), ("ACCEPT", "b, c")])
    assert headers.get("aCCept") == "a, b, c"
    assert headers.get("none") is None
    assert headers.get("none", "") == ""
    assert headers.get_all("accept") == ["a", "b, c"]
    assert list(headers) == [("accept", "a"), ("x-api-key", "secret"), ("accept", "b, c")]
    assert len(headers) == 3
    assert headers == Headers(headers)
    assert hash(headers) == hash(Headers(headers))
    assert headers != Headers()
    assert headers != list(headers)
    assert "secret" not in repr(headers)
    assert repr(headers) == "Headers([('accept', 'a'), ('x-api-key', '…'), ('accept', 'b, c')])"


tokens = st.text("!#$%&'*+-.^_`|~aZ09", min_size=1, max_size=8)
values = st.text(st.characters(codec="latin-1", exclude_categories=["Cc"])).map(
    lambda text: text.strip(" \t\xa0")
)
bodies = st.lists(st.binary(max_size=50), max_size=4)
OURS = {"host", "content-length", "transfer-encoding", "connection", "expect"}
other_fields = st.lists(st.tuples(tokens.filter(lambda name: name.lower() not in OURS), values))


@st.composite
def sent_by_h11(draw):
    """Requests as h11's client writes them, and what they say."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=2**20)
    data, requests = b"", []
    for _ in range(draw(st.integers(1, 3))):
        pieces = draw(bodies)
        framing = draw(st.sampled_from([("content-length", str(sum(map(len, pieces)))), CHUNKED]))
        pairs = [("host", "a"), *draw(other_fields), framing]
        target = "/" + draw(st.text("abc/?%&=~", max_size=9))
        method = draw(tokens.filter(lambda name: name not in ("CONNECT", "HEAD")))
        event = h11.Request(
            method=method,
            target=target,
            headers=[(name, value.encode("latin-1")) for name, value in pairs],
        )
        data += connection.send(event)
        data += b"".join(connection.send(h11.Data(data=piece)) for piece in pieces)
        data += connection.send(h11.EndOfMessage())
        connection = h11.Connection(h11.CLIENT)
        requests.append(Request(method, target, Headers(pairs), b"".join(pieces)))
    return data, requests


BIG = Limits(head=2**20, headers=10_000)


@given(sent_by_h11(), st.lists(st.integers(0, 500)))
def test_what_h11_sends_is_read_the_same_however_it_is_cut(sent, cuts):
    data, requests = sent
    borders = [0, *sorted(cuts), len(data)]
    pieces = [data[start:end] for start, end in zip(borders, borders[1:], strict=False)]
    assert parse(*pieces, limits=BIG) == (requests, None)


PARTS = [
    *(b"GET POST / http://a/ * HTTP/1.1 HTTP/1.0 Host:a Host: Content-Length: 0 1 5 5, 0x".split()),
    *(b"Transfer-Encoding: chunked gzip identity Connection: close Expect: 100-continue".split()),
    *(b"\r\n \t \r \n \0 \xe9 \xa0 , ; : x hello hello\r\n 0\r\n\r\n 5\r\nhello\r\n".split(b" ")),
    *[b" ", GET, POST, POST_CHUNKED, b"Content-Length: 5\r\n", b"\r\n\r\n", b"0\r\n\r\n"],
]
soups = st.lists(st.sampled_from(PARTS)).map(b"".join) | st.binary()


def read_by_h11(data):
    """The requests that h11's server reads, up to the first that is broken or not whole."""
    connection, requests, head, body = h11.Connection(h11.SERVER), [], None, b""
    connection.receive_data(data)
    try:
        while (event := connection.next_event()) is not h11.NEED_DATA:
            match event:
                case h11.Request():
                    head, body = event, b""
                case h11.Data():
                    body += bytes(event.data)
                case h11.EndOfMessage():
                    requests.append((head.method, head.target, list(head.headers), body))
                    connection.send(h11.Response(status_code=200, headers=[]))
                    connection.send(h11.EndOfMessage())
                    connection.start_next_cycle()
                case h11.PAUSED | h11.ConnectionClosed():
                    break
    except h11.ProtocolError:
        pass
    return requests


def as_h11(request):
    headers = [(name.encode(), value.encode("latin-1")) for name, value in request.headers]
    return request.method.encode(), request.target.encode(), headers, request.body


def check_soup(data):
    requests, error = parse(data)
    assert error is None or type(error) in (ProtocolError, TooLarge)
    in_bytes, same_error = parse(*in_pieces(data, 1))
    assert (in_bytes, str(same_error)) == (requests, str(error))
    # We may be stricter than h11, but what we do take, it takes for the same. It reads
    # no empty line before a request, and nothing after one that closes the connection.
    theirs = read_by_h11(data)
    if not data.startswith((b"\r", b"\n")) and b"\r\n\r\n\r\n" not in data:
        for ours, other in zip(requests, theirs, strict=False):
            assert as_h11(ours) == other
        assert len(requests) <= len(theirs) or not all(each.keep_alive for each in requests)


@given(soups)
def test_garbage_raises_our_errors_or_waits_and_h11_never_reads_it_otherwise(data):
    check_soup(data)


def test_large_body_takes_linear_time_and_each_byte_once():
    limits = Limits()
    piece = b"x" * 2**16
    for head, each, end in [
        (POST + b"Content-Length: %d\r\n\r\n" % limits.body, piece, b""),
        (POST_CHUNKED, b"10000\r\n" + piece + b"\r\n", b"0\r\n\r\n"),
        (POST_CHUNKED + b"%x\r\n" % limits.body, piece, b"\r\n0\r\n\r\n"),
    ]:
        started = time.perf_counter()
        parser = RequestParser(limits)
        parser.feed(head)
        for _ in range(limits.body // len(piece)):
            parser.feed(each)
            assert parser.next_request() is None or not end
        parser.feed(end)
        assert (parser.next_request() is None) == (not end)
        assert time.perf_counter() - started < 3


@pytest.mark.parametrize(
    "head", [b"GET /", b"GET / HTTP/1.1\r\nHost: a\r\nX: ", POST_CHUNKED + b"5;", POST_CHUNKED]
)
def test_single_bytes_take_linear_time(head):
    limits = Limits(head=2**20, target=2**20)
    data = (b"1\r\nx\r\n" if head == POST_CHUNKED else b"x") * 200_000
    started = time.perf_counter()
    requests, error = parse(head, *in_pieces(data[:200_000], 1), limits=limits)
    assert (requests, error) == ([], None)
    assert time.perf_counter() - started < 3


def test_many_pipelined_requests_take_linear_time():
    started = time.perf_counter()
    requests, error = parse(GET * 20_000)
    assert (len(requests), error) == (20_000, None)
    assert time.perf_counter() - started < 3


def gzipped(data, **fields):
    pairs = {"content-encoding": "gzip", "content-length": str(len(data)), **fields}
    return post(*pairs.items(), body=data)


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "GZip", " gzip "])
def test_gzip_body_is_inflated(coding):
    request = gzipped(
        gzip.compress(b"hello" * 100, mtime=0), **{"content-encoding": coding, "x": "1"}
    )
    inflated = decode_content(request, LIMITS)
    assert inflated == post(("x", "1"), body=b"hello" * 100)
    assert decode_content(inflated, LIMITS) is inflated


def test_gzip_members_follow_one_another():
    data = (
        gzip.compress(b"hello", mtime=0)
        + gzip.compress(b"", mtime=0)
        + gzip.compress(b" world", mtime=0)
    )
    assert decode_content(gzipped(data), LIMITS).body == b"hello world"


@pytest.mark.parametrize("coding", ["identity", "", "Identity, identity"])
def test_identity_is_left_as_it_is(coding):
    request = post(("content-encoding", coding), body=b"hello")
    assert decode_content(request, LIMITS) is request


def test_no_body_needs_no_decoding():
    request = post(("content-encoding", "br"))
    assert decode_content(request, LIMITS) is request


@pytest.mark.parametrize(
    "coding", ["br", "gzip, gzip", "gzip;q=1", "identity, gzip", "deflate, gzip", "x-deflate"]
)
def test_other_codings_are_refused(coding):
    with pytest.raises(
        UnsupportedMediaType, match="^the content codings known are gzip and"
    ) as info:
        decode_content(post(("content-encoding", coding), body=b"x"), LIMITS)
    assert info.value.headers["accept-encoding"].startswith("gzip, deflate")


@pytest.mark.parametrize(
    "data, error, text",
    [
        (b"hello", InvalidRequest, "the body is not gzip"),
        (zlib.compress(b"hello"), InvalidRequest, "the body is not gzip"),
        (gzip.compress(b"hello", mtime=0) + b"x", InvalidRequest, "the gzip body is cut short"),
        (gzip.compress(b"hello", mtime=0) + b"rubbish", InvalidRequest, "the body is not gzip"),
        (gzip.compress(b"hello", mtime=0)[:-1], InvalidRequest, "the gzip body is cut short"),
        (gzip.compress(b"hello", mtime=0)[:-8] + bytes(8), InvalidRequest, "the body is not gzip"),
        (
            gzip.compress(b"", mtime=0) * 17,
            InvalidRequest,
            "the gzip body has more than 16 members",
        ),
        (gzip.compress(b"x" * 1001, mtime=0), TooLarge, BODY_TOO_LARGE),
        (gzip.compress(b"x" * 501, mtime=0) * 2, TooLarge, BODY_TOO_LARGE),
        (gzip.compress(bytes(50 * 2**20), mtime=0), TooLarge, BODY_TOO_LARGE),
    ],
)
def test_bad_gzip_is_refused(data, error, text):
    with pytest.raises(error) as info:
        decode_content(gzipped(data), LIMITS)
    assert info.value.message == text


@pytest.mark.parametrize("wbits", [zlib.MAX_WBITS, -zlib.MAX_WBITS])
def test_deflate_body_is_inflated_with_its_zlib_header_or_without(wbits):
    body = zlib.compress(b"hello" * 100, wbits=wbits)
    assert decode_content(gzipped(body, **DEFLATE), LIMITS).body == b"hello" * 100


DEFLATE = {"content-encoding": "deflate"}


@pytest.mark.parametrize(
    "data, error, text",
    [
        (b"hello", InvalidRequest, "the body is not deflate"),
        (zlib.compress(b"hello")[:-1], InvalidRequest, "the deflate body is cut short"),
        (b"x", InvalidRequest, "the deflate body is cut short"),
        (
            zlib.compress(b"hello") + b"x",
            InvalidRequest,
            "the deflate body continues after its compressed data",
        ),
        (zlib.compress(bytes(50 * 2**20)), TooLarge, BODY_TOO_LARGE),
    ],
)
def test_bad_deflate_is_refused(data, error, text):
    with pytest.raises(error) as info:
        decode_content(gzipped(data, **DEFLATE), LIMITS)
    assert info.value.message == text


# ---- zstd, which Codex uses when it is logged in


@pytest.fixture(params=["compression.zstd", "backports.zstd"])
def zstd(request, monkeypatch):
    """Python 3.14's module, or its backport for older ones in its place."""
    module = pytest.importorskip(request.param)
    monkeypatch.setattr(content_coding, "zstd", module)
    monkeypatch.setattr(content_coding, "_ERRORS", (zlib.error, module.ZstdError))
    return module


ZSTD = {"content-encoding": "zstd"}


def test_zstd_body_is_inflated(zstd):
    body = zstd.compress(b"hello" * 50) + zstd.compress(b" world" * 50)
    assert decode_content(gzipped(body, **ZSTD), LIMITS).body == b"hello" * 50 + b" world" * 50


def test_bad_zstd_is_refused(zstd):
    window = {zstd.CompressionParameter.window_log: 27}
    for data, error, text in [
        (b"hello", InvalidRequest, "the body is not zstd"),
        (zstd.compress(b"hello")[:-1], InvalidRequest, "the zstd body is cut short"),
        (zstd.compress(bytes(50 * 2**20)), TooLarge, BODY_TOO_LARGE),
        # More memory than a decoder has to keep.
        (zstd.compress(bytes(2**26), options=window), InvalidRequest, "the body is not zstd"),
    ]:
        with pytest.raises(error) as info:
            decode_content(gzipped(data, **ZSTD), LIMITS)
        assert info.value.message == text


def test_zstd_is_refused_with_the_switch_of_codex_where_python_has_none(monkeypatch):
    monkeypatch.setattr(content_coding, "zstd", None)
    with pytest.raises(UnsupportedMediaType) as info:
        decode_content(post(("content-encoding", "zstd"), body=b"x"), LIMITS)
    assert "set features.enable_request_compression=false" in info.value.message
    assert info.value.headers == {"accept-encoding": "gzip, deflate"}


def test_gzip_body_may_inflate_to_the_limit():
    assert decode_content(gzipped(gzip.compress(b"x" * 1000, mtime=0)), LIMITS).body == b"x" * 1000
    two = gzip.compress(b"x" * 1000, mtime=0) + gzip.compress(b"", mtime=0)
    assert decode_content(gzipped(two), LIMITS).body == b"x" * 1000


@given(st.binary() | st.binary().map(lambda data: gzip.compress(b"", mtime=0)[:10] + data))
def test_any_gzip_body_is_inflated_or_refused(data):
    try:
        decode_content(gzipped(data), LIMITS)
    except (InvalidRequest, TooLarge):
        pass


def test_head_is_written_so():
    assert encode_head(200, [("content-type", "a/b"), ("x", "é")]) == (
        b"HTTP/1.1 200 OK\r\ncontent-type: a/b\r\nx: \xe9\r\n\r\n"
    )
    assert encode_head(529, []) == b"HTTP/1.1 529 Overloaded\r\n\r\n"
    assert encode_head(499, []) == b"HTTP/1.1 499 Unknown\r\n\r\n"
    assert CONTINUE == b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.mark.parametrize(
    "name, value",
    [
        ("x", "1\r\nset-cookie: a"),
        ("x", "1\n"),
        ("x", "1\r"),
        ("x", "\0"),
        ("x", "€"),
        ("x y", "1"),
        ("x:", "1"),
        ("", "1"),
        ("é", "1"),
    ],
)
def test_header_that_can_not_be_written_is_not(name, value):
    with pytest.raises(ValueError):
        encode_head(200, [(name, value)])


def test_chunks_are_written_so():
    assert encode_chunk(b"x" * 26) == b"1a\r\n" + b"x" * 26 + b"\r\n"
    assert encode_chunk(b"") == b""
    assert LAST_CHUNK == b"0\r\n\r\n"


async def no_items():
    return
    yield b""


def framed(status=200, body=b"hi", request=None, **options):
    plan = frame_response(Response(status, [("x", "1")], body), request, date=DATE, **options)
    first, *lines = plan.head.decode().split("\r\n")
    assert lines[:2] == ["date: " + DATE, "x: 1"]
    assert lines[-2:] == ["", ""]
    return Framed(b"", plan.has_body, plan.chunked, plan.keep_alive), lines[2:-2]


PLANS = {
    "bytes": (framed(request=get()), (1, 0, 1), ["content-length: 2"]),
    "no bytes": (framed(body=b"", request=get()), (1, 0, 1), ["content-length: 0"]),
    "stream": (framed(body=no_items(), request=get()), (1, 1, 1), ["transfer-encoding: chunked"]),
    "client closes": (
        framed(request=get("/", ("connection", "close"))),
        (1, 0, 0),
        ["content-length: 2", "connection: close"],
    ),
    "server closes": (
        framed(body=no_items(), request=get(), close=True),
        (1, 1, 0),
        ["transfer-encoding: chunked", "connection: close"],
    ),
    "no request": (framed(400), (1, 0, 0), ["content-length: 2", "connection: close"]),
    "HEAD": (framed(request=get(method="HEAD")), (0, 0, 1), ["content-length: 2"]),
    "HEAD of a stream": (
        framed(body=no_items(), request=get(method="HEAD")),
        (0, 1, 1),
        ["transfer-encoding: chunked"],
    ),
    "204": (framed(204, b"", request=get()), (0, 0, 1), []),
    "204 with a body": (framed(204, request=get()), (0, 0, 1), []),
    "304 with a stream": (framed(304, no_items(), request=get()), (0, 0, 1), []),
    "1.0": (
        framed(request=get(version="1.0")),
        (1, 0, 0),
        ["content-length: 2", "connection: close"],
    ),
    "1.0 keeps alive": (
        framed(request=get("/", ("connection", "keep-alive"), version="1.0")),
        (1, 0, 1),
        ["content-length: 2", "connection: keep-alive"],
    ),
    "1.0 stream ends with the connection": (
        framed(body=no_items(), request=get("/", ("connection", "keep-alive"), version="1.0")),
        (1, 0, 0),
        ["connection: close"],
    ),
}


@pytest.mark.parametrize("plan, expected, lines", PLANS.values(), ids=PLANS)
def test_framing_of_responses(plan, expected, lines):
    assert plan == (Framed(b"", *map(bool, expected)), lines)


class _Socket(io.BytesIO):
    def makefile(self, mode):
        return self


written = st.tuples(
    st.sampled_from([200, 204, 304, 404, 529]),
    st.sampled_from(["GET", "HEAD"]),
    st.lists(st.tuples(tokens.filter(lambda name: name.lower() not in OURS), values), max_size=3),
    st.binary() | bodies,
)


@given(written)
def test_responses_are_read_the_same_by_h11_and_http_client(response):
    status, method, pairs, body = response
    stream = not isinstance(body, bytes)
    plan = frame_response(
        Response(status, pairs, no_items() if stream else body), get(method=method), date=DATE
    )
    data, whole = plan.head, b""
    if plan.has_body:
        whole = b"".join(body) if stream else body
        data += b"".join(map(encode_chunk, body)) + LAST_CHUNK if stream else body

    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method=method, target="/", headers=[("host", "a")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    events = []
    while (event := connection.next_event()) is not h11.PAUSED and event is not h11.NEED_DATA:
        events.append(event)
    head, *datas, end = events
    assert head.status_code == status
    theirs = [(name.decode(), value.decode("latin-1")) for name, value in head.headers]
    assert theirs[1 : 1 + len(pairs)] == [(name.lower(), value) for name, value in pairs]
    assert b"".join(bytes(each.data) for each in datas) == whole
    assert isinstance(end, h11.EndOfMessage)
    assert connection.trailing_data == (b"", False)

    read = http.client.HTTPResponse(_Socket(data), method=method)
    read.begin()
    assert (read.status, read.read()) == (status, whole)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (413, "Content Too Large"),
        (414, "URI Too Long"),
        (416, "Range Not Satisfiable"),
        (422, "Unprocessable Content"),
        (529, "Overloaded"),
        (599, "Unknown"),
    ],
)
def test_reason_phrases_are_those_of_rfc_9110_on_every_python(status, reason):
    assert encode_head(status, ()) == f"HTTP/1.1 {status} {reason}\r\n\r\n".encode()
