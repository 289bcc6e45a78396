"""Strategies of JSON that is nearly right: as text, and as bodies of requests and answers."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from tests.strategies import json_values
from tests.wire_cases import wire_cases

NASTY: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**70), 10**399, 0.1, -0.0, 1e308, 5e-324),
    *("", " ", "\0", "\u2028", "\ufffd", "👩\u200d👧", "é" * 300, "a" * 5000, "1", "null", "[]"),
    *("{}", '{"a":', "data:", "data:,", "data:image/png;base64,", "data:image/png;base64,%%%"),
    *("data:image/png;base64,iVBORw0KGgo=", "http://a/b", "file:///etc/passwd", "//", "user", "tool"),
    *("assistant", "system", "text", "image_url", "tool_use", "tool_result", "thinking", "auto"),
    *([], {}, [[]], [{}], [None], {"": None}, {"type": None}, {"type": "text"}, {"role": "user"}),
    *({"type": "text", "text": ""}, {"type": "image", "source": {}}, {"function": {"name": ""}}),
    *({"type": "object", "properties": {"a": {"$ref": "#"}}}, json.loads("[" * 90 + "]" * 90), json.loads(90 * '{"a":' + "1" + 90 * "}")),
]  # fmt: skip

TOKENS = [
    *(b"{", b"}", b"[", b"]", b",", b":", b" ", b"\n", b'"a"', b'"a":', b'"', b"1", b"-0", b"1.5"),
    *(b"1e999", b"-1E400", b"1e-999", b"1" * 401, b"-" + b"9" * 400, b"1." + b"0" * 500, b"01", b"+1"),
    *(b"true", b"null", b"NaN", b"-Infinity", b"True", b"'a'", b"//", b"/**/", b"\xef\xbb\xbf", b"\0"),
    *(rb'"\ud800"', rb'"\udc00\ud800"', rb'"\ud83d\ude00"', rb'"\uD83D"', rb'"\u0000"', rb'"\x"'),
    *(rb'"\ud800":', b'"a":1,"a":2', b'"\xed\xa0\x80"', b'"\xff"', b'"\xc3\xa9"', b'"\x01"', b'"\\'),
    *(b"[" * 99, b"]" * 99, b"[" * 101, b'{"a":' * 101, b"}" * 101, b"[" * 5000, b'[{"a":' * 3000),
]  # fmt: skip


def texts_like_json() -> st.SearchStrategy[bytes]:
    """Tokens of JSON in any order, within brackets and not; good JSON with a few bytes changed."""
    soup = st.lists(st.sampled_from(TOKENS), max_size=12).map(b"".join)
    nested = st.tuples(st.integers(0, 120), soup).map(lambda t: b"[" * t[0] + t[1] + b"]" * t[0])
    good = json_values(8).map(lambda value: json.dumps(value, ensure_ascii=False).encode())
    return soup | nested | good | spliced(good, st.sampled_from(TOKENS))


@st.composite
def spliced(draw: st.DrawFn, texts: st.SearchStrategy[bytes], pieces: Any) -> bytes:
    """Texts in which pieces stand for some of their bytes."""
    data = bytearray(draw(texts))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 3))] = draw(pieces)
    return bytes(data)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values within a value, its own the first."""
    yield path
    if isinstance(value, dict | list):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(child, (*path, key))


@st.composite
def damaged(draw: st.DrawFn, bodies: list[Any]) -> Any:
    """A body in which a few values are nasty, taken away, renamed, doubled or another's."""
    body = [copy.deepcopy(draw(st.sampled_from(bodies)))]  # so that its root has a parent too
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 4]))):
        *above, key = draw(st.sampled_from(list(places(body))[1:]))
        parent: Any = body
        for step in above:
            parent = parent[step]
        match draw(st.integers(0, 5)):
            case 0 if isinstance(parent, dict):
                del parent[key]
            case 1 if isinstance(parent, dict):
                other = draw(st.sampled_from(sorted(parent) + ["type", "content", "", "__class__"]))
                parent[other] = parent.pop(key)
            case 2 if isinstance(parent, list) and above:
                parent.insert(key, copy.deepcopy(parent[key]))
            case 3:
                donor: Any = body
                for step in draw(st.sampled_from(list(places(body))[1:])):
                    donor = donor[step]
                parent[key] = copy.deepcopy(donor)
            case 4:
                parent[key] = draw(json_values(4))
            case _:
                parent[key] = copy.deepcopy(draw(st.sampled_from(NASTY)))
    return body[0]


def requests_of(dialect: str) -> list[Any]:
    """The captures of a dialect's requests."""
    return [case.request for case in wire_cases(dialect)]
