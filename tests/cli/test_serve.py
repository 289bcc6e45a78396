"""The serve command's settings of its own process."""

import gc
import subprocess
import sys

import pytest

from llmproxy.cli import serve
from tests.proxies import running


@pytest.fixture
def kept():
    """Put back what belongs to the process of the tests."""
    switch_s, threshold = sys.getswitchinterval(), gc.get_threshold()
    yield switch_s, threshold
    sys.setswitchinterval(switch_s)
    gc.set_threshold(*threshold)


def test_pauses_are_shortened_by_the_command_only(kept):
    frozen = gc.get_freeze_count()  # these tests have done so too
    with running():
        assert (sys.getswitchinterval(), gc.get_threshold()) == kept
        assert gc.get_freeze_count() <= frozen
    serve.shorten_pauses()
    assert sys.getswitchinterval() == pytest.approx(0.0005)
    assert gc.get_threshold() == (10_000, 10, 100)
    assert gc.get_freeze_count() > frozen


def test_the_collector_is_as_python_has_it_after_an_import():
    code = "import gc, sys, llmproxy; print(gc.isenabled(), gc.get_freeze_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True 0\n"
