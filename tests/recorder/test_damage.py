"""Values that a column can't have are replaced and named."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

import pytest

from llmproxy.recorder.damage import Damage, Undecodable, decode, kind_of, utc
from llmproxy.recorder.exchange import new_id
from llmproxy.recorder.summary import time_of_id

WORD = Literal["one", "two"]


@pytest.mark.parametrize(
    "kind, value, expected",
    [
        (str, "text", "text"),
        (str | None, None, None),
        (int, 3, 3),
        (int | None, None, None),
        (float | None, 3, 3),
        (float | None, 2.5, 2.5),
        (bool, 1, True),
        (bool, 0, False),
        (WORD, "one", "one"),
        (WORD | None, None, None),
    ],
)
def test_a_value_of_its_kind_is_kept(kind, value, expected):
    damage = Damage()
    found = damage.value("column", value, kind_of(kind))
    assert (found, type(found), damage.names) == (expected, type(expected), ())


@pytest.mark.parametrize(
    "kind, value, expected",
    [
        (str, None, ""),
        (str, 3, ""),
        (str, b"by\xfftes", "by\ufffdtes"),
        (str | None, 3, None),
        (int, "3", 0),
        (int | None, "3", None),
        (int | None, 2.5, None),
        (float | None, float("inf"), None),
        (bool, "yes", False),
        (WORD, "three", "two"),
        (WORD, None, "two"),
        (WORD | None, "three", None),
    ],
)
def test_any_other_value_is_replaced_and_named(kind, value, expected):
    damage = Damage(["before"])
    found = damage.value("column", value, kind_of(kind))
    assert (found, type(found)) == (expected, type(expected))
    assert damage.names == ("before", "column")


def test_text_that_is_not_utf_8_is_shown_and_named():
    assert type(decode("ä".encode())) is str
    text = decode(b"a\xffb")
    damage = Damage()
    assert type(text) is Undecodable
    assert damage.value("column", text, kind_of(str)) == "a\ufffdb"
    assert damage.names == ("column",)


def test_what_can_not_be_read_is_named_once():
    damage = Damage()
    assert damage.read("body", lambda: {}["x"], 1) == 1
    assert damage.read("body", lambda: int("x"), 2) == 2
    assert damage.read("other", lambda: 3, 4) == 3
    assert damage.names == ("body",)


def test_times_become_utc():
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    assert utc("2026-01-01T12:00:00") == utc("2026-01-01T14:00:00+02:00") == noon
    for text in ("", "noon", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59+00:00"):
        with pytest.raises((ValueError, OverflowError)):
            utc(text)


def test_an_id_has_the_time_at_which_it_was_made():
    before = datetime.now(UTC)
    at = time_of_id(new_id())
    assert at is not None and abs((at - before).total_seconds()) < 60
    assert time_of_id("") is time_of_id("no id!") is None
