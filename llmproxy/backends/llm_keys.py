"""llm's API keys of providers, read only so that they can be redacted."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..core.known_keys import KnownKeys, is_secret_name
from ..recorder.user_files import user_file

KEY_VARIABLES = ("KEY", "KEYS", "TOKEN", "SECRET")  # how names of key variables end


def known_keys(own: Iterable[str] = ()) -> KnownKeys:
    """Return `own` keys, those of the environment, and llm's keys.json, which is watched."""
    return KnownKeys([*own, *_environment_keys()], _KeysFile())


def _environment_keys() -> Iterator[str]:
    for name, value in os.environ.items():
        if name.upper().endswith(KEY_VARIABLES):
            yield from (value, *value.split(","))


class _KeysFile:
    """llm's keys.json, read again if it has changed; each run begins with a check."""

    def __init__(self) -> None:
        self._state: tuple[int, int, int] | None = None

    def __call__(self) -> Iterator[str]:
        path = user_file("keys.json")
        try:
            status = os.stat(path)
            state = status.st_mtime_ns, status.st_size, status.st_ino
            if state != self._state:
                yield from _values(json.loads(Path(path).read_bytes()))
                self._state = state
        except (OSError, ValueError):
            pass  # missing or half written: llm itself reports that if it needs a key


def _values(stored: Any) -> Iterator[str]:
    for name, value in stored.items() if isinstance(stored, dict) else ():
        if isinstance(value, str) and not name.startswith("//"):  # a note that llm writes
            yield value


def keys_of_model(model: Any) -> Iterator[str]:
    """Yield the keys that are set on a model itself, or in headers that it sends.

    llm's extra-openai-models.yaml may configure such headers.
    """
    headers = getattr(model, "headers", None)
    named = headers.items() if isinstance(headers, Mapping) else ()
    secret = [value for name, value in named if is_secret_name(str(name))]
    for value in (getattr(model, "key", None), *secret):
        if isinstance(value, str):
            yield from value.split()  # Bearer …
