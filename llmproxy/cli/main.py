"""The command: `python -m llmproxy`, `llmproxy`, `llm proxy`. Without a subcommand it serves."""

from __future__ import annotations

import gc
import logging
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import NoReturn

from ..backends.llm_keys import known_keys
from ..core.known_keys import KnownKeys
from ..core.process_end import exit_process
from ..core.text import printable
from .completion import Shell, script
from .run import INTERRUPTED
from .run import run as run_command
from .terminal import own_streams, take_any_text

# Each with its module, function and parser, imported when it is asked for: the server needs none
# of them.
_SUBCOMMANDS: Mapping[str, tuple[str, str, str]] = {
    "log": ("log", "main", "_parser"),
    "export": ("export_import", "export_main", "_export_parser"),
    "import": ("export_import", "import_main", "_import_parser"),
    "bench": ("bench", "main", "_parser"),
    "report": ("report", "main", "_parser"),
    "convert": ("convert", "main", "_parser"),
    "check": ("check", "main", "_parser"),
}


def run(argv: Sequence[str] | None = None, program: str = "llmproxy") -> NoReturn:
    """Run the command as all that this process does, and end the process."""
    output = own_streams()
    log_uncaught()
    is_text_lost = False
    try:
        exit_code = main(argv, program)
    except SystemExit as exc:  # of argparse, or a second signal
        if not isinstance(exc.code, int):
            raise
        exit_code = exc.code
        is_text_lost = True  # argparse tells nobody if it can't write the text of --help
    except KeyboardInterrupt:  # while modules are imported or arguments read
        exit_code = INTERRUPTED

    def finish() -> int:
        sys.stdout.flush()
        if is_text_lost and output.failure is not None:
            raise output.failure
        return exit_code

    exit_process(run_command(program, finish) or exit_code)


def main(argv: Sequence[str] | None = None, program: str = "llmproxy") -> int:
    """Run the command with these arguments (default: sys.argv) and return its exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    take_any_text()
    keys = known_keys()
    _log_to_stderr(program, keys)
    if argv and argv[0] in _SUBCOMMANDS:
        module, function, _ = _SUBCOMMANDS[argv[0]]
        command: Callable[[Sequence[str], str], int]
        command = getattr(import_module(f".{module}", __package__), function)
        return command(argv[1:], program)
    # Until it listens there is hardly any garbage: looking for it took a tenth of the start.
    gc.disable()
    from . import serve

    return serve.main(argv, program, keys, tuple(_SUBCOMMANDS), _completion)


def _completion(shell: Shell) -> str:
    """Return the script of completions for a shell, of all commands."""
    from . import serve

    parsers = {"": serve._parser("llmproxy")}
    for name, (module, _, parser) in _SUBCOMMANDS.items():
        make = getattr(import_module(f".{module}", __package__), parser)
        parsers[name] = make(f"llmproxy {name}")
    return script(shell, parsers)


def log_uncaught() -> None:
    """Log exceptions that nobody catches, in a thread or a finalizer.

    The interpreter prints them as they are, with a model's words and keys in them. asyncio logs
    those of tasks itself.
    """
    threading.excepthook = _log_failure_in_thread
    sys.unraisablehook = _log_unraisable


def _log_failure_in_thread(failure: threading.ExceptHookArgs) -> None:
    if failure.exc_type is SystemExit or failure.exc_value is None:
        return
    name = "?" if failure.thread is None else failure.thread.name
    _uncaught(f"the thread {name} failed", failure.exc_value)


def _log_unraisable(failure: sys.UnraisableHookArgs) -> None:
    if failure.exc_value is not None:
        _uncaught(failure.err_msg or "an exception was ignored", failure.exc_value)


def _uncaught(message: str, exc: BaseException) -> None:
    logging.getLogger(__name__).error("%s", message, exc_info=exc)


class _Formatter(logging.Formatter):
    """Keeps keys out of log lines, including tracebacks of other people's code."""

    def __init__(self, program: str, keys: KnownKeys) -> None:
        super().__init__(f"{program}: %(message)s")
        self._keys = keys

    def format(self, record: logging.LogRecord) -> str:
        text = self._keys.redact_foreign(super().format(record))
        return printable(text, lines=True)


def _log_to_stderr(program: str, keys: KnownKeys) -> None:
    """Log warnings of any library, and what we have to say, as one line each to standard error.

    Keys are left out.
    """
    logging.captureWarnings(True)
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter(program, keys))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("llmproxy").setLevel(logging.INFO)  # what --keep has deleted
