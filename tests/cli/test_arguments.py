"""Values of flags that several commands share: times, numbers, names."""

import argparse
import os
import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.cli import arguments
from tests.commands import run_here


@pytest.fixture(autouse=True, scope="module")
def far_from_utc():
    before = os.environ.get("TZ")
    os.environ["TZ"] = "Asia/Kathmandu"  # +05:45
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


def today():
    return datetime.now().replace(hour=0, minute=0, second=0, microsecond=0)


def test_days_and_times_of_a_day_are_the_terminals():
    assert arguments._time("today") == today().astimezone()
    assert arguments._time(" Yesterday ") == (today() - timedelta(days=1)).astimezone()
    assert arguments._time("18:30") == today().replace(hour=18, minute=30).astimezone()
    assert arguments._time("9:05:07") == today().replace(hour=9, minute=5, second=7).astimezone()
    assert arguments._time("18:30Z").time().isoformat() == "18:30:00"
    assert arguments._time("2026-11-21") == datetime(2026, 11, 20, 18, 15, tzinfo=UTC)
    assert arguments._time("2026-11-21 18:30") == datetime(2026, 11, 21, 12, 45, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "age"),
    [
        ("90m", timedelta(minutes=90)),
        ("1d12h", timedelta(days=1, hours=12)),
        ("1H30M", timedelta(minutes=90)),
        ("2w", timedelta(weeks=2)),
        ("0s", timedelta()),
    ],
)
def test_ages(text, age):
    assert abs(datetime.now(UTC) - age - arguments._time(text)) < timedelta(seconds=30)


@pytest.mark.parametrize("text", ["9999999w", "9" * 5000 + "s", "0001-01-01"])
def test_a_time_before_all_times_is_the_first_one(text):
    assert arguments._time(text) == datetime(1, 1, 1, tzinfo=UTC)


def test_a_time_after_all_times_is_the_last_day():
    assert arguments._time("9999-12-31T23:59:59-12:00").year == 9999


@given(st.text() | st.from_regex(r"[0-9:dhmsw+TZ. -]{1,12}", fullmatch=True))
def test_any_text_is_a_time_or_refused(text):
    try:
        assert arguments._time(text).tzinfo is UTC
    except argparse.ArgumentTypeError as exc:
        assert str(exc) == f"expected a date, a time or an age, not {text!r}"


@pytest.mark.parametrize("digits", ["1" + "0" * 20, "9" * 5000])
def test_numbers_larger_than_any_log_mean_all(digits):
    assert arguments._rows(digits) == 2**63 - 1
    with pytest.raises(argparse.ArgumentTypeError, match="expected a number from 1 to 1,000,000"):
        arguments.count(digits)


@pytest.mark.parametrize("text", ["", "0", "000", "-1", "1.5", "²", "x", "1e3"])
def test_what_is_no_count(text):
    for parse in (arguments._rows, arguments.count):
        with pytest.raises(argparse.ArgumentTypeError):
            parse(text)
    assert (arguments._rows("007"), arguments.count("007")) == (7, 7)


@pytest.mark.parametrize(
    ("words", "usage", "error"),
    [
        (["log", "--nonsense"], "log [ID] [flags]", "unrecognized arguments: --nonsense"),
        (["log", ""], "log [ID] [flags]", "argument ID: it is empty"),
        (["log", "--search", " "], "log [ID] [flags]", "argument --search: it is empty"),
        (["log", "--prune"], "log [ID] [flags]", "--prune needs an ID or a filter, so that it"),
        (["export"], "export FILE [ID] [flags]", "the following arguments are required: FILE"),
        (["import"], "import FILE… [flags]", "the following arguments are required: FILE"),
        (["bench"], "bench [flags]", "name the models to benchmark: --models A,B"),
        (
            ["report", "--last", "x"],
            "report [RUN] [OTHER] [flags]",
            "argument --last: expected a number",
        ),
        (["convert"], "convert --from NAME --to NAME [FILE] [flags]", "the following arguments"),
        (["--port", "x"], "[flags]", "argument --port: a port is a number from 0 to 65535"),
    ],
)
def test_a_usage_error_is_two_lines(words, usage, error):
    command = " ".join(["llmproxy", *words[: usage[0] != "["]])
    code, out, err = run_here(*words)
    first, second, *rest = err.splitlines()
    assert (code, out, rest) == (2, b"", [])
    assert first.startswith(f"{command}: error: {error}")
    assert second == f"usage: llmproxy {usage}    (see {command} --help)"


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["--prot", "1"], "--port"),
        (["--data", "x.db"], "--database"),
        (["log", "--serach", "x"], "--search"),
        (["log", "--thread-id=x"], "--thread"),
        (["report", "--hmtl", "x"], "--html"),
    ],
)
def test_a_flag_that_is_like_an_unknown_one_is_named(words, flag):
    code, _, err = run_here(*words)
    assert code == 2 and f"; did you mean {flag}?\n" in err


@pytest.mark.parametrize("words", [["bench", "--quiet"], ["log", "--prot"]])
def test_no_flag_is_named_for_its_dashes_alone(words):
    code, _, err = run_here(*words)
    assert code == 2 and "did you mean" not in err


def test_a_usage_error_quotes_only_so_much():
    code, _, err = run_here("--map", "x" * 100_000)
    assert (code, err.count("\n"), len(err) < 1000) == (2, 2, True)
    assert "xxx…\n" in err
    _, _, err = run_here("log", "\x1b[2J\nextra", "more")
    assert "unrecognized arguments: more\n" in err
    _, _, err = run_here("log", "--\x1b[2J\n")
    assert "unrecognized arguments: --\\x1b[2J\\n\n" in err
