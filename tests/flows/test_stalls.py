"""A large request beside a stream, measured with the benchmark that tells the delays."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

STALL = Path(__file__).parent.parent.parent / "benchmarks" / "stall.py"


@pytest.mark.slow
def test_no_large_request_holds_the_event_loop():
    """By the process's own CPU time, of which a stall was up to 300 ms; the bound is generous."""
    command = [sys.executable, str(STALL), "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    seen = re.findall(r"^(.+?, .+?) +\d+ +(\d+) +\d+ +\d+ +\d+$", done.stdout, re.MULTILINE)
    assert len(seen) == 20, done.stdout
    assert {name: ms for name, ms in seen if int(ms) > 1_000} == {}
