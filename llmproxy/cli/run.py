"""Running a command: what it says when it fails, and its exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable

from ..core.errors import ProxyError

__all__ = ["run"]


def run(name: str, command: Callable[[], int], *failures: type[Exception]) -> int:
    """Run a command; give its exit code. What went wrong is one line on stderr.

    failures: besides ProxyError, those that say themselves what went wrong.
    1: it could not do what it was to; 2: a file can't be opened or written; 130: Ctrl-C.
    Who reads its output may stop at any time.
    """
    try:
        return command()
    except ProxyError as exc:
        return _fail(name, exc.full_message, 1)
    except failures as exc:
        return _fail(name, str(exc), 1)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `log | head`
        sys.stderr.close()
        return 0
    except OSError as exc:
        where = f"{exc.filename}: " if exc.filename else ""
        return _fail(name, f"{where}{exc.strerror}", 2)


def _fail(name: str, message: str, code: int) -> int:
    print(f"{name}: {message}", file=sys.stderr)
    return code
