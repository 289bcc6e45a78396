import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.report.html import markup

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
def test_invisible_characters_are_named(words, shown):
    assert markup.text(words) == shown


def test_a_long_name_loses_its_middle():
    assert len(markup.name("n" * 1_000_000)) < 200
