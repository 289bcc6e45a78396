"""The keys that llm has for providers: to be kept out of everything, and for nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import llm

from ...core.known_keys import KnownKeys, is_secret_name

__all__ = ["keys_of_model", "known_keys"]

KEY_VARIABLES = ("KEY", "KEYS", "TOKEN", "SECRET")  # how the names of such variables end


def known_keys(own: Iterable[str] = ()) -> KnownKeys:
    """Know `own` keys, those of the environment, and llm's in keys.json, as it changes too."""
    return KnownKeys([*own, *_of_environment()], _Look())


def _of_environment() -> Iterator[str]:
    for name, value in os.environ.items():
        if name.upper().endswith(KEY_VARIABLES):
            yield from (value, *value.split(","))


class _Look:
    """Reads the file when it has changed since the last time: each answer begins with a look."""

    def __init__(self) -> None:
        self._state: tuple[int, int, int] | None = None

    def __call__(self) -> Iterator[str]:
        path = llm.user_dir() / "keys.json"
        try:
            status = path.stat()
            state = status.st_mtime_ns, status.st_size, status.st_ino
            if state != self._state:
                yield from _words(json.loads(path.read_bytes()))
                self._state = state
        except (OSError, ValueError):
            pass  # none, or one half written: llm itself says so where a key is needed


def _words(stored: Any) -> Iterator[str]:
    for name, value in stored.items() if isinstance(stored, dict) else ():
        if isinstance(value, str) and not name.startswith("//"):  # llm's note in the file
            yield value


def keys_of_model(model: Any) -> Iterator[str]:
    """Give the keys that a model has of its own: set on it, or in headers that it sends.

    llm's extra-openai-models.yaml names such headers.
    """
    headers = getattr(model, "headers", None)
    named = headers.items() if isinstance(headers, Mapping) else ()
    secret = [value for name, value in named if is_secret_name(str(name))]
    for value in (getattr(model, "key", None), *secret):
        if isinstance(value, str):
            yield from value.split()  # Bearer …
