"""Folding: a request's long members are kept once, however often they are sent again.

Clients send the whole conversation with each request, so most of a request is known
already. Folded, it is JSON in which what is long is a reference to a content:

- a string of at least LONG_CHARS, wherever it stands,
- a member of the body, or an item of a list that is one, of about as many,
- RUN items of such a list in a row, so that of a long list only the end is new.

`{"$": hash}` stands for the value of a content, `{"$$": hash}` for the items of the list
that it holds; `{"$": [object]}` is a real object that has one of these keys alone. A
content is JSON too, perhaps with references of its own; its hash is the first half of
its text's SHA-256, in hexadecimal.
"""

from __future__ import annotations

import hashlib
import json
import marshal
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Folded", "dumps", "fold", "references", "unfold"]

LONG_CHARS = 256  # a reference and the row that it leads to cost about 100
RUN = 16


@dataclass(frozen=True)
class Folded:
    """A folded value: its text, and what has to be stored for it besides what is known.

    contents: texts by their hashes.
    seen: what is known from then on: fingerprints of values, and the hashes themselves.
    """

    text: str
    contents: Mapping[str, str]
    seen: Mapping[bytes, str]


def fold(body: Any, known: Mapping[bytes, str]) -> Folded:
    """Fold a JSON value; `known` are the `seen` of those that are stored."""
    folding = _Folding(known)
    text = dumps(folding.body(body))
    return Folded(text, folding.contents, folding.seen)


def unfold(text: str, content: Callable[[str], str]) -> Any:
    """Read a folded value; `content` gives the text of a hash.

    Raises:
        KeyError: whatever `content` raises for a hash that it does not know.
    """
    return _unfolded(json.loads(text), content)


def references(text: str) -> list[str]:
    """Give the hashes that a folded text refers to itself."""
    return _REFERENCE.findall(text)


_REFERENCE = re.compile(r'\{"\$\$?":"([0-9a-f]{32})"\}')


def dumps(value: Any) -> str:
    """Write JSON that any file and database takes: lone surrogates are escaped."""
    text = _encode(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":"))
    return text


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True)
class _Folding:
    known: Mapping[bytes, str]
    contents: dict[str, str] = field(default_factory=dict)
    seen: dict[bytes, str] = field(default_factory=dict)

    def body(self, body: Any) -> Any:
        if isinstance(body, dict):
            return _escaped({name: self._member(member) for name, member in body.items()})
        return self._member(body)

    def _member(self, value: Any) -> Any:
        if not isinstance(value, list):
            return self._whole(value)
        items = [self._whole(item) for item in value]
        end = len(items) - len(items) % RUN
        runs = [{"$$": self._put(dumps(items[i : i + RUN]))} for i in range(0, end, RUN)]
        return runs + items[end:]

    def _whole(self, value: Any) -> Any:
        if not isinstance(value, dict | list):
            return self._strings(value)
        # Some ten times as fast as JSON; version 2 writes what is the same alike, always.
        data = marshal.dumps(value, 2)
        if len(data) < LONG_CHARS:
            return self._strings(value) if b"$" in data else value
        fingerprint = hashlib.sha256(data).digest()
        hash = self.known.get(fingerprint)
        if hash is None:
            hash = self.seen[fingerprint] = self._put(dumps(self._strings(value)))
        return {"$": hash}

    def _strings(self, value: Any) -> Any:
        match value:
            case str() if len(value) >= LONG_CHARS:
                return {"$": self._put(dumps(value))}
            case dict():
                return _escaped({name: self._strings(member) for name, member in value.items()})
            case list():
                return [self._strings(item) for item in value]
            case _:
                return value

    def _put(self, text: str) -> str:
        digest = hashlib.sha256(text.encode()).digest()[:16]
        if digest not in self.known:
            self.contents[digest.hex()] = text
            self.seen[digest] = digest.hex()
        return digest.hex()


def _escaped(folded: dict[str, Any]) -> dict[str, Any]:
    return {"$": [folded]} if folded.keys() in ({"$"}, {"$$"}) else folded


def _unfolded(value: Any, content: Callable[[str], str]) -> Any:
    match value:
        case {"$": str(hash), **others} if not others:
            return unfold(content(hash), content)
        case {"$": [dict(members)], **others} if not others:
            return {name: _unfolded(member, content) for name, member in members.items()}
        case dict():
            return {name: _unfolded(member, content) for name, member in value.items()}
        case list():
            items: list[Any] = []
            for item in value:
                match item:
                    case {"$$": str(hash), **others} if not others:
                        items += unfold(content(hash), content)
                    case _:
                        items.append(_unfolded(item, content))
            return items
        case _:
            return value
