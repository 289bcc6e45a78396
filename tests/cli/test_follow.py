"""On a terminal `log --follow` has the running exchanges as its last rows."""

import os
import re
from dataclasses import replace

import pytest

from llmproxy.cli import follow
from llmproxy.cli.columns import display_width
from llmproxy.cli.summary_text import ExchangeAligner
from llmproxy.recorder.listing import LogListing
from llmproxy.recorder.store import Store
from tests.cli.test_terminal import on_terminal


def screen(text):
    """Return the rows that a terminal shows after this output."""
    rows = []
    for piece in re.split(r"(\x1b\[\d+A\x1b\[J)", text):
        if up := re.match(r"\x1b\[(\d+)A", piece):
            del rows[len(rows) - int(up[1]) :]
        else:
            rows += piece.splitlines()
    return rows


@pytest.fixture
def steps(monkeypatch):
    """Functions to be called in place of each pause; after the last one comes Ctrl-C."""
    todo = []

    def sleep(seconds):
        if not todo:
            raise KeyboardInterrupt
        todo.pop(0)()

    monkeypatch.setattr(follow.time, "sleep", sleep)
    monkeypatch.setattr(follow, "REDRAW_S", 0.0)
    return todo


@pytest.mark.parametrize("columns", [40, 60, 120, 250])
def test_running_exchanges_are_the_last_rows(
    columns, steps, llm_user_path, make_begun, make_exchange, monkeypatch
):
    monkeypatch.setattr(follow.shutil, "get_terminal_size", lambda: os.terminal_size((columns, 24)))
    path = llm_user_path / "logs.db"
    ended = make_exchange("second")
    seen = []
    with Store(path) as store, on_terminal() as output:
        store.write([make_exchange("first")])

        def look():
            seen.append(screen(output.shown()))

        steps += [
            lambda: (look(), store.write([replace(make_begun("second"), id=ended.id)])),
            lambda: (look(), store.write([make_exchange("third")])),
            lambda: (look(), store.write([ended])),
            look,
        ]
        with LogListing(path) as listing, pytest.raises(KeyboardInterrupt):
            aligner = ExchangeAligner(lambda: columns)
            follow.follow_live(listing.follow(), listing.entries(), aligner)
    words = [
        [word for row in rows for word in re.findall("first|second|third", row)][-3:]
        for rows in seen
    ]
    shown = [[re.search(r"  (ok|running)", row)[1] for row in rows] for rows in seen]
    assert shown == [["ok"], ["ok", "running"], ["ok", "ok", "running"], ["ok", "ok", "ok"]]
    assert [one[-1] for one in words] == ["first", "second", "second", "second"]
    assert all(display_width(row) <= columns for rows in seen for row in rows)
    assert re.search(r"  running \d+s |\d+s  running ", seen[1][1])


def test_ctrl_c_takes_running_exchanges_from_the_screen(steps, llm_user_path, make_begun):
    path = llm_user_path / "logs.db"
    with Store(path) as store, on_terminal() as output:
        store.write([make_begun("first")])
        with LogListing(path) as listing, pytest.raises(KeyboardInterrupt):
            aligner = ExchangeAligner(lambda: 80)
            follow.follow_live(listing.follow(), listing.entries(), aligner)
    assert screen(output.shown()) == []


def test_many_running_exchanges_take_half_of_the_screen(monkeypatch, make_begun):
    monkeypatch.setattr(follow.shutil, "get_terminal_size", lambda: os.terminal_size((80, 10)))
    with on_terminal() as output:
        live = follow.LiveList(ExchangeAligner(lambda: 80))
        live.show([make_begun(str(number)) for number in range(20)])
        assert len(screen(output.shown())) == 5
