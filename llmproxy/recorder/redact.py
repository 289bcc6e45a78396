"""Remove keys, tokens and cookies from requests and error messages before they are stored.

In headers, queries and bodies, the names of fields decide. So they do in a body that is not
JSON (a form, several parts, JSON with a mistake), which is searched as text. Known keys, the
usual formats of keys and secrets in URLs are removed from all that isn't JSON: headers, paths,
queries, such bodies, and error messages, in which a provider may quote a key. The conversation
itself is left as it is, since llm's tables hold it too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote, unquote_plus

from ..core.known_keys import (
    MAX_REMEMBERED,
    MAX_REMEMBERED_CHARS,
    MIN_KEY_CHARS,
    REMOVED,
    KnownKeys,
    is_secret_name,
    is_secret_parameter,
    replace_parameters,
    without_secrets,
    without_url_user,
)

MAX_TEXT_CHARS = 64 * 2**10  # of a body that is not JSON: enough to see what it was
MAX_SECRET_CHARS = 4 * 2**10  # a token with claims has some thousand
MAX_TEXT_BYTES = 4 * (MAX_TEXT_CHARS + MAX_SECRET_CHARS)  # more of such a body is not looked at

_CONVERSATION = frozenset({"messages", "input", "system", "instructions", "prompt"})
# Without "-" and "_": api_key, x-goog-api-key, authorization_token, clientSecret …
_SECRET_ENDINGS = (
    "apikey", "accesskey", "secretkey", "privatekey", "token", "secret", "password",
    "authorization", "credential", "credentials", "cookie", "passwd", "passphrase", "pwd", "jwt",
)  # fmt: skip

# In text: a name with what separates it from its value, which may be quoted, in JSON inside
# JSON with backslashes. Names are bounded, so that this takes linear time.
_TEXT_FIELD = re.compile(
    r"""(?<![\w.%-])([\w.%[\]-]{1,80})(\\*["'])?[ \t]{0,8}(=>|[:=])[ \t]{0,8}(\\*["'])?"""
)
_XML_FIELD = re.compile(r"<([\w.:-]{1,80})(?:\s[^<>]{0,200})?>(?=[^<])")
_FORM_PART = re.compile(
    r"""\bname="?([^"'\r\n;]{1,80}+)"?[^\r\n]{0,120}+(?:\r?\n[^\r\n]{1,200}+){0,3}+\r?\n\r?\n"""
)
_TO_PART_END = re.compile(r"(?:(?!\r?\n--).)*", re.DOTALL)
_TO_LINE_END = re.compile(r"[^\r\n]*")
_TO_DELIMITER = re.compile(
    r"""(?:(?:basic|bearer|digest|token)[ \t]+)?[^\s&;,<>"'}\])]*""", re.IGNORECASE
)
_TO_TAG = re.compile(r"[^<]*")
_TO_QUOTE = {
    '"': re.compile(r'(?:[^"\\]|\\.)*', re.DOTALL),
    "'": re.compile(r"(?:[^'\\]|\\.)*", re.DOTALL),
}
_TO_ESCAPED_QUOTE = re.compile(r"""(?:[^\\]++|\\++(?!["']))*+""")


class Redactor:
    """Removes the secrets of one request, and later the same secrets from its error message.

    keys: known keys, which are removed as well.
    """

    def __init__(self, keys: KnownKeys | None = None) -> None:
        self._found: set[str] = set()
        self._keys = keys or KnownKeys()

    def headers(self, headers: Iterable[tuple[str, str]]) -> dict[str, str]:
        """Return header fields by lower-case name, without secrets: the values of secret ones.

        The others lose secrets in URLs (Referer), parameters (`token=…`), and known keys.
        """
        kept: dict[str, str] = {}
        for name, value in headers:
            name = name.lower()
            value = self._removed(value) if is_secret_name(name) else self.line(value)
            kept[name] = f"{kept[name]}, {value}" if name in kept and value != REMOVED else value
        return kept

    def query(self, query: str) -> str:
        """Return a query string without the values of secret names, and without known keys."""
        return self._keys.remove(replace_parameters(f"?{query}", self._removed_parameter))[1:]

    def line(self, text: str) -> str:
        """Return a header's value or a path without the secrets in it."""
        # A client sends nearly the same headers each time: 40 µs less for each request.
        clean = self._keys.clean_texts
        if text in clean:
            return text
        cleaned = self._keys.remove(self._without_fields(text))
        if cleaned == text and len(text) <= MAX_REMEMBERED_CHARS:
            if len(clean) >= MAX_REMEMBERED:
                clean.clear()
            clean.add(text)
        return cleaned

    def body(self, body: Any) -> Any:
        """Return a copy of a body without the values of well-known secret fields."""
        match body:
            case dict():
                return {
                    name: value if name in _CONVERSATION else self._member(name, value)
                    for name, value in body.items()
                }
            case list():
                return self._member("", body)
            case str():
                return self._text_body(body)
        return body

    def text(self, text: str) -> str:
        """Return an error message without secrets found so far and whatever looks like a key."""
        return self._keys.redact(without_secrets(text, self._found))

    def _member(self, name: str, value: Any) -> Any:
        match value:
            case dict() if name.lower().endswith("headers"):  # sent on to a tool's server
                return {key: self._removed(str(item)) for key, item in value.items()}
            case dict():
                return {key: self._member(key, item) for key, item in value.items()}
            case list():
                return [self._member(name, item) for item in value]
            case str() if _plain(name).endswith(_SECRET_ENDINGS):
                return self._removed(value)
            case str() if name.lower().endswith(("url", "uri")):
                return self._url(value)
            case _:
                return value

    def _url(self, url: str) -> str:
        return replace_parameters(without_url_user(url), self._removed_parameter)

    def _removed_parameter(self, value: str) -> str:
        return quote(self._removed(unquote_plus(value)))

    def _text_body(self, text: str) -> str:
        """Remove secrets from a body that is not JSON, by the names of its fields."""
        # More is searched than is kept, so that the cut leaves no part of a secret at the end.
        is_cut = len(text) > MAX_TEXT_CHARS
        text = text[: MAX_TEXT_CHARS + MAX_SECRET_CHARS]
        text = text.replace("\0", "")  # of UTF-16, in which no name would be found
        text = self._without_values(text, _FORM_PART, lambda match: _TO_PART_END)
        text = self._without_values(text, _XML_FIELD, lambda match: _TO_TAG)
        text = self._keys.remove(self._without_fields(text))
        end = max(len(text) - MAX_SECRET_CHARS, 0) if is_cut else len(text)
        return text[: min(end, MAX_TEXT_CHARS)]

    def _without_fields(self, text: str) -> str:
        if "=" not in text and ":" not in text:
            return text
        text = replace_parameters(text, self._removed_parameter)
        return self._without_values(text, _TEXT_FIELD, _end_of_value)

    def _without_values(
        self, text: str, field: re.Pattern[str], end: Callable[[re.Match[str]], re.Pattern[str]]
    ) -> str:
        """Remove what follows each `field` with a secret name, as far as `end` matches."""
        kept = []
        at = 0
        for match in field.finditer(text):
            if match.end() <= at or not _is_secret_field(match):
                continue
            value = end(match).match(text, match.end())
            if value and value[0] and not unquote_plus(value[0]).startswith(REMOVED[:-1]):
                kept += [text[at : value.start()], self._removed(value[0])]
                at = value.end()
        return "".join([*kept, text[at:]])

    def _removed(self, value: str) -> str:
        """Remember each part of a secret: `Bearer …`, `a=…; b=…`."""
        words = re.split(r"[\s;,=]+", value[:MAX_SECRET_CHARS])
        self._found.update(word for word in words if len(word) >= MIN_KEY_CHARS)
        return REMOVED


def _is_secret_field(match: re.Match[str]) -> bool:
    name = match[1]
    if match.re is _XML_FIELD:  # not `<code>`
        return is_secret_name(name)
    if match.re is _FORM_PART or match[3] == "=":
        return is_secret_parameter(name)
    return _plain(name).endswith(_SECRET_ENDINGS)


def _plain(name: str) -> str:
    return name.replace("-", "").replace("_", "").lower()


def _end_of_value(match: re.Match[str]) -> re.Pattern[str]:
    """Return what matches the value of a field in a text, up to its end."""
    _, name_quote, separator, value_quote = match.groups()
    if value_quote is not None:
        return _TO_ESCAPED_QUOTE if value_quote.startswith("\\") else _TO_QUOTE[value_quote]
    before = match.string[max(match.start() - 1, 0) : match.start()]
    if separator == ":" and name_quote is None:
        if before in ("", "\n", "\r"):
            return _TO_LINE_END  # as a header: `Cookie: a=b; c=d`
        if before in _TO_QUOTE:
            return _TO_QUOTE[before]  # as curl's -H
    return _TO_DELIMITER
