"""Remove keys, tokens and cookies from requests and error messages before they are stored.

In headers, queries and bodies, the names of fields decide. Error messages, in which a provider
may quote a key, are searched for known keys, the request's secrets and the usual formats of
keys. The conversation itself is left as it is, since llm's tables hold it too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qsl, urlencode

from ..core.known_keys import MIN_KEY_CHARS, REMOVED, KnownKeys, is_secret_name, without_url_user

_CONVERSATION = frozenset({"messages", "input", "system", "instructions", "prompt"})
# Without "-" and "_": api_key, x-goog-api-key, authorization_token, clientSecret …
_SECRET_ENDINGS = (
    "apikey", "accesskey", "secretkey", "privatekey", "token", "secret", "password",
    "authorization", "credential", "credentials", "cookie",
)  # fmt: skip
_HEADER_MAPS = frozenset({"headers", "extra_headers"})  # sent on to a tool's server


class Redactor:
    """Removes the secrets of one request, and later the same secrets from its error message.

    keys: known keys, which are removed as well.
    """

    def __init__(self, keys: KnownKeys | None = None) -> None:
        self._found: set[str] = set()
        self._keys = keys or KnownKeys()

    def headers(self, headers: Iterable[tuple[str, str]]) -> dict[str, str]:
        """Return header fields by lower-case name, without the values of secret ones."""
        kept: dict[str, str] = {}
        for name, value in headers:
            name = name.lower()
            if is_secret_name(name):
                kept[name] = self._removed(value)
            else:
                kept[name] = f"{kept[name]}, {value}" if name in kept else value
        return kept

    def query(self, query: str) -> str:
        """Return a query string without the values of secret names."""
        return urlencode(
            [
                (name, self._removed(value) if is_secret_name(name) else value)
                for name, value in parse_qsl(query, keep_blank_values=True)
            ]
        )

    def body(self, body: Any) -> Any:
        """Return a copy of a body without the values of well-known secret fields."""
        if not isinstance(body, dict):
            return body
        return {
            name: value if name in _CONVERSATION else self._member(name, value)
            for name, value in body.items()
        }

    def text(self, text: str) -> str:
        """Return an error message without secrets found so far and whatever looks like a key."""
        for secret in sorted(self._found, key=len, reverse=True):
            text = text.replace(secret, REMOVED)
        return self._keys.redact(text)

    def _member(self, name: str, value: Any) -> Any:
        match value:
            case dict() if name.lower() in _HEADER_MAPS:
                return {key: self._removed(str(item)) for key, item in value.items()}
            case dict():
                return {key: self._member(key, item) for key, item in value.items()}
            case list():
                return [self._member(name, item) for item in value]
            case str() if re.sub("[-_]", "", name).lower().endswith(_SECRET_ENDINGS):
                return self._removed(value)
            case str() if name.lower().endswith("url"):
                return self._url(value)
            case _:
                return value

    def _url(self, url: str) -> str:
        start, mark, query = without_url_user(url).partition("?")
        return start + mark + (self.query(query) if is_secret_name(query) else query)

    def _removed(self, value: str) -> str:
        """Remember each part of a secret: `Bearer …`, `a=…; b=…`."""
        words = re.split(r"[\s;,=]+", value)
        self._found.update(word for word in words if len(word) >= MIN_KEY_CHARS)
        return REMOVED
