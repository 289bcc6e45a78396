"""Render two compared runs as a page: for each model, what changed, and whether that is chance."""

from __future__ import annotations

from .. import numbers
from ..run_comparison import (
    NAMES,
    Change,
    ModelChange,
    RunComparison,
    RunFacts,
    model_title,
    requests_of,
    shown,
    shown_difference,
    shown_interval,
    verdict,
)
from . import markup, samples
from .document import document

_COLUMNS = ("", "{first}", "{second}", "Change", "95 % interval", "Beyond chance?")


def comparison_page(runs: RunComparison, recorded_by: str) -> str:
    """Render a whole document. recorded_by: the program and its version, for the footer."""
    title = f"{runs.first} and {runs.second}"
    models = "".join(_model(each, runs) for each in runs.models)
    body = (
        f"<header><h1>{markup.name(runs.first)} and {markup.name(runs.second)}</h1>"
        f'<p class="about">Two benchmark runs · {markup.text(requests_of(runs))}'
        f"</p>{''.join(map(_facts, runs.facts))}</header>{_conclusions(runs)}{models}"
        f"{_others(runs)}{_method(runs)}"
        f"<footer>{markup.text(recorded_by)}</footer>"
    )
    return document(title, f"<main>\n{body}\n</main>\n")


def _facts(facts: RunFacts) -> str:
    """Say when and how a run was made."""
    told = [
        f"{markup.name(name)} {markup.name(numbers.setting(value)[:200])}"
        for name, value in facts.settings.items()
    ]
    when = numbers.period(facts.began, facts.ended, samples.stamp)
    about = " · ".join(filter(None, [markup.name(facts.name), when, ", ".join(told)]))
    return f'<p class="about">{about}</p>'


def _conclusions(runs: RunComparison) -> str:
    rows = "".join(
        f"<div><dt>{markup.name(each.model)}</dt><dd>{_conclusion(each, runs)}</dd></div>"
        for each in runs.models
    )
    if not rows:
        return '<p class="notice">No model is in both runs.</p>'
    return f'<section aria-label="Conclusions"><dl class="conclusions">{rows}</dl></section>'


def _conclusion(each: ModelChange, runs: RunComparison) -> str:
    said: dict[str, list[str]] = {"better": [], "worse": []}
    for change in each.changes:
        word = verdict(change, runs)
        if word in said:
            said[word].append(f"{NAMES[change.measure]} {shown_difference(change)}")
    parts = [
        f"<b>{word.capitalize()}</b>: {', '.join(what)}." for word, what in said.items() if what
    ]
    return " ".join(parts) or "No significant difference."


def _model(each: ModelChange, runs: RunComparison) -> str:
    names = [
        name.format(first=markup.name(runs.first), second=markup.name(runs.second))
        for name in _COLUMNS
    ]
    head = "<td></td>" + "".join(f'<th scope="col">{name}</th>' for name in names[1:])
    rows = "".join(
        _row(change, runs)
        for change in each.changes
        if change.first is not None or change.second is not None
    )
    ok = [f"{one.ok:,}/{one.requests:,}" for one in (each.first, each.second)]
    succeeded = _cells("succeeded", [*ok, "–", "–", "–"], runs)
    return (
        f"<section><h2>{markup.name(model_title(each, runs))}</h2>"
        f'<div class="rows"><div class="wide" role="region" tabindex="0" '
        f'aria-label="Changes of {markup.text(each.model)}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{succeeded}{rows}</tbody></table></div></div></section>"
    )


def _row(change: Change, runs: RunComparison) -> str:
    cells = [
        shown(change, change.first),
        shown(change, change.second),
        shown_difference(change),
        shown_interval(change),
        verdict(change, runs),
    ]
    return _cells(NAMES[change.measure], [markup.text(cell) for cell in cells], runs)


def _cells(name: str, cells: list[str], runs: RunComparison) -> str:
    labels = (runs.first, runs.second, *_COLUMNS[3:])
    rest = "".join(
        f'<td data-label="{markup.text(label)}">{"–" if cell == "-" else cell}</td>'
        for label, cell in zip(labels, cells, strict=True)
    )
    return f'<tr><th scope="row">{name}</th>{rest}</tr>'


def _others(runs: RunComparison) -> str:
    return "".join(
        f'<p class="soft">Only in {markup.name(name)}: {", ".join(map(markup.name, models))}.</p>'
        for name, models in ((runs.first, runs.only_first), (runs.second, runs.only_second))
        if models
    )


def _method(runs: RunComparison) -> str:
    return (
        '<section><h2>How this was measured</h2><ul class="method">'
        "<li>Change is the second run minus the first: of times, rates and similarity the median "
        "of the differences request by request, of tokens that of the medians, of costs that of "
        "the means. Each line is of the requests for which both runs have it: of those that "
        "succeeded in both, but in times a failure is later than any.</li>"
        "<li>Better or worse is said only if the whole 95 % interval of the change says so, and "
        "the p-value of the sign test is at most 0.05 after Holm's correction for "
        f"{numbers.count_of(runs.tested, 'comparison')}. Fewer than six requests have no interval."
        "</li><li>Two runs at different times also differ in what providers and networks did "
        "then.</li></ul></section>"
    )
