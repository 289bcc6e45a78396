"""Cases that once were read wrongly, or that a reader like ours once was known to: kept for ever.

A file is one case, as it came over the wire; its name says what is odd. Its folder is the room
that reads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

_FOLDER = Path(__file__).parent / "corpus"


def cases(room: str) -> list[Any]:
    """The cases of a room, as parameters of a test."""
    files = sorted((_FOLDER / room).iterdir())
    assert files, f"no corpus for {room}"
    return [pytest.param(file.read_bytes(), id=file.stem) for file in files]
