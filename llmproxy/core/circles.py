"""Find circles among things of which each follows at most one other."""

from __future__ import annotations

from collections.abc import Mapping


def find_circles(before: Mapping[str, str | None]) -> list[list[str]]:
    """Return the circles in a mapping of ids to the ids that they follow, in one pass.

    Each is a list of its ids, every one followed by the id that it follows. Recordings make
    none, but files can be edited.
    """
    circles = []
    passed: set[str] = set()
    for start in before:
        way: dict[str, int] = {}
        id: str | None = start
        while id is not None and id in before and id not in passed:
            passed.add(id)
            way[id] = len(way)
            id = before[id]
        if id in way:
            circles.append(list(way)[way[id] :])
    return circles
