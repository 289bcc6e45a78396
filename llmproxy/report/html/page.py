"""Render a study as one self-contained HTML page: no scripts, other files or network.

Conclusions in words come first, then charts, figures, and the requests themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from .. import numbers
from ..data import Measured, Study
from ..estimates import ENOUGH_P95, ENOUGH_P99, Estimate
from ..figures import Figures, ModelFigures
from . import charts, markup, samples, tables
from .document import document
from .summary import summary

MAX_CHARTED = 12  # models in the charts
FEW_PAIRS = 6  # more are folded
MAX_DAMAGED = 5  # named in the notice
MAX_NAMED = 8  # names that no model has


def page(study: Study, figures: Figures, *, recorded_by: str = "") -> str:
    """Render the page of a study, a whole document that encodes as UTF-8.

    recorded_by: the program and its version, for the footer.
    """
    foot = f"<footer>{markup.text(recorded_by)}</footer>\n" if recorded_by else ""
    return document(study.title, f"<main>\n{study_body(study, figures)}\n{foot}</main>\n")


def study_body(study: Study, figures: Figures, *, has_requests: bool = True) -> str:
    """Render a study without the frame of a document.

    Only a benchmark has conclusions, comparisons and charts side by side: in recorded traffic,
    models had different requests, and what was measured of them can't be compared.
    """
    models = dict.fromkeys([*study.models, *(answer.model for answer in study.answers)])
    mark_numbers = {model: number for number, model in enumerate(models)}
    sections = [_header(study)]
    if study.samples or study.answers:
        sections += [
            _summary(study, figures) if study.is_run else "",
            _charts(study, figures, mark_numbers) if _is_comparable(study) else "",
            _figures(study, figures, mark_numbers),
            _between(study, figures, mark_numbers),
            _requests(study, mark_numbers) if has_requests else "",
            _method(study),
        ]
    else:
        sections.append('<p class="notice">Nothing has been recorded yet.</p>')
    return "\n".join(filter(None, sections))


def _is_comparable(study: Study) -> bool:
    return study.is_run or len(study.models) == 1


# ---- header and summary


def _header(study: Study) -> str:
    facts = [
        "Benchmark" if study.is_run else "",
        numbers.count_of(len(study.samples), "request") if study.samples else "",
        numbers.count_of(len(study.models), "model") if len(study.models) > 1 else "",
        _settings(study),
        numbers.period(study.began, study.ended, samples.stamp),
        "only the newest; there is more in the log" if study.is_partial else "",
    ]
    return (
        f"<header><h1>{markup.name(study.title) if study.is_run else 'Recorded traffic'}</h1>"
        f'<p class="about">{" · ".join(filter(None, facts))}</p></header>{_unfinished(study)}'
        + _damaged(study)
    )


def _settings(study: Study) -> str:
    shown = list(study.settings.items())[:12]
    return ", ".join(
        f"{markup.name(name)} {markup.name(numbers.setting(value)[:200])}" for name, value in shown
    )


def _unfinished(study: Study) -> str:
    if not study.is_run:
        return ""
    made = sum(answer.counts for answer in study.answers)
    missing = study.planned is not None and made < study.planned
    if study.ended is not None and not missing:
        return ""
    responses = numbers.count_of(made, "response")
    if study.planned is not None:
        responses = f"{made:,} of {numbers.count_of(study.planned, 'response')}"
    notice = "This run is not over" if study.ended is None else "This run was not finished"
    return f'<p class="notice" role="status">{notice}: {responses} so far.</p>'


def _damaged(study: Study) -> str:
    """Name the responses that can't be read completely."""
    left_out = ""
    if study.unnamed:
        count = numbers.count_of(study.unnamed, "exchange")
        left_out = f'<p class="notice" role="status">Left out {count} whose id can\'t be read.</p>'
    if not study.damaged:
        return left_out
    named = [
        f"{markup.name(id)} ({markup.name(', '.join(what))})" for id, what in study.damaged.items()
    ]
    more = f" and {len(named) - MAX_DAMAGED} more" if len(named) > MAX_DAMAGED else ""
    return (
        f'<p class="notice" role="status">Damaged in the log: {", ".join(named[:MAX_DAMAGED])}'
        f"{more}. <code>log --verify</code> may say more.</p>{left_out}"
    )


def _summary(study: Study, figures: Figures) -> str:
    rows = "".join(
        f"<div><dt>{question}</dt><dd>{answer}</dd></div>"
        for question, answer in summary(study, figures)
    )
    if not rows:
        return ""
    return f'<section aria-label="Conclusions"><dl class="conclusions">{rows}</dl></section>'


# ---- charts


def _charts(study: Study, figures: Figures, mark_numbers: Mapping[str, int]) -> str:
    drawable = [each for each in figures.models if each.ok]  # others have nothing to draw
    shown = drawable[:MAX_CHARTED]
    if not shown:
        return ""
    good: dict[str, list[Measured]] = {each.model: [] for each in shown}
    for answer in study.answers:
        if answer.model in good and answer.counts and answer.exchange.status == "ok":
            good[answer.model].append(answer)
    drawn = [
        _dots("Time to the first event", "ttft_ms", shown, good, mark_numbers),
        _dots("Time of the whole response", "duration_ms", shown, good, mark_numbers),
        _speed_and_agreement(shown, mark_numbers) if study.is_run else "",
        _streams(good, mark_numbers),
        _endings([each for each in figures.models if each.requests][:MAX_CHARTED], mark_numbers),
    ]
    more = len(drawable) - len(shown)
    note = (
        f'<p class="soft">{numbers.count_of(more, "model")} not in the charts.</p>' if more else ""
    )
    return f'<section><h2>Charts</h2><div class="grid">{"".join(drawn)}</div>{note}</section>'


def _dots(
    title: str,
    field: str,
    shown: Sequence[ModelFigures],
    good: Mapping[str, Sequence[Measured]],
    mark_numbers: Mapping[str, int],
) -> str:
    rows = []
    for each in shown:
        values = [getattr(answer, field) for answer in good[each.model]]
        estimate: Estimate | None = getattr(each, field)
        known = [value for value in values if value is not None]
        rows.append(charts.Row(each.model, mark_numbers[each.model], known, estimate))
    svg = charts.distribution(title, rows)
    return _figure(
        title,
        svg,
        "A mark per successful response. Line: median of all. Bar: its 95 % interval. "
        "Dashes: p95, if known.",
    )


def _speed_and_agreement(shown: Sequence[ModelFigures], mark_numbers: Mapping[str, int]) -> str:
    points = [
        charts.Point(
            each.model,
            mark_numbers[each.model],
            each.duration_ms.summary.p50,
            each.agreement.similarity.summary.p50,
            each.duration_ms.interval,
            each.agreement.similarity.interval,
        )
        for each in shown
        if each.duration_ms and each.agreement and each.agreement.similarity
    ]
    if not points:
        return ""
    svg = charts.scatter(
        "Speed against agreement",
        points,
        x_name="whole response, median",
        y_name="similarity to the recorded replies, median",
        height=min(max(58 * len(shown), 200), 300),  # as high as the charts beside it
    )
    return _figure(
        "Speed against agreement",
        svg,
        "Up: closer to the recorded replies. Left: faster. Lines: 95 % intervals.",
    )


def _endings(shown: Sequence[ModelFigures], mark_numbers: Mapping[str, int]) -> str:
    rows = [
        charts.Bar(each.model, mark_numbers[each.model], each.finish_reasons, each.errors)
        for each in shown
    ]
    return _figure(
        "Errors and finish reasons",
        charts.bars("Errors and finish reasons", rows),
        "Blue: stop. Yellow: other finish reasons. Red: failed.",
    )


def _streams(good: Mapping[str, Sequence[Measured]], mark_numbers: Mapping[str, int]) -> str:
    lines = {
        model: [
            charts.Stream(answer.ticks, answer.duration_ms) for answer in answers if answer.ticks
        ]
        for model, answers in good.items()
    }
    ends = [[each.ticks[-1][0] for each in streams] for streams in lines.values()]
    sizes = [
        [float(sum(chars for _, chars in each.ticks)) for each in streams]
        for streams in lines.values()
    ]
    if not any(ends):
        return ""
    end_ms, most = _reach(ends), _reach(sizes)
    return "".join(
        _figure(
            "Streams",
            charts.streams(
                model,
                mark_numbers[model],
                streams,
                end_ms=end_ms,
                most=most,
            ),
            f"Characters over time{_some(len(streams))}. Bold: the response with the median time.",
        )
        for model, streams in lines.items()
    )


def _some(count: int) -> str:
    return f", {charts.MAX_STREAMS} of {count:,} responses" if count > charts.MAX_STREAMS else ""


def _reach(values: Sequence[Sequence[float]]) -> float:
    """Return the end of an axis: beyond all values, except a few that are far from the others.

    With up to twenty values of a model, none counts as such.
    """
    usual = most = 0.0
    for each in values:
        ordered = sorted(value for value in each if math.isfinite(value))
        if ordered:
            usual = max(usual, ordered[math.ceil((len(ordered) - 1) * 0.95)])
            most = max(most, ordered[-1])
    return most if most <= 1.6 * usual else 1.2 * usual


def _figure(title: str, svg: str, caption: str) -> str:
    return f"<figure><h3>{title}</h3>{svg}<figcaption>{caption}</figcaption></figure>"


# ---- figures, requests, method


def _figures(study: Study, figures: Figures, mark_numbers: Mapping[str, int]) -> str:
    lost = _no_model(study)
    if not figures.models:
        return f"<section><h2>Figures</h2>{lost}</section>" if lost else ""
    every = ""
    if figures.comparisons and study.is_run:
        table = tables.comparison_table(figures.comparisons, mark_numbers)
        every = (
            '<details class="fold"><summary>All comparisons with their intervals</summary>'
            f'<div class="rows">{table}</div></details>'
        )
    return f"<section><h2>Figures</h2>{lost}{tables.figures_table(figures)}{every}</section>"


def _no_model(study: Study) -> str:
    """Say how many requests failed before any model was asked, and for which names."""
    if not study.no_model:
        return ""
    count = numbers.count_of(sum(study.no_model.values()), "request")
    named = [
        f"{markup.name(name)} {times:,}" for name, times in list(study.no_model.items())[:MAX_NAMED]
    ]
    more = (
        f" and {len(study.no_model) - MAX_NAMED:,} more names"
        if len(study.no_model) > MAX_NAMED
        else ""
    )
    return (
        f'<p class="notice">{count} failed before any model was asked. Asked for: '
        f"{', '.join(named)}{more}.</p>"
    )


def _between(study: Study, figures: Figures, mark_numbers: Mapping[str, int]) -> str:
    if not figures.between or not study.is_run:
        return ""
    table = f'<div class="rows">{tables.between_table(figures.between, mark_numbers)}</div>'
    if len(figures.between) > FEW_PAIRS:
        count = numbers.count_of(len(figures.between), "pair")
        table = f'<details class="fold"><summary>{count} of models</summary>{table}</details>'
    return f"<section><h2>Agreement between models</h2>{table}</section>"


def _requests(study: Study, mark_numbers: Mapping[str, int]) -> str:
    if not study.samples:
        return ""
    title, legend = "Requests, newest first", ""
    if study.is_run:
        title = "Requests with their responses"
        if any(sample.recorded for sample in study.samples):
            legend = (
                '<p class="about legend">Compared with the recorded reply: '
                "<del>only there</del> <ins>only here</ins>. "
                "<code>log ID</code> shows each in full.</p>"
            )
    body = samples.requests(study, mark_numbers)
    return f"<section><h2>{title}</h2>{legend}{body}</section>"


def _method(study: Study) -> str:
    return (
        '<section><h2>How this was measured</h2><ul class="method">'
        f"{''.join(f'<li>{line}</li>' for line in _method_lines(study))}</ul></section>"
    )


def _method_lines(study: Study) -> Iterator[str]:
    if not study.is_run:
        since = "the arrival of a request"
    elif study.settings.get("base_url"):
        since = "the moment the connection was made; the time to connect is shown apart"
    else:
        since = "the start of the model, and include the time its plugin takes to connect"
    yield (
        f"Times run from {since}. The first event may be of any kind, reasoning included. "
        "The first output is visible text, or a call of one of the program's tools."
    )
    late = "A failed response" if study.is_run else "A response that the model failed"
    yield (
        f"{late} counts as later than any in the quantiles of these times and in comparisons, so "
        'that no model looks fast because it fails on hard requests; "never" is a quantile that '
        'such a response takes, and "second: none" a difference from a model that so has no '
        "median. The same holds for the first output if there was none. All other "
        "figures, rates, gaps and costs among them, are of successful responses."
        + (
            ""
            if study.is_run
            else " Errors of the client's own, such as an invalid request, are left out."
        )
    )
    yield (
        "An interval contains the median with 95 % confidence; it is computed by bootstrap and "
        "never narrower than the median's exact interval. Fewer than six requests have none. "
        f"p95 and p99 are given from {ENOUGH_P95} and {ENOUGH_P99} requests on, with their exact "
        "(binomial) intervals."
    )
    test = "the sign test" if study.is_run else "the rank sum test"
    yield (
        "A model is called faster or closer only if the whole interval of the difference says so, "
        f"and the p-value of {test} is at most 0.05 after Holm's correction for all comparisons "
        "of the study."
    )
    yield (
        "A prompt that the provider has in its cache is answered sooner. Where responses of a "
        "model differ in that, both medians are shown. "
        + _CACHED_PROMPTS.get(str(study.settings.get("cache")), "")
    )
    if study.is_run:
        yield (
            "Models are compared request by request, so that differences between requests do not "
            "matter. Warm-ups count in no figure, nor do failures whose request was sent again."
        )
        yield (
            "Similarity is the share of words that a minimal diff keeps, from 0 to 1. It says how "
            "close a reply is to the recorded one, not how good it is."
        )
    else:
        yield "Models answered different requests, so compare their times with care."
    yield (
        "Tokens are the providers' counts. Tokens per second are those from the first event to the "
        "last, without the first one's share, and without reasoning that was not streamed. Gaps "
        "are summarized for each response first."
    )


_CACHED_PROMPTS = {
    "as-is": "Requests were sent as recorded; a repeated one may be found in the cache.",
    "cold": "A unique line was put first in each request, so that no cache has it.",
}
