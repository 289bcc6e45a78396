"""Draw charts as SVG: dots along an axis, streams, a scatter plot, bars.

Each chart is one well-formed string, WIDTH units wide: legible at a phone's full width, two or
three side by side elsewhere. It has classes but no colours, which are in base.css and
study.css, for light and dark. A model has the same number in all charts, which decides its
colour, and the shape of its mark for people who can't tell the colours apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import TypeVar

from .. import numbers
from ..estimates import Estimate
from ..stats import Interval
from . import axes, markup
from .axes import Axis

T = TypeVar("T")
_Box = tuple[float, float, float, float]

WIDTH = 380
MAX_DOTS = 300  # of a row: more would overlap, and each adds to the page
MAX_STREAMS = 40  # lines in a chart: more can't be told apart
MAX_STREAM_POINTS = 60  # of a line: one per six units of width
LABEL_CHARS = 40
POINT_CHARS = 24
FAR = 150.0  # square units of a line that a label covers rather than go a step from its mark
LABEL_WIDTH = 7.4  # of a bold character, at most: no font is measured here

SHAPES = 8  # and colours; the ninth model looks like the first, but its name is beside it

# Each shape as a path about 0,0 that fills a circle of radius 1.
_SHAPES: Sequence[Sequence[tuple[float, float]]] = (
    (),
    ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    ((0, -1.1), (1.05, 0.8), (-1.05, 0.8)),
    ((0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0)),
    ((0, 1.1), (1.05, -0.8), (-1.05, -0.8)),
    # A plus, a cross, an hourglass.
    (
        *((-0.4, -1.1), (0.4, -1.1), (0.4, -0.4), (1.1, -0.4), (1.1, 0.4), (0.4, 0.4)),
        *((0.4, 1.1), (-0.4, 1.1), (-0.4, 0.4), (-1.1, 0.4), (-1.1, -0.4), (-0.4, -0.4)),
    ),
    (
        *((0, -0.5), (0.6, -1.1), (1.1, -0.6), (0.5, 0), (1.1, 0.6), (0.6, 1.1)),
        *((0, 0.5), (-0.6, 1.1), (-1.1, 0.6), (-0.5, 0), (-1.1, -0.6), (-0.6, -1.1)),
    ),
    ((-1, -1), (1, -1), (-1, 1), (1, 1)),
)


@dataclass(frozen=True)
class Row:
    """The values of one model, finite and not below zero, with the estimate of their median."""

    model: str
    number: int
    values: Sequence[float]
    estimate: Estimate | None


@dataclass(frozen=True)
class Stream:
    """One response: its `Measured.ticks`, and how long it took."""

    ticks: Sequence[tuple[float, int]]
    duration_ms: float | None


@dataclass(frozen=True)
class Point:
    """A model's position by two measures, with their intervals if known."""

    model: str
    number: int
    x: float
    y: float
    x_interval: Interval | None = None
    y_interval: Interval | None = None


@dataclass(frozen=True)
class Bar:
    """How one model's responses ended: well, by reason, and badly, by kind of error."""

    model: str
    number: int
    well: Mapping[str, int]
    badly: Mapping[str, int]


def mark(number: int) -> str:
    """Draw a model's mark, to precede its name in running text."""
    return (
        f'<svg class="mark m{number % SHAPES}" viewBox="0 0 12 12" aria-hidden="true">'
        f'<path d="{_shape(number, 6, 6, 5)}"/></svg>'
    )


# ---- dots along an axis


def distribution(title: str, rows: Sequence[Row]) -> str:
    """Draw times in milliseconds: a dot for each, the median with its interval, and p95 if known.

    The axis is logarithmic if the longest time is axes.LOG_FROM times the shortest. At most
    MAX_DOTS values are drawn, spread evenly from the least to the most.
    """
    rows = [
        Row(row.model, row.number, axes.drawable(row.values), row.estimate)
        for row in rows
        if axes.drawable(row.values)
    ]
    if not rows:
        return _nothing(title)
    values = [value for row in rows for value in row.values]
    ends = [end for row in rows for end in _interval_ends(row.estimate)]
    axis = axes.time_axis([*values, *axes.drawable(ends)], 8, WIDTH - 10)
    step = 58
    height = len(rows) * step + 24
    body = "".join(
        f'<line class="grid" x1="{_n(x)}" x2="{_n(x)}" y1="4" y2="{height - 18}"/>'
        + _label(label, x, height - 4, anchor=_anchor(x))
        for x, label in axis.marks
    )
    body += "".join(_strip(row, axis, index * step) for index, row in enumerate(rows))
    description = "; ".join(
        f"{numbers.shortened(row.model, LABEL_CHARS)} {numbers.seconds(_median(row))}"
        for row in rows
    )
    return _svg(title, f"{title}, median: {description}", height, body)


def _strip(row: Row, axis: Axis, top: float) -> str:
    middle = top + 32
    estimate = row.estimate
    right = f"median {numbers.seconds(estimate.summary.p50)}" if estimate else ""
    drawn = _title_line(row.model, row.number, top + 13, right)
    if ends := _interval_ends(estimate):
        low, high = map(axis.at, ends)
        drawn += (
            f'<line class="interval m{row.number % SHAPES}" x1="{_n(low)}" x2="{_n(high)}" '
            f'y1="{_n(middle + 15)}" y2="{_n(middle + 15)}"/>'
        )
    xs = [axis.at(value) for value in _thinned(sorted(row.values), MAX_DOTS)]
    path = "".join(_shape(row.number, x, middle + y, 2.7) for x, y in _swarm(xs, 11))
    drawn += f'<path class="dots m{row.number % SHAPES}" d="{path}"/>'
    if estimate:
        late = estimate.p95.value if estimate.p95 else math.nan
        for value, kind in ((estimate.summary.p50, "middle"), (late, "late")):
            if math.isfinite(value):
                x = _n(axis.at(value))
                drawn += (
                    f'<line class="{kind}" x1="{x}" x2="{x}" '
                    f'y1="{_n(middle - 12)}" y2="{_n(middle + 17)}"/>'
                )
    return drawn


def _swarm(xs: Sequence[float], room: float) -> Iterator[tuple[float, float]]:
    """Place dots side by side if they would overlap; `xs` are ascending."""
    size = 4.6
    offsets = [0.0]
    while offsets[-1] + size / 2 <= room:
        offsets.append(offsets[-1] + size / 2)
    tried = [sign * offset for offset in offsets for sign in (1, -1)][1:]
    placed: list[tuple[float, float]] = []
    for index, x in enumerate(xs):
        near = [(px, py) for px, py in placed[-40:] if x - px < size]
        free = (
            y
            for y in tried
            if all((x - px) ** 2 + (y - py) ** 2 >= size**2 * 0.9 for px, py in near)
        )
        # If no place is free they do overlap, spread by the golden ratio.
        spread = ((index * 0.618034) % 1 - 0.5) * 2 * room
        placed.append((x, next(free, spread)))
        yield placed[-1]


# ---- streams


def streams(
    model: str, number: int, answers: Sequence[Stream], *, end_ms: float, most: float
) -> str:
    """Draw characters over time for a model's responses: a line each, the median one bold.

    At most MAX_STREAMS are drawn, spread evenly by time. end_ms, most: the ends of the axes, the
    same for all models to be compared; longer lines are cut there and counted.
    """
    title = f"Streams of {numbers.shortened(model, LABEL_CHARS)}"
    drawn = [answer for answer in answers if answer.ticks]
    if not drawn:
        return _nothing(title, model, number)
    drawn.sort(key=_end)
    top, bottom, left = 24, 150, 34
    end_ms, most = axes.bounded(end_ms), max(axes.bounded(most), 1.0)
    across = axes.time_axis([0, end_ms], left, WIDTH - 10, log=False)
    up = axes.plain_axis([0, most], bottom, top)
    beyond = sum(1 for answer in drawn if answer.ticks[-1][0] > end_ms * 1.001)
    right = numbers.count_of(len(drawn), "response") + (f", {beyond} longer" if beyond else "")
    body = _title_line(model, number, 13, right)
    body += _frame(across, up, bottom, left)
    middle = median_low(range(len(drawn)))

    def path(answer: Stream, kind: str) -> str:
        line = _line(answer, across, up, end_ms, most)
        return f'<path class="{kind} m{number % SHAPES}" d="{line}"/>'

    others = [*drawn[:middle], *drawn[middle + 1 :]]
    body += "".join(path(answer, "thin") for answer in _thinned(others, MAX_STREAMS - 1))
    body += path(drawn[middle], "bold")
    description = (
        f"{title}: characters over time, {numbers.count_of(len(drawn), 'response')}, "
        f"the middle one ends after {numbers.seconds(_end(drawn[middle]))}"
    )
    return _svg(title, description, bottom + 20, body)


def _end(answer: Stream) -> float:
    return axes.bounded(answer.ticks[-1][0] if answer.duration_ms is None else answer.duration_ms)


def _line(answer: Stream, across: Axis, up: Axis, end_ms: float, most: float) -> str:
    points, chars = [(min(answer.ticks[0][0], end_ms), 0)], 0
    for at, brought in answer.ticks:
        chars += brought
        if not (at <= end_ms and chars <= most):
            break
        points.append((at, chars))
    places = [
        (_n(across.at(axes.bounded(at))), _n(up.at(chars)))
        for at, chars in _thinned(points, MAX_STREAM_POINTS)
    ]
    return "M" + "L".join(f"{x} {y}" for x, y in dict.fromkeys(places))


# ---- speed against agreement


def scatter(
    title: str, points: Sequence[Point], *, x_name: str, y_name: str, height: int = 230
) -> str:
    """Draw each model by a time in milliseconds (x) and a share from 0 to 1 (y)."""
    points = [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]
    if not points:
        return _nothing(title)
    top, bottom, left, right = 24, height - 38, 40, WIDTH - 14
    xs = [value for point in points for value in (point.x, *_ends(point.x_interval))]
    ys = [value for point in points for value in (point.y, *_ends(point.y_interval))]
    across = axes.time_axis(axes.drawable(xs), left + 8, right)
    up = axes.plain_axis(axes.drawable(ys), bottom - 6, top + 4)
    body = _frame(across, up, bottom, left)
    body += _label(y_name, 2, 11) + _label(x_name, right + 6, bottom + 32, anchor="end")
    places = [(across.at(point.x), up.at(point.y)) for point in points]
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    thin = [
        box
        for point, (x, y) in zip(points, places, strict=True)
        for box in _lines_of(point, x, y, across, up)
    ]
    labels = _Labels(taken, thin, (left, top, WIDTH - 2, bottom - 2))
    for point, (x, y) in zip(points, places, strict=True):
        body += _cross(point, x, y, across, up)
    for point, (x, y) in zip(points, places, strict=True):
        body += labels.drawn(numbers.shortened(point.model, POINT_CHARS), x, y)
    description = "; ".join(
        f"{numbers.shortened(point.model, LABEL_CHARS)}: {numbers.seconds(point.x)}, {point.y:.2f}"
        for point in points
    )
    return _svg(title, f"{title}. {description}", height, body)


def _cross(point: Point, x: float, y: float, across: Axis, up: Axis) -> str:
    lines = ""
    if ends := _ends(point.x_interval):
        lines += f"M{_n(across.at(ends[0]))} {_n(y)}H{_n(across.at(ends[1]))}"
    if ends := _ends(point.y_interval):
        lines += f"M{_n(x)} {_n(up.at(ends[0]))}V{_n(up.at(ends[1]))}"
    bars = f'<path class="bars m{point.number % SHAPES}" d="{lines}"/>' if lines else ""
    shape = _shape(point.number, x, y, 5)
    return f'{bars}<path class="solid m{point.number % SHAPES}" d="{shape}"/>'


def _lines_of(point: Point, x: float, y: float, across: Axis, up: Axis) -> Iterator[_Box]:
    """Yield the boxes of a point's intervals: left, top, right, bottom."""
    if ends := _ends(point.x_interval):
        yield across.at(ends[0]), y - 1.5, across.at(ends[1]), y + 1.5
    if ends := _ends(point.y_interval):
        yield x - 1.5, up.at(ends[1]), x + 1.5, up.at(ends[0])


class _Labels:
    """Finds places for labels near their points, without overlaps of marks and labels if possible.

    thin: boxes of lines, which a label may cover: its letters have an outline.
    """

    def __init__(self, taken: Sequence[_Box], thin: Sequence[_Box], bounds: _Box) -> None:
        self._taken = list(taken)
        self._thin = thin
        self._bounds = bounds

    def drawn(self, label: str, x: float, y: float) -> str:
        width = LABEL_WIDTH * len(label)
        box, far = min(
            self._places(x, y, width),
            key=lambda place: (
                _overlap(place[0], self._taken),
                _overlap(place[0], self._thin) + FAR * place[1],
            ),
        )
        self._taken.append(box)
        # Most labels are narrower than their box: one on the left ends at its mark.
        ends = box[2] <= x or box[2] >= self._bounds[2]
        at, anchor = (box[2], "end") if ends else (box[0], "")
        name = _label(label, at, box[3] - 3, anchor=anchor, kind="name")
        if far < 2:
            return name
        end = min(max(x, box[0]), box[2]), box[1] if box[1] > y else box[3]
        return f'<path class="lead" d="M{_n(x)} {_n(y)}L{_n(end[0])} {_n(end[1])}"/>{name}'

    def _places(self, x: float, y: float, width: float) -> Iterator[tuple[_Box, int]]:
        """Yield boxes for a label, the nearest first: beside, above, below, then farther."""
        left, top, right, bottom = self._bounds
        for far in range(16):
            for sign in (-1, 1):
                for start in (x + 8, x - 8 - width, x - width / 2):
                    if far == 0 and start == x - width / 2:
                        continue  # on the point itself
                    middle = y + sign * 13 * far
                    start = min(max(start, left + 2), max(right - width, left + 2))
                    if top <= middle - 7 and middle + 7 <= bottom:
                        yield (start, middle - 7, start + width, middle + 7), far
        yield (left, top, left + width, top + 14), 16


def _overlap(box: _Box, others: Sequence[_Box]) -> float:
    return sum(
        max(0, min(box[2], other[2]) - max(box[0], other[0]))
        * max(0, min(box[3], other[3]) - max(box[1], other[1]))
        for other in others
    )


# ---- bars


def bars(title: str, rows: Sequence[Bar]) -> str:
    """Draw how each model's responses ended, bars in proportion to the longest one.

    Each bar has a legend below it.
    """
    most = max((_total(row) for row in rows), default=0)
    if not most:
        return _nothing(title)
    step = 50
    body = ""
    for index, row in enumerate(rows):
        top = index * step
        failed = sum(row.badly.values())
        body += _title_line(
            row.model, row.number, top + 13, numbers.count_of(_total(row), "response")
        )
        x = 2.0
        pieces = [
            *(
                (count, "good" if reason == "stop" else "fair")
                for reason, count in row.well.items()
            ),
            *((count, "bad") for count in row.badly.values()),
        ]
        for count, kind in pieces:
            width = count / most * (WIDTH - 12)
            body += (
                f'<rect class="{kind}" x="{_n(x)}" y="{top + 19}" '
                f'width="{_n(max(width - 1, 0.6))}" height="10"/>'
            )
            x += width
        well = _listed(row.well)
        body += _label(well, 2, top + 42)
        if failed:
            listed = numbers.shortened(_listed(row.badly), 44)
            body += _label(listed, WIDTH - 10, top + 42, anchor="end", kind="bad-words")
    description = "; ".join(
        f"{numbers.shortened(row.model, LABEL_CHARS)}: {sum(row.badly.values())} of {_total(row)}"
        for row in rows
    )
    return _svg(title, f"{title}, failed: {description}", len(rows) * step, body)


def _total(row: Bar) -> int:
    return sum(row.well.values()) + sum(row.badly.values())


def _listed(counts: Mapping[str, int]) -> str:
    shown = [f"{numbers.shortened(word, 20)} {count:,}" for word, count in counts.items()]
    more = [f"{len(shown) - 3} more"] if len(shown) > 3 else []
    return " · ".join([*shown[:3], *more])


# ---- pieces


def _frame(across: Axis, up: Axis, bottom: float, left: float) -> str:
    lines = "".join(
        f'<line class="grid" x1="{_n(left)}" x2="{WIDTH - 8}" y1="{_n(y)}" y2="{_n(y)}"/>'
        + _label(label, left - 6, y + 4, anchor="end")
        for y, label in up.marks
    )
    base = f'<line class="grid" x1="{_n(left)}" x2="{WIDTH - 8}" y1="{bottom}" y2="{bottom}"/>'
    return (
        lines
        + base
        + "".join(
            f'<line class="grid" x1="{_n(x)}" x2="{_n(x)}" y1="{bottom}" y2="{bottom + 4}"/>'
            + _label(label, x, bottom + 16, anchor=_anchor(x))
            for x, label in across.marks
        )
    )


def _svg(title: str, description: str, height: float, body: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {_n(height)}" role="img" '
        f'aria-label="{markup.text(description)}"><title>{markup.text(title)}</title>{body}</svg>'
    )


def _nothing(title: str, model: str | None = None, number: int = 0) -> str:
    head = "" if model is None else _title_line(model, number, 13, "")
    return _svg(title, f"{title}: nothing to draw", 60, head + _label("nothing to draw", 2, 40))


def _title_line(model: str, number: int, y: float, right: str) -> str:
    """Draw a model's mark and name, with a text at the right end."""
    room = int((WIDTH - 27 - LABEL_WIDTH * len(right)) / (LABEL_WIDTH + 1))
    return (
        f'<path class="solid m{number % SHAPES}" d="{_shape(number, 7, y - 4, 4.5)}"/>'
        + _label(numbers.shortened(model, max(room, 12)), 17, y, kind="name")
        + (_label(right, WIDTH - 10, y, anchor="end", kind="value") if right else "")
    )


def _label(text: str, x: float, y: float, *, anchor: str = "", kind: str = "") -> str:
    attributes = f' class="{kind}"' if kind else ""
    if anchor:
        attributes += f' text-anchor="{anchor}"'
    return f'<text x="{_n(x)}" y="{_n(y)}"{attributes}>{markup.text(text)}</text>'


def _anchor(x: float) -> str:
    """Return the anchor of a tick's label: centred, unless it would leave the chart."""
    return "start" if x < 14 else "end" if x > WIDTH - 16 else "middle"


def _shape(number: int, x: float, y: float, radius: float) -> str:
    corners = _SHAPES[number % SHAPES]
    if not corners:
        return (
            f"M{_n(x - radius)} {_n(y)}a{radius} {radius} 0 1 0 {_n(2 * radius)} 0"
            f"a{radius} {radius} 0 1 0 {_n(-2 * radius)} 0z"
        )
    (first_x, first_y), *rest = corners
    path, last = f"M{_n(x + first_x * radius)} {_n(y + first_y * radius)}", (first_x, first_y)
    for corner in rest:
        path += f"l{_n((corner[0] - last[0]) * radius)} {_n((corner[1] - last[1]) * radius)}"
        last = corner
    return path + "z"


def _n(value: float) -> str:
    """Format a coordinate to a tenth of a unit, less than a screen shows."""
    return f"{min(max(value, -9999), 9999):.1f}".removesuffix(".0")


def _thinned(values: Sequence[T], most: int) -> Sequence[T]:
    """Keep at most that many, spread evenly, including the first and the last."""
    if len(values) <= most:
        return values
    return [values[round(index * (len(values) - 1) / (most - 1))] for index in range(most)]


def _ends(interval: Interval | None) -> tuple[float, ...]:
    if interval is None or not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return ()
    return interval.low, interval.high


def _interval_ends(estimate: Estimate | None) -> tuple[float, ...]:
    return _ends(estimate.interval) if estimate else ()


def _median(row: Row) -> float:
    return row.estimate.summary.p50 if row.estimate else median_low(row.values)
