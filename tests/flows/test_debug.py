"""Settings(debug=True): tracebacks of plugins are logged, without keys and control characters."""

from __future__ import annotations

import io
import logging
from contextlib import suppress
from http.client import IncompleteRead

import pytest

from llmproxy.cli import main
from llmproxy.core.known_keys import KnownKeys
from tests.app.test_app import request
from tests.app.test_embeddings import EmbeddingScript
from tests.models import AsyncScript, SyncScript
from tests.proxies import running

KEY = "sk-0123456789abcdefghij"
BODY = {"model": "m", "messages": [{"role": "user", "content": "q"}]}


def kaput(response):
    raise RuntimeError(f"kaput \x1b[31m {KEY} api_key=very-secret-value")


class Broken(AsyncScript):
    """A model whose plugin fails before it yields anything, in its own code."""

    class Options(AsyncScript.Options):
        def __init__(self, **options):
            raise LookupError("no such option")


@pytest.fixture
def said(caplog):
    def text():
        return [r.getMessage() for r in caplog.records if r.name == "llmproxy"]

    return text


@pytest.mark.parametrize("model", [AsyncScript, SyncScript])
@pytest.mark.parametrize("stream", [False, True])
def test_a_plugins_traceback_is_logged(model, stream, said):
    with running(model("m", "a", kaput), debug=True, log=False) as proxy:
        with suppress(IncompleteRead):  # a stream that fails is cut
            request(proxy, "POST", "/v1/chat/completions", BODY | {"stream": stream})
    (text,) = said()
    assert text.startswith("m failed:\nTraceback (most recent call last):\n")
    assert "in kaput\n    raise RuntimeError(f" in text
    assert text.endswith(r"RuntimeError: kaput \x1b[31m [removed] api_key=[removed]")
    assert KEY not in text and "\x1b" not in text


def test_a_plugin_that_refuses_its_options_shows_where(said):
    with running(Broken("m", "a"), debug=True, log=False) as proxy:
        request(proxy, "POST", "/v1/chat/completions", BODY | {"temperature": 0.5})
    assert said() and said()[0].endswith("LookupError: no such option")


def test_an_embedding_models_traceback_is_logged(said):
    class Failing(EmbeddingScript):
        def embed_batch(self, items):
            raise ZeroDivisionError("by zero")

    with running(Failing("e"), debug=True, log=False) as proxy:
        request(proxy, "POST", "/v1/embeddings", {"model": "e", "input": "a"})
    (text,) = said()
    assert text.startswith("e failed:\n") and text.endswith("ZeroDivisionError: by zero")


def test_nothing_is_logged_unless_it_is_asked_for(said):
    with running(AsyncScript("m", kaput), log=False) as proxy:
        status, _, body = request(proxy, "POST", "/v1/chat/completions", BODY)
    assert (status, KEY in body.decode(), said()) == (502, False, [])


def test_a_very_long_traceback_is_cut(said):
    def shout(response):
        raise RuntimeError("x" * 1_000_000)

    with running(AsyncScript("m", shout), debug=True, log=False) as proxy:
        request(proxy, "POST", "/v1/chat/completions", BODY)
    (text,) = said()
    assert 40_000 < len(text) < 41_000 and "\n…\n" in text


def test_the_command_prints_it_on_standard_error():
    """As it prints every line of a logger."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(main._Formatter("llmproxy", KnownKeys()))
    logger = logging.getLogger("llmproxy")
    logger.addHandler(handler)
    try:
        with running(AsyncScript("m", kaput), debug=True, log=False) as proxy:
            request(proxy, "POST", "/v1/chat/completions", BODY)
    finally:
        logger.removeHandler(handler)
    lines = stream.getvalue().splitlines()
    assert lines[:2] == ["llmproxy: m failed:", "Traceback (most recent call last):"]
    assert KEY not in stream.getvalue()
