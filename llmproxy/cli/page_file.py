"""Write a page to a file that only its owner may read, or to standard output."""

from __future__ import annotations

import os
from functools import partial

from .terminal import print_error, write_text


def write_page(path: str, text: str) -> None:
    """Write a page; `-` is standard output.

    Raises:
        OSError: the file can't be written; its name is in the error.
    """
    if path == "-":
        write_text(text)  # its head says UTF-8, whatever the terminal
        return
    try:
        # An existing file keeps the rights that its owner gave it.
        with open(path, "w", encoding="utf-8", opener=partial(os.open, mode=0o600)) as file:
            file.write(text)
    except OSError as exc:  # a full disk's has no file name
        raise OSError(exc.errno, exc.strerror, path) from exc
    print_error(f"wrote {path}")
