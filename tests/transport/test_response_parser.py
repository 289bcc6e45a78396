"""Answers without IO: tables by hand, h11 and http.client as oracles, any cut, any garbage."""

import gzip
import http.client
import io
import zlib

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmproxy.core.errors import UpstreamError
from llmproxy.core.limits import Limits
from llmproxy.transport.content_coding import MAX_STREAM_MEMBERS, PIECE_BYTES
from llmproxy.transport.http11 import Headers, Request, RequestParser
from llmproxy.transport.response_parser import (
    ResponseHead,
    ResponseParser,
    encode_request,
)

LIMITS = Limits(body=5000, head=500, headers=6)
OK = b"HTTP/1.1 200 OK\r\n"


def read(*pieces, limits=LIMITS, method="POST", is_ended=True):
    """Feed pieces; give the head or None, the body, and the error that ended it or None."""
    parser, head, body = ResponseParser(limits, method=method), None, b""
    try:
        for piece in [*pieces, None]:
            if piece is not None:
                parser.feed(piece)
            elif is_ended:
                parser.end()
            while (item := parser.next_piece()) is not None:
                if isinstance(item, ResponseHead):
                    assert head is None
                    head = item
                else:
                    assert item
                    body += item
    except UpstreamError as error:
        with pytest.raises(UpstreamError, match="^" + error.message.partition("(")[0]):
            parser.next_piece()
        return head, body, error.message
    return head, body, None if parser.is_whole else "not whole"


def in_pieces(data, size):
    return [data[at : at + size] for at in range(0, len(data), size)]


def chunked(*chunks, end=b"0\r\n\r\n"):
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + end


def raw_deflate(data):
    coder = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return coder.compress(data) + coder.flush()


READ = {
    "a length": (OK + b"Content-Length: 3\r\n\r\nabc", b"abc"),
    "a length of nothing": (OK + b"Content-Length: 0\r\n\r\n", b""),
    "the same length twice": (OK + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", b"abc"),
    "what follows is not read": (OK + b"Content-Length: 3\r\n\r\nabcHTTP/1.1 200", b"abc"),
    "to the end": (OK + b"\r\nabc", b"abc"),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\n\r\nabc", b"abc"),
    "no reason": (b"HTTP/1.1 200\r\n\r\nabc", b"abc"),
    "a reason of any bytes": (b"HTTP/1.1 200 \xe4\xf6 x\r\n\r\nabc", b"abc"),
    "bare line feeds": (b"HTTP/1.1 200 OK\nContent-Length: 3\n\nabc", b"abc"),
    "chunks": (OK + b"Transfer-Encoding: Chunked\r\n\r\n" + chunked(b"ab", b"c"), b"abc"),
    "chunks in HTTP/1.0": (
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"abc"),
        b"abc",
    ),
    "chunks override a length": (
        OK + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"abc"),
        b"abc",
    ),
    "chunks with extensions and trailers": (
        OK + b"Transfer-Encoding: chunked\r\n\r\n"
        b'003;a=b ;c="d"\r\nabc\r\n000;x\r\nContent-Length: 9\r\nX: y\r\n\r\n',
        b"abc",
    ),
    "interim answers": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        b"HTTP/1.1 102\r\n\r\n" + OK + b"Content-Length: 3\r\n\r\nabc",
        b"abc",
    ),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\nabc", b""),
    "304 with a length": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n", b""),
    "gzip": (OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b"abc"), b"abc"),
    "gzip of nothing": (OK + b"Content-Encoding: gzip\r\nContent-Length: 0\r\n\r\n", b""),
    "gzip of two members": (
        OK + b"Content-Encoding: X-GZIP\r\n\r\n" + gzip.compress(b"ab") + gzip.compress(b"c"),
        b"abc",
    ),
    "gzip in chunks": (
        OK + b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
        + chunked(*in_pieces(gzip.compress(b"abc"), 5)),
        b"abc",
    ),
    "deflate": (OK + b"Content-Encoding: deflate\r\n\r\n" + zlib.compress(b"abc"), b"abc"),
    "deflate alone": (OK + b"Content-Encoding: deflate\r\n\r\n" + raw_deflate(b"abc"), b"abc"),
    "identity": (OK + b"Content-Encoding: identity\r\n\r\nabc", b"abc"),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_a_response_is_read_however_it_is_split(name, size):
    data, body = READ[name]
    head, read_body, error = read(*in_pieces(data, size))
    assert (head.status in (200, 204, 304), read_body, error) == (True, body, None)


def test_fields_are_read_as_they_came_and_folds_as_spaces():
    data = OK + b"X-A:  b \r\n\t c\r\n  d\r\nSet-Cookie: 1\r\nset-cookie: 2\r\n\r\n"
    head, _, error = read(data)
    fields = Headers([("x-a", "b c d"), ("set-cookie", "1"), ("set-cookie", "2")])
    assert (head, error) == (ResponseHead(200, fields), None)


def test_a_response_to_head_has_no_body():
    data = OK + b"Content-Length: 3\r\n\r\n"
    head, body, error = read(data, method="HEAD", is_ended=False)
    assert (head.status, body, error) == (200, b"", None)


UNREADABLE = "the upstream's response can't be read: "
NOT_HTTP = "the upstream's response is not HTTP/1.1"
BAD_FIELD = UNREADABLE + "malformed header line"
BAD_CHUNK = UNREADABLE + "malformed chunk size"
CUT = "the upstream cut the connection before its response was complete"
TOO_LARGE = UNREADABLE + "the body is larger than 5000 bytes"
BAD_CODING = "the upstream's body does not match its content-encoding"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
GZIP = OK + b"Content-Encoding: gzip\r\n\r\n"
BROKEN = {
    "nothing": (b"", b"", "the upstream closed the connection without a response"),
    "cut head": (OK + b"X: y\r\n", b"", CUT),
    "cut length": (OK + b"Content-Length: 5\r\n\r\nabc", b"abc", CUT),
    "cut chunk": (CHUNKED + b"5\r\nabc", b"abc", CUT),
    "cut behind a chunk": (CHUNKED + b"3\r\nabc\r", b"abc", CUT),
    "cut before the last chunk": (CHUNKED + chunked(b"abc", end=b""), b"abc", CUT),
    "cut trailers": (CHUNKED + chunked(b"abc", end=b"0\r\n"), b"abc", CUT),
    "cut gzip": (
        GZIP + gzip.compress(b"abc")[:-1],
        b"abc",
        "the upstream's body ends within its compressed data",
    ),
    "cut deflate": (
        OK + b"Content-Encoding: deflate\r\n\r\nx",
        b"",
        "the upstream's body ends within its compressed data",
    ),
    "no gzip": (GZIP + b"abc", b"", BAD_CODING),
    "gzip and more": (GZIP + gzip.compress(b"abc") + b"def", b"abc", BAD_CODING),
    "deflate and more": (
        OK + b"Content-Encoding: deflate\r\n\r\n" + zlib.compress(b"abc") + b"d",
        b"abc",
        "the upstream's body continues after its compressed data",
    ),
    "a coding not asked for": (
        OK + b"Content-Encoding: br\r\n\r\nabc",
        b"",
        "the upstream used a content coding that was not requested",
    ),
    "two codings": (
        OK + b"Content-Encoding: gzip, gzip\r\n\r\nabc",
        b"",
        "the upstream used a content coding that was not requested",
    ),
    "a transfer coding": (
        OK + b"Transfer-Encoding: gzip, chunked\r\n\r\nabc",
        b"",
        "the upstream used a transfer coding other than chunked",
    ),
    "HTTP/2": (b"HTTP/2 200 OK\r\n\r\n", b"", NOT_HTTP),
    "TLS": (b"\x15\x03\x01\x00\x02\x02\x0a\n", b"", NOT_HTTP),
    "a status of no class": (b"HTTP/1.1 700 X\r\n\r\n", b"", NOT_HTTP),
    "a status line too long": (OK[:-2] + b"x" * 500, b"", NOT_HTTP),
    "a head too large": (
        OK + b"X: " + b"y" * 500 + b"\r\n\r\n",
        b"",
        UNREADABLE + "the head is larger than 500 bytes",
    ),
    "too many fields": (
        OK + b"X: y\r\n" * 7 + b"\r\n",
        b"",
        UNREADABLE + "there are more than 6 header fields",
    ),
    "too many folds": (
        OK + b"X: y\r\n" + b" z\r\n" * 6 + b"\r\n",
        b"",
        UNREADABLE + "there are more than 6 header fields",
    ),
    "a space first": (
        OK + b" X: y\r\n\r\n",
        b"",
        UNREADABLE + "a header line is folded, or begins with a space",
    ),
    "a space in the name": (OK + b"X : y\r\n\r\n", b"", BAD_FIELD),
    "a bare CR": (OK + b"X: y\rZ: a\r\n\r\n", b"", BAD_FIELD),
    "two lengths": (
        OK + b"Content-Length: 3, 4\r\n\r\nabc",
        b"",
        UNREADABLE + "malformed content-length",
    ),
    "a signed length": (
        OK + b"Content-Length: +3\r\n\r\nabc",
        b"",
        UNREADABLE + "malformed content-length",
    ),
    "a length too large": (OK + b"Content-Length: 5001\r\n\r\n", b"", TOO_LARGE),
    "a length of many digits": (
        OK + b"Content-Length: " + b"9" * 300 + b"\r\n\r\n",
        b"",
        TOO_LARGE,
    ),
    "a signed chunk size": (CHUNKED + b"+3\r\nabc", b"", BAD_CHUNK),
    "a chunk size too long": (
        CHUNKED + b"0" * 17 + b"3\r\nabc",
        b"",
        BAD_CHUNK,
    ),
    "chunk extensions too long": (
        CHUNKED + b"3;" + b"x" * 300 + b"\r\nabc\r\n3;" + b"x" * 300 + b"\r\nabc\r\n",
        b"abc",
        UNREADABLE + "the chunk extensions are larger than 500 bytes",
    ),
    "a chunk longer than its size": (
        CHUNKED + b"3\r\nabcd\r\n",
        b"abc",
        UNREADABLE + "a chunk is longer than its size",
    ),
    "switched protocols": (
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"",
        "the upstream switched protocols unasked",
    ),
    "interim answers without end": (
        b"HTTP/1.1 100 Continue\r\n\r\n" * 17,
        b"",
        "the upstream sent more than 16 interim responses",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_malformed_response_is_an_upstream_error_after_its_good_part(name, size):
    data, body, message = BROKEN[name]
    head, read_body, error = read(*in_pieces(data, size))
    assert (read_body, error) == (body, message)


def test_a_body_to_the_end_is_limited_also_inflated():
    for data in (OK + b"\r\n" + b"x" * 5001, GZIP + gzip.compress(b"x" * 5001)):
        assert read(data)[2] == TOO_LARGE


def test_a_bomb_is_inflated_piece_by_piece():
    size = 40 * PIECE_BYTES
    parser = ResponseParser(Limits(body=size))
    parser.feed(GZIP + gzip.compress(b"\0" * size))
    parser.end()
    pieces = []
    while (piece := parser.next_piece()) is not None:
        pieces.append(piece)
    assert max(map(len, pieces[1:])) == PIECE_BYTES
    assert sum(map(len, pieces[1:])) == size and parser.is_whole


@given(st.integers(-300, 300), st.booleans())
def test_no_inflated_byte_is_held_back_at_a_full_piece(more, is_raw):
    """zlib may stop within a copy when its output is full, with all input taken."""
    body = b"\0" * (PIECE_BYTES + more)
    code = raw_deflate if is_raw else zlib.compress
    data = OK + b"Content-Encoding: deflate\r\n\r\n" + code(body)
    head, read_body, error = read(data, limits=Limits())
    assert (read_body == body, error) == (True, None)


def test_gzip_members_without_end_are_refused():
    data = gzip.compress(b"") * (MAX_STREAM_MEMBERS + 1)
    error = read(GZIP + data, limits=Limits())[2]
    assert error == f"the upstream's body has more than {MAX_STREAM_MEMBERS} members"


def test_a_flushed_event_is_given_at_once():
    coder = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    parser = ResponseParser(LIMITS)
    parser.feed(GZIP)
    assert parser.next_piece().status == 200
    for text in (b"data: one\n\n", b"data: two\n\n"):
        parser.feed(coder.compress(text) + coder.flush(zlib.Z_SYNC_FLUSH))
        assert (parser.next_piece(), parser.next_piece()) == (text, None)
    assert not parser.is_whole


NAMES = st.text(st.sampled_from("abcXYZ-_"), min_size=1, max_size=8).map(lambda name: "x" + name)
VALUES = st.text(st.sampled_from('abc ,;="\xe4\t'), max_size=20).map(str.strip)


@st.composite
def answers(draw):
    """An answer that is well said: bytes, status, fields of ours, body."""
    status = draw(st.sampled_from([200, 201, 301, 404, 500, 599]))
    fields = draw(st.lists(st.tuples(NAMES, VALUES), max_size=3))
    chunks = draw(st.lists(st.binary(min_size=1, max_size=40), max_size=4))
    lines = [f"HTTP/1.1 {status} Some Reason", *(f"{name}: {value}" for name, value in fields)]
    body = b"".join(chunks)
    match draw(st.sampled_from(["length", "chunked", "close"])):
        case "length":
            lines.append(f"Content-Length: {len(body)}")
            coded = body
        case "chunked":
            lines.append("Transfer-Encoding: chunked")
            coded = chunked(
                *chunks, end=draw(st.sampled_from([b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n"]))
            )
        case _:
            coded = body
    interim = draw(st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n"]))
    head = "\r\n".join([*lines, "", ""]).encode("latin-1")
    return interim + head + coded, status, fields, body


def read_by_h11(data):
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("host", "a")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    connection.receive_data(b"")
    head, body = None, b""
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        match event:
            case h11.Response():
                head = event
            case h11.Data():
                body += event.data
    return head.status_code, [(n.decode(), v.decode("latin-1")) for n, v in head.headers], body


class _Socket:
    def __init__(self, data):
        self._data = data

    def makefile(self, mode):
        return io.BytesIO(self._data)


def read_by_http_client(data):
    response = http.client.HTTPResponse(_Socket(data))
    response.begin()
    return response.status, response.read()


@given(answers(), st.data())
@settings(max_examples=150)
def test_any_response_reads_as_in_h11_and_http_client(answer, data):
    wire, status, fields, body = answer
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=6)))
    pieces = [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    head, read_body, error = read(*pieces)
    assert (head.status, read_body, error) == (status, body, None)
    assert list(head.headers)[: len(fields)] == [(n.lower(), v) for n, v in fields]
    assert read_by_h11(wire) == (status, list(head.headers), body)
    assert read_by_http_client(wire) == (status, body)


@given(answers(), st.data())
def test_a_cut_response_is_complete_only_if_the_connection_ends_it(answer, data):
    wire, _, _, body = answer
    cut = data.draw(st.integers(0, len(wire) - 1)) if wire else 0
    head, read_body, error = read(wire[:cut])
    is_closed = head is not None and not {"content-length", "transfer-encoding"} & {
        name for name, _ in head.headers
    }
    assert body.startswith(read_body)
    assert error is not None or is_closed or (head and read_body == body)


GARBAGE = st.one_of(
    st.binary(max_size=80),
    st.lists(
        st.sampled_from(
            [OK, b"\r\n", b"\n", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 4\r\n", b"5"]
            + [
                b"Content-Encoding: gzip\r\n",
                b"abc",
                b" ",
                b":",
                b"\0",
                b"0\r\n",
                b";",
                b"\x1f\x8b",
            ]
        ),
        max_size=12,
    ).map(b"".join),
)


@given(GARBAGE, st.integers(1, 9))
@settings(max_examples=300)
def test_garbage_is_the_upstreams_failure_and_nothing_else(data, size):
    whole, cut = read(OK + data), read(*in_pieces(OK + data, size))
    assert whole == cut
    read(data)


def test_many_small_pieces_take_linear_time():
    body = b"x" * 300_000
    data = CHUNKED + chunked(*in_pieces(body, 3))
    head, read_body, error = read(data, limits=Limits())
    assert (len(read_body), error) == (len(body), None)


# ---- requests


def test_a_request_is_written_as_our_own_server_reads_it():
    data = encode_request("POST", "/v1/x?a=%20b", [("Host", "a:1"), ("content-length", "2")], b"hi")
    parser = RequestParser(Limits())
    parser.feed(data)
    headers = Headers([("host", "a:1"), ("content-length", "2")])
    assert parser.next_request() == Request("POST", "/v1/x?a=%20b", headers, b"hi")


@pytest.mark.parametrize(
    "method, target, field",
    [
        ("POST", "/", ("x-api-key", "sesame\r\nx: y")),
        ("POST", "/", ("x-api-key", "sesame\0")),
        ("POST", "/", ("x-api-key", "sésamé€")),
        ("POST", "/", ("x: sesame", "y")),
        ("POST", "/a b", ("x", "sesame")),
        ("POST", "a", ("x", "sesame")),
        ("POST", "/#sesame", ("x", "y")),
        ("PO ST", "/", ("x", "sesame")),
    ],
)
def test_what_can_not_be_written_is_refused_without_its_value(method, target, field):
    with pytest.raises(ValueError, match="can't be written") as refusal:
        encode_request(method, target, [field], b"")
    assert "sesame" not in str(refusal.value) or field[0] == "x: sesame"
    assert refusal.value.__cause__ is None
