"""Paths of files in llm's user folder, for those that are looked at for each request."""

from __future__ import annotations

import os
from functools import lru_cache

import llm


def user_file(name: str) -> str:
    """Return the path of a file in llm's user folder.

    `llm.user_dir` makes the folder each time, and a Path: 20 µs.

    Raises:
        OSError: the folder isn't there, and can't be made.
    """
    return _user_file(name, os.environ.get("LLM_USER_PATH"))


@lru_cache(16)
def _user_file(name: str, user_path: str | None) -> str:
    return str(llm.user_dir() / name)
