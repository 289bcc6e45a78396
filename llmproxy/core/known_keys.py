"""Known API keys, and patterns that look like keys; redacted from every error and log line.

Providers quote the key that they refuse, and libraries put the failed request into their
exceptions. So text from elsewhere is redacted before it goes anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from urllib.parse import quote

from .errors import ProxyError

REMOVED = "[removed]"
MIN_KEY_CHARS = 8  # placeholders ("none", "x") are part of many words

_URL_USER = re.compile(r"(?<=://)[^/?#@\s]+@")
_SECRET_NAME = re.compile(
    "auth|cookie|credential|key|password|secret|signature|token", re.IGNORECASE
)
_KEY_SHAPES = re.compile(
    r"\b(?:sk|pk|rk|gsk|xai|hf|r8|pplx|nvapi|ghp|gho|glpat|github_pat)[-_][\w*.-]{8,}"
    r"|\bAIza[\w-]{20,}|\bAKIA[A-Z0-9]{12,}|(?<=bearer )\S{8,}"
    # A JWT, tried only where a run of such characters begins: within, it took quadratic time.
    r"|(?<![\w-])(?=[\w-]*\beyJ)[\w-]{13,}+\.[\w-]++\.[\w-]+",
    re.IGNORECASE,
)
# Only in foreign text: our own errors name fields of a request in this way.
_NAMED_KEY = re.compile(r"(?i)\b((?:api[-_ ]?key|key|token)(?: provided)?)([=:]\s*)[\w*./+~-]{8,}")


def is_secret_name(name: str) -> bool:
    """Say whether a header or query parameter of this name holds a key, token or cookie."""
    return _SECRET_NAME.search(name) is not None


def without_url_user(url: str) -> str:
    """Remove the user and password from each URL in a text."""
    return _URL_USER.sub(f"{REMOVED}@", url)


def without_key_shapes(text: str) -> str:
    """Remove what looks like a key, known or not; also the user in a URL."""
    return _KEY_SHAPES.sub(REMOVED, without_url_user(text))


class KnownKeys:
    """The keys that this process may use or ask for. Nothing else holds them all.

    values: the keys known at start. look: returns more at each call, for keys that change
        while the process runs. A known key stays known: a running response may still use it.
    """

    def __init__(
        self, values: Iterable[str] = (), look: Callable[[], Iterable[str]] = tuple
    ) -> None:
        self._values: set[str] = set()
        self._more = look
        self.learn(values)

    def learn(self, values: Iterable[str]) -> None:
        """Add keys, except those so short that they are part of other words."""
        for value in map(str.strip, values):
            if len(value) >= MIN_KEY_CHARS and value not in self._values:
                self._values.update((value, quote(value, safe="")))  # as in a URL's query

    def look(self) -> None:
        """Add the keys that `look` returns now."""
        self.learn(self._more())

    def redact(self, text: str) -> str:
        """Remove the known keys from a text, and what looks like a key."""
        self.look()
        for value in sorted(list(self._values), key=len, reverse=True):
            text = text.replace(value, REMOVED)
        return without_key_shapes(text)

    def redact_foreign(self, text: str) -> str:
        """Like `redact`, for foreign text: also removes what follows `key=`."""
        return _NAMED_KEY.sub(rf"\1\2{REMOVED}", self.redact(text))

    def redact_error(self, error: ProxyError) -> ProxyError:
        """Return an error that quotes foreign text, with keys removed from all its fields."""
        return type(error)(
            self.redact_foreign(error.message),
            param=None if error.param is None else self.redact(error.param),
            code=None if error.code is None else self.redact(error.code),
            status=error.status,
            headers={name: self.redact(value) for name, value in error.headers.items()},
        )
