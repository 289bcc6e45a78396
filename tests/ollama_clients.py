"""Clients of Ollama's SDK, which don't close themselves when they are left."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import ollama
import pytest


@pytest.fixture(autouse=True)
def closed_ollama_clients(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close the sync ones that a test, or llm-ollama in it, has made."""
    make = ollama.Client.__init__
    with ExitStack() as stack:

        def noted(self: ollama.Client, *args: Any, **options: Any) -> None:
            make(self, *args, **options)
            stack.callback(self.close)

        monkeypatch.setattr(ollama.Client, "__init__", noted)
        yield
