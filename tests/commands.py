"""The command, run in the tests' own process: one of its own takes a second to start."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from unittest.mock import patch

from llmproxy.cli import main


def run_here(*words: str, stdin: bytes = b"") -> tuple[int, bytes, str]:
    """Run the command with these words; give its exit code, and what it wrote."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    given = io.TextIOWrapper(io.BytesIO(stdin), "utf-8")
    with redirect_stdout(out), redirect_stderr(err), patch("sys.stdin", given):
        try:
            code = main.main(words)
        except SystemExit as exc:
            code = int(exc.code or 0)
    out.flush()
    return code, out.buffer.getvalue(), err.getvalue()
