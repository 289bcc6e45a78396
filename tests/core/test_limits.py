"""The table of limits, read and described."""

import pytest

from llmproxy.core.errors import SettingsError
from llmproxy.core.limits import Limits, describe, parse_limits


def test_words_replace_the_defaults():
    assert parse_limits(["body=1000", "idle_s=2.5", "header_s=3"]) == Limits(
        body=1000, idle_s=2.5, header_s=3.0
    )


def test_no_words_are_the_defaults_and_the_last_of_two_counts():
    assert parse_limits([]) == Limits()
    assert parse_limits(["head=1", "head=2"]) == Limits(head=2)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1e999", "x", "", "1.5", "9" * 5_000])
def test_what_is_no_count_above_0_is_refused(text):
    with pytest.raises(ValueError) as caught:
        parse_limits([f"body={text}"])
    assert str(caught.value) == f"limit body takes a number above 0, not {text!r}"


@pytest.mark.parametrize("text", ["0", "-0.1", "nan", "inf", "soon"])
def test_what_is_no_time_above_0_is_refused(text):
    with pytest.raises(ValueError) as caught:
        parse_limits([f"idle_s={text}"])
    assert str(caught.value) == f"limit idle_s takes a number above 0, not {text!r}"


def test_what_is_off_by_default_alone_may_be_off():
    assert describe()[list(vars(Limits())).index("answer_s")].startswith("answer_s=off  ")
    assert parse_limits(["answer_s=5", "answer_s=off"]) == Limits()
    with pytest.raises(ValueError):
        parse_limits(["idle_s=off"])


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(ValueError) as caught:
        parse_limits(["bodi=1"])
    names = ", ".join(vars(Limits()))
    assert str(caught.value) == f"unknown limit 'bodi'; limits are: {names}"


def test_a_word_without_a_value_is_refused():
    with pytest.raises(ValueError) as caught:
        parse_limits(["body"])
    assert str(caught.value) == "limit body takes a number above 0, not ''"


def test_every_limit_is_described_with_its_default_and_reason():
    lines = describe()
    assert [line.partition("=")[0] for line in lines] == list(vars(Limits()))
    assert lines[0] == "body=67108864  bytes of a decompressed body: ten photos and a long chat"
    assert all(len(line.partition("  ")[2]) > 10 for line in lines)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"running": 0}, "limit running takes a number above 0, not 0"),
        ({"idle_s": -0.5}, "limit idle_s takes a number above 0, not -0.5"),
        ({"body": 1.5}, "limit body: expected int, not 1.5"),
        ({"body": "1"}, "limit body: expected int, not '1'"),
        ({"queue_s": float("nan")}, "limit queue_s: expected float, not nan"),
    ],
)
def test_limits_made_in_python_are_checked_too(fields, error):
    with pytest.raises(SettingsError) as caught:
        Limits(**fields)
    assert str(caught.value) == error
