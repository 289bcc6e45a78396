"""Pages of the list: in order, without gaps, and within a bounded time."""

import time
from dataclasses import replace

import pytest

from llmproxy.core.errors import NotFound
from llmproxy.recorder import paging
from llmproxy.recorder.listing import Filter, LogListing
from llmproxy.recorder.paging import choices, page_of
from llmproxy.recorder.previews import PreviewPart, previews
from tests.log_fixtures import RECEIVED

PLENTY_S = 30.0


@pytest.fixture
def listing(store, path):
    with LogListing(path) as listing:
        yield listing


def ids(page):
    return [entry.id for entry in page.entries]


@pytest.fixture
def many(store, make_exchange):
    exchanges = [
        replace(make_exchange(f"number {n}"), client="rare" if n == 3 else "common")
        for n in range(60)
    ]
    store.write(exchanges)
    return [each.id for each in exchanges][::-1]


def test_pages_go_on_where_the_last_one_ended(listing, many):
    first = page_of(listing, Filter(), before=None, count=25, time_s=PLENTY_S)
    second = page_of(listing, Filter(), before=first.before, count=25, time_s=PLENTY_S)
    last = page_of(listing, Filter(), before=second.before, count=25, time_s=PLENTY_S)
    assert ids(first) + ids(second) + ids(last) == many
    assert last.before is None and not last.is_cut
    with pytest.raises(NotFound):
        page_of(listing, Filter(), before="nosuch", count=25, time_s=PLENTY_S)


@pytest.mark.parametrize("windows", [(5, 7), (1, 1)])
def test_windows_leave_nothing_out(listing, many, monkeypatch, windows):
    monkeypatch.setattr(paging, "WINDOWS", windows)
    monkeypatch.setattr(paging, "MAX_WINDOW", 11)
    for chosen in (Filter(), Filter(client="rare"), Filter(search="number"), Filter(search="3")):
        found = page_of(listing, chosen, before=None, count=100, time_s=PLENTY_S)
        assert ids(found) == [entry.id for entry in listing.entries(chosen)][::-1]


def test_a_page_stops_in_time_and_says_how_far_it_came(listing, many, monkeypatch):
    monkeypatch.setattr(paging, "WINDOWS", (5,))
    monkeypatch.setattr(paging, "MAX_WINDOW", 5)
    monkeypatch.setattr(paging, "STEPS", 1)
    clock = iter(range(10_000_000))
    monkeypatch.setattr(paging.time, "monotonic", lambda: next(clock) / 10_000)
    page, looked = None, []
    before = None
    for _ in range(500):
        page = page_of(listing, Filter(client="rare"), before=before, count=5, time_s=1.0)
        looked += ids(page)
        if not page.is_cut or page.before is None:
            break
        assert page.searched_to is not None
        before = page.before
    assert looked == [many[-4]]  # found in the end, by going on from page to page


def test_older_exchanges_are_searched_by_the_index(listing, many, monkeypatch):
    windows = []

    def cut(reader, chosen, start, size, count, deadline):
        windows.append(size)

    monkeypatch.setattr(paging, "_window", cut)
    found = page_of(listing, Filter(search="number"), before=None, count=10, time_s=PLENTY_S)
    assert (len(windows), found.is_index_only, ids(found)) == (1, True, many[:10])
    unindexed = page_of(listing, Filter(search="日本"), before=None, count=10, time_s=PLENTY_S)
    assert unindexed.is_cut and not unindexed.entries


@pytest.mark.parametrize("chosen", [Filter(), Filter(client="rare"), Filter(status="ok")])
def test_a_page_reads_an_index_and_sorts_no_log(listing, many, chosen):
    among, values = paging._between((f"{RECEIVED}", 50), (f"{RECEIVED}", 5))
    condition, more = chosen.where(among)
    rows = listing.rows(
        f"explain query plan {paging._NEWEST.format('id', condition)}",
        values | more | {"count": 50},
    )
    plan = [row["detail"] for row in rows]
    assert not any(step.startswith("SCAN proxy_exchanges") for step in plan), plan
    assert any("INDEX proxy_exchanges_listed (received>? AND received<?)" in step for step in plan)


def test_choices_are_those_of_the_newest(listing, many):
    assert choices(listing) == paging.Choices(["common", "rare"], ["demo"])


def test_previews_are_short_and_read_nothing_else(store, listing, make_exchange):
    exchange = make_exchange("w " * 500_000, answer="a " * 500_000)
    store.write([exchange])
    began = time.process_time()
    found = previews(listing.rows, [exchange.id, "nosuch"])
    assert time.process_time() - began < 1
    (asked,), (answered,) = found[exchange.id].asked, found[exchange.id].answered
    assert asked == PreviewPart("text", ("w " * 120).strip())
    assert answered == PreviewPart("text", ("a " * 120).strip()) and len(found) == 1
