"""Exceptions that nobody catches: escaped and without keys in the operator's terminal."""

import asyncio
import gc
import io
import logging
import sys
import threading
import warnings

import pytest

from llmproxy.cli import main
from llmproxy.core.known_keys import REMOVED, KnownKeys

KEY = "my-own-key-0123456789"
WORDS = f"a model said \x1b[2J\x9b31m\u202e with {KEY} and sk-proj-Zm9vYmFyYmF6cXV4MTIz"


@pytest.fixture
def errors(monkeypatch):
    """What the command writes to standard error."""
    stream = io.StringIO()
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(sys, "stderr", stream)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        main.log_uncaught()
        main._log_to_stderr("llmproxy", KnownKeys([KEY]))
        yield stream
    logging.captureWarnings(False)


async def fail():
    raise ValueError(WORDS)


def forget_a_task():
    async def main():
        asyncio.get_running_loop().create_task(fail())
        await asyncio.sleep(0.01)
        gc.collect()

    asyncio.run(main())


def fail_in_a_thread():
    thread = threading.Thread(target=asyncio.run, args=(fail(),), name="plugin")
    thread.start()
    thread.join()


def fail_in_a_finalizer():
    class Response:
        def __del__(self):
            raise ValueError(WORDS)

    Response()
    gc.collect()


def fail_in_a_callback():
    async def main():
        asyncio.get_running_loop().call_soon(next, iter(_raising()))
        await asyncio.sleep(0.01)

    asyncio.run(main())


def _raising():
    raise ValueError(WORDS)
    yield


def warn():
    warnings.warn(WORDS, stacklevel=1)


@pytest.mark.parametrize(
    "what", [forget_a_task, fail_in_a_thread, fail_in_a_finalizer, fail_in_a_callback, warn]
)
def test_an_exception_that_nobody_catches_is_escaped_and_without_keys(what, errors):
    what()
    shown = errors.getvalue()
    assert "a model said \\x1b[2J\\x9b31m\\u202e with" in shown
    assert REMOVED in shown and KEY not in shown and "sk-proj-" not in shown
    assert all(c.isprintable() or c in "\n\t" for c in shown)
    assert shown.startswith("llmproxy: ")


def test_the_end_of_a_thread_by_sys_exit_is_no_failure(errors):
    thread = threading.Thread(target=sys.exit, args=(WORDS,))
    thread.start()
    thread.join()
    assert errors.getvalue() == ""
