"""The end of the process, while threads of models may still run.

Imports no asyncio, which commands that only read the log don't need.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from typing import NoReturn


class ModelThread(threading.Thread):
    """A thread of a model, known by its class among all others of the process."""


def exit_process(code: int) -> NoReturn:
    """End the process with an exit code, at once if a model's thread still runs.

    The interpreter's own end takes native libraries apart (destructors, freed memory) while
    such a thread computes in them, which ends in a crash: llama.cpp's was a segmentation
    fault in one of four stops.
    """
    if any(isinstance(thread, ModelThread) for thread in threading.enumerate()):
        # A plugin may have put another stream in place of the process's own.
        for stream in (sys.stdout, sys.__stdout__):
            with suppress(OSError, ValueError):  # the reader is gone, or the stream is closed
                if stream is not None:
                    stream.flush()
        os._exit(code)
    sys.exit(code)
