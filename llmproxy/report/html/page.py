"""A study as one HTML page that needs nothing else: no script, no other file, no network.

First what it says in words, then the figures, the drawings, and the requests themselves.
Whoever serves the page may say that it is to be loaded again; it has no other behaviour.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources

from .. import numbers
from ..data import Measured, Study
from ..figures import Estimate, Figures, ModelFigures
from . import charts, markup, samples, tables
from .summary import summary

MAX_CHARTED = 12  # models with drawings of their own
FEW_PAIRS = 6  # more are folded away

# What a page can load is nothing, even if some foreign words should get by as markup.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def page(
    study: Study,
    figures: Figures,
    *,
    refresh_s: int | None = None,
    other: tuple[str, str] | None = None,
    recorded_by: str = "",
    base_url: str = "http://127.0.0.1:11435",
) -> str:
    """Write the page of a study, a whole document that encodes as UTF-8.

    refresh_s: a browser loads it again after so many seconds; None for a page that stays.
    other: where the same page is that does otherwise, and what that link says.
    recorded_by: the program and its version, for the foot of the page.
    base_url: where this proxy listens, for who has nothing recorded yet.
    """
    models = dict.fromkeys([*study.models, *(answer.model for answer in study.answers)])
    mark_numbers = {model: number for number, model in enumerate(models)}
    sections = [_header(study, refresh_s, other)]
    if study.samples or study.answers:
        sections += [
            _summary(study, figures),
            _drawings(study, figures, mark_numbers),
            _figures(figures, mark_numbers),
            _between(study, figures, mark_numbers),
            _requests(study, mark_numbers),
            _method(study),
        ]
    else:
        sections.append(_nothing_yet(base_url))
    foot = f"<footer>{markup.text(recorded_by)}</footer>" if recorded_by else ""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n{_head(study, refresh_s)}</head>\n'
        f"<body>\n<main>\n{chr(10).join(filter(None, sections))}\n{foot}</main>\n</body>\n</html>\n"
    )


def _head(study: Study, refresh_s: int | None) -> str:
    again = "" if refresh_s is None else f'<meta http-equiv="refresh" content="{refresh_s:d}">\n'
    title = markup.text(numbers.shortened(study.title, markup.MAX_NAME_CHARS))
    return (
        f'<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n'
        f'<meta name="referrer" content="no-referrer">\n{again}'
        f"<title>{title}</title>\n<style>{_style()}</style>\n"
    )


@cache
def _style() -> str:
    """Read the style sheet beside this module."""
    return resources.files(__package__).joinpath("style.css").read_text("utf-8")


# ---- header and summary


def _header(study: Study, refresh_s: int | None, other: tuple[str, str] | None) -> str:
    facts = [
        "Benchmark" if study.is_run else "Recorded traffic",
        numbers.count_of(len(study.samples), "request") if study.samples else "",
        numbers.count_of(len(study.models), "model") if len(study.models) > 1 else "",
        _settings(study),
        numbers.period(study.began, study.ended, samples.stamp),
        f"loaded again every {refresh_s:d} s" if refresh_s is not None else "",
        f'<a href="{markup.text(other[0])}">{markup.text(other[1])}</a>' if other else "",
    ]
    return (
        f"<header><h1>{markup.name(study.title)}</h1>"
        f'<p class="about">{" · ".join(filter(None, facts))}</p></header>{_unfinished(study)}'
    )


def _settings(study: Study) -> str:
    shown = list(study.settings.items())[:12]
    return ", ".join(
        f"{markup.name(name)} {markup.name(str(value)[:200])}" for name, value in shown
    )


def _unfinished(study: Study) -> str:
    if not study.is_run:
        return ""
    made = sum(1 for answer in study.answers if answer.repeat)
    missing = study.planned is not None and made < study.planned
    if study.ended is not None and not missing:
        return ""
    of = "" if study.planned is None else f" of {study.planned:,}"
    word = "This run is not over" if study.ended is None else "This run was not finished"
    return f'<p class="notice" role="status">{word}: {made:,}{of} answers so far.</p>'


def _summary(study: Study, figures: Figures) -> str:
    rows = "".join(
        f"<div><dt>{question}</dt><dd>{answer}</dd></div>"
        for question, answer in summary(study, figures)
    )
    if not rows:
        return ""
    return f'<section aria-label="Conclusions"><dl class="conclusions">{rows}</dl></section>'


def _nothing_yet(base_url: str) -> str:
    url = markup.text(base_url)
    return (
        '<section><p class="notice">Nothing was recorded yet.</p>'
        "<p>Point a program here, and what it asks and is answered appears on this page:</p>"
        f"<pre>OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY=any PROGRAM\n"
        f"ANTHROPIC_BASE_URL={url} ANTHROPIC_API_KEY=any PROGRAM</pre>"
        "<p>Or ask by hand; the model <code>demo</code> needs no key and no network:</p>"
        f"<pre>curl {url}/v1/chat/completions -d "
        "&#x27;{&quot;model&quot;: &quot;demo&quot;, &quot;messages&quot;: "
        "[{&quot;role&quot;: &quot;user&quot;, &quot;content&quot;: &quot;Hello!&quot;}]}&#x27;"
        "</pre></section>"
    )


# ---- drawings


def _drawings(study: Study, figures: Figures, mark_numbers: Mapping[str, int]) -> str:
    shown = [each for each in figures.models if each.requests][:MAX_CHARTED]
    if not shown:
        return ""
    good: dict[str, list[Measured]] = {each.model: [] for each in shown}
    for answer in study.answers:
        if answer.model in good and answer.repeat and answer.exchange.status == "ok":
            good[answer.model].append(answer)
    drawn = [
        _dots("Time to the first event", "ttft_ms", shown, good, mark_numbers),
        _dots("Time of the whole answer", "duration_ms", shown, good, mark_numbers),
        _speed_and_agreement(shown, mark_numbers) if study.is_run else "",
        _streams(good, mark_numbers),
        _endings(shown, mark_numbers),
    ]
    more = len([each for each in figures.models if each.requests]) - len(shown)
    note = f'<p class="soft">{numbers.count_of(more, "model")} not drawn.</p>' if more else ""
    return f'<section><h2>Drawings</h2><div class="grid">{"".join(drawn)}</div>{note}</section>'


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
        title, svg, "A mark for each answer; line: median, bar: its 95 % interval; dashes: p95."
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
        x_name="whole answer, median",
        y_name="similarity to the recorded answers, median",
        height=min(max(58 * len(shown), 200), 300),  # as high as the drawings beside it
    )
    return _figure(
        "Speed against agreement",
        svg,
        "Up: closer to the recorded answers. Left: faster. Lines: 95 % intervals.",
    )


def _endings(shown: Sequence[ModelFigures], mark_numbers: Mapping[str, int]) -> str:
    rows = [
        charts.Bar(each.model, mark_numbers[each.model], each.finish_reasons, each.errors)
        for each in shown
    ]
    return _figure(
        "Errors and finish reasons",
        charts.bars("Errors and finish reasons", rows),
        "Blue: stopped by itself; yellow: ended otherwise; red: failed.",
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
            f"Characters over time{_some(len(streams))}. Bold: the answer of median time.",
        )
        for model, streams in lines.items()
    )


def _some(count: int) -> str:
    return f", {charts.MAX_STREAMS} of {count:,} answers" if count > charts.MAX_STREAMS else ""


def _reach(values: Sequence[Sequence[float]]) -> float:
    """Say where an axis ends: beyond all models' values, but for a few far from the others.

    Of up to twenty values of a model none is thought to be such.
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


def _figures(figures: Figures, mark_numbers: Mapping[str, int]) -> str:
    if not figures.models:
        return ""
    every = ""
    if figures.comparisons:
        table = tables.comparison_table(figures.comparisons, mark_numbers)
        every = (
            '<details class="fold"><summary>Every comparison with its interval</summary>'
            f'<div class="rows">{table}</div></details>'
        )
    return f"<section><h2>Figures</h2>{tables.figures_table(figures)}{every}</section>"


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
    title, legend = "Requests, the newest first", ""
    if study.is_run:
        title = "Requests side by side"
        if any(sample.recorded for sample in study.samples):
            legend = (
                '<p class="about legend">Held against the recorded answer: '
                "<del>only there</del> <ins>only here</ins>. "
                "<code>log ID</code> shows any of them whole.</p>"
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
        since = "when a request had come"
    elif study.settings.get("base_url"):
        since = "when the connection stood; what it took to connect is told apart"
    else:
        since = "when the model was started; that its plugin connects is part of them"
    yield (
        f"Times run from {since}. The first event is the first of any kind, reasoning too. "
        "Failed answers count as errors, and in no time."
    )
    yield (
        "Intervals are where the median lies with 95 % confidence, by bootstrap, and never "
        "narrower than the median's exact interval; of fewer than six values there is none. "
        "One model is called faster only where the whole interval of the difference says so."
    )
    if study.is_run:
        yield (
            "Models are compared request by request, so that what the requests differ in is no "
            "noise. Warm-ups are in no figure."
        )
        yield (
            "Similarity is the share of words that a smallest difference leaves standing, from "
            "0 to 1. It says how close an answer is to the recorded one, not whether it is good."
        )
    else:
        yield "Models were asked whatever programs asked them, so their times compare with care."
    yield (
        "Tokens are as the providers count them; tokens per second are those after the first "
        "event, without reasoning that was not streamed."
    )
