"""Inputs that this parser, or one like it, once got wrong; kept forever.

A file is one input as it came in; its name says what is odd. Its folder names the parser.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

_FOLDER = Path(__file__).parent / "corpus"


def cases(parser: str) -> list[Any]:
    """Return the inputs of a parser as parameters of a test."""
    files = sorted((_FOLDER / parser).iterdir())
    assert files, f"no corpus for {parser}"
    return [pytest.param(file.read_bytes(), id=file.stem) for file in files]
