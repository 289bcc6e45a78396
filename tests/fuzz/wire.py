"""Strategies of bytes that are nearly requests."""

from __future__ import annotations

from itertools import product

from hypothesis import strategies as st

from tests.transport.rfc9112_rows import ROWS

TABLE = [sent for rows in ROWS.values() for _, sent, *_ in rows if len(sent) < 400]

CRLF = b"\r\n"
ODD_ENDS = [b"\n", b"\r", b"\r\r\n", b"\n\r", b"\r\n ", b"\r\n\t", b"\0\r\n", b" \r\n", b""]
ODD_SPACES = [b"\t", b"  ", b"\x0b", b"\x0c", b"\xa0", b"\0", b"\r", b"\x1f", b"\x85"]

METHODS = [b"GET", b"POST", b"PUT", b"HEAD", b"DELETE", b"OPTIONS"]
TARGETS = [b"/", b"/a?b", b"http://b/", b"//b", b"/%0d%0a", b"http://[::1]:8/x"]
VERSIONS = [b"HTTP/1.1"] * 3 + [b"HTTP/1.0"]
LINES = [b" ".join(words) + CRLF for words in product(METHODS, TARGETS, VERSIONS)]
ODD_LINES = [
    *(b"GET / " + name + CRLF for name in (b"HTTP/1.2", b"HTTP/2.0", b"HTTP/0.9", b"http/1.1")),
    *(method + b" / HTTP/1.1\r\n" for method in (b"get", b"BREW", b"CONNECT", b"", b"G(T")),
    *(b"GET " + target + b" HTTP/1.1\r\n" for target in (b"*", b"a:80", b"", b"/ /", b"a", b"/#")),
    *(b"POST" + space + b"/ HTTP/1.1\r\n" for space in ODD_SPACES),
    *(b"POST / HTTP/1.1" + end for end in ODD_ENDS),
    *(b"CONNECT a:1 HTTP/1.1\r\n", b"\r\nPOST / HTTP/1.1\r\n"),
]  # fmt: skip

VALUES = {
    b"Content-Length": b"0|1|5|05|+5|-1|0x5|5, 5|5,|1 0|18446744073709551621||5.0|5;",
    b"Transfer-Encoding": b"chunked|Chunked|chunked, chunked|gzip, chunked|chunked, gzip|identity|"
    b"chunked,|,chunked|chunked;a|xchunked|gzip|",
    b"Connection": b"close|keep-alive|keep-alive, close|x|upgrade|close, x|",
    b"Host": b"a|b:1|[::1]||a b|u@a",
    b"Expect": b"100-continue|x",
    b"Upgrade": b"x",
    b"X": b"|1|\xe9|a\tb|5|chunked",
}
PAIRS = [(name, value) for name, values in VALUES.items() for value in values.split(b"|")]
FIELDS = [name + b": " + value + CRLF for name, value in PAIRS]
KEY_PAIRS = [(b"Content-Length", b"5"), (b"Transfer-Encoding", b"chunked"), (b"X", b"1")]
ODD_FIELDS = [
    field
    for name, value in KEY_PAIRS
    for field in (
        *(
            name + colon + value + CRLF
            for colon in (b":", b" :", b"\t:", b"::", b"", b"\0:", b":\n")
        ),
        *(name + b":" + space + value + CRLF for space in ODD_SPACES),
        *(name + b": " + value + space + CRLF for space in ODD_SPACES),
        *(name + b": " + value + end for end in ODD_ENDS),
        name.replace(b"-", b"_") + b": " + value + CRLF,
        name.lower() + b":" + value + CRLF,
        b" " + name + b": " + value + CRLF,
    )
]

DATA = [b"a", b"hello", b"\r\n0\r\n\r\n", b"GET / HTTP/1.1\r\n"]
EXTENSIONS = [b"", b";a", b";a=b", b';a="b"', b" ;a", b"; a = b"]
CHUNKS = [b"%x%b\r\n%b\r\n" % (len(d), e, d) for d in DATA for e in EXTENSIONS]
ODD_SIZES = (
    b"0x5|-5|+5|5 | 5|100000005||g|5;|5;;|5;a;|5;a=|5 a|5,a|5\t|05|0000000000000000005".split(b"|")
)
ODD_CHUNKS = [
    *(size + b"\r\nhello\r\n" for size in (*ODD_SIZES, b'5;a="', b'5;a="\r', b"5;a\n")),
    *(b"5" + end + b"hello\r\n" for end in ODD_ENDS),
    *(b"5\r\nhello" + end for end in ODD_ENDS),
    *(b"4\r\nhello\r\n", b"6\r\nhello\r\n"),
]  # fmt: skip
LAST = [b"0\r\n\r\n"] * 3 + [b"0;a\r\n\r\n", b"000\r\n\r\n", b"0\r\nX: 1\r\n\r\n"]
ODD_LAST = [
    *(b"0" + end + CRLF for end in ODD_ENDS),
    *(b"0\r\n" + end for end in ODD_ENDS),
    *(b"0\r\n" + field + CRLF for field in FIELDS + ODD_FIELDS),
]
EDITS = [*b"\r\n\t \0,;:=\"'-+_/\\0159azAZ\x0b\x0c\x1f\x7f\x80\x85\xa0\xff", *4 * [None]]


def mostly(good: list[bytes], odd: list[bytes], times: int = 9) -> st.SearchStrategy[bytes]:
    """One of the good ones, and once in a while an odd one."""
    return st.integers(0, times).flatmap(lambda i: st.sampled_from(odd if i == times else good))


LINE = mostly(LINES, ODD_LINES)
HOST = mostly([b"Host: a\r\n"], [b"", b"Host: a\r\nHost: b\r\n", b"Host:\r\n"])
FIELD = mostly(FIELDS, ODD_FIELDS, 3)
END = mostly([CRLF], ODD_ENDS, 20)
CHUNKED = st.tuples(st.lists(mostly(CHUNKS, ODD_CHUNKS, 6), max_size=2), mostly(LAST, ODD_LAST, 5))


@st.composite
def near_messages(draw: st.DrawFn) -> bytes:
    """One request, good or nearly so, with a body that its fields may not have told of."""
    out = draw(LINE) + draw(HOST)
    body = b""
    match draw(st.integers(0, 9)):
        case 0 | 1 | 2:
            out, body = out + b"Content-Length: 5\r\n", b"hello"
        case 3:
            body = b"hello"
        case 4 | 5 | 6 | 7:
            chunks, last = draw(CHUNKED)
            out, body = out + b"Transfer-Encoding: chunked\r\n", b"".join(chunks) + last
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        out += draw(FIELD)
    return out + draw(END) + body


@st.composite
def edited(draw: st.DrawFn, wires: st.SearchStrategy[bytes]) -> bytes:
    """Bytes with a few of them replaced, taken away or put in."""
    data = bytearray(draw(wires))
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        at = draw(st.integers(0, len(data)))
        byte = draw(st.sampled_from(EDITS))
        new = b"" if byte is None else bytes([byte])
        data[at : at + draw(st.integers(0, 2))] = new
    return bytes(data)


def near_requests() -> st.SearchStrategy[bytes]:
    """The bytes of a connection: rows of the table and requests of this grammar, edited."""
    messages = st.lists(near_messages(), min_size=1, max_size=3).map(b"".join)
    rows = st.lists(st.sampled_from(TABLE), min_size=1, max_size=2).map(b"".join)
    return edited(messages | rows)
