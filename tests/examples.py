"""How many examples a costly property is tried on: a fifth in the quick run, all in the slow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings

LEAST = 5
SHARE = 5  # the quick run tries one of so many

is_slow_run = False  # set by conftest.py before any test module is imported


def many_examples(number: int, **others: Any) -> Callable[[Any], Any]:
    """Decorate a property that takes long, in place of `settings(max_examples=number)`.

    `python -m pytest` tries a fifth of them. With `-m slow` the property is one of the
    slow tests too, and all of them are tried. others: more of hypothesis' settings.
    """

    def decorate(test: Any) -> Any:
        if is_slow_run:
            return pytest.mark.slow(settings(max_examples=number, **others)(test))
        return settings(max_examples=max(LEAST, number // SHARE), **others)(test)

    return decorate
