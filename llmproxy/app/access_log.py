"""The access log: one line per HTTP response, in Apache's combined format.

The duration in seconds is added at the end, and in quotes why a request was refused, if it was.
Control characters, quotes and backslashes sent by a client are escaped, so that it can't forge
lines; secrets in paths, queries and headers are removed.

Spec: https://httpd.apache.org/docs/2.4/mod/mod_log_config.html
"""

from __future__ import annotations

import re
from datetime import datetime

from ..core.known_keys import KnownKeys
from ..recorder.redact import Redactor
from ..transport.server import ServedRequest

MAX_CHARS = 2_000  # of a target or a header; the rest is cut

_UNSAFE = re.compile(r'["\\]|[^\x20-\x7e]')


def access_line(served: ServedRequest, at: datetime, keys: KnownKeys | None = None) -> str:
    """Return the log line of a response that ended at `at`, without secrets and `keys`."""
    request = served.request
    redactor = Redactor(keys)
    status = "-" if served.status is None else f"{served.status}"
    size = f"{served.body_bytes}" if served.body_bytes else "-"
    if request is None:
        request_line, fields = "-", ["-"] * len(_FIELDS)
    else:
        path, mark, query = request.target.partition("?")
        target = redactor.line(path) + mark + redactor.query(query)
        request_line = f"{request.method} {target} HTTP/{request.version}"
        fields = [redactor.line(request.headers.get(name, "-")) for name in _FIELDS]
    quoted = " ".join(f'"{_escaped(text)}"' for text in fields)
    reason = f' "{_escaped(redactor.line(served.reason))}"' if served.reason else ""
    return (
        f"{served.peer} - - [{at:%d/%b/%Y:%H:%M:%S %z}]"
        f' "{_escaped(request_line)}" {status} {size} {quoted} {served.duration_s:.3f}{reason}'
    )


_FIELDS = ("referer", "user-agent")


def _escaped(text: str) -> str:
    return _UNSAFE.sub(lambda match: f"\\x{ord(match[0]):02x}", text[:MAX_CHARS])
