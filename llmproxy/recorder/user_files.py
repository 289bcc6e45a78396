"""llm's user folder, and paths of its files for those that are looked at for each request."""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from pathlib import Path

_NAME = "io.datasette.llm"


def user_folder() -> Path:
    """Return llm's user folder, which is made, as `llm.user_dir` does.

    Without the import of llm, 0.3 s, so that a list of the log is printed at once. The place is
    that of click.get_app_dir.

    Raises:
        OSError: the folder isn't there, and can't be made.
    """
    folder = user_folder_path()
    folder.mkdir(exist_ok=True, parents=True)
    return folder


def user_folder_path() -> Path:
    """Return the path of llm's user folder, which need not exist."""
    return Path(os.environ.get("LLM_USER_PATH") or _app_folder())


def _app_folder() -> str:
    if sys.platform.startswith("win"):
        place = os.environ.get("APPDATA")
        return os.path.join(os.path.expanduser("~") if place is None else place, _NAME)
    if sys.platform == "darwin":
        return os.path.join(os.path.expanduser("~/Library/Application Support"), _NAME)
    place = os.environ.get("XDG_CONFIG_HOME", os.path.expanduser("~/.config"))
    return os.path.join(place, _NAME)


def user_file(name: str) -> str:
    """Return the path of a file in llm's user folder.

    `user_folder` makes the folder each time, and a Path: 20 µs.

    Raises:
        OSError: the folder isn't there, and can't be made.
    """
    return _user_file(name, os.environ.get("LLM_USER_PATH"))


@lru_cache(16)
def _user_file(name: str, user_path: str | None) -> str:
    return str(user_folder() / name)
