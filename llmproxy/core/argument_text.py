"""Arguments of tool calls, as their text comes, in JSON that every client can read and send back.

Models write what one JSON reader takes and another refuses: half a surrogate pair, NaN, a
backslash before any letter, a line break within a string, a hundred brackets. A client that
reads such an object can't encode it again, or is refused when it sends it back. No I/O.

Spec: https://www.rfc-editor.org/rfc/rfc8259
"""

from __future__ import annotations

import math
import re

from .limits import Limits
from .payload import encode_string

# In a client's next request they stand five levels deep, and `json_depth` counts from its top.
MAX_DEPTH = Limits.json_depth - 10
LIMITS = Limits(json_depth=MAX_DEPTH)  # of JSON that a client is to send back

_OUTSIDE = re.compile(r'["{}\[\]]|[-+.\w]+')
_IN_STRING = re.compile(r'["\\\x00-\x1f]')
_LITERAL = re.compile(r"[-+.\w]*")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u([0-9a-fA-F]{4}))')
_LOW_ESCAPE = re.compile(r"\\u[dD][c-fC-F][0-9a-fA-F]{2}")
# What may become one of them when more text comes.
_CUT_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?\Z")
_CUT_LOW_ESCAPE = re.compile(r"(?:\\(?:u(?:[dD](?:[c-fC-F][0-9a-fA-F]?)?)?)?)?\Z")
_REPLACEMENT = r"\ufffd"


class ArgumentText:
    """A filter of one JSON object's text, which comes in chunks; each is looked at once.

    Escapes of lone surrogates become U+FFFD; control characters and backslashes that begin no
    escape are escaped; NaN, infinities and numbers beyond a double or `int_digits` become
    strings; so does the JSON of a value that nests deeper than MAX_DEPTH. Everything else is
    passed on as it is, also what is no JSON.
    """

    def __init__(self) -> None:
        self.is_whole = False  # whether the object has ended; what follows it is not changed
        self._depth = 0
        self._is_in_string = False
        self._is_too_deep = False  # within a value that is written as a string
        self._escape = ""  # the beginning of one or two, until the rest comes
        self._literal: list[str] = []  # pieces of a number or word, until its end comes

    def feed(self, chunk: str) -> str:
        """Return the text that is decided; a few characters may wait for the next chunk."""
        if self.is_whole:
            return chunk
        out: list[str] = []
        at = 0
        if self._literal:
            at = _end(_LITERAL, chunk, 0)
            self._literal.append(chunk[:at])
            if at == len(chunk):
                return ""
            out.append(self._end_literal())
        text, self._escape = self._escape + chunk, ""
        while at < len(text):
            found = (_IN_STRING if self._is_in_string else _OUTSIDE).search(text, at)
            if found is None:
                out.append(self._written(text[at:]))
                break
            out.append(self._written(text[at : found.start()]))
            at = found.end()
            match found[0]:
                case '"':
                    self._is_in_string = not self._is_in_string
                    out.append(self._written('"'))
                case "\\":
                    at, escape = self._escaped(text, found.start())
                    out.append(self._written(escape))
                case "{" | "[" as bracket:
                    out.append(self._begin(bracket))
                case "}" | "]" as bracket:
                    out.append(self._end(bracket))
                    if self.is_whole:
                        out.append(text[at:])
                        break
                case control if self._is_in_string:
                    out.append(self._written(f"\\u{ord(control):04x}"))
                case literal:
                    self._literal.append(literal)
                    if at < len(text):
                        out.append(self._end_literal())
        return "".join(out)

    def end(self) -> str:
        """Return what waited for more text."""
        rest, self._escape = self._escape, ""
        return self._written(rest) + (self._end_literal() if self._literal else "")

    def _written(self, text: str) -> str:
        return encode_string(text)[1:-1] if self._is_too_deep else text

    def _begin(self, bracket: str) -> str:
        self._depth += 1
        quote = ""
        if self._depth > MAX_DEPTH and not self._is_too_deep:
            quote, self._is_too_deep = '"', True
        return quote + self._written(bracket)

    def _end(self, bracket: str) -> str:
        self._depth -= 1
        self.is_whole = self._depth <= 0
        text = self._written(bracket)
        if self._is_too_deep and self._depth == MAX_DEPTH:
            self._is_too_deep = False
            return f'{text}"'
        return text

    def _end_literal(self) -> str:
        literal = "".join(self._literal)
        self._literal.clear()
        return self._written(literal if _is_carried(literal) else f'"{literal}"')

    def _escaped(self, text: str, at: int) -> tuple[int, str]:
        """Return the end of the escape at this place, and what is written for it."""
        found = _ESCAPE.match(text, at)
        if found is None:
            if _CUT_ESCAPE.match(text, at):
                self._escape = text[at:]
                return len(text), ""
            return at + 1, "\\\\"
        end = found.end()
        match found[1] and int(found[1], 16) >> 10:
            case 0x36:  # D800 to DBFF, the first half of a pair
                if low := _LOW_ESCAPE.match(text, end):
                    return low.end(), text[at : low.end()]
                if _CUT_LOW_ESCAPE.match(text, end):
                    self._escape = text[at:]
                    return len(text), ""
                return end, _REPLACEMENT
            case 0x37:  # DC00 to DFFF, a second half alone
                return end, _REPLACEMENT
        return end, found[0]


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return at if found is None else found.end()


def _is_carried(literal: str) -> bool:
    """Return whether a client that reads this number or word can send it back."""
    if literal in ("NaN", "Infinity", "-Infinity"):
        return False
    number = _NUMBER.fullmatch(literal)
    if number is None:
        return True
    if number[1] is None and number[2] is None:
        return len(literal.removeprefix("-")) <= Limits.int_digits
    return not math.isinf(float(literal))
