from hypothesis import given
from hypothesis import strategies as st

from llmproxy.report.html.word_diff import MAX_WORDS, Change, differences

TEXTS = st.text("ab c.\n", max_size=60) | st.text(max_size=60)


@given(TEXTS, TEXTS)
def test_the_changes_make_both_texts(first, second):
    changes = differences(first, second)
    assert "".join(change.kept + change.removed for change in changes) == first
    assert "".join(change.kept + change.added for change in changes) == second


@given(TEXTS)
def test_one_text_has_no_changes(text):
    assert all(change.kept and not change.removed for change in differences(text, text))


def test_a_word_that_changed_is_one_change():
    assert differences("It is four.", "It is five.") == [
        Change(kept="It is "),
        Change(removed="four", added="five"),
        Change(kept="."),
    ]


def test_small_agreements_between_large_changes_are_given_up():
    first, second = "alpha beta, gamma", "delta epsilon, omega"
    assert differences(first, second) == [Change(removed=first, added=second)]


def test_words_that_only_one_text_has():
    assert differences("", "new words") == [Change(added="new words")]
    assert differences("old words", "") == [Change(removed="old words")]
    assert differences("", "") == []


def test_texts_of_one_word_over_and_over_take_no_time():
    first, second = "a " * (MAX_WORDS // 2), "a b " * (MAX_WORDS // 4)
    assert differences(first, second) is not None


def test_longer_texts_are_not_compared():
    assert differences("a " * MAX_WORDS, "a") is None
