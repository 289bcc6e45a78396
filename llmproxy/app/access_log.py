"""The access log: a line for each HTTP answer, as web servers write it.

Apache's combined format, with the time that it took, in seconds, at the end. Control
characters, quotes and backslashes of a client's words are escaped, and secrets in a
query are left out: a line is one line, and no more than that.

Spec: https://httpd.apache.org/docs/2.4/mod/mod_log_config.html
"""

from __future__ import annotations

import re
from datetime import datetime

from ..recorder.redact import Redactor
from ..transport.http11 import Request
from ..transport.server import ServedRequest

__all__ = ["access_line"]

MAX_CHARS = 2_000  # of a target or a field: nobody reads more of one

_UNSAFE = re.compile(r'["\\]|[^\x20-\x7e]')


def access_line(answered: ServedRequest, at: datetime) -> str:
    """Say an answer in one line; `at` is when it was over."""
    request = answered.request
    status = "-" if answered.status is None else f"{answered.status}"
    size = f"{answered.body_bytes}" if answered.body_bytes else "-"
    asked = (
        "-" if request is None else f"{request.method} {_target(request)} HTTP/{request.version}"
    )
    fields = ["-" if request is None else request.headers.get(name, "-") for name in _FIELDS]
    said = " ".join(f'"{_escaped(words)}"' for words in fields)
    return (
        f"{answered.peer} - - [{at:%d/%b/%Y:%H:%M:%S %z}]"
        f' "{_escaped(asked)}" {status} {size} {said} {answered.duration_s:.3f}'
    )


_FIELDS = ("referer", "user-agent")


def _target(request: Request) -> str:
    path, mark, query = request.target.partition("?")
    return path + mark + Redactor().query(query)


def _escaped(words: str) -> str:
    return _UNSAFE.sub(lambda found: f"\\x{ord(found[0]):02x}", words[:MAX_CHARS])
