"""Known API keys, and patterns that look like keys; redacted from every error and log line.

Providers quote the key that they refuse, and libraries put the failed request into their
exceptions. So text from elsewhere is redacted before it goes anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from urllib.parse import quote, unquote, unquote_plus

from .errors import ProxyError

REMOVED = "[removed]"
MAX_REMEMBERED_CHARS = 100  # of a header's name or value, which a client can choose
MAX_REMEMBERED = 1_024
MIN_KEY_CHARS = 8  # placeholders ("none", "x") are part of many words

_URL_USER = re.compile(r"(?<=://)[^/?#@\s]+@")
_SECRET_NAME = re.compile(
    "auth|cookie|credential|hmac|jwt|key|passphrase|passw|secret|signature|token", re.IGNORECASE
)
# Of parameters only: headers have `x-claude-code-session-id` and the like. And only as whole
# words: there are `decode`, `design`, `bypass`.
_SECRET_WORD = re.compile(
    r"(?<![a-z0-9])(?:assertion|code|csrf|j?session(?:id)?|otp|pass|phpsessid|pin|pwd"
    r"|samlresponse|sid|sig|ticket|xsrf)(?![a-z0-9])"
)
_CAMEL_CASE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_KEY_PREFIXES = "sk pk rk gsk xai hf r8 pplx nvapi ghp gho glpat github_pat".split()
_KEY_SHAPES = re.compile(
    rf"\b(?:{'|'.join(_KEY_PREFIXES)})[-_][\w*.-]{{8,}}"
    r"|\bAIza[\w-]{20,}|\bAKIA[A-Z0-9]{12,}|(?<=bearer )\S{8,}"
    # A JWT, tried only where a run of such characters begins: within, it took quadratic time.
    r"|(?<![\w-])(?=[\w-]*\beyJ)[\w-]{13,}+\.[\w-]++\.[\w-]+",
    re.IGNORECASE,
)
# One of these is in each of them. Few texts have any, and the search takes 30 times as long.
_KEY_MARKS = (
    "aiza", "akia", "eyj", "bearer ",
    *(prefix + dash for prefix in _KEY_PREFIXES for dash in "-_"),
)  # fmt: skip
# Only in foreign text: our own errors name fields of a request in this way.
_NAMED_KEY = re.compile(r"(?i)\b((?:api[-_ ]?key|key|token)(?: provided)?)([=:]\s*)[\w*./+~-]{8,}")
# `;` separates them too, and a fragment (`#access_token=…`) has some.
_URL_PARAMETER = re.compile(r"(?<=[?&;#])([^\s?&;=#\"'<>]{1,100})=([^\s&;#\"'<>]+)")


def is_secret_name(name: str) -> bool:
    """Say whether a header of this name holds a key, token or cookie."""
    if len(name) > MAX_REMEMBERED_CHARS:
        return _SECRET_NAME.search(name) is not None
    return _is_secret_name(name)


@lru_cache(MAX_REMEMBERED)  # each request has the same header names
def _is_secret_name(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None


def is_secret_parameter(name: str) -> bool:
    """Say whether a parameter of this name, in a URL or a form, holds a secret: `code`, `sig` …"""
    name = unquote_plus(name)
    words = _CAMEL_CASE.sub("_", name).lower()
    return is_secret_name(name) or _SECRET_WORD.search(words) is not None


def replace_parameters(text: str, replace: Callable[[str], str], depth: int = 4) -> str:
    """Replace the values of secret parameters in each URL in a text, also in URLs inside these.

    replace: is given such a value and returns what to put in its place. depth: how many URLs
        may be in one another.
    """

    def parameter(match: re.Match[str]) -> str:
        name, value = match.groups()
        if is_secret_parameter(name):
            return match[0] if unquote(value) == REMOVED else f"{name}={replace(value)}"
        if "%" in value and depth:
            inside = unquote(value)
            cleaned = replace_parameters(inside, lambda text: unquote(replace(text)), depth - 1)
            value = value if cleaned == inside else quote(cleaned, safe="")
        return f"{name}={value}"

    return _URL_PARAMETER.sub(parameter, text) if "=" in text else text


def without_url_user(url: str) -> str:
    """Remove the user and password from each URL in a text."""
    return _URL_USER.sub(f"{REMOVED}@", url) if "@" in url else url


def without_key_shapes(text: str) -> str:
    """Remove what looks like a key, known or not; also the user and secrets in a URL."""
    text = replace_parameters(without_url_user(text), lambda _: REMOVED)
    lower = text.lower()
    return _KEY_SHAPES.sub(REMOVED, text) if any(mark in lower for mark in _KEY_MARKS) else text


def without_secrets(text: str, secrets: Iterable[str]) -> str:
    """Remove secrets from a text, the longer one where one begins as another does."""
    # Almost no text has any: looking for each takes a tenth of what one pattern of all takes,
    # and what was put in a secret's place is not searched again.
    found = sorted({secret for secret in secrets if secret in text}, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, found)), REMOVED, text) if found else text


class KnownKeys:
    """The keys that this process may use or ask for. Nothing else holds them all.

    values: the keys known at start. look: returns more at each call, for keys that change
        while the process runs. A known key stays known: a running response may still use it.
    clean_texts: short texts in which no secret was found, to be added by those who have looked;
        another set, which is empty, once there is another key.
    """

    def __init__(
        self, values: Iterable[str] = (), look: Callable[[], Iterable[str]] = tuple
    ) -> None:
        self._values: set[str] = set()
        self.clean_texts: set[str] = set()
        self._more = look
        self.learn(values)

    def learn(self, values: Iterable[str]) -> None:
        """Add keys, except those so short that they are part of other words."""
        for value in map(str.strip, values):
            if len(value) >= MIN_KEY_CHARS and value not in self._values:
                self._values.update((value, quote(value, safe="")))  # as in a URL's query
                # Not cleared: another thread may be about to add what it has looked at before.
                self.clean_texts = set()

    def look(self) -> None:
        """Add the keys that `look` returns now."""
        self.learn(self._more())

    def redact(self, text: str) -> str:
        """Look for new keys, then remove the known ones from a text, and what looks like a key."""
        self.look()
        return self.remove(text)

    def remove(self, text: str) -> str:
        """Remove the keys that are known now from a text, and what looks like a key."""
        return without_key_shapes(without_secrets(text, list(self._values)))

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
