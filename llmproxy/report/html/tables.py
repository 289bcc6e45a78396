"""Render figures as tables: a column per model, or a row per pair of models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from .. import numbers
from ..comparisons import Comparison
from ..estimates import Estimate, Share
from ..figures import AgreementFigures, Between, Cost, Figures, GapFigures, ModelFigures
from ..measures import Measure
from ..stats import Tail
from . import charts, markup

MAX_COLUMNS = 24  # models in a table: clients can request any number of names
MAX_BESIDE = 3  # models, so that two tables fit side by side on a wide screen
HALF = 4  # groups of figures in the first of these tables
MAX_ABREAST = 4  # models in one of several tables, which no screen or paper cuts
MAX_ROWS = 200  # pairs or comparisons
MAX_KINDS = 6  # of errors or finish reasons in a cell

NONE = '<span class="none">–</span>'

MEASURES: Mapping[Measure, str] = {
    "ttft_ms": "First event",
    "first_output_ms": "First output",
    "duration_ms": "Whole response",
    "tokens_per_second": "Tokens per second",
}

_TOKENS_OF_EACH = {"input_tokens": "in", "output_tokens": "out"}
_TOKENS_IN_ALL = {
    "input_tokens": "in",
    "cached_tokens": "in, cached",
    "cache_write_tokens": "in, written to the cache",
    "cache_write_1h_tokens": "in, written to it for an hour",
    "output_tokens": "out",
    "reasoning_tokens": "out, reasoning",
}

Cell = Callable[[ModelFigures], str]


def figures_table(figures: Figures) -> str:
    """Render all figures of all models, without rows that are empty for all."""
    models = figures.models[:MAX_COLUMNS]
    halves = [slice(HALF), slice(HALF, None)] if len(models) <= MAX_BESIDE else [slice(None)]
    tables = "".join(
        _scrolling("Figures by model", f"<table>{head}{''.join(groups[half])}</table>")
        for head, groups in _tables(models)
        for half in halves
        if any(groups[half])
    )
    left_out = _left_out(len(figures.models) - len(models), "model")
    return f'<div class="halves">{tables}</div>{left_out}'


def _tables(models: Sequence[ModelFigures]) -> Iterator[tuple[str, list[str]]]:
    """Yield the head and the groups of each table, about equally many models in each."""
    size = math.ceil(len(models) / math.ceil(len(models) / MAX_ABREAST))
    for start in range(0, len(models), size):
        shown = models[start : start + size]
        head = "".join(
            f'<th scope="col">{charts.mark(number)}{markup.name(each.model)}</th>'
            for number, each in enumerate(shown, start)
        )
        groups = [_group(title, rows, shown) for title, rows in _groups()]
        yield f"<thead><tr><td></td>{head}</tr></thead>", groups


def _group(title: str, rows: Sequence[tuple[str, Cell]], models: Sequence[ModelFigures]) -> str:
    names = [each.model for each in models]
    lines = [(label, [cell(each) for each in models]) for label, cell in rows]
    shown = [
        f'<tr><th scope="row">{label}</th>{"".join(map(_cell, names, cells))}</tr>'
        for label, cells in lines
        if any(cell != NONE for cell in cells)
    ]
    if not shown:
        return ""
    return (
        f'<tbody><tr class="group"><th colspan="{len(models) + 1}" scope="rowgroup">'
        f"{title}</th></tr>{''.join(shown)}</tbody>"
    )


def _groups() -> Iterator[tuple[str, Sequence[tuple[str, Cell]]]]:
    yield "Responses", (("succeeded", _ok), ("finished by", _finished), ("failed by", _failed))
    for measure, title in MEASURES.items():
        yield title, [*_estimate_rows(measure), *(_CACHE if measure == "ttft_ms" else ())]
    yield "Gaps between events", _GAPS
    yield "Connecting (not in other times)", _estimate_rows("setup_ms")
    yield "Waiting (not in other times)", _estimate_rows("queue_ms")
    yield (
        "Tokens per response, median",
        [(label, _median_tokens(name)) for name, label in _TOKENS_OF_EACH.items()],
    )
    yield (
        "Tokens in total",
        [(label, _sum_of_tokens(name)) for name, label in _TOKENS_IN_ALL.items()],
    )
    yield (
        "Agreement with the recorded replies",
        [(label, _of_agreement(cell)) for label, cell in _AGREEMENT],
    )
    yield (
        "Cost by your prices",
        (
            ("per response", lambda each: _money(each.cost, "per_answer")),
            ("total", lambda each: _money(each.cost, "total")),
            (
                "without token counts",
                lambda each: f"{each.cost.unknown:,}" if each.cost and each.cost.unknown else NONE,
            ),
        ),
    )


def _ok(each: ModelFigures) -> str:
    warm = f'<br><span class="soft">+{each.warmups:,} warm-up</span>' if each.warmups else ""
    again = (
        f'<br><span class="soft">{each.sent_again:,} failed before and sent again</span>'
        if each.sent_again
        else ""
    )
    first = (
        f'<br><span class="soft">{each.first_runs:,} may include loading the model</span>'
        if each.first_runs
        else ""
    )
    return f"{Share(each.ok, each.requests)}{warm}{again}{first}"


def _finished(each: ModelFigures) -> str:
    return _counts(each.finish_reasons)


def _failed(each: ModelFigures) -> str:
    return f'<span class="failure">{_counts(each.errors)}</span>' if each.errors else NONE


def _counts(counts: Mapping[str, int]) -> str:
    shown = [f"{markup.name(word)} {count:,}" for word, count in list(counts.items())[:MAX_KINDS]]
    if len(counts) > MAX_KINDS:
        shown.append(f"{len(counts) - MAX_KINDS} more kinds")
    return "<br>".join(shown) or NONE


def _estimate_rows(field: str) -> list[tuple[str, Cell]]:
    def estimate(each: ModelFigures) -> Estimate | None:
        found: Estimate | None = getattr(each, field)
        return found

    def middle(each: ModelFigures) -> str:
        found = estimate(each)
        return NONE if found is None else _strong(_shown(found.summary.p50, found, field))

    def interval(each: ModelFigures) -> str:
        found = estimate(each)
        if found is None:
            return NONE
        if found.interval is None:
            return '<span class="soft">too few</span>'
        return numbers.between(found.interval, field)

    def late(each: ModelFigures) -> str:
        found = estimate(each)
        return f"{found.summary.late:,}" if found and found.summary.late else NONE

    def tail(name: str) -> Cell:
        def cell(each: ModelFigures) -> str:
            found = estimate(each)
            value: Tail | None = getattr(found, name, None)
            if found is None or value is None:
                return NONE
            where = numbers.between(value.interval, field)
            shown = _shown(value.value, found, field)
            return f'{shown}<br><span class="soft">{where}</span>'

        return cell

    return [
        ("median", middle),
        ("95 % interval", interval),
        ("never reached", late),
        ("p95, 95 % interval", tail("p95")),
        ("p99, 95 % interval", tail("p99")),
    ]


def _shown(value: float, estimate: Estimate, field: str) -> str:
    shown = numbers.seconds(value) if numbers.is_time(field) else numbers.number(value)
    return "~" * estimate.is_estimated + shown


def _of_cache(part: str) -> Cell:
    def cell(each: ModelFigures) -> str:
        found: Estimate | None = getattr(each.cache, part, None)
        if found is None:
            return NONE
        count = numbers.count_of(found.summary.count, "response")
        return f'{numbers.seconds(found.summary.p50)}<br><span class="soft">{count}</span>'

    return cell


_CACHE: Sequence[tuple[str, Cell]] = (
    (
        "of the prompt, cached",
        lambda each: numbers.percent(each.cache.share) if each.cache else NONE,
    ),
    ("median, nothing cached", _of_cache("cold")),
    ("median, some cached", _of_cache("warm")),
)


def _of_gaps(cell: Callable[[GapFigures], str]) -> Cell:
    return lambda each: NONE if each.gaps is None else cell(each.gaps)


_GAPS: Sequence[tuple[str, Cell]] = (
    ("median", _of_gaps(lambda gaps: numbers.seconds(gaps.typical.summary.p50))),
    (
        "95 % interval",
        _of_gaps(
            lambda gaps: (
                "too few"
                if gaps.typical.interval is None
                else numbers.between(gaps.typical.interval, "ttft_ms")
            )
        ),
    ),
    ("longest, median", _of_gaps(lambda gaps: numbers.seconds(gaps.longest.summary.p50))),
    ("longest of all", _of_gaps(lambda gaps: numbers.seconds(gaps.longest.summary.most))),
)


def _median_tokens(name: str) -> Cell:
    def cell(each: ModelFigures) -> str:
        found = each.tokens.get(name)
        return NONE if found is None else numbers.number(found.p50)

    return cell


def _sum_of_tokens(name: str) -> Cell:
    """Sum a count. A median would mislead: llm's plugins leave out counts of 0."""

    def cell(each: ModelFigures) -> str:
        found = each.tokens.get(name)
        return NONE if found is None else f"{round(found.mean * found.count):,}"

    return cell


# ---- agreement


def _similarity(figures: AgreementFigures) -> str:
    if figures.similarity is None:
        return NONE
    return _strong(f"{figures.similarity.summary.p50:.2f}")


def _similarity_interval(figures: AgreementFigures) -> str:
    if figures.similarity is None:
        return NONE
    found = figures.similarity.interval
    return "too few" if found is None else numbers.between(found, numbers.SIMILARITY)


def _share(share: Share | None) -> str:
    return NONE if share is None else str(share)


_AGREEMENT: Sequence[tuple[str, Callable[[AgreementFigures], str]]] = (
    ("similarity, median", _similarity),
    ("95 % interval", _similarity_interval),
    ("same text", lambda each: _share(each.exact_text)),
    ("same JSON", lambda each: _share(each.same_json)),
    ("same tool calls", lambda each: _share(each.same_tool_calls)),
    ("fits the schema", lambda each: _share(each.schema_valid)),
)


def _of_agreement(cell: Callable[[AgreementFigures], str]) -> Cell:
    return lambda each: NONE if each.agreement is None else cell(each.agreement)


def between_table(pairs: Sequence[Between], mark_numbers: Mapping[str, int]) -> str:
    """Render how far every two models agree."""
    columns = [
        (label, cells)
        for label, cell in _AGREEMENT
        if any(cells := [cell(pair.agreement) for pair in pairs[:MAX_ROWS]])
        and set(cells) != {NONE}
    ]
    head = "".join(f'<th scope="col">{label}</th>' for label, _ in columns)
    rows = "".join(
        f'<tr><th scope="row">{_pair(pair.first, pair.second, mark_numbers)}</th>'
        + "".join(_cell(label, cells[place]) for label, cells in columns)
        + "</tr>"
        for place, pair in enumerate(pairs[:MAX_ROWS])
    )
    table = f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table>"
    more = _left_out(len(pairs) - MAX_ROWS, "pair")
    return _scrolling("Agreement between models", table) + more


def comparison_table(comparisons: Sequence[Comparison], mark_numbers: Mapping[str, int]) -> str:
    """Render every comparison with its interval and its conclusion."""
    columns = (
        *("measure", "first minus second", "95 % interval", "requests", "p, corrected"),
        "faster or closer",
    )
    rows = ""
    for each in comparisons[:MAX_ROWS]:
        interval = "too few"
        if each.interval is not None:
            interval = numbers.difference_between(each.interval, each.measure)
        p_value = "–" if each.corrected_p is None else _p_value(each.corrected_p)
        better = "–" if each.better is None else markup.name(each.better)
        rows += (
            f'<tr><th scope="row">{_pair(each.first, each.second, mark_numbers)}</th>'
            f'<td class="words" data-label="measure">{_COMPARED[each.measure]}</td>'
            + _cell(columns[1], numbers.difference(each.difference, each.measure))
            + _cell(columns[2], interval)
            + _cell(columns[3], f"{each.pairs or 'unpaired'}")
            + _cell(columns[4], p_value)
            + f'<td class="words" data-label="{columns[5]}">{better}</td></tr>'
        )
    head = "".join(f'<th scope="col">{label}</th>' for label in columns)
    table = f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table>"
    more = _left_out(len(comparisons) - MAX_ROWS, "comparison")
    return _scrolling("Comparisons", table) + more


_COMPARED: dict[str, str] = {**dict(MEASURES.items()), numbers.SIMILARITY: "Similarity"}


def _p_value(p: float) -> str:
    return "below 0.001" if p < 0.001 else f"{p:.3f}"


# ---- pieces


def _pair(first: str, second: str, mark_numbers: Mapping[str, int]) -> str:
    return " and ".join(
        f'<span class="nowrap">{charts.mark(mark_numbers.get(model, 0))}{markup.name(model)}</span>'
        for model in (first, second)
    )


def _cell(label: str, html: str) -> str:
    """Render a cell that names its column, which stands above it no longer on a phone."""
    named = markup.text(numbers.shortened(label, markup.MAX_NAME_CHARS))
    return f'<td data-label="{named}">{html}</td>'


def _scrolling(label: str, table: str) -> str:
    """Put a wide table into a box of its own that scrolls, by the keyboard too."""
    return f'<div class="wide" role="region" aria-label="{label}" tabindex="0">{table}</div>'


def _left_out(count: int, thing: str) -> str:
    return f'<p class="soft">{numbers.count_of(count, thing)} not shown.</p>' if count > 0 else ""


def _strong(cell: str) -> str:
    return cell if cell == NONE else f"<b>{cell}</b>"


def _money(cost: Cost | None, field: str) -> str:
    amount: float | None = getattr(cost, field, None)
    if cost is None or amount is None:
        return NONE
    return markup.text(numbers.money(amount, cost.currency))
