"""The table: figures by server, with ratios, goals and spread, in Markdown and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from .figures import OURS, TABLES, Figure, Goal
from .stats import Summary, summarize

BEGIN, END = "<!-- begin of what python -m benchmarks prints -->", "<!-- end -->"

Values = Mapping[str, Mapping[str, Sequence[float]]]
"""Of each server, of each figure, the values of all rounds."""


def introduction(result: Mapping[str, Any]) -> list[str]:
    """Return lines about the run: when, on what, how disturbed, and what failed."""
    disturbance = result["disturbance"]
    loop = disturbance["loop_wall_ms"]
    lines = [
        f"{result['date'][:10]}, {result['machine']}; {result['rounds']} round(s) in"
        f" {result['seconds']} s.",
        f"Disturbance: {disturbance['steal_percent']:.1f} % of the time stolen, load average up to"
        f" {disturbance['load_average_max']:.1f}; a calibrated loop took"
        f" {loop['median'] / loop['least']:.2f} times its least (median; at most"
        f" {loop['most'] / loop['least']:.2f}).",
    ]
    for server, failures in result["failures"].items():
        if failures:
            counts = ", ".join(f"{count} {what}" for what, count in failures.items())
            lines.append(f"Failed requests of {server}: {counts}.")
    return lines


def markdown(values: Values, titles: Sequence[str], sizes: Mapping[str, float]) -> list[str]:
    """Return all tables, as lines.

    titles: the servers, one for each column. sizes: what the titles of figures name, such as
    the exchanges of a large log.
    """
    lines: list[str] = []
    for heading, figures in TABLES.items():
        rows = _rows(figures, values, titles, sizes)
        if len(rows) > 2:
            lines += [heading, "", *rows, ""] if heading else [*rows, ""]
    return lines


def _rows(
    figures: Sequence[Figure],
    values: Values,
    titles: Sequence[str],
    sizes: Mapping[str, float],
) -> list[str]:
    first, second = titles[0], titles[1] if len(titles) > 1 else ""
    compared = [f"{second} / {first}"] if second.startswith(OURS) else []
    goals = ["goal", "reached"] if any(figure.goals for figure in figures) else []
    head = ["figure", *titles, *compared, *goals]
    lines = [
        _row(head),
        _row(["---", *["---:"] * len([*titles, *compared]), *["---"] * len(goals)]),
    ]
    for figure in figures:
        cells = [_cell(figure, values[title].get(figure.name, ())) for title in titles]
        if not any(cells):
            continue
        if compared:
            cells.append(_ratio_cell(ratio_of(values, figure, second, first)))
        if goals:
            cells.append("; ".join(_goal(figure, goal) for goal in figure.goals))
            cells.append("; ".join(_reached(values, figure, goal, first) for goal in figure.goals))
        lines.append(_row([figure.title.format(**sizes), *cells]))
    return lines


def put_into(page: str, lines: Sequence[str]) -> str:
    """Replace what stands between the two marks of a page.

    Raises:
        ValueError: it has no such marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"the page has no {BEGIN} and {END}")
    return before + begin + "\n\n" + "\n".join(lines).strip() + "\n\n" + end + after


def as_json(values: Values, titles: Sequence[str], sizes: Mapping[str, float]) -> dict[str, Any]:
    """Return all values, their summaries and the goals."""
    figures: dict[str, Any] = {}
    for figure in chain.from_iterable(TABLES.values()):
        servers: dict[str, Any] = {}
        for title in titles:
            rounds = list(values[title].get(figure.name, ()))
            if (summary := summarize(rounds)) is not None:
                known = [None if math.isnan(value) else value for value in rounds]
                servers[title] = {"rounds": known, **vars(summary)}
        if not servers or figure.name in figures:
            continue  # it is in an earlier table too, with its goals
        goals = [_goal_as_json(values, figure, goal, titles[0]) for goal in figure.goals]
        title = figure.title.format(**sizes)
        figures[figure.name] = {"title": title, "servers": servers, "goals": goals}
    return figures


def _goal_as_json(values: Values, figure: Figure, goal: Goal, server: str) -> dict[str, Any]:
    reached = ratio_to(values, figure, goal, server)
    return {
        "goal": _goal(figure, goal),
        "reached": reached and reached.median,
        "met": is_met(values, figure, goal, server),
    }


def ratio_of(values: Values, figure: Figure, server: str, other: str) -> Summary | None:
    """Return one server's figure over another's, taken within each round."""
    above, below = (values.get(name, {}).get(figure.name, ()) for name in (server, other))
    return summarize([a / b for a, b in zip(above, below, strict=False) if b])


def ratio_to(values: Values, figure: Figure, goal: Goal, server: str) -> Summary | None:
    """Return the figure that a goal is about: a ratio, or the value itself."""
    if goal.of:
        return ratio_of(values, figure, server, goal.of)
    return summarize(values[server].get(figure.name, ()))


def is_met(values: Values, figure: Figure, goal: Goal, server: str) -> bool | None:
    """Return whether a goal is met; None if it was not measured."""
    found = ratio_to(values, figure, goal, server)
    if found is None:
        return None
    return found.median >= goal.factor if figure.more_is_better else found.median <= goal.factor


def number(value: float, digits: int) -> str:
    """Format a number with separated thousands, and at least two digits that say something."""
    if value and abs(value) < 10**-digits:
        digits += 1
    return f"{value:,.{digits}f}"


def _goal(figure: Figure, goal: Goal) -> str:
    sign = "≥" if figure.more_is_better else "≤"
    return f"{sign} {goal.factor:g} × {goal.of}" if goal.of else f"{sign} {goal.factor:g}"


def _reached(values: Values, figure: Figure, goal: Goal, server: str) -> str:
    found = ratio_to(values, figure, goal, server)
    if found is None:
        return "not measured"
    verdict = "met" if is_met(values, figure, goal, server) else "missed"
    return f"{found.median:.3g} × {verdict}" if goal.of else verdict


def _cell(figure: Figure, rounds: Sequence[float]) -> str:
    summary = summarize(rounds)
    if summary is None:
        return ""
    spread = f" ±{summary.spread_percent:.0f} %" if len(rounds) > 1 else ""
    return number(summary.median, figure.digits) + spread


def _ratio_cell(ratio: Summary | None) -> str:
    return "" if ratio is None else f"{ratio.median:.3f} ({ratio.least:.3f}–{ratio.most:.3f})"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
