"""llmproxy: the flight recorder for llm.

Programs that speak a well-known LLM API connect to it, any model that llm can reach answers,
and every exchange is stored in llm's own logs.db. `serve`, `running` and `run` start a proxy,
`open_log` reads what it recorded, and `convert` turns requests, responses and streams of one
API into those of another without a server.

Only the names in `__all__` here, those of `llmproxy.convert`, and `app` and `App` in
`llmproxy.asgi`, for ASGI servers, are stable.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__ as __version__

if TYPE_CHECKING:
    from . import convert as convert
    from .convert import StreamConverter as StreamConverter
    from .convert import convert_error as convert_error
    from .convert import convert_request as convert_request
    from .convert import convert_response as convert_response
    from .core.errors import InvalidRequest as InvalidRequest
    from .core.errors import ProxyError as ProxyError
    from .core.errors import SettingsError as SettingsError
    from .core.errors import UpstreamError as UpstreamError
    from .core.limits import Limits as Limits
    from .log import open_log as open_log
    from .proxy import Proxy as Proxy
    from .proxy import Settings as Settings
    from .recorder.database import StoreError as StoreError
    from .recorder.listing import Filter as Filter
    from .serving import run as run
    from .serving import running as running
    from .serving import serve as serve

_MODULES = {
    "Filter": "recorder.listing",
    "InvalidRequest": "core.errors",
    "Limits": "core.limits",
    "Proxy": "proxy",
    "ProxyError": "core.errors",
    "Settings": "proxy",
    "SettingsError": "core.errors",
    "StoreError": "recorder.database",
    "StreamConverter": "convert",
    "UpstreamError": "core.errors",
    "convert_error": "convert",
    "convert_request": "convert",
    "convert_response": "convert",
    "open_log": "log",
    "run": "serving",
    "running": "serving",
    "serve": "serving",
}

__all__ = [
    "Filter",
    "InvalidRequest",
    "Limits",
    "Proxy",
    "ProxyError",
    "Settings",
    "SettingsError",
    "StoreError",
    "StreamConverter",
    "UpstreamError",
    "convert",
    "convert_error",
    "convert_request",
    "convert_response",
    "open_log",
    "run",
    "running",
    "serve",
]


def _get(name: str) -> Any:
    """Import the module of a public name on first use: llm's plugin must load fast."""
    if name == "convert":  # a module itself
        return import_module(".convert", __name__)
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


if not TYPE_CHECKING:  # to a type checker every name would exist
    __getattr__ = _get


def __dir__() -> list[str]:
    """List the public names, which are there although nothing has imported them yet."""
    return sorted({name for name in globals() if name.startswith("__")} | set(__all__))
