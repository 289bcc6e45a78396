"""The table: figures by server, with ratios, goals and spread, in Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .figures import FIGURES, OURS, Figure, Goal
from .stats import Summary, summarize

Values = Mapping[str, Mapping[str, Sequence[float]]]
"""Of each server, of each figure, the values of all rounds."""


def markdown(values: Values, titles: Sequence[str]) -> list[str]:
    """Return the table's lines; the columns are the servers in the order given."""
    first, second = titles[0], titles[1] if len(titles) > 1 else ""
    compared = second.startswith(OURS)
    head = ["figure", *titles, *([f"{second} / {first}"] if compared else []), "goal", "reached"]
    lines = [
        _row(head),
        _row(["---"] + ["---:"] * len(titles) + ["---"] * (len(head) - len(titles) - 1)),
    ]
    for figure in FIGURES:
        cells = [_cell(figure, values[title].get(figure.name, ())) for title in titles]
        if not any(cells):
            continue
        ratio = [_ratio_cell(ratio_of(values, figure, second, first))] if compared else []
        goals = "; ".join(_goal(figure, goal) for goal in figure.goals)
        reached = "; ".join(_reached(values, figure, goal, first) for goal in figure.goals)
        lines.append(_row([figure.title, *cells, *ratio, goals, reached]))
    return lines


def as_json(values: Values, titles: Sequence[str]) -> dict[str, Any]:
    """Return all values, their summaries and the goals."""
    figures: dict[str, Any] = {}
    for figure in FIGURES:
        servers: dict[str, Any] = {}
        for title in titles:
            rounds = list(values[title].get(figure.name, ()))
            if (summary := summarize(rounds)) is not None:
                servers[title] = {"rounds": rounds, **vars(summary)}
        if not servers:
            continue
        goals = [
            {
                "text": _goal(figure, goal),
                "ratio": None
                if (found := ratio_to(values, figure, goal, titles[0])) is None
                else found.median,
                "met": is_met(values, figure, goal, titles[0]),
            }
            for goal in figure.goals
        ]
        figures[figure.name] = {"title": figure.title, "servers": servers, "goals": goals}
    return figures


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
