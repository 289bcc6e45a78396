"""Read and write large JSON in pieces, so that other threads have their turn in between.

One call into C holds all threads, the event loop's too, for as long as it takes: `json.loads`
75 ms for 4 MB with 240,000 members. Here no call is given more than about PIECE characters,
except for one string without structure, and the white space between two values: those are
read at a millisecond per megabyte. The results, errors and positions are those of `json`.
"""

from __future__ import annotations

import codecs
import json
import marshal
from collections.abc import Callable
from json.decoder import JSONArray, JSONObject  # type: ignore[attr-defined]  # not in typeshed
from typing import Any, AnyStr

Scan = Callable[[str, int], tuple[Any, int]]

PIECE = 64 * 2**10  # characters; of the densest JSON, these take about 3 ms
BYTES_PIECE = 2**20  # of what is read at the speed of memory
MEMBERS_PIECE = 1_000
# A number may go on after a window: "1.5e+" reads as 1.5 before "e+".
_MAY_GO_ON = 4


class PiecewiseDecoder(json.JSONDecoder):
    """Decodes JSON as `json.JSONDecoder` does, to be given to `json.loads` as its `cls`.

    Values are read by json's C scanner within a window of the text. One that doesn't fit is
    taken apart by json's Python code, which asks for each of its members.
    """

    def __init__(self, **hooks: Any) -> None:
        super().__init__(**hooks)
        self._scan: Scan = vars(self).pop("scan_once")
        self._window = ""
        self._start = 0  # of the window in the text
        self._names: dict[str, str] = {}

    def scan_once(self, text: str, at: int) -> tuple[Any, int]:
        """Return the value that begins at a place, and where it ends, as a C scanner does."""
        if (found := self._in_window(text, at)) is not None:
            return found
        if at > self._start or not self._window:
            self._start, self._window = at, text[at : at + PIECE]
            if (found := self._in_window(text, at)) is not None:
                return found
        match text[at : at + 1]:
            case "{":
                return JSONObject(  # type: ignore[no-any-return]
                    (text, at + 1), self.strict, self.scan_once, None, _object, self._names
                )
            case "[":
                return JSONArray((text, at + 1), self.scan_once)  # type: ignore[no-any-return]
        return self._scan(text, at)

    def _in_window(self, text: str, at: int) -> tuple[Any, int] | None:
        """Read the value at a place; None if it is wrong, or may go on after the window."""
        try:
            value, end = self._scan(self._window, at - self._start)
        except RecursionError:
            raise
        except Exception:  # of a hook too: a number that is cut short may seem too large
            return None
        if end > len(self._window) - _MAY_GO_ON and self._start + PIECE < len(text):
            return None
        return value, self._start + end


class ItemDecoder(PiecewiseDecoder):
    """Decodes the same, and notes where the items are in the lists that an object has.

    lists: each such list, the place of its first item, and the end of each.
    """

    def __init__(self, **hooks: Any) -> None:
        super().__init__(**hooks)
        self.lists: list[tuple[list[Any], int, list[int]]] = []
        self._depth = 0
        self._ends: list[int] | None = None  # while such a list is read

    def scan_once(self, text: str, at: int) -> tuple[Any, int]:
        depth = self._depth
        self._depth = depth + 1
        if depth == 0 and text[at : at + 1] == "{":
            found: tuple[Any, int] = JSONObject(
                (text, at + 1), self.strict, self.scan_once, None, _object, self._names
            )
        elif depth == 1 and text[at : at + 1] == "[":
            ends: list[int] = []
            self._ends = ends
            found = JSONArray((text, at + 1), self.scan_once)
            self._ends = None
            self.lists.append((found[0], at + 1, ends))
        else:
            found = super().scan_once(text, at)
            if depth == 2 and self._ends is not None:
                self._ends.append(found[1])
        self._depth = depth
        return found


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for at in range(0, len(members), MEMBERS_PIECE):
        made.update(members[at : at + MEMBERS_PIECE])
    return made


def decode(text: bytes) -> str:
    """Decode UTF-8 after a byte order mark, if any.

    Raises:
        UnicodeDecodeError: it is not UTF-8; `start` counts from after the mark.
    """
    if len(text) <= PIECE and not text.startswith(codecs.BOM_UTF8):
        return text.decode()
    rest = memoryview(text)[3 if text.startswith(codecs.BOM_UTF8) else 0 :]
    pieces = []
    at = 0
    while at < len(rest):
        piece = bytes(rest[at : at + BYTES_PIECE])
        try:
            decoded, length = codecs.utf_8_decode(piece, "strict", at + len(piece) == len(rest))
        except UnicodeDecodeError as exc:
            raise UnicodeDecodeError(
                exc.encoding, bytes(rest), at + exc.start, at + exc.end, exc.reason
            ) from None
        pieces.append(decoded)
        at += length
    return "".join(pieces)


def count(text: AnyStr, mark: AnyStr, start: int = 0, end: int | None = None) -> int:
    """Count a byte or character in a part of a text."""
    if end is None:
        end = len(text)
    total = 0
    at = text.find(mark, start, end)
    while at >= 0:
        total += text.count(mark, at, min(at + PIECE, end))
        # Searching is ten times as fast as counting: base64 has no mark for megabytes.
        at = text.find(mark, at + PIECE, end)
    return total


def is_large(value: Any) -> bool:
    """Return whether a value should be encoded in pieces."""
    try:
        return len(marshal.dumps(value, 2)) > PIECE  # several times as fast as JSON
    except ValueError:  # not plain
        return True


def encode(encoder: json.JSONEncoder, value: Any) -> str:
    """Encode a value that may be large as `encoder.encode` does."""
    if isinstance(value, str) and len(value) > BYTES_PIECE:
        inner = [
            encoder.encode(value[at : at + BYTES_PIECE])[1:-1]
            for at in range(0, len(value), BYTES_PIECE)
        ]
        return f'"{"".join(inner)}"'
    return "".join(encoder.iterencode(value))
