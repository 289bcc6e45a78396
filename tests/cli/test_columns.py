"""Lists in columns: aligned, cut where the terminal ends, and measured as it shows them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.cli.columns import (
    GAP,
    MAX_COLUMN,
    Aligner,
    cell,
    cut,
    display_width,
    folded,
    joined,
)
from llmproxy.core.text import printable

ROWS = [["01a", "12:00", "ok", "hello"], ["01bcd", "", "error 502", "it failed because"]]


def aligned(rows, width, omit=(), colours=False):
    aligner = Aligner(lambda: width, omit, colours=colours)
    return aligner.lines([[*map(cell, row)] for row in rows])


def test_columns_are_aligned():
    assert aligned(ROWS, 80) == [
        "01a    12:00  ok         hello",
        "01bcd         error 502  it failed because",
    ]


@pytest.mark.parametrize("width", [1, 40, 80, 140, 250])
@pytest.mark.parametrize("ids", [False, True])
def test_no_rows_are_no_lines(width, ids):
    assert Aligner(lambda: width, ids=ids).lines([]) == []


def test_a_pipe_gets_the_cells_that_are_not_empty():
    assert [joined([*map(cell, row)]) for row in ROWS] == [
        "01a  12:00  ok  hello",
        "01bcd  error 502  it failed because",
    ]


def test_the_last_column_is_cut_at_the_edge():
    assert aligned(ROWS, 34) == [
        "01a    12:00  ok         hello",
        "01bcd         error 502  it faile…",
    ]


def test_columns_that_a_narrow_terminal_goes_without():
    assert aligned(ROWS, 34, omit=[1, 2]) == [
        "01a    ok         hello",
        "01bcd  error 502  it failed becau…",
    ]
    assert aligned(ROWS, 11, omit=[1, 2]) == ["01a    hel…", "01bcd  it …"]
    assert aligned(ROWS, 10, omit=[1, 2]) == ["01a", "01bcd"]  # too narrow for "he…"
    assert aligned(ROWS, 3, omit=[1, 2]) == ["01a", "01…"]


def test_texts_share_what_the_other_columns_leave():
    rows = [["01a", "a question that is long", "an answer that is long"], ["01b", "hm?", "no"]]
    aligner = Aligner(lambda: 31, texts=2)
    assert aligner.lines([[*map(cell, row)] for row in rows]) == [
        "01a  a question …  an answer t…",
        "01b  hm?           no",
    ]
    aligner = Aligner(lambda: 31, texts=2)
    assert aligner.lines([[cell("01b"), cell("hm?"), cell("an answer that is long")]]) == [
        "01b  hm?  an answer that is lo…"
    ]


def test_a_note_leaves_room_for_the_text_after_it():
    last = (("ignored seed, store", "yellow"), (GAP, None), ("an answer that is long", None))
    for width, line in (
        (26, "01a  ignored …  an answer…"),
        (40, "01a  ignored seed, s…  an answer that i…"),
        (12, "01a  ignore…"),
    ):
        assert Aligner(lambda: width).lines([[cell("01a"), last]]) == [line]  # noqa: B023
    short = (*last[:2], ("no", None))
    assert Aligner(lambda: 26).lines([[cell("01a"), short]]) == ["01a  ignored seed, st…  no"]


def test_a_narrow_terminal_shows_the_beginning_of_an_id():
    row = [(*cell("* "), *cell("01m8dwz5z70c9tn0ctrber5ejn")), cell("x")]
    for width, id in ((139, "01m8dwz5z70c9"), (140, "01m8dwz5z70c9tn0ctrber5ejn")):
        assert Aligner(lambda: width, ids=True).lines([row]) == [f"* {id}  x"]  # noqa: B023


def test_a_column_that_no_row_has_takes_no_space():
    assert aligned([["01a", "", "x"], ["01b", "", "y"]], 80) == ["01a  x", "01b  y"]


def test_a_long_column_in_the_middle_leaves_space_for_the_last():
    (line,) = aligned([["01a", "m" * 500, "hello"]], 80)
    assert line == f"01a  {'m' * (MAX_COLUMN - 1)}…  hello"


def test_columns_only_grow_while_a_list_is_followed():
    aligner = Aligner(lambda: 80)
    assert aligner.lines([[cell("aider"), cell("x")]]) == ["aider  x"]
    assert aligner.lines([[cell("llm"), cell("x")]]) == ["llm    x"]
    assert aligner.lines([[cell("claude-cli"), cell("x")]]) == ["claude-cli  x"]
    assert aligner.lines([]) == []


def test_wide_characters_are_measured():
    texts = ("ab", "日本", "e\u0301", "👍", "❤\ufe0f", "\u1112\u1161\u11ab", "ｱ", "Ａ")
    assert [display_width(text) for text in texts] == [2, 4, 1, 2, 2, 2, 1, 2]
    assert aligned([["日本", "x"], ["abcde", "y"]], 80) == ["日本   x", "abcde  y"]
    assert cut(cell("日本語"), 4) == cell("日…")
    assert cut(cell("日本語"), 5) == cell("日本…")


def test_a_text_is_broken_at_blanks():
    assert folded("a long line of words", 10) == "a long\nline of\nwords"
    assert folded("a long line of words", 10, 2) == "a long\n  line of\n  words"
    assert folded("  日本 日本\nkept", 8) == "  日本\n日本\nkept"
    assert folded("unbreakable" * 3, 10) == "unbreakable" * 3
    assert folded("", 10) == ""


@given(text=st.text(st.sampled_from("ab 日"), max_size=60), width=st.integers(12, 30))
def test_no_line_of_short_words_is_wider(text, width):
    words = [word[:5] for word in text.split()]
    lines = folded(" ".join(words), width, 2).split("\n")
    assert all(display_width(line) <= width for line in lines)
    assert " ".join(lines).split() == words


def test_colours_take_no_space():
    aligner = Aligner(lambda: 9, colours=True)
    rows = [[cell("ok", "green"), cell("hello")], [cell("bad", "red"), cell("x")]]
    assert aligner.lines(rows) == ["\x1b[32mok\x1b[0m   hel…", "\x1b[31mbad\x1b[0m  x"]


@pytest.mark.parametrize("colours", [False, True])
@given(
    rows=st.lists(st.lists(st.text().map(printable), min_size=4, max_size=4), max_size=4),
    width=st.integers(1, 100),
    omit=st.permutations([1, 2, 0]),
)
def test_no_line_is_longer_than_the_terminal_is_wide(rows, width, omit, colours):
    cells = [[*map(cell, row[:3]), cell(row[3], "red")] for row in rows]
    aligner = Aligner(lambda: width, omit, texts=2, ids=True, colours=colours)
    for _ in range(2):
        lines = [re.sub("\x1b\\[\\d+m", "", line) for line in aligner.lines(cells)]
        assert len(lines) == len(rows)
        assert all(display_width(line) <= width and line.isprintable() for line in lines)
