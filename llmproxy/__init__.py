"""llmproxy: the flight recorder for llm.

Any program that speaks a well-known LLM wire comes in, any model that llm can reach
answers, and every exchange is kept in llm's own logs.db. `Proxy` runs the whole of
it in a script; `convert` turns requests, answers and streams of one wire into those of
another without it; the rooms below are importable by themselves.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__ as __version__

if TYPE_CHECKING:
    from . import convert as convert
    from .background import running as running
    from .core.limits import Limits as Limits
    from .proxy import Proxy as Proxy
    from .proxy import Settings as Settings
    from .proxy import SettingsError as SettingsError

__all__ = ["Limits", "Proxy", "Settings", "SettingsError", "convert", "running"]

_ROOMS = {
    "Limits": "core.limits",
    "Proxy": "proxy",
    "Settings": "proxy",
    "SettingsError": "proxy",
    "running": "background",
}


def __getattr__(name: str) -> Any:
    """Import a public name's room when it is first asked for: llm's plugin must load fast."""
    if name == "convert":  # itself a room
        return import_module(".convert", __name__)
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_ROOMS[name]}", __name__), name)
