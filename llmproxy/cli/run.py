"""Run a command's function: turn its failure into one line on stderr and an exit code."""

from __future__ import annotations

from collections.abc import Callable

from ..core.errors import ProxyError, SettingsError
from ..core.text import printable
from .terminal import print_error

# 0 is success; argparse exits with 2 for wrong arguments.
FAILED = 1
WRONG_SETTINGS = 2
INTERRUPTED = 130  # Ctrl-C: 128 plus the signal's number


def run(name: str, command: Callable[[], int], *failures: type[Exception]) -> int:
    """Run a command and return its exit code; a failure is one line on stderr.

    failures: exceptions besides ProxyError whose text is the message. A closed pipe
    (`| head`) is not an error.
    """
    try:
        return command()
    except SettingsError as exc:
        return _fail(name, str(exc), WRONG_SETTINGS)
    except ProxyError as exc:
        return _fail(name, exc.full_message, FAILED)
    except failures as exc:
        return _fail(name, str(exc), FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return 0
    except OSError as exc:
        where = f"{exc.filename}: " if exc.filename else ""
        return _fail(name, f"{where}{exc.strerror or exc}", FAILED)


def _fail(name: str, message: str, exit_code: int) -> int:
    """Print a message, as one line, and return the exit code."""
    print_error(f"{name}: {printable(message)}")
    return exit_code
