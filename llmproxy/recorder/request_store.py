"""Store request bodies without storing the same content twice.

Clients send the whole conversation with each request, so most of a request is already in the
log. A stored body is JSON in which long values are references to blobs, which are stored once
by the hash of their content:

- a string of at least LONG_CHARS characters, at any depth,
- a member of the body, or an item of a list that is a member, of about that length,
- RUN items of such a list in a row, so that for a long list only its end is new.

`{"$": hash}` stands for the value of a blob, `{"$$": hash}` for the items of the list that
it holds; `{"$": [object]}` is a real object whose only key is one of these two. A blob is
JSON too, perhaps with references of its own. Its hash is the first half of its text's
SHA-256, in hexadecimal. Blobs are the rows of the table `proxy_contents`.
"""

from __future__ import annotations

import hashlib
import json
import marshal
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..core import json_pieces
from ..core.known_bodies import SharedItems

LONG_CHARS = 256  # a reference and its blob's row cost about 100
RUN = 16
HUGE_CHARS = 2**19  # of a text: an image
MANY_MEMBERS = 1_000  # of a body: APIs have some dozen


@dataclass(frozen=True)
class Deduplicated:
    """A value as it is stored: its text, and the blobs that are not stored yet.

    blobs: texts by their hashes.
    seen: what counts as known once these are stored: fingerprints of values, and the hashes.
    """

    text: str
    blobs: Mapping[str, str]
    seen: Mapping[bytes, str]


def deduplicate(body: Any, known: Mapping[bytes, str]) -> Deduplicated:
    """Replace long values by references; `known` is the `seen` of what is stored."""
    deduplicator = _Deduplicator(known)
    stored = deduplicator.body(body)
    text = dumps(stored, is_large=isinstance(stored, dict) and len(stored) > MANY_MEMBERS)
    return Deduplicated(text, deduplicator.blobs, deduplicator.seen)


def restore(text: str, blob: Callable[[str], str]) -> Any:
    """Return the value that was stored as `text`; `blob` returns the text of a hash.

    Raises:
        KeyError: whatever `blob` raises for an unknown hash.
        ValueError: a blob refers to itself, directly or through others.
    """
    above: list[str] = []

    def restored(hash: str) -> Any:
        if hash in above:
            raise ValueError(f"request part {hash} contains itself")
        above.append(hash)
        value = _restored(json.loads(blob(hash)), restored)
        above.pop()
        return value

    return _restored(json.loads(text), restored)


def references(text: str) -> list[str]:
    """Return the hashes that a stored text refers to directly."""
    return _REFERENCE.findall(text)


_REFERENCE = re.compile(r'\{"\$\$?":"([0-9a-f]{32})"\}')


def dumps(value: Any, *, is_large: bool = False) -> str:
    """Encode JSON that any file and database takes: lone surrogates are escaped.

    is_large: encode it in pieces, so that other threads have their turn.
    """
    text = json_pieces.encode(_ENCODER, value) if is_large else _ENCODER.encode(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":"))
    return text


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True)
class _Deduplicator:
    known: Mapping[bytes, str]
    blobs: dict[str, str] = field(default_factory=dict)
    seen: dict[bytes, str] = field(default_factory=dict)

    def body(self, body: Any) -> Any:
        if isinstance(body, dict):
            return _escaped({name: self._member(member) for name, member in body.items()})
        return self._member(body)

    def _member(self, value: Any) -> Any:
        if not isinstance(value, list):
            return self._whole(value)
        end = len(value) - len(value) % RUN
        # Those of an earlier request need not be hashed again: 5 ms for 3.5 MB.
        hashed = value.hashed if isinstance(value, SharedItems) else []
        fingerprints = dict(hashed)
        runs = []
        for start in range(0, end, RUN):
            items = value[start : start + RUN]
            fingerprint = fingerprints.get(start + RUN)
            if fingerprint is None:
                # One hash for all items: a quarter of the time of a hash for each.
                fingerprint = hashlib.sha256(marshal.dumps(items, 2)).digest()
                hashed.append((start + RUN, fingerprint))
            runs.append({"$$": self._run(items, fingerprint)})
        return runs + [self._whole(item) for item in value[end:]]

    def _run(self, items: list[Any], fingerprint: bytes) -> str:
        hash = self.known.get(fingerprint)
        if hash is None:
            hash = self._put(dumps([self._whole(item) for item in items]))
            self.seen[fingerprint] = hash
        return hash

    def _whole(self, value: Any) -> Any:
        if not isinstance(value, dict | list):
            return self._strings(value)
        if _has_huge_text(value):
            # The text is hashed by itself: walking 7 MB of base64 twice more takes 17 ms.
            return {"$": self._put(dumps(self._strings(value), is_large=True))}
        # About ten times as fast as JSON; version 2 always encodes equal values alike.
        data = marshal.dumps(value, 2)
        if len(data) < LONG_CHARS:
            return self._strings(value) if b"$" in data else value
        fingerprint = hashlib.sha256(data).digest()
        hash = self.known.get(fingerprint)
        if hash is None:
            is_large = len(data) > json_pieces.PIECE
            text = dumps(self._strings(value), is_large=is_large)
            hash = self.seen[fingerprint] = self._put(text)
        return {"$": hash}

    def _strings(self, value: Any) -> Any:
        match value:
            case str() if len(value) >= LONG_CHARS:
                is_large = len(value) > json_pieces.PIECE
                return {"$": self._put(dumps(value, is_large=is_large))}
            case dict():
                return _escaped({name: self._strings(member) for name, member in value.items()})
            case list():
                return [self._strings(item) for item in value]
            case _:
                return value

    def _put(self, text: str) -> str:
        digest = hashlib.sha256(text.encode()).digest()[:16]
        if digest not in self.known:
            self.blobs[digest.hex()] = text
            self.seen[digest] = digest.hex()
        return digest.hex()


def _has_huge_text(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) > HUGE_CHARS
    if isinstance(value, dict):
        return any(map(_has_huge_text, value.values()))
    return isinstance(value, list) and any(map(_has_huge_text, value))


def _escaped(stored: dict[str, Any]) -> dict[str, Any]:
    return {"$": [stored]} if stored.keys() in ({"$"}, {"$$"}) else stored


def _restored(value: Any, part: Callable[[str], Any]) -> Any:
    match value:
        case {"$": str(hash), **others} if not others:
            return part(hash)
        case {"$": [dict(members)], **others} if not others:
            return {name: _restored(member, part) for name, member in members.items()}
        case dict():
            return {name: _restored(member, part) for name, member in value.items()}
        case list():
            items: list[Any] = []
            for item in value:
                match item:
                    case {"$$": str(hash), **others} if not others:
                        items += part(hash)
                    case _:
                        items.append(_restored(item, part))
            return items
        case _:
            return value
