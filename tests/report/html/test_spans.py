"""Waiting and streaming, drawn from recorded times."""

import re
import xml.etree.ElementTree as ET
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from llmproxy.report.html.spans import HEIGHT, WIDTH, Span, Timeline, phases, span_of, waterfall
from tests.report.studies import BEGAN, an_answer


def bars(svg):
    root = ET.fromstring(svg)
    return [
        (each.get("class"), float(each.get("x")), float(each.get("width")))
        for each in root
        if each.tag == "rect"
    ]


def test_waiting_and_streaming_are_in_proportion():
    entry = an_answer(ttft_ms=250.0, duration_ms=1000.0).exchange
    span = span_of(entry, BEGAN)
    svg = Timeline([span]).row(span, "x", is_failed=False)
    assert bars(svg) == [("wait", 0.0, 250.0), ("stream", 250.0, 750.0)]
    assert dict(phases(entry)) == {"Waiting": "250\u00a0ms", "Streaming": "750\u00a0ms"}


def test_what_failed_is_marked_and_not_the_wait_before_it():
    def kinds(**times):
        entry = an_answer(status="error", duration_ms=1000.0, **times).exchange
        return [kind for kind, _, _ in bars(waterfall(entry, []))], [n for n, _ in phases(entry)]

    assert kinds(ttft_ms=250.0) == (["wait", "failed"], ["Waiting", "Failed after"])
    assert kinds(ttft_ms=1000.0) == (["wait", "failed"], ["Waiting", "Failed after"])
    never = {"ttft_ms": None, "first_output_ms": None}
    assert kinds(**never) == (["failed"], ["Failed after"])
    queued = kinds(queue_ms=250.0, **never)
    assert queued == (["queue", "failed"], ["Queue", "Failed after"])
    cancelled = an_answer(status="cancelled", ttft_ms=250.0, duration_ms=1000.0).exchange
    assert [kind for kind, _, _ in bars(waterfall(cancelled, []))] == ["wait", "stream"]


def test_a_long_pause_is_drawn_short_and_named():
    spans = [Span(0, 1000, None, 500), Span(3_600_000, 3_601_000, None, 3_600_500)]
    line = Timeline(spans)
    assert len(line.pauses) == 1 and "1\u00a0h 0\u00a0min" not in line.head()
    assert "pauses of 59\u00a0min 59\u00a0s" in line.head()
    svg = line.row(spans[1], "x", is_failed=False)
    (first,) = [x for kind, x, _ in bars(svg) if kind == "wait"]
    assert 500 < first < 530


def test_short_gaps_keep_their_length():
    line = Timeline([Span(0, 1000), Span(1100, 2000)])
    assert line.pauses == [] and line.at(1100) - line.at(1000) == WIDTH * 100 / 2000


def test_what_was_not_timed_is_not_drawn():
    untimed = an_answer(duration_ms=None, ttft_ms=None, first_output_ms=None).exchange
    assert span_of(untimed, BEGAN) is None
    assert waterfall(an_answer(origin="llama-stack").exchange, []) == ""


times = st.floats(0, 1e9)


@given(st.lists(st.tuples(times, times, times), min_size=1, max_size=20))
def test_any_times_stay_within_the_drawing(triples):
    spans = [Span(start, start + length, None, start + first) for start, length, first in triples]
    line = Timeline(spans)
    for span in spans:
        svg = line.row(span, "x", is_failed=False)
        for _, x, width in bars(svg):
            assert -0.1 <= x and x + width <= WIDTH + 0.2
        assert re.search(rf'viewBox="0 0 {WIDTH} {HEIGHT}"', svg)


def test_events_are_thinned():
    entry = an_answer(received=BEGAN + timedelta(1)).exchange
    assert waterfall(entry, [float(at) for at in range(100_000)]).count('class="tick"') <= 200
