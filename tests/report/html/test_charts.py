"""Drawings are read as XML: what is in them, where, and that it is well-formed."""

import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.report.estimates import Estimate
from llmproxy.report.html import charts
from llmproxy.report.stats import Interval, median_interval, summary, tail

TIMES = (
    st.floats(-1e300, 1e300)  # the sum of larger ones is no double
    | st.floats(0, 1e6)
    | st.sampled_from([0.0, 1.0, math.inf, -math.inf, math.nan])
)
NAMES = st.text(st.characters(), max_size=20) | st.just("n" * 200)


def drawing(svg):
    """Parse a drawing and look at what holds of each."""
    svg.encode()
    root = ET.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label")
    assert root.find("title").text
    for element in root.iter():
        for name, value in element.attrib.items():
            if name not in ("aria-label", "class", "role"):
                assert not re.search("nan|inf|e[-+]?[0-9]", value), (element.tag, name, value)
    return root


def texts(root):
    return [element.text for element in root.iter("text")]


def a_row(values, model="a", number=0):
    interval = median_interval(values, seed=1) if len(values) > 5 else None
    found = summary(values)
    late = tail(values, 0.95, independent=len(values))
    return charts.Row(model, number, values, Estimate(found, interval, late) if found else None)


# ---- dots


def test_a_distribution_has_a_mark_for_each_value_and_shows_the_median():
    values = [100, 200, 300, 400, 500, 600] * 10
    root = drawing(charts.distribution("Times", [a_row(values)]))
    dots = next(path for path in root.iter("path") if "dots" in path.get("class"))
    assert dots.get("d").count("M") == 60
    assert {"a", "median 350\N{NO-BREAK SPACE}ms", "0", "200 ms"} <= set(texts(root))
    kinds = [line.get("class").split()[0] for line in root.iter("line")]
    assert [kinds.count(kind) for kind in ("interval", "middle", "late")] == [1, 1, 1]


def test_too_few_values_have_no_interval():
    root = drawing(charts.distribution("Times", [a_row([100, 200])]))
    assert not any("interval" in line.get("class") for line in root.iter("line"))


def test_a_thousand_values_are_drawn_as_some_hundreds_within_the_drawing():
    values = [float(value) for value in range(1, 1001)]
    root = drawing(charts.distribution("Times", [a_row(values)]))
    dots = next(path for path in root.iter("path") if "dots" in path.get("class"))
    places = [float(x) for x in re.findall(r"M([-\d.]+)", dots.get("d"))]
    assert len(places) == charts.MAX_DOTS
    assert min(places) >= 0 and max(places) <= charts.WIDTH


def test_dots_of_one_value_lie_beside_one_another():
    root = drawing(charts.distribution("Times", [a_row([7.0] * 5)]))
    dots = next(path for path in root.iter("path") if "dots" in path.get("class"))
    assert len(set(re.findall(r"M([-\d. ]+)a", dots.get("d")))) == 5


# ---- any values


@given(st.lists(st.tuples(NAMES, st.lists(TIMES, max_size=30)), max_size=9))
def test_any_values_make_a_drawing(rows):
    finite = [(name, [value for value in values if not math.isnan(value)]) for name, values in rows]
    drawing(charts.distribution("Times", [charts.Row(n, 3, v, None) for n, v in rows]))
    drawing(charts.distribution("Times", [a_row(v, n, i) for i, (n, v) in enumerate(finite)]))


@given(st.lists(st.lists(st.tuples(TIMES, st.integers(0, 10**7)), max_size=9), max_size=60), TIMES)
def test_any_streams_make_a_drawing(ticks, end_ms):
    answers = [charts.Stream(each, None) for each in ticks]
    drawing(charts.streams("a", 1, answers, end_ms=end_ms, most=end_ms))


@given(st.lists(st.tuples(NAMES, TIMES, st.floats(0, 1), TIMES, TIMES), max_size=9))
def test_any_points_make_a_drawing(points):
    drawn = [
        charts.Point(name, i, x, y, Interval(low, high), Interval(y, y))
        for i, (name, x, y, low, high) in enumerate(points)
    ]
    drawing(charts.scatter("Both", drawn, x_name="time", y_name="share"))


@given(
    st.lists(st.tuples(NAMES, st.dictionaries(NAMES, st.integers(0, 999), max_size=5)), max_size=9)
)
def test_any_endings_make_a_drawing(rows):
    drawing(charts.bars("Ends", [charts.Bar(n, i, c, c) for i, (n, c) in enumerate(rows)]))


@pytest.mark.parametrize(
    "svg",
    [
        charts.distribution("Times", []),
        charts.distribution("Times", [charts.Row("a", 0, [math.nan], None)]),
        charts.streams("a", 0, [charts.Stream((), None)], end_ms=0, most=0),
        charts.scatter("Both", [], x_name="time", y_name="share"),
        charts.bars("Ends", [charts.Bar("a", 0, {}, {})]),
    ],
)
def test_nothing_to_draw_is_said(svg):
    assert "nothing to draw" in texts(drawing(svg))


# ---- streams


def lines(root, kind):
    return [path.get("d") for path in root.iter("path") if path.get("class").startswith(kind)]


def a_stream(end_ms, count=5):
    return charts.Stream([(end_ms * i / count, 10) for i in range(1, count + 1)], end_ms)


def test_the_answer_of_median_time_is_the_bold_line():
    answers = [a_stream(1000), a_stream(4000), a_stream(2000)]
    alone = drawing(charts.streams("a", 0, [a_stream(2000)], end_ms=4000, most=50))
    root = drawing(charts.streams("a", 0, answers, end_ms=4000, most=50))
    assert lines(root, "bold") == lines(alone, "bold")
    assert len(lines(root, "thin")) == 2


def test_many_long_streams_stay_small():
    answers = [a_stream(1000 + i, 2000) for i in range(200)]
    svg = charts.streams("a", 0, answers, end_ms=1200, most=20_000)
    root = drawing(svg)
    assert len(lines(root, "thin")) == charts.MAX_STREAMS - 1
    assert max(line.count("L") for line in lines(root, "thin")) < charts.MAX_STREAM_POINTS
    assert len(svg) < 40_000


def test_a_line_that_goes_beyond_the_axis_is_cut_and_counted():
    root = drawing(charts.streams("a", 0, [a_stream(1000), a_stream(9000)], end_ms=1000, most=50))
    assert "2 responses, 1 longer" in texts(root)
    places = re.findall(r"[ML]([-\d.]+)", " ".join(lines(root, "thin")))
    assert max(map(float, places)) <= charts.WIDTH


def test_an_answer_that_came_at_once_is_a_line_up():
    root = drawing(charts.streams("a", 0, [charts.Stream([(500, 80)], 500)], end_ms=600, most=80))
    (line,) = lines(root, "bold")
    (x, _), (other, _) = (point.split() for point in line[1:].split("L"))
    assert x == other


# ---- points, bars, marks


def test_labels_of_points_do_not_lie_on_one_another():
    points = [charts.Point(f"model-{i}", i, 1000, 0.5) for i in range(8)]
    root = drawing(charts.scatter("Both", points, x_name="time", y_name="share"))
    names = [text for text in root.iter("text") if text.get("class") == "name"]
    width = charts.LABEL_WIDTH * len("model-0")
    boxes = [
        (float(text.get("x")) - width * (text.get("text-anchor") == "end"), float(text.get("y")))
        for text in names
    ]
    assert len(boxes) == 8
    for i, (x, y) in enumerate(boxes):
        assert all(abs(x - px) >= 50 or abs(y - py) >= 11 for px, py in boxes[:i])


def test_a_long_name_stays_at_its_mark_and_inside_the_chart():
    """A line of another point's interval is no reason to put it far away."""
    names = ["fast", "slow", "demo", "flaky-model-with-a-long-name-2026-11-27"]
    places = [(15, 1.0), (160, 1.0), (5, 0.1), (22, 0.8)]
    points = [
        charts.Point(name, i, x, y, Interval(x * 0.8, x * 1.3), Interval(max(y - 0.5, 0), y))
        for i, (name, (x, y)) in enumerate(zip(names, places, strict=True))
    ]
    for points_ in (points, [charts.Point(names[-1], 0, 160, 0.5), charts.Point("a", 1, 5, 0.2)]):
        root = drawing(charts.scatter("Both", points_, x_name="time", y_name="share"))
        (label,) = [text for text in root.iter("text") if (text.text or "").startswith("flaky")]
        number = next(point.number for point in points_ if point.model == names[-1])
        (mark,) = [m for m in lines(root, f"solid m{number}")]
        y = [float(n) for n in re.findall(r"[\d.]+", mark)][1]
        assert abs(float(label.get("y")) - y) < 40
        if label.get("text-anchor") != "end":
            assert float(label.get("x")) + 24 * charts.LABEL_WIDTH < charts.WIDTH
        else:
            assert float(label.get("x")) <= charts.WIDTH


def test_a_point_shows_its_intervals():
    point = charts.Point("a", 0, 1000, 0.5, Interval(900, 1100), Interval(0.4, 0.6))
    root = drawing(charts.scatter("Both", [point], x_name="time", y_name="share"))
    (cross,) = lines(root, "bars")
    assert "H" in cross and "V" in cross


def test_bars_say_in_words_how_answers_ended():
    rows = [charts.Bar("a", 0, {"stop": 30, "length": 2}, {"timeout": 1})]
    root = drawing(charts.bars("Ends", rows))
    assert {"33 responses", "stop 30 · length 2", "timeout 1"} <= set(texts(root))
    assert [rect.get("class") for rect in root.iter("rect")] == ["good", "fair", "bad"]


def test_models_are_told_apart_by_shape_too():
    shapes = {re.sub(r"m\d", "", charts.mark(number)) for number in range(charts.SHAPES)}
    assert len(shapes) == charts.SHAPES
    assert charts.mark(0) == charts.mark(charts.SHAPES)
