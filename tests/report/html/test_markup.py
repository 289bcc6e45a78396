import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.report.html import markup
from llmproxy.report.stats import Interval

ANYTHING = st.text(st.characters(), max_size=50)  # lone surrogates too


@given(ANYTHING)
def test_any_text_is_safe_and_encodes(words):
    shown = markup.text(words)
    shown.encode()
    assert not set(shown) & set("<>\"'\0\r\x1b\u202e\u2066\ufeff")


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("<script>", "&lt;script&gt;"),
        ("a\r\nb\tc", "a\nb\tc"),
        ("\r", "␍"),
        ("\x00\x1b", "␀␛"),
        ("\x7f\x9b", "⟨U+007F⟩⟨U+009B⟩"),
        ("\ud800", "⟨U+D800⟩"),
        ("safe\u202ecod.exe", "safe⟨U+202E⟩cod.exe"),
        ("\ufffe\U0001ffff", "⟨U+FFFE⟩⟨U+1FFFF⟩"),
        ("hi\U000e0041", "hi⟨U+E0041⟩"),
        ("👩\u200d🚀 שלום", "👩\u200d🚀 שלום"),
    ],
)
def test_what_does_not_show_is_named(words, shown):
    assert markup.text(words) == shown


def test_a_long_name_loses_its_middle():
    assert markup.shortened("anthropic/claude-haiku-4.5", 12) == "anthr…ku-4.5"
    assert len(markup.name("n" * 1_000_000)) < 200


@pytest.mark.parametrize(
    ("ms", "shown"),
    [
        (0, "0 ms"),
        (0.26, "0.3 ms"),
        (9.96, "10.0 ms"),
        (326.4, "326 ms"),
        (999.7, "1.00 s"),
        (1042, "1.04 s"),
        (-1042, "−1.04 s"),
        (123_456, "123 s"),
        (float("nan"), "–"),
        (float("inf"), "–"),
    ],
)
def test_times_have_the_unit_that_is_read_best(ms, shown):
    assert markup.seconds(ms).replace(markup.NO_BREAK, " ") == shown


def test_both_ends_of_an_interval_have_one_unit():
    shown = markup.between(Interval(-30, 1200), is_time=True)
    assert shown.replace(markup.NO_BREAK, " ") == "−0.03 to 1.20 s"
    assert markup.between(Interval(float("nan"), 2), is_time=True) == "– to 2"


@pytest.mark.parametrize(
    ("amount", "shown"),
    [(0, "0.00"), (12.345, "12.35"), (0.0042, "0.0042"), (0.00000123, "1.2e-06")],
)
def test_money_shows_what_there_is_of_it(amount, shown):
    assert markup.money(amount) == shown


def test_numbers_show_three_digits():
    shown = [markup.number(value) for value in (3, 3.14159, 31.4159, 31415.9, -2.5, 1e12)]
    assert shown == ["3", "3.14", "31.4", "31,416", "−2.50", "1e+12"]
