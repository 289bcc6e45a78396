"""What must never be told: the keys that this process knows, and what looks like one.

Providers quote the key that they refuse, and libraries put the request that failed into
their exceptions. So a text out of another house is cleaned before it goes anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from urllib.parse import quote

from .errors import ProxyError

REMOVED = "[removed]"
MIN_KEY_CHARS = 8  # what people write where no key is needed ("none", "x") stands in many words

_URL_USER = re.compile(r"(?<=://)[^/?#@\s]+@")
_SECRET_NAME = re.compile(
    "auth|cookie|credential|key|password|secret|signature|token", re.IGNORECASE
)
_KEY_SHAPES = re.compile(
    r"\b(?:sk|pk|rk|gsk|xai|hf|r8|pplx|nvapi|ghp|gho|glpat|github_pat)[-_][\w*.-]{8,}"
    r"|\bAIza[\w-]{20,}|\bAKIA[A-Z0-9]{12,}|\beyJ[\w-]{10,}\.[\w-]+\.[\w-]+|(?<=bearer )\S{8,}",
    re.IGNORECASE,
)
# Only in what others say: our own errors name fields of a request in this way.
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
    """The keys that this process may use or ask for. One object; nothing else holds them all.

    values: some of them. look: gives more each time, where they can change while it runs;
        one that was known stays known, since an answer under way may still use it.
    """

    def __init__(
        self, values: Iterable[str] = (), look: Callable[[], Iterable[str]] = tuple
    ) -> None:
        self._values: set[str] = set()
        self._more = look
        self.learn(values)

    def learn(self, values: Iterable[str]) -> None:
        """Know these too, save those so short that they stand in other words."""
        for value in map(str.strip, values):
            if len(value) >= MIN_KEY_CHARS and value not in self._values:
                self._values.update((value, quote(value, safe="")))  # as in a URL's query

    def look(self) -> None:
        """Know what there is now."""
        self.learn(self._more())

    def out_of(self, text: str) -> str:
        """Give a text without the known keys and without what looks like one."""
        self.look()
        for value in sorted(list(self._values), key=len, reverse=True):
            text = text.replace(value, REMOVED)
        return without_key_shapes(text)

    def out_of_foreign(self, text: str) -> str:
        """The same for what others say, where `key=…` is followed by one."""
        return _NAMED_KEY.sub(rf"\1\2{REMOVED}", self.out_of(text))

    def cleaned(self, error: ProxyError) -> ProxyError:
        """Give an error that repeats what others say without any key, in whichever of its facts."""
        return type(error)(
            self.out_of_foreign(error.message),
            param=None if error.param is None else self.out_of(error.param),
            code=None if error.code is None else self.out_of(error.code),
            status=error.status,
            headers={name: self.out_of(value) for name, value in error.headers.items()},
        )
