"""The tree of errors: its drawing in the docstring is what the classes say."""

import re
from datetime import UTC, datetime

import pytest

from llmproxy.core import errors
from llmproxy.core.errors import InvalidRequest, ProxyError, RateLimited, UpstreamError, shortened
from llmproxy.dialects import DIALECTS

OTHER_TYPES = ("insufficient_quota", "request_too_large")

CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, ProxyError)
]


def drawn():
    """Read name, depth, status and kind off the docstring's lines."""
    for line in errors.__doc__.splitlines():
        if found := re.match(r"([│├└─ ]*)(\w+) +(\d{3}) (\w+)", line):
            branch, name, status, kind = found.groups()
            yield name, len(branch) // 3, int(status), kind


def test_the_drawing_is_the_tree():
    depth = {ProxyError: 0} | {
        cls: len(cls.__mro__) - len(ProxyError.__mro__) for cls in CLASSES if cls is not ProxyError
    }
    classes = {(cls.__name__, depth[cls], cls.status, cls.kind) for cls in CLASSES}
    assert set(drawn()) == classes


def test_the_parents_are_drawn_above_their_children():
    above: list[str] = []
    for name, depth, _, _ in drawn():
        above[depth:] = [name]
        assert [cls.__name__ for cls in getattr(errors, name).__mro__[depth::-1]] == above


def test_an_error_carries_facts():
    error = RateLimited("slow down", param="model", headers={"retry-after": "3"})
    facts = (error.status, error.kind, error.code, error.message, error.param, error.headers)
    assert facts == (429, "rate_limit", None, "slow down", "model", {"retry-after": "3"})
    assert str(error) == "model: slow down"


def test_an_upstreams_own_status_replaces_the_classs():
    assert UpstreamError("teapot", status=418).status == 418
    assert UpstreamError("broken").status == 502


@pytest.mark.parametrize("length", [499, 500, 501, 10_000, 3_000_000])
def test_foreign_words_in_an_error_are_cut_in_the_middle(length):
    id_ = "x" * (length - len("no call '' waits"))
    error = InvalidRequest(f"no call '{id_}' waits", param=f"a.b[{id_}].c", code=id_)
    if length <= 500:
        assert error.message == f"no call '{id_}' waits"
    else:
        assert error.message == "no call '…' waits"
        assert length < 510 or error.param == "a.b[…].c"
    assert str(error) == f"{error.param}: {error.message}"
    assert max(map(len, (error.message, error.param, error.code))) <= 500


def test_a_text_without_spaces_is_cut_in_the_middle_too():
    assert shortened("模型" * 300) == "模型" * 175 + "…" + "型" + "模型" * 74


@pytest.mark.parametrize("before", range(300, 520, 7))
def test_no_part_of_a_key_is_left_at_the_cut(before):
    key = "0123456789." * 6
    text = "a " * (before // 2) + key + " b" * 300
    assert len(text) > 500
    shown = InvalidRequest(text).message
    assert shown.replace(key, "").strip("ab ") == "…"
    assert 400 < len(shown) <= 500


def test_headers_of_one_error_are_not_anothers():
    with pytest.raises(TypeError):
        InvalidRequest("x").headers["a"] = "b"


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_kind_has_a_shape_in_every_dialect(cls):
    for dialect in DIALECTS:
        error = cls("why", param="messages[0]")
        rendered = dialect.render_error(error)
        if isinstance(rendered["error"], dict):
            rendered = rendered["error"]
        else:  # Ollama's is a text
            rendered["message"] = rendered["error"]
        assert rendered["message"].endswith("why")
        if not error.code:  # a vendor's code has the vendor's words
            assert "messages[0]" in (rendered.get("param") or rendered["message"])
        assert rendered["type"].endswith("_error") or rendered["type"] in OTHER_TYPES
        assert 400 <= dialect.error_status(error) < 600


DATE = {"date": "Sat, 21 Nov 2026 22:00:00 GMT"}


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "17"}, 17.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after-ms": "x", "retry-after": "1"}, 1.0),
        ({"retry-after-ms": "-5", "retry-after": "1"}, 1.0),
        ({"retry-after": "Sat, 21 Nov 2026 22:00:30 GMT"} | DATE, 30.0),
        ({"retry-after": "Sat, 21 Nov 2026 22:00:30"} | DATE, 30.0),
        ({"retry-after": "Sat, 21 Nov 2026 21:00:00 GMT"} | DATE, 0.0),
        ({"retry-after": "Sat, 21 Nov 2026 22:00:30 GMT", "date": "today"}, None),
        ({"retry-after": "Sat, 21 Nov 2026 22:00:30 GMT"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
    ],
    ids=str,
)
def test_how_long_a_response_asks_to_wait(headers, seconds):
    assert errors.retry_after_s(headers) == seconds


def test_a_response_without_a_date_gets_that_of_its_arrival():
    """RFC 9110, 6.6.1"""
    now = datetime(2026, 11, 21, 22, tzinfo=UTC)
    assert errors.with_date({"Retry-After": "1"}, now) == {"retry-after": "1"} | DATE
    assert errors.with_date({"date": "today"}, now) == DATE
    other = "Sat, 21 Nov 2026 21:59:00 GMT"
    assert errors.with_date({"Date": other}, now) == {"date": other}


def test_the_wait_is_whole_seconds_for_those_who_read_no_more():
    assert errors.retry_headers(None) == {}
    assert errors.retry_headers(17.0) == {"retry-after": "17"}
    assert errors.retry_headers(0.25) == {"retry-after": "1", "retry-after-ms": "250"}
